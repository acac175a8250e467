"""How fast the network is: a call, a block of frames and an update, against a plain writing of the same network.

    python benchmarks/speed.py [--width 32] [--size 64] [--channels 1] [--batch 1 4] [--steps 10] [--compile]
    python benchmarks/speed.py --width 192 --channels 3 --past 1 --batch 64 --compile          # BAIR's size, on a GPU

The plain one is the second writing of the original's network that conversions are verified with: float32, eager, attention
and resampling written out, the conditioning computed in every call, Adam and the average one weight after the other. Both have the
same weights, and their outputs are compared first. They are then timed in turn in one process; the table has the median of each, the
median of the ratios of neighbours and all that they span, the share of the device's own rate of matrix products that the fast one
reaches in the operations of the network, and how far its output is from the plain one's, as a share of the output's standard
deviation. Below it, where the time of a fast update goes.
"""

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from diffusers import DDIMScheduler, DDPMScheduler  # noqa: E402
from diffusers.utils import logging  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mcvd_diffusers import MCVDPipeline, MCVDUNet2DModel, denoising_loss  # noqa: E402
from mcvd_diffusers.conversion import reference_network  # noqa: E402
from mcvd_diffusers.conversion.original_weights import key_table  # noqa: E402
from mcvd_diffusers.cost import peak_flops  # noqa: E402


LEVELS = (1, 2, 3, 4)
NUM_MADE = 5


