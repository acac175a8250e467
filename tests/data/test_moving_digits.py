"""Moving digits: the original's clips bit for bit, and items that depend on nothing but seed, epoch and index."""

import copy
import pickle
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import torch.multiprocessing  # teaches ForkingPickler to share tensors, as a DataLoader does
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from mcvd_diffusers.data import MovingDigits, draw_moving_digits, draw_trajectory, load_digits


torch.set_num_threads(1)

GOLDEN = Path(__file__).parents[1] / "reference" / "mcvd" / "smmnist.npz"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as arrays:
        return dict(arrays)


def golden_digits(num_digits: int) -> np.ndarray:
    """The stand-in digits of the golden clips, digit(i)[y, x] = ((37 i + 3 y + 5 x) mod 256) / 255."""
    # It is linear in i, y and x before the modulo, so 60000 digits are one table seen through strides.
    table = (np.arange(37 * num_digits + 8 * 32) % 256).astype(np.float32) / 255
    strides = tuple(step * table.itemsize for step in (37, 3, 5))
    return np.lib.stride_tricks.as_strided(table, (num_digits, 32, 32), strides, writeable=False)


def some_digits(size: int = 8) -> np.ndarray:
    return np.random.RandomState(0).uniform(size=(5, size, size)).astype(np.float32)


def small_dataset(**kwargs) -> MovingDigits:
    kwargs = {"digits": some_digits(), "num_frames": 4, "num_clips": 12, "canvas_size": (16, 20)} | kwargs
    return MovingDigits(kwargs.pop("digits"), **kwargs)


def all_items(dataset: MovingDigits) -> torch.Tensor:
    return torch.stack([dataset[index]["video"] for index in range(len(dataset))])


# Parity with the original


@pytest.mark.parametrize("split, num_digits", [("train", 60000), ("test", 256)])
def test_against_mcvd_clips(golden, split, num_digits):
    # The original seeds with the first index of a process, 5, and lets the stream run on: hence one rng for all three.
    rng = np.random.RandomState(5)
    for expected in golden[split]:
        clip = draw_moving_digits(golden_digits(num_digits), rng, num_frames=20)
        assert clip.dtype == np.float32
        np.testing.assert_array_equal(np.rint(clip * 255).astype(np.uint8), expected)


@pytest.mark.parametrize("split, num_digits", [("train", 60000), ("test", 256)])
def test_against_mcvd_items(golden, split, num_digits):
    dataset = MovingDigits(golden_digits(num_digits), num_frames=20, num_clips=num_digits)
    items = torch.stack([item["video"] for item in dataset.in_sequence([5, 0, 7], np.random.RandomState(5))])
    assert items.dtype == torch.float32
    np.testing.assert_array_equal(np.rint((items.numpy() + 1) * 127.5).astype(np.uint8), golden[split])


@pytest.mark.parametrize("deterministic", [False, True])
def test_against_mcvd_trajectories(golden, deterministic):
    rng = np.random.RandomState(11)
    rng.randint(60000)  # which digit
    trajectory = draw_trajectory(rng, num_frames=200, num_positions=(32, 32), deterministic=deterministic)
    np.testing.assert_array_equal(trajectory, golden["pos_seed11_yx" + "_deterministic" * deterministic])


def test_items_are_the_clips_of_their_rng_in_minus_one_to_one():
    dataset = small_dataset()
    clip = draw_moving_digits(some_digits(), dataset.item_rng(dataset.epoch, 3), num_frames=4, canvas_size=(16, 20))
    video = dataset[3]["video"]
    assert video.dtype == torch.float32 and video.shape == (4, 1, 16, 20)
    torch.testing.assert_close(video, torch.from_numpy(clip) * 2 - 1, rtol=0, atol=0)
    assert video.min() == -1


# What the process promises


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_positions=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    max_speed=st.integers(0, 50),
    deterministic=st.booleans(),
)
def test_digits_never_leave_the_canvas(seed, num_positions, max_speed, deterministic):
    rng = np.random.RandomState(seed)
    trajectory = draw_trajectory(
        rng, num_frames=40, num_positions=num_positions, max_speed=max_speed, deterministic=deterministic
    )
    assert (trajectory >= 0).all() and (trajectory < num_positions).all()
    assert (np.abs(np.diff(trajectory, axis=0)) <= max_speed).all()


def test_digits_stand_still_at_speed_zero():
    clip = draw_moving_digits(some_digits(), np.random.RandomState(0), num_frames=5, canvas_size=(16, 16), max_speed=0)
    assert (clip == clip[:1]).all() and clip.max() > 0


