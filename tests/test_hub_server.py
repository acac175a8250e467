"""The Hub for tests, against the real client: each script runs in a process whose endpoint is the server."""

import http.client
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from hub_server import HubServer


TOKENS = {"hf_alice": "alice", "hf_bob": "bob"}
PRELUDE = """
import sys
from pathlib import Path

import huggingface_hub as hf

folder = Path(sys.argv[1])


def refusal(function, *arguments, **settings):
    try:
        function(*arguments, **settings)
    except hf.errors.HfHubHTTPError as error:
        return type(error).__name__, error.response.status_code
    raise AssertionError("was not refused")
"""


@pytest.fixture
def hub():
    with HubServer(tokens=TOKENS, read_tokens={"hf_reader": "alice"}) as server:
        yield server


@pytest.fixture
def folder(tmp_path):
    """What is uploaded: a card, a plain file, and one that is large by its name."""
    files = {
        "README.md": b"---\nlicense: mit\nlibrary_name: diffusers\ntags:\n- video\n---\n# Card\n",
        "config.json": b'{"sample_size": 8}',
        "unet/model.safetensors": bytes(range(256)) * 40,
    }
    for path, content in files.items():
        (tmp_path / "upload" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "upload" / path).write_bytes(content)
    return tmp_path / "upload"


def run(hub, script, folder, token="hf_alice", xet=None, name="home"):
    """Run the script with `HF_HOME` beside the folder; the same name is the same cache."""
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(folder)],
        env=hub.environment(folder.parent / name, token=token, xet=xet),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def uploaded(hub, repo_id="alice/model", revision="main", repo_type="model"):
    files = hub.files(repo_id, revision, repo_type)
    files.pop(".gitattributes")
    return files


def routes(hub):
    return [request.route for request in hub.requests]


UPLOAD = """
assert hf.whoami()["name"] == "alice"
assert hf.create_repo("model").repo_id == "alice/model"
assert hf.create_repo("model", exist_ok=True).repo_id == "alice/model"
assert refusal(hf.create_repo, "model") == ("HfHubHTTPError", 409)
commit = hf.upload_folder(repo_id="alice/model", folder_path=folder, commit_message="Title", commit_description="Why")
assert commit.oid == hf.model_info("alice/model").sha
assert commit.repo_url.repo_id == "alice/model"
again = hf.upload_folder(repo_id="alice/model", folder_path=folder)
assert again.oid == commit.oid
"""
DOWNLOAD = """
found = Path(hf.snapshot_download("alice/model"))
assert (found / ".gitattributes").exists()
for path in folder.rglob("*.*"):
    assert (found / path.relative_to(folder)).read_bytes() == path.read_bytes(), path
file = hf.hf_hub_download("alice/model", "config.json", cache_dir=folder.parent / "another")
assert Path(file).read_bytes() == (folder / "config.json").read_bytes()
"""


@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_folder_comes_back_as_it_was_pushed_and_unchanged_files_are_not_sent_again(hub, folder, mode):
    hub.upload_mode = mode
    run(hub, UPLOAD, folder)
    assert uploaded(hub) == contents(folder)
    newest, first = hub.commits("alice/model")
    assert (newest.title, newest.description, newest.author) == ("Title", "Why", "alice")
    assert first.title == "initial commit" and newest.parent is first
    assert routes(hub).count("commit") == 1 and routes(hub).count("preupload") == 2
    assert routes(hub).count("lfs_upload") == routes(hub).count("lfs_verify") == (mode == "lfs")
    assert newest.files["unet/model.safetensors"].lfs == (mode == "lfs") and not newest.files["config.json"].lfs
    assert not any(token in repr(hub.requests) for token in TOKENS)
    assert all(request.authorized for request in hub.requests if request.route == "commit")

    hub.requests.clear()
    run(hub, DOWNLOAD, folder, token=None, name="cold")
    assert routes(hub).count("download") == 5
    assert not any(request.authorized for request in hub.requests)


