"""Hugging Face data sets: one row is one video, by random access ([`DatasetsReader`]) or as a stream ([`StreamingClips`]).

| column | one video is |
| --- | --- |
| `Video`, or bytes | an encoded video, in the row or in the file that it names |
| list of `Image`, or of bytes | encoded images; only the wanted ones are decoded |
| `Array3D`, `Array4D`, nested lists of numbers | an array, whose axes the user names: `axes="TCHW"` |

Rows are taken as they are stored, by Arrow: `datasets` decodes nothing, as it would decode all images of a list, and
videos by torchcodec only. No code of a repository is run.

A row may name a file, and rows are written by others. Where [`load_split`] loaded them from here, files in the data set's
own folder are opened; where it loaded them from the Hub, files in the caches of `datasets` and `huggingface_hub`, where
downloads lie. A `Dataset` that the caller made otherwise may name any file. All must be regular files.

Shapes: T frames, C channels, H height, W width, D entries of a vector.
"""

import copy
import hashlib
import io
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from mcvd_diffusers.normalization import FrameNormalizer

from .arrays import as_frames, check_axes, suggest_axes, window_index
from .frame_folders import images_info, read_image
from .reader import (
    MAX_NAMES_IN_MESSAGE,
    ClipReader,
    VideoInfo,
    check_integer,
    check_regular_file,
    find_files,
    stack_frames,
)
from .splits import hash_of_name
from .video_files import VideoFile


if TYPE_CHECKING:
    import datasets
    import pyarrow as pa


# A row may name a file elsewhere, and rows are written by others: what is asked of the network for them is the Hub, and
# no more than fits into memory.
PROTOCOLS = ("hf", "zip", "tar")
MAX_FETCHED_BYTES = 2**31

# Of each data set that `load_split` loaded, the folders whose files its rows may name.
_FOLDERS: "WeakKeyDictionary[Any, tuple[str, ...]]" = WeakKeyDictionary()

# What `StreamingClips` counts for each worker: videos tried and those of them that are bad, since the beginning; clips of
# its pass under way, and whether that is over.
SEEN, BAD, GIVEN, IS_OVER = range(4)
MAX_WORKERS = 1024

# So few bad videos say nothing of the whole.
MIN_SEEN = 20


# ----------------------------------------------------------------------------------------------------------------------
# Loading


def is_saved_dataset(path: Path) -> bool:
    """
    Whether a folder was written by `save_to_disk`.

    Args:
        path (`Path`): The folder.

    Returns:
        `bool`: Whether it holds a `Dataset` or a `DatasetDict`.
    """
    # These say no of a folder that may not be entered, where methods of `Path` raise.
    return os.path.isfile(path / "dataset_dict.json") or (
        os.path.isfile(path / "state.json") and os.path.isfile(path / "dataset_info.json")
    )


def load_split(
    name_or_path: str | PathLike,
    *,
    config_name: str | None = None,
    split: str = "train",
    revision: str | None = None,
    streaming: bool = False,
) -> "datasets.Dataset | datasets.IterableDataset":
    """
    Loads one split of a data set, from the Hub or from here.

    Args:
        name_or_path (`str` or `os.PathLike`):
            A folder written by `save_to_disk`, a parquet file, a folder of parquet or other files that `load_dataset`
            knows, or the name of a data set on the Hub. But for the first, `load_dataset` keeps a copy in its cache.
        config_name (`str`, *optional*):
            Which configuration (subset) of the data set.
        split (`str`, *optional*, defaults to `"train"`):
            Which split.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        streaming (`bool`, *optional*, defaults to `False`):
            Whether rows are fetched as they are needed, instead of all before the first.

    Returns:
        `datasets.Dataset` or, if `streaming`, `datasets.IterableDataset`: The split.

    Raises:
        `ValueError`: If there is no such configuration or split, the files are no data set or no regular files, or an
            argument means nothing for what lies there.
        `OSError`: If there is no such data set, or the Hub can not be reached.
    """
    path = Path(name_or_path).expanduser()
    is_local = path.exists()
    if is_local:
        # Others open these files, and would wait for a pipe for ever.
        for file in find_files(path) if path.is_dir() else [path]:
            check_regular_file(file)
        folders = (str(path if path.is_dir() else path.parent),)
    else:
        import datasets
        from huggingface_hub.constants import HF_HUB_CACHE

        config = datasets.config
        folders = (
            config.HF_DATASETS_CACHE,
            config.DOWNLOADED_DATASETS_PATH,
            config.EXTRACTED_DATASETS_PATH,
            HF_HUB_CACHE,
        )
    dataset = _load(name_or_path, path, is_local, config_name, split, revision, streaming)
    # `datasets` resolves links in the path of a folder before it puts that before the names of files.
    _FOLDERS[dataset] = tuple(
        {where(folder): None for folder in folders for where in (os.path.abspath, os.path.realpath)}
    )
    return dataset


