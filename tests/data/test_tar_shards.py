"""Shards give, by random access and without webdataset, what webdataset reads from them."""

import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mcvd_diffusers.data.frame_folders import FrameFolderReader
from mcvd_diffusers.data.reader import VideoInfo
from mcvd_diffusers.data.tar_shards import TarReader
from mcvd_diffusers.data.video_files import VideoFileReader
from video_fixtures import NUM_FRAMES, frame_numbers, level_frames, write_gif, write_video


def write_tar(file: Path, members: dict[str, bytes], format: int = tarfile.GNU_FORMAT) -> Path:
    """A shard as any tool would write it."""
    with tarfile.open(file, "w", format=format) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return file


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def image(array: np.ndarray, kind: str = "png") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


def video(folder: Path, frames: np.ndarray, suffix: str = ".mp4", codec: str = "mpeg4") -> bytes:
    file = folder / f"video{suffix}"
    write_gif(file, frames) if suffix == ".gif" else write_video(file, frames, codec)
    content = file.read_bytes()
    file.unlink()
    return content


def noise(num_frames: int = 6, size: tuple[int, int] = (8, 10), seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(256, size=(num_frames, *size, 3), dtype=np.uint8)


def names(reader: TarReader) -> list[str]:
    return [reader.name(number) for number in range(len(reader))]


def read_all(reader, number: int) -> np.ndarray:
    return reader.read(number, 0, reader.num_frames(number))


# What is read


def test_videos_arrays_and_images_are_read_from_every_start(tmp_path):
    frames = noise(7)
    members = {"gif.gif": video(tmp_path, level_frames(7), ".gif"), "array.npy": npy(frames)}
    members |= {f"images.{number}.png": image(frame) for number, frame in enumerate(frames)}
    reader = TarReader(write_tar(tmp_path / "a.tar", members), axes="THWC")
    assert names(reader) == ["a/gif", "a/array", "a/images"]
    for number, expected in enumerate((level_frames(7), frames, frames)):
        expected = expected.transpose(0, 3, 1, 2)
        assert reader.info(number) == VideoInfo(7, *expected.shape[1:], "uint8", None if number else 10.0)
        for start in range(7):
            np.testing.assert_array_equal(reader.read(number, start, 7 - start), expected[start:])
            np.testing.assert_array_equal(reader.read(number, start, (8 - start) // 2, 2), expected[start::2])


@pytest.mark.parametrize(
    "suffix, codec", [(".mp4", "libx264"), (".mkv", "mpeg4"), (".webm", "libvpx"), (".avi", "mpeg4")]
)
def test_a_video_in_a_shard_is_read_as_a_file_is(tmp_path, suffix, codec):
    files = tmp_path / "files"
    files.mkdir()
    contents = [video(tmp_path, np.roll(level_frames(), shift, axis=0), suffix, codec) for shift in range(3)]
    for number, content in enumerate(contents):
        (files / f"{number}{suffix}").write_bytes(content)
    members = {f"{number}{suffix}": content for number, content in enumerate(contents)}
    in_shard, in_folder = TarReader(write_tar(tmp_path / "a.tar", members)), VideoFileReader(files)
    for number in range(3):
        assert in_shard.info(number) == in_folder.info(number)
        np.testing.assert_array_equal(read_all(in_shard, number), read_all(in_folder, number))
        np.testing.assert_array_equal(in_shard.read(number, 3, 4, 2), in_folder.read(number, 3, 4, 2))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_webdataset_reads_is_read(tmp_path, format):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    long = "some folder/" + "long name " * 8 + "ü"
    shards = []
    for shard in range(2):
        members = {}
        for sample in range(3):
            frames, key = noise(5, seed=10 * shard + sample), f"{sample:04}"
            members |= {f"{key}.img{number}.png": image(frame) for number, frame in enumerate(frames)}
            members[f"{key}.action.npy"] = npy(np.random.RandomState(sample).randn(5, 2))
            members[f"{key}.json"] = json.dumps({"time": [0.1 * number + sample for number in range(5)]}).encode()
        if format != tarfile.USTAR_FORMAT:
            members[f"{long}.PNG"] = image(noise(1)[0])
        shards.append(write_tar(tmp_path / f"train-{shard}.tar", members, format))
    reader = TarReader(tmp_path)
    streamed = list(webdataset.WebDataset([str(shard) for shard in shards], shardshuffle=False))
    assert len(streamed) == len(reader)
    for number, sample in enumerate(streamed):
        assert reader.name(number) == f"{Path(sample['__url__']).stem}/{sample['__key__']}"
        images = [np.asarray(Image.open(io.BytesIO(sample[kind]))) for kind in sorted(sample) if kind.endswith("png")]
        np.testing.assert_array_equal(read_all(reader, number), np.stack(images).transpose(0, 3, 1, 2))
        if "json" in sample:
            actions = np.load(io.BytesIO(sample["action.npy"]))
            np.testing.assert_array_equal(reader.read_vector(number, "action", 1, 2, 2), actions[1:5:2].astype("f4"))
            times = np.float32(json.loads(sample["json"])["time"])
            np.testing.assert_array_equal(reader.read_vector(number, "time", 0, 5)[:, 0], times)


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    frames = noise(4)
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"clip{number}", "npy": np.roll(frames, number, axis=0), "cls": number})
    reader = TarReader(tmp_path / "a.tar", axes="THWC")
    assert names(reader) == ["a/clip0", "a/clip1", "a/clip2"]
    for number in range(3):
        np.testing.assert_array_equal(read_all(reader, number), np.roll(frames, number, axis=0).transpose(0, 3, 1, 2))


def test_images_are_taken_in_natural_order_and_from_anywhere_in_the_shard(tmp_path):
    frames = noise(12)
    members = {f"a.img{number}.png": image(frames[number]) for number in (10, 2, 0, 11, 1)}
    members["b.gif"] = video(tmp_path, level_frames(2), ".gif")
    members |= {f"a.img{number}.png": image(frames[number]) for number in (9, 3, 4, 5, 8, 7, 6)}
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    np.testing.assert_array_equal(read_all(reader, 0), frames.transpose(0, 3, 1, 2))


def test_deep_images_are_read_as_in_a_folder(tmp_path):
    deep = np.random.RandomState(0).randint(65536, size=(3, 6, 5)).astype(np.uint16)
    (tmp_path / "folder" / "clip").mkdir(parents=True)
    for number, frame in enumerate(deep):
        (tmp_path / "folder" / "clip" / f"{number}.png").write_bytes(image(frame))
    reader = TarReader(write_tar(tmp_path / "a.tar", {f"a.{i}.png": image(frame) for i, frame in enumerate(deep)}))
    folder = FrameFolderReader(tmp_path / "folder")
    assert reader.info(0) == folder.info(0)
    np.testing.assert_array_equal(read_all(reader, 0), read_all(folder, 0))


@pytest.mark.parametrize(
    "array, axes", [(noise(), "THWC"), (noise()[..., 0].astype(">f4"), "THW"), (np.asfortranarray(noise()), "WTHC")]
)
def test_axes_say_how_an_array_is_stored(tmp_path, array, axes):
    reader = TarReader(write_tar(tmp_path / "a.tar", {"a.npy": npy(array)}), axes=axes)
    whole = array if "C" in axes else array[..., None]
    expected = whole.transpose([(axes if "C" in axes else axes + "C").index(letter) for letter in "TCHW"])
    info = reader.info(0)
    assert info == VideoInfo(len(expected), *expected.shape[1:], array.dtype.newbyteorder("=").name)
    frames = read_all(reader, 0)
    assert frames.dtype.name == info.dtype
    np.testing.assert_array_equal(frames, expected)
    np.testing.assert_array_equal(reader.read(0, 1, 2, 3), expected[1:6:3])


def test_vectors_are_members_of_the_sample(tmp_path):
    actions = np.random.RandomState(0).randn(NUM_FRAMES, 3)
    gif = video(tmp_path, level_frames(), ".gif")
    members = {
        "a.gif": gif,
        "a.action.npy": npy(actions),
        "a.pose.json": json.dumps(actions.tolist()).encode(),
        "a.json": json.dumps(
            {"time": list(range(NUM_FRAMES)), "label": "jump", "short": [1], "torn": [[1], [2, 3]]}
        ).encode(),
        "a.broken.json": b"{not json",
        "a.words.json": json.dumps(["1"] * NUM_FRAMES).encode(),
        "b.gif": gif,
    }
    reader = TarReader(write_tar(tmp_path / "s.tar", members))
    rows = actions[2:9:3].astype(np.float32)
    np.testing.assert_array_equal(reader.read_vector(0, "action", 2, 3, 3), rows)
    np.testing.assert_array_equal(reader.read_vector(0, "pose", 2, 3, 3), rows)
    np.testing.assert_array_equal(reader.read_vector(0, "time", 2, 3, 3), [[2], [5], [8]])
    for number, name, message in [
        (0, "speed", r"s\.tar: a\.json must have an entry `speed` but has label; short; time; torn"),
        (0, "short", r"s\.tar: a\.json must have a row for each of the 13 frames but has shape \(1,\)"),
        (0, "label", r"s\.tar: a\.json must have a row for each of the 13 frames but has shape \(\)"),
        (0, "torn", r"s\.tar: a\.json: `torn` can not be read"),
        (0, "broken", r"s\.tar: a\.broken\.json can not be read"),
        (0, "words", r"must be numbers"),
        (1, "action", r"s\.tar: b must have a member \.action\.npy, \.action\.json or \.json .* but has \.gif"),
    ]:
        with pytest.raises(ValueError, match=message):
            reader.read_vector(number, name, 0, 2)


# Shards


def test_samples_of_one_key_in_several_shards_have_names_of_their_own(tmp_path):
    for shard in (10, 9):
        (tmp_path / "deep").mkdir(exist_ok=True)
        gif = video(tmp_path, level_frames(shard), ".gif")
        write_tar(tmp_path / "deep" / f"s{shard}.tar", {"./x/clip.gif": gif, "clip.gif": gif})
    (tmp_path / "readme.txt").touch()
    reader = TarReader(tmp_path)
    assert names(reader) == ["deep/s9/x/clip", "deep/s9/clip", "deep/s10/x/clip", "deep/s10/clip"]
    assert [reader.num_frames(number) for number in range(4)] == [9, 9, 10, 10]


class Clips:
    """What a `DataLoader` needs."""

    def __init__(self, reader):
        self.reader = reader

    def __len__(self):
        return len(self.reader)

    def __getitem__(self, number):
        return np.array(self.reader.read(number, number % 3, 4, 2))


def test_workers_read_what_the_main_process_reads(tmp_path):
    members = {f"{number:03}.mp4": video(tmp_path, np.roll(level_frames(), number, axis=0)) for number in range(8)}
    reader = TarReader(write_tar(tmp_path / "a.tar", members))
    expected = [Clips(reader)[number] for number in range(8)]  # used before it is copied
    loader = DataLoader(Clips(reader), batch_size=None, num_workers=2)
    for clip, other in zip(loader, expected, strict=True):
        np.testing.assert_array_equal(clip, other)


def test_a_reader_of_shards_can_be_pickled(tmp_path):
    reader = TarReader(write_tar(tmp_path / "a.tar", {"a.mp4": video(tmp_path, level_frames())}))
    before = pickle.loads(pickle.dumps(reader))
    frames = read_all(reader, 0)
    for copy in (before, pickle.loads(pickle.dumps(reader))):
        np.testing.assert_array_equal(read_all(copy, 0), frames)


def test_only_regular_files_count_whatever_their_names_say(tmp_path):
    secret = tmp_path / "secret.gif"
    write_gif(secret, level_frames(3))
    gif = video(tmp_path, level_frames(2), ".gif")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (
            ("symbolic.gif", tarfile.SYMTYPE),
            ("hard.gif", tarfile.LNKTYPE),
            ("device.gif", tarfile.CHRTYPE),
            ("pipe.gif", tarfile.FIFOTYPE),
            ("folder.gif", tarfile.DIRTYPE),
        ):
            header = tarfile.TarInfo(name)
            header.type, header.linkname = kind, str(secret)
            tar.addfile(header)
        for name in ("../../outside.gif", "/absolute.gif", "._apple.gif", "no suffix", "good.gif"):
            header = tarfile.TarInfo(name)
            header.size = len(gif)
            tar.addfile(header, io.BytesIO(gif))
    reader = TarReader(tmp_path / "a.tar")
    assert names(reader) == ["a/../../outside", "a//absolute", "a/good"]
    assert [frame_numbers(read_all(reader, number)) for number in range(3)] == [[0, 1]] * 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar", "secret.gif"]


# What is wrong with them


@pytest.mark.parametrize(
    "name, mode", [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz"), ("a.tar", "w:gz")]
)
def test_a_compressed_tar_is_refused(tmp_path, name, mode):
    with tarfile.open(tmp_path / name, mode) as tar:
        tar.addfile(tarfile.TarInfo("a.gif"))
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(ValueError, match=r"must be a tar that is not compressed.*Unpack it once"):
            TarReader(path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"a\.tar is empty: it has 0 bytes"),
        (b"no tar " * 500, r"a\.tar can not be read"),
        (b"\0" * 10240, r"must hold samples, members such as jump\.mp4, but no file in .*a\.tar is one"),
    ],
)
def test_a_file_that_is_no_shard_is_named(tmp_path, content, message):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        TarReader(tmp_path)


