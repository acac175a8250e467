"""What Diffusers expects of a pipeline, for each pipeline of this package: a new one joins by a row in `contract_rows`."""

import contextlib
import copy
import inspect
import json
import math
import re

import diffusers
import diffusers.guiders as guiders
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback
from diffusers.hooks import LayerSkipConfig
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch.utils._pytree import tree_leaves

from contract_rows import PIPELINES
from mcvd_diffusers import FrameRole
from mcvd_diffusers.samplers import trained_noise


def named(rows):
    return pytest.mark.parametrize("row", rows, ids=lambda row: row.name)


def parts(row):
    """The classes of a pipeline and of its context encoder."""
    pipe = row.make()
    return type(pipe), type(pipe.context_encoder)


# Most of the contract does not hang on the task: it is tested with one row of each network, or of each pipeline and encoder.
BY_NETWORK = list({row.network.name: row for row in reversed(PIPELINES)}.values())
BY_CLASS = list({parts(row): row for row in reversed(PIPELINES)}.values())
every_row, each_network, each_class = named(PIPELINES), named(BY_NETWORK), named(BY_CLASS)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]
DTYPES = [torch.float16, torch.bfloat16]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def run(pipe, row, batch_size=1, **arguments):
    arguments = {"generator": seeded(), **row.inputs(batch_size), **arguments}
    return pipe(**arguments).frames


def networks(pipe):
    """The parts of a pipeline that have weights, by name."""
    return {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}


def predicted(pipe):
    """What a context encoder predicts of the frames of each window, from now on; nothing if it does not."""
    means = []
    if pipe.context_encoder is not None and pipe.context_encoder.predicts_frames:
        pipe.context_encoder.register_forward_hook(lambda *args: means.append(args[-1].mean))
    return means


def count_calls(network):
    calls = []
    network.register_forward_pre_hook(lambda *args: calls.append(1))
    return calls


def tensors_of(arguments):
    return {name: value for name, value in arguments.items() if torch.is_tensor(value)}


def one_video(row, index):
    """The arguments of a call for the video `index` of a batch of two alone."""
    batch, single = row.inputs(2), row.inputs(1)
    return single | {name: value[index : index + 1] for name, value in tensors_of(batch).items()}


def reload(pipe, folder, **arguments):
    loaded = type(pipe).from_pretrained(folder, **arguments)
    loaded.set_progress_bar_config(disable=True)
    return loaded


# --------------------------------------------------------------------------------------------------------------------
# What stands in the signature and in the text


@each_class
def test_every_argument_of_a_call_is_optional(row):
    parameters = dict(inspect.signature(row.make().__call__).parameters)
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters.values())
    assert {
        "num_inference_steps",
        "generator",
        "latents",
        "output_type",
        "return_dict",
        "callback_on_step_end",
        "callback_on_step_end_tensor_inputs",
    } <= set(parameters)


@each_class
def test_a_call_without_arguments_but_steps_makes_a_video(row):
    if row.needs_given:
        with pytest.raises(ValueError, match="always had given frames in training.*: pass `past_frames`"):
            row.make()(num_inference_steps=2)
        return
    frames = row.make()(num_inference_steps=2).frames  # the default of 100 steps takes long
    assert len(frames) == 1 and frames[0][0].size == row.output_shape[:1:-1]


@each_class
def test_docstrings_say_what_every_argument_is(row):
    pipe = row.make()
    documented = {type(pipe).__init__: inspect.getdoc(type(pipe)), type(pipe).__call__: inspect.getdoc(pipe.__call__)}
    for function in (name for name in ("denoise", "stream") if hasattr(pipe, name)):
        documented[getattr(type(pipe), function)] = inspect.getdoc(getattr(pipe, function))
    for function, text in documented.items():
        parameters = inspect.signature(function).parameters
        entries = re.findall(r"^ *\**((?:\w+)(?:, *\n? *\w+)*) *(?:\(|:)", text, re.MULTILINE)
        names = {name for entry in entries for name in re.split(r",\s*", entry)}
        missing = [name for name in parameters if name not in names | {"self"}]
        assert not missing, f"{function.__qualname__} does not document {missing}"
        stated = set(re.findall(r"^    (\w+) \(`", text, re.MULTILINE)) - {"frames"}
        assert stated <= set(parameters), f"{function.__qualname__} documents {stated - set(parameters)}, not there"


@each_class
def test_the_docstring_of_a_call_holds_an_example(row):
    text = type(row.make()).__call__.__doc__
    assert "Examples:" in text and ">>> pipe" in text and "from_pretrained" in text


@each_class
def test_the_denoiser_is_called_unet_and_comes_after_what_it_is_told_in_the_offload_order(row):
    pipe = row.make()
    assert isinstance(pipe.unet, row.network.network_class)
    assert pipe.model_cpu_offload_seq.split("->") == ["context_encoder", "unet"]
    assert "latents" in pipe._callback_tensor_inputs


@each_class
def test_components_are_those_of_init_and_make_the_same_pipeline(row):
    pipe = row.make()
    assert set(pipe.components) == {"unet", "scheduler", "guider", "context_encoder"}
    again = type(pipe)(**pipe.components)
    again.set_progress_bar_config(disable=True)
    assert all(again.components[name] is component for name, component in pipe.components.items())
    assert torch.equal(run(again, row), run(pipe, row))


