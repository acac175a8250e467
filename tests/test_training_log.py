"""Losses by noise level and task, summed without waiting; and trackers, which never stop a run."""

import logging
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import ProjectConfiguration
from PIL import Image

from mcvd_diffusers import training_log
from mcvd_diffusers.masking import FrameRole, mcvd_roles
from mcvd_diffusers.training_log import LossMeter, Trackers


ABSENT, OBSERVED, LATENT = FrameRole
SHAPE = {"num_past_frames": 2, "num_frames": 3, "num_future_frames": 1}


def make_meter(num_train_timesteps=1000, device="cpu", **options):
    return LossMeter(num_train_timesteps=num_train_timesteps, device=device, **options)


def make_roles(*sides):
    """Clips of (past is given, future is given)."""
    return torch.tensor(
        [
            [OBSERVED if past else ABSENT] * 2 + [LATENT] * 3 + [OBSERVED if future else ABSENT]
            for past, future in sides
        ]
    )


# --------------------------------------------------------------------------------------------------------------------
# Losses


def test_means_over_clips_by_timestep_and_by_task():
    meter = make_meter()
    roles = make_roles((1, 0), (0, 1), (1, 1), (0, 0))
    meter.add(torch.tensor([1.0, 2, 3, 4]), torch.tensor([0, 99, 100, 999]), roles)
    meter.add(torch.tensor([8.0]), torch.tensor([950]), make_roles((1, 0)))
    expected = {
        "loss": 18 / 5,
        "loss_by_timestep/0-99": 1.5,
        "loss_by_timestep/100-199": 3.0,
        "loss_by_timestep/900-999": 6.0,
        "loss_by_task/generation": 4.0,
        "loss_by_task/prediction": 4.5,
        "loss_by_task/past_prediction": 2.0,
        "loss_by_task/interpolation": 3.0,
    }
    assert meter.mean(Accelerator(cpu=True)) == pytest.approx(expected)


def test_the_meter_is_empty_after_it_was_read():
    meter, accelerator = make_meter(), Accelerator(cpu=True)
    assert meter.mean(accelerator) == {}
    meter.add(torch.tensor([3.0]), torch.tensor([5]), make_roles((1, 0)))
    assert meter.mean(accelerator)["loss"] == 3 and meter.mean(accelerator) == {}
    meter.add(torch.tensor([5.0]), torch.tensor([5]), make_roles((0, 0)))
    assert meter.mean(accelerator) == dict.fromkeys(
        ["loss", "loss_by_timestep/0-99", "loss_by_task/generation"], pytest.approx(5)
    )


@pytest.mark.parametrize("num_train_timesteps", [1, 3, 10, 37, 999, 1000, 1001])
def test_every_timestep_is_counted_in_the_range_that_names_it_and_ranges_are_equal(num_train_timesteps):
    meter, accelerator = make_meter(num_train_timesteps), Accelerator(cpu=True)
    timesteps = torch.arange(num_train_timesteps)
    for only in (timesteps[:1], timesteps[-1:], timesteps):
        meter.add(only.float(), only, make_roles((1, 0)).expand(len(only), -1))
        means = meter.mean(accelerator)
        ranges = {
            tuple(map(int, name.split("/")[1].split("-"))): mean
            for name, mean in means.items()
            if name.startswith("loss_by_timestep/")
        }
        for (first, last), mean in ranges.items():
            assert mean == pytest.approx(only[(only >= first) & (only <= last)].float().mean().item())
    assert len(ranges) == min(10, num_train_timesteps)
    firsts, lasts = zip(*ranges)
    assert firsts[0] == 0 and lasts[-1] == num_train_timesteps - 1
    assert all(first == last + 1 for first, last in zip(firsts[1:], lasts))
    assert np.ptp([last - first for first, last in ranges]) <= 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_losses_that_are_not_finite_and_clips_without_a_block_leave_no_trace(bad):
    meter, accelerator = make_meter(), Accelerator(cpu=True)
    roles = make_roles((1, 0), (0, 1), (1, 1))
    roles[2, 2:5] = ABSENT
    meter.add(torch.tensor([1.0, bad, 0.0]), torch.tensor([1, 500, 700]), roles)
    assert set(meter.mean(accelerator)) == {"loss", "loss_by_timestep/0-99", "loss_by_task/prediction"}
    meter.add(torch.tensor([1.0, bad, 0.0]), torch.tensor([1, 500, 700]), roles)
    meter.add(torch.tensor([2.0]), torch.tensor([1]), roles[:1])
    assert meter.mean(accelerator)["loss"] == 1.5


