"""The examples keep their promises: each is run as a user runs it, from the root of a clone, with the shipped checkpoint."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hub_server import HubServer
from mcvd_diffusers.atomic import numbered_folder
from mcvd_diffusers.data import MovingDigits, load_digits
from mcvd_diffusers.data.digit_files import write_moving_digits


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
CHECKPOINT = ROOT / "checkpoints" / "moving-digits"
COVERED_ELSEWHERE = {"six_tasks", "app"}
NUMBER = r"(-?\d+\.?\d*)"


def fingerprint():
    files = sorted(path for path in CHECKPOINT.rglob("*") if path.is_file())
    return {str(path.relative_to(CHECKPOINT)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(autouse=True)
def checkpoint_stays_as_it_is():
    before = fingerprint()
    yield
    assert fingerprint() == before


def environment():
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def start(name, *words, env=None, cwd=ROOT):
    command = [sys.executable, EXAMPLES / f"{name}.py", *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=env or environment(), capture_output=True, text=True, timeout=900)


def run(name, *words, env=None, cwd=ROOT):
    """Run an example that must not fail; gives what it prints."""
    done = start(name, *words, env=env, cwd=cwd)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def after(label, text):
    """The numbers of the line that begins with a label."""
    line = re.search(rf"^{re.escape(label)}(.*)$", text, re.M)
    assert line, f"no line of {label!r} in:\n{text}"
    return [float(number) for number in re.findall(NUMBER, line[1])]


def num_frames(path):
    with Image.open(path) as picture:
        return picture.n_frames


def test_every_example_has_a_test():
    tests = {name for name, value in globals().items() if name.startswith("test_") and callable(value)}
    for path in EXAMPLES.glob("*.py"):
        if path.stem not in COVERED_ELSEWHERE:
            assert f"test_{path.stem}" in tests, f"{path.name} has no test here"


def test_every_example_is_in_the_table():
    table = (EXAMPLES / "README.md").read_text()
    for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("*.ipynb")]:
        assert f"`{path.name}`" in table, f"{path.name} has no line in examples/README.md"
    for name in re.findall(r"^\| `([^`]+)`", table, re.M):
        assert (EXAMPLES / name).exists(), name


def test_a_second_run_gets_a_folder_of_its_own(tmp_path):
    folders = []
    for number in range(3):
        folders.append(numbered_folder(tmp_path / "runs" / "predict"))
        (folders[-1] / "mine.txt").write_text(str(number))
    assert [folder.name for folder in folders] == ["predict", "predict-2", "predict-3"]
    assert [(folder / "mine.txt").read_text() for folder in folders] == ["0", "1", "2"]
    (tmp_path / "file").write_text("")
    assert numbered_folder(tmp_path / "file").name == "file-2"
    with pytest.raises(FileExistsError):
        numbered_folder(tmp_path / "file" / "predict")


@pytest.mark.slow
def test_predict(tmp_path):
    printed = run("predict", "--output", tmp_path / "out")
    # A sample that went another way after a bounce is sharp and wrong, so far ahead little is left of the gain.
    for frames, gain in ((" 1 to  5", 0.5), (" 6 to 10", 0), ("11 to 15", -0.5)):
        of_model, of_baseline = after(frames, printed)
        assert of_model > of_baseline + gain
    assert num_frames(tmp_path / "out" / "prediction.gif") == 20
    assert (tmp_path / "out" / "prediction.png").is_file()


@pytest.mark.slow
def test_interpolate(tmp_path):
    printed = run("interpolate", "--output", tmp_path / "out")
    (between,), (predicted,) = after("interpolated, both sides given", printed), after("predicted, only", printed)
    (blended,) = after("blending the two ends", printed)
    assert between > predicted and between > blended
    assert num_frames(tmp_path / "out" / "interpolation.gif") == 15
    assert (tmp_path / "out" / "interpolation.png").is_file()


@pytest.mark.slow
def test_generate(tmp_path):
    printed = run("generate", "--output", tmp_path / "out")
    for frames in (" 1 to  5", " 6 to 10", "11 to 15", "16 to 20"):
        ink, change, real_ink, real_change = after(frames, printed)
        assert 0.3 < ink / real_ink < 2 and 0.3 < change / real_change < 2  # neither blank, nor frozen, nor noise
    assert num_frames(tmp_path / "out" / "generated.gif") == 20


@pytest.mark.slow
def test_long_video(tmp_path):
    printed = run("long_video", "--output", tmp_path / "out")
    ink, change, real_ink, _ = after("241 to 300", printed)
    assert 0.25 < ink / real_ink < 3 and change > 0.01  # after 240 frames still digits that move
    assert num_frames(tmp_path / "out" / "long.gif") == 300


@pytest.mark.slow
def test_ensemble(tmp_path):
    printed = run("ensemble", "--output", tmp_path / "out")
    for frames in (" 1 to  5", " 6 to 10"):
        of_all, of_one, of_baseline, ratio = after(frames, printed)
        assert of_all < of_one and of_all < of_baseline
        assert 0.5 < ratio < 1.5
    assert num_frames(tmp_path / "out" / "ensemble.gif") == 15
    assert (tmp_path / "out" / "ensemble.png").is_file()


@pytest.mark.slow
def test_own_video(tmp_path):
    printed = run("own_video", "--output", tmp_path / "out")
    assert "clip.gif: 15 frames, 3 channels, 96 x 128" in printed
    assert re.search(rf"PSNR of the 10 that the video has: {NUMBER} dB", printed)
    assert num_frames(tmp_path / "out" / "prediction.gif") == 15

    # A file, of which every second frame is taken: 5 of 11 are given, and one is left to compare with.
    digits = load_digits("mnist-10k", split="validation", size=32)
    clips = MovingDigits(digits, num_frames=11, num_clips=1, canvas_size=(48, 80))
    write_moving_digits(clips, tmp_path / "mp4", format="mp4")
    words = ["--every", 2, "--output", tmp_path / "out"]
    printed = run("own_video", "--video", tmp_path / "mp4", *words)
    assert "0000.mp4: 11 frames, 3 channels, 48 x 80" in printed and "PSNR of the 1 that" in printed
    assert num_frames(tmp_path / "out-2" / "prediction.gif") == 15

    done = start("own_video", "--video", tmp_path / "nowhere.mp4", *words)
    assert done.returncode == 1 and "nowhere.mp4" in done.stderr and not (tmp_path / "out-3").exists()


@pytest.mark.slow
def test_own_arrays(tmp_path):
    printed = run("own_arrays", "--output", tmp_path / "with a space" / "out")
    for quantity in ("temperature, K", "rain, mm/h"):
        predicted, persistence = after(quantity, printed)
        assert predicted < 0.9 * persistence
    sea, land = after("said to be unknown:", printed)
    assert sea > 90 and land < 10
    out = tmp_path / "with a space" / "out"
    assert np.isnan(np.load(out / "fields.npy")).any()
    assert (out / "temperature.png").is_file() and (out / "run" / "model_index.json").is_file()


@pytest.mark.slow
def test_fine_tune(tmp_path):
    printed = run("fine_tune", "--output", tmp_path / "out")
    (before,), (better,) = after("before", printed), after("after", printed)
    assert better > before + 0.3  # dB
    assert num_frames(tmp_path / "out" / "prediction.gif") == 10
    assert (tmp_path / "out" / "run" / "model_index.json").is_file()


@pytest.mark.slow
def test_convert(tmp_path):
    printed = run("convert", "--output", tmp_path / "out")
    assert "tasks: prediction, past prediction, interpolation, generation" in printed
    difference = re.search(r"second implementation: (\S+)", printed)[1]
    assert 0 < float(difference) < 1e-4
    assert (tmp_path / "out" / "pipeline" / "README.md").is_file()
    assert num_frames(tmp_path / "out" / "prediction.gif") == 10

    (tmp_path / "checkpoint.pt").write_bytes(b"no checkpoint")
    done = start("convert", "--checkpoint", tmp_path / "checkpoint.pt", "--output", tmp_path / "other")
    assert done.returncode == 1 and "cannot be converted" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_evaluate(tmp_path):
    printed = run("evaluate", "--num_clips", 6, "--output", tmp_path / "out")
    assert "mcvd-smmnist-5-10 v1 (num_clips=6, moving_digits.source=mnist-10k" in printed
    assert "repeat_last_frame" in printed and "DDIMScheduler, 5 steps" in printed
    assert len(re.findall(r"^mse .*(?:is better|not told apart)", printed, re.M)) == 2
    for name in ("own_sampler", "ddim"):
        rows = json.loads((tmp_path / "out" / name / "results.json").read_text())
        assert rows and (tmp_path / "out" / name / "results.parquet").is_file()


@pytest.mark.slow
def test_push_to_hub(tmp_path):
    with HubServer(tokens={"hf_aliceSecret": "alice"}) as hub:
        env = hub.environment(tmp_path / "home", token="hf_aliceSecret") | {"PYTHONPATH": str(ROOT)}
        printed = run("push_to_hub", "--output", tmp_path / "out", env=env)
        assert "Nothing was pushed: --repo_id user/name does it." in printed
        assert "unet/diffusion_pytorch_model.safetensors" in printed
        assert not hub.requests  # it did not even ask

        printed = run("push_to_hub", "--repo_id", "alice/digits", "--output", tmp_path / "out", env=env)
        assert "it makes the same video: True" in printed
        pushed = set(hub.files("alice/digits"))
        assert {"README.md", "model_card.json", "model_index.json"} <= pushed
        assert hub.repositories["model", "alice/digits"].private

        done = start("push_to_hub", "--repo_id", "bob/digits", "--output", tmp_path / "out", env=env)
        assert done.returncode == 1 and "Nothing was pushed" in done.stderr and "Traceback" not in done.stderr
        assert "Secret" not in done.stderr + done.stdout


@pytest.mark.slow
def test_demo(tmp_path):
    """What it shows of the checkpoint; its training is one of many, of `examples/configs/demo.yaml`."""
    printed = run("demo", "--no_training", "--output", "out", cwd=tmp_path)
    gains = {}
    for task, given, made in (("prediction", "5", 5), ("prediction", "5", 20), ("interpolation", "5 + 5", 5)):
        of_model, of_baseline = after(f"{task}, {given} given -> {made} frames", printed)
        gains[task, made] = of_model - of_baseline
    assert gains["prediction", 5] > 0.5 and gains["interpolation", 5] > 0.5  # dB
    assert "2. training" not in printed and "Look at out/prediction.gif" in printed
    for task, length in (("prediction", 25), ("interpolation", 15), ("generation", 20)):
        assert num_frames(tmp_path / "out" / f"{task}.gif") == length
    made = {"prediction.gif", "prediction.png", "interpolation.gif", "interpolation.png", "generation.gif"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == made


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_installs_for_the_demo_what_it_needs_and_no_more(tmp_path):
    def installed(target):
        command = ["make", "--dry-run", target, f"VENV={tmp_path}"]
        printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return re.findall(r'-e "\.\[(.*)\]"', printed)

    (others,) = installed("test")
    assert installed("demo") == ["digits,video"] and {"test", "digits", "video"} < set(others.split(","))
    (tmp_path / ".demo").touch()
    assert installed("demo") == [] and installed("test") == [others]
    (tmp_path / ".demo").unlink()
    (tmp_path / ".installed").touch()
    assert installed("demo") == installed("test") == []


def code_cells():
    notebook = json.loads((EXAMPLES / "mcvd_diffusers.ipynb").read_text("utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_install_cell_of_the_notebook_may_run_twice(tmp_path):
    """It clones once, and hands pip the clone both times. Here pip writes down what it is asked for, and installs nothing."""
    cell = "".join(code_cells()[0]["source"])
    origin, work = tmp_path / "origin", tmp_path / "work"
    (origin / "examples").mkdir(parents=True)
    work.mkdir()
    shutil.copy(ROOT / "train_mcvd.py", origin)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false", "-C", origin]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    (tmp_path / "stub" / "pip").mkdir(parents=True)
    (tmp_path / "stub" / "pip" / "__init__.py").touch()
    (tmp_path / "stub" / "pip" / "__main__.py").write_text(
        f"import sys\nopen({str(tmp_path / 'asked')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
    )

    def run_twice(repository, folder):
        (tmp_path / "asked").unlink(missing_ok=True)
        script = cell.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
        script = f"cell = {script!r}\nfor _ in range(2): exec(cell)\nprint(os.getcwd())"
        env = os.environ | {"PYTHONPATH": str(tmp_path / "stub")}
        return subprocess.run([sys.executable, "-c", script], cwd=folder, env=env, capture_output=True, text=True)

    clone = work / "mcvd-diffusers"
    for repository, folder, ends_in in [
        (origin.as_uri(), work, clone),
        (origin.as_uri(), work, clone),  # in a new session, beside the clone of the last
        ("", clone, clone),
        ("..", origin / "examples", origin),
    ]:
        done = run_twice(repository, folder)
        assert done.returncode == 0 and Path(done.stdout.strip()).samefile(ends_in), done.stderr
        assert (tmp_path / "asked").read_text() == 2 * f"install -q {ends_in.resolve()}[video]\n"
        assert not (clone / "mcvd-diffusers").exists() and [path.name for path in work.iterdir()] == [clone.name]
    done = run_twice("", work)
    assert done.returncode == 1 and "Fill in REPOSITORY" in done.stderr and not (tmp_path / "asked").exists()


@pytest.mark.slow
def test_the_cells_of_the_notebook_run(monkeypatch):
    cells = code_cells()
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    install, *others = cells
    assert install["metadata"]["tags"] == ["install"] and "pip" in "".join(install["source"])
    # IPython is there wherever notebooks are, and nowhere else.
    shown, display = [], types.ModuleType("IPython.display")
    display.Image, display.display = lambda data: data, shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.chdir(ROOT)
    scope = {}
    for number, cell in enumerate(others):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), scope)
        if "between" in scope and "generated" not in scope:
            assert scope["scores"]["interpolated"] > scope["scores"]["blending the two ends"]
    assert [type(picture).__name__ for picture in shown] == ["bytes", "bytes", "bytes", "Image", "bytes"]
    assert all(picture.startswith(b"GIF8") for picture in shown if isinstance(picture, bytes))
    assert scope["scores"]["8 futures"] < scope["scores"]["repeating the last frame"]
    assert scope["continued"].shape == (1, 10, 1, 64, 64)
