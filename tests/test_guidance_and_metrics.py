"""Guidance, frame quality, baselines and pictures."""

import math

import numpy as np
import pytest
import torch
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from PIL import Image

from mcvd_diffusers.guidance import compose_histories, guider_prediction, needed_views
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.visualization import GIVEN_COLOR, MADE_COLOR, contact_sheet, save_comparison_gif


def guided(given, absent, scale):
    histories = [("given", scale)]
    predictions = {"given": given, "nothing": absent}
    return compose_histories({x: predictions[x] for x in needed_views(histories, "nothing")}, histories, "nothing")


def test_guidance_scale_zero_is_unconditional_one_is_conditional():
    given, absent = torch.randn(2, 3), torch.randn(2, 3)
    torch.testing.assert_close(guided(given, absent, 0.0), absent)
    assert torch.equal(guided(given, absent, 1.0), given)
    torch.testing.assert_close(guided(given, absent, 3.0), 3 * given - 2 * absent)


def test_views_are_each_made_once_and_nothing_only_if_it_counts():
    assert needed_views([("all", 1.0)], "nothing") == ["all"]
    assert needed_views([("all", 0.5), ("last", 0.5)], "nothing") == ["all", "last"]
    assert needed_views([("all", 2.0), ("all", 1.0)], "nothing") == ["all", "nothing"]
    assert needed_views([("nothing", 1.0)], "nothing") == ["nothing"]


def test_guider_is_asked_for_a_block_of_frames_as_for_an_image():
    given, absent = torch.randn(2, 3, 2, 4, 4), torch.randn(2, 3, 2, 4, 4)
    network = torch.nn.Identity()
    at = {"step": 0, "num_inference_steps": 2, "timestep": torch.tensor(999)}
    for guider, expected in (
        (ClassifierFreeGuidance(3.0), guided(given, absent, 3.0)),
        (ClassifierFreeGuidance(3.0, start=0.5), given),  # not yet
    ):
        out = guider_prediction(guider, network, lambda: given, lambda: absent, **at)
        torch.testing.assert_close(out, expected)
    # One video after the other: the norm of each is taken over all its frames.
    guider = AdaptiveProjectedGuidance(3.0, adaptive_projected_guidance_rescale=1.0)
    both = guider_prediction(guider, network, lambda: given, lambda: absent, **at)
    alone = guider_prediction(guider, network, lambda: given[1:], lambda: absent[1:], **at)
    torch.testing.assert_close(both[1:], alone)
    change = (both - absent).flatten(1) / 3  # of projected differences of norm 1 and less
    assert (change.norm(dim=1) <= 1 + 1e-5).all()


def test_psnr_of_a_known_error():
    target = torch.full((2, 3, 1, 4, 4), 0.5)
    prediction = target.clone()
    prediction[0] += 0.1
    prediction[1, 0] += 0.3  # one of three frames
    psnr = psnr_of_mse(video_mse(prediction, target))
    expected = [20.0, -10 * math.log10(0.09 / 3)]
    torch.testing.assert_close(psnr, torch.tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0)


def test_error_that_cannot_be_computed_raises():
    video = torch.zeros(1, 2, 1, 4, 4)
    with pytest.raises(ValueError, match="must both have shape"):
        video_mse(video, video[:, :1])
    with pytest.raises(ValueError, match="NaN"):
        video_mse(video, torch.full_like(video, torch.nan))


def test_baselines():
    past, future = torch.rand(2, 3, 1, 4, 4), torch.rand(2, 2, 1, 4, 4)
    repeated = repeat_last_frame(past, 4)
    assert repeated.shape == (2, 4, 1, 4, 4) and all(torch.equal(repeated[:, t], past[:, -1]) for t in range(4))
    blend = blend_linearly(past, future, 3)
    for t, weight in enumerate((0.25, 0.5, 0.75)):
        torch.testing.assert_close(blend[:, t], (1 - weight) * past[:, -1] + weight * future[:, 0])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_animation_marks_given_frames(channels, tmp_path):
    videos = torch.rand(2, 3, channels, 8, 10)
    path = tmp_path / "new folder" / "videos.gif"
    save_comparison_gif(path, {"truth": videos, "sample": videos}, [True, False, False], frame_height=16)
    with Image.open(path) as animation:
        assert animation.n_frames == 3 and animation.info["loop"] == 0
        for t, color in enumerate((GIVEN_COLOR, MADE_COLOR, MADE_COLOR)):
            animation.seek(t)
            colors = {c for _, c in animation.convert("RGB").getcolors(maxcolors=100_000)}
            assert color in colors and GIVEN_COLOR in colors  # truth is always green


def test_contact_sheet_is_one_line_for_each_version():
    videos = torch.rand(2, 3, 1, 8, 8)
    picture = contact_sheet({"truth": videos, "sample": videos}, [True, False, False])
    assert picture.size[1] == 4 * (48 + 6) + 2 * 6
    assert picture.getpixel((picture.width - 1, 0)) == GIVEN_COLOR  # truth
    assert picture.getpixel((picture.width - 1, 60)) == MADE_COLOR


def test_labels_are_as_large_as_asked_and_frames_stay_as_they_are(tmp_path):
    videos = torch.rand(1, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    heights, sheets = {}, {}
    for size in (10, 20):
        path = tmp_path / f"{size}.gif"
        save_comparison_gif(path, {"truth": videos}, [True] * 3, frame_height=64, label_size=size)
        with Image.open(path) as picture:
            heights[size] = picture.height
        sheets[size] = contact_sheet({"truth": videos}, [True] * 3, label_size=size)
    assert heights[20] == heights[10] + 10
    frames = [sheet.crop((sheet.width - 3 * 54, 0, *sheet.size)) for sheet in sheets.values()]
    assert frames[0].tobytes() == frames[1].tobytes()
    tall = {}
    for size, sheet in sheets.items():
        ink = np.asarray(sheet.crop((0, 0, sheet.width - 3 * 54, sheet.height)).convert("L")) < 128
        tall[size] = np.ptp(np.flatnonzero(ink.any(axis=1))) + 1
    assert tall[20] == pytest.approx(2 * tall[10], abs=2)  # whole pixels


def test_columns_that_do_not_fit_are_refused(tmp_path):
    videos = torch.rand(1, 3, 1, 8, 8)
    with pytest.raises(ValueError, match="`columns` must hold videos of one shape"):
        save_comparison_gif(tmp_path / "a.gif", {"truth": videos, "sample": videos[:, :2]}, [True] * 3)
    with pytest.raises(ValueError, match="`path` must end in .gif or .webp, got 'a.mp4'"):
        save_comparison_gif(tmp_path / "a.mp4", {"truth": videos}, [True] * 3)
    with pytest.raises(ValueError, match="`is_given` must have 3 entries, one for each frame, got 2"):
        save_comparison_gif(tmp_path / "a.gif", {"truth": videos}, [True] * 2)
