"""A tiny model, a few clips and a protocol for them."""

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.protocols import Protocol


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=16,
        in_channels=1,
        num_past_frames=2,
        num_frames=3,
        num_future_frames=1,
        drop_past=0.5,
        drop_future=0.5,
        block_out_channels=(4, 4),
        down_block_types=("DownBlock2D",) * 2,
        layers_per_block=1,
    )
    folder = tmp_path_factory.mktemp("model") / "tiny"
    MCVDPipeline(unet, DDIMScheduler(prediction_type="v_prediction")).save_pretrained(folder)
    return folder


@pytest.fixture
def pipeline(model_folder):
    pipe = MCVDPipeline.from_pretrained(model_folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="session")
def videos(tmp_path_factory):
    """12 videos of a bright square that moves, 10 frames of 16 x 16."""
    rng = np.random.RandomState(0)
    video = rng.randint(0, 40, (12, 10, 1, 16, 16)).astype(np.uint8)
    for number in range(12):
        for t in range(10):
            y, x = rng.randint(0, 3) + t % 8, (number + t) % 10
            video[number, t, 0, y : y + 5, x : x + 5] = 230
    folder = tmp_path_factory.mktemp("videos")
    np.save(folder / "squares.npy", video)
    return folder


@pytest.fixture
def protocol():
    return Protocol(
        name="squares",
        version=1,
        title="squares, 2 given, 5 predicted",
        source="here",
        task="prediction",
        num_past_frames=2,
        num_frames=5,
        num_clips=12,
        clip_choice="random",
        samples_per_clip=3,
        best_of="each_metric",
        metrics=("psnr_of_video_mse", "psnr_frame_mean", "ssim", "mse"),
        ensemble_metrics=("crps", "fair_crps", "energy_score", "spread_skill_ratio", "rank_histogram"),
    )