def _load(
    name_or_path: str | PathLike,
    path: Path,
    is_local: bool,
    config_name: str | None,
    split: str,
    revision: str | None,
    streaming: bool,
) -> "datasets.Dataset | datasets.IterableDataset":
    import datasets

    if is_local and revision is not None:
        raise ValueError(f"`revision` must be left out for what lies here, {path}, but got {revision!r}.")
    if is_local and is_saved_dataset(path):
        if config_name is not None:
            raise ValueError(f"`config_name` must be left out for {path}, written by `save_to_disk`.")
        try:
            saved = datasets.load_from_disk(str(path))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"The data set {path} can not be read: {error}") from error
        if isinstance(saved, datasets.DatasetDict):
            if split not in saved:
                raise ValueError(f"`split` must be one of {', '.join(saved)}, which {path} has, but got {split!r}.")
            saved = saved[split]
        elif str(saved.split or split) != split:
            raise ValueError(f"`split` must be {str(saved.split)!r}, which {path} holds alone, but got {split!r}.")
        return saved.to_iterable_dataset() if streaming else saved

    source = {"path": str(path if is_local else name_or_path)}
    if is_local and path.is_file():
        if path.suffix != ".parquet":
            raise ValueError(f"`name_or_path` must be a folder, a .parquet file or a name on the Hub but got {path}.")
        source = {"path": "parquet", "data_files": {split: str(path)}}
    try:
        return datasets.load_dataset(**source, name=config_name, split=split, revision=revision, streaming=streaming)
    except OSError as error:
        hint = (
            "Check that it holds data files."
            if is_local
            else "There is no such file or folder here; for the Hub, check the name, the connection and, if the data set "
            "is private or gated, `hf auth login`."
        )
        raise OSError(f"The data set {name_or_path} can not be loaded: {error} {hint}") from error
    except (ValueError, datasets.exceptions.DatasetsError, RuntimeError) as error:
        # Among them: an unknown configuration or split, each with those that exist; files that are no parquet; and
        # repositories that need code of their own.
        raise ValueError(
            f"The data set {name_or_path} can not be loaded with `config_name` {config_name!r} and `split` {split!r}: "
            f"{error}"
        ) from error


def load_datasets_reader(
    name_or_path: str | PathLike,
    *,
    config_name: str | None = None,
    split: str = "train",
    column: str | None = None,
    axes: str | None = None,
    revision: str | None = None,
) -> "DatasetsReader":
    """
    Opens one split of a data set, from the Hub or from here: [`load_split`], then [`DatasetsReader`].

    Args:
        name_or_path (`str` or `os.PathLike`):
            A folder written by `save_to_disk`, a parquet file, a folder of parquet or other files that `load_dataset`
            knows, or the name of a data set on the Hub.
        config_name (`str`, *optional*):
            Which configuration (subset) of the data set.
        split (`str`, *optional*, defaults to `"train"`):
            Which split.
        column (`str`, *optional*):
            The column that holds the videos.
        axes (`str`, *optional*):
            For arrays, what each of their axes is, such as `"TCHW"`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.

    Returns:
        [`DatasetsReader`]: The reader.

    Raises:
        `ValueError`: If there is no such configuration, split or column, or the files are no data set.
        `OSError`: If there is no such data set, or the Hub can not be reached.
    """
    dataset = load_split(name_or_path, config_name=config_name, split=split, revision=revision)
    return DatasetsReader(dataset, column=column, axes=axes)


# ----------------------------------------------------------------------------------------------------------------------
# Random access


