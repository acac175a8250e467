"""FrameNormalizer: the user's units and the network's range are two sides of one map."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcvd_diffusers.normalization import FrameNormalizer, ValueStatistics, measure_normalizer


def fields(num_frames=6, num_channels=3, seed=0):
    """Kelvin, millimetres and a share: three channels of very different offset and spread."""
    rng = np.random.RandomState(seed)
    values = rng.randn(num_frames, num_channels, 5, 7)
    return (
        values * np.array([10.0, 0.5, 0.1])[:num_channels, None, None]
        + np.array([285.0, 3.0, 0.5])[:num_channels, None, None]
    )


def test_images_are_divided_by_255_and_nothing_is_rounded_twice():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    encoded = FrameNormalizer().encode(pixels)
    assert torch.equal(encoded, pixels.float() / 255 * 2 - 1)
    assert torch.equal(FrameNormalizer().encode(pixels.float() / 255), encoded)
    assert torch.equal((FrameNormalizer().decode(encoded) * 255).round().byte(), pixels)


@pytest.mark.parametrize("kind", ["min_max", "mean_std"])
def test_what_was_measured_is_what_numpy_says(kind):
    clips = [fields(seed=seed) for seed in range(4)]
    whole = np.concatenate(clips)
    normalizer = measure_normalizer(clips, kind)
    np.testing.assert_allclose(normalizer.low, whole.min(axis=(0, 2, 3)))
    np.testing.assert_allclose(normalizer.high, whole.max(axis=(0, 2, 3)))
    if kind == "mean_std":
        np.testing.assert_allclose(normalizer.center, whole.mean(axis=(0, 2, 3)))
        np.testing.assert_allclose(normalizer.scale, whole.std(axis=(0, 2, 3)))
        encoded = normalizer.encode(torch.from_numpy(whole))
        torch.testing.assert_close(encoded.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
        assert normalizer.largest_value == pytest.approx(float(encoded.abs().max()), rel=1e-5) and encoded.max() > 1
    else:
        encoded = normalizer.encode(torch.from_numpy(whole))
        assert [float(encoded.min()), float(encoded.max())] == pytest.approx([-1, 1], abs=1e-6)
        assert normalizer.largest_value == 1


def test_a_large_offset_costs_no_digits():
    values = 1e8 + np.random.RandomState(0).randn(50, 1, 8, 8)
    statistics = ValueStatistics()
    for part in np.split(values, 5):
        statistics.update(part)
    assert statistics.std[0] == pytest.approx(values.std(), rel=1e-6)


@given(
    low=st.floats(-1e4, 1e4),
    span=st.floats(1e-2, 1e4),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=8),
)
def test_decode_undoes_encode(low, span, shares):
    normalizer = FrameNormalizer.from_range(low, low + span)
    frames = low + span * torch.tensor(shares, dtype=torch.float64).view(1, 1, 1, -1)
    back = normalizer.decode(normalizer.encode(frames))
    tolerance = 4e-7 * (abs(low) + span)  # float32
    torch.testing.assert_close(back.double(), frames, atol=tolerance, rtol=0)


def test_values_beyond_the_range_are_clipped_on_both_ways():
    normalizer = FrameNormalizer.from_range(200, 300)
    assert normalizer.encode(torch.tensor([150.0, 350.0]).view(1, 1, 2)).flatten().tolist() == [-1, 1]
    assert normalizer.decode(torch.tensor([-3.0, 3.0]).view(1, 1, 2)).flatten().tolist() == [200, 300]


def test_missing_values_are_filled_and_a_mask_says_where():
    frames = torch.full((2, 2, 2, 2), 250.0)
    frames[0, 1, 0, 0] = torch.nan
    normalizer = FrameNormalizer.from_range((200.0, 200.0), (300.0, 300.0), nan_fill=200.0, has_mask_channel=True)
    encoded = normalizer.encode(frames)
    assert encoded.shape == (2, 3, 2, 2) and normalizer.num_channels(3) == 2
    assert encoded[0, 1, 0, 0] == -1 and encoded[0, 0, 0, 0] == 0
    expected = torch.ones(2, 2, 2)
    expected[0, 0, 0] = -1
    assert torch.equal(encoded[:, 2], expected)
    back = normalizer.decode(encoded)
    assert back[0, :, 0, 0].isnan().all() and back.isnan().sum() == 2 and (back[1] == 250).all()
    without = FrameNormalizer.from_range(200.0, 300.0, nan_fill=200.0)
    assert without.encode(frames).shape == frames.shape and without.encode(frames)[0, 1, 0, 0] == -1


def test_each_channel_has_a_fill_of_its_own_if_so_wished():
    frames = torch.full((1, 2, 1, 2), torch.nan)
    normalizer = FrameNormalizer.from_range((200.0, 0.0), (300.0, 10.0), nan_fill=(250.0, 0.0))
    assert normalizer.encode(frames).tolist() == [[[[0, 0]], [[-1, -1]]]]
    with pytest.raises(ValueError, match="`nan_fill` must be finite numbers.*one for each channel or one"):
        FrameNormalizer.from_range((200.0, 0.0), (300.0, 10.0), nan_fill=(1.0, 2.0, 3.0))


def test_images_can_have_a_mask_too():
    normalizer = FrameNormalizer(nan_fill=0.0, has_mask_channel=True)
    pixels = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    assert torch.equal(normalizer.encode(pixels), torch.ones(1, 4, 2, 2))


def test_missing_values_do_not_enter_what_is_measured():
    clip = fields()
    holed = clip.copy()
    holed[::2, :, :2] = np.nan
    normalizer = measure_normalizer([holed], "mean_std", nan_fill=0.0)
    np.testing.assert_allclose(normalizer.center, np.nanmean(holed, axis=(0, 2, 3)))
    np.testing.assert_allclose(normalizer.scale, np.nanstd(holed, axis=(0, 2, 3)))


def test_config_is_plain_and_comes_back():
    import json

    for normalizer in (
        FrameNormalizer(),
        FrameNormalizer.from_range((200.0, 0.0), (320.0, 1.0), nan_fill=(200.0, 0.0), has_mask_channel=True),
        measure_normalizer([fields()], "mean_std"),
    ):
        config = json.loads(json.dumps(normalizer.to_config()))
        assert FrameNormalizer.from_config(config) == normalizer
    assert FrameNormalizer().to_config() is None
    assert str(FrameNormalizer.from_range((200.0, 0.0), (320.0, 1.0), nan_fill=(200.0, 1.0))) == (
        "range, 200 to 320; 0 to 1, missing ones filled with 200; 1"
    )


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: FrameNormalizer.from_range(3, 3), "`low` must be below `high` in every channel, got 3 and 3"),
        (lambda: FrameNormalizer.from_range((0, 0), (1, 1, 1)), "must be equally many"),
        (lambda: FrameNormalizer.from_range(0, float("inf")), "`high` must be finite"),
        (lambda: FrameNormalizer.from_range(0, 1, nan_fill=float("nan")), "`nan_fill` must be finite numbers"),
        (lambda: FrameNormalizer.from_range(0, 1, has_mask_channel=True), "must go with a `nan_fill`"),
        (
            lambda: FrameNormalizer.from_range(200, 320, nan_fill=-9999),
            "`nan_fill` must lie in the range, from 200 to 320",
        ),
        (lambda: FrameNormalizer(nan_fill=-1), "`nan_fill` must lie in the range, from 0 to 1"),
        (lambda: FrameNormalizer("mean_std", (0.0,), (1.0,), (7.0,), (0.3,)), "`center` must lie in.*got 7 and 0.3"),
        (lambda: FrameNormalizer("mean_std", (0.0,), (1.0,), (0.5,), (1e-9,)), "`scale` be a part of"),
        (lambda: FrameNormalizer("range", None, None), "`low` must be finite numbers"),
        (lambda: FrameNormalizer(has_mask_channel="yes"), "`has_mask_channel` must be true or false, got 'yes'"),
        (lambda: FrameNormalizer("unit", (0.0,), (2.0,)), "use `from_range`"),
        (lambda: FrameNormalizer("log"), "`kind` must be one of unit, range"),
        (lambda: measure_normalizer([], "min_max"), "holds none"),
        (
            lambda: measure_normalizer([np.full((1, 2, 3, 3), np.nan)], "min_max"),
            r"channels \[0, 1\] have only missing",
        ),
        (lambda: measure_normalizer([np.ones((1, 1, 3, 3))], "mean_std"), "Values that are all the same"),
        (lambda: measure_normalizer([np.ones((1, 1, 3, 3))], "range"), '`kind` must be "min_max" or "mean_std"'),
        (lambda: measure_normalizer([fields(), fields(num_channels=2)], "min_max"), "must all have 3 channels"),
        (lambda: FrameNormalizer.from_range((0, 0), (1, 1)).num_channels(3), "is for 2 channel.s., but .* have 3"),
    ],
)
def test_what_makes_no_map_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@settings(max_examples=200)
@given(low=st.floats(-1e3, 1e3), width=st.floats(0.125, 1e3))
def test_the_ends_of_a_range_are_minus_one_and_one_to_the_last_bit(low, width):
    ends = torch.tensor([low - 1, low, low + width, low + width + 1]).view(4, 1, 1, 1)
    encoded = FrameNormalizer.from_range(low, low + width).encode(ends).flatten()
    assert encoded.abs().max() <= 1 and encoded[0] == -1 and encoded[3] == 1
    torch.testing.assert_close(encoded[1:3], torch.tensor([-1.0, 1.0]), rtol=0, atol=2e-3)
