"""LeRobotDataset folders, versions 2.0, 2.1 and 3.0: one episode is one video.

| | 2.x | 3.0 |
| --- | --- | --- |
| episodes | `meta/episodes.jsonl` | `meta/episodes/chunk-*/file-*.parquet` |
| rows (actions, states, images) | a parquet file for each episode | parquet files of many episodes |
| camera of dtype `"video"` | an mp4 for each episode | mp4s of many episodes, one after the other |
| camera of dtype `"image"` | encoded images in the rows | the same |

`meta/info.json` has the version, `fps`, the features and templates of paths. In 3.0, frame i of an episode is what its
mp4 shows at `from_timestamp + i / fps`.

The format is LeRobot's: https://huggingface.co/docs/lerobot/lerobot-dataset-v3 and `src/lerobot/datasets` (`utils.py`,
`dataset_metadata.py`) of https://github.com/huggingface/lerobot. This module needs pyarrow only.

A folder may be of strangers: paths that `info.json` makes up stay below the folder, and what it declares is compared
with the files.

Shapes: T frames, C channels, H height, W width, D entries of a vector.
"""

import io
import json
import math
import os
import re
import string
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from os import PathLike
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any

import numpy as np

from .frame_folders import images_info, read_image
from .hf_datasets import to_numpy
from .reader import ClipReader, VideoInfo, check_regular_file, errors_naming, existing_path, find_files, stack_frames
from .video_files import VideoFile


if TYPE_CHECKING:
    import pyarrow as pa


INFO = "meta/info.json"
MAX_INFO_BYTES = 16 * 2**20
MAX_EPISODES_BYTES = 512 * 2**20
# Of one file; a few bytes of parquet can declare any number.
MAX_ROWS = 100_000_000
# Columns of row groups that are kept unpacked.
MAX_CACHED_BYTES = 128 * 2**20

PATH_FIELDS = ("episode_chunk", "episode_index", "chunk_index", "file_index", "video_key")


def is_lerobot_folder(path: Path) -> bool:
    """
    Whether a folder is a LeRobotDataset, of any version.

    Args:
        path (`Path`): The folder.

    Returns:
        `bool`: Whether it has a `meta/info.json`.
    """
    return os.path.isfile(path / INFO)  # `False` also where a folder may not be entered


@dataclass(frozen=True)
class _Episode:
    """What the metadata say of an episode; `first_frame` is its place in the mp4."""

    index: int
    length: int
    data_file: Path
    video_file: Path | None
    first_frame: int = 0