class ArrowRowsReader(ClipReader):
    """
    What readers of Arrow rows share: which column is the video, and the way from a cell to frames.

    To be written by a subclass: `__len__`, [`~ClipReader.name`] and `_cell(video, column)`.

    Args:
        features (`datasets.Features`):
            What the columns are.
        column (`str`, *optional*):
            The column that holds the videos. By default the only one that can.
        axes (`str`, *optional*):
            For arrays, what each of their axes is: letters of T, C, H and W, such as `"TCHW"` or `"THW"`.

    Raises:
        `ValueError`: If `column` is no column of videos, or is not given and there is not one; if `axes` is missing for
            arrays, does not fit them, or is given for something else.
    """

    # Whose files rows may name; `None`: any.
    _folders: tuple[str, ...] | None = None

    def __init__(self, features: "datasets.Features", *, column: str | None = None, axes: str | None = None):
        kinds = {name: _kind(feature) for name, feature in features.items()}
        listing = "; ".join(f"`{name}`: {feature}" for name, feature in features.items()) or "none"
        candidates = [name for name, kind in kinds.items() if kind]
        if column is None and len(candidates) != 1:
            raise ValueError(
                f"`column` must name the column that holds the videos, since {len(candidates) or 'none'} of them may: "
                f"`Video`, bytes, lists of `Image`, or arrays of 3 or 4 axes. The columns are {listing}."
            )
        self.column = candidates[0] if column is None else column
        if not kinds.get(self.column):
            raise ValueError(
                f"`column` must name a column of `Video`, bytes, lists of `Image`, or arrays of 3 or 4 axes, but got "
                f"{column!r}. The columns are {listing}."
            )
        self.axes = axes
        self._video_kind = kinds[self.column]
        if self._video_kind == "array":
            depth = _number_depth(features[self.column])
            if axes is None or "N" in check_axes(axes) or len(axes) != depth:
                raise ValueError(
                    f"`axes` must have a letter of T, C, H and W for each of the {depth} axes of the column "
                    f'`{self.column}`, such as "{suggest_axes(_example_shape(features[self.column], depth))}", but got '
                    f"{axes!r}."
                )
        elif axes is not None:
            raise ValueError(
                f"`axes` must be left out, since the column `{self.column}` holds no arrays, but got {axes!r}."
            )
        self._columns = list(features)
        self._files: dict[int, VideoFile] = {}
        self._infos: dict[int, VideoInfo] = {}

    @abstractmethod
    def _cell(self, video: int, column: str) -> "pa.Array":
        """One cell of the table, as an array of one element."""

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video: see [`ClipReader`]."""
        if self._video_kind == "file":
            return self._file(video).info()
        if video not in self._infos:
            self._infos[video] = self._images_info(video) if self._video_kind == "images" else self._array_info(video)
        return self._infos[video]

    def _read(self, video: int, frames: range) -> np.ndarray:
        if self._video_kind == "file":
            return self._file(video).read(frames)
        if self._video_kind == "images":
            items, name = self._items(video, self.column), self.name(video)
            return stack_frames(
                [read_image(_open(items[frame].as_py(), name, self._folders), name) for frame in frames], name
            )
        return as_frames(self._read_array(video, frames), self.axes)  # (T, C, H, W)

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        if name not in self._columns:
            raise ValueError(f"The vector `{name}` must be one of the columns {', '.join(self._columns)}.")
        items, num_frames = self._items(video, name), self.num_frames(video)
        if len(items) != num_frames:
            raise ValueError(
                f"The vector `{name}` of {self.name(video)} must have a row for each of its {num_frames} frames but has "
                f"{len(items)}."
            )
        return to_numpy(items.slice(frames[0], frames[-1] + 1 - frames[0]), self.name(video))[:: frames.step]

    def _file(self, video: int) -> VideoFile:
        if video not in self._files:
            value = self._value(video)
            if isinstance(value, dict) and value["bytes"] is None and "://" not in (value["path"] or "://"):
                source = _named_file(value["path"], self.name(video), self._folders)
            else:
                # The bytes are fetched again for each read: a reader does not keep videos in memory.
                source = partial(self._open_video, video)
            self._files[video] = VideoFile(source, self.name(video))
        return self._files[video]

    def _open_video(self, video: int) -> BinaryIO:
        return _open(self._value(video), self.name(video), self._folders)

    def _value(self, video: int) -> Any:
        return self._cell(video, self.column)[0].as_py()

    def _items(self, video: int, column: str) -> "pa.Array":
        """What a list has."""
        import pyarrow as pa

        cell = _without_extension(self._cell(video, column))
        if not _is_list(cell.type) or cell.null_count:
            raise ValueError(
                f"`{column}` of {self.name(video)} must be a list but is {cell.type}, {cell[0].as_py()!r}."
            )
        items = cell.flatten()
        if len(items) == 0 or items.null_count:
            raise ValueError(f"`{column}` of {self.name(video)} is empty or has missing entries.")
        return items if not isinstance(items, pa.ChunkedArray) else items.combine_chunks()

    def _images_info(self, video: int) -> VideoInfo:
        items, name = self._items(video, self.column), self.name(video)
        return images_info(_open(items[0].as_py(), name, self._folders), name, num_frames=len(items))

    def _array_info(self, video: int) -> VideoInfo:
        # If time comes first, its length is that of the list, and one frame tells the rest.
        frames = as_frames(self._read_array(video, range(1) if self.axes[0] == "T" else None), self.axes)
        num_frames = len(self._items(video, self.column)) if self.axes[0] == "T" else len(frames)
        return VideoInfo(num_frames, *frames.shape[1:], frames.dtype.name)

    def _read_array(self, video: int, frames: range | None) -> np.ndarray:
        """Frames of an array, or all of them, with the axes as they are stored."""
        items = self._items(video, self.column)
        if frames is not None and self.axes[0] == "T":
            items = items.slice(frames[0], frames[-1] + 1 - frames[0])
            return to_numpy(items, self.name(video))[:: frames.step]
        array = to_numpy(items, self.name(video))
        return array if frames is None else array[window_index(self.axes, None, frames)]


class DatasetsReader(ArrowRowsReader):
    """
    Reads the rows of a `datasets.Dataset`, one video each.

    Videos are named after their files where each row names one: by the file's own name if no two are the same, else by
    its path. Otherwise they are `row-00000`, `row-00001`, ..., which changes when rows come or go. Vectors are further
    columns, with a list of T numbers, or of T lists of D numbers.

    Args:
        dataset (`datasets.Dataset`):
            The data set.
        column (`str`, *optional*):
            The column that holds the videos. By default the only one that can: see the top of this module.
        axes (`str`, *optional*):
            For arrays, what each of their axes is: letters of T, C, H and W, such as `"TCHW"` or `"THW"`.

    Raises:
        `ValueError`: If `dataset` is none, `column` is no column of videos, or is not given and there is not one; if
            `axes` is missing for arrays, does not fit them, or is given for something else.
    """

    def __init__(self, dataset: "datasets.Dataset", *, column: str | None = None, axes: str | None = None):
        import datasets

        if isinstance(dataset, datasets.DatasetDict):
            raise ValueError(f"`dataset` must be one split: choose `dataset[split]` of {', '.join(dataset)}.")
        if not isinstance(dataset, datasets.Dataset):
            raise ValueError(
                f"`dataset` must be a `datasets.Dataset` but got {type(dataset).__name__}. A stream is read by "
                "`StreamingClips`."
            )
        super().__init__(dataset.features, column=column, axes=axes)
        self.dataset = dataset
        self._folders = _FOLDERS.get(dataset)
        # A format of its own for each column: reading one does not touch the others.
        self._tables: dict[str, datasets.Dataset] = {}
        self._names = _file_names(dataset, self.column) if self._video_kind == "file" else None

    def __len__(self) -> int:
        return len(self.dataset)

    def name(self, video: int) -> str:
        """Name of a video: see [`ClipReader`]."""
        return f"row-{video:05}" if self._names is None else self._names[video]

    def _cell(self, video: int, column: str) -> "pa.Array":
        if column not in self._tables:
            self._tables[column] = self.dataset.select_columns([column]).with_format("arrow")
        return self._tables[column][video].column(0).chunk(0)


# ----------------------------------------------------------------------------------------------------------------------
# Streams


class StreamingClips(IterableDataset):
    """
    Clips from a stream of videos, `load_dataset(..., streaming=True)`: what is far larger than the disk.

    - **Once.** In each pass, each example on this side is met exactly once over all ranks and workers of a `DataLoader`,
      however many shards there are. Ranks must have the same number of workers. Ranks and workers get whole shards where
      there are enough: with fewer shards than workers the rest of them is idle, and where `world_size` does not divide
      the number of shards each rank reads all of them and keeps its part. Ranks do not get equally many clips. Leave the
      loader out of `accelerator.prepare`, which would split it again.
    - **Sides.** An example is held out by a hash of its name, as [`split_videos`] does (with a seed that is always 0), so
      the sides are disjoint whatever the order. Its name is the path of its video if that is not stored in the row; else
      the hash of what is stored, after the path if there is one. So a name stays the same when the stream is ordered or
      sharded in another way.
    - **Order.** Training: shards in another order in each epoch, and clips drawn from a buffer. Validation: as stored.
    - **Random numbers.** Each clip has a key, a function of `(seed, epoch, name)`: a pass gives the same set of clips with
      any number of ranks and workers. For validation the epoch is always 0.
    - **Bad videos.** Where `make_clip` raises `ValueError` or `OSError`, the example is counted and left out, with a
      warning for each of the first 10; with `strict` the error is raised. Counts are kept over all workers and passes.

    [`~StreamingClips.set_epoch`] reaches persistent workers, from the next pass on.

    Args:
        dataset (`datasets.IterableDataset`):
            The stream, not yet shuffled or split.
        make_clip (`Callable[[ClipReader, int, int], dict]`):
            Makes the item of one video: is called with a reader of a single video, its number, 0, and the clip's key, an
            integer of 63 bits to seed random numbers with.
        side (`"train"` or `"validation"`, *optional*, defaults to `"train"`):
            Which examples are met: the others, or those that are held out.
        validation_fraction (`float`):
            Chance of an example to be held out, in `[0, 1)`.
        normalizer ([`FrameNormalizer`], *optional*):
            How `make_clip` has brought values to what the network sees.
        shuffle_buffer (`int`, *optional*, defaults to 100):
            Number of examples that the next one is drawn from, held in memory as they are stored by each worker.
        rank (`int`, *optional*, defaults to 0):
            Number of this process among those that train together.
        world_size (`int`, *optional*, defaults to 1):
            How many there are.
        seed (`int`, *optional*, defaults to 0):
            Non-negative seed of order and clips.
        column (`str`, *optional*):
            The column that holds the videos. By default the only one that can.
        axes (`str`, *optional*):
            For arrays, what each of their axes is, such as `"TCHW"`.
        strict (`bool`, *optional*, defaults to `False`):
            Whether a bad video is an error.
        max_bad_share (`float`, *optional*, defaults to 0.5):
            Share of bad videos, of at least 20 seen, above which it is an error even so.

    Raises:
        `ValueError`: If an argument is out of range, `column` or `axes` do not fit the examples, or there are none. While
            it is iterated: if too many videos are bad, or a rank's pass gives no clip.
    """

    def __init__(
        self,
        dataset: "datasets.IterableDataset",
        *,
        make_clip: Callable[[ClipReader, int, int], dict[str, torch.Tensor]],
        side: Literal["train", "validation"] = "train",
        validation_fraction: float,
        normalizer: FrameNormalizer | None = None,
        shuffle_buffer: int = 100,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        column: str | None = None,
        axes: str | None = None,
        strict: bool = False,
        max_bad_share: float = 0.5,
    ):
        import datasets

        if not isinstance(dataset, datasets.IterableDataset):
            raise ValueError(
                f"`dataset` must be one split of a stream, `load_dataset(..., split=..., streaming=True)`, but got "
                f"{type(dataset).__name__}. A `Dataset` is read by `DatasetsReader`."
            )
        if side not in ("train", "validation"):
            raise ValueError(f'`side` must be "train" or "validation" but got {side!r}.')
        if not 0 <= validation_fraction < 1 or (side == "validation" and validation_fraction == 0):
            raise ValueError(
                f"`validation_fraction` must lie in [0, 1), and above 0 for validation, but got {validation_fraction}."
            )
        if not 0 <= max_bad_share <= 1:
            raise ValueError(f"`max_bad_share` must lie in [0, 1] but got {max_bad_share}.")
        self.world_size = check_integer("world_size", world_size, minimum=1)
        self.rank = check_integer("rank", rank, minimum=0)
        if rank >= world_size:
            raise ValueError(f"`rank` must be less than `world_size`, {world_size}, but got {rank}.")
        self.make_clip = make_clip
        self.normalizer = normalizer or FrameNormalizer()
        self.side = side
        self.validation_fraction = validation_fraction
        self.shuffle_buffer = check_integer("shuffle_buffer", shuffle_buffer, minimum=1)
        self.seed = check_integer("seed", seed, minimum=0)
        self.strict = strict
        self.max_bad_share = max_bad_share
        folders = _FOLDERS.get(dataset)
        if dataset.features is not None:
            dataset = dataset.decode(False)
        self._rows = dataset.with_format("arrow")
        features = dataset.features
        if features is None:
            first = next(iter(self._rows), None)
            if first is None:
                raise ValueError("`dataset` must have examples but the stream is empty.")
            features = datasets.Features.from_arrow_schema(first.schema)
        self._reader = _ExampleReader(features, column=column, axes=axes)
        self._reader._folders = folders
        # Shared with the workers. Each writes to a column of its own, so none waits for another.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._counts = torch.zeros(4, MAX_WORKERS, dtype=torch.int64).share_memory_()

    def __setstate__(self, state: dict) -> None:
        # Unpickling in a worker keeps shared memory shared; a plain copy (copy.deepcopy, pickle) gets its own.
        self.__dict__.update(state)
        self._epoch.share_memory_()
        self._counts.share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that clips are drawn for, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """
        Sets the epoch that clips are drawn for from the next pass on, here and in all workers.

        Args:
            epoch (`int`): Non-negative number of the epoch.

        Raises:
            `ValueError`: If `epoch` is negative or no integer.
        """
        self._epoch.fill_(check_integer("epoch", epoch, minimum=0))

    @property
    def fingerprint(self) -> str:
        """Which clips these are: nothing is known of a stream before it is read."""
        return "a stream"

    @property
    def num_seen(self) -> int:
        """How many videos were tried so far, by all workers of this rank."""
        return int(self._counts[SEEN].sum())

    @property
    def num_broken(self) -> int:
        """How many of them could not be used."""
        return int(self._counts[BAD].sum())

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """
        What items hold -> what the network sees: the same.

        Args:
            video (`torch.Tensor` of shape `(..., T, C, H, W)`): `"video"` of an item or a batch.

        Returns:
            `torch.Tensor` of shape `(..., T, C, H, W)`: The same.
        """
        return video

    def held_out(self, count: int) -> list[dict[str, torch.Tensor]]:
        """
        The first held-out clips in the order of the stream, the same on all ranks and whatever `side` is.

        Args:
            count (`int`): How many.

        Returns:
            `list[dict]`: The clips; fewer if the stream has no more.

        Raises:
            `ValueError`: If there is none.
        """
        check_integer("count", count, minimum=1)
        examples = (example for example in map(self._reader.of, self._rows) if self._is_held_out(example))
        clips = list(islice(self._clips(examples, epoch=0, worker=0), count))
        if not clips:
            raise ValueError(
                f"`validation_fraction` {self.validation_fraction} holds out no usable example of the stream. Pass a "
                "larger one."
            )
        return clips

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        from datasets.distributed import split_dataset_by_node

        worker_info = get_worker_info()
        worker, num_workers = (0, 1) if worker_info is None else (worker_info.id, worker_info.num_workers)
        self._counts[GIVEN, worker], self._counts[IS_OVER, worker] = 0, 0

        is_training, epoch, rows = self.side == "train", self.epoch, self._rows
        if is_training:
            # This shuffles shards only. The buffer of `datasets` joins its rows in one Arrow array, which fails at 2 GB.
            # (After a pass over parquet, `datasets` 5.2 sleeps for 5 seconds on account of a bug in Arrow.)
            rows = rows.shuffle(seed=self.seed, buffer_size=1)
        if self.world_size > 1:
            rows = split_dataset_by_node(rows, rank=self.rank, world_size=self.world_size)
        if is_training:
            rows.set_epoch(epoch)
        examples = map(self._reader.of, rows)  # of this rank and worker
        examples = (example for example in examples if self._is_held_out(example) != is_training)
        if is_training:
            examples = self._shuffled(examples, np.random.RandomState([self.seed % 2**32, epoch, self.rank, worker]))
        for clip in self._clips(examples, epoch=epoch if is_training else 0, worker=worker):
            self._counts[GIVEN, worker] += 1
            yield clip

        # A worker may well have nothing to give, but not all of them.
        self._counts[IS_OVER, worker] = 1
        if self._counts[IS_OVER, :num_workers].all() and not self._counts[GIVEN, :num_workers].any():
            raise ValueError(
                f"The stream gave no clip for {self.side} on rank {self.rank} of {self.world_size}, of {self.num_seen} "
                f"videos tried so far, {self.num_broken} of them bad. Check the warnings, `validation_fraction` and, with "
                "several ranks, whether there are as many examples as ranks."
            )

    def _is_held_out(self, example: "_ExampleReader") -> bool:
        return hash_of_name(example.name(0), seed=0) < self.validation_fraction

    def _shuffled(
        self, examples: Iterator["_ExampleReader"], rng: np.random.RandomState
    ) -> Iterator["_ExampleReader"]:
        """Draws from a buffer that is refilled from the stream."""
        buffer = []
        for example in examples:
            buffer.append(example)  # after `rows.shuffle`, a copy: it keeps no others in memory
            if len(buffer) > self.shuffle_buffer:
                yield buffer.pop(rng.randint(len(buffer)))
        for place in rng.permutation(len(buffer)):
            yield buffer[place]

    def _clips(self, examples: Iterator["_ExampleReader"], *, epoch: int, worker: int) -> Iterator[dict]:
        """The clips of examples, without the bad ones, which are counted."""
        for example in examples:
            name = example.name(0)
            digest = hashlib.sha256(f"{self.seed}/{epoch}/{name}".encode("utf-8", "surrogateescape")).digest()
            self._counts[SEEN, worker] += 1
            try:
                clip = self.make_clip(example, 0, int.from_bytes(digest[:8], "big") >> 1)
            except (ValueError, OSError) as error:
                if self.strict:
                    raise
                self._count_bad(name, error, worker)
                continue
            yield clip

    def _count_bad(self, name: str, error: Exception, worker: int) -> None:
        self._counts[BAD, worker] += 1
        num_seen, num_bad = self.num_seen, self.num_broken
        if num_bad <= MAX_NAMES_IN_MESSAGE:
            warnings.warn(f"Skipped {name}, which can not be used: {error}", stacklevel=2)
        if num_seen >= MIN_SEEN and num_bad > self.max_bad_share * num_seen:
            raise ValueError(
                f"{num_bad} of {num_seen} videos of the stream can not be used, more than `max_bad_share` "
                f"{self.max_bad_share} allows; the last is {name}: {error}"
            ) from error


class _ExampleReader(ArrowRowsReader):
    """
    One example of a stream.

    Args:
        features, column, axes: See [`ArrowRowsReader`].
    """

    _row: "pa.Table"  # of one row
    _name: str | None = None
    _fetched: bytes | None = None

    def of(self, row: "pa.Table") -> "_ExampleReader":
        """A reader of this row, with columns that are checked already."""
        example = copy.copy(self)
        example._row, example._files, example._infos = row, {}, {}
        return example

    def __len__(self) -> int:
        return 1

    def name(self, video: int) -> str:
        """Name of the example: see [`StreamingClips`]."""
        if self._name is None:
            self._name = self._find_name()
        return self._name

    def _find_name(self) -> str:
        if self._video_kind == "file":
            value = self._value(0)
            path = (value.get("path") or "") if isinstance(value, dict) else ""
            stored = value.get("bytes") if isinstance(value, dict) else value
            if stored is None:
                # Of files on the Hub, the name has the commit, by which the sides of a split must not change.
                return re.sub("(?<=@)[0-9a-f]{40}(?=/)", "", path) or "#missing"
            return f"{path}#{hashlib.sha256(stored).hexdigest()[:16]}"
        digest = hashlib.sha256()
        cell = _without_extension(self._cell(0, self.column))
        if self._video_kind == "array":
            while _is_list(cell.type):
                cell = _without_extension(cell.flatten())
            digest.update(np.ascontiguousarray(cell.to_numpy(zero_copy_only=False)))
        else:
            for image in cell[0].as_py() or []:
                image = image if isinstance(image, dict) else {"bytes": image}
                digest.update(image.get("bytes") or str(image.get("path")).encode("utf-8", "surrogateescape"))
        return f"#{digest.hexdigest()[:16]}"

    def _open_video(self, video: int) -> BinaryIO:
        # What lies on the Hub is fetched once, not for each look at it.
        if self._fetched is None:
            with super()._open_video(video) as file:
                self._fetched = file.read()
        return io.BytesIO(self._fetched)

    def _cell(self, video: int, column: str) -> "pa.Array":
        return self._row.column(column).chunk(0)


# ----------------------------------------------------------------------------------------------------------------------
# Columns and cells


def _kind(feature: Any) -> Literal["file", "images", "array"] | None:
    """How a column holds videos, or `None` if it holds something else."""
    import datasets

    if isinstance(feature, datasets.Video) or _is_encoded(feature):
        return "file"
    item = getattr(feature, "feature", None)
    if isinstance(item, datasets.Image) or (item is not None and _is_encoded(item)):
        return "images"
    return "array" if _number_depth(feature) in (3, 4) else None


def _is_encoded(feature: Any) -> bool:
    """Bytes, or what `Video` and `Image` are stored as, where a table does not say which of them it is."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return getattr(feature, "dtype", None) in ("binary", "large_binary")


