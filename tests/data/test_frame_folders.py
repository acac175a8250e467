"""A folder of images is a video, frame for frame."""

import os
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mcvd_diffusers.data import open_video
from mcvd_diffusers.data.frame_folders import FrameFolderReader
from mcvd_diffusers.data.reader import VideoInfo
from video_fixtures import NUM_FRAMES, frame_numbers, level_frames, write_frames


def test_frames_are_read_in_natural_order(tmp_path):
    frames = level_frames()
    for folder in ("clip 10", "clip 9", "nested/ä"):
        write_frames(tmp_path / folder, frames)
    (tmp_path / "clip 9" / "notes.txt").write_text("no frame")
    (tmp_path / "clip 9" / "._frame_0.png").touch()
    (tmp_path / "empty").mkdir()
    reader = FrameFolderReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == ["clip 9", "clip 10", "nested/ä"]
    assert reader.num_frames(0) == NUM_FRAMES
    np.testing.assert_array_equal(reader.read(0, 0, NUM_FRAMES), frames.transpose(0, 3, 1, 2))
    np.testing.assert_array_equal(reader.read(2, 1, 3, 4), frames[[1, 5, 9]].transpose(0, 3, 1, 2))


def test_images_keep_their_channels_and_depth(tmp_path):
    rng = np.random.RandomState(0)
    grey, rgba = rng.randint(256, size=(4, 5)).astype(np.uint8), rng.randint(256, size=(4, 5, 4)).astype(np.uint8)
    deep = rng.randint(65536, size=(4, 5)).astype(np.uint16)
    for folder, pixels in (("1 grey", grey), ("2 rgba", rgba), ("3 deep", deep)):
        write_frames(tmp_path / folder, pixels[None])
    reader = FrameFolderReader(tmp_path)
    np.testing.assert_array_equal(reader.read(0, 0, 1), grey[None, None])
    np.testing.assert_array_equal(reader.read(1, 0, 1), rgba[None, ..., :3].transpose(0, 3, 1, 2))
    assert reader.read(2, 0, 1).dtype == np.uint16
    np.testing.assert_array_equal(reader.read(2, 0, 1)[0, 0], deep)


def test_jpeg_frames_are_read(tmp_path):
    write_frames(tmp_path / "clip", level_frames(3), "{}.JPEG")
    assert frame_numbers(FrameFolderReader(tmp_path).read(0, 0, 3)) == [0, 1, 2]


def test_a_frame_that_is_a_dangling_link_leaves_no_hole_in_time(tmp_path):
    write_frames(tmp_path / "clip", level_frames(5))
    (tmp_path / "clip" / "frame_2.png").unlink()
    (tmp_path / "clip" / "frame_2.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "clip" / "frame_4.png").unlink()
    os.mkfifo(tmp_path / "clip" / "frame_4.png")
    reader = FrameFolderReader(tmp_path)
    assert reader.num_frames(0) == 5 and frame_numbers(reader.read(0, 0, 2)) == [0, 1]
    with pytest.raises(ValueError, match=r"frame_2\.png is a link to a place that does not exist, .*gone\.png"):
        reader.read(0, 1, 3)
    with pytest.raises(ValueError, match=r"frame_4\.png must be a file but .* a pipe"):
        reader.read(0, 3, 2)


def test_images_that_make_no_video_are_named(tmp_path):
    write_frames(tmp_path / "sizes", level_frames(2))
    Image.new("RGB", (3, 3)).save(tmp_path / "sizes" / "frame_2.png")
    write_frames(tmp_path / "torn", level_frames(2))
    (tmp_path / "torn" / "frame_1.png").write_bytes((tmp_path / "torn" / "frame_1.png").read_bytes()[:-30])
    reader = FrameFolderReader(tmp_path)
    with pytest.raises(ValueError, match=r"sizes holds frames of different shapes"):
        reader.read(0, 0, 3)
    with pytest.raises(ValueError, match=r"torn.frame_1\.png can not be read"):
        reader.read(1, 0, 2)


@pytest.mark.parametrize(
    "mode, suffix, kind",
    [
        ("1", "png", (1, "uint8")),
        ("L", "jpg", (1, "uint8")),
        ("LA", "png", (1, "uint8")),
        ("P", "png", (3, "uint8")),
        ("RGB", "webp", (3, "uint8")),
        ("RGBA", "png", (3, "uint8")),
        ("CMYK", "jpg", (3, "uint8")),
        ("I;16", "png", (1, "uint16")),
        ("I;16", "tif", (1, "uint16")),
        ("I;16B", "tif", (1, "uint16")),
        ("I", "tif", (1, "int32")),
        ("F", "tif", (1, "float32")),
    ],
)
def test_the_header_of_the_first_image_tells_what_will_be_read(tmp_path, mode, suffix, kind):
    (tmp_path / "clip").mkdir()
    for number in range(2):
        Image.new(mode, (7, 5)).save(tmp_path / "clip" / f"{number}.{suffix}")
    reader = FrameFolderReader(tmp_path)
    assert reader.info(0) == VideoInfo(2, kind[0], 5, 7, kind[1])
    frames = reader.read(0, 0, 2)
    assert frames.shape == (2, kind[0], 5, 7) and frames.dtype == kind[1]


def test_the_colours_of_a_palette_are_looked_up(tmp_path):
    (tmp_path / "clip").mkdir()
    image = Image.fromarray(np.array([[0, 1], [2, 0]], np.uint8), mode=None).convert("P")
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putdata([1, 0])
    image.save(tmp_path / "clip" / "0.png")
    np.testing.assert_array_equal(
        FrameFolderReader(tmp_path).read(0, 0, 1)[0], np.array([[[200, 10]], [[100, 20]], [[0, 30]]])
    )


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_values_of_32_bits_are_returned_as_stored(tmp_path, dtype):
    values = (np.random.RandomState(0).randn(3, 4, 5) * 1e5).astype(dtype)
    write_frames(tmp_path / "clip", values, "{}.tiff")
    frames = FrameFolderReader(tmp_path).read(0, 0, 3)
    assert frames.dtype == dtype
    np.testing.assert_array_equal(frames, values[:, None])


def test_an_image_that_declares_too_many_pixels_is_refused(tmp_path):
    for name, side in (("bomb", 60000), ("warning", 10000)):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        (tmp_path / name).mkdir()
        chunk = b"IHDR" + header
        data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
        (tmp_path / name / "0.png").write_bytes(data + b"\0\0\0\0IDAT\x35\xaf\x06\x1e\0\0\0\0IEND\xaeB`\x82")
    reader = FrameFolderReader(tmp_path)
    for video in (0, 1):
        for use in (lambda: reader.info(video), lambda: reader.read(video, 0, 1)):
            with pytest.raises(ValueError, match=r"(bomb|warning).0\.png can not be read: .*decompression bomb"):
                use()


def test_an_image_file_that_is_none_is_named(tmp_path):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "0.png").touch()
    (tmp_path / "clip" / "1.png").write_text("no image")
    reader = FrameFolderReader(tmp_path)
    assert reader.num_frames(0) == 2
    with pytest.raises(ValueError, match=r"clip.0\.png can not be read"):
        reader.info(0)
    with pytest.raises(ValueError, match=r"clip.1\.png can not be read"):
        reader.read(0, 1, 1)