def test_overlapping_digits_add_up_to_at_most_one():
    digits = np.full((1, 8, 8), 0.6, dtype=np.float32)
    clips = [
        draw_moving_digits(digits, np.random.RandomState(seed), num_frames=10, canvas_size=(12, 12))
        for seed in range(5)
    ]
    assert set(np.unique(clips)) == {np.float32(0), np.float32(0.6), np.float32(1)}


def test_the_number_of_digits_is_what_was_asked_for():
    digits = np.full((1, 1, 1), 0.25, dtype=np.float32)
    clip = draw_moving_digits(digits, np.random.RandomState(0), num_frames=6, canvas_size=(9, 12), num_digits=3)
    np.testing.assert_allclose(clip.sum(axis=(1, 2, 3)), 0.75)


# Items


def test_items_do_not_depend_on_what_was_drawn_before():
    dataset = small_dataset()
    expected = all_items(dataset)
    np.random.seed(7)
    torch.manual_seed(7)
    for index in (11, 0, 5, 5, -1):
        torch.testing.assert_close(dataset[index]["video"], expected[index], rtol=0, atol=0)


def test_one_stream_runs_through_a_sequence():
    dataset = small_dataset()
    together = [item["video"] for item in dataset.in_sequence([3, 1, 1], np.random.RandomState(3))]
    rng = np.random.RandomState(3)
    apart = [item["video"] for index in (3, 1, 1) for item in dataset.in_sequence([index], rng)]
    assert torch.equal(torch.stack(together), torch.stack(apart)) and not torch.equal(together[1], together[2])
    with pytest.raises(IndexError):
        next(dataset.in_sequence([12], rng))


def test_items_differ_by_index_epoch_and_seed():
    dataset = small_dataset()
    first = all_items(dataset)
    assert len(first.flatten(1).unique(dim=0)) == len(dataset)
    dataset.set_epoch(1)
    assert dataset.epoch == 1 and not torch.equal(all_items(dataset), first)
    dataset.set_epoch(0)
    assert torch.equal(all_items(dataset), first)
    assert not torch.equal(all_items(small_dataset(seed=1)), first)


