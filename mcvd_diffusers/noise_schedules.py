"""Noise schedules that Diffusers' schedulers do not know by name; they take them as `trained_betas`."""

import math


def cosine_logsnr(time: float, *, lowest: float = -20.0, highest: float = 20.0) -> float:
    """
    VDM's noise schedule in continuous time (2204.03458, section 2): the logarithm of signal to noise, `-2 log tan(a t + b)`.

    Args:
        time (`float`): From 0, clean, to 1, noise.
        lowest, highest (`float`, *optional*, default to -20 and 20): Its values at 1 and 0.

    Returns:
        `float`: `log(alpha^2 / sigma^2)`, of which `alpha^2` is the sigmoid.

    Raises:
        ValueError: If the time is outside `[0, 1]`.
    """
    if not 0 <= time <= 1:
        raise ValueError(f"`time` must be in [0, 1], got {time}.")
    start, end = (math.atan(math.exp(-value / 2)) for value in (highest, lowest))
    return -2 * math.log(math.tan(start + (end - start) * time))


def cosine_logsnr_betas(
    num_train_timesteps: int = 1000, *, lowest: float = -20.0, highest: float = 20.0
) -> list[float]:
    """
    The same at so many timesteps: timestep `i` has the noise level of time `(i + 1) / num_train_timesteps`.

    Args:
        num_train_timesteps (`int`, *optional*, defaults to 1000): How many.
        lowest, highest (`float`, *optional*): As in [`cosine_logsnr`].

    Returns:
        `list[float]`: For a scheduler's `trained_betas`.

    Example:
        >>> DDPMScheduler(trained_betas=cosine_logsnr_betas(1000), prediction_type="v_prediction")
    """
    betas, before = [], 1.0
    for step in range(1, num_train_timesteps + 1):
        value = cosine_logsnr(step / num_train_timesteps, lowest=lowest, highest=highest)
        signal = 1 / (1 + math.exp(-value))
        betas.append(1 - signal / before)
        before = signal
    return betas
