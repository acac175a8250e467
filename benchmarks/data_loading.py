"""How fast clips come out of each format, and what `ClipDataset` adds to its reader.

    python benchmarks/data_loading.py [--videos 64] [--frames 100] [--size 64] [--seconds 4] [--formats npy mp4 ...]

The same RGB videos are written in each format, into a temporary folder, and windows of 16 frames are read at random.

    disk            what the format takes, in 10^6 bytes
    reader          `reader.read` of 16 windows, whose clips are all kept, in clips/s
    batch adds      what `dataset[...]` of the same 16 clips takes beyond that, with `encoded=False`: microseconds a clip, and
                    share of the reader's time. `train_mcvd.py` loads so
    items add       the same for `default_collate` of 16 items, as in `DataLoader(dataset, batch_size=16)`
    encoded adds    the same for a batch with `encoded=True`, whose values become float32 in [-1, 1] at once
    0 and 2         `DataLoader` workers: clips/s of shuffled batches, `encoded=False`

Reader and data set take turns of a batch, so that what else the machine does hits them alike; overheads are medians of the
differences within a turn, speeds of the time of a turn. All files are in the page cache: this measures decoding, not disks.

Measured with `--seconds 2` on 2 shared CPU cores, torch 2.13 with one thread a process:

    format                            MB  reader       batch adds        items add     encoded adds       0      2
    npy, one array NTCHW            78.6  20,700     +3 us   +6 %    +54 us +115 %   +188 us +281 %  16,894  2,614
    npy, one array NTHWC            78.6   8,031     +6 us   +5 %    +57 us  +57 %   +267 us +224 %   8,279  3,237
    npy, one file a video           78.7  19,052     +3 us   +6 %    +69 us +104 %   +185 us +250 %  18,588  2,819
    npy, float32, one array NTCHW  314.6   7,505   +102 us  +76 %   +632 us +436 %   +662 us +436 %   4,602  1,227
    npz, one file a video           77.3  24,760     +1 us   +2 %    +61 us +115 %   +292 us +473 %  17,945  2,835
    HDF5, one array NTCHW           81.9   1,069    +30 us   +3 %   +130 us  +13 %   +210 us  +22 %   1,101  1,280
    HDF5 of the original MCVD       81.1     132   +350 us   +5 %   +479 us   +6 %   +702 us  +10 %     135    247
    mp4, PyAV                        1.1     193   +461 us   +9 %   +294 us   +6 %   -283 us   -5 %     161    282
    mp4, key frame every 8, PyAV     1.8     213    +93 us   +2 %   +254 us   +5 %   +131 us   +3 %     211    390
    mp4, torchcodec                  1.1     138   +217 us   +3 %   +367 us   +5 %   +307 us   +5 %     154    283
    gif                             30.1     105   +477 us   +5 %   +360 us   +4 %   +471 us   +5 %     108    193
    folders of png                  56.4     153   -170 us   -3 %   +421 us   +6 %   +694 us  +10 %     136    246
    Zarr                            78.7     332    -61 us   -2 %    +66 us   +2 %   +432 us  +13 %     276    616
    NetCDF                          81.9     187    -67 us   -1 %   +197 us   +5 %   +412 us  +10 %     191    377
    tar of mp4                       1.1     174    +99 us   +2 %   +269 us   +6 %   +230 us   +5 %     176    294
    tar of npy                      78.7  17,664     +7 us  +12 %    +63 us +128 %   +193 us +312 %  16,031  3,436
    datasets, Video                  1.1     189   +126 us   +2 %   +114 us   +2 %   +233 us   +4 %     166    311
    datasets, list of Image (png)   56.5     137   +116 us   +2 %   +534 us   +7 %   +644 us   +9 %     135    259
    datasets, Array4D               83.7   1,807     +4 us   +1 %    +87 us  +20 %   +181 us  +40 %   2,039  1,698
    LeRobotDataset 3.0 (mp4)         4.2     250    +52 us   +1 %   +227 us   +5 %   +274 us   +8 %     270    372

Speeds of two runs differ by a tenth to two thirds, and overheads of some hundred microseconds are within the noise of
readers that take milliseconds. What the data set itself does takes 5 microseconds a clip: it chooses the windows of a
batch, and copies each into the memory of the batch as soon as it is read. That spares the reader a check of the window
and, where clips are views of mapped files or kept archives, a copy of its own, which is why it costs so little there.
(`np.load(mmap_mode="r")` of each window and `np.stack`, without any data set, took 239 microseconds a clip in a run in which
the data set took 53; most of that is to open files and parse their headers, which our reader does once.)

What costs more than 15 % of reading, where a clip is a copy of memory: floating point values, each of which is looked at
for infinities, missing values and, in images, its range; items that are stacked by `default_collate`, which copies them
once more; `encoded=True`, which computes four times as many bytes as there were, and which training does on its device; and
(not in the table) flips. Workers only cost there, too: a batch goes through their pipe slower than it is made.
"""

