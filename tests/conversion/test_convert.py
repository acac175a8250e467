"""Original checkpoint -> pipeline folder: the same model, whatever its shape; nothing guessed; nothing half-made."""

import copy
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from huggingface_hub import ModelCard

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.cli import main
from mcvd_diffusers.conversion import CheckpointError, convert_checkpoint, reference_network
from mcvd_diffusers.conversion.components import make_unet, reconcile
from mcvd_diffusers.conversion.convert import _not_verified
from mcvd_diffusers.conversion.original_config import architecture_of, check_config, config_of_preset, presets_that_fit
from mcvd_diffusers.conversion.original_weights import check_table, key_table, original_shapes, read_architecture
from mcvd_diffusers.presets import ORIGINAL_NAMES
from original_mcvd import CASES, REFERENCE, block_of, load_rule_weights, original_checkpoint, save_original, window


GENUINE = REFERENCE / "checkpoint_concat"
STATE_DICTS = json.loads(gzip.decompress((REFERENCE / "state_dicts.json.gz").read_bytes()))

# The smallest network with every part: two levels, attention, past and future.
TINY = {
    "data": {
        "dataset": "StochasticMovingMNIST",
        "channels": 1,
        "image_size": 8,
        "num_frames": 2,
        "num_frames_cond": 2,
        "num_frames_future": 1,
        "prob_mask_cond": 0.5,
        "prob_mask_future": 0.5,
    },
    "model": {
        "ngf": 8,
        "ch_mult": [1, 2],
        "num_res_blocks": 1,
        "attn_resolutions": [4],
        "n_head_channels": 8,
        "spade": False,
        "spade_dim": 16,
        "cond_emb": False,
        "dropout": 0.1,
        "ema": True,
    },
    "sampling": {"subsample": 10, "denoise": True},
}


def tiny(**changes):
    """TINY with options changed, as section__name; `...` removes one."""
    config = copy.deepcopy(TINY)
    for option, value in changes.items():
        section, name = option.split("__")
        config.setdefault(section, {})[name] = value
        if value is ...:
            del config[section][name]
    return config


def convert(folder, config=None, checkpoint=None, save_options=None, **options):
    save_original(folder / "original", config or TINY, checkpoint, **(save_options or {}))
    result = convert_checkpoint(folder / "original", folder / "out", **options)
    return result, MCVDPipeline.from_pretrained(folder / "out")