def test_a_folder_without_shards_says_what_it_holds(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"must hold \.tar files but .* holds only files of other kinds \(1 \.txt\)"):
        TarReader(tmp_path)
    with pytest.raises(ValueError, match=r"must exist"):
        TarReader(tmp_path / "nowhere.tar")


@pytest.mark.parametrize("size", [10, 700])
def test_a_shard_that_shrinks_after_it_was_opened_is_named(tmp_path, size):
    frames = noise(4)
    members = {"a.npy": npy(frames), "a.action.npy": npy(np.arange(4.0)), "b.gif": video(tmp_path, frames, ".gif")}
    file = write_tar(tmp_path / "a.tar", members)
    reader = TarReader(file, axes="THWC")
    for number in range(2):
        reader.info(number)
    kept = read_all(reader, 0)
    os.truncate(file, size)
    for read in (lambda: read_all(reader, 0), lambda: reader.read_vector(0, "action", 0, 2)):
        with pytest.raises(ValueError, match=rf"a\.tar has shrunk since it was opened: .* it has {size}"):
            read()
    with pytest.raises(ValueError, match=r"a\.tar"):
        read_all(reader, 1)
    np.testing.assert_array_equal(kept, frames.transpose(0, 3, 1, 2))


def test_a_shard_that_was_too_short_is_read_once_it_is_whole(tmp_path):
    arrays = [noise(40), noise(40)[::-1]]
    members = {f"{name}.npy": npy(array) for name, array in zip("ab", arrays)}
    file = write_tar(tmp_path / "a.tar", members)
    reader, content = TarReader(file, axes="THWC"), file.read_bytes()
    for number in range(2):
        reader.info(number)
    os.truncate(file, 512 + len(members["a.npy"]))
    assert np.array_equal(read_all(reader, 0), arrays[0].transpose(0, 3, 1, 2))  # opens the file as it is
    with pytest.raises(ValueError, match="has shrunk since it was opened"):
        read_all(reader, 1)
    file.write_bytes(content)
    assert np.array_equal(read_all(reader, 1), arrays[1].transpose(0, 3, 1, 2))


