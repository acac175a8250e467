"""What a network learns to predict, and what that says of the clean frames, at every noise level.

All of these see noisy frames `z = alpha x + sigma eps` of clean ones `x` and noise `eps`, and are told where on its way from
clean to noise `z` is, by the timestep of a Diffusers scheduler; and all of them predict a sum `p = a x + b eps`:

| `prediction_type` | `a`, `b` | `alpha`, `sigma` | timestep | schedulers |
| --- | --- | --- | --- | --- |
| `"epsilon"` (DDPM, 2006.11239) | 0, 1 | `alpha^2 + sigma^2 = 1` | 0 to 999 | with `beta_schedule` |
| `"v_prediction"` (2202.00512) | -sigma, alpha | the same | 0 to 999 | with `beta_schedule` |
| `"sample"` | 1, 0 | the same | 0 to 999 | with `beta_schedule` |
| `"flow_prediction"` (2209.03003, 2210.02747) | -1, 1 | `1 - s`, `s` | `1000 s` | `FlowMatch...`, or with `use_flow_sigmas` |
| `"edm"` (2206.00364) | sigma / d, -alpha d | `c_in`, `c_in r`, `c_in = (r^2 + d^2)^(-1/2)` | `log(r) / 4` | `EDM...` |

`r` is EDM's noise level, noise over signal, and `d` its `sigma_data`. (Its network learns `F = (x - c_skip (x + r eps)) / c_out`,
which is the sum above.)
"""

import inspect
import math
from dataclasses import dataclass

import torch


# Of these, noise and signal come from a scheduler's betas.
VARIANCE_PRESERVING = ("epsilon", "v_prediction", "sample")
PREDICTION_TYPES = (*VARIANCE_PRESERVING, "flow_prediction", "edm")

# `alpha` and `sigma`: numbers, or tensors that broadcast over frames.
NoiseLevel = tuple[float | torch.Tensor, float | torch.Tensor]


