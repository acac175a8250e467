"""What computing the conditioning once a window saves, against computing it at every denoising step.

    python benchmarks/conditioning.py [--width 32] [--size 64] [--steps 10] [--repeats 5]

Both ways run in turn in one process; the table gives the median over the repeats, and the ratio.
"""

import argparse
import platform
import statistics
import time

import torch
from diffusers import DDIMScheduler

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel


@torch.no_grad()
def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=int, default=32, help="channels of the first level")
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames")
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of the block")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__} on {device} ({platform.machine()}, {torch.get_num_threads()} threads)")
    print(f"one block of 5 frames from 5, {args.size}x{args.size}, width {args.width}, {args.steps} steps\n")
    print("conditioning   every step   once a window   ratio   largest difference")
    for conditioning in ("concat", "spatin"):
        unet = MCVDUNet2DModel(
            sample_size=args.size,
            in_channels=1,
            conditioning=conditioning,
            block_out_channels=[args.width * multiple for multiple in (1, 2, 3, 4)],
        )
        pipe = MCVDPipeline(unet.eval(), DDIMScheduler()).to(device)
        pipe.set_progress_bar_config(disable=True)
        past = torch.rand(1, 5, 1, args.size, args.size)
        seconds = {False: [], True: []}
        frames = {}
        for repeat in range(args.repeats + 1):
            for cached in (False, True):
                started = time.perf_counter()
                frames[cached] = pipe(
                    past_frames=past,
                    num_inference_steps=args.steps,
                    cache_conditioning=cached,
                    generator=torch.Generator().manual_seed(0),
                    output_type="pt",
                ).frames.cpu()
                if repeat > 0:  # the first warms up
                    seconds[cached].append(time.perf_counter() - started)
        every, once = (statistics.median(seconds[cached]) for cached in (False, True))
        difference = float((frames[True] - frames[False]).abs().max())
        print(f"{conditioning:<12}   {every:8.3f} s   {once:11.3f} s   {every / once:5.2f}   {difference:.1e}")


if __name__ == "__main__":
    main()
