"""`mcvd-diffusers predict`, `interpolate`, `generate`: what is written is what the pipeline makes, and what cannot be is refused."""

import math
import os
import re
import select
import shlex
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image, ImageSequence

from contract_rows import PIPELINES
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel, SpaceTimeUNetModel
from mcvd_diffusers.atomic import new_file
from mcvd_diffusers.cli import main, make_parser
from mcvd_diffusers.data.video_files import VideoFile
from mcvd_diffusers.data.video_writing import find_loss, read_back, written_rate
from mcvd_diffusers.data.video_writing import write_video as write_any
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.visualization import save_comparison_mp4, side_by_side
from video_fixtures import write_frames, write_video


ROOT = Path(__file__).parents[1]
SHIPPED = ROOT / "checkpoints" / "moving-digits"
SCHEDULER = {"prediction_type": "v_prediction"}


def blocks(**config) -> MCVDUNet2DModel:
    """A tiny network of two past frames, blocks of two and two future frames, 16 x 16."""
    shape = {"sample_size": 16, "in_channels": 1, "num_past_frames": 2, "num_frames": 2, "num_future_frames": 2}
    layers = {"block_out_channels": (4, 4), "down_block_types": ("DownBlock2D",) * 2, "layers_per_block": 1}
    return shaken(MCVDUNet2DModel(**(shape | layers | config)))


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Fresh networks end in weights of nearly zero, whose videos would all be the same."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


