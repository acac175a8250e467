"""What predictions mean: the algebra, agreement with Diffusers' schedulers, and what training makes of it."""

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    ModelMixin,
    UniPCMultistepScheduler,
)
from diffusers.configuration_utils import ConfigMixin, register_to_config

import train_mcvd
from mcvd_diffusers import FrameRole, MCVDPipeline, MCVDUNet2DModel, denoising_loss
from mcvd_diffusers.models import unet_lgcvd, unet_mcvd, unet_rvd, unet_space_time
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.objectives import (
    PREDICTION_TYPES,
    VARIANCE_PRESERVING,
    Objective,
    add_observed_noise,
    noise_positions,
    objective_of,
    sampling_level,
    training_level,
)
from mcvd_diffusers.samplers import FROM_BETAS
from mcvd_diffusers.training import draw_timesteps


# Schedulers of training, and those of sampling that serve the same network.
COSINE = {"beta_schedule": "squaredcos_cap_v2"}
FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
TRAINING = {
    **{x: lambda x=x: DDPMScheduler(prediction_type=x, **COSINE) for x in VARIANCE_PRESERVING},
    "flow_prediction": FlowMatchEulerDiscreteScheduler,
    "edm": lambda: EDMEulerScheduler(sigma_data=0.7),
}
SAMPLING = {
    **{
        x: [
            lambda x=x: DDIMScheduler(prediction_type=x, clip_sample=False, timestep_spacing="trailing", **COSINE),
            lambda x=x: EulerDiscreteScheduler(prediction_type=x, **COSINE),
            lambda x=x: DPMSolverMultistepScheduler(prediction_type=x, timestep_spacing="trailing", **COSINE),
            lambda x=x: UniPCMultistepScheduler(prediction_type=x, timestep_spacing="trailing", **COSINE),
        ]
        for x in VARIANCE_PRESERVING
    },
    "flow_prediction": [
        FlowMatchEulerDiscreteScheduler,
        FlowMatchHeunDiscreteScheduler,
        lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
        lambda: DPMSolverMultistepScheduler(**FLOW),
        lambda: UniPCMultistepScheduler(**FLOW),
    ],
    "edm": [lambda: EDMEulerScheduler(sigma_data=0.7), lambda: EDMDPMSolverMultistepScheduler(sigma_data=0.7)],
}


def level_of(prediction_type: str, noise: float) -> tuple[float, float]:
    """Some level of the kind, from nearly clean (0) to nearly noise (1)."""
    if prediction_type == "flow_prediction":
        return 1 - noise, noise
    if prediction_type == "edm":
        ratio = math.exp(8 * noise - 5)
        scale = (ratio**2 + 0.7**2) ** -0.5
        return scale, ratio * scale
    return (1 - noise**2) ** 0.5, noise


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
@pytest.mark.parametrize("noise", [0.05, 0.5, 0.95])
def test_a_prediction_says_what_the_clean_frames_are(prediction_type, noise):
    objective, level = Objective(prediction_type, sigma_data=0.7), level_of(prediction_type, noise)
    clean, eps = torch.randn(2, 3, 5, dtype=torch.float64)
    noisy = level[0] * clean + level[1] * eps
    prediction = objective.of(clean, eps, level)
    torch.testing.assert_close(objective.to_clean(prediction, noisy, level), clean)
    torch.testing.assert_close(objective.from_clean(clean, noisy, level), prediction)
    moved = objective.to_clean(prediction + 1, noisy, level) - clean
    scale = objective.error_scale(tuple(torch.tensor(x, dtype=torch.float64) for x in level))
    torch.testing.assert_close(moved.abs(), scale.expand_as(moved))


def test_networks_know_all_predictions():
    for module in (unet_mcvd, unet_space_time, unet_lgcvd, unet_rvd):
        assert module.PREDICTION_TYPES == PREDICTION_TYPES


