"""Where the videos of a command go, in which form, and what was lost on the way."""

import argparse
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .printing import integer_from, number_in, number_of


if TYPE_CHECKING:
    import numpy as np
    import torch

ARRAY_SUFFIXES = (".npy", ".npz")
DEFAULT_RATE = 10.0  # frames per second, where no clip says it
MOST_VALUES = 2**31  # of a picture or video that is put together in memory: two gigabytes

OUTPUT_HELP = """\
what --output may be:
  x.mp4            H.264, for every player; a little is lost, and how much is measured and printed.
                   --lossless loses nothing: VLC, mpv and FFmpeg play it, most browsers do not
  x.gif            exact for grey frames; of colours 256 a frame, and the loss is printed
  x.png, x.webp    one animated picture, lossless
  folder/          a png for each frame, lossless; of several videos a folder each
  x.npy, x.npz     all digits: float32 (videos, frames, channels, height, width), in [0, 1] or the model's units;
                   read again with --axes NTCHW. An npz also has is_given: which frames were given

Pictures have 8 bits a value; of frames with other than 1 or 3 channels they show the first. Several videos stand
beside each other in one picture. Given frames come with those that are made, unless --only_new. What exists is
never overwritten.
"""


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what is written."""
    group = parser.add_argument_group("what is written")
    group.add_argument("--output", required=True, metavar="OUT", help="a file or folder: see below")
    group.add_argument("--only_new", action="store_true", help="leave given frames out")
    group.add_argument(
        "--frames_per_second",
        type=number_in(0.01, 1000),
        metavar="N",
        help=f"default: those of the clip, or {DEFAULT_RATE:g}",
    )
    group.add_argument(
        "--scale", type=integer_from(1), metavar="N", help="enlarge each pixel of pictures, to look at (default: 1)"
    )
    group.add_argument("--lossless", action="store_true", help="mp4: lose nothing")


@dataclass(frozen=True)
class Output:
    """Where videos go, and in which form."""

    path: Path
    shown: str  # as it was named
    kind: str  # "folder", or the suffix
    scale: int
    is_lossless: bool
    frames_per_second: float | None  # None: the clip's, or the default

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Output":
        """Read and checked before any work."""
        from mcvd_diffusers.data.video_writing import WRITTEN_SUFFIXES, check_written_suffix

        text = arguments.output
        path = Path(os.path.expanduser(text)).absolute()
        if path.name.lower() in (*ARRAY_SUFFIXES, *WRITTEN_SUFFIXES):
            raise ValueError(f"--output must have a name before the suffix, got {text}.")
        kind = "folder" if text.endswith(("/", "\\")) or not path.suffix or path.is_dir() else path.suffix.lower()
        if kind not in ("folder", *ARRAY_SUFFIXES, *WRITTEN_SUFFIXES):
            known = ", ".join([*WRITTEN_SUFFIXES, *ARRAY_SUFFIXES])
            raise ValueError(f"--output must end in one of {known}, or in / for a folder of png files, got {text}.")
        useless = {
            "--lossless": arguments.lossless and kind != ".mp4",
            "--scale": arguments.scale is not None and kind in ARRAY_SUFFIXES,
            "--frames_per_second": arguments.frames_per_second is not None and kind in ("folder", *ARRAY_SUFFIXES),
        }
        for name, is_useless in useless.items():
            if is_useless:
                reason = "is for mp4: choose .mp4, or leave it out (png, webp and arrays lose nothing)"
                reason = reason if name == "--lossless" else "means nothing for it: leave it out"
                raise ValueError(f"--output {text}: {name} {reason}.")
        output = cls(path, text, kind, arguments.scale or 1, arguments.lossless, arguments.frames_per_second)
        if kind in WRITTEN_SUFFIXES:
            check_written_suffix(path)
        return output

    def check_place(self, inputs: Iterable[str]) -> None:
        """Refuses a place where nothing can be written, where something is, or inside of what is read."""
        from mcvd_diffusers.atomic import check_new_file, check_new_folder, check_writable

        for folder in (Path(os.path.expanduser(path)) for path in inputs):
            if folder.is_dir() and self.path.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"--output {self.shown} lies in {folder}, which is read: name another place.")
        try:
            if self.kind == "folder":
                check_new_folder(self.path)
                check_writable(self.path)
            else:
                check_new_file(self.path)
        except OSError as error:
            raise type(error)(f"--output {self.shown}: {error.strerror or error}") from error

    def check_size(self, num_videos: int, num_frames: int, frame_shape: tuple[int, int, int]) -> None:
        """Refuses what does not fit the form, before any of it is made. `frame_shape` is that of one frame, (C, H, W)."""
        from mcvd_diffusers.data.video_writing import check_written_size
        from mcvd_diffusers.visualization import side_by_side_size

        if self.kind in ARRAY_SUFFIXES:
            return
        is_folder = self.kind == "folder"
        height, width = side_by_side_size(1 if is_folder else num_videos, *frame_shape[1:], scale=self.scale)
        ways_out = "a smaller --scale, fewer videos or frames, or an array (.npy), which holds any size"
        if num_frames * height * width * (3 if frame_shape[0] == 3 else 1) > MOST_VALUES:
            raise ValueError(
                f"--output {self.shown}: {num_frames:,} frames of {height:,} x {width:,} pixels are more than is put together in"
                f" memory: choose {ways_out}."
            )
        if not is_folder:
            try:
                check_written_size(self.path, height, width)
            except ValueError as error:
                raise ValueError(f"--output {self.shown}: {error} Choose {ways_out}.") from error

    def write(
        self, frames: "torch.Tensor", is_given: list[bool], normalizer, clip_rate: float | None
    ) -> list[tuple[str, str]]:
        """Writes videos `(N, T, C, H, W)` in the user's units; says where they are, what they are and what was lost."""
        try:
            return self._written(frames, is_given, normalizer, self.frames_per_second or clip_rate or DEFAULT_RATE)
        except OSError as error:
            raise type(error)(f"--output {self.shown} cannot be written: {error.strerror or error}") from error

    def _written(self, frames: "torch.Tensor", is_given: list[bool], normalizer, rate: float) -> list[tuple[str, str]]:
        from mcvd_diffusers.data.video_writing import written_rate

        num_videos, num_frames, num_channels, height, width = frames.shape
        parts = f" ({sum(is_given)} given, {num_frames - sum(is_given)} made)" if any(is_given) else ""
        described = f"{number_of(num_frames, 'frame')}{parts} of {height} x {width}"
        if self.kind in ARRAY_SUFFIXES:
            self._write_array(frames.numpy(), is_given)
            units = "in [0, 1]" if normalizer.is_unit else f"in the model's units ({normalizer})"
            shape = " x ".join(map(str, frames.shape))
            return [
                ("written", f"{self.shown}: {number_of(num_videos, 'video')}, {described}"),
                ("values", f"float32, {shape} (videos, frames, channels, height, width), {units}"),
                ("loss", "none"),
            ]

        pictures = normalizer.to_display(frames)  # (N, T, C, H, W) in [0, 1]
        notes = []
        if num_channels not in (1, 3):
            notes.append(f"channel 0 of {num_channels}: an array (.npy) holds all")
        if not normalizer.is_unit:
            notes.append(f"black and white are the ends of the model's range ({normalizer})")
        if frames.isnan().any():
            notes.append("missing values (NaN) are black: an array (.npy) keeps them")
        if self.scale > 1:
            notes.append(f"each pixel {self.scale} x {self.scale}")
        if self.kind == "folder":
            loss = self._write_folder(pictures)
            form = "png" + (f", folders 0000 to {num_videos - 1:04}" if num_videos > 1 else "")
        else:
            form = f"{written_rate(self.path, rate):.4g} frames per second"
            if num_videos > 1:
                form += f", {num_videos} videos beside each other"
            loss, canvas = self._write_file(pictures, rate)
            if self.kind == ".mp4" and not self.is_lossless and (canvas[0] % 2 or canvas[1] % 2):
                notes.append("one row or column more, since H.264 wants even sizes")
        lines = [("written", f"{self.shown}: {described}, {form}")]
        return lines + ([("shown", "; ".join(notes))] if notes else []) + [("loss", self._describe_loss(loss))]

    def _write_array(self, frames: "np.ndarray", is_given: list[bool]) -> None:
        import numpy as np

        from mcvd_diffusers.atomic import new_file

        with new_file(self.path) as partial:
            if self.kind == ".npy":
                np.save(partial, frames)
            else:
                np.savez_compressed(partial, video=frames, is_given=np.array(is_given))

    def _write_folder(self, pictures: "torch.Tensor") -> float:
        """The loss in decibels."""
        from mcvd_diffusers.atomic import new_folder
        from mcvd_diffusers.data.video_writing import find_loss, write_png_folder
        from mcvd_diffusers.visualization import side_by_side

        losses = []
        with new_folder(self.path) as folder:
            for number, video in enumerate(pictures):
                place = folder if len(pictures) == 1 else folder / f"{number:04}"
                frames, _ = side_by_side(video[None], scale=self.scale)
                write_png_folder(place, frames)
                losses.append(find_loss(place, frames))
        return min(losses)

    def _write_file(self, pictures: "torch.Tensor", rate: float) -> tuple[float | None, tuple[int, int]]:
        """The loss in decibels, `None` if what was written cannot be read, and height and width of the picture."""
        from mcvd_diffusers.atomic import new_file
        from mcvd_diffusers.data.video_writing import find_loss, write_video
        from mcvd_diffusers.visualization import side_by_side

        frames, is_video = side_by_side(pictures, scale=self.scale)
        with new_file(self.path) as partial:
            write_video(partial, frames, frames_per_second=rate, is_lossless=self.is_lossless)
            try:
                loss = find_loss(partial, frames, frames_per_second=rate, is_counted=is_video)
            except (ValueError, OSError):  # no reason to throw away what may have taken hours
                loss = None
        return loss, frames.shape[-2:]

    def _describe_loss(self, loss: float | None) -> str:
        if loss is None:
            return "not known: the file could not be read back frame by frame. Look at it before you rely on it"
        if math.isinf(loss):
            return "none beyond the 8 bits of a picture: read back, every value is the same"
        more = (
            "a gif has 256 colours a frame; .png and .webp keep all" if self.kind == ".gif" else "--lossless keeps all"
        )
        return f"PSNR {loss:.2f} dB, of the file read back against what was made, at 8 bits ({more})"