@dataclass(frozen=True)
class Objective:
    """
    What a prediction means.

    Args:
        prediction_type (`str`): One of `PREDICTION_TYPES`.
        sigma_data (`float`, *optional*, defaults to 1.0): EDM's standard deviation of the data; only read for `"edm"`.
    """

    prediction_type: str
    sigma_data: float = 1.0

    def of(self, clean: torch.Tensor, noise: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """
        The prediction that is right for clean frames and noise.

        Args:
            clean, noise (`torch.Tensor` of one shape): `x` and `eps`.
            level (`NoiseLevel`): `alpha` and `sigma` of what the network is shown.

        Returns:
            `torch.Tensor` of the same shape.
        """
        alpha, sigma = level
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "v_prediction":
            return alpha * noise - sigma * clean
        if self.prediction_type == "flow_prediction":
            return noise - clean
        if self.prediction_type == "edm":
            return sigma / self.sigma_data * clean - alpha * self.sigma_data * noise
        return clean

    def to_clean(self, prediction: torch.Tensor, noisy: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """
        The clean frames that a prediction amounts to.

        Args:
            prediction (`torch.Tensor`): What the network says.
            noisy (`torch.Tensor` of the same shape): What it was shown.
            level (`NoiseLevel`): `alpha` and `sigma` of that.

        Returns:
            `torch.Tensor` of the same shape, about `[-1, 1]`, not clamped.
        """
        alpha, sigma = level
        if self.prediction_type == "epsilon":
            return (noisy - sigma * prediction) / alpha
        if self.prediction_type == "v_prediction":
            return alpha * noisy - sigma * prediction
        if self.prediction_type == "flow_prediction":
            return noisy - sigma * prediction
        if self.prediction_type == "edm":
            return self.sigma_data * (self.sigma_data * alpha * noisy + sigma * prediction)
        return prediction

    def from_clean(self, clean: torch.Tensor, noisy: torch.Tensor, level: NoiseLevel) -> torch.Tensor:
        """The inverse of [`Objective.to_clean`] for the same noisy frames."""
        alpha, sigma = level
        if self.prediction_type == "epsilon":
            return (noisy - alpha * clean) / sigma
        if self.prediction_type == "v_prediction":
            return (alpha * noisy - clean) / sigma
        if self.prediction_type == "flow_prediction":
            return (noisy - clean) / sigma
        if self.prediction_type == "edm":
            return (clean / self.sigma_data - self.sigma_data * alpha * noisy) / sigma
        return clean

    def error_scale(self, level: NoiseLevel) -> float | torch.Tensor:
        """How many times the error of a prediction that of the clean frames is: `|d to_clean / d prediction|`."""
        alpha, sigma = level
        if self.prediction_type == "epsilon":
            return sigma / alpha
        if self.prediction_type == "edm":
            return sigma * self.sigma_data
        return 0 * sigma + 1 if self.prediction_type == "sample" else sigma


def objective_of(scheduler) -> Objective:
    """
    What one of Diffusers' schedulers takes a prediction for.

    Args:
        scheduler ([`SchedulerMixin`]): Of training or sampling.

    Returns:
        [`Objective`]

    Raises:
        ValueError: If it is for another kind of network.
    """
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("EDM") and config.get("prediction_type") == "epsilon":  # its own name for it
        return Objective("edm", config.sigma_data)
    is_flow = config.get("prediction_type") == "flow_prediction" and config.get("use_flow_sigmas")
    if name.startswith("FlowMatch") or is_flow:
        return Objective("flow_prediction")
    takes = inspect.signature(type(scheduler).__init__).parameters  # a config also keeps what others of its kind take
    if config.get("use_flow_sigmas") and "use_flow_sigmas" in takes:
        raise ValueError(
            f"{name} with use_flow_sigmas=True goes the way of flow matching, which needs prediction_type='flow_prediction', got"
            f" {config.get('prediction_type')!r}: leave use_flow_sigmas out."
        )
    if {"beta_schedule", "prediction_type"} <= takes.keys() and config.prediction_type in VARIANCE_PRESERVING:
        return Objective(config.prediction_type)
    raise ValueError(
        f"{name} with prediction_type={config.get('prediction_type')!r} is for another kind of network: the predictions known"
        f" here are {', '.join(PREDICTION_TYPES)}."
    )


def training_level(scheduler, timesteps: torch.Tensor) -> NoiseLevel:
    """
    How much signal and noise is in what the network is shown in training.

    Args:
        scheduler: Of training.
        timesteps (`torch.Tensor` of shape `(B,)`): What it is told, as [`draw_timesteps`] draws them.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: `alpha` and `sigma`, of shape `(B, 1, 1, 1, 1)`.
    """
    objective, timesteps = objective_of(scheduler), timesteps[:, None, None, None, None]
    if objective.prediction_type == "edm":
        return _edm_level((4 * timesteps).exp(), objective.sigma_data)
    if objective.prediction_type == "flow_prediction":
        sigma = timesteps / scheduler.config.num_train_timesteps
        return 1 - sigma, sigma
    # As Diffusers does it: they stay on the device, so that nothing is copied there in each step.
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.to(timesteps.device)
    alphas = scheduler.alphas_cumprod[timesteps.long()]
    return alphas.sqrt(), (1 - alphas).sqrt()


def sampling_level(scheduler, timestep: torch.Tensor) -> tuple[float, float]:
    """
    How much signal and noise is in what the network is shown at a timestep of sampling.

    Args:
        scheduler: One of Diffusers' noise schedulers whose timesteps are set.
        timestep (`torch.Tensor`): One of them.

    Returns:
        `tuple[float, float]`: `alpha` and `sigma`.
    """
    kind = objective_of(scheduler)
    index = getattr(scheduler, "step_index", None)
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is not None and kind.prediction_type not in VARIANCE_PRESERVING:
        sigma = float(sigmas[index if index is not None else 0])
        return _edm_level(sigma, kind.sigma_data) if kind.prediction_type == "edm" else (1 - sigma, sigma)
    # Some keep full signal under growing noise, and scale by alpha.
    if getattr(scheduler, "init_noise_sigma", 1.0) != 1.0:
        alpha = float(scheduler.scale_model_input(torch.ones(1), timestep))
        return alpha, max(1 - alpha**2, 0.0) ** 0.5
    if sigmas is not None:  # also where noise levels lie between the timesteps of the training
        ratio = float(sigmas[index if index is not None else 0])
        alpha = (1 + ratio**2) ** -0.5
        return alpha, ratio * alpha
    signal = float(scheduler.alphas_cumprod[int(timestep)])
    return signal**0.5, (1 - signal) ** 0.5


def starts_blind(scheduler, objective: Objective | None = None) -> bool:
    """
    Whether a network of noise is asked where next to nothing of the frames is left (at the end of cosine betas), so that its smallest
    error there is a large one in the frames that it amounts to.

    Args:
        scheduler ([`SchedulerMixin`]): Of training or sampling.
        objective ([`Objective`], *optional*): What the network predicts; by default what the scheduler takes it for.

    Returns:
        `bool`: `alpha / sigma < exp(-5.1)` at the last timestep, where Diffusers advises to begin later; 1000 linear betas end at
        `exp(-5.06)`.
    """
    if (objective or objective_of(scheduler)).prediction_type != "epsilon":
        return False
    return float(scheduler.alphas_cumprod[-1]) < 1 / (1 + math.exp(2 * 5.1))


def noise_positions(scheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """
    Where timesteps of training are between clean and noise, for tables: EDM's on a logarithmic scale, the others as they are.

    Args:
        scheduler: Of training.
        timesteps (`torch.Tensor` of shape `(B,)`): As [`draw_timesteps`] draws them.

    Returns:
        `torch.Tensor` of shape `(B,)`, integer, from 0 to `num_train_timesteps - 1`.
    """
    config = scheduler.config
    if objective_of(scheduler).prediction_type == "edm":
        low, high = (math.log(x) / 4 for x in (config.sigma_min, config.sigma_max))
        timesteps = (timesteps - low) / (high - low) * config.num_train_timesteps
    return timesteps.long().clamp(0, config.num_train_timesteps - 1)


def add_observed_noise(
    sample: torch.Tensor, is_observed: torch.Tensor, noise: torch.Tensor, share: float | torch.Tensor
) -> torch.Tensor:
    """
    Noise on the given frames of a window (cascaded diffusion, 2106.15282, section 4.2), so that a network, which is told how much there
    is, learns not to trust them to the last pixel, and what it makes of frames that it made itself does not drift.

    Args:
        sample (`torch.Tensor` of shape `(B, T, C, H, W)`): The window.
        is_observed (`torch.Tensor` of shape `(B, T)`): Which frames are given.
        noise (`torch.Tensor` of the shape of `sample`): N(0, 1).
        share (`float` or `torch.Tensor` of shape `(B,)`): How much of it, 0 to 1: `s` of `(1 - s^2)^(1/2) x + s eps`.

    Returns:
        `torch.Tensor` of the same shape.
    """
    share = share[:, None, None, None, None] if torch.is_tensor(share) else torch.tensor(float(share))
    share = share.to(sample)
    noisy = (1 - share**2).sqrt() * sample + share * noise
    return torch.where(is_observed[:, :, None, None, None], noisy, sample)


def _edm_level(ratio: float | torch.Tensor, sigma_data: float) -> NoiseLevel:
    """`c_in` and `c_in r` of EDM's noise level `r`."""
    scale = (ratio**2 + sigma_data**2) ** -0.5
    return scale, ratio * scale
