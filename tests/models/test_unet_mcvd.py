"""MCVDUNet2DModel: parity with the original, roles, shapes. What Diffusers asks of it is in `tests/contracts`."""

import inspect
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mcvd_diffusers import FrameRole, MCVDUNet2DModel
from mcvd_diffusers.conversion import reference_network
from mcvd_diffusers.masking import block_roles
from mcvd_diffusers.models import unet_mcvd
from original_mcvd import (
    CASES,
    block_of,
    build_unet,
    load_reference,
    load_rule_weights,
    original_state_dict,
    window,
)


NETWORKS = [
    "concat_gray_p2k2",
    "concat_gray_p2k2f2",
    "concat_gray_4level_p5k5",
    "concat_gray_p2k2f2_condemb",
    "spatin_gray_p2k2",
]

TINY = {
    "sample_size": 16,
    "in_channels": 1,
    "num_past_frames": 2,
    "num_frames": 3,
    "num_future_frames": 2,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "layers_per_block": 1,
    "spatin_channels": 8,
}


def tiny_unet(conditioning="concat", **overrides):
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(**{**TINY, "conditioning": conditioning, **overrides})
    with torch.no_grad():  # the last layers start at nearly zero, which would hide mistakes
        for parameter in unet.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return unet.eval()


def roles_for(unet, batch_size=2, past=True, future=True):
    return block_roles(
        batch_size,
        num_past_frames=unet.config.num_past_frames,
        num_frames=unet.config.num_frames,
        num_future_frames=unet.config.num_future_frames,
        is_past_kept=torch.full((batch_size,), past),
        is_future_kept=torch.full((batch_size,), future),
    )


