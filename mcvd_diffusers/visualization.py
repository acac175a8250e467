"""Pictures of videos: animations that show truth and samples side by side, with the given frames marked."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageOps


GIVEN_COLOR, MADE_COLOR = (46, 160, 67), (214, 87, 27)  # border of a frame: green if given, orange if made
BORDER, GAP, LABEL_HEIGHT = 3, 6, 16  # pixels


def save_comparison_gif(
    path: str | Path,
    columns: dict[str, torch.Tensor],
    is_given: Sequence[bool],
    *,
    frame_height: int = 96,
    milliseconds: int = 200,
) -> None:
    """
    Write an animation: one row for each video, one column for each version of it.

    Args:
        path (`str` or `Path`): File to write, ending in `.gif` or `.webp`. Its folder is made.
        columns (`dict[str, torch.Tensor]`):
            Label -> videos `(B, T, C, H, W)` in `[0, 1]`, all of one shape. One channel is shown grey, three as RGB;
            of any other number the first is shown. A column labelled "truth" is marked as given throughout.
        is_given (`Sequence[bool]`): For each of the `T` frames, whether it was given (green border) or made (orange).
        frame_height (`int`, *optional*, defaults to 96): Height on screen, in pixels; small frames are enlarged.
        milliseconds (`int`, *optional*, defaults to 200): Time that a frame is shown.

    Raises:
        ValueError: If the columns differ in shape, `is_given` does not have `T` entries, or the suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"`path` must end in .gif or .webp, got {path.name!r}.")
    (num_videos, num_frames), scale, (cell_width, cell_height) = _layout(columns, is_given, frame_height)
    size = (GAP + len(columns) * (cell_width + GAP), LABEL_HEIGHT + GAP + num_videos * (cell_height + GAP))
    pictures = []
    for t in range(num_frames):
        canvas = Image.new("RGB", size, "white")
        for column, (label, videos) in enumerate(columns.items()):
            left = GAP + column * (cell_width + GAP)
            ImageDraw.Draw(canvas).text((left, 3), label, fill="black")
            for row in range(num_videos):
                top = LABEL_HEIGHT + GAP + row * (cell_height + GAP)
                canvas.paste(_cell(videos[row, t], scale, is_given[t] or label == "truth"), (left, top))
        pictures.append(canvas)

    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def contact_sheet(
    columns: dict[str, torch.Tensor], is_given: Sequence[bool], *, frame_height: int = 48
) -> Image.Image:
    """
    A still picture: for each video, one line of frames for each version of it, time running to the right.

    Args:
        columns (`dict[str, torch.Tensor]`): As in [`save_comparison_gif`].
        is_given (`Sequence[bool]`): As in [`save_comparison_gif`].
        frame_height (`int`, *optional*, defaults to 48): Height on screen, in pixels.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: As in [`save_comparison_gif`].
    """
    (num_videos, num_frames), scale, (cell_width, cell_height) = _layout(columns, is_given, frame_height)
    label_width = 8 * max(len(label) for label in columns)
    block_height = len(columns) * cell_height + GAP
    canvas = Image.new("RGB", (label_width + num_frames * cell_width, num_videos * block_height), "white")
    for row in range(num_videos):
        for line, (label, videos) in enumerate(columns.items()):
            top = row * block_height + line * cell_height
            ImageDraw.Draw(canvas).text((2, top + cell_height // 2 - 6), label, fill="black")
            for t in range(num_frames):
                cell = _cell(videos[row, t], scale, is_given[t] or label == "truth")
                canvas.paste(cell, (label_width + t * cell_width, top))
    return canvas


def _layout(
    columns: dict[str, torch.Tensor], is_given: Sequence[bool], frame_height: int
) -> tuple[tuple[int, int], int, tuple[int, int]]:
    """((videos, frames), factor by which frames are enlarged, (width, height) of a frame with its border)."""
    shapes = {tuple(video.shape) for video in columns.values()}
    if len(shapes) != 1 or len(next(iter(shapes))) != 5:
        raise ValueError(f"`columns` must hold videos of one shape (B, T, C, H, W), got {sorted(shapes)}.")
    num_videos, num_frames, _, height, width = shapes.pop()
    if len(is_given) != num_frames:
        raise ValueError(f"`is_given` must have {num_frames} entries, one for each frame, got {len(is_given)}.")
    scale = max(1, round(frame_height / height))
    return (num_videos, num_frames), scale, (width * scale + 2 * BORDER, height * scale + 2 * BORDER)


def _cell(frame: torch.Tensor, scale: int, is_given: bool) -> Image.Image:
    """A frame (C, H, W) in [0, 1], enlarged, with its border."""
    frame = frame if frame.shape[0] == 3 else frame[:1].expand(3, -1, -1)
    pixels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
    picture = Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    return ImageOps.expand(picture, BORDER, GIVEN_COLOR if is_given else MADE_COLOR)
