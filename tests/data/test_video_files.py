"""A window of an encoded video is what decoding all of it would give, whatever the file does to prevent that."""

import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from mcvd_diffusers.data.reader import VideoInfo
from mcvd_diffusers.data.video_files import MAX_PIXELS, VideoFile, VideoFileReader
from video_fixtures import (
    ENCODINGS,
    NUM_FRAMES,
    frame_numbers,
    level_frames,
    write_audio,
    write_gif,
    write_video,
)


def moving_frames(num_frames: int = NUM_FRAMES, size: tuple[int, int] = (32, 48)) -> np.ndarray:
    """Frames (T, H, W, 3) of smooth waves: no two alike, and an encoder needs no great loss for them."""
    y, x = np.mgrid[: size[0], : size[1]]
    time = np.arange(num_frames)[:, None, None]
    waves = [127 + 127 * np.sin(x / (7 + c) + time / 3) * np.cos(y / (5 + c) + time / 5) for c in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def encode(
    file: Path,
    frames: np.ndarray,
    codec: str,
    pixel_format: str,
    options: dict | None = None,
    *,
    source_format: str = "rgb24",
    times: list[int] | None = None,
    rotation: dict | None = None,
) -> Path:
    """Writes a video with its own pixel format, and time stamps or a rotation."""
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pixel_format
        if rotation is not None:
            stream.set_display_rotation(**rotation)
        for number, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format=source_format).reformat(format=pixel_format)
            picture.pts = number if times is None else times[number]
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return file


