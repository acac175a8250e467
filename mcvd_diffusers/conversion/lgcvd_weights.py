"""The state dicts of LGC-VD's two networks: the architecture that their shapes tell, and the table of keys.

| network | told apart by |
| --- | --- |
| denoiser | `ups.*`, `midblock4.*`, `time_mlp.*` and the original's `finial_conv.*` |
| encoder of the memory | none of these |

A level is five modules in a row: residual block, attention, residual block, attention, and what changes the size; on the way up
one more residual block before that. Attention that is not there keeps its number.

What no shape tells is asked for: the channels of an attention head, which are 128 in what was published, and for the encoder the
channels of a frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import ModelMixin

from .conversion import check_none_empty, check_table
from .untrusted import CheckpointError, TensorRecord


HEAD_DIM = 128
NUM_CONTEXT_FRAMES = 2
LAYERS_PER_BLOCK = 2

# Of a residual block and of an attention: their name -> ours.
RESNET = {
    "GroupNorm_0": "norm1",
    "Conv_0": "conv1",
    "Dense_0": "time_emb_proj",
    "GroupNorm_1": "norm2",
    "Conv_1": "conv2",
    "Conv_2": "conv_shortcut",
}
NOT_IN_ALL = ("Dense_0", "Conv_2")  # only with time; only where the width changes
PROJECTIONS = {"NIN_0": "to_q", "NIN_1": "to_k", "NIN_2": "to_v", "NIN_3": "to_out.0"}


@dataclass(frozen=True)
class Row:
    """
    One parameter of theirs and what becomes of it.

    Args:
        theirs (`str`): Its name.
        ours (`str`): Our parameter.
        is_transposed (`bool`, *optional*, defaults to `False`): Whether it is a matrix of `(in, out)` where ours is `(out, in)`.
    """

    theirs: str
    ours: str
    is_transposed: bool = False


@dataclass(frozen=True)
class Recognised:
    """
    A state dict that was recognised.

    Args:
        kind (`str`): `"denoiser"` or `"encoder"`.
        config (`dict`):
            Arguments of [`LGCVDUNet2DModel`] or [`LGCVDContextEncoder`], as far as the shapes tell, with what the system
            implies.
        rows (`list[Row]`): The table of keys.
    """

    kind: str
    config: dict
    rows: list[Row]


def recognise(
    state: Mapping[str, TensorRecord | torch.Tensor],
    what: str,
    *,
    head_dim: int | None = None,
    in_channels: int | None = None,
) -> Recognised:
    """
    Which of LGC-VD's networks a state dict is, of which size, and which key is which.

    Args:
        state (`Mapping`): Names without a prefix -> anything with a `shape`.
        what (`str`): What is read, for messages.
        head_dim (`int`, *optional*): Channels of an attention head; by default 128, as published.
        in_channels (`int`, *optional*):
            Channels of a frame, for the encoder, which tells only how many a clip has; by default 3. A denoiser tells itself.

    Returns:
        [`Recognised`]: With a row for each name.

    Raises:
        CheckpointError: If it is another network, or parts of it are missing or left over.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_none_empty(shapes, what)
    try:
        found = _recognise(shapes, head_dim or HEAD_DIM, in_channels)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(f"{what} is no network of LGC-VD: {error} is not there or does not fit.") from error
    first = shapes["init_conv.weight"][0]
    check_table(shapes, {row.theirs for row in found.rows}, found.config, first, what, f"LGC-VD's {found.kind}")
    return found


