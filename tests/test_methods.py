"""What each method is in training: networks as published, windows as its paper draws them, and runs from end to end."""

import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from PIL import Image

import train_mcvd
from mcvd_diffusers import FrameRole, MCVDPipeline, MCVDUNet2DModel, denoising_loss, mcvd_roles
from mcvd_diffusers.cost import _forward_flops, training_flops
from mcvd_diffusers.data import ClipDataset, ClipsWithImages, ImageReader, MovingDigits
from mcvd_diffusers.masking import fdm_roles, ramvid_roles
from mcvd_diffusers.methods import make_method
from mcvd_diffusers.models import SpaceTimeUNetModel
from mcvd_diffusers.noise_schedules import cosine_logsnr
from mcvd_diffusers.presets import PRESETS, preset


ABSENT, OBSERVED, LATENT = FrameRole
# Methods, and MCVD with what LGC-VD and RVD have.
METHODS = ["mcvd", "mcvd-memory", "mcvd-own", "mcvd-residual", "ramvid", "fdm", "vdm", "lgcvd", "rvd"]
OF_WINDOWS = ["ramvid", "fdm", "vdm"]
WITH_ENCODER = ["mcvd-memory", "mcvd-residual", "lgcvd", "rvd"]
OTHERS = OF_WINDOWS + ["mcvd-own"] + WITH_ENCODER
TINY = {
    "resolution": 16,
    "block_out_channels": [8, 8],
    "train_batch_size": 4,
    "num_train_clips": 64,
    "max_train_steps": 3,
    "lr_warmup_steps": 1,
    "logging_steps": 1,
    "num_validation_videos": 2,
    "validation_inference_steps": 2,
    "report_to": "none",
}
BLOCKS = {"num_past_frames": 2, "num_frames": 2, "num_future_frames": 1}
OWN = {
    "mcvd": BLOCKS,
    "mcvd-memory": {"method": "mcvd", **BLOCKS, "clip_memory": True, "own_predictions": True},
    "mcvd-own": {"method": "mcvd", **BLOCKS, "own_predictions": True},
    "mcvd-residual": {"method": "mcvd", **BLOCKS, "residual": True, "predictor_channels": [8, 16]},
    "lgcvd": {"max_frames": 5},
    "rvd": {"clip_frames": 5, "num_attention_heads": 2, "attention_head_dim": 4},
    "ramvid": {"max_frames": 5, "max_observed": 2, "num_attention_heads": 2},
    "fdm": {"max_frames": 5, "clip_frames": 9, "num_attention_heads": 2},
    "vdm": {"max_frames": 5, "num_joint_images": 2, "num_attention_heads": 2},
}


def parse(output_dir, **settings):
    flags = []
    for name, value in {**settings, "output_dir": output_dir}.items():
        flags += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return train_mcvd.parse_args(flags)


def method_of(name, output_dir, **settings):
    settings = {"method": name, **TINY, **OWN[name], **settings}
    return make_method(parse(output_dir, **{key: x for key, x in settings.items() if x is not None}))


def run(output_dir, **settings):
    return train_mcvd.main(parse(output_dir, **{**TINY, **settings}))


def generators(count, start=0):
    return [torch.Generator().manual_seed(start + number) for number in range(count)]


def numbered(count, num_frames):
    """Each pixel says which clip and frame it is of: 100 * clip + frame."""
    numbers = 100.0 * torch.arange(count)[:, None] + torch.arange(num_frames)
    return numbers[:, :, None, None, None].expand(-1, -1, 1, 2, 2)


# --------------------------------------------------------------------------------------------------------------------
# Networks


