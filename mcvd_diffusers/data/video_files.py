"""Encoded videos: mp4, avi, webm, mov, mkv and gif, by random access.

What a file is, its content tells: gif is decoded by Pillow and everything else by FFmpeg, through PyAV or torchcodec.
[`VideoFile`] is one video, wherever its bytes lie; [`VideoFileReader`] is a folder of them.

Shapes: T frames, C channels, H height, W width.
"""

import io
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np

from .frame_folders import open_image
from .reader import (
    ClipReader,
    VideoInfo,
    check_regular_file,
    describe_files,
    errors_naming,
    existing_path,
    find_files,
    read_sidecar,
    stack_frames,
)


VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mov", ".mkv", ".m4v", ".gif")
DECODERS = ("pyav", "torchcodec")

# A file may declare any size in a few bytes. Twice 8K in pixels; as RGB that is 200 MB.
MAX_PIXELS = 2**26

# FFmpeg also takes scripts that name other files or addresses (HLS and DASH lists, concat, SDP) for videos, whatever
# their suffix. Only containers that hold their frames themselves are opened, and none may open anything further.
CONTAINERS = ("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "ogg", "asf", "ivf", "nut")
OPEN_OPTIONS = {
    "format_whitelist": ",".join(CONTAINERS),
    "protocol_whitelist": "file",
    "max_pixels": str(MAX_PIXELS),
}

# Where torchcodec gives PyAV's frames bit by bit (`tests/data/test_video_files.py`). It differs by up to 15 levels in
# odd sizes and 17 in 10-bit colour, where FFmpeg's versions scale differently, and reads no avi.
TORCHCODEC_CONTAINERS = ("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm")
TORCHCODEC_CODECS = ("h264", "mpeg4", "vp9")
TORCHCODEC_FORMATS = ("yuv420p", "yuvj420p")


class VideoFile:
    """
    One encoded video.

    `start` and `stride` of a window count frames as they are displayed, also where their rate varies, and every window
    gives the frames that decoding the whole file would give. Frames are found by their time stamps and decoded from
    the key frame before; where there are no time stamps to trust, as in avi, from the beginning of the file, which is
    also decoded once to be counted. A file that was cut off ends at its last whole frame,
    but a gif that was is refused.

    Frames are RGB, uint8: alpha is dropped, and colour of more than 8 bits reduced to 8. Grey pixel formats give one
    channel with the values that are stored: uint8, or floating point in `[0, 1]` if deeper than 8 bits; FFmpeg decodes
    H.264 without colour to a pixel format of colour, which gives three equal ones. A rotation
    that the file asks for is applied, as players do; a pixel aspect ratio and a crop noted in the container are not.

    Args:
        source (`Path` or `Callable[[], BinaryIO]`):
            The file, or a function that returns a new binary file object, which can seek and is closed after use.
        name (`str`):
            What messages call the video.
        decoder (`str`, *optional*, defaults to `"pyav"`):
            `"pyav"` or `"torchcodec"`. The latter is faster by a sixth at most as it is used here, gives damaged
            frames without a word, and brings no FFmpeg of its own, so that frames could depend on the machine. It is
            used where it is known to give PyAV's frames bit by bit, and PyAV elsewhere: for files of H.264,
            MPEG-4 or VP9 in mp4, mov, mkv or webm, 8-bit 4:2:0 of even size, not rotated. Gifs are always Pillow's.

    Raises:
        `ValueError`: If `decoder` is none of these.
    """

    def __init__(self, source: Path | Callable[[], BinaryIO], name: str, *, decoder: str = "pyav"):
        if decoder not in DECODERS:
            raise ValueError(f"`decoder` must be one of {', '.join(DECODERS)} but got {decoder!r}.")
        self.source = source
        self.name = name
        self.decoder = decoder
        self._facts: _Facts | None = None

    def info(self) -> VideoInfo:
        """
        Length and geometry of the video.

        The file's packets are counted, as the header's number can be wrong or missing, and its first frame is decoded.
        The result is kept.

        Returns:
            [`VideoInfo`]: What is known.

        Raises:
            `OSError` or `ValueError`: If the file is no video, is broken at its beginning, holds no frame, or asks for
                what is not supported.
            `ImportError`: If the file needs PyAV and it is not installed.
        """
        return self._known_facts().info

    def read(self, frames: range) -> np.ndarray:
        """
        Decodes frames.

        Args:
            frames (`range`): Which, ascending.

        Returns:
            `np.ndarray` of shape `(len(frames), C, H, W)`: The frames, as [`~VideoFile.info`] says.

        Raises:
            `OSError` or `ValueError`: If there are no such frames, or the file is broken where they lie, as far as its
                codec lets FFmpeg notice.
            `ImportError`: If a decoder is missing.
        """
        facts = self._known_facts()
        if len(frames) == 0 or frames.step < 1 or frames[0] < 0 or frames[-1] >= facts.info.num_frames:
            raise ValueError(f"{self.name} has frames 0 to {facts.info.num_frames - 1}, but {frames} was asked for.")
        if facts.is_gif:
            return self._checked(self._read_gif(frames))
        video = None
        if self.decoder == "torchcodec" and facts.suits_torchcodec:
            video = self._read_torchcodec(frames, facts)
        if video is None:
            video = self._read_pyav(frames, facts.timestamps)
        return self._checked(video)

    def _known_facts(self) -> "_Facts":
        if self._facts is None:
            self._facts = self._gif_facts() if self._first_bytes() == b"GIF8" else self._container_facts()
        return self._facts

    def _first_bytes(self) -> bytes:
        with self._open_file() as file:
            first_bytes = file.read(4)
        if not first_bytes:
            raise ValueError(f"{self.name} is empty: a file of zero bytes.")
        return first_bytes

    def _open_file(self) -> BinaryIO:
        if not isinstance(self.source, Path):
            return self.source()
        check_regular_file(self.source)
        return self.source.open("rb")

    def _checked(self, video: np.ndarray) -> np.ndarray:
        """Refuses a video whose size changes on the way."""
        info = self._facts.info
        expected = (info.num_channels, info.height, info.width)
        if video.shape[1:] != expected or video.dtype != info.dtype:
            raise ValueError(
                f"{self.name} changes on the way: its first frame (C, H, W) is {info.dtype} {expected}, a later one "
                f"{video.dtype} {video.shape[1:]}. Encode it again with one size."
            )
        return video

    # Gif

    def _gif_facts(self) -> "_Facts":
        with self._open_file() as file:
            # Pillow takes the end of the bytes for the end of the gif, which would be a shorter video without a word.
            is_whole = _has_gif_trailer(file)
            file.seek(0)
            with open_image(file, self.name, formats=["GIF"]) as image:
                width, height = image.size
                durations = []
                try:
                    while True:
                        image.seek(len(durations))
                        image.load()
                        durations.append(image.info.get("duration", 0))
                except EOFError:
                    is_damaged = False
                except (OSError, IndexError):
                    if not durations:
                        raise
                    is_damaged = True
        if is_damaged or not is_whole:
            raise ValueError(
                f"{self.name} is {'damaged' if is_whole else 'cut off'}: only its first {len(durations)} frames are whole. "
                "Copy it again, or save these frames anew."
            )
        total = sum(durations) / 1000  # s
        rate = len(durations) / total if total > 0 else None
        return _Facts(VideoInfo(len(durations), 3, height, width, "uint8", rate), is_gif=True)

    def _read_gif(self, frames: range) -> np.ndarray:
        images = []
        with self._open_file() as file, open_image(file, self.name, formats=["GIF"]) as image:
            for frame in frames:
                image.seek(frame)
                images.append(np.asarray(image.convert("RGB")))
        return stack_frames(images, self.name)

    # Containers

    @contextmanager
    def _open_stream(self):
        """The container and its first video stream that is no cover picture."""
        av = _import_av()
        with ExitStack() as stack:
            file = stack.enter_context(self._open_file())
            stack.enter_context(errors_naming(self.name, av.FFmpegError))
            # A file is given by its path where there is one: FFmpeg reads it faster than Python does. Tags in a
            # foreign encoding are no reason to lose the frames.
            path = str(self.source) if isinstance(self.source, Path) else file
            container = stack.enter_context(av.open(path, options=OPEN_OPTIONS, metadata_errors="replace"))
            streams = [
                stream
                for stream in container.streams.video
                if not stream.disposition & av.stream.Disposition.attached_pic
            ]
            if not streams:
                raise ValueError(f"{self.name} holds no video stream.")
            stream = streams[0]
            context = stream.codec_context
            if context is None:
                raise ValueError(f"{self.name} is encoded in a way that this FFmpeg can not decode.")
            if context.width * context.height > MAX_PIXELS:
                raise ValueError(
                    f"{self.name} declares frames of {context.height} x {context.width}; at most {MAX_PIXELS} pixels "
                    "are read. Encode it smaller, or remove it if that size is not meant."
                )
            context.options = {"max_pixels": str(MAX_PIXELS)}  # the frames may say something else than the header
            # The workers of a DataLoader are the parallelism; a pool of decoder threads in each of them is slower.
            context.thread_count = 1
            yield container, stream

    def _container_facts(self) -> "_Facts":
        with self._open_stream() as (container, stream):
            first = next(_decoded(container, stream), None)
            if first is None:
                raise ValueError(f"{self.name} holds no video frame.")
            if first.width * first.height > MAX_PIXELS:
                raise ValueError(f"{self.name} holds frames of {first.height} x {first.width}: too many pixels.")
            image = _to_array(first, _new_reformatter(), self.name)
            suits_torchcodec = (
                isinstance(self.source, Path)
                and container.format.name in TORCHCODEC_CONTAINERS
                and len(container.streams.video) == 1
                and stream.codec_context.name in TORCHCODEC_CODECS
                and first.format.name in TORCHCODEC_FORMATS
                and first.width % 2 == first.height % 2 == 0
                and _display_matrix(first) is None
            )
            average_rate, time_base = stream.average_rate, stream.time_base
        timestamps = self._find_timestamps(first.pts)
        num_frames = self._count_by_decoding() if timestamps is None else len(timestamps)
        rate = float(average_rate) if average_rate else None
        if timestamps is not None and len(timestamps) > 1:
            # Where the rate varies, headers state another one; where it does not, time stamps are rounded to a tick.
            ticks = int(timestamps[-1] - timestamps[0])
            if rate is None or abs((len(timestamps) - 1) / rate / time_base - ticks) > 2:
                rate = float((len(timestamps) - 1) / (ticks * time_base))
        height, width, num_channels = image.shape
        info = VideoInfo(num_frames, num_channels, height, width, image.dtype.name, rate)
        return _Facts(
            info,
            timestamps=timestamps,
            seconds_per_tick=float(time_base),
            suits_torchcodec=suits_torchcodec and timestamps is not None,
        )

    def _find_timestamps(self, first: int | None) -> np.ndarray | None:
        """Time stamps of the frames in display order, or `None` where they are no use; `first` frame's is given."""
        with self._open_stream() as (container, stream):
            if container.format.name == "avi":
                # It stores no presentation times: FFmpeg's guess is wrong for H.264 with B-frames.
                return None
            is_vp8 = stream.codec_context.name == "vp8"
            # A packet without data only flushes the decoder; a discarded one lies before the cut of an edit list; a
            # corrupt one is where a truncated download ends; and VP8 has packets that are never shown, bit 4 says.
            timestamps = [
                packet.pts
                for packet in container.demux(stream)
                if packet.size
                and not packet.is_discard
                and not packet.is_corrupt
                and not (is_vp8 and not bytes(packet)[0] & 0x10)
            ]
        if None in timestamps or len(set(timestamps)) < len(timestamps) or first not in timestamps:
            return None
        timestamps = np.sort(np.array(timestamps, dtype=np.int64))
        # Cut out of a longer video, a stream can begin with frames that refer to what is gone: they are not decoded.
        return timestamps[timestamps >= first]

    def _count_by_decoding(self) -> int:
        with self._open_stream() as (container, stream):
            return sum(1 for _ in _decoded(container, stream))

    def _read_pyav(self, frames: range, timestamps: np.ndarray | None) -> np.ndarray:
        if timestamps is None:
            images = self._decode(list(frames), is_position=True, seek=False)
        else:
            wanted = timestamps[frames.start : frames.stop : frames.step].tolist()
            images = self._decode(wanted, is_position=False, seek=True)
            if len(images) < len(frames):
                # Containers seek by decoding order, so a seek can land behind a frame that is shown before its key
                # frame.
                images = self._decode(wanted, is_position=False, seek=False)
        if len(images) < len(frames):
            raise ValueError(
                f"{self.name} is broken: only {len(images)} of {len(frames)} frames could be decoded from frame "
                f"{frames[0]} to {frames[-1]}. Encode it again or remove it."
            )
        return stack_frames(images, self.name)

    def _decode(self, wanted: list[int], *, is_position: bool, seek: bool) -> list[np.ndarray]:
        """The frames whose position from the start, or time stamp, is wanted; fewer if the file does not give them."""
        images = []
        remaining = set(wanted)
        # One for all frames: to set up a conversion takes ten times as long as to convert a small frame.
        reformatter = _new_reformatter()
        with self._open_stream() as (container, stream):
            if seek:
                container.seek(wanted[0], stream=stream)
            is_damaged = False
            for position, frame in enumerate(_decoded(container, stream)):
                key = position if is_position else frame.pts
                # FFmpeg conceals damage by guessing; it says so of that frame, but not of those that refer to it.
                is_damaged = frame.is_corrupt or (is_damaged and not frame.key_frame)
                if key in remaining and not is_damaged:
                    remaining.remove(key)
                    images.append(_to_array(frame, reformatter, self.name))
                if key is not None and key >= wanted[-1]:
                    break
        return images

    def _read_torchcodec(self, frames: range, facts: "_Facts") -> np.ndarray | None:
        """The frames, or `None` if torchcodec does not give those that PyAV gives."""
        decoders = _import_torchcodec()
        check_regular_file(self.source)
        try:
            decoder = decoders.VideoDecoder(
                str(self.source), dimension_order="NCHW", num_ffmpeg_threads=1, seek_mode="exact"
            )
            if len(decoder) != facts.info.num_frames:
                return None
            batch = decoder.get_frames_at(list(frames))
        except (RuntimeError, ValueError, IndexError):  # what PyAV makes of the file decides
            return None
        seconds = facts.timestamps[frames.start : frames.stop : frames.step] * facts.seconds_per_tick
        # The time stamps tell whether both speak of the same frames.
        if np.abs(batch.pts_seconds.numpy() - seconds).max() > 1e-4:
            return None
        return batch.data.numpy()


class VideoFileReader(ClipReader):
    """
    Reads the video files of a folder and its sub-folders.

    mp4, avi, webm, mov, mkv and m4v are decoded with PyAV (`pip install "mcvd-diffusers[video]"`) or torchcodec, gif
    with Pillow. Files are taken in natural order of their path (`clip_9` before `clip_10`); hidden files are left out.
    [`VideoFile`] says what frames they give. A vector such as `action` is read from the file `jump.action.npy` beside
    `jump.mp4`: an array with a row for each frame.

    Args:
        folder (`str` or `os.PathLike`):
            The folder, or one video file.
        decoder (`str`, *optional*, defaults to `"pyav"`):
            `"pyav"` or `"torchcodec"`: see [`VideoFile`].

    Raises:
        `ValueError`: If `folder` does not exist or holds no video file, or `decoder` is none of these.
    """

    def __init__(self, folder: str | PathLike, *, decoder: str = "pyav"):
        folder = existing_path("folder", folder)
        files = find_files(folder) if folder.is_dir() else [folder]
        self.folder = folder if folder.is_dir() else folder.parent
        self._videos = [
            VideoFile(file, str(file), decoder=decoder) for file in files if file.suffix.lower() in VIDEO_SUFFIXES
        ]
        if not self._videos:
            raise ValueError(
                f"`folder` must hold video files ({', '.join(VIDEO_SUFFIXES)}) but {folder} holds "
                f"{describe_files(files)}. Convert them, or use `FrameFolderReader` for folders of images."
            )

    def __len__(self) -> int:
        return len(self._videos)

    def name(self, video: int) -> str:
        """Name of a video, the path of its file below the folder: see [`ClipReader`]."""
        return self._videos[video].source.relative_to(self.folder).as_posix()

    def info(self, video: int) -> VideoInfo:
        """Length and geometry of a video: see [`VideoFile`]."""
        return self._videos[video].info()

    def _read(self, video: int, frames: range) -> np.ndarray:
        return self._videos[video].read(frames)

    def _read_vector(self, video: int, name: str, frames: range) -> np.ndarray:
        return read_sidecar(self._videos[video].source, name, frames, num_frames=self.num_frames(video))


@dataclass(frozen=True)
class _Facts:
    """What a file was found to be; `timestamps` in display order, where they can be trusted."""

    info: VideoInfo
    timestamps: np.ndarray | None = None
    seconds_per_tick: float | None = None
    suits_torchcodec: bool = False
    is_gif: bool = False


def _has_gif_trailer(file: BinaryIO) -> bool:
    """Whether a gif goes on to its trailer, the byte that ends it; what lies behind that is nobody's."""

    def skip_palette(flags: int) -> None:
        if flags & 0x80:
            file.seek(3 * 2 ** ((flags & 7) + 1), io.SEEK_CUR)

    header = file.read(13)
    if len(header) < 13:
        return False
    skip_palette(header[10])
    # Behind the end of the file, nothing is read.
    while introducer := file.read(1):
        if introducer == b";":
            return True
        if introducer == b"!":
            file.read(1)  # the kind of extension
        elif introducer == b",":
            descriptor = file.read(9)
            if len(descriptor) < 9:
                return False
            skip_palette(descriptor[8])
            file.read(1)  # bits of the first codes
        else:  # a stray byte, which Pillow passes over too
            continue
        while (length := file.read(1)) and length != b"\0":
            file.seek(length[0], io.SEEK_CUR)
    return False


def _decoded(container, stream):
    """The frames from where the container stands, without a last packet that is not entirely there."""
    for packet in container.demux(stream):
        if not packet.is_corrupt:
            yield from packet.decode()


def _to_array(frame, reformatter, name: str) -> np.ndarray:
    """A decoded frame as `(H, W, C)`, upright."""
    matrix = _display_matrix(frame)
    colours = [component for component in frame.format.components if not component.is_alpha]
    is_grey = len(colours) == 1 and not frame.format.has_palette
    # Grey is read as it is stored; the range that a stream declares for grey is seldom meant.
    if not is_grey:
        array = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()  # (H, W, 3)
    elif colours[0].bits <= 8:
        array = reformatter.reformat(frame, format="gray", threads=1).to_ndarray()[..., None]  # (H, W, 1)
    else:
        if len(frame.format.components) > 1:  # with alpha there is grey of 16 bits only
            frame = reformatter.reformat(frame, format="gray16le", threads=1)
        array = frame.to_ndarray()[..., None]  # (H, W, 1)
        if array.dtype == np.uint16:
            array = array.astype(np.float32) / (2 ** colours[0].bits - 1)
    return _upright(array, matrix, name)


def _display_matrix(frame) -> tuple[int, int, int, int] | None:
    """How pixels are to be moved for display, `(x to x, x to y, y to x, y to y)`; `None` if they may stay."""
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).tolist()
    return None if b == c == 0 and a > 0 and d > 0 else (a, b, c, d)


