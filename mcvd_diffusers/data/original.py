"""The original MCVD code's data: its HDF5 files, its splits, and its way of choosing clips.

Voleti et al., "MCVD: Masked Conditional Video Diffusion for Prediction, Generation, and Interpolation", NeurIPS 2022,
published numbers for data sets that its converters had written as HDF5 files. [`HDF5Reader`] reads such files,
[`published_split`] tells training from test videos, and [`OriginalClips`] draws the same random numbers in the same
order, so that the original's clips come out bit for bit.

A file `shard_0001.hdf5` holds, for its videos 0, 1, 2, ...:

| in the file | is |
| --- | --- |
| `len/0`, `len/1`, ... | the number of frames of each video |
| `0/0`, `0/1`, ... | the frames of video 0, uint8, `(H, W)` grey or `(H, W, 3)` RGB |
| `person/0`, ... | KTH: who is seen in each video, 1 to 25 |
| `num_train`, `num_test` | UCF-101: training videos come first, then so many test videos |

| data set | a path is | training videos | test videos |
| --- | --- | --- | --- |
| BAIR, Cityscapes | a folder with the folders `train` and `test` of files | `train` | `test` |
| KTH | a folder of files (one, as published), or the file | persons 1 to 20, person by person | persons 21 to 25 |
| UCF-101 | a folder of files (one, as published), or the file | the first `num_train` | every 10th after them |

(The original takes KTH's persons from a pickle beside the file. That is not read here: pickles can run code, and the
same numbers stand in the file.)

```python
train_reader, test_reader = published_split("UCF101_h5")
train = OriginalClips(train_reader, num_frames=8, crop_width=64, random_crop=True, random_flip=True)
train[0]["video"]  # (8, 3, 64, 64), float32 in [-1, 1], a function of (seed, epoch, index)

# The original's test clips: as many as it takes, and one random stream for all of them.
test = OriginalClips(test_reader, num_frames=20, num_clips=256, crop_width=64)
clips = [item["video"] for item in test.in_sequence(range(256), np.random.RandomState(1234))]
```

Shapes: T frames, C channels (1 grey, 3 RGB), H height, W width.
"""

import math
from contextlib import contextmanager, suppress
from itertools import groupby
from os import PathLike
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from mcvd_diffusers.normalization import FrameNormalizer

from .clips import SeededDataset
from .reader import (
    MAX_NAMES_IN_MESSAGE,
    ClipReader,
    SubsetReader,
    VideoInfo,
    check_integer,
    check_regular_file,
    describe_files,
    existing_path,
    find_files,
    stack_frames,
)


HDF5_SUFFIXES = (".hdf5", ".h5")

# A file states the shape of its frames before it has to hold a single byte of them. The published ones have 128 x 128.
MAX_FRAME_BYTES = 64 * 2**20

KTH_TRAIN_PERSONS = range(1, 21)
KTH_TEST_PERSONS = range(21, 26)

# The original follows Mathieu et al., "Deep multi-scale video prediction beyond mean square error" (ICLR 2016), here.
UCF101_TEST_STEP = 10


