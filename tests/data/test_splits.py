"""No video is on two sides of a split, and none changes sides when others come and go."""

import os
import unicodedata

import pytest

from mcvd_diffusers.data import (
    ClipDataset,
    PieceReader,
    SubsetReader,
    VideoInfo,
    read_names,
    split_videos,
    spread_frames,
)
from memory_reader import MemoryReader, counting_video


NAMES = [f"class {number % 7}/v_{number:03d}.mp4" for number in range(400)]


def split_names(names, validation=0.25, **kwargs) -> tuple[list[str], ...]:
    reader = MemoryReader(**{name: counting_video(1) for name in names})
    sides = split_videos(reader, validation=validation, **kwargs)
    return tuple([side.name(video) for video in range(len(side))] for side in sides)


def test_every_video_is_on_exactly_one_side_of_a_split():
    train, validation, _ = split_names(NAMES)
    assert sorted(train + validation) == sorted(NAMES)
    # 100 expected, standard deviation 9.
    assert 60 < len(validation) < 140


def test_a_video_stays_on_its_side_when_others_come_and_go():
    train, validation, _ = split_names(NAMES)
    fewer_train, fewer_validation, _ = split_names(NAMES[250::-1])
    assert set(fewer_train) <= set(train) and set(fewer_validation) <= set(validation)
    assert set(split_names(NAMES, 0.5)[1]) > set(validation)


def test_a_split_is_the_same_on_every_machine():
    # Written down once: a change of this list would move videos between the sides of everybody's split.
    assert split_names([f"{number}.mp4" for number in range(12)])[1] == [
        "1.mp4",
        "3.mp4",
        "6.mp4",
        "7.mp4",
        "9.mp4",
    ]
    names = [f"é{number}.mp4" for number in range(50)]
    decomposed = [unicodedata.normalize("NFD", name) for name in names]
    assert [unicodedata.normalize("NFC", name) for name in split_names(decomposed)[1]] == split_names(names)[1]


def test_another_seed_gives_another_split():
    assert split_names(NAMES, seed=1) != split_names(NAMES)


def test_a_group_stays_together():
    train, validation, _ = split_names(NAMES, 0.4, group=lambda name: name.split("/")[0])
    assert not {name.split("/")[0] for name in train} & {name.split("/")[0] for name in validation}


def test_the_sides_of_a_split_read_their_own_videos():
    reader = MemoryReader(**{f"v{number}": counting_video(number + 1) for number in range(20)})
    for side in split_videos(reader, validation=0.4, test=0.3):
        for video in range(len(side)):
            number = int(side.name(video)[1:])
            assert side.num_frames(video) == number + 1
            assert side.read(video, number, 1)[0, 0, 0, 0] == number
        assert len(ClipDataset(side, num_frames=1)) == len(side)


@pytest.mark.parametrize("fraction", [0, 1, -0.5, 1.5])
def test_a_validation_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=r"`validation` must lie between 0 and 1, both excluded, but got"):
        split_names(NAMES, fraction)


def test_an_empty_side_is_refused():
    with pytest.raises(
        ValueError, match=r"split 1 videos so that there are none for (train|validation)\. Pass another"
    ):
        split_names(NAMES[:1])
    with pytest.raises(ValueError, match="none for train"):
        split_names(NAMES, ["*"])
    with pytest.raises(ValueError, match="must leave videos to train on but add up to 1"):
        split_names(NAMES, 0.5, test=0.5)


def test_three_sides_by_share_are_disjoint_and_the_test_side_moves_nobody():
    train, validation, test = split_names(NAMES, 0.2, test=0.3)
    assert sorted(train + validation + test) == sorted(NAMES)
    assert 50 < len(validation) < 110 and 80 < len(test) < 160
    assert validation == split_names(NAMES, 0.2)[1]


def test_names_and_patterns_say_who_is_held_out():
    train, validation, test = split_names(NAMES, ["class 3/*", NAMES[0]], test=["class 5/*"])
    assert set(validation) == {name for name in NAMES if name.startswith("class 3/")} | {NAMES[0]}
    assert set(test) == {name for name in NAMES if name.startswith("class 5/")}
    assert sorted(train + validation + test) == sorted(NAMES)
    # Beside a list, a share is of what is left, and the list keeps its videos.
    _, shared, listed = split_names(NAMES, 0.25, test=["class 5/*"])
    assert listed == test and not set(shared) & set(test) and shared


