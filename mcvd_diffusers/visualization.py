"""Pictures of videos: animations that show truth and samples side by side, with the given frames marked."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw


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
        ValueError: If the columns differ in shape, or `is_given` does not have `T` entries.
    """
    shapes = {tuple(video.shape) for video in columns.values()}
    if len(shapes) != 1:
        raise ValueError(f"`columns` must hold videos of one shape (B, T, C, H, W), got {sorted(shapes)}.")
    num_videos, num_frames, channels, height, width = shapes.pop()
    if len(is_given) != num_frames:
        raise ValueError(f"`is_given` must have {num_frames} entries, one for each frame, got {len(is_given)}.")
    scale = max(1, round(frame_height / height))
    cell = (width * scale + 2 * BORDER, height * scale + 2 * BORDER)
    size = (
        len(columns) * cell[0] + (len(columns) + 1) * GAP,
        LABEL_HEIGHT + num_videos * cell[1] + (num_videos + 1) * GAP,
    )

    pictures = []
    for t in range(num_frames):
        canvas = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(canvas)
        for column, (label, videos) in enumerate(columns.items()):
            left = GAP + column * (cell[0] + GAP)
            draw.text((left, 3), label, fill="black")
            for row in range(num_videos):
                top = LABEL_HEIGHT + GAP + row * (cell[1] + GAP)
                color = GIVEN_COLOR if is_given[t] or label == "truth" else MADE_COLOR
                draw.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), fill=color)
                frame = _to_image(videos[row, t]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
                canvas.paste(frame, (left + BORDER, top + BORDER))
        pictures.append(canvas)

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def save_contact_sheet(path: str | Path, columns: dict[str, torch.Tensor], is_given: Sequence[bool]) -> None:
    """
    Write a still picture: for each video, one line of frames for each version of it, time running to the right.

    Args:
        path (`str` or `Path`): File to write, such as a `.png`. Its folder is made.
        columns (`dict[str, torch.Tensor]`): As in [`save_comparison_gif`].
        is_given (`Sequence[bool]`): As in [`save_comparison_gif`].
    """
    first = next(iter(columns.values()))
    num_videos, num_frames, _, height, width = first.shape
    scale = max(1, round(48 / height))
    cell = (width * scale + 2 * BORDER, height * scale + 2 * BORDER)
    label_width = 8 * max(len(label) for label in columns)
    lines = num_videos * len(columns)
    canvas = Image.new("RGB", (label_width + num_frames * cell[0], lines * cell[1] + num_videos * GAP), "white")
    draw = ImageDraw.Draw(canvas)
    for row in range(num_videos):
        for line, (label, videos) in enumerate(columns.items()):
            top = (row * len(columns) + line) * cell[1] + row * GAP
            draw.text((2, top + cell[1] // 2 - 6), label, fill="black")
            for t in range(num_frames):
                left = label_width + t * cell[0]
                color = GIVEN_COLOR if is_given[t] or label == "truth" else MADE_COLOR
                draw.rectangle((left, top, left + cell[0] - 1, top + cell[1] - 1), fill=color)
                frame = _to_image(videos[row, t]).resize((width * scale, height * scale), Image.Resampling.NEAREST)
                canvas.paste(frame, (left + BORDER, top + BORDER))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path)


def _to_image(frame: torch.Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] -> RGB image."""
    frame = frame if frame.shape[0] == 3 else frame[:1].expand(3, -1, -1)
    pixels = (frame.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.movedim(0, -1).cpu().numpy())
