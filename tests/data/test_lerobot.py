"""LeRobotDataset folders: each episode has its own frames and actions, and broken ones harm no others."""

import io
import json
import os
import pickle
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from mcvd_diffusers.data.lerobot import LeRobotReader, is_lerobot_folder
from video_fixtures import X264, frame_numbers, level_frames, write_video


FPS = 10
TOP = "observation.images.top"
WRIST = "observation.images.wrist"
# Two episodes share the first mp4 and file of rows, the third has its own.
LENGTHS = (5, 8, 4)


def info_json(version: str, **changes) -> dict:
    many = version.startswith("v3")
    info = {
        "codebase_version": version,
        "fps": FPS,
        "chunks_size": 2,
        "total_episodes": len(LENGTHS),
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
        if many
        else "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
        if many
        else "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            TOP: {"dtype": "video", "shape": [32, 48, 3], "names": ["height", "width", "channels"]},
            "action": {"dtype": "float32", "shape": [2]},
            "timestamp": {"dtype": "float32", "shape": [1]},
        },
    }
    info.update(changes)
    return info


def write_info(folder: Path, info: dict) -> None:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    (folder / "meta/info.json").write_text(json.dumps(info))


def rows(episode: int, length: int) -> dict[str, list]:
    return {
        "action": [[100.0 * episode + frame, -frame] for frame in range(length)],
        "timestamp": [frame / FPS for frame in range(length)],
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
        "task_index": [7] * length,
    }


def write_rows(file: Path, *episodes: dict, row_group_size: int = 4) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.concat_tables([pa.table(columns) for columns in episodes])
    pq.write_table(table, file, row_group_size=row_group_size)


def mp4(file: Path, frames: np.ndarray) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    return write_video(file, frames, options=X264)


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> dict[str, Path]:
    """Encoded once: episodes of 5, 8 and 4 frames, the first two also in one file."""
    folder = tmp_path_factory.mktemp("videos")
    levels = level_frames()
    five, eight = mp4(folder / "c.mp4", levels[:5]), mp4(folder / "d.mp4", levels[5:13])
    return {
        "5+8": joined(folder / "a.mp4", five, eight),
        "4": mp4(folder / "b.mp4", levels[9:13]),
        "5": five,
        "8": eight,
    }