def test_an_object_that_the_repository_has_is_not_sent_a_second_time(folder):
    script = """
        hf.create_repo("alice/model")
        for place in ("one", "two"):
            hf.upload_folder(repo_id="alice/model", folder_path=folder, path_in_repo=place)
        info = hf.get_paths_info("alice/model", ["two/unet/model.safetensors", "two/config.json", "two", "none"])
        assert [getattr(item, "lfs", None) is None for item in info] == [False, True, True]
        assert info[0].lfs.size == 10240
        siblings = {item.rfilename: item for item in hf.model_info("alice/model", files_metadata=True).siblings}
        assert siblings["one/unet/model.safetensors"].lfs.sha256 == info[0].lfs.sha256
    """
    with HubServer(TOKENS, upload_mode="lfs") as hub:
        run(hub, script, folder)
        assert routes(hub).count("commit") == routes(hub).count("lfs_batch") == 2
        assert routes(hub).count("lfs_upload") == 1
        files = hub.commits("alice/model")[0].files
        assert files["one/unet/model.safetensors"].content == files["two/unet/model.safetensors"].content


def test_a_client_with_xet_is_told_that_there_is_none(hub, folder):
    hub.upload_mode = "lfs"
    script = """
        hf.create_repo("alice/model")
        try:
            hf.upload_folder(repo_id="alice/model", folder_path=folder)
        except Exception as error:
            print(error)
        else:
            raise AssertionError("uploaded")
    """
    assert "xet-write-token" in run(hub, script, folder, xet=True)
    assert hub.requests[-1].route == "xet_token" and hub.requests[-1].status == 400
    assert len(hub.commits("alice/model")) == 1


def test_what_a_token_may_not_do_is_refused_as_the_hub_refuses_it(hub, folder):
    script = """
        hf.create_repo("alice/secret", private=True)
        hf.create_repo("alice/model")
        for repo_id in ("alice/secret", "alice/model"):
            hf.upload_folder(repo_id=repo_id, folder_path=folder)
        secret = dict(repo_id="alice/secret", filename="config.json")
        for token, status in ((False, 401), ("hf_bob", 404)):
            assert refusal(hf.model_info, "alice/secret", token=token) == ("RepositoryNotFoundError", status)
            assert refusal(hf.hf_hub_download, **secret, token=token) == ("RepositoryNotFoundError", status)
            assert refusal(hf.snapshot_download, "alice/secret", token=token) == ("RepositoryNotFoundError", status)
        for token in ("hf_alice", "hf_reader"):
            assert hf.model_info("alice/secret", token=token).private
            hf.hf_hub_download(**secret, token=token, cache_dir=folder.parent / token)
        assert refusal(hf.model_info, "alice/none") == ("RepositoryNotFoundError", 404)
        assert refusal(hf.model_info, "alice/model", revision="none") == ("RevisionNotFoundError", 404)
        assert refusal(hf.hf_hub_download, "alice/model", "none") == ("RemoteEntryNotFoundError", 404)
        assert refusal(hf.hf_hub_download, "alice/model", "a", revision="none") == ("RevisionNotFoundError", 404)

        push = dict(path_or_fileobj=b"1", path_in_repo="new", repo_id="alice/model")
        assert refusal(hf.upload_file, **push, token=False)[1] == 401
        assert refusal(hf.upload_file, **push, token="hf_wrong") == ("HfHubHTTPError", 401)
        assert refusal(hf.upload_file, **push, token="hf_bob")[1] == 403
        assert refusal(hf.upload_file, **push, token="hf_reader")[1] == 403
        for function, arguments in ((hf.whoami, ()), (hf.model_info, ("alice/model",))):
            assert refusal(function, *arguments, token="hf_wrong") == ("HfHubHTTPError", 401)
        assert refusal(hf.create_repo, "bob/model")[1] == 403
        assert refusal(hf.create_repo, "other", token="hf_reader")[1] == 403
        assert refusal(hf.delete_repo, "alice/model", token="hf_bob")[1] == 403

        hf.update_repo_settings("alice/model", gated="manual", private=False)
        config = dict(repo_id="alice/model", filename="config.json", cache_dir=folder.parent / "gated")
        assert refusal(hf.hf_hub_download, **config, token="hf_bob") == ("GatedRepoError", 403)
        assert refusal(hf.hf_hub_download, **config, token=False) == ("GatedRepoError", 401)
        hf.hf_hub_download(**config)
        hf.delete_repo("alice/model")
        assert refusal(hf.delete_repo, "alice/model") == ("RepositoryNotFoundError", 404)
    """
    run(hub, script, folder)
    assert hub.repository("alice/secret").private
    assert list(hub.repositories) == [("model", "alice/secret")]
    assert "new" not in hub.files("alice/secret")
    assert not any(token in repr(hub.requests) for token in (*TOKENS, "hf_reader", "hf_wrong"))


