"""Small videos whose frames tell their number, written with PyAV and Pillow."""

from pathlib import Path

import av
import numpy as np
from PIL import Image


NUM_FRAMES = 13

# Short groups of pictures and B-frames, the cases in which seeking goes wrong; without `b-adapt=0` and `scenecut=0`
# x264 finds no use for either in frames as plain as these.
X264 = {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0"}
ENCODINGS = {
    "h264.mp4": ("libx264", X264),
    "open-gop.mp4": ("libx264", {"x264-params": X264["x264-params"] + ":open-gop=1"}),
    "mpeg4.mov": ("mpeg4", {"g": "5", "bf": "2"}),
    "h264.mkv": ("libx264", X264),
    "vp9.webm": ("libvpx-vp9", {"g": "5"}),
    "h264.avi": ("libx264", X264),
    "mpeg4.avi": ("mpeg4", {"g": "5", "bf": "2"}),
}


def grey_level(frame: int) -> int:
    return 20 + 15 * frame


def level_frames(num_frames: int = NUM_FRAMES, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frames (T, H, W, 3) of one grey level each, so that a decoded frame tells its number."""
    return np.stack([np.full((*size, 3), grey_level(frame), np.uint8) for frame in range(num_frames)])


def write_video(
    file: Path,
    frames: np.ndarray,
    codec: str = "libx264",
    options: dict | None = None,
    container_options: dict | None = None,
    title: str = "",
) -> Path:
    with av.open(str(file), "w", options=container_options or {}) as container:
        container.metadata["title"] = title
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file


def write_gif(file: Path, frames: np.ndarray) -> Path:
    first, *others = map(Image.fromarray, frames)
    first.save(file, save_all=True, append_images=others, duration=100)
    return file


def write_frames(folder: Path, frames: np.ndarray, pattern: str = "frame_{}.png") -> Path:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / pattern.format(number))
    return folder


def write_audio(file: Path) -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def frame_numbers(frames: np.ndarray) -> list[int]:
    """Which frames of `level_frames` these are; codecs may be off by a few grey levels."""
    return [round((float(frame.mean()) - 20) / 15) for frame in frames]