def test_edm_is_what_the_paper_and_diffusers_say():
    scheduler = EDMEulerScheduler(sigma_data=0.7)
    objective = objective_of(scheduler)
    ratios = torch.tensor([0.01, 0.3, 2.0, 40.0])
    timesteps = scheduler.precondition_noise(ratios)
    level = alpha, sigma = training_level(scheduler, timesteps)
    clean, eps, answer = torch.randn(3, 4, 1, 1, 1, 1)
    shown = scheduler.precondition_inputs(
        clean + ratios[:, None, None, None, None] * eps, ratios[:, None, None, None, None]
    )
    torch.testing.assert_close(alpha * clean + sigma * eps, shown)
    for i, ratio in enumerate(ratios):
        theirs = scheduler.precondition_outputs(clean[i] + ratio * eps[i], answer[i], ratio)
        torch.testing.assert_close(objective.to_clean(answer, shown, level)[i], theirs, atol=1e-5, rtol=1e-4)
    # The loss of the network is the paper's, lambda |D - x|^2 with lambda = 1 / c_out^2.
    error = objective.to_clean(answer, shown, level) - clean
    weight = (ratios**2 + 0.7**2) / (ratios * 0.7) ** 2
    torch.testing.assert_close(
        (answer - objective.of(clean, eps, level)) ** 2,
        weight[:, None, None, None, None] * error**2,
        atol=1e-3,
        rtol=1e-3,
    )


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (DDPMScheduler, None),
        (
            lambda: EDMEulerScheduler(prediction_type="v_prediction"),
            "EDMEulerScheduler with prediction_type='v_prediction'",
        ),
    ],
)
def test_schedulers_of_other_kinds_of_network_are_refused(scheduler, reason):
    if reason is None:
        assert objective_of(scheduler()) == Objective("epsilon")
        return
    with pytest.raises(ValueError, match=reason):
        objective_of(scheduler())


class GaussianFrames(ModelMixin, ConfigMixin):
    """
    The best network for pixels that are independent and normal with mean 0.3 and standard deviation 0.2, which knows the noise level
    from the timestep that it is told, as in training.
    """

    MEAN, STD = 0.3, 0.2

    @register_to_config
    def __init__(
        self,
        prediction_type: str = "epsilon",
        in_channels: int = 1,
        sample_size: int = 4,
        num_past_frames: int = 0,
        num_frames: int = 2,
        num_future_frames: int = 0,
        num_train_timesteps: int = 1000,
        drop_past: float = 0.0,
        drop_future: float = 0.0,
    ):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.scheduler = TRAINING[prediction_type]()

    @property
    def num_window_frames(self):
        return self.config.num_frames

    def forward(self, sample, timestep, roles, frame_indices=None, return_dict=True):
        objective = objective_of(self.scheduler)
        timestep = timestep.reshape(-1).expand(len(sample))
        if objective.prediction_type in VARIANCE_PRESERVING and timestep.is_floating_point():
            # Between the timesteps of training, as some schedulers go.
            alphas = self.scheduler.alphas_cumprod.double()
            low = timestep.long().clamp(max=998)
            share = timestep - low
            alphas = torch.lerp(alphas[low].log(), alphas[low + 1].log(), share.double()).exp().float()
            alphas = alphas[:, None, None, None, None]
            level = alpha, sigma = alphas.sqrt(), (1 - alphas).sqrt()
        else:
            level = alpha, sigma = training_level(self.scheduler, timestep)
        gain = alpha * self.STD**2 / (alpha**2 * self.STD**2 + sigma**2)
        clean = self.MEAN + gain * (sample - alpha * self.MEAN)
        return (objective.from_clean(clean, sample, level),)


