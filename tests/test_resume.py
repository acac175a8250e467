"""A run that was stopped and goes on is the run that was never stopped: to the last bit, wherever it was stopped."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file

import train_mcvd
from mcvd_diffusers.checkpointing import AVERAGED_WEIGHTS, OPTIMIZER, WEIGHTS, list_checkpoints, read_state, update_of
from mcvd_diffusers.folder_lock import LOCK_NAME
from mcvd_diffusers.interruption import StopSignals
from mcvd_diffusers.train_settings import SETTINGS_FILE
from mcvd_diffusers.training_log import Trackers


ROOT = Path(__file__).parents[1]
NETWORK = {
    "resolution": 16,
    "num_past_frames": 2,
    "num_frames": 2,
    "num_future_frames": 1,
    "block_out_channels": [8, 8],
    "report_to": "none",
    "logging_steps": 1,
}
# Six clips an epoch and four an update: epochs end within a batch, and, after update 3, between two. (Update 1 changes no
# weight: its learning rate is 0.)
# Dropout has the only random numbers that depend on how a batch is divided.
BASE = {
    **NETWORK,
    "dropout": 0.1,
    "num_train_clips": 6,
    "train_batch_size": 4,
    "max_train_steps": 4,
    "lr_warmup_steps": 2,
    "checkpointing_steps": 2,
    "validation_steps": 2,
    "num_validation_videos": 1,
    "validation_inference_steps": 2,
}
# Clips divided in another way give gradients that differ by rounding. One near zero then has another sign, and Adam moves
# by the sign, so that weights drift apart; a large epsilon makes its step smooth.
SMOOTH = {
    **NETWORK,
    "num_train_clips": 20,
    "train_batch_size": 8,
    "max_train_steps": 4,
    "lr_warmup_steps": 2,
    "adam_epsilon": 1e-2,
    "learning_rate": 1e-2,
    "num_validation_videos": 0,
}

LOGGED: dict[Path, dict[int, dict[str, float]]] = {}
"""What each run in this process sent to its trackers: folder -> update -> values."""


class RecordingTrackers(Trackers):
    """Remembers the values, of which the log shows four digits."""

    folder: Path

    def log(self, values, step):
        super().log(values, step)
        if "loss" in values:
            assert step not in LOGGED.setdefault(self.folder, {}), "an update was made twice"
            LOGGED[self.folder][step] = values


def as_flags(settings):
    values = {name: x if isinstance(x, list) else [x] for name, x in settings.items()}
    return [str(x) for name, value in values.items() for x in (f"--{name}", *value)]


def parse(**settings):
    return train_mcvd.parse_args(as_flags(settings))


def train(output_dir, *, stop_in=None, stop_on_rank=0, is_error=False, **settings):
    """
    Train in this process.

    `stop_in` is the micro-batch of this start, from 1, in which `stop_on_rank` is asked to stop; `"validation"` is in the
    middle of the first validation. With `is_error` something then goes wrong instead, which saves nothing.
    """
    stop, count = StopSignals(), 0
    draw_timesteps, make_validation_videos = train_mcvd.draw_timesteps, train_mcvd.make_validation_videos

    def draw_and_ask(*args, **options):  # once for each micro-batch
        nonlocal count
        count += 1
        if count == stop_in and int(os.environ.get("RANK", 0)) == stop_on_rank:
            if is_error:
                raise KeyboardInterrupt
            stop.ask()
        return draw_timesteps(*args, **options)

    def make_videos_and_ask(*args, is_stop_asked, **options):
        num_asked = 0

        def ask_in_the_second_task():  # asked before each task, and after each of its two steps
            nonlocal num_asked
            num_asked += 1
            if stop_in == "validation" and num_asked == 5:
                stop.ask()
            return is_stop_asked()

        return make_validation_videos(*args, is_stop_asked=ask_in_the_second_task, **options)

    recording = type("Recording", (RecordingTrackers,), {"folder": Path(output_dir)})
    replaced = {"draw_timesteps": draw_and_ask, "make_validation_videos": make_videos_and_ask, "Trackers": recording}
    try:
        with mock.patch.multiple(train_mcvd, **replaced):
            return train_mcvd.main(parse(output_dir=output_dir, **settings), stop)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)  # one for the process; a run begins without


def train_with_stops(output_dir, *stops, again=None, **settings):
    """A run that is stopped so often, and goes on with nothing but its folder's name (and `again`)."""
    update, accumulation = 0, settings.get("gradient_accumulation_steps", 1)
    for stop in (*stops, None):
        settings["resume_from_checkpoint"] = "latest"
        is_finished = train(output_dir, stop_in=stop, **settings) is not None
        settings = dict(again or {})
        if stop is None:
            assert is_finished
            return output_dir
        # The update that is under way is given up, unless this was its last micro-batch.
        update += 2 + (accumulation == 1) if stop == "validation" else stop // accumulation
        assert not is_finished and update_of(list_checkpoints(output_dir)[0]) == update


