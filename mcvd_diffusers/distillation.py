"""Distillation: a network that makes in one to four calls what another, its teacher, makes in many."""

import math

import torch
from diffusers.utils.torch_utils import randn_tensor

from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.objectives import VARIANCE_PRESERVING, Objective, objective_of, starts_blind, training_level
from mcvd_diffusers.randomness import Generators, rand_tensor


# Of the pseudo-Huber loss, for each pixel (2310.14189, section 3.3).
HUBER = 0.00054


def draw_steps(noise_scheduler, batch_size: int, *, num_steps: int = 10, generator: Generators = None) -> torch.Tensor:
    """
    Timesteps of distillation: those of a teacher's way in so many steps, each with the same chance.

    Args:
        noise_scheduler: Of training.
        batch_size (`int`): Number of clips `B`.
        num_steps (`int`, *optional*, defaults to 10): Steps of the way: the `original_inference_steps` of `LCMScheduler`.
        generator (`torch.Generator` or a list of them, *optional*): The source; one number each.

    Returns:
        `torch.Tensor` of shape `(B,)`, integer: `n - 1, 2 n - 1, ...` with `n = num_train_timesteps / num_steps`.
    """
    stride = _stride(noise_scheduler, num_steps)
    return stride * ((rand_tensor((batch_size,), generator) * num_steps).long() + 1) - 1


def relative_cost(num_steps: int = 10) -> float:
    """
    Arithmetic of an update of distillation, as a multiple of an ordinary one's, whose passes forwards and backwards are as three
    forwards. The teacher, which goes forwards only, makes all calls of its way from the first step and one from the last: half
    their sum on average.

    Args:
        num_steps (`int`, *optional*, defaults to 10): Steps of the teacher's way.

    Returns:
        `float`: 1 for the student, and what the teacher adds; for teachers as large as their students, which they all are here.
    """
    return 1 + (num_steps + 1) / 2 / 3