def _upright(array: np.ndarray, matrix: tuple[int, int, int, int] | None, name: str) -> np.ndarray:
    """Turns and mirrors a frame `(H, W, C)` as a display matrix says."""
    if matrix is None:
        return array
    a, b, c, d = matrix
    slack = max(map(abs, matrix)) // 64  # about a degree: encoders round
    if max(abs(b), abs(c)) <= slack < min(abs(a), abs(d)):
        x, y = a, d
    elif max(abs(a), abs(d)) <= slack < min(abs(b), abs(c)):
        array, x, y = array.swapaxes(0, 1), c, b
    else:
        raise ValueError(
            f"{name} asks to be shown turned by an angle that is no multiple of 90 degrees (display matrix "
            f"{[entry / 65536 for entry in matrix]}). Encode it upright."
        )
    return array[:: 1 if y > 0 else -1, :: 1 if x > 0 else -1]


def _new_reformatter():
    from av.video.reformatter import VideoReformatter

    return VideoReformatter()


def _import_av() -> ModuleType:
    """PyAV, which only video files need."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            'Reading video files needs PyAV, which is not installed: `pip install "mcvd-diffusers[video]"`. '
            "Gif files and folders of images are read without it."
        ) from error
    return av


def _import_torchcodec() -> ModuleType:
    """The decoders of torchcodec."""
    try:
        from torchcodec import decoders
    except (ImportError, RuntimeError, OSError) as error:
        raise ImportError(
            "`decoder` is 'torchcodec', which can not be imported: it needs FFmpeg's libraries, and a build that fits "
            'torch. Install them, or pass "pyav".'
        ) from error
    return decoders
