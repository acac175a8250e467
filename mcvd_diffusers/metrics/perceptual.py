"""LPIPS (Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018), prepared
as MCVD's `video_gen` prepares it.

Shapes: B videos, T frames, C channels, H height, W width.
"""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from .feature_networks import check_videos
from .frame_quality import quantise


LPIPS_SIZE = 128


class LPIPS:
    """
    Perceptual distance of single frames.

    Frames become 8-bit images by `floor(255 x)`, are resized to 128 x 128 by Pillow (bilinear, which is antialiased
    where it shrinks, and rounds to 8 bits), and go to the network as RGB in `[-1, 1]`; grey is repeated. All of that is
    MCVD's, and all of it changes the number.

    Args:
        network (`Callable`):
            Takes two tensors of shape `(T, 3, 128, 128)` in `[-1, 1]`, prediction and target, and gives a distance for
            each of the T frames, as `lpips.LPIPS` does.
        name (`str`): Stands beside every number, and says which network.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the network is.
    """

    def __init__(
        self,
        network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        *,
        name: str,
        device: str | torch.device = "cpu",
    ):
        self.network = network
        self.name = name
        self.device = torch.device(device)

    @classmethod
    def from_package(cls, *, device: str | torch.device = "cpu") -> "LPIPS":
        """
        Load MCVD's network from the package `lpips`: AlexNet, version 0.1.

        Args:
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

        Returns:
            [`LPIPS`]: The distance.

        Raises:
            ImportError: If the package is not installed, or a torchvision that does not fit torch.
            OSError: If AlexNet is not here and can not be downloaded.
        """
        try:
            import lpips
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision of another build than torch
            raise ImportError(
                f"LPIPS needs the package lpips, which can not be imported ({error}): `pip install"
                ' "mcvd-diffusers[lpips]"`. It brings torchvision, whose build must fit torch, and downloads AlexNet'
                " (244 MB) when it is first used. Or leave LPIPS out."
            ) from error
        try:
            # Its constructor draws weights from the global stream before it loads the trained ones.
            with torch.random.fork_rng(devices=[]):
                network = lpips.LPIPS(net="alex", version="0.1", verbose=False)
        except OSError as error:
            raise OSError(
                f"AlexNet, which LPIPS stands on, is not on this machine and could not be downloaded ({error}). Connect"
                " once, or put torchvision's AlexNet weights into torch.hub's folder `checkpoints`, or leave LPIPS out."
            ) from error
        network = network.to(device).eval()
        return cls(network, name=f"lpips alex v0.1, 8 bit, {LPIPS_SIZE}x{LPIPS_SIZE}", device=device)

    def distances(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Distance of each predicted frame from the true one.

        MCVD's number for a video is the mean over its frames, and for several predictions of one video the smallest of
        these means.

        Args:
            prediction (`torch.Tensor` of shape `(B, T, C, H, W)`, floating point in `[0, 1]`): Predicted frames.
            target (`torch.Tensor` of the same shape, in `[0, 1]`): True frames.

        Returns:
            `torch.Tensor` of shape `(B, T)`, float64, on the CPU: The distances, 0 for the same image.

        Raises:
            ValueError: If the shapes differ, C is not 1 or 3, or these are no videos in `[0, 1]`.
            RuntimeError: If a distance is not finite.
        """
        check_videos("prediction", prediction)
        check_videos("target", target)
        if prediction.shape != target.shape:
            raise ValueError(
                "`prediction` and `target` must have the same shape, got"
                f" {tuple(prediction.shape)} and {tuple(target.shape)}."
            )
        batch_size, num_frames, num_channels, _, _ = prediction.shape
        if num_channels not in (1, 3):
            raise ValueError(
                f"`prediction` must be grey or RGB (1 or 3 channels), got {num_channels} channels. Choose channels that"
                " make a picture, or leave LPIPS out of the protocol."
            )
        distances = torch.empty(batch_size, num_frames, dtype=torch.float64)
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            for video, pair in enumerate(zip(prediction, target)):
                images = [_prepare(frames).to(self.device) for frames in pair]  # 2 of (T, 3, 128, 128)
                distances[video] = self.network(*images).double().cpu().reshape(num_frames)
        if not torch.isfinite(distances).all():
            raise RuntimeError(f"{self.name} gave NaN or infinite distances, so there is no number to tell.")
        return distances

    def embed(self, frame: torch.Tensor) -> torch.Tensor:
        """
        A vector for one frame: the squared distance between those of two frames is their LPIPS.

        Each frame then goes through the network once, however many it is compared with: for adaptive frame schedules, as
        `frame_embedding` of the pipeline.

        Args:
            frame (`torch.Tensor` of shape `(C, H, W)`, floating point in `[0, 1]`): A frame.

        Returns:
            `torch.Tensor` of shape `(D,)`, float32, on the CPU.

        Raises:
            AttributeError: If the network is not that of the package `lpips`.
        """
        network = self.network
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            image = network.scaling_layer(_prepare(frame[None]).to(self.device))
            parts = []
            for features, layer in zip(network.net.forward(image), network.lins):
                features = features / (features.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
                weight = layer.model[-1].weight.clamp(min=0).sqrt()  # (1, C, 1, 1); the package keeps them positive
                parts.append((features * weight / features[0, 0].numel() ** 0.5).flatten())
        return torch.cat(parts).cpu()


def _prepare(frames: torch.Tensor) -> torch.Tensor:
    """Frames `(T, C, H, W)` in `[0, 1]` as the network reads them: `(T, 3, 128, 128)` in `[-1, 1]`."""
    pixels = quantise(frames.detach().cpu(), "floor_8bit").mul(255).round().byte().movedim(1, -1)  # (T, H, W, C)
    images = []
    for frame in pixels.numpy():
        image = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else np.ascontiguousarray(frame)).convert("RGB")
        images.append(np.asarray(image.resize((LPIPS_SIZE, LPIPS_SIZE), Image.Resampling.BILINEAR)))
    resized = torch.from_numpy(np.stack(images)).movedim(-1, 1)  # (T, 3, 128, 128)
    return resized.float() / 255 * 2 - 1
