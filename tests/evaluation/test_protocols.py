"""Protocols: the published ones say what their sources say; a wrong one is refused by the name of its field."""

from pathlib import Path

import pytest
import yaml

from mcvd_diffusers.protocols import ProtocolError, list_protocols, load_protocol
from mcvd_diffusers.protocols.protocol import FOLDER


# Label -> (given, made, given after, channels, height, samples, clips, SSIM's quantisation): the MCVD code's `video_gen`
# settings, and RaMViD's.
PUBLISHED = {
    "mcvd-smmnist-5-10": (5, 10, 0, 1, 64, 10, 256, "binary"),
    "mcvd-smmnist-interpolation-5-5-5": (5, 5, 5, 1, 64, 10, 256, "binary"),
    "mcvd-smmnist-interpolation-5-10-5": (5, 10, 5, 1, 64, 10, 256, "binary"),
    "mcvd-kth-10-30": (10, 30, 0, 1, 64, 10, 256, "floor_8bit"),
    "mcvd-kth-10-40": (10, 40, 0, 1, 64, 10, 256, "floor_8bit"),
    "mcvd-bair-1-15": (1, 15, 0, 3, 64, 10, 256, "floor_8bit"),
    "mcvd-bair-2-14": (2, 14, 0, 3, 64, 10, 256, "floor_8bit"),
    "mcvd-bair-2-28": (2, 28, 0, 3, 64, 10, 256, "floor_8bit"),
    "mcvd-cityscapes-2-28": (2, 28, 0, 3, 128, 10, 256, "floor_8bit"),
    "mcvd-ucf101-4-16": (4, 16, 0, 3, 64, 10, 256, "floor_8bit"),
    "mcvd-ucf101-generation-20": (0, 20, 0, 3, 64, 10, 256, "none"),
    "ramvid-bair-1-15": (1, 15, 0, 3, 64, 100, 256, "none"),
}


def test_all_published_protocols_are_known_here():
    assert list_protocols() == sorted(PUBLISHED)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_protocols_say_what_their_sources_say(name):
    protocol = load_protocol(name)
    given, made, after, channels, height, samples, clips, quantisation = PUBLISHED[name]
    assert protocol.name == name and protocol.label == f"{name} v1"
    assert (protocol.num_past_frames, protocol.num_frames, protocol.num_future_frames) == (given, made, after)
    assert (protocol.num_channels, protocol.frame_size) == (channels, (height, height))
    assert (protocol.samples_per_clip, protocol.num_clips) == (samples, clips)
    assert protocol.ssim_quantisation == quantisation
    assert protocol.feature_networks == ("i3d",)
    # What is generated is compared as a whole; a prediction together with what was given.
    assert protocol.given_frames_in_distances == (protocol.task != "generation")
    assert protocol.distance_per_trajectory == name.startswith("mcvd")
    if name.startswith("mcvd") and protocol.task != "generation":
        assert protocol.best_of == "each_metric" and protocol.ssim_color == "luma"
        assert set(protocol.metrics) == {"mse", "psnr_of_video_mse", "psnr_frame_mean", "ssim", "lpips"}
    assert "arXiv" in protocol.source and protocol.notes


def test_a_changed_protocol_says_so():
    protocol = load_protocol("mcvd-kth-10-30")
    changed = protocol.changed(num_clips=8).changed(metrics=("ssim",), feature_networks=[])
    assert changed.label == "mcvd-kth-10-30 v1 (num_clips=8, metrics=ssim, feature_networks=none)"
    assert changed.digest != protocol.digest and changed.changed(num_clips=4).label.count("num_clips") == 1
    assert protocol.changed(num_clips=256) is protocol


def test_prose_does_not_make_another_protocol():
    import dataclasses

    protocol = load_protocol("mcvd-kth-10-30")
    assert dataclasses.replace(protocol, title="KTH").digest == protocol.digest
    assert dataclasses.replace(protocol, clip_seed=1).digest != protocol.digest


def write(path: Path, **fields) -> Path:
    own = {"name": "mine", "version": 1, "title": "mine", "source": "me", "task": "prediction"}
    own |= {"num_past_frames": 2, "num_frames": 4, "metrics": ["mse"], **fields}
    path.write_text(yaml.safe_dump({name: value for name, value in own.items() if value is not ...}))
    return path


def test_ones_own_is_one_more_file(tmp_path):
    protocol = load_protocol(write(tmp_path / "mine.yaml", num_clips=3))
    assert protocol.label == "mine v1" and protocol.num_clip_frames == 6
    copy = tmp_path / "copy.yaml"
    copy.write_text((FOLDER / "mcvd-kth-10-30.yaml").read_text())
    with pytest.raises(ProtocolError, match="named mcvd-kth-10-30, as a published one"):
        load_protocol(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be an integer of at least 1, got 0"),
        ({"num_frames": "4"}, "`num_frames` must be an integer of at least 1, got '4'"),
        ({"num_frames": True}, "`num_frames` must be an integer"),
        ({"num_clips": 1}, "`num_clips` must be an integer of at least 2"),
        ({"num_frames": ...}, "must have `num_frames`"),
        ({"num_frame": 4}, "`num_frame`, which is not known. Did you mean `num_frames`"),
        ({"task": "forecast"}, "`task` must be one of prediction"),
        ({"num_past_frames": 0}, "`num_past_frames` must be at least 1 for prediction"),
        ({"num_future_frames": 2}, "`num_future_frames` must be 0 for prediction"),
        ({"task": "generation", "num_past_frames": 0}, "no true video to be compared with"),
        ({"metrics": ["psnr"]}, "`metrics` must be different ones of mse, psnr_of_video_mse"),
        ({"metrics": "mse"}, "`metrics` must be a list of texts"),
        ({"metrics": []}, "measures nothing"),
        ({"ensemble_metrics": ["crps"]}, "`samples_per_clip` must be at least 2 for `ensemble_metrics`"),
        ({"best_of": "all"}, "`best_of` must be one of each_metric, mean"),
        ({"frame_size": [64]}, "`frame_size` must be height and width"),
        ({"distance_per_trajectory": True}, "`distance_per_trajectory` must be false if there is 1 sample"),
        ({"moving_digits": {"num_digits": 2}}, "`moving_digits` must be a mapping of num_digits, digit_size"),
        ({"name": "my protocol"}, "`name` must be letters"),
        ({"title": ""}, "`title` must be a line of text"),
        ({"changes": ["num_clips=2"]}, "a field `changes`, which is not known"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, fields, message):
    with pytest.raises(ProtocolError, match=message.replace("(", r"\(")):
        load_protocol(write(tmp_path / "mine.yaml", **fields))


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "- x", "", "\x00", "a: !!python/object/apply:os.getcwd []"])
def test_what_is_no_protocol_is_refused(tmp_path, text):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProtocolError):
        load_protocol(path)


def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(ProtocolError, match="Did you mean mcvd-kth-10-30"):
        load_protocol("mcvd-kth-10-3")
    with pytest.raises(ProtocolError, match="cannot be read"):
        load_protocol(tmp_path / "nothing.yaml")