def test_a_side_counts_as_given_if_one_of_its_frames_is():
    """Of a video that is too short, part of the past is padding."""
    meter, roles = make_meter(), make_roles((0, 0), (1, 0))
    roles[:, 0] = ABSENT
    meter.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 0]), roles)
    means = meter.mean(Accelerator(cpu=True))
    assert means["loss_by_task/generation"] == 1 and means["loss_by_task/prediction"] == 2


def test_a_network_without_past_or_future_has_the_tasks_that_are_left():
    meter = make_meter()
    meter.add(torch.tensor([1.0]), torch.tensor([0]), torch.full((1, 3), LATENT))
    assert "loss_by_task/generation" in meter.mean(Accelerator(cpu=True))


@pytest.mark.parametrize(
    ("given", "segments", "task"),
    [
        ("ooll", "0000", "prediction"),
        ("lloo", "0000", "past_prediction"),
        ("lolo", "0000", "interpolation"),
        ("olol", "0000", "interpolation"),
        ("looo", "0000", "past_prediction"),
        ("-lo-", "0000", "past_prediction"),
        ("lloo", "0000", "past_prediction"),
        ("oll-", "0000", "prediction"),
        ("oolll", "00001", "prediction"),
        ("looll", "00011", "past_prediction"),  # what fills the window is no frame of the clip
        ("lllll", "00012", "generation"),
    ],
)
def test_the_task_follows_from_where_frames_are_given(given, segments, task):
    roles = torch.tensor([[{"o": OBSERVED, "l": LATENT, "-": ABSENT}[letter] for letter in given]])
    meter = make_meter()
    segment_ids = torch.tensor([[int(segment) for segment in segments]])
    meter.add(torch.tensor([1.0]), torch.tensor([0]), roles, segment_ids)
    assert set(meter.mean(Accelerator(cpu=True))) == {"loss", "loss_by_timestep/0-99", f"loss_by_task/{task}"}


def test_adding_never_asks_the_device_for_a_value():
    """There are none on the meta device: whoever asks fails."""
    meter = make_meter(device="meta")
    meter.add(
        torch.empty(4, device="meta", requires_grad=True),
        torch.empty(4, dtype=torch.long, device="meta"),
        torch.empty(4, 6, dtype=torch.long, device="meta"),
    )


def test_a_long_run_of_small_losses_is_added_up_exactly():
    meter, roles = make_meter(), make_roles((1, 0))
    meter.add(torch.tensor([1e7]), torch.tensor([0]), roles)
    for _ in range(1000):
        meter.add(torch.tensor([0.25]), torch.tensor([0]), roles)
    assert meter.mean(Accelerator(cpu=True))["loss"] == (1e7 + 250) / 1001


MEAN_ON_EACH_PROCESS = """
import torch
from accelerate import Accelerator
from test_training_log import make_meter, make_roles

accelerator, meter = Accelerator(cpu=True), make_meter()
rank = accelerator.process_index
assert accelerator.num_processes == 2
if rank == 0:  # the other one has seen nothing
    meter.add(torch.tensor([1.0, 2.0]), torch.tensor([0, 500]), make_roles((1, 0), (0, 0)))
assert meter.mean(accelerator)["loss"] == 1.5
meter.add(torch.tensor([10.0 + rank]), torch.tensor([900 * rank]), make_roles((rank, 1)))
means = meter.mean(accelerator)
assert means.pop("loss") == 10.5
assert means.pop("loss_by_timestep/0-99") == means.pop("loss_by_task/past_prediction") == 10
assert means.pop("loss_by_timestep/900-999") == means.pop("loss_by_task/interpolation") == 11
assert means == {}
accelerator.end_training()
"""