def tensors(folder):
    """All tensors of the last checkpoint."""
    checkpoint = list_checkpoints(folder)[0]
    files = checkpoint.rglob("*.safetensors")
    return {(str(file.relative_to(checkpoint)), name): x for file in files for name, x in load_file(file).items()}


def assert_same_training(folder, other, has_average=True):
    """Equal to the last bit: raw and averaged weights, optimizer, what was logged, and the last videos."""
    first, second = tensors(folder), tensors(other)
    assert {file for file, _ in first} == {WEIGHTS, OPTIMIZER} | ({AVERAGED_WEIGHTS} if has_average else set())
    assert first.keys() == second.keys()
    assert {name for name in first if not torch.equal(first[name], second[name])} == set()
    last, other_last = (list_checkpoints(each)[0] for each in (folder, other))
    assert last.name == other_last.name
    progress, other_progress = (read_state(each)["progress"] for each in (last, other_last))
    assert progress | {"seconds": 0} == other_progress | {"seconds": 0}
    assert videos(folder, update_of(last)) == videos(other, update_of(last))
    for each in (folder, other):  # the pipeline that is left at the end
        for name in {file for file, _ in first} - {OPTIMIZER}:
            assert (each / name).read_bytes() == (last / name).read_bytes()
    if folder in LOGGED and other in LOGGED:
        for update, values in LOGGED[folder].items():
            for name in ("loss", "grad_norm", "learning_rate"):
                assert values[name] == LOGGED[other][update][name], (update, name)
        assert LOGGED[folder].keys() == LOGGED[other].keys()


def videos(folder, update):
    return {path.name: path.read_bytes() for path in (folder / "samples" / f"step-{update}").glob("*.gif")}


def assert_same_losses(log, other):
    """But for rounding, at every update."""
    assert log.keys() == other.keys() and len(log) == SMOOTH["max_train_steps"]
    for update in log:
        assert log[update]["loss"] == pytest.approx(other[update]["loss"], rel=1e-5), update