def decode_all(file: Path) -> np.ndarray:
    """Frames (T, 3, H, W) of a straight decoding loop."""
    with av.open(str(file)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return np.stack(frames).transpose(0, 3, 1, 2)


def read_everywhere(reader: VideoFileReader) -> np.ndarray:
    """All frames of the first video, once windows of every start and some strides are found to be parts of them."""
    num_frames = reader.num_frames(0)
    everything = reader.read(0, 0, num_frames)
    for start in range(num_frames):
        for stride in (1, 2, 5):
            count = min(3, (num_frames - 1 - start) // stride + 1)
            window = everything[start : start + (count - 1) * stride + 1 : stride]
            np.testing.assert_array_equal(reader.read(0, start, count, stride), window)
    return everything


def import_torchcodec():
    return pytest.importorskip("torchcodec.decoders", reason="needs torchcodec", exc_type=(ImportError, RuntimeError))


# What was there first


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_frame_of_a_video_file_is_found_from_every_start(tmp_path, name):
    codec, options = ENCODINGS[name]
    write_video(tmp_path / name, level_frames(), codec, options)
    reader = VideoFileReader(tmp_path)
    assert reader.num_frames(0) == NUM_FRAMES
    everything = reader.read(0, 0, NUM_FRAMES)
    assert everything.shape == (NUM_FRAMES, 3, 32, 48) and everything.dtype == np.uint8
    assert frame_numbers(everything) == list(range(NUM_FRAMES))
    for start in range(NUM_FRAMES):
        np.testing.assert_array_equal(reader.read(0, start, NUM_FRAMES - start), everything[start:])
    np.testing.assert_array_equal(reader.read(0, 2, 3, 5), everything[2::5])


def test_a_gif_is_read_exactly_and_without_pyav(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    frames = level_frames()
    write_gif(tmp_path / "levels.gif", frames)
    reader = VideoFileReader(tmp_path)
    assert reader.num_frames(0) == NUM_FRAMES
    np.testing.assert_array_equal(reader.read(0, 0, NUM_FRAMES), frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(reader.read(0, 3, 4, 3), frames[3::3].transpose(0, 3, 1, 2))


def test_missing_pyav_names_the_extra_instead_of_skipping_every_video(tmp_path, monkeypatch):
    (tmp_path / "clip.mp4").write_bytes(b"not looked at")
    reader = VideoFileReader(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match=r'pip install "mcvd-diffusers\[video\]"'):
        reader.info(0)


@pytest.mark.parametrize("name, container_options", [("clip.mp4", {"movflags": "faststart"}), ("clip.mkv", {})])
def test_a_video_that_was_cut_off_ends_at_its_last_whole_frame(tmp_path, name, container_options):
    noise = np.random.RandomState(0).randint(256, size=(12, 32, 48, 3), dtype=np.uint8)
    file = write_video(tmp_path / name, noise, "mpeg4", container_options=container_options)
    whole = VideoFileReader(file).read(0, 0, 12)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    reader = VideoFileReader(file)
    num_frames = reader.num_frames(0)
    assert 1 < num_frames < 12
    np.testing.assert_array_equal(reader.read(0, 0, num_frames), whole[:num_frames])


def test_a_video_that_shrinks_after_it_was_counted_is_named(tmp_path):
    file = write_video(tmp_path / "clip.mkv", level_frames(), "mpeg4")
    reader = VideoFileReader(file)
    assert reader.num_frames(0) == NUM_FRAMES
    write_video(file, level_frames(5), "mpeg4")
    with pytest.raises(
        ValueError, match=r"clip\.mkv is broken: only 2 of 6 frames could be decoded from frame 3 to 8"
    ):
        reader.read(0, 3, 6)


def test_frames_before_the_cut_of_an_edit_list_are_not_counted(tmp_path):
    # What trimming without encoding leaves behind: the first 4 frames are there to be decoded but not to be shown.
    file = write_video(
        tmp_path / "clip.mp4", level_frames(), options={"x264-params": "scenecut=0:bframes=0:keyint=20"}
    )
    with av.open(str(file)) as container:
        frame_duration = next(container.demux(video=0)).duration
    data = bytearray(file.read_bytes())
    media_time = data.index(b"elst") + 16
    assert struct.unpack_from(">i", data, media_time) == (0,)
    struct.pack_into(">i", data, media_time, 4 * frame_duration)
    file.write_bytes(data)
    reader = VideoFileReader(file)
    assert reader.num_frames(0) == NUM_FRAMES - 4
    for start in range(NUM_FRAMES - 4):
        assert frame_numbers(reader.read(0, start, 1)) == [4 + start]


def test_a_title_in_a_foreign_encoding_does_not_cost_the_video(tmp_path):
    file = write_video(tmp_path / "clip.mkv", level_frames(3), title="TITLE")
    file.write_bytes(file.read_bytes().replace(b"TITLE", b"T\xe9TL\xe9"))
    assert frame_numbers(VideoFileReader(file).read(0, 0, 3)) == [0, 1, 2]


def test_a_video_that_is_broken_inside_the_window_is_named(tmp_path):
    file = write_video(tmp_path / "clip.mp4", level_frames(), "libvpx-vp9", {"g": "4"})
    with av.open(str(file)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    for position, size in packets[-5:]:
        data[position : position + size] = b"\xff" * size
    file.write_bytes(data)
    reader = VideoFileReader(tmp_path)
    assert frame_numbers(reader.read(0, 0, 8)) == list(range(8))
    with pytest.raises(ValueError, match=r"clip\.mp4"):
        reader.read(0, 6, 6)


def test_video_files_are_found_in_sub_folders_in_natural_order(tmp_path):
    for name in (
        "b/clip 10.gif",
        "b/clip 9.GIF",
        "a/日本 é.gif",
        "clip_1.gif",
        "b/._clip 9.gif",
        ".cache/x.gif",
        "b/a.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_gif(tmp_path / "new.gif", level_frames(2)).rename(tmp_path / name)
    reader = VideoFileReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == [
        "a/日本 é.gif",
        "b/clip 9.GIF",
        "b/clip 10.gif",
        "clip_1.gif",
    ]
    assert [reader.num_frames(video) for video in range(len(reader))] == [2, 2, 2, 2]


def test_paths_with_spaces_unicode_and_colons_are_read(tmp_path, monkeypatch):
    folder = tmp_path / "Vidéos de tëst 日本"
    folder.mkdir()
    write_video(folder / "clip:ü 1.mp4", level_frames(4))
    monkeypatch.chdir(folder)
    for reader in (VideoFileReader(folder), VideoFileReader(str(folder)), VideoFileReader("clip:ü 1.mp4")):
        assert reader.name(0) == "clip:ü 1.mp4"
        assert frame_numbers(reader.read(0, 1, 3)) == [1, 2, 3]


# Decoding against another decoder


@pytest.mark.parametrize(
    "name, codec, options",
    [
        ("h264.mp4", "libx264", {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0"}),
        ("open-gop.mkv", "libx264", {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0:open-gop=1"}),
        ("open-gop.mp4", "libx264", {"x264-params": "keyint=6:bframes=3:b-adapt=0:scenecut=0:open-gop=1"}),
        ("mpeg4.mov", "mpeg4", {"g": "5", "bf": "2"}),
        ("vp8.webm", "libvpx", {"g": "5"}),
        ("vp9.webm", "libvpx-vp9", {"g": "5"}),
        ("mpeg2.ts", "mpeg2video", {"g": "5", "bf": "2"}),
        ("mpeg2.mpg", "mpeg2video", {"g": "5", "bf": "2"}),
        ("flv.flv", "flv", {"g": "5"}),
        ("wmv2.asf", "wmv2", {"g": "5"}),
        ("vp9.ivf", "libvpx-vp9", {"g": "5"}),
        ("vp8.ogg", "libvpx", {"g": "5"}),
        ("mpeg4.nut", "mpeg4", {"g": "5", "bf": "2"}),
        ("mpeg4.avi", "mpeg4", {"g": "5", "bf": "2"}),
        ("h264.avi", "libx264", {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0"}),
    ],
)
def test_every_window_is_what_a_full_decoding_gives(tmp_path, name, codec, options):
    written = encode(tmp_path / name, moving_frames(size=(64, 80)), codec, "yuv420p", options)
    reader = VideoFileReader(written.rename(tmp_path / "any suffix.mp4"))
    expected = decode_all(tmp_path / "any suffix.mp4")
    assert len(expected) == reader.num_frames(0) == NUM_FRAMES
    np.testing.assert_array_equal(read_everywhere(reader), expected)


@pytest.mark.parametrize("size", [(32, 48), (33, 47), (32, 47), (33, 48)])
@pytest.mark.parametrize(
    "name, codec, pixel_format",
    [
        ("a.mkv", "ffv1", "bgr0"),
        ("a.avi", "ffv1", "bgr0"),
        ("a.mov", "qtrle", "rgb24"),
        ("a.mp4", "libx264rgb", "rgb24"),
    ],
)
def test_lossless_files_give_the_very_frames_that_were_written(tmp_path, name, codec, pixel_format, size):
    frames = np.random.RandomState(0).randint(256, size=(5, *size, 3), dtype=np.uint8)
    encode(tmp_path / name, frames, codec, pixel_format, {"crf": "0"} if codec == "libx264rgb" else {})
    reader = VideoFileReader(tmp_path)
    assert reader.info(0) == VideoInfo(5, 3, *size, "uint8", 10.0)
    np.testing.assert_array_equal(read_everywhere(reader), frames.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("size", [(33, 47), (32, 47), (33, 48), (2, 3)])
def test_odd_sizes_keep_every_column_and_row(tmp_path, size):
    colours = np.array([[200, 30, 90], [20, 180, 60]], np.uint8)
    frames = np.broadcast_to(colours[:, None, None], (2, *size, 3))
    encode(tmp_path / "a.mkv", np.ascontiguousarray(frames), "ffv1", "yuv420p")
    read = VideoFileReader(tmp_path).read(0, 0, 2)
    # Two roundings to 8 bits: a lost column would be green, or 0.
    assert np.abs(read.astype(int) - frames.transpose(0, 3, 1, 2)).max() <= 3


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("name", ENCODINGS)
def test_against_the_ffmpeg_command(tmp_path, name):
    codec, options = ENCODINGS[name]
    encode(tmp_path / name, moving_frames(), codec, "yuv420p", options)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / name, "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-sws_flags", "bilinear", "-vsync", "passthrough", "-"]
    raw = subprocess.run(command, capture_output=True, check=True).stdout
    expected = np.frombuffer(raw, np.uint8).reshape(NUM_FRAMES, 32, 48, 3).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(VideoFileReader(tmp_path, decoder="pyav").read(0, 0, NUM_FRAMES), expected)


@pytest.mark.parametrize("name", ENCODINGS)
def test_torchcodec_gives_the_frames_of_pyav(tmp_path, name):
    import_torchcodec()
    codec, options = ENCODINGS[name]
    encode(tmp_path / name, moving_frames(), codec, "yuv420p", options)
    reader = VideoFileReader(tmp_path, decoder="torchcodec")
    if not name.endswith("avi"):  # it does not only stand aside
        video = VideoFile(tmp_path / name, name, decoder="torchcodec")
        assert video._read_torchcodec(range(2, 9, 3), video._known_facts()) is not None
    expected = VideoFileReader(tmp_path, decoder="pyav").read(0, 0, NUM_FRAMES)
    np.testing.assert_array_equal(read_everywhere(reader), expected)


@pytest.mark.parametrize("decoder", ["torchcodec", "pyav"])
def test_the_decoder_does_not_change_frames_that_scale_differently(tmp_path, decoder):
    frames = moving_frames(size=(33, 47))
    encode(tmp_path / "odd.mp4", frames, "mpeg4", "yuv420p")
    encode(tmp_path / "deep.mkv", moving_frames(), "libx264", "yuv420p10le")
    encode(tmp_path / "turned.mp4", moving_frames(), "libx264", "yuv420p", rotation={"degrees": 90})
    reader = VideoFileReader(tmp_path, decoder=decoder)
    for video, name in enumerate(["deep.mkv", "odd.mp4", "turned.mp4"]):
        expected = decode_all(tmp_path / name)
        expected = np.rot90(expected, axes=(2, 3)) if name == "turned.mp4" else expected
        np.testing.assert_array_equal(reader.read(video, 0, NUM_FRAMES), expected)


def test_torchcodec_is_asked_for_by_name_only(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    write_video(tmp_path / "a.mp4", level_frames())
    assert frame_numbers(VideoFileReader(tmp_path).read(0, 4, 2)) == [4, 5]
    with pytest.raises(ImportError, match=r"`decoder` is 'torchcodec', which can not be imported"):
        VideoFileReader(tmp_path, decoder="torchcodec").read(0, 4, 2)


def test_an_unknown_decoder_is_refused(tmp_path):
    (tmp_path / "a.mp4").touch()
    with pytest.raises(ValueError, match=r"`decoder` must be one of pyav, torchcodec but got 'nvdec'"):
        VideoFileReader(tmp_path, decoder="nvdec")


# Time


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_frames_are_counted_as_displayed_where_their_rate_varies(tmp_path, name):
    times = [0, 1, 2, 7, 8, 30, 31, 32, 60, 61, 62, 63, 99]
    options = {"x264-params": "keyint=5:bframes=2:b-adapt=0:scenecut=0"}
    encode(tmp_path / name, level_frames(), "libx264", "yuv420p", options, times=times)
    reader = VideoFileReader(tmp_path)
    assert reader.num_frames(0) == NUM_FRAMES
    assert frame_numbers(read_everywhere(reader)) == list(range(NUM_FRAMES))
    assert 1 < reader.info(0).frames_per_second < 2  # 13 frames in 10 s


def test_packets_that_are_never_shown_are_no_frames(tmp_path):
    file = encode(tmp_path / "a.webm", moving_frames(), "libvpx", "yuv420p")
    with av.open(str(file)) as container:
        packets = [(packet.pos, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    for position, content in (packets[4], packets[7]):
        data[data.index(content, position)] &= ~0x10  # VP8's "show this frame"
    file.write_bytes(data)
    reader = VideoFileReader(file)
    expected = decode_all(file)
    assert len(expected) == reader.num_frames(0) == NUM_FRAMES - 2
    np.testing.assert_array_equal(read_everywhere(reader), expected)


@pytest.mark.parametrize(
    "codec, options",
    [
        ("libx264", {"x264-params": "keyint=6:bframes=2:b-adapt=0:scenecut=0:open-gop=1"}),
        ("mpeg2video", {"g": "6", "bf": "2", "sc_threshold": "1000000000"}),
    ],
)
def test_frames_that_refer_to_what_was_cut_away_are_not_counted(tmp_path, codec, options):
    whole = encode(tmp_path / "whole.mkv", moving_frames(24), codec, "yuv420p", options)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mkv"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        packets = [packet for packet in source.demux(video=0) if packet.size]
        second_key = [number for number, packet in enumerate(packets) if packet.is_keyframe][1]
        for packet in packets[second_key:]:
            packet.stream = stream
            target.mux(packet)
    expected = decode_all(tmp_path / "cut.mkv")
    assert len(expected) < len(packets) - second_key  # there is something to be left out
    reader = VideoFileReader(tmp_path / "cut.mkv")
    assert reader.num_frames(0) == len(expected)
    np.testing.assert_array_equal(read_everywhere(reader), expected)


def test_the_rate_is_that_of_the_file(tmp_path):
    write_video(tmp_path / "a.mp4", level_frames())
    write_gif(tmp_path / "b.gif", level_frames())
    Image.fromarray(level_frames()[0]).save(tmp_path / "c.gif")
    reader = VideoFileReader(tmp_path)
    assert [reader.info(video).frames_per_second for video in range(3)] == [10.0, 10.0, None]


# Geometry and pixels


@pytest.mark.parametrize(
    "rotation, turn",
    [
        ({"degrees": 90}, lambda v: np.rot90(v, 1, axes=(2, 3))),
        ({"degrees": 180}, lambda v: np.rot90(v, 2, axes=(2, 3))),
        ({"degrees": -90}, lambda v: np.rot90(v, 3, axes=(2, 3))),
        ({"degrees": 0, "hflip": True}, lambda v: v[..., ::-1]),
        ({"degrees": 0, "vflip": True}, lambda v: v[..., ::-1, :]),
        ({"degrees": 90, "hflip": True}, lambda v: np.rot90(v, 1, axes=(2, 3))[..., ::-1]),
    ],
)
def test_a_rotation_is_applied(tmp_path, rotation, turn):
    frames = np.random.RandomState(0).randint(256, size=(4, 16, 32, 3), dtype=np.uint8)
    encode(tmp_path / "a.mp4", frames, "libx264rgb", "rgb24", {"crf": "0"}, rotation=rotation)
    expected = turn(frames.transpose(0, 3, 1, 2))
    reader = VideoFileReader(tmp_path)
    assert reader.info(0) == VideoInfo(4, *expected.shape[1:], "uint8", 10.0)
    np.testing.assert_array_equal(read_everywhere(reader), expected)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg command")
@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotation_is_that_of_the_ffmpeg_command(tmp_path, degrees):
    frames = np.random.RandomState(0).randint(256, size=(2, 16, 32, 3), dtype=np.uint8)
    encode(tmp_path / "a.mp4", frames, "libx264rgb", "rgb24", {"crf": "0"}, rotation={"degrees": degrees})
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "a.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    raw = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    read = VideoFileReader(tmp_path).read(0, 0, 2)
    np.testing.assert_array_equal(read.transpose(0, 2, 3, 1).ravel(), raw)


def test_a_rotation_by_another_angle_is_refused(tmp_path):
    encode(tmp_path / "a.mp4", moving_frames(3), "libx264", "yuv420p", rotation={"degrees": 30})
    with pytest.raises(ValueError, match=r"a\.mp4 asks to be shown turned by an angle that is no multiple of 90"):
        VideoFileReader(tmp_path).info(0)


@pytest.mark.parametrize("pixel_format, bits", [("gray", 8), ("gray10le", 10), ("gray12le", 12), ("gray16le", 16)])
def test_grey_keeps_its_one_channel_and_its_depth(tmp_path, pixel_format, bits):
    dtype = np.uint8 if bits == 8 else np.uint16
    frames = np.random.RandomState(0).randint(2**bits, size=(4, 17, 23)).astype(dtype)
    frames[0, 0, :2] = 0, 2**bits - 1
    encode(tmp_path / "a.mkv", frames, "ffv1", pixel_format, source_format=pixel_format)
    reader = VideoFileReader(tmp_path)
    assert reader.info(0) == VideoInfo(4, 1, 17, 23, "uint8" if bits == 8 else "float32", 10.0)
    read = read_everywhere(reader)
    if bits == 8:
        np.testing.assert_array_equal(read, frames[:, None])
    else:
        assert read.dtype == np.float32 and read.min() == 0 and read.max() == 1
        np.testing.assert_array_equal(read, frames[:, None].astype(np.float32) / (2**bits - 1))


def test_ffmpeg_gives_grey_h264_in_colour(tmp_path):
    frames = moving_frames()[..., 0]
    encode(tmp_path / "a.mp4", frames, "libx264", "gray", {"crf": "0"}, source_format="gray")
    reader = VideoFileReader(tmp_path)
    assert reader.info(0).num_channels == 3
    read = read_everywhere(reader)
    assert (read == read[:, :1]).all() and read.std() > 10


@pytest.mark.parametrize(
    "name, codec, pixel_format", [("a.mov", "qtrle", "argb"), ("a.mov", "png", "rgba"), ("a.mkv", "ffv1", "bgra")]
)
def test_alpha_is_dropped(tmp_path, name, codec, pixel_format):
    rgba = np.random.RandomState(0).randint(256, size=(4, 16, 24, 4), dtype=np.uint8)
    encode(tmp_path / name, rgba, codec, pixel_format, source_format="rgba")
    np.testing.assert_array_equal(VideoFileReader(tmp_path).read(0, 0, 4), rgba[..., :3].transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "name, codec, pixel_format", [("a.mkv", "ffv1", "yuv444p10le"), ("a.mov", "prores_ks", "yuva444p10le")]
)
def test_deep_colour_is_reduced_to_8_bits(tmp_path, name, codec, pixel_format):
    frames = moving_frames(4, size=(32, 48))
    encode(tmp_path / name, frames, codec, pixel_format)
    reader = VideoFileReader(tmp_path)
    assert reader.info(0).dtype == "uint8"
    assert np.abs(reader.read(0, 0, 4).astype(int) - frames.transpose(0, 3, 1, 2)).mean() < 1.5


def test_the_matrix_and_range_of_colours_are_those_of_the_stream(tmp_path):
    frames = moving_frames(3)
    for name, space, colour_range in (("709.mp4", 1, 1), ("601 full.mp4", 5, 2), ("601.mp4", 5, 1)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("libx264", rate=10, options={"crf": "0"})
            stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv444p"
            stream.codec_context.colorspace, stream.codec_context.color_range = space, colour_range
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                picture = picture.reformat(format="yuv444p", dst_colorspace=space, dst_color_range=colour_range)
                container.mux(stream.encode(picture))
            container.mux(stream.encode())
    reader = VideoFileReader(tmp_path)
    for video in range(3):
        assert np.abs(reader.read(video, 0, 3).astype(int) - frames.transpose(0, 3, 1, 2)).max() <= 4, reader.name(
            video
        )


def test_transparency_of_a_gif_is_dropped(tmp_path):
    images = []
    for frame in level_frames(4):
        image = Image.fromarray(frame).convert("RGBA")
        image.paste((200, 0, 0, 255), (3, 3, 9, 9))
        images.append(image)
    images[0].save(tmp_path / "a.gif", save_all=True, append_images=images[1:], duration=50, disposal=2)
    reader = VideoFileReader(tmp_path)
    assert reader.info(0) == VideoInfo(4, 3, 32, 48, "uint8", 20.0)
    expected = np.stack([np.asarray(image.convert("RGB")) for image in images]).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(read_everywhere(reader), expected)


# Files that are not what they seem


def test_the_content_decides_not_the_suffix(tmp_path):
    write_gif(tmp_path / "a.gif", level_frames()).rename(tmp_path / "a.mp4")
    write_video(tmp_path / "b.mp4", level_frames()).rename(tmp_path / "b.gif")
    write_video(tmp_path / "c.mkv", level_frames(), "mpeg4").rename(tmp_path / "c.avi")
    reader = VideoFileReader(tmp_path)
    for video in range(3):
        assert frame_numbers(reader.read(video, 0, NUM_FRAMES)) == list(range(NUM_FRAMES))


def test_files_that_are_no_videos_are_named(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.gif").touch()
    write_audio(tmp_path / "sound.mp4")
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    (tmp_path / "text.gif").write_text("GIF89a but no video " * 100)
    (tmp_path / "noise.mkv").write_bytes(np.random.RandomState(0).bytes(5000))
    Image.new("RGB", (8, 8)).save(tmp_path / "image.mp4", format="png")
    moov = write_video(tmp_path / "no index.mp4", level_frames())
    moov.write_bytes(moov.read_bytes()[:600])
    # A header, and no frame behind it.
    short = encode(tmp_path / "clip.ivf", moving_frames(), "libvpx", "yuv420p").rename(tmp_path / "no frames.mkv")
    short.write_bytes(short.read_bytes()[:32])
    reader = VideoFileReader(tmp_path)
    assert len(reader) == 9
    messages = {}
    for video in range(len(reader)):
        with pytest.raises(ValueError, match=reader.name(video)) as error:
            reader.info(video)
        messages[reader.name(video)] = str(error.value)
    assert "a file of zero bytes" in messages["empty.mp4"] and "a file of zero bytes" in messages["empty.gif"]
    assert "no video stream" in messages["sound.mp4"]
    assert "no video frame" in messages["no frames.mkv"]


def test_a_cover_picture_is_no_video(tmp_path):
    png = tmp_path / "cover.png"
    Image.new("RGB", (8, 8)).save(png)
    sound = write_audio(tmp_path / "sound.m4a")
    with av.open(str(png)) as picture, av.open(str(sound)) as audio, av.open(str(tmp_path / "a.mp4"), "w") as target:
        streams = {}
        for source in (picture.streams.video[0], audio.streams.audio[0]):
            streams[source.type] = target.add_stream_from_template(source)
        streams["video"].disposition = av.stream.Disposition.attached_pic
        for source in (picture, audio):
            for packet in source.demux():
                if packet.size:
                    packet.stream = streams[packet.stream.type]
                    target.mux(packet)
    with pytest.raises(ValueError, match=r"a\.mp4 holds no video stream"):
        VideoFileReader(tmp_path).info(0)


@pytest.mark.parametrize(
    "script",
    [
        "ffconcat version 1.0\nfile real.mkv\n",
        "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nreal.mkv\n#EXT-X-ENDLIST\n",
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"></MPD>',
    ],
    ids=["concat", "hls", "sdp", "dash"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".avi"])
def test_scripts_open_no_other_file(tmp_path, script, suffix):
    write_video(tmp_path / "real.mkv", level_frames(3), "mpeg4")
    playlist = tmp_path / f"playlist{suffix}"
    playlist.write_text(script)
    if script.startswith("ffconcat"):
        with av.open(str(playlist)) as container:  # FFmpeg itself is taken in
            assert len(list(container.decode(video=0))) == 3
    for video in (VideoFile(playlist, "playlist"), VideoFile(partial(open, playlist, "rb"), "playlist")):
        with pytest.raises(ValueError, match=r"playlist can not be read"):
            video.info()


def test_an_absurd_size_is_refused_before_memory_is_taken(tmp_path):
    for name, size in (("huge.mov", (60000, 50000)), ("large.mov", (9000, 9000))):
        file = encode(tmp_path / name, moving_frames(2), "qtrle", "rgb24")
        data = bytearray(file.read_bytes())
        place = data.index(b"rle ") + 28  # in the sample's description: name of the codec, 24 bytes, width, height
        assert struct.unpack_from(">HH", data, place) == (48, 32)
        struct.pack_into(">HH", data, place, *size)
        file.write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} (declares frames of 9000 x 9000; at most|can not be read)"):
            VideoFileReader(file).info(0)
    assert 9000 * 9000 > MAX_PIXELS


def test_a_gif_of_absurd_size_is_refused(tmp_path):
    file = write_gif(tmp_path / "a.gif", level_frames(2))
    data = bytearray(file.read_bytes())
    struct.pack_into("<HH", data, 6, 60000, 60000)
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"a\.gif can not be read: .*decompression bomb"):
        VideoFileReader(tmp_path).info(0)


@pytest.mark.parametrize("codec, options", [("mpeg4", {"g": "20", "bf": "2"}), ("ffv1", {})])
def test_damage_in_the_middle_is_noticed_where_it_matters(tmp_path, codec, options):
    frames = np.random.RandomState(0).randint(256, size=(NUM_FRAMES, 64, 64, 3), dtype=np.uint8)
    file = encode(tmp_path / "a.mkv", frames, codec, "yuv420p", options)
    with av.open(str(file)) as container:
        packets = [(packet.pos, bytes(packet)) for packet in container.demux(video=0) if packet.size]
    data = bytearray(file.read_bytes())
    position, content = packets[6]
    place = data.index(content, position)
    third = len(content) // 3
    data[place + third : place + 2 * third] = np.random.RandomState(1).bytes(third)
    before = VideoFileReader(file).read(0, 0, 2)
    file.write_bytes(data)
    reader = VideoFileReader(file)
    np.testing.assert_array_equal(reader.read(0, 0, 2), before)
    with pytest.raises(ValueError, match=r"a\.mkv"):
        reader.read(0, 0, NUM_FRAMES)


def test_a_gif_that_was_cut_off_is_refused_wherever_it_was_cut(tmp_path):
    frames = np.random.RandomState(0).randint(256, size=(4, 6, 6), dtype=np.uint8)
    file = write_gif(tmp_path / "a.gif", frames)
    whole, content = VideoFileReader(file).read(0, 0, 4), file.read_bytes()
    messages = set()
    for size in range(1, len(content)):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"a\.gif") as error:
            VideoFileReader(file).info(0)
        messages |= set(re.findall("is cut off: only its first ([0-9]) frames are whole", str(error.value)))
    assert messages == set("1234")  # a lost trailer leaves all four
    for padding in (b"\0" * 5000, b"junk"):
        file.write_bytes(content + padding)
        np.testing.assert_array_equal(VideoFileReader(file).read(0, 0, 4), whole)


def test_a_gif_with_comments_palettes_and_stray_bytes_is_whole(tmp_path):
    images = [Image.fromarray(frame).quantize(8 + number) for number, frame in enumerate(level_frames(3))]
    file = tmp_path / "a.gif"
    images[0].save(file, save_all=True, append_images=images[1:], comment=b"x;" * 300, loop=0)
    content = file.read_bytes()
    assert VideoFileReader(file).num_frames(0) == 3
    file.write_bytes(content[:-1] + b"\0\0;")
    assert VideoFileReader(file).num_frames(0) == 3


def test_what_is_no_regular_file_is_a_video_that_can_not_be_read(tmp_path):
    write_gif(tmp_path / "a.gif", level_frames(2))
    (tmp_path / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    os.mkfifo(tmp_path / "c.avi")
    os.mkfifo(tmp_path / "a.action.npy")
    reader = VideoFileReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == ["a.gif", "b.mp4", "c.avi"]
    for video, message in enumerate(
        [r"b\.mp4 is a link to a place that does not exist", r"c\.avi must be .* a pipe"], 1
    ):
        with pytest.raises(ValueError, match=message):
            reader.info(video)
    with pytest.raises(ValueError, match=r"a\.action\.npy must be a file but .* a pipe"):
        reader.read_vector(0, "action", 0, 2)


def test_vectors_beside_a_video_must_be_finite_arrays(tmp_path):
    reader = VideoFileReader(write_gif(tmp_path / "a.gif", level_frames(4)))
    for value in (np.nan, -np.inf, 1e39):
        rows = np.zeros((4, 2))
        rows[2, 1] = value
        np.save(tmp_path / "a.action.npy", rows)
        with pytest.raises(
            ValueError,
            match=rf"`action` of a\.gif must be finite as float32 but frame 2 has 0\.0; {re.escape(str(value))}",
        ):
            reader.read_vector(0, "action", 0, 2, 2)
        assert reader.read_vector(0, "action", 0, 2).tolist() == [[0, 0]] * 2
    np.savez(tmp_path / "b.npz", np.zeros(4))
    for content in ((tmp_path / "b.npz").read_bytes(), b"\x93NUMPY\1\0\x10\0{'descr': [((((((", b""):
        (tmp_path / "a.action.npy").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.action\.npy can not be read"):
            reader.read_vector(0, "action", 0, 2)


def test_an_avi_that_was_cut_off_ends_at_its_last_whole_frame(tmp_path):
    noise = np.random.RandomState(0).randint(256, size=(12, 64, 96, 3), dtype=np.uint8)
    file = write_video(tmp_path / "a.avi", noise, "mpeg4")
    whole = VideoFileReader(file).read(0, 0, 12)
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 6 // 10])
    reader = VideoFileReader(file)
    num_frames = reader.num_frames(0)
    assert 1 < num_frames < 12
    np.testing.assert_array_equal(read_everywhere(reader), whole[:num_frames])


def test_a_size_that_changes_on_the_way_is_refused(tmp_path):
    parts = []
    for number, size in enumerate([(32, 48), (48, 32)]):
        file = encode(tmp_path / f"{number}.ts", moving_frames(4, size), "mpeg2video", "yuv420p")
        parts.append(file.read_bytes())
    (tmp_path / "a.mp4").write_bytes(b"".join(parts))
    reader = VideoFileReader(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match=r"a\.mp4 (holds frames of different shapes|changes on the way|is broken)"):
        reader.read(0, 0, reader.num_frames(0))
    with pytest.raises(
        ValueError, match=r"a\.mp4 changes on the way: its first frame \(C, H, W\) is uint8 \(3, 32, 48\)"
    ):
        reader.read(0, reader.num_frames(0) - 2, 2)


# Other sources than files, and vectors


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm", "mpeg4.avi", "levels.gif"])
def test_a_file_object_gives_what_the_file_gives(tmp_path, name):
    file = tmp_path / name
    write_gif(file, level_frames()) if name == "levels.gif" else write_video(file, level_frames(), *ENCODINGS[name])
    opened = []

    def open_file():
        opened.append(file.open("rb"))
        return opened[-1]

    from_file, from_object = VideoFile(file, "file"), VideoFile(open_file, "object")
    assert from_object.info() == from_file.info()
    for frames in (range(NUM_FRAMES), range(3, 10, 2), range(12, 13)):
        np.testing.assert_array_equal(from_object.read(frames), from_file.read(frames))
    assert opened and all(file.closed for file in opened)


def test_a_video_file_can_be_pickled_before_and_after_use(tmp_path):
    write_video(tmp_path / "a.mp4", level_frames())
    reader = VideoFileReader(tmp_path)
    before = pickle.loads(pickle.dumps(reader))
    everything = reader.read(0, 0, NUM_FRAMES)
    for copy in (before, pickle.loads(pickle.dumps(reader))):
        np.testing.assert_array_equal(copy.read(0, 2, 5, 2), everything[2:12:2])


@pytest.mark.parametrize("frames", [range(0), range(-1, 2), range(12, 14), range(5, 2, -1)])
def test_frames_that_do_not_exist_are_refused(tmp_path, frames):
    video = VideoFile(write_video(tmp_path / "a.mp4", level_frames()), "clip")
    with pytest.raises(ValueError, match=r"clip has frames 0 to 12, but range"):
        video.read(frames)


def test_vectors_lie_beside_their_video(tmp_path):
    write_video(tmp_path / "jump.mp4", level_frames())
    write_video(tmp_path / "walk.mp4", level_frames())
    actions = np.random.RandomState(0).randn(NUM_FRAMES, 4)
    np.save(tmp_path / "jump.action.npy", actions)
    np.save(tmp_path / "jump.time.npy", np.arange(NUM_FRAMES - 1))
    reader = VideoFileReader(tmp_path)
    np.testing.assert_array_equal(reader.read_vector(0, "action", 3, 4, 2), actions[3:11:2].astype(np.float32))
    with pytest.raises(ValueError, match=r"walk\.action\.npy can not be read"):
        reader.read_vector(1, "action", 0, 1)
    with pytest.raises(ValueError, match=r"jump\.time\.npy must have a row for each of the 13 frames"):
        reader.read_vector(0, "time", 0, 1)
