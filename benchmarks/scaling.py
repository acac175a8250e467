"""How the cost of the network grows: with frames, batch, resolution, channels of a frame and of the network, patches, and processes.

    python benchmarks/scaling.py [--width 32] [--size 32] [--repeats 5] [--processes]

From one middle case, one thing is changed at a time. The tables have the seconds of a call and of an update and the operations of a
call, and below each the exponents of powers that fit them best (least squares of the logarithms): 1 is as much more for as much more.
`--processes` also trains the same batches with one process and with two, a thread each, by `train_mcvd.py`.
"""

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from diffusers import DDPMScheduler  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mcvd_diffusers import MCVDUNet2DModel, denoising_loss  # noqa: E402


MIDDLE = {"frames": 4, "batch": 4, "size": 32, "channels": 1, "width": 32, "patch": 1}
CASES = {
    "frames": ("frames of a block, and as many given", [2, 4, 8, 16]),
    "batch": ("clips of a batch", [1, 2, 4, 8, 16]),
    "size": ("height and width", [16, 32, 64, 128]),
    "channels": ("channels of a frame", [1, 3, 8, 16]),
    "width": ("channels of the first level", [16, 32, 64, 128]),
    "patch": ("side of the squares of pixels that go to channels", [1, 2, 4]),
}


def measure(
    repeats: int, device: torch.device, *, frames: int, batch: int, size: int, channels: int, width: int, patch: int
) -> tuple:
    """Seconds of a call and of an update, and operations of a call."""
    torch.manual_seed(0)
    unet = MCVDUNet2DModel(
        sample_size=size,
        in_channels=channels,
        num_past_frames=frames,
        num_frames=frames,
        block_out_channels=[width, 2 * width, 3 * width],
        down_block_types=["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        patch_size=patch,
    ).to(device)
    window = torch.rand(batch, 2 * frames, channels, size, size, device=device) * 2 - 1
    roles = torch.tensor([[1] * frames + [2] * frames] * batch, device=device)
    optimizer, scheduler = torch.optim.AdamW(unet.parameters(), lr=1e-6, fused=True), DDPMScheduler()

    @torch.no_grad()
    def call() -> None:
        unet(window, 500, roles)

    def update() -> None:
        denoising_loss(unet, scheduler, window, roles).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with FlopCounterMode(display=False) as counter:
        call()
    medians = []
    for run in (call, update):
        times = []
        for repeat in range(repeats + 1):
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times += [time.perf_counter() - started] if repeat else []
        medians.append(statistics.median(times))
    return *medians, counter.get_total_flops()


def exponent(values: list[int], costs: list[float]) -> float:
    """Of the power that fits best."""
    return float(np.polyfit(np.log(values), np.log(costs), 1)[0])


def compare_processes(num_updates: int) -> None:
    """The same batches by one process and by two."""
    rates = {}
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", "--standalone"]
            command += [str(ROOT / "train_mcvd.py"), str(ROOT / "examples/configs/mcvd_digits.yaml")]
            command += ["--output_dir", f"{folder}/run", "--max_train_steps", str(num_updates), "--report_to", "none"]
            command += [
                "--train_batch_size",
                str(16 // count),
                "--num_validation_videos",
                "0",
                "--checkpointing_steps",
                "0",
            ]
            own = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            log = subprocess.run(command, env=os.environ | own, cwd=ROOT, capture_output=True, text=True, check=True)
            found = re.findall(r"trained .* updates in .*, ([0-9.]+) steps/s", log.stderr + log.stdout)
            rates[count] = float(found[-1])
    print("| processes | updates/s with 16 clips each | ratio |\n| --- | --- | --- |")
    for count, rate in rates.items():
        print(f"| {count} | {rate:.2f} | {rate / rates[1]:.2f} |")


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=int, default=MIDDLE["width"])
    parser.add_argument("--size", type=int, default=MIDDLE["size"])
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--updates", type=int, default=200, help="of each training of --processes")
    args = parser.parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    middle = MIDDLE | {"width": args.width, "size": args.size}
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    print(f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads, float32; in the middle {middle}\n")
    for which in args.only:
        title, values = CASES[which]
        print(f"| {title} | a call | an update | operations of a call |\n| --- | --- | --- | --- |")
        rows = []
        for value in values:
            rows.append(measure(args.repeats, device, **middle | {which: value}))
            call, update, flops = rows[-1]
            print(f"| {value} | {1e3 * call:.1f} ms | {1e3 * update:.1f} ms | {flops / 1e9:.3g} G |", flush=True)
        print(f"| exponent | {' | '.join(f'**{exponent(values, list(costs)):.2f}**' for costs in zip(*rows))} |\n")
    if args.processes:
        compare_processes(args.updates)


if __name__ == "__main__":
    main()
