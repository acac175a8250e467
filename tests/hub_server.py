"""A Hugging Face Hub on this machine: `huggingface_hub` and Diffusers talk to it unchanged.

Repositories live in memory and have a real history. The client reads `HF_ENDPOINT` when it is imported, so whoever talks
to the server runs in a process of its own, with the variables that [`HubServer.environment`] gives:

```python
with HubServer(tokens={"hf_writer": "alice"}) as hub:
    subprocess.run([sys.executable, "push.py"], env=hub.environment(tmp_path / "home", token="hf_writer"), check=True)
    assert "config.json" in hub.files("alice/model")
```

`ROUTES` is the whole protocol: each row's name is the method of `_Answers` that answers it, and what `fail_next` calls it.
Not spoken: Xet storage, redirects to a CDN, listing and moving repositories, organizations, merging pull requests, `.gitignore`.
"""

import base64
import contextlib
import datetime
import hashlib
import json
import os
import re
import socket
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, unquote, urlencode, urlsplit


@dataclass(frozen=True)
class Route:
    """
    A kind of request.

    Args:
        name (`str`): The method of `_Answers` that answers it.
        method (`str`): HTTP's verb.
        path (`str`): With the placeholders of `PLACEHOLDERS`, which match the path as it was sent, percent-encoded.
        access (`str`):
            What must hold before it is answered. `"anyone"`: nothing; `"user"`: a token; `"read"`: the repository is
            public or the token's own; `"propose"`: both; `"write"`: the token's own, or a pull request by the user.
    """

    name: str
    method: str
    path: str
    access: str


ROUTES = (
    Route("whoami", "GET", "/api/whoami-v2", "user"),
    Route("agent_harnesses", "GET", "/api/agent-harnesses", "anyone"),
    Route("validate_yaml", "POST", "/api/validate-yaml", "anyone"),
    Route("create_repo", "POST", "/api/repos/create", "user"),
    Route("delete_repo", "DELETE", "/api/repos/delete", "user"),
    Route("settings", "PUT", "{api}/settings", "write"),
    # What is there.
    Route("repo_info", "GET", "{api}", "read"),
    Route("repo_info", "GET", "{api}/revision/{revision}", "read"),
    Route("tree", "GET", "{api}/tree/{revision}", "read"),
    Route("tree", "GET", "{api}/tree/{revision}/{path}", "read"),
    Route("paths_info", "POST", "{api}/paths-info/{revision}", "read"),
    Route("refs", "GET", "{api}/refs", "read"),
    Route("commits", "GET", "{api}/commits/{revision}", "read"),
    # Files: the client asks for the head first.
    Route("file_info", "HEAD", "{web}/resolve/{revision}/{path}", "read"),
    Route("download", "GET", "{web}/resolve/{revision}/{path}", "read"),
    # An upload: which files go how, large files beside the commit, the commit.
    Route("preupload", "POST", "{api}/preupload/{revision}", "write"),
    Route("xet_token", "GET", "{api}/xet-(?:read|write)-token/{revision}", "read"),
    Route("lfs_batch", "POST", "{web}.git/info/lfs/objects/batch", "propose"),
    Route("lfs_upload", "PUT", "/lfs-storage{web}/{oid}", "anyone"),  # comes without a token, as to a signed URL
    Route("lfs_verify", "POST", "{web}.git/info/lfs/verify", "propose"),
    Route("commit", "POST", "{api}/commit/{revision}", "write"),
    # References. `name` is a branch or tag that may contain slashes, encoded.
    Route("create_branch", "POST", "{api}/branch/{name}", "write"),
    Route("delete_branch", "DELETE", "{api}/branch/{name}", "write"),
    Route("create_tag", "POST", "{api}/tag/{revision}", "write"),
    Route("delete_tag", "DELETE", "{api}/tag/{name}", "write"),
    Route("list_discussions", "GET", "{api}/discussions", "read"),
    Route("create_discussion", "POST", "{api}/discussions", "propose"),
    Route("discussion", "GET", "{api}/discussions/{number}", "read"),
)
PLACEHOLDERS = {
    "{api}": r"/api/(?P<kind>models|datasets|spaces)/(?P<repo>[^/]+/[^/]+)",
    "{web}": r"/(?:(?P<kind>datasets|spaces)/)?(?P<repo>[^/]+/[^/]+?)",
    "{revision}": r"(?P<revision>refs/pr/\d+|[^/]+)",
    "{path}": r"(?P<path>.+)",
    "{name}": r"(?P<name>[^/]+)",
    "{number}": r"(?P<number>\d+)",
    "{oid}": r"(?P<oid>[0-9a-f]{64})",
}
PATTERNS = [
    (route, re.compile(re.sub(r"\{[a-z]+\}", lambda match: PLACEHOLDERS[match[0]], route.path))) for route in ROUTES
]
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".gif", ".mp4", ".npz", ".h5")
Fault = int | Literal["close", "lose", "truncate"]


