"""The networks of RaMViD, FDM and VDM: the originals' numbers; who sees whom; what may be given to them."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.utils import send_to_device

from mcvd_diffusers import FrameRole
from mcvd_diffusers.conversion.space_time_weights import convert_space_time_weights, recognise
from mcvd_diffusers.models import SpaceTimeUNetModel
from mcvd_diffusers.models.space_time_layers import FrameGroupNorm, WindowContext
from original_space_time import (
    CASES,
    adm_listing,
    load_network,
    load_reference,
    port_listing,
    roles_of,
)


# Measured: below 9e-6 for RaMViD and FDM, below 3e-6 for the port. The originals themselves differ by as much between float32
# and float64. Inputs a thousand times smaller go through normalisations that enlarge rounding.
ADM_TOLERANCES = {"out": 3e-5, "out2": 3e-5, "out_small": 5e-4, "time_embedding": 2e-6}
PORT_TOLERANCES = {"out": 1e-5, "out2": 1e-5, "out_small": 3e-5, "time_embedding": 5e-6}

# FDM's networks, published for CARLA at 128 px, and for 64 px with two residual blocks a level and with one.
FDM_SIZES = {
    "80.36 M": {"multiples": (1, 1, 2, 3, 4), "num_blocks": 1, "attention_levels": (3, 4)},
    "115.99 M": {"multiples": (1, 2, 3, 4), "num_blocks": 2, "attention_levels": (2, 3)},
    "78.42 M": {"multiples": (1, 2, 3, 4), "num_blocks": 1, "attention_levels": (2, 3)},
}
RAMVID_SIZES = {
    "235.07 M": {"multiples": (1, 2, 3, 4), "num_blocks": 2, "attention_levels": (2, 3)},
    "308.34 M": {"multiples": (1, 2, 3, 4), "num_blocks": 3, "attention_levels": (2, 3)},
}

TINY = {
    "in_channels": 1,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "num_attention_heads": 2,
}
VOLUME = {"convolution": "3d", "temporal_position": "none"}
POSITIONS = ("relative_network", "bias", "rotary", "bias_and_rotary", "none")
APART = {
    f"{backbone}-{position}": {"backbone": backbone, "temporal_position": position}
    for backbone in ("adm", "unet3d")
    for position in POSITIONS
}
TOGETHER = {
    "ramvid": VOLUME | {"attention": "joint", "mark_observed": False},
    "volume, factorised": VOLUME,
    "volume, positions": VOLUME | {"temporal_position": "relative_network"},
    "frames, joint": {"attention": "joint", "temporal_position": "none"},
}
KINDS = APART | TOGETHER
LONG = torch.tensor([0, 1, 2, 5, 40, 300])


def make(kind, **overrides):
    """A tiny network whose weights are away from zero, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SpaceTimeUNetModel(**TINY | KINDS[kind] | overrides).eval()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return network


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def run(network, *args, **kwargs):
    return network(*args, **kwargs).sample


def all_latent(sample):
    return torch.full(sample.shape[:2], FrameRole.LATENT)


def assert_close(got, expected, tolerance):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def assert_time_embedding(network, timesteps, expected, tolerance):
    """What the network makes of timesteps on its way."""
    seen = []
    handle = network.time_embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    sample = torch.zeros(len(timesteps), 1, network.config.in_channels, 8, 8)
    run(network, sample, timesteps, all_latent(sample))
    handle.remove()
    assert_close(seen[0], expected, tolerance)


# --------------------------------------------------------------------------------------------------------------------
# RaMViD


@pytest.mark.parametrize("case", ["ramvid_gray", "ramvid_rgb"])
def test_ram_4_networks_compute_what_the_original_computes(case):
    network, golden = load_network(case), load_reference(case)

    def ours(x, timesteps):
        sample = x.transpose(1, 2)  # (B, C, T, H, W) -> (B, T, C, H, W)
        return run(network, sample, timesteps, all_latent(sample)).transpose(1, 2)

    assert_close(ours(golden["x"], golden["t"]), golden["out"], ADM_TOLERANCES["out"])
    assert_close(ours(golden["x"], golden["t2"]), golden["out2"], ADM_TOLERANCES["out2"])
    assert_close(ours(golden["x"] * 1e-3, golden["t"]), golden["out_small"], ADM_TOLERANCES["out_small"])
    if "x_otherlen" in golden:
        assert golden["x_otherlen"].shape[2] != golden["x"].shape[2]
        assert_close(ours(golden["x_otherlen"], golden["t"][:1]), golden["out_otherlen"], ADM_TOLERANCES["out"])
    assert_time_embedding(network, golden["t"], golden["time_embedding"], ADM_TOLERANCES["time_embedding"])


