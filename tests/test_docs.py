"""The documentation is true: its code blocks run (CONTRIBUTING.md names the exceptions), what pages name and link to is there."""

import contextlib
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import train_mcvd
from hub_server import HubServer
from mcvd_diffusers.cli import main
from mcvd_diffusers.presets import PRESETS
from mcvd_diffusers.protocols import load_protocol


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "examples" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks" / "RESULTS.md"]
BLOCK = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.M | re.S)
# Blocks of these are looked at, not run.
NOT_RUN = {"text", "bibtex", "yaml"}
TINY = [
    "--block_out_channels",
    "8",
    "16",
    "--down_block_types",
    "DownBlock2D",
    "AttnDownBlock2D",
    "--layers_per_block",
    "1",
]


def blocks(page):
    """Language and code of each block of a page, in their order."""
    found = []
    for indent, language, code in BLOCK.findall(page.read_text()):
        found.append((language, re.sub(f"^{indent}", "", code, flags=re.M)))
    return found


def commands(code):
    """The commands of a block of a shell, without comments, as words."""
    lines = code.replace("\\\n", " ").splitlines()
    return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


# --------------------------------------------------------------------------------------------------------------------
# A folder as a reader of the pages has it


def save_gif(path, seed, size=(64, 64), num_frames=16):
    """A light square that moves over a dark ground, in colour."""
    numbers = np.random.default_rng(seed)
    (y, x), frames = numbers.integers(0, 30, 2), []
    for frame in range(num_frames):
        pixels = np.full((*size, 3), 30, np.uint8)
        pixels[y + frame : y + frame + 12, x + frame : x + frame + 12] = 200
        frames.append(Image.fromarray(pixels))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100)


def train(words, smaller=True):
    """A command of the pages that trains, with two updates."""
    words = [*words, "--max_train_steps", "2", "--train_batch_size", "2", "--num_validation_videos", "0"]
    words += ["--report_to", "none", *(TINY if smaller else [])]
    made = train_mcvd.main(train_mcvd.parse_args(words))
    assert (made is None) == ("--estimate" in words)


@pytest.fixture(scope="session")
def user(tmp_path_factory):
    """Videos, a protocol and two trained models: what the pages begin with. A page gets a copy."""
    place = tmp_path_factory.mktemp("user")
    for name in ("checkpoints", "examples", "benchmarks", "mcvd_diffusers", "train_mcvd.py"):
        (place / name).symlink_to(ROOT / name)
    (place / "my_videos").mkdir()
    (place / "my_images").mkdir()
    for number in range(12):
        save_gif(place / "my_videos" / f"video {number}.gif", number)
        Image.new("RGB", (64, 64), (20 * number, 90, 30)).save(place / "my_images" / f"{number}.png")
    save_gif(place / "my_clip.gif", 99)
    shutil.copytree(ROOT / "tests" / "reference" / "mcvd" / "checkpoint_concat", place / "path" / "to" / "experiment")
    (place / "settings.yaml").write_text(yaml.safe_dump({"train_data_dir": "my_videos/", "in_channels": 3}))
    protocol = {
        "name": "mine",
        "version": 1,
        "title": "5 given, 5 predicted",
        "source": "here",
        "task": "prediction",
        "num_past_frames": 5,
        "num_frames": 5,
        "num_channels": 3,
        "frame_size": [64, 64],
        "num_clips": 4,
        "clip_choice": "first",
        "samples_per_clip": 2,
        "metrics": ["mse"],
    }
    (place / "my_protocol.yaml").write_text(yaml.safe_dump(protocol))
    rng = np.random.default_rng(0)
    np.save(place / "fields.npy", rng.uniform(240, 300, (4, 20, 24, 36, 1)).astype(np.float32))
    with contextlib.chdir(place):
        window = ["--num_past_frames", "5", "--num_frames", "5", "--num_future_frames", "5", "--resolution", "64"]
        train(["--train_data_dir", "my_videos/", "--in_channels", "3", *window, "--output_dir", "runs/mine"])
        units = [
            "--normalization",
            "range",
            "--value_low",
            "200",
            "--value_high",
            "320",
            "--axes",
            "NTHWC",
            "--validation_fraction",
            "0.4",
        ]
        train(["--train_data_dir", "fields.npy", *units, "--output_dir", "runs/weather", "--num_past_frames", "4"])
    return place


@pytest.fixture
def clone(user, tmp_path, monkeypatch):
    """The working folder of a page."""
    shutil.copytree(user, tmp_path / "clone", symlinks=True)
    monkeypatch.chdir(tmp_path / "clone")
    return tmp_path / "clone"


