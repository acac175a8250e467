"""What a context encoder knows of the videos of a call, carried from window to window."""

from collections.abc import Iterable, Mapping

import torch

from mcvd_diffusers.frame_schedules import Window
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.models.context import ContextOutput

from .layouts import Layout, num_made, shows_beside


# Frames that a recurrent encoder reads at once, since it keeps maps of all of them until then.
MOST_READ = 64


def reads_before_past(encoder: torch.nn.Module | None, config: Mapping) -> bool:
    """
    Whether an encoder reads more given frames than a network does that it belongs to. A recurrent one beside a network of past, block
    and future reads a block's past only.

    Args:
        encoder (`torch.nn.Module`, *optional*): The encoder.
        config (`Mapping`): Of the network.

    Returns:
        `bool`: Whether.
    """
    return encoder is not None and (encoder.clip_frames is not None or shows_beside(config))


def read_up_to(window: Window, layout: Layout, clip_frames: int | None) -> int:
    """
    How far an encoder reads before a window: all frames before this position.

    A memory of clips reads what is finished. A recurrent encoder, which says what frames are to be expected, reads what lies
    before the first one that the network makes, though that one be thrown away.
    """
    if clip_frames is not None:
        return min(set(window.latent) - set(window.observed))
    return min(layout.positions_of(FrameRole.LATENT))


def check_order(windows: Iterable[tuple[Window, Layout]], given: Iterable[int], clip_frames: int | None) -> None:
    """
    Whether an encoder can read frames in the order of time, as these windows need it.

    Backwards from the first given frame windows may go, as long as the video's beginning is not there. A recurrent encoder must have
    read all frames before a window, or none.

    Args:
        windows (`Iterable` of pairs): Windows, and how they stand before the network, in the order in which they are made.
        given (`Iterable[int]`): Positions of the given frames.
        clip_frames (`int`, *optional*): Of the encoder.

    Raises:
        ValueError: If it cannot.
    """
    why = "`frame_schedule`: this pipeline's `context_encoder` reads frames in the order of time, and"
    way_out = "leave it out, or order them."
    known, num_known, furthest = set(given), 0, 0
    first = min(known, default=float("inf"))
    for window, layout in windows:
        end = read_up_to(window, layout, clip_frames)
        while num_known in known:
            num_known += 1
        if num_known and end < furthest:
            raise ValueError(f"{why} the windows go back: {way_out}")
        if clip_frames is None and num_known < end and first < end:
            raise ValueError(f"{why} some before frame {end} would be missing when that is made: {way_out}")
        furthest = max(furthest, end)
        known.update(window.latent)
        first = min(first, *window.latent)


def check_context_encoder(encoder: torch.nn.Module | None, unet: torch.nn.Module) -> None:
    """
    Whether a network and a context encoder were made for each other.

    Args:
        encoder (`torch.nn.Module`, *optional*): The encoder.
        unet (`torch.nn.Module`): The network.

    Raises:
        ValueError: If one needs another, or none.
    """
    needed, is_residual = tuple(getattr(unet, "context_widths", ())), bool(unet.config.get("residual", False))
    if encoder is None:
        if needed or is_residual:
            raise ValueError(
                "`context_encoder` must be given: this network was trained with one, which knows what lies before a window. Load both"
                " from their folder, by `MCVDPipeline.from_pretrained`."
            )
        return
    if not hasattr(encoder, "clip_frames"):
        raise ValueError(f"`context_encoder` must be a context encoder, got a {type(encoder).__name__}.")
    told = tuple(encoder.feature_channels)
    if told != needed or encoder.config.in_channels != unet.config.in_channels:
        raise ValueError(
            f"`context_encoder` reads {encoder.config.in_channels} channels and tells maps of {told}, and the network reads"
            f" {unet.config.in_channels} and is told {needed}: they were not trained together."
        )
    beside = shows_beside(unet.config)
    num_read = (
        unet.config.max_frames if beside else unet.config.get("num_past_frames", 0) + unet.config.get("num_frames", 0)
    )
    if encoder.clip_frames not in (None, num_read):
        raise ValueError(
            f"`context_encoder` reads clips of {encoder.clip_frames} frames, and those of this network have {num_read}: they were not"
            " trained together."
        )
    # A network that is shown frames beside its window compares the pixels of its maps with those of a memory.
    reduction = getattr(encoder, "size_multiple", None)
    if beside and reduction not in (None, unet.size_multiple):
        raise ValueError(
            f"`context_encoder` makes maps of frames by {reduction} smaller, and the network reads {unet.size_multiple}: they"
            " were not trained together."
        )
    if encoder.predicts_frames != is_residual:
        raise ValueError(
            f"`context_encoder` {'predicts' if encoder.predicts_frames else 'does not predict'} frames, and the network"
            f" {'makes what one did not' if is_residual else 'makes whole frames'} (`unet.config.residual` is {is_residual}): they"
            " were not trained together."
        )