@pytest.mark.parametrize("size", RAMVID_SIZES)
def test_ram_4_published_sizes_have_the_originals_parameters(size):
    assert_published("ramvid", adm_listing("ramvid", **RAMVID_SIZES[size]), float(size.split()[0]))


def test_ram_4_given_frames_are_told_by_their_lack_of_noise_alone():
    """Which frames are OBSERVED is no input of the network."""
    network, sample = make("ramvid"), noise(1, 4, 1, 8, 8)
    roles = torch.tensor([[1, 2, 2, 1]])
    assert torch.equal(run(network, sample, 5, roles), run(network, sample, 5, all_latent(sample)))


# --------------------------------------------------------------------------------------------------------------------
# FDM


def fdm_inputs(case):
    """A golden run's inputs in our convention, and its numbers."""
    golden, roles = load_reference(case), roles_of(case)
    assert torch.equal(roles == FrameRole.OBSERVED, golden["obs_mask"].flatten(1) > 0)
    assert torch.equal(roles == FrameRole.LATENT, golden["latent_mask"].flatten(1) > 0)
    sample = torch.where(golden["obs_mask"] > 0, golden["x0"], golden["x"])
    return sample, roles, golden


@pytest.mark.parametrize("case", ["fdm_pad", "fdm_nopad"])
def test_fdm_7_legacy_mode_computes_what_the_original_computes(case):
    network, (sample, roles, golden) = load_network(case), fdm_inputs(case)
    assert network.config.original_quirks

    def ours(sample, timesteps, roles):
        return run(network, sample, timesteps, roles, frame_indices=golden["frame_indices"])

    assert_close(ours(sample, golden["t"], roles), golden["out"], ADM_TOLERANCES["out"])
    assert_close(ours(sample, golden["t2"], roles), golden["out2"], ADM_TOLERANCES["out2"])
    assert_close(ours(sample * 1e-3, golden["t"], roles), golden["out_small"], ADM_TOLERANCES["out_small"])
    unconditional = torch.where(roles == FrameRole.OBSERVED, FrameRole.LATENT, roles)
    assert_close(ours(golden["x"], golden["t"], unconditional), golden["out_unconditional"], ADM_TOLERANCES["out"])
    assert_time_embedding(network, golden["t"], golden["time_embedding"], ADM_TOLERANCES["time_embedding"])


def test_fdm_7_legacy_mode_reads_padding_as_the_original_does_and_without_it_padding_is_isolated():
    sample, roles, golden = fdm_inputs("fdm_pad")
    is_there, changed = roles != FrameRole.ABSENT, sample.clone()
    changed[~is_there] = noise(*changed[~is_there].shape)
    for is_legacy in (True, False):
        network = load_network("fdm_pad", original_quirks=is_legacy)
        inputs = {"roles": roles, "frame_indices": golden["frame_indices"]}
        before = run(network, sample, golden["t"], **inputs)
        after = run(network, changed, golden["t"], **inputs)
        if is_legacy:
            assert (before - after)[is_there].abs().max() > 0.1
        else:
            assert torch.equal(before, after) and not before[~is_there].any()


