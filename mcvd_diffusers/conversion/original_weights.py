"""The original's state dict: the architecture that its shapes tell, and the table of keys.

The original's network is one list, `unet.all_modules`, that is walked by a counter. What the module at a position is
shows in the names of its parameters, and the order of kinds tells the topology.

| position | module |
| --- | --- |
| 0, 1 | linear: embedding of time |
| 2, if `cond_emb` | embedding of whether the past is there |
| next | first convolution |
| each level down | R residual blocks, each with an attention behind it if the level has attention; a downsampling residual block, but for the last level |
| middle | residual block, attention, residual block |
| each level up | R + 1 residual blocks, one attention if the level has attention, an upsampling residual block, but for the last |
| last two | normalisation, convolution |
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch

from mcvd_diffusers.models import MCVDUNet2DModel

from .untrusted import CheckpointError, TensorRecord


# Dropped: the noise schedule belongs to the scheduler, and every one of them follows from the betas.
BUFFERS = ("betas", "alphas", "alphas_prev", "unet.sigmas")
# Further buffers of Gamma noise; a checkpoint with them is refused.
GAMMA_BUFFERS = ("k", "k_cum", "theta_t")

RESNET_KEYS = {
    "actnorm0.Norm_0.mlp_shared.0": "norm1.conv_shared",
    "actnorm0.Norm_0.mlp_gamma": "norm1.conv_gamma",
    "actnorm0.Norm_0.mlp_beta": "norm1.conv_beta",
    "actnorm0.Dense_0": "time_emb_proj1",
    "Conv_0": "conv1",
    "actnorm1.Norm_0.mlp_shared.0": "norm2.conv_shared",
    "actnorm1.Norm_0.mlp_gamma": "norm2.conv_gamma",
    "actnorm1.Norm_0.mlp_beta": "norm2.conv_beta",
    "actnorm1.Dense_0": "time_emb_proj2",
    "Conv_1": "conv2",
    "Conv_2": "conv_shortcut",
}
# NIN multiplies from the other side: W (in, out) instead of weight (out, in).
ATTENTION_KEYS = {"NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out.0"}
SPATIN_KEYS = {
    "Norm_0.mlp_shared.0": "conv_shared",
    "Norm_0.mlp_gamma": "conv_gamma",
    "Norm_0.mlp_beta": "conv_beta",
}

_PARAMETER = re.compile(r"unet\.all_modules\.(0|[1-9][0-9]{0,3})\.([A-Za-z0-9_.]{1,100})")


@dataclass(frozen=True)
class Row:
    """
    One parameter of the original and what becomes of it.

    Args:
        theirs (`str`): Its name in the original's state dict.
        ours (`tuple[str, ...]`): Our parameters that it is cut into along its second axis; mostly one.
        is_transposed (`bool`): Whether it is a matrix that multiplies from the other side.
    """

    theirs: str
    ours: tuple[str, ...]
    is_transposed: bool = False


@dataclass(frozen=True)
class Architecture:
    """What the shapes of a checkpoint tell, in the original's words."""

    ngf: int
    widths: tuple[int, ...]  # channels of each level, finest first
    num_res_blocks: int
    has_attention: tuple[bool, ...]
    spade_dim: int | None  # None: concat
    cond_emb: bool
    block_channels: int  # C * k
    given_channels: int  # C * (p + f)


# --------------------------------------------------------------------------------------------------------------------
# Names


def without_module_prefix(state: Mapping, what: str) -> dict:
    """The state dict without DataParallel's `module.`, which must stand before all names or none."""
    prefixed = [isinstance(name, str) and name.startswith("module.") for name in state]
    if any(prefixed) and not all(prefixed):
        raise CheckpointError(f"{what} has names with and without the prefix `module.`; it is no checkpoint of MCVD.")
    return {name.removeprefix("module."): value for name, value in state.items()} if any(prefixed) else dict(state)


def with_current_names(state: Mapping) -> dict:
    """Older checkpoints have the last normalisation as `<N-2>.weight`; its name since is `<N-2>.Norm_0.weight`."""
    numbers = {int(match[1]) for name in state if (match := _PARAMETER.fullmatch(name))}
    if not numbers:
        return dict(state)
    renamed = {}
    for leaf in ("weight", "bias"):
        old, new = (f"unet.all_modules.{max(numbers) - 1}.{part}{leaf}" for part in ("", "Norm_0."))
        if old in state and new not in state and len(state[old].shape) == 1:
            renamed[old] = new
    return {renamed.get(name, name): value for name, value in state.items()}