def joined(file: Path, *parts: Path) -> Path:
    """Videos one after the other without encoding them again, as LeRobot does it: by FFmpeg's concat."""
    listing = file.with_suffix(".txt")
    listing.write_text("".join(f"file '{part}'\n" for part in parts))
    with (
        av.open(str(listing), format="concat", options={"safe": "0"}) as source,
        av.open(str(file), "w") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return file


def place(video: Path, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(video.read_bytes())


def episodes_v3() -> dict[str, list]:
    return {
        "episode_index": [0, 1, 2],
        "length": list(LENGTHS),
        "data/chunk_index": [0, 0, 0],
        "data/file_index": [0, 0, 1],
        "dataset_from_index": [0, 5, 13],
        "dataset_to_index": [5, 13, 17],
        f"videos/{TOP}/chunk_index": [0, 0, 0],
        f"videos/{TOP}/file_index": [0, 0, 1],
        # As written by others: sums of floating point durations.
        f"videos/{TOP}/from_timestamp": [0.0, 0.1 * 5 + 1e-7, 0.0],
        f"videos/{TOP}/to_timestamp": [0.5, 1.3, 0.4],
    }


def write_v3(folder: Path, videos: dict[str, Path], **info) -> Path:
    write_info(folder, info_json("v3.0", **info))
    write_rows(folder / "meta/episodes/chunk-000/file-000.parquet", episodes_v3())
    write_rows(folder / "data/chunk-000/file-000.parquet", rows(0, 5), rows(1, 8))
    write_rows(folder / "data/chunk-000/file-001.parquet", rows(2, 4))
    place(videos["5+8"], folder / f"videos/{TOP}/chunk-000/file-000.mp4")
    place(videos["4"], folder / f"videos/{TOP}/chunk-000/file-001.mp4")
    return folder


def write_v2(folder: Path, videos: dict[str, Path], version: str = "v2.1") -> Path:
    write_info(folder, info_json(version))
    lines = [json.dumps({"episode_index": e, "tasks": ["lift"], "length": n}) for e, n in enumerate(LENGTHS)]
    (folder / "meta/episodes.jsonl").write_text("\n".join(reversed(lines)) + "\n\n")
    for episode, length in enumerate(LENGTHS):
        chunk = f"chunk-{episode // 2:03d}"
        write_rows(folder / f"data/{chunk}/episode_{episode:06d}.parquet", rows(episode, length))
        place(videos[str(length)], folder / f"videos/{chunk}/{TOP}/episode_{episode:06d}.mp4")
    return folder


# First frame of each episode among the grey levels of the fixtures.
FIRST_LEVEL = (0, 5, 9)


@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_every_start_of_every_episode_gives_its_frames_and_actions(tmp_path, videos, version):
    folder = write_v3(tmp_path, videos) if version == "v3.0" else write_v2(tmp_path, videos, version)
    assert is_lerobot_folder(folder)
    reader = LeRobotReader(folder)
    assert [reader.name(video) for video in range(len(reader))] == [f"episode_{e:06}" for e in range(3)]
    for video, (length, level) in enumerate(zip(LENGTHS, FIRST_LEVEL, strict=True)):
        info = reader.info(video)
        assert (info.num_frames, info.num_channels, info.height, info.width) == (length, 3, 32, 48)
        assert info.frames_per_second == FPS and info.dtype == "uint8"
        for stride in (1, 2):
            count = (length + stride - 1) // stride - 1
            for start in range(length - (count - 1) * stride):
                expected = np.arange(start, start + count * stride, stride)
                frames = reader.read(video, start, count, stride)
                # The same levels in a file of another beginning, so numbers are those of the fixture.
                assert frame_numbers(frames) == (level + expected).tolist()
                actions = reader.read_vector(video, "action", start, count, stride)
                np.testing.assert_array_equal(actions, np.stack([100 * video + expected, -expected], axis=1))
                assert actions.dtype == np.float32
        with pytest.raises(ValueError, match=f"episode_{video:06}, which has {length}"):
            reader.read(video, 1, length)
    np.testing.assert_allclose(reader.read_vector(1, "timestamp", 2, 3), [[0.2], [0.3], [0.4]], rtol=1e-6)
    np.testing.assert_array_equal(reader.read_vector(1, "task_index", 2, 1), [[7]])
    with pytest.raises(ValueError, match="`state` must be one of the columns .* action, timestamp"):
        reader.read_vector(0, "state", 0, 1)


def png(level: int) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 8, 3), level, np.uint8)).save(buffer, "png")
    return {"bytes": buffer.getvalue(), "path": f"frame-{level}.png"}


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_images_in_the_rows_are_read(tmp_path, videos, version):
    folder = write_v3(tmp_path, videos) if version == "v3.0" else write_v2(tmp_path, videos)
    info = info_json(version)
    info["features"] |= {WRIST: {"dtype": "image", "shape": [6, 8, 3]}}
    write_info(folder, info)
    episodes = [rows(e, n) | {WRIST: [png(10 * e + f) for f in range(n)]} for e, n in enumerate(LENGTHS)]
    if version == "v3.0":
        write_rows(folder / "data/chunk-000/file-000.parquet", *episodes[:2])
        write_rows(folder / "data/chunk-000/file-001.parquet", episodes[2])
    else:
        for e, columns in enumerate(episodes):
            write_rows(folder / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet", columns)
    reader = LeRobotReader(folder, column=WRIST)
    assert reader.info(1).num_frames == 8 and reader.info(1).height == 6
    assert reader.read(1, 1, 3, 2)[:, 0, 0, 0].tolist() == [11, 13, 15]
    assert reader.read(2, 0, 4)[:, 2, 5, 7].tolist() == [20, 21, 22, 23]
    # Two cameras now: one must be chosen.
    with pytest.raises(ValueError, match=f"`column` must be one of the cameras .*{TOP}, {WRIST}"):
        LeRobotReader(folder)
    with pytest.raises(ValueError, match="but got 'action'"):
        LeRobotReader(folder, column="action")


def test_readers_work_in_workers_and_after_a_copy(tmp_path, videos):
    reader = LeRobotReader(write_v3(tmp_path, videos))
    reader.read_vector(0, "action", 0, 5)
    copy = pickle.loads(pickle.dumps(reader))
    np.testing.assert_array_equal(copy.read(1, 2, 3), reader.read(1, 2, 3))

    class Frames:
        def __len__(self):
            return len(reader)

        def __getitem__(self, video):
            return int(reader.read_vector(video, "action", 1, 1)[0, 0])

    assert [int(x) for x in DataLoader(Frames(), num_workers=2, batch_size=None)] == [1, 101, 201]


def errors(reader: LeRobotReader) -> list[str | None]:
    messages = []
    for video in range(len(reader)):
        try:
            reader.info(video)
            messages.append(None)
        except ValueError as error:
            messages.append(str(error))
    return messages


def test_a_missing_or_broken_mp4_harms_its_own_episodes_only(tmp_path, videos):
    folder = write_v3(tmp_path, videos)
    file = folder / f"videos/{TOP}/chunk-000/file-001.mp4"
    file.unlink()
    first, second, third = errors(LeRobotReader(folder))
    assert first is None and second is None and "file-001.mp4" in third
    file.write_bytes(videos["4"].read_bytes()[:300])
    assert "file-001.mp4" in errors(LeRobotReader(folder))[2]
    # Too short for the second of its two episodes: the first is still there.
    place(videos["8"], folder / f"videos/{TOP}/chunk-000/file-000.mp4")
    first, second, _ = errors(LeRobotReader(folder))
    assert first is None
    assert "episode_000001 must be frames 5 to 12 of" in second and "has only 8" in second


def test_metadata_that_contradict_the_rows_are_found(tmp_path, videos):
    folder = write_v3(tmp_path, videos)
    data = folder / "data/chunk-000/file-000.parquet"
    write_rows(data, rows(0, 5), rows(1, 7))
    first, second, third = errors(LeRobotReader(folder))
    assert (first, third) == (None, None)
    assert "episode_000001 has `length` 8 in the metadata but 7 rows" in second
    write_rows(data, rows(0, 5))
    assert "episode_000001 has no rows" in errors(LeRobotReader(folder))[1]
    shuffled = rows(1, 8)
    shuffled["frame_index"][2:4] = [3, 2]
    write_rows(data, rows(0, 5), shuffled)
    assert "in order of `frame_index`" in errors(LeRobotReader(folder))[1]
    write_rows(data, rows(1, 4), rows(0, 5), rows(1, 4))
    assert "one after the other" in errors(LeRobotReader(folder))[1]
    data.write_bytes(b"PAR1 junk")
    assert str(data) in errors(LeRobotReader(folder))[0]
    data.unlink()
    assert "file-000.parquet is missing" in errors(LeRobotReader(folder))[0]
    os.mkfifo(data)
    assert "file-000.parquet must be a file but is no regular file: it is a pipe" in errors(LeRobotReader(folder))[0]


def test_rows_are_found_where_the_converter_wrote_a_file_index_too_small(tmp_path, videos):
    folder = write_v3(tmp_path, videos)
    episodes = episodes_v3()
    episodes["data/file_index"] = [0, 0, 0]
    write_rows(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    reader = LeRobotReader(folder)
    assert errors(reader) == [None] * 3
    assert reader.read_vector(2, "action", 1, 1)[0, 0] == 201


def test_another_frame_rate_than_stated_is_found(tmp_path, videos):
    folder = write_v3(tmp_path, videos, fps=20)
    episodes = episodes_v3()
    episodes[f"videos/{TOP}/from_timestamp"] = [0.0, 0.25, 0.0]
    write_rows(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    assert all(
        "10 frames per second where meta/info.json says `fps` 20" in error for error in errors(LeRobotReader(folder))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codebase_version": "v1.6"}, "`codebase_version` must be v2.0, v2.1 or v3.0 but is 'v1.6'. Convert it"),
        ({"codebase_version": "v4.0"}, "`codebase_version` must be"),
        ({"codebase_version": None}, "info.json: `codebase_version` must be str"),
        ({"fps": 0}, "`fps` must be a positive number"),
        ({"fps": "10"}, "`fps` must be Real but is '10'"),
        ({"fps": True}, "`fps` must be"),
        ({"features": [TOP]}, "`features` must be dict"),
        ({"features": {TOP: "video"}}, f"feature `{TOP}` must hold an object"),
        ({"features": {TOP: {"shape": [1]}}}, f"feature `{TOP}`: `dtype` must be str"),
        ({"features": {"action": {"dtype": "float32"}}}, "of which it has none"),
        ({"features": {TOP: {"dtype": "video", "info": {"video.is_depth_map": True}}}}, "depth is not read"),
        (
            {"features": {TOP[:-3] + "x": {"dtype": "video"}}},
            "must have the columns videos/observation.images.x/chunk",
        ),
        ({"data_path": None}, "`data_path` must be str"),
        ({"data_path": "data/{episode_index}"}, "may have the fields"),
        ({"data_path": "data/{chunk_index.__class__}"}, "may have the fields"),
        ({"data_path": "data/{chunk_index:999999999d}"}, "may have the fields"),
        ({"data_path": "data/{chunk_index!r}"}, "may have the fields"),
        ({"data_path": "data/{chunk_index"}, "can not be read"),
        ({"data_path": "data/{}"}, "may have the fields"),
        ({"data_path": "/etc/{chunk_index}"}, "must stay in the folder"),
        ({"data_path": "data/../../{chunk_index}"}, "must stay in the folder"),
        ({"video_path": "C:\\{chunk_index}"}, "must stay in the folder"),
        ({"video_path": "x\0{chunk_index}"}, "must stay in the folder"),
    ],
)
def test_bad_info_is_refused_with_file_and_field(tmp_path, videos, change, message):
    folder = write_v3(tmp_path, videos, **change)
    with pytest.raises(ValueError) as error:
        LeRobotReader(folder)
    assert message in str(error.value) and str(folder) in str(error.value)


def test_a_camera_name_does_not_lead_out_of_the_folder(tmp_path, videos):
    folder = write_v2(tmp_path, videos)
    write_info(folder, info_json("v2.1", features={"../../..": {"dtype": "video"}}))
    with pytest.raises(ValueError, match="`video_path` must stay in the folder"):
        LeRobotReader(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "recursion"),
        ("{", "can not be read"),
        ("[]", "must hold an object but holds list"),
        ("\xff", "can not be read"),
        (" " * (16 * 2**20 + 1), "more than 16777216 bytes"),
    ],
    ids=["deep", "cut", "list", "encoding", "large"],
)
def test_json_of_strangers_is_refused(tmp_path, text, message):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as error:
        LeRobotReader(tmp_path)
    assert "info.json" in str(error.value)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("length", 0, "`length` must be an integer of at least 1"),
        ("episode_index", -1, "`episode_index` must be an integer of at least 0"),
        ("data/file_index", None, "`data/file_index` must be int"),
        (f"videos/{TOP}/from_timestamp", float("nan"), "from_timestamp` must be seconds"),
        (f"videos/{TOP}/from_timestamp", -1.0, "from_timestamp` must be seconds"),
        ("episode_index", 1, "each once"),
    ],
)
def test_bad_episodes_are_refused(tmp_path, videos, column, value, message):
    folder = write_v3(tmp_path, videos)
    episodes = episodes_v3()
    episodes[column][0] = value
    write_rows(folder / "meta/episodes/chunk-000/file-000.parquet", episodes)
    with pytest.raises(ValueError) as error:
        LeRobotReader(folder)
    assert message in str(error.value) and str(folder / "meta") in str(error.value)


def test_bad_lines_of_2_1_are_refused(tmp_path, videos):
    folder = write_v2(tmp_path, videos)
    (folder / "meta/episodes.jsonl").write_text('{"episode_index": 0, "length": 5}\n{"episode_index": 1}\n')
    with pytest.raises(ValueError, match="episodes.jsonl, line 2: `length` must be int"):
        LeRobotReader(folder)
    with pytest.raises(ValueError, match="must be a LeRobotDataset folder"):
        LeRobotReader(folder / "data")
