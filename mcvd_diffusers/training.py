"""The training loss over LATENT frames. It knows roles and Diffusers' noise schedulers, not methods."""

import math
from dataclasses import dataclass

import torch
from diffusers.utils.torch_utils import randn_tensor

from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.models.context import ContextOutput
from mcvd_diffusers.objectives import add_observed_noise, objective_of, training_level
from mcvd_diffusers.randomness import Generators, keyed_seed, rand_tensor


# First key of each kind of random stream of a training run.
SAMPLE_STREAM, DROPOUT_STREAM, ENCODER_STREAM = 0, 1, 2

# EDM's mean and standard deviation of the logarithm of the noise level (2206.00364, table 1).
EDM_MEAN, EDM_STD = -1.2, 1.2


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


def draw_timesteps(
    noise_scheduler,
    batch_size: int,
    *,
    generator: Generators = None,
    mean: float | None = None,
    std: float | None = None,
) -> torch.Tensor:
    """
    Timesteps of training: each with the same chance, or, for EDM and flow matching, with normal chances.

    Args:
        noise_scheduler: One of Diffusers' schedulers.
        batch_size (`int`): Number of clips `B`.
        generator (`torch.Generator` or a list of them, *optional*): The source; one number each.
        mean, std (`float`, *optional*):
            For EDM, those of the logarithm of the noise level, by default -1.2 and 1.2 (2206.00364, table 1). For flow matching,
            those of the logit of the share of noise (2403.03206, section 3.1); by default all shares have the same chance.

    Returns:
        `torch.Tensor` of shape `(B,)`:
            Integers from 0 to `num_train_timesteps - 1`; for flow matching numbers from 0 to `num_train_timesteps`, for EDM a
            quarter of the logarithm of the noise level.
    """
    config, prediction_type = noise_scheduler.config, objective_of(noise_scheduler).prediction_type
    uniform = rand_tensor((batch_size,), generator)
    # Noise as good as none would have an infinite logarithm.
    normal = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    if prediction_type == "edm":
        logarithm = (EDM_MEAN if mean is None else mean) + (EDM_STD if std is None else std) * normal
        return logarithm.clamp(math.log(config.sigma_min), math.log(config.sigma_max)) / 4
    if prediction_type == "flow_prediction":
        is_normal = mean is not None or std is not None
        share = torch.sigmoid((mean or 0.0) + (1.0 if std is None else std) * normal) if is_normal else uniform
        return share * config.num_train_timesteps
    return (uniform * config.num_train_timesteps).long()


