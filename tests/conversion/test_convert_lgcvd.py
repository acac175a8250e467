"""Checkpoints of LGC-VD -> pipeline folders: the same numbers from both networks, and what cannot be converted is refused."""

import json
from collections import OrderedDict

import pytest
import torch
from diffusers import DDPMScheduler, DPMSolverMultistepScheduler

from mcvd_diffusers import MCVDPipeline, NoiseSequence
from mcvd_diffusers.cli import main
from mcvd_diffusers.conversion import CheckpointError, convert_checkpoint, reference_lgcvd
from mcvd_diffusers.conversion.convert_lgcvd import DENOISER, ENCODER, _compare, _make_networks, is_lgcvd
from mcvd_diffusers.conversion.lgcvd_weights import recognise
from original_lgcvd import (
    CASES,
    NUM_FRAMES,
    STATE_DICTS,
    as_frames,
    drawn,
    lgcvd_listing,
    load_reference,
    rule_state_dict,
)
from original_mcvd import REFERENCE as MCVD_REFERENCE
from original_space_time import rule_state_dict as rule_state_dict_of_others


NETWORKS = {DENOISER: "denoiser", ENCODER: "encoder"}
NAME = "model-100.pt"
SMALL = "lgcvd_rgb_small"


def state_of(case, kind):
    return rule_state_dict(CASES[case][STATE_DICTS[kind]], CASES[case]["weight_scale"], kind)


def buffers():
    """The diffusion around the networks; the numbers of `betas` are the original's."""
    golden = load_reference("lgcvd_rgb")
    betas, alphas = golden["sched1000_betas"], golden["sched1000_alphas_cumprod"]
    return {"betas": betas, "alphas_cumprod": alphas, "posterior_mean_coef1": torch.zeros(1000)}


def diffusion(denoiser, encoder):
    networks = ((DENOISER, denoiser), (ENCODER, encoder))
    weights = {f"{prefix}{name}": value for prefix, state in networks for name, value in state.items()}
    return OrderedDict(buffers() | weights)


def trained(averaged, **changes):
    """What the original's training saves; its raw weights are twice the average where a name ends in `init_conv.bias`."""
    raw = OrderedDict(
        (name, 2 * value if name.endswith("init_conv.bias") else value) for name, value in averaged.items()
    )
    return {
        "step": 300_000,
        "model": raw,
        "ema": averaged,
        "scaler": {"scale": 65536.0, "_growth_tracker": 0},
    } | changes


def original(case=SMALL, **changes):
    return trained(diffusion(state_of(case, "denoiser"), state_of(case, "encoder")), **changes)


def save(folder, content=None, name=NAME, **options):
    folder.mkdir(exist_ok=True)
    torch.save(original() if content is None else content, folder / name, **options)
    return folder / name


def convert(folder, content=None, case=SMALL, **options):
    options = {"attention_head_dim": CASES[case]["config"]["n_head_channels"], "image_size": 8} | options
    return convert_checkpoint(save(folder, original(case) if content is None else content), folder / "out", **options)


def load(folder):
    pipe = MCVDPipeline.from_pretrained(folder / "out")
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def outputs_of(pipe, case):
    """`out` and `feature` of the golden inputs, as the original lays them out."""
    golden = load_reference(case)
    window = torch.cat([as_frames(golden["cond"], 4)[:, :, :3], as_frames(golden["x"])], dim=1)
    roles = torch.tensor([1] * 2 + [2] * NUM_FRAMES).repeat(2, 1)
    out = pipe.unet(window, golden["t"], roles, context=(golden["feature"],)).sample[:, 2:].flatten(1, 2)
    return out, pipe.context_encoder.encode(as_frames(golden["prev_clip"]))


# --------------------------------------------------------------------------------------------------------------------
# The same numbers