def saved(folder: Path, network: torch.nn.Module, **options) -> Path:
    MCVDPipeline(network, DDIMScheduler(**SCHEDULER), num_inference_steps=2, **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A folder with tiny models, none trained: grey, colour, in mm/h, a network of windows, and some that know fewer tasks."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("models")
    windows = {"max_frames": 6, "has_frame_gaps": True, "attention_levels": (1,), "block_out_channels": (8, 8)}
    saved(root / "checkpoints" / "moving-digits", blocks())
    saved(root / "runs" / "mine", blocks(in_channels=3))
    saved(root / "runs" / "rain", blocks(), normalization=FrameNormalizer.from_range(0, 80).to_config())
    saved(root / "runs" / "eight", blocks(in_channels=8))
    saved(
        root / "runs" / "fdm", shaken(SpaceTimeUNetModel(sample_size=16, in_channels=1, layers_per_block=1, **windows))
    )
    saved(root / "runs" / "predicts", blocks(num_future_frames=0))
    saved(root / "runs" / "needs_both", blocks(drop_past=0.0, drop_future=0.0))
    return root


@pytest.fixture
def place(models, tmp_path, monkeypatch):
    """A working folder with the models and some clips."""
    for name in ("checkpoints", "runs"):
        (tmp_path / name).symlink_to(models / name)
    frames = moving_squares(20, (24, 32))
    for name in ("clip.mp4", "first.mp4", "second.mp4"):
        write_video(tmp_path / name, frames)
    write_frames(tmp_path / "frames", moving_squares(6, (16, 16)))
    np.save(tmp_path / "radar.npy", np.linspace(0, 60, 8 * 256, dtype=np.float32).reshape(8, 16, 16))
    np.save(tmp_path / "grey.npy", moving_squares(12, (16, 16))[..., 0].astype(np.float32) / 255)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def moving_squares(num_frames: int, size: tuple[int, int]) -> np.ndarray:
    """Colour frames (T, H, W, 3)."""
    frames = np.full((num_frames, *size, 3), 30, np.uint8)
    for number, frame in enumerate(frames):
        frame[4:9, number % 8 : number % 8 + 6] = 240, 120, 40
    return frames


def run(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err


def make(capsys, *arguments) -> str:
    """What is said, wherever lines are broken but for the labels of the last ones."""
    status, out, err = run(capsys, *arguments)
    assert status == 0 and err == ""
    return re.sub(r"\n {12}", " ", out)


GREY = ("checkpoints/moving-digits", "grey.npy", "--axes", "THW")


def grey_clip() -> torch.Tensor:
    return torch.from_numpy(np.load("grey.npy"))[:, None]  # (12, 1, 16, 16)


def called(model: str, **call) -> torch.Tensor:
    """What the pipeline itself makes, from seed 0, (N, T, C, H, W)."""
    pipe = MCVDPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    return pipe(generator=generator, return_given_frames=True, output_type="pt", **call).frames


# --------------------------------------------------------------------------------------------------------------------
# What is made


def test_the_last_frames_are_given_by_default(capsys, place):
    out = make(capsys, "predict", *GREY, "--num_frames", 5, "--output", "out.npy")
    assert "frames 10 to 11 of grey.npy are given, 5 after them are made, in 3 blocks of 2 steps" in out
    expected = called(GREY[0], past_frames=grey_clip()[-2:], num_frames=5)
    made = np.load("out.npy")
    assert made.dtype == np.float32 and made.shape == (1, 7, 1, 16, 16)
    assert np.array_equal(made, expected.numpy())
    assert np.array_equal(made[0, :2], grey_clip()[-2:].numpy())


def test_others_are_given_from_start_on_and_samples_lie_along_the_first_axis(capsys, place):
    out = make(capsys, "predict", *GREY, "--start", 3, "--num_samples", 3, "--num_frames", 4, "--output", "out.npz")
    assert "frames 3 to 4 of grey.npy are given, 4 after them are made, 3 times, in 2 blocks" in out
    expected = called(GREY[0], past_frames=grey_clip()[3:5], num_frames=4, ensemble_size=3)
    with np.load("out.npz") as arrays:
        assert np.array_equal(arrays["video"], expected.numpy())
        assert arrays["is_given"].tolist() == [True] * 2 + [False] * 4
    assert len(np.unique(expected.numpy()[:, -1], axis=0)) == 3


def test_backwards_the_first_frames_are_given_and_come_last(capsys, place):
    out = make(capsys, "predict", *GREY, "--backwards", "--num_frames", 3, "--output", "out.npz")
    assert "frames 0 to 1 of grey.npy are given, 3 before them are made" in out
    expected = called(GREY[0], future_frames=grey_clip()[:2], num_frames=3)
    with np.load("out.npz") as arrays:
        assert np.array_equal(arrays["video"], expected.numpy())
        assert arrays["is_given"].tolist() == [False] * 3 + [True] * 2


def test_only_new_leaves_given_frames_out(capsys, place):
    make(capsys, "predict", *GREY, "--num_frames", 3, "--output", "all.npy")
    make(capsys, "predict", *GREY, "--num_frames", 3, "--only_new", "--output", "new.npy")
    assert np.array_equal(np.load("all.npy")[:, 2:], np.load("new.npy"))


def test_every_other_frame_is_given_with_a_stride(capsys, place):
    out = make(capsys, "predict", *GREY, "--frame_stride", 3, "--num_frames", 2, "--output", "out.npy")
    assert "frames 8 to 11 in steps of 3 of grey.npy are given" in out
    assert np.array_equal(np.load("out.npy")[0, :2], grey_clip()[[8, 11]].numpy())


@pytest.mark.parametrize("more, gap, num_frames", [((), 5, 2), (("--gap", "3", "--num_frames", "4"), 3, 4)])
def test_a_gap_is_made_between_what_stands_around_it(capsys, place, more, gap, num_frames):
    out = make(capsys, "interpolate", *GREY, *more, "--output", "out.npy")
    end = gap + num_frames
    assert f"frames {gap - 2} to {gap - 1} of grey.npy and frames {end} to {end + 1} of grey.npy are given" in out
    past, future = grey_clip()[gap - 2 : gap], grey_clip()[end : end + 2]
    expected = called(GREY[0], past_frames=past, future_frames=future, num_frames=num_frames)
    assert np.array_equal(np.load("out.npy"), expected.numpy())


def test_two_clips_are_joined(capsys, place):
    np.save("other.npy", np.load("grey.npy")[::-1])
    out = make(capsys, "interpolate", *GREY[:2], "other.npy", *GREY[2:], "--output", "out.npy")
    assert "frames 10 to 11 of grey.npy and frames 0 to 1 of other.npy are given, 2 between them" in out
    last = grey_clip()[-2:]
    expected = called(GREY[0], past_frames=last, future_frames=last.flip(0), num_frames=2)
    assert np.array_equal(np.load("out.npy"), expected.numpy())


def test_a_clip_becomes_every_second_frame(capsys, place):
    out = make(capsys, "interpolate", "runs/fdm", *GREY[1:], "--every", 2, "--output", "out.npy")
    assert "frames 0 to 11 of grey.npy are given, 2 frames apart, 11 between them are made" in out
    made = np.load("out.npy")
    expected = called("runs/fdm", observed_frames=grey_clip()[None], observed_positions=range(0, 24, 2), num_frames=11)
    assert made.shape[1] == 23 and np.array_equal(made, expected.numpy())
    assert np.array_equal(made[0, ::2], grey_clip().numpy())


def test_a_network_with_a_memory_is_given_more(capsys, place):
    (row,) = [row for row in PIPELINES if row.name == "lgcvd-prediction"]
    row.make().save_pretrained("remembers")
    np.save("long.npy", np.random.default_rng(0).random((30, 8, 8), np.float32))
    clip = ("remembers", "long.npy", "--axes", "THW", "--num_inference_steps", 2, "--output")
    out = make(capsys, "predict", *clip, "after.npy", "--num_frames", 3)
    assert "frames 14 to 29 of long.npy are given, 3 after them" in out
    config = MCVDPipeline.from_pretrained("remembers").unet.config
    out = make(capsys, "interpolate", *clip, "between.npy")
    shown = 1  # on each side of a window
    assert f" are given, {config.max_frames - config.num_context_frames - shown} between them is made" in out


def test_videos_are_generated_and_each_has_its_own_seed(capsys, place):
    out = make(capsys, "generate", GREY[0], "--num_frames", 5, "--size", 16, 24, "--output", "out.npy")
    assert "nothing is given, 5 frames are made, 4 times, in 3 blocks of 2 steps" in out
    assert "note: frames of 16 x 24; the model was trained for 16 x 16" in out
    expected = called(GREY[0], batch_size=4, num_frames=5, height=16, width=24)
    assert np.array_equal(np.load("out.npy"), expected.numpy())
    make(capsys, "generate", GREY[0], "--num_frames", 5, "--size", 16, 24, "--num_videos", 1, "--output", "one.npy")
    assert np.allclose(np.load("one.npy")[0], expected[0].numpy(), atol=1e-5)


def test_the_same_seed_makes_the_same_file_and_another_another(capsys, place):
    for name, seed in (("a.mp4", 3), ("b.mp4", 3), ("c.mp4", 4)):
        make(capsys, "generate", GREY[0], "--num_frames", 4, "--seed", seed, "--output", name)
    first, same, other = (Path(name).read_bytes() for name in ("a.mp4", "b.mp4", "c.mp4"))
    assert first == same != other


def test_units_come_back(capsys, place):
    out = make(
        capsys, "predict", "runs/rain", "radar.npy", "--axes", "THW", "--num_frames", 2, "--output", "forecast.npy"
    )
    made, radar = np.load("forecast.npy"), np.load("radar.npy")
    assert np.array_equal(made[0, :2, 0], radar[-2:])  # mm/h, to the last bit
    assert 0 <= made.min() and 1 < made.max() <= 80 and "in the model's units (range, 0 to 80)" in out
    out = make(
        capsys, "predict", "runs/rain", "radar.npy", "--axes", "THW", "--num_frames", 2, "--output", "forecast.png"
    )
    assert "black and white are the ends of the model's range (range, 0 to 80)" in out
    assert np.array_equal(
        read_back("forecast.png")[:2, 0], (radar[-2:] / np.float32(80) * 255).round().astype(np.uint8)
    )


@pytest.mark.parametrize("resize, note", [
    ("stretch", "note: frames of 24 x 32 become 16 x 16 (--resize stretch; else cover or crop or none)"),
    ("crop", "note: frames of 24 x 32 become 16 x 16 (--resize crop"),
    ("none", "note: frames of 24 x 32; the model was trained for 16 x 16"),
])  # fmt: skip
def test_frames_of_another_size_are_brought_to_that_of_the_model(capsys, place, resize, note):
    out = make(capsys, "predict", GREY[0], "clip.mp4", "--num_frames", 2, "--resize", resize, "--output", "out.npy")
    assert note in out and "note: 3 channels become 1" in out
    made = np.load("out.npy")
    assert made.shape[2:] == ((1, 24, 32) if resize == "none" else (1, 16, 16))
    if resize == "crop":  # nothing is scaled
        whole = read_back("clip.mp4")[-2:, :, 4:20, 8:24].astype(np.float32) / 255
        luma = np.tensordot(whole, np.array([0.299, 0.587, 0.114], np.float32), axes=([1], [0]))
        assert np.allclose(made[0, :2, 0], luma, atol=1e-6)


def test_averaged_weights_are_taken_where_there_are_any(capsys, place, models, tmp_path):
    MCVDPipeline.from_pretrained(GREY[0]).save_pretrained("averaged")
    network = blocks()
    with torch.no_grad():
        network.conv_out.bias.add_(5)
    network.save_pretrained("averaged/unet", variant="ema")
    common = ("generate", "averaged", "--num_frames", 2, "--output")
    assert "averaged weights are used; --variant raw" in make(capsys, *common, "default.npy")
    assert "averaged weights" not in make(capsys, *common, "ema.npy", "--variant", "ema")
    assert "averaged weights" not in make(capsys, *common, "raw.npy", "--variant", "raw")
    default, ema, raw = (np.load(f"{name}.npy") for name in ("default", "ema", "raw"))
    assert np.array_equal(default, ema) and not np.array_equal(default, raw)


def test_a_colour_model_takes_a_folder_of_frames(capsys, place):
    out = make(capsys, "predict", "runs/mine", "frames/", "--num_frames", 2, "--output", "out/")
    assert "frames 4 to 5 of frames are given" in out and "loss        none beyond the 8 bits" in out
    names = sorted(path.name for path in Path("out").iterdir())
    assert names == ["000.png", "001.png", "002.png", "003.png"]
    made = read_back("out")
    assert np.array_equal(np.moveaxis(made[:2], 1, -1), moving_squares(6, (16, 16))[-2:])


# --------------------------------------------------------------------------------------------------------------------
# What is written


def as_bytes(video: torch.Tensor) -> np.ndarray:
    """Videos (N, T, C, H, W) in [0, 1] as 8 bits."""
    return video.mul(255).round().byte().numpy()


def test_missing_values_are_said_to_be_black(capsys, place, models):
    normalizer = FrameNormalizer.from_range(0, 80, nan_fill=0, has_mask_channel=True)
    saved(place / "gaps", blocks(in_channels=2), normalization=normalizer.to_config())
    out = make(capsys, "generate", "gaps", "--num_frames", 2, "--output", "x.npy")
    assert np.isnan(np.load("x.npy")).any() and "missing" not in out.split("missing ones")[0]
    assert "missing values (NaN) are black" in make(capsys, "generate", "gaps", "--num_frames", 2, "--output", "x.png")


def test_given_values_beyond_the_range_are_told_of(capsys, place, caplog):
    rain = np.linspace(0, 90, 8 * 256, dtype=np.float32).reshape(8, 16, 16)
    np.save("heavy.npy", rain)
    arguments = ("runs/rain", "heavy.npy", "--axes", "THW", "--num_frames", 2, "--output")
    make(capsys, "predict", *arguments, "x.npy", "--start", 0)
    assert caplog.text == ""
    make(capsys, "predict", *arguments, "y.npy", "--start", 6)
    assert caplog.text.count("44.5% of the values of `past_frames` lie outside of the range") == 1


@pytest.mark.parametrize("model, num_channels", [("checkpoints/moving-digits", 1), ("runs/mine", 3)])
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.mp4", "x.gif", "x/"])
def test_what_is_lossless_is_what_was_made_bit_for_bit(capsys, place, model, num_channels, name):
    more = ["--lossless"] if name == "x.mp4" else []
    out = make(capsys, "generate", model, "--num_frames", 3, "--num_videos", 1, *more, "--output", name)
    assert "loss        none beyond the 8 bits of a picture" in out  # a gif of 16 x 16 pixels has at most 256 colours
    assert np.array_equal(
        read_back(name, frames_per_second=10)[:, :num_channels], as_bytes(called(model, num_frames=3))[0]
    )


@pytest.mark.parametrize("name", ["x.mp4", "x.gif"])
def test_the_loss_that_is_stated_is_that_of_the_file(capsys, place, name):
    out = make(
        capsys, "generate", "runs/mine", "--num_frames", 3, "--num_videos", 2, "--size", 32, 31, "--output", name
    )
    stated = float(re.search(r"PSNR ([\d.]+) dB", out)[1])
    made = as_bytes(called("runs/mine", num_frames=3, batch_size=2, height=32, width=31)).astype(float)
    found = read_back(name).astype(float)
    assert found.shape == (3, 3, 32, 64)
    errors = [np.square(found[..., x : x + 31] - made[number]) for number, x in enumerate((0, 33))]
    psnr = 10 * math.log10(255**2 / np.mean(errors))
    assert abs(psnr - stated) < 0.006 and 10 < psnr < 60
    if name == "x.mp4":
        assert "--lossless keeps all" in out


def test_several_videos_stand_beside_each_other_and_are_enlarged(capsys, place):
    make(capsys, "generate", GREY[0], "--num_frames", 2, "--num_videos", 10, "--scale", 2, "--output", "x.png")
    made, expected = read_back("x.png")[:, 0], as_bytes(called(GREY[0], num_frames=2, batch_size=10))[:, :, 0]
    assert made.shape == (2, 3 * 32 + 2 * 2, 4 * 32 + 3 * 2)  # 10 in rows of 4, lines of 2 pixels
    for number, video in enumerate(expected):
        top, left = (34 * x for x in divmod(number, 4))
        assert np.array_equal(made[:, top : top + 32 : 2, left + 1 : left + 33 : 2], video)
    assert (made[:, :32, 32:34] == 255).all()


def test_several_videos_have_a_folder_each(capsys, place):
    out = make(capsys, "generate", GREY[0], "--num_frames", 2, "--num_videos", 3, "--output", "many/")
    assert "folders 0000 to 0002" in out
    for number, video in enumerate(as_bytes(called(GREY[0], num_frames=2, batch_size=3))):
        assert np.array_equal(read_back(f"many/{number:04}"), video)
    out = make(capsys, "predict", GREY[0], "many", "--video", "0001", "--num_frames", 2, "--output", "further.gif")
    assert "frames 0 to 1 of 0001 in many are given" in out


def test_pictures_of_other_channels_show_the_first(capsys, place):
    out = make(capsys, "generate", "runs/eight", "--num_frames", 2, "--num_videos", 1, "--output", "x.png")
    assert "channel 0 of 8: an array (.npy) holds all" in out
    expected = as_bytes(called("runs/eight", num_frames=2))[0, :, :1]
    assert np.array_equal(read_back("x.png")[:, :1], expected)


def test_the_rate_is_that_of_the_clip(capsys, place):
    out = make(capsys, "predict", GREY[0], "clip.mp4", "--num_frames", 2, "--output", "a.gif")
    assert "10 frames per second" in out
    out = make(
        capsys, "predict", GREY[0], "clip.mp4", "--num_frames", 2, "--frames_per_second", 25, "--output", "b.gif"
    )
    assert "25 frames per second" in out
    with Image.open("b.gif") as animation:
        assert animation.info["duration"] == 40
    out = make(capsys, "generate", GREY[0], "--num_frames", 2, "--frames_per_second", 60, "--output", "c.gif")
    assert "50 frames per second" in out  # a gif knows hundredths of a second, and players no less than two of them


@pytest.mark.parametrize("num_channels", [1, 3])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".mp4"])
def test_frames_that_stand_still_are_not_lost(tmp_path, suffix, num_channels):
    moving = np.random.default_rng(0).integers(0, 256, (2, num_channels, 9, 15), dtype=np.uint8)
    for name, frames in {"still": moving[[0] * 5], "halting": moving[[0, 0, 1, 1, 1, 0]]}.items():
        write_any(tmp_path / f"{name}{suffix}", frames, frames_per_second=12, is_lossless=True)
        assert find_loss(tmp_path / f"{name}{suffix}", frames, frames_per_second=12) == math.inf


