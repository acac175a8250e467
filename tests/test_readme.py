"""The README is true: its Python runs, its commands parse, the files it names exist; so do those of the other pages."""

import json
import re
import shlex
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler

import train_mcvd
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.cli import make_parser
from mcvd_diffusers.presets import PRESETS
from mcvd_diffusers.protocols import load_protocol


ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
CONFIG = ROOT / "examples" / "configs" / "demo.yaml"


@pytest.fixture
def saved_pipeline(tmp_path):
    """A small network of the demo's frames and size."""
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=32,
        in_channels=1,
        num_past_frames=4,
        num_frames=4,
        num_future_frames=2,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownBlock2D",) * 4,
        layers_per_block=1,
    )
    MCVDPipeline(unet, DDIMScheduler(prediction_type="v_prediction")).save_pretrained(tmp_path / "demo")
    unet.save_pretrained(tmp_path / "demo" / "unet", variant="ema")
    return tmp_path / "demo"


@pytest.mark.slow
def test_python_of_the_readme_runs(saved_pipeline, tmp_path, monkeypatch):
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.S))
    assert "runs/demo" in code and "DPMSolverMultistepScheduler" in code
    monkeypatch.chdir(tmp_path)  # it writes a GIF
    scope = {}
    exec(code.replace("runs/demo", str(saved_pipeline)), scope)
    assert scope["out"].frames.shape == (10, 8, 1, 32, 32)  # as its comments say
    assert scope["out"].uncertainty.shape == (1, 8, 1, 32, 32)
    assert len(scope["block"][0]) == 4 and (tmp_path / "generated.gif").is_file()


def test_commands_of_the_readme_parse(saved_pipeline, tmp_path):
    text = README.replace("\\\n", " ")
    commands = re.findall(r"^accelerate launch train_mcvd.py (.*)$", text, re.M)
    assert commands
    videos, output = tmp_path / "videos", tmp_path / "out"
    videos.mkdir()
    (tmp_path / "images").mkdir()
    for command in commands:
        is_own = "my_videos/" in command and "--method" not in command and "--distill" not in command
        command = command.replace("_path runs/mine", f"_path {saved_pipeline}")
        own = (("my_videos/", videos), ("my_images/", tmp_path / "images"), ("examples/", f"{ROOT}/examples/"))
        for stand_in in (*own, ("runs/", f"{output}/"), ("settings.yaml", CONFIG)):
            command = command.replace(stand_in[0], str(stand_in[1]))
        settings = train_mcvd.parse_args(shlex.split(command))
        if not is_own:
            continue
        assert settings.model.num_past_frames == 5
        with torch.device("meta"):
            unet = train_mcvd.make_unet(settings)
        assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6) == 27  # as the text says
    targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.M)
    for target in re.findall(r"^make ([\w-]+)", text, re.M):
        assert target in targets


def test_commands_of_the_command_line_parse():
    text = README.replace("\\\n", " ")
    commands = re.findall(r"^(?:  )?mcvd-diffusers (.*)$", text, re.M)
    assert {command.split()[0] for command in commands} >= {"convert", "data", "evaluate", "protocols"}
    for command in commands:
        arguments = make_parser().parse_args(shlex.split(command, comments=True))
        if getattr(arguments, "protocol", None):
            load_protocol(ROOT / arguments.protocol if "/" in arguments.protocol else arguments.protocol)


def test_files_of_the_readme_exist():
    table = README.split("## One line for each file")[1].split("##")[0]
    named = re.findall(r"^\| `([^`]+)`", table, re.M)
    assert len(named) > 10
    for name in named:
        assert (ROOT / name).exists(), name
    modules = {
        path for path in (ROOT / "mcvd_diffusers").rglob("*.py") if path.name not in ("__init__.py", "_version.py")
    }
    for path in modules:
        relative = path.relative_to(ROOT)
        assert any(str(relative).startswith(name) for name in named), f"{relative} has no line in the README"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("https://", "mailto:")):
            name, _, heading = target.partition("#")
            other = page.parent / name if name else page
            assert other.exists(), f"{page.name}: {target}"
            headings = re.findall(r"^#+ (.*)$", other.read_text(), re.M) if heading else []
            anchors = [re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings]
            assert not heading or heading in anchors, f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
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