@pytest.mark.parametrize("case", CASES)
def test_the_command_converts_what_the_original_saves(case, tmp_path, capsys):
    path, heads = save(tmp_path, original(case)), CASES[case]["config"]["n_head_channels"]
    command = ["convert", str(path), str(tmp_path / "out"), "--verify", "--image_size", "16"]
    assert main([*command, "--attention_head_dim", str(heads)]) == 0
    report = " ".join(capsys.readouterr().out.split())
    pipe, golden = load(tmp_path), load_reference(case)
    out, feature = outputs_of(pipe, case)
    torch.testing.assert_close(out, golden["out"], atol=1e-5, rtol=0)  # measured: 2e-6 and 1e-6
    torch.testing.assert_close(feature, golden["feature"], atol=1e-5, rtol=0)
    assert f"from LGC-VD: {path}" in report and "after 300,000 updates" in report
    assert "moving average (EMA)" in report and report.count("second, independent implementation") == 2
    card = (tmp_path / "out" / "README.md").read_text()
    for text in (report, card):
        assert "Assumed as published" in text and "raw encoder" in text and path.name in text
    assert "--attention_head_dim" not in report and "exisas/LGC-VD" in card


@pytest.mark.parametrize("case", CASES)
def test_the_second_implementation_computes_what_the_original_computes(case):
    golden, heads = load_reference(case), {"head_dim": CASES[case]["config"]["n_head_channels"]}
    state, encoder = state_of(case, "denoiser"), state_of(case, "encoder")
    for timestep, cond, feature, name, scale in (
        ("t", "cond", "feature", "out", 1),
        ("t2", "cond_uncond", "feature_grey", "out2", 1),
        ("t", "cond", "feature", "out_small", 1e-3),
    ):
        given = {"cond": scale * golden[cond], "memory": scale * golden[feature]}
        out = reference_lgcvd.denoiser(state, scale * golden["x"], golden[timestep], **given, **heads)
        torch.testing.assert_close(out, golden[name], atol=3e-5 if scale < 1 else 1e-5, rtol=0)
    for scale, name in ((1, "feature"), (0, "feature_grey"), (1e-3, "feature_small")):
        feature = reference_lgcvd.encoder(encoder, scale * golden["prev_clip"], **heads)
        torch.testing.assert_close(feature, golden[name].expand_as(feature), atol=3e-5 if scale < 1 else 1e-5, rtol=0)


def test_published_multiples_at_a_width_where_groups_are_the_originals_own(tmp_path):
    """At 32 channels a normalisation of 96 has 16 groups there, not 24."""
    states = {kind: rule_state_dict(lgcvd_listing(kind, dim=32), 0.05, kind) for kind in NETWORKS.values()}
    result = convert(tmp_path, trained(diffusion(**states)), attention_head_dim=32, verify=True)
    assert result.max_difference < 1e-5
    pipe = load(tmp_path)
    assert pipe.unet.down_blocks[2].resnets[0].norm2.num_groups == 16
    assert (pipe.unet.config.attention_levels, pipe.unet.config.up_attention_levels) == ([2], [1])
    assert pipe.unet.config.original_quirks and pipe.context_encoder.config.original_quirks
    pipe.unet.register_to_config(original_quirks=False)
    pipe.unet.save_config(tmp_path / "out" / "unet")
    config = json.loads((tmp_path / "out" / "unet" / "config.json").read_text())
    network = type(pipe.unet).from_config(config).eval()
    network.load_state_dict(pipe.unet.state_dict())
    memory, window = torch.zeros(1, 128, 2, 2), torch.zeros(1, 10, 3, 16, 16)
    inputs = {"timestep": 5, "roles": torch.tensor([[0] * 2 + [2] * 8]), "context": (memory,)}
    with torch.no_grad():
        assert (network(window, **inputs).sample - pipe.unet(window, **inputs).sample).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["unet", "context_encoder"])
