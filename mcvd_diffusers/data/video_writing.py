"""Videos as files for players and people: written, and read back to see what a file has lost.

| path ends in | what is written | what is lost |
| --- | --- | --- |
| `.mp4` | H.264 that every player knows | a little: 4:2:0, constant quality; odd sizes get one more row or column |
| `.mp4`, `is_lossless` | H.264 of RGB: VLC, mpv, FFmpeg play it, most browsers do not | nothing |
| `.gif` | a palette for each frame, 20 milliseconds a frame at least | nothing up to 256 colours a frame, as greys have |
| `.png`, `.webp` | one animated picture | nothing |
| nothing of these | by [`write_png_folder`]: a folder of png files, `000.png` and following | nothing |

Shapes: T frames, C channels (1 grey, 3 RGB), H height, W width. Values are uint8.
"""

import math
from fractions import Fraction
from os import PathLike
from pathlib import Path

import numpy as np
from PIL import GifImagePlugin, Image, ImageSequence, PngImagePlugin

from .frame_folders import read_image
from .video_files import VideoFile


WRITTEN_SUFFIXES = (".mp4", ".gif", ".png", ".webp")
# The longest side that a form can hold, in pixels.
MOST_PIXELS = {".mp4": 16384, ".gif": 65535, ".png": 2**31 - 1, ".webp": 16383}

# Constant rate factor of x264: 0 is lossless, 23 its default. Digits stay within a few grey levels of the original.
MP4_QUALITY = 10
MOST_GIF_COLORS = 256
MIN_GIF_DURATION = 20  # milliseconds; what is shorter most players show for 100


def check_written_size(path: str | PathLike, height: int, width: int) -> None:
    """
    Refuse frames that the form of a file cannot hold, before there is a video.

    Args:
        path (`str` or `os.PathLike`): The file.
        height (`int`): Height of the frames, in pixels.
        width (`int`): Width.

    Raises:
        `ValueError`: If one of them is more than the form can hold.
    """
    most = MOST_PIXELS[Path(path).suffix.lower()]
    if max(height, width) > most:
        raise ValueError(
            f"Frames of {height:,} x {width:,} pixels do not fit {Path(path).name}: {Path(path).suffix} holds {most:,} a side."
        )


def written_rate(path: str | PathLike, frames_per_second: float) -> float:
    """
    The rate that a file gets, whose form may know whole milliseconds only, or hundredths of a second.

    Args:
        path (`str` or `os.PathLike`): The file.
        frames_per_second (`float`): The rate that is wanted.

    Returns:
        `float`: The rate that [`write_video`] writes, in frames per second.
    """
    if Path(path).suffix.lower() == ".mp4":
        return float(_mp4_rate(frames_per_second))
    return 1000 / _milliseconds(Path(path), frames_per_second)


def _milliseconds(path: Path, frames_per_second: float) -> int:
    """For how long a frame is shown."""
    exact = 1000 / frames_per_second
    if path.suffix.lower() == ".gif":
        return max(MIN_GIF_DURATION, round(exact / 10) * 10)
    return max(1, round(exact))


def _mp4_rate(frames_per_second: float | Fraction) -> Fraction:
    return Fraction(frames_per_second).limit_denominator(10**4)