import argparse
import io
import json
import os
import statistics
import sys
import tarfile
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from mcvd_diffusers.data import ClipDataset, ClipReader, EpochBatches, VideoFileReader, open_reader


NUM_FRAMES, BATCH_SIZE = 16, 16


# --------------------------------------------------------------------------------------------------------------------
# The videos, and a writer for each format


def make_videos(num_videos: int, num_frames: int, size: int) -> np.ndarray:
    """Blobs of colour that drift under noise, (N, T, C, H, W): what codecs are made for, with a rest to code."""
    random = np.random.RandomState(0)
    coarse = torch.from_numpy(random.rand(num_videos, 3, 20, 20).astype(np.float32))
    canvas = torch.nn.functional.interpolate(coarse, size=(2 * size, 2 * size), mode="bicubic").numpy()
    videos = np.empty((num_videos, num_frames, 3, size, size), np.uint8)
    for video, (dy, dx) in enumerate(random.randint(-2, 3, (num_videos, 2))):
        for frame in range(num_frames):
            moved = np.roll(canvas[video], (dy * frame, dx * frame), axis=(1, 2))[:, :size, :size]
            noise = random.randint(-8, 9, moved.shape)
            videos[video, frame] = np.clip(255 * moved + noise, 0, 255)
    return videos


def _images(video: np.ndarray) -> Iterator[Image.Image]:
    return (Image.fromarray(frame) for frame in video.transpose(0, 2, 3, 1))


def _encoded(image: Image.Image, kind: str) -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def _write_npy(folder: Path, videos: np.ndarray) -> None:
    np.save(folder / "videos.npy", videos)


def _write_npy_channels_last(folder: Path, videos: np.ndarray) -> None:
    np.save(folder / "videos.npy", videos.transpose(0, 1, 3, 4, 2))


def _write_npy_each(folder: Path, videos: np.ndarray) -> None:
    for number, video in enumerate(videos):
        np.save(folder / f"{number:03}.npy", video)


def _write_npy_floats(folder: Path, videos: np.ndarray) -> None:
    np.save(folder / "videos.npy", videos / np.float32(255))


def _write_npz(folder: Path, videos: np.ndarray) -> None:
    for number, video in enumerate(videos):
        np.savez_compressed(folder / f"{number:03}.npz", video=video)


def _write_hdf5(folder: Path, videos: np.ndarray) -> None:
    import h5py

    with h5py.File(folder / "videos.h5", "w") as file:
        file.create_dataset("video", data=videos, chunks=(1, 8, *videos.shape[2:]))


def _write_original(folder: Path, videos: np.ndarray) -> None:
    """As the original's converters do: a data set for each frame."""
    import h5py

    with h5py.File(folder / "shard_0001.hdf5", "w") as file:
        for number, video in enumerate(videos):
            file[f"len/{number}"] = len(video)
            for frame, values in enumerate(video.transpose(0, 2, 3, 1)):
                file[f"{number}/{frame}"] = values


