"""The commands `mcvd-diffusers data ...`, in this process."""

import os
import shlex
import signal

import numpy as np
import pytest
from PIL import Image

from mcvd_diffusers import visualization
from mcvd_diffusers.cli import main
from mcvd_diffusers.data import MovingDigits, digit_files, load_digits, open_reader
from mcvd_diffusers.data.digit_files import DIGIT_FORMATS, PACKAGES, write_moving_digits
from train_mcvd import make_datasets, parse_args
from video_fixtures import level_frames, write_frames, write_gif


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def run(capsys, *args):
    """(exit status, what was printed, errors) with runs of white space as one."""
    status = main(["data", *map(str, args)])
    out, err = capsys.readouterr()
    return status, " ".join(out.split()), err


def write_kelvin(file, num_frames=60):
    field = np.random.RandomState(0).normal(280, 10, (num_frames, 8, 12)).astype(np.float32)
    field[:, :2, :3] = np.nan
    np.save(file, field)
    return field


def train_with(printed):
    """The words of the command that is printed, as a shell would take them."""
    line = next(line for line in printed.splitlines() if line.startswith("train with"))
    return shlex.split(line)[3:]


# ----------------------------------------------------------------------------------------------------------------------
# inspect


def test_inspect_reports_a_field_and_how_to_train_on_it(capsys, tmp_path):
    field = write_kelvin(tmp_path / "t2m.npy")
    assert main(["data", "inspect", "t2m.npy", "--axes", "THW", "--num_frames", "10"]) == 0
    printed = capsys.readouterr().out
    assert train_with(printed)[
        :8
    ] == "--train_data_dir t2m.npy --axes THW --normalization min_max --nan_fill".split() + [
        f"{np.nanmean(field):.4g}"
    ]
    settings = parse_args(train_with(printed))  # exits if a flag is unknown
    assert (
        settings.data.split_frames == 20
        and settings.data.nan_mask_channel
        and settings.data.normalization == "min_max"
    )
    printed = " ".join(printed.split())
    for part in (
        "ArrayReader, arrays",
        "videos 1: 1 readable, 0 unreadable",
        "frames 60: 60 to 60 a video, median 60",
        "size 8 x 12",
        "type float32",
        "values of 60 of 60 frames",
        f"{np.nanmin(field):.6g} to {np.nanmax(field):.6g}, mean {np.nanmean(field):.6g}",
        "6.250% of the values are NaN",
        "of 10 frames: 1 video long enough, 0 too short; 51 starts in all",
        "1 clip, one a video; 6 with --clip_step 10",
    ):
        assert part in printed, part
    with Image.open("t2m.npy-contact-sheet.png") as sheet:
        assert (np.asarray(sheet) == (255, 0, 255)).all(axis=-1).any()


def rain(*shape):
    values = np.random.RandomState(0).normal(0, 2, shape).clip(0).astype(np.float32)
    values[..., :2, :2] = np.nan
    return values


def images(*shape):
    return np.random.RandomState(0).randint(256, size=shape).astype(np.uint8)