@pytest.mark.parametrize(
    ("prediction_type", "number"), [(kind, i) for kind, ways in SAMPLING.items() for i in range(len(ways))]
)
def test_sampling_tells_the_network_the_noise_levels_of_its_training(prediction_type, number):
    """With the best network the way from noise to frames is known: `mean + std * noise`. With wrong levels it is another."""
    scheduler = SAMPLING[prediction_type][number]()
    pipe = MCVDPipeline(GaussianFrames(prediction_type), scheduler)
    pipe.set_progress_bar_config(disable=True)
    noise = torch.randn(1, 2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    made = pipe(num_frames=2, num_inference_steps=200, latents=noise, output_type="latent").frames
    expected = GaussianFrames.MEAN + GaussianFrames.STD * noise
    torch.testing.assert_close(made, expected, atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("prediction_type", "number"), [(kind, i) for kind, ways in SAMPLING.items() for i in range(len(ways))]
)
def test_sampling_levels_are_those_that_the_network_was_trained_for(prediction_type, number):
    scheduler, training = SAMPLING[prediction_type][number](), TRAINING[prediction_type]()
    scheduler.set_timesteps(7)
    latents = torch.zeros(1, 1, 1, 1, 1)
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(latents, t)
        level = sampling_level(scheduler, t)
        theirs = training_level(training, t.reshape(1))
        assert level == pytest.approx([float(x) for x in theirs], abs=0.01)
        latents = scheduler.step(torch.zeros_like(latents), t, latents, return_dict=False)[0]


# --------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_network_that_knows_the_frames_has_no_loss(prediction_type):
    scheduler = TRAINING[prediction_type]()
    video, noise = torch.rand(3, 2, 1, 4, 4) * 2 - 1, torch.randn(3, 2, 1, 4, 4)
    roles, timesteps = torch.full((3, 2), FrameRole.LATENT), draw_timesteps(scheduler, 3)
    told = []

    def model(sample, timestep, roles, return_dict):
        told.append(timestep)
        level = alpha, sigma = training_level(scheduler, timestep)
        torch.testing.assert_close(sample, alpha * video + sigma * noise)
        return (objective_of(scheduler).of(video, noise, level),)

    losses, estimate = denoising_loss(
        model, scheduler, video, roles, timesteps=timesteps, noise=noise, return_estimate=True
    )
    assert losses.abs().max() < 1e-10
    assert torch.equal(told[0], timesteps)
    is_clear = noise_positions(scheduler, timesteps) < 900  # or float32 hides the frames
    torch.testing.assert_close(estimate[is_clear], video[is_clear], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("prediction_type", "weight"),
    [
        ("epsilon", lambda snr: snr.clamp(max=5) / snr),  # 2303.09556, equations 4 to 6
        ("v_prediction", lambda snr: snr.clamp(max=5) / (snr + 1)),
        ("sample", lambda snr: snr.clamp(max=5)),
    ],
)
def test_min_snr_weights_are_the_papers(prediction_type, weight):
    scheduler = TRAINING[prediction_type]()
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=1,
        num_frames=1,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
    )
    video, roles = torch.rand(4, 2, 1, 8, 8) * 2 - 1, torch.tensor([[1, 2]] * 4)
    timesteps = torch.tensor([3, 200, 600, 990])
    options = {"timesteps": timesteps, "noise": torch.randn(4, 2, 1, 8, 8)}
    plain = denoising_loss(unet, scheduler, video, roles, **options)
    weighed = denoising_loss(unet, scheduler, video, roles, min_snr_gamma=5.0, **options)
    signal = scheduler.alphas_cumprod[timesteps]
    torch.testing.assert_close(weighed, plain * weight(signal / (1 - signal)), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction_type", ["flow_prediction", "edm"])
def test_min_snr_weights_count_errors_of_clean_frames_alike_for_all_objectives(prediction_type):
    scheduler = TRAINING[prediction_type]()
    objective, timesteps = objective_of(scheduler), draw_timesteps(scheduler, 6)
    level = alpha, sigma = training_level(scheduler, timesteps)
    video, roles, noise = torch.rand(6, 1, 1, 2, 2), torch.full((6, 1), FrameRole.LATENT), torch.randn(6, 1, 1, 2, 2)

    def model(sample, timestep, roles, return_dict):  # is wrong by 0.1 everywhere, counted on the clean frames
        return (objective.from_clean(video + 0.1, sample, level),)

    options = {"timesteps": timesteps, "noise": noise, "min_snr_gamma": 5.0}
    losses = denoising_loss(model, scheduler, video, roles, **options)
    torch.testing.assert_close(losses, 0.01 * ((alpha / sigma) ** 2).clamp(max=5.0).flatten(), rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("loss_type", ["l1", "l2"])
def test_min_snr_weights_do_not_depend_on_what_is_predicted(loss_type):
    """The same error of the clean frames has the same weighed loss, whatever the network predicts."""
    found = []
    for prediction_type in VARIANCE_PRESERVING:
        scheduler = TRAINING[prediction_type]()
        objective, timesteps = objective_of(scheduler), torch.tensor([50, 300, 700])
        level = training_level(scheduler, timesteps)
        video, noise = torch.rand(3, 1, 1, 2, 2, generator=torch.Generator().manual_seed(0)), torch.ones(3, 1, 1, 2, 2)

        def model(sample, timestep, roles, return_dict, objective=objective, level=level, video=video):
            return (objective.from_clean(video + 0.1, sample, level),)

        options = {"timesteps": timesteps, "noise": noise, "min_snr_gamma": 5.0, "loss_type": loss_type}
        found.append(denoising_loss(model, scheduler, video, torch.full((3, 1), FrameRole.LATENT), **options))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(found[2], found[1], rtol=1e-3, atol=1e-6)


def test_noise_levels_of_training_have_the_distributions_of_the_papers():
    edm, flow, generator = EDMEulerScheduler(), FlowMatchEulerDiscreteScheduler(), torch.Generator().manual_seed(0)
    draw = lambda scheduler, **chances: draw_timesteps(scheduler, 20_000, generator=generator, **chances)  # noqa: E731
    logarithms = 4 * draw(edm)
    assert (logarithms.mean().item(), logarithms.std().item()) == pytest.approx((-1.2, 1.2), abs=0.03)
    logarithms = 4 * draw(edm, mean=0.5, std=0.3)
    assert (logarithms.mean().item(), logarithms.std().item()) == pytest.approx((0.5, 0.3), abs=0.01)
    shares = draw(flow) / 1000
    assert torch.quantile(shares, torch.tensor([0.1, 0.5, 0.9])).tolist() == pytest.approx([0.1, 0.5, 0.9], abs=0.015)
    logits = torch.logit(draw(flow, mean=0.3) / 1000)
    assert (logits.mean().item(), logits.std().item()) == pytest.approx((0.3, 1.0), abs=0.03)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_sample_has_the_same_timestep_in_any_batch(prediction_type):
    scheduler = TRAINING[prediction_type]()
    generators = lambda: [torch.Generator().manual_seed(i) for i in range(4)]  # noqa: E731
    together = draw_timesteps(scheduler, 4, generator=generators())
    alone = torch.cat([draw_timesteps(scheduler, 1, generator=[generator]) for generator in generators()])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_positions_of_noise_levels_grow_with_the_noise(prediction_type):
    scheduler = TRAINING[prediction_type]()
    timesteps = draw_timesteps(scheduler, 500).sort().values
    positions = noise_positions(scheduler, timesteps)
    assert positions.dtype == torch.long and positions.min() >= 0 and positions.max() <= 999
    assert torch.equal(positions, positions.sort().values)


# --------------------------------------------------------------------------------------------------------------------
# Who serves whom


@pytest.mark.parametrize("trained", [None, *PREDICTION_TYPES])
@pytest.mark.parametrize("offered", PREDICTION_TYPES)
def test_a_pipeline_refuses_a_scheduler_of_another_objective(trained, offered):
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=1,
        num_frames=1,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        prediction_type=trained,
    )
    pipe = MCVDPipeline(unet, SAMPLING[offered][0]())
    pipe.set_progress_bar_config(disable=True)
    if trained == offered or (trained is None and offered in VARIANCE_PRESERVING):
        assert pipe(num_inference_steps=2, output_type="pt").frames.shape == (1, 1, 1, 8, 8)
        return
    with pytest.raises(ValueError, match="`scheduler`: .* cannot serve this network"):
        pipe(num_inference_steps=2, output_type="pt")


def test_a_scheduler_that_does_not_know_zero_terminal_snr_is_refused():
    unet = MCVDUNet2DModel(
        in_channels=1, block_out_channels=[8], down_block_types=["DownBlock2D"], prediction_type="v_prediction"
    )
    own = DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    pipe = MCVDPipeline(unet, HeunDiscreteScheduler.from_config(own.config))
    with pytest.raises(
        ValueError, match="HeunDiscreteScheduler cannot serve this network: its noise ends in pure noise"
    ):
        pipe(num_inference_steps=2)


@pytest.mark.parametrize("name", FROM_BETAS)
@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2", "cosine_logsnr"])
def test_the_script_saves_the_noise_that_it_trained_with(name, schedule):
    flags = f"--output_dir new --prediction_type v_prediction --beta_schedule {schedule} --sampling_scheduler {name} --estimate"
    settings = train_mcvd.parse_args([*flags.split(), "True"])
    noise = train_mcvd.make_noise_scheduler(settings)
    network = torch.nn.ModuleDict({"unet": train_mcvd.make_unet(settings)})
    pipe = train_mcvd.make_pipeline(settings, network, noise, FrameNormalizer())
    assert type(pipe.scheduler).__name__ == name
    torch.testing.assert_close(pipe.scheduler.alphas_cumprod, noise.alphas_cumprod)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ("--prediction_type epsilon --rescale_betas_zero_snr True", "at which the noise says nothing of the frames"),
        ("--rescale_betas_zero_snr True --min_snr_gamma 5", "pure noise would have the weight 0"),
        (
            "--rescale_betas_zero_snr True --sampling_scheduler HeunDiscreteScheduler",
            "does not know zero terminal SNR",
        ),
        ("--prediction_type edm --beta_schedule linear", "--beta_schedule is for --prediction_type epsilon"),
        (
            "--preset smmnist-concat-p5k5 --prediction_type edm",
            "--beta_schedule of --preset smmnist-concat-p5k5 is for",
        ),
        ("--sigma_data 0.5", "--sigma_data is for --prediction_type edm"),
        ("--prediction_type edm --sigma_data 0", "--sigma_data must be a positive number"),
        ("--prediction_type flow_prediction --noise_level_mean inf", "--noise_level_mean must be a finite number"),
        ("--prediction_type edm --sampling_scheduler DDIMScheduler", "must be one of EDMDPMSolverMultistepScheduler"),
        ("--observed_noise 1", "--observed_noise must be a share in [0, 1)"),
        (
            "--num_past_frames 0 --num_future_frames 0 --observed_noise 0.1",
            "--observed_noise is noise on given frames",
        ),
        ("--method fdm --observed_noise 0.1", "--observed_noise is for --method mcvd"),
        ("--validation_inference_steps 2000 --num_validation_videos 0", "must not exceed --num_train_timesteps"),
    ],
)
def test_settings_that_make_no_objective_are_refused(flags, reason, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_mcvd.parse_args(f"--output_dir {tmp_path / 'new'} {flags}".split())
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["timesteps", "sigmas"])
def test_own_steps_are_refused_where_they_mean_something_else(argument):
    unet = MCVDUNet2DModel(
        sample_size=8,
        in_channels=1,
        num_past_frames=1,
        num_frames=1,
        block_out_channels=[8],
        down_block_types=["DownBlock2D"],
        prediction_type="edm",
    )
    pipe = MCVDPipeline(unet, EDMEulerScheduler())
    with pytest.raises(
        ValueError, match=f"`{argument}`: EDMEulerScheduler does not take own {argument}. Leave them out.$"
    ):
        pipe(**{argument: [2, 1]}, output_type="pt")