def convert_lgcvd_weights(
    state: Mapping[str, torch.Tensor], rows: list[Row], network: ModelMixin, what: str
) -> dict[str, torch.Tensor]:
    """
    Their tensors as ours.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original state dict.
        rows (`list[Row]`): The table of keys.
        network ([`LGCVDUNet2DModel`] or [`LGCVDContextEncoder`]): Ours, for names and shapes; may be on the meta device.
        what (`str`): What is read, for messages.

    Returns:
        `dict[str, torch.Tensor]`: The state dict of `network`, float32.

    Raises:
        CheckpointError: If a shape does not fit.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in network.state_dict().items()}
    made = {}
    for row in rows:
        tensor = state[row.theirs].detach().to(torch.float32)
        if row.is_transposed and tensor.ndim == 2:
            tensor = tensor.T
        shape = shapes.pop(row.ours, None)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(
                f"{what}: {row.theirs} has shape {tuple(state[row.theirs].shape)}, which does not fit {row.ours}, {shape}."
            )
        made[row.ours] = tensor.contiguous().clone()
    if shapes:
        raise CheckpointError(f"{what}: nothing in it is {sorted(shapes)[:3]} ({len(shapes)} in all).")
    return made


def _recognise(shapes: dict[str, tuple[int, ...]], head_dim: int, in_channels: int | None) -> Recognised:
    widths = []
    while (name := f"downs.{len(widths)}.0.Conv_0.weight") in shapes:
        widths.append(shapes[name][0])
    levels = len(widths)
    if not levels:
        raise KeyError("downs.0.0.Conv_0.weight")
    is_denoiser = "finial_conv.weight" in shapes

    rows = _pairs("init_conv", "conv_in")
    attention_levels = []
    for level in range(levels):
        rows += _level_rows(shapes, f"downs.{level}", f"down_blocks.{level}", LAYERS_PER_BLOCK)
        attention_levels += [level] if _has_attention(shapes, f"downs.{level}") else []
        if level < levels - 1:
            rows += _pairs(f"downs.{level}.{2 * LAYERS_PER_BLOCK}", f"down_blocks.{level}.downsampler")
    rows += _resnet(shapes, "midblock1", "mid_block.resnets.0") + _attention("midblock2", "mid_block.attention")
    rows += _resnet(shapes, "midblock3", "mid_block.resnets.1")
    config = {
        "block_out_channels": widths,
        "layers_per_block": LAYERS_PER_BLOCK,
        "attention_levels": attention_levels,
        "attention_head_dim": head_dim,
        "original_quirks": True,
    }
    num_in = shapes["init_conv.weight"][1]

    if not is_denoiser:
        in_channels = in_channels or 3
        if num_in % in_channels:
            raise ValueError(f"init_conv.weight, {num_in} channels of frames with {in_channels},")
        return Recognised("encoder", config | {"in_channels": in_channels, "max_frames": num_in // in_channels}, rows)

    rows += _attention("midblock4", "mid_block.cross_attention")
    rows += _pairs("time_mlp.1", "time_embedding.linear_1") + _pairs("time_mlp.3", "time_embedding.linear_2")
    up_attention_levels = []
    for index in range(levels):
        block, level = f"ups.{index}", levels - 1 - index
        rows += _level_rows(shapes, block, f"up_blocks.{index}", LAYERS_PER_BLOCK + 1)
        up_attention_levels += [level] if _has_attention(shapes, block) else []
        if level > 0:
            rows += _pairs(f"{block}.{2 * LAYERS_PER_BLOCK + 1}", f"up_blocks.{index}.upsampler")
    rows += _pairs("finial_conv", "conv_out")

    num_out = shapes["finial_conv.weight"][0]
    # Beside the clip there is a plane with each frame of context.
    channels = (num_in - num_out) // NUM_CONTEXT_FRAMES - 1
    if channels < 1 or (num_in - num_out) % NUM_CONTEXT_FRAMES or num_out % channels:
        raise ValueError(f"init_conv.weight, {num_in} channels before a clip of {num_out},")
    config |= {
        "in_channels": channels,
        "num_context_frames": NUM_CONTEXT_FRAMES,
        "max_frames": num_out // channels,
        "up_attention_levels": up_attention_levels[::-1],
        "prediction_type": "v_prediction",
        "drop_observed": 0.4,
    }
    return Recognised("denoiser", config, rows)


def _has_attention(shapes: Mapping, theirs: str) -> bool:
    return any(name.startswith(f"{theirs}.1.") for name in shapes)


def _level_rows(shapes: Mapping, theirs: str, ours: str, num_resnets: int) -> list[Row]:
    """A level's residual blocks, and the attentions between them, if there are any."""
    rows, has_attention = [], _has_attention(shapes, theirs)
    for index in range(num_resnets):
        rows += _resnet(shapes, f"{theirs}.{2 * index}", f"{ours}.resnets.{index}")
        if has_attention and index < LAYERS_PER_BLOCK:
            rows += _attention(f"{theirs}.{2 * index + 1}", f"{ours}.attentions.{index}")
    return rows


def _pairs(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.{leaf}", f"{ours}.{leaf}") for leaf in ("weight", "bias")]


def _resnet(shapes: Mapping, theirs: str, ours: str) -> list[Row]:
    parts = {x: y for x, y in RESNET.items() if x not in NOT_IN_ALL or f"{theirs}.{x}.weight" in shapes}
    return [row for x, y in parts.items() for row in _pairs(f"{theirs}.{x}", f"{ours}.{y}")]


def _attention(theirs: str, ours: str) -> list[Row]:
    rows = _pairs(f"{theirs}.GroupNorm_0", f"{ours}.norm")
    for x, y in PROJECTIONS.items():
        rows.append(Row(f"{theirs}.{x}.W", f"{ours}.{y}.weight", is_transposed=True))
        rows.append(Row(f"{theirs}.{x}.b", f"{ours}.{y}.bias"))
    return rows
