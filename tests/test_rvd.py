"""RVD (2203.09481) as a system: residuals of a prediction, training through the loss of the diffusion, one frame after the other.

Its networks against the original's numbers: `tests/models/test_unet_rvd.py`.
"""

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from mcvd_diffusers import FrameRole, MCVDPipeline, NoiseSequence, denoising_loss
from mcvd_diffusers.methods import make_method
from mcvd_diffusers.metrics import crps
from mcvd_diffusers.models import RVDContextEncoder, RVDUNet2DModel
from mcvd_diffusers.models.context import ContextOutput
from mcvd_diffusers.train_settings import parse_args
from original_lgcvd import drawn
from original_rvd import CASES, load_networks, load_reference


ABSENT, OBSERVED, LATENT = FrameRole
SMALL = {"sample_size": 8, "in_channels": 1, "norm_num_groups": 4}
WIDTHS = {"context_block_out_channels": (8, 16), "predictor_block_out_channels": (8, 16)}


def shaken(*networks):
    """Networks in evaluation mode with weights that are always the same, away from zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for network in networks:
            for parameter in network.parameters():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
            network.eval()
    return networks


def make_pipeline(*, residual=True, scheduler=None, **encoder_config):
    if not residual:
        encoder_config["predictor_block_out_channels"] = None
    unet = RVDUNet2DModel(**SMALL, block_out_channels=(8, 16), num_train_timesteps=1000, residual=residual)
    unet, encoder = shaken(unet, RVDContextEncoder(**SMALL, **WIDTHS | encoder_config))
    scheduler = scheduler or DDIMScheduler(prediction_type="v_prediction", clip_sample=True, clip_sample_range=2.0)
    pipe = MCVDPipeline(unet, scheduler, context_encoder=encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample(pipe, seed=0, **arguments):
    arguments = {"num_inference_steps": 2, "output_type": "pt", **arguments}
    return pipe(generator=torch.Generator().manual_seed(seed), **arguments).frames


def frames(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def method_of(name="rvd", **settings):
    flags = [word for key, value in settings.items() for word in (f"--{key}", *str(value).split())]
    return make_method(parse_args(["--output_dir", "unused", "--method", name, *flags]))


# --------------------------------------------------------------------------------------------------------------------
# Residuals


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_rvd_1_a_frame_survives_becoming_a_residual(scale):
    """What a network that knows the noise takes the frames for, through mean and scale and back, are the frames."""
    video, mean = 2 * frames(3, 2, 1, 8, 8) - 1, 2 * frames(3, 2, 1, 8, 8, seed=2) - 1
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(0))
    timesteps, seen = torch.tensor([0, 300, 700]), []
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="sample")

    def network(sample, *_, **__):
        seen.append(sample)
        return ((video - mean) / scale,)

    losses, estimate = denoising_loss(
        network,
        scheduler,
        video,
        torch.full((3, 2), LATENT),
        timesteps=timesteps,
        noise=noise,
        context=ContextOutput(mean=mean, scale=scale),
        return_estimate=True,
    )
    assert torch.equal(losses, torch.zeros(3))
    torch.testing.assert_close(estimate, video, atol=1e-6, rtol=0)
    assert torch.equal(seen[0], scheduler.add_noise((video - mean) / scale, noise, timesteps))
    # At sampling: the pipeline's frames are the mean and the scaled residual.
    pipe = make_pipeline()
    context = pipe.context_encoder(video)
    window = video[:, :1], torch.full((3, 1), LATENT)
    options = {"num_inference_steps": 3, "latents": noise[:, :1]}
    alone = pipe.denoise(*window, context=ContextOutput(context.features), **options)
    scaled = pipe.denoise(*window, context=ContextOutput(context.features, mean=mean[:, :1], scale=scale), **options)
    torch.testing.assert_close((scaled - mean[:, :1]) / scale, alone, atol=1e-5, rtol=0)


def test_rvd_1_without_mean_it_is_plain_diffusion_of_the_next_frame_bit_for_bit():
    pipe, plain = make_pipeline(), make_pipeline(residual=False)
    with torch.no_grad():  # a predictor that always says 0
        for parameter in pipe.context_encoder.prediction_head.parameters():
            parameter.zero_()
    plain.unet.load_state_dict(pipe.unet.state_dict())
    ours = {name: x for name, x in pipe.context_encoder.state_dict().items() if name.startswith("context_network")}
    plain.context_encoder.load_state_dict(ours)
    arguments = {"past_frames": frames(2, 3, 1, 8, 8), "num_frames": 5}
    assert torch.equal(sample(pipe, **arguments), sample(plain, **arguments))


def test_rvd_1_given_frames_that_are_known_small_are_met():
    """Super-resolution moves the residual so that the whole frame fits."""
    pipe, given = make_pipeline(), frames(1, 2, 1, 8, 8)
    small = frames(1, 1, 1, 2, 2, seed=4)

    def distance(**options):
        made = sample(pipe, past_frames=given, num_frames=1, num_inference_steps=10, **options)
        return (torch.nn.functional.adaptive_avg_pool2d(made[:, 0], 2) - small[:, 0]).square().mean()

    guided = {"low_resolution_frames": small, "super_resolution_guidance": 5.0}
    assert distance(**guided) < 0.5 * distance()


# --------------------------------------------------------------------------------------------------------------------
# Training


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["l1", "l2", "l1_no_residual", "l1_pred_true"])
def test_rvd_4_losses_and_gradients_are_the_originals(case, kind):
    """The method's windows and our loss, with the original's timesteps and noise: the predictor learns through it."""
    golden, norms = load_reference(case), CASES[case]["gradient_norms"][kind]
    unet, encoder = load_networks(case)
    if kind == "l1_no_residual":
        encoder.predictor = encoder.prediction_head = None
    video = golden["video"].transpose(0, 1)  # (B, T, C, H, W)
    method = method_of(clip_frames=video.shape[1])
    window = method.draw({"video": video}, None)
    assert window.video.shape[1] == video.shape[1] - 2 and torch.equal(window.before, video[:, :-1])
    prediction_type = "sample" if kind == "l1_pred_true" else "epsilon"
    loss = denoising_loss(
        unet,
        DDPMScheduler(1600, beta_schedule="squaredcos_cap_v2", prediction_type=prediction_type),
        window.video,
        window.roles,
        timesteps=golden["loss_t"],  # one for each sequence
        noise=golden["loss_noise"].transpose(0, 1),
        context=method.encode(encoder, window),
        loss_type=kind[:2],
    ).mean()
    assert abs(loss.item() - golden[f"loss_{kind}"].item()) < 5e-6
    loss.backward()
    parts = {"denoiser": unet, "context": encoder.context_network}
    if encoder.predictor is not None:
        parts["predictor"] = torch.nn.ModuleList([encoder.predictor, encoder.prediction_head])
    for name, part in parts.items():
        norm = torch.stack([p.grad.norm() for p in part.parameters() if p.grad is not None]).norm().item()
        assert math.isclose(norm, norms[name], rel_tol=1e-4), name


def test_rvd_4_gradient_reaches_the_predictor_only_through_the_residual():
    method = method_of(block_out_channels="8 16", clip_frames=5)
    encoder = RVDContextEncoder(**SMALL, **WIDTHS)
    unet = RVDUNet2DModel(**SMALL, block_out_channels=(8, 16))
    shaken(encoder, unet)
    window = method.draw({"video": 2 * frames(2, 5, 1, 8, 8) - 1}, None)
    scheduler = DDPMScheduler(1600, prediction_type="v_prediction")
    for is_detached in (False, True):
        encoder.zero_grad()
        context = method.encode(encoder, window)
        context.mean = context.mean.detach() if is_detached else context.mean
        losses = denoising_loss(
            unet,
            scheduler,
            window.video,
            window.roles,
            timesteps=torch.tensor([10, 900]),
            generator=torch.Generator().manual_seed(0),
            context=context,
        )
        losses.mean().backward()
        gradients = [p.grad for p in [*encoder.predictor.parameters(), *encoder.prediction_head.parameters()]]
        reached = sum(float(x.abs().sum()) for x in gradients if x is not None)
        assert (reached == 0) if is_detached else (reached > 0)
        assert any(p.grad.any() for p in encoder.context_network.parameters())


def test_rvd_4_each_frame_is_learned_from_those_before_it_alone():
    """Changing a frame of the sequence changes what is said of the later ones, and of no other."""
    method = method_of(block_out_channels="8 16", clip_frames=6)
    (encoder,) = shaken(RVDContextEncoder(**SMALL, **WIDTHS))
    video = 2 * frames(1, 6, 1, 8, 8) - 1
    changed = video.clone()
    changed[:, 3] += 0.5
    with torch.no_grad():
        before, after = (method.encode(encoder, method.draw({"video": x}, None)) for x in (video, changed))
    assert before.mean.shape == (1, 4, 1, 8, 8)
    same = [torch.equal(before.mean[:, i], after.mean[:, i]) for i in range(4)]
    assert same == [True, True, False, False]  # of frames 2, 3, 4 and 5
    for x, y in zip(before.features, after.features):
        assert [torch.equal(x[:, i], y[:, i]) for i in range(4)] == same


# --------------------------------------------------------------------------------------------------------------------
# Sampling


def test_rvd_5_number_of_calls():
    pipe, calls = make_pipeline(), {"denoiser": 0, "recurrent": 0}

    def count(name):
        def hook(*_):
            calls[name] += 1

        return hook

    pipe.unet.register_forward_hook(count("denoiser"))
    pipe.context_encoder.register_forward_hook(count("recurrent"))
    sample(pipe, past_frames=frames(2, 4, 1, 8, 8), num_frames=5, num_inference_steps=3)
    assert calls == {"denoiser": 5 * 3, "recurrent": 5}  # the first reads all four given frames at once


@pytest.mark.parametrize("case", CASES)
def test_rvd_5_frames_are_those_of_the_originals_sampler(case):
    """Four given frames and two new ones, five steps each, with the original's noise."""
    golden, num_given = load_reference(case), 4
    unet, encoder = load_networks(case)
    unet.register_to_config(num_train_timesteps=5)
    scheduler = DDPMScheduler(
        5,
        trained_betas=golden["sched5_betas"].tolist(),
        prediction_type="epsilon",
        variance_type="fixed_small",
        clip_sample=True,
        clip_sample_range=2.0,
    )
    pipe = MCVDPipeline(unet, scheduler, context_encoder=encoder)
    pipe.set_progress_bar_config(disable=True)
    given = golden["sample_result"][:num_given].transpose(0, 1)
    pipe.normalizer = type(pipe.normalizer).from_range(-1, 1)  # as given, to the bit
    shape = given[:, 0].shape
    noise = [
        torch.from_numpy(drawn(f"{case}/sample_noise{6 * frame + i}", shape)) for frame in range(2) for i in range(5)
    ]
    made = pipe(
        past_frames=given,
        num_frames=2,
        num_inference_steps=5,
        generator=NoiseSequence(noise),
        output_type="latent",
    ).frames
    expected = golden["sample_result"][num_given:].transpose(0, 1)
    torch.testing.assert_close(made, expected, atol=1e-3, rtol=0)
    # The first frame is not yet made from another.
    torch.testing.assert_close(made[:, 0], expected[:, 0], atol=1e-4, rtol=0)