def check_written_suffix(path: str | PathLike) -> None:
    """
    Refuse a file that [`write_video`] could not write, before there is a video.

    Args:
        path (`str` or `os.PathLike`): The file.

    Raises:
        `ValueError`: If its suffix is none of `WRITTEN_SUFFIXES`.
        `ImportError`: If a package is missing that writes it; the message names the extra that brings it.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in WRITTEN_SUFFIXES:
        raise ValueError(f"`path` must end in {', '.join(WRITTEN_SUFFIXES)}, got {Path(path).name!r}.")
    if suffix == ".mp4":
        try:
            import av  # noqa: F401
        except ImportError as error:
            raise ImportError(
                'Writing mp4 needs PyAV, which is not installed: `pip install "mcvd-diffusers[video]"`. Gif, webp and png are'
                " written without it."
            ) from error


def write_video(
    path: str | PathLike, frames: np.ndarray, *, frames_per_second: float = 10, is_lossless: bool = False
) -> None:
    """
    Writes a video in the form that its path asks for: see the table above.

    Args:
        path (`str` or `os.PathLike`): The file.
        frames (`np.ndarray` of shape `(T, C, H, W)`, uint8): One channel for grey, three for RGB.
        frames_per_second (`float`, *optional*, defaults to 10): How fast it is shown.
        is_lossless (`bool`, *optional*, defaults to `False`): For mp4: whether nothing may be lost. The other forms ask nobody.

    Raises:
        `ValueError`: If the frames have another form, or the suffix is unknown.
        `ImportError`: If a package is missing.
        `OSError`: If it can not be written.
    """
    path = Path(path)
    check_written_suffix(path)
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or 0 in frames.shape:
        got = f"{frames.dtype} {frames.shape}" if isinstance(frames, np.ndarray) else type(frames).__name__
        raise ValueError(f"`frames` must be an array (T, C, H, W) of uint8, got {got}.")
    if frames.shape[1] not in (1, 3):
        raise ValueError(f"`frames` must have 1 channel (grey) or 3 (RGB), got {frames.shape[1]}.")
    check_written_size(path, *frames.shape[-2:])
    milliseconds = _milliseconds(path, frames_per_second)
    match path.suffix.lower():
        case ".mp4":
            write_mp4(path, frames, frames_per_second=frames_per_second, is_lossless=is_lossless)
        case ".gif":
            write_gif(path, frames, milliseconds=milliseconds)
        case ".png":
            # Pillow joins frames that are equal, and digits may stand still: not those that blend in different ways, which
            # for opaque pictures look the same.
            first, *others = _pictures(frames)
            blend = [number % 2 for number in range(len(frames))]
            animation = {
                "duration": milliseconds,
                "loop": 0,
                "blend": blend,
                "disposal": [PngImagePlugin.Disposal.OP_NONE] * len(blend),
            }
            first.save(path, save_all=True, append_images=others, **animation)
        case ".webp":
            first, *others = (picture.convert("RGB") for picture in _pictures(frames))
            first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, lossless=True)


def write_png_folder(folder: Path, frames: np.ndarray) -> None:
    """
    Writes a folder of png files.

    Args:
        folder (`Path`): The folder: an empty one, or a new one in one that exists.
        frames (`np.ndarray` of shape `(T, C, H, W)`, uint8): The frames.
    """
    folder.mkdir(exist_ok=True)
    digits = max(3, len(str(len(frames) - 1)))
    for number, picture in enumerate(_pictures(frames)):
        picture.save(folder / f"{number:0{digits}}.png")


def write_gif(file: Path, frames: np.ndarray, *, milliseconds: float = 100) -> None:
    """
    Writes a gif that holds each of the frames, with a palette for each if they are colours.

    Args:
        file (`Path`): The file.
        frames (`np.ndarray` of shape `(T, C, H, W)`, uint8): The frames.
        milliseconds (`float`, *optional*, defaults to 100): Time that a frame is shown, in whole hundredths of a second.
    """
    # Image.save leaves out frames that equal the one before, and digits may stand still: put together by hand.
    pictures = [_with_palette(picture) for picture in _pictures(frames)]
    header, _ = GifImagePlugin.getheader(pictures[0], info={"loop": 0})
    duration = max(MIN_GIF_DURATION, round(milliseconds / 10) * 10)
    has_palettes = {"include_color_table": True} if frames.shape[1] == 3 else {}
    with file.open("wb") as stream:
        stream.writelines(header)
        for picture in pictures:
            stream.writelines(GifImagePlugin.getdata(picture, duration=duration, **has_palettes))
        stream.write(b";")


def write_mp4(
    file: Path,
    frames: np.ndarray,
    *,
    frames_per_second: float | Fraction = 10,
    quality: int = MP4_QUALITY,
    is_lossless: bool = False,
) -> None:
    """
    Writes an mp4, H.264. The same frames give the same bytes.

    Args:
        file (`Path`): The file.
        frames (`np.ndarray` of shape `(T, C, H, W)`, uint8):
            The frames. If height or width are odd, the last row or column is written twice, unless `is_lossless`.
        frames_per_second (`float` or `Fraction`, *optional*, defaults to 10): How fast it is shown.
        quality (`int`, *optional*, defaults to 10): Constant rate factor of x264; lower is better.
        is_lossless (`bool`, *optional*, defaults to `False`): Whether values are kept: as RGB, which fewer players know.

    Raises:
        `OSError`: If it can not be written.
    """
    import av

    height, width = frames.shape[-2:]
    if not is_lossless:  # colours are stored for 2 x 2 pixels
        frames = np.pad(frames, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
    codec, pixels = ("libx264rgb", "rgb24") if is_lossless else ("libx264", "yuv420p")
    # The same frames, the same bytes: those depend on the number of threads and, with x264's macroblock tree, now and
    # then on where its buffers lie.
    options = {"qp": "0"} if is_lossless else {"crf": str(quality)}
    options["x264-params"] = "threads=1:mbtree=0"
    rate = _mp4_rate(frames_per_second)
    try:
        with av.open(str(file), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options)
            stream.height, stream.width = frames.shape[-2:]
            stream.pix_fmt = pixels
            for frame in frames:
                colours = np.broadcast_to(frame, (3, *frame.shape[1:])).transpose(1, 2, 0)  # (H, W, 3)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(colours), format="rgb24")))
            container.mux(stream.encode())
    except (av.FFmpegError, LookupError) as error:  # the latter: an FFmpeg without x264
        raise OSError(f"{file.name} can not be written: {error}") from error


def read_back(path: str | PathLike, *, frames_per_second: float = 10) -> np.ndarray:
    """
    Reads what [`write_video`] or [`write_png_folder`] has written.

    Args:
        path (`str` or `os.PathLike`): The file or folder.
        frames_per_second (`float`, *optional*, defaults to 10): As it was written: a webp stores equal frames as one that is shown longer.

    Returns:
        `np.ndarray` of shape `(T, C, H, W)`, uint8: The frames; grey ones may come as three equal channels.

    Raises:
        `OSError` or `ValueError`: If it can not be read.
    """
    path = Path(path)
    if path.is_dir():
        return np.stack([np.moveaxis(read_image(file, file), -1, 0) for file in sorted(path.glob("*.png"))])
    if path.suffix.lower() in (".mp4", ".gif"):
        video = VideoFile(path, path.name)
        return video.read(range(video.info().num_frames))
    frames = []
    with Image.open(path) as animation:
        for picture in ImageSequence.Iterator(animation):
            pixels = np.moveaxis(np.asarray(picture.convert("RGB")), -1, 0)
            times = round(picture.info.get("duration", 0) / _milliseconds(path, frames_per_second))
            frames += [pixels] * (max(1, times) if path.suffix.lower() == ".webp" else 1)
    return np.stack(frames)


def find_loss(
    path: str | PathLike, frames: np.ndarray, *, frames_per_second: float = 10, is_counted: np.ndarray | None = None
) -> float:
    """
    What a file has lost of the frames that were written to it.

    Args:
        path (`str` or `os.PathLike`): What was written.
        frames (`np.ndarray` of shape `(T, C, H, W)`, uint8): What was to be written.
        frames_per_second (`float`, *optional*, defaults to 10): As it was written.
        is_counted (`np.ndarray` of shape `(H, W)`, bool, *optional*): Pixels that count; all by default.

    Returns:
        `float`: PSNR in decibels, 255 the peak, of the mean squared error over all frames; infinite if nothing was lost.

    Raises:
        `OSError`: If the file does not hold as many frames.
    """
    found = read_back(path, frames_per_second=frames_per_second)
    if Path(path).suffix.lower() == ".webp" and len(found) == 1:  # all were equal, so that it is a still picture
        found = found.repeat(len(frames), axis=0)
    if len(found) != len(frames):
        raise OSError(f"{path} was written with {len(frames)} frames, and {len(found)} can be read back.")
    found, total = found[..., : frames.shape[-2], : frames.shape[-1]], 0.0
    for one, other in zip(found, frames, strict=True):  # one at a time: long videos are large
        errors = np.square(one.astype(np.float64) - other)  # (C, H, W)
        total += errors.mean() if is_counted is None else errors[..., is_counted].mean()
    mean = total / len(frames)
    return math.inf if mean == 0 else 10 * math.log10(255**2 / mean)


def _pictures(frames: np.ndarray) -> list[Image.Image]:
    """Frames as Pillow's, grey or RGB."""
    if frames.shape[1] == 1:
        return [Image.fromarray(frame[0]) for frame in frames]
    return [Image.fromarray(np.ascontiguousarray(np.moveaxis(frame, 0, -1))) for frame in frames]


def _with_palette(picture: Image.Image) -> Image.Image:
    """A picture of 256 colours at most: its own where it has no more, else the nearest of a palette for it."""
    if picture.mode == "L":
        return picture
    pixels = np.asarray(picture)  # (H, W, 3)
    colors, numbers = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    if len(colors) > MOST_GIF_COLORS:
        return picture.quantize(MOST_GIF_COLORS, dither=Image.Dither.NONE)
    exact = Image.fromarray(numbers.reshape(pixels.shape[:2]).astype(np.uint8)).convert("L")
    exact.putpalette(colors.tobytes())  # which makes it a picture of mode P
    return exact