@pytest.mark.slow
def test_all_processes_get_the_mean_over_all_clips_of_all_processes(tmp_path):
    (tmp_path / "script.py").write_text(MEAN_ON_EACH_PROCESS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    folders = os.pathsep.join(map(str, [Path(__file__).parent, Path(__file__).parents[1]]))
    done = subprocess.run(
        [*command, tmp_path / "script.py"],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": folders},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_roles_as_they_are_drawn_fit():
    roles = mcvd_roles(64, **SHAPE, drop_past=0.5, drop_future=0.5, generator=torch.Generator().manual_seed(0))
    meter = make_meter()
    meter.add(torch.ones(64), torch.zeros(64, dtype=torch.long), roles)
    assert sum(name.startswith("loss_by_task") for name in meter.mean(Accelerator(cpu=True))) == 4


# --------------------------------------------------------------------------------------------------------------------
# Trackers


class Memory(GeneralTracker):
    """A tracker that remembers, and fails when it is told to."""

    name, requires_logging_directory = "memory", False
    fails: set[str] = set()
    calls: list[tuple] = []

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.did("init", run_name, kwargs)

    @classmethod
    def did(cls, *call):
        if call[0] in cls.fails:
            raise OSError(f"no {call[0]} today")
        cls.calls.append(call)

    @property
    def tracker(self):
        return self

    def start(self):
        self.did("start")

    def store_init_configuration(self, values):
        self.did("config", values)

    def log(self, values, step=None, **kwargs):
        self.did("log", values, step)

    def finish(self):
        self.did("finish")


@pytest.fixture
def memory(monkeypatch, caplog):
    """One that works beside one that may fail."""

    class Other(Memory):
        name, fails, calls = "other", set(), []

    class Main(Memory):
        fails, calls = set(), []

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "memory", Main)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "other", Other)
    caplog.set_level(logging.INFO, logger="train_mcvd")
    return Main, Other


def make_trackers(*names, folder=None, config=None):
    logs = None if folder is None else folder / "logs"
    accelerator = Accelerator(cpu=True, project_config=ProjectConfiguration(project_dir=folder, logging_dir=logs))
    return Trackers(accelerator, names=list(names), project="digits", config=config or {}, run_id="run-7")


def messages(caplog):
    found = [record.getMessage() for record in caplog.records if record.name == "train_mcvd"]
    caplog.clear()
    return found


def test_without_trackers_nothing_happens(caplog):
    trackers = make_trackers()
    trackers.log({"loss": 1.0}, 1)
    trackers.log_videos({}, 1)
    trackers.finish()
    assert messages(caplog) == []


def test_a_tracker_gets_settings_values_and_the_end_once(memory, caplog):
    main, _ = memory
    trackers = make_trackers("memory", "memory", config={"a": 1, "b": True, "c": None, "d": [1, 2], "e": "x"})
    trackers.log({"loss": 1.0}, 3)
    trackers.log_videos({"validation/prediction": "nowhere.gif"}, 3)  # nothing that this tracker could show
    trackers.finish()
    trackers.finish()
    trackers.log({"loss": 2.0}, 4)
    assert main.calls == [
        ("init", "digits", {}),
        ("start",),
        ("config", {"a": 1, "b": True, "c": "None", "d": "[1, 2]", "e": "x"}),
        ("log", {"loss": 1.0}, 3),
        ("finish",),
    ]
    assert messages(caplog) == []


@pytest.mark.parametrize("stage", ["init", "start"])
def test_a_tracker_that_cannot_be_started_is_left_out_with_one_warning(memory, caplog, stage):
    main, other = memory
    main.fails.add(stage)
    trackers = make_trackers("memory", "no_such_tracker", "other")
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    assert [call[0] for call in other.calls] == ["init", "start", "config", "log", "finish"]
    assert "log" not in {call[0] for call in main.calls}
    first, second = messages(caplog)
    assert "memory" in first and f"OSError: no {stage} today" in first and "the run goes on without it" in first
    assert "no_such_tracker" in second


def test_a_series_of_failures_is_one_warning_and_one_word_at_its_end(memory, caplog):
    main, other = memory
    trackers = make_trackers("memory", "other")
    main.fails.add("log")
    for step in (1, 2, 3):
        trackers.log({"loss": 1.0}, step)
    (warning,) = messages(caplog)
    assert "memory failed" in warning and "OSError: no log today" in warning and "the run goes on without" in warning
    main.fails.clear()
    for step in (4, 5):
        trackers.log({"loss": 1.0}, step)
    (end,) = messages(caplog)
    assert "memory works again" in end
    main.fails |= {"log", "finish"}
    trackers.log({"loss": 1.0}, 6)
    assert len(messages(caplog)) == 1
    trackers.finish()
    assert messages(caplog) == []
    assert [call[2] for call in main.calls if call[0] == "log"] == [4, 5]
    assert [call[2] for call in other.calls if call[0] == "log"] == [1, 2, 3, 4, 5, 6] and other.calls[-1] == (
        "finish",
    )


