"""What a run will cost: arithmetic of the estimate, and measurements that follow what is measured."""

import time

import psutil
import pytest
import torch
from diffusers import DDIMScheduler

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.cost import (
    NUM_TIMED,
    NUM_WARM_UP,
    CostEstimate,
    Spread,
    UpdateTimer,
    measure_sampling,
    peak_memory,
)


CPU = torch.device("cpu")


def estimate(**changes):
    values = {
        "num_parameters": 1_234_567,
        "num_updates": 36_000,
        "seconds_per_update": Spread([0.05] * 5 + [0.15] * 5),
        "seconds_per_video": Spread([2.0]),
        "sampler": "25 steps of DDIMScheduler",
        "num_validation_videos": 100,
        "pipeline_bytes": 5 * 2**20,
        "memory_bytes": 3 * 2**30,
        "device": CPU,
    }
    return CostEstimate(**{**values, **changes})


def test_the_end_is_the_updates_and_the_videos_of_validation():
    assert estimate().seconds_to_the_end() == pytest.approx(3600 + 200)
    assert estimate().seconds_to_the_end("high") > estimate().seconds_to_the_end("low")
    text = "\n".join(estimate(num_processes=4).lines())
    for part in (
        "1,234,567",
        "3 GiB memory of the process, in each of 4 processes",
        "10 steps/s",
        "63.3 min",
        "5 MiB",
    ):
        assert part in text, text
    assert "stopped before its 36,000 updates" in "\n".join(estimate(max_seconds=60).lines())
    assert estimate(max_seconds=60).seconds_to_the_end() == pytest.approx(60 + 200)
    assert "2 s (2 to 2)" in text and "25 steps of DDIMScheduler" in text and "10 measured updates" in text


@pytest.fixture
def clock(monkeypatch):
    """A clock that only goes on when a test says so: what is measured does not depend on the machine."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_the_first_updates_are_not_timed_and_enough_is_enough(clock):
    timer = UpdateTimer(CPU)
    for update in range(NUM_WARM_UP + NUM_TIMED):
        assert not timer.is_done
        clock[0] += 100 if update < NUM_WARM_UP else 0.5
        timer.update()
    assert timer.is_done and timer.seconds_per_update.values == [0.5] * NUM_TIMED
    timer.update()
    assert len(timer.seconds_per_update.values) == NUM_TIMED


def test_bursts_count_and_a_pause_does_not(clock):
    timer = UpdateTimer(CPU, num_timed=8)
    while not timer.is_done:
        clock[0] += 0 if len(timer.seconds_per_update.values) % 4 else 8  # four batches at once, every 8 seconds
        timer.update()
        clock[0] += 1000  # a validation
        timer.skip()
    assert timer.seconds_per_update.mean == 2


def test_slow_updates_are_timed_less_often(clock):
    timer = UpdateTimer(CPU)
    while not timer.is_done:
        clock[0] += 40
        timer.update()
    assert timer.seconds_per_update.values == [40.0] * 3


def tiny_pipeline(drop=0.5):
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=2,
        num_past_frames=2,
        num_frames=2,
        num_future_frames=1,
        block_out_channels=(8, 8),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        drop_past=drop,
        drop_future=drop,
    )
    pipe = MCVDPipeline(unet.eval(), DDIMScheduler(prediction_type="v_prediction"))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("drop", [0, 0.5, 1])
def test_the_time_of_a_video_grows_with_its_steps_and_few_network_calls_tell_it(drop, clock):
    pipe, calls = tiny_pipeline(drop), []

    def slow(*_):
        calls.append(1)
        clock[0] += 0.25

    pipe.unet.register_forward_pre_hook(slow)
    state = torch.get_rng_state()
    seconds = measure_sampling(pipe, num_inference_steps=200, height=8, width=8)
    assert len(calls) < 30 and torch.equal(torch.get_rng_state(), state)
    assert seconds.values == pytest.approx([200 * 0.25] * 3)
    assert measure_sampling(pipe, num_inference_steps=1, height=8, width=8).mean == pytest.approx(0.25)


def test_peak_memory_never_falls_and_sees_what_was_taken():
    before = peak_memory(CPU)
    now = psutil.Process().memory_info().rss
    taken = torch.ones((before - now) // 4 + 2**24)  # 64 MiB more than ever, so that it must rise
    assert peak_memory(CPU) > before and taken[-1] == 1