# --------------------------------------------------------------------------------------------------------------------
# What is learned


def squares(batch_size, generator, *, num_frames=8, size=8):
    """A square of 3x3 pixels that moves by -1, 0 or 1 pixel a frame in each direction, around the edges, (B, T, 1, 8, 8)."""
    start = torch.randint(size, (batch_size, 1, 2), generator=generator)
    speed = torch.randint(-1, 2, (batch_size, 1, 2), generator=generator)
    return drawn_squares((start + speed * torch.arange(num_frames)[:, None]) % size, size)


def forks(batch_size, generator, *, num_frames=8, size=8):
    """A square that moves down, and from the fifth frame on left or right, nobody knows which."""
    start = torch.randint(size, (batch_size, 1, 2), generator=generator)
    side = 2 * torch.randint(2, (batch_size, 1), generator=generator) - 1
    time = torch.arange(num_frames)
    path = torch.stack([time.clamp(max=4).expand(batch_size, -1), side * (time - 4).clamp(min=0)], dim=2)
    return drawn_squares((start + path) % size, size)


def drawn_squares(corner, size):
    pixels = torch.arange(size)
    inside = [((pixels - corner[..., axis, None]) % size) < 3 for axis in (0, 1)]  # (B, T, size) each
    return ((inside[0][..., :, None] & inside[1][..., None, :]).float() * 2 - 1)[:, :, None]