def _write_mp4(path: Path, video: np.ndarray, keyint: int = 250) -> None:
    """H.264 as FFmpeg writes it; x264 itself sets a key frame every 250 frames at least."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"x264-params": f"keyint={keyint}"})
        stream.height, stream.width = video.shape[2:]
        stream.pix_fmt = "yuv420p"
        for frame in video.transpose(0, 2, 3, 1):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def _write_mp4_each(folder: Path, videos: np.ndarray, keyint: int = 250) -> None:
    for number, video in enumerate(videos):
        _write_mp4(folder / f"{number:03}.mp4", video, keyint)


def _write_mp4_short(folder: Path, videos: np.ndarray) -> None:
    _write_mp4_each(folder, videos, keyint=8)


def _write_gif(folder: Path, videos: np.ndarray) -> None:
    for number, video in enumerate(videos):
        first, *others = _images(video)
        first.save(folder / f"{number:03}.gif", save_all=True, append_images=others, duration=100)


def _write_png(folder: Path, videos: np.ndarray) -> None:
    for number, video in enumerate(videos):
        (folder / f"{number:03}").mkdir()
        for frame, image in enumerate(_images(video)):
            image.save(folder / f"{number:03}" / f"{frame:04}.png")


def _as_field(videos: np.ndarray):
    import xarray

    return xarray.Dataset({"video": (("sample", "time", "channel", "y", "x"), videos)})


def _write_zarr(folder: Path, videos: np.ndarray) -> None:
    chunks = {"video": {"chunks": (1, 8, *videos.shape[2:])}}
    _as_field(videos).to_zarr(folder / "videos.zarr", encoding=chunks, consolidated=False)


def _write_netcdf(folder: Path, videos: np.ndarray) -> None:
    chunks = {"video": {"chunksizes": (1, 8, *videos.shape[2:])}}
    _as_field(videos).to_netcdf(folder / "videos.nc", engine="h5netcdf", encoding=chunks)


def _write_tar(folder: Path, videos: np.ndarray, member: Callable[[np.ndarray], tuple[str, bytes]]) -> None:
    with tarfile.open(folder / "train-0000.tar", "w") as tar:
        for number, video in enumerate(videos):
            kind, content = member(video)
            info = tarfile.TarInfo(f"{number:03}.{kind}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _mp4_bytes(video: np.ndarray) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        _write_mp4(Path(folder) / "video.mp4", video)
        return (Path(folder) / "video.mp4").read_bytes()


def _npy_bytes(video: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, video)
    return file.getvalue()


def _write_tar_mp4(folder: Path, videos: np.ndarray) -> None:
    _write_tar(folder, videos, lambda video: ("mp4", _mp4_bytes(video)))


def _write_tar_npy(folder: Path, videos: np.ndarray) -> None:
    _write_tar(folder, videos, lambda video: ("npy", _npy_bytes(video)))


def _write_dataset(folder: Path, column: list, feature) -> None:
    import datasets

    datasets.disable_progress_bars()
    features = datasets.Features({"video": feature})
    datasets.Dataset.from_dict({"video": column}, features=features).save_to_disk(str(folder / "dataset"))


def _write_dataset_video(folder: Path, videos: np.ndarray) -> None:
    import datasets

    cells = [{"bytes": _mp4_bytes(video), "path": None} for video in videos]
    _write_dataset(folder, cells, datasets.Video())


def _write_dataset_images(folder: Path, videos: np.ndarray) -> None:
    import datasets

    cells = [[{"bytes": _encoded(image, "PNG"), "path": None} for image in _images(video)] for video in videos]
    _write_dataset(folder, cells, datasets.List(datasets.Image()))


def _write_dataset_array(folder: Path, videos: np.ndarray) -> None:
    import datasets

    _write_dataset(folder, list(videos), datasets.Array4D(shape=videos.shape[1:], dtype="uint8"))


def _write_lerobot(folder: Path, videos: np.ndarray) -> None:
    """Version 3.0: mp4s of 8 episodes, with a key frame every 2 frames as LeRobot writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    camera, fps, share = "observation.images.top", 10, 8
    num_videos, num_frames = videos.shape[:2]
    path = "chunk-{chunk_index:03d}/file-{file_index:03d}"
    info = {
        "codebase_version": "v3.0",
        "fps": fps,
        "chunks_size": 1000,
        "data_path": f"data/{path}.parquet",
        "video_path": f"videos/{{video_key}}/{path}.mp4",
        "features": {camera: {"dtype": "video", "shape": [*videos.shape[3:], 3]}},
    }
    episodes = np.arange(num_videos)
    meta = {"episode_index": episodes, "length": 0 * episodes + num_frames}
    meta |= {"data/chunk_index": 0 * episodes, "data/file_index": 0 * episodes}
    meta |= {f"videos/{camera}/chunk_index": 0 * episodes, f"videos/{camera}/file_index": episodes // share}
    meta |= {f"videos/{camera}/from_timestamp": episodes % share * num_frames / fps}
    rows = {
        "episode_index": np.repeat(episodes, num_frames),
        "frame_index": np.tile(np.arange(num_frames), num_videos),
    }
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    for file, columns in (("meta/episodes/chunk-000/file-000", meta), ("data/chunk-000/file-000", rows)):
        (folder / file).parent.mkdir(parents=True)
        pq.write_table(pa.table(columns), folder / f"{file}.parquet")
    (folder / f"videos/{camera}/chunk-000").mkdir(parents=True)
    for number, first in enumerate(range(0, num_videos, share)):
        together = np.concatenate(videos[first : first + share])
        _write_mp4(folder / f"videos/{camera}/chunk-000/file-{number:03d}.mp4", together, keyint=2)


# Name: what it is, packages, how it is written, how it is opened.
FORMATS: dict[str, tuple[str, tuple[str, ...], Callable, Callable[[Path], ClipReader]]] = {
    "npy": ("npy, one array NTCHW", (), _write_npy, lambda path: open_reader(path, axes="NTCHW")),
    "npy-last": (
        "npy, one array NTHWC",
        (),
        _write_npy_channels_last,
        lambda path: open_reader(path, axes="NTHWC"),
    ),
    "npy-each": ("npy, one file a video", (), _write_npy_each, lambda path: open_reader(path, axes="TCHW")),
    "npy-float": (
        "npy, float32, one array NTCHW",
        (),
        _write_npy_floats,
        lambda path: open_reader(path, axes="NTCHW"),
    ),
    "npz": ("npz, one file a video", (), _write_npz, lambda path: open_reader(path, axes="TCHW")),
    "hdf5": ("HDF5, one array NTCHW", ("h5py",), _write_hdf5, lambda path: open_reader(path, axes="NTCHW")),
    "original": ("HDF5 of the original MCVD", ("h5py",), _write_original, open_reader),
    "mp4": ("mp4, PyAV", ("av",), _write_mp4_each, open_reader),
    "mp4-short": ("mp4, key frame every 8, PyAV", ("av",), _write_mp4_short, open_reader),
    "mp4-torchcodec": (
        "mp4, torchcodec",
        ("av", "torchcodec"),
        _write_mp4_each,
        lambda path: VideoFileReader(path, decoder="torchcodec"),
    ),
    "gif": ("gif", (), _write_gif, open_reader),
    "png": ("folders of png", (), _write_png, open_reader),
    "zarr": ("Zarr", ("xarray", "zarr"), _write_zarr, open_reader),
    "netcdf": ("NetCDF", ("xarray", "h5netcdf"), _write_netcdf, open_reader),
    "tar-mp4": ("tar of mp4", ("av",), _write_tar_mp4, open_reader),
    "tar-npy": ("tar of npy", (), _write_tar_npy, lambda path: open_reader(path, axes="TCHW")),
    "hf-video": (
        "datasets, Video",
        ("datasets", "av"),
        _write_dataset_video,
        lambda path: open_reader(path / "dataset"),
    ),
    "hf-images": (
        "datasets, list of Image (png)",
        ("datasets",),
        _write_dataset_images,
        lambda path: open_reader(path / "dataset"),
    ),
    "hf-array": (
        "datasets, Array4D",
        ("datasets",),
        _write_dataset_array,
        lambda path: open_reader(path / "dataset", axes="TCHW"),
    ),
    "lerobot": ("LeRobotDataset 3.0 (mp4)", ("pyarrow", "av"), _write_lerobot, open_reader),
}


# --------------------------------------------------------------------------------------------------------------------
# Measurements


class Recorder(ClipReader):
    """Another reader, and a list of the windows that were asked of it."""

    def __init__(self, reader: ClipReader):
        self.reader, self.windows = reader, []

    def __len__(self) -> int:
        return len(self.reader)

    def name(self, video: int) -> str:
        """See [`ClipReader`]."""
        return self.reader.name(video)

    def info(self, video: int):
        """See [`ClipReader`]."""
        return self.reader.info(video)

    def _read(self, video: int, frames: range) -> np.ndarray:
        self.windows.append((video, frames.start, len(frames), frames.step))
        return self.reader.read(*self.windows[-1])


def measure_overheads(reader: ClipReader, seconds: float) -> list[tuple[float, float]]:
    """Seconds a clip of the reader, and what the data set adds to them: by the batch, by the item, and encoded."""
    options = {"num_frames": NUM_FRAMES, "clip_step": 4, "seed": 0}
    recorder = Recorder(reader)
    recorded = ClipDataset(recorder, **options)
    recorder.windows.clear()  # the constructor looks at each video
    order = np.random.RandomState(0).permutation(len(recorded))[:512].tolist()
    for index in order:
        recorded[index]
    windows = dict(zip(order, recorder.windows, strict=True))
    batches = [order[first : first + BATCH_SIZE] for first in range(0, len(order) - BATCH_SIZE + 1, BATCH_SIZE)]

    def read_alone(batch: list[int]) -> list[np.ndarray]:
        # All clips of a batch have to be there at once, so the reader's are kept, too.
        return [reader.read(*windows[index]) for index in batch]

    def of_items(batch: list[int]) -> dict[str, torch.Tensor]:
        return default_collate([plain[index] for index in batch])

    plain, floats = (ClipDataset(reader, encoded=encoded, **options) for encoded in (False, True))
    results = []
    for way in (plain.__getitem__, of_items, floats.__getitem__):  # each with the reader alone: they share the caches
        times = compare((read_alone, way), batches, seconds)
        alone, added = statistics.median(times[0]), statistics.median(b - a for a, b in zip(*times))
        results.append((alone, added))
    return results


def compare(
    ways: Sequence[Callable[[list[int]], object]], batches: list[list[int]], seconds: float
) -> list[list[float]]:
    """Seconds a clip of each way of reading, which take turns of a batch; the first round of batches is not counted."""
    times, started, turn = [[] for _ in ways], None, -len(batches)
    while turn < 6 or time.perf_counter() - started < len(ways) * seconds:
        if turn == 0 or started is None:
            started = time.perf_counter()
        batch = batches[turn % len(batches)]
        is_reversed = (turn + turn // len(batches)) % 2 == 1  # so that each batch is met in either order
        for way in sorted(range(len(ways)), reverse=is_reversed):
            before = time.perf_counter()
            ways[way](batch)
            after = time.perf_counter()
            if turn >= 0:
                times[way].append((after - before) / len(batch))
        turn += 1
    return times


def measure_loader(reader: ClipReader, num_workers: int, seconds: float) -> float:
    """Clips a second from a `DataLoader`, its start and first batches left out."""
    dataset = ClipDataset(reader, num_frames=NUM_FRAMES, clip_step=4, encoded=False)
    samples = EpochBatches(len(dataset), BATCH_SIZE)
    batches = iter(DataLoader(dataset, sampler=samples, batch_size=None, num_workers=num_workers))
    for _ in range(1 + 2 * num_workers):
        next(batches)
    num_clips, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        num_clips += len(next(batches)["video"])
    return num_clips / (time.perf_counter() - started)


def compare_with_numpy(videos: np.ndarray, seconds: float) -> str:
    """What plain numpy takes for clips of arrays, a file each, beside the data set that does the same."""
    with tempfile.TemporaryDirectory() as folder:
        _write_npy_each(Path(folder), videos)
        reader = open_reader(folder, axes="TCHW")
        dataset = ClipDataset(reader, num_frames=NUM_FRAMES, clip_step=4, encoded=False)
        files, last = sorted(Path(folder).iterdir()), videos.shape[1] - NUM_FRAMES + 1

        def by_numpy(index: int) -> np.ndarray:
            start = 7 * index % last
            return np.load(files[index % len(files)], mmap_mode="r")[start : start + NUM_FRAMES]

        batches = (
            np.random.RandomState(0).permutation(len(dataset))[: 16 * BATCH_SIZE].reshape(-1, BATCH_SIZE).tolist()
        )
        ways = (lambda batch: np.stack([by_numpy(index) for index in batch]), dataset.__getitem__)
        times = compare(ways, batches, seconds)
    numpy, ours = map(statistics.median, times)
    return (
        f'npy, one file a video: {1e6 * numpy:.0f} us a clip by np.load(mmap_mode="r") alone, {1e6 * ours:.0f} us by the data'
        f" set ({ours / numpy:.2f})"
    )


def _disk_usage(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def measure(folder: Path, name: str, videos: np.ndarray, seconds: float) -> str:
    """A line of the table."""
    _, packages, write, read = FORMATS[name]
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    write(folder, videos)
    reader = read(folder)
    overheads = measure_overheads(reader, seconds)
    loaders = [measure_loader(reader, num_workers, seconds) for num_workers in (0, 2)]
    cells = [
        f"{_disk_usage(folder) / 1e6:6.1f} MB",
        f"{1 / overheads[0][0]:8,.0f}",
        *(f"{1e6 * added:+6.0f} us {added / alone:+6.1%}" for alone, added in overheads),
        *(f"{speed:9,.0f}" for speed in loaders),
    ]
    return "  ".join(cells)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--frames", type=int, default=100, help="of each video")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--seconds", type=float, default=4, help="for one measurement")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS), metavar="FORMAT")
    args = parser.parse_args()
    if args.frames < NUM_FRAMES or min(args.videos, args.size) < 2:
        parser.error(f"--frames must be at least {NUM_FRAMES}, --videos and --size at least 2")
    warnings.simplefilter("ignore")  # zarr's, about formats that are young
    torch.set_num_threads(1)  # as a worker of a DataLoader
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {os.cpu_count()} CPU cores")
    print(f"{args.videos} videos of {args.frames} frames, {args.size}x{args.size} RGB; clips of {NUM_FRAMES}\n")
    titles = ("batch adds", "items add", "encoded adds")
    print(
        f"{'format':<30}  {'disk':>9}  {'reader':>8}  "
        + "  ".join(f"{title:>16}" for title in titles)
        + "  0 workers  2 workers"
    )
    videos = make_videos(args.videos, args.frames, args.size)
    for name in args.formats:
        with tempfile.TemporaryDirectory() as folder:
            line = measure(Path(folder), name, videos, args.seconds)
        print(f"{FORMATS[name][0]:<30}  {line}", flush=True)
    if "npy-each" in args.formats:
        print("\n" + compare_with_numpy(videos, args.seconds))


if __name__ == "__main__":
    main()
