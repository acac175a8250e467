"""Protocols: the published ones say what their sources say; a wrong one is refused by the name of its field."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from mcvd_diffusers.protocols import Protocol, ProtocolError, list_protocols, load_protocol, protocol_fields
from mcvd_diffusers.protocols.protocol import FOLDER


EXAMPLES = Path(__file__).parents[2] / "examples" / "protocols"

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


def test_notes_say_what_differs_from_the_sources():
    for name in list_protocols():
        protocol, notes = load_protocol(name), " ".join(load_protocol(name).notes)
        assert ("the sampler is part of each result here" in notes) == name.startswith("mcvd")
        assert ("and here, too" in notes) == ("psnr_of_video_mse" in protocol.metrics)
        assert ("split 3 (9624 training and 3696 test videos)" in notes) == ("ucf101" in name)
        assert "split 1" not in notes
        if "smmnist" in name:
            assert protocol.moving_digits["source"] == "mnist"


DIGITS = [path for path in sorted(EXAMPLES.glob("*.yaml")) if path.stem != "my-videos"]


def test_the_example_for_stored_videos_draws_no_digits_and_names_what_one_would_change():
    path = EXAMPLES / "my-videos.yaml"
    protocol = load_protocol(path)
    assert protocol.name == "my-videos" and protocol.moving_digits is None
    assert (protocol.num_past_frames, protocol.num_frames) == (5, 10) and not protocol.feature_networks
    text = path.read_text()
    for name in ("num_past_frames", "num_frames", "frame_size", "num_clips", "samples_per_clip"):
        assert re.search(rf"^{name}: .*# change: ", text, re.M), name
    assert re.search(r"^missing_values: refuse  # .*`fill`", text, re.M)


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_examples_load(path):
    protocol = load_protocol(path)
    is_shipped = path.stem.startswith(
        "moving-digits"
    )  # of the checkpoint that comes with the repository; others of the demo's
    assert protocol.name == path.stem and protocol.moving_digits["source"] == (
        "mnist-10k" if is_shipped else "sklearn"
    )
    # The same digits.
    first = load_protocol(EXAMPLES / ("moving-digits-5-20.yaml" if is_shipped else "digits-4-8.yaml"))
    for name in ("num_clips", "clip_seed", "moving_digits", "frame_size", "num_channels"):
        assert getattr(protocol, name) == getattr(first, name)


def test_there_is_an_example_of_each_kind():
    tasks = {path.stem: load_protocol(path).task for path in EXAMPLES.glob("*.yaml")}
    assert {"prediction", "interpolation", "generation"} <= set(tasks.values())
    assert tasks["digits-interpolation"] == "interpolation" and tasks["digits-generation"] == "generation"


def without(names, *left_out):
    return tuple(x for x in names if x not in left_out)


def test_a_changed_protocol_says_so():
    protocol = load_protocol("mcvd-kth-10-30")
    changed = protocol.changed(num_clips=8).changed(metrics=without(protocol.metrics, "lpips"), feature_networks=[])
    assert changed.label == "mcvd-kth-10-30 v1 (num_clips=8, without lpips, i3d)"
    assert changed.digest != protocol.digest and changed.changed(num_clips=4).label.count("num_clips") == 1
    assert protocol.changed(num_clips=256) is protocol
    assert protocol.changed(metrics=["mse", "ssim"]).label.endswith("(metrics=mse+ssim)")  # in another order
    assert protocol.changed(feature_networks=["transnetv2"]).label.endswith("(feature_networks=transnetv2)")


def test_labels_do_not_depend_on_the_order_of_the_fields():
    protocol = load_protocol("mcvd-kth-10-30")
    fields = {"feature_networks": (), "samples_per_clip": 5, "num_clips": 8}
    fields["metrics"] = without(protocol.metrics, "mse", "lpips")
    once = protocol.changed(**fields)
    assert once.label == "mcvd-kth-10-30 v1 (num_clips=8, samples_per_clip=5, without lpips, mse, i3d)"
    assert protocol.changed(**dict(reversed(fields.items()))) == once


def test_digits_that_are_changed_say_which_number():
    protocol = load_protocol("mcvd-smmnist-5-10")
    changed = protocol.changed(moving_digits=protocol.moving_digits | {"source": "sklearn"})
    assert changed.label == "mcvd-smmnist-5-10 v1 (moving_digits.source=sklearn)"
    assert protocol.moving_digits["source"] == "mnist"


def test_distances_per_trajectory_go_with_what_they_are_of():
    protocol = load_protocol("mcvd-kth-10-30")
    one = protocol.changed(samples_per_clip=1)
    assert one.label.endswith("(samples_per_clip=1)") and not one.distance_per_trajectory
    none = protocol.changed(feature_networks=())
    assert none.label.endswith("(without i3d)") and not none.distance_per_trajectory
    assert protocol.changed(samples_per_clip=5).distance_per_trajectory
    with pytest.raises(ProtocolError, match="at least 2 for `ensemble_metrics`"):
        protocol.changed(ensemble_metrics=("crps",)).changed(samples_per_clip=1)


def test_what_the_fields_mean_can_be_printed():
    text = protocol_fields()
    for entry in dataclasses.fields(Protocol):
        assert entry.name in text
    assert text.startswith("name (str): Letters") and "Raises" not in text and "*optional*" not in text
    assert "[`" not in text and "psnr_of_mean_mse" in text


def test_prose_does_not_make_another_protocol():
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
    text = (FOLDER / "mcvd-kth-10-30.yaml").read_text()
    for name in ("mcvd-kth-10-30", "MCVD-KTH-10-30"):
        copy.write_text(text.replace("name: mcvd-kth-10-30", f"name: {name}"))
        with pytest.raises(ProtocolError, match=f"named {name}, as a published one"):
            load_protocol(copy)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "`num_frames` must be an integer from 1 to 100,000, got 0"),
        ({"num_frames": "4"}, "`num_frames` must be an integer from 1 to 100,000, got '4'"),
        ({"num_frames": True}, "`num_frames` must be an integer"),
        ({"num_clips": 1}, "`num_clips` must be an integer from 2 to 10,000,000, got 1"),
        ({"version": 10**6 + 1}, "`version` must be an integer from 1 to 1,000,000"),
        ({"num_frames": 100_001}, "`num_frames` must be an integer from 1 to 100,000"),
        ({"num_past_frames": 100_001}, "`num_past_frames` must be an integer from 0 to 100,000"),
        ({"num_future_frames": 100_001}, "`num_future_frames` must be an integer from 0 to 100,000"),
        ({"frame_stride": 10**6 + 1}, "`frame_stride` must be an integer from 1 to 1,000,000"),
        ({"samples_per_clip": 10_001}, "`samples_per_clip` must be an integer from 1 to 10,000"),
        ({"num_clips": 10**7 + 1}, "`num_clips` must be an integer from 2 to 10,000,000"),
        ({"num_channels": 10_001}, "`num_channels` must be an integer from 1 to 10,000"),
        ({"clip_seed": 2**32}, "`clip_seed` must be an integer from 0 to 4,294,967,295"),
        (
            {"frame_size": [64, 16_385]},
            "`frame_size` must be height and width in pixels, each an integer from 1 to 16,384",
        ),
        ({"num_frames": ...}, "must have `num_frames`"),
        ({"num_frame": 4}, "`num_frame`, which is not known. Did you mean `num_frames`"),
        ({"task": "forecast"}, "`task` must be one of prediction"),
        ({"num_past_frames": 0}, "`num_past_frames` must be at least 1 for prediction"),
        ({"num_future_frames": 2}, "`num_future_frames` must be 0 for prediction"),
        ({"task": "generation", "num_past_frames": 0}, "no true video to be compared with"),
        ({"metrics": ["psnr"]}, "`metrics` must be different ones of mse, psnr_of_mean_mse, psnr_of_video_mse"),
        ({"metrics": ["psnr"]}, "Did you mean psnr_of_mean_mse, psnr_of_video_mse, psnr_frame_mean?"),
        ({"metrics": ["lpipps"]}, "Did you mean lpips?"),
        ({"metrics": "mse"}, "`metrics` must be a list of texts"),
        ({"metrics": []}, "measures nothing"),
        ({"ensemble_metrics": ["crps"]}, "`samples_per_clip` must be at least 2 for `ensemble_metrics`"),
        ({"best_of": "all"}, "`best_of` must be one of each_metric, mean"),
        ({"frame_size": [64]}, "`frame_size` must be height and width"),
        ({"distance_per_trajectory": True}, "`distance_per_trajectory` must be false if there is 1 sample"),
        ({"moving_digits": {"num_digits": 2}}, "`moving_digits` must be a mapping of num_digits, digit_size"),
        ({"name": "my protocol"}, "`name` must be letters"),
        ({"title": ""}, "`title` must be a line of text"),
        ({"title": "a\nb"}, "`title` must be a line of text: printable, at most 1000 characters"),
        ({"source": "\x1b[31mred"}, "`source` must be a line of text"),
        ({"source": "x" * 1001}, "`source` must be a line of text"),
        ({"notes": ["fine", "two\nlines"]}, "each of `notes` must be a line of text"),
        ({"feature_networks": ["i3d\t"]}, "each of `feature_networks` must be a line of text"),
        ({"changes": ["num_clips=2"]}, "a field `changes`, which is not known"),
    ],
)
def test_a_wrong_field_is_named(tmp_path, fields, message):
    with pytest.raises(ProtocolError, match=re.escape(message)):
        load_protocol(write(tmp_path / "mine.yaml", **fields))


DIGITS = {"source": "mnist", "num_digits": 2, "digit_size": 32, "max_speed": 4, "num_images": 256}


@pytest.mark.parametrize(
    ("digits", "fields", "message"),
    [
        ({"source": "emnist"}, {}, "`moving_digits.source` must be one of mnist, mnist-10k, sklearn, got 'emnist'"),
        ({"source": 1}, {}, "`moving_digits.source` must be one of mnist, mnist-10k, sklearn, got 1"),
        ({"num_digits": 101}, {}, "`moving_digits.num_digits` must be an integer from 1 to 100, got 101"),
        ({"digit_size": 10**6 + 1}, {}, "`moving_digits.digit_size` must be an integer from 1 to 1,000,000"),
        ({"max_speed": -1}, {}, "`moving_digits.max_speed` must be an integer from 0 to 1,000,000"),
        ({"num_images": True}, {}, "`moving_digits.num_images` must be an integer from 0 to 1,000,000"),
        ({"more": 1}, {}, "`moving_digits` must be a mapping of"),
        ({}, {"num_clips": 10**6 + 1}, "`num_clips` must be an integer from 2 to 1,000,000 for `moving_digits`"),
        ({}, {"num_frames": 9_999}, "must be at most 10,000 together for `moving_digits`, got 10,001"),
        ({}, {"frame_size": [64, 4097]}, "`frame_size` must be at most 4096 on each side for `moving_digits`"),
        ({}, {"frame_size": None}, "together with a `frame_size` and `num_clips`"),
    ],
)
def test_wrong_digits_are_named(tmp_path, digits, fields, message):
    fields = {"num_clips": 4, "frame_size": [64, 64]} | fields
    with pytest.raises(ProtocolError, match=re.escape(message)):
        load_protocol(write(tmp_path / "mine.yaml", moving_digits=DIGITS | digits, **fields))


def test_changes_are_lines_too():
    with pytest.raises(ProtocolError, match="each of `changes` must be a line of text"):
        dataclasses.replace(load_protocol("mcvd-kth-10-30"), changes=("a\nb",))


OWN = "name: mine\nversion: 1\ntitle: mine\nsource: me\ntask: prediction\nnum_past_frames: 2\nmetrics: [mse]\n"
HEX = "0x" + "f" * 5000
# Nine lines that stand for 10 ** 9 values.
BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}' if n else 'x'] * 10)}]\n" for n in range(9)) + "metrics: *a8\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "must be `field: value` lines"),
        ("a: [", "cannot be read"),
        ("- x", "must be `field: value` lines"),
        ("", "must be `field: value` lines"),
        ("\x00", "cannot be read"),
        ("a: !!python/object/apply:os.getcwd []", "cannot be read"),
        (BOMB, "line 2 has an alias, `*a0`"),
        ("a: &a [*a]", "line 1 has an alias, `*a`"),
        (OWN + "num_frames: 4\nnum_frames: 5\n", "`num_frames` stands twice, again in line 9"),
        (OWN + "num_frames: 4\nmoving_digits: {source: mnist, source: sklearn}\n", "`source` stands twice"),
        (OWN + "num_frames: 4\n<<: {num_clips: 4}\n", "has a merge key"),
        (OWN + f"num_frames: {HEX}\n", "`num_frames` must be an integer from 1 to 100,000, got an int with too many"),
        (OWN + f"num_frames: 4\nframe_size: [64, {HEX}]\n", "`frame_size` must be height and width"),
        (OWN + f"num_frames: {'9' * 5000}\n", "mine.yaml cannot be read: Exceeds the limit"),
        (OWN + f"num_frames: {'1:' * 100_000}1\n", "line 8 has a value of 200001 characters"),
        (OWN + "num_frames: " + "[" * 20_000, "stand too deep in each other"),
        (OWN + "num_frames: !!bool x\n", "cannot be read"),
        (OWN + "num_frames: !!timestamp x\n", "cannot be read"),
        (OWN + f"num_frames: {'1:' * 2000}1.5\n", "cannot be read"),
        (OWN + f"? {HEX}\n: 1\n", "must be `field: value` lines"),
        (OWN + f"num_frames: 4\n{'x' * 120}: 1\n", f"a field `{'x' * 97}...`, which is not known"),
    ],
    ids=lambda text: repr(text[-20:]),
)
def test_what_is_no_protocol_is_refused(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ProtocolError, match=re.escape(message)):
        load_protocol(path)


def test_what_is_no_file_of_text_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "latin.yaml").write_bytes("title: Größe".encode("latin-1"))
    for path in (tmp_path / "folder.yaml", tmp_path / "latin.yaml", "~nosuch/a.yaml", "a\x00b.yaml"):
        with pytest.raises(ProtocolError):
            load_protocol(path)


def test_messages_stay_short(tmp_path):
    for fields in ({"num_clips": ["x" * 5000] * 9}, {"metrics": ["y" * 5000]}, {"task": {"a": ["z" * 500] * 50}}):
        with pytest.raises(ProtocolError) as caught:
            load_protocol(write(tmp_path / "mine.yaml", **fields))
        assert len(str(caught.value)) < 300
    with pytest.raises(ProtocolError) as caught:
        load_protocol("x" * 100_000)
    assert len(str(caught.value)) < 600


def test_an_unknown_name_lists_what_there_is(tmp_path):
    with pytest.raises(ProtocolError, match="Did you mean mcvd-kth-10-30"):
        load_protocol("mcvd-kth-10-3")
    with pytest.raises(ProtocolError, match="Did you mean mcvd-kth-10-30"):
        load_protocol("MCVD-KTH-10-30")
    with pytest.raises(ProtocolError, match="cannot be read"):
        load_protocol(tmp_path / "nothing.yaml")
