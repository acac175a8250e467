"""PSNR and SSIM: equal to the original's own evaluation, and to scikit-image."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mcvd_diffusers.metrics import frame_mse, frame_ssim, normal_interval, psnr_of_mse, quantise, video_mse


REFERENCE = Path(__file__).parents[1] / "reference" / "mcvd"
ARRAYS = np.load(REFERENCE / "video_gen.npz")
NUMBERS = json.loads((REFERENCE / "video_gen_metrics.json").read_text())


def scores(run, task):
    """Metric -> values (clips, samples) on the arrays that the original wrote, of one channel."""
    numbers = NUMBERS[run]
    is_digits = run != "general_ddpm_metrics_nonmnist"
    key = f"{run.removesuffix('_metrics_nonmnist')}__{task}"
    made, real = (torch.from_numpy(ARRAYS[f"{key}__{name}"])[:, :, None] for name in ("pred", "real"))
    mse = video_mse(made, real)
    ssim = frame_ssim(made, real, quantisation="binary" if is_digits else "floor_8bit", color="luma").mean(dim=1)
    values = {"mse": mse, "psnr": psnr_of_mse(mse), "ssim": ssim}
    return {name: x.view(-1, numbers["preds_per_test"]).numpy() for name, x in values.items()}


@pytest.mark.parametrize("task", ["interp", "pred"])
@pytest.mark.parametrize("run", sorted(NUMBERS))
def test_against_the_evaluation_of_the_original(run, task):
    # Best of the samples for each metric by itself, then mean, standard deviation and 95 % interval over the clips.
    suffix = "" if task == "interp" else "2"
    for metric, values in scores(run, task).items():
        best = values.min(axis=1) if metric == "mse" else values.max(axis=1)
        found = normal_interval(best)
        expected = [NUMBERS[run][f"{metric}{suffix}{part}"] for part in ("", "_std", "_conf95")]
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0, err_msg=f"{run} {task} {metric}")


def test_best_of_is_taken_for_each_metric_by_itself():
    values = scores("general_ddim", "pred")
    assert values["psnr"].shape == (3, 2)
    # Otherwise the test above would not see one rule taken for the other.
    joint = np.take_along_axis(values["ssim"], values["psnr"].argmax(axis=1)[:, None], axis=1)
    assert not np.allclose(values["ssim"].max(axis=1, keepdims=True), joint)


@pytest.fixture
def videos():
    rng = np.random.RandomState(0)
    target = rng.rand(2, 3, 3, 19, 24)
    prediction = (target + 0.2 * rng.randn(*target.shape)).clip(0, 1)
    return torch.from_numpy(prediction), torch.from_numpy(target)


def test_psnr_equals_scikit_image(videos):
    prediction, target = videos
    frames = psnr_of_mse(frame_mse(prediction, target))
    whole = psnr_of_mse(video_mse(prediction, target))
    for b in range(2):
        expected = peak_signal_noise_ratio(target[b].numpy(), prediction[b].numpy(), data_range=1)
        assert abs(float(whole[b]) - expected) < 1e-9
        for t in range(3):
            expected = peak_signal_noise_ratio(target[b, t].numpy(), prediction[b, t].numpy(), data_range=1)
            assert abs(float(frames[b, t]) - expected) < 1e-9
    assert (frames.mean(dim=1) > whole).all()  # two names, two numbers


def test_ssim_equals_scikit_image(videos):
    prediction, target = videos
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 1}
    found = frame_ssim(prediction, target)
    for b in range(2):
        for t in range(3):
            pair = prediction[b, t].numpy(), target[b, t].numpy()
            assert abs(float(found[b, t]) - structural_similarity(*pair, channel_axis=0, **options)) < 1e-9


def test_grey_ssim_is_that_of_pillow_and_scikit_image(videos):
    prediction, target = videos
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    found = frame_ssim(prediction, target, quantisation="floor_8bit", color="luma")
    for b in range(2):
        for t in range(3):
            pair = [
                np.asarray(Image.fromarray((x[b, t].float() * 255).byte().movedim(0, -1).numpy()).convert("L"))
                for x in videos
            ]
            assert abs(float(found[b, t]) - structural_similarity(*pair, **options)) < 1e-9


def test_quantised_values():
    x = torch.tensor([0.0, 0.1, 0.5, 0.51, 0.999, 1.0])
    assert (quantise(x, "floor_8bit") * 255).round().tolist() == [0, 25, 127, 130, 254, 255]
    assert (quantise(x, "round_8bit") * 255).round().tolist() == [0, 26, 128, 130, 255, 255]
    assert quantise(x, "binary").tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(quantise(x, "none"), x)
    with pytest.raises(ValueError, match="`quantisation` must be"):
        quantise(x, "8bit")


def test_ssim_that_cannot_be_computed_raises(videos):
    prediction, target = videos
    with pytest.raises(ValueError, match="at least 11 x 11 pixels.*got 10 x 24"):
        frame_ssim(prediction[..., :10, :], target[..., :10, :])
    with pytest.raises(ValueError, match="1 or 3 channels, got 2"):
        frame_ssim(prediction[:, :, :2], target[:, :, :2], color="luma")
    with pytest.raises(ValueError, match="NaN"):
        frame_ssim(prediction, torch.full_like(target, torch.nan))
    with pytest.raises(ValueError, match="must both have shape"):
        frame_ssim(prediction, target[:, :2])