def random_window(unet, batch_size=2, height=16, width=16, seed=0):
    shape = (batch_size, unet.num_window_frames, unet.config.in_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --------------------------------------------------------------------------------------------------------------------
# Parity


def original_forward(unet, x, label, cond, past_kept, *, cached):
    """Our network called as the original is. The frames come from `cond`, the embedded mask from `past_kept`."""
    sample = window(unet, x, cond)
    kept = torch.ones(len(x), dtype=torch.bool) if past_kept is None else past_kept.bool()
    roles = roles_for(unet, len(x))
    roles[~kept, : unet.config.num_past_frames] = FrameRole.ABSENT
    # The original tells the embedding and masks the frames in two places, and its golden cases let them differ.
    is_plain = past_kept is None
    conditioning = None
    if cached or not is_plain:
        conditioning = unet.encode_conditioning(sample, roles_for(unet, len(x)))
    with torch.no_grad():
        return block_of(unet, unet(sample, 999 - label, roles, conditioning=conditioning).sample)


@pytest.mark.parametrize("cached", [False, True], ids=["every_step", "once_a_window"])
@pytest.mark.parametrize("case", NETWORKS)
def test_against_mcvd_unet(case, cached):
    unet = load_rule_weights(build_unet(CASES[case]["config"])).eval()
    golden = load_reference(case)
    assert sum(parameter.numel() for parameter in unet.parameters()) == CASES[case]["n_params"]

    def check(name, x, label, cond, past_kept, model=unet, tolerance=5e-5):
        out = original_forward(model, x, label, cond, past_kept, cached=cached)
        torch.testing.assert_close(out.float(), golden[name], atol=tolerance, rtol=0)

    mask = golden.get("cond_mask")
    no_mask = None if mask is None else torch.zeros_like(mask)
    x, label, cond = golden["x"], golden["t"], golden["cond"]
    check("out", x, label, cond, mask)
    check("out2", x, golden["t2"], cond, golden.get("cond_mask2"))
    check("out_cond0", x, label, torch.zeros_like(cond), no_mask)
    if "out_mask_none" in golden:
        check("out_mask_none", x, label, cond, None)
    # A thousandth of the input exposes a wrong epsilon in a normalisation, but also blows up rounding, differently on
    # each kind of CPU; in float64 what is left is the rounding of the golden run itself, 2.1e-5.
    double = unet.double()
    check("out_small", 1e-3 * x.double(), label, torch.zeros_like(cond).double(), no_mask, model=double)


@pytest.mark.parametrize(
    "change",
    ["eps", "heads", "fir", "sqrt2"],
)
def test_parity_tolerance_notices_a_mistake(change, monkeypatch):
    """The tolerance is worth something: small deliberate mistakes exceed it."""
    case = "concat_gray_4level_p5k5"
    unet = load_rule_weights(build_unet(CASES[case]["config"])).eval()
    if change == "eps":
        for module in unet.modules():
            if isinstance(module, torch.nn.GroupNorm) and not module.affine:
                module.eps = 1e-6
    elif change == "heads":
        for module in unet.modules():
            if isinstance(module, unet_mcvd.MCVDAttention):
                module.heads = 1
    elif change == "fir":
        for module in unet.modules():
            if isinstance(module, unet_mcvd.MCVDFirResample2D):
                module.kernel.fill_(module.kernel.mean())
    else:
        monkeypatch.setattr(unet_mcvd, "SQRT2", 1.414)
    golden = load_reference(case)
    x = golden["x"] * (1e-3 if change == "eps" else 1)
    cond = golden["cond"] * (0 if change == "eps" else 1)
    out = original_forward(unet, x, golden["t"], cond, None, cached=False)
    error = (out - golden["out_small" if change == "eps" else "out"]).abs().max()
    assert error > 2e-4


SIZES = {  # width, multiples, blocks, attention at, image size, head, SPATIN, (channels, past, block, future), cond_emb
    "five levels, concat": (32, [1, 1, 2, 3, 4], 2, [2, 4, 8], 32, 32, False, (3, 2, 5, 0), False),
    "five levels, SPATIN": (8, [1, 1, 2, 3, 4], 2, [2, 4, 8], 32, 8, True, (3, 2, 5, 2), False),
    "groups that do not divide": (36, [1, 2, 4], 1, [8, 16], 16, 72, False, (1, 1, 2, 1), True),
    "no past, three blocks": (12, [1, 3, 7], 3, [4], 16, -1, True, (2, 0, 2, 3), False),
    "attention at the finest level": (28, [1, 2], 2, [16], 16, 28, False, (1, 3, 1, 0), False),
    "first level wider": (16, [2, 1, 3], 1, [8], 16, 16, True, (1, 2, 2, 1), False),
    "first level wider, concat": (12, [3, 2], 2, [16, 8], 16, -1, False, (2, 1, 2, 0), True),
    "one level": (16, [2], 1, [], 8, -1, False, (1, 1, 1, 0), False),
    "odd width": (15, [1, 2], 1, [8], 16, -1, False, (1, 3, 1, 0), True),
}


REFERENCE_OPTIONS = ("ngf", "num_res_blocks", "n_head_channels", "spade", "cond_emb")


@pytest.mark.parametrize("name", SIZES)
def test_against_a_second_implementation(name):
    width, multiples, blocks, attention, size, head, is_spatin, frames, cond_emb = SIZES[name]
    channels, past, current, future = frames
    config = {
        "data": {
            "image_size": size,
            "channels": channels,
            "num_frames_cond": past,
            "num_frames": current,
            "num_frames_future": future,
            "prob_mask_cond": 0.5,
            "prob_mask_future": 0.5,
        },
        "model": {
            "ngf": width,
            "ch_mult": multiples,
            "num_res_blocks": blocks,
            "attn_resolutions": attention,
            "n_head_channels": head,
            "spade": is_spatin,
            "spade_dim": 16,
            "cond_emb": cond_emb,
            "dropout": 0.0,
        },
    }
    unet = load_rule_weights(build_unet(config).eval()).double()
    state = original_state_dict(unet)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, current * channels, size, size, generator=generator).double()
    cond = torch.randn(2, (past + future) * channels, size, size, generator=generator).double()
    label = torch.tensor([3, 870])
    with torch.no_grad():
        options = {name: config["model"][name] for name in REFERENCE_OPTIONS}
        expected = reference_network.forward(
            state,
            x,
            label,
            cond,
            torch.tensor([past > 0] * 2),
            num_levels=len(multiples),
            attn_levels=[level for level in range(len(multiples)) if size >> level in attention],
            **options,
        )
        out = block_of(unet, unet(window(unet, x, cond), 999 - label, roles_for(unet)).sample)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)  # the sinusoids are float32 here, float64 there
    assert expected.std() > 0.1