def _number_depth(feature: Any) -> int | None:
    """Axes of nested lists of numbers; `None` if they are no numbers."""
    import datasets

    if hasattr(feature, "shape"):  # Array2D, Array3D, ...
        return len(feature.shape)
    item = getattr(feature, "feature", None)
    if item is not None:
        depth = _number_depth(item)
        return None if depth is None else depth + 1
    is_number = isinstance(feature, datasets.Value) and re.match("u?int|float|bool", feature.dtype)
    return 0 if is_number else None


def _example_shape(feature: Any, depth: int) -> list[int]:
    """The shape that a feature declares, with 8 for what it leaves open."""
    return [length or 8 for length in getattr(feature, "shape", (None,) * depth)]


def _file_names(dataset: "datasets.Dataset", column: str) -> list[str] | None:
    """Names of videos after their files; `None` if not each has one of its own."""
    import datasets

    if not isinstance(dataset.features[column], (datasets.Video, dict)):
        return None
    paths = dataset.select_columns([column])
    if isinstance(dataset.features[column], datasets.Video):
        paths = paths.cast_column(column, datasets.Video(decode=False))
    # Columns of a struct are columns of their own once it is flat, so the bytes beside them are not read.
    paths = paths.flatten().select_columns([f"{column}.path"]).with_format(None)[f"{column}.path"][:]
    if None in paths:
        return None
    paths = [path.replace("\\", "/") for path in paths]
    for names in ([path.rsplit("/", 1)[-1] for path in paths], paths):
        if len(set(names)) == len(names):
            return names
    return None