@pytest.mark.parametrize("rate", [12, 29.97, 30, 60, 400])
@pytest.mark.parametrize("suffix", [".png", ".webp", ".gif", ".mp4"])
def test_long_stills_are_counted_right_at_any_rate(tmp_path, suffix, rate):
    frames = np.zeros((70, 1, 4, 4), np.uint8)
    frames[65:] = 255
    write_any(tmp_path / f"x{suffix}", frames, frames_per_second=rate, is_lossless=True)
    assert find_loss(tmp_path / f"x{suffix}", frames, frames_per_second=rate) == math.inf
    stated = written_rate(tmp_path / f"x{suffix}", rate)
    if suffix == ".mp4":
        assert VideoFile(tmp_path / "x.mp4", "x.mp4").info().frames_per_second == pytest.approx(stated)
    else:
        with Image.open(tmp_path / f"x{suffix}") as animation:  # a webp shows equal frames as one, which stays longer
            total = sum(picture.load() and picture.info["duration"] for picture in ImageSequence.Iterator(animation))
        assert total / 1000 == pytest.approx(70 / stated)


def test_a_file_with_fewer_frames_has_no_loss_to_state(tmp_path):
    frames = np.zeros((3, 1, 8, 8), np.uint8)
    write_any(tmp_path / "x.gif", frames)
    with pytest.raises(OSError, match="written with 4 frames, and 3 can be read back"):
        find_loss(tmp_path / "x.gif", np.zeros((4, 1, 8, 8), np.uint8))