def distillation_loss(
    model: torch.nn.Module,
    teacher: torch.nn.Module,
    teacher_objective: Objective,
    noise_scheduler,
    video: torch.Tensor,
    roles: torch.Tensor,
    *,
    timesteps: torch.Tensor,
    num_steps: int = 10,
    generator: Generators = None,
    noise: torch.Tensor | None = None,
    frame_indices: torch.Tensor | None = None,
    segment_ids: torch.Tensor | None = None,
    largest_value: float = 1.0,
) -> torch.Tensor:
    r"""
    How far what the student takes the clean frames for, from any point of the way from noise to frames, is from where the teacher's
    way ends: so it becomes a consistency function (2303.01469), which `LCMScheduler` (2310.04378) samples. The way is followed to its
    end, as in 2101.02388, rather than learned step by step from the student's own estimates, whose errors add up along it; it is that
    of DPM-Solver++ of order 2 (2211.01095), which comes in ten steps to where DDIM comes in many more.

    Args:
        model (`torch.nn.Module`): The student, with the signature of [`MCVDUNet2DModel`].
        teacher (`torch.nn.Module`): Of the same signature; it is not changed.
        teacher_objective ([`Objective`]): What the teacher predicts, on the same noise schedule.
        noise_scheduler: Of training, with a `beta_schedule`; its `prediction_type` is the student's.
        video (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`): Clean clips.
        roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame.
        timesteps (`torch.Tensor` of shape `(B,)`): As [`draw_steps`] draws them.
        num_steps (`int`, *optional*, defaults to 10): Steps of the teacher's way from pure noise.
        generator (`torch.Generator` or a list of them, *optional*): Source of the noise.
        noise (`torch.Tensor` of the shape of `video`, *optional*): Instead of drawing it.
        frame_indices, segment_ids (`torch.Tensor` of shape `(B, T)`, *optional*): As in [`denoising_loss`].
        largest_value (`float`, *optional*, defaults to 1.0):
            What the teacher takes frames for is clamped to it, if it predicts epsilon and starts where no signal is left.

    Returns:
        `torch.Tensor` of shape `(B,)`, float32: The loss of each clip, a pseudo-Huber distance; about the root mean squared error.

    Raises:
        ValueError: If student or teacher has no `beta_schedule`, the student is one of epsilon where no signal is left, or `num_steps`
            does not divide the timesteps.
    """
    objective, stride = objective_of(noise_scheduler), _stride(noise_scheduler, num_steps)
    for each in (objective, teacher_objective):
        if each.prediction_type not in VARIANCE_PRESERVING:
            raise ValueError(
                f"`noise_scheduler` must be one with a `beta_schedule`, got one for {each.prediction_type!r}: what was trained by"
                " flow matching or EDM cannot be distilled here."
            )
    if starts_blind(noise_scheduler):
        raise ValueError(
            "`noise_scheduler` must not be one of epsilon where no signal is left: the student's smallest error there would be a large"
            " one in the frames. Let it predict v_prediction or sample."
        )
    device, timesteps = video.device, timesteps.to(video.device)
    noise = randn_tensor(tuple(video.shape), generator=generator, device=device) if noise is None else noise
    video, roles = video.float(), roles.to(device)
    is_latent = (roles == FrameRole.LATENT)[:, :, None, None, None]
    places = {"frame_indices": frame_indices, "segment_ids": segment_ids}
    places = {name: x.to(device) for name, x in places.items() if x is not None}

    def clean_frames(network, predicted: Objective, noisy, at, clips=slice(None)) -> torch.Tensor:
        """What a network takes some of the clips for."""
        sample = torch.where(is_latent[clips], noisy, video[clips])
        where = {name: x[clips] for name, x in places.items()}
        prediction = network(sample, at, roles[clips], **where, return_dict=False)[0].float()
        return predicted.to_clean(prediction, noisy, training_level(noise_scheduler, at))

    alpha, sigma = training_level(noise_scheduler, timesteps)
    noisy = alpha * video + sigma * noise
    limit = largest_value if starts_blind(noise_scheduler, teacher_objective) else math.inf
    with torch.no_grad():
        end, at = noisy.clone(), timesteps.to("cpu", copy=True)
        before, height_before = torch.zeros_like(video), torch.full_like(alpha, math.inf)
        while len(clips := (at >= 0).nonzero().squeeze(1)):  # those that are still on the way
            now = at[clips].to(device)
            then = now - stride
            (alpha, sigma), (next_alpha, next_sigma) = (
                training_level(noise_scheduler, x) for x in (now, then.clamp(min=0))
            )
            estimate = clean_frames(teacher, teacher_objective, end[clips], now, clips).clamp(-limit, limit)
            height = (next_alpha / next_sigma).log() - (alpha / sigma).log()
            # First steps are of order 1, and so are second ones from no signal at all.
            weight = (height / height_before[clips] / 2).nan_to_num(0)
            bent = estimate + weight * (estimate - before[clips])
            stepped = next_sigma / sigma * (end[clips] - alpha * bent) + next_alpha * bent
            is_last = (then < 0)[:, None, None, None, None]
            end[clips] = torch.where(is_last, estimate, stepped)
            before[clips], height_before[clips] = estimate, height
            at[clips] -= stride
    # The paper's c_skip and c_out are 0 and 1 to two digits on all of the grid, with LCMScheduler's `timestep_scaling`.
    made = clean_frames(model, objective, noisy, timesteps)
    squared = torch.where(is_latent, (made - end) ** 2, 0).flatten(1).sum(dim=1)
    num_pixels = is_latent.flatten(1).sum(dim=1).clamp(min=1) * video[0, 0].numel()
    return (squared / num_pixels + HUBER**2).sqrt() - HUBER


def _stride(noise_scheduler, num_steps: int) -> int:
    num_timesteps = noise_scheduler.config.num_train_timesteps
    if not 2 <= num_steps <= num_timesteps // 2 or num_timesteps % num_steps:
        raise ValueError(
            f"`num_steps` must be at least 2, divide {num_timesteps} timesteps and be fewer, got {num_steps}."
        )
    return num_timesteps // num_steps