def test_branches_tags_pull_requests_and_deletions_are_those_of_a_history(folder):
    script = """
        repo = "alice/model"
        hf.create_repo(repo)
        first = hf.upload_folder(repo_id=repo, folder_path=folder)
        hf.create_tag(repo, tag="v1.0")
        hf.create_branch(repo, branch="next/one")
        assert refusal(hf.create_branch, repo, branch="next/one")[1] == 409
        hf.create_branch(repo, branch="next/one", exist_ok=True)
        hf.upload_file(path_or_fileobj=b"2", path_in_repo="two", repo_id=repo, revision="next/one")
        second = hf.upload_file(path_or_fileobj=b"new", path_in_repo="config.json", repo_id=repo)
        pull = hf.upload_folder(repo_id=repo, folder_path=folder, path_in_repo="pr", create_pr=True, token="hf_bob")
        assert (pull.pr_num, pull.pr_revision) == (1, "refs/pr/1")
        hf.upload_file(path_or_fileobj=b"more", path_in_repo="pr/more", repo_id=repo, revision="refs/pr/1", token="hf_bob")
        assert [(item.num, item.is_pull_request, item.author) for item in hf.get_repo_discussions(repo)] == [(1, True, "bob")]

        def read(name, **settings):
            return Path(hf.hf_hub_download(repo, name, **settings)).read_bytes()

        old = (folder / "config.json").read_bytes()
        assert read("config.json") == b"new" and read("config.json", revision="refs/pr/1") == b"new"
        assert read("pr/more", revision="refs/pr/1") == b"more"
        assert read("config.json", revision="v1.0") == read("config.json", revision=first.oid) == old
        assert read("two", revision="next/one") == b"2"
        assert refusal(hf.hf_hub_download, repo, "two") == ("RemoteEntryNotFoundError", 404)

        refs = hf.list_repo_refs(repo, include_pull_requests=True)
        assert [(item.name, item.ref) for item in refs.branches] == [
            ("main", "refs/heads/main"), ("next/one", "refs/heads/next/one")
        ]
        assert [(item.name, item.target_commit) for item in refs.tags] == [("v1.0", first.oid)]
        assert [item.ref for item in refs.pull_requests] == ["refs/pr/1"]
        assert [item.commit_id for item in hf.list_repo_commits(repo)][:2] == [second.oid, first.oid]

        names = ["README.md", "config.json", "unet"]
        assert [item.path for item in hf.list_repo_tree(repo)] == [".gitattributes", *names]
        assert [item.path for item in hf.list_repo_tree(repo, "unet")] == ["unet/model.safetensors"]
        assert [item.path for item in hf.list_repo_tree(repo, recursive=True)][-2:] == ["unet", "unet/model.safetensors"]

        add = [hf.CommitOperationAdd("late", b"late")]
        commit = dict(operations=add, commit_message="late", parent_commit=first.oid)
        assert refusal(hf.create_commit, repo, **commit) == ("HfHubHTTPError", 412)
        hf.create_commit(repo, **{**commit, "parent_commit": second.oid})
        assert refusal(hf.delete_file, "none", repo) == ("RemoteEntryNotFoundError", 404)
        hf.delete_file("late", repo)
        hf.delete_folder("unet", repo)
        hf.upload_folder(repo_id=repo, folder_path=folder / "unet", delete_patterns="*.md")
        hf.delete_branch(repo, branch="next/one")
        hf.delete_tag(repo, tag="v1.0")
        assert refusal(hf.delete_tag, repo, tag="v1.0") == ("RevisionNotFoundError", 404)
        assert hf.repo_exists(repo) and not hf.revision_exists(repo, "v1.0") and not hf.file_exists(repo, "README.md")
    """
    with HubServer(TOKENS, page_size=2) as hub:
        run(hub, script, folder)
        assert uploaded(hub) == {
            "config.json": b"new",
            "model.safetensors": contents(folder)["unet/model.safetensors"],
        }
        assert "pr/unet/model.safetensors" in hub.files("alice/model", revision="refs/pr/1")
        assert list(hub.repository("alice/model").refs) == ["refs/heads/main", "refs/pr/1"]
        assert any("cursor=2" in request.path for request in hub.requests)