@pytest.mark.filterwarnings("ignore:Skipped")
@pytest.mark.parametrize(
    "axes,data,num_frames",
    [
        ("THW", rain(300, 8, 8), 10),
        ("THW", rain(45, 8, 8), 10),
        ("THW", rain(25, 8, 8), 10),
        ("NTHW", images(2, 12, 8, 8), 10),
        ("NTHW", images(3, 30, 8, 8), 10),
        ("NTHW", images(12, 14, 8, 8), 7),
        ("NTHW", images(40, 12, 8, 8) // 4, 10),
        ("NTHWC", images(5, 20, 8, 8, 3), 5),
        ("TCHW", rain(200, 2, 8, 8) * np.array([1, 50], np.float32)[:, None, None] - 3, 10),
    ],
)
def test_the_suggested_line_makes_at_least_a_batch(capsys, tmp_path, axes, data, num_frames):
    np.save(tmp_path / "data.npy", data)
    options = ["--axes", axes, "--num_frames", str(num_frames), "--no_contact_sheet"]
    assert main(["data", "inspect", "data.npy", *options]) == 0
    settings = parse_args(train_with(capsys.readouterr().out))
    assert settings.num_window_frames == num_frames and settings.training.output_dir == "runs/data"
    train, validation = make_datasets(settings, num_frames)
    assert len(train) >= settings.training.train_batch_size and len(validation) >= 1
    assert train[0]["video"].shape[0] == num_frames


def test_mixed_lengths_are_named_and_still_make_a_line(capsys, tmp_path):
    for number in range(8):
        write_frames(tmp_path / "v" / f"v{number}", level_frames(5 if number < 6 else 15))
    assert main(["data", "inspect", "v"]) == 0
    printed = capsys.readouterr().out
    assert "too short   v0: 5 frames" in printed
    settings = parse_args(train_with(printed))
    with pytest.warns(UserWarning, match="Skipped"):
        train, _ = make_datasets(settings, 10)
    assert len(train) >= settings.training.train_batch_size


def test_the_sheet_says_which_channel_it_shows(capsys, tmp_path, monkeypatch):
    captions = []
    real = visualization.data_sheet

    def keep(rows, *, caption):
        captions.append(caption)
        return real(rows, caption=caption)

    monkeypatch.setattr(visualization, "data_sheet", keep)
    kelvin = np.random.RandomState(0).normal(280, 10, (4, 20, 3, 8, 8)).astype(np.float32)
    for name, data in (("a", images(4, 20, 12, 8, 8)), ("b", kelvin), ("c", images(4, 20, 3, 8, 8))):
        np.save(tmp_path / f"{name}.npy", data)
        status, out, _ = run(capsys, "inspect", f"{name}.npy", "--axes", "NTCHW")
        assert status == 0 and ("... and 4 more" in out) == (name == "a")
    assert "channel 0 of 12" in captions[0] and "channel 0 of 3" in captions[1] and "channel" not in captions[2]


def test_nothing_readable_is_status_1(capsys, tmp_path):
    (tmp_path / "v").mkdir()
    (tmp_path / "v" / "a.gif").write_bytes(b"no video")
    status, out, err = run(capsys, "inspect", "v")
    assert status == 1 and "unreadable a.gif:" in out and "no video can be read" in err and "train with" not in out


def test_inspect_names_broken_videos_and_strict_fails(capsys, tmp_path):
    for number in range(3):
        write_gif(tmp_path / "videos" / f"{number}.gif", level_frames(12)) if number else (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "text\x1b[31m.gif").write_bytes(b"no video")
    (tmp_path / "videos" / "empty.gif").touch()
    status, out, err = run(capsys, "inspect", "videos", "--num_frames", 5, "--no_contact_sheet")
    assert status == 0 and err == "" and not list(tmp_path.glob("*.png"))
    assert "videos 4: 2 readable, 2 unreadable" in out and "rate 10 frames per second" in out
    assert "unreadable empty.gif:" in out and "zero bytes" in out and "unreadable text?[31m.gif:" in out
    assert "\x1b" not in out
    status, out, err = run(capsys, "inspect", "videos", "--num_frames", 5, "--no_contact_sheet", "--strict", "--list")
    assert status == 1 and "2 videos cannot be read" in err
    assert "1.gif: 12 frames, 32 x 48, 3 channels, uint8, 10 frames per second" in out
    assert out.count("empty.gif: unreadable:") == 1 and "too short" in out


def test_inspect_names_ten_of_many_broken_videos(capsys, tmp_path):
    write_gif(tmp_path / "good.gif", level_frames(12))
    for number in range(14):
        (tmp_path / f"bad{number}.gif").touch()
    _, out, _ = run(capsys, "inspect", ".", "--num_frames", 5, "--no_contact_sheet")
    assert out.count("unreadable bad") == 10 and "and 4 more" in out and "14 of 15 videos can not be used" in out
    _, out, _ = run(capsys, "inspect", ".", "--num_frames", 5, "--no_contact_sheet", "--list")
    assert out.count(": unreadable: ") == 14


def test_inspect_finds_damage_inside(capsys, tmp_path):
    for name in ("a", "b"):
        write_frames(tmp_path / "frames" / name, level_frames(10))
    last = tmp_path / "frames" / "b" / "frame_9.png"
    last.write_bytes(last.read_bytes()[:50])
    status, out, _ = run(capsys, "inspect", "frames", "--num_frames", 5, "--frames", 1, "--strict")
    assert status == 1 and "2 readable, 0 unreadable; of the readable ones 1 damaged inside" in out
    assert "damaged b: frame 9:" in out


def test_inspect_says_how_clips_are_counted_with_stride_and_step(capsys, tmp_path):
    np.save(tmp_path / "x.npy", np.arange(6 * 20 * 16).reshape(6, 20, 4, 4).astype(np.uint8))
    options = ["--axes", "NTHW", "--num_frames", 4, "--frame_stride", 3, "--clip_step", 5, "--contact_sheet", "s.png"]
    status, out, _ = run(capsys, "inspect", "x.npy", *options)
    assert status == 0 and os.path.exists("s.png")
    assert "at stride 3, which cover 10: 6 videos long enough, 0 too short; 66 starts in all" in out
    assert "6 clips, one a video; 18 with --clip_step 5" in out
    assert "--frame_stride 3 --clip_step 5" in out


def test_inspect_takes_variables_and_names_them(capsys, tmp_path):
    rng = np.random.RandomState(0)
    np.savez(tmp_path / "w.npz", t2m=rng.normal(280, 1, (30, 4, 4)), msl=rng.normal(101325, 9, (30, 4, 4)))
    status, out, _ = run(capsys, "inspect", "w.npz", "--axes", "THW", "--variables", "msl", "t2m", "--num_frames", 5)
    assert status == 0 and "channel 0 (msl): 1012" in out and "channel 1 (t2m): 27" in out
    assert "--variables msl t2m" in out


def test_inspect_overwrites_nothing(capsys, tmp_path):
    write_kelvin(tmp_path / "t2m.npy")
    (tmp_path / "t2m.npy-contact-sheet.png").write_bytes(b"mine")
    status, out, err = run(capsys, "inspect", "t2m.npy", "--axes", "THW")
    assert (status, err) == (0, "") and "exists and was left alone; --contact_sheet NAME writes another" in out
    assert "train with" in out
    assert (tmp_path / "t2m.npy-contact-sheet.png").read_bytes() == b"mine"
    for wrong, message in (("sheet.gif", "must end in .png"), ("nowhere/sheet.png", "does not exist")):
        status, out, err = run(capsys, "inspect", "t2m.npy", "--axes", "THW", "--contact_sheet", wrong)
        assert (status, out) == (1, "") and message in err


def test_inspect_errors_are_one_line_without_a_traceback(capsys, tmp_path):
    write_kelvin(tmp_path / "t2m.npy")
    (tmp_path / "bad").mkdir()
    for number in range(2):
        (tmp_path / "bad" / f"\x1b{number}.npy").write_bytes(b"nothing")
    for args, message in (
        (["t2m.npy"], "`axes` must name each axis"),
        (["bad", "--axes", "THW"], "none of the 2"),
        (["nowhere"], "must exist"),
        (["t2m.npy", "--axes", "THW", "--video_column", "x"], "means nothing"),
    ):
        status, out, err = run(capsys, "inspect", *args, "--no_contact_sheet")
        assert (status, out) == (1, "") and message in err and err.count("\n") == 1 and "\x1b" not in err
        assert err.startswith("mcvd-diffusers data inspect: ")
    for wrong in (["--num_frames", "0"], ["--frames", "-1"], ["--contact_sheet", "a.png", "--no_contact_sheet"]):
        with pytest.raises(SystemExit, match="2"):
            main(["data", "inspect", "t2m.npy", *wrong])
    with pytest.raises(SystemExit, match="2"):
        main(["data"])


# ----------------------------------------------------------------------------------------------------------------------
# digits


def small_clips(num_clips=3, **options):
    """Clips of levels that 8 bits hold exactly; the first digit stands still, which formats must not shorten."""
    digits = np.random.RandomState(0).randint(256, size=(4, 10, 10)).astype(np.float32) / 255
    return MovingDigits(digits, num_frames=7, num_clips=num_clips, canvas_size=(24, 32), **{"max_speed": 0, **options})


def bytes_below(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def need(format):
    for package in PACKAGES.get(format, ([], ""))[0]:
        pytest.importorskip(package)


@pytest.mark.parametrize("max_speed", [0, 3])
@pytest.mark.parametrize("format", DIGIT_FORMATS)
def test_digits_are_read_back_as_they_were_drawn(tmp_path, format, max_speed):
    need(format)
    clips = small_clips(max_speed=max_speed)
    flags = write_moving_digits(clips, tmp_path / "out", format=format)
    assert flags[:2] == ["--train_data_dir", str(tmp_path / "out")]
    reader = open_reader(flags[1], axes=flags[flags.index("--axes") + 1] if "--axes" in flags else None)
    assert len(reader) == 3 and reader.num_frames(0) == 7
    for number in range(3):
        drawn = ((clips[number]["video"].double().numpy() + 1) * 127.5).round()
        read = reader.read(number, 0, 7)
        assert read.dtype == np.uint8 and read.shape[1] in (1, 3)
        difference = np.abs(read - drawn)
        assert difference.max() == 0 if format != "mp4" else difference.mean() < 3  # of noise, the worst case
    write_moving_digits(clips, tmp_path / "again", format=format)
    assert bytes_below(tmp_path / "out") == bytes_below(tmp_path / "again")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again", "out"]


def test_more_videos_than_a_batch_reach_a_zarr_store(tmp_path, monkeypatch):
    need("zarr")
    monkeypatch.setattr(digit_files, "ZARR_BATCH", 2)
    clips = small_clips(5)
    reader = open_reader(write_moving_digits(clips, tmp_path / "out", format="zarr")[1])
    assert len(reader) == 5
    assert np.array_equal(reader.read(4, 0, 7), ((clips[4]["video"].numpy() + 1) * 127.5).round())


def test_digits_command_writes_what_train_mcvd_would_draw(capsys, tmp_path):
    pytest.importorskip("sklearn")
    args = ["digits", "out", "--num_videos", 4, "--num_frames", 6, "--resolution", 32, 48, "--seed", 3]
    status = main(["data", *map(str, args)])
    printed = capsys.readouterr().out
    assert status == 0 and "4 videos of 6 frames, 32 x 48, npy" in printed
    assert train_with(printed)[:4] == ["--train_data_dir", str(tmp_path / "out"), "--axes", "NTCHW"]
    assert train_with(printed)[-2:] == ["--output_dir", "runs/out"]
    settings = parse_args(train_with(printed))
    train, _ = make_datasets(settings, settings.num_window_frames)
    assert len(train) >= settings.training.train_batch_size
    clips = MovingDigits(
        load_digits("sklearn", split="train", size=16),
        num_frames=6,
        num_clips=4,
        canvas_size=(32, 48),
        num_digits=2,
        max_speed=2,
        seed=3,
    )
    stored = np.load(tmp_path / "out" / "digits.npy")
    assert stored.dtype == np.uint8 and stored.shape == (4, 6, 1, 32, 48)
    for number in range(4):
        assert np.array_equal(stored[number], ((clips[number]["video"].numpy() + 1) * 127.5).round())
    main(["data", *map(str, [*args[:1], "other", *args[2:], "--split", "validation"])])
    assert not np.array_equal(np.load(tmp_path / "other" / "digits.npy"), stored)


def test_digits_command_refuses_what_exists_and_what_does_not_fit(capsys, tmp_path):
    pytest.importorskip("sklearn")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    for args, message in (
        (["taken"], "exists and is not empty. Nothing is overwritten"),
        (["new", "--digit_size", 64], "`canvas_size` must exceed"),
        (["new", "--resolution", 33, "--format", "mp4"], "must be even"),
        (["new", "--resolution", 32, 32, 32], "--resolution takes"),
    ):
        status, out, err = run(capsys, "digits", "--num_videos", 1, "--num_frames", 2, *args)
        assert (status, out) == (1, "") and message in err and err.count("\n") == 1
        assert err.startswith("mcvd-diffusers data digits: ")
    for wrong in (["--format", "avi"], ["--num_videos", "0"], ["--seed", "-1"], ["--num_v", "3"]):
        with pytest.raises(SystemExit, match="2"):
            main(["data", "digits", "new", *wrong])
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("stop", ["error", "SIGINT", "SIGTERM"])
def test_digits_that_are_not_complete_leave_nothing(capsys, tmp_path, monkeypatch, request, stop):
    pytest.importorskip("sklearn")
    write = digit_files.write_png_folder

    def write_one_and_stop(folder, video):
        if folder.name == "0001":
            assert any(path.name.startswith(".out.partial-") for path in folder.parent.parent.iterdir())
            if stop == "error":
                raise OSError("No space left on device")
            os.kill(os.getpid(), getattr(signal, stop))
        write(folder, video)

    monkeypatch.setattr(digit_files, "write_png_folder", write_one_and_stop)
    # A shell that starts the tests in the background lets them ignore SIGINT, and Python then leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    args = ["data", "digits", "new/out", "--num_videos", "3", "--num_frames", "2", "--format", "png"]
    if stop == "SIGTERM":
        with pytest.raises(SystemExit, match=str(128 + signal.SIGTERM)):
            main(args)
    else:
        assert main(args) == {"error": 1, "SIGINT": 130}[stop]
    assert ("No space left" if stop == "error" else "") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_is_printed_can_be_inspected(capsys, tmp_path):
    pytest.importorskip("sklearn")
    main(["data", "digits", "my digits", "--num_videos", "20", "--num_frames", "12", "--format", "png"])
    path = train_with(capsys.readouterr().out)[1]
    status, out, _ = run(capsys, "inspect", path, "--num_frames", 10)
    assert status == 0 and "20: 20 readable, 0 unreadable" in out and "train_mcvd.py --train_data_dir '" in out
    assert (tmp_path / "my digits-contact-sheet.png").exists()
