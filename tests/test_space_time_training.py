"""Small networks of windows, trained for a minute or three: they learn what their systems are for."""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from mcvd_diffusers import MCVDPipeline, SpaceTimeUNetModel, denoising_loss
from mcvd_diffusers.masking import fdm_roles, ramvid_roles
from mcvd_diffusers.training import TrainingWindow, gather_window


def train(network, draw_window, *, num_updates, learning_rate=3e-3):
    """Adam, a learning rate that falls to 0, v-prediction and cosine noise; returns the pipeline."""
    noise = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate)
    generator = torch.Generator().manual_seed(0)
    for update in range(num_updates):
        scale = min(1, (update + 1) / 100) * (1 + math.cos(math.pi * update / num_updates)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * scale
        window = draw_window(generator)
        losses = denoising_loss(
            network,
            noise,
            window.video,
            window.roles,
            frame_indices=window.frame_indices,
            segment_ids=window.segment_ids,
            generator=generator,
        )
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    scheduler = DDIMScheduler.from_config(noise.config, timestep_spacing="trailing", clip_sample=True)
    pipe = MCVDPipeline(network.eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def make_network(**config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return SpaceTimeUNetModel(
            in_channels=1, layers_per_block=1, num_attention_heads=2, prediction_type="v_prediction", **config
        )


def squares(batch_size, generator, *, num_frames=8, size=8):
    """A square of 3x3 pixels that moves by -1, 0 or 1 pixel a frame in each direction, around the edges, (B, T, 1, 8, 8)."""
    start = torch.randint(size, (batch_size, 1, 2), generator=generator)
    speed = torch.randint(-1, 2, (batch_size, 1, 2), generator=generator)
    corner = (start + speed * torch.arange(num_frames)[:, None]) % size  # (B, T, 2)
    pixels = torch.arange(size)
    inside = [((pixels - corner[..., axis, None]) % size) < 3 for axis in (0, 1)]  # (B, T, size) each
    return ((inside[0][..., :, None] & inside[1][..., None, :]).float() * 2 - 1)[:, :, None]


@pytest.mark.slow
def test_ram_7_one_network_predicts_infills_and_generates():
    network = make_network(
        sample_size=8,
        max_frames=8,
        convolution="3d",
        attention="joint",
        temporal_position="none",
        mark_observed=False,
        block_out_channels=(16, 32),
        attention_levels=(1,),
        drop_observed=0.25,
    )

    def draw(generator):
        video = squares(16, generator)
        return TrainingWindow(video, ramvid_roles(16, num_frames=8, generator=generator))

    pipe = train(network, draw, num_updates=1200)
    clips = (squares(64, torch.Generator().manual_seed(1)) + 1) / 2
    options = {"num_inference_steps": 25, "generator": torch.Generator().manual_seed(2), "output_type": "pt"}

    predicted = pipe(past_frames=clips[:, :2], num_frames=6, **options).frames
    error = (predicted - clips[:, 2:]).square().mean().item()
    copied = (clips[:, 1:2] - clips[:, 2:]).square().mean().item()
    assert error < 0.8 * copied  # measured: 0.64
    infilled = pipe(past_frames=clips[:, :2], future_frames=clips[:, 6:], num_frames=4, **options).frames
    assert (infilled - clips[:, 2:6]).square().mean().item() < 0.8 * (
        clips[:, 1:2] - clips[:, 2:6]
    ).square().mean().item()
    generated = pipe(num_frames=8, batch_size=64, **options).frames
    # As bright as a video of one square, and moving as much.
    assert generated.mean().item() == pytest.approx(clips.mean().item(), abs=0.03)
    moves, true_moves = ((x[:, 1:] - x[:, :-1]).abs().mean().item() for x in (generated, clips))
    assert moves == pytest.approx(true_moves, rel=0.4)


HIDDEN = 8  # frames at each end of a long video that show its brightness


def long_videos(batch_size, generator, *, num_frames=64):
    """A clock in the first row; all else is bright or dark in the first and last frames, and grey between them."""
    times = torch.arange(num_frames)
    video = torch.zeros(batch_size, num_frames, 1, 4, 4)
    video[:, :, 0, 0] = (times[:, None] / (num_frames / 4) - torch.arange(4)).clamp(0, 1) * 2 - 1
    brightness = torch.where(torch.rand(batch_size, generator=generator) < 0.5, -1.0, 1.0)
    is_shown = (times < HIDDEN) | (times >= num_frames - HIDDEN)
    video[:, :, 0, 1:] = (brightness[:, None] * is_shown)[:, :, None, None]
    return video, brightness


@pytest.mark.slow
def test_fdm_10_what_only_the_first_frames_show_is_kept_by_a_hierarchy_and_lost_by_autoregression():
    network = make_network(
        sample_size=4,
        max_frames=8,
        block_out_channels=(32, 32),
        attention_levels=(1,),
        has_frame_gaps=True,
        drop_observed=0.7,
    )

    def draw(generator):
        video, _ = long_videos(32, generator)
        roles = fdm_roles(32, num_frames=64, max_frames=8, generator=generator)
        return gather_window(video, roles, 8, generator=generator)

    pipe = train(network, draw, num_updates=2500)
    video, brightness = long_videos(64, torch.Generator().manual_seed(5))
    kept = {}
    for name in ("hierarchy-2", "long-range", "autoreg"):
        made = pipe(
            past_frames=(video[:, :HIDDEN] + 1) / 2,
            num_frames=64 - HIDDEN,
            frame_schedule=name,
            step=4,
            num_inference_steps=20,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).frames
        shown = made[:, -HIDDEN:, 0, 1:].mean(dim=(1, 2, 3))
        kept[name] = (shown.sign() == brightness).float().mean().item()
    # Of 64 videos; by chance it is half of them, with a standard deviation of 0.06.
    assert kept["hierarchy-2"] > 0.8 and kept["long-range"] > 0.75
    assert kept["autoreg"] < 0.7
