"""A path is given the reader that fits what lies there."""

import errno
import os
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from mcvd_diffusers.data import FrameFolderReader, HDF5Reader, VideoFileReader, open_reader
from video_fixtures import level_frames, write_frames, write_gif


def test_open_reader_chooses_by_what_the_path_holds(tmp_path):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    assert isinstance(open_reader(tmp_path), VideoFileReader)
    assert isinstance(open_reader(tmp_path / "clip.gif"), VideoFileReader)
    write_frames(tmp_path / "frames" / "clip", level_frames(2))
    assert isinstance(open_reader(tmp_path / "frames"), FrameFolderReader)


@pytest.mark.parametrize("open_path", [open_reader, VideoFileReader, FrameFolderReader])
def test_a_path_without_videos_says_what_it_holds(tmp_path, open_path):
    with pytest.raises(ValueError, match=r"must exist but .*nowhere does not"):
        open_path(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no files"):
        open_path(tmp_path)
    (tmp_path / "readme.txt").touch()
    (tmp_path / "data.csv").touch()
    with pytest.raises(ValueError, match=r"holds only files of other kinds \(1 \.csv, 1 \.txt\)|1 \.txt, 1 \.csv"):
        open_path(tmp_path)
    with pytest.raises(ValueError, match=r"readme\.txt"):
        open_path(tmp_path / "readme.txt")


def test_a_mixture_of_videos_and_images_asks_which_is_meant(tmp_path):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    write_frames(tmp_path / "clip", level_frames(3))
    with pytest.raises(ValueError, match=r"must hold one kind of data but .* holds 1 video files and 3 images"):
        open_reader(tmp_path)
    assert len(VideoFileReader(tmp_path)) == len(FrameFolderReader(tmp_path)) == 1


def test_images_outside_of_a_sub_folder_are_refused(tmp_path):
    folder = write_frames(tmp_path / "clip", level_frames(2))
    with pytest.raises(ValueError, match=r"one sub-folder per video but .*clip has images outside"):
        open_reader(folder)
    with pytest.raises(ValueError, match=r"must be a folder for images but is .*frame_0\.png.*above"):
        open_reader(folder / "frame_0.png")


@pytest.mark.parametrize("window", [(-1, 1, 1), (0, 0, 1), (0, 1, 0), (0, 14, 1), (13, 1, 1), (1, 5, 3)])
def test_a_window_that_leaves_the_video_is_refused(tmp_path, window):
    write_frames(tmp_path / "clip", level_frames())
    with pytest.raises(ValueError, match=r"frames of clip, which has 13, but got start"):
        FrameFolderReader(tmp_path).read(0, *window)


@pytest.mark.parametrize("open_path", [open_reader, VideoFileReader, FrameFolderReader])
def test_a_folder_that_can_not_be_read_is_named(tmp_path, monkeypatch, open_path):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    write_frames(tmp_path / "frames" / "clip", level_frames(2))
    scandir = os.scandir

    def refuse(folder):  # as if without the permission, which root needs not
        if Path(folder).name == "clip":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ValueError, match=r"The folder .*clip can not be read: Permission denied"):
        open_path(tmp_path)


def test_pipes_are_never_waited_for(tmp_path):
    for suffix in ("gif", "npy", "h5", "nc", "tar", "parquet"):
        folder = tmp_path / suffix
        folder.mkdir()
        os.mkfifo(folder / f"a.{suffix}")
        for path in (folder, folder / f"a.{suffix}"):
            with pytest.raises(ValueError, match="no regular file: it is a pipe"):
                open_reader(path, axes="THW" if suffix == "npy" else None).info(0)


def test_a_dangling_link_among_the_files_of_the_original_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as root:
        root["len/0"] = 2
        for frame in range(2):
            root[f"0/{frame}"] = np.zeros((4, 6), np.uint8)
    assert isinstance(open_reader(tmp_path), HDF5Reader)
    (tmp_path / "b.h5").symlink_to(tmp_path / "gone.h5")
    with pytest.raises(ValueError, match=r"b\.h5 is a link to a place that does not exist"):
        open_reader(tmp_path)


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere" / "video").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere" / "video" / "0.png")
    (tmp_path / "data" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")  # a circle
    reader = open_reader(tmp_path / "data")
    assert len(reader) == 1 and reader.num_frames(0) == 1


@pytest.mark.parametrize(
    "option",
    [{"axes": "THWC"}, {"variables": ["x"]}, {"column": "video"}, {"split": "test"}],
    ids=lambda x: next(iter(x)),
)
def test_an_option_that_means_nothing_for_what_lies_there_is_refused(tmp_path, option):
    write_gif(tmp_path / "clip.gif", level_frames(2))
    with pytest.raises(
        ValueError, match=f"`{next(iter(option))}` means nothing for video files, which .* leave it out"
    ):
        open_reader(tmp_path, **option)