def test_fdm_7_what_stands_in_absent_frames_changes_nothing_to_the_bit():
    sample, roles, golden = fdm_inputs("fdm_pad")
    network = load_network("fdm_pad", original_quirks=False)
    inputs = {"roles": roles, "frame_indices": golden["frame_indices"]}
    expected = run(network, sample, golden["t"], **inputs)
    for content in (float("nan"), float("inf"), 1e30):
        changed = sample.clone()
        changed[roles == FrameRole.ABSENT] = content
        assert torch.equal(run(network, changed, golden["t"], **inputs), expected)
    moved = torch.where(roles == FrameRole.ABSENT, -1000, golden["frame_indices"])
    moved = run(network, sample, golden["t"], roles, frame_indices=moved)
    assert torch.equal(moved, expected)  # nor where they are said to be


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("shift", [1, -7, 100_000])
def test_fdm_7_shifting_all_frame_indices_changes_nothing_to_the_bit(shift, is_legacy):
    sample, roles, golden = fdm_inputs("fdm_pad")
    network = load_network("fdm_pad", original_quirks=is_legacy)
    indices = golden["frame_indices"]
    expected = run(network, sample, golden["t"], roles, frame_indices=indices)
    assert torch.equal(run(network, sample, golden["t"], roles, frame_indices=indices + shift), expected)
    assert not torch.equal(run(network, sample, golden["t"], roles), expected)  # they are read


@pytest.mark.parametrize("is_legacy", [False, True])
def test_fdm_7_slots_in_another_order_give_the_same_in_that_order(is_legacy):
    sample, roles, golden = fdm_inputs("fdm_pad")
    network = load_network("fdm_pad", original_quirks=is_legacy)
    expected = run(network, sample, golden["t"], roles, frame_indices=golden["frame_indices"])
    for seed in range(3):
        order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
        indices = golden["frame_indices"][:, order]
        out = run(network, sample[:, order], golden["t"], roles[:, order], frame_indices=indices)
        assert_close(out, expected[:, order], 1e-5)


@pytest.mark.parametrize("size", FDM_SIZES)
def test_fdm_8_published_checkpoints_convert_key_for_key(size):
    assert_published("fdm", adm_listing("fdm", **FDM_SIZES[size]), float(size.split()[0]))


def assert_published(system, listing, millions=None):
    """Each name has a row, each of our parameters comes out of one row, in its shape, and nothing is left."""
    state = {name: torch.empty(shape, device="meta") for name, shape in listing.items()}
    found = recognise(state, "listing")
    with torch.device("meta"):
        network = SpaceTimeUNetModel(**found.config)
    assert found.system == system
    theirs = [row.theirs for row in found.rows]
    assert len(theirs) == len(set(theirs))
    assert set(theirs) == {name for name in listing if not name.endswith("rotary_emb.freqs")}
    ours = [name for row in found.rows for name in row.ours]
    assert len(ours) == len(set(ours)) and set(ours) == network.state_dict().keys()
    converted = convert_space_time_weights(state, found.rows, network, "listing")
    assert {name: value.shape for name, value in converted.items()} == {
        name: value.shape for name, value in network.state_dict().items()
    }
    assert network.num_parameters() == sum(torch.Size(listing[name]).numel() for name in theirs)
    assert millions in (None, round(network.num_parameters() / 1e6, 1 if system == "vdm" else 2))


@pytest.mark.parametrize("case", CASES)
def test_listings_of_names_are_the_originals(case):
    """The functions that list names for the published sizes give those of the originals where these are known."""
    config, expected = CASES[case]["config"], CASES[case]["state_dict"]
    if CASES[case]["system"] == "vdm":
        listing = port_listing(
            dim=config["dim"],
            multiples=config["dim_mults"],
            channels=config["channels"],
            heads=config.get("attn_heads", 8),
            head_dim=config.get("attn_dim_head", 32),
        )
    else:
        listing = adm_listing(
            CASES[case]["system"],
            multiples=config["channel_mult"],
            num_blocks=config["num_res_blocks"],
            attention_levels=[size.bit_length() - 1 for size in config["attention_resolutions"]],
            channels=config["in_channels"],
            width=config["model_channels"],
        )
    assert listing == {name: tuple(shape) for name, shape in expected.items()}
    assert sum(torch.Size(shape).numel() for shape in listing.values()) >= CASES[case]["n_params"]


# --------------------------------------------------------------------------------------------------------------------
# VDM


