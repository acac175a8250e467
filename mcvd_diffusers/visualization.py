"""Pictures of videos, truth and samples side by side, with the given frames marked; of data sets; of frame plans."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mcvd_diffusers.data.video_writing import check_written_suffix, write_mp4
from mcvd_diffusers.frame_plans import FramePlan


GIVEN_COLOR, MADE_COLOR = (46, 160, 67), (214, 87, 27)  # border of a frame: green if given, orange if made
BORDER, GAP, LABEL_HEIGHT = 3, 6, 16  # pixels
LINE = 2  # pixels between videos that are shown beside each other
MAX_ROW = 8  # of these; more of them make a square
MISSING_COLOR = (255, 0, 255)  # of values that are NaN: magenta, which no scale of greys has
FRAME_COLOR = (130, 150, 180)  # of the line around a frame, which may be as white as the paper
MIN_SHEET_WIDTH = 480  # pixels, so that names are not cut for small frames
# Of a frame in a plan: given, made before, read now, made now, made later.
PLAN_COLORS = {
    "given": (176, 222, 187),
    "already made": (245, 211, 187),
    "observed": (24, 84, 166),
    "latent": MADE_COLOR,
    "to come": (240, 240, 240),
}
PLAN_ROW_HEIGHT, PLAN_LABEL_WIDTH, MAX_PLAN_CELL = 14, 92, 20  # pixels
MAX_PLAN_PIXELS = 50_000_000


def save_comparison_gif(
    path: str | Path,
    columns: dict[str, torch.Tensor],
    is_given: Sequence[bool],
    *,
    frame_height: int = 96,
    milliseconds: int = 200,
    label_size: int = 10,
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
        label_size (`int`, *optional*, defaults to 10): Height of the letters over the columns, in pixels.

    Raises:
        ValueError: If the columns differ in shape, `is_given` does not have `T` entries, or the suffix is another.
    """
    path = Path(path)
    if path.suffix.lower() not in (".gif", ".webp"):
        raise ValueError(f"`path` must end in .gif or .webp, got {path.name!r}.")
    pictures = _comparison(columns, is_given, frame_height, label_size)
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=milliseconds, loop=0)


def save_comparison_mp4(
    path: str | Path,
    columns: dict[str, torch.Tensor],
    is_given: Sequence[bool],
    *,
    frame_height: int = 96,
    milliseconds: int = 200,
) -> None:
    """
    Write the animation of [`save_comparison_gif`] as a video, H.264, which players can stop and go through.

    Args:
        path (`str` or `Path`): File to write, ending in `.mp4`. Its folder is made.
        columns, is_given, frame_height, milliseconds: As in [`save_comparison_gif`].

    Raises:
        ImportError: Without PyAV.
        ValueError: As in [`save_comparison_gif`].
    """
    path = Path(path)
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"`path` must end in .mp4, got {path.name!r}.")
    check_written_suffix(path)
    pictures = _comparison(columns, is_given, frame_height)
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = np.stack([np.moveaxis(np.asarray(picture), -1, 0) for picture in pictures])  # (T, 3, H, W)
    write_mp4(path, frames, frames_per_second=Fraction(1000, milliseconds), quality=18)


def _comparison(
    columns: dict[str, torch.Tensor], is_given: Sequence[bool], frame_height: int, label_size: int = 10
) -> list[Image.Image]:
    """The pictures of a comparison, one for each point in time."""
    font, label_height = ImageFont.load_default(label_size), LABEL_HEIGHT + label_size - 10
    (num_videos, num_frames), scale, (cell_width, cell_height) = _layout(columns, is_given, frame_height)
    size = (GAP + len(columns) * (cell_width + GAP), label_height + GAP + num_videos * (cell_height + GAP))
    pictures = []
    for t in range(num_frames):
        canvas = Image.new("RGB", size, "white")
        for column, (label, videos) in enumerate(columns.items()):
            left = GAP + column * (cell_width + GAP)
            ImageDraw.Draw(canvas).text((left, 3), label, fill="black", font=font)
            for row in range(num_videos):
                top = label_height + GAP + row * (cell_height + GAP)
                canvas.paste(_cell(videos[row, t], scale, is_given[t] or label == "truth"), (left, top))
        pictures.append(canvas)
    return pictures


