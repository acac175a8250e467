import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mcvd_diffusers.metrics.perceptual import LPIPS
from original_mcvd import load_reference


# `lpips` and `lpips2` of the original's runs, where the mean absolute difference stood in for the network.
ORIGINAL = {
    ("general_ddim", "interp"): 0.6812799970308939,
    ("general_ddim", "pred"): 0.6845950484275818,
    ("general_ddpm", "interp"): 0.7005542119344076,
    ("general_ddpm", "pred"): 0.7274909019470215,
    ("predonly_ddim", "interp"): 0.6755738258361816,
    ("predonly_ddim", "pred"): 0.6879352529843649,
}


def mean_absolute_difference(prediction, target):
    return (prediction - target).abs().mean(dim=(1, 2, 3), keepdim=True)  # as lpips.LPIPS gives it: (T, 1, 1, 1)


def metric(network=mean_absolute_difference):
    return LPIPS(network, name="mean absolute difference")


def seen_images(video):
    """What the network gets for a video."""
    seen = []

    def look(prediction, target):
        seen.append((prediction, target))
        return mean_absolute_difference(prediction, target)

    metric(look).distances(video, torch.zeros_like(video))
    return torch.stack([prediction for prediction, _ in seen])


@pytest.mark.parametrize("run, task", ORIGINAL, ids="-".join)
def test_against_mcvd_video_gen(run, task):
    golden = load_reference("video_gen")
    prediction, target = (golden[f"{run}__{task}__{name}"][:, :, None] for name in ("pred", "real"))  # 3 clips, n each
    of_videos = metric().distances(prediction, target).mean(dim=1)
    best = of_videos.unflatten(0, (3, -1)).min(dim=1).values
    assert best.mean().item() == pytest.approx(ORIGINAL[run, task], abs=1e-6)


def test_images_are_8_bit_by_floor_and_in_minus_one_to_one():
    levels = torch.tensor([0, 0.9999 / 255, 1 / 255, 127.9 / 255, 1.0]).double()
    images = seen_images(levels[None, :, None, None, None].expand(1, -1, 1, 4, 4))
    assert images.shape == (1, 5, 3, 128, 128)
    expected = torch.tensor([0, 0, 1, 127, 255]) / 255 * 2 - 1
    torch.testing.assert_close(images, expected[None, :, None, None, None].expand_as(images))


@pytest.mark.parametrize("height, width", [(64, 64), (300, 200)])
def test_resizing_is_antialiased_and_rounds_to_8_bit(height, width):
    """torch's own antialiased bilinear filter is the same up to how the two round."""
    video = torch.randint(0, 256, (1, 2, 3, height, width), generator=torch.Generator().manual_seed(0)) / 255
    pixels = (seen_images(video)[0] + 1) / 2 * 255
    torch.testing.assert_close(pixels, pixels.round(), atol=1e-3, rtol=0)
    resized = F.interpolate((video[0] * 255).floor(), (128, 128), mode="bilinear", antialias=True)
    assert (pixels - resized).abs().max() <= 1.5


def test_grey_is_repeated_and_colours_stay_in_order():
    video = torch.rand(1, 2, 3, 16, 16)
    red = seen_images(video)[:, :, 0]
    torch.testing.assert_close(seen_images(video[:, :, :1]), red[:, :, None].expand(-1, -1, 3, -1, -1))


def test_each_frame_of_each_video_has_its_own_distance():
    prediction, target = torch.zeros(2, 3, 1, 8, 8), torch.zeros(2, 3, 1, 8, 8)
    prediction[1, 2] = 1
    distances = metric().distances(prediction, target)
    assert distances.dtype == torch.float64
    torch.testing.assert_close(distances, torch.tensor([[0, 0, 0], [0, 0, 2.0]]).double())