@pytest.mark.parametrize("case", ["vdm_gray_long", "vdm_rgb"])
def test_vdm_port_computes_what_the_original_computes(case):
    network, golden = load_network(case), load_reference(case)

    def ours(x, timesteps, segment_ids=None):
        sample = x.transpose(1, 2)  # (B, C, T, H, W) -> (B, T, C, H, W)
        return run(network, sample, timesteps, all_latent(sample), segment_ids=segment_ids).transpose(1, 2)

    assert_close(ours(golden["x"], golden["t"]), golden["out"], PORT_TOLERANCES["out"])
    assert_close(ours(golden["x"], golden["t2"]), golden["out2"], PORT_TOLERANCES["out2"])
    assert_close(ours(golden["x"] * 1e-3, golden["t"]), golden["out_small"], PORT_TOLERANCES["out_small"])
    if "x_long" in golden:
        assert_close(ours(golden["x_long"], golden["t"][:1]), golden["out_long"], PORT_TOLERANCES["out"])
    # To focus on the present is that each frame is a segment of its own.
    alone = torch.arange(golden["x"].shape[2]).expand(2, -1)
    mixed = torch.where(golden["focus_mixed"][:, None], alone, 0)
    assert_close(ours(golden["x"], golden["t"], mixed), golden["out_focus_mixed"], PORT_TOLERANCES["out"])
    assert_close(ours(golden["x"], golden["t"], alone), golden["out_focus_all"], PORT_TOLERANCES["out"])
    assert_time_embedding(network, golden["t"], golden["time_embedding"], PORT_TOLERANCES["time_embedding"])


@pytest.mark.parametrize("case", ["vdm_gray_long", "vdm_rgb"])
def test_vdm_port_puts_distances_into_the_originals_buckets(case):
    network, golden = load_network(case), load_reference(case)
    positions = torch.arange(40)
    distances = positions[:, None] - positions  # of query i to key j
    assert torch.equal(network.position_bias.buckets(distances), golden["rel_pos_bucket40"])
    for name in ("rel_pos_bias", "rel_pos_bias_long"):
        if name in golden:
            count = golden[name].shape[-1]
            bias = network.position_bias(distances[None, :count, :count])[0]
            assert torch.equal(bias, golden[name])


def test_vdm_port_converts_key_for_key_and_has_35_7_million_parameters():
    assert_published("vdm", port_listing(dim=64), 35.7)
    assert_published("vdm", port_listing(dim=64, condition=768))


def test_vdm_port_with_a_condition_reads_it_and_knows_what_none_is():
    network, sample = make("unet3d-bias_and_rotary", condition_dim=3), noise(2, 3, 1, 8, 8)
    roles, condition = all_latent(sample), noise(2, 3, seed=2)
    nothing = run(network, sample, 5, roles)
    assert not torch.equal(run(network, sample, 5, roles, condition=condition), nothing)
    learned = network.no_condition.expand(2, -1)
    assert torch.equal(run(network, sample, 5, roles, condition=learned), nothing)


def with_images(num_frames=16, num_images=4):
    """A clip, images behind it, and their segments; the last image is given."""
    sample = noise(1, num_frames + num_images, 1, 8, 8)
    segments = torch.tensor([[0] * num_frames + list(range(1, num_images + 1))])
    roles = all_latent(sample)
    roles[:, -1] = roles[:, 0] = FrameRole.OBSERVED
    return sample, roles, segments


@pytest.mark.parametrize("kind", APART)
def test_vdm_5_an_image_is_independent_of_every_other_frame_to_the_bit(kind):
    network, (sample, roles, segments) = make(kind), with_images(num_frames=6, num_images=3)
    expected = run(network, sample, 500, roles, segment_ids=segments)
    for image in (6, 7, 8):
        changed = noise(*sample.shape, seed=2)
        changed[:, image] = sample[:, image]
        out = run(network, changed, 500, roles, segment_ids=segments)
        assert torch.equal(out[:, image], expected[:, image])
        assert not torch.equal(out[:, :image], expected[:, :image])
    # And the clip of the images.
    changed = torch.cat([sample[:, :6], noise(1, 3, 1, 8, 8, seed=2)], dim=1)
    assert torch.equal(run(network, changed, 500, roles, segment_ids=segments)[:, :6], expected[:, :6])
    # Frames of one segment do see one another.
    changed = torch.cat([noise(1, 1, 1, 8, 8, seed=2), sample[:, 1:]], dim=1)
    assert not torch.equal(run(network, changed, 500, roles, segment_ids=segments)[:, 5], expected[:, 5])