def _named_file(path: str, name: str, folders: tuple[str, ...] | None) -> Path:
    """A file here that a row names, if rows of this data set may name it."""
    # Links within the folders are not resolved: their owner made them, unlike the row.
    absolute = os.path.abspath(path)
    if folders is not None and not any(Path(absolute).is_relative_to(folder) for folder in folders):
        raise ValueError(
            f"{name} must lie in this data set but names {path}: a row may name files below {' or '.join(folders)} only. "
            "Move the file there, or store its bytes in the row."
        )
    check_regular_file(absolute)
    return Path(absolute)


def _open(value: Any, name: str, folders: tuple[str, ...] | None = None) -> BinaryIO:
    """The file that a cell holds or names: bytes, or a `dict` of `"bytes"` and `"path"`."""
    path, stored = (value.get("path"), value.get("bytes")) if isinstance(value, dict) else (None, value)
    if stored is not None:
        return io.BytesIO(stored)
    if path is None:
        raise ValueError(f"{name} has neither bytes nor a path.")
    if "://" not in path:
        return _named_file(path, name, folders).open("rb")
    protocols = re.findall(r"([\w+]+)://", path)
    if not set(protocols) <= set(PROTOCOLS):
        raise ValueError(
            f"{name} must lie in this data set but names {path}: of {', '.join(protocols)}, only "
            f"{', '.join(PROTOCOLS)} are opened. Download it."
        )
    container = path.rpartition("::")[2]  # of `zip://clip.mp4::/data/clips.zip`, the archive
    if "://" not in container:
        _named_file(container, name, folders)
    elif container.split("://")[0] != "hf":
        raise ValueError(f"{name} must lie in this data set but names {path}, which is neither here nor on the Hub.")
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        stored = file.read(MAX_FETCHED_BYTES + 1)
    if len(stored) > MAX_FETCHED_BYTES:
        raise ValueError(f"{name} is larger than {MAX_FETCHED_BYTES} bytes, which a stream does not fetch.")
    return io.BytesIO(stored)