def contents(folder):
    """Bytes and time of change of every file; the lock's time is that of the last process that held it."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.name == LOCK_NAME or path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextlib.contextmanager
def refused(capsys, *words):
    """As a setting is refused: a message, that says all of this."""
    with pytest.raises(SystemExit) as error:
        yield
    assert error.value.code == 2
    message = capsys.readouterr().err
    for word in words:
        assert word in message


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def uninterrupted(folder):
    """Runs that are never stopped, each made once."""
    made = {}

    def make(**settings):
        key = json.dumps(settings, sort_keys=True, default=str)
        if key not in made:
            made[key] = train(folder / f"uninterrupted-{len(made)}", **settings)
        return made[key]

    return make


@pytest.fixture(scope="module")
def stopped(folder):
    """A run that was stopped after update 3, not to be changed."""
    assert train(folder / "stopped", stop_in=3, **BASE) is None
    assert [path.name for path in list_checkpoints(folder / "stopped")] == ["checkpoint-3", "checkpoint-2"]
    return folder / "stopped"


# --------------------------------------------------------------------------------------------------------------------
# Wherever it was stopped

ACCUMULATION_4 = {"train_batch_size": 2, "gradient_accumulation_steps": 4, "max_train_steps": 3}


@pytest.mark.parametrize(
    "workers, settings, stops",
    [
        pytest.param(0, {}, [2], id="within-an-epoch"),
        pytest.param(0, {}, ["validation"], id="while-videos-are-made"),
        pytest.param(2, {}, [1, 1], id="twice-with-workers"),
        pytest.param(0, ACCUMULATION_4, [10], id="within-a-window"),
        pytest.param(2, ACCUMULATION_4, [3], id="before-the-first-update-with-workers"),
        pytest.param(2, {}, [3], id="at-an-epochs-edge-with-workers", marks=pytest.mark.slow),
        pytest.param(2, ACCUMULATION_4, [5, 7], id="twice-within-a-window-with-workers", marks=pytest.mark.slow),
        pytest.param(
            *(0, ACCUMULATION_4, ["validation", 2]),
            id="while-videos-are-made-and-within-a-window",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(0, ACCUMULATION_4 | {"num_train_clips": 8}, [4]),
            id="at-an-epochs-edge-and-a-windows",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_resume_equals_uninterrupted(workers, settings, stops, uninterrupted, tmp_path):
    """Also of a run without workers: they change nothing."""
    settings = BASE | settings
    whole = uninterrupted(**settings)
    train_with_stops(tmp_path / "out", *stops, **settings | {"dataloader_num_workers": workers})
    assert_same_training(tmp_path / "out", whole)
    if "validation" in stops:  # the task in which it was asked was given up
        assert len(videos(tmp_path / "out", 2)) == 1 < len(videos(whole, 2))


def test_resume_at_an_epochs_edge_takes_its_settings_from_the_checkpoint(stopped, uninterrupted, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    manifest = json.loads((stopped / "checkpoint-3" / "manifest.json").read_text())
    assert (manifest["epoch"], manifest["position_in_epoch"]) == (2, 0)
    LOGGED[tmp_path / "out"] = dict(LOGGED[stopped])
    train(tmp_path / "out", resume_from_checkpoint="latest")
    whole = uninterrupted(**BASE)
    assert_same_training(tmp_path / "out", whole)
    settings, expected = (read_state(list_checkpoints(each)[0])["settings"] for each in (tmp_path / "out", whole))
    assert {name for name in settings if settings[name] != expected[name]} == {"output_dir", "resume_from_checkpoint"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"use_ema": False}, id="without-average"),
        pytest.param({"ema_warmup": False, "lr_scheduler": "linear"}, id="constant-decay"),
        pytest.param({"mixed_precision": "bf16", "conditioning": "spatin", "spatin_channels": 8}, id="bf16-spatin"),
    ],
)
def test_resume_equals_uninterrupted_with_other_settings(settings, tmp_path):
    train(tmp_path / "whole", **BASE | settings)
    train_with_stops(tmp_path / "out", 2, **BASE | settings)
    assert_same_training(tmp_path / "out", tmp_path / "whole", has_average=settings.get("use_ema", True))


BLOCKS = ("num_past_frames", "num_frames", "num_future_frames")
WINDOWS = {"max_frames": 5, "num_attention_heads": 2}
METHODS = {
    "ramvid": WINDOWS | {"max_observed": 2},
    "fdm": WINDOWS | {"clip_frames": 8, "fill_with_other_clips": True},
    "vdm": WINDOWS | {"num_joint_images": 2},
}


def settings_of_method(method, settings=BASE):
    return {name: x for name, x in settings.items() if name not in BLOCKS} | {"method": method} | METHODS[method]


def write_images(folder, count=5):
    folder.mkdir()
    for image in range(count):
        pixels = np.random.RandomState(image).randint(256, size=(20 + image, 18, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{image}.png")
    return folder


@pytest.mark.parametrize(
    "method, workers, stops",
    [
        ("ramvid", 0, [2]),
        ("fdm", 0, ["validation"]),
        ("vdm", 0, [1]),
        pytest.param("fdm", 2, [1, 2], marks=pytest.mark.slow),
        pytest.param("vdm", 2, [3], marks=pytest.mark.slow),
    ],
)
def test_resume_equals_uninterrupted_whatever_the_method(method, workers, stops, uninterrupted, tmp_path):
    settings = settings_of_method(method)
    whole = uninterrupted(**settings)
    train_with_stops(tmp_path / "out", *stops, **settings, dataloader_num_workers=workers)
    assert_same_training(tmp_path / "out", whole)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resume_with_images_beside_the_clips_that_have_moved(workers, tmp_path):
    """One of them is broken, and left out."""
    images = write_images(tmp_path / "images")
    whole = (images / "3.png").read_bytes()
    (images / "3.png").write_bytes(whole[: len(whole) // 2])
    shutil.copytree(images, tmp_path / "moved")
    settings = settings_of_method("vdm") | {"validation_steps": 0, "num_validation_videos": 0}
    train(tmp_path / "whole", image_data_dir=images, **settings)
    moved = {"image_data_dir": tmp_path / "moved"}
    train_with_stops(
        tmp_path / "out", 3, again=moved, image_data_dir=images, dataloader_num_workers=workers, **settings
    )
    assert_same_training(tmp_path / "out", tmp_path / "whole")


def test_other_images_are_other_data(tmp_path):
    settings = settings_of_method("vdm") | {"image_data_dir": write_images(tmp_path / "images")}
    assert train(tmp_path / "out", stop_in=2, **settings) is None
    (tmp_path / "images" / "0.png").unlink()
    with pytest.raises(train_mcvd.SetupError, match="the training data .* this would be another training"):
        train(tmp_path / "out", resume_from_checkpoint="latest")


@pytest.mark.parametrize("method", ["fdm", "vdm"])
def test_another_batch_is_another_training_where_clips_are_made_of_one_another(method, tmp_path):
    settings = settings_of_method(method) | {"dropout": 0.0}
    assert train(tmp_path / "out", stop_in=2, **settings) is None
    other = {"train_batch_size": 2, "gradient_accumulation_steps": 2}
    with pytest.raises(train_mcvd.SetupError, match="frames of other clips of the batch are used"):
        train(tmp_path / "out", resume_from_checkpoint="latest", **other)
    train(tmp_path / "out", resume_from_checkpoint="latest", allow_changed_settings=True, **other)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_updates_do_not_depend_on_how_a_batch_is_divided_whatever_the_method(method, tmp_path):
    alone = {"fdm": {"fill_with_other_clips": False}, "vdm": {"num_joint_images": 0}}.get(method, {})
    settings = settings_of_method(method, SMOOTH) | alone
    train(tmp_path / "together", **settings)
    train(tmp_path / "apart", **settings | {"train_batch_size": 2, "gradient_accumulation_steps": 4})
    assert_same_losses(LOGGED[tmp_path / "together"], LOGGED[tmp_path / "apart"])


def write_videos(folder, count=8):
    """Colour videos of several lengths, some too short for a clip; the last one is held out, and is not."""
    folder.mkdir()
    for video in range(count):
        rng = np.random.RandomState(video)
        np.save(folder / f"{video}.npy", rng.randint(256, size=(3 + video, 3, 20, 26)).astype(np.uint8))
    return folder


OWN_DATA = {name: x for name, x in BASE.items() if name != "num_train_clips"} | {
    **{"axes": "TCHW", "validation_names": "7", "resize": "cover", "pad_short_videos": True, "clip_step": 4},
    **{"random_crop": True, "random_flip": True, "random_vertical_flip": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("workers, accumulation, stops", [(0, 1, [2]), (2, 4, [6, 5])])
def test_resume_equals_uninterrupted_on_own_data_that_has_moved(workers, accumulation, stops, tmp_path):
    """Cut, mirrored and padded at random; the same videos may lie elsewhere by then."""
    settings = OWN_DATA | (ACCUMULATION_4 if accumulation == 4 else {})
    data = write_videos(tmp_path / "data")
    train(tmp_path / "whole", train_data_dir=data, **settings)
    shutil.copytree(data, tmp_path / "moved")
    train_with_stops(
        tmp_path / "out",
        *stops,
        again={"train_data_dir": tmp_path / "moved"},
        train_data_dir=data,
        dataloader_num_workers=workers,
        **settings,
    )
    assert_same_training(tmp_path / "out", tmp_path / "whole")


def write_stream(folder, monkeypatch, num_videos=14):
    """A Hugging Face data set of two parquet shards of grey videos."""
    import datasets

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", folder / "cache")
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s, whenever a pass is given up
    rng = np.random.RandomState(0)
    videos = {"frames": [rng.randint(256, size=(8, 16, 16)).astype(np.uint8) for _ in range(num_videos)]}
    whole = datasets.Dataset.from_dict(
        videos, features=datasets.Features({"frames": datasets.Array3D((8, 16, 16), "uint8")})
    )
    (folder / "data").mkdir(parents=True)
    for shard in range(2):
        whole.shard(2, shard).to_parquet(folder / "data" / f"train-{shard}.parquet")
    return {name: x for name, x in BASE.items() if name not in ("num_train_clips", "resolution")} | {
        **{"dataset_name": folder / "data", "axes": "THW", "streaming": True, "shuffle_buffer": 3},
        **{"validation_fraction": 0.3, "train_batch_size": 2, "max_train_steps": 8, "random_flip": True},
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers, accumulation, stops", [(0, 1, [6]), (2, 4, [10])])
def test_resume_equals_uninterrupted_on_a_stream(workers, accumulation, stops, tmp_path, monkeypatch):
    """Its passes are no multiple of an update, and are shuffled anew."""
    settings = write_stream(tmp_path, monkeypatch) | {"dataloader_num_workers": workers}
    settings |= {"gradient_accumulation_steps": accumulation, "max_train_steps": 8 // accumulation + 2}
    train(tmp_path / "whole", **settings)
    train_with_stops(tmp_path / "out", *stops, **settings)
    assert_same_training(tmp_path / "out", tmp_path / "whole")
    ((passes, _),) = read_state(list_checkpoints(tmp_path / "out")[0])["progress"]["stream_positions"]
    assert passes >= 1


# --------------------------------------------------------------------------------------------------------------------
# However its clips are divided

DIVIDED = {"train_batch_size": 1, "gradient_accumulation_steps": 8}


def test_losses_do_not_depend_on_how_an_update_is_divided(uninterrupted, tmp_path):
    """One batch of eight is eight batches of one, at every update; the learning rate is the same to the last bit."""
    together = LOGGED[uninterrupted(**SMOOTH)]
    apart = LOGGED[train(tmp_path / "out", **SMOOTH | DIVIDED)]
    assert_same_losses(together, apart)
    rates = [values["learning_rate"] for values in together.values()]
    assert rates == [values["learning_rate"] for values in apart.values()]
    assert rates[:2] == [0.005, 0.01] and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] == 0


def test_run_goes_on_in_batches_of_another_size(uninterrupted, tmp_path):
    """Order and noise of the clips stay what they are, so losses do; the learning rate, too."""
    assert train(tmp_path / "out", stop_in=3, **SMOOTH) is None
    smaller = {"train_batch_size": 4, "gradient_accumulation_steps": 2}
    train(tmp_path / "out", resume_from_checkpoint="latest", **smaller)
    whole = LOGGED[uninterrupted(**SMOOTH)]
    assert_same_losses(whole, LOGGED[tmp_path / "out"])
    for update, values in LOGGED[tmp_path / "out"].items():
        assert values["learning_rate"] == whole[update]["learning_rate"]


def test_learning_rate_goes_on_in_every_schedule(tmp_path):
    """To the last bit, wherever it is taken up."""
    for name in ("constant_with_warmup", "cosine", "linear", "constant"):
        settings = parse(output_dir=tmp_path / "out", lr_scheduler=name, lr_warmup_steps=3, max_train_steps=9)

        def rates(start, settings=settings):
            optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.training.learning_rate)
            scheduler, found = train_mcvd.make_lr_scheduler(settings, optimizer, start), []
            for _ in range(start, 9):
                found.append(optimizer.param_groups[0]["lr"])
                optimizer.step()
                scheduler.step()
            return found

        whole = rates(0)
        assert all(rates(start) == whole[start:] for start in range(9))


def test_another_number_of_clips_an_update_is_refused_unless_allowed(stopped, tmp_path):
    shutil.copytree(stopped, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(
        train_mcvd.SetupError, match=r"the clips of an update, .*were 4 x 1 x 1, are 6 x 1 x 1.*--allow_ch"
    ):
        train(tmp_path / "out", resume_from_checkpoint="latest", train_batch_size=6)
    allowed = {"resume_from_checkpoint": "latest", "allow_changed_settings": True}
    with pytest.raises(
        train_mcvd.SetupError, match="has met 12 clips, .* no multiple of 1 processes x --train_batch_size 5"
    ):
        train(tmp_path / "out", train_batch_size=5, **allowed)
    assert contents(tmp_path / "out") == before
    assert train(tmp_path / "out", train_batch_size=6, **allowed) == tmp_path / "out"
    assert read_state(tmp_path / "out" / "checkpoint-4")["progress"]["num_samples"] == 3 * 4 + 6


def test_other_data_are_refused_unless_allowed(tmp_path):
    data = write_videos(tmp_path / "data")
    assert train(tmp_path / "out", stop_in=1, train_data_dir=data, **OWN_DATA) is None
    np.save(data / "8.npy", np.load(data / "7.npy"))
    with pytest.raises(
        train_mcvd.SetupError, match=r"the training data \(were ClipDataset of \d+ clips.*, are .*--allow_ch"
    ):
        train(tmp_path / "out", resume_from_checkpoint="latest")


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"learning_rate": 0.01}, ["--learning_rate (was 0.001, is 0.01)"]),
        (
            {"num_train_clips": 7, "drop_past": 0.1},
            ["--num_train_clips (was 6, is 7)", "--drop_past (was 0.5, is 0.1)"],
        ),
        ({"max_train_steps": 6}, ["--max_train_steps (was 4, is 6)"]),  # the cosine falls over all of them
    ],
)
def test_changed_setting_is_refused_unless_allowed(settings, words, stopped, capsys):
    settings |= {"output_dir": stopped, "resume_from_checkpoint": "latest"}
    with refused(capsys, "not the training that", "pass --allow_changed_settings", *words):
        parse(**settings)
    assert parse(**settings, allow_changed_settings=True).checkpoint == stopped / "checkpoint-3"


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"dropout": 0.2}, "--dropout was 0.1, is 0.2"),
        ({"resolution": [16, 32]}, "--resolution was [16, 16], is [16, 32]"),
        ({"use_ema": False}, "--use_ema was True, is False"),
        ({"seed": 1}, "--seed was 0, is 1"),
    ],
)
def test_setting_that_a_checkpoint_is_made_with_is_refused_even_if_allowed(settings, words, stopped, capsys):
    with refused(capsys, words, "is made with it"):
        parse(output_dir=stopped, resume_from_checkpoint="latest", allow_changed_settings=True, **settings)


# --------------------------------------------------------------------------------------------------------------------
# What --resume_from_checkpoint means


def test_run_that_was_stopped_before_its_first_checkpoint_begins_anew(uninterrupted, tmp_path, caplog):
    """`latest` also begins in an empty folder; that it begins in one that is missing, all tests above show."""
    (tmp_path / "out").mkdir()
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "out", stop_in=1, is_error=True, resume_from_checkpoint="latest", **BASE)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {SETTINGS_FILE, LOCK_NAME}
    assert train(tmp_path / "out", resume_from_checkpoint="latest") == tmp_path / "out"
    assert caplog.text.count(f"there is no checkpoint in {tmp_path / 'out'} yet: beginning") == 2
    assert_same_training(tmp_path / "out", uninterrupted(**BASE))


def test_finished_run_says_so_and_changes_no_file(uninterrupted, caplog):
    whole = uninterrupted(**BASE)
    before = contents(whole)
    assert train(whole, resume_from_checkpoint="latest") == whole
    assert f"{whole} holds the finished pipeline: there is nothing left to do" in caplog.text
    assert train(whole, resume_from_checkpoint=whole / "checkpoint-4", **BASE) == whole
    assert contents(whole) == before


@pytest.mark.slow
def test_run_is_made_longer_with_a_constant_learning_rate(tmp_path, capsys):
    """A finished one in another folder. Other schedules fall over all updates, and would have been others."""
    constant = BASE | {"lr_scheduler": "constant_with_warmup", "num_validation_videos": 0}
    longer = train(tmp_path / "longer", **constant)
    short = train(tmp_path / "short", **constant | {"max_train_steps": 2})
    before = contents(short)
    with refused(capsys, "holds the pipeline that its run ended with", f"--resume_from_checkpoint {short}"):
        parse(output_dir=short, resume_from_checkpoint="latest", max_train_steps=4)
    with refused(capsys, "--max_train_steps (was 2, is 4)"):
        parse(output_dir=tmp_path / "x", resume_from_checkpoint=short, max_train_steps=4, lr_scheduler="cosine")
    train(tmp_path / "out", resume_from_checkpoint=short, max_train_steps=4)
    assert contents(short) == before
    LOGGED[tmp_path / "out"] |= LOGGED[short]
    assert_same_training(tmp_path / "out", longer)
    assert train(tmp_path / "unfinished", stop_in=1, **constant | {"max_train_steps": 2}) is None
    train(tmp_path / "unfinished", resume_from_checkpoint="latest", max_train_steps=4)
    assert_same_training(tmp_path / "unfinished", longer)


def test_older_checkpoint_is_gone_on_from_in_another_folder_only(stopped, uninterrupted, tmp_path, capsys):
    """What is newer would have to be overwritten."""
    older, before = stopped / "checkpoint-2", contents(stopped)
    with refused(
        capsys, f"{stopped / 'checkpoint-3'} is newer and would have to be overwritten", "another --output_dir"
    ):
        parse(output_dir=stopped, resume_from_checkpoint=older)
    train(tmp_path / "out", resume_from_checkpoint=older)
    assert contents(stopped) == before
    whole = uninterrupted(**BASE)
    LOGGED[tmp_path / "out"] |= {update: LOGGED[whole][update] for update in (1, 2)}
    assert_same_training(tmp_path / "out", whole)


def test_checkpoint_that_is_not_there_is_an_error(stopped, tmp_path, capsys):
    for source, words in (
        (tmp_path / "none", "is no folder. Pass one, or latest."),
        (tmp_path, "has no manifest.json"),
    ):
        with refused(capsys, str(source), words):
            parse(output_dir=tmp_path / "out", resume_from_checkpoint=source, **BASE)
    with refused(capsys, "checkpoint-1 is no folder"):
        parse(output_dir=stopped, resume_from_checkpoint=stopped / "checkpoint-1")
    assert not (tmp_path / "out").exists()


# --------------------------------------------------------------------------------------------------------------------
# In two processes

# Starting a process takes far longer than any of these runs, so one pair of processes makes them all.
MAKE_RUNS = """
import json, logging, sys
from pathlib import Path
import torch
from accelerate import PartialState
import test_resume