class HDF5Reader(ClipReader):
    """
    Reads the videos of HDF5 files in the layout of the original MCVD code.

    Needs h5py (`pip install "mcvd-diffusers[hdf5]"`). The files of a folder are taken in the order of their names,
    sub-folders and hidden files are left out. What a file says is not trusted: links and storage outside of it are not
    followed, and frames of more than 64 MiB are refused unread.

    Args:
        path (`str` or `os.PathLike`):
            A folder of `.hdf5` or `.h5` files, or one such file.

    Raises:
        `ValueError`: If `path` does not exist or holds no such file, a file is broken or no HDF5 at all, or its group
            `len` does not give a number of frames for each of the videos 0, 1, 2, ...
        `ImportError`: If h5py is not installed.
    """

    def __init__(self, path: str | PathLike):
        path = existing_path("path", path)
        files = _hdf5_files(path)
        if not files:
            below = find_files(path) if path.is_dir() else [path]
            folders = sorted({str(file.parent) for file in below if file.suffix.lower() in HDF5_SUFFIXES})
            holds = f"them only in other folders: {', '.join(folders[:MAX_NAMES_IN_MESSAGE])}"
            raise ValueError(
                f"`path` must be a folder of HDF5 files ({', '.join(HDF5_SUFFIXES)}) or one of them, but {path} holds "
                f"{holds if folders else describe_files(below)}. Pass the folder that the files lie in; a folder "
                "with the folders `train` and `test` is one for `published_split`."
            )
        stems = [file.stem for file in files]
        twice = sorted({stem for stem in stems if stems.count(stem) > 1})
        if twice:
            raise ValueError(
                f"`path` must not hold two HDF5 files whose names differ in their suffix only but {path} does: "
                f"{twice}. Videos are named after the file. Rename or remove one of them."
            )
        # (file, number in the file, number of frames). No file stays open: HDF5 handles do not survive a fork.
        self._videos: list[tuple[Path, int, int]] = []
        for file in files:
            with _open_hdf5(file) as root:
                lengths = _read_integers(root, "len", file)
            self._videos += [(file, number, length) for number, length in enumerate(lengths)]

    def __len__(self) -> int:
        """Number of videos in all files."""
        return len(self._videos)

    def name(self, video: int) -> str:
        """Name of a video, its file without the suffix and its number there, such as `shard_0001/12`: see [`ClipReader`]."""
        file, number, _ = self._videos[video]
        return f"{file.stem}/{number}"

    def num_frames(self, video: int) -> int:
        """Number of frames that the file states; reading checks it: see [`ClipReader`]."""
        return self._videos[video][2]

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video, of its first frame: see [`ClipReader`]."""
        file, number, length = self._videos[video]
        with _open_hdf5(file) as root:
            dataset = _open_frame(_open_group(root, str(number), file), "0", file)
            height, width, *channels = dataset.shape
        return VideoInfo(length, *(channels or [1]), height, width, "uint8")

    def _read(self, video: int, frames: range) -> np.ndarray:
        file, number, length = self._videos[video]
        with _open_hdf5(file) as root:
            group = _open_group(root, str(number), file)
            if len(group) != length:
                raise _bad_file(file, f"`len/{number}`", f"the number of frames in `{number}`, {len(group)},", length)
            images = [_open_frame(group, str(frame), file)[()] for frame in frames]
        images = [image[..., None] if image.ndim == 2 else image for image in images]  # (H, W, C)
        return stack_frames(images, file / str(number))

    def _read_integers(self, name: str) -> list[int]:
        """The whole numbers that a group of every file gives for its videos, such as `person`."""
        values = []
        for file, videos in groupby(self._videos, key=lambda video: video[0]):
            num_videos = len(list(videos))
            with _open_hdf5(file) as root:
                values += _read_integers(root, name, file, count=num_videos)
        return values


def published_split(path: str | PathLike) -> tuple[ClipReader, ClipReader] | None:
    """
    The training and the test videos of a data set that was split by those who published it.

    Which data set it is shows in its files: see the tables above. KTH's videos are ordered by person, as the
    original's; of UCF-101's test videos only every 10th is taken, as the original does (369 of 3696). A folder `val`,
    which Cityscapes has, is used by neither.

    Args:
        path (`str` or `os.PathLike`):
            The data set.

    Returns:
        `tuple[ClipReader, ClipReader]` or `None`: Training and test videos; `None` if what lies there comes without
        such a split (other HDF5 files, folders of video files or of frames): see [`split_videos`].

    Raises:
        `ValueError`: If `path` does not exist, a file is broken, or its split can not be that of KTH or UCF-101.
        `ImportError`: If `path` holds HDF5 files and h5py is not installed.
    """
    path = existing_path("path", path)
    if _hdf5_files(path / "train") and _hdf5_files(path / "test"):
        return HDF5Reader(path / "train"), HDF5Reader(path / "test")
    files = _hdf5_files(path)
    if not files:
        return None
    with _open_hdf5(files[0]) as root:
        is_kth, is_ucf101 = (root.id.links.exists(name) for name in (b"person", b"num_train"))
        counts = [_read_integer(root, name, files[0]) for name in ("num_train", "num_test")] if is_ucf101 else []
    if not is_kth and not is_ucf101:
        return None
    reader = HDF5Reader(path)
    if is_ucf101:
        num_train, num_test = counts
        if num_train < 1 or num_test < UCF101_TEST_STEP or num_train + num_test > len(reader):
            raise _bad_file(
                files[0],
                "`num_train` and `num_test`",
                f"at least 1 and {UCF101_TEST_STEP} of the {len(reader)} videos",
                f"{num_train} and {num_test}",
            )
        # The original divides and drops the remainder: of 3696 test videos, the last one taken is the 3681st.
        test = [num_train + UCF101_TEST_STEP * index for index in range(num_test // UCF101_TEST_STEP)]
        return SubsetReader(reader, range(num_train)), SubsetReader(reader, test)

    persons = reader._read_integers("person")
    strangers = sorted({person for person in persons if person not in (*KTH_TRAIN_PERSONS, *KTH_TEST_PERSONS)})
    if strangers:
        raise _bad_file(files[0], "`person`", "KTH's persons 1 to 25", strangers[:MAX_NAMES_IN_MESSAGE])
    by_person = sorted(range(len(reader)), key=persons.__getitem__)
    train, test = (
        [video for video in by_person if persons[video] in side] for side in (KTH_TRAIN_PERSONS, KTH_TEST_PERSONS)
    )
    if not train or not test:
        raise _bad_file(
            files[0],
            "`person`",
            "persons of 1 to 20 for training and of 21 to 25 for testing",
            f"{len(train)} and {len(test)} videos of them",
        )
    return SubsetReader(reader, train), SubsetReader(reader, test)


class OriginalClips(SeededDataset):
    """
    Clips chosen as the original MCVD code chooses them.

    For each clip random numbers are drawn in this order, each only if there is something to choose:

    | drawn | what it decides |
    | --- | --- |
    | `randint(W - crop_width)`, if `random_crop` | the leftmost column |
    | `randint(2)`, if `random_flip` | 0: all frames are mirrored left to right |
    | `choice(num_video_frames - num_frames)` | the first frame |

    Like the first column, the first frame is never the last possible one: of 30 frames, a clip of 10 starts at 0 to
    19. ([`ClipDataset`] uses every start.) Clip i is of video `round(i / (num_clips - 1) * (num_videos - 1))`, so more
    clips than videos repeat some and fewer leave some out; Python rounds halves to the even number.

    Items are a function of `(seed, epoch, index)`: see [`SeededDataset`]. The original draws from one stream that runs
    through all items of a process; [`~SeededDataset.in_sequence`] does that and repeats its clips bit for bit.

    Args:
        reader ([`ClipReader`]):
            The videos, such as one side of [`published_split`].
        num_frames (`int`):
            Frames of a clip.
        num_clips (`int`, *optional*):
            Clips in an epoch. By default one of each video, as the original trains. It tests on 256 clips: that many
            videos are in BAIR's test set, and for KTH, Cityscapes and UCF-101 it says so.
        crop_width (`int`, *optional*):
            Columns that are cut out of each frame. By default frames keep their width. The original cuts UCF-101,
            whose frames are 64 x 85, to 64.
        random_crop (`bool`, *optional*, defaults to `False`):
            Whether the columns are anywhere, as the original trains, or in the middle. Frames that are as wide as
            `crop_width` are left alone.
        random_flip (`bool`, *optional*, defaults to `False`):
            Whether half of the clips are mirrored left to right, all frames of a clip alike.
        seed (`int`, *optional*, defaults to 0):
            Seed of all clips.

    Raises:
        `ValueError`: If an argument is out of range, there is no video, or one that a clip is taken from is too short,
            where the original would fail at its first batch.
    """

    def __init__(
        self,
        reader: ClipReader,
        *,
        num_frames: int,
        num_clips: int | None = None,
        crop_width: int | None = None,
        random_crop: bool = False,
        random_flip: bool = False,
        seed: int = 0,
    ):
        super().__init__(seed)
        if len(reader) == 0:
            raise ValueError("`reader` must hold a video but it is empty.")
        if random_crop and crop_width is None:
            raise ValueError(
                "`random_crop` must go with a `crop_width` but got none. The original's is 64 for UCF-101."
            )
        self.reader = reader
        self.num_frames = check_integer("num_frames", num_frames, minimum=1)
        self.num_clips = len(reader) if num_clips is None else check_integer("num_clips", num_clips, minimum=1)
        self.crop_width = None if crop_width is None else check_integer("crop_width", crop_width, minimum=1)
        self.random_crop = random_crop
        self.random_flip = random_flip
        lengths = {video: reader.num_frames(video) for video in dict.fromkeys(map(self.video_of, range(len(self))))}
        short = [f"{reader.name(video)} ({length})" for video, length in lengths.items() if length < num_frames]
        if short:
            raise ValueError(
                f"`num_frames` must not exceed the frames of any video but {num_frames} does for {len(short)} of "
                f"{len(lengths)} videos: {'; '.join(short[:MAX_NAMES_IN_MESSAGE])}"
                f"{'; ...' if len(short) > MAX_NAMES_IN_MESSAGE else ''}. Ask for shorter clips, or leave these out "
                "with `SubsetReader`."
            )
        height, width = reader.read(0, 0, 1).shape[-2:]
        if crop_width is not None and crop_width > width:
            raise ValueError(
                f"`crop_width` must not exceed the width of the frames but is {crop_width}, and those of "
                f"{reader.name(0)} are {height} x {width} (height x width). Pass a smaller one, or none."
            )
        self._width = width

    def __len__(self) -> int:
        """Number of clips in an epoch."""
        return self.num_clips

    def video_of(self, index: int) -> int:
        """
        The video that a clip is taken from.

        Args:
            index (`int`): Number of the clip, from 0.

        Returns:
            `int`: Number of the video in the reader.
        """
        # In this order, which decides how the quotient is rounded. The original divides by zero for a single clip.
        return round(index / (self.num_clips - 1) * (len(self.reader) - 1)) if self.num_clips > 1 else 0

    def _draw(self, index: int, rng: np.random.RandomState) -> dict[str, torch.Tensor]:
        video = self.video_of(index)
        crop_width = self._width if self.crop_width is None else self.crop_width
        num_columns_over = self._width - crop_width
        left = rng.randint(num_columns_over) if self.random_crop and num_columns_over else num_columns_over // 2
        is_flipped = self.random_flip and rng.randint(2) == 0
        num_starts = self.reader.num_frames(video) - self.num_frames
        start = int(rng.choice(num_starts)) if num_starts > 0 else 0

        frames = self.reader.read(video, start, self.num_frames)  # (T, C, H, W)
        if frames.shape[3] != self._width:
            raise ValueError(
                f"`reader` must hold frames of one width but those of {self.reader.name(video)} have "
                f"{frames.shape[3]} columns and those of {self.reader.name(0)} {self._width}. `ClipDataset` "
                "can resize them."
            )
        frames = frames[..., left : left + crop_width]  # (T, C, H, crop_width)
        clip = FrameNormalizer().encode(torch.from_numpy(frames.copy()))
        return {"video": clip.flip(-1) if is_flipped else clip}


def has_original_layout(path: str | PathLike) -> bool:
    """
    Whether HDF5 files are as the original's converters write them, as far as the first that can be read shows.

    Args:
        path (`str` or `os.PathLike`): A file, or a folder of files, also in sub-folders.

    Returns:
        `bool`: Whether it has a group `len`.

    Raises:
        `ImportError`: If h5py is not installed.
    """
    path = Path(path)
    for file in find_files(path) if path.is_dir() else [path]:
        if file.suffix.lower() in HDF5_SUFFIXES:
            with suppress(ValueError), _open_hdf5(file) as root:
                return root.id.links.exists(b"len")
    return False


def _hdf5_files(path: Path) -> list[Path]:
    """The HDF5 files in a folder, or the file itself, in the order of the original: of their names, as text."""
    if path.is_file():
        return [path] if path.suffix.lower() in HDF5_SUFFIXES else []
    files = [file for file in path.iterdir() if not file.name.startswith(".")] if path.is_dir() else []
    return sorted(file for file in files if file.suffix.lower() in HDF5_SUFFIXES and file.is_file())


def _import_h5py() -> ModuleType:
    """The reader of HDF5, which only HDF5 files need."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            'Reading HDF5 files needs h5py, which is not installed: `pip install "mcvd-diffusers[hdf5]"`.'
        ) from error
    return h5py