def test_a_name_is_meant_as_it_stands_whatever_it_has_of_patterns():
    names = ["field[0000000:]", "field[0000010:]", "f*", "fa"]
    assert split_names(names, ["field[0000010:]"])[1] == ["field[0000010:]"]
    assert split_names(names, ["f*"])[1] == ["f*"]


def test_lists_are_read_from_files(tmp_path):
    file = tmp_path / "held_out.txt"
    file.write_text(f"# persons 21 to 25\n\n{NAMES[3]}\n  {NAMES[7]}  \n")
    assert split_names(NAMES, read_names(file))[1] == [NAMES[3], NAMES[7]]
    for content, message in ((b"\xff\xfe\x00", "can not be read"), (b"# nothing\n", "is empty")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_names(file)
    with pytest.raises(ValueError, match="can not be read"):
        read_names(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "sides, message",
    [
        (
            {"validation": ["nobody", "class 1/*"]},
            r"`validation` names videos that are not there: nobody\. Names are such",
        ),
        ({"validation": "class 1/*"}, r"must be a share or a list of names but got 'class 1/\*': pass a list"),
        ({"validation": ["class 1/*"], "test": [NAMES[1]]}, "must be disjoint but both name class 1/v_001.mp4"),
    ],
)
def test_lists_that_make_no_split_are_refused(sides, message):
    with pytest.raises(ValueError, match=message):
        split_names(NAMES, **sides)


def test_lists_that_never_end_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "large.txt").touch()
    os.truncate(tmp_path / "large.txt", 2**26 + 1)
    for path, message in (
        (tmp_path / "pipe.txt", "a pipe"),
        ("/dev/zero", "a device"),
        (tmp_path / "large.txt", "67108865"),
    ):
        with pytest.raises(ValueError, match=rf"The list of names .* can not be read: .*{message}"):
            read_names(path)


def test_a_header_of_a_few_bytes_does_not_fill_memory_with_pieces():
    class Long(MemoryReader):
        lengths = [10**9, 0, 3, 10**12]

        def __len__(self):
            return len(self.lengths)

        def name(self, video):
            return f"v{video}"

        def info(self, video):
            if self.lengths[video] == 0:
                raise ValueError("broken")
            return VideoInfo(self.lengths[video], 1, 8, 8, "uint8")

    reader = PieceReader(SubsetReader(Long(), range(3)), 20)
    assert len(reader) == 50_000_002
    last = 50_000_000
    assert [reader.name(piece) for piece in (1, last - 1, last, last + 1)] == [
        *("v0[0000020:]", "v0[999999980:]", "v1", "v2[0000000:]")
    ]
    with pytest.raises(ValueError, match="broken"):
        reader.info(last)
    assert reader.num_frames(last + 1) == 3
    with pytest.raises(ValueError, match=r"at most 10000000 videos to be split .* has 50000002"):
        split_videos(reader, validation=0.1)
    with pytest.raises(
        ValueError, match=r"`num_frames` 20 must make at most 100000000 pieces .* v3, which has 1000000000000"
    ):
        PieceReader(Long(), 20)


@pytest.mark.parametrize("piece_length", [1, 3, 7])
def test_pieces_are_those_of_the_plain_rule(piece_length):
    lengths = [1, 2, 3, 6, 7, 8, 13, 14, 15]
    reader = PieceReader(MemoryReader(**{f"v{n}": counting_video(n) for n in lengths}), piece_length)
    expected = []
    for length in lengths:
        starts = list(range(0, max(1, length - piece_length + 1), piece_length))
        expected += [(f"v{length}[{a:07}:]", b - a) for a, b in zip(starts, [*starts[1:], length])]
    assert [(reader.name(piece), reader.num_frames(piece)) for piece in range(len(reader))] == expected
    with pytest.raises(IndexError, match="must lie in"):
        reader.name(len(expected))


def test_spread_frames_have_the_channels_of_most_videos():
    videos = {f"v{number}": counting_video(4) for number in range(3)} | {"grey": counting_video(9, num_channels=1)}
    reader = MemoryReader(**videos)
    assert [frame.shape[1] for frame in spread_frames(reader)] == [3] * 12
    assert [frame.shape[1] for frame in spread_frames(reader, num_channels=1)] == [1] * 9
    assert [frame.shape[1] for frame in spread_frames(SubsetReader(reader, [3, 0]), 5)] == [1] * 5


def test_a_subset_of_videos_that_do_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"`videos` must lie in 0\.\.1, .* but got \[2, -1\]"):
        SubsetReader(MemoryReader(a=counting_video(1), b=counting_video(1)), [0, 2, -1])