@pytest.mark.parametrize("kind", APART)
def test_vdm_5_a_clip_is_the_same_with_images_behind_it_and_without(kind):
    network, (sample, roles, segments) = make(kind), with_images()
    with_them = run(network, sample, 500, roles, segment_ids=segments)[:, :16]
    absent = torch.where(segments > 0, FrameRole.ABSENT, roles)
    assert torch.equal(run(network, sample, 500, absent, segment_ids=segments)[:, :16], with_them)
    assert torch.equal(run(network, sample, 500, absent)[:, :16], with_them)
    # Without them batches have another size, for which other kernels are chosen: equal up to rounding.
    assert_close(run(network, sample[:, :16], 500, roles[:, :16]), with_them, 1e-5)


@pytest.mark.parametrize("kind", APART)
def test_vdm_5_a_clip_is_the_same_without_images_up_to_rounding_of_float64(kind):
    network, (sample, roles, segments) = make(kind).double(), with_images()
    with_them = run(network, sample.double(), 500, roles, segment_ids=segments)
    assert_close(with_them[:, :16], run(network, sample[:, :16].double(), 500, roles[:, :16]), 1e-10)
    alone = run(network, sample[:, 17:18].double(), 500, roles[:, 17:18])
    assert_close(with_them[:, 17:18], alone, 1e-10)


@pytest.mark.parametrize("kind", TOGETHER)
def test_vdm_5_a_network_that_mixes_frames_refuses_segments(kind):
    network, (sample, roles, segments) = make(kind), with_images()
    assert not network.keeps_segments_apart
    with pytest.raises(ValueError, match="`segment_ids` must be None for this network"):
        run(network, sample, 500, roles, segment_ids=segments)


def test_vdm_5_the_ports_first_attention_leaks_as_the_original_and_ours_does_not():
    sample, roles, segments = with_images(num_frames=4, num_images=2)
    changed = torch.cat([noise(1, 4, 1, 8, 8, seed=2), sample[:, 4:]], dim=1)
    for is_original in (True, False):
        network = make("unet3d-bias_and_rotary", original_quirks=is_original)
        out, other = (run(network, x, 500, roles, segment_ids=segments)[:, 4:] for x in (sample, changed))
        assert torch.equal(out, other) is not is_original


# --------------------------------------------------------------------------------------------------------------------
# Whatever the kind


@pytest.mark.parametrize("kind", KINDS)
def test_absent_frames_change_nothing_to_the_bit_and_come_out_as_zero(kind):
    network, sample, timesteps = make(kind), noise(2, 6, 1, 9, 7), torch.tensor([5, 700])
    roles = torch.tensor([[1, 2, 2, 1, 0, 0], [1, 2, 0, 2, 0, 2]])
    expected = run(network, sample, timesteps, roles)
    is_absent = roles == FrameRole.ABSENT
    for content in (float("nan"), -float("inf"), 1e30):
        changed = sample.clone()
        changed[is_absent] = content
        assert torch.equal(run(network, changed, timesteps, roles), expected)
    assert not expected[is_absent].any() and expected[~is_absent].all() and expected.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_with_absent_frames_behind_it_is_the_shorter_clip(kind):
    network, sample = make(kind).double(), noise(1, 6, 1, 8, 8).double()
    roles = torch.tensor([[1, 2, 2, 1, 0, 0]])
    out = run(network, sample, 300, roles)
    assert_close(out[:, :4], run(network, sample[:, :4], 300, roles[:, :4]), 1e-10)


