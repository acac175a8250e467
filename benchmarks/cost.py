"""How good the estimate of a run's cost is: estimated and measured time and memory of short runs of several shapes.

    python benchmarks/cost.py [--steps 60] [--threads 1]

Each shape is trained twice in processes of their own: once with `--estimate`, and once for real, to the end, with its
validation and saving. The real run's time is what the script says it trained for; its memory is the peak of resident
memory that the operating system has counted for the process.

Measured with `--steps 60 --threads 1` on 2 CPU cores, of which another job took one:

    shape                      time: estimated  measured  ratio  memory: est.  measured  ratio
    digits 32x32, 1 channel             43.8 s      48 s   0.91       871 MiB   870 MiB   1.00
    digits 64x64, SPATIN                36.8 s      44 s   0.84       828 MiB   828 MiB   1.00
    digits 40x88, 2 blocks             185.0 s     187 s   0.99      1628 MiB  1615 MiB   1.01

With three more jobs on the two cores, ratios of time from 0.35 to 2.4 were seen: what a machine does beside is measured, too,
and may not be what it does later.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


ROOT = Path(__file__).parents[1]
SHAPES = {
    "digits 32x32, 1 channel": "--resolution 32 --block_out_channels 32 64 96",
    "digits 64x64, SPATIN": "--resolution 64 --conditioning spatin --spatin_channels 32 --block_out_channels 16 32 32"
    " --train_batch_size 4",
    "digits 40x88, 2 blocks": "--resolution 40 88 --block_out_channels 48 96 --layers_per_block 2 --train_batch_size 8"
    " --num_past_frames 5 --num_frames 5",
}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def run(arguments: list[str], threads: int) -> tuple[str, int]:
    """What a training process says, and its peak resident memory in bytes."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train_mcvd.py"), *arguments], stdout=log, stderr=log, env=environment
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        text = log.read()
    if process.returncode:
        raise RuntimeError(text)
    return text, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def seconds(text: str) -> float:
    """A time of the report, which reads "79 s", "6.1 min" or "1.8 h"."""
    number, unit = text.split()
    return float(number) * {"s": 1, "min": 60, "h": 3600, "days": 86400}[unit]


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = []
    for name, shape in SHAPES.items():
        common = [*shape.split(), "--max_train_steps", str(options.steps), "--num_validation_videos", "2"]
        estimate, _ = run([*common, "--estimate"], options.threads)
        with tempfile.TemporaryDirectory() as folder:
            real, memory = run([*common, "--output_dir", folder], options.threads)
        estimated = seconds(re.search(r"to the end +(\S+ \S+)", estimate)[1])
        number, unit = re.search(r"peak memory +(\S+) (\S+)", estimate).groups()
        # The estimate counts the validation videos at the end, which the script's own time does not.
        videos = 4 * 2 * float(re.search(r"a video +(\S+) s", estimate)[1])
        measured = float(re.search(r"trained .* in (\d+) s", real)[1])
        rows.append((name, estimated - videos, measured, float(number) * UNITS[unit] / 2**20, memory / 2**20))
    print(
        f"{'shape':26}{'time: estimated':>16}{'measured':>10}{'ratio':>7}{'memory: est.':>14}{'measured':>10}{'ratio':>7}"
    )
    for name, time_estimated, time, memory_estimated, memory in rows:
        print(
            f"{name:26}{time_estimated:14.1f} s{time:8.0f} s{time_estimated / time:7.2f}{memory_estimated:10.0f} MiB"
            f"{memory:6.0f} MiB{memory_estimated / memory:7.2f}"
        )


if __name__ == "__main__":
    main()
