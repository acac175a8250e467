"""The networks of RVD: the original's numbers; memory as a value; who sees whom; what may be given to them."""

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32, send_to_device
from diffusers import DDPMScheduler

from mcvd_diffusers import FrameRole
from mcvd_diffusers.models import RVDContextEncoder, RVDUNet2DModel
from original_rvd import CASES, load_networks, load_reference, our_configs


# Measured: below 1.6e-6. The original itself differs by as much between float32 and float64.
TOLERANCE = 1e-5
TOLERANCES = {"out_small": 3e-5, "time_embedding": 2e-6}

# The published networks: denoiser, context network, predictor, in millions of parameters.
SIZES = {
    64: ((48, (1, 2, 4, 8)), (48, (1, 2, 2, 4)), (18.7, 13.8, 5.1)),
    128: ((64, (1, 1, 2, 2, 4, 4)), (64, (1, 2, 3, 4)), (18.9, 13.0, 11.7)),
}

DENOISER = {"in_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
ENCODER = {
    "in_channels": 1,
    "context_block_out_channels": (8, 16),
    "predictor_block_out_channels": (4, 8, 8),  # of another depth
    "norm_num_groups": 4,
}


def shaken(network):
    """A network with weights that are always the same, away from zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def make_denoiser(**overrides):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(RVDUNet2DModel(**DENOISER | overrides))


def make_encoder(**overrides):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(RVDContextEncoder(**ENCODER | overrides))


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def video(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def latent(sample):
    return torch.full(sample.shape[:2], FrameRole.LATENT)


@torch.no_grad()
def run(network, *args, **kwargs):
    return network(*args, **kwargs).sample


def assert_close(got, expected, tolerance=TOLERANCE):
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=0)


def assert_equal_outputs(got, expected, tolerance):
    """Of the encoder."""
    for ours, theirs in zip((*got.features, *got.state), (*expected.features, *expected.state), strict=True):
        assert_close(ours, theirs, tolerance)
    assert_close(got.mean, expected.mean, tolerance)
    assert got.scale == expected.scale


# --------------------------------------------------------------------------------------------------------------------
# The original's numbers


@pytest.fixture(params=CASES, scope="module")
def golden(request):
    """A golden run: its name, our denoiser and encoder with its weights, its numbers."""
    return request.param, *load_networks(request.param), load_reference(request.param)


@torch.no_grad()
def test_rvd_3_predictions_are_the_originals(golden):
    case, _, encoder, numbers = golden
    frames = numbers["video"].transpose(0, 1)  # (T, B, ...) -> (B, T, ...)
    assert (numbers["mu"] != numbers["mu_before_clamp"]).any()
    assert_close(encoder(frames, each_frame=True).mean.transpose(0, 1), numbers["mu"])
    unclamped = load_networks(case, clip_range=None)[1]
    assert_close(unclamped(frames, each_frame=True).mean.transpose(0, 1), numbers["mu_before_clamp"])


@torch.no_grad()
def test_rvd_3_context_maps_are_the_originals(golden):
    _, _, encoder, numbers = golden
    features = encoder(numbers["video"].transpose(0, 1), each_frame=True).features
    names = [name for name in numbers if name.startswith("context_frame")]
    assert len(names) >= 2 * len(features)
    for name in names:
        frame, level = map(int, name.removeprefix("context_frame").split("_level"))
        assert_close(features[level][:, frame], numbers[name])


@torch.no_grad()
def test_rvd_3_denoiser_computes_what_the_original_computes(golden):
    _, denoiser, encoder, numbers = golden
    frames = numbers["video"].transpose(0, 1)
    last, first = encoder(frames).features, encoder(frames[:, :1]).features
    y = numbers["y"][:, None]

    def ours(sample, timestep, context):
        return run(denoiser, sample, timestep, latent(sample), context=context)[:, 0]

    assert_close(ours(y, numbers["t"], last), numbers["out"])
    assert_close(ours(y, numbers["t2"], first), numbers["out2"])
    small = tuple(each * 1e-3 for each in last)
    assert_close(ours(y * 1e-3, numbers["t"], small), numbers["out_small"], TOLERANCES["out_small"])


@torch.no_grad()
def test_rvd_3_normalisation_and_time_embedding_are_the_originals(golden):
    _, denoiser, encoder, numbers = golden
    norm = denoiser.down_blocks[0].attention.norm  # of channels, which are last for us
    assert_close(norm(numbers["norm_probe_in"].movedim(1, -1)).movedim(-1, 1), numbers["norm_probe_out"])
    seen = []
    handle = denoiser.time_embedding.register_forward_hook(lambda module, args, output: seen.append(output))
    y, features = numbers["y"][:, None], encoder(numbers["video"].transpose(0, 1)).features
    run(denoiser, y, numbers["t"], latent(y), context=features)
    handle.remove()
    assert_close(seen[0], numbers["time_embedding"], TOLERANCES["time_embedding"])


def test_rvd_3_networks_have_the_originals_parameters(golden):
    case, denoiser, encoder, _ = golden
    parts = (encoder.context_network, encoder.predictor, encoder.prediction_head)
    context, predictor, head = (sum(p.numel() for p in part.parameters()) for part in parts)
    got = {"denoiser": denoiser.num_parameters(), "context": context, "predictor": predictor + head}
    assert got == CASES[case]["num_parameters"]


@pytest.mark.parametrize("pixels", SIZES)
def test_rvd_3_published_sizes_have_the_originals_parameters(pixels):
    unet, predictor, expected = SIZES[pixels]
    names = {"denoiser": unet, "context": unet, "predictor": predictor}
    sizes = {name: {"dim": dim, "dim_mults": mults, "channels": 3} for name, (dim, mults) in names.items()}
    denoiser_config, encoder_config = our_configs(sizes)
    with torch.device("meta"):
        denoiser = RVDUNet2DModel(**denoiser_config)
        context = RVDContextEncoder(**encoder_config | {"predictor_block_out_channels": None})
        predictor = RVDContextEncoder(**encoder_config | {"context_block_out_channels": ()})
        both = RVDContextEncoder(**encoder_config)
    counts = [network.num_parameters() for network in (denoiser, context, predictor)]
    assert [count / 1e6 for count in counts] == pytest.approx(expected, abs=0.06)
    assert sum(counts) / 1e6 == pytest.approx(sum(expected), abs=0.05)
    assert both.num_parameters() == sum(counts[1:])
    if pixels == 64:  # the defaults
        with torch.device("meta"):
            assert RVDUNet2DModel().num_parameters() == counts[0]
            assert RVDContextEncoder().num_parameters() == sum(counts[1:])


def test_rvd_3_networks_of_different_depths_have_the_originals_parameters():
    """Those for 128 px, with 8 channels for 64."""
    unet = {"dim": 8, "dim_mults": (1, 1, 2, 2, 4, 4), "channels": 3}
    sizes = {"denoiser": unet, "context": unet, "predictor": {"dim": 8, "dim_mults": (1, 2, 3, 4), "channels": 3}}
    denoiser_config, encoder_config = our_configs(sizes)
    networks = RVDUNet2DModel(**denoiser_config), RVDContextEncoder(**encoder_config)
    assert sum(network.num_parameters() for network in networks) == 738_310


LOSSES = {
    "l1": ("loss_l1", True, False),
    "l2": ("loss_l2", True, False),
    "l1_no_residual": ("loss_l1_no_residual", False, False),
    "l1_pred_true": ("loss_l1_pred_true", True, True),
}


@pytest.mark.parametrize("kind", LOSSES)
def test_rvd_3_losses_and_their_gradients_are_the_originals(golden, kind):
    case, _, _, numbers = golden
    array, has_residual, predicts_clean = LOSSES[kind]
    denoiser, encoder = load_networks(case, **{} if has_residual else {"predictor_block_out_channels": None})
    frames, draws = numbers["video"].transpose(0, 1), numbers["loss_noise"].transpose(0, 1)
    scheduler = DDPMScheduler(num_train_timesteps=1600, beta_schedule="squaredcos_cap_v2")
    assert_close(scheduler.alphas_cumprod, numbers["sched1600_alphas_cumprod"], 1e-6)

    # From the third frame on, each after those before; one noise level a video.
    known = encoder(frames[:, :-1], each_frame=True)
    residual = frames[:, 2:] if known.mean is None else (frames[:, 2:] - known.mean[:, 1:]) / known.scale
    noisy = scheduler.add_noise(residual, draws, numbers["loss_t"])
    context = tuple(each[:, 1:] for each in known.features)
    prediction = denoiser(noisy, numbers["loss_t"], latent(noisy), context=context).sample
    error = prediction - (residual if predicts_clean else draws)
    loss = error.square().mean() if kind == "l2" else error.abs().mean()
    assert_close(loss, numbers[array], 5e-6)
    if kind == "l1":
        assert_close(noisy.transpose(0, 1), numbers["loss_model_input"])
        assert_close(prediction.transpose(0, 1), numbers["loss_pred"])

    loss.backward()
    parts = {
        "denoiser": [denoiser],
        "context": [encoder.context_network],
        "predictor": [encoder.predictor, encoder.prediction_head],
    }
    for name, expected in CASES[case]["gradient_norms"][kind].items():
        weights = [weight for part in parts[name] if part is not None for weight in part.parameters()]
        norm = sum((weight.grad.square().sum() for weight in weights), torch.zeros(())).sqrt().item()
        assert norm == pytest.approx(expected, rel=1e-4, abs=1e-9), name


def test_rvd_4_no_gradient_reaches_the_predictor_if_the_residual_is_detached():
    encoder, frames = make_encoder(), video(2, 3, 1, 8, 8)
    known = encoder(frames)
    sum(each.sum() for each in known.features).backward()
    assert all(
        weight.grad is None for part in (encoder.predictor, encoder.prediction_head) for weight in part.parameters()
    )
    assert all(weight.grad is not None for weight in encoder.context_network.parameters())


# --------------------------------------------------------------------------------------------------------------------
# Memory


@torch.no_grad()
def test_rvd_2_a_sequence_at_once_is_the_sequence_frame_by_frame():
    encoder, frames = make_encoder(), video(2, 5, 1, 8, 8)
    known = encoder(frames, each_frame=True)
    state = None
    for i in range(5):
        step = encoder(frames[:, i : i + 1], state)
        for together, alone in zip(known.features, step.features, strict=True):
            assert_close(together[:, i : i + 1], alone, 1e-6)
        assert_close(known.mean[:, i : i + 1], step.mean, 1e-6)
        state = step.state
    for together, alone in zip(known.state, state, strict=True):
        assert_close(together, alone, 1e-6)
    # In two parts, and without asking after each frame.
    parts = encoder(frames[:, 3:], encoder(frames[:, :3]).state)
    assert_equal_outputs(parts, encoder(frames), 1e-6)
    assert_equal_outputs(parts, step, 1e-6)


@torch.no_grad()
def test_rvd_2_videos_may_be_read_in_turns():
    encoder, frames = make_encoder(), video(2, 3, 1, 8, 8)
    expected = [encoder(frames[i : i + 1]) for i in range(2)]
    states = [None, None]
    for t in range(3):
        for i in range(2):
            step = encoder(frames[i : i + 1, t : t + 1], states[i])
            states[i] = step.state
            if t == 2:
                assert_equal_outputs(step, expected[i], 1e-6)
    assert not torch.equal(states[0][0], states[1][0])


@torch.no_grad()
def test_rvd_2_rows_of_a_state_may_be_chosen_reordered_and_repeated():
    encoder, frames, rows = make_encoder(), video(3, 4, 1, 8, 8), torch.tensor([2, 0, 0])
    state = encoder(frames[:, :3]).state
    got = encoder(frames[rows, 3:], tuple(each[rows] for each in state))
    assert_equal_outputs(got, encoder(frames[rows]), 1e-6)


@torch.no_grad()
def test_rvd_2_nothing_is_remembered_but_in_the_state():
    encoder, frames = make_encoder(), video(1, 3, 1, 8, 8)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    state = encoder(frames[:, :2]).state
    kept = [each.clone() for each in state]
    first = encoder(frames[:, 2:], state)
    encoder(-frames)
    assert_equal_outputs(encoder(frames[:, 2:], state), first, 0)
    assert all(map(torch.equal, state, kept))
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert list(encoder.buffers()) == []


@torch.no_grad()
def test_a_state_answers_without_a_new_frame():
    encoder, frames = make_encoder(), video(2, 3, 1, 8, 8)
    known = encoder(frames)
    assert_equal_outputs(encoder(frames[:, :0], known.state), known, 0)


@torch.no_grad()
def test_further_frames_follow_the_predictors_own():
    encoder, frames = make_encoder(), video(2, 2, 1, 8, 8)
    ahead = encoder(frames, num_frames=3)
    assert ahead.mean.shape == (2, 3, 1, 8, 8) and [each.shape[1] for each in ahead.features] == [3, 3]
    state, given = None, frames
    for i in range(3):
        step = encoder(given, state)
        assert_close(ahead.mean[:, i : i + 1], step.mean, 1e-6)
        for together, alone in zip(ahead.features, step.features, strict=True):
            assert_close(together[:, i : i + 1], alone, 1e-6)
        state, given = step.state, step.mean
    # The state is that after the frames that were there.
    for got, expected in zip(ahead.state, encoder(frames).state, strict=True):
        assert torch.equal(got, expected)


@torch.no_grad()
def test_read_is_forward_for_each_frame():
    encoder, frames = make_encoder(), video(2, 3, 1, 8, 8)
    features, state, mean, _ = encoder(frames, each_frame=True, return_dict=False)
    known = encoder(frames, each_frame=True)
    assert [each.shape for each in features] == [(2, 3, 8, 8, 8), (2, 3, 16, 4, 4)] and mean.shape == frames.shape
    assert all(map(torch.equal, (*features, mean, *state), (*known.features, known.mean, *known.state)))
    as_tuple = encoder(frames, each_frame=True, return_dict=False)
    assert torch.equal(as_tuple[2], mean) and as_tuple[3] == 1.0 and encoder.clip_frames is None


@pytest.mark.parametrize("predictor", [(4, 8), None])
@torch.no_grad()
def test_accelerate_rebuilds_what_the_encoder_returns(predictor):
    """When it moves an output to another device, or casts it."""
    known = make_encoder(predictor_block_out_channels=predictor, scale=0.5)(video(1, 2, 1, 8, 8))
    moved = send_to_device(known, "meta")
    assert type(moved) is type(known) and moved.keys() == known.keys() and moved.scale == known.scale
    for got, expected in zip((*moved.features, *moved.state), (*known.features, *known.state), strict=True):
        assert got.is_meta and got.shape == expected.shape
    assert moved.mean is None if predictor is None else moved.mean.is_meta
    cast = convert_outputs_to_fp32(lambda: known)()
    assert all(map(torch.equal, cast.features, known.features))


@torch.no_grad()
def test_either_network_may_be_left_out():
    frames = video(2, 3, 1, 8, 8)
    only_context = make_encoder(predictor_block_out_channels=None, scale=2.0)
    known = only_context(frames)
    assert known.mean is None and known.scale == 1.0 and len(known.features) == len(known.state) == 2
    with pytest.raises(ValueError, match="`num_frames` must be 1 without a predictor"):
        only_context(frames, num_frames=2)
    only_predictor = make_encoder(context_block_out_channels=(), scale=0.5)
    known = only_predictor(frames, num_frames=2)
    assert known.features == () and known.mean.shape == (2, 2, 1, 8, 8) and known.scale == 0.5
    assert len(known.state) == 3
    denoiser, sample = make_denoiser(context_channels=()), noise(2, 2, 1, 8, 8)
    assert torch.equal(run(denoiser, sample, 5, latent(sample)), run(denoiser, sample, 5, latent(sample), context=()))


@torch.no_grad()
def test_frames_beyond_the_range_are_read_as_its_ends():
    encoder, frames = make_encoder(), 3 * video(1, 2, 1, 8, 8)
    assert_equal_outputs(encoder(frames), encoder(frames.clamp(-1, 1)), 0)
    far = make_encoder(clip_range=None)
    torch.nn.init.constant_(far.prediction_head.conv_out.bias, 5.0)
    assert far(frames).mean.max() > 1
    far.register_to_config(clip_range=0.5)
    assert far(frames).mean.abs().max() == 0.5


@torch.no_grad()
def test_networks_of_any_depth_go_together():
    """As for 128 px: six levels, a predictor of four; and single ones."""
    frames, sample = video(1, 2, 3, 32, 32), noise(1, 1, 3, 32, 32)
    for widths, predictor in (((8, 8, 16, 16, 32, 32), (8, 16, 24, 32)), ((8,), (8,))):
        encoder = shaken(RVDContextEncoder(context_block_out_channels=widths, predictor_block_out_channels=predictor))
        denoiser = shaken(RVDUNet2DModel(block_out_channels=widths))
        known = encoder(frames)
        assert known.mean.shape == (1, 1, 3, 32, 32)
        assert run(denoiser, sample, 5, latent(sample), context=known.features).shape == sample.shape


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (8, 9), (13, 4)], ids=str)
@torch.no_grad()
def test_frames_of_any_size_are_taken(size):
    encoder, denoiser = make_encoder(), make_denoiser()
    frames, sample = video(2, 3, 1, *size), noise(2, 2, 1, *size)
    known = encoder(frames, num_frames=2)
    assert known.mean.shape == sample.shape
    assert run(denoiser, sample, 5, latent(sample), context=known.features).shape == sample.shape
    assert_equal_outputs(encoder(frames[:, :0], known.state, num_frames=2), known, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@torch.no_grad()
def test_half_precision_is_close_to_single_precision(dtype):
    encoder, denoiser = make_encoder(), make_denoiser()
    frames, sample = video(2, 4, 1, 8, 8), noise(2, 1, 1, 8, 8)
    known = encoder(frames)
    expected = run(denoiser, sample, 300, latent(sample), context=known.features)
    half = encoder.to(dtype)(frames.to(dtype))
    assert {each.dtype for each in (*half.features, *half.state, half.mean)} == {dtype}
    assert_close(half.mean.float(), known.mean, 0.1)
    out = run(denoiser.to(dtype), sample.to(dtype), 300, latent(sample), context=half.features)
    assert out.dtype == dtype and (out.float() - expected).norm() < 0.1 * expected.norm()


def test_gradient_checkpointing_of_the_encoder_changes_no_gradient():
    frames, gradients = video(2, 4, 1, 8, 8), []
    for is_checkpointing in (False, True):
        encoder = make_encoder().train()
        if is_checkpointing:
            encoder.enable_gradient_checkpointing()
        known = encoder(frames, each_frame=True)
        sum(each.square().mean() for each in (*known.features, known.mean)).backward()
        gradients.append([weight.grad for weight in encoder.parameters()])
    for without, with_it in zip(*gradients, strict=True):
        assert without.any()
        assert_close(with_it, without, 1e-6)


def test_encoder_is_saved_and_loaded_as_it_is(tmp_path):
    encoder, frames = make_encoder(scale=0.5, clip_range=None), video(1, 2, 1, 8, 8)
    encoder.save_pretrained(tmp_path)
    loaded = RVDContextEncoder.from_pretrained(tmp_path)
    with torch.no_grad():
        assert_equal_outputs(loaded(frames), encoder(frames), 0)
    split = RVDContextEncoder.from_pretrained(
        tmp_path,
        device_map="auto",
        max_memory={"cpu": int(0.6 * encoder.get_memory_footprint())},
        offload_folder=tmp_path / "offloaded",
    )
    assert "disk" in split.hf_device_map.values()
    with torch.no_grad():
        assert_equal_outputs(split(frames), encoder(frames), 0)
        assert_close(split(frames, each_frame=True).mean, encoder(frames, each_frame=True).mean, 0)


@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
@torch.no_grad()
def test_encoder_whose_weights_wait_elsewhere_computes_the_same(offload_type):
    encoder, frames = make_encoder(), video(2, 3, 1, 8, 8)
    known, ahead = encoder(frames), encoder(frames, num_frames=2)
    mean = encoder(frames, each_frame=True).mean
    options = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    encoder.enable_group_offload(torch.device("cpu"), offload_type=offload_type, **options)
    assert_equal_outputs(encoder(frames), known, 1e-6)
    assert_equal_outputs(encoder(frames, num_frames=2), ahead, 1e-6)
    assert_close(encoder(frames, each_frame=True).mean, mean, 1e-6)
    encoder = make_encoder()
    encoder.enable_layerwise_casting(storage_dtype=torch.float16, compute_dtype=torch.float32)
    assert_close(encoder(frames).mean, known.mean, 1e-2)


@pytest.mark.slow  # compiles for seconds
@torch.no_grad()
def test_encoder_compiles_without_breaks():
    encoder, frames = make_encoder(), video(2, 2, 1, 8, 8)
    torch.compiler.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    expected, known = encoder(frames), compiled(frames)
    assert_equal_outputs(known, expected, 1e-5)
    assert_equal_outputs(compiled(frames[:, 1:], known.state), encoder(frames[:, 1:], expected.state), 1e-5)
    torch.compiler.reset()
    encoder.compile_repeated_blocks(backend="aot_eager")
    assert_equal_outputs(encoder(frames), expected, 1e-5)
    torch.compiler.reset()


# --------------------------------------------------------------------------------------------------------------------
# Who sees whom


def context_of(sample, seed=3):
    batch_size, num_frames, _, height, width = sample.shape
    return (
        noise(batch_size, num_frames, 8, height, width, seed=seed),
        noise(batch_size, num_frames, 16, height // 2, width // 2, seed=seed + 1),
    )


def test_frames_of_a_window_do_not_see_each_other():
    network, sample = make_denoiser(), noise(2, 3, 1, 8, 8)
    context = context_of(sample)
    together = run(network, sample, torch.tensor([5, 900]), latent(sample), context=context)
    for i in range(3):
        only = tuple(each[:, i : i + 1] for each in context)
        one = sample[:, i : i + 1]
        alone = run(network, one, torch.tensor([5, 900]), latent(one), context=only)
        assert_close(together[:, i : i + 1], alone, 1e-6)


def test_the_context_of_a_frame_matters_at_every_level_and_to_it_alone():
    network, sample = make_denoiser(), noise(1, 2, 1, 8, 8)
    context = context_of(sample)
    expected = run(network, sample, 5, latent(sample), context=context)
    for level in range(2):
        changed = [each.clone() for each in context]
        changed[level][:, 1] += 1
        out = run(network, sample, 5, latent(sample), context=tuple(changed))
        assert torch.equal(out[:, 0], expected[:, 0]) and (out[:, 1] - expected[:, 1]).abs().max() > 1e-3


def test_positions_and_segments_change_nothing():
    network, sample = make_denoiser(), noise(2, 3, 1, 8, 8)
    assert network.keeps_segments_apart
    context, roles = context_of(sample), torch.tensor([[2, 1, 2], [0, 2, 2]])
    expected = run(network, sample, 5, roles, context=context)
    places = torch.tensor([[9, 0, 4], [1, 1, 1]])
    assert torch.equal(run(network, sample, 5, roles, places, places.flip(1), context), expected)


def test_absent_frames_change_nothing_and_give_zero():
    network, sample = make_denoiser().train(), noise(1, 3, 1, 8, 8)
    context, roles = context_of(sample), torch.tensor([[2, 0, 2]])
    outputs, gradients = [], []
    for value in (0.0, float("nan")):
        sample[:, 1] = value
        for each in context:
            each[:, 1] = value
        network.zero_grad()
        out = network(sample, 5, roles, context=context).sample
        out.square().mean().backward()
        outputs.append(out)
        gradients.append([weight.grad.clone() for weight in network.parameters()])
    assert torch.equal(*outputs) and not outputs[0][:, 1].any() and outputs[0][:, 0].any()
    assert all(map(torch.equal, *gradients))


# --------------------------------------------------------------------------------------------------------------------
# What is refused


SAMPLE = torch.zeros(2, 3, 1, 8, 8)
GOOD = {"sample": SAMPLE, "timestep": 5, "roles": torch.full((2, 3), 2), "context": context_of(SAMPLE)}


@pytest.mark.parametrize(
    "argument, value, says",
    [
        ("sample", torch.zeros(2, 3, 8, 8), "must have shape"),
        ("sample", torch.zeros(2, 3, 2, 8, 8), "must have 1 channels a frame, got 2"),
        ("sample", torch.zeros(2, 0, 1, 8, 8), "must have shape"),
        ("roles", torch.full((2, 4), 2), r"must have shape \(2, 3\), got \(2, 4\)"),
        ("roles", torch.full((2, 3), 2.0), "must be integers, got torch.float32"),
        ("frame_indices", torch.arange(3), "must have shape"),
        ("segment_ids", torch.zeros(2, 3), "must be integers"),
        ("timestep", torch.tensor([1, 2, 3]), r"must be a number or have shape \(\), \(1,\) or \(2,\), got \(3,\)"),
        ("context", None, "must be a tuple of 2 tensors.*got None. `RVDContextEncoder` makes it"),
        ("context", (), r"must be a tuple of 2 tensors.*got \[\]"),
        ("context", context_of(SAMPLE)[0], "must be a tuple of 2 tensors.*got Tensor"),
        ("context", context_of(SAMPLE)[:1], r"must be a tuple of 2 tensors.*got \[\(2, 3, 8, 8, 8\)\]"),
        ("context", context_of(SAMPLE[:, :1]), r"must be a tuple of 2 tensors.*got \[\(2, 1, 8, 8, 8\)"),
        ("context", context_of(SAMPLE)[::-1], r"must be .* \[\(2, 3, 8, 8, 8\), \(2, 3, 16, 4, 4\)\], got"),
    ],
)
def test_bad_inputs_of_the_denoiser_are_refused_by_name(argument, value, says):
    with pytest.raises(ValueError, match=f"`{argument}` {says}"):
        run(make_denoiser(), **GOOD | {argument: value})


def test_a_context_that_is_not_read_is_refused():
    with pytest.raises(ValueError, match="`context` must be a tuple of 0 tensors"):
        run(make_denoiser(context_channels=()), **GOOD)


FRAMES = torch.zeros(2, 3, 1, 8, 8)
STATE = make_encoder()(FRAMES).state


@pytest.mark.parametrize(
    "arguments, says",
    [
        ({"frames": FRAMES[0]}, r"`frames` must have shape \(B, n, C, H, W\)"),
        ({"frames": FRAMES.expand(-1, -1, 3, -1, -1)}, "`frames` must have 1 channels a frame, got 3"),
        ({"frames": FRAMES[:, :0]}, "`frames` must hold a frame at least, got none and no `state`"),
        ({"frames": FRAMES[:, :0], "state": ()}, "`frames` must hold a frame at least, got none and no `state`"),
        ({"frames": FRAMES[:, :0], "state": STATE, "each_frame": True}, "`frames` must hold a frame at least"),
        ({"num_frames": 0}, "`num_frames` must be an integer of at least 1, got 0"),
        ({"num_frames": True}, "`num_frames` must be an integer"),
        ({"num_frames": 2, "each_frame": True}, "`num_frames` must be 1 with `each_frame=True`"),
        ({"state": STATE[1:]}, "`state` must be what this encoder returned"),
        ({"state": tuple(each[:1] for each in STATE)}, "`state` must be what this encoder returned"),
        ({"frames": FRAMES[..., :4], "state": STATE}, "`state` must be what this encoder returned"),
        ({"state": "nothing"}, "`state` must be .*, got str"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_bad_inputs_of_the_encoder_are_refused_by_name(arguments, says):
    with pytest.raises(ValueError, match=says):
        make_encoder()(**{"frames": FRAMES} | arguments)


@pytest.mark.parametrize(
    "argument, value",
    [
        ("sample_size", 0),
        ("sample_size", (8,) * 3),
        ("in_channels", 0),
        ("in_channels", True),
        ("in_channels", 10**9),
        ("max_frames", 0),
        ("block_out_channels", ()),
        ("block_out_channels", 16),
        ("block_out_channels", (16, "32")),
        ("block_out_channels", (16,) * 17),
        ("context_channels", (8,)),
        ("context_channels", (8, 0)),
        ("context_channels", 8),
        ("norm_num_groups", 0),
        ("norm_num_groups", 3),
        ("num_attention_heads", 0),
        ("attention_head_dim", None),
        ("num_train_timesteps", 0),
        ("prediction_type", "noise"),
        ("prediction_type", ["epsilon"]),
        ("drop_observed", 1.1),
        ("drop_observed", float("nan")),
        ("has_frame_gaps", 0),
    ],
)
def test_bad_configs_of_the_denoiser_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        RVDUNet2DModel(**DENOISER | {argument: value})


@pytest.mark.parametrize(
    "argument, value",
    [
        ("sample_size", "8"),
        ("in_channels", 0),
        ("context_block_out_channels", 16),
        ("context_block_out_channels", (0, 16)),
        ("predictor_block_out_channels", "16"),
        ("predictor_block_out_channels", (16,) * 17),
        ("norm_num_groups", 3),
        ("scale", 0),
        ("scale", float("inf")),
        ("scale", True),
        ("scale", None),
        ("clip_range", 0.0),
        ("clip_range", "1"),
    ],
)
def test_bad_configs_of_the_encoder_are_refused_by_name(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}`"):
        RVDContextEncoder(**ENCODER | {argument: value})


def test_an_encoder_without_networks_is_refused():
    with pytest.raises(ValueError, match="there must be a network at least"):
        RVDContextEncoder(context_block_out_channels=(), predictor_block_out_channels=None)