def every_byte(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --------------------------------------------------------------------------------------------------------------------
# The same model


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_against_a_genuine_checkpoint(weights, tmp_path):
    result = convert_checkpoint(GENUINE, tmp_path / "out", weights=None if weights == "ema" else weights, verify=True)
    golden = {name: torch.from_numpy(value) for name, value in np.load(GENUINE / "expected.npz").items()}
    unet = MCVDPipeline.from_pretrained(tmp_path / "out").unet.eval()
    roles = torch.tensor([[1, 1, 2, 2, 1]] * 2)
    with torch.no_grad():
        out = block_of(unet, unet(window(unet, golden["x"], golden["cond"]), 999 - golden["t"], roles).sample)
    other = {"ema": "model", "model": "ema"}[weights]
    torch.testing.assert_close(out, golden[f"out_{weights}"], atol=5e-5, rtol=0)
    assert (out - golden[f"out_{other}"]).abs().max() > 0.1
    manifest = json.loads((GENUINE / "manifest.json").read_text())
    assert (result.weights, result.step, result.sha256) == (weights, 4, manifest["sha256"])
    assert result.max_difference < 1e-5


SHAPES = {
    "concat": {},
    "SPATIN": {"model__spade": True},
    "SPATIN and an embedding of the past": {
        "model__spade": True,
        "model__cond_emb": True,
        "data__num_frames_future": 0,
    },
    "embedding of the past": {"model__cond_emb": True},
    "no future": {"data__num_frames_future": 0},
    "no given frames": {"data__num_frames_future": 0, "data__num_frames_cond": 0, "data__prob_mask_cond": 0.0},
    "future only": {"data__num_frames_cond": 0, "data__num_frames_future": 3},
    "colour": {"data__channels": 3},
    "eight channels, one frame each": {
        "data__channels": 8,
        "data__num_frames": 1,
        "data__num_frames_cond": 1,
        "data__num_frames_future": 1,
    },
    "first level wider": {"model__ch_mult": [2, 3]},
    "first level wider, SPATIN": {"model__ch_mult": [3, 2], "model__spade": True},
    "one level": {"model__ch_mult": [1], "model__attn_resolutions": [8]},
    "one level without attention": {"model__ch_mult": [2], "model__attn_resolutions": [], "model__num_res_blocks": 2},
    "four levels, attention in between": {
        "model__ch_mult": [1, 1, 2, 3],
        "model__attn_resolutions": [4, 2],
        "model__num_res_blocks": 2,
    },
    "attention everywhere": {"model__attn_resolutions": [8, 4], "model__num_res_blocks": 3},
    "one head": {"model__n_head_channels": -1},
    "uneven groups": {"model__ngf": 36, "model__n_head_channels": 36, "model__ch_mult": [1, 4]},
}


@pytest.mark.parametrize("name", SHAPES)
def test_networks_of_every_shape_are_converted_and_verified(name, tmp_path):
    config = tiny(**SHAPES[name])
    result, pipe = convert(tmp_path, config, verify=True, sampler="original")
    assert result.max_difference < 5e-5 and pipe.config.final_denoise is True
    built = load_rule_weights(pipe.unet.__class__(**pipe.unet.config), "/ema")
    for (name, ours), (_, expected) in zip(pipe.unet.state_dict().items(), built.state_dict().items(), strict=True):
        assert torch.equal(ours, expected), name


def test_verification_finds_a_wrong_weight(tmp_path):
    """Two weights of one shape exchanged in the converted folder, by a table that was wrong: here done to the file."""
    from mcvd_diffusers.conversion import convert as module

    result, pipe = convert(tmp_path)
    unet = pipe.unet
    with torch.no_grad():
        to_k, to_v = unet.mid_block.attention.to_k.weight, unet.mid_block.attention.to_v.weight
        to_k.data, to_v.data = to_v.data.clone(), to_k.data.clone()
    pipe.save_pretrained(tmp_path / "wrong")
    checkpoint = original_checkpoint(TINY)
    what = dict(checkpoint[4])
    config = check_config("config.yml", TINY)
    architecture = read_architecture(what, "checkpoint")
    reconcile(config, architecture, what, checkpoint[0], "checkpoint")
    module._compare(tmp_path / "out", what, config, architecture)
    with pytest.raises(CheckpointError, match="differs from the second implementation"):
        module._compare(tmp_path / "wrong", what, config, architecture)


@pytest.mark.parametrize("name", STATE_DICTS)
def test_published_layouts_convert_shape_for_shape(name):
    """On the meta device: every key of the twelve published sizes, and the number of parameters that the original has."""
    case = STATE_DICTS[name]
    state = {key: torch.empty(shape, device="meta") for key, shape in case["keys"].items()}
    config = check_config("config.yml", case["config"])
    architecture = read_architecture(state, name)
    reconcile(config, architecture, state, state, name)
    unet = make_unet(config, architecture)
    check_table(unet, state, name)
    assert sum(parameter.numel() for parameter in unet.parameters()) == case["n_params"]
    assert sum(state[row.theirs].numel() for row in key_table(unet)) == case["n_params"]
    assert set(case["keys"]) - {row.theirs for row in key_table(unet)} == set(case["buffers"])
    assert all(tuple(case["keys"][key]) == shape for key, shape in original_shapes(unet).items())


@pytest.mark.parametrize("name", STATE_DICTS)
def test_published_layouts_need_little_of_a_config(name):
    """Widths, levels, attention and SPATIN stand in the shapes: an old config may lack them."""
    case = copy.deepcopy(STATE_DICTS[name])
    state = {key: torch.empty(shape, device="meta") for key, shape in case["keys"].items()}
    full, least = copy.deepcopy(case["config"]), copy.deepcopy(case["config"])
    for option in ("ngf", "ch_mult", "num_res_blocks", "attn_resolutions", "spade", "spade_dim", "cond_emb"):
        del least["model"][option]
    del least["data"]["num_frames"], least["data"]["num_frames_cond"]
    configs = []
    for content in (full, least):
        config = check_config("config.yml", content)
        architecture = read_architecture(state, name)
        reconcile(config, architecture, state, state, name)
        configs.append(dict(make_unet(config, architecture).config))
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", ORIGINAL_NAMES)
def test_every_preset_stands_in_for_a_lost_config(name):
    config = config_of_preset(name)
    assert config["model.ngf"] * config["model.ch_mult"][-1] > 0 and config["sampling.denoise"] is True


def test_a_preset_must_fit_the_weights(tmp_path):
    save_original(tmp_path, TINY)
    with pytest.raises(CheckpointError, match="preset smmnist-concat-p5k5 and .* `model.ngf` is 64 .* fit: none"):
        convert_checkpoint(tmp_path / "checkpoint_4.pt", tmp_path / "out", preset="smmnist-concat-p5k5")
    with pytest.raises(CheckpointError, match="There is no preset 'mnist'. There are.* smmnist-concat-p5k5 \\(smm"):
        convert_checkpoint(tmp_path / "checkpoint_4.pt", tmp_path / "out", preset="mnist")
    close = "no preset 'smnist-spatin-p5k5'. Did you mean smmnist-spatin-p5k5 or .*\\? There are, with"
    with pytest.raises(CheckpointError, match=close):
        convert_checkpoint(tmp_path / "checkpoint_4.pt", tmp_path / "out", preset="smnist-spatin-p5k5")
    for name in ("ramvid-bair", "fdm-carla", "vdm-64"):
        with pytest.raises(
            CheckpointError, match=f"MCVD's published models, got '{name}', .* need none.* leave it out"
        ):
            convert_checkpoint(tmp_path / "checkpoint_4.pt", tmp_path / "out", preset=name)
    with pytest.raises(CheckpointError, match="pass one of them"):
        convert_checkpoint(tmp_path, tmp_path / "out", preset="smmnist-concat-p5k5", config=tmp_path / "config.yml")


def test_a_preset_says_what_it_cannot_know(tmp_path):
    """By the name of the original's script too; presets of one shape cannot be told apart by the weights."""
    for name in ("bair64_big192_5c1_pmask50_unetm", "bair-concat-p1k5-pastmask"):
        config = config_of_preset(name)
        assert config.preset == "bair-concat-p1k5-pastmask" and config.published_steps == 650_000
    assert presets_that_fit(architecture_of(config)) == ["bair-concat-p1k5", "bair-concat-p1k5-pastmask"]
    sentences = _not_verified(config, [0, 0, 0, 1_234], presets_that_fit(architecture_of(config)))
    text = " ".join(sentences)
    assert "Other presets have the same shapes: bair-concat-p1k5." in text
    assert "made after 650,000 updates, this file after 1,234" in text
    assert "the preset's too; the file does not state them" in text


def test_every_contradiction_is_named_at_once(tmp_path):
    config = tiny(model__ngf=16, model__num_res_blocks=3, data__num_frames_future=0)
    with pytest.raises(CheckpointError, match="ngf.*num_res_blocks.*num_frames_future"):
        convert(tmp_path, config, original_checkpoint(TINY))


# --------------------------------------------------------------------------------------------------------------------
# Forms of the file


def strip(state):
    return OrderedDict((name.removeprefix("module."), value) for name, value in state.items())


def test_older_and_edited_files_give_the_same_weights(tmp_path):
    saved = original_checkpoint(TINY)
    last = max(int(name.split(".")[2]) for name in saved[4]) - 1
    legacy = {name.replace(f".{last}.Norm_0.", f".{last}."): value for name, value in saved[4].items()}
    assert legacy.keys() != saved[4].keys()
    forms = {
        "as it is": (saved, {}),
        "old names of the last normalisation": ([*saved[:4], legacy], {}),
        "average with a prefix": ([*saved[:4], {f"module.{name}": x for name, x in saved[4].items()}], {}),
        "model without a prefix": ([strip(saved[0]), *saved[1:]], {}),
        "before zip archives": (saved, {"_use_new_zipfile_serialization": False}),
        "parameters": ([*saved[:4], {name: torch.nn.Parameter(x) for name, x in saved[4].items()}], {}),
        "strided": ([*saved[:4], {n: x.T.contiguous().T if x.ndim == 2 else x for n, x in saved[4].items()}], {}),
        "a new optimizer's steps": ([saved[0], {"state": {0: {"step": torch.tensor(4.0)}}}, *saved[2:]], {}),
    }
    files = {}
    for name, (checkpoint, options) in forms.items():
        folder = tmp_path / name.replace(" ", "_")
        _, pipe = convert(folder, checkpoint=checkpoint, save_options=options)
        files[name] = every_byte(folder / "out")["unet/diffusion_pytorch_model.safetensors"]
        assert files[name] == files["as it is"], name


def test_weights_that_share_memory_are_written_as_two(tmp_path):
    checkpoint = original_checkpoint(TINY)
    names = [name for name, value in checkpoint[4].items() if value.shape == (8, 8, 3, 3)]
    checkpoint[4][names[1]] = checkpoint[4][names[0]]
    both = torch.stack([checkpoint[4][name] for name in names[2:4]])
    checkpoint[4].update(zip(names[2:4], both))  # two views of one storage
    _, pipe = convert(tmp_path, checkpoint=checkpoint, verify=True)
    rows = {row.theirs: row.ours[0] for row in key_table(pipe.unet)}
    state = pipe.unet.state_dict()
    for name in names[:4]:
        assert torch.equal(state[rows[name]], checkpoint[4][name])


def test_outputs_beyond_numbers_fail_the_verification(tmp_path):
    checkpoint = original_checkpoint(TINY)
    huge = {name: value * 1e20 for name, value in checkpoint[4].items()}
    with pytest.raises(CheckpointError, match="output is NaN or infinite"):
        convert(tmp_path / "a", checkpoint=[*checkpoint[:4], huge], verify=True)
    nothing = {name: torch.zeros_like(value) for name, value in checkpoint[4].items()}
    with pytest.raises(CheckpointError, match="output is zero everywhere"):
        convert(tmp_path / "b", checkpoint=[*checkpoint[:4], nothing], verify=True)
    assert not (tmp_path / "a" / "out").exists() and not (tmp_path / "b" / "out").exists()


def test_a_file_without_an_average_gives_the_raw_weights(tmp_path):
    saved = original_checkpoint(TINY)[:4]
    result, pipe = convert(tmp_path / "a", tiny(model__ema=False), saved)
    raw = load_rule_weights(pipe.unet.__class__(**pipe.unet.config))
    assert result.weights == "model" and torch.equal(pipe.unet.conv_out.weight, raw.conv_out.weight)
    with pytest.raises(CheckpointError, match="has no average of the weights: take the raw ones, `--weights model`"):
        convert(tmp_path / "b", tiny(model__ema=False), saved, weights="ema")
    with pytest.raises(CheckpointError, match="says `model.ema: true`, but checkpoint_4.pt has no average"):
        convert(tmp_path / "c", TINY, saved)
    with pytest.raises(CheckpointError, match="says `model.ema: false`, but .* has an average .* `--weights ema`"):
        convert(tmp_path / "d", tiny(model__ema=False))
    assert convert(tmp_path / "e", tiny(model__ema=False), weights="ema")[0].weights == "ema"


def test_half_precision_becomes_single_precision_and_integers_are_refused(tmp_path):
    saved = original_checkpoint(TINY)
    half = {name: value.half() for name, value in saved[4].items()}
    _, pipe = convert(tmp_path / "a", checkpoint=[*saved[:4], half])
    assert pipe.unet.dtype == torch.float32
    assert torch.equal(pipe.unet.conv_out.bias, half[[*half][-1]].float())
    whole = {name: value.long() for name, value in saved[4].items()}
    with pytest.raises(CheckpointError, match="holds torch.int64, but weights are floating point"):
        convert(tmp_path / "b", checkpoint=[*saved[:4], whole])


CHANGES = {
    "a name that is not known": (
        lambda s: s.update({"unet.extra": torch.zeros(1)}),
        "not the original's: 'unet.extra'",
    ),
    "a parameter too many": (
        lambda s: s.update({"unet.all_modules.3.Conv_9.weight": torch.zeros(1)}),
        "unet.all_modules.3.Conv_9.weight is left over",
    ),
    "a parameter too few": (lambda s: s.pop("unet.all_modules.0.bias"), "module 0 should be a linear|bias is missing"),
    "a module too few": (
        lambda s: [s.pop(name) for name in [*s] if ".all_modules.4." in name],
        "lacks the modules \\[4\\]",
    ),
    "another shape": (
        lambda s: s.update({"unet.all_modules.1.weight": torch.zeros(32, 31)}),
        "unet.all_modules.1.weight is \\(32, 31\\) instead of \\(32, 32\\)",
    ),
    "NaN": (
        lambda s: s["unet.all_modules.1.bias"].fill_(torch.nan),
        "unet.all_modules.1.bias has values that are NaN",
    ),
    "a number with a zero before it": (
        lambda s: s.update({"unet.all_modules.00.weight": s.pop("unet.all_modules.0.weight")}),
        "not the original's: 'unet.all_modules.00.weight'",
    ),
    "an empty parameter": (
        lambda s: s.update({"unet.all_modules.0.weight": torch.zeros(0, 2**40)}),
        "unet.all_modules.0.weight is empty, of shape \\(0, 1099511627776\\)",
    ),
    "a long name": (lambda s: s.update({"x" * 10**6: torch.zeros(1)}), "not the original's: 'x{80}'"),
    "a buffer in the average": (lambda s: s.update({"betas": torch.zeros(1000)}), "betas is left over"),
    "an average of another network": (
        lambda s: (s.clear(), s.update(original_checkpoint(tiny(model__num_res_blocks=2))[4])),
        "its raw and its averaged weights are those of two networks",
    ),
    "3D convolutions": (
        lambda s: s.update({"unet.all_modules.3.Conv_0.conv.weight": torch.zeros(1, 1, 3, 3, 3)}),
        "one of the original's 3D variants",
    ),
    "pseudo-3D convolutions": (
        lambda s: s.update({"unet.all_modules.3.Conv_0.space_conv.weight": torch.zeros(1, 1, 3, 3)}),
        "one of the original's 3D variants",
    ),
    "a prefix here and there": (
        lambda s: s.update({"module.unet.all_modules.0.bias": s.pop("unet.all_modules.0.bias")}),
        "with and without the prefix",
    ),
    "no tensor": (lambda s: s.update({"unet.all_modules.0.bias": 1}), "must map names to tensors"),
    "nothing": (lambda s: s.clear(), "none of `unet.all_modules.<i>.<name>`"),
}


RAW_CHANGES = {
    "buffers of Gamma noise": (
        lambda s: s.update({"module.theta_t": torch.zeros(1000)}),
        "Gamma noise \\(`model.gamma`\\)",
    ),
    "a name that is not known": (lambda s: s.update({"module.extra": torch.zeros(1)}), "not the original's: 'extra'"),
    "a parameter too few": (lambda s: s.pop("module.unet.all_modules.3.Conv_0.bias"), "3.Conv_0.bias is missing"),
    "no tensor": (lambda s: s.update({"module.extra": 1}), "must map names to tensors"),
    "a buffer of another length": (
        lambda s: s.update({"module.alphas_prev": torch.zeros(7)}),
        "alphas_prev is \\(7,\\) instead of \\(1000,\\)",
    ),
}


@pytest.mark.parametrize(
    "item, name", [*((4, name) for name in CHANGES), *((0, name) for name in RAW_CHANGES)], ids=str
)
def test_unknown_and_missing_keys_fail(item, name, tmp_path):
    """In the average, which is converted, and in the raw model, which is held to the table all the same."""
    change, message = (CHANGES if item == 4 else RAW_CHANGES)[name]
    checkpoint = original_checkpoint(TINY)
    change(checkpoint[item])
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path, checkpoint=checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


def test_weights_beyond_single_precision_are_refused(tmp_path):
    checkpoint = original_checkpoint(TINY)
    averaged = {name: value.double() for name, value in checkpoint[4].items()}
    averaged["unet.all_modules.1.bias"][0] = 1e300
    with pytest.raises(CheckpointError, match="unet.all_modules.1.bias has values that are NaN or infinite"):
        convert(tmp_path, checkpoint=[*checkpoint[:4], averaged])


@pytest.mark.parametrize("progress", [(1, -5), (-1, 4), (1, True), (1, "4")])
def test_a_count_of_updates_that_is_none_is_refused(progress, tmp_path):
    checkpoint = original_checkpoint(TINY)
    with pytest.raises(CheckpointError, match="must hold the original's list"):
        convert(tmp_path, checkpoint=[*checkpoint[:2], *progress, checkpoint[4]])


def test_generation_of_the_original_with_an_embedding_is_that_of_grey_frames(tmp_path):
    """Its samplers say "the past is there" also where it is not; the card tells how to repeat that."""
    config = tiny(model__spade=True, model__cond_emb=True, data__num_frames_future=0)
    result, pipe = convert(tmp_path, config)
    assert any("mid-grey, 0.5" in note for note in result.notes)
    state, x = original_checkpoint(config)[4], torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    options = {"ngf": 8, "num_levels": 2, "num_res_blocks": 1, "attn_levels": [1]}
    with torch.no_grad():
        theirs = reference_network.forward(
            state,
            x,
            torch.tensor([500]),
            torch.zeros(1, 2, 8, 8),
            torch.tensor([True]),
            n_head_channels=8,
            spade=True,
            cond_emb=True,
            **options,
        )
        seen = []
        pipe.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0].clone(), args[2])))
        pipe(past_frames=torch.full((1, 2, 1, 8, 8), 0.5), num_inference_steps=1, output_type="pt")
        sample, roles = seen[0]
        sample[:, 2:] = x[:, :, None]
        ours = pipe.unet(sample, 999 - 500, roles).sample[:, 2:, 0]
    torch.testing.assert_close(ours, theirs, atol=5e-5, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# The config


def test_defaults_of_older_configs_and_stray_keys(tmp_path):
    """The oldest published configs lack what came later, and have keys that nothing reads."""
    old = {
        "data": {"channels": 1, "image_size": 8, "num_frames": 2, "num_frames_cond": 3, "gff": 1.0},
        "model": {"ngf": 8, "ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "n_head_channels": 8}
        | {"gff": False, "num_classes": 1000, "sigma_begin": 0.02, "sigma_end": 1e-4, "type": "v1"},
        "runner": {"anything": [1]},
    }
    full = tiny(model__spade=True, data__num_frames_cond=3, data__num_frames_future=0)
    save_original(tmp_path / "original", full)
    (tmp_path / "original" / "config.yml").write_text(yaml.safe_dump(old))
    result = convert_checkpoint(tmp_path / "original", tmp_path / "out", verify=True, sampler="original")
    pipe = MCVDPipeline.from_pretrained(tmp_path / "out")
    config = pipe.unet.config
    assert sorted(result.stray) == ["data.gff", "model.gff", "runner"]
    assert config.conditioning == "spatin" and config.spatin_channels == 16  # by the shapes
    assert (config.num_past_frames, config.num_future_frames) == (3, 0)
    assert (config.drop_past, config.drop_future, config.dropout) == (0, 0, 0)
    assert result.tasks == ["prediction"] and result.weights == "ema"
    assert isinstance(pipe.scheduler, DDPMScheduler) and pipe.config.final_denoise is True
    assert "`data.gff`, `model.gff`, `runner`" in (tmp_path / "out" / "README.md").read_text()


def test_scheduler_and_final_call_follow_the_config(tmp_path):
    expected = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "clip_sample_range": 1.0,
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
    }
    _, pipe = convert(tmp_path / "a", sampler="original")
    assert type(pipe.scheduler) is DDPMScheduler
    assert expected.items() <= pipe.scheduler.config.items()
    assert (pipe.scheduler.config.variance_type, pipe.scheduler.config.clip_sample) == ("fixed_small", True)
    config = tiny(model__version="DDIM", sampling__denoise=False, sampling__clip_before=False)
    _, pipe = convert(tmp_path / "b", config, sampler="original")
    assert type(pipe.scheduler) is DDIMScheduler and pipe.config.final_denoise is False
    assert expected.items() <= pipe.scheduler.config.items()
    assert (pipe.scheduler.config.set_alpha_to_one, pipe.scheduler.config.steps_offset) == (True, 0)
    assert pipe.scheduler.config.clip_sample is False


def test_few_steps_are_the_default_and_the_originals_sampler_a_flag(tmp_path):
    """As many steps as DPM-Solver++ needs, and no last call; the card says both."""
    result, pipe = convert(tmp_path / "a", tiny(sampling__denoise=True, sampling__subsample=100))
    assert type(pipe.scheduler) is DPMSolverMultistepScheduler and pipe.scheduler.config.solver_order == 2
    assert (pipe.default_num_inference_steps, pipe.config.final_denoise) == (15, False)
    assert pipe.scheduler.config.timestep_spacing == "trailing" and pipe.scheduler.config.prediction_type == "epsilon"
    card = (tmp_path / "a" / "out" / "README.md").read_text()
    assert "num_inference_steps=15" in card
    assert (
        "`--sampler original` keeps the original's sampler, DDPM in 100 steps and a last call of the network" in card
    )
    betas = pipe.scheduler.betas
    _, pipe = convert(tmp_path / "b", tiny(sampling__denoise=True, sampling__subsample=100), sampler="original")
    assert type(pipe.scheduler) is DDPMScheduler and torch.equal(betas, pipe.scheduler.betas)
    assert (pipe.default_num_inference_steps, pipe.config.final_denoise) == (100, True)
    card = (tmp_path / "b" / "out" / "README.md").read_text()
    assert "num_inference_steps=100" in card and "--sampler" not in card
    with pytest.raises(CheckpointError, match='`sampler` must be "few_steps" or "original", got \'ddim\''):
        convert(tmp_path / "c", sampler="ddim")
    _, pipe = convert(tmp_path / "few", tiny(model__num_classes=10), original_checkpoint(TINY, num_classes=10))
    assert pipe.default_num_inference_steps == 10


def test_schedules_of_other_lengths_and_shapes(tmp_path):
    saved = original_checkpoint(TINY, num_classes=100)
    _, pipe = convert(tmp_path / "a", tiny(model__num_classes=100), saved)
    assert pipe.unet.config.num_train_timesteps == pipe.scheduler.config.num_train_timesteps == 100
    assert pipe(num_frames=2, num_inference_steps=2, output_type="pt").frames.shape == (1, 2, 1, 8, 8)
    _, pipe = convert(tmp_path / "b", TINY, saved)  # the config does not say, the buffers do
    assert pipe.unet.config.num_train_timesteps == 100
    saved = original_checkpoint(TINY)
    cosine = torch.cos((torch.arange(1000, 0, -1, dtype=torch.float64) / 1000 + 0.008) / 1.008 * torch.pi / 2) ** 2
    saved[0]["module.alphas"] = (cosine / np.cos(0.008 / 1.008 * np.pi / 2) ** 2).float()
    result, pipe = convert(tmp_path / "c", tiny(model__sigma_dist="cosine"), saved)
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert any("0.999" in note for note in result.notes)


CONTRADICTIONS = {
    "model__ngf": (16, "`model.ngf` is 16 in the config, and 8 by the weights .*shape \\(32, 8\\)"),
    "model__ch_mult": (
        [1, 3],
        "`model.ch_mult` is \\[1, 3\\] in the config, and \\[1, 2\\] by the weights .*\\[8, 16\\]",
    ),
    "model__num_res_blocks": (2, "`model.num_res_blocks` is 2 in the config, and 1 by the weights"),
    "model__attn_resolutions": ([8], "there is attention at \\[8\\] in the config, and by the weights at \\[4\\]"),
    "data__image_size": (16, "there is attention at \\[\\] in the config, and by the weights at \\[8\\]"),
    "model__spade": (True, "`model.spade` is true in the config, and false by the weights"),
    "model__cond_emb": (True, "`model.cond_emb` is true in the config, and false by the weights"),
    "model__n_head_channels": (
        10,
        "`model.n_head_channels` is 10 in the config, which does not divide the 16 channels",
    ),
    "model__num_classes": (500, "`model.num_classes` is 500 in the config, and 1000 by the weights"),
    "model__sigma_begin": (
        0.05,
        "make betas from 0.05 to 0.0001 in the config, and the file has betas from 0.02 to 0.0001",
    ),
    "data__num_frames": (3, "`data.num_frames` is 3 in the config, and 2 by the weights \\(2 channels come out\\)"),
    "data__num_frames_cond": (3, "`data.num_frames_cond` 3 and `data.num_frames_future` 1 are 4 .* by the weights 3"),
    "data__num_frames_future": (2, "`data.num_frames_cond` 2 and `data.num_frames_future` 2 are 4"),
    "data__channels": (3, "`data.channels` is 3 in the config, but the weights have 2 channels"),
}


@pytest.mark.parametrize("option", CONTRADICTIONS)
def test_contradictions_between_config_and_weights_show_both(option, tmp_path):
    value, message = CONTRADICTIONS[option]
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path, tiny(**{option: value}), original_checkpoint(TINY))
    assert not (tmp_path / "out").exists()