@each_class
def test_nothing_of_a_pipeline_is_on_meta(row, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path)
    for each in (pipe, reload(pipe, tmp_path), reload(pipe, tmp_path, low_cpu_mem_usage=True)):
        tensors = [tensor for part in networks(each).values() for tensor in (*part.parameters(), *part.buffers())]
        assert tensors and {tensor.device.type for tensor in tensors} == {each.device.type} == {"cpu"}


# --------------------------------------------------------------------------------------------------------------------
# Output


@every_row
def test_output_has_the_shape_and_range_it_says(row):
    frames = run(row.make(), row, batch_size=2)
    assert frames.shape == (2, *row.output_shape) and frames.dtype == torch.float32
    assert frames.isfinite().all() and frames.min() >= 0 and frames.max() <= 1 and frames.std() > 0.01


@every_row
def test_output_types_hold_the_same_video(row):
    pipe = row.make()
    out = {kind: run(pipe, row, 2, output_type=kind) for kind in ("pt", "np", "pil", "latent")}
    assert out["latent"].shape == out["pt"].shape
    torch.testing.assert_close(((out["latent"] + 1) / 2).clamp(0, 1), out["pt"])
    assert np.array_equal(out["np"], out["pt"].movedim(2, -1).numpy())
    assert [len(video) for video in out["pil"]] == [row.output_shape[0]] * 2
    pixels = np.stack([[np.asarray(image) for image in video] for video in out["pil"]])
    assert np.array_equal(pixels.reshape(out["np"].shape), (out["np"] * 255).round().astype(np.uint8))


@each_class
def test_a_tuple_holds_what_the_output_holds(row):
    pipe = row.make()
    out = pipe(**row.inputs(1), generator=seeded(), return_dict=False)
    assert isinstance(out, tuple) and len(out) == 1 and torch.equal(out[0], run(pipe, row))


@every_row
def test_inputs_are_not_changed(row):
    pipe = row.make()
    sizes = {}

    def noise_of(pipe, step, timestep, kwargs):
        sizes[pipe.block_index] = kwargs["latents"].shape[1]

    frames = run(pipe, row, callback_on_step_end=noise_of)
    noise = torch.randn(1, sum(sizes.values()), *frames.shape[2:])
    given = tensors_of(row.inputs(1)) | {"latents": noise}
    copies = {name: value.clone() for name, value in given.items()}
    run(pipe, row, **given)
    assert all(torch.equal(given[name], copies[name]) for name in given)


# --------------------------------------------------------------------------------------------------------------------
# Batches and randomness


def only_if_it_reads_given_frames(row):
    """Guidance over absent frames is refused where the network sees none, or makes something else without them."""
    if not row.reads_given:
        for guider, arguments in ((None, {"guidance_scale": 2.0}), (GUIDERS["classifier free"](), {})):
            pipe = row.make()
            pipe.guider, calls = guider, count_calls(pipe.unet)
            with pytest.raises(ValueError, match=row.refused_guidance):
                run(pipe, row, **arguments)
            assert not calls
        pytest.skip("there is no such guidance, and that was refused by name")