@pytest.mark.parametrize(
    "frames", [np.zeros((2, 1, 8, 8)), np.zeros((2, 2, 8, 8), np.uint8), np.zeros((0, 1, 8, 8), np.uint8), [1]]
)
def test_only_frames_are_written(tmp_path, frames):
    with pytest.raises(ValueError, match="`frames` must"):
        write_any(tmp_path / "x.gif", frames)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_of_odd_size_is_an_mp4_of_even_size(tmp_path):
    save_comparison_mp4(tmp_path / "x.mp4", {"a": torch.rand(1, 3, 1, 7, 7)}, [True, False, False], frame_height=7)
    found = read_back(tmp_path / "x.mp4")
    assert len(found) == 3 and found.shape[2] % 2 == found.shape[3] % 2 == 0


def test_one_video_stands_alone():
    frames, is_video = side_by_side(torch.rand(1, 2, 3, 5, 4))
    assert frames.shape == (2, 3, 5, 4) and is_video.all()


# --------------------------------------------------------------------------------------------------------------------
# What is refused, before the model is called


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["predict", *GREY, "--output", "out.avi"], "--output must end in one of .mp4, .gif, .png, .webp, .npy, .npz, or in /"),
        (["predict", *GREY, "--output", "grey.npy"], "grey.npy exists, and nothing is overwritten"),
        (["predict", *GREY, "--output", "frames"], "frames exists and is not empty. Nothing is overwritten"),
        (["predict", *GREY, "--output", "nowhere/x.gif"], "lies in a folder that does not exist"),
        (["predict", *GREY, "--output", "x.gif", "--lossless"], "--lossless is for mp4"),
        (["predict", *GREY, "--output", "x.npy", "--scale", "2"], "--scale means nothing for it"),
        (["predict", *GREY, "--output", "x/", "--frames_per_second", "5"], "--frames_per_second means nothing"),
        (["predict", GREY[0], "lost.mp4", "--output", "x.gif"], "CLIP lost.mp4: CLIP must exist but"),
        (["predict", GREY[0], "grey.npy", "--output", "x.gif"], "CLIP grey.npy: --axes must"),
        (["predict", GREY[0], "clip.mp4", "--axes", "THW", "--output", "x.gif"], "--axes means nothing for video files"),
        (["predict", GREY[0], "broken.mp4", "--output", "x.gif"], "CLIP broken.mp4: "),
        (["predict", GREY[0], "mixed", "--output", "x.gif"], "must hold one kind of data"),
        (["predict", GREY[0], "frames", "--output", "frames/new/"], "frames/new/ lies in frames, which is read"),
        (["predict", *GREY, "--output", "/proc/x.gif"], "--output /proc/x.gif: Nothing can be written in /proc"),
        (["predict", *GREY, "--output", "/proc/x/"], "--output /proc/x/: Nothing can be written in /proc"),
        (["predict", *GREY, "--output", f"{'x' * 253}.gif"], "File name too long"),
        (["predict", *GREY, "--output", ".gif"], "--output must have a name before the suffix, got .gif"),
        (["generate", GREY[0], "--output", "x.webp", "--num_frames", "1", "--scale", "1024"], "x.webp: Frames of 16,384 x 65,542 pixels do not fit"),
        (["generate", GREY[0], "--output", "x.mp4", "--num_frames", "1", "--scale", "1024"], "Choose a smaller --scale, fewer videos or frames, or an array"),
        (["generate", GREY[0], "--output", "x/", "--scale", "100000"], "are more than is put together in memory"),
        (["predict", *GREY, "--video", "other", "--output", "x.gif"], "CLIP grey.npy: --video names videos that are not there"),
        (["predict", *GREY, "--output", "x.gif", "--scheduler", "VQDiffusionScheduler"], "--scheduler VQDiffusionScheduler does not fit"),
        (["predict", *GREY, "--output", "x.gif", "--device", "abacus"], "--device abacus is not there"),
        (["predict", "nothing/here", *GREY[1:], "--output", "x.gif"], "There is no folder nothing/here here"),
        (["predict", *GREY, "--output", "x.gif", "--scheduler", "Best"], "--scheduler must be one of Diffusers'"),
        (["predict", GREY[0], "radar.npy", "--axes", "THW", "--output", "x.gif"], "images must be uint8 or in [0, 1]"),
        (["predict", "runs/rain", "grey255.npy", "--axes", "THW", "--output", "x.gif"], "outside of [0, 80]"),
        (["predict", *GREY, "--start", "11", "--output", "x.gif"], "has 12 frames, 0 to 11, and 11 to 12 would be given"),
        (["predict", *GREY, "--num_given", "3", "--output", "x.gif"], "reads at most 2"),
        (["predict", GREY[0], "one.npy", "--axes", "THW", "--output", "x.gif"], "has 1 frame, and 2 are needed"),
        (["predict", GREY[0], "clip.mp4", "--frame_stride", "20", "--output", "x.gif"], "has 1 frame at --frame_stride 20"),
        (["predict", "runs/eight", "clip.mp4", "--output", "x.gif"], "3 channels where 8 are asked for"),
        (["predict", "runs/predicts", *GREY[1:], "--backwards", "--output", "x.gif"], "MODEL reads no future frames"),
        (["interpolate", "runs/predicts", *GREY[1:], "--output", "x.gif"], "MODEL reads no future frames"),
        (["predict", "runs/needs_both", *GREY[1:], "--output", "x.gif"], "MODEL runs/needs_both cannot do this: This network"),
        (["generate", "runs/needs_both", "--output", "x.gif"], "cannot do this: This network always had its 2 past frames"),
        (["interpolate", *GREY, "--num_frames", "1", "--output", "x.gif"], "`num_frames` must be at least 2"),
        (["interpolate", *GREY, "--num_frames", "9", "--output", "x.gif"], "has 12 frames, and 13 are needed: 2 before"),
        (["interpolate", *GREY, "--gap", "1", "--output", "x.gif"], "--gap must be from 2 to 8"),
        (["interpolate", *GREY, "--gap", "9", "--output", "x.gif"], "--gap must be from 2 to 8"),
        (["interpolate", *GREY[:2], "grey.npy", *GREY[2:], "--gap", "4", "--output", "x.gif"], "CLIP2 is another clip"),
        (["interpolate", *GREY, "--every", "2", "--output", "x.gif"], "--every is for networks of windows"),
        (["interpolate", "runs/fdm", *GREY[1:], "--every", "2", "--gap", "3", "--output", "x.gif"], "--gap means nothing"),
        (["generate", GREY[0], "--size", "1", "2", "3", "--output", "x.gif"], "--size takes a height and a width"),
        (["generate", GREY[0], "--num_inference_steps", "2000", "--output", "x.gif"], "`num_inference_steps` must be at"),
        (["generate", GREY[0], "--frame_schedule", "hierarchy-9", "--output", "x.gif"], "cannot do this"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_refused(capsys, place, monkeypatch, arguments, message):
    if "/proc" in arguments[-1] and not Path("/proc").is_dir():
        pytest.skip("no folder here that refuses even an administrator")
    np.save("one.npy", np.zeros((1, 16, 16), np.float32))
    np.save("grey255.npy", np.full((3, 16, 16), 255.0, np.float32))
    Path("broken.mp4").write_bytes(b"not a video at all")
    write_frames(place / "mixed", moving_squares(6, (16, 16)))
    np.save("mixed/array.npy", np.zeros((3, 16, 16), np.float32))
    monkeypatch.setattr(MCVDPipeline, "denoise", None)  # whoever called it would fail in another way
    before = {path: path.read_bytes() for path in place.iterdir() if path.is_file()}
    status, _, err = run(capsys, *arguments)
    assert status == 1 and err.startswith(f"mcvd-diffusers {arguments[0]}: ") and err.count("\n") == 1
    assert message in err
    assert {path: path.read_bytes() for path in place.iterdir() if path.is_file()} == before


def test_several_videos_need_a_name(capsys, place):
    np.save("two.npy", np.random.default_rng(0).random((2, 4, 16, 16), np.float32))
    two = ("predict", GREY[0], "two.npy", "--axes", "NTHW", "--num_frames", "2")
    status, _, err = run(capsys, *two, "--output", "x.npy")
    assert status == 1 and "--video must say which of the 2 videos in" in err and "two/0" in err
    make(capsys, *two, "--video", "two/1", "--output", "x.npy")
    assert np.array_equal(np.load("x.npy")[0, :2, 0], np.load("two.npy")[1, -2:])


def test_an_output_is_refused_before_the_model_is_looked_at(capsys, place):
    status, _, err = run(capsys, "predict", "no/model", "no_clip.mp4", "--output", "clip.mp4")
    assert status == 1 and "clip.mp4 exists" in err


def test_an_output_that_comes_meanwhile_is_kept(capsys, place, monkeypatch):
    make_video = MCVDPipeline.__call__

    def make_and_lose_the_race(self, *args, **kwargs):
        Path("x.gif").write_text("of somebody else")
        return make_video(self, *args, **kwargs)

    monkeypatch.setattr(MCVDPipeline, "__call__", make_and_lose_the_race)
    status, _, err = run(capsys, "generate", GREY[0], "--num_frames", 2, "--output", "x.gif")
    assert status == 1 and "x.gif exists, and nothing is overwritten" in err
    assert Path("x.gif").read_text() == "of somebody else"
    assert not [path.name for path in place.iterdir() if "partial" in path.name]


@pytest.mark.parametrize("has_links", [True, False])
def test_of_two_who_write_one_file_one_makes_it(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError("no hard links here")))
    path = tmp_path / ("x" * 200 + ".gif")
    with new_file(path) as first:
        with pytest.raises(FileExistsError, match="exists, and nothing is overwritten"), new_file(path) as second:
            assert first != second and {first.suffix, second.suffix} == {".gif"}
            first.write_text("first")
            second.write_text("second")
            path.write_text("third")
        assert path.read_text() == "third"
        path.unlink()
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o044 == 0o044  # as other files are