# --------------------------------------------------------------------------------------------------------------------
# Architecture


def read_architecture(state: Mapping[str, TensorRecord], what: str) -> Architecture:
    """
    What network a state dict belongs to.

    Args:
        state (`Mapping[str, TensorRecord]`): The original's names without prefix -> anything with a `shape`.
        what (`str`): What is read, for messages.

    Returns:
        [`Architecture`]: As far as shapes tell. That every shape fits is checked later, by [`check_table`].

    Raises:
        CheckpointError: If it is another network than the paper's.
    """
    modules: dict[int, dict[str, tuple[int, ...]]] = {}
    unknown = []
    for name, tensor in state.items():
        match = _PARAMETER.fullmatch(name)
        if match:
            modules.setdefault(int(match[1]), {})[match[2]] = tuple(tensor.shape)
        elif name in GAMMA_BUFFERS:
            raise CheckpointError(
                f"{what} has the buffer {name!r} of Gamma noise (`model.gamma`), which the paper does not use and"
                " Diffusers' schedulers do not have. It is not converted."
            )
        elif name not in BUFFERS:
            unknown.append(name)
    if unknown or not modules:
        names = ", ".join(repr(name[:80]) for name in unknown[:5]) or "none of `unet.all_modules.<i>.<name>`"
        raise CheckpointError(f"{what} has names that are not the original's: {names}. It is another network.")
    empty = next((name for name, tensor in state.items() if 0 in tensor.shape), None)
    if empty is not None:
        raise CheckpointError(f"{what}: {empty} is empty, of shape {tuple(state[empty].shape)}.")
    for number, parts in modules.items():
        if any("space_" in name or "time_conv" in name or len(shape) == 5 for name, shape in parts.items()):
            raise CheckpointError(
                f"{what} belongs to one of the original's 3D variants (module {number} has {sorted(parts)[0]!r}), which the"
                " paper does not use. They are not converted."
            )
    if sorted(modules) != list(range(len(modules))):
        missing = sorted(set(range(max(modules) + 1)) - set(modules))
        raise CheckpointError(f"{what} lacks the modules {missing[:10]}: it is truncated or another network.")
    try:
        return _walk([modules[number] for number in range(len(modules))], what)
    except (KeyError, IndexError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{what}: its modules are not those of the paper's network ({error}).") from error


def _kind(parts: dict[str, tuple[int, ...]], what: str) -> str:
    if "Conv_0.weight" in parts and "Conv_1.weight" in parts:
        if "actnorm0.Dense_0.weight" not in parts:
            raise CheckpointError(
                f"{what} belongs to a network that is not told the noise level (`model.time_conditional: false`),"
                " which no published model is. It is not converted."
            )
        return "residual block"
    if "NIN_0.W" in parts:
        return "attention"
    if any(name.startswith("Norm_0.") for name in parts):
        return "normalisation"
    dimensions = len(parts["weight"])
    return {4: "convolution", 2: "linear" if "bias" in parts else "embedding"}.get(dimensions, "normalisation")


def _walk(modules: list[dict[str, tuple[int, ...]]], what: str) -> Architecture:
    kinds = [_kind(parts, what) for parts in modules]
    position = 0

    def take(*expected: str) -> dict[str, tuple[int, ...]]:
        nonlocal position
        if position >= len(modules) or kinds[position] not in expected:
            found = kinds[position] if position < len(modules) else "nothing"
            raise CheckpointError(f"{what}: module {position} should be a {expected[0]}, but is {found}.")
        position += 1
        return modules[position - 1]

    def is_next(kind: str) -> bool:
        return position < len(modules) and kinds[position] == kind

    # A residual block that keeps its channels has a shortcut convolution only if it resamples: L - 1 times each way. Of
    # the others, each level has R on the way down and R + 1 on the way up, and the middle has two.
    blocks = [parts for parts, kind in zip(modules, kinds) if kind == "residual block"]
    is_resampling = [
        "Conv_2.weight" in parts and parts["Conv_0.weight"][0] == parts["Conv_0.weight"][1] for parts in blocks
    ]
    num_levels = sum(is_resampling) // 2 + 1
    num_plain = len(blocks) - sum(is_resampling)
    num_res_blocks, rest = divmod(num_plain - 2 - num_levels, 2 * num_levels)
    if sum(is_resampling) % 2 or rest or num_res_blocks < 1:
        raise CheckpointError(
            f"{what} has {num_plain} residual blocks and {sum(is_resampling)} that resample, which no number of levels"
            " gives."
        )

    ngf = take("linear")["weight"][1]
    take("linear")
    has_embedding = is_next("embedding")
    if has_embedding:
        take("embedding")
    in_channels = take("convolution")["weight"][1]
    widths, has_attention = [], []
    for level in range(num_levels):
        for number in range(num_res_blocks):
            width = take("residual block")["Conv_0.weight"][0]
            if number == 0:
                widths.append(width)
                has_attention.append(is_next("attention"))
            if has_attention[level]:
                take("attention")
        if level < num_levels - 1:
            take("residual block")
    for kind in ("residual block", "attention", "residual block"):
        take(kind)
    for level in reversed(range(num_levels)):
        for _ in range(num_res_blocks + 1):
            take("residual block")
        if has_attention[level]:
            take("attention")
        if level > 0:
            take("residual block")
    norm = take("normalisation")
    block_channels = take("convolution")["weight"][0]
    if position < len(modules):
        raise CheckpointError(f"{what} has {len(modules) - position} modules too many after the last convolution.")

    spade_dim, given_channels = None, in_channels - block_channels
    if "Norm_0.mlp_shared.0.weight" in norm:
        spade_dim, given_channels = norm["Norm_0.mlp_shared.0.weight"][:2]
    if given_channels < 0:
        raise CheckpointError(
            f"{what}: the first convolution reads {in_channels} channels, fewer than the {block_channels} that come out."
        )
    return Architecture(
        ngf=ngf,
        widths=tuple(widths),
        num_res_blocks=num_res_blocks,
        has_attention=tuple(has_attention),
        spade_dim=spade_dim,
        cond_emb=has_embedding,
        block_channels=block_channels,
        given_channels=given_channels,
    )


# --------------------------------------------------------------------------------------------------------------------
# Keys


def key_table(unet: MCVDUNet2DModel) -> list[Row]:
    """
    The original's parameters for a network of ours, in the original's order.

    Args:
        unet ([`MCVDUNet2DModel`]): The network; it may be on the meta device.

    Returns:
        `list[Row]`: Each of our parameters stands in exactly one row.
    """
    names = {id(module): name for name, module in unet.named_modules()}
    ours = set(unet.state_dict())
    rows: list[Row] = []
    number = 0

    def add(module: torch.nn.Module, parts: dict[str, str], kind: str = "weight bias") -> None:
        nonlocal number
        prefix = names[id(module)]
        for theirs, part in parts.items():
            for leaf in ("weight", "bias"):
                name = ".".join(filter(None, (prefix, part, leaf)))
                if name in ours:
                    if kind == "NIN" and theirs.startswith("NIN"):
                        theirs_leaf, is_transposed = ("W", True) if leaf == "weight" else ("b", False)
                    else:
                        theirs_leaf, is_transposed = leaf, False
                    original = ".".join(filter(None, (f"unet.all_modules.{number}", theirs, theirs_leaf)))
                    rows.append(Row(original, (name,), is_transposed))
        number += 1

    def add_attention(module: torch.nn.Module | None) -> None:
        if module is not None:
            add(module, {"GroupNorm_0": "norm", **ATTENTION_KEYS}, "NIN")

    add(unet.time_embedding.linear_1, {"": ""})
    add(unet.time_embedding.linear_2, {"": ""})
    if unet.past_embedding is not None:
        add(unet.past_embedding, {"": ""})
    add(unet.conv_in, {"": ""})
    if unet.conv_cond is not None:  # one convolution there, over the channels of the block and then those given
        weight = next(i for i, row in enumerate(rows) if row.ours == ("conv_in.weight",))
        rows[weight] = Row(rows[weight].theirs, ("conv_in.weight", "conv_cond.weight"))
    for block in unet.down_blocks:
        for i, resnet in enumerate(block.resnets):
            add(resnet, RESNET_KEYS)
            add_attention(block.attentions[i] if block.attentions is not None else None)
        if block.downsampler is not None:
            add(block.downsampler, RESNET_KEYS)
    add(unet.mid_block.resnets[0], RESNET_KEYS)
    add_attention(unet.mid_block.attention)
    add(unet.mid_block.resnets[1], RESNET_KEYS)
    for block in unet.up_blocks:
        for resnet in block.resnets:
            add(resnet, RESNET_KEYS)
        add_attention(block.attention)
        if block.upsampler is not None:
            add(block.upsampler, RESNET_KEYS)
    add(unet.conv_norm_out, SPATIN_KEYS if unet.config.conditioning == "spatin" else {"Norm_0": ""})
    add(unet.conv_out, {"": ""})
    return rows


def original_shapes(unet: MCVDUNet2DModel) -> dict[str, tuple[int, ...]]:
    """The original's parameters for a network of ours, name -> shape."""
    ours = {name: tuple(parameter.shape) for name, parameter in unet.state_dict().items()}
    shapes = {}
    for row in key_table(unet):
        first, *others = (ours[name] for name in row.ours)
        if others:
            first = (first[0], first[1] + sum(shape[1] for shape in others), *first[2:])
        shapes[row.theirs] = first[::-1] if row.is_transposed else first
    return shapes


def check_table(
    unet: MCVDUNet2DModel, state: Mapping[str, TensorRecord], what: str, *, buffers: Collection[str] = BUFFERS
) -> None:
    """
    Hold a state dict against the table: nothing missing, nothing left over, every shape as it must be.

    Args:
        unet ([`MCVDUNet2DModel`]): The network; it may be on the meta device.
        state (`Mapping[str, TensorRecord]`): The original's names of today -> anything with a `shape` and a `dtype`.
        what (`str`): What is checked, for messages.
        buffers (`Collection[str]`, *optional*): Buffers that it may have; each has one number for a noise level.

    Raises:
        CheckpointError: Naming the first differences.
    """
    expected = original_shapes(unet)
    missing = [name for name in expected if name not in state]
    left_over = [name for name in state if name not in expected and name not in buffers]
    wrong = [
        f"{name} is {tuple(state[name].shape)} instead of {shape}"
        for name, shape in expected.items()
        if name in state and tuple(state[name].shape) != shape
    ]
    steps = (unet.config.num_train_timesteps,)
    wrong += [
        f"{name} is {tuple(state[name].shape)} instead of {steps}"
        for name in buffers
        if name in state and tuple(state[name].shape) != steps
    ]
    problems = [
        *(f"{name} is missing" for name in missing),
        *(f"{name[:80]} is left over" for name in left_over),
        *wrong,
    ]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise CheckpointError(f"{what} does not fit the paper's network: {'; '.join(problems[:5])}{more}.")
    other = {name: state[name].dtype for name in expected if not state[name].dtype.is_floating_point}
    if other:
        name, dtype = next(iter(other.items()))
        raise CheckpointError(f"{what}: {name} holds {dtype}, but weights are floating point numbers.")


@torch.no_grad()
def convert_state_dict(unet: MCVDUNet2DModel, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    The weights of a network of ours from the original's state dict.

    Args:
        unet ([`MCVDUNet2DModel`]): The network, for its names and shapes; it may be on the meta device.
        state (`Mapping[str, torch.Tensor]`): The original's parameters, which [`check_table`] has accepted.

    Returns:
        `dict[str, torch.Tensor]`: Our names -> float32. Not copied where nothing has to be moved.

    Raises:
        CheckpointError: If a weight is NaN or infinite.
    """
    ours = unet.state_dict()
    converted, addresses = {}, set()
    for row in key_table(unet):
        weight = state[row.theirs].detach().float()
        if not torch.isfinite(weight).all():
            raise CheckpointError(f"{row.theirs} has values that are NaN or infinite: this training had diverged.")
        weight = weight.T if row.is_transposed else weight
        parts = [weight] if len(row.ours) == 1 else weight.split([ours[name].shape[1] for name in row.ours], dim=1)
        for name, part in zip(row.ours, parts):
            part = part.contiguous()
            # Weights that are parts of one storage cannot be saved as two.
            is_shared = part.untyped_storage().nbytes() != part.nbytes or part.data_ptr() in addresses
            addresses.add(part.data_ptr())
            converted[name] = part.clone() if is_shared else part
    return converted