# --------------------------------------------------------------------------------------------------------------------
# Noise on given frames


def noisy_unet(**config) -> MCVDUNet2DModel:
    shape = {"sample_size": 8, "in_channels": 1, "num_past_frames": 2, "num_frames": 2, "num_future_frames": 1}
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(**shape, block_out_channels=[8], down_block_types=["DownBlock2D"], **config).eval()
    for parameter in unet.parameters():  # nothing is nearly zero, as it is at first
        parameter.data = 0.1 * torch.randn_like(parameter)
    return unet


def test_noise_on_given_frames_has_the_share_and_leaves_the_others():
    sample, noise = torch.randn(2, 3, 1, 64, 64), torch.randn(2, 3, 1, 64, 64)
    is_observed = torch.tensor([[True, False, False], [True, True, False]])
    noisy = add_observed_noise(sample, is_observed, noise, torch.tensor([0.6, 0.0]))
    torch.testing.assert_close(noisy[0, 0], 0.8 * sample[0, 0] + 0.6 * noise[0, 0])
    assert torch.equal(noisy[0, 1:], sample[0, 1:]) and torch.equal(noisy[1], sample[1])


def test_network_is_told_how_noisy_given_frames_are():
    unet, sample, roles = (
        noisy_unet(observed_noise=0.4),
        torch.randn(2, 5, 1, 8, 8),
        torch.tensor([[1, 1, 2, 2, 0]] * 2),
    )
    silent = unet(sample, 500, roles).sample
    assert torch.equal(unet(sample, 500, roles, observed_noise=torch.zeros(2)).sample, silent)
    told = unet(sample, 500, roles, observed_noise=torch.tensor([0.0, 0.3])).sample
    assert torch.equal(told[0], silent[0]) and not torch.allclose(told[1], silent[1], atol=1e-4)


