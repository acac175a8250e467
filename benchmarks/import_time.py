"""How long the first import takes, against the import of one pipeline of Diffusers.

    python benchmarks/import_time.py [--repetitions 7]

In turns, each in a process of its own, whose start is not counted:

    mcvd_diffusers    import mcvd_diffusers
    diffusers         from diffusers import DDPMPipeline

One of each is run before and not counted, so that files are in the system's cache and compiled. Exits with 1 when the ratio
of the medians is not below `--most`.

Measured with `--repetitions 9` on 2 CPU cores that other jobs were using too; of a traced import (`-X importtime`) of 16.7 s,
0.24 s were spent in modules that the other import does not load:

    seconds              min  median
    mcvd_diffusers      7.26    8.91
    diffusers           6.45    9.67
    ratio               1.12    0.92
"""

import argparse
import statistics
import subprocess
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]
STATEMENTS = {"mcvd_diffusers": "import mcvd_diffusers", "diffusers": "from diffusers import DDPMPipeline"}


def seconds(statement: str) -> float:
    """Time of a statement in a fresh process."""
    code = f"import time\nstart = time.perf_counter()\n{statement}\nprint(time.perf_counter() - start)"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT)
    return float(out.stdout.split()[-1])


def main() -> int:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--most", type=float, default=1.3)
    options = parser.parse_args()
    for statement in STATEMENTS.values():
        seconds(statement)
    times = {name: [] for name in STATEMENTS}
    for _ in range(options.repetitions):
        for name, statement in STATEMENTS.items():
            times[name].append(seconds(statement))
    print(f"{'seconds':<16}{'min':>8}{'median':>8}")
    for name, measured in times.items():
        print(f"{name:<16}{min(measured):>8.2f}{statistics.median(measured):>8.2f}")
    ours, theirs = times.values()
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{'ratio':<16}{min(ours) / min(theirs):>8.2f}{ratio:>8.2f}")
    return int(ratio >= options.most)


if __name__ == "__main__":
    sys.exit(main())
