"""The benchmarks of speed run, and their tables have what they promise. (Times are not asserted.)"""

import re
import runpy
from pathlib import Path

import pytest


BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(name, arguments, capsys):
    runpy.run_path(str(BENCHMARKS / f"{name}.py"))["main"](arguments.split())
    return capsys.readouterr().out


def rows_of(text):
    """Cells of the lines of all tables, without heads."""
    lines = [line for line in text.splitlines() if line.startswith("|") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_speed_compares_networks_that_are_the_same(capsys):
    rows = rows_of(run("speed", "--width 8 --size 8 --batch 1 --steps 2 --repeats 1 --past 2", capsys))
    measured = [row for row in rows if row[0] in ("concat", "spatin")]
    assert len(measured) == 12
    for network, batch, what, dtype, plain, fast, ratio, share, difference in measured:
        assert batch == "1" and re.fullmatch(r"[0-9.]+ s", plain) and re.fullmatch(r"[0-9.]+ s", fast)
        slow, quick = float(plain[:-2]), float(fast[:-2])
        middle, low, high = map(float, re.fullmatch(r"\*\*([0-9.]+)\*\* \(([0-9.]+) to ([0-9.]+)\)", ratio).groups())
        assert middle == low == high == pytest.approx(slow / quick, rel=0.05)  # there is one
        assert share.endswith(" %")
        if what != "an update":
            assert 0 < float(difference) < (1e-5 if dtype == "float32" else 0.05), (network, what, dtype)
    assert any("conv" in row[0] for row in rows if row[-1].endswith(" %") and len(row) == 3)


def test_planning_counts_calls(capsys):
    text = run("planning", "--candidates 2 --frames 10 --width 8 --size 8 --steps 1 5 --dtype float32", capsys)
    assert [row[:3] for row in rows_of(text)[1:]] == [["1", "LCMScheduler", "2"], ["5", "DDIMScheduler", "10"]]
    assert "2 candidates of 10 frames" in text


def test_streaming_counts_frames(capsys):
    text = run("streaming", "--frames 50 --width 8 --size 8 --steps 1", capsys)
    assert [row[0] for row in rows_of(text)[1:]] == [str(count) for count in range(5, 55, 5)]
    assert re.search(r"memory grew by -?[0-9.]+ MiB", text)


def test_scaling_fits_exponents(capsys):
    text = run("scaling", "--width 8 --size 8 --only batch --repeats 1", capsys)
    rows = rows_of(text)
    assert [row[0] for row in rows[1:]] == ["1", "2", "4", "8", "16", "exponent"]
    assert rows[-1][-1] == "**1.00**"  # of the operations
    exponent = runpy.run_path(str(BENCHMARKS / "scaling.py"))["exponent"]
    assert exponent([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx(2)


@pytest.mark.slow
def test_few_steps_trains_and_compares(tmp_path, capsys):
    script = runpy.run_path(str(BENCHMARKS / "few_steps.py"))
    tiny = "--max_train_steps 2 --num_train_clips 16 --block_out_channels 8 8 --num_validation_videos 0"
    names = ["velocity", "flow", "edm", "sample", "sample_distilled"]
    script["main"](["train", str(tmp_path / "runs"), *tiny.split(), "--only", *names])
    script["main"](["train", str(tmp_path / "runs"), *tiny.split(), "--only", *names])  # nothing is left to do
    options = ["--output", str(tmp_path / "objectives"), "--num_clips", "2", "--calls", "2"]
    script["main"](["objectives", str(tmp_path / "runs"), *options])
    text = capsys.readouterr().out
    rows = rows_of(text)[1:]
    assert {row[0] for row in rows} == set(names)
    kinds = ("FOR_OBJECTIVES", "FOR_OBJECTIVES", "FROM_FLOW", "FROM_EDM")
    assert len(rows) == sum(len(script[kind]) for kind in kinds) + 1
    student = script["with_scheduler"](tmp_path / "runs" / "sample_distilled", None)
    assert student.unet.config.prediction_type == "sample" and student.scheduler.config.original_inference_steps == 10
    for row in rows:
        assert float(row[2]) == (1 if row[1].startswith("Heun") else 2)
    kept = (tmp_path / "objectives" / "measured.jsonl").read_text()
    script["main"](["objectives", str(tmp_path / "runs"), *options])
    assert (tmp_path / "objectives" / "measured.jsonl").read_text() == kept
    # A reference in as many steps as are compared is no distance away.
    options = ["--output", str(tmp_path / "schedulers"), "--num_clips", "2", "--calls", "3", "--reference_steps", "3"]
    script["main"](["schedulers", str(tmp_path / "runs" / "velocity"), *options])
    rows = {row[0]: row[1] for row in reversed(rows_of(capsys.readouterr().out))}
    assert float(rows["DDIM, trailing"].split()[0]) == 0 < float(rows["DDIM, leading"].split()[0])


def test_costs_of_presets_are_those_of_the_page(capsys):
    page = {row[0]: row for row in rows_of((BENCHMARKS.parent / "docs" / "costs.md").read_text())}
    names = ["smmnist-concat-p5k5", "rvd-kth", "mcvd_digits", "traffic"]
    rows = rows_of(run("preset_costs", f"--only {' '.join(names)}", capsys))
    assert [row[0] for row in rows[1:]] == names
    for row in rows[1:]:
        assert page[row[0]] == row
    concat = dict(zip(rows[0], rows[1]))
    assert (
        concat["parameters"] == "27,941,765" and concat["calls, published"] == "202"
    )  # two blocks of 100 steps, one call more each


def test_all_presets_and_examples_are_in_the_page_of_costs():
    script = runpy.run_path(str(BENCHMARKS / "preset_costs.py"))
    page = rows_of((BENCHMARKS.parent / "docs" / "costs.md").read_text())
    assert {*script["PRESETS"], *script["EXAMPLES"]} <= {row[0] for row in page}