def train(draw, *, residual=True, num_updates=1200, learning_rate=3e-3):
    """
    RVD on videos that are drawn, by the method's windows; its pipeline, and the mean loss of the last fifth of the updates. Velocity
    and squared error, since a minute is not enough for the papers' noise and absolute error.
    """
    method = method_of(block_out_channels="16 32", num_attention_heads="2", residual=residual)
    method.settings.model.in_channels, method.settings.model.resolution = 1, [8, 8]
    components = method.make_components()
    unet, encoder = components["unet"], components["context_encoder"]
    noise = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    optimizer = torch.optim.AdamW(components.parameters(), lr=learning_rate)
    generator, recent = torch.Generator().manual_seed(0), []
    for update in range(num_updates):
        scale = min(1, (update + 1) / 50) * (1 + math.cos(math.pi * update / num_updates)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * scale
        window = method.draw({"video": draw(8, generator)}, generator)
        losses = denoising_loss(
            unet,
            noise,
            window.video,
            window.roles,
            context=method.encode(encoder, window),
            generator=generator,
        )
        optimizer.zero_grad()
        losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(components.parameters(), 1.0)
        optimizer.step()
        recent = [*recent, losses.mean().item()][-num_updates // 5 :]
    scheduler = DDIMScheduler.from_config(
        noise.config, timestep_spacing="trailing", clip_sample=True, clip_sample_range=2.0
    )
    pipe = MCVDPipeline(unet.eval(), scheduler, context_encoder=encoder.eval())
    pipe.set_progress_bar_config(disable=True)
    return pipe, sum(recent) / len(recent)


@pytest.fixture(scope="module")
def trained():
    """RVD on squares that move as they always do, with and without residuals."""
    return {residual: train(squares, residual=residual) for residual in (True, False)}


@pytest.mark.slow
def test_rvd_6_the_prediction_alone_is_better_than_repeating_the_last_frame(trained):
    pipe, _ = trained[True]
    video = squares(64, torch.Generator().manual_seed(7))
    with torch.no_grad():
        mean = pipe.context_encoder(video[:, :-1], each_frame=True).mean[:, 1:]
    truth, last = video[:, 2:], video[:, 1:-1]
    error, copied = (mean - truth).square().mean(), (last - truth).square().mean()
    print(
        f"prediction {error:.3f}, repeating {copied:.3f}, residual {(truth - mean).std():.3f}, frame {truth.std():.3f}"
    )
    assert error < copied
    assert (truth - mean).std() < truth.std() / 2


@pytest.mark.slow
def test_rvd_7_with_residuals_the_loss_is_lower_at_equal_updates(trained):
    losses = {residual: loss for residual, (_, loss) in trained.items()}
    video = (squares(32, torch.Generator().manual_seed(7)) + 1) / 2
    errors = {}  # of the frames, since the targets of the two losses are not the same
    for residual, (pipe, _) in trained.items():
        made = sample(pipe, past_frames=video[:, :4], num_frames=4, num_inference_steps=20)
        errors[residual] = (made - video[:, 4:]).square().mean().item()
    print(losses, errors)
    assert losses[True] < losses[False] and errors[True] < errors[False]


@pytest.mark.slow
def test_rvd_6_samples_are_better_than_the_prediction_where_the_future_is_open():
    pipe, _ = train(forks)
    video = forks(32, torch.Generator().manual_seed(7))
    given, truth = (video[:, :5] + 1) / 2, ((video[:, 5:6] + 1) / 2).numpy()
    made = sample(pipe, past_frames=given, num_frames=1, num_inference_steps=20, ensemble_size=10)
    with torch.no_grad():
        mean = (pipe.context_encoder(video[:, :5]).mean + 1) / 2
    scores = {
        "samples": crps(made.unflatten(0, (32, 10)).numpy(), truth).mean(),
        "prediction": crps(mean[:, None].numpy(), truth).mean(),
    }
    print(scores)
    assert scores["samples"] < scores["prediction"]