def test_masks_are_floating_point_0_and_1(tmp_path):
    masks = noise(4)[..., 0] > 100
    reader = TarReader(write_tar(tmp_path / "a.tar", {"a.npy": npy(masks)}), axes="THW")
    assert reader.info(0).dtype == "float32" and read_all(reader, 0).dtype == np.float32
    np.testing.assert_array_equal(read_all(reader, 0)[:, 0], masks)


def test_a_shard_that_is_no_regular_file_is_named(tmp_path):
    write_tar(tmp_path / "a.tar", {"a.png": image(noise(1)[0])})
    (tmp_path / "b.tar").symlink_to(tmp_path / "gone.tar")
    with pytest.raises(ValueError, match=r"b\.tar is a link to a place that does not exist"):
        TarReader(tmp_path)


def test_a_shard_that_was_cut_off_loses_its_last_sample_only(tmp_path):
    contents = [video(tmp_path, level_frames(5), ".gif") for _ in range(4)]
    file = write_tar(tmp_path / "a.tar", {f"{number}.gif": content for number, content in enumerate(contents)})
    whole = file.read_bytes()
    step = 512 + (len(contents[0]) + 511) // 512 * 512
    for cut in (2 * step + 513, 2 * step + 512 + len(contents[0]) // 2, 2 * step + 512 + len(contents[0]) - 1):
        file.write_bytes(whole[:cut])
        reader = TarReader(file)
        assert names(reader) == ["a/0", "a/1", "a/2"]
        assert [frame_numbers(read_all(reader, number)) for number in range(2)] == [list(range(5))] * 2
        with pytest.raises(ValueError, match=r"a\.tar: 2\.gif is cut off: the shard ends at byte"):
            reader.info(2)
    file.write_bytes(whole[: 2 * step + 100])  # within a header
    assert names(TarReader(file)) == ["a/0", "a/1"]


def test_a_shard_that_is_damaged_in_the_middle_is_refused(tmp_path):
    content = video(tmp_path, level_frames(5), ".gif")
    file = write_tar(tmp_path / "a.tar", {f"{number}.gif": content for number in range(4)})
    data = bytearray(file.read_bytes())
    step = 512 + (len(content) + 511) // 512 * 512
    data[2 * step : 2 * step + 200] = b"\xff" * 200
    file.write_bytes(data)
    with pytest.raises(ValueError, match=rf"a\.tar is damaged: at byte {2 * step} there is no header"):
        TarReader(file)


def test_a_member_of_negative_size_does_not_hang(tmp_path):
    content = video(tmp_path, level_frames(5), ".gif")
    file = write_tar(tmp_path / "a.tar", {f"{number}.gif": content for number in range(3)})
    data = bytearray(file.read_bytes())
    step = 512 + (len(content) + 511) // 512 * 512
    for size in (-512, -step, -10 * step):
        header = data[step : step + 512]
        header[124:136] = b"\xff" * 4 + struct.pack(">q", size)  # base 256, as for large files
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        file.write_bytes(data[:step] + header + data[step + 512 :])
        with pytest.raises(ValueError, match=r"a\.tar"):
            TarReader(file)


def test_broken_samples_are_named_and_the_others_are_read(tmp_path):
    gif = video(tmp_path, level_frames(3), ".gif")
    frames = noise(3)
    members = {
        "good.gif": gif,
        "none.txt": b"text",
        "two.gif": gif,
        "two.mp4": gif,
        "both.gif": gif,
        "both.png": image(frames[0]),
        "text.mp4": b"no video " * 100,
        "empty.mp4": b"",
        "torn.0.png": image(frames[0])[:-60],
        "sizes.0.png": image(frames[0]),
        "sizes.1.png": image(frames[0, 1:]),
        "array.npy": npy(frames),
        "cube.npy": npy(frames[0]),
        "objects.npy": npy(frames)[:60] + b"x" * 10,
        "pickle.npy": b"\x80\x04]",
    }
    reader = TarReader(write_tar(tmp_path / "s.tar", members), axes="THWC")
    numbers = {name.removeprefix("s/"): number for number, name in enumerate(names(reader))}
    assert frame_numbers(read_all(reader, numbers["good"])) == [0, 1, 2]
    np.testing.assert_array_equal(read_all(reader, numbers["array"]), frames.transpose(0, 3, 1, 2))
    for key, message in {
        "none": r"must be one video, one array or images, but has \.txt",
        "two": r"but has \.gif; \.mp4",
        "both": r"but has \.gif; \.png",
        "text": r"can not be read",
        "empty": r"zero bytes",
        "cube": r"must have a letter for each axis",
        "objects": r"can not be read|truncated",
        "pickle": r"pickle, which is never loaded",
    }.items():
        with pytest.raises(ValueError, match=message) as error:
            reader.info(numbers[key])
        assert f"s.tar: {key}" in str(error.value)
    for key in ("torn", "sizes"):
        with pytest.raises(ValueError, match=f"s.tar: {key}"):
            read_all(reader, numbers[key])


def test_two_members_of_one_name_are_refused(tmp_path):
    gif = video(tmp_path, level_frames(3), ".gif")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("a.gif", "a.GIF", "b.gif"):
            header = tarfile.TarInfo(name)
            header.size = len(gif)
            tar.addfile(header, io.BytesIO(gif))
    reader = TarReader(tmp_path / "a.tar")
    with pytest.raises(ValueError, match=r"a\.tar: a has two members of one name: \.gif; \.gif"):
        reader.info(0)
    assert reader.num_frames(1) == 3


def test_axes_are_asked_for_and_only_where_they_mean_something(tmp_path):
    gif = write_tar(tmp_path / "gif.tar", {"a.gif": video(tmp_path, level_frames(3), ".gif")})
    array = write_tar(tmp_path / "array.tar", {"a.npy": npy(noise())})
    with pytest.raises(ValueError, match=r"`axes` means nothing for shards without an array"):
        TarReader(gif, axes="TCHW")
    with pytest.raises(ValueError, match=r'array\.tar: a\.npy has shape \(6, 8, 10, 3\): .* such as "THWC"'):
        TarReader(array)
    for axes, message in (("THX", r"`axes` must name each axis"), ("NTHWC", r"`axes` must have no N for shards")):
        with pytest.raises(ValueError, match=message):
            TarReader(array, axes=axes)


def test_a_playlist_in_a_shard_opens_no_file(tmp_path):
    write_video(tmp_path / "real.mkv", level_frames(3), "mpeg4")
    script = f"ffconcat version 1.0\nfile {tmp_path / 'real.mkv'}\n".encode()
    reader = TarReader(write_tar(tmp_path / "a.tar", {"a.mp4": script}))
    with pytest.raises(ValueError, match=r"a\.tar: a\.mp4 can not be read"):
        reader.info(0)