def test_one_commit_opens_a_pull_request_of_large_files(hub, folder):
    hub.upload_mode = "lfs"
    run(
        hub,
        """
        hf.create_repo("alice/model")
        commit = hf.upload_folder(repo_id="alice/model", folder_path=folder, create_pr=True, token="hf_bob")
        assert (commit.pr_num, commit.pr_revision) == (1, "refs/pr/1")
        """,
        folder,
    )
    assert uploaded(hub) == {} and uploaded(hub, revision="refs/pr/1") == contents(folder)
    assert hub.repository("alice/model").discussions[1].author == "bob"


def test_data_sets_have_routes_of_their_own(folder):
    script = """
        hf.create_repo("data", repo_type="dataset")
        commit = hf.upload_folder(repo_id="alice/data", folder_path=folder, repo_type="dataset")
        assert commit.repo_url.repo_type == "dataset"
        found = Path(hf.snapshot_download("alice/data", repo_type="dataset"))
        assert (found / "config.json").read_bytes() == (folder / "config.json").read_bytes()
        assert hf.dataset_info("alice/data").sha == commit.oid
        assert refusal(hf.model_info, "alice/data") == ("RepositoryNotFoundError", 404)
    """
    with HubServer(TOKENS, upload_mode="lfs") as hub:
        run(hub, script, folder)
        assert uploaded(hub, "alice/data", repo_type="dataset") == contents(folder)


def test_the_client_tries_again_after_an_error_and_after_a_lost_connection(hub, folder):
    hub.fail_next("preupload", status=503)
    hub.fail_next("commit", status="lose")
    hub.fail_next("create_repo", status="close")
    script = """
        try:
            hf.create_repo("alice/model")
        except Exception as error:  # the one request that is not tried again
            assert type(error).__name__ == "RemoteProtocolError", repr(error)
        hf.create_repo("alice/model")
        hf.upload_folder(repo_id="alice/model", folder_path=folder)
    """
    run(hub, script, folder)
    kept = ("create_repo", "preupload", "commit")
    statuses = [(request.route, request.status) for request in hub.requests if request.route in kept]
    assert statuses == [
        *[("create_repo", 0), ("create_repo", 200)],
        *[("preupload", 503), ("preupload", 200)],
        *[("commit", 0), ("commit", 200)],
    ]
    assert len(hub.commits("alice/model")) == 3  # the commit whose answer was lost is there, and its repetition
    assert uploaded(hub) == contents(folder)
    with pytest.raises(ValueError, match="ROUTES"):
        hub.fail_next("unknown")


def test_a_download_that_breaks_off_goes_on_where_it_was(hub, folder):
    # The client keeps what it has in pieces of 10 MB; a break within the first one begins anew.
    content = bytes(range(256)) * 100_000
    hub.add_repository("alice/model", files={"large.bin": content})
    hub.fail_next("download", status="truncate")
    run(hub, 'print(hf.hf_hub_download("alice/model", "large.bin", local_dir=folder))', folder, token=None)
    assert (folder / "large.bin").read_bytes() == content
    assert [request.status for request in hub.requests if request.route == "download"] == [200, 206]


