"""What scoring costs in an evaluation, beside the sampling; SSIM and Fréchet distance also against the usual ways.

    python benchmarks/evaluation.py [--videos 64] [--frames 30] [--size 64] [--members 10] [--repetitions 3] [--threads 1]

All is measured in one process, of random videos of 3 channels in float32, and of random features. Of the repetitions the
fastest counts; where two ways are compared, they run in turn, and the ratio is that of their fastest. The parts are

    sampling          one block of the network of `examples/configs/demo.yaml`, widened to these frames, 10 denoising steps
    MSE, SSIM         `frame_mse`, and `frame_ssim` of 8-bit luma, video by video, as evaluations call them
    scikit-image      a loop that makes grey 8-bit images of the same frames by Pillow, and calls `structural_similarity`;
                      "of grey images": only that call, which leaves out what `frame_ssim` has to do, too
    ensemble          CRPS, energy score and rank histogram of so many members of one clip, told for each member
    TransNet          features of TransNet V2, all videos in one call
    Fréchet           `frechet_distance` of moments that are there, against `|m|^2 + tr(C1 + C2 - 2 sqrtm(C1 C2))` by
                      `scipy.linalg.sqrtm`, of covariances that are there; "difference" is relative to the distance
    intervals         `mean_interval` with 10,000 resamples; `distance_interval` of the Fréchet distance in 64 blocks

Measured with the defaults on 2 shared CPU cores, torch 2.13 with one thread and `OMP_NUM_THREADS=1`; the block of 4 frames
took 474 ms, and a video takes 8 of them. (With other jobs on both cores times were up to three times as long; shares
scatter by as much, ratios less.)

    a video                         ms   of its sampling
    sampling                    3790.7
    MSE                          10.49             0.28%
    SSIM                         15.86             0.42%
    SSIM, scikit-image           36.62             0.97%
      of grey images             26.21             0.69%
    CRPS, of 10                   5.90             0.16%
    energy score, of 10           4.39             0.12%
    rank histogram, of 10         2.06             0.05%
    TransNet features           570.18            15.04%

    an evaluation                                     ms   sqrtm, ms   ratio  difference
    Fréchet distance, 256 x 400                     41.9       114.8   0.365     4.6e-08
    Fréchet distance, 2,560 x 400                   63.5        77.5   0.820     4.0e-13
    mean_interval, 256 x 10,000                     34.2
    distance_interval, 256 x 1, 64 blocks         2765.9
    distance_interval, 256 x 10, 64 blocks        3954.2

SSIM takes 0.43 of the loop's time, and 0.61 of that of grey images; the largest difference is 4.4e-16. (`frame_ssim` goes
through few frames at a time; all at once, it took 8 times as long from 128 x 128 on.) All that is measured of pixels is below
2 % of the sampling of even this small network with few steps; only the feature network counts. Where there are fewer vectors
than features, `sqrtm` takes roots of zeros, and is what is off (4.6e-08).
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np  # noqa: E402
import scipy.linalg  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMScheduler  # noqa: E402
from PIL import Image  # noqa: E402
from skimage.metrics import structural_similarity  # noqa: E402

import train_mcvd  # noqa: E402
from mcvd_diffusers import MCVDPipeline  # noqa: E402
from mcvd_diffusers.metrics import (  # noqa: E402
    FeatureMoments,
    TransNetFeatures,
    crps,
    distance_interval,
    energy_score,
    frame_mse,
    frame_ssim,
    frechet_distance,
    mean_interval,
    rank_histogram,
)


DEMO = Path(__file__).parents[1] / "examples" / "configs" / "demo.yaml"
NUM_STEPS = 10  # denoising steps of the block
NUM_CLIPS = 256  # of the intervals
NUM_BLOCKS = 64  # of the jackknife
NUM_FEATURES = 400  # as many as I3D has


def fastest(repetitions: int, *ways: Callable[[], object]) -> list[tuple[float, object]]:
    """Run each way in turn, so often; the least seconds and the result of each."""
    seconds, results = [[] for _ in ways], [None] * len(ways)
    for _ in range(repetitions):
        for number, way in enumerate(ways):
            started = time.perf_counter()
            results[number] = way()
            seconds[number].append(time.perf_counter() - started)
    return list(zip(map(min, seconds), results))


def grey_images(videos: torch.Tensor) -> list[np.ndarray]:
    """Frames `(B, T, 3, H, W)` in `[0, 1]` as grey images, as MCVD's evaluation makes them."""
    pixels = (videos * 255).byte().movedim(2, -1).flatten(0, 1).numpy()  # (B*T, H, W, 3)
    return [np.asarray(Image.fromarray(np.ascontiguousarray(frame)).convert("L")) for frame in pixels]