def side_by_side(videos: torch.Tensor, *, scale: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """
    Videos as one video to be shown: beside each other, with white lines between them, the first at the top left.

    Args:
        videos (`torch.Tensor` of shape `(N, T, C, H, W)`, in `[0, 1]`):
            The videos. Of 3 channels all are shown, of any other number the first.
        scale (`int`, *optional*, defaults to 1): By how much each pixel is enlarged; those of the videos stay as they are.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: The video, `(T, C, height, width)`, uint8, `C` 1 or 3; and for each of its pixels,
        `(height, width)`, bool, whether it is of a video.
    """
    num_videos, num_frames = videos.shape[:2]
    _, num_columns = _grid(num_videos)
    size = side_by_side_size(num_videos, *videos.shape[-2:], scale=scale)
    videos = videos if videos.shape[2] == 3 else videos[:, :, :1]
    pixels = videos.float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
    pixels = pixels.repeat(scale, axis=3).repeat(scale, axis=4)  # (N, T, C, H, W), enlarged
    height, width = (side + LINE for side in pixels.shape[3:])
    canvas = np.full((num_frames, pixels.shape[2], *size), 255, np.uint8)
    is_video = np.zeros(size, bool)
    for number, video in enumerate(pixels):
        row, column = divmod(number, num_columns)
        place = slice(row * height, (row + 1) * height - LINE), slice(column * width, (column + 1) * width - LINE)
        canvas[:, :, *place] = video
        is_video[place] = True
    return canvas, is_video


def side_by_side_size(num_videos: int, height: int, width: int, *, scale: int = 1) -> tuple[int, int]:
    """
    Height and width of what [`side_by_side`] makes, before there is anything to show.

    Args:
        num_videos (`int`): Videos.
        height (`int`): Height of each, in pixels.
        width (`int`): Width.
        scale (`int`, *optional*, defaults to 1): By how much each pixel is enlarged.

    Returns:
        `tuple[int, int]`: In pixels.
    """
    num_rows, num_columns = _grid(num_videos)
    return num_rows * (height * scale + LINE) - LINE, num_columns * (width * scale + LINE) - LINE


def _grid(num_videos: int) -> tuple[int, int]:
    """Rows and columns of videos beside each other."""
    num_columns = num_videos if num_videos <= MAX_ROW else math.ceil(math.sqrt(num_videos))
    return -(-num_videos // num_columns), num_columns


def contact_sheet(
    columns: dict[str, torch.Tensor], is_given: Sequence[bool], *, frame_height: int = 48, label_size: int = 10
) -> Image.Image:
    """
    A still picture: for each video, one line of frames for each version of it, time running to the right.

    Args:
        columns (`dict[str, torch.Tensor]`): As in [`save_comparison_gif`].
        is_given (`Sequence[bool]`): As in [`save_comparison_gif`].
        frame_height (`int`, *optional*, defaults to 48): Height on screen, in pixels.
        label_size (`int`, *optional*, defaults to 10): Height of the letters before the lines, in pixels.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: As in [`save_comparison_gif`].
    """
    (num_videos, num_frames), scale, (cell_width, cell_height) = _layout(columns, is_given, frame_height)
    font, label_width = ImageFont.load_default(label_size), 8 * max(map(len, columns)) * label_size // 10
    block_height = len(columns) * cell_height + GAP
    canvas = Image.new("RGB", (label_width + num_frames * cell_width, num_videos * block_height), "white")
    for row in range(num_videos):
        for line, (label, videos) in enumerate(columns.items()):
            top = row * block_height + line * cell_height
            ImageDraw.Draw(canvas).text(
                (2, top + cell_height // 2 - label_size * 6 // 10), label, fill="black", font=font
            )
            for t in range(num_frames):
                cell = _cell(videos[row, t], scale, is_given[t] or label == "truth")
                canvas.paste(cell, (label_width + t * cell_width, top))
    return canvas


def data_sheet(
    rows: Iterable[tuple[str, np.ndarray, Sequence[float], Sequence[float]]],
    *,
    caption: str = "",
    frame_height: int = 96,
) -> Image.Image:
    """
    A still picture of what is in a data set: a line of frames for each video, under its label.

    Frames are enlarged by whole factors, or made smaller, to about `frame_height` and not much wider than twice that.

    Args:
        rows (`Iterable[tuple[str, np.ndarray, Sequence[float], Sequence[float]]]`):
            For each video its label, frames `(T, C, H, W)` in any units, and the values of each channel that are shown
            black and white (or as the darkest and the full colour). Three channels are shown as RGB; of any other number
            the first is shown, grey. NaN is magenta. Videos may differ in everything.
        caption (`str`, *optional*): A line below all.
        frame_height (`int`, *optional*, defaults to 96): Height on screen, in pixels.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: If there are no rows, or frames have another number of axes.
    """
    font = ImageFont.load_default()
    lines = []
    for label, frames, low, high in rows:
        if frames.ndim != 4 or 0 in frames.shape:
            raise ValueError(f"`rows` must hold frames (T, C, H, W), got an array of shape {frames.shape}.")
        pictures = [_scaled_picture(frame, low, high, frame_height) for frame in frames]
        width = sum(picture.width + GAP for picture in pictures) + GAP
        lines.append((label, pictures, width))
    if not lines:
        raise ValueError("`rows` must hold at least one video, got none.")
    width = max(MIN_SHEET_WIDTH, *(line_width for _, _, line_width in lines))
    line_heights = [LABEL_HEIGHT + pictures[0].height + GAP for _, pictures, _ in lines]
    canvas = Image.new("RGB", (width, GAP + sum(line_heights) + (LABEL_HEIGHT if caption else 0)), "white")
    draw = ImageDraw.Draw(canvas)
    top = GAP
    for (label, pictures, _), line_height in zip(lines, line_heights):
        draw.text((GAP, top), _fitting(label, width - 2 * GAP, font), fill="black", font=font)
        left = GAP
        for picture in pictures:
            canvas.paste(picture, (left, top + LABEL_HEIGHT))
            corner = left + picture.width, top + LABEL_HEIGHT + picture.height
            draw.rectangle((left - 1, top + LABEL_HEIGHT - 1, *corner), outline=FRAME_COLOR)
            left += picture.width + GAP
        top += line_height
    draw.text((GAP, top), _fitting(caption, width - 2 * GAP, font), fill="black", font=font)
    return canvas


def draw_plan(plan: FramePlan, *, width: int = 1500) -> Image.Image:
    """
    A still picture of a plan: a line for each window in its order, time running to the right.

    Args:
        plan (`FramePlan`): The plan. The number of a window and its wave stand before its line.
        width (`int`, *optional*, defaults to 1500):
            Pixels for all frames together, about. A frame has at least one pixel, so a very long video is wider.

    Returns:
        `PIL.Image.Image`: The picture, RGB.

    Raises:
        ValueError: If `width` is not positive, or the picture would have more than 50 million pixels.
    """
    if width < 1:
        raise ValueError(f"`width` must be at least 1 pixel, got {width}.")
    font = ImageFont.load_default()
    cell = max(1, min(MAX_PLAN_CELL, width // plan.num_frames))
    gap = int(cell > 3)  # a line of paper between frames that are wide enough
    top = 2 * (LABEL_HEIGHT + GAP)  # legend and axis
    bottom = top + PLAN_ROW_HEIGHT * max(1, len(plan.windows))
    right = PLAN_LABEL_WIDTH + cell * plan.num_frames
    size = max(MIN_SHEET_WIDTH, right + 3 * GAP), bottom + GAP
    if size[0] * size[1] > MAX_PLAN_PIXELS:
        raise ValueError(
            f"`plan` has {plan.num_frames:,} frames and {len(plan.windows):,} windows, whose picture would have {size[0]:,} x"
            f" {size[1]:,} pixels, more than {MAX_PLAN_PIXELS:,}. Plan a shorter video, or larger windows."
        )
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)

    left = PLAN_LABEL_WIDTH
    for label, color in PLAN_COLORS.items():
        draw.rectangle((left, GAP, left + 11, GAP + 11), fill=color)
        draw.text((left + 16, GAP), label, fill="black", font=font)
        left += 16 + round(font.getlength(label)) + 3 * GAP

    # Numbers of frames at round distances, so that they do not touch.
    distance = next(n for k in range(10) for n in (10**k, 2 * 10**k, 5 * 10**k) if n * cell >= 32 or n == 5 * 10**9)
    ticks = range(0, plan.num_frames, distance)
    for position in ticks:
        middle = PLAN_LABEL_WIDTH + position * cell + (cell - gap) / 2
        draw.text((middle, top - 6), str(position), fill="black", font=font, anchor="ms")
        draw.line((middle, top - 4, middle, top - 2), fill="black")

    wave_of = {number: wave for wave, numbers in enumerate(plan.waves()) for number in numbers}
    draw.text((GAP, top - 6), "window", fill="black", font=font, anchor="ls")
    draw.text((PLAN_LABEL_WIDTH - 2 * GAP, top - 6), "wave", fill="black", font=font, anchor="rs")
    colors = [PLAN_COLORS["to come"]] * plan.num_frames
    for position in plan.given:
        colors[position] = PLAN_COLORS["given"]
    for number, window in enumerate(plan.windows):
        y = top + number * PLAN_ROW_HEIGHT
        draw.text((GAP + 30, y + 1), str(number), fill="black", font=font, anchor="ra")
        draw.text((PLAN_LABEL_WIDTH - 2 * GAP, y + 1), str(wave_of[number]), fill="black", font=font, anchor="ra")
        now = colors.copy()
        for name, positions in (("observed", window.observed), ("latent", window.latent)):
            for position in positions:
                now[position] = PLAN_COLORS[name]
        for position, color in enumerate(now):
            x = PLAN_LABEL_WIDTH + position * cell
            draw.rectangle((x, y, x + cell - gap - 1, y + PLAN_ROW_HEIGHT - 3), fill=color)
        for position in window.latent:
            colors[position] = PLAN_COLORS["already made"]
    return canvas


def _scaled_picture(frame: np.ndarray, low: Sequence[float], high: Sequence[float], height: int) -> Image.Image:
    """A frame (C, H, W) in the units of its source, in colours and at a size to look at."""
    num_shown = 3 if len(frame) == 3 else 1
    values = frame[:num_shown].astype(np.float64)  # which holds 1e300
    low, high = (np.asarray(x[:num_shown], np.float64)[:, None, None] for x in (low, high))
    is_missing = np.isnan(values).any(axis=0)  # (H, W)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):  # all values may be the same, or none be known
        shares = np.nan_to_num((values - low) / (high - low), nan=0.5, posinf=1.0, neginf=0.0)
    pixels = (shares.clip(0, 1) * 255).round().astype(np.uint8)
    pixels = np.moveaxis(np.broadcast_to(pixels, (3, *pixels.shape[1:])), 0, -1).copy()  # (H, W, 3)
    pixels[is_missing] = MISSING_COLOR
    picture = Image.fromarray(pixels)
    factor = min(height / picture.height, 2 * height / picture.width)
    if factor >= 1:
        factor = round(factor)
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    size = [max(1, round(side * factor)) for side in picture.size]
    return picture.resize(size, Image.Resampling.BOX)


def _fitting(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """A label that the font has, cut in the middle if it is too long: names tell by their beginning and their end."""
    text = "".join(character if character.isprintable() and character.isascii() else "?" for character in text)
    kept = text
    while font.getlength(kept) > width and len(text) > 2:
        half = (len(text) - 1) // 2
        text = text[:half] + text[-half:]
        kept = text[:half] + "..." + text[-half:]
    return kept


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
