"""What a run will cost: arithmetic of the estimate, and measurements that follow what is measured."""

import time
from collections import Counter

import psutil
import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from context_pipelines import CONTEXTS, context_pipeline
from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.cost import (
    NUM_TIMED,
    NUM_WARM_UP,
    CostEstimate,
    Spread,
    UpdateTimer,
    measure_sampling,
    peak_flops,
    peak_memory,
    training_flops,
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
    assert estimate(max_seconds=60).is_cut_short and not estimate().is_cut_short
    assert estimate().updates_in_time == 36_000 and estimate(max_seconds=60).updates_in_time == 600
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


@pytest.mark.parametrize(
    ("kind", "shares"),
    [(kind, None) for kind in CONTEXTS]
    + [("lgcvd", shares) for shares in ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 0.5, 0.5, 0))],
)
def test_a_video_of_a_network_with_a_context_encoder_is_one_window(kind, shares, clock):
    """Whatever it was trained for."""
    pipe = context_pipeline(kind, **{"drop_observed": shares[1], "task_shares": shares} if shares else {})

    def slow(*_):
        clock[0] += 0.25

    pipe.unet.register_forward_pre_hook(slow)
    assert measure_sampling(pipe, num_inference_steps=1, height=8, width=8).mean == pytest.approx(0.25)


@pytest.mark.parametrize("kind", CONTEXTS)
def test_operations_of_an_encoder_are_those_of_what_it_reads_in_training(kind):
    """A memory reads a clip; RVD's networks all frames but the last; MCVD's predictor the past, and then what it predicted."""
    pipe = context_pipeline(kind)
    encoder, config, num_frames = pipe.context_encoder, pipe.unet.config, 4
    windows = {"lgcvd": 6, "rvd": num_frames}.get(kind)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as counter:
            if kind in ("lgcvd", "memory"):
                context = encoder(torch.zeros(1, 4, 1, 8, 8), averages=False)
            elif kind == "rvd":
                context = encoder(torch.zeros(1, num_frames + 1, 1, 8, 8), each_frame=True)
                context.features = tuple(x[:, 1:] for x in context.features)
            else:
                context = encoder(torch.zeros(1, 2, 1, 8, 8), num_frames=2)
            size = windows or config.num_past_frames + config.num_frames + config.num_future_frames
            told = {"context": context.features} if context.features else {}
            pipe.unet(torch.zeros(1, size, 1, 8, 8), 0, torch.full((1, size), 2), **told)
    counted = training_flops(pipe.unet, height=8, width=8, num_frames=windows, context_encoder=encoder)
    assert counted == 3 * counter.get_total_flops()


def test_peak_memory_never_falls_and_sees_what_was_taken():
    before = peak_memory(CPU)
    now = psutil.Process().memory_info().rss
    taken = torch.ones((before - now) // 4 + 2**24)  # 64 MiB more than ever, so that it must rise
    assert peak_memory(CPU) > before and taken[-1] == 1


class OneConvolution(ModelMixin, ConfigMixin):
    """A network with the signature of all, of one convolution over the whole window."""

    @register_to_config
    def __init__(
        self, in_channels=3, num_past_frames=2, num_frames=1, num_future_frames=1, width=7, reads_values=False
    ):
        super().__init__()
        self.conv = torch.nn.Conv2d(4 * in_channels, width, 3, padding=1)

    def forward(self, sample, timestep, roles, return_dict=True):
        if self.config.reads_values:
            assert roles.tolist() == [[1, 1, 2, 1]]
        return (self.conv(sample.flatten(1, 2)),)


@pytest.mark.parametrize("reads_values", [False, True])
def test_a_convolution_has_the_flops_of_the_textbook(reads_values):
    unet = OneConvolution(reads_values=reads_values)
    assert training_flops(unet, height=10, width=6) == 3 * (2 * (10 * 6) * (3 * 3) * (4 * 3) * 7)


def counted_by_hooks(unet, height, width):
    """Operations of all layers with weights, and of attention, in one call of this very network."""
    flops = Counter()

    def convolution(module, inputs, output):
        flops["convolution"] += 2 * module.weight.numel() * output[0, 0].numel()

    def linear(module, inputs, output):
        flops["linear"] += 2 * module.weight.numel() * output.numel() // output.shape[-1]

    def attention(module, inputs, output):
        _, channels, *size = inputs[0].shape
        flops["attention"] += 2 * 2 * channels * (size[0] * size[1]) ** 2

    def resampling(module, inputs, output):
        smaller = min(inputs[0][0, 0].numel(), output[0, 0].numel())  # a pixel there meets the kernel once
        flops["resampling"] += 2 * 16 * inputs[0].shape[1] * smaller

    for module in unet.modules():
        kind = type(module).__name__
        counters = {"Conv2d": convolution, "Linear": linear, "MCVDAttention": attention}
        counters["MCVDFirResample2D"] = resampling
        if kind in counters:
            module.register_forward_hook(counters[kind])
    roles = torch.tensor([[1] * 2 + [2] * 2 + [1]])
    with torch.no_grad():
        unet(torch.zeros(1, 5, 1, height, width), 0, roles)
    return flops


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_training_flops_are_those_of_convolutions_linear_layers_and_attention_three_times(conditioning):
    unet = MCVDUNet2DModel(
        in_channels=1,
        num_past_frames=2,
        num_frames=2,
        num_future_frames=1,
        conditioning=conditioning,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,
        dropout=0.1,
    ).train()
    unet.mid_block.eval()
    state, weights = torch.get_rng_state(), {name: x.clone() for name, x in unet.state_dict().items()}
    modes = [module.training for module in unet.modules()]
    flops = training_flops(unet, height=16, width=8)
    assert torch.equal(torch.get_rng_state(), state) and [module.training for module in unet.modules()] == modes
    assert all(torch.equal(weights[name], x) for name, x in unet.state_dict().items())
    assert all(parameter.grad is None and parameter.device == CPU for parameter in unet.parameters())

    counted = counted_by_hooks(unet.eval(), 16, 8)
    assert counted["attention"] > 0 and flops == 3 * sum(counted.values())


def test_what_a_matrix_multiplication_reaches_is_measured_quickly():
    state, started = torch.get_rng_state(), time.perf_counter()
    reached = peak_flops(CPU, torch.float32)
    assert time.perf_counter() - started < 3 and torch.equal(torch.get_rng_state(), state)  # about 0.2 s when idle
    left, right = torch.randn(2, 512, 512)
    started = time.perf_counter()
    for _ in range(5):
        left @ right
    assert reached > 0.2 * 5 * 2 * 512**3 / (time.perf_counter() - started)