logging.basicConfig(level=logging.INFO)
PartialState.destroy_process_group = lambda *_: None  # a run would end it, and the next one need it
torch.set_num_threads(1)
runs = json.loads(Path(sys.argv[1]).read_text())
for run in runs:
    test_resume.train(**run)
    torch.distributed.barrier()  # a run begins when the one before has ended in all processes, and given its folder back
if torch.distributed.get_rank() == 0:
    logged = {str(folder): values for folder, values in test_resume.LOGGED.items()}
    Path(sys.argv[2]).write_text(json.dumps(logged))
torch.distributed.destroy_process_group()
"""


def in_two_processes(*command):
    """What they say."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    process = subprocess.Popen(
        [*launcher, *map(str, command)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        out, _ = process.communicate(timeout=180)
    except subprocess.TimeoutExpired:
        process.terminate()  # the launcher then ends both
        out, _ = process.communicate()
    assert process.returncode == 0, out
    return out


# Five clips an epoch and a batch of two on each of two processes: an epoch ends within a batch, on either.
TWO = BASE | {"train_batch_size": 2, "num_train_clips": 5}
TWO_WORKERS = TWO | {"gradient_accumulation_steps": 4, "dataloader_num_workers": 2, "max_train_steps": 3}
HALF = {"train_batch_size": 4}  # of `SMOOTH`, on each of two processes


@pytest.fixture(scope="module")
def two_processes(folder):
    """A folder of runs in two processes."""
    folder = folder / "two"
    folder.mkdir()
    assert train(folder / "grown", stop_in=3, **SMOOTH) is None  # in one process
    resumed = {"resume_from_checkpoint": "latest"}
    runs = [
        {"output_dir": "whole", **TWO},
        {"output_dir": "stopped", "stop_in": 1, "stop_on_rank": 1, **TWO},
        {"output_dir": "stopped", "stop_in": 2, "stop_on_rank": 0, **resumed},
        {"output_dir": "stopped", **resumed},
        {"output_dir": "whole-with-workers", **TWO_WORKERS},
        {"output_dir": "stopped-with-workers", "stop_in": 6, "stop_on_rank": 1, **TWO_WORKERS},
        {"output_dir": "stopped-with-workers", **resumed},
        {"output_dir": "smooth", **SMOOTH | HALF},
        {"output_dir": "grown", **resumed, **HALF},
    ]
    runs = [run | {"output_dir": str(folder / run["output_dir"])} for run in runs]
    (folder / "runs.json").write_text(json.dumps(runs))
    (folder / "make_runs.py").write_text(MAKE_RUNS)
    out = in_two_processes(folder / "make_runs.py", folder / "runs.json", folder / "logged.json")
    assert out.count("on 2 x cpu") == len(runs)  # a launch on the CPU can silently become one process
    for name, log in json.loads((folder / "logged.json").read_text()).items():
        LOGGED.setdefault(Path(name), {}).update({int(update): values for update, values in log.items()})
    return folder


@pytest.mark.slow
def test_two_processes_resume_as_if_uninterrupted(two_processes):
    assert_same_training(two_processes / "stopped", two_processes / "whole")


@pytest.mark.slow
def test_two_processes_with_workers_resume_as_if_uninterrupted(two_processes):
    """Stopped within a window of accumulation, which is completed first: all processes must agree on where to stop."""
    assert_same_training(two_processes / "stopped-with-workers", two_processes / "whole-with-workers")


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one_with_the_double_batch(two_processes, uninterrupted):
    one, two = LOGGED[uninterrupted(**SMOOTH)], LOGGED[two_processes / "smooth"]
    assert_same_losses(one, two)
    assert [x["learning_rate"] for x in one.values()] == [x["learning_rate"] for x in two.values()]


@pytest.mark.slow
def test_run_of_one_process_goes_on_in_two(two_processes, uninterrupted):
    one, grown = LOGGED[uninterrupted(**SMOOTH)], LOGGED[two_processes / "grown"]
    assert_same_losses(one, grown)
    assert [x["learning_rate"] for x in one.values()] == [x["learning_rate"] for x in grown.values()]
    divisions = [read_state(path)["division"]["processes"] for path in list_checkpoints(two_processes / "grown")]
    assert divisions == [2, 1]


SIGNAL_ONE = """
import logging, os, signal, time
import train_mcvd
from mcvd_diffusers.interruption import StopSignals

logging.basicConfig(level=logging.INFO)

class SignalOnce(logging.Handler):
    def emit(self, record):  # by the first process only, when all have exchanged whether to stop
        if "step      2  loss" in record.getMessage() and not stop.is_asked:
            os.kill(os.getpid(), signal.SIGTERM)
            while not stop.is_asked:
                time.sleep(0.01)

logging.getLogger("train_mcvd").addHandler(SignalOnce())
with StopSignals() as stop:
    assert train_mcvd.main(train_mcvd.parse_args(), stop) is None
"""


# A process group that goes with the last reference of the network's wrapper waits, now and then, for ever.
WATCH_THE_END = """
import gc
import torch
from torch.nn.parallel import DistributedDataParallel
import train_mcvd

destroy = torch.distributed.destroy_process_group

def destroy_after_the_network(*arguments):
    assert not [x for x in gc.get_objects() if isinstance(x, DistributedDataParallel)]
    destroy(*arguments)
    print("ended in order", flush=True)

torch.distributed.destroy_process_group = destroy_after_the_network
train_mcvd.main(train_mcvd.parse_args())
"""


@pytest.mark.slow
def test_two_processes_stop_together_and_two_others_go_on(two_processes, tmp_path):
    """Though one knows of the signal before the other; and nothing that is needed lives in the processes."""
    (tmp_path / "signal_one.py").write_text(SIGNAL_ONE)
    out = in_two_processes(tmp_path / "signal_one.py", *as_flags(TWO | {"output_dir": tmp_path / "out"}))
    assert "on 2 x cpu" in out and "stopped after 3 of 4 updates" in out
    command = {"output_dir": tmp_path / "out", "resume_from_checkpoint": "latest"}
    (tmp_path / "watch_the_end.py").write_text(WATCH_THE_END)
    assert in_two_processes(tmp_path / "watch_the_end.py", *as_flags(command)).count("ended in order") == 2
    assert_same_training(tmp_path / "out", two_processes / "whole")
