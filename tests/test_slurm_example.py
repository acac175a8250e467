"""examples/slurm: the job script, with stand-ins for Slurm's commands."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcvd_diffusers.checkpointing import find_checkpoint, list_checkpoints


ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "slurm" / "train.sbatch"

# One task; its process takes the place of srun's, as far as signals are concerned.
SRUN = """#!/bin/bash
export SLURM_PROCID=0 SLURM_LOCALID=0
echo $$ > "$RECORD/pid"
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$*" >> "$RECORD/scontrol"
if [ "$1" = show ]; then echo localhost; fi
"""


@pytest.mark.slow
def test_a_job_whose_time_is_over_is_requeued_and_goes_on_to_the_end(tmp_path):
    python = f'#!/bin/bash\nexec {sys.executable} "$@"\n'
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("python", python)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "RECORD": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "SLURM_JOB_ID": "12345",
        "SLURM_NTASKS": "1",
        "SLURM_JOB_NODELIST": "localhost",
    }
    run = tmp_path / "run"
    settings = ["--resolution", "16", "--block_out_channels", "8", "8", "--train_batch_size", "2"]
    settings += ["--num_validation_videos", "0", "--report_to", "none", "--lr_scheduler", "constant"]
    settings += ["--checkpointing_steps", "5", "--max_train_steps"]

    def job(num_updates):
        command = ["bash", SCRIPT, *settings, str(num_updates), "--output_dir", run]
        return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    first = job(100_000)
    waited = time.monotonic() + 120
    while not list_checkpoints(run) and first.poll() is None and time.monotonic() < waited:
        time.sleep(0.1)
    assert first.poll() is None, first.communicate()
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGUSR1)
    _, log = first.communicate(timeout=60)
    assert first.returncode == 138, log
    assert (tmp_path / "scontrol").read_text().splitlines()[-1] == "requeue 12345"
    num_updates = int(find_checkpoint(run).name.partition("-")[2])

    second = job(num_updates + 5)
    _, log = second.communicate(timeout=120)
    assert second.returncode == 0 and f"going on from {run}/checkpoint-{num_updates}" in log, log
    assert (run / "model_index.json").is_file()
    assert (tmp_path / "scontrol").read_text().count("requeue") == 1