def test_many_downloads_at_once_are_all_whole(hub, folder):
    for number in range(24):
        (folder / f"file_{number}.json").write_bytes(bytes([number]) * (100_000 + number))
    hub.add_repository("alice/model", files=contents(folder))
    download = """
        found = Path(hf.snapshot_download("alice/model", max_workers=16))
        for path in folder.glob("*.json"):
            assert (found / path.name).read_bytes() == path.read_bytes()
    """
    failures = []

    def client(name):
        try:
            run(hub, download, folder, name=name)
        except AssertionError as failure:
            failures.append(failure)

    clients = [threading.Thread(target=client, args=(f"cold_{number}",)) for number in range(2)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    assert not failures
    assert routes(hub).count("download") == 2 * len(hub.files("alice/model"))


def test_ranges_are_those_of_http_and_a_connection_serves_many_requests(hub, folder):
    hub.add_repository("alice/model", files=contents(folder))
    content = contents(folder)["config.json"]
    connection = http.client.HTTPConnection(hub.url.removeprefix("http://"))

    def get(method="GET", wanted=None):
        headers = {"Range": wanted} if wanted else {}
        connection.request(method, "/alice/model/resolve/main/config.json", headers=headers)
        response = connection.getresponse()
        return response.status, response.read(), response.headers

    assert get()[:2] == (200, content)
    sock = connection.sock
    status, body, headers = get("HEAD")
    assert (status, body, headers["Content-Length"]) == (200, b"", str(len(content)))
    assert headers["X-Repo-Commit"] == hub.commits("alice/model")[0].sha
    assert get(wanted="bytes=3-")[:2] == (206, content[3:])
    assert get(wanted="bytes=3-5")[:2] == (206, content[3:6])
    assert get(wanted="bytes=-4")[:2] == (206, content[-4:])
    status, _, headers = get(wanted="bytes=1000-")
    assert (status, headers["Content-Range"]) == (416, f"bytes */{len(content)}")
    assert connection.sock is sock


def test_a_request_whose_client_died_has_no_effect(hub):
    head = "POST /api/repos/create HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer hf_alice\r\n"
    body = '{"name": "model"}'
    address = hub.url.removeprefix("http://").split(":")
    for length in (len(body) + 1, len(body)):
        assert not hub.repositories
        with socket.create_connection(address) as connection:
            connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{body}".encode())
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert answer.startswith(b"HTTP/1.1 200") if length == len(body) else answer == b""
    assert len(hub.requests) == len(hub.repositories) == 1


def test_the_sha_of_a_commit_tells_its_content(hub):
    shas = set()
    for content in (b"1", b"2", b"1"):
        hub.add_repository("alice/model", files={"file": content})
        shas.add(hub.commits("alice/model")[0].sha)
    assert len(shas) == 2 and all(len(sha) == 40 for sha in shas)


def test_stopping_ends_threads_and_connections_that_a_client_keeps_open():
    before = threading.active_count()
    with HubServer(TOKENS) as hub:
        connections = [http.client.HTTPConnection(hub.url.removeprefix("http://")) for _ in range(5)]
        for connection in connections:
            connection.request("GET", "/api/whoami-v2", headers={"Authorization": "Bearer hf_alice"})
            assert connection.getresponse().read()
        assert threading.active_count() == before + 6
    assert threading.active_count() == before
    with pytest.raises(ConnectionRefusedError):
        http.client.HTTPConnection(hub.url.removeprefix("http://")).connect()


def test_environment_leaves_nothing_of_the_users_own_settings(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_own")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "hf_own")
    monkeypatch.setenv("HF_HUB_CACHE", "/own")
    variables = hub.environment(tmp_path)
    assert not {"HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE"} & set(variables)
    assert variables["HF_ENDPOINT"] == hub.url and variables["HF_HOME"] == str(tmp_path)
    assert "HF_HUB_DISABLE_XET" not in variables
    hub.upload_mode = "lfs"
    assert hub.environment(tmp_path)["HF_HUB_DISABLE_XET"] == "1"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["regular", "lfs"])
def test_a_model_of_diffusers_goes_up_and_comes_back_with_its_weights(hub, folder, mode):
    hub.upload_mode = mode
    make = """
        import torch
        from diffusers import UNet2DModel

        torch.manual_seed(0)
        blocks = dict(down_block_types=["DownBlock2D"], up_block_types=["UpBlock2D"], block_out_channels=[8])
        model = UNet2DModel(sample_size=8, norm_num_groups=4, layers_per_block=1, **blocks)
    """
    push = """
        model.push_to_hub("model", commit_message="A model")
        model.push_to_hub("alice/secret", private=True)
    """
    run(hub, make + push, folder)
    assert hub.commits("alice/model")[0].title == "A model"
    assert set(uploaded(hub)) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert hub.repository("alice/secret").private
    load = """
        loaded = UNet2DModel.from_pretrained("alice/model")
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name
        try:
            UNet2DModel.from_pretrained("alice/secret")
        except OSError as error:
            assert "alice/secret" in str(error)
        else:
            raise AssertionError("loaded")
    """
    run(hub, make + load, folder, token=None, name="cold")