def test_mp4_without_pyav_names_the_extra(capsys, place, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    status, _, err = run(capsys, "generate", GREY[0], "--output", "x.mp4")
    assert status == 1 and 'pip install "mcvd-diffusers[video]"' in err
    make(capsys, "generate", GREY[0], "--num_frames", 2, "--output", "x.gif")


# --------------------------------------------------------------------------------------------------------------------
# What is told


def subcommands() -> dict:
    actions = make_parser()._subparsers._group_actions[0]
    return {name: actions.choices[name] for name in ("predict", "interpolate", "generate")}


@pytest.mark.parametrize("name", ["predict", "interpolate", "generate"])
def test_the_examples_of_help_run(capsys, place, name):
    examples = re.findall(r"^  mcvd-diffusers (.*)$", subcommands()[name].epilog, re.M)
    assert 3 <= len(examples) <= 5
    for example in examples:
        arguments = shlex.split(example)
        assert arguments[0] == name
        make(capsys, *arguments)
        assert Path(arguments[arguments.index("--output") + 1]).exists()


def test_help_says_what_output_may_be(capsys):
    for name in subcommands():
        with pytest.raises(SystemExit) as stopped:
            main([name, "--help"])
        text = capsys.readouterr().out
        assert stopped.value.code == 0
        for word in ("x.mp4", "--lossless", "x.gif", "folder/", "x.npy", "--only_new", "never overwritten"):
            assert word in text


def test_a_terminal_sees_a_bar_over_all_blocks(capsys, place, monkeypatch):
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")  # a terminal of Unix
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert main(["generate", GREY[0], "--num_frames", "6", "--output", "x.gif"]) == 0
        terminal.flush()
        monkeypatch.undo()
        shown = b""
        while select.select([master], [], [], 0.2)[0]:
            shown += os.read(master, 100_000)
        shown = shown.decode()
    os.close(master)
    assert "block 1/3" in shown and "0/6" in shown  # three blocks of two steps


@pytest.mark.parametrize("is_shipped", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_of_the_page_run(capsys, models, tmp_path, monkeypatch, is_shipped):
    if is_shipped and not SHIPPED.exists():
        pytest.skip("the checkpoint is not here")
    (tmp_path / "checkpoints").symlink_to(SHIPPED.parent if is_shipped else models / "checkpoints")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "command_line.md").read_text("utf-8")
    blocks_of_commands = re.findall(r"```bash\n(.*?)```", page, re.S)
    commands = re.findall(r"^mcvd-diffusers (.*)$", "\n".join(blocks_of_commands), re.M)
    assert {command.split()[0] for command in commands} == {"data", *subcommands()}
    said = {}
    for command in commands:
        arguments = shlex.split(command)
        status, said[command], err = run(capsys, *arguments)
        assert status == 0 and err == "", command
        if "--output" in arguments:
            assert Path(arguments[arguments.index("--output") + 1]).exists()
    if is_shipped:  # the page shows what the first one says, but for what was measured
        shown, first = (re.sub(r"[\d.]+ (dB|s\b)", "#", text) for text in (page, said[commands[1]]))
        assert first in shown