class HubError(Exception):
    """An answer that refuses. `code` is the Hub's `X-Error-Code`, from which the client makes its exceptions."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **fields):
        super().__init__(message)
        codes = {"X-Error-Code": code} if code else {}
        self.answer = _json(
            {"error": message, **fields}, status, {"X-Error-Message": message, **codes, **(headers or {})}
        )


@dataclass
class Answer:
    """What goes back: status, body and headers; HEAD gets the headers of the body."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


def _json(value, status: int = 200, headers: dict | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


@dataclass(frozen=True)
class Request:
    """A line of the log. It says whether a token came, never which."""

    method: str
    path: str
    route: str  # "" if there is none
    status: int  # 0 if the connection was closed instead
    authorized: bool


@dataclass
class Call:
    """A request on its way to its answer."""

    params: dict[str, str]
    query: dict[str, str]
    headers: Mapping[str, str]
    body: bytes
    user: str | None = None
    read_only: bool = False
    repository: "Repository | None" = None

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def head(self) -> "Commit":
        return self.repository.find(self.params.get("revision", "main"))


@dataclass(frozen=True)
class File:
    """Content, and whether it is stored as a large file."""

    content: bytes
    lfs: bool = False

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob(self) -> bytes:
        """What git stores: the content, or the pointer of a large file."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return pointer.encode() if self.lfs else self.content

    @cached_property
    def oid(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.blob) + self.blob).hexdigest()

    @property
    def etag(self) -> str:
        """By which the client recognises content that it has."""
        return self.sha256 if self.lfs else self.oid

    def entry(self, path: str) -> dict:
        size = len(self.content)
        entry = {"type": "file", "path": path, "size": size, "oid": self.oid}
        if self.lfs:  # the large file's hash has one name in trees and another in the description of a repository
            entry["lfs"] = {"oid": self.sha256, "sha256": self.sha256, "size": size, "pointerSize": len(self.blob)}
        return entry


@dataclass(frozen=True)
class Commit:
    """A snapshot of a repository."""

    sha: str
    title: str
    description: str
    author: str
    date: str
    files: Mapping[str, File]
    parent: "Commit | None"


@dataclass
class Discussion:
    """A discussion or, with a reference `refs/pr/<number>`, a pull request."""

    number: int
    title: str
    description: str
    author: str
    date: str
    pull_request: bool


class Repository:
    """
    A history and the names that point into it.

    Args:
        repo_id (`str`): `"owner/name"`.
        repo_type (`str`): `"model"`, `"dataset"` or `"space"`.
        private (`bool`): Whether only its owner sees it.
    """

    def __init__(self, repo_id: str, repo_type: str, private: bool):
        self.repo_id, self.repo_type, self.private = repo_id, repo_type, private
        self.gated: str | Literal[False] = False  # if not False, only the owner may download
        self.owner = repo_id.split("/")[0]
        self.refs: dict[str, Commit] = {}  # "refs/heads/main", "refs/tags/v1", "refs/pr/1"
        self.known: dict[str, Commit] = {}
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.announced: set[str] = set()  # large files that may be uploaded
        self.discussions: dict[int, Discussion] = {}
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        first = {".gitattributes": File(attributes.encode())}
        self.add_commit("refs/heads/main", "initial commit", "", self.owner, first)

    @property
    def url_path(self) -> str:
        return ("" if self.repo_type == "model" else f"/{self.repo_type}s") + f"/{self.repo_id}"

    def reference(self, revision: str) -> str | None:
        """The full name of a branch, tag or pull request; None if it is none."""
        names = (f"refs/heads/{revision}", f"refs/tags/{revision}", revision)
        return next((name for name in names if name in self.refs), None)

    def find(self, revision: str) -> Commit:
        name = self.reference(revision)
        if name is None and revision not in self.known:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.known[revision] if name is None else self.refs[name]

    def add_commit(self, ref: str, title: str, description: str, author: str, files: Mapping[str, File]) -> Commit:
        parent = self.refs.get(ref)
        content = sorted((path, file.oid) for path, file in files.items())
        identity = [self.repo_id, parent and parent.sha, title, description, author, content]
        sha = hashlib.sha1(json.dumps(identity).encode()).hexdigest()
        commit = Commit(sha, title, description, author, _now(), dict(files), parent)
        self.refs[ref] = self.known[sha] = commit
        return commit

    def add_discussion(self, title: str, description: str, author: str, pull_request: bool) -> Discussion:
        number = len(self.discussions) + 1
        self.discussions[number] = Discussion(number, title, description, author, _now(), pull_request)
        if pull_request:
            self.refs[f"refs/pr/{number}"] = self.find("main")
        return self.discussions[number]

    def may_read(self, user: str | None) -> bool:
        return not self.private or user == self.owner

    def may_write(self, call: Call) -> bool:
        """The owner everything, others their own pull requests."""
        revision = call.params.get("revision", "")
        pull = self.discussions.get(int(revision[8:])) if re.fullmatch(r"refs/pr/\d+", revision) else None
        return call.user == self.owner or "create_pr" in call.query or bool(pull and pull.author == call.user)


def _history(commit: Commit | None):
    while commit is not None:
        yield commit
        commit = commit.parent


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _card_data(text: str) -> dict:
    """The front matter of a README as far as it is `key: value` and lists of words; the rest of YAML is left out."""
    match = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    data, key = {}, None
    for line in match[1].splitlines() if match else ():
        if pair := re.fullmatch(r"([\w-]+):\s*(.*)", line):
            key, data[pair[1]] = pair[1], pair[2].strip("'\"") or []
        elif (item := re.fullmatch(r"\s*- ([^:]+)", line)) and isinstance(data.get(key), list):
            data[key].append(item[1].strip("'\""))
    return {key: value for key, value in data.items() if value}


class _Answers:
    """One method for each name in `ROUTES`: a call in, an answer out. The server's lock is held."""

    def __init__(self, hub: "HubServer"):
        self.hub = hub

    def whoami(self, call):
        token = {"displayName": "tests", "role": "read" if call.read_only else "write"}
        user = {"type": "user", "id": call.user, "name": call.user, "fullname": call.user, "isPro": False, "orgs": []}
        return _json({**user, "auth": {"type": "access_token", "accessToken": token}})

    def agent_harnesses(self, call):
        return _json({"harnesses": []})  # asked for once by a client with a new HF_HOME

    def validate_yaml(self, call):
        text = call.json["content"]
        if text.startswith("---\n") and "\n---" not in text[3:]:
            message = "Invalid front matter: its end is missing"
            return _json({"error": message, "errors": [{"message": message}], "warnings": []}, 400)
        warnings = [] if text.startswith("---\n") else [{"message": "empty or missing yaml metadata in repo card"}]
        return _json({"errors": [], "warnings": warnings})

    def create_repo(self, call):
        owner = call.json.get("organization") or call.user
        repo_id, repo_type = f"{owner}/{call.json['name']}", call.json.get("type", "model")
        if owner != call.user or call.read_only:
            raise HubError(403, f"You don't have the rights to create a {repo_type} under the namespace {owner}")
        private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
        known = self.hub.repositories.get((repo_type, repo_id))
        url = self.hub.url + (known or self.hub.add_repository(repo_id, repo_type, private)).url_path
        if known:
            raise HubError(409, f"You already created this {repo_type} repo: {repo_id}", url=url)
        return _json({"url": url, "name": repo_id, "private": private})

    def delete_repo(self, call):
        key = (call.json.get("type", "model"), f"{call.json.get('organization') or call.user}/{call.json['name']}")
        call.repository = self.hub.repositories.get(key)
        self.hub.check_access(call, "write")
        del self.hub.repositories[key]
        return _json({})

    def settings(self, call):
        if "visibility" in call.json:
            call.repository.private = call.json["visibility"] == "private"
        call.repository.gated = call.json.get("gated", call.repository.gated)
        return _json({"private": call.repository.private, "gated": call.repository.gated})

    def repo_info(self, call):
        repository, head = call.repository, call.head
        siblings = [{"rfilename": path} for path in sorted(head.files)]
        if "blobs" in call.query:
            entries = [head.files[item["rfilename"]].entry(item["rfilename"]) for item in siblings]
            siblings = [{**item, **entry, "blobId": entry["oid"]} for item, entry in zip(siblings, entries)]
        card = _card_data(head.files["README.md"].content.decode()) if "README.md" in head.files else {}
        tags = card.get("tags", [])
        named = {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
        named["tags"] = [*named.values(), *(tags if isinstance(tags, list) else [tags])]
        seen = {"private": repository.private, "gated": repository.gated, "author": repository.owner}
        content = {"sha": head.sha, "lastModified": head.date, "siblings": siblings, "cardData": card}
        return _json({"id": repository.repo_id, **seen, **content, **named})

    def tree(self, call):
        path = call.params.get("path", "").strip("/")
        prefix = path and path + "/"
        entries = {name: file.entry(name) for name, file in call.head.files.items() if name.startswith(prefix)}
        if path and not entries:
            raise HubError(404, f"{path} does not exist on {call.params['revision']}", "EntryNotFound")
        folders = {str(folder) for name in entries for folder in list(Path(name).parents)[:-1]}
        for folder in folders:
            if folder.startswith(prefix):
                entries[folder] = _folder_entry(folder)
        if call.query.get("recursive", "").lower() not in ("true", "1"):
            entries = {name: entry for name, entry in entries.items() if "/" not in name[len(prefix) :]}
        return self._page(call, [entries[name] for name in sorted(entries)])

    def paths_info(self, call):
        form = parse_qs(call.body.decode())
        files = call.head.files
        entries = [files[path].entry(path) for path in form["paths"] if path in files]
        folders = [path for path in form["paths"] if any(name.startswith(path.rstrip("/") + "/") for name in files)]
        return _json(entries + [_folder_entry(path) for path in folders])

    def refs(self, call):
        def listing(prefix, of_name):
            refs = [(ref, commit.sha) for ref, commit in call.repository.refs.items() if ref.startswith(prefix)]
            return [{"name": ref.removeprefix(of_name), "ref": ref, "targetCommit": sha} for ref, sha in refs]

        branches, tags = listing("refs/heads/", "refs/heads/"), listing("refs/tags/", "refs/tags/")
        pulls = {"pullRequests": listing("refs/pr/", "")} if "include_prs" in call.query else {}
        return _json({"branches": branches, "tags": tags, "converts": [], **pulls})

    def commits(self, call):
        def line(commit):
            texts = {"id": commit.sha, "title": commit.title, "message": commit.description, "date": commit.date}
            return {**texts, "authors": [{"user": commit.author}]}

        return self._page(call, [line(commit) for commit in _history(call.head)])

    def _page(self, call, items):
        start, size = int(call.query.get("cursor", 0)), self.hub.page_size
        headers = {}
        if start + size < len(items):
            query = urlencode({**call.query, "cursor": start + size})
            headers["Link"] = f'<{self.hub.url}{call.params["url_path"]}?{query}>; rel="next"'
        return _json(items[start : start + size], headers=headers)

    def download(self, call):
        if call.repository.gated and call.user != call.repository.owner:
            raise HubError(403 if call.user else 401, "Access to this repository is restricted", "GatedRepo")
        commit, path = call.head, call.params["path"]
        headers = {"X-Repo-Commit": commit.sha}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", headers)
        file = commit.files[path]
        headers |= {"ETag": f'"{file.etag}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if file.lfs:
            headers |= {"X-Linked-ETag": f'"{file.etag}"', "X-Linked-Size": str(len(file.content))}
        size, wanted = len(file.content), re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
        if not wanted or wanted[0] == "bytes=-":
            return Answer(200, file.content, headers)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        stop = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
        if start >= stop:
            raise HubError(416, "Range not satisfiable", headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        return Answer(206, file.content[start:stop], headers)

    file_info = download  # the handler leaves the body of a HEAD out

    def preupload(self, call):
        files = []
        for item in call.json["files"]:
            old = call.head.files.get(item["path"])
            mode = "lfs" if self.hub.is_large(item["path"], item["size"]) else "regular"
            oid = {"oid": old.etag} if old else {}  # with it the client leaves out what has not changed
            files.append({"path": item["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
        return _json({"files": files})

    def xet_token(self, call):
        raise HubError(400, "This server has no Xet storage: use upload_mode='regular' or set HF_HUB_DISABLE_XET=1")

    def lfs_batch(self, call):
        repository, objects = call.repository, call.json["objects"]
        storage = f"{self.hub.url}/lfs-storage{repository.url_path}"
        verify = {"href": f"{self.hub.url}{repository.url_path}.git/info/lfs/verify", "header": {}}
        for item in objects:
            if item["oid"] not in repository.objects:
                repository.announced.add(item["oid"])
                item["actions"] = {"upload": {"href": f"{storage}/{item['oid']}", "header": {}}, "verify": verify}
        return _json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, call):
        oid = call.params["oid"]
        if call.repository is None or oid not in call.repository.announced:
            raise HubError(403, "This object was not announced")
        if hashlib.sha256(call.body).hexdigest() != oid:
            raise HubError(400, f"{len(call.body)} bytes came that are not object {oid}")
        call.repository.objects[oid] = call.body
        return Answer(200)

    def lfs_verify(self, call):
        content = call.repository.objects.get(call.json["oid"])
        if content is None or len(content) != call.json["size"]:
            raise HubError(404, f"Object {call.json['oid']} was not uploaded")
        return _json({})

    def commit(self, call):
        header, *operations = [json.loads(line) for line in call.body.splitlines() if line.strip()]
        repository, header, head = call.repository, header["value"], call.head
        ref = repository.reference(call.params["revision"])
        if ref is None or ref.startswith("refs/tags/"):
            raise HubError(400, "Commits go to a branch or pull request")
        if header.get("parentCommit") not in (None, head.sha):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(head.files)
        for operation in operations:
            _apply(files, repository, operation["key"], operation["value"])
        extra, title, description = {}, header["summary"], header.get("description", "")
        if "create_pr" in call.query:
            number = repository.add_discussion(title, description, call.user, pull_request=True).number
            ref = f"refs/pr/{number}"
            repository.refs[ref] = head
            extra["pullRequestUrl"] = f"{self.hub.url}{repository.url_path}/discussions/{number}"
        commit = repository.add_commit(ref, title, description, call.user, files)
        url = f"{self.hub.url}{repository.url_path}/commit/{commit.sha}"
        return _json({"success": True, "commitOid": commit.sha, "commitUrl": url, "hookOutput": "", **extra})

    def create_branch(self, call):
        start = call.repository.find(call.json.get("startingPoint") or "main")
        return self._create_ref(call, f"refs/heads/{call.params['name']}", start)

    def create_tag(self, call):
        return self._create_ref(call, f"refs/tags/{call.json['tag']}", call.head)

    def _create_ref(self, call, ref, commit):
        if ref in call.repository.refs:
            raise HubError(409, f"Reference {ref} exists already")
        call.repository.refs[ref] = commit
        return _json({})

    def delete_branch(self, call):
        return self._delete_ref(call, f"refs/heads/{call.params['name']}")

    def delete_tag(self, call):
        return self._delete_ref(call, f"refs/tags/{call.params['name']}")

    def _delete_ref(self, call, ref):
        if ref == "refs/heads/main":
            raise HubError(403, "Branch main can not be deleted")
        if ref not in call.repository.refs:
            raise HubError(404, f"Reference {ref} does not exist", "RevisionNotFound")
        del call.repository.refs[ref]
        return _json({})

    def list_discussions(self, call):
        found = [self._describe(call, discussion) for discussion in call.repository.discussions.values()]
        if wanted := call.query.get("type"):
            found = [item for item in found if item["isPullRequest"] == (wanted == "pull_request")]
        return _json({"count": len(found), "start": 0, "discussions": found})

    def create_discussion(self, call):
        title, description = call.json["title"], call.json.get("description", "")
        discussion = call.repository.add_discussion(title, description, call.user, bool(call.json.get("pullRequest")))
        return _json(self._describe(call, discussion))

    def discussion(self, call):
        if int(call.params["number"]) not in call.repository.discussions:
            raise HubError(404, "This discussion does not exist")
        discussion = call.repository.discussions[int(call.params["number"])]
        comment = {"edited": False, "hidden": False, "latest": {"raw": discussion.description}}
        event = {"id": "0", "type": "comment", "createdAt": discussion.date, "author": {"name": discussion.author}}
        changes = {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "diff": ""}
        described = self._describe(call, discussion)
        return _json({**described, "events": [{**event, "data": comment}], **changes})

    def _describe(self, call, discussion):
        pull = discussion.pull_request
        texts = {"num": discussion.number, "title": discussion.title, "author": {"name": discussion.author}}
        state = {"createdAt": discussion.date, "isPullRequest": pull, "status": "draft" if pull else "open"}
        return {**texts, **state, "repo": {"name": call.repository.repo_id, "type": call.repository.repo_type}}


def _apply(files: dict[str, File], repository: Repository, key: str, value: dict):
    """One line of a commit."""
    path = value["path"]
    if key == "file":
        content = value["content"]
        files[path] = File(base64.b64decode(content) if value.get("encoding") == "base64" else content.encode())
    elif key == "lfsFile":
        if value["oid"] not in repository.objects:
            raise HubError(400, f"{path}: large file {value['oid']} was not uploaded")
        files[path] = File(repository.objects[value["oid"]], lfs=True)
    elif key in ("deletedFile", "deletedFolder"):
        folder = path.rstrip("/") + "/"
        gone = [name for name in files if (name == path if key == "deletedFile" else name.startswith(folder))]
        if not gone:
            raise HubError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise HubError(400, f"Unknown operation {key}")


def _folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


class _Handler(BaseHTTPRequestHandler):
    """HTTP: bytes in, bytes out."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms between its headers and its body

    def do_GET(self):
        body = self._read_body()  # also before closing: unread bytes would make it a reset, which is another error
        answer, fault = self.server.hub.answer(self.command, self.path, self.headers, body)
        if fault in ("close", "lose"):
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Length": str(len(answer.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if fault == "truncate" else answer.body)
        self.close_connection = self.close_connection or fault == "truncate"

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self._read(int(self.headers.get("Content-Length", 0)))
        body = bytearray()
        while size := int(self.rfile.readline().split(b";")[0] or b"-1", 16):
            body += self._read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(max(0, size))
        if len(content) != size:
            raise ConnectionError("The client went away within a request, which therefore has no effect.")
        return content

    def log_message(self, *arguments):
        pass


class _HTTPServer(ThreadingHTTPServer):
    """Knows its connections, so that it can end those that a client keeps open."""

    request_queue_size = 128
    hub: "HubServer"

    def __init__(self, hub: "HubServer"):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.connections: dict[threading.Thread, socket.socket] = {}

    def process_request(self, request, client_address):
        self.connections = {thread: open_ for thread, open_ in self.connections.items() if thread.is_alive()}
        arguments = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=arguments, name="hub", daemon=True)
        thread.start()
        self.connections[thread] = request

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), OSError):  # which is a client that went away
            super().handle_error(request, client_address)

    def close_connections(self):
        for thread, connection in self.connections.items():
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join()


class HubServer:
    """
    The server, as a context manager.

    Args:
        tokens (`dict[str, str]`): The user of each token that may read and write.
        read_tokens (`dict[str, str]`, *optional*): The user of each token that may only read.
        upload_mode (`str`, defaults to `"regular"`):
            `"regular"`: every file is sent within the commit, which clients with and without `hf_xet` do. `"lfs"`: large
            files go beside it, which clients do with `HF_HUB_DISABLE_XET=1` only. It may be changed at any time.
        lfs_suffixes (`tuple[str]`, *optional*): Files that are large by name.
        lfs_size (`int`, defaults to 10 MB): The size in bytes from which any file is large.
        page_size (`int`, defaults to 1000): Entries in one answer of listings.

    Attributes:
        url (`str`): For `HF_ENDPOINT`.
        requests (`list[Request]`): What came, in the order of the answers.
        repositories (`dict`): Of `(type, id)`.
    """

    def __init__(
        self,
        tokens: Mapping[str, str],
        read_tokens: Mapping[str, str] | None = None,
        upload_mode: Literal["regular", "lfs"] = "regular",
        lfs_suffixes: tuple[str, ...] = LFS_SUFFIXES,
        lfs_size: int = 10_000_000,
        page_size: int = 1000,
    ):
        self.tokens, self.read_tokens, self.upload_mode = dict(tokens), dict(read_tokens or {}), upload_mode
        self.lfs_suffixes, self.lfs_size, self.page_size = lfs_suffixes, lfs_size, page_size
        self.url = ""
        self.requests: list[Request] = []
        self.repositories: dict[tuple[str, str], Repository] = {}
        self._answers = _Answers(self)
        self._faults: dict[str, list[Fault]] = {}
        self._lock = threading.RLock()

    def start(self) -> "HubServer":
        self._http = _HTTPServer(self)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="hub", daemon=True)
        self._thread.start()
        return self

    def stop(self):
        """End all connections and threads."""
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
        self._http.close_connections()

    def __enter__(self) -> "HubServer":
        return self.start()

    def __exit__(self, *exception):
        self.stop()

    def environment(self, home: str | Path, token: str | None = None, xet: bool | None = None) -> dict[str, str]:
        """
        All variables of a process whose Hub is this server.

        Args:
            home (`str` or `Path`): `HF_HOME`: a new folder for a cold cache.
            token (`str`, *optional*): `HF_TOKEN`; without it the process has none.
            xet (`bool`, *optional*): Whether `hf_xet` is active; by default where `upload_mode` allows it.
        """
        foreign = ("HF_", "HUGGING", "TRANSFORMERS_OFFLINE", "TRANSFORMERS_CACHE", "DIFFUSERS_OFFLINE")
        variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        variables |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_ETAG_TIMEOUT": "5",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if token is not None:
            variables["HF_TOKEN"] = token
        if not (self.upload_mode == "regular" if xet is None else xet):
            variables["HF_HUB_DISABLE_XET"] = "1"
        return variables

    def fail_next(self, route: str, status: Fault = 503, times: int = 1):
        """
        Let the next requests of a route fail.

        Args:
            route (`str`): A name of `ROUTES`.
            status (`int` or `str`, defaults to 503):
                An HTTP status; or `"close"`: the connection ends and nothing is done; `"lose"`: it is done but the answer
                does not arrive; `"truncate"`: the connection ends after half of the body.
            times (`int`, defaults to 1): How many requests.
        """
        if route not in {known.name for known in ROUTES}:
            raise ValueError(f"`route` must be a name in ROUTES, got {route!r}.")
        with self._lock:
            self._faults.setdefault(route, []).extend([status] * times)

    def add_repository(
        self,
        repo_id: str,
        repo_type: str = "model",
        private: bool = False,
        files: Mapping[str, bytes] | None = None,
    ) -> Repository:
        """A new repository, with `files` in a second commit if they are given: for what is about downloads only."""
        repository = Repository(repo_id, repo_type, private)
        if files is not None:
            found = {path: File(content, self.is_large(path, len(content))) for path, content in files.items()}
            repository.objects |= {file.sha256: file.content for file in found.values() if file.lfs}
            found |= repository.find("main").files
            repository.add_commit("refs/heads/main", "Add files", "", repository.owner, found)
        with self._lock:
            self.repositories[repo_type, repo_id] = repository
        return repository

    def is_large(self, path: str, size: int) -> bool:
        """Whether a file goes beside the commit."""
        return self.upload_mode == "lfs" and (size >= self.lfs_size or path.endswith(self.lfs_suffixes))

    def repository(self, repo_id: str, repo_type: str = "model") -> Repository:
        return self.repositories[repo_type, repo_id]

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """Content by path, the `.gitattributes` of the first commit among them."""
        with self._lock:
            files = self.repository(repo_id, repo_type).find(revision).files
        return {path: file.content for path, file in files.items()}

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """Newest first."""
        with self._lock:
            return list(_history(self.repository(repo_id, repo_type).find(revision)))

    def answer(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> tuple[Answer, Fault | None]:
        """The answer of a request and what shall go wrong with it; called by the HTTP side."""
        path, query = urlsplit(target).path, urlsplit(target).query
        matches = ((route, pattern.fullmatch(path)) for route, pattern in PATTERNS if route.method == method)
        route, match = next(((route, match) for route, match in matches if match), (None, None))
        name = route.name if route else ""
        with self._lock:
            fault = self._faults[name].pop(0) if self._faults.get(name) else None
            if fault == "close":
                answer = Answer(0)
            elif isinstance(fault, int):
                answer, fault = HubError(fault, "Injected by the test").answer, None
            elif route is None:
                answer = HubError(404, f"No such page: {method} {path}").answer
            else:
                params = {key: unquote(value) for key, value in match.groupdict().items() if value is not None}
                fields = {key: values[0] for key, values in parse_qs(query).items()}
                answer = self._answer_route(route, Call({**params, "url_path": path}, fields, headers, body))
            status = 0 if fault in ("close", "lose") else answer.status
            self.requests.append(Request(method, target, name, status, "Authorization" in headers))
        return answer, fault

    def _answer_route(self, route: Route, call: Call) -> Answer:
        try:
            self._sign_in(call)
            if "repo" in call.params:
                repo_type = call.params.get("kind", "models")[:-1]
                call.repository = self.repositories.get((repo_type, call.params["repo"]))
            self.check_access(call, route.access)
            return getattr(self._answers, route.name)(call)
        except HubError as error:
            return error.answer
        except Exception:  # 501: the one error of a server that clients do not try again
            return _json({"error": traceback.format_exc()}, 501)

    def _sign_in(self, call: Call):
        scheme, _, token = call.headers.get("Authorization", "").partition(" ")
        call.read_only = token in self.read_tokens
        call.user = self.tokens.get(token) or self.read_tokens.get(token)
        if scheme and call.user is None:
            raise HubError(401, "Invalid credentials in Authorization header")

    def check_access(self, call: Call, access: str):
        """Raise the Hub's error unless the call may do what its route does; what is private seems not to exist."""
        if access in ("read", "propose", "write") and not (call.repository and call.repository.may_read(call.user)):
            raise HubError(404 if call.user else 401, "Repository not found", "RepoNotFound")
        if access in ("user", "propose", "write") and call.user is None:
            raise HubError(401, "Invalid username or password.")
        if access in ("propose", "write") and call.read_only:
            raise HubError(403, "This token may only read")
        if access == "write" and not call.repository.may_write(call):
            raise HubError(403, f"{call.user} may not write to {call.repository.repo_id}")
