"""`examples/demo.py`: a training that is stopped or refused ends it in one line, with the command that goes on."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import train_mcvd


ROOT = Path(__file__).parents[1]
TRAIN = "import sys; from pathlib import Path; import demo; demo.train(Path(sys.argv[1]), 1)"


def start_training(folder):
    """The demo's training, in a process group of its own, as a terminal starts it."""
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)],
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'examples'}", "PYTHONUNBUFFERED": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line_with_the_command_that_goes_on(tmp_path, monkeypatch):
    process, lines = start_training(tmp_path / "trained"), []
    for line in process.stdout:
        lines.append(line)
        if "estimate  a video" in line:
            os.killpg(process.pid, signal.SIGINT)  # what a terminal sends to all of it
    assert process.wait(timeout=60) == 128 + signal.SIGINT
    text = "".join(lines)
    assert "Traceback" not in text and "warning" not in text
    words = shlex.split(lines[-1].split("The training was stopped. Go on, in the same environment, with: ")[1])
    assert words[:2] == ["python", "train_mcvd.py"]
    monkeypatch.chdir(ROOT)
    settings = train_mcvd.parse_args(words[2:])
    assert settings.checkpoint.parent.resolve() == (tmp_path / "trained").resolve()


@pytest.mark.slow
def test_a_training_that_is_refused_ends_in_one_more_line_and_its_status(tmp_path):
    (tmp_path / "mine").touch()
    process = start_training(tmp_path)
    text = process.communicate(timeout=120)[0]
    assert process.returncode > 0 and "Traceback" not in text
    assert text.splitlines()[-1].startswith(f"The training has failed ({process.returncode}). Go on")
