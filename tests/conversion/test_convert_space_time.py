"""Checkpoints of RaMViD, FDM and VDM's port -> pipeline folders: the same numbers; what is damaged or hostile is refused."""

import json
import pickle
from collections import OrderedDict

import pytest
import torch
from diffusers import DDPMScheduler

from mcvd_diffusers import MCVDPipeline
from mcvd_diffusers.cli import main
from mcvd_diffusers.conversion import CheckpointError, convert_checkpoint, reference_space_time
from mcvd_diffusers.conversion.convert_space_time import _compare
from mcvd_diffusers.conversion.space_time_weights import recognise
from mcvd_diffusers.models import SpaceTimeUNetModel
from original_mcvd import REFERENCE as MCVD_REFERENCE
from original_space_time import CASES, adm_listing, load_reference, port_listing, roles_of, rule_state_dict


FDM_SETTINGS = {
    "image_size": 8,
    "max_frames": 6,
    "num_heads": 4,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "dataset": "carla_no_traffic",
    "lr": 1e-4,
    "batch_size": 2,
    "T": 1000,
    "attention_resolutions": "16,8",
    "use_rpe_net": True,
    "resume_id": None,
}
MCVD = MCVD_REFERENCE / "checkpoint_concat"
NAMES = {"ramvid": "ema_0.9999_250000.pt", "fdm": "ema_0.9999_500000.pt", "vdm": "model-7.pt"}


def buffers_of_the_port():
    """The diffusion around the port's network; the numbers of `betas` are the original's."""
    betas = load_reference("vdm_rgb")["sched1000_betas"]
    alphas = (1 - betas).cumprod(0)
    return {"betas": betas, "alphas_cumprod": alphas, "posterior_mean_coef1": torch.zeros(1000)}


def original(case, **changes):
    """What a training of the originals saves for the weights of a golden run."""
    system, state = CASES[case]["system"], OrderedDict(rule_state_dict(case))
    if system == "ramvid":
        return OrderedDict(state, **changes)
    if system == "fdm":
        return {"state_dict": state, "config": FDM_SETTINGS, "step": 500_000} | changes
    averaged = OrderedDict(buffers_of_the_port()) | {f"denoise_fn.{name}": value for name, value in state.items()}
    raw = OrderedDict((name, 2 * value if "init_conv" in name else value) for name, value in averaged.items())
    return {"step": 7000, "model": raw, "ema": averaged, "scaler": {"scale": 65536.0, "_growth_tracker": 0}} | changes


def save(folder, case, content=None, name=None, **options):
    path = folder / (name or NAMES[CASES[case]["system"]])
    torch.save(original(case) if content is None else content, path, **options)
    return path


def convert(folder, case="ramvid_gray", content=None, name=None, **options):
    return convert_checkpoint(save(folder, case, content, name), folder / "out", **options)


def load(folder):
    return SpaceTimeUNetModel.from_pretrained(folder / "out" / "unet").eval()


@torch.no_grad()
def output_of(case, network):
    """Of the golden inputs, in the original's layout; and the original's."""
    golden = load_reference(case)
    if CASES[case]["system"] == "fdm":
        sample = torch.where(golden["obs_mask"] > 0, golden["x0"], golden["x"])
        out = network(sample, golden["t"], roles_of(case), frame_indices=golden["frame_indices"]).sample
        return out, golden["out"]
    sample = golden["x"].transpose(1, 2)
    return network(sample, golden["t"], torch.full(sample.shape[:2], 2)).sample.transpose(1, 2), golden["out"]


# --------------------------------------------------------------------------------------------------------------------
# The same numbers


@pytest.mark.parametrize("case", CASES)
def test_the_command_converts_what_the_originals_save(case, tmp_path, capsys):
    path = save(tmp_path, case)
    size = [] if CASES[case]["system"] == "fdm" else ["--image_size", "8", "--max_frames", "5"]
    assert main(["convert", str(path), str(tmp_path / "out"), "--verify", *size]) == 0
    report = " ".join(capsys.readouterr().out.split())
    out, expected = output_of(case, load(tmp_path))
    torch.testing.assert_close(out, expected, atol=3e-5, rtol=0)
    config = load(tmp_path).config
    assert (config.sample_size, config.max_frames) == (8, 6 if CASES[case]["system"] == "fdm" else 5)
    title = {"ramvid": "RaMViD", "fdm": "FDM", "vdm": "VDM's public port"}[CASES[case]["system"]]
    steps = {"ramvid": "250,000", "fdm": "500,000", "vdm": "7,000"}[CASES[case]["system"]]
    assert f"from {title}: {path}" in report and f"after {steps} updates" in report
    assert "moving average (EMA)" in report and "second, independent implementation" in report
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Assumed as published" in report and "Assumed as published" in card and path.name in card


