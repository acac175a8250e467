"""The user's units, and the range that networks work in: one map, its inverse, and what is done with missing values.

A network sees values of about `[-1, 1]`. [`FrameNormalizer`] brings frames there, channel by channel, by
`(x - center) / scale`, and back. It is measured or stated once, before training, saved in the pipeline's config, and
inverted at sampling, so that kelvin go in and kelvin come out.

| kind | -1 and 1 are | values come from |
| --- | --- | --- |
| `"unit"` | 0 and 1; uint8 is divided by 255 first, uint16 by 65535 | images |
| `"range"` | a stated lowest and highest value; beyond, values are clipped | physics, sensors |
| `"min_max"` | the lowest and highest value that were measured | anything bounded |
| `"mean_std"` | mean - std and mean + std as measured; the extremes lie further out | anything with tails |

Missing values (NaN) become `nan_fill`; on request one more channel says where they were (1 valid, -1 missing in at least
one channel). The network learns that channel like any other, and where it generates "missing", NaN comes out.

Shapes: T frames, C channels in the user's units, H height, W width.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Literal

import numpy as np
import torch


KINDS = ("unit", "range", "min_max", "mean_std")


@dataclass(frozen=True)
class FrameNormalizer:
    """
    Maps frames from the user's units to the network's range and back.

    Made by [`~FrameNormalizer.from_range`], [`measure_normalizer`] or, for images, `FrameNormalizer()`.

    Args:
        kind (`str`, *optional*, defaults to `"unit"`):
            How it was made: see the table above.
        low, high (`tuple[float, ...]`, *optional*, default to `(0.0,)` and `(1.0,)`):
            Lowest and highest value in the user's units: one for each channel, or one for all. Values beyond are
            clipped on both ways.
        center, scale (`tuple[float, ...]`, *optional*):
            The value that becomes 0, and the distance from it that becomes 1. By default the middle of `low` and
            `high`, and half their distance.
        nan_fill (`float` or `tuple[float, ...]`, *optional*):
            What missing values are replaced with, in the user's units: one for each channel, or one for all; clipped like
            any value. By default there must be none missing.
        has_mask_channel (`bool`, *optional*, defaults to `False`):
            Whether the network's last channel says which pixels are valid.

    Raises:
        `ValueError`: If the numbers make no map: not finite, of different lengths, an empty range, a mask of nothing.
    """

    kind: Literal["unit", "range", "min_max", "mean_std"] = "unit"
    low: tuple[float, ...] = (0.0,)
    high: tuple[float, ...] = (1.0,)
    center: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    nan_fill: float | tuple[float, ...] | None = None
    has_mask_channel: bool = False

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"`kind` must be one of {', '.join(KINDS)}, got {self.kind!r}.")
        if not isinstance(self.has_mask_channel, bool):
            raise ValueError(f"`has_mask_channel` must be true or false, got {self.has_mask_channel!r}.")
        for name in ("low", "high", "center", "scale"):
            numbers = getattr(self, name)
            if numbers is None and name in ("center", "scale"):
                numbers = [(a + b) / 2 if name == "center" else (b - a) / 2 for a, b in zip(self.low, self.high)]
            if not isinstance(numbers, (tuple, list)) or not numbers or not all(map(_is_finite, numbers)):
                raise ValueError(f"`{name}` must be finite numbers, one for each channel or one, got {numbers!r}.")
            object.__setattr__(self, name, tuple(map(float, numbers)))
        lengths = {name: len(getattr(self, name)) for name in ("low", "high", "center", "scale")}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"`low`, `high`, `center` and `scale` must be equally many, got {lengths}.")
        for channel, (low, high, center, scale) in enumerate(zip(self.low, self.high, self.center, self.scale)):
            if not low < high:
                raise ValueError(
                    f"`low` must be below `high` in every channel, got {low:g} and {high:g} in channel {channel}."
                    + (" Values that are all the same cannot be measured: state a range." if low == high else "")
                )
            if not low <= center <= high or not (high - low) * 1e-6 <= scale <= high - low:
                raise ValueError(
                    f"`center` must lie in, and `scale` be a part of, the range from {low:g} to {high:g}, got {center:g} and"
                    f" {scale:g} in channel {channel}."
                )
        if self.kind == "unit" and (self.low, self.high) != ((0.0,), (1.0,)):
            raise ValueError(f'`kind="unit"` is [0, 1], got {self.low} and {self.high}: use `from_range`.')
        if self.nan_fill is not None:
            fill = self.nan_fill if isinstance(self.nan_fill, (tuple, list)) else (self.nan_fill,)
            if not all(map(_is_finite, fill)) or (len(self.low) > 1 and len(fill) not in (1, len(self.low))):
                raise ValueError(
                    "`nan_fill` must be finite numbers in the units of the frames, one for each channel or one, got"
                    f" {self.nan_fill!r}."
                )
            object.__setattr__(self, "nan_fill", tuple(map(float, fill)))
            is_inside = (np.array(self.low) <= np.array(fill)) & (np.array(fill) <= np.array(self.high))
            if self.kind in ("unit", "range") and not is_inside.all():
                raise ValueError(
                    f"`nan_fill` must lie in the range, from {_shown(self.low)} to {_shown(self.high)}, since the network sees"
                    f" nothing beyond, got {_shown(self.nan_fill)}. A mask channel tells it from values that were measured."
                )
        if self.has_mask_channel and self.nan_fill is None:
            raise ValueError("`has_mask_channel` must go with a `nan_fill`, what missing values are replaced with.")

    @classmethod
    def from_range(
        cls,
        low: float | Sequence[float],
        high: float | Sequence[float],
        *,
        nan_fill: float | Sequence[float] | None = None,
        has_mask_channel: bool = False,
    ) -> "FrameNormalizer":
        """
        The map of a stated range.

        Args:
            low, high (`float` or `Sequence[float]`):
                The values that become -1 and 1: one for all channels, or one for each.
            nan_fill, has_mask_channel (*optional*): As in the class.

        Returns:
            [`FrameNormalizer`]: Of the kind `"range"`.

        Raises:
            `ValueError`: As in the class.
        """
        low, high = ([x] if isinstance(x, Real) else list(x) for x in (low, high))
        if len(low) == 1 or len(high) == 1:
            low, high = low * max(1, len(high) // len(low)), high * max(1, len(low) // len(high))
        return cls("range", tuple(low), tuple(high), nan_fill=nan_fill, has_mask_channel=has_mask_channel)

    @classmethod
    def from_config(cls, config: dict | None) -> "FrameNormalizer":
        """
        The map that a pipeline carries.

        Args:
            config (`dict` or `None`): What [`~FrameNormalizer.to_config`] gave.

        Returns:
            [`FrameNormalizer`]: `"unit"` for `None`.

        Raises:
            `ValueError`: If the config is no such thing.
        """
        if config is None:
            return cls()
        if not isinstance(config, dict) or set(config) - set(cls.__dataclass_fields__):
            raise ValueError(
                f"`normalization` must be the config of a FrameNormalizer, a dictionary with the keys"
                f" {', '.join(cls.__dataclass_fields__)}, got {config!r}."
            )
        return cls(**config)

    def to_config(self) -> dict | None:
        """
        What a pipeline's config keeps.

        Returns:
            `dict` or `None`: Plain numbers and strings; `None` for `"unit"` without `nan_fill`, which needs no saying.
        """
        if self == FrameNormalizer():
            return None
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

    def __str__(self) -> str:
        channels = [f"{low:g} to {high:g}" for low, high in zip(self.low, self.high)]
        if self.kind == "mean_std":
            parts = zip(channels, self.center, self.scale)
            channels = [f"{channel} (mean {center:g}, std {scale:g})" for channel, center, scale in parts]
        fill = "; ".join(f"{value:g}" for value in self.nan_fill or ())
        missing = f", missing ones filled with {fill}" if fill else ""
        return f"{self.kind}, {'; '.join(channels)}{missing}{', with a mask channel' * self.has_mask_channel}"

    @property
    def is_unit(self) -> bool:
        """Whether frames are images: floats in `[0, 1]`, or uint8."""
        return self.kind == "unit"

    @property
    def largest_value(self) -> float:
        """The largest absolute value that the network sees: 1, or more for `"mean_std"`."""
        if self.kind != "mean_std":
            return 1.0
        ends = zip(self.low, self.high, self.center, self.scale)
        return max(max(high - center, center - low) / scale for low, high, center, scale in ends)

    def num_channels(self, network_channels: int) -> int:
        """
        Channels of a frame in the user's units.

        Args:
            network_channels (`int`): Channels of a frame in the network.

        Returns:
            `int`: As many, less the mask.

        Raises:
            `ValueError`: If this map is for another number of channels.
        """
        num_channels = network_channels - self.has_mask_channel
        lengths = {len(self.low), len(self.nan_fill or (0,))}
        if num_channels < 1 or not lengths <= {1, num_channels}:
            raise ValueError(
                f"`normalization` is for {max(lengths)} channel(s){' and a mask' if self.has_mask_channel else ''}, but the"
                f" network's frames have {network_channels} in all."
            )
        return num_channels

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        """
        From the user's units to the network's range.

        Args:
            frames (`torch.Tensor` of shape `(..., C, H, W)`):
                Any real type. For `"unit"`, uint8, uint16 or floats in `[0, 1]`.

        Returns:
            `torch.Tensor` of shape `(..., C, H, W)`, or `(..., C + 1, H, W)` with a mask, float32.
        """
        values = frames.to(torch.float32)
        if self.is_unit and frames.dtype == torch.uint8:  # the hot path, in place on what is our own
            values = values.div_(127.5).sub_(1)  # to the last bit x / 255 * 2 - 1: the half only moves the exponent
            return _append(values, None) if self.has_mask_channel else values
        if self.is_unit and frames.dtype == torch.uint16:
            values = values.div_(65535)
        is_missing = values.isnan() if self.nan_fill is not None else None
        low, high, center, scale = self._columns(frames.device)
        if is_missing is not None:
            values = torch.where(is_missing, torch.tensor(self.nan_fill, device=values.device)[:, None, None], values)
        if self.kind == "mean_std":
            values = values.clamp(low, high).sub_(center).div_(scale)
        else:  # the ends are -1 and 1: to the last bit, if it is these that values are kept between
            values = (values - center).div_(scale).clamp_(-1, 1)
        return _append(values, is_missing) if self.has_mask_channel else values

    def decode(self, values: torch.Tensor) -> torch.Tensor:
        """
        From the network's range to the user's units.

        Args:
            values (`torch.Tensor` of shape `(..., C, H, W)`): What a network made, with the mask if there is one.

        Returns:
            `torch.Tensor` of shape `(..., C, H, W)`, without the mask, float32: In `[low, high]`; NaN where the mask says
            missing.
        """
        values = values.float()
        is_missing = None
        if self.has_mask_channel:
            values, is_missing = values[..., :-1, :, :], values[..., -1:, :, :] < 0
        low, high, center, scale = self._columns(values.device)
        frames = (values * scale + center).clamp(low, high)
        return frames if is_missing is None else torch.where(is_missing, torch.nan, frames)

    def find_other_units(self, frames: torch.Tensor) -> str | None:
        """
        Says whether frames seem to be in other units than the map is for.

        Args:
            frames (`torch.Tensor` of shape `(..., C, H, W)`): In whatever units.

        Returns:
            `str` or `None`: What is wrong, if most values of a channel lie outside of its range.
        """
        channels = frames.movedim(-3, 0).flatten(1)  # (C, N)
        for number, values in enumerate(channels):
            low, high = (ends[number if len(ends) > 1 else 0] for ends in (self.low, self.high))
            least, most = map(float, values.aminmax()) if values.numel() else (low, high)
            if low <= least and most <= high:
                continue  # nearly always, and cheap to see
            values = values[values.isfinite()] if values.is_floating_point() else values
            is_outside = (values < low) | (values > high)
            if values.numel() and float(is_outside.float().mean()) > 0.5:
                least, most = map(float, values.aminmax())
                return (
                    f"{float(is_outside.float().mean()):.0%} of the values of channel {number} lie outside of [{low:g},"
                    f" {high:g}], the range that was stated or measured: they go from {least:g} to {most:g}. Is it another"
                    " unit?"
                )
        return None

    def share_outside(self, frames: torch.Tensor) -> float:
        """
        How much of frames lies outside of the range, where values are clipped.

        Args:
            frames (`torch.Tensor` of shape `(..., C, H, W)`): In the user's units.

        Returns:
            `float`: The share of the values, NaN not counted, in `[0, 1]`.
        """
        low, high, _, _ = self._columns(frames.device)
        values = frames.to(torch.float32)
        is_outside = (values < low) | (values > high)
        return float(is_outside.float().mean()) if values.numel() else 0.0

    def to_display(self, frames: torch.Tensor) -> torch.Tensor:
        """
        From the user's units to `[0, 1]`, for pictures.

        Args:
            frames (`torch.Tensor` of shape `(..., C, H, W)`): In the user's units.

        Returns:
            `torch.Tensor` of the same shape, float32: 0 at `low` and where a value is missing, 1 at `high`.
        """
        low, high, _, _ = self._columns(frames.device)
        return ((frames.float() - low) / (high - low)).clamp(0, 1).nan_to_num(0.0)

    def _columns(self, device: torch.device) -> Iterable[torch.Tensor]:
        """`low`, `high`, `center`, `scale`, each `(C, 1, 1)` or `(1, 1, 1)`."""
        rows = (self.low, self.high, self.center, self.scale)
        return torch.tensor(rows, dtype=torch.float32, device=device)[:, :, None, None].unbind()


class ValueStatistics:
    """
    Lowest, highest, mean and standard deviation of each channel, and the share of missing values, of frames that are
    seen bit by bit. Sums are float64 and relative to the first value seen, so large offsets (kelvin) cost no digits.
    """

    def __init__(self) -> None:
        self.num_frames = 0
        self._low = self._high = self._shift = self._sum = self._squares = self._count = None
        self._num_missing = self._num_values = 0

    def update(self, frames: np.ndarray) -> None:
        """
        Take frames in.

        Args:
            frames (`np.ndarray` of shape `(T, C, H, W)`): Values in the user's units, NaN where missing.

        Raises:
            `ValueError`: If their channels are not those of the frames before.
        """
        values = np.moveaxis(np.asarray(frames, dtype=np.float64), 1, 0).reshape(frames.shape[1], -1)  # (C, T*H*W)
        is_valid = np.isfinite(values)
        if self._low is None:
            zeros = np.zeros(len(values))
            self._low, self._high = zeros + np.inf, zeros - np.inf
            self._sum, self._squares, self._count = zeros.copy(), zeros.copy(), zeros.copy()
            self._shift = np.array([row[ok][0] if ok.any() else 0.0 for row, ok in zip(values, is_valid)])
        if len(values) != len(self._low):
            raise ValueError(f"Frames must all have {len(self._low)} channels as the first, got {len(values)}.")
        self.num_frames += len(frames)
        self._num_missing += int(values.size - is_valid.sum())
        self._num_values += values.size
        self._low = np.minimum(self._low, np.where(is_valid, values, np.inf).min(axis=1))
        self._high = np.maximum(self._high, np.where(is_valid, values, -np.inf).max(axis=1))
        shifted = np.where(is_valid, values - self._shift[:, None], 0)
        self._count += is_valid.sum(axis=1)
        self._sum += shifted.sum(axis=1)
        self._squares += (shifted**2).sum(axis=1)

    @property
    def low(self) -> list[float]:
        """Lowest value of each channel."""
        return self._low.tolist()

    @property
    def high(self) -> list[float]:
        """Highest value of each channel."""
        return self._high.tolist()

    @property
    def mean(self) -> list[float]:
        """Mean of each channel."""
        return (self._shift + self._sum / np.maximum(self._count, 1)).tolist()

    @property
    def std(self) -> list[float]:
        """Standard deviation of each channel, of the whole population."""
        count = np.maximum(self._count, 1)
        return np.sqrt(np.maximum(self._squares / count - (self._sum / count) ** 2, 0)).tolist()

    @property
    def missing_share(self) -> float:
        """Share of the values that are missing, 0 to 1."""
        return self._num_missing / max(self._num_values, 1)


def measure_normalizer(
    clips: Iterable[np.ndarray],
    kind: Literal["min_max", "mean_std"],
    *,
    nan_fill: float | Sequence[float] | None = None,
    has_mask_channel: bool = False,
) -> FrameNormalizer:
    """
    Measure the map on frames.

    Args:
        clips (`Iterable[np.ndarray]`): Frames `(T, C, H, W)` in the user's units, such as of the training videos.
        kind (`str`): `"min_max"` or `"mean_std"`.
        nan_fill, has_mask_channel (*optional*): As in [`FrameNormalizer`].

    Returns:
        [`FrameNormalizer`]: The map, one row of numbers for each channel.

    Raises:
        `ValueError`: If there are no frames, a channel has no valid value or only one, or the kind is another.
    """
    if kind not in ("min_max", "mean_std"):
        raise ValueError(f'`kind` must be "min_max" or "mean_std" to be measured, got {kind!r}.')
    statistics = ValueStatistics()
    for clip in clips:
        statistics.update(clip)
    if not statistics.num_frames:
        raise ValueError("`clips` must hold frames to measure but holds none.")
    empty = [channel for channel, low in enumerate(statistics.low) if not math.isfinite(low)]
    if empty:
        raise ValueError(f"`clips` must have values in every channel, but channels {empty} have only missing ones.")
    spread = {} if kind == "min_max" else {"center": tuple(statistics.mean), "scale": tuple(statistics.std)}
    return FrameNormalizer(
        kind,
        tuple(statistics.low),
        tuple(statistics.high),
        **spread,
        nan_fill=nan_fill,
        has_mask_channel=has_mask_channel,
    )


def _shown(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _append(values: torch.Tensor, is_missing: torch.Tensor | None) -> torch.Tensor:
    """The mask as one more channel: -1 where a channel misses, 1 elsewhere."""
    mask = torch.ones_like(values[..., :1, :, :])
    if is_missing is not None:
        mask = torch.where(is_missing.any(dim=-3, keepdim=True), -1.0, mask)
    return torch.cat([values, mask], dim=-3)


def _is_finite(value) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