PUBLISHED = {  # millions of parameters, counted by instantiating the originals
    "ramvid-bair": 235.07,
    "ramvid-k600": 308.34,
    "ramvid-ucf101": 308.34,
    "fdm-gqn-mazes": 115.99,
    "fdm-minerl": 115.99,
    "fdm-carla": 80.36,
    "vdm-64": 35.7,
    # 63.4 + 33.1 in the original, whose attention on the way up is one level off (converted checkpoints have it there).
    "lgcvd-bair": 96.9,
    "lgcvd-cityscapes": 96.9,
    "rvd-bair": 37.6,
    "rvd-kth": 37.6,
    "rvd-cityscapes": 43.6,
    "rvd-simulation": 43.6,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset_has_the_size_of_the_published_network(name, tmp_path):
    (tmp_path / "data").mkdir()
    settings = parse(tmp_path / "out", preset=name, train_data_dir=tmp_path / "data")
    stated = preset(name)
    assert settings.model.method == stated["method"] == name.split("-")[0]
    for key, value in stated.items():
        assert settings.as_dict()[key] == ([value[0], value[-1]] if key == "resolution" else value)
    with torch.device("meta"):
        components = make_method(settings).make_components()
    count = sum(parameter.numel() for parameter in components.parameters()) / 1e6
    assert round(count, 2 if stated["method"] in ("ramvid", "fdm") else 1) == pytest.approx(PUBLISHED[name])
    assert components["unet"].config.max_frames == stated.get("max_frames", 1)


def test_every_preset_of_another_method_is_tested():
    assert set(PUBLISHED) == {name for name in PRESETS if "method" in preset(name)}
    assert preset("fdm-carla") is not preset("fdm-carla")


@pytest.mark.parametrize("name", ["mcvd", *OF_WINDOWS])
def test_network_says_what_it_is_trained_for(name, tmp_path):
    config = method_of(name, tmp_path).make_network().config
    assert config.prediction_type == "v_prediction" and config.sample_size == [16, 16] and config.in_channels == 1
    if name == "mcvd":
        assert (config.drop_past, config.drop_future, config.num_frames) == (0.5, 0.5, 2)
        return
    assert config.max_frames == 5 and config.has_frame_gaps == (name == "fdm")
    assert config.mark_observed == (name == "fdm") and (config.convolution == "3d") == (name == "ramvid")
    if name == "fdm":  # how often it is given nothing is counted
        roles = fdm_roles(20_000, num_frames=9, max_frames=5, generator=torch.Generator().manual_seed(1))
        share = (roles != OBSERVED).all(dim=1).double().mean()
        assert config.drop_observed == pytest.approx(float(share), abs=0.03)
    else:
        assert config.drop_observed == {"ramvid": 0.25, "vdm": 1.0}[name]


def test_network_and_encoder_say_what_they_are_trained_for(tmp_path):
    made = {name: method_of(name, tmp_path).make_components() for name in WITH_ENCODER}
    configs = {name: components["unet"].config for name, components in made.items()}
    assert configs["lgcvd"].drop_observed == 0.4 and configs["lgcvd"].num_context_frames == 2
    assert configs["rvd"].drop_observed == 0.0 and configs["rvd"].residual
    assert configs["mcvd-memory"].context_channels == 8 and not configs["mcvd-memory"].residual
    assert configs["mcvd-residual"].residual and not configs["mcvd-residual"].context_channels
    encoders = {name: components["context_encoder"] for name, components in made.items()}
    assert {name: encoder.clip_frames for name, encoder in encoders.items()} == {
        "mcvd-memory": 4,  # past and block
        "mcvd-residual": None,
        "lgcvd": 5,
        "rvd": None,
    }
    assert encoders["mcvd-residual"].config.predictor_block_out_channels == [8, 16]
    plain = method_of("rvd", tmp_path, residual=False).make_components()
    assert not plain["unet"].config.residual and not plain["context_encoder"].predicts_frames
    shares = method_of("lgcvd", tmp_path, task_shares=[1, 0, 0, 0]).make_network().config
    assert shares.drop_observed == 0


@pytest.mark.parametrize("name", METHODS)
def test_network_follows_from_the_seed_and_leaves_the_global_stream_alone(name, tmp_path):
    state = torch.get_rng_state()
    first, again = (method_of(name, tmp_path).make_network() for _ in range(2))
    other = method_of(name, tmp_path, seed=1).make_network()
    assert torch.equal(torch.get_rng_state(), state)
    weights = [network.state_dict() for network in (first, again, other)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert any(not torch.equal(weights[0][key], weights[2][key]) for key in weights[0])


@pytest.mark.parametrize("name", OF_WINDOWS)
def test_arithmetic_is_counted_where_nothing_is_computed(name, tmp_path):
    network = method_of(name, tmp_path).make_network()
    counts = [_forward_flops(network, device, 16, 16, 7) for device in ("meta", "cpu")]
    assert counts[0] == counts[1] > 1e6
    assert training_flops(network, height=16, width=16, num_frames=7) == 3 * counts[0]
    assert (
        training_flops(network, height=16, width=16) == 3 * _forward_flops(network, "meta", 16, 16, 5) < 3 * counts[0]
    )


# --------------------------------------------------------------------------------------------------------------------
# Windows


def test_mcvd_draws_what_it_always_drew(tmp_path):
    method = method_of("mcvd", tmp_path, drop_past=0.3)
    video = numbered(8, 5)
    drawn, streams = method.draw({"video": video}, generators(8)), generators(8)
    shape = {"num_past_frames": 2, "num_frames": 2, "num_future_frames": 1}
    assert torch.equal(drawn.roles, mcvd_roles(8, **shape, drop_past=0.3, drop_future=0.5, generator=streams))
    assert torch.equal(drawn.video, video) and drawn.frame_indices is None and drawn.segment_ids is None
    method.draw({"video": video}, used := generators(8))
    assert all(torch.equal(a.get_state(), b.get_state()) for a, b in zip(used, streams))


def test_ramvid_sees_the_clip(tmp_path):
    drawn = method_of("ramvid", tmp_path, drop_observed=0.5).draw({"video": numbered(8, 5)}, generators(8))
    roles = ramvid_roles(8, num_frames=5, max_observed=2, drop_observed=0.5, generator=generators(8))
    assert torch.equal(drawn.roles, roles) and drawn.frame_indices is None and drawn.segment_ids is None


def test_fdm_sees_a_few_frames_of_a_long_clip(tmp_path):
    method = method_of("fdm", tmp_path, max_frames=6, clip_frames=40)
    drawn = method.draw({"video": numbered(8, 40)}, generators(8))
    roles = fdm_roles(8, num_frames=40, max_frames=6, generator=generators(8))
    assert drawn.video.shape == (8, 6, 1, 2, 2) and method.num_clip_frames == 40 and method.num_seen_frames == 6
    for clip in range(8):
        for slot in range(6):
            position = drawn.frame_indices[clip, slot]
            if drawn.roles[clip, slot] != ABSENT:
                assert drawn.roles[clip, slot] == roles[clip, position]
                assert (drawn.video[clip, slot] == 100 * clip + position).all()
    assert not method.depends_on_batch
    assert method_of("fdm", tmp_path, fill_with_other_clips=True).depends_on_batch


def test_vdm_sees_frames_of_other_clips_as_images(tmp_path):
    method = method_of("vdm", tmp_path, num_joint_images=4)
    drawn = method.draw({"video": numbered(4, 5)}, generators(4))
    assert drawn.video.shape == (4, 9, 1, 2, 2) and (drawn.roles == LATENT).all() and method.num_seen_frames == 9
    assert drawn.segment_ids.tolist() == [[0] * 5 + [1, 2, 3, 4]] * 4
    assert torch.equal(drawn.video[:, :5], numbered(4, 5))
    sources = (drawn.video[:, 5:, 0, 0, 0] / 100).floor().long()
    assert sources.tolist() == [[1, 2, 3, 1], [2, 3, 0, 2], [3, 0, 1, 3], [0, 1, 2, 0]]
    alone = method.draw({"video": numbered(1, 5)}, generators(1))
    assert (alone.video[0, 5:] < 100).all()  # there is no other
    assert method.depends_on_batch
    images = numbered(4, 4) + 1000
    drawn = method.draw({"video": numbered(4, 5), "images": images}, generators(4))
    assert torch.equal(drawn.video[:, 5:], images)
    assert not method_of("vdm", tmp_path, num_joint_images=0).depends_on_batch


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("is_filled", [False, True])
def test_padding_is_neither_given_nor_learned(name, is_filled, tmp_path):
    method = method_of(name, tmp_path, fill_with_other_clips=True if is_filled and name == "fdm" else None)
    num_frames = method.num_clip_frames
    is_padding = torch.zeros(16, num_frames, dtype=torch.bool)
    is_padding[:, 3:] = True
    drawn = method.draw({"video": numbered(16, num_frames), "is_padding": is_padding}, generators(16))
    frames = drawn.video[:, :, 0, 0, 0] % 100
    assert (drawn.roles[frames >= 3] == ABSENT).all()
    assert (drawn.roles[frames < 3] == LATENT).any()
    if method.num_stages > 1:
        batch = {"video": numbered(16, num_frames), "is_padding": is_padding}
        after = method.draw_next(drawn, batch, drawn.video)
        frames = after.video[:, :, 0, 0, 0] % 100
        assert (after.roles[frames >= 3] == ABSENT).all()


@pytest.mark.parametrize("name", METHODS)
def test_window_of_a_clip_does_not_depend_on_the_batch_unless_it_says_so(name, tmp_path):
    method = method_of(name, tmp_path, num_joint_images=0 if name == "vdm" else None)
    assert not method.depends_on_batch
    together = method.draw({"video": numbered(6, method.num_clip_frames)}, generators(6))
    for clip in range(6):
        video = numbered(6, method.num_clip_frames)[clip : clip + 1]
        alone = method.draw({"video": video}, generators(1, start=clip))
        for field in ("video", "roles", "frame_indices", "before"):
            both = getattr(together, field), getattr(alone, field)
            assert both == (None, None) or torch.equal(both[0][clip : clip + 1], both[1])


def test_what_fills_a_window_is_one_more_sample_of_generation(tmp_path):
    """The network's answer for the clip is the same with other frames there, and nothing given is not learned."""
    method = method_of("fdm", tmp_path, fill_with_other_clips=True)
    torch.manual_seed(0)
    network = method.make_network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    video = torch.rand(4, 9, 1, 16, 16) * 2 - 1
    drawn = method.draw({"video": video}, generators(4))
    is_other = drawn.segment_ids == 1
    assert is_other.any() and (drawn.roles[is_other] == LATENT).all()
    changed = torch.where(is_other[:, :, None, None, None], torch.rand_like(drawn.video), drawn.video)
    places = {"frame_indices": drawn.frame_indices, "segment_ids": drawn.segment_ids}
    with torch.no_grad():
        first, second = (network(x, 500, drawn.roles, **places).sample for x in (drawn.video, changed))
    assert torch.equal(first[~is_other], second[~is_other]) and not torch.equal(first[is_other], second[is_other])


@pytest.mark.parametrize("name", METHODS)
def test_loss_has_a_gradient_for_every_weight(name, tmp_path):
    method = method_of(name, tmp_path)
    components = method.make_components()
    encoder = dict(components.items()).get("context_encoder")
    with torch.no_grad():
        for parameter in components.parameters():  # a new network answers zero
            parameter.add_(0.05 * torch.randn_like(parameter))
    clips = {"video": torch.rand(8, method.num_clip_frames, 1, 16, 16) * 2 - 1}
    scheduler, drawn, estimate = DDPMScheduler(prediction_type="v_prediction"), None, None
    for stage in range(method.num_stages):
        drawn = method.draw_next(drawn, clips, estimate) if stage else method.draw(clips, generators(8))
        losses, estimate = denoising_loss(
            components["unet"],
            scheduler,
            drawn.video,
            drawn.roles,
            frame_indices=drawn.frame_indices,
            segment_ids=drawn.segment_ids,
            generator=generators(8),
            context=method.encode(encoder, drawn),
            return_estimate=True,
        )
        losses.sum().backward()
    without = [key for key, x in components.named_parameters() if x.grad is None or not x.grad.any()]
    assert without == []


def test_mcvd_learns_from_a_past_of_its_own_making(tmp_path):
    """The second window begins a block later; its past is what was made of the first one's block."""
    method = method_of("mcvd-own", tmp_path)
    assert method.num_stages == 2 and method.num_clip_frames == 7
    clips = {"video": numbered(3, 7)}
    first = method.draw(clips, generators(3))
    assert first.video[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    second = method.draw_next(first, clips, first.video + 1000)
    assert second.video[0, :, 0, 0, 0].tolist() == [1002, 1003, 4, 5, 6]
    assert torch.equal(second.roles, first.roles) and second.before is None
    remembering = method_of("mcvd-memory", tmp_path)
    first = remembering.draw(clips, generators(3))
    assert first.before.shape[1] == 0
    assert remembering.draw_next(first, clips, first.video + 1000).before[0, :, 0, 0, 0].tolist() == [
        1000,
        1001,
        1002,
        1003,
    ]
    true = method_of("mcvd-memory", tmp_path, own_predictions=False)
    after = true.draw_next(first, clips, None)
    assert after.video[0, :, 0, 0, 0].tolist() == [2, 3, 4, 5, 6]
    assert after.before[0, :, 0, 0, 0].tolist() == [0, 1, 2, 3]


def test_mcvds_residual_is_of_what_the_past_foretells_where_there_is_a_past(tmp_path):
    method = method_of("mcvd-residual", tmp_path)
    encoder = method.make_components()["context_encoder"]
    drawn = method.draw({"video": torch.rand(8, 5, 1, 16, 16) * 2 - 1}, generators(8))
    context = method.encode(encoder, drawn)
    expected = encoder(drawn.video[:, :2], num_frames=2).mean
    has_past = drawn.roles[:, 0] == OBSERVED
    assert 0 < has_past.sum() < 8 and context.features == () and context.scale == 1.0
    torch.testing.assert_close(context.mean[has_past][:, 2:4], expected[has_past])
    assert not context.mean[~has_past].any() and not context.mean[:, [0, 1, 4]].any()


# --------------------------------------------------------------------------------------------------------------------
# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_frames": 8}, "--max_frames is for --method ramvid or fdm or vdm or lgcvd, and means nothing for mcvd"),
        ({"method": "lgcvd", "residual": True}, "--residual is for --method mcvd or rvd, and means nothing for lgcvd"),
        ({"method": "lgcvd", "clip_memory": True}, "--clip_memory is for --method mcvd"),
        ({"method": "lgcvd", "max_frames": 2}, "--max_frames must be at least 3 for --method lgcvd"),
        (
            {"method": "lgcvd", "task_shares": [0.5, 0.6, 0, 0]},
            "--task_shares must be four probabilities whose sum is 1",
        ),
        ({"method": "lgcvd", "prediction_type": "epsilon"}, "--own_predictions learn from what the network takes"),
        ({"method": "rvd", "clip_frames": 2}, "--clip_frames must be at least 3 for --method rvd"),
        ({"method": "rvd", "residual": False, "residual_scale": 2.0}, "--residual_scale means nothing without"),
        ({"method": "rvd", "residual_scale": 0.0}, "--residual_scale must be a positive number"),
        ({"method": "rvd", "dropout": 0.1}, "--dropout is for --method mcvd"),
        ({"clip_memory": True, "residual": True}, "--clip_memory and --residual both bring a context encoder"),
        ({"residual": True, "num_past_frames": 0}, "--residual predicts from past frames"),
        ({"own_predictions": True, "num_past_frames": 0}, "--own_predictions become the past of a second window"),
        ({"predictor_channels": [8]}, "--predictor_channels means nothing without --residual"),
        (
            {"method": "ramvid", "num_past_frames": 2},
            "--num_past_frames is for --method mcvd, and means nothing for ramvid",
        ),
        ({"method": "fdm", "drop_past": 0.1}, "--drop_past is for --method mcvd"),
        ({"method": "fdm", "max_observed": 2}, "--max_observed is for --method ramvid"),
        ({"method": "ramvid", "clip_frames": 20}, "--clip_frames is for --method fdm"),
        ({"method": "vdm", "attention_levels": [1]}, "--attention_levels is for --method ramvid or fdm"),
        ({"method": "ramvid", "temporal_position": "bias"}, "--temporal_position is for --method fdm or vdm"),
        ({"method": "fdm", "num_joint_images": 2}, "--num_joint_images is for --method vdm"),
        ({"method": "fdm", "max_frames": 9, "clip_frames": 8}, "--clip_frames (8) must be at least --max_frames (9)"),
        (
            {"method": "ramvid", "max_frames": 4, "max_observed": 4},
            "--max_observed must be from 1 to --max_frames - 1 (3)",
        ),
        ({"method": "ramvid", "drop_observed": 1.5}, "--drop_observed must be in [0, 1], got 1.5"),
        ({"method": "vdm", "num_joint_images": -1}, "--num_joint_images must not be negative, got -1"),
        (
            {"method": "vdm", "num_joint_images": 4, "train_batch_size": 1},
            "--num_joint_images 4 takes single frames of the other clips of a batch, and --train_batch_size 1 has none",
        ),
        ({"method": "ramvid", "max_frames": 1}, "--max_frames must be at least 2 for --method ramvid"),
        (
            {"preset": "ramvid-bair", "block_out_channels": [16, 32], "train_data_dir": "."},
            "--attention_levels must be from 0, the finest, to 1, since --block_out_channels has 2 entries, got 2 3, which is"
            " --preset ramvid-bair's: pass --attention_levels, too.",
        ),
        ({"method": "fdm", "attention_levels": 3}, "--block_out_channels has 3 entries, got 3.\n"),
        ({"method": "vdm", "max_frames": 0}, "--max_frames must be at least 1, got 0"),
        ({"method": "vdm", "image_data_dir": "does/not/exist"}, "--image_data_dir does/not/exist is no folder"),
        (
            {"method": "vdm", "image_data_dir": ".", "num_joint_images": 0},
            "--image_data_dir means nothing with --num_joint_images 0",
        ),
        ({"method": "vdm", "preset": "fdm-carla"}, "--preset fdm-carla is of --method fdm, got --method vdm"),
        ({"method": "rdv"}, "invalid choice: 'rdv'"),
        ({"preset": "ramvid-bair"}, "--preset ramvid-bair is for your copy of its data: pass --train_data_dir"),
    ],
)
def test_setting_that_the_method_cannot_use_is_refused(settings, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        parse(tmp_path / "out", **settings)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ramvid", "fdm", "vdm"])
def test_method_alone_is_enough(name, tmp_path):
    settings = parse(tmp_path / "out", method=name)
    assert settings.model.max_frames == 16 and settings.model.resolution == [16, 16]
    assert settings.num_window_frames == (32 if name == "fdm" else 16)
    assert make_method(settings).make_network().config.max_frames == 16


def test_batch_of_one_clip_has_images_only_from_a_folder(tmp_path):
    (tmp_path / "images").mkdir()
    parsed = [
        parse(tmp_path / "out", method="vdm", **more)
        for more in ({}, {"train_batch_size": 1}, {"train_batch_size": 1, "image_data_dir": tmp_path / "images"})
    ]
    assert [settings.training.num_joint_images for settings in parsed] == [4, 0, 4]


@pytest.mark.parametrize("name", ["ramvid", "fdm", "vdm"])
@pytest.mark.parametrize("max_frames", [2, 3])
def test_the_smallest_windows_are_trained_and_sampled(name, max_frames, tmp_path, caplog):
    own = {"max_frames": max_frames, "num_attention_heads": 2, "max_train_steps": 1}
    with caplog.at_level("INFO"):
        folder = run(tmp_path / "out", method=name, **{**own, **({"num_joint_images": 1} if name == "vdm" else {})})
    assert "warning: there are no validation videos" not in caplog.text
    assert (folder / "samples" / "step-1" / "prediction.gif").is_file()


def test_mcvd_has_none_of_the_others_settings(tmp_path):
    settings = parse(tmp_path / "out").as_dict()
    names = ("max_frames", "clip_frames", "attention_levels", "num_attention_heads", "temporal_position")
    names += ("max_observed", "drop_observed", "num_joint_images", "image_data_dir", "task_shares")
    names += ("predictor_channels", "residual_scale")
    assert settings["method"] == "mcvd" and {settings[name] for name in names} == {None}


# --------------------------------------------------------------------------------------------------------------------
# Runs


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("mcvd", "--num_past_frames, --num_frames, --num_future_frames and"),
        ("ramvid", "--max_frames and"),
        ("fdm", "--clip_frames, twice --max_frames if not given, and"),
        ("vdm", "--max_frames and"),
        ("lgcvd", "--max_frames and"),
        ("rvd", "--clip_frames and"),
    ],
)
def test_videos_too_short_for_a_clip_name_the_methods_flags(name, flags, tmp_path):
    np.save(tmp_path / "videos.npy", np.zeros((8, 3, 16, 16, 1), np.uint8))
    data = {"train_data_dir": tmp_path / "videos.npy", "axes": "NTHWC", "validation_fraction": 0.4}
    settings = parse(tmp_path / "out", method=name, report_to="none", **OWN[name], **data)
    with pytest.raises(train_mcvd.SetupError) as caught:
        train_mcvd.main(settings)
    way_out = f" (Flags: {flags} --frame_stride make a clip's length; --pad_short_videos.)"
    assert "too short: 3 frames where" in str(caught.value) and str(caught.value).endswith(way_out)