@every_row
def test_a_stream_and_parts_of_a_batch_give_what_a_call_gives(row):
    pipe = row.make()
    expected = run(pipe, row, 2)
    streamed = torch.cat(list(pipe.stream(**row.inputs(2), generator=seeded())), dim=1)
    torch.testing.assert_close(streamed, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(run(pipe, row, 2, max_batch_size=1), expected, atol=1e-5, rtol=0)
    members = run(pipe, row, 2, ensemble_size=2)
    torch.testing.assert_close(members[::2], expected, atol=1e-5, rtol=0)
    assert (members[0] - members[1]).abs().max() > 1e-2


@every_row
def test_the_noise_that_is_given_decides(row):
    if row.needs_gradient:
        pytest.skip("frames that are put in are noised by the generator")
    pipe, sizes = row.make(), {}

    def noise_of(pipe, step, timestep, kwargs):
        sizes[pipe.block_index] = kwargs["latents"].shape[1]

    shape = run(pipe, row, 2, callback_on_step_end=noise_of).shape
    noise = torch.randn(2, sum(sizes.values()), *shape[2:], generator=seeded(5))
    made = run(pipe, row, 2, latents=noise)
    assert torch.equal(run(pipe, row, 2, latents=noise, generator=seeded(1)), made)
    assert (run(pipe, row, 2, latents=-noise) - made).abs().max() > 0.02
    with pytest.raises(ValueError, match="`latents` must be a float tensor of shape"):
        run(pipe, row, 2, latents=noise[:, 1:])


def batch_schedulers(pipe):
    """One that draws no noise in its steps, and one that does."""
    return [pipe.scheduler, DDPMScheduler.from_config(pipe.scheduler.config)]


@every_row
@pytest.mark.parametrize("draws", [0, 1], ids=["deterministic", "stochastic"])
def test_a_video_of_a_batch_is_the_one_made_alone(row, draws):
    pipe = row.make()
    pipe.scheduler = batch_schedulers(pipe)[draws]
    both = run(pipe, row, 2, generator=[seeded(0), seeded(1)])
    for i in range(2):
        alone = pipe(**one_video(row, i), generator=seeded(i)).frames
        torch.testing.assert_close(both[i : i + 1], alone, atol=1e-4, rtol=0)
    assert (both[0] - both[1]).abs().max() > 0.02


@each_network
@pytest.mark.parametrize("draws", [0, 1], ids=["deterministic", "stochastic"])
def test_a_generator_decides_and_the_global_stream_is_not_touched(row, draws):
    pipe = row.make()
    pipe.scheduler = batch_schedulers(pipe)[draws]
    state = torch.get_rng_state()
    first = run(pipe, row, 2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(run(pipe, row, 2), first)
    assert (run(pipe, row, 2, generator=seeded(1)) - first).abs().max() > 0.02


@needs_cuda
@each_class
def test_a_generator_of_the_cpu_serves_a_gpu(row):
    pipe = row.make()
    expected = run(pipe, row, 2)
    torch.testing.assert_close(run(pipe.to("cuda"), row, 2).cpu(), expected, atol=1e-3, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# Callbacks and the state of a call


@every_row
def test_a_callback_reads_and_replaces_latents(row):
    pipe = row.make()
    seen, means = [], predicted(pipe)

    def callback(pipe, step, timestep, kwargs):
        assert set(kwargs) == set(pipe._callback_tensor_inputs)
        seen.append((step, int(timestep)))
        if step == pipe.num_timesteps - 1:
            return {"latents": torch.zeros_like(kwargs["latents"])}

    out = run(
        pipe,
        row,
        callback_on_step_end=callback,
        callback_on_step_end_tensor_inputs=pipe._callback_tensor_inputs,
        output_type="latent",
    )
    expected = torch.cat(means, dim=1)[:, : out.shape[1]] if means else torch.zeros_like(out)
    assert torch.equal(out, expected)  # what is predicted, where the network makes the rest
    steps = [(i, int(t)) for i, t in enumerate(pipe.scheduler.timesteps)]
    assert pipe.num_timesteps == len(steps) == 2 and seen == steps * (len(seen) // 2)


class Halve(PipelineCallback):
    """A callback as an object, as Diffusers has them."""

    tensor_inputs = ["latents"]

    def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
        return {"latents": callback_kwargs["latents"] / 2}


@each_class
def test_a_callback_may_be_an_object_or_several(row):
    pipe = row.make()
    plain = run(pipe, row)

    def twice(pipe, step, timestep, kwargs):
        return {"latents": kwargs["latents"] / 2 / 2}

    halve = Halve(cutoff_step_ratio=1.0)
    halved = run(pipe, row, callback_on_step_end=halve)
    several = run(pipe, row, callback_on_step_end=MultiPipelineCallbacks([halve, halve]))
    assert not torch.equal(halved, plain)
    assert torch.equal(several, run(pipe, row, callback_on_step_end=twice))


@each_class
def test_tensors_that_no_callback_may_have_are_refused_before_any_work(row):
    pipe = row.make()
    calls = count_calls(pipe.unet)
    asks = SDCFGCutoffCallback(cutoff_step_ratio=0.4, cutoff_step_index=None)  # for a prompt
    for arguments in ({"callback_on_step_end": asks}, {"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}):
        with pytest.raises(ValueError, match="`callback_on_step_end_tensor_inputs` has to be in"):
            run(pipe, row, **arguments)
    assert not calls


@each_network
def test_an_interrupt_ends_the_call_before_the_next_step(row):
    pipe = row.make()
    calls = count_calls(pipe.unet)

    def stop(pipe, step, timestep, kwargs):
        pipe._interrupt = True

    frames = run(pipe, row, callback_on_step_end=stop)
    assert len(calls) == 1 and pipe.interrupt and frames.isfinite().all()
    assert run(pipe, row).shape == (1, *row.output_shape) and not pipe.interrupt


@each_network
def test_the_state_of_a_call_can_be_read(row):
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    state = (pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps, pipe.interrupt)
    assert state == (1.0, False, 0, False)
    guided = run(pipe, row, guidance_scale=2.5)
    state = (pipe.guidance_scale, pipe.do_classifier_free_guidance, pipe.num_timesteps, pipe.interrupt)
    assert state == (2.5, True, 2, False)
    assert (guided - run(pipe, row)).abs().max() > 0.01 and not pipe.do_classifier_free_guidance


@each_class
def test_the_progress_bar_can_be_switched_off_and_on(row, capfd):
    pipe = row.make()
    run(pipe, row)
    assert not capfd.readouterr().err
    pipe.set_progress_bar_config(disable=False, desc="mine")
    run(pipe, row)
    assert "100%" in capfd.readouterr().err


@each_class
def test_attention_slicing_is_accepted_and_changes_nothing(row):
    pipe = row.make()
    expected = run(pipe, row)
    pipe.enable_attention_slicing(slice_size=1)
    assert torch.equal(run(pipe, row), expected)
    pipe.disable_attention_slicing()
    assert torch.equal(run(pipe, row), expected)


@each_network
def test_denoise_does_not_change_its_window_and_gives_its_block(row):
    pipe = row.make()
    window = row.window(pipe, 2)
    sample, roles, context = window["sample"], window["roles"], window.get("context")
    copies = copy.deepcopy(window)
    block = pipe.denoise(**window, generator=[seeded(0), seeded(1)], num_inference_steps=2)
    num_latent = int((roles[0] == FrameRole.LATENT).sum())
    assert block.shape == (2, num_latent, *sample.shape[2:]) and block.isfinite().all()
    before, after = (list(filter(torch.is_tensor, tree_leaves(each))) for each in (copies, window))
    assert before and all(map(torch.equal, before, after))
    alone = {"sample": sample[1:], "roles": roles[1:]} | ({"context": context.rows(slice(1, 2))} if context else {})
    alone = pipe.denoise(**alone, generator=[seeded(1)], num_inference_steps=2)
    torch.testing.assert_close(block[1:], alone, atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# Schedulers

ALL_TYPES = ("epsilon", "sample", "v_prediction")
NO_SAMPLE = ("epsilon", "v_prediction")
SCHEDULERS = {  # name: (prediction types it serves, whether it recovers a block that the network knows exactly)
    "DDIMParallelScheduler": (ALL_TYPES, True),
    "DDIMScheduler": (ALL_TYPES, True),
    "DDPMParallelScheduler": (ALL_TYPES, True),
    "DDPMScheduler": (ALL_TYPES, True),
    "DEISMultistepScheduler": (ALL_TYPES, False),
    "DPMSolverMultistepScheduler": (ALL_TYPES, True),
    "DPMSolverSDEScheduler": (NO_SAMPLE, False),
    "DPMSolverSinglestepScheduler": (ALL_TYPES, True),
    "EulerAncestralDiscreteScheduler": (NO_SAMPLE, True),
    "EulerDiscreteScheduler": (ALL_TYPES, True),
    "HeunDiscreteScheduler": (ALL_TYPES, False),
    "KDPM2AncestralDiscreteScheduler": (NO_SAMPLE, False),
    "KDPM2DiscreteScheduler": (NO_SAMPLE, False),
    "LCMScheduler": (ALL_TYPES, True),
    "LMSDiscreteScheduler": (ALL_TYPES, False),
    "PNDMScheduler": (NO_SAMPLE, False),
    "SASolverScheduler": (ALL_TYPES, False),
    "TCDScheduler": (ALL_TYPES, False),
    "UniPCMultistepScheduler": (ALL_TYPES, True),
    # For models that were trained otherwise. CogVideoX's makes other noise of the same betas.
    "CogVideoXDDIMScheduler": ((), False),
    "CosineDPMSolverMultistepScheduler": ((), False),
    "EDMDPMSolverMultistepScheduler": ((), False),
    "EDMEulerScheduler": ((), False),
    "FlowMatchEulerDiscreteScheduler": ((), False),
    "FlowMatchHeunDiscreteScheduler": ((), False),
    "IPNDMScheduler": ((), False),
}


def with_type(pipe, prediction_type):
    """The same pipeline with the noise schedule of MCVD's training and a prediction type."""
    schedule = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "timestep_spacing": "trailing"}
    pipe.scheduler = DDPMScheduler(**schedule, clip_sample=True, prediction_type=prediction_type)
    pipe.register_to_config(trained_noise=trained_noise(pipe.scheduler))
    return pipe


def swapped(pipe, name):
    try:
        return getattr(diffusers, name).from_config(pipe.scheduler.config)
    except ImportError as error:
        pytest.skip(str(error).strip())


def test_the_whole_family_of_compatible_schedulers_is_in_the_matrix():
    assert {scheduler.name for scheduler in KarrasDiffusionSchedulers} <= set(SCHEDULERS)


@each_class
@pytest.mark.parametrize("prediction_type", ALL_TYPES)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_serves_or_is_refused(row, name, prediction_type):
    pipe = with_type(row.make(), prediction_type)
    pipe.scheduler = swapped(pipe, name)
    served, is_exact = SCHEDULERS[name]
    calls = count_calls(pipe.unet)
    if prediction_type not in served:
        with pytest.raises(ValueError, match=f"`scheduler`: {name} c.*Use another, such as"):
            run(pipe, row, num_inference_steps=6)
        assert not calls
        return
    out = run(pipe, row, num_inference_steps=6)
    assert out.shape == (1, *row.output_shape) and out.isfinite().all() and out.min() >= 0 and out.max() <= 1
    if not is_exact:
        return

    # A network that knows the clean block: whatever the noise, the sampler must arrive at it.
    alphas = DDPMScheduler(beta_schedule="linear", beta_start=1e-4, beta_end=0.02).alphas_cumprod
    targets = []

    def answer(module, args, output):
        sample, timestep, roles = args[:3]
        block = (roles[0] == FrameRole.LATENT).nonzero()[:, 0]
        target = 0.8 * torch.linspace(-1, 1, sample[:1, block].numel()).view_as(sample[:1, block])
        targets.append(target)
        low = int(timestep)
        alpha = torch.lerp(alphas[low], alphas[min(low + 1, 999)], float(timestep) - low)
        noise = (sample[:, block] - alpha.sqrt() * target) / (1 - alpha).sqrt()
        answers = {"epsilon": noise, "sample": target.expand_as(noise)}
        answers["v_prediction"] = alpha.sqrt() * noise - (1 - alpha).sqrt() * target
        whole = torch.zeros_like(sample)
        whole[:, block] = answers[prediction_type]
        return (whole,)

    pipe.unet.register_forward_hook(answer)
    means = predicted(pipe)
    out = run(pipe, row, num_inference_steps=20, num_frames=None, output_type="latent")  # one block
    expected = targets[0] + means[0] if means else targets[0]
    torch.testing.assert_close(out, expected[:, -out.shape[1] :], atol=2e-3, rtol=0)  # given ones are not returned


@each_class
def test_swapping_the_scheduler_and_back_is_lossless(row):
    pipe = row.make()
    original, expected = pipe.scheduler, run(pipe, row, 2)
    for scheduler in KarrasDiffusionSchedulers:
        with contextlib.suppress(ImportError):  # of optional packages
            pipe.scheduler = getattr(diffusers, scheduler.name).from_config(pipe.scheduler.config)
    pipe.scheduler = type(original).from_config(pipe.scheduler.config)
    own = {name: pipe.scheduler.config[name] for name in original.config if not name.startswith("_")}
    assert own == {name: value for name, value in original.config.items() if not name.startswith("_")}
    assert torch.equal(run(pipe, row, 2), expected)


@each_class
@pytest.mark.parametrize(
    "name, taken",
    [("DDIMScheduler", ""), ("DDPMScheduler", "timesteps"), ("EulerDiscreteScheduler", "timesteps sigmas")],
)
def test_own_timesteps_and_sigmas_are_taken_or_named(row, name, taken):
    pipe = with_type(row.make(), "epsilon")
    pipe.scheduler = swapped(pipe, name)
    calls = count_calls(pipe.unet)
    for argument, value in {"timesteps": [900, 500, 20], "sigmas": [80.0, 4.0, 0.5, 0.0]}.items():
        if argument in taken:
            calls.clear()
            assert run(pipe, row, num_frames=1, **{argument: value}).isfinite().all()
            assert pipe.num_timesteps == len(calls) == 3
        else:
            calls.clear()
            with pytest.raises(
                ValueError, match=f"^`{argument}`: {name} does not take own {argument}. Leave"
            ) as error:
                run(pipe, row, **{argument: value})
            assert f"{name}.from_config" not in str(error.value)  # the way out is another one
            assert not calls


@each_class
@pytest.mark.parametrize("name", ["DDPMScheduler", "EulerDiscreteScheduler"])
@pytest.mark.parametrize(
    "wrong",
    [[], [math.nan, 0], [math.inf, 0], [1, 500], [500, 500], [-1, -2], [5000, 0], ["500", 0], [True, False], 5, "500"]
    + [[500, 400.5], list(range(2000, 0, -1))],
    ids=lambda wrong: str(wrong)[:20],
)
def test_steps_that_no_schedule_has_are_refused(row, name, wrong):
    pipe = with_type(row.make(), "epsilon")
    pipe.scheduler = swapped(pipe, name)
    with pytest.raises(
        ValueError, match="^`timesteps` must be a list of integers that fall, from at most 999"
    ) as error:
        run(pipe, row, timesteps=wrong)
    assert len(str(error.value)) < 300


@each_class
@pytest.mark.parametrize(
    "wrong",
    [[], [math.nan], [math.nan, 0.0], [math.inf, 0.0], [0.1, 1.0], [1.0, 1.0], [1.0, -1.0], [1e9, 1.0], ["1", 0], 1.0]
    + [[0.5]],
    ids=str,
)
def test_noise_levels_that_no_schedule_has_are_refused(row, wrong):
    pipe = with_type(row.make(), "epsilon")
    pipe.scheduler = swapped(pipe, "EulerDiscreteScheduler")
    with pytest.raises(ValueError, match="^`sigmas` must be "):
        run(pipe, row, sigmas=wrong)


@each_class
def test_components_that_are_none_are_named(row):
    components = row.make().components
    wrongs = (("unet", None), ("unet", 5), ("scheduler", None), ("scheduler", DDIMScheduler), ("guider", 5))
    for name, wrong in (*wrongs, ("context_encoder", 5)):
        with pytest.raises(ValueError, match=f"`{name}` must be an object"):
            type(row.make())(**components | {name: wrong})
    with pytest.raises(ValueError, match="`final_denoise` must be True or False, got 'no'"):
        type(row.make())(**components, final_denoise="no")
    with pytest.raises(ValueError, match="`final_denoise` must be True or False, got 'no'"):
        run(row.make(), row, final_denoise="no")


# --------------------------------------------------------------------------------------------------------------------
# Guiders


def attention(**what):
    """The attention of a level, as the part of the network that a guider changes."""
    return LayerSkipConfig([1], fqn="down_blocks", skip_ff=False, **what)


PERTURBED = {"skip_attention": False, "skip_attention_scores": True}
GUIDERS = {  # those that serve
    "classifier free": lambda: guiders.ClassifierFreeGuidance(3.0),
    "rescaled": lambda: guiders.ClassifierFreeGuidance(3.0, guidance_rescale=0.7),
    "in the second half": lambda: guiders.ClassifierFreeGuidance(3.0, start=0.5),
    "projected": lambda: guiders.AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_momentum=-0.5),
    "projected mix": lambda: guiders.AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=1),
    "zero star": lambda: guiders.ClassifierFreeZeroStarGuidance(3.0),
    "tangential": lambda: guiders.TangentialClassifierFreeGuidance(3.0),
    "frequency decoupled": lambda: guiders.FrequencyDecoupledGuidance([3.0, 2.0]),
    "without attention": lambda: guiders.AutoGuidance(3.0, auto_guidance_config=attention()),
    "skipped layer": lambda: guiders.SkipLayerGuidance(
        3.0, skip_layer_config=attention(), skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
    ),
    "perturbed attention": lambda: guiders.PerturbedAttentionGuidance(
        3.0,
        perturbed_guidance_config=attention(**PERTURBED),
        perturbed_guidance_start=0.0,
        perturbed_guidance_stop=1.0,
    ),
}


def with_guider(pipe, name):
    try:
        pipe.guider = GUIDERS[name]()
    except ImportError as error:  # kornia
        pytest.skip(str(error))
    return pipe


@pytest.mark.parametrize(
    "row, name",
    [
        pytest.param(row, name, id=f"{name}-{row.name}")
        for row in BY_NETWORK
        for name in GUIDERS
        if row in BY_CLASS or name in ("classifier free", "perturbed attention")
    ],
)
def test_a_guider_guides_and_remembers_nothing(row, name):
    """A call begins as if there had been none before it, and a video does not depend on its batch."""
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    forwards = {module: module.forward for module in pipe.unet.modules()}

    def both():
        return run(pipe, row, 2, generator=[seeded(0), seeded(1)])

    plain = both()
    with_guider(pipe, name)
    state = torch.get_rng_state()
    guided = both()
    assert guided.isfinite().all() and guided.min() >= 0 and guided.max() <= 1
    assert (guided - plain).abs().max() > 2e-3  # rounding is 1e-6
    assert torch.equal(both(), guided)
    assert torch.equal(torch.get_rng_state(), state)
    assert pipe.guider.get_state() == GUIDERS[name]().get_state()
    alone = pipe(**one_video(row, 1), generator=seeded(1)).frames
    torch.testing.assert_close(guided[1:], alone, atol=1e-4, rtol=0)
    assert {module: module.forward for module in pipe.unet.modules()} == forwards  # it is changed back
    pipe.guider = None
    assert torch.equal(both(), plain)


@every_row
def test_the_classifier_free_guider_is_guidance_scale(row):
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    expected = run(pipe, row, 2, guidance_scale=3.0)
    with_guider(pipe, "classifier free")
    torch.testing.assert_close(run(pipe, row, 2), expected, atol=1e-4, rtol=0)
    assert (pipe.guidance_scale, pipe.do_classifier_free_guidance) == (1.0, False)


@each_class
def test_a_guider_asks_for_the_network_only_when_it_needs_it(row):
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    calls = count_calls(pipe.unet)
    run(pipe, row, num_frames=1)
    without = len(calls)
    for name, more in (("classifier free", 2), ("in the second half", 1.5), ("perturbed attention", 2.5)):
        calls.clear()  # the perturbed attention begins at the second step
        run(with_guider(pipe, name), row, num_frames=1)
        assert len(calls) == more * without
    pipe.guider.disable()
    calls.clear()
    assert torch.equal(run(pipe, row, num_frames=1), run(row.make(), row, num_frames=1)) and len(calls) == without


@each_class
def test_there_is_no_guider_unless_one_is_given_and_it_is_saved(row, tmp_path):
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    assert pipe.guider is None and "guider" in pipe._optional_components
    pipe.save_pretrained(tmp_path / "none")
    assert reload(pipe, tmp_path / "none").guider is None and not (tmp_path / "none" / "guider").exists()
    expected = run(with_guider(pipe, "projected"), row)
    pipe.save_pretrained(tmp_path / "some")
    saved = json.loads((tmp_path / "some" / "guider" / "guider_config.json").read_text())
    assert saved["_class_name"] == "AdaptiveProjectedGuidance" and saved["guidance_scale"] == 3.0
    loaded = reload(pipe, tmp_path / "some")
    assert torch.equal(run(loaded, row), expected)
    assert torch.equal(run(reload(pipe, tmp_path / "some", guider=None), row), run(row.make(), row))


@each_class
@pytest.mark.parametrize(
    "make, reason",
    [
        (
            lambda: guiders.SkipLayerGuidance(
                skip_layer_guidance_layers=[0], skip_layer_guidance_start=0.0, skip_layer_guidance_stop=1.0
            ),
            "Could not find a suitable identifier for the transformer blocks",
        ),
        (
            lambda: guiders.SmoothedEnergyGuidance(seg_guidance_layers=[0]),
            "change nothing .* prediction 'pred_cond_seg'",
        ),
        (
            lambda: guiders.AutoGuidance(
                auto_guidance_config=LayerSkipConfig([1], fqn="down_blocks", skip_attention=False)
            ),
            "change nothing in this network for its prediction 'pred_uncond'",
        ),
        (
            lambda: guiders.AutoGuidance(auto_guidance_config=LayerSkipConfig([1], fqn="down_blocks")),
            "DownBlock2D'> not registered",
        ),
        (lambda: guiders.MagnitudeAwareGuidance(), "dim must be a 2-tuple"),
        (lambda: guiders.LTX2Guidance(stg_scale=1.0), "tuple index out of range"),
    ],
    ids=["layers of a transformer", "smoothed", "feed forward", "blocks", "magnitude", "ltx2"],
)
def test_a_guider_that_cannot_serve_is_refused_before_any_work(row, make, reason):
    only_if_it_reads_given_frames(row)
    pipe = row.make()
    calls, state = count_calls(pipe.unet), torch.get_rng_state()
    pipe.guider = make()
    with pytest.raises(
        ValueError, match=rf"`guider`: {type(pipe.guider).__name__} cannot serve .*{reason}.*Use one that"
    ):
        run(pipe, row)
    assert not calls and torch.equal(torch.get_rng_state(), state)
    assert not any(hasattr(module, "_diffusers_hook") for module in pipe.unet.modules())


@each_class
def test_a_guider_that_does_not_fit_the_call_is_refused(row):
    only_if_it_reads_given_frames(row)
    pipe = with_guider(row.make(), "classifier free")
    calls = count_calls(pipe.unet)
    with pytest.raises(
        ValueError, match="`guidance_scale` is 2.0, but the pipeline's `guider`, a ClassifierFreeGuidance"
    ):
        run(pipe, row, guidance_scale=2.0)
    pipe.guider = None
    pipe.guider = 3.0
    with pytest.raises(ValueError, match="`guider` must be one of Diffusers' guiders, an object, or None, got 3.0"):
        run(pipe, row)
    assert not calls


@needs_cuda
@each_network
@pytest.mark.parametrize("name", GUIDERS)
def test_a_guider_guides_on_a_gpu_as_on_the_cpu(row, name):
    pipe = with_guider(row.make(), name)
    expected = run(pipe, row, 2)
    torch.testing.assert_close(run(pipe.to("cuda"), row, 2).cpu(), expected, atol=1e-2, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# Other pipelines of the same parts


@each_class
def test_from_pipe_shares_the_parts_and_goes_there_and_back(row, tmp_path):
    pipe = row.make()
    expected = run(pipe, row)
    other = type(pipe).from_pipe(pipe, final_denoise=True)
    assert other.unet is pipe.unet and other.scheduler is pipe.scheduler and other.guider is None
    assert other.context_encoder is pipe.context_encoder
    assert other.config.final_denoise and not pipe.config.final_denoise
    back = type(pipe).from_pipe(other, final_denoise=False)
    public = [{k: v for k, v in each.config.items() if not k.startswith("_")} for each in (pipe, back)]
    assert public[0] == public[1]
    back.set_progress_bar_config(disable=True)
    assert torch.equal(run(back, row), expected) and torch.equal(run(pipe, row), expected)

    guided = type(pipe).from_pipe(pipe, guider=guiders.ClassifierFreeGuidance(3.0))
    assert pipe.guider is None and type(pipe).from_pipe(guided).guider is guided.guider


@each_class
def test_from_pipe_takes_the_parts_of_a_pipeline_of_another_class(row):
    """A pipeline that is only a `DiffusionPipeline` with parts of these names, as another package may have."""

    class Other(DiffusionPipeline):
        def __init__(self, unet: row.network.network_class, scheduler: diffusers.SchedulerMixin) -> None:
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

    pipe = row.make()
    taken = type(pipe).from_pipe(Other(pipe.unet, pipe.scheduler), context_encoder=pipe.context_encoder)
    taken.set_progress_bar_config(disable=True)
    assert taken.unet is pipe.unet and torch.equal(run(taken, row), run(pipe, row))
    back = Other.from_pipe(taken)
    assert back.unet is pipe.unet and back.scheduler is pipe.scheduler


# --------------------------------------------------------------------------------------------------------------------
# Saving and loading


@every_row
def test_a_saved_pipeline_makes_the_same_video_to_the_bit(row, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path, safe_serialization=True)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert set(pipe.components) <= set(index) and index["_class_name"] == type(pipe).__name__
    assert torch.equal(run(reload(pipe, tmp_path), row, 2), run(pipe, row, 2))


@each_class
@pytest.mark.parametrize("options", [{"low_cpu_mem_usage": False}, {"low_cpu_mem_usage": True}, {"device_map": "cpu"}])
def test_ways_to_load_give_the_same_pipeline(row, options, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path)
    assert torch.equal(run(reload(pipe, tmp_path, **options), row), run(pipe, row))


@each_class
def test_weights_in_several_files_are_the_same_weights(row, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path, max_shard_size="20KB")
    for name in networks(pipe):
        assert len(list((tmp_path / name).glob("*-of-*.safetensors"))) > 1
    assert torch.equal(run(reload(pipe, tmp_path), row), run(pipe, row))


@each_class
def test_a_variant_is_loaded_by_its_name_only(row, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    for name in networks(pipe):
        assert (tmp_path / "half" / name / "diffusion_pytorch_model.fp16.safetensors").is_file()
    assert torch.equal(run(reload(pipe, tmp_path / "half", variant="fp16"), row), run(pipe, row))
    pipe.save_pretrained(tmp_path / "whole")
    with pytest.raises(ValueError, match="variant=fp16"):
        reload(pipe, tmp_path / "whole", variant="fp16")


@each_class
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_half_precision_is_stored_and_loaded(row, dtype, tmp_path):
    pipe = row.make().to(dtype=dtype)
    assert pipe.dtype == pipe.unet.dtype == dtype
    pipe.save_pretrained(tmp_path)
    loaded = reload(pipe, tmp_path, torch_dtype=dtype)
    for part, network in networks(pipe).items():
        again = getattr(loaded, part)
        assert again.dtype == network.dtype == dtype
        for name, weight in network.state_dict().items():
            assert torch.equal(again.state_dict()[name], weight)


@each_class
@pytest.mark.parametrize(
    "dtypes, expected",
    [
        ({"unet": torch.bfloat16, "default": torch.float32}, torch.bfloat16),
        ({"default": torch.float16}, torch.float16),
        ({"unet": torch.float16}, torch.float16),
    ],
    ids=["unet and default", "default", "unet"],
)
def test_precision_is_chosen_for_each_part(row, dtypes, expected, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path)
    loaded = reload(pipe, tmp_path, torch_dtype=dtypes)
    assert loaded.unet.dtype == expected
    assert run(loaded, row).isfinite().all()  # though its parts differ


# --------------------------------------------------------------------------------------------------------------------
# Precision, memory, speed


@every_row
@pytest.mark.parametrize("device", DEVICES)
def test_half_precision_makes_a_finite_video(row, device):
    pipe = row.make().to(device, torch.bfloat16)
    frames = run(pipe, row)
    assert frames.dtype == torch.float32 and frames.isfinite().all() and frames.min() >= 0 and frames.max() <= 1


@each_network
@pytest.mark.parametrize("device", DEVICES)
def test_weights_can_be_stored_in_8_bits_during_a_call(row, device):
    pipe = row.make().to(device, torch.bfloat16)
    for network in networks(pipe).values():
        network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
        assert torch.float8_e4m3fn in {parameter.dtype for parameter in network.parameters()}
    if row.needs_gradient:  # which goes through weights that are 8 bits again by then
        with pytest.raises(
            ValueError, match="needs a gradient through the network, whose weights are stored in 8 bits"
        ):
            run(pipe, row)
        return
    assert run(pipe, row).isfinite().all()
    for network in networks(pipe).values():
        assert torch.float8_e4m3fn in {parameter.dtype for parameter in network.parameters()}


@each_network
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("offload_type", ["block_level", "leaf_level"])
def test_group_offloading_changes_no_video(row, offload_type, device):
    pipe = row.make()
    expected = run(pipe, row)
    blocks = {"num_blocks_per_group": 1} if offload_type == "block_level" else {}
    pipe.enable_group_offload(torch.device(device), torch.device("cpu"), offload_type=offload_type, **blocks)
    assert all(next(network.parameters()).device.type == "cpu" for network in networks(pipe).values())
    for _ in range(2):
        torch.testing.assert_close(run(pipe, row), expected, atol=1e-3, rtol=0)


@needs_cuda
@each_network
@pytest.mark.parametrize("way", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_cpu_offloading_changes_no_video_and_puts_the_weights_back(row, way):
    pipe = row.make()
    expected = run(pipe, row)
    for _ in range(2):  # it may be enabled again
        getattr(pipe, way)()
        assert pipe._execution_device.type == "cuda"
        torch.testing.assert_close(run(pipe, row), expected, atol=1e-3, rtol=0)
        devices = {network.device.type for network in networks(pipe).values()}
        assert devices == {"cpu" if way == "enable_model_cpu_offload" else "meta"}


@needs_cuda
@each_class
def test_a_pipeline_is_loaded_onto_a_gpu(row, tmp_path):
    pipe = row.make()
    pipe.save_pretrained(tmp_path)
    loaded = reload(pipe, tmp_path, device_map="cuda")
    assert {network.device.type for network in networks(loaded).values()} == {"cuda"}
    torch.testing.assert_close(run(loaded, row), run(pipe, row), atol=1e-3, rtol=0)


@needs_cuda
@each_network
def test_float16_makes_a_finite_video_on_a_gpu(row):
    assert run(row.make().to("cuda", torch.float16), row).isfinite().all()


@pytest.mark.slow
@each_network
def test_a_compiled_network_makes_the_same_video(row):
    # Windows are of several lengths. Torch's own code generator fails on a gradient of any length (torch 2.13), so that
    # each length is compiled by itself where one is taken.
    kwargs = {"dynamic": False} if row.needs_gradient else {}
    pipe = row.make()
    expected = run(pipe, row, 2)
    for network in networks(pipe).values():
        network.compile(**kwargs)
    torch.testing.assert_close(run(pipe, row, 2), expected, atol=1e-3, rtol=0)
    pipe = row.make()
    for name, network in networks(pipe).items():
        setattr(pipe, name, torch.compile(network, **kwargs))
    torch.testing.assert_close(run(pipe, row, 2), expected, atol=1e-3, rtol=0)