def test_verification_finds_a_wrong_weight(kind, tmp_path):
    """Two weights of one shape exchanged in the converted folder: by a table that was wrong, here done to the file."""
    convert(tmp_path)
    states = {prefix: state_of(SMALL, name) for prefix, name in NETWORKS.items()}
    found = {prefix: recognise(state, SMALL, head_dim=16) for prefix, state in states.items()}
    _compare(tmp_path / "out", states, found)
    network = getattr(load(tmp_path), kind)
    attention = network.mid_block.attention
    with torch.no_grad():
        to_k, to_v = attention.to_k.weight, attention.to_v.weight
        to_k.data, to_v.data = to_v.data.clone(), to_k.data.clone()
    network.save_pretrained(tmp_path / "out" / kind)
    what = "denoiser" if kind == "unet" else "encoder"
    with pytest.raises(CheckpointError, match=f"converted {what} differs from the second implementation"):
        _compare(tmp_path / "out", states, found)


def test_verification_knows_the_heads(tmp_path):
    """Of another number of heads both implementations are told, and the golden numbers are not."""
    result = convert(tmp_path, attention_head_dim=8, verify=True)
    assert result.max_difference < 1e-5
    out, feature = outputs_of(load(tmp_path), SMALL)
    golden = load_reference(SMALL)
    assert (out - golden["out"]).abs().max() > 1e-3 and (feature - golden["feature"]).abs().max() > 1e-3


@pytest.mark.parametrize("task, frames", [("prediction", 20), ("prediction", 18), ("generation", 20)])
def test_the_pipeline_makes_the_originals_samples(task, frames, tmp_path):
    """Its sampler's own runs over three clips, from the same noise; the last clip of 18 frames is shifted back."""
    convert(tmp_path, sampler="original")
    pipe, golden, run = load(tmp_path), load_reference(SMALL), f"sample_{task}_{frames}"
    # Of each clip: the noise to begin with, and one draw a step, of which the last is not used.
    noise = [drawn(f"{SMALL}/{run}/noise{i}", (2, 24, 8, 8)) for i in range(15) if i % 5 < 4]
    given = {"batch_size": 2}
    if task == "prediction":
        given = {"past_frames": as_frames(golden[f"{run}_video"])[:, :2].expand(2, -1, -1, -1, -1)}
    options = {"num_inference_steps": 4, "overwrite_given": True, "output_type": "latent"}
    expected = golden[f"{run}_result"].transpose(1, 2) * 2 - 1

    def largest_difference():
        generator = NoiseSequence(map(torch.from_numpy, noise))
        video = pipe(**given, num_frames=frames - 2 * ("past_frames" in given), generator=generator, **options).frames
        return (video - expected[:, -video.shape[1] :]).abs().max()

    # Where it skips steps, the original rounds the signal that is left in the noisiest one, 1.6e-5, to none.
    assert largest_difference() < 2e-4  # measured: 1e-4
    pipe.scheduler.alphas_cumprod[golden["sched4_timesteps"].flip(0).long()] = golden["sched4_alphas_cumprod"]
    assert largest_difference() < 1e-5  # measured: 2e-6


