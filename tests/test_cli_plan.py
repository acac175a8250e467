"""The command `mcvd-diffusers plan`, in this process."""

import numpy as np
import pytest
from PIL import Image

from mcvd_diffusers.cli import main
from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import ADAPTIVE_FRAME_SCHEDULES, FRAME_SCHEDULES, frame_schedule
from mcvd_diffusers.visualization import PLAN_COLORS, PLAN_LABEL_WIDTH, draw_plan


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *args):
    """(exit status, what was printed, errors)."""
    status = main(["plan", *map(str, args)])
    return status, *capsys.readouterr()


PAPER = "hierarchy-2 --num_frames 300 --observed 0:36 --max_frames 20 --step 10".split()


def test_the_plan_of_the_paper_is_described_and_listed(capsys):
    status, out, err = run(capsys, *PAPER, "--num_inference_steps", 100)
    lines = out.splitlines()
    assert status == 0 and not err
    assert lines[0] == "300 frames: 36 given, 264 made by 27 windows"
    assert "calls of the network: 2,700" in lines
    table = [line.split() for line in lines[lines.index("") + 1 :]]
    assert len(table) == 28 and table[0] == ["window", "wave", "observed", "latent"]
    assert table[1] == "0 0 0 3 7 11 15 19 23 27 31 35 36 65 94 123 153 182 211 241 270 299".split()
    assert table[2] == "1 1 32:37 65 94 123 153 182 37:47".split()


def test_without_a_step_windows_make_half_of_their_frames(capsys):
    arguments = ("autoreg", "--num_frames", 20, "--observed", "0:5", "--max_frames", 10)
    assert run(capsys, *arguments) == run(capsys, *arguments, "--step", 5)


def test_given_frames_are_ranges_and_numbers(capsys):
    status, out, _ = run(
        capsys, "autoreg", "--num_frames", 12, "--observed", "0:3", 6, "10:12", "--max_frames", 20, "--step", 10
    )
    assert status == 0 and out.splitlines()[-1].split() == "0 0 0:3 6 10:12 3:6 7:10".split()


def test_generation_from_nothing_observes_nothing(capsys):
    status, out, _ = run(capsys, "really-independent", "--num_frames", 6, "--max_frames", 4)
    assert status == 0
    assert [line.split() for line in out.splitlines()[-2:]] == [["0", "0", "-", "0:4"], ["1", "0", "-", "4:6"]]


def test_nothing_to_do_has_no_table(capsys):
    status, out, _ = run(capsys, "autoreg", "--num_frames", 3, "--observed", "0:3", "--max_frames", 4)
    assert (status, out) == (0, "3 frames: 3 given, 0 made by 0 windows\n")


@pytest.mark.parametrize("name", sorted(set(FRAME_SCHEDULES) - set(ADAPTIVE_FRAME_SCHEDULES)))
def test_every_schedule_that_needs_no_frames_is_planned(capsys, name):
    status, out, _ = run(capsys, name, "--num_frames", 50, "--observed", "0:30", 49, "--max_frames", 16)
    assert status == 0 and "50 frames: 31 given, 19 made" in out


@pytest.mark.parametrize("name", [*ADAPTIVE_FRAME_SCHEDULES, "adaptive-autoregressive"])
def test_adaptive_schedules_cannot_be_planned(capsys, name):
    status, out, err = run(capsys, name, "--num_frames", 50, "--max_frames", 16)
    assert status == 2 and not out
    assert f"{name} cannot be planned ahead: it looks at finished frames" in err
    assert f"{name.removeprefix('adaptive-')} makes the same frames" in err


