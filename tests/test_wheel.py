"""What is installed: the wheel alone, away from the checkout; and what importing the package brings with it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import torch

from contract_rows import PIPELINES


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mcvd_diffusers"
SOURCES = ("README.md", "LICENSE", "NOTICE", "setup.cfg", "pyproject.toml", "mcvd_diffusers", "train_mcvd.py")


# --------------------------------------------------------------------------------------------------------------------
# The wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, since setuptools leaves a folder behind."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", ".", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--no-build-isolation", "--wheel-dir", folder], cwd=folder / "source", check=True)
    (path,) = folder.glob("mcvd_diffusers-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A Python with the wheel and the packages that it needs, but not the checkout."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder, with_pip=False)
    paths = {name: Path(path) for name, path in sysconfig.get_paths(vars={"base": str(folder)}).items()}
    assert paths["purelib"].is_dir() and paths["purelib"].is_relative_to(folder)
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        paths["scripts"] / "python",
        "install",
    ]
    subprocess.run([*pip, "--no-deps", "--no-index", "--no-warn-script-location", wheel], check=True)
    # A plain path: the .pth files in there, an editable installation of the checkout among them, are not followed.
    (paths["purelib"] / "needed.pth").write_text("".join(f"{path}\n" for path in sorted(site_packages())))
    return paths["scripts"]


def site_packages():
    return {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def run(installed, *command, cwd):
    """Run a script of the environment, in a folder that has nothing to do with the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    result = subprocess.run(
        [installed / command[0], *command[1:]], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def files_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(folder.parent).as_posix() for path in files}


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    about = {name for name in names if ".dist-info/" in name}
    assert names - about == files_of(PACKAGE) | {"train_mcvd.py"}
    assert {Path(name).name for name in about} >= {"METADATA", "entry_points.txt", "LICENSE", "NOTICE"}


@pytest.mark.slow
def test_the_command_works_when_it_is_installed(installed, tmp_path):
    assert "evaluate" in run(installed, "mcvd-diffusers", "--help", cwd=tmp_path)
    protocols = run(installed, "mcvd-diffusers", "protocols", cwd=tmp_path)
    assert all(path.stem in protocols for path in (PACKAGE / "protocols").glob("*.yaml"))
    assert "--output_dir" in run(installed, "python", "-m", "train_mcvd", "--help", cwd=tmp_path)


SCRIPT = """
import sys
from pathlib import Path

import mcvd_diffusers
import torch
from mcvd_diffusers import presets
from mcvd_diffusers.protocols import list_protocols, load_protocol

checkout, saved, video = sys.argv[1:]
assert not Path(mcvd_diffusers.__file__).is_relative_to(checkout) and checkout not in sys.path
assert [presets.preset(name) for name in presets.ORIGINAL_NAMES]
assert [load_protocol(name) for name in list_protocols()]
pipe = mcvd_diffusers.MCVDPipeline.from_pretrained(saved)
pipe.set_progress_bar_config(disable=True)
torch.set_num_threads(1)
arguments = torch.load(saved + "/inputs.pt")
torch.save(pipe(**arguments, generator=torch.Generator().manual_seed(0)).frames, video)
"""


@pytest.mark.slow
def test_a_saved_pipeline_makes_the_same_video_when_it_is_installed(installed, tmp_path):
    row = PIPELINES[0]
    pipe = row.make()
    pipe.save_pretrained(tmp_path / "saved")
    torch.save(row.inputs(1), tmp_path / "saved" / "inputs.pt")
    run(installed, "python", "-c", SCRIPT, ROOT, tmp_path / "saved", tmp_path / "video.pt", cwd=tmp_path)
    expected = pipe(**row.inputs(1), generator=torch.Generator().manual_seed(0)).frames
    assert torch.equal(torch.load(tmp_path / "video.pt"), expected)


# --------------------------------------------------------------------------------------------------------------------
# The import


def modules_after(statement):
    code = f"import sys\n{statement}\nprint(*{{name.split('.')[0] for name in sys.modules}})"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(out.stdout.split())


def test_importing_the_package_brings_little_that_diffusers_does_not():
    """What Diffusers brings depends on what is installed beside it: `transformers`, and by it scikit-learn, and more."""
    added = modules_after("import mcvd_diffusers") - modules_after("from diffusers import DDPMPipeline")
    assert {name for name in added - {"mcvd_diffusers"} if name not in sys.stdlib_module_names} == set()