def denoising_loss(
    model: torch.nn.Module,
    noise_scheduler,
    video: torch.Tensor,
    roles: torch.Tensor,
    *,
    generator: Generators = None,
    timesteps: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    frame_indices: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    loss_type: str = "l2",
    reduction: str = "mean",
    min_snr_gamma: float | None = None,
    observed_noise: float = 0.0,
    learns_observed: bool = False,
    context: ContextOutput | None = None,
    return_estimate: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    r"""
    The denoising loss of a batch of clips (DDPM, 2006.11239, equation 14, over the LATENT frames only).

    The LATENT frames are noised to a timestep drawn for each clip; the network predicts what the noise scheduler is for
    ([`objectives.Objective`]). Input, noise and loss are float32 whatever the network computes in.

    Three reductions are offered, because they are different optimisers. MCVD's original adds up half the squared error over all
    pixels of the block. Its gradient norm is in the hundreds and it clips the norm at 1, so that *every* step is
    clipped: each batch, easy or hard, moves the weights by a gradient of norm 1. With the mean, the norm is below 1
    most of the time and clipping only catches outliers. `"mean"` is the default, because its value does not depend on
    frame size, channels or block length and can be compared between runs; `"sum"` is for reproducing the original. FDM's
    original divides the sum by the pixels of the whole window, given frames and padding included: a window with few LATENT
    frames then counts less, `"window_mean"`.

    Args:
        model (`torch.nn.Module`): A network with the signature of [`MCVDUNet2DModel`] or [`SpaceTimeUNetModel`].
        noise_scheduler: One of Diffusers' schedulers: `DDPMScheduler`, `FlowMatchEulerDiscreteScheduler`, `EDMEulerScheduler`, ...
        video (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`): Clean clips.
        roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame.
        generator (`torch.Generator` or a list of them, *optional*): Source of timesteps and noise, in that order.
        timesteps (`torch.Tensor` of shape `(B,)`, *optional*): Instead of drawing them, as [`draw_timesteps`] does.
        noise (`torch.Tensor` of the shape of `video`, *optional*): Instead of drawing it.
        frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*): Positions in the video, for networks that know them.
        segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*): Which frames see which, for networks that keep segments
            apart. LATENT frames of all segments are learned.
        loss_type (`str`, *optional*, defaults to `"l2"`): `"l2"` or `"l1"`.
        reduction (`str`, *optional*, defaults to `"mean"`):
            `"mean"` over the pixels of the LATENT frames; MCVD's `"sum"`, which for `"l2"` is halved; or FDM's
            `"window_mean"`, the sum over the LATENT frames divided by the pixels of all `T` frames.
        min_snr_gamma (`float`, *optional*):
            Weigh each clip's loss so that the error of the clean frames counts at most so much, however little noise there is:
            by `min(SNR, gamma)` (min-SNR, 2303.09556, equation 4; 5 in the paper), whatever the network predicts.
        observed_noise (`float`, *optional*, defaults to 0.0):
            Most noise that OBSERVED frames get, as a share, which is drawn for each clip; for networks that can be told of it.
        learns_observed (`bool`, *optional*, defaults to `False`):
            Whether OBSERVED frames are learned, too: that there is no noise in them (an option of RaMViD's code, not used in the
            paper). For `prediction_type="epsilon"` and networks whose output there is not zero by construction, as that of
            [`MCVDUNet2DModel`] is.
        context ([`ContextOutput`], *optional*):
            What a context encoder knows of the frames before the window. Its `features` are told to the network. With a `mean` of
            shape `(B, T, C, H, W)`, `(frame - mean) / scale` is what is noised and learned of a LATENT frame (RVD, 2203.09481):
            gradients reach the mean through the noisy frames.
        return_estimate (`bool`, *optional*, defaults to `False`):
            Whether to return, too, what the network takes the clean frames for in this one step, `(B, T, C, H, W)`, without
            gradient and not clamped; frames that are not LATENT as they came.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32: The loss of each clip. A clip without LATENT frames has loss 0. With
        `return_estimate`, a tuple of it and the estimate.

    Raises:
        ValueError: If `loss_type` or `reduction` is unknown, or the scheduler is for another kind of network.
    """
    if loss_type not in ("l2", "l1"):
        raise ValueError(f'`loss_type` must be "l2" or "l1", got {loss_type!r}.')
    if reduction not in ("mean", "sum", "window_mean"):
        raise ValueError(f'`reduction` must be "mean", "sum" or "window_mean", got {reduction!r}.')
    try:
        objective = objective_of(noise_scheduler)
    except ValueError as error:
        raise ValueError(f"`noise_scheduler`: {error}") from None
    if learns_observed and objective.prediction_type != "epsilon":
        raise ValueError(
            "`learns_observed=True` asks for the noise of frames that have none: the scheduler's prediction_type must be"
            f" 'epsilon', got {objective.prediction_type!r}."
        )
    if min_snr_gamma is not None and not 0 < min_snr_gamma < math.inf:
        raise ValueError(f"`min_snr_gamma` must be a positive number or None, got {min_snr_gamma!r}.")

    if not 0 <= observed_noise < 1:
        raise ValueError(f"`observed_noise` must be a share in [0, 1), got {observed_noise!r}.")
    batch_size, device = video.shape[0], video.device
    for name, value in (("roles", roles), ("frame_indices", frame_indices), ("segment_ids", segment_ids)):
        if value is not None and value.shape != video.shape[:2]:
            raise ValueError(
                f"`{name}` must have shape {tuple(video.shape[:2])}, as `video`, got {tuple(value.shape)}."
            )
    if noise is not None and noise.shape != video.shape:
        raise ValueError(f"`noise` must have the shape of `video`, {tuple(video.shape)}, got {tuple(noise.shape)}.")
    video, context = video.float(), ContextOutput() if context is None else context
    if timesteps is None:
        timesteps = draw_timesteps(noise_scheduler, batch_size, generator=generator)
    timesteps = timesteps.to(device)
    if noise is None:
        noise = randn_tensor(tuple(video.shape), generator=generator, device=device)

    is_latent = (roles == FrameRole.LATENT).to(device)[:, :, None, None, None]
    clean = video if context.mean is None else (video - context.mean.float()) / context.scale
    level = alpha, sigma = training_level(noise_scheduler, timesteps)
    noisy = alpha * clean + sigma * noise
    sample, told = torch.where(is_latent, noisy, video), {}
    if observed_noise:
        share = told["observed_noise"] = rand_tensor((batch_size,), generator).to(device) * observed_noise
        eps = randn_tensor(tuple(video.shape), generator=generator, device=device)
        sample = add_observed_noise(sample, (roles == FrameRole.OBSERVED).to(device), eps, share)
    places = {"frame_indices": frame_indices, "segment_ids": segment_ids}  # not every network takes them
    places = {name: x.to(device) for name, x in places.items() if x is not None}
    if context.features:
        places["context"] = context.features
    prediction = model(sample, timesteps, roles.to(device), **places, **told, return_dict=False)[0].float()

    # There is no noise in OBSERVED frames, and what stands at ABSENT ones must not matter, even if it is NaN.
    target = torch.where(is_latent, objective.of(clean, noise, level), 0)
    error = (prediction - target).abs() if loss_type == "l1" else (prediction - target) ** 2
    is_learned = is_latent
    if learns_observed:
        is_learned = (roles != FrameRole.ABSENT).to(device)[:, :, None, None, None]
    total = torch.where(is_learned, error, 0).flatten(1).sum(dim=1)  # (B,)
    if reduction == "sum":
        losses = total if loss_type == "l1" else total / 2
    elif reduction == "window_mean":
        losses = total / video[0].numel()
    else:
        num_pixels = is_learned.flatten(1).sum(dim=1) * video[0, 0].numel()
        losses = total / num_pixels.clamp(min=1)
    if min_snr_gamma is not None:
        power = 1 if loss_type == "l1" else 2  # of the errors
        weight = ((alpha / sigma) ** 2).clamp(max=min_snr_gamma) * objective.error_scale(level) ** power
        losses = losses * weight.flatten()
    if not return_estimate:
        return losses
    with torch.no_grad():
        estimate = objective.to_clean(prediction, noisy, level)
        if context.mean is not None:
            estimate = context.mean.float() + context.scale * estimate
        return losses, torch.where(is_latent, estimate, video)


@dataclass
class TrainingWindow:
    """
    What a network sees of a batch of clips in training.

    Args:
        video (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`): Clean frames.
        roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each.
        frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*): Positions in the video; `None`: 0, 1, 2, ...
        segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*):
            Which frames see which; `None`: all. The clip itself is segment 0.
        before (`torch.Tensor` of shape `(B, n, C, H, W)`, *optional*): What a context encoder reads before the window.
    """

    video: torch.Tensor
    roles: torch.Tensor
    frame_indices: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None
    before: torch.Tensor | None = None


def gather_window(
    video: torch.Tensor,
    roles: torch.Tensor,
    max_frames: int,
    *,
    fill_with_other_clips: bool = False,
    is_padding: torch.Tensor | None = None,
    generator: Generators = None,
) -> TrainingWindow:
    """
    Windows of the frames that have a role in clips, such as those of [`masking.fdm_roles`].

    The frames stand in the order of time. Slots that are left are ABSENT, or taken, as in FDM's code, by LATENT frames from
    anywhere in the next clip of the batch, in a segment of their own: they see one another and nothing of the clip, and so
    are one more sample of generation. (In that code, such a frame counts as one of the clip's where their positions
    coincide; never here.)

    Args:
        video (`torch.Tensor` of shape `(B, T, C, H, W)`): Clips.
        roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame, at most `max_frames` of them not ABSENT.
        max_frames (`int`): Slots `K` of a window.
        fill_with_other_clips (`bool`, *optional*, defaults to `False`):
            Whether to fill the slots that are left. A window then depends on the batch: on the next clip of it (the same, in
            a batch of one).
        is_padding (`torch.Tensor` of shape `(B, T)`, *optional*): Frames that are none, which do not fill a slot.
        generator (`torch.Generator` or a list of them, *optional*): Chooses the frames that fill slots.

    Returns:
        [`TrainingWindow`]: Of shape `(B, K, C, H, W)`, with `frame_indices`; with `segment_ids` if slots were to be filled.

    Raises:
        ValueError: If a clip has more frames with a role than the window has slots, or fewer frames than that.
    """
    if video.ndim != 5 or roles.shape != video.shape[:2]:
        raise ValueError(
            f"`roles` must have shape (B, T) of `video` (B, T, C, H, W), got {tuple(roles.shape)} for {tuple(video.shape)}."
        )
    batch_size, num_frames = roles.shape
    if not 1 <= max_frames <= num_frames:
        raise ValueError(f"`max_frames` must be from 1 to the frames of the clips ({num_frames}), got {max_frames}.")
    is_used = roles != FrameRole.ABSENT
    most = int(is_used.sum(dim=1).max())
    if most > max_frames:
        raise ValueError(
            f"`roles` must leave all but `max_frames` ({max_frames}) frames ABSENT, got {most} with a role."
        )
    slots = _first_true(is_used, max_frames)  # (B, K): positions in the clip, or -1
    clips = torch.arange(batch_size, device=roles.device)[:, None].expand_as(slots)
    window_roles = torch.where(slots < 0, int(FrameRole.ABSENT), roles.gather(1, slots.clamp(min=0)))
    segment_ids = None
    if fill_with_other_clips:
        keys = rand_tensor((batch_size, num_frames), generator, device=roles.device)
        others = clips.roll(-1, dims=0)
        if is_padding is not None:
            keys = keys.masked_fill(is_padding.to(keys.device).roll(-1, dims=0), 2.0)  # beyond all others
        num_free = (slots < 0).sum(dim=1, keepdim=True)  # (B, 1)
        is_taken = (keys.argsort(dim=1).argsort(dim=1) < num_free) & (keys < 2)
        fillers = _first_true(is_taken, max_frames)
        # Behind the frames of the clip, in the order of time.
        place = (torch.arange(max_frames, device=roles.device) - (max_frames - num_free)).clamp(min=0)
        fillers = torch.where(slots < 0, fillers.gather(1, place), -1)
        is_filled = fillers >= 0
        slots, clips = torch.where(is_filled, fillers, slots), torch.where(is_filled, others, clips)
        window_roles = window_roles.masked_fill(is_filled, int(FrameRole.LATENT))
        segment_ids = is_filled.long()
    slots = slots.clamp(min=0)
    return TrainingWindow(
        video=video[clips.to(video.device), slots.to(video.device)],
        roles=window_roles,
        frame_indices=slots,
        segment_ids=segment_ids,
    )


def _first_true(mask: torch.Tensor, count: int) -> torch.Tensor:
    """Where a mask `(B, T)` is true, in order, and -1 where that ends, `(B, count)`."""
    order = (~mask).long().argsort(dim=1, stable=True)[:, :count]
    return torch.where(mask.gather(1, order), order, -1)