class PlainNetwork:
    """The network of the original, with the weights of ours."""

    def __init__(self, unet: MCVDUNet2DModel) -> None:
        ours = unet.state_dict()
        self.state = {}
        for row in key_table(unet):
            weight = torch.cat([ours[name] for name in row.ours], dim=1) if len(row.ours) > 1 else ours[row.ours[0]]
            weight = weight.T if row.is_transposed else weight
            self.state[row.theirs] = weight.clone().contiguous().requires_grad_()
        self._options = {
            "ngf": unet.conv_in.out_channels,
            "num_levels": len(LEVELS),
            "num_res_blocks": unet.config.layers_per_block,
            "attn_levels": {1, 2, 3},
            "n_head_channels": unet.config.attention_head_dim or -1,
            "spade": unet.config.conditioning == "spatin",
            "cond_emb": False,
        }

    def __call__(self, block: torch.Tensor, timestep: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        """The noise in a block (B, k, C, H, W) after given frames."""
        label = (999 - timestep).expand(len(block))
        return reference_network.forward(
            self.state, block.flatten(1, 2), label, given.flatten(1, 2), torch.ones_like(label), **self._options
        ).unflatten(1, block.shape[1:3])


class Case:
    """A network, its plain writing, and a batch."""

    def __init__(self, args: argparse.Namespace, conditioning: str, batch_size: int, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.num_steps, self.is_compiled = device, args.steps, args.compile
        self.unet = MCVDUNet2DModel(
            sample_size=args.size,
            in_channels=args.channels,
            num_past_frames=args.past,
            num_frames=NUM_MADE,
            conditioning=conditioning,
            block_out_channels=[args.width * multiple for multiple in LEVELS],
            attention_head_dim=args.head_dim,
        ).to(device)
        with torch.no_grad():  # fresh networks end in weights of nearly zero
            for parameter in self.unet.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        self.plain = PlainNetwork(self.unet)
        shape = (batch_size, args.channels, args.size, args.size)
        self.given = torch.rand(shape[0], args.past, *shape[1:], device=device) * 2 - 1
        self.block = torch.randn(shape[0], NUM_MADE, *shape[1:], device=device)
        self.roles = torch.tensor([[1] * args.past + [2] * NUM_MADE] * batch_size, device=device)
        self.timestep = torch.tensor(500, device=device)
        window = torch.cat([self.given, self.block], dim=1)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            conditioning = self.unet.encode_conditioning(window, self.roles)
            before = counter.get_total_flops()
            self.unet(window, self.timestep, self.roles, conditioning=conditioning)
        self.conditioning_flops, self.call_flops = before, counter.get_total_flops() - before

    # A call

    @torch.no_grad()
    def plain_call(self) -> torch.Tensor:
        """A call as in every step of the original."""
        return self.plain(self.block, self.timestep, self.given)

    def fast_call(self, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        """A call in the sampling loop: what depends on given frames only is there."""
        unet = self._fast(dtype)
        window = torch.cat([self.given, self.block], dim=1).to(dtype)
        with torch.no_grad():
            conditioning = unet.encode_conditioning(window, self.roles)
        network = torch.compile(unet) if self.is_compiled else unet

        @torch.no_grad()
        def call() -> torch.Tensor:
            made = network(window, self.timestep, self.roles, conditioning=conditioning, return_dict=False)[0]
            return made[:, -NUM_MADE:].float()

        return call

    def _fast(self, dtype: torch.dtype) -> MCVDUNet2DModel:
        unet = MCVDUNet2DModel.from_config(self.unet.config).to(self.device)
        unet.load_state_dict(self.unet.state_dict())
        return unet.eval().to(dtype).to(memory_format=torch.channels_last)

    # A block of frames

    @torch.no_grad()
    def plain_block(self) -> torch.Tensor:
        """As the original samples: a call of all in every step."""
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(self.num_steps)
        frames = self.block
        for timestep in scheduler.timesteps:
            prediction = self.plain(frames, timestep.to(self.device), self.given)
            frames = scheduler.step(prediction, timestep, frames, return_dict=False)[0]
        return frames

    def fast_block(self, dtype: torch.dtype) -> Callable[[], torch.Tensor]:
        """The pipeline."""
        unet = self._fast(dtype)
        pipe = MCVDPipeline(torch.compile(unet) if self.is_compiled else unet, DDIMScheduler())
        pipe.set_progress_bar_config(disable=True)
        options = {"past_frames": (self.given + 1) / 2, "num_frames": NUM_MADE, "num_inference_steps": self.num_steps}
        return lambda: pipe(**options, latents=self.block, output_type="latent").frames

    # An update

    def plain_update(self) -> Callable[[], None]:
        """Forward, backward, clipping, Adam and the average, one weight after the other."""
        weights, clean = list(self.plain.state.values()), self.block.clamp(-1, 1)
        average = [weight.detach().clone() for weight in weights]
        optimizer = torch.optim.Adam(weights, lr=1e-6, foreach=False)
        alphas = DDPMScheduler().alphas_cumprod.to(self.device)

        def update() -> None:
            timesteps = torch.randint(1000, (len(clean),), device=self.device)
            noise, alpha = torch.randn_like(clean), alphas[timesteps][:, None, None, None, None]
            noisy = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
            loss = (self.plain(noisy, timesteps, self.given) - noise).square().flatten(1).mean(1).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0, foreach=False)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, weight in zip(average, weights):
                    mean.copy_(0.999 * mean + 0.001 * weight)

        return update

    def fast_update(self, dtype: torch.dtype) -> Callable[[], None]:
        """As `train_mcvd.py` does it."""
        unet = self._fast(torch.float32).train()
        if self.is_compiled:
            unet.compile()
        weights = list(unet.parameters())
        average = [weight.detach().clone() for weight in weights]
        optimizer, scheduler = torch.optim.AdamW(weights, lr=1e-6, fused=True), DDPMScheduler()
        window = torch.cat([self.given, self.block.clamp(-1, 1)], dim=1)

        def update() -> None:
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                loss = denoising_loss(unet, scheduler, window, self.roles).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                torch._foreach_lerp_(average, weights, 0.001)

        return update


def seconds_of(plain: Callable, fast: Callable, repeats: int, device: torch.device) -> tuple[list[float], list[float]]:
    """Of each, timed in turn."""
    times = ([], [])
    for repeat in range(repeats + 2):  # the first two warm up, and compile
        for which, run in enumerate((plain, fast)):
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if repeat > 1:
                times[which].append(time.perf_counter() - started)
    return times


def difference(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Root mean squared, as a share of the standard deviation."""
    return float((made - expected).square().mean().sqrt() / expected.std())


def where_time_goes(update: Callable[[], None], device: torch.device) -> list[str]:
    """Kinds of operations of an update, and their shares."""
    update()
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU] + [activity.CUDA] * (device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profile:
        update()
    name = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(profile.key_averages(), key=lambda row: getattr(row, name), reverse=True)
    total = sum(getattr(row, name) for row in rows)
    return ["| operation | calls | share |", "| --- | --- | --- |"] + [
        f"| `{row.key[:60]}` | {row.count} | {100 * getattr(row, name) / total:.0f} % |" for row in rows[:12]
    ]


def main(arguments: list[str] | None = None) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--width", type=int, default=32, help="channels of the first level")
    parser.add_argument("--size", type=int, default=64, help="height and width of the frames")
    parser.add_argument("--channels", type=int, default=1, help="of a frame")
    parser.add_argument("--past", type=int, default=5, help="given frames; 5 are made")
    parser.add_argument("--head_dim", type=int, help="channels of an attention head; one head if not given")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=10, help="denoising steps of a block")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args(arguments)
    logging.set_verbosity_error()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    rates = {dtype: peak_flops(device, dtype) for dtype in (torch.float32, torch.bfloat16)}
    print(
        f"torch {torch.__version__}, {name}, {torch.get_num_threads()} threads; matrix products:"
        f" {', '.join(f'{rate / 1e12:.3g} TFLOP/s in {str(x)[6:]}' for x, rate in rates.items())}\n"
    )
    print("| network | batch | what | in | plain | fast | ratio | of the matrix rate | difference |")
    print("| --- |" + " --- |" * 8)
    for conditioning in ("concat", "spatin"):
        for batch_size in args.batch:
            for dtype in (torch.float32, torch.bfloat16):
                case = Case(args, conditioning, batch_size, device)
                for what, plain, fast, flops in (
                    ("a call", case.plain_call, case.fast_call(dtype), case.call_flops),
                    (
                        f"a block, {args.steps} steps",
                        case.plain_block,
                        case.fast_block(dtype),
                        args.steps * case.call_flops + case.conditioning_flops,
                    ),
                    (
                        "an update",
                        case.plain_update(),
                        case.fast_update(dtype),
                        3 * (case.call_flops + case.conditioning_flops),
                    ),
                ):
                    far = "" if what == "an update" else f"{difference(fast(), plain()):.1e}"
                    times = seconds_of(plain, fast, args.repeats, device)
                    ratios = sorted(slow / quick for slow, quick in zip(*times))
                    slow, quick = (statistics.median(x) for x in times)
                    cells = [conditioning, batch_size, what, str(dtype)[6:], f"{slow:.4f} s", f"{quick:.4f} s"]
                    cells += [f"**{statistics.median(ratios):.2f}** ({ratios[0]:.2f} to {ratios[-1]:.2f})"]
                    cells += [f"{100 * flops / quick / rates[dtype]:.0f} %", far]
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)
    parameters = sum(parameter.numel() for parameter in case.unet.parameters())
    print(
        f"\n{args.past} frames given, {NUM_MADE} made, {args.channels} x {args.size} x {args.size}; levels of"
        f" {', '.join(str(args.width * x) for x in LEVELS)} channels, {parameters / 1e6:.1f} M parameters (spatin)"
        + (", fast ones compiled" if args.compile else "")
    )
    print(f"\nWhere the time of a fast update goes (concat, batch {args.batch[-1]}, bfloat16):\n")
    case = Case(args, "concat", args.batch[-1], device)
    print("\n".join(where_time_goes(case.fast_update(torch.bfloat16), device)))


if __name__ == "__main__":
    main()