@pytest.mark.parametrize("kind", [*APART, "frames, joint"])
def test_absent_frames_in_between_are_as_if_cut_out(kind):
    """But for volumes, whose convolutions see that there is a gap."""
    network, sample = make(kind).double(), noise(1, 6, 1, 8, 8).double()
    roles = torch.tensor([[1, 0, 2, 0, 2, 2]])
    kept = [0, 2, 4, 5]
    indices = LONG[None]
    out = run(network, sample, 300, roles, frame_indices=indices)[:, kept]
    cut = run(network, sample[:, kept], 300, roles[:, kept], frame_indices=indices[:, kept])
    assert_close(out, cut, 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_a_clip_of_a_batch_does_not_depend_on_absent_frames_of_others(kind):
    network, sample = make(kind).double(), noise(2, 4, 1, 8, 8).double()
    roles = torch.tensor([[1, 2, 2, 2], [0, 2, 0, 2]])
    assert_close(run(network, sample, 300, roles)[:1], run(network, sample[:1], 300, roles[:1]), 1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_in_which_all_frames_are_absent_are_finite(kind):
    network, sample = make(kind), noise(2, 3, 1, 8, 8)
    roles = torch.tensor([[0, 0, 0], [1, 2, 2]])
    out = run(network, sample, 300, roles)
    assert not out[0].any() and out[1].isfinite().all()


@pytest.mark.parametrize("position", POSITIONS)
def test_frame_indices_matter_where_positions_do_and_only_their_differences(position):
    network, sample = make(f"adm-{position}"), noise(1, 6, 1, 8, 8)
    roles = all_latent(sample)
    consecutive = run(network, sample, 300, roles)
    indices = LONG[None]
    out = run(network, sample, 300, roles, frame_indices=indices)
    assert torch.equal(out, consecutive) is (position == "none")
    shifted = run(network, sample, 300, roles, frame_indices=indices + 1000)
    assert torch.equal(shifted, out)
    assert torch.equal(run(network, sample, 300, roles, frame_indices=indices + 10**8), out)
    assert torch.equal(run(network, sample, 300, roles, frame_indices=torch.arange(6)[None]), consecutive)


@pytest.mark.parametrize("kind", ["adm-relative_network", "ramvid", "unet3d-bias_and_rotary"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 3), (13, 2)], ids=str)
@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_any_size_and_any_length(kind, size, num_frames):
    network, sample = make(kind), noise(1, num_frames, 1, *size)
    roles = all_latent(sample)
    roles[:, 0] = FrameRole.OBSERVED
    out = run(network, sample, 300, roles)
    assert out.shape == sample.shape and out.isfinite().all()


@pytest.mark.parametrize("backbone", ["adm", "unet3d"])
@pytest.mark.parametrize("channels", [1, 2, 3, 8])
def test_any_number_of_channels_and_widths(backbone, channels):
    network = make(f"{backbone}-none", in_channels=channels, block_out_channels=(12, 20, 36), attention_levels=[0, 2])
    sample = noise(1, 2, channels, 10, 6)
    out = run(network, sample, 300, all_latent(sample))
    assert out.shape == sample.shape and out.isfinite().all() and network.size_multiple == 4


def test_frames_of_odd_size_are_padded_by_repeating_their_edge():
    """The padded frame, cut: what the network makes of it does not depend on who pads."""
    network, sample = make("ramvid"), noise(1, 3, 1, 7, 5)
    padded = torch.nn.functional.pad(sample.flatten(0, 1), (0, 1, 0, 1), mode="replicate").unflatten(0, (1, 3))
    roles = all_latent(sample)
    assert torch.equal(run(network, sample, 300, roles), run(network, padded, 300, roles)[..., :7, :5])


@pytest.mark.parametrize("is_legacy", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_finite_and_do_not_reach_absent_frames(kind, is_legacy):
    network, sample = make(kind, original_quirks=is_legacy).train(), noise(2, 5, 1, 8, 8)
    roles = torch.tensor([[1, 2, 2, 0, 0], [0, 2, 0, 2, 2]])
    sample = sample.requires_grad_()
    network(sample, torch.tensor([0, 999]), roles).sample[roles == FrameRole.LATENT].square().mean().backward()
    gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not gradient.isfinite().all()] == []
    assert [name for name, gradient in gradients.items() if not gradient.any()] == []
    assert sample.grad.isfinite().all() and sample.grad[roles == FrameRole.LATENT].any()
    if not (is_legacy and network.config.backbone == "adm"):
        assert not sample.grad[roles == FrameRole.ABSENT].any()


@pytest.mark.parametrize("kind", ["adm-relative_network", "ramvid", "unet3d-bias_and_rotary"])
def test_gradient_checkpointing_changes_no_gradient(kind):
    sample, roles = noise(2, 4, 1, 8, 8), torch.tensor([[1, 2, 2, 0], [2, 2, 2, 2]])
    gradients = []
    for is_checkpointing in (False, True):
        network = make(kind).train()
        if is_checkpointing:
            network.enable_gradient_checkpointing()
        network(sample, 300, roles).sample.square().mean().backward()
        gradients.append([parameter.grad for parameter in network.parameters()])
    for without, with_it in zip(*gradients):
        assert_close(with_it, without, 1e-6)


def test_normalisation_of_volumes_in_half_precision_is_that_of_single_precision():
    """Sums over all frames are larger than float16's largest number."""
    norm = FrameGroupNorm(32)
    volume = 20 * noise(1, 32, 4, 32, 32) + 3
    context = WindowContext(4, None, torch.tensor([[True, False, True, True]]), torch.zeros(1), torch.zeros(1))
    expected = norm(volume, context)
    for dtype, tolerance in ((torch.float16, 5e-3), (torch.bfloat16, 5e-2)):
        assert_close(norm.to(dtype)(volume.to(dtype), context).float(), expected, tolerance)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_takes_frames_that_are_far_apart_and_pixels_that_are_zero(kind, dtype):
    network, sample = make(kind), noise(1, 5, 1, 8, 8)
    if network.config.backbone == "unet3d":
        torch.nn.init.zeros_(network.conv_in.conv.bias)  # then what is ABSENT stays zero in the first layers
    inputs = {"roles": torch.tensor([[1, 2, 2, 0, 2]]), "frame_indices": torch.tensor([[0, 1, 70_000, 5, 500_000]])}
    expected = run(network, sample, 300, **inputs)
    out = run(network.to(dtype), sample.to(dtype), 300, **inputs)
    # Rounding is a few percent; positions that became infinite, or sums that did, would be more than that.
    assert (out.float() - expected).norm() < 0.15 * expected.norm()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_wait_elsewhere_for_their_turn_compute_the_same(kind):
    """As Accelerate's sequential offloading has it: when the network is called, none of its weights is there."""
    network, sample = make(kind), noise(1, 4, 1, 8, 8)
    roles = torch.tensor([[1, 2, 0, 2]])
    expected = run(network, sample, 5, roles)
    cpu_offload(network, execution_device=torch.device("cpu"))
    assert next(network.parameters()).is_meta
    assert torch.equal(run(network, sample, 5, roles), expected)


@pytest.mark.parametrize("kind", ["ramvid", "unet3d-bias_and_rotary"])
def test_accelerate_moves_what_layers_are_told_of_a_window_with_its_feature_maps(kind):
    """Of a network whose layers are on several devices."""
    network, sample, contexts = make(kind), noise(1, 3, 1, 8, 8), []
    network.mid_block.register_forward_pre_hook(lambda module, args: contexts.append(args[1]))
    segments = torch.zeros(1, 3, dtype=torch.long) if network.keeps_segments_apart else None
    run(network, sample, 5, torch.tensor([[1, 2, 0]]), segment_ids=segments)
    moved = send_to_device({"context": contexts[0]}, "meta")["context"]
    for name, value in vars(contexts[0]).items():
        values, now = (x if isinstance(x, tuple) else (x,) for x in (value, getattr(moved, name)))
        for before, after in zip(values, now, strict=True):
            assert after.device.type == "meta" if torch.is_tensor(before) else after == before, name


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_network_is_the_same(kind, tmp_path):
    network, sample = make(kind), noise(1, 4, 1, 8, 8)
    network.save_pretrained(tmp_path)
    loaded = SpaceTimeUNetModel.from_pretrained(tmp_path)
    roles = torch.tensor([[1, 2, 0, 2]])
    assert torch.equal(run(loaded, sample, 5, roles), run(network, sample, 5, roles))
    assert dict(loaded.config).items() >= KINDS[kind].items()


def test_a_fresh_network_begins_as_nothing():
    """The last convolution is zero, as in the originals' UNet."""
    network = SpaceTimeUNetModel(**TINY)
    sample = noise(1, 3, 1, 8, 8)
    assert not run(network, sample, 5, all_latent(sample)).any()


# --------------------------------------------------------------------------------------------------------------------
# What is refused


GOOD = {"sample": torch.zeros(2, 3, 1, 8, 8), "timestep": 5, "roles": torch.full((2, 3), 2)}


@pytest.mark.parametrize(
    "argument, value, says",
    [
        ("sample", torch.zeros(2, 3, 8, 8), "must have shape"),
        ("sample", torch.zeros(2, 3, 2, 8, 8), "must have 1 channels a frame, got 2"),
        ("sample", torch.zeros(2, 0, 1, 8, 8), "must have shape"),
        ("roles", torch.full((2, 4), 2), r"must have shape \(2, 3\), got \(2, 4\)"),
        ("roles", torch.full((2, 3), 2.0), "must be integers, got torch.float32"),
        ("roles", torch.ones(2, 3, dtype=torch.bool), "must be integers, got torch.bool"),
        ("frame_indices", torch.arange(3), "must have shape"),
        ("frame_indices", torch.zeros(2, 3), "must be integers"),
        ("segment_ids", torch.zeros(2, 2, dtype=torch.long), "must have shape"),
        ("segment_ids", torch.zeros(2, 3), "must be integers"),
        ("condition", torch.zeros(2, 3), "must be None"),
        ("timestep", torch.tensor([1, 2, 3]), r"must be a number or have shape \(\), \(1,\) or \(2,\), got \(3,\)"),
        ("timestep", torch.zeros(2, 2), "must be a number or have shape"),
    ],
)
def test_bad_inputs_are_refused_by_name(argument, value, says):
    network = make("adm-none")
    with pytest.raises(ValueError, match=f"`{argument}` {says}"):
        run(network, **GOOD | {argument: value})


@pytest.mark.parametrize(
    "condition", [torch.zeros(2, 4), torch.zeros(1, 3), torch.zeros(3)], ids=lambda x: str(x.shape)
)
def test_conditions_of_another_shape_are_refused(condition):
    network = make("unet3d-none", condition_dim=3)
    with pytest.raises(ValueError, match=r"`condition` must have shape \(2, 3\)"):
        run(network, **GOOD, condition=condition)


BAD_CONFIGS = [
    ("sample_size", 0),
    ("sample_size", (8,) * 3),
    ("sample_size", "8"),
    ("sample_size", True),
    ("in_channels", 0),
    ("in_channels", 1.0),
    ("in_channels", True),
    ("in_channels", 10**9),
    ("max_frames", 0),
    ("backbone", "resnet"),
    ("backbone", ["adm"]),
    ("convolution", "4d"),
    ("attention", "none"),
    ("temporal_position", "sinusoidal"),
    ("mark_observed", 1),
    ("mark_observed", None),
    ("has_frame_gaps", "yes"),
    ("original_quirks", 0),
    ("prediction_type", "noise"),
    ("prediction_type", 1),
    ("block_out_channels", ()),
    ("block_out_channels", (2,)),
    ("block_out_channels", 16),
    ("block_out_channels", (16, "32")),
    ("block_out_channels", (16,) * 17),
    ("layers_per_block", 0),
    ("layers_per_block", 10**6),
    ("attention_levels", (2,)),
    ("attention_levels", (-1,)),
    ("attention_levels", 1),
    ("num_attention_heads", 0),
    ("num_attention_heads", 3),
    ("attention_head_dim", 0),
    ("attention_head_dim", "8"),
    ("condition_dim", -1),
    ("condition_dim", 4),
    ("dropout", 1.0),
    ("dropout", -0.1),
    ("dropout", "0"),
    ("dropout", float("nan")),
    ("drop_observed", 1.1),
    ("drop_observed", None),
    ("num_train_timesteps", 0),
]


@pytest.mark.parametrize("argument, value", BAD_CONFIGS)
def test_bad_configs_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        SpaceTimeUNetModel(**TINY | {argument: value})


@pytest.mark.parametrize(
    "config, argument",
    [
        ({"backbone": "unet3d", "convolution": "3d"}, "backbone"),
        ({"backbone": "unet3d", "attention": "joint", "temporal_position": "none"}, "backbone"),
        ({"attention": "joint"}, "temporal_position"),
        ({"temporal_position": "rotary", "attention_head_dim": 1}, "temporal_position"),
        ({"backbone": "unet3d", "block_out_channels": (16, 30), "num_attention_heads": 4}, "num_attention_heads"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(config, argument):
    with pytest.raises(ValueError, match=f"`{argument}"):
        SpaceTimeUNetModel(**TINY | config)