@pytest.mark.parametrize("case", CASES)
def test_the_second_implementation_computes_what_the_original_computes(case):
    state, golden, system = rule_state_dict(case), load_reference(case), CASES[case]["system"]

    def theirs(x, timesteps):
        if system == "ramvid":
            return reference_space_time.ramvid(state, x, timesteps, heads=4)
        if system == "vdm":
            return reference_space_time.vdm_port(state, x, timesteps, is_alone=torch.tensor([False, False]))
        roles = roles_of(case)
        given = {"is_observed": roles == 1, "is_there": roles != 0, "frame_indices": golden["frame_indices"]}
        return reference_space_time.fdm(state, x, timesteps, heads=4, **given)

    x = torch.where(golden["obs_mask"] > 0, golden["x0"], golden["x"]) if system == "fdm" else golden["x"]
    for timesteps, name, scale in (("t", "out", 1), ("t2", "out2", 1), ("t", "out_small", 1e-3)):
        torch.testing.assert_close(theirs(scale * x, golden[timesteps]), golden[name], atol=3e-5, rtol=0)
    if system == "vdm":
        alone = {"is_alone": golden["focus_mixed"]}
        out = reference_space_time.vdm_port(state, golden["x"], golden["t"], **alone)
        torch.testing.assert_close(out, golden["out_focus_mixed"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", ["ramvid_gray", "fdm_pad", "vdm_gray_long"])
def test_verification_finds_a_wrong_weight(case, tmp_path):
    """Two weights of one shape exchanged in the converted folder: by a table that was wrong, here done to the file."""
    convert(tmp_path, case, image_size=8)
    state = rule_state_dict(case)
    _compare(tmp_path / "out", state, recognise(state, case))
    network = load(tmp_path)
    attention = network.mid_block.attentions[0]
    with torch.no_grad():
        to_k, to_v = attention.to_k.weight, attention.to_v.weight
        to_k.data, to_v.data = to_v.data.clone(), to_k.data.clone()
    network.save_pretrained(tmp_path / "out" / "unet")
    with pytest.raises(CheckpointError, match="differs from the second implementation"):
        _compare(tmp_path / "out", state, recognise(state, case))


def test_a_port_with_a_condition_is_converted_and_verified(tmp_path):
    listing = port_listing(dim=16, multiples=(1, 2), channels=1, heads=2, head_dim=40, condition=6)
    generator = torch.Generator().manual_seed(0)
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in listing.items()}
    result = convert(tmp_path, "vdm_gray_long", state, verify=True)
    assert result.max_difference < 1e-5 and load(tmp_path).config.condition_dim == 6


@pytest.mark.parametrize("case", ["ramvid_gray", "fdm_pad", "vdm_gray_long"])
def test_forms_of_a_file_give_the_same_weights(case, tmp_path):
    system = CASES[case]["system"]
    state = rule_state_dict(case)
    whole = {"fdm": lambda state: original(case, state_dict=state), "ramvid": lambda state: state}.get(
        system, lambda state: original(case, ema={f"denoise_fn.{name}": value for name, value in state.items()})
    )
    forms = {
        "as it is": (original(case), {}),
        "bare": (state, {}),
        "with a prefix": ({f"module.{name}": value for name, value in state.items()}, {}),
        "parameters": (whole({name: torch.nn.Parameter(value) for name, value in state.items()}), {}),
        "before zip archives": (original(case), {"_use_new_zipfile_serialization": False}),
        "without versions": (whole(dict(state)), {}),
    }
    files = {}
    for name, (content, options) in forms.items():
        folder = tmp_path / name
        folder.mkdir()
        path = save(folder, case, content, **options)
        convert_checkpoint(path, folder / "out", image_size=8, max_frames=6)
        files[name] = (folder / "out" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
        config = json.loads((folder / "out" / "unet" / "config.json").read_text())
        assert (config["sample_size"], config["max_frames"], config["dropout"]) == (8, 6, 0.0)
    assert all(content == files["as it is"] for content in files.values())


@pytest.mark.parametrize("case", ["ramvid_gray", "fdm_pad", "vdm_gray_long"])
def test_the_folder_is_a_pipeline_that_makes_videos(case, tmp_path):
    convert(tmp_path, case, image_size=8, max_frames=6)
    pipe = MCVDPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    past = torch.rand(1, 2, pipe.unet.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    options = {"num_inference_steps": 2, "output_type": "pt", "generator": generator}
    video = pipe(past_frames=past, num_frames=7, **options).frames  # more than a window
    assert video.shape[1] == 7 and video.isfinite().all()
    assert pipe(num_frames=3, **options).frames.shape[1] == 3


def test_converting_again_gives_the_same_bytes(tmp_path):
    path = save(tmp_path, "fdm_pad")
    for name in ("a", "b"):
        convert_checkpoint(path, tmp_path / name)
    first, second = (
        {str(file.relative_to(tmp_path / name)): file.read_bytes() for file in (tmp_path / name).rglob("*.*")}
        for name in ("a", "b")
    )
    assert first == second and "README.md" in first


# --------------------------------------------------------------------------------------------------------------------
# Scheduler and statements


def scheduler_of(folder):
    return DDPMScheduler.from_pretrained(folder / "out" / "scheduler")


@pytest.mark.parametrize("case", ["ramvid_gray", "fdm_pad"])
def test_schedule_of_ramvid_and_fdm_is_linear_with_large_variance(case, tmp_path):
    convert(tmp_path, case, image_size=8, sampler="original")
    scheduler = scheduler_of(tmp_path)
    torch.testing.assert_close(scheduler.betas, torch.linspace(1e-4, 0.02, 1000), atol=1e-9, rtol=1e-6)
    config = scheduler.config
    assert (config.variance_type, config.clip_sample, config.prediction_type) == ("fixed_large", True, "epsilon")
    # Fewer steps are those of the original's respacing.
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 749, 500, 250, 0]
    assert scheduler.timesteps.tolist() == load_reference("ramvid_gray")["traj_timesteps"].long().tolist()


def test_schedule_of_the_port_is_the_originals_cosine_with_small_variance(tmp_path):
    result = convert(tmp_path, "vdm_rgb", image_size=16)
    scheduler, golden = scheduler_of(tmp_path), load_reference("vdm_rgb")
    torch.testing.assert_close(scheduler.betas, golden["sched1000_betas"], atol=1e-7, rtol=0)
    torch.testing.assert_close(scheduler.alphas_cumprod, golden["sched1000_alphas_cumprod"], atol=1e-6, rtol=0)
    assert (scheduler.config.variance_type, scheduler.config.clip_sample) == ("fixed_small", True)
    assert any("buffer `betas` in the file, 1000 values" in sentence for sentence in result.verified)


def test_few_steps_are_the_default_but_for_vdm(tmp_path):
    """Whose given frames come in by guidance."""
    for case, name, steps in (("fdm_pad", "DPMSolverMultistepScheduler", 15), ("vdm_rgb", "DDPMScheduler", 1000)):
        (tmp_path / case).mkdir()
        convert(tmp_path / case, case)
        index = json.loads((tmp_path / case / "out" / "model_index.json").read_text())
        assert (index["scheduler"][1], index["num_inference_steps"]) == (name, steps)
    assert "It is saved with the original's sampler" in (tmp_path / "vdm_rgb" / "out" / "README.md").read_text()
    with pytest.raises(CheckpointError, match='`sampler` is "few_steps", but .* leave it out'):
        convert(tmp_path, "vdm_rgb", sampler="few_steps")


def test_settings_of_fdm_are_used(tmp_path):
    settings = FDM_SETTINGS | {
        "diffusion_steps": 500,
        "noise_schedule": "cosine",
        "predict_xstart": True,
        "sigma_small": True,
        "dropout": 0.25,
    }
    result = convert(tmp_path, "fdm_pad", original("fdm_pad", config=settings))
    unet, scheduler = load(tmp_path).config, scheduler_of(tmp_path).config
    assert (unet.sample_size, unet.max_frames, unet.dropout, unet.num_train_timesteps) == (8, 6, 0.25, 500)
    assert unet.prediction_type == scheduler.prediction_type == "sample"
    assert (scheduler.num_train_timesteps, scheduler.beta_schedule) == (500, "squaredcos_cap_v2")
    assert scheduler.variance_type == "fixed_small"
    assert not any("--image_size" in sentence or "--num_heads" in sentence for sentence in result.not_verified)
    assert "carla_no_traffic" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    "case, expected",
    [
        ("ramvid_gray", (64, 20, 0.25, False, ["prediction", "past prediction", "interpolation", "generation"])),
        ("fdm_pad", (64, 20, 0.71, True, ["prediction", "past prediction", "interpolation", "generation"])),
        ("vdm_gray_long", (64, 16, 1.0, False, ["generation"])),
    ],
)
def test_what_nothing_tells_is_as_published_and_is_said(case, expected, tmp_path):
    result = convert(tmp_path, case, rule_state_dict(case), name="weights.pt")
    config = load(tmp_path).config
    tasks = expected[-1]
    assert (config.sample_size, config.max_frames, config.drop_observed, config.has_frame_gaps) == expected[:-1]
    assert result.tasks == tasks and result.step is None and result.weights == "model"
    said = " ".join(result.not_verified)
    assert "--image_size" in said and "--max_frames" in said and f"{expected[2]:g}" in said
    assert ("--num_heads" in said) is (case != "vdm_gray_long")
    assert "Whether these are averaged weights, the file does not say" in " ".join(result.notes)


def test_number_of_heads_is_what_is_said(tmp_path):
    """No shape tells it, and another number is another network."""
    convert(tmp_path, "ramvid_gray", num_heads=2, verify=True)
    network = load(tmp_path)
    assert network.config.num_attention_heads == 2
    out, expected = output_of("ramvid_gray", network)
    assert (out - expected).abs().max() > 0.01
    with pytest.raises(CheckpointError, match="`num_heads` is 2, but the settings in .* say 4"):
        convert(tmp_path / "..", "fdm_pad", num_heads=2, name="ema_1_1.pt")


# --------------------------------------------------------------------------------------------------------------------
# Which file, which weights


def test_of_a_folder_the_last_average_is_taken(tmp_path):
    for name in ("ema_0.9999_100.pt", "ema_0.9999_2000.pt", "model2000.pt", "model3000.pt"):
        torch.save(rule_state_dict("ramvid_gray"), tmp_path / name)
    torch.save({"state": {}, "param_groups": []}, tmp_path / "opt3000.pt")
    result = convert_checkpoint(tmp_path, tmp_path / "a")
    assert (result.checkpoint.name, result.weights, result.step) == ("ema_0.9999_2000.pt", "ema", 2000)
    assert "Of 2 checkpoints in the folder" in result.notes[0]
    result = convert_checkpoint(tmp_path, tmp_path / "b", weights="model")
    assert (result.checkpoint.name, result.weights, result.step) == ("model3000.pt", "model", 3000)


def test_the_ports_file_has_both_weights(tmp_path):
    convert(tmp_path, "vdm_gray_long", image_size=8)
    assert torch.equal(load(tmp_path).conv_in.conv.bias, rule_state_dict("vdm_gray_long")["init_conv.bias"])
    (tmp_path / "raw").mkdir()
    result = convert(tmp_path / "raw", "vdm_gray_long", weights="model", image_size=8)
    assert torch.equal(
        load(tmp_path / "raw").conv_in.conv.bias, 2 * rule_state_dict("vdm_gray_long")["init_conv.bias"]
    )
    assert (result.weights, result.step) == ("model", 7000)
    content = original("vdm_gray_long")
    del content["ema"]
    with pytest.raises(CheckpointError, match="has no average of the weights as `ema`; it has model"):
        convert_checkpoint(save(tmp_path, "vdm_gray_long", content), tmp_path / "none", weights="ema")


@pytest.mark.parametrize("name, weights", [("ema_0.9999_1.pt", "model"), ("model1.pt", "ema")])
def test_a_name_that_says_something_else_than_the_flag_is_refused(name, weights, tmp_path):
    with pytest.raises(CheckpointError, match="as its name says. The others are in the file"):
        convert(tmp_path, name=name, weights=weights)


# --------------------------------------------------------------------------------------------------------------------
# What is refused


def state_of(content, case):
    return content if CASES[case]["system"] == "ramvid" else content["state_dict" if "fdm" in case else "ema"]


def first(state, ending, beginning=""):
    return next(name for name in state if name.endswith(ending) and beginning in name)


DAMAGES = {
    "a parameter too few": (lambda s: s.pop(first(s, "bias")), "are missing|is not there or does not fit"),
    "a block too few": (
        lambda s: [s.pop(name) for name in [*s] if "middle_block.0." in name or "mid_block1." in name],
        "are missing|is not there",
    ),
    "a parameter too many": (
        lambda s: s.update({"input_blocks.0.0.extra": torch.zeros(1)}),
        "left over|names that are",
    ),
    "a name that is no text": (lambda s: s.update({5: torch.zeros(1)}), "must map names to tensors"),
    "no tensor": (lambda s: s.update({first(s, "weight"): "evil"}), "must map names to tensors"),
    "another shape": (
        lambda s: s.update({first(s, "bias", "time_"): torch.zeros(7)}),
        "has shape \\(7,\\), which does not fit",
    ),
    "a transposed matrix": (
        lambda s: s.update({name: s[name].T for name in [first(s, "weight", "time_")]}),
        "does not fit|do not|cannot be made",
    ),
    "an empty parameter": (lambda s: s.update({first(s, "bias"): torch.zeros(0)}), "is empty"),
    "integers": (lambda s: s.update({first(s, "bias"): s[first(s, "bias")].long()}), "weights are floating point"),
    "NaN": (lambda s: s[first(s, "weight")].fill_(torch.nan), "NaN or infinite"),
    "beyond single precision": (
        lambda s: s.update({first(s, "bias"): s[first(s, "bias")].double() + 1e300}),
        "NaN or infinite",
    ),
    "a prefix here and there": (
        lambda s: s.update({f"module.{name}": s.pop(name) for name in [first(s, "bias")]}),
        "with and without the prefix",
    ),
    "a long name": (lambda s: s.update({"ups.0.0." + "x" * 10**6: torch.zeros(1)}), "left over|names that are"),
    "a number far away": (
        lambda s: s.update({"input_blocks.999999999999.0.weight": torch.zeros(1)}),
        "left over|names that are",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("case", ["ramvid_gray", "fdm_pad", "vdm_gray_long"])
def test_state_dicts_that_are_damaged_are_refused(case, damage, tmp_path):
    change, says = DAMAGES[damage]
    content = original(case)
    change(state_of(content, case))
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, case, content)
    assert not (tmp_path / "out").exists()


SETTINGS = {
    "a size that is text": ({"image_size": "8"}, "`image_size` of its settings must be a int"),
    "a size of zero": ({"image_size": 0}, "must be from 1 to 65,536"),
    "a huge size": ({"image_size": 10**30}, "must be from 1 to 65,536"),
    "True frames": ({"max_frames": True}, "`max_frames` of its settings must be a int"),
    "three heads": ({"num_heads": 3}, "the network cannot be made"),
    "no steps": ({"diffusion_steps": 0}, "noise levels"),
    "too many steps": ({"diffusion_steps": 10**9}, "noise levels"),
    "another schedule": ({"noise_schedule": "evil"}, 'must be "linear" or "cosine"'),
    "a learned variance": ({"learn_sigma": True}, "`learn_sigma`"),
    "other timesteps": ({"rescale_timesteps": True, "diffusion_steps": 100}, "`rescale_timesteps`"),
    "dropout of everything": ({"dropout": 1.0}, "the network cannot be made: `dropout`"),
    "a list": ({"dataset": ["evil"]}, "`dataset` of its settings must be a str"),
    "no number": ({"lr": float("nan")}, "`lr` of its settings must be a float"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_fdm_that_cannot_be_are_refused(name, tmp_path):
    change, says = SETTINGS[name]
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, "fdm_pad", original("fdm_pad", config=FDM_SETTINGS | change))
    assert not (tmp_path / "out").exists()


FORMS = {
    "settings that are a list": (lambda c: c.update(config=[1]), "fdm_pad", "must hold a state dict as `state_dict`"),
    "a state dict that is a list": (lambda c: c.update(state_dict=[1]), "fdm_pad", "no|must"),
    "updates that are text": (lambda c: c.update(step="evil"), "fdm_pad", "`step` must be a number of updates"),
    "fewer than no updates": (lambda c: c.update(step=-1), "vdm_gray_long", "`step` must be a number of updates"),
    "averages that are a number": (lambda c: c.update(ema=5, model=5), "vdm_gray_long", "must|no config"),
    "betas of another schedule": (
        lambda c: c["ema"].update(betas=torch.linspace(1e-4, 0.02, 1000)),
        "vdm_gray_long",
        "are not the cosine schedule",
    ),
    "betas that are NaN": (lambda c: c["ema"]["betas"].fill_(torch.nan), "vdm_gray_long", "are not the cosine"),
    "betas that are a matrix": (lambda c: c["ema"].update(betas=torch.ones(2, 2)), "vdm_gray_long", "must be a list"),
    "too many betas": (lambda c: c["ema"].update(betas=torch.zeros(100_001)), "vdm_gray_long", "100,001 noise levels"),
    "something beside the network": (
        lambda c: c["ema"].update(evil=torch.zeros(1)),
        "vdm_gray_long",
        "not of the port's diffusion: 'evil'",
    ),
    "FDM's form around another network": (
        lambda c: c.update(state_dict=rule_state_dict("ramvid_gray")),
        "fdm_pad",
        "FDM's form, but the names and shapes of RaMViD",
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_files_of_another_form_are_refused(name, tmp_path):
    change, case, says = FORMS[name]
    content = original(case)
    change(content)
    with pytest.raises(CheckpointError, match=says):
        convert(tmp_path, case, content)
    assert not (tmp_path / "out").exists()


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("place", ["config", "step", "a tensor"])
@pytest.mark.parametrize("is_zip", [True, False])
def test_code_in_a_checkpoint_is_not_run(place, is_zip, tmp_path):
    content = original("fdm_pad")
    if place == "a tensor":
        content["state_dict"]["out.2.bias"] = Evil(tmp_path / "marker")
    else:
        content[place] = Evil(tmp_path / "marker")
    path = save(tmp_path, "fdm_pad", content, _use_new_zipfile_serialization=is_zip)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == [path.name]


def test_a_plain_pickle_and_a_truncated_file_are_refused(tmp_path, capsys):
    path = tmp_path / "ema_0.9999_1.pt"
    path.write_bytes(pickle.dumps({name: x.numpy() for name, x in rule_state_dict("ramvid_gray").items()}, 2))
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    whole = save(tmp_path, "ramvid_gray").read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 1000):
        path.write_bytes(whole[:size])
        assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    path.write_bytes(damaged)
    assert main(["convert", str(path), str(tmp_path / "out")]) == 1
    assert "damaged" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["config", "preset"])
def test_options_of_mcvd_are_refused_for_others(option, tmp_path):
    with pytest.raises(CheckpointError, match=f"`--{option}` is for MCVD's checkpoints"):
        convert(tmp_path, **{option: "smmnist-concat-p5k5"})


@pytest.mark.parametrize("option", ["num_heads", "image_size", "max_frames"])
@pytest.mark.parametrize("value", [0, -1, 10**9, True, "8"])
def test_bad_options_are_refused(option, value, tmp_path):
    with pytest.raises(CheckpointError, match=f"`{option}` must be an integer from 1 to"):
        convert(tmp_path, **{option: value})


def test_heads_of_the_port_stand_in_its_weights(tmp_path):
    with pytest.raises(CheckpointError, match="`num_heads` is 4, but .* has 2, as its table of positions tells"):
        convert(tmp_path, "vdm_gray_long", num_heads=4)
    convert(tmp_path, "vdm_gray_long", num_heads=2)


def test_outputs_beyond_numbers_fail_the_verification(tmp_path):
    state = {
        name: value * (1e25 if "conv" in name or "blocks" in name else 1)
        for name, value in rule_state_dict("ramvid_gray").items()
    }
    with pytest.raises(CheckpointError, match="output is NaN or infinite"):
        convert(tmp_path, content=state, verify=True)
    nothing = {name: torch.zeros_like(value) for name, value in state.items()}
    with pytest.raises(CheckpointError, match="output is zero everywhere"):
        convert(tmp_path, content=nothing, verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["num_heads", "image_size", "max_frames"])
def test_options_of_others_are_refused_for_mcvd(option, tmp_path):
    with pytest.raises(CheckpointError, match=f"`{option}` is for checkpoints of RaMViD, FDM and VDM's port"):
        convert_checkpoint(MCVD, tmp_path / "out", **{option: 8})


@pytest.mark.parametrize("system", ["ramvid", "fdm", "vdm"])
def test_a_first_level_of_another_width_is_refused_by_name(system):
    if system == "vdm":
        shapes = port_listing(dim=16, multiples=(2, 4))
    else:
        shapes = adm_listing(system, multiples=(2, 4), num_blocks=1, attention_levels=(1,), width=16)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    with pytest.raises(
        CheckpointError, match="first level has 32 channels, after a first layer of 16.*multiplier is 1"
    ):
        recognise(state, "it")