def test_drawing_leaves_the_global_random_streams_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    torch_before = torch.get_rng_state()
    small_dataset()[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_persistent_workers_give_the_items_of_the_epoch_that_is_set():
    dataset = small_dataset()
    loader = DataLoader(dataset, batch_size=3, num_workers=2, persistent_workers=True)
    epochs = []
    for epoch in (0, 1, 0):
        dataset.set_epoch(epoch)
        epochs.append(torch.cat([batch["video"] for batch in loader]))
        torch.testing.assert_close(epochs[-1], all_items(dataset), rtol=0, atol=0)
    assert not torch.equal(epochs[0], epochs[1])


def test_a_spawned_worker_shares_the_epoch_and_a_copy_has_its_own():
    dataset = small_dataset()
    # What a worker that is started by "spawn" or "forkserver" receives.
    in_worker = pickle.loads(ForkingPickler.dumps(dataset))
    copies = [copy.deepcopy(dataset), pickle.loads(pickle.dumps(dataset))]
    dataset.set_epoch(4)
    assert in_worker.epoch == 4
    for other in copies:
        assert other.epoch == 0
        assert torch.equal(other[1]["video"], small_dataset()[1]["video"])
        loader = DataLoader(other, batch_size=12, num_workers=1, persistent_workers=True)
        for epoch in (0, 2):
            other.set_epoch(epoch)
            torch.testing.assert_close(next(iter(loader))["video"], all_items(other), rtol=0, atol=0)


def test_iteration_ends_after_num_clips():
    assert len(list(small_dataset(num_clips=3))) == 3
    with pytest.raises(IndexError):
        small_dataset(num_clips=3)[3]


# Digit images


def test_sklearn_digits_are_split_without_a_shared_image():
    train, validation = load_digits(split="train"), load_digits(split="validation")
    assert train.shape == (1438, 32, 32) and validation.shape == (359, 32, 32)
    assert train.dtype == validation.dtype == np.float32
    assert not {image.tobytes() for image in train} & {image.tobytes() for image in validation}


def test_sklearn_digits_are_white_on_black_and_fade_before_the_border():
    digits = load_digits("sklearn", split="validation", size=24)
    assert digits.shape[1:] == (24, 24)
    assert digits.min() == 0 and digits.max() == 1
    assert (digits.max(axis=(1, 2)) > 0.9).all()
    assert digits[:, [0, -1]].max() < 0.1 and digits[:, :, [0, -1]].max() < 0.1
    assert 0.1 < digits.mean() < 0.3


def test_mnist_is_resized_as_the_original_does(monkeypatch):
    # The data set itself needs a download; the Hub's layout is stood in for by one of the same features.
    pixels = np.random.RandomState(0).randint(256, size=(3, 28, 28)).astype(np.uint8)
    hub = {"train": pixels[:2], "test": pixels[2:]}
    asked = []

    def load_dataset(path, split):
        asked.append((path, split))
        return datasets.Dataset.from_dict(
            {"image": [Image.fromarray(image) for image in hub[split]], "label": [0] * len(hub[split])},
            features=datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")}),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    train, validation = load_digits("mnist", split="train"), load_digits("mnist", split="validation")
    assert asked == [("ylecun/mnist", "train"), ("ylecun/mnist", "test")]
    assert train.shape == (2, 32, 32) and validation.shape == (1, 32, 32)
    expected = np.asarray(Image.fromarray(pixels[2]).resize((32, 32), Image.Resampling.BILINEAR), np.float32) / 255
    np.testing.assert_array_equal(validation[0], expected)


def test_digits_of_the_package_are_split_without_a_shared_image():
    train, validation = (load_digits("mnist-10k", split=split, size=28) for split in ("train", "validation"))
    assert train.shape == (9000, 28, 28) and validation.shape == (1000, 28, 28) and train.dtype == np.float32
    assert len({image.tobytes() for image in np.concatenate([train, validation])}) == 10_000
    # The first nought of MNIST's training images, by the grey levels of its first row with ink.
    assert (train[0, 4, 15:20] * 255).round().tolist() == [51, 159, 253, 159, 50]
    # Ones stand at 1, 11, 21, ...: they have the least ink of all digits.
    assert validation.reshape(100, 10, -1).mean(axis=(0, 2)).argmin() == 1
    assert load_digits("mnist-10k", split="validation").shape == (1000, 32, 32)


def test_missing_scikit_learn_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'pip install "mcvd-diffusers\[digits\]"'):
        load_digits("sklearn", split="train")


# Bad input


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"source": "emnist", "split": "train"}, r"`source` must be one of .* but got 'emnist'"),
        ({"split": "test"}, r"`split` must be one of .* but got 'test'.*'validation'"),
        ({"split": "train", "size": 0}, r"`size` must be an integer of at least 1 but got 0"),
    ],
)
def test_bad_arguments_of_load_digits_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_digits(**kwargs)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_frames": 0}, r"`num_frames` must be an integer of at least 1 but got 0"),
        ({"num_frames": 2.5}, r"`num_frames` must be an integer of at least 1 but got 2\.5"),
        ({"num_clips": 0}, r"`num_clips` must be an integer of at least 1 but got 0"),
        ({"num_digits": 0}, r"`num_digits` must be an integer of at least 1 but got 0"),
        ({"max_speed": -1}, r"`max_speed` must be an integer of at least 0 but got -1"),
        ({"seed": -1}, r"`seed` must be an integer of at least 0 but got -1"),
        ({"canvas_size": 64}, r"`canvas_size` must be a pair of positive integers \(height, width\) but got 64"),
        ({"canvas_size": (20, 8)}, r"`canvas_size` must exceed the size of the digits, 8 x 8, .* but got 20 x 8"),
        ({"digits": some_digits()[0]}, r"`digits` must be .* of shape \(N, h, w\) but got float32 of shape \(8, 8\)"),
        ({"digits": some_digits()[:0]}, r"`digits` must be .* but got float32 of shape \(0, 8, 8\)"),
        ({"digits": some_digits().astype(float)}, r"`digits` must be .* but got float64"),
        ({"digits": torch.zeros(2, 8, 8)}, r"`digits` must be a NumPy array.* but got torch.float32"),
        ({"digits": [[[0.0]]]}, r"`digits` must be .* but got list"),
        ({"digits": some_digits() * 255}, r"`digits` must lie in \[0, 1\] but got .* Divide 8-bit images by 255"),
        ({"digits": some_digits() * np.float32("nan")}, r"`digits` must lie in \[0, 1\] but got \[nan, nan\]"),
    ],
)
def test_bad_arguments_are_named_before_the_first_clip(kwargs, message):
    with pytest.raises(ValueError, match=message):
        small_dataset(**kwargs)


def test_drawing_checks_its_own_arguments():
    with pytest.raises(ValueError, match=r"`canvas_size` must exceed .* `load_digits\(size=\.\.\.\)`"):
        draw_moving_digits(some_digits(), np.random.RandomState(0), num_frames=2, canvas_size=(8, 64))


def test_a_negative_epoch_is_refused():
    with pytest.raises(ValueError, match=r"`epoch` must be an integer of at least 0 but got -1"):
        small_dataset().set_epoch(-1)
