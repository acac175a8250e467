"""benchmarks/chaos.py: a training that is killed again and again ends as if it had not been."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_run_that_is_killed_twelve_times_loses_nothing(tmp_path):
    # In a process of its own: it forks, which one that has threads must not.
    result = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "chaos.py"), "--kills", "12", "--folder", str(tmp_path / "chaos")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = dict(line.strip().rsplit(maxsplit=1) for line in result.stdout.splitlines() if line.startswith("    "))
    assert int(rows["kills"]) == 12
    assert int(rows["in a save"]) >= 1
    assert (rows["lost runs"], rows["corrupt loads"]) == ("0", "0")
    assert rows["equal to the uninterrupted run"] == "yes"