def test_settings_that_a_tracker_refuses_do_not_cost_its_values(memory, caplog):
    main, _ = memory
    main.fails.add("config")
    trackers = make_trackers("memory")
    trackers.log({"loss": 1.0}, 1)
    assert main.calls[-1] == ("log", {"loss": 1.0}, 1) and len(messages(caplog)) == 2


def test_ctrl_c_is_no_failure_of_a_tracker(memory, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    trackers = make_trackers("memory")
    monkeypatch.setattr(memory[0], "log", interrupt)
    with pytest.raises(KeyboardInterrupt):
        trackers.log({"loss": 1.0}, 1)


@pytest.mark.parametrize(("name", "key"), [("wandb", "id"), ("trackio", "name")])
def test_a_resumed_run_goes_on_with_its_curve(memory, monkeypatch, name, key):
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, name, memory[0])
    make_trackers(name)
    assert memory[0].calls[0] == ("init", "digits", {key: "run-7", "resume": "allow"})


def test_all_means_all_that_are_installed(memory, monkeypatch):
    kind = type("LoggerName", (), {"value": "memory"})
    monkeypatch.setattr(training_log, "get_available_trackers", lambda: [kind])
    make_trackers("all", "other")
    assert memory[0].calls[0][0] == memory[1].calls[0][0] == "init"


def make_gif(path):
    pictures = [Image.new("RGB", (24, 16), color) for color in ("red", "green", "blue")]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=200, loop=0)
    return path


def read_events(folder):
    module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    return module.EventAccumulator(str(folder / "logs" / "digits"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_tensorboard_gets_the_animation_as_it_is(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    gif = make_gif(tmp_path / "prediction.gif")
    trackers = make_trackers("tensorboard", folder=tmp_path, config={"seed": 1, "size": [64, 64]})
    for step in (10, 20):
        trackers.log({"loss": 1 / step}, step)
        trackers.log_videos({"validation/prediction": gif}, step)
    trackers.finish()
    events = read_events(tmp_path)
    assert [(event.step, pytest.approx(event.value)) for event in events.Scalars("loss")] == [(10, 0.1), (20, 0.05)]
    images = events.Images("validation/prediction")
    assert [image.step for image in images] == [10, 20] and (images[0].width, images[0].height) == (24, 16)
    assert images[1].encoded_image_string == gif.read_bytes()
    assert not messages(caplog)


def test_a_video_that_is_not_there_costs_no_values(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    trackers = make_trackers("tensorboard", folder=tmp_path)
    for step in (1, 2):
        trackers.log_videos({"validation/prediction": tmp_path / "nowhere.gif"}, step)
        trackers.log({"loss": 1.0}, step)
    (warning,) = messages(caplog)
    assert "tensorboard failed" in warning and "nowhere.gif" in warning and "videos" in warning
    trackers.finish()
    assert len(read_events(tmp_path).Scalars("loss")) == 2


def test_a_folder_that_cannot_be_written_to_costs_the_run_nothing(tmp_path, caplog):
    pytest.importorskip("tensorboard")
    (tmp_path / "logs").write_text("a file in the way")
    trackers = make_trackers("tensorboard", folder=tmp_path)
    trackers.log({"loss": 1.0}, 1)
    trackers.finish()
    (warning,) = messages(caplog)
    assert "tensorboard cannot be started" in warning


def test_tensorboard_goes_on_after_the_disk_was_full(tmp_path, caplog, monkeypatch):
    """Its writer is broken by one failed write, so that it must be made anew."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(threading, "excepthook", lambda _: None)  # its thread dies
    caplog.set_level(logging.INFO, logger="train_mcvd")
    trackers = make_trackers("tensorboard", folder=tmp_path)
    trackers.log({"loss": 1.0}, 1)
    written = max(file.stat().st_size for file in (tmp_path / "logs" / "digits").glob("events*"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, hard))  # a write beyond it is an OSError, as on a full disk
    try:
        for step in (2, 3):
            trackers.log({"loss": 1.0}, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    (warning,) = messages(caplog)
    assert "tensorboard failed" in warning and "OSError" in warning
    trackers.log({"loss": 1.0}, 4)
    assert not messages(caplog)  # tried again after a while only
    monkeypatch.setattr(training_log, "REOPEN_SECONDS", 0)
    for step in (5, 6):
        trackers.log({"loss": 1.0}, step)
    assert ["works again" in message for message in messages(caplog)] == [True]
    trackers.finish()
    assert [event.step for event in read_events(tmp_path).Scalars("loss")] == [1, 5, 6]