def _without_extension(array: "pa.Array") -> "pa.Array":
    """`Array4D` and its like as the nested lists they are stored as."""
    return getattr(array, "storage", array)


def _is_list(arrow_type: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    return types.is_list(arrow_type) or types.is_large_list(arrow_type) or types.is_fixed_size_list(arrow_type)


def to_numpy(items: "pa.Array", name: str) -> np.ndarray:
    """
    Nested lists of numbers as an array.

    Args:
        items (`pyarrow.Array`): The lists, or numbers.
        name (`str`): What messages call them.

    Returns:
        `np.ndarray` of shape `(len(items), ...)`: A view where Arrow allows; 0. and 1., float32, for truth values.

    Raises:
        `ValueError`: If they are no numbers, some are missing, or lists differ in length.
    """
    import pyarrow.compute as pc

    shape = [len(items)]
    items = _without_extension(items)
    while _is_list(items.type):
        lengths = pc.unique(pc.list_value_length(items)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(f"{name} has lists of different lengths, {lengths}, where an array was expected.")
        shape.append(lengths[0])
        items = _without_extension(items.flatten())
    if items.null_count:
        raise ValueError(f"{name} has missing numbers.")
    values = items.to_numpy(zero_copy_only=False)
    if values.dtype.kind not in "biuf" or 0 in shape:
        raise ValueError(f"{name} must be numbers but is {values.dtype} of shape {tuple(shape)}.")
    # As uint8, which is read as levels from 0 to 255, a mask would be nearly black.
    values = values.astype(np.float32) if values.dtype.kind == "b" else values
    return values.reshape(shape)