class LeRobotReader(ClipReader):
    """
    Reads one camera of a LeRobotDataset folder, version 2.0, 2.1 or 3.0; an episode is a video.

    Episodes are named `episode_000000`, `episode_000001`, ... Vectors are the numeric columns of the rows: `action`,
    `observation.state`, `timestamp`, `task_index` and what else there is.

    Before an episode is read, what the metadata say of it is compared with the rows and the mp4: where a file is missing,
    cut off or contradicts them, the episodes concerned can not be read, and the others can.

    Args:
        path (`str` or `os.PathLike`):
            The folder, with `meta/info.json` in it.
        column (`str`, *optional*):
            The camera, such as `"observation.images.top"`. By default the only one.

    Raises:
        `ValueError`: If it is no such folder, or of version 1; if the metadata are broken; if `column` is no camera, or is
            not given and there are several.
    """

    def __init__(self, path: str | PathLike, *, column: str | None = None):
        self.folder = existing_path("path", path)
        if not is_lerobot_folder(self.folder):
            raise ValueError(f"`path` must be a LeRobotDataset folder, with {INFO} in it, but got {self.folder}.")
        info = _Fields(_read_json(self.folder / INFO, MAX_INFO_BYTES), self.folder / INFO)
        version = info.get("codebase_version", str)
        if not re.fullmatch(r"v[23]\.\d+", version):
            hint = "Convert it to v3.0 with the scripts that LeRobot ships." if version.startswith("v1") else ""
            raise ValueError(
                f"{info.source}: `codebase_version` must be v2.0, v2.1 or v3.0 but is {version!r}. {hint}"
            )
        self.frames_per_second = float(info.get("fps", Real))
        if not 0 < self.frames_per_second < math.inf:
            raise ValueError(f"{info.source}: `fps` must be a positive number but is {self.frames_per_second}.")
        self.column, self._is_video = _choose_camera(info.get("features", dict), column, info.source)
        load = _episodes_v2 if version.startswith("v2") else _episodes_v3
        episodes = load(self.folder, info, self.column if self._is_video else None, self.frames_per_second)
        self._episodes = sorted(episodes, key=lambda episode: episode.index)
        indices = [episode.index for episode in self._episodes]
        if not indices or len(set(indices)) < len(indices):
            raise ValueError(f"{self.folder / 'meta'} must list episodes, each once, but lists {len(indices)}.")
        self._videos: dict[Path, VideoFile] = {}
        self._infos: dict[int, VideoInfo] = {}
        # Of each file of rows: where each episode begins and how many rows it has.
        self._rows: dict[Path, dict[int, tuple[int, int]]] = {}
        self._cache: OrderedDict[tuple, pa.Array] = OrderedDict()

    def __getstate__(self) -> dict:
        # What is unpacked is not sent to workers.
        return {**self.__dict__, "_cache": OrderedDict()}

    def __len__(self) -> int:
        return len(self._episodes)

    def name(self, video: int) -> str:
        """Name of an episode, `episode_000012`: see [`ClipReader`]."""
        return f"episode_{self._episodes[video].index:06}"

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of an episode: see [`ClipReader`]."""
        if video not in self._infos:
            self._check_rows(video)
            found = self._video_info(video) if self._is_video else self._image_info(video)
            length = self._episodes[video].length
            rate = self.frames_per_second
            self._infos[video] = VideoInfo(length, found.num_channels, found.height, found.width, found.dtype, rate)
        return self._infos[video]

    def _read(self, video: int, frames: range) -> np.ndarray:
        if self._is_video:
            first = self._episodes[video].first_frame
            return self._video(video).read(range(first + frames.start, first + frames.stop, frames.step))
        name = self.name(video)
        return stack_frames([read_image(image, name) for image in self._images(video, frames)], name)

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        values = to_numpy(self._column_of_rows(video, name, frames), f"The vector `{name}` of {self.name(video)}")
        return values.reshape(len(values), -1)  # (T, D)

    def _video(self, video: int) -> VideoFile:
        file = self._episodes[video].video_file
        if file not in self._videos:
            self._videos[file] = VideoFile(file, str(file))
        return self._videos[file]

    def _video_info(self, video: int) -> VideoInfo:
        episode, found = self._episodes[video], self._video(video).info()
        end = episode.first_frame + episode.length
        if end > found.num_frames:
            raise ValueError(
                f"{self.name(video)} must be frames {episode.first_frame} to {end - 1} of {episode.video_file}, which has "
                f"only {found.num_frames}. Is the download complete?"
            )
        # Frames are counted, so another rate than stated would put each episode a little further from its place.
        rate = found.frames_per_second or self.frames_per_second
        drift = abs(end * self.frames_per_second / rate - end)
        if drift > 1 + 1e-3 * end:
            raise ValueError(
                f"{episode.video_file} has {rate:g} frames per second where {INFO} says `fps` {self.frames_per_second:g}."
            )
        return found

    def _image_info(self, video: int) -> VideoInfo:
        (first,) = self._images(video, range(1))
        return images_info(first, self.name(video), num_frames=self._episodes[video].length)

    def _images(self, video: int, frames: range) -> list[io.BytesIO]:
        images = []
        for image in self._column_of_rows(video, self.column, frames).to_pylist():
            stored = image.get("bytes") if isinstance(image, dict) else image
            if not isinstance(stored, bytes):
                raise ValueError(f"{self.name(video)} must have its images in the column `{self.column}`, as bytes.")
            images.append(io.BytesIO(stored))
        return images

    # Rows

    def _check_rows(self, video: int) -> None:
        """Compares the length of an episode with its rows."""
        episode = self._episodes[video]
        file, _, num_rows = self._locate_rows(video)
        if num_rows != episode.length:
            raise ValueError(
                f"{self.name(video)} has `length` {episode.length} in the metadata but {num_rows} rows in {file}."
            )

    def _locate_rows(self, video: int) -> tuple[Path, int, int]:
        """File, first row and number of rows of an episode."""
        episode = self._episodes[video]
        if episode.index not in self._rows_of(episode.data_file):
            # LeRobot reads all files as one table. So it works where the file index of the last episode of a file is one
            # too small, as its converter from 2.1 wrote it.
            for file in find_files(self.folder / "data"):
                if file.suffix == ".parquet" and episode.index in self._rows_of(file):
                    return file, *self._rows[file][episode.index]
            raise ValueError(f"{self.name(video)} has no rows in {episode.data_file}.")
        return episode.data_file, *self._rows[episode.data_file][episode.index]

    def _rows_of(self, file: Path) -> dict[int, tuple[int, int]]:
        if file not in self._rows:
            with _parquet(file) as parquet:
                names = [name for name in ("episode_index", "frame_index") if name in parquet.schema_arrow.names]
                if "episode_index" not in names:
                    raise ValueError(f"{file} must have a column `episode_index`.")
                table = parquet.read(columns=names)
            episodes = _integers(table["episode_index"], file, "episode_index")
            starts = np.flatnonzero(np.diff(episodes, prepend=episodes[:1] - 1))
            lengths = np.diff(starts, append=len(episodes))
            if len(set(episodes[starts].tolist())) < len(starts):
                raise ValueError(f"{file} must have the rows of an episode one after the other.")
            if "frame_index" in names:
                numbers = _integers(table["frame_index"], file, "frame_index")
                if (numbers != np.arange(len(episodes)) - np.repeat(starts, lengths)).any():
                    raise ValueError(
                        f"{file} must have a row for each frame of an episode, in order of `frame_index`."
                    )
            places = zip(starts.tolist(), lengths.tolist(), strict=True)
            self._rows[file] = dict(zip(episodes[starts].tolist(), places, strict=True))
        return self._rows[file]

    def _column_of_rows(self, video: int, name: str, frames: range) -> "pa.Array":
        """Some rows of a column; only the row groups that they lie in are unpacked."""
        import pyarrow as pa

        file, first, _ = self._locate_rows(video)
        start, stop = first + frames[0], first + frames[-1] + 1
        pieces = []
        with _parquet(file) as parquet:
            if name not in parquet.schema_arrow.names:
                known = ", ".join(parquet.schema_arrow.names)
                raise ValueError(f"`{name}` must be one of the columns of {file}: {known}.")
            group_start = 0
            for group in range(parquet.num_row_groups):
                group_stop = group_start + parquet.metadata.row_group(group).num_rows
                if group_start < stop and start < group_stop:
                    piece = self._unpacked(parquet, file, group, name)
                    offset = max(start, group_start) - group_start
                    pieces.append(piece.slice(offset, min(stop, group_stop) - group_start - offset))
                group_start = group_stop
        return pa.concat_arrays(pieces).take(pa.array(range(0, stop - start, frames.step)))

    def _unpacked(self, parquet: Any, file: Path, group: int, name: str) -> "pa.Array":
        key = (file, group, name)
        if key not in self._cache:
            # A whole row group has less than 2 GB of images, or Arrow refuses.
            column = parquet.read_row_group(group, columns=[name]).column(0)
            self._cache[key] = getattr(column.combine_chunks(), "storage", column.combine_chunks())
        self._cache.move_to_end(key)
        while len(self._cache) > 1 and sum(array.nbytes for array in self._cache.values()) > MAX_CACHED_BYTES:
            self._cache.popitem(last=False)
        return self._cache[key]


# ----------------------------------------------------------------------------------------------------------------------
# Metadata


class _Fields:
    """Values of a JSON object or a row, whose types are checked when they are taken."""

    def __init__(self, values: Any, source: str | Path):
        if not isinstance(values, dict):
            raise ValueError(f"{source} must hold an object but holds {type(values).__name__}.")
        self.values = values
        self.source = source

    def get(self, name: str, kind: type) -> Any:
        """A value of this type."""
        value = self.values.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{self.source}: `{name}` must be {kind.__name__} but is {str(value)[:100]!r}.")
        return value

    def count(self, name: str, *, minimum: int = 0) -> int:
        """An integer from a minimum on."""
        value = self.get(name, int)
        if not minimum <= value < 2**53:
            raise ValueError(f"{self.source}: `{name}` must be an integer of at least {minimum} but is {value}.")
        return value


def _read_json(file: Path, max_bytes: int) -> Any:
    return _parse_json(_read_text(file, max_bytes), file)


def _read_text(file: Path, max_bytes: int) -> str:
    check_regular_file(file)
    with errors_naming(file, OSError, UnicodeDecodeError), file.open("rb") as opened:
        content = opened.read(max_bytes + 1)
        if len(content) > max_bytes:
            raise ValueError(f"{file} has more than {max_bytes} bytes, too many for what it is to hold.")
        return content.decode("utf-8")


def _parse_json(text: str, source: str | Path) -> Any:
    # Deep nesting is a RecursionError, a number of a million digits a ValueError.
    with errors_naming(source, ValueError, RecursionError):
        return json.loads(text)


def _choose_camera(features: dict, column: str | None, source: Path) -> tuple[str, bool]:
    """The camera, and whether it is in mp4 files."""
    dtypes = {}
    for name, feature in features.items():
        feature = _Fields(feature, f"{source}: feature `{name}`")
        dtypes[name] = feature.get("dtype", str)
        details = [feature.values.get("info"), feature.values.get("video_info"), feature.values]
        details = [detail for detail in details if isinstance(detail, dict)]
        if any(detail.get(key) is True for detail in details for key in ("is_depth_map", "video.is_depth_map")):
            dtypes[name] = "depth"  # packed into colours in a way of its own
    cameras = [name for name, dtype in dtypes.items() if dtype in ("video", "image")]
    if column is None and len(cameras) == 1:
        column = cameras[0]
    if column not in cameras:
        raise ValueError(
            f"`column` must be one of the cameras of {source.parents[1]}, {', '.join(cameras) or 'of which it has none'} "
            f"(depth is not read), but got {column!r}."
        )
    return column, dtypes[column] == "video"


def _episodes_v2(folder: Path, info: _Fields, video_key: str | None, frames_per_second: float) -> list[_Episode]:
    """Episodes of versions 2.0 and 2.1, each with files of its own."""
    chunk_size = info.count("chunks_size", minimum=1)
    file = folder / "meta/episodes.jsonl"
    episodes = []
    for number, line in enumerate(_read_text(file, MAX_EPISODES_BYTES).split("\n"), start=1):
        if not line.strip():
            continue
        row = _Fields(_parse_json(line, f"{file}, line {number}"), f"{file}, line {number}")
        index, length = row.count("episode_index"), row.count("length", minimum=1)
        fields = {"episode_chunk": index // chunk_size, "episode_index": index, "video_key": video_key}
        data_file = _path(folder, info, "data_path", fields)
        video_file = _path(folder, info, "video_path", fields) if video_key else None
        episodes.append(_Episode(index, length, data_file, video_file))
    return episodes


def _episodes_v3(folder: Path, info: _Fields, video_key: str | None, frames_per_second: float) -> list[_Episode]:
    """Episodes of version 3.0, many in a file."""
    place = f"videos/{video_key}"
    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    columns += [f"{place}/chunk_index", f"{place}/file_index", f"{place}/from_timestamp"] if video_key else []
    files = find_files(folder / "meta/episodes")
    files = [file for file in files if file.suffix == ".parquet"]
    if not files:
        raise ValueError(f"{folder / 'meta/episodes'} must hold parquet files but has none.")
    episodes = []
    for file in files:
        with _parquet(file) as parquet:
            lost = [name for name in columns if name not in parquet.schema_arrow.names]
            if lost:
                raise ValueError(f"{file} must have the columns {', '.join(lost)}.")
            rows = parquet.read(columns=columns).to_pylist()
        for values in rows:
            row = _Fields(values, f"{file}, episode {values['episode_index']}")
            fields = {"chunk_index": row.count("data/chunk_index"), "file_index": row.count("data/file_index")}
            data_file = _path(folder, info, "data_path", fields)
            video_file, first_frame = None, 0
            if video_key:
                start = float(row.get(f"{place}/from_timestamp", Real)) * frames_per_second
                if not 0 <= start < 2**53:
                    raise ValueError(f"{row.source}: `{place}/from_timestamp` must be seconds, from 0 on.")
                first_frame = round(start)
                fields = {
                    "chunk_index": row.count(f"{place}/chunk_index"),
                    "file_index": row.count(f"{place}/file_index"),
                    "video_key": video_key,
                }
                video_file = _path(folder, info, "video_path", fields)
            index, length = row.count("episode_index"), row.count("length", minimum=1)
            episodes.append(_Episode(index, length, data_file, video_file, first_frame))
    return episodes


def _path(folder: Path, info: _Fields, name: str, fields: dict[str, int | str]) -> Path:
    """A path of a template, which strangers wrote: only known fields in it, and nothing outside of the folder."""
    template = info.get(name, str)
    label = f"{info.source}: `{name}`"
    with errors_naming(label, ValueError):
        for _, field, form, conversion in string.Formatter().parse(template):
            # `{a.b}` and `{a[b]}` look into objects, and `{a:99999999}` fills memory.
            if field is not None and (field not in fields or conversion or not re.fullmatch(r"(0\d)?d?", form)):
                raise ValueError(f"{template!r} may have the fields {', '.join(PATH_FIELDS)} only, such as {{x:03d}}")
        relative = template.format(**fields)
    posix, windows = PurePosixPath(relative), PureWindowsPath(relative)
    leaves = posix.is_absolute() or windows.anchor or ".." in posix.parts or ".." in windows.parts
    if leaves or "\0" in relative:
        raise ValueError(f"{label} must stay in the folder but leads to {relative!r}.")
    return folder / relative


@contextmanager
def _parquet(file: Path):
    """A parquet file, whose errors become a `ValueError` that names it."""
    import pyarrow as pa
    import pyarrow.parquet

    if not os.path.lexists(file):
        raise ValueError(f"{file} is missing. Is the download complete?")
    check_regular_file(file)
    with errors_naming(file, OSError, pa.ArrowException), pyarrow.parquet.ParquetFile(file) as parquet:
        if parquet.metadata.num_rows > MAX_ROWS:
            raise ValueError(f"{file} declares {parquet.metadata.num_rows} rows; at most {MAX_ROWS} are read.")
        yield parquet


def _integers(column: "pa.ChunkedArray", file: Path, name: str) -> np.ndarray:
    values = column.to_numpy()
    if values.dtype.kind not in "iu":  # missing ones make it floating point
        raise ValueError(f"{file}: `{name}` must be integers but is {column.type}.")
    return values.astype(np.int64)