@pytest.mark.parametrize(
    "args, message",
    [
        (["blocks", "--num_frames", "9", "--max_frames", "4"], "plan: NAME must be one of autoreg, long-range"),
        (
            ["hierachy-2", "--num_frames", "9", "--max_frames", "4"],
            "plan: Did you mean hierarchy-2? NAME must be one of",
        ),
        (
            ["autoreg", "--num_frames", "20000", "--max_frames", "16", "--output", "plan.png"],
            "--output plan.png: `plan` has 20,000 frames and 2,499 windows, whose picture would have 20,110 x 35,036 pixels, more",
        ),
        (["hierarchy-2", "--num_frames", "9", "--max_frames", "4", "--step", "1"], "`step` must be at least 2"),
        (["autoreg", "--num_frames", "9", "--max_frames", "4", "--observed", "3:12"], "positions from 0 to 8"),
        ([*PAPER, "--output", "plan.gif"], "--output must end in .png, got plan.gif"),
        ([*PAPER, "--output", "nowhere/plan.png"], "lies in a folder that does not exist"),
    ],
)
def test_wrong_settings_are_named(capsys, args, message):
    status, out, err = run(capsys, *args)
    assert status == 2 and not out and err.startswith("mcvd-diffusers plan: ") and message in err


@pytest.mark.parametrize("positions", ["x", "3:3", "5:2", "-1", "0:", ":3", "1:2:3"])
def test_positions_that_are_none_are_refused(capsys, positions):
    with pytest.raises(SystemExit) as stopped:
        main(["plan", "autoreg", "--num_frames", "9", "--max_frames", "4", f"--observed={positions}"])
    assert stopped.value.code == 2 and positions in capsys.readouterr().err


def test_only_what_can_be_planned_is_offered(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "--help"])
    listed = capsys.readouterr().out
    status, _, err = run(capsys, "blocks", "--num_frames", 9, "--max_frames", 4)
    assert status == 2 and "hierarchy-5, independent" in err
    assert "adaptive-" not in listed + err


def test_calls_with_batches_are_told_where_there_are_less(capsys):
    arguments = ("long-range", "--num_frames", 40, "--observed", "0:4", "--max_frames", 8, "--num_inference_steps", 10)
    many = ("independent", *arguments[1:])
    for schedule, is_told in ((arguments, False), (many, True)):
        status, out, _ = run(capsys, *schedule)
        assert status == 0 and ("with batches" in out) == is_told


def test_a_picture_is_written_once(capsys, tmp_path):
    status, out, _ = run(capsys, *PAPER, "--output", "plan.png")
    assert status == 0 and out.endswith("picture: plan.png\n")
    with Image.open(tmp_path / "plan.png") as picture:
        assert picture.width > 1500 and picture.height > 27 * 10
    before = (tmp_path / "plan.png").read_bytes()
    status, _, err = run(capsys, *PAPER, "--output", "plan.png")
    assert status == 2 and "nothing is overwritten" in err and (tmp_path / "plan.png").read_bytes() == before


def lines_of(picture, num_frames, num_windows):
    """The names of the colours of all frames, window after window."""
    pixels = np.asarray(picture)
    names = {color: name for name, color in PLAN_COLORS.items()}
    cell = (picture.width - PLAN_LABEL_WIDTH - 18) // num_frames
    row_height = 14
    top = picture.height - 6 - num_windows * row_height
    return [
        [
            names[tuple(int(value) for value in pixels[top + row * row_height + 5, PLAN_LABEL_WIDTH + frame * cell])]
            for frame in range(num_frames)
        ]
        for row in range(num_windows)
    ]


@pytest.mark.parametrize("num_frames", [30, 300, 2000])
def test_a_picture_shows_what_each_window_reads_and_makes(num_frames):
    observed = {*range(3), num_frames - 1}
    windows = list(frame_schedule("hierarchy-2", num_frames, observed=observed, max_frames=100, step=50))
    plan = FramePlan.of(windows, num_frames, observed=observed)
    made = set()
    for window, line in zip(windows, lines_of(draw_plan(plan), num_frames, len(windows)), strict=True):
        for position, name in enumerate(line):
            expected = "given" if position in observed else "already made" if position in made else "to come"
            expected = "observed" if position in window.observed else expected
            assert name == ("latent" if position in window.latent else expected)
        made |= set(window.latent)


def test_a_plan_without_windows_has_a_picture():
    assert draw_plan(FramePlan.of([], 1, observed=[0])).size[0] > 0
    with pytest.raises(ValueError, match="`width` must be at least 1 pixel, got 0"):
        draw_plan(FramePlan.of([], 1, observed=[0]), width=0)
