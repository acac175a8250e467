"""A planning pass: many futures of what a camera sees now, as a planner compares them, in as few calls as may be.

    python benchmarks/planning.py [--candidates 200] [--frames 10] [--size 64] [--width 96] [--steps 1 2 4 10]

The network is concat, with 2 frames given and 5 made in a block; its weights are random, which costs the same. All candidates go
through it as one batch (`--batch` divides it, where memory does not suffice). The table has seconds, calls of the network and the peak
of memory for each number of denoising steps, as the distilled and the undistilled networks of `few_steps.py` need them.
"""

import argparse
import gc
import platform
import resource
import sys
import time
from pathlib import Path


sys.path.insert(0, str(Path(__file__).parents[1]))

import torch  # noqa: E402
from diffusers import DDIMScheduler, LCMScheduler  # noqa: E402
from diffusers.utils import logging  # noqa: E402

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel  # noqa: E402


NUM_PAST, NUM_MADE = 2, 5


def peak_bytes(device: torch.device) -> int:
    """On a GPU what torch has reserved, else the process's resident memory: the most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--candidates", type=int, default=200)
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--width", type=int, default=96, help="channels of the first level")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 2, 4, 10])
    parser.add_argument("--batch", type=int, help="candidates that go through the network together; all if not given")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=args.size,
        in_channels=args.channels,
        num_past_frames=NUM_PAST,
        num_frames=NUM_MADE,
        block_out_channels=[args.width * multiple for multiple in (1, 2, 3, 4)],
    ).eval()
    num_parameters = sum(parameter.numel() for parameter in unet.parameters())
    unet = unet.to(device, getattr(torch, args.dtype)).to(memory_format=torch.channels_last)
    calls = []
    unet.register_forward_hook(lambda *_: calls.append(1))
    network = torch.compile(unet, mode="reduce-overhead") if args.compile else unet
    past = torch.rand(1, NUM_PAST, args.channels, args.size, args.size)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(
        f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads; {num_parameters / 1e6:.1f} M parameters in"
        f" {args.dtype}; {args.candidates} candidates of {args.frames} frames, {args.channels} x {args.size} x {args.size}\n"
    )
    print("| steps | scheduler | calls | seconds | frames/s | peak memory |\n| --- | --- | --- | --- | --- | --- |")
    for num_steps in args.steps:
        kind = LCMScheduler if num_steps <= 4 else DDIMScheduler
        pipe = MCVDPipeline(network, kind())
        pipe.set_progress_bar_config(disable=True)
        options = {"past_frames": past, "num_frames": args.frames, "num_inference_steps": num_steps}
        options |= {"ensemble_size": args.candidates, "max_batch_size": args.batch, "output_type": "pt"}
        if device.type == "cuda":
            pipe(**options)  # compiles, and takes its memory
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(args.repeats):
            calls.clear()
            gc.collect()
            started = time.perf_counter()
            frames = pipe(**options, generator=torch.Generator().manual_seed(0)).frames
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        seconds = min(times)
        print(
            f"| {num_steps} | {kind.__name__} | {len(calls)} | {seconds:.2f} | {len(frames) * frames.shape[1] / seconds:.1f} |"
            f" {peak_bytes(device) / 2**30:.2f} GiB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