# --------------------------------------------------------------------------------------------------------------------
# The blocks run


# Scripts that take an hour, or serve a page until they are stopped. tests/test_app.py and others start them with less to do.
ONLY_PARSED = {"examples/app.py", "examples/six_tasks.py", "benchmarks/methods.py", "benchmarks/drift.py"}

# Runs a script up to where its arguments have been read.
PARSE = """
import argparse, os, runpy, sys

read = argparse.ArgumentParser.parse_known_args

def parse_known_args(self, arguments=None, namespace=None):
    read(self, arguments, namespace)
    print("parsed")
    sys.exit()

def parse_args(self, arguments=None, namespace=None):
    unknown = read(self, arguments, namespace)[1]
    self.error(f"unknown: {unknown}") if unknown else self.parse_known_args(arguments, namespace)

argparse.ArgumentParser.parse_known_args, argparse.ArgumentParser.parse_args = parse_known_args, parse_args
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def parse_arguments(words):
    """A script's own parser takes these arguments; nothing is done with them."""
    assert Path(words[0]).is_file(), words[0]
    done = subprocess.run([sys.executable, "-c", PARSE, *words], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "parsed\n", (words, done.stderr)


def run_command(words):
    """A command of a page."""
    if words[:3] == ["accelerate", "launch", "train_mcvd.py"]:
        words = words[3:]
        own = "--output_dir" in words and Path(words[words.index("--output_dir") + 1])
        if own and own.exists() and "--resume_from_checkpoint" not in words:
            shutil.rmtree(own)  # it came from the page before
        is_large = words[0] == "--train_data_dir" and "--method" not in words
        train(words, smaller=is_large)
    elif words[:2] == ["mcvd-diffusers", "push"]:
        with HubServer({"hf_aliceSecret": "user"}) as hub:
            environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_aliceSecret", "HF_HUB_OFFLINE": "0"}
            done = subprocess.run(
                [sys.executable, "-m", "mcvd_diffusers.cli", *words[1:]],
                env=environment,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, done.stderr
    elif words[0] == "mcvd-diffusers":
        assert main(words[1:]) == 0
    elif words[0] == "pip":
        extras = re.search(r"\[(.*)\]", words[-1])
        known = (ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1]
        for extra in extras.group(1).split(",") if extras else ():
            assert re.search(rf"^{extra} =", known, re.M), extra
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "python":
        if words[1] in ONLY_PARSED:
            parse_arguments(words[1:])
        else:
            subprocess.run([sys.executable, *words[1:]], check=True)
    elif words[0] in ("mkdir", "cp"):
        subprocess.run(words, check=True)
    elif words[0] == "mkdocs":
        pass  # test_the_site_is_built
    else:
        raise AssertionError(f"no test knows how to run {words[0]!r}")


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_a_page_runs(page, clone):
    scope = {}
    for language, code in blocks(page):
        if language == "python":
            torch.manual_seed(0)
            exec(compile(code, str(page), "exec"), scope)
        elif language == "bash":
            for words in commands(code):
                run_command(words)
        else:
            assert language in NOT_RUN, f"a block of {page.name} has no language, or one that no test knows: {code}"


@pytest.mark.slow
def test_the_arguments_of_the_benchmarks_that_were_measured_are_taken(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = [words for _, code in blocks(ROOT / "benchmarks" / "RESULTS.md") for words in commands(code)]
    assert len(found) > 10 and {words[0] for words in found} == {"python"}
    for words in found:
        if words[1] == "train_mcvd.py":
            train_mcvd.parse_args(words[2:])
        else:
            parse_arguments(words[1:])


def test_arguments_that_a_script_does_not_take_are_noticed(monkeypatch):
    monkeypatch.chdir(ROOT)
    parse_arguments(["benchmarks/import_time.py"])
    with pytest.raises(AssertionError, match="--no_such_flag"):
        parse_arguments(["benchmarks/import_time.py", "--no_such_flag"])


def test_blocks_are_found():
    assert [language for language, _ in blocks(ROOT / "README.md")] == ["python", "bash", "bash", "bibtex"]
    indented = [code for language, code in blocks(ROOT / "docs" / "train.md") if language == "python"]
    assert indented[0].startswith("import numpy")
    for page in PAGES:
        assert page.read_text().count("```") == 2 * len(blocks(page)), page


# --------------------------------------------------------------------------------------------------------------------
# What a page names is there


def test_each_module_has_a_line():
    table = (ROOT / "CONTRIBUTING.md").read_text().split("### One line for each file")[1].split("###")[0]
    named = re.findall(r"^\| `([^`]+)`", table, re.M)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
    modules = {
        path for path in (ROOT / "mcvd_diffusers").rglob("*.py") if path.name not in ("__init__.py", "_version.py")
    }
    for path in modules:
        relative = path.relative_to(ROOT)
        assert any(str(relative).startswith(name) for name in named), f"{relative} has no line in CONTRIBUTING.md"


def anchors(page):
    """The headings of a page, as links name them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "mailto:")):
            name, _, heading = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), f"{page.name}: {target}"
            assert not heading or heading in anchors(other), f"{page.name}: {target}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    text = page.read_text().replace("NAME_digits", "mcvd_digits")
    for name in re.findall(r"`((?:tests|examples|benchmarks|mcvd_diffusers|docs|requirements)/[\w./-]*)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_in_a_page_waits_to_be_filled_in(page):
    assert not re.search(r"\b[A-Z]+(_[A-Z]+)+_TABLE\b|TODO|TBD|XXX", page.read_text())


def test_the_page_of_papers_names_what_there_is_and_quotes_what_is_on_file():
    text = (ROOT / "docs" / "papers.md").read_text()
    for name in re.findall(r"`((?:smmnist|kth|bair|cityscapes|ucf101|ramvid|fdm|vdm|lgcvd|rvd)-[\w-]+)`", text):
        assert name in PRESETS or load_protocol(name)
    for name in re.findall(r"`(mcvd-[\w-]+)`", text):
        if name not in ("mcvd-diffusers",):
            assert load_protocol(name).name == name
    published = json.loads((ROOT / "mcvd_diffusers" / "protocols" / "published.json").read_text())
    values = [entry["value"] for name, rows in published.items() if name != "remark" for entry in rows]
    assert len(values) > 10 and all(str(value) in text for value in values)
    for name in PRESETS:  # MCVD's stand for their families
        assert name in text or name.split("-")[0] in ("smmnist", "kth", "bair", "cityscapes", "ucf101")


def test_a_paper_has_one_venue():
    said = {}
    for page in ALL_PAGES:
        for paper, venue in re.findall(r"arxiv\.org/abs/([\d.]+)\), ([A-Z][\w ]*? \d{4})\b", page.read_text()):
            said.setdefault(paper, set()).add(venue)
    assert len(said) == 6 and all(len(venues) == 1 for venues in said.values()), said


def test_each_page_is_in_the_sites_contents_and_the_other_way_round():
    named = re.findall(r": ([\w.]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.M)
    assert sorted(named) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    api = (tmp_path / "site" / "api" / "index.html").read_text()
    for name in ("MCVDPipeline", "encode_conditioning", "frame_schedule", "load_digits", "export_folder"):
        assert f"{name}" in api
    assert "num_past_frames" in api and "https://fonts" not in api
    assert not re.search(r"<code>[^<]*(`|\*optional\*)", api)
    assert not re.search(r"defaults? to [^<]*</code>,\s*default:", api)
    assert re.search(r"<code>num_past_frames</code></b>\s*\(<code>int, optional, defaults to 5</code>\)", api)


def test_what_the_site_makes_of_links_and_types():
    hooks = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
    for link, shown in {
        "[`a/b.py`](../a/b.py)": "`a/b.py`",
        "[a/b.md](../a/b.md#some-part)": "`a/b.md`",
        "[a/b](../a/b/c.txt)": "`a/b/c.txt`",
        "[measured](../a/b.md#some-part)": "measured (`a/b.md`)",
        "[a](../ab.md)": "a (`ab.md`)",
        "[tasks](tasks.md)": "[tasks](tasks.md)",
    }.items():
        assert hooks["on_page_markdown"](f"See {link}, too.") == f"See {shown}, too."
    for html, shown in {
        "(<code>`int`, *optional*, defaults to `5`</code>, default:\n <code>5</code>\n)": "(<code>int, optional, defaults to 5</code>)",
        "(<code>`dict`, *optional*</code>, default:\n <code>None</code>\n)": "(<code>dict, optional</code>, default:\n <code>None</code>\n)",
        "(<code>**kwargs</code>)": "(<code>**kwargs</code>)",
        "as [<code>~Pipe.call</code>] does": "as <code>Pipe.call</code> does",
    }.items():
        assert hooks["on_page_content"](html) == shown