def test_a_network_that_begins_with_noise_on_given_frames_is_the_one_without():
    """Its embedding says nothing yet, so that it can be added to a network that was trained without."""
    torch.manual_seed(0)
    shape = {"in_channels": 1, "block_out_channels": [8], "down_block_types": ["DownBlock2D"]}
    with_noise = MCVDUNet2DModel(observed_noise=0.4, **shape)
    without = MCVDUNet2DModel(**shape)
    missing = without.load_state_dict(with_noise.state_dict(), strict=False)
    assert all("observed_noise_embedding" in key for key in missing.unexpected_keys) and not missing.missing_keys
    sample, roles = torch.randn(1, 10, 1, 8, 8), torch.tensor([[1] * 5 + [2] * 5])
    told = with_noise(sample, 500, roles, observed_noise=torch.tensor([0.3])).sample
    assert torch.equal(told, without(sample, 500, roles).sample)


def test_loss_puts_noise_on_given_frames_and_tells_how_much():
    video, roles, seen = torch.rand(64, 3, 1, 16, 16) * 2 - 1, torch.tensor([[1, 2, 0]] * 64), {}

    def model(sample, timestep, roles, observed_noise, return_dict):
        seen.update(sample=sample, share=observed_noise)
        return (torch.zeros_like(sample),)

    generators = [torch.Generator().manual_seed(i) for i in range(64)]
    denoising_loss(model, DDPMScheduler(), video, roles, observed_noise=0.5, generator=generators)
    share = seen["share"]
    assert 0 <= share.min() < 0.1 and 0.4 < share.max() < 0.5
    left = seen["sample"][:, 0] - (1 - share**2).sqrt()[:, None, None, None] * video[:, 0]
    torch.testing.assert_close(left.flatten(1).std(dim=1), share, atol=0.05, rtol=0.1)
    assert torch.equal(seen["sample"][:, 2], video[:, 2])