def test_the_folder_is_a_pipeline_that_predicts_interpolates_and_generates(tmp_path):
    convert(tmp_path)
    pipe = load(tmp_path)
    past, future = torch.rand(2, 1, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": torch.Generator().manual_seed(1)}
    assert pipe(past_frames=past, num_frames=14, **options).frames.shape == (1, 14, 3, 8, 8)
    assert pipe(past_frames=past, future_frames=future, num_frames=4, **options).frames.shape[1] == 4
    assert pipe(num_frames=8, **options).frames.isfinite().all()


# --------------------------------------------------------------------------------------------------------------------
# Files


def weights_in(folder):
    names = ("unet", "context_encoder")
    return [(folder / "out" / name / "diffusion_pytorch_model.safetensors").read_bytes() for name in names]


def test_forms_of_a_file_give_the_same_weights(tmp_path):
    content = original()
    bare = dict(content["ema"])
    forms = {
        "as it is": (content, {}),
        "bare": (bare, {}),
        "without buffers": ({name: bare[name] for name in bare if "fn." in name}, {}),
        "with a prefix": (original(ema={f"module.{name}": value for name, value in bare.items()}), {}),
        "bare with a prefix": ({f"module.{name}": value for name, value in bare.items()}, {}),
        "as a state dict": ({"state_dict": bare}, {}),
        "parameters": ({name: torch.nn.Parameter(value) for name, value in bare.items()}, {}),
        "before zip archives": (content, {"_use_new_zipfile_serialization": False}),
        "the average alone": ({"step": 5, "ema": content["ema"]}, {}),
    }
    files = {}
    for name, (form, options) in forms.items():
        path = save(tmp_path / name, form, name="bair.pt", **options)
        result = convert_checkpoint(path, tmp_path / name / "out", attention_head_dim=16)
        files[name] = weights_in(tmp_path / name)
        is_bare = "ema" not in form
        assert result.weights == ("model" if is_bare else "ema")
        assert is_bare is any("the file does not say" in note for note in result.notes)
        has_betas = name != "without buffers"
        assert any("buffer `betas`" in sentence for sentence in result.verified) is has_betas
        assert any("1000 noise levels" in sentence for sentence in result.not_verified) is not has_betas
    assert all(content == files["as it is"] for content in files.values())


def test_converting_again_gives_the_same_bytes(tmp_path):
    path = save(tmp_path)
    for name in ("a", "b"):
        convert_checkpoint(path, tmp_path / name)
    first, second = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second and any(path.name == "README.md" for path in first)


def test_of_a_folder_the_last_milestone_is_taken(tmp_path):
    for name in ("model-9.pt", "model-100.pt"):
        save(tmp_path, name=name)
    result = convert_checkpoint(tmp_path, tmp_path / "out")
    assert result.checkpoint.name == "model-100.pt" and "Of 2 checkpoints in the folder" in result.notes[0]


def test_averaged_and_raw_weights(tmp_path):
    result = convert(tmp_path)
    pipe, bias = load(tmp_path), state_of(SMALL, "denoiser")["init_conv.bias"]
    encoder_bias = state_of(SMALL, "encoder")["init_conv.bias"]
    assert torch.equal(pipe.unet.conv_in.bias, bias) and torch.equal(pipe.context_encoder.conv_in.bias, encoder_bias)
    assert (result.weights, result.step) == ("ema", 300_000)
    result = convert(tmp_path / "raw", weights="model")
    pipe = load(tmp_path / "raw")
    assert torch.equal(pipe.unet.conv_in.bias, 2 * bias)
    assert torch.equal(pipe.context_encoder.conv_in.bias, 2 * encoder_bias)
    assert result.weights == "model" and not any("raw encoder" in note for note in result.notes)
    content = original()
    del content["ema"]
    with pytest.raises(CheckpointError, match="has no average of the weights as `ema`; it has model"):
        convert(tmp_path / "none", content, weights="ema")


def test_without_an_average_of_the_encoder_its_raw_weights_are_taken_and_that_is_said(tmp_path):
    content = original()
    content["ema"] = {name: value for name, value in content["ema"].items() if not name.startswith(ENCODER)}
    result = convert(tmp_path, content, verify=True)
    pipe = load(tmp_path)
    assert torch.equal(pipe.unet.conv_in.bias, state_of(SMALL, "denoiser")["init_conv.bias"])
    assert torch.equal(pipe.context_encoder.conv_in.bias, 2 * state_of(SMALL, "encoder")["init_conv.bias"])
    said = "There is no average of the encoder in the file"
    assert any(note.startswith(said) for note in result.notes)
    assert said in (tmp_path / "out" / "README.md").read_text()


# --------------------------------------------------------------------------------------------------------------------
# Scheduler and statements


def test_schedule_is_the_originals_with_its_steps(tmp_path):
    result = convert(tmp_path, sampler="original")
    scheduler, golden = DDPMScheduler.from_pretrained(tmp_path / "out" / "scheduler"), load_reference(SMALL)
    torch.testing.assert_close(scheduler.betas, golden["sched1000_betas"], atol=1e-6, rtol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, golden["sched1000_alphas_cumprod"], atol=1e-6, rtol=0)
    config = scheduler.config
    assert (config.variance_type, config.clip_sample, config.prediction_type) == ("fixed_small", True, "v_prediction")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == golden["sched4_timesteps"].tolist()
    # The published 100: 1000 levels by 999/99, rounded, both ends included.
    scheduler.set_timesteps(100)
    assert scheduler.timesteps.tolist() == [round(i * 999 / 99) for i in reversed(range(100))]
    assert any("buffer `betas` in the file, 1000 values" in sentence for sentence in result.verified)
    assert json.loads((tmp_path / "out" / "model_card.json").read_text())["num_inference_steps"] == 100
    (tmp_path / "few").mkdir()
    convert(tmp_path / "few")
    few = DPMSolverMultistepScheduler.from_pretrained(tmp_path / "few" / "out" / "scheduler")
    assert torch.equal(few.betas, scheduler.betas) and few.config.timestep_spacing == "trailing"
    assert json.loads((tmp_path / "few" / "out" / "model_index.json").read_text())["num_inference_steps"] == 15


def test_what_nothing_tells_is_as_published_and_is_said(tmp_path):
    result = convert(tmp_path, attention_head_dim=None, image_size=None)
    pipe = load(tmp_path)
    unet, encoder = pipe.unet.config, pipe.context_encoder.config
    assert (unet.sample_size, encoder.sample_size, unet.attention_head_dim, encoder.attention_head_dim) == (
        *(64, 64),
        *(128, 128),
    )
    assert (unet.drop_observed, unet.prediction_type, unet.num_train_timesteps) == (0.4, "v_prediction", 1000)
    assert (unet.max_frames, encoder.max_frames, unet.num_context_frames, unet.in_channels) == (8, 8, 2, 3)
    said = " ".join(result.not_verified)
    assert all(word in said for word in ("--image_size", "--attention_head_dim", "0.4", "velocity"))
    assert "generation" in result.tasks and "prediction" in result.tasks


def test_published_networks_are_converted_name_for_name():
    found = {}
    for prefix, kind in NETWORKS.items():
        shapes = lgcvd_listing(kind)
        state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
        found[prefix] = recognise(state, kind)
        assert {row.theirs for row in found[prefix].rows} == state.keys()
    networks = _make_networks(found, 64, 1000, "it")
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert [round(count / 1e6, 1) for count in counts] == [63.4, 33.1]


def test_frames_of_other_channels_are_told_by_the_denoiser(tmp_path):
    listings = {
        kind: lgcvd_listing(kind, dim=16, multiples=(1, 2), attention_level=1, channels=1)
        for kind in NETWORKS.values()
    }
    states = {kind: rule_state_dict(listing, 0.1, kind) for kind, listing in listings.items()}
    convert(tmp_path, trained(diffusion(**states)), verify=True)
    pipe = load(tmp_path)
    assert (pipe.unet.config.in_channels, pipe.context_encoder.config.in_channels) == (1, 1)


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def first(state, part, beginning=DENOISER):
    return next(name for name in state if part in name and name.startswith(beginning))


def without(state, beginning):
    for name in [name for name in state if name.startswith(beginning)]:
        del state[name]


DAMAGES = {
    "no encoder": (lambda s, p: without(s, ENCODER), "has no encoder: no name in it begins with `encoder_fn.`"),
    "no denoiser": (lambda s, p: without(s, DENOISER), "has no denoiser: no name in it begins with `denoise_fn.`"),
    "a parameter too few": (lambda s, p: s.pop(first(s, "bias", p)), "are missing|is not there"),
    "a block too few": (lambda s, p: without(s, f"{p}midblock3"), "are missing|is not there"),
    "no end": (
        lambda s, p: without(s, f"{p}finial_conv" if p == DENOISER else f"{p}midblock"),
        "is no network of LGC-VD|missing",
    ),
    "a parameter too many": (lambda s, p: s.update({f"{p}evil": torch.zeros(1)}), "left over"),
    "something beside the networks": (lambda s, p: s.update(evil=torch.zeros(1)), "not of LGC-VD's diffusion: 'evil'"),
    "a name that is no text": (lambda s, p: s.update({5: torch.zeros(1)}), "must map names to tensors"),
    "no tensor": (lambda s, p: s.update({first(s, "weight", p): "evil"}), "must map names to tensors"),
    "another shape": (lambda s, p: s.update({first(s, "Conv_1.bias", p): torch.zeros(7)}), "which does not fit"),
    "another width": (
        lambda s, p: s.update({f"{p}init_conv.weight": torch.zeros(4, 7, 3, 3)}),
        "is no network of LGC-VD|does not fit|cannot be|first level",
    ),
    "no dimensions": (lambda s, p: s.update({f"{p}init_conv.weight": torch.zeros(())}), "is no network of LGC-VD"),
    "an empty parameter": (lambda s, p: s.update({first(s, "bias", p): torch.zeros(0)}), "is empty"),
    "integers": (lambda s, p: s.update({first(s, "bias", p): torch.zeros(16).long()}), "weights are floating point"),
    "NaN": (lambda s, p: s[first(s, "weight", p)].fill_(torch.nan), "NaN or infinite"),
    "beyond single precision": (
        lambda s, p: s.update({first(s, "bias", p): s[first(s, "bias", p)].double() + 1e300}),
        "NaN or infinite",
    ),
    "a prefix here and there": (
        lambda s, p: s.update({f"module.{name}": s.pop(name) for name in [first(s, "bias", p)]}),
        "with and without the prefix",
    ),
    "a number far away": (
        lambda s, p: s.update({f"{p}downs.999999999999.0.Conv_0.weight": torch.zeros(1)}),
        "left over",
    ),
    "betas of another schedule": (lambda s, p: s.update(betas=torch.linspace(1e-4, 0.02, 1000)), "not the cosine"),
    "respaced betas": (lambda s, p: s.update(betas=s["betas"][::10].clone()), "not the cosine schedule of LGC-VD"),
    "betas that are a matrix": (lambda s, p: s.update(betas=torch.ones(2, 2)), "must be a list"),
    "too many betas": (lambda s, p: s.update(betas=torch.zeros(100_001)), "100,001 noise levels"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("prefix", NETWORKS)
def test_checkpoints_that_are_damaged_are_refused(prefix, damage, tmp_path):
    change, says = DAMAGES[damage]
    content = original()
    del content["model"]  # whose encoder would be taken
    change(content["ema"], prefix)
    assert is_lgcvd(content)
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, content)
    assert not (tmp_path / "out").exists()


def test_networks_that_do_not_belong_together_are_refused(tmp_path):
    other = diffusion(state_of(SMALL, "denoiser"), state_of("lgcvd_rgb", "encoder"))
    with pytest.raises(CheckpointError, match="do not belong together: `block_out_channels` is"):
        convert(tmp_path, trained(other))
    twice = diffusion(state_of(SMALL, "denoiser"), state_of(SMALL, "denoiser"))
    with pytest.raises(
        CheckpointError, match="The encoder in .* is none: its names and shapes are those of an? denoiser"
    ):
        convert(tmp_path, trained(twice))
    with pytest.raises(CheckpointError, match="has no encoder"):  # a network by itself, without prefixes
        convert(tmp_path, state_of(SMALL, "denoiser"))


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"step": "evil"}, "`step` must be a number of updates"),
        ({"step": -1}, "`step` must be a number of updates"),
        ({"step": True}, "`step` must be a number of updates"),
        ({"ema": [1], "model": diffusion({}, {}) | {"midblock": torch.zeros(1)}}, "not of|begins with"),
    ],
)
def test_files_of_another_form_are_refused(changes, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, original(**changes))
    assert not (tmp_path / "out").exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["step", "scaler", "a tensor"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_checkpoint_is_not_run(place, is_zip, tmp_path):
    content = original()
    if place == "a tensor":
        content["ema"][f"{ENCODER}init_conv.bias"] = Evil(tmp_path / "marker")
    else:
        content[place] = Evil(tmp_path / "marker")
    path = save(tmp_path, content, _use_new_zipfile_serialization=is_zip)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_a_flipped_bit_of_either_network_is_found(tmp_path):
    whole = save(tmp_path).read_bytes()
    for kind in NETWORKS.values():
        numbers = state_of(SMALL, kind)["midblock3.Conv_1.weight"].numpy().tobytes()
        place = whole.rindex(numbers)  # of the average
        damaged = bytearray(whole)
        damaged[place + 100] ^= 1
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged|checksum"):
            convert_checkpoint(tmp_path / NAME, tmp_path / "out", weights="ema")


@pytest.mark.parametrize(
    "option, says",
    [
        ("config", "`--config` is for MCVD's checkpoints"),
        ("preset", "`--preset` is for MCVD's checkpoints"),
        ("num_heads", "`num_heads` is for checkpoints of RaMViD, FDM and VDM's port"),
        ("max_frames", "`max_frames` is for checkpoints of RaMViD, FDM and VDM's port"),
    ],
)
def test_options_of_others_are_refused(option, says, tmp_path):
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, **{option: "smmnist-concat-p5k5" if option in ("config", "preset") else 8})