class _BadFileError(ValueError):
    """A file that holds something else than it should; the message names it."""


def _bad_file(file: Path, name: str, expected: str, got: object) -> _BadFileError:
    return _BadFileError(
        f"{file}: {name} must be {expected} but is {got}. Copy the file again, or convert the data set again."
    )


@contextmanager
def _open_hdf5(file: Path):
    """The root group of a file; whatever h5py finds wrong in it becomes the `ValueError` that readers promise."""
    h5py = _import_h5py()
    check_regular_file(file)
    try:
        with h5py.File(file, "r") as root:
            yield root
    except _BadFileError:
        raise
    # What h5py raises depends on where in the file the damage is.
    except (OSError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} can not be read: it must be an HDF5 file but is broken, cut off or another kind of file "
            f"({error}). Copy the file again, or convert the data set again."
        ) from error


def _open_member(group, name: str, kind: str, file: Path):
    """A group or data set that lies in this very file; `group[name]` alone would follow links anywhere."""
    h5py = _import_h5py()
    path = f"{group.name.rstrip('/')}/{name}".lstrip("/")
    # Not h5py's `in` and `get(getlink=True)`: they open the file behind an external link to see whether it is there.
    if not group.id.links.exists(name.encode()):
        raise _bad_file(file, f"`{path}`", f"a {kind}", "missing")
    if group.id.links.get_info(name.encode()).type != h5py.h5l.TYPE_HARD:
        raise _bad_file(file, f"`{path}`", f"a {kind} in this file", "a link to another place, which is not followed")
    member = group[name]
    if not isinstance(member, h5py.Group if kind == "group" else h5py.Dataset):
        raise _bad_file(file, f"`{path}`", f"a {kind}", f"a {type(member).__name__.lower()}")
    if kind == "data set" and (member.is_virtual or member.external):
        raise _bad_file(file, f"`{path}`", "stored in this file", "stored in others, which are not opened")
    return member