def test_new_weights_are_drawn_as_the_originals():
    """Uniform, variance scaling by the average of the fans; nearly zero at the end of each branch."""
    unet = MCVDUNet2DModel(block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"))
    block = unet.down_blocks[1]
    whole_fan_in = unet.conv_in.in_channels + unet.conv_cond.in_channels
    for module, scale, fans in (
        (block.resnets[0].conv1, 1, None),
        (block.resnets[0].time_emb_proj1, 1, None),
        (unet.time_embedding.linear_1, 1, None),
        (block.resnets[0].conv2, 1e-10, None),
        (unet.conv_out, 1e-10, None),
        (block.attentions[0].to_q, 0.1, None),
        (block.attentions[0].to_v, 0.1, None),
        (block.attentions[0].to_out[0], 1e-10, None),
        (unet.conv_in, 1, 9 * (whole_fan_in + 32)),
        (unet.conv_cond, 1, 9 * (whole_fan_in + 32)),
    ):
        weight = module.weight.detach()
        fans = fans or weight[0].numel() + weight[:, 0].numel()
        bound = (3 * scale / (fans / 2)) ** 0.5
        assert weight.abs().max() <= bound * (1 + 1e-6) and weight.abs().max() > 0.95 * bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert module.bias is None or not module.bias.any()


# --------------------------------------------------------------------------------------------------------------------
# Roles


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_observed_frames_change_the_output(conditioning):
    unet = tiny_unet(conditioning)
    sample, roles = random_window(unet), roles_for(unet)
    out = unet(sample, 500, roles).sample
    for frame in (0, 1, 5, 6):
        changed = sample.clone()
        changed[:, frame] += 1
        assert (unet(changed, 500, roles).sample - out).abs().max() > 1e-4


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
@pytest.mark.parametrize("junk", [0.0, 1e6, float("nan"), float("inf")])
def test_absent_content_changes_nothing(conditioning, junk):
    unet = tiny_unet(conditioning, embed_past_kept=True)
    sample, roles = random_window(unet), roles_for(unet)
    roles[0, :2] = FrameRole.ABSENT
    roles[1, 5] = FrameRole.ABSENT
    roles[1, 3] = FrameRole.ABSENT  # a frame of the block
    out = unet(sample, 500, roles).sample
    sample = torch.where((roles == FrameRole.ABSENT)[:, :, None, None, None], junk, sample)
    assert torch.equal(unet(sample, 500, roles).sample, out)
    assert torch.equal(unet(sample, 500, roles, conditioning=unet.encode_conditioning(sample, roles)).sample, out)


def test_absent_is_not_the_same_as_black():
    unet = tiny_unet()
    sample, roles = random_window(unet), roles_for(unet)
    sample[:, :2] = -1
    absent = roles.clone()
    absent[:, :2] = FrameRole.ABSENT
    assert (unet(sample, 500, roles).sample - unet(sample, 500, absent).sample).abs().max() > 1e-3


@pytest.mark.parametrize("kept, row", [((1, 1), 1), ((0, 1), 1), ((0, 0), 0)])
def test_embedding_of_the_past_is_row_one_if_any_past_frame_is_observed(kept, row):
    unet = tiny_unet(embed_past_kept=True)
    with torch.no_grad():
        unet.past_embedding.weight[1 - row].fill_(1e6)  # reading the wrong row shows
    sample, roles = random_window(unet), roles_for(unet)
    roles[:, :2] = torch.tensor(kept)
    out = unet(sample, 500, roles).sample
    with torch.no_grad():
        unet.past_embedding.weight[1 - row].fill_(0)
    assert torch.equal(unet(sample, 500, roles).sample, out)


def test_roles_are_those_of_frame_role():
    assert (unet_mcvd.ABSENT, unet_mcvd.OBSERVED, unet_mcvd.LATENT) == tuple(FrameRole)


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_conditioning_once_a_window_equals_every_step(conditioning):
    unet = tiny_unet(conditioning)
    sample, roles = random_window(unet), roles_for(unet, past=False)
    encoded = unet.encode_conditioning(sample, roles)
    for timestep in (0, 10, 999):
        noisy = sample.clone()
        noisy[:, 2:5] = torch.randn(2, 3, 1, 16, 16)
        out = unet(noisy, timestep, roles).sample
        noisy[:, :2], noisy[:, 5:] = 7, 7  # not read any more
        assert torch.equal(unet(noisy, timestep, roles, conditioning=encoded).sample, out)


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_one_conditioning_serves_many_samples(conditioning):
    unet = tiny_unet(conditioning)
    one = random_window(unet, batch_size=1)
    encoded = unet.encode_conditioning(one, roles_for(unet, 1))
    many = one.repeat(3, 1, 1, 1, 1)
    many[:, 2:5] = torch.randn(3, 3, 1, 16, 16)
    out = unet(many, 500, roles_for(unet, 3), conditioning=encoded).sample
    torch.testing.assert_close(out, unet(many, 500, roles_for(unet, 3)).sample, atol=1e-5, rtol=0)


def test_output_is_zero_outside_the_block():
    unet = tiny_unet()
    out = unet(random_window(unet), 500, roles_for(unet)).sample
    assert out[:, 2:5].abs().min() > 0 and not out[:, :2].any() and not out[:, 5:].any()


# --------------------------------------------------------------------------------------------------------------------
# Shapes


@settings(max_examples=15, deadline=None)
@given(
    conditioning=st.sampled_from(["concat", "spatin"]),
    channels=st.sampled_from([1, 2, 3, 8]),
    frames=st.tuples(st.integers(0, 2), st.integers(1, 3), st.integers(0, 2)),
    depth=st.integers(1, 4),
    layers=st.integers(1, 2),
    cells=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)
def test_any_channels_frames_depth_and_size(conditioning, channels, frames, depth, layers, cells):
    past, current, future = frames
    if past + future == 0:
        conditioning = "concat"
    unet = tiny_unet(
        conditioning,
        in_channels=channels,
        num_past_frames=past,
        num_frames=current,
        num_future_frames=future,
        block_out_channels=[8] + [12] * (depth - 1),
        down_block_types=["DownBlock2D"] * (depth - 1) + ["AttnDownBlock2D"],
        layers_per_block=layers,
    )
    height, width = (2 ** (depth - 1) * cell for cell in cells)
    sample = random_window(unet, 1, height, width)
    out = unet(sample, 3, roles_for(unet, 1)).sample
    assert out.shape == sample.shape and torch.isfinite(out).all()


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_patches_are_the_plain_network_on_squares_of_pixels(conditioning):
    patched = tiny_unet(conditioning, patch_size=2)
    plain = tiny_unet(conditioning, in_channels=4)
    plain.load_state_dict(patched.state_dict())
    sample, roles = random_window(patched, height=12, width=20), roles_for(patched)
    squares = F.pixel_unshuffle(sample, 2)  # (B, T, 4, 6, 10)
    expected = F.pixel_shuffle(plain(squares, 500, roles).sample, 2)
    assert torch.equal(patched(sample, 500, roles).sample, expected)
    assert patched.size_multiple == 2 * plain.size_multiple
    encoded = patched.encode_conditioning(sample, roles)
    torch.testing.assert_close(patched(sample, 500, roles, conditioning=encoded).sample, expected, atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# The file, and compiling what is its own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("is_affine", [True, False])
def test_group_norm_of_half_precision_is_that_of_float32_rounded(dtype, is_affine):
    norm = unet_mcvd.MCVDGroupNorm(4, 16, affine=is_affine)
    for parameter in norm.parameters():
        torch.nn.init.normal_(parameter)
    plain = torch.nn.GroupNorm(4, 16, affine=is_affine)
    plain.load_state_dict(norm.to(dtype).state_dict())
    hidden_states = (3 + 5 * torch.randn(2, 16, 6, 6)).to(dtype).to(memory_format=torch.channels_last)
    assert torch.equal(norm(hidden_states), plain.float()(hidden_states.float()).to(dtype))
    # Parity with the originals is measured in float64, which stays what it is.
    assert norm.double()(hidden_states.double()).dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_network_with_encoded_conditioning_compiles_once_for_all_timesteps(conditioning):
    torch._dynamo.reset()
    unet = tiny_unet(conditioning)
    sample, roles = random_window(unet), roles_for(unet)
    encoded = unet.encode_conditioning(sample, roles)
    compiled = torch.compile(unet, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for timestep in (999, 500, 0):
            expected = unet(sample, torch.tensor(timestep), roles, conditioning=encoded).sample
            out = compiled(sample, torch.tensor(timestep), roles, conditioning=encoded).sample
            torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_blocks_of_four_levels_compile():
    torch._dynamo.reset()
    unet = tiny_unet(
        "spatin", block_out_channels=(8, 12, 16, 24), down_block_types=["DownBlock2D"] + ["AttnDownBlock2D"] * 3
    )
    sample, roles = random_window(unet), roles_for(unet)
    with torch.no_grad():
        expected = unet(sample, torch.tensor(5), roles).sample
        unet.compile_repeated_blocks(fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(unet(sample, torch.tensor(5), roles).sample, expected, atol=1e-5, rtol=0)


def test_model_file_needs_torch_and_diffusers_only():
    code = (
        "import importlib.util, sys; before = set(sys.modules);"
        f"spec = importlib.util.spec_from_file_location('copied_unet', {inspect.getfile(unet_mcvd)!r});"
        "module = importlib.util.module_from_spec(spec); sys.modules['copied_unet'] = module;"
        "spec.loader.exec_module(module); module.MCVDUNet2DModel();"
        "assert not any(name.split('.')[0] == 'mcvd_diffusers' for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_forward_documents_its_arguments():
    for function in (MCVDUNet2DModel.forward, MCVDUNet2DModel.encode_conditioning):
        for name in list(inspect.signature(function).parameters)[1:]:
            assert f"{name} (" in function.__doc__, name
    for name in list(inspect.signature(MCVDUNet2DModel.__init__).parameters)[1:]:
        assert f"{name} (" in MCVDUNet2DModel.__doc__, name


# --------------------------------------------------------------------------------------------------------------------
# Bad input


@pytest.mark.parametrize(
    "config, message",
    [
        ({"in_channels": 0}, "`in_channels` must be an integer of at least 1, got 0"),
        ({"num_frames": 0}, "`num_frames` must be an integer of at least 1"),
        ({"num_past_frames": -1}, "`num_past_frames` must be an integer of at least 0"),
        ({"num_future_frames": 1.5}, "`num_future_frames` must be an integer"),
        ({"layers_per_block": 0}, "`layers_per_block`"),
        ({"conditioning": "spade"}, "`conditioning` must be one of .'concat', 'spatin'., got 'spade'"),
        ({"in_channels": True}, "`in_channels` must be an integer"),
        ({"drop_past": "0.5"}, "`drop_past` is a probability, got '0.5'"),
        ({"embed_past_kept": "no"}, "`embed_past_kept` must be one of"),
        ({"block_out_channels": "8,16"}, "`block_out_channels` must be a list of integers"),
        ({"block_out_channels": (8.0, 16.0)}, "`block_out_channels` must be a list of integers"),
        ({"down_block_types": {"DownBlock2D", "AttnDownBlock2D"}}, "`down_block_types` must be a list"),
        ({"conditioning": "spatin", "num_past_frames": 0, "num_future_frames": 0}, "needs past or future frames"),
        ({"block_out_channels": (2, 16)}, "`block_out_channels` must be a list of integers of at least 4"),
        ({"block_out_channels": (8, 16, 16)}, "one entry for each level"),
        ({"down_block_types": ("DownBlock2D", "Attention")}, "`down_block_types` must be a list of"),
        ({"attention_head_dim": 12, "block_out_channels": (8, 16)}, r"`attention_head_dim` \(12\) must divide"),
        ({"attention_head_dim": 0}, "`attention_head_dim` must be a positive integer"),
        ({"dropout": 1.0}, "`dropout` is a probability"),
        ({"drop_past": 1.5}, "`drop_past` is a probability"),
        ({"prediction_type": "velocity"}, "`prediction_type` must be"),
        ({"sample_size": 0}, "`sample_size` must be a positive integer"),
        ({"patch_size": 0}, "`patch_size` must be an integer of at least 1, got 0"),
        ({"patch_size": 65}, "`patch_size` must be at most 64, got 65"),
    ],
)
def test_bad_config_is_refused(config, message):
    with pytest.raises(ValueError, match=message):
        MCVDUNet2DModel(**{**TINY, **config})


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
@pytest.mark.parametrize("patch_size", [1, 3])
@pytest.mark.parametrize("size", [(15, 16), (16, 13), (7, 9), (1, 1)])
def test_frames_of_any_size_are_padded_by_their_border_and_cut(size, patch_size, conditioning):
    unet = tiny_unet(conditioning=conditioning, patch_size=patch_size)
    sample, roles = random_window(unet, height=size[0], width=size[1]), roles_for(unet)
    height, width = size
    multiple = unet.size_multiple
    rows = torch.arange(-(-height // multiple) * multiple).clamp(max=height - 1)
    columns = torch.arange(-(-width // multiple) * multiple).clamp(max=width - 1)
    padded = sample[..., rows, :][..., columns]
    expected = unet(padded, 500, roles).sample[..., :height, :width]
    assert torch.equal(unet(sample, 500, roles).sample, expected)
    encoded = unet.encode_conditioning(sample, roles)
    torch.testing.assert_close(unet(sample, 500, roles, conditioning=encoded).sample, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "shape, message",
    [
        ((7, 1, 16, 16), r"`sample` must have shape \(B, T, C, H, W\)"),
        ((2, 6, 1, 16, 16), "must hold 7 frames .2 past, 3 current, 2 future., got 6"),
        ((2, 7, 3, 16, 16), "must have 1 channels a frame, got 3"),
    ],
)
def test_bad_window_is_refused(shape, message):
    unet = tiny_unet()
    sample = torch.zeros(shape)
    for function in (unet.encode_conditioning, lambda *args: unet(args[0], 1, args[1])):
        with pytest.raises(ValueError, match=message):
            function(sample, torch.zeros(shape[:2], dtype=torch.long))


def test_bad_roles_and_segments_are_refused():
    unet = tiny_unet()
    with pytest.raises(ValueError, match="`roles` must have shape"):
        unet(random_window(unet), 1, torch.zeros(2, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="`roles` must be integers, the values of FrameRole, got torch.float32"):
        unet(random_window(unet), 1, torch.zeros(2, 7))
    with pytest.raises(ValueError, match="`segment_ids` must be None"):
        unet(random_window(unet), 1, roles_for(unet), segment_ids=torch.zeros(2, 7))