@pytest.mark.parametrize("option", ["attention_head_dim", "image_size"])
@pytest.mark.parametrize("value", [0, -1, 10**9, True, "8"])
def test_bad_options_are_refused(option, value, tmp_path):
    with pytest.raises(CheckpointError, match=f"`{option}` must be an integer from 1 to"):
        convert(tmp_path, **{option: value})


def test_heads_that_do_not_divide_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="the networks cannot be made: `attention_head_dim` .12. must divide"):
        convert(tmp_path, attention_head_dim=12)


def test_the_heads_of_this_system_are_refused_for_others(tmp_path):
    with pytest.raises(
        CheckpointError, match="`attention_head_dim` is for checkpoints of LGC-VD; for this one, its config"
    ):
        convert_checkpoint(MCVD_REFERENCE / "checkpoint_concat", tmp_path / "out", attention_head_dim=8)
    for case in ("ramvid_gray", "vdm_gray_long"):
        content = rule_state_dict_of_others(case)
        assert not is_lgcvd(content) and not is_lgcvd({"ema": content, "model": content})
        with pytest.raises(
            CheckpointError, match="`attention_head_dim` is for checkpoints of LGC-VD; .* another system"
        ):
            convert(tmp_path, content)


def test_outputs_beyond_numbers_fail_the_verification(tmp_path):
    averaged = original()["ema"]
    huge = {name: value * 1e25 if "Conv" in name or "init_conv" in name else value for name, value in averaged.items()}
    with pytest.raises(CheckpointError, match="output is NaN or infinite"):
        convert(tmp_path, {"ema": huge}, verify=True)
    nothing = {name: torch.zeros_like(value) if "fn." in name else value for name, value in averaged.items()}
    with pytest.raises(CheckpointError, match="The encoder's output is zero everywhere"):
        convert(tmp_path, {"ema": nothing}, verify=True)
    assert not (tmp_path / "out").exists()