class CarriedContext:
    """
    The state of a context encoder over the windows of a call. There is one for each call, so that no video sees another's.

    An encoder whose `clip_frames` is `None` reads every frame once, in the order of time; beside a network of past, block and future
    it begins anew with the past of each block, as in training. Any other reads clips of `clip_frames` frames. The last of them ends
    before the window; where more frames are given than that, earlier clips are read first, as far apart as windows are.

    Args:
        encoder (`torch.nn.Module`): The encoder.
        config: Of the network that is told what it knows.
        given (`Mapping[int, torch.Tensor]`): The given frames by position, each `(B, C, H, W)`.
    """

    def __init__(self, encoder: torch.nn.Module, config: Mapping, given: Mapping[int, torch.Tensor]) -> None:
        self._encoder, self._stride = encoder, num_made(config)
        self._num_predicted, self._num_past = config.get("num_frames", 1), config.get("num_past_frames")
        self._frames, self._state, self._end = dict(given), None, 0

    def add(self, positions: tuple[int, ...], block: torch.Tensor) -> None:
        """Frames are finished: `(B, n, C, H, W)` at their positions."""
        self._frames.update(zip(positions, block.unbind(dim=1)))

    def before(self, window: Window, layout: Layout, empty: torch.Tensor, most: int) -> ContextOutput:
        """
        What is known before a window, all finished frames before it having been read.

        Args:
            window ([`Window`]), layout ([`Layout`]): The window, and how it stands before the network.
            empty (`torch.Tensor` of shape `(B, 0, C, H, W)`): No frame of each video, on the device.
            most (`int`): Videos that go through the encoder together.

        Returns:
            [`ContextOutput`]: It. If nothing has been read, and the encoder knows nothing then, a mean of 0 where it predicts.
        """
        clip_frames = self._encoder.clip_frames
        end = read_up_to(window, layout, clip_frames)
        if clip_frames is None and self._num_past is not None:
            self._state, first_needed = None, end - self._num_past
            parts = [range(first_needed, end)]
        elif clip_frames is None:
            first_needed = end
            parts = [range(start, min(start + MOST_READ, end)) for start in range(self._end, end, MOST_READ)]
        else:
            first_needed = end - clip_frames
            ends = range(end, max(self._end, clip_frames - 1), -self._stride)
            parts = [range(last - clip_frames, last) for last in reversed(ends)]
        parts = [part for part in parts if all(position in self._frames for position in part)]
        context = None
        for part in parts:
            frames = torch.stack([self._frames[position] for position in part], dim=1)
            context = self._encode(frames.to(empty), most)
            self._end = part.stop
        if context is None:
            if self._state is None and clip_frames is None:
                return self._unknown(empty)
            context = self._encode(empty, most)
        # What later windows read begins no earlier than this.
        self._frames = {position: frame for position, frame in self._frames.items() if position >= first_needed}
        return context

    def _encode(self, frames: torch.Tensor, most: int) -> ContextOutput:
        frames, parts = frames.to(self._encoder.dtype), []
        for start in range(0, len(frames), most):
            rows = slice(start, start + most)
            state = None if self._state is None else tuple(x[rows] for x in self._state)
            parts.append(self._encoder(frames[rows], state, num_frames=self._num_predicted))
        context = ContextOutput.joined(parts)
        self._state = context.state
        return context

    def _unknown(self, empty: torch.Tensor) -> ContextOutput:
        """As in training without a past: what is left over is the frame, in the residual's scale."""
        if not self._encoder.predicts_frames:
            return ContextOutput()
        mean = empty.new_zeros(len(empty), self._num_predicted, *empty.shape[2:])
        return ContextOutput(mean=mean, scale=float(self._encoder.config.scale))