def test_vectors_lie_beside_the_folder(tmp_path):
    write_frames(tmp_path / "a" / "run_03", level_frames(4))
    actions = np.arange(8.0).reshape(4, 2)
    np.save(tmp_path / "a" / "run_03.action.npy", actions)
    reader = FrameFolderReader(tmp_path)
    assert [reader.name(video) for video in range(len(reader))] == ["a/run_03"]
    np.testing.assert_array_equal(reader.read_vector(0, "action", 1, 2, 2), actions[1::2])
    with pytest.raises(ValueError, match=r"run_03\.pose\.npy can not be read"):
        reader.read_vector(0, "pose", 0, 1)


def test_a_reader_of_folders_can_be_pickled_after_use(tmp_path):
    write_frames(tmp_path / "clip", level_frames(4))
    reader = FrameFolderReader(tmp_path)
    frames = reader.read(0, 0, 4)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(0, 0, 4), frames)


def test_a_folder_can_be_one_video(tmp_path):
    frames = level_frames(3)
    write_frames(tmp_path / "run" / "a", frames)
    write_frames(tmp_path / "run" / "b", frames)
    reader = FrameFolderReader(tmp_path / "run" / "b", is_one_video=True)
    assert len(reader) == 1 and reader.name(0) == "b" and frame_numbers(reader.read(0, 0, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="must hold the images of one video, .* holds those of 2 folders"):
        FrameFolderReader(tmp_path / "run", is_one_video=True)


def test_one_video_is_opened_by_its_folder_or_its_name(tmp_path):
    frames = level_frames(3)
    for name in ("a", "b"):
        write_frames(tmp_path / "run" / name, frames)
    for path, name in ((tmp_path / "run" / "b", None), (tmp_path / "run", "b"), (tmp_path / "run", "[b-z]")):
        reader = open_video(path, name=name)
        assert len(reader) == 1 and reader.name(0) == "b" and reader.num_frames(0) == 3
    with pytest.raises(ValueError, match="`name` must say which of the 2 videos in .* is meant: a; b"):
        open_video(tmp_path / "run")
    with pytest.raises(ValueError, match="which of the 2 videos that \\* fits"):
        open_video(tmp_path / "run", name="*")
    with pytest.raises(ValueError, match="names videos that are not there: c"):
        open_video(tmp_path / "run", name="c")


def test_of_many_videos_those_that_are_not_named_are_counted(tmp_path):
    for number in range(13):
        write_frames(tmp_path / f"{number:02}", level_frames(1))
    with pytest.raises(ValueError, match="which of the 13 videos in .* is meant: 00; .*; 09; and 3 more\\.$"):
        open_video(tmp_path)
