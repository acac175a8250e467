"""A video that is Gaussian, whose best denoiser is a formula: what a method of sampling does with it is known in closed form.

`tests/reference/gaussian_oracle.json` holds the mean and standard deviation of what each method makes of given frames, and
`plan_oracle.json` what each frame schedule makes of a long video. Frames are single numbers.
"""

import json
from pathlib import Path

import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config

from mcvd_diffusers import FrameRole, MCVDPipeline, NoiseSequence


REFERENCE = Path(__file__).parent / "reference"
SAMPLING = json.loads((REFERENCE / "gaussian_oracle.json").read_text())["entries"]
PLANS = json.loads((REFERENCE / "plan_oracle.json").read_text())["rows"]


class GaussianVideoDenoiser(ModelMixin, ConfigMixin):
    """
    The exact denoiser of a video of single numbers with mean 0 and covariance `shared + (1 - shared) decay^|i - j|`,
    which predicts clean frames, or the noise: the expectation of LATENT frames given the noisy ones and the OBSERVED ones.
    """

    @register_to_config
    def __init__(
        self,
        decay: float = 0.9,
        shared: float = 0.0,
        max_frames: int = 8,
        in_channels: int = 1,
        sample_size: int = 1,
        has_frame_gaps: bool = True,
        drop_observed: float = 0.5,
        num_train_timesteps: int = 1000,
        prediction_type: str = "sample",
    ):
        super().__init__()
        self.alphas_cumprod = scheduler().alphas_cumprod
        self.unused = torch.nn.Parameter(torch.zeros(1))  # Diffusers asks a network for the type of its weights
        self.shapes, self.inverses = [], {}

    def forward(self, sample, timestep, roles, frame_indices=None, segment_ids=None, return_dict=True):
        self.shapes.append(tuple(sample.shape))
        frames = sample.flatten(2).double()  # (B, T, N): each pixel is a video of its own
        num_frames = sample.shape[1]
        positions = torch.arange(num_frames).expand_as(roles) if frame_indices is None else frame_indices
        signal = float(self.alphas_cumprod[int(timestep)])
        made = torch.zeros_like(frames)
        windows, which = torch.cat([roles, positions], dim=1).unique(dim=0, return_inverse=True)
        for number, window in enumerate(windows.tolist()):  # each is the same matrix for all its rows
            role, position = window[:num_frames], window[num_frames:]
            matrix, known, latent = self._matrix(tuple(role), tuple(position), signal)
            rows = (which == number).nonzero().flatten()
            filled = torch.einsum("ij,rjn->rin", matrix, frames[rows][:, torch.cat([latent, known])])
            made = made.index_put((rows[:, None], latent[None]), filled)
        if self.config.prediction_type == "epsilon":
            made = (frames - signal**0.5 * made) / (1 - signal) ** 0.5
        return (made.to(sample.dtype).reshape(sample.shape),)

    def _matrix(self, roles, positions, signal):
        """What LATENT frames are, as a linear function of the noisy ones and the observed ones."""
        key = roles, positions, signal
        if key not in self.inverses:
            role, where = torch.tensor(roles), torch.tensor(positions, dtype=torch.float64)
            known = (role == FrameRole.OBSERVED).nonzero().flatten()
            latent = (role == FrameRole.LATENT).nonzero().flatten()
            covariance = self.covariance(where)
            cross = covariance[latent][:, known] @ torch.linalg.inv(covariance[known][:, known])
            rest = covariance[latent][:, latent] - cross @ covariance[known][:, latent]
            noisy = signal * rest + (1 - signal) * torch.eye(len(latent), dtype=torch.float64)
            gain = signal**0.5 * rest @ torch.linalg.inv(noisy)
            shift = cross - signal**0.5 * gain @ cross
            self.inverses[key] = torch.cat([gain, shift], dim=1), known, latent
        return self.inverses[key]

    def covariance(self, positions: torch.Tensor) -> torch.Tensor:
        distances = (positions[:, None] - positions[None]).abs()
        return self.config.shared + (1 - self.config.shared) * self.config.decay**distances


class NoNoise(NoiseSequence):
    """Every draw is zero: since all is linear, a sampler then gives the mean of what it samples."""

    def __init__(self):
        super().__init__([])

    def draw(self, shape):
        return torch.zeros(shape)


def scheduler() -> DDPMScheduler:
    return DDPMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False, prediction_type="sample")


def gaussian_pipeline(**config) -> MCVDPipeline:
    """A pipeline whose frames are taken and returned as the numbers they are."""
    units = {"kind": "mean_std", "low": [-9.0], "high": [9.0], "center": [0.0], "scale": [1.0]}
    pipe = MCVDPipeline(GaussianVideoDenoiser(**config), scheduler(), normalization=units)
    pipe.set_progress_bar_config(disable=True)
    return pipe