def _open_group(group, name: str, file: Path):
    return _open_member(group, name, "group", file)


def _read_integer(group, name: str, file: Path) -> int:
    """A whole number from 0 on."""
    dataset = _open_member(group, name, "data set", file)
    expected = "one whole number from 0 on"
    if dataset.shape != () or dataset.dtype.kind not in "iu":
        raise _bad_file(file, f"`{dataset.name[1:]}`", expected, f"{dataset.dtype} of shape {dataset.shape}")
    value = int(dataset[()])
    if value < 0:
        raise _bad_file(file, f"`{dataset.name[1:]}`", expected, value)
    return value


def _read_integers(root, name: str, file: Path, *, count: int | None = None) -> list[int]:
    """The numbers `name/0`, `name/1`, ... of the videos 0, 1, ...; as many as there are, or `count`."""
    group = _open_group(root, name, file)
    if count is not None and len(group) != count:
        raise _bad_file(file, f"`{name}`", f"a number for each of the {count} videos", f"{len(group)} of them")
    # Stops at the first that is missing, so a file that states a billion has to hold a billion.
    return [_read_integer(group, str(number), file) for number in range(len(group))]


def _open_frame(group, name: str, file: Path):
    """The data set of a frame `(H, W)` or `(H, W, 3)`, uint8; all that can be wrong with it is seen before it is read."""
    dataset = _open_member(group, name, "data set", file)
    shape = dataset.shape
    is_frame = shape is not None and (len(shape) == 2 or len(shape) == 3 and shape[2] == 3) and 0 not in shape
    if not is_frame or dataset.dtype != np.uint8:
        raise _bad_file(
            file, f"`{dataset.name[1:]}`", "a frame (H, W) or (H, W, 3) of uint8", f"{dataset.dtype} of shape {shape}"
        )
    # A chunk is unpacked as a whole, and can be stated to be larger than the frame.
    num_bytes = max(math.prod(shape), math.prod(dataset.chunks or ()))
    if num_bytes > MAX_FRAME_BYTES:
        raise _bad_file(
            file,
            f"`{dataset.name[1:]}`",
            f"a frame of at most {MAX_FRAME_BYTES} bytes",
            f"one of {num_bytes} (shape {shape}, stored in pieces of {dataset.chunks})",
        )
    if dataset.id.get_storage_size() == 0:
        raise _bad_file(file, f"`{dataset.name[1:]}`", "a frame", "empty: it was made, but never written")
    return dataset