def looped_ssim(prediction: list[np.ndarray], target: list[np.ndarray]) -> np.ndarray:
    """SSIM of each pair of grey 8-bit images, by scikit-image."""
    options = {"gaussian_weights": True, "use_sample_covariance": False, "data_range": 255}
    return np.array([structural_similarity(*pair, **options) for pair in zip(prediction, target)])


def usual_distance(real: list[np.ndarray], made: list[np.ndarray]) -> float:
    """Fréchet distance of two means and covariances, as most code computes it."""
    step = real[0] - made[0]
    root = scipy.linalg.sqrtm(real[1] @ made[1])
    return float(step @ step + np.trace(real[1]) + np.trace(made[1]) - 2 * np.trace(root.real))


def demo_pipeline(options: argparse.Namespace) -> MCVDPipeline:
    """The demo's network for frames of this size and 3 channels, untrained."""
    flags = [str(DEMO), "--resolution", str(options.size), "--output_dir", "unused"]
    settings = train_mcvd.parse_args(flags)
    settings.model.in_channels = 3
    scheduler = DDIMScheduler.from_config(train_mcvd.make_noise_scheduler(settings).config)
    pipe = MCVDPipeline(train_mcvd.make_unet(settings).eval(), scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def time_sampling(options: argparse.Namespace, truth: torch.Tensor) -> tuple[float, int, float]:
    """Seconds of one block, its frames, and seconds of as many videos' frames, for one video."""
    pipe = demo_pipeline(options)
    config = pipe.unet.config

    def block() -> torch.Tensor:
        return pipe(
            past_frames=truth[:1, : config.num_past_frames],
            num_frames=config.num_frames,
            num_inference_steps=NUM_STEPS,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
        ).frames

    block()  # warms up
    [(seconds, _)] = fastest(options.repetitions, block)
    return seconds, config.num_frames, seconds * -(-options.frames // config.num_frames)


def time_videos(options: argparse.Namespace, truth: torch.Tensor, made: torch.Tensor) -> None:
    """Print what scores of videos cost for each video."""
    block, num_frames, sampling = time_sampling(options, truth)
    per_video = {}

    def ssim() -> np.ndarray:
        pairs = zip(made.split(1), truth.split(1))
        return np.stack([frame_ssim(*pair, quantisation="floor_8bit", color="luma")[0].numpy() for pair in pairs])

    images = [grey_images(videos) for videos in (made, truth)]
    loops = (lambda: looped_ssim(grey_images(made), grey_images(truth)), lambda: looped_ssim(*images))
    [(seconds, _)] = fastest(options.repetitions, lambda: frame_mse(made, truth))
    per_video["MSE"] = seconds / options.videos
    (seconds, found), (looped, expected), (grey, _) = fastest(options.repetitions, ssim, *loops)
    per_video["SSIM"], per_video["SSIM, scikit-image"] = seconds / options.videos, looped / options.videos
    per_video["  of grey images"] = grey / options.videos
    difference = np.abs(found.ravel() - expected).max()

    rng = np.random.RandomState(0)
    shape = (options.members, options.frames, 3, options.size, options.size)
    members, truth_of_clip = rng.rand(1, *shape), truth[:1].double().numpy()
    for name, score in (
        ("CRPS", lambda: crps(members, truth_of_clip)),
        ("energy score", lambda: energy_score(members, truth_of_clip)),
        ("rank histogram", lambda: rank_histogram(members, truth_of_clip, rng=rng)),
    ):
        [(seconds, _)] = fastest(options.repetitions, score)
        per_video[f"{name}, of {options.members}"] = seconds / options.members

    network = TransNetFeatures.from_package()
    network.features(made[:1])  # warms up
    [(seconds, _)] = fastest(options.repetitions, lambda: network.features(made))
    per_video["TransNet features"] = seconds / options.videos

    print(f"a block of {num_frames} frames, {NUM_STEPS} steps: {block * 1e3:.0f} ms\n")
    print(f"{'a video':24}{'ms':>10}{'of its sampling':>18}")
    print(f"{'sampling':24}{sampling * 1e3:10.1f}")
    for name, seconds in per_video.items():
        print(f"{name:24}{seconds * 1e3:10.2f}{seconds / sampling:18.2%}")
    ratios = " and ".join(
        f"{per_video['SSIM'] / other:.3f}" for other in (looped / options.videos, grey / options.videos)
    )
    print(f"\nSSIM over these two: {ratios} of the time, largest difference {difference:.1e}\n")


def time_distances(options: argparse.Namespace) -> None:
    """Print what distances and intervals cost for an evaluation."""
    rng = np.random.RandomState(0)
    scales = np.geomspace(0.03, 2, NUM_FEATURES)
    print(f"{'an evaluation':42}{'ms':>10}{'sqrtm, ms':>12}{'ratio':>8}{'difference':>12}")
    for num in (NUM_CLIPS, 10 * NUM_CLIPS):
        real, made = FeatureMoments(), FeatureMoments()
        real.update(rng.randn(num, NUM_FEATURES) * scales)
        made.update(rng.randn(num, NUM_FEATURES) * scales * 1.1 + 0.1)
        given = [[moments.mean, moments.covariance] for moments in (real, made)]
        (ours, found), (usual, expected) = fastest(
            options.repetitions, lambda: frechet_distance(real, made), lambda: usual_distance(*given)
        )
        difference = abs(found - expected) / expected
        label = f"Fréchet distance, {num:,} x {NUM_FEATURES}"
        print(f"{label:42}{ours * 1e3:10.1f}{usual * 1e3:12.1f}{ours / usual:8.3f}{difference:12.1e}", flush=True)
    values = rng.rand(NUM_CLIPS)
    [(seconds, _)] = fastest(options.repetitions, lambda: mean_interval(values, None))
    print(f"{f'mean_interval, {NUM_CLIPS} x 10,000':42}{seconds * 1e3:10.1f}")
    real = rng.randn(NUM_CLIPS, NUM_FEATURES) * scales
    for num_samples in (1, 10):
        made = rng.randn(NUM_CLIPS, num_samples, NUM_FEATURES) * scales * 1.1 + 0.1
        [(seconds, _)] = fastest(
            options.repetitions,
            lambda: distance_interval(frechet_distance, real, made, None, num_blocks=NUM_BLOCKS),
        )
        label = f"distance_interval, {NUM_CLIPS} x {num_samples}, {NUM_BLOCKS} blocks"
        print(f"{label:42}{seconds * 1e3:10.1f}", flush=True)


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--frames", type=int, default=30)
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames")
    parser.add_argument("--members", type=int, default=10, help="samples of a clip")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of torch; NumPy's are set by OMP_NUM_THREADS")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {os.cpu_count()} CPU cores, {options.threads} thread(s)")
    print(f"{options.videos} videos of {options.frames} frames, {options.size}x{options.size}, 3 channels")
    generator = torch.Generator().manual_seed(0)
    shape = (options.videos, options.frames, 3, options.size, options.size)
    truth = torch.rand(shape, generator=generator)
    made = (truth + 0.1 * torch.randn(shape, generator=generator)).clamp(0, 1)
    time_videos(options, truth, made)
    time_distances(options)


if __name__ == "__main__":
    main()