@pytest.mark.parametrize("name", ["mcvd-own", *WITH_ENCODER])
def test_training_of_memory_residuals_and_own_predictions_saves_a_pipeline(name, tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = run(tmp_path / "out", **{"method": name, **OWN[name]})
    assert "warning: there are no validation videos" not in caplog.text and "prediction: PSNR" in caplog.text
    has_encoder = name in WITH_ENCODER
    for variant in (None, "ema"):
        pipe = MCVDPipeline.from_pretrained(folder, variant=variant)
        assert (pipe.context_encoder is not None) == has_encoder
        pipe.set_progress_bar_config(disable=True)
        made = pipe(past_frames=torch.rand(1, 2, 1, 16, 16), num_frames=7, num_inference_steps=2, output_type="pt")
        assert made.frames.shape == (1, 7, 1, 16, 16)
    if has_encoder:  # which has learned, and has an average of its own
        new = method_of(name, tmp_path / "new").make_components()["context_encoder"].state_dict()
        raw, averaged = (
            type(pipe.context_encoder)
            .from_pretrained(folder, subfolder="context_encoder", variant=variant)
            .state_dict()
            for variant in (None, "ema")
        )
        for key in ("conv_in.weight",) if "conv_in.weight" in new else list(new)[:1]:
            assert not torch.equal(new[key], raw[key]) and not torch.equal(raw[key], averaged[key])
    # A residual may be as large as from -1 to 1.
    expected = 2.0 if name in ("rvd", "mcvd-residual") else 1.0
    assert pipe.scheduler.config.clip_sample_range == expected


@pytest.mark.parametrize("name", ["mcvd-memory", "mcvd-residual", "lgcvd", "rvd"])
def test_run_with_an_encoder_goes_on_to_the_last_bit(name, tmp_path):
    """Also where an update is of several batches and stages."""
    common = {"method": name, **OWN[name], "num_validation_videos": 0, "gradient_accumulation_steps": 2}
    common |= {
        "lr_scheduler": "constant",
        "max_train_steps": 3,
        "checkpointing_steps": 2,
        "checkpoints_total_limit": 0,
    }
    whole = run(tmp_path / "whole", **common)
    AcceleratorState._reset_state(reset_partial_state=True)
    flags = ["--output_dir", str(tmp_path / "rest"), "--resume_from_checkpoint", str(whole / "checkpoint-2")]
    rest = train_mcvd.main(train_mcvd.parse_args(flags))
    names = sorted(path.relative_to(whole) for path in whole.glob("*/*.safetensors"))
    assert len([x for x in names if x.parts[0] in ("unet", "context_encoder")]) == 4
    for path in names:
        if path.parts[0] in ("unet", "context_encoder"):
            assert (whole / path).read_bytes() == (rest / path).read_bytes(), path


@pytest.mark.parametrize("name", OF_WINDOWS)
def test_training_saves_a_pipeline_that_does_every_task(name, tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = run(tmp_path / "out", method=name, **OWN[name])
    assert "warning: there are no validation videos" not in caplog.text
    for task in ("prediction", "interpolation", "generation"):
        assert (folder / "samples" / "step-3" / f"{task}.gif").is_file()
    assert "prediction: PSNR" in caplog.text and "parameters" in caplog.text
    for variant in (None, "ema"):
        unet = SpaceTimeUNetModel.from_pretrained(folder, subfolder="unet", variant=variant)
        assert unet.config.max_frames == 5
    pipe = MCVDPipeline.from_pretrained(folder, variant="ema")
    pipe.set_progress_bar_config(disable=True)
    for key, value in make_method(parse(tmp_path / "x", method=name, **OWN[name])).pipeline_settings().items():
        assert pipe.config[key] == value
    past, future = torch.rand(1, 2, 1, 16, 16), torch.rand(1, 1, 1, 16, 16)
    options = {"num_frames": 2, "num_inference_steps": 2, "output_type": "pt"}
    for given in (
        {"past_frames": past},
        {"future_frames": future},
        {"past_frames": past, "future_frames": future},
        {},
    ):
        assert pipe(**given, **options).frames.shape == (1, 2, 1, 16, 16)


def test_vdm_7_training_takes_its_noise_by_name(tmp_path):
    folder = run(tmp_path / "out", method="vdm", beta_schedule="cosine_logsnr", **OWN["vdm"])
    scheduler = MCVDPipeline.from_pretrained(folder).scheduler
    expected = torch.tensor([1 / (1 + math.exp(-cosine_logsnr((step + 1) / 1000))) for step in range(1000)])
    torch.testing.assert_close(scheduler.alphas_cumprod, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["ramvid", "fdm", "vdm"])
def test_training_goes_on_with_a_saved_pipeline(name, tmp_path, capsys):
    first = run(tmp_path / "first", method=name, prediction_type="epsilon", **OWN[name])
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny = {key: x for key, x in TINY.items() if key not in ("resolution", "block_out_channels")}
    settings = parse(tmp_path / "second", **tiny, pretrained_model_name_or_path=first)
    assert settings.model.method == name and settings.model.max_frames == 5
    assert settings.training.prediction_type == "epsilon" and settings.model.block_out_channels == [8, 8]
    network = make_method(settings).make_network()
    for key, weight in SpaceTimeUNetModel.from_pretrained(first, subfolder="unet").state_dict().items():
        assert torch.equal(network.state_dict()[key], weight)
    second = train_mcvd.main(settings)
    assert MCVDPipeline.from_pretrained(second).unet.config.prediction_type == "epsilon"
    capsys.readouterr()
    with pytest.raises(SystemExit):
        parse(tmp_path / "third", method="mcvd", pretrained_model_name_or_path=first)
    assert f"--method is mcvd, but {first} has the network of {name}" in capsys.readouterr().err


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_training_goes_on_with_a_saved_pipeline_and_its_encoder(name, tmp_path, capsys):
    first = run(tmp_path / "first", **{"method": name, **OWN[name]})
    AcceleratorState._reset_state(reset_partial_state=True)
    tiny = {key: x for key, x in TINY.items() if key not in ("resolution", "block_out_channels")}
    settings = parse(tmp_path / "second", **tiny, pretrained_model_name_or_path=first, resolution=8)
    before = parse(tmp_path / "third", **{"method": name, **TINY, **OWN[name]})
    for flag in ("method", "clip_memory", "residual", "predictor_channels", "residual_scale", "block_out_channels"):
        theirs = getattr(before.model, flag)
        if flag == "predictor_channels" and theirs is None and before.model.residual:
            theirs = before.model.block_out_channels
        assert getattr(settings.model, flag) == theirs, flag
    components = make_method(settings).make_components()
    saved = MCVDPipeline.from_pretrained(first)
    for part in ("unet", "context_encoder"):
        for key, weight in getattr(saved, part).state_dict().items():
            assert torch.equal(components[part].state_dict()[key], weight)
    second = MCVDPipeline.from_pretrained(train_mcvd.main(settings))
    assert type(second.context_encoder) is type(saved.context_encoder)
    assert second.unet.config.sample_size == second.context_encoder.config.sample_size == [8, 8]


def test_mcvds_pipeline_brings_its_method(tmp_path, capsys):
    first = run(tmp_path / "first", **OWN["mcvd"], num_validation_videos=0)
    assert isinstance(MCVDPipeline.from_pretrained(first).unet, MCVDUNet2DModel)
    with pytest.raises(SystemExit):
        parse(tmp_path / "second", method="fdm", pretrained_model_name_or_path=first)
    assert f"--method is fdm, but {first} has the network of mcvd" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*OF_WINDOWS, *WITH_ENCODER])
