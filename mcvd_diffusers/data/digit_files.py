"""Moving digits as files, in any form that videos come in: for trying things out, and for tests.

| format | what is written | read with |
| --- | --- | --- |
| `"npy"` | `digits.npy`, one array `(N, T, C, H, W)` | `--axes NTCHW` |
| `"npz"` | `digits.npz`, one array `(T, C, H, W)` for each video | `--axes TCHW` |
| `"png"` | a folder of frames for each video | |
| `"gif"` | a file for each video | `--in_channels 1` |
| `"mp4"` | a file for each video, H.264, which is lossy | `--in_channels 1` |
| `"hdf5"` | `digits.hdf5`, one data set `(T, C, H, W)` for each video | `--axes TCHW` |
| `"zarr"` | `digits.zarr`, one array (video, time, channel, y, x) | |

Values are 8 bits deep. The same clips give the same bytes as long as the packages that write them stay the same: of codecs
(PNG's zlib, H.264, Zarr's zstd) another version may pack the same frames, or for H.264 other ones, in another way.

Shapes: N videos, T frames, C = 1 channel, H height, W width.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import islice
from os import PathLike
from pathlib import Path

import numpy as np

from mcvd_diffusers.atomic import check_new_folder, new_folder

from .inspection import DEFAULT_NUM_FRAMES, Inspection, TrainingFlags, flags_of_clip_length, suggest_clips
from .moving_digits import MovingDigits
from .reader import VideoInfo
from .sources import open_reader
from .video_writing import write_gif, write_mp4, write_png_folder


DIGIT_FORMATS = ("npy", "npz", "png", "gif", "mp4", "hdf5", "zarr")

# Format -> flags of train_mcvd.py that its files need.
FLAGS = {
    "npy": ["--axes", "NTCHW"],
    "npz": ["--axes", "TCHW"],
    "png": [],
    "gif": ["--in_channels", "1"],  # palettes are colours
    "mp4": ["--in_channels", "1"],
    "hdf5": ["--axes", "TCHW"],
    "zarr": [],
}
# Format -> packages that write it, and the extra that brings them.
PACKAGES = {"mp4": (["av"], "video"), "hdf5": (["h5py"], "hdf5"), "zarr": (["xarray", "zarr"], "fields")}

# Videos of a Zarr store that are held in memory at once.
ZARR_BATCH = 32


def write_moving_digits(
    clips: MovingDigits,
    output: str | PathLike,
    *,
    format: str = "npy",
    progress: Callable[[Iterable, str], Iterable] | None = None,
) -> list[str]:
    """
    Writes clips of moving digits into a new folder, one video each.

    The folder appears when it is complete, or not at all.

    Args:
        clips ([`MovingDigits`]):
            What is written: its items in order, in the epoch that is set.
        output (`str` or `os.PathLike`):
            The folder; must not exist, or be empty.
        format (`str`, *optional*, defaults to `"npy"`):
            One of `DIGIT_FORMATS`: see the table above.
        progress (`Callable[[Iterable, str], Iterable]`, *optional*):
            Wraps what is gone through, under a label, to show how far it is.

    Returns:
        `list[str]`: The flags of `train_mcvd.py` that read the folder.

    Raises:
        `ValueError`: If the format is unknown, or an mp4 would have frames of odd height or width.
        `FileExistsError`: If `output` holds something, or is a file.
        `OSError`: If it can not be written.
        `ImportError`: If a package is missing that writes the format; the message names the extra that brings it.
    """
    if format not in DIGIT_FORMATS:
        raise ValueError(f"`format` must be one of {', '.join(DIGIT_FORMATS)} but got {format!r}.")
    height, width = clips.canvas_size
    if format == "mp4" and (height % 2 or width % 2):
        raise ValueError(
            f"`format` mp4 stores colour for 2 x 2 pixels, so height and width must be even, but got {height} x {width}. "
            "Choose another size or format."
        )
    packages, extra = PACKAGES.get(format, ([], ""))
    for package in packages:
        try:
            import_module(package)
        except ImportError as error:
            raise ImportError(
                f'Writing {format} needs {package}, which is not installed: `pip install "mcvd-diffusers[{extra}]"`.'
            ) from error
    output = Path(output).expanduser().absolute()
    check_new_folder(output)

    numbers = range(len(clips))
    numbers = numbers if progress is None else progress(numbers, f"writing {format}")
    videos = (_as_bytes(clips, number) for number in numbers)
    # Names that sort as the numbers do, in whatever way they are sorted.
    digits = max(4, len(str(len(clips) - 1)))
    names = (f"{number:0{digits}}" for number in range(len(clips)))
    with new_folder(output) as folder:
        match format:
            case "npy":
                _write_npy(folder / "digits.npy", videos, (len(clips), clips.num_frames, 1, height, width))
            case "npz":
                _write_npz(folder / "digits.npz", zip(names, videos))
            case "hdf5":
                _write_hdf5(folder / "digits.hdf5", zip(names, videos))
            case "zarr":
                _write_zarr(folder / "digits.zarr", videos)
            case "png":
                for name, video in zip(names, videos):
                    write_png_folder(folder / name, video)
            case "gif":
                for name, video in zip(names, videos):
                    write_gif(folder / f"{name}.gif", video)
            case "mp4":
                for name, video in zip(names, videos):
                    write_mp4(folder / f"{name}.mp4", video)
    return ["--train_data_dir", str(output), *FLAGS[format]]


def flags_for_clips(clips: MovingDigits, flags: list[str]) -> TrainingFlags:
    """
    The flags of `train_mcvd.py` that fit the number and the length of what was written.

    Args:
        clips ([`MovingDigits`]): What was written.
        flags (`list[str]`): What [`write_moving_digits`] gave.

    Returns:
        [`TrainingFlags`]: More flags, and notes.
    """
    axes = flags[flags.index("--axes") + 1] if "--axes" in flags else None
    reader = open_reader(flags[1], axes=axes)
    num_frames = min(DEFAULT_NUM_FRAMES, clips.num_frames)
    info = VideoInfo(clips.num_frames, 1, *clips.canvas_size, "uint8")
    names = [reader.name(video) for video in range(len(reader))]
    found = Inspection(type(reader).__name__, "", num_frames, 1, None, names, [info] * len(names))
    more, notes = [], []
    if not suggest_clips(reader, found, [True] * len(names), more, notes):
        return TrainingFlags(None, notes)
    return TrainingFlags([*more, *flags_of_clip_length(num_frames, notes)], notes)


def _as_bytes(clips: MovingDigits, number: int) -> np.ndarray:
    """A clip `(T, 1, H, W)`, in `[-1, 1]`, as uint8."""
    return clips[number]["video"].add(1).mul(127.5).round().byte().numpy()


# ----------------------------------------------------------------------------------------------------------------------
# Formats. Each video is `(T, 1, H, W)`, uint8.


def _write_npy(file: Path, videos: Iterable[np.ndarray], shape: tuple[int, ...]) -> None:
    with file.open("wb") as stream:
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(stream, header)
        for video in videos:
            stream.write(video.tobytes())


def _write_npz(file: Path, videos: Iterable[tuple[str, np.ndarray]]) -> None:
    # numpy's own `savez` wants all videos in memory.
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, video in videos:
            # Opened by its name alone, a member is dated 1980, not now.
            with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, video)


def _write_hdf5(file: Path, videos: Iterable[tuple[str, np.ndarray]]) -> None:
    import h5py

    with h5py.File(file, "w") as root:
        for name, video in videos:
            root.create_dataset(name, data=video, chunks=(1, *video.shape[1:]), compression="gzip")


def _write_zarr(store: Path, videos: Iterator[np.ndarray]) -> None:
    import xarray

    while batch := list(islice(videos, ZARR_BATCH)):
        array = xarray.DataArray(np.stack(batch), dims=("video", "time", "channel", "y", "x"))
        dataset = xarray.Dataset({"digits": array})
        if store.exists():
            dataset.to_zarr(store, append_dim="video", consolidated=False)
        else:
            encoding = {"digits": {"chunks": (1, *array.shape[1:])}}
            dataset.to_zarr(store, mode="w-", consolidated=False, encoding=encoding)
