"""Random streams: each is keyed by what it is for, so that nothing depends on order, batch size or process."""

import numpy as np
import torch


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
