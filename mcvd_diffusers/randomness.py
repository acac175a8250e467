"""Random streams: each is keyed by what it is for, so that nothing depends on order, batch size or process."""

from collections.abc import Iterable
from contextlib import contextmanager

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


Generators = torch.Generator | list[torch.Generator] | None


def keyed_seed(seed: int, *key: int) -> int:
    """
    A seed for one purpose, derived from a seed for all.

    Args:
        seed (`int`): Seed of the run or the video, 0 or more.
        *key (`int`): What the stream is for: numbers of 0 or more. Different keys, also of different length, give
            unrelated seeds.

    Returns:
        `int`: A 64-bit seed for `torch.Generator.manual_seed`.
    """
    return int(np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0])


def rand_tensor(shape: tuple[int, ...], generator: Generators, device: torch.device | str = "cpu") -> torch.Tensor:
    """
    Uniform random numbers in `[0, 1)`; the counterpart of Diffusers' `randn_tensor`.

    Args:
        shape (`tuple[int, ...]`): Shape of the result, batch first.
        generator (`torch.Generator` or a list of them, *optional*):
            The source. With a list, item `i` of the batch is drawn from generator `i` alone.
        device (`torch.device`, *optional*, defaults to `"cpu"`): Where the result lies.

    Returns:
        `torch.Tensor`: Of the given shape, float32.

    Raises:
        ValueError: If a list of generators does not have one for each item.
    """
    if isinstance(generator, list):
        if len(generator) != shape[0]:
            raise ValueError(
                f"`generator` has {len(generator)} entries for a batch of {shape[0]}: one each is needed."
            )
        rows = [torch.rand(shape[1:], generator=g, device=g.device) for g in generator]
        return torch.stack(rows).to(device)
    source = generator.device if generator is not None else device
    return torch.rand(shape, generator=generator, device=source).to(device)


class NoiseSequence:
    """
    Noise in the order in which the original MCVD code draws it, to repeat its samples: one stream for a whole run, from
    task to task and block to block. Each draw is for the whole batch. A block takes its initial noise, and then one draw
    after each denoising step that adds noise, but for the last.

    Pass it to [`MCVDPipeline`] as `generator`. There it gives up what the pipeline's own streams give: a video then
    depends on the batch it is in, and on everything that was drawn before.

    Args:
        source (`torch.Generator` or `Iterable[torch.Tensor]`):
            What is drawn from, on the device that the original ran on and in the state that its stream had when it began
            to sample (its seed alone is not that: making the network and loading data draw from the stream, too). Or the
            draws themselves, recorded, each of as many numbers as asked for, the batch first (the original has
            `(B, k*C, H, W)` for `(B, k, C, H, W)`).

    Example:
        >>> noise = NoiseSequence(torch.Generator().manual_seed(1234))
        >>> first = pipe(past_frames=past, future_frames=future, generator=noise)
        >>> second = pipe(past_frames=past, num_frames=8, generator=noise)  # goes on where the first ended
    """

    def __init__(self, source: torch.Generator | Iterable[torch.Tensor]) -> None:
        if torch.is_tensor(source) or not (isinstance(source, torch.Generator) or hasattr(source, "__iter__")):
            raise ValueError(
                f"`source` must be a torch.Generator, or recorded draws one after the other, got {type(source).__name__}."
            )
        self.source = source if isinstance(source, torch.Generator) else iter(source)
        self.num_draws = 0

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """
        The next draw.

        Args:
            shape (`tuple[int, ...]`): What is asked for.

        Returns:
            `torch.Tensor`: Of that shape, float32.

        Raises:
            ValueError: If the recorded draws have ended, or the next one is of another size.
        """
        shape = tuple(shape)
        self.num_draws += 1
        if isinstance(self.source, torch.Generator):
            return torch.randn(shape, generator=self.source, device=self.source.device)
        noise = next(self.source, None)
        if noise is None:
            raise ValueError(f"`source` has ended: draw number {self.num_draws}, of shape {shape}, is not there.")
        try:
            noise = torch.as_tensor(noise)
            is_usable = noise.dtype.is_floating_point and bool(noise.isfinite().all())
        except (TypeError, ValueError, RuntimeError, OverflowError):
            is_usable = False
        if not is_usable:
            raise ValueError(f"`source`: draw number {self.num_draws} is no tensor of finite floating point numbers.")
        noise = noise.float()
        if noise.numel() != torch.Size(shape).numel() or noise.shape[:1] != shape[:1]:
            raise ValueError(
                f"`source`: draw number {self.num_draws} has shape {tuple(noise.shape)}, and {shape} is asked for."
            )
        return noise.reshape(shape)

    @contextmanager
    def replacing_randn(self, *, is_last: bool):
        """
        Within this context `torch.randn`, which Diffusers' schedulers draw by, takes from the sequence.

        Args:
            is_last (`bool`):
                Whether it is a block's last step. Diffusers' DDPM draws there too if it makes fewer steps than all (and
                scales what it drew to 1e-10); the original does not, so nothing is taken then.
        """
        sequence = self

        class ReplaceRandn(TorchFunctionMode):
            def __torch_function__(self, function, types, args=(), kwargs=None):
                kwargs = kwargs or {}
                if function is not torch.randn and function is not torch.randn_like:
                    return function(*args, **kwargs)
                like, shape = None, kwargs.get("size", args)
                if function is torch.randn_like:
                    like = args[0] if args else kwargs["input"]
                    shape = like.shape
                elif len(shape) == 1 and not hasattr(shape[0], "__index__"):
                    shape = shape[0]
                noise = torch.zeros(shape) if is_last else sequence.draw(shape)
                default = (
                    (like.device, like.dtype) if like is not None else (torch.get_default_device(), torch.float32)
                )
                device, dtype = (kwargs.get(name) or x for name, x in zip(("device", "dtype"), default))
                return noise.to(device, dtype)

        with ReplaceRandn():
            yield