REFUSED = {
    "3D": ({"model__arch": "unetmore3d"}, "`model.arch` is unetmore3d, one of the original's 3D variants"),
    "pseudo-3D": ({"model__arch": "unetmorepseudo3d"}, "one of the original's 3D variants"),
    "another network": ({"model__arch": "ncsnpp"}, "only the paper's network, unetmore"),
    "Gamma noise": ({"model__gamma": True}, "`model.gamma` is true: Gamma noise"),
    "all frames": ({"model__output_all_frames": True}, "`model.output_all_frames` is true: an option that was broken"),
    "noisy given frames": ({"model__noise_in_cond": True}, "`model.noise_in_cond` is true"),
    "no time": ({"model__time_conditional": False}, "`model.time_conditional` is false"),
    "FPNDM": ({"model__version": "FPNDM"}, "a sampler that is broken .* set it to DDPM or DDIM in a copy"),
    "score matching": ({"model__version": "SMLD"}, "`model.version` is 'SMLD'"),
    "another schedule": ({"model__sigma_dist": "geometric"}, "only linear and cosine"),
    "betas the wrong way": ({"model__sigma_begin": 1e-4, "model__sigma_end": 0.02}, "the first the larger"),
    "lost channels": ({"data__channels": ...}, "does not say `data.channels`.*`--preset`"),
    "lost heads": (
        {"model__n_head_channels": ..., "data__image_size": ...},
        "`data.image_size`, `model.n_head_channels`",
    ),
    "text for a number": ({"data__channels": "many"}, "`data.channels` must be an integer of 1 or more, got 'many'"),
    "nothing for a number": (
        {"data__image_size": 0},
        "`data.image_size` must be an integer of 1 or more, got 'int'|got 0",
    ),
    "no probability": ({"data__prob_mask_cond": 1.5}, "`data.prob_mask_cond` must be a number in \\[0, 1\\]"),
    "truth for a number": ({"model__ngf": True}, "`model.ngf` must be an integer of 1 or more"),
    "a number for a list": ({"model__ch_mult": 4}, "`model.ch_mult` must be a list of integers"),
    "a size that cannot be halved": (
        {"data__image_size": 9, "model__attn_resolutions": ...},
        "`data.image_size` 9 cannot be halved 1 times",
    ),
    "masks at the same time, of which only one is drawn": (
        {"data__prob_mask_sync": True, "data__prob_mask_future": 0.0},
        "contradicts itself: `data.prob_mask_sync` .* `data.prob_mask_cond` is 0.5 and `data.prob_mask_future` 0",
    ),
    "noise levels without end": ({"model__num_classes": 2**31 - 1}, "must be an integer from 1 to 100000"),
    "a size without end": ({"data__image_size": 2**20}, "`data.image_size` must be an integer from 1 to 16384"),
    "fractions of levels": ({"model__ch_mult": [1.0, 2.0]}, "`model.ch_mult` must be a list of integers of 1 or more"),
    "fractions of heads": ({"model__n_head_channels": 8.0}, "an integer of 1 or more, or -1 for one head"),
    "more steps than there are": (
        {"sampling__subsample": 1001},
        "`sampling.subsample` 1001 is more than the 1000 noise levels",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_configs_that_are_not_supported_are_refused_by_name(name, tmp_path):
    changes, message = REFUSED[name]
    with pytest.raises(CheckpointError, match=message):
        convert(tmp_path, tiny(**changes), original_checkpoint(TINY))
    assert not (tmp_path / "out").exists()


YAML = {
    "a tag that runs": (
        "data: !!python/object/apply:os.system ['touch executed']\nmodel: {}",
        "cannot be read as plain YAML",
    ),
    "no YAML": ("data: [1\nmodel: }", "cannot be read as plain YAML"),
    "nested": ("data: " + "[" * 5_000 + "]" * 5_000 + "\nmodel: {}", "nested too deeply"),
    "merges that grow": ("a: &a {x: 1}\ndata: {<<: *a}\nmodel: {}", "merge keys"),
    "a key twice": ("data: {channels: 1, channels: 3}\nmodel: {}", "`channels` occurs more than once"),
    "another file": ("ckpt: null\nseed: 1234", "must have sections `data` and `model`"),
    "nothing": ("", "must have sections"),
    "too large": ("#" * (2**20 + 1), "is too large for a config"),
    "no text": (b"\xff\xfe\x00data", "cannot be read as plain YAML"),
}


@pytest.mark.parametrize("name", YAML)
def test_hostile_configs_are_refused(name, tmp_path, monkeypatch):
    content, message = YAML[name]
    monkeypatch.chdir(tmp_path)
    save_original(tmp_path / "original", TINY)
    (tmp_path / "original" / "config.yml").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(tmp_path / "original", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


@pytest.mark.parametrize(
    "line",
    ["x: !!bool x", "x: !!int ''", "x: !!float '-'", "x: !!timestamp x", 'x: "\\UFFFFFFFF"', f"? 0x{'f' * 5000}\n: 1"]
    + [
        "x: " + "1:" * 200 + "0.5",
        f"data: {{channels: 0x{'f' * 5000}}}",
        f"data: {{? 0x{'f' * 5000} : 1}}",
        "model: 3",
    ],
)
def test_odd_yaml_is_refused_or_stray(line, tmp_path):
    """PyYAML's own constructors raise many kinds of errors; none of them is the user's to read."""
    save_original(tmp_path / "original", TINY)
    text = line if "data" in line else f"data: {{channels: 1}}\n{line}"
    (tmp_path / "original" / "config.yml").write_text(text if "model" in text else f"{text}\nmodel: {{}}")
    with pytest.raises(CheckpointError):
        convert_checkpoint(tmp_path / "original", tmp_path / "out")


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    save_original(tmp_path / "original", tiny(optim__lr=2e-4))
    file = tmp_path / "original" / "config.yml"
    file.write_text(file.read_text().replace("0.0002", "2e-4"))
    convert_checkpoint(tmp_path / "original", tmp_path / "out")
    assert "| learning rate | 0.0002 |" in (tmp_path / "out" / "README.md").read_text()


# --------------------------------------------------------------------------------------------------------------------
# Files


def test_converting_twice_gives_the_same_bytes(tmp_path):
    outputs = []
    for name in ("a", "b/deeper"):
        save_original(tmp_path / name, TINY)
        convert_checkpoint(tmp_path / name, tmp_path / f"{name}_out", verify=True)
        outputs.append(every_byte(tmp_path / f"{name}_out"))
    assert outputs[0] == outputs[1] and len(outputs[0]) == 6


def test_files_are_found_where_the_original_leaves_them(tmp_path):
    save_original(tmp_path / "run" / "logs", TINY)
    assert convert_checkpoint(tmp_path / "run", tmp_path / "a").checkpoint.name == "checkpoint_4.pt"
    file, config = (tmp_path / "run" / "logs" / name for name in ("checkpoint_4.pt", "config.yml"))
    assert convert_checkpoint(file, tmp_path / "b").config == "config.yml"
    config.rename(tmp_path / "elsewhere.yml")
    with pytest.raises(
        CheckpointError, match="There is no config.yml beside .* `--config`.*`--preset`.* not those of RaMViD"
    ):
        convert_checkpoint(file, tmp_path / "c")
    convert_checkpoint(file, tmp_path / "c", config=tmp_path / "elsewhere.yml")
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        convert_checkpoint(tmp_path / "a", tmp_path / "d")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert_checkpoint(tmp_path / "nowhere", tmp_path / "d")


def test_of_several_checkpoints_in_a_folder_the_latest_is_taken(tmp_path):
    folder = save_original(tmp_path / "logs", TINY)
    saved = original_checkpoint(TINY)
    for name, step in (("checkpoint_900.pt", 900), ("checkpoint_10000.pt", 10_000), ("checkpoint.pt", 11_000)):
        torch.save([*saved[:3], step, saved[4]], folder / name)
    result = convert_checkpoint(tmp_path, tmp_path / "a")
    assert (result.checkpoint.name, result.step) == ("checkpoint.pt", 11_000)
    assert result.notes[0] == "Of 4 checkpoints in the folder, checkpoint.pt is the latest."
    (folder / "checkpoint.pt").unlink()
    assert convert_checkpoint(folder, tmp_path / "b").step == 10_000
    assert convert_checkpoint(folder / "checkpoint_900.pt", tmp_path / "c").step == 900
    for name in ("best", "worst"):
        (tmp_path / "other").mkdir(exist_ok=True)
        torch.save(saved, tmp_path / "other" / f"checkpoint-{name}.pt")
    with pytest.raises(CheckpointError, match="There is more than one checkpoint"):
        convert_checkpoint(tmp_path / "other", tmp_path / "d")


def test_nothing_is_overwritten(tmp_path):
    save_original(tmp_path / "original", TINY)
    out = tmp_path / "out"
    out.mkdir()
    convert_checkpoint(tmp_path / "original", out)  # an empty folder may be filled
    before = every_byte(out)
    with pytest.raises(FileExistsError, match="exists and is not empty. Nothing is overwritten"):
        convert_checkpoint(tmp_path / "original", out)
    assert every_byte(out) == before
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(FileExistsError, match="is taken by a file|is no folder"):
            convert_checkpoint(tmp_path / "original", taken)
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError):
        convert_checkpoint(tmp_path / "original", tmp_path / "link")
    assert (tmp_path / "file").read_text() == "mine"


def test_paths_of_every_kind(tmp_path, monkeypatch):
    save_original(tmp_path / "original", TINY)
    monkeypatch.chdir(tmp_path)
    result = convert_checkpoint("original/", "new/../a b/ö/")
    assert result.output == tmp_path / "a b" / "ö" and not (tmp_path / "new").exists()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for output, message in (
        ("link/out", "is no folder"),
        ("", "OUT is empty"),
        ("~nobody-of-this-name/x", "is no path"),
    ):
        with pytest.raises((CheckpointError, FileExistsError), match=message):
            convert_checkpoint("original", output)
    for name in ("", "~nobody-of-this-name/x"):
        with pytest.raises(CheckpointError, match="is empty|is no path"):
            convert_checkpoint(name, "out")
    with pytest.raises((CheckpointError, OSError)):
        convert_checkpoint("original", f"deep/{'x' * 300}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a b", "link", "original"]


def test_a_failure_while_writing_leaves_nothing(tmp_path):
    checkpoint = original_checkpoint(TINY)
    checkpoint[4]["unet.all_modules.1.bias"].fill_(torch.inf)
    save_original(tmp_path / "original", TINY, checkpoint)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        convert_checkpoint(tmp_path / "original", tmp_path / "deep" / "er" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["original"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL], ids=lambda x: x.name
)
def test_interrupted_conversion_leaves_nothing_half_made(number, tmp_path):
    """Stopped at many moments: the folder is complete, or not there."""
    config = tiny(model__ngf=64, model__ch_mult=[1, 2, 3], data__image_size=16)
    save_original(tmp_path / "original", config)
    arguments = ["convert", tmp_path / "original", tmp_path / "out", "--verify"]
    command = [sys.executable, "-m", "mcvd_diffusers.cli", *map(str, arguments)]
    num_stopped = 0
    for delay in (0.0, 0.05, 0.1, 0.3):
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Jobs in the background of a shell are started with Ctrl-C ignored, and so would be this child.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while process.poll() is None and not list(tmp_path.glob(".out.partial-*")):
            time.sleep(0.002)
        time.sleep(delay)
        process.send_signal(number)
        error = process.communicate()[1].decode()
        left = sorted(path.name for path in tmp_path.iterdir())
        if "out" in left:
            MCVDPipeline.from_pretrained(tmp_path / "out")
            (tmp_path / "out").rename(tmp_path / f"complete-{delay}")
        else:
            num_stopped += 1
            assert process.returncode != 0, error
        if number != signal.SIGKILL:  # after which nobody can clean up; what is left says by its name what it is
            assert not [name for name in left if name.startswith(".out")]
    assert num_stopped > 0


def test_output_is_readable_as_other_new_files_are(tmp_path):
    convert(tmp_path)
    mode = (tmp_path / "original" / "config.yml").stat().st_mode & 0o777
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {mode}


# --------------------------------------------------------------------------------------------------------------------
# Card and command


def test_card_states_what_is_known(tmp_path):
    convert_checkpoint(GENUINE, tmp_path / "out", verify=True)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    head = card.data.to_dict()
    assert (head["library_name"], head["pipeline_tag"]) == ("diffusers", "video-to-video")
    assert "frame-interpolation" in card.data.tags
    manifest = json.loads((GENUINE / "manifest.json").read_text())
    for fact in (
        f"`{manifest['sha256']}`",
        "their moving average (EMA)",
        "StochasticMovingMNIST",
        "248,626 parameters",
        "| prediction | 2 past frames |",
        "| interpolation | 2 past and 1 future frame |",
        "compared with a second, independent implementation",
        "The original code itself was not run",
        "| updates | 4 |",
    ):
        assert fact in card.text, fact
    assert "was not compared" not in card.text
    assert "Taken from config.yml alone, since the weights cannot confirm it: how the given frames divide" in card.text
    convert_checkpoint(GENUINE, tmp_path / "other")
    assert "The network's output was not compared" in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("name", ["concat", "no future", "no given frames", "future only"])
def test_code_in_the_card_runs(name, tmp_path, monkeypatch):
    config = tiny(**SHAPES[name], sampling__subsample=2)
    for sampler in ("original", "few_steps"):
        result, _ = convert(tmp_path / sampler, config, sampler=sampler)
        card = (tmp_path / sampler / "out" / "README.md").read_text()
        usage, *repeat = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
        assert usage.count("pipe(") == len(result.tasks) > 0
        # Only the original's sampler repeats its samples.
        assert [("NoiseSequence(" in x) for x in repeat] == [True] * (sampler == "original")
        assert ("convert its checkpoint anew, with `--sampler original`" in card) == (sampler == "few_steps")
        monkeypatch.chdir(tmp_path / sampler / "out")
        exec("".join([usage, *repeat]), {})


def test_card_of_a_hostile_config_is_only_text(tmp_path):
    name = "x`|<script>alert(1)</script>](http://evil)"
    config = tiny(data__dataset=name)
    config["data"]["y`|<img src=x>"] = 1
    convert(tmp_path, config)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<script>" not in card and "<img" not in card and "](http://evil)" not in card
    assert all(line.count("`") == 2 for line in card.splitlines() if "http://evil" in line)  # no link either


def test_tasks_follow_the_masks_of_the_training(tmp_path):
    masks = {
        (0.0, 0.0, False): ["interpolation"],
        (0.0, 0.5, False): ["prediction", "interpolation"],
        (0.5, 0.0, False): ["past prediction", "interpolation"],
        (0.5, 0.5, True): ["interpolation", "generation"],
        (0.5, 0.5, False): ["prediction", "past prediction", "interpolation", "generation"],
    }
    for number, ((past, future, sync), tasks) in enumerate(masks.items()):
        config = tiny(data__prob_mask_cond=past, data__prob_mask_future=future, data__prob_mask_sync=sync)
        result, _ = convert(tmp_path / str(number), config)
        assert result.tasks == tasks


def test_settings_that_are_not_converted_are_noted(tmp_path):
    config = tiny(
        sampling__init_prev_t=0.5,
        sampling__one_frame_at_a_time=True,
        sampling__subsample=300,
        model__cond_emb=True,
        data__prob_mask_sync=True,
    )
    result, pipe = convert(tmp_path, config, sampler="original")
    notes = " ".join(result.notes)
    for part in (
        "init_prev_t: 0.5",
        "one_frame_at_a_time: true",
        "334 steps",
        "give past frames of mid-grey, 0.5",
        "masked together",
    ):
        assert part in notes, part
    timesteps = eval(re.search(r"timesteps=(list\(.*?\)\))`", notes)[1])
    assert len(timesteps) == 334 and (timesteps[0], timesteps[-1]) == (999, 0)


def test_command_prints_what_it_did(tmp_path, capsys):
    assert main(["convert", str(GENUINE), str(tmp_path / "out"), "--verify"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for part in (
        "moving average (EMA), 248,626 parameters",
        "(To be exact:",
        "not verified: Taken from config.yml alone",
        str(tmp_path / "out"),
    ):
        assert part in out
    assert main(["convert", str(GENUINE), str(tmp_path / "out")]) == 1
    assert "Nothing is overwritten here" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "nowhere"), str(tmp_path / "other")]) == 1
    assert "nowhere does not exist" in capsys.readouterr().err
    for wrong in (["--weights", "average"], ["--weight", "model"]):
        with pytest.raises(SystemExit):
            main(["convert", str(GENUINE), str(tmp_path / "other"), *wrong])
    assert not (tmp_path / "other").exists()


def test_control_characters_do_not_reach_the_terminal(tmp_path, capsys):
    checkpoint = original_checkpoint(TINY)
    checkpoint[4]["unet.all_modules.3.Conv_9.\x1b]0;owned\x07weight"] = torch.zeros(1)
    save_original(tmp_path / "\x1b[31m", TINY, checkpoint)
    assert main(["convert", str(tmp_path / "\x1b[31m"), str(tmp_path / "out")]) == 1
    assert main(["convert", str(tmp_path / "\x1b[31m"), str(tmp_path / "out"), "--weights", "model"]) == 0
    printed = "".join(capsys.readouterr())
    assert "\x1b" not in printed and "\x07" not in printed and "?[31m" in printed


def test_command_is_installed():
    command = os.path.join(os.path.dirname(sys.executable), "mcvd-diffusers")
    out = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert out.returncode == 0 and out.stdout.startswith("mcvd-diffusers "), out.stderr


def test_golden_case_with_an_embedding_converts(tmp_path):
    """The original's options `cond_emb` and `prob_mask_*` of a golden run, through file and folder."""
    config = copy.deepcopy(CASES["concat_gray_p2k2f2_condemb"]["config"])
    result, pipe = convert(tmp_path, config, verify=True)
    assert pipe.unet.config.embed_past_kept is True and result.max_difference < 5e-5
