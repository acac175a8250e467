"""The training loss over LATENT frames. It knows roles and Diffusers' noise schedulers, not methods."""

import torch
from diffusers.utils.torch_utils import randn_tensor

from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.randomness import Generators, keyed_seed, rand_tensor


# First key of each kind of random stream of a training run.
SAMPLE_STREAM, DROPOUT_STREAM = 0, 1

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def sample_generators(
    seed: int, sample_indices: range | list[int], device: torch.device | str = "cpu"
) -> list[torch.Generator]:
    """
    A random stream for each training sample, keyed by its number.

    Sample `n` of a run gets the same masks, timestep and noise whatever the batch size, the number of processes or
    the point from which the run was resumed.

    Args:
        seed (`int`): The run's seed.
        sample_indices (`range` or `list[int]`): Numbers of the samples, counted over the whole run and all processes.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where the streams draw.

    Returns:
        `list[torch.Generator]`: One each.
    """
    return [torch.Generator(device).manual_seed(keyed_seed(seed, SAMPLE_STREAM, index)) for index in sample_indices]


def draw_timesteps(noise_scheduler, batch_size: int, *, generator: Generators = None) -> torch.Tensor:
    """
    Timesteps of training, each with the same chance.

    Args:
        noise_scheduler: One of Diffusers' schedulers.
        batch_size (`int`): Number of clips `B`.
        generator (`torch.Generator` or a list of them, *optional*): The source; one number each.

    Returns:
        `torch.Tensor` of shape `(B,)`, integer, from 0 to `num_train_timesteps - 1`.
    """
    return (rand_tensor((batch_size,), generator) * noise_scheduler.config.num_train_timesteps).long()


def denoising_loss(
    model: torch.nn.Module,
    noise_scheduler,
    video: torch.Tensor,
    roles: torch.Tensor,
    *,
    generator: Generators = None,
    timesteps: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    loss_type: str = "l2",
    reduction: str = "mean",
) -> torch.Tensor:
    r"""
    The denoising loss of a batch of clips (DDPM, 2006.11239, equation 14, over the LATENT frames only).

    The LATENT frames are noised to a timestep drawn for each clip; the network predicts what the noise scheduler's
    `prediction_type` says. Input, noise and loss are float32 whatever the network computes in.

    Two reductions are offered, because they are two optimisers. The original adds up half the squared error over all
    pixels of the block. Its gradient norm is in the hundreds and it clips the norm at 1, so that *every* step is
    clipped: each batch, easy or hard, moves the weights by a gradient of norm 1. With the mean, the norm is below 1
    most of the time and clipping only catches outliers. `"mean"` is the default, because its value does not depend on
    frame size, channels or block length and can be compared between runs; `"sum"` is for reproducing the original.

    Args:
        model (`torch.nn.Module`): A network with the signature of [`MCVDUNet2DModel`].
        noise_scheduler: One of Diffusers' schedulers with `alphas_cumprod`, `add_noise` and `get_velocity`, such as
            `DDPMScheduler`.
        video (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`): Clean clips.
        roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame.
        generator (`torch.Generator` or a list of them, *optional*): Source of timesteps and noise, in that order.
        timesteps (`torch.Tensor` of shape `(B,)`, *optional*): Instead of drawing them uniformly.
        noise (`torch.Tensor` of the shape of `video`, *optional*): Instead of drawing it.
        loss_type (`str`, *optional*, defaults to `"l2"`): `"l2"` or `"l1"`.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` over the pixels of the LATENT frames, or the original's `"sum"`, which for `"l2"` is halved.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32: The loss of each clip. A clip without LATENT frames has loss 0.

    Raises:
        ValueError: If `loss_type`, `reduction` or the scheduler's `prediction_type` is unknown.
    """
    if loss_type not in ("l2", "l1"):
        raise ValueError(f'`loss_type` must be "l2" or "l1", got {loss_type!r}.')
    if reduction not in ("mean", "sum"):
        raise ValueError(f'`reduction` must be "mean" or "sum", got {reduction!r}.')
    prediction_type = noise_scheduler.config.prediction_type
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"`noise_scheduler` has prediction_type={prediction_type!r}; training knows {', '.join(PREDICTION_TYPES)}."
        )

    batch_size, device = video.shape[0], video.device
    video = video.float()
    if timesteps is None:
        timesteps = draw_timesteps(noise_scheduler, batch_size, generator=generator)
    timesteps = timesteps.to(device)
    if noise is None:
        noise = randn_tensor(tuple(video.shape), generator=generator, device=device)

    is_latent = (roles == FrameRole.LATENT).to(device)[:, :, None, None, None]
    sample = torch.where(is_latent, noise_scheduler.add_noise(video, noise, timesteps), video)
    prediction = model(sample, timesteps, roles.to(device), return_dict=False)[0].float()

    if prediction_type == "epsilon":
        target = noise
    elif prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(video, noise, timesteps)
    else:
        target = video
    error = (prediction - target).abs() if loss_type == "l1" else (prediction - target) ** 2
    total = torch.where(is_latent, error, 0).flatten(1).sum(dim=1)  # (B,)
    if reduction == "sum":
        return total if loss_type == "l1" else total / 2
    num_pixels = is_latent.flatten(1).sum(dim=1) * video[0, 0].numel()
    return total / num_pixels.clamp(min=1)
