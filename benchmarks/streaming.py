"""A video without an end: how fast frames come, and whether memory stays flat.

    python benchmarks/streaming.py [--frames 10000] [--size 64] [--width 16] [--steps 4]

`MCVDPipeline.stream` makes block after block, each from the frames of the one before. The table has the memory of the process after each
tenth of the way, and the frames of a second in it; below it, what memory grew from the first tenth to the last. Weights are random,
which costs the same.
"""

import argparse
import platform
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil  # noqa: E402
import torch  # noqa: E402
from diffusers import LCMScheduler  # noqa: E402
from diffusers.utils import logging  # noqa: E402

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel  # noqa: E402


NUM_PAST, NUM_MADE = 2, 5


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--width", type=int, default=16, help="channels of the first level")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=args.size,
        in_channels=1,
        num_past_frames=NUM_PAST,
        num_frames=NUM_MADE,
        block_out_channels=[args.width * multiple for multiple in (1, 2, 3, 4)],
    ).eval()
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    pipe = MCVDPipeline(unet.to(device, getattr(torch, args.dtype)), LCMScheduler(clip_sample=True))
    pipe.set_progress_bar_config(disable=True)
    process = psutil.Process()
    stream = pipe.stream(
        past_frames=torch.rand(1, NUM_PAST, 1, args.size, args.size),
        num_inference_steps=args.steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(
        f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads; {num_parameters / 1e6:.1f} M parameters in"
        f" {args.dtype}; {args.size} x {args.size} pixels, {args.steps} steps a block of {NUM_MADE}\n"
    )
    print("| frames | memory | frames/s |\n| --- | --- | --- |")
    num_frames, resident, started, part = 0, [], time.perf_counter(), args.frames // 10
    for block in stream:
        num_frames += block.shape[1]
        if num_frames < part * (len(resident) + 1):
            continue
        memory = torch.cuda.memory_allocated() if device.type == "cuda" else process.memory_info().rss
        resident.append(memory)
        seconds = time.perf_counter() - started
        print(f"| {num_frames:,} | {memory / 2**20:.1f} MiB | {part / seconds:.1f} |", flush=True)
        if len(resident) == 10:
            break
        started = time.perf_counter()
    stream.close()
    print(f"\nFrom the first tenth to the last, memory grew by {(resident[-1] - resident[0]) / 2**20:.1f} MiB.")


if __name__ == "__main__":
    main()