def test_training_that_saves_memory_learns_the_same(name, tmp_path):
    common = {"method": name, "num_validation_videos": 0, "use_ema": False, "adam_epsilon": 1e-2, **OWN[name]}
    first = run(tmp_path / "a", **common)
    AcceleratorState._reset_state(reset_partial_state=True)
    second = run(tmp_path / "b", gradient_checkpointing=True, **common)
    pipes = [MCVDPipeline.from_pretrained(folder) for folder in (first, second)]
    for part in ("unet", "context_encoder") if name in WITH_ENCODER else ("unet",):
        first, second = (getattr(pipe, part).state_dict() for pipe in pipes)
        for key in first:
            torch.testing.assert_close(first[key], second[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", OTHERS)
def test_estimate_tells_what_it_would_cost(name, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert run("", **{"method": name, "estimate": True, **OWN[name]}) is None
    assert "a video" in caplog.text and "parameters" in caplog.text


# --------------------------------------------------------------------------------------------------------------------
# Images beside clips


def write_images(folder, count=5, size=20):
    (folder / "deep" / "deeper").mkdir(parents=True)
    random = np.random.RandomState(0)
    for number in range(count):
        place = folder / ("deep/deeper" if number % 2 else "")
        suffix = ("png", "jpg")[number % 3 == 0]
        Image.fromarray(random.randint(0, 256, (size + number, size, 3), np.uint8)).save(place / f"{number}.{suffix}")
    return folder


def test_images_of_any_tree_get_the_size_and_form_of_the_clips(tmp_path):
    reader = ImageReader(write_images(tmp_path / "images"))
    assert [reader.name(number) for number in range(5)] == [
        "0.jpg",
        "2.png",
        "4.png",
        "deep/deeper/1.png",
        "deep/deeper/3.jpg",
    ]
    images = ClipDataset(reader, num_frames=1, frame_size=(16, 16), num_channels=1)
    clips = MovingDigits(np.ones((1, 4, 4), np.float32), num_clips=6, num_frames=3, canvas_size=(16, 16))
    both = ClipsWithImages(clips, images, num_images=2)
    item = both[3]
    assert item["video"].shape == (3, 1, 16, 16) and item["images"].shape == (2, 1, 16, 16)
    assert -1 <= item["images"].min() < -0.5 and 0.5 < item["images"].max() <= 1
    assert torch.equal(item["video"], clips[3]["video"]) and len(both) == 6
    batch = both[[(1, 3), (0, 3), (0, 5)]]
    assert torch.equal(batch["images"][1], item["images"]) and batch["images"].shape == (3, 2, 1, 16, 16)
    assert not torch.equal(batch["images"][0], batch["images"][1])
    seen = {float(image.mean()) for epoch in range(20) for image in both[epoch, 0]["images"]}
    assert len(seen) == 5  # each comes up
    assert both.fingerprint != clips.fingerprint


def test_output_inside_the_images_is_refused(tmp_path, capsys):
    images = write_images(tmp_path / "images")
    with pytest.raises(SystemExit):
        parse(images / "deep" / "out", method="vdm", image_data_dir=images)
    assert "lies inside --image_data_dir" in capsys.readouterr().err


def test_broken_images_are_skipped_and_named(tmp_path):
    folder = write_images(tmp_path / "images")
    (folder / "broken.png").write_bytes(b"no image")
    with pytest.warns(UserWarning, match="Skipped 1 of 6 images that can not be used: broken.png"):
        images = ClipDataset(ImageReader(folder), num_frames=1, frame_size=(8, 8))
    assert len(images) == 5 and list(images.skipped) == ["broken.png"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="`folder` must hold images"):
        ImageReader(tmp_path / "empty")
    settings = parse(tmp_path / "out", method="vdm", image_data_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"--image_data_dir .*empty: the folder must hold images .* holds no files\."):
        train_mcvd.make_datasets(settings, settings.num_window_frames)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_with_images_beside_the_clips(num_workers, tmp_path):
    images = write_images(tmp_path / "images")
    folder = run(
        tmp_path / "out",
        method="vdm",
        image_data_dir=images,
        dataloader_num_workers=num_workers,
        num_validation_videos=0,
        **OWN["vdm"],
    )
    assert MCVDPipeline.from_pretrained(folder).unet.config.drop_observed == 1
    settings = parse(tmp_path / "again", **{**TINY, **OWN["vdm"]}, method="vdm", image_data_dir=images)
    train, held_out = train_mcvd.make_datasets(settings, settings.num_window_frames)
    assert train[0]["images"].shape == (2, 1, 16, 16) and "images" not in held_out[0]
    assert not make_method(settings).depends_on_batch


# --------------------------------------------------------------------------------------------------------------------
# A network and its encoder, in other circumstances


@pytest.mark.parametrize("name", WITH_ENCODER)
def test_mixed_precision_trains_both(name, tmp_path):
    folder = run(tmp_path / "out", **{"method": name, **OWN[name]}, mixed_precision="bf16", num_validation_videos=0)
    pipe = MCVDPipeline.from_pretrained(folder)
    for part in (pipe.unet, pipe.context_encoder):
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in part.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_ENCODER)
def test_two_processes_equal_one_with_the_double_batch(name, tmp_path):
    """Also where an update is of several batches and stages: gradients of both networks are averaged."""
    common = {"method": name, **TINY, **OWN[name], "num_validation_videos": 0, "use_ema": False}
    common |= {"adam_epsilon": 1e-2, "gradient_accumulation_steps": 2}
    flags = [
        word
        for key, value in {**common, "train_batch_size": 2, "output_dir": tmp_path / "two"}.items()
        for word in (f"--{key}", *map(str, value if isinstance(value, list) else [value]))
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    script = str(Path(train_mcvd.__file__))
    out = subprocess.run([*launcher, script, *flags], check=True, env=environment, capture_output=True, text=True)
    assert "on 2 x cpu" in out.stderr + out.stdout
    run(tmp_path / "one", **{**common, "train_batch_size": 4})
    one, two = (MCVDPipeline.from_pretrained(tmp_path / which) for which in ("one", "two"))
    for part in ("unet", "context_encoder"):
        for key, weight in getattr(one, part).state_dict().items():
            torch.testing.assert_close(weight, getattr(two, part).state_dict()[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["rvd", "mcvd-residual"])
def test_predictions_reach_as_far_as_the_data(name, tmp_path):
    """Standardised values go beyond 1, and so must what is read and predicted."""
    random = np.random.RandomState(0)
    np.save(tmp_path / "videos.npy", random.standard_normal((8, 9, 16, 16, 1)).astype(np.float32) ** 3)
    data = {"train_data_dir": tmp_path / "videos.npy", "axes": "NTHWC", "validation_fraction": 0.4}
    data |= {"normalization": "mean_std", "method": name, **OWN[name], "num_train_clips": None}
    settings = {key: x for key, x in {**TINY, **data}.items() if x is not None}
    pipe = MCVDPipeline.from_pretrained(train_mcvd.main(parse(tmp_path / "out", **settings)))
    largest = pipe.normalizer.largest_value
    assert largest > 3 and pipe.context_encoder.config.clip_range == largest
    assert pipe.scheduler.config.clip_sample_range == 2 * largest


def test_mcvds_predictions_are_of_the_same_past_in_training_and_at_sampling(tmp_path):
    """A block's mean follows from the past before it alone, however long the video is by then."""
    method = method_of("mcvd-residual", tmp_path)
    components = method.make_components()
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample_range=2.0)
    pipe = MCVDPipeline(**components, scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    means, denoise = [], pipe.denoise

    def spy(*args, context, **options):
        means.append(context.mean)
        return denoise(*args, context=context, **options)

    pipe.denoise = spy
    past = torch.rand(1, 2, 1, 16, 16)
    options = {"num_inference_steps": 1, "output_type": "latent", "return_given_frames": True}
    made = pipe(past_frames=past, num_frames=6, generator=torch.Generator().manual_seed(0), **options).frames
    for number, mean in enumerate(means):
        window = made[:, 2 * number : 2 * number + 2]
        torch.testing.assert_close(mean, components["context_encoder"](window, num_frames=2).mean)
    assert len(means) == 3