@pytest.mark.parametrize(
    "prediction, target, message",
    [
        (torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 3, 1, 8, 8), "same shape"),
        (torch.zeros(1, 2, 4, 8, 8), torch.zeros(1, 2, 4, 8, 8), "4 channels.*leave LPIPS out"),
        (torch.zeros(1, 2, 1, 8, 8) - 1, torch.zeros(1, 2, 1, 8, 8), r"`prediction` must lie in \[0, 1\]"),
        (torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 2, 1, 8, 8) + torch.nan, r"`target` must lie in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8), "shape"),
        (torch.zeros(1, 2, 1, 8, 8).byte(), torch.zeros(1, 2, 1, 8, 8), "Divide 8-bit frames by 255"),
    ],
)
def test_what_can_not_be_compared_is_refused(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        metric().distances(prediction, target)


def test_a_distance_that_is_not_finite_is_no_number():
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        metric(lambda prediction, target: torch.full((len(target),), torch.nan)).distances(
            torch.zeros(1, 2, 1, 8, 8), torch.zeros(1, 2, 1, 8, 8)
        )


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ImportError, match=r"mcvd-diffusers\[lpips\].*torchvision.*AlexNet"):
        LPIPS.from_package()


def stand_in_package(constructor):
    package = types.ModuleType("lpips")
    package.LPIPS = constructor
    return package


def test_without_a_download_of_alexnet_the_way_out_is_told(monkeypatch):
    def constructor(**options):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>")

    monkeypatch.setitem(sys.modules, "lpips", stand_in_package(constructor))
    with pytest.raises(OSError, match="AlexNet.*could not be downloaded.*leave LPIPS out"):
        LPIPS.from_package()


def test_the_package_is_asked_for_the_originals_network_and_the_random_stream_stays(monkeypatch):
    """The package itself is not installed here: this only pins how it is called."""

    class Network(torch.nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.options = options
            self.layer = torch.nn.Linear(2, 2)

        def forward(self, prediction, target):
            assert not self.training
            return mean_absolute_difference(prediction, target)

    monkeypatch.setitem(sys.modules, "lpips", stand_in_package(Network))
    state = torch.get_rng_state()
    lpips = LPIPS.from_package()
    assert torch.equal(torch.get_rng_state(), state)
    assert lpips.network.options == {"net": "alex", "version": "0.1", "verbose": False}
    assert lpips.name == "lpips alex v0.1, 8 bit, 128x128"
    np.testing.assert_allclose(lpips.distances(torch.ones(1, 1, 1, 8, 8), torch.zeros(1, 1, 1, 8, 8)), 2)


class SmallLpips(torch.nn.Module):
    """LPIPS over two small random layers, built as the package builds it."""

    class Slices(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Conv2d(3, 4, 3, 2), torch.nn.Conv2d(4, 6, 3, 2)])

        def forward(self, x):
            outputs = []
            for layer in self.layers:
                x = layer(x).relu()
                outputs.append(x)
            return outputs

    class Linear(torch.nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Conv2d(channels, 1, 1, bias=False))

    def __init__(self):
        super().__init__()
        self.scaling_layer = torch.nn.BatchNorm2d(3, affine=False)
        self.net, self.lins = self.Slices(), torch.nn.ModuleList([self.Linear(4), self.Linear(6)])
        for linear in self.lins:
            linear.model[-1].weight.data.abs_()

    def forward(self, prediction, target):
        total = 0
        pairs = (self.net.forward(self.scaling_layer(x)) for x in (prediction, target))
        for ours, theirs, linear in zip(*pairs, self.lins):
            ours, theirs = (x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10) for x in (ours, theirs))
            total = total + linear.model((ours - theirs).square()).mean(dim=(2, 3), keepdim=True)
        return total


def test_fdm_3_the_squared_distance_of_embedded_frames_is_their_lpips():
    torch.manual_seed(0)
    lpips = metric(SmallLpips().eval())
    frames = torch.rand(1, 3, 3, 16, 16)
    vectors = [lpips.embed(frame) for frame in frames[0]]
    expected = lpips.distances(frames[:, [0, 0, 1]], frames[:, [1, 2, 2]])[0]
    ours = [(vectors[i] - vectors[j]).square().sum().item() for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(ours, expected, rtol=1e-4)
