"""Time and memory that converting a checkpoint of the original takes, on a synthetic one of published size.

    python benchmarks/conversion.py                                        # UCF-101, concat: 565 million parameters
    python benchmarks/conversion.py --preset smmnist-concat-p5k5 --verify

The file has what the original's have (raw weights, Adam's two moments, averaged weights: 16 bytes a parameter), so it needs
that much room on the disk. It is converted in a process of its own. Pages of the file that are mapped into memory count as
resident while they are there, but are the system's to drop; so what the process itself allocates is told apart.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path

import torch

from mcvd_diffusers.conversion.components import make_unet
from mcvd_diffusers.conversion.original_config import architecture_of, config_of_preset
from mcvd_diffusers.conversion.original_weights import original_shapes


def write_checkpoint(path: Path, preset: str) -> int:
    """A checkpoint in the original's form; random averaged weights, zeros elsewhere. Returns the number of parameters."""
    config = config_of_preset(preset)
    config.values["model.num_classes"] = 1000
    shapes = original_shapes(make_unet(config, architecture_of(config)))
    generator = torch.Generator().manual_seed(0)
    betas = torch.linspace(0.02, 1e-4, 1000)
    alphas = (1 - betas.flip(0)).cumprod(0).flip(0)
    buffers = {"betas": betas, "alphas": alphas, "alphas_prev": alphas.clone(), "unet.sigmas": betas.clone()}
    model = OrderedDict((f"module.{name}", value) for name, value in buffers.items())
    model.update((f"module.{name}", torch.zeros(shape)) for name, shape in shapes.items())
    state = {
        number: {"step": 1, "exp_avg": torch.zeros(shape), "exp_avg_sq": torch.zeros(shape)}
        for number, shape in enumerate(shapes.values())
    }
    averaged = {name: torch.randn(shape, generator=generator) * 0.05 for name, shape in shapes.items()}
    optimizer = {"state": state, "param_groups": [{"lr": 1e-4, "params": list(state)}]}
    torch.save([model, optimizer, 1, 1_000_000, averaged], path)
    return sum(value.numel() for value in averaged.values())


def peaks_of(process: subprocess.Popen) -> dict[str, int]:
    """Watch a process until it ends: the most that was resident, and the most of it that was its own, in bytes."""
    peaks = {"VmHWM": 0, "RssAnon": 0}

    def watch() -> None:
        while process.poll() is None:
            try:
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                name, _, value = line.partition(":")
                if name in peaks:
                    peaks[name] = max(peaks[name], int(value.split()[0]) * 1024)
            time.sleep(0.01)

    thread = threading.Thread(target=watch)
    thread.start()
    process.wait()
    thread.join()
    return peaks


def main() -> None:
    """Write, convert, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="ucf101-concat-p4k4", help="published model")
    parser.add_argument("--verify", action="store_true", help="convert with --verify")
    parser.add_argument(
        "--folder", help="where to put the files, about 21 bytes a parameter; a temporary folder by default"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        checkpoint, output = Path(folder) / "checkpoint.pt", Path(folder) / "converted"
        num_parameters = write_checkpoint(checkpoint, arguments.preset)
        size = checkpoint.stat().st_size
        command = [
            sys.executable,
            "-m",
            "mcvd_diffusers.cli",
            "convert",
            checkpoint,
            output,
            "--preset",
            arguments.preset,
        ]
        command += ["--verify"] if arguments.verify else []
        started = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            peaks = peaks_of(process)
        seconds = time.perf_counter() - started
        if process.returncode:
            sys.exit(f"The conversion failed with status {process.returncode}.")
        written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"{arguments.preset}: {num_parameters:,} parameters{', verified' if arguments.verify else ''}")
    for name, number in (
        ("checkpoint", size),
        ("written", written),
        ("most memory resident", peaks["VmHWM"]),
        ("of it the process's own", peaks["RssAnon"]),
    ):
        print(f"{name:25} {number / 2**30:6.2f} GiB   {number / size:5.2f} of the checkpoint")
    print(f"{'time':25} {seconds:6.1f} s")


if __name__ == "__main__":
    main()