def test_pipeline_puts_noise_on_given_frames_as_it_is_asked():
    pipe = MCVDPipeline(noisy_unet(observed_noise=0.4), DDIMScheduler())
    pipe.set_progress_bar_config(disable=True)
    past, told = torch.rand(2, 2, 1, 8, 8), []
    pipe.unet.register_forward_pre_hook(
        lambda _, args, kwargs: told.append(kwargs.get("observed_noise")), with_kwargs=True
    )
    options = {"past_frames": past, "num_frames": 4, "num_inference_steps": 2, "output_type": "latent"}
    make = lambda **own: pipe(**options, **own, generator=torch.Generator().manual_seed(0)).frames  # noqa: E731
    clean = make()
    assert told == [None] * 4
    noisy = make(observed_noise=0.3)
    assert all(torch.equal(share, torch.full((2,), 0.3)) for share in told[4:]) and len(told) == 8
    assert not torch.allclose(clean, noisy, atol=1e-4) and torch.equal(noisy, make(observed_noise=0.3))
    alone = pipe(
        **options | {"past_frames": past[:1]}, observed_noise=0.3, generator=torch.Generator().manual_seed(0)
    ).frames
    torch.testing.assert_close(alone, noisy[:1], atol=1e-5, rtol=0)
    given = make(observed_noise=0.3, return_given_frames=True)
    torch.testing.assert_close(given[:, :2] / 2 + 0.5, past)


@pytest.mark.parametrize(
    ("most", "asked", "reason"),
    [
        (0.4, 0.5, "a number from 0 to that of the network's training, 0.4, got 0.5"),
        (0.4, -0.1, "got -0.1"),
        (0.4, float("nan"), "got nan"),
        (0.0, 0.1, "a number from 0 to 0: this network was trained without, got 0.1"),
        (0.4, "much", "got 'much'"),
    ],
)
def test_noise_that_the_network_does_not_know_is_refused(most, asked, reason):
    pipe = MCVDPipeline(noisy_unet(observed_noise=most), DDIMScheduler())
    with pytest.raises(ValueError, match=f"`observed_noise` must be .*{reason}"):
        pipe(past_frames=torch.rand(1, 2, 1, 8, 8), observed_noise=asked)


@pytest.mark.parametrize("value", [-0.1, 1.0, True, "0.1"])
def test_network_refuses_an_impossible_share(value):
    with pytest.raises(ValueError, match=r"`observed_noise` must be a share in \[0, 1\)"):
        MCVDUNet2DModel(observed_noise=value)
