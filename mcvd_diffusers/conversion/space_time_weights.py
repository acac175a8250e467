"""The state dicts of RaMViD, FDM and VDM's public port: the architecture that their shapes tell, and the table of keys.

| system | names | told apart by |
| --- | --- | --- |
| RaMViD | `input_blocks.*`, `middle_block.*`, `output_blocks.*`, `out.*`, `time_embed.*` | convolutions of 3x3x3 |
| FDM | the same | convolutions of 3x3; `temporal_attention` and `spatial_attention` |
| VDM's port | `downs.*`, `mid_*`, `ups.*`, `final_conv.*`, `init_*`, `time_*` | `init_conv` |

What no shape tells is asked for: the heads of RaMViD's and FDM's attention, which are 4 in all that was published.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from mcvd_diffusers.models import SpaceTimeUNetModel

from .conversion import check_none_empty, check_table
from .untrusted import CheckpointError, TensorRecord


NUM_HEADS = 4  # of RaMViD's and FDM's attention, at every width

# Of one residual block, of an attention, of a network for relative positions: their name -> ours.
ADM_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1.conv",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2.conv",
    "skip_connection": "conv_shortcut.conv",
}
RELATIVE = {"rpe_q": "relative_query", "rpe_k": "relative_key", "rpe_v": "relative_value"}
RELATIVE_PARTS = {"embed_distances": "distance_proj", "embed_diffusion_time": "time_emb_proj", "out": "out"}
PORT_RESNET = {
    "block1.proj": "conv1",
    "block1.norm": "norm1",
    "mlp.1": "time_emb_proj",
    "block2.proj": "conv2",
    "block2.norm": "norm2",
    "res_conv": "conv_shortcut",
}
QKV = ("to_q", "to_k", "to_v")

# The angles of rotary embeddings, which follow from their number; the port saves them with each attention.
_ROTARY = re.compile(r".*\.rotary_emb\.freqs")


@dataclass(frozen=True)
class Row:
    """
    One parameter of theirs and what becomes of it.

    Args:
        theirs (`str`): Its name.
        ours (`tuple[str, ...]`): Our parameters that its rows are divided among, one after the other; mostly one.
        heads (`int`, *optional*): If its rows are ordered head by head, each with query, key and value.
    """

    theirs: str
    ours: tuple[str, ...]
    heads: int | None = None


@dataclass(frozen=True)
class Recognised:
    """
    A state dict that was recognised.

    Args:
        system (`str`): `"ramvid"`, `"fdm"` or `"vdm"`.
        config (`dict`): Arguments of [`SpaceTimeUNetModel`], as far as the shapes tell, with what the system implies.
        rows (`list[Row]`): The table of keys.
    """

    system: str
    config: dict
    rows: list[Row]


def recognise(
    state: Mapping[str, TensorRecord | torch.Tensor], what: str, *, num_heads: int | None = None
) -> Recognised:
    """
    Which system's network a state dict is, of which size, and which key is which.

    Args:
        state (`Mapping`): Names without a `module.` prefix -> anything with a `shape`.
        what (`str`): What is read, for messages.
        num_heads (`int`, *optional*): Heads of RaMViD's and FDM's attention; by default 4, as published.

    Returns:
        [`Recognised`]: With a row for each name but those that need none.

    Raises:
        CheckpointError: If it is another network, or parts of it are missing or left over.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items() if not _ROTARY.fullmatch(name)}
    check_none_empty(shapes, what)
    try:
        if "init_conv.weight" in shapes:
            found = _port(shapes)
        else:
            found = _adm(shapes, num_heads or NUM_HEADS)
    except (KeyError, IndexError, ValueError) as error:
        raise CheckpointError(
            f"{what} is no network of RaMViD, FDM or VDM's port: {error} is not there or does not fit."
        ) from error
    first = shapes["init_conv.weight" if found.system == "vdm" else "input_blocks.0.0.weight"][0]
    check_table(shapes, {row.theirs for row in found.rows}, found.config, first, what, found.system)
    return found


def convert_space_time_weights(
    state: Mapping[str, torch.Tensor], rows: list[Row], network: SpaceTimeUNetModel, what: str
) -> dict[str, torch.Tensor]:
    """
    Their tensors as ours.

    Args:
        state (`Mapping[str, torch.Tensor]`): The original state dict.
        rows (`list[Row]`): The table of keys.
        network ([`SpaceTimeUNetModel`]): Ours, for names and shapes; may be on the meta device.
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
        if tensor.ndim == 0 or len(tensor) % (3 * (row.heads or 1) if len(row.ours) == 3 else 1):
            raise CheckpointError(
                f"{what}: {row.theirs} has shape {tuple(tensor.shape)}, which does not fit {', '.join(row.ours)}."
            )
        if row.heads is not None:  # (heads, 3, C / heads) rows -> (3, heads, C / heads)
            tensor = tensor.unflatten(0, (row.heads, 3, -1)).transpose(0, 1).flatten(0, 2)
        for name, part in zip(row.ours, tensor.chunk(len(row.ours))):
            # The same numbers: a convolution of one pixel is a matrix, one of one frame is 2D.
            shape = shapes.pop(name, None)
            if shape is None or part.numel() != torch.Size(shape).numel() or part.squeeze().shape != _squeezed(shape):
                raise CheckpointError(
                    f"{what}: {row.theirs} has shape {tuple(state[row.theirs].shape)}, which does not fit {name}, {shape}."
                )
            made[name] = part.reshape(shape).clone()
    if shapes:
        raise CheckpointError(f"{what}: nothing in it is {sorted(shapes)[:3]} ({len(shapes)} in all).")
    return made


def _squeezed(shape: tuple[int, ...]) -> torch.Size:
    return torch.Size(size for size in shape if size != 1)


# --------------------------------------------------------------------------------------------------------------------
# RaMViD and FDM: the UNet of improved-diffusion


def _adm(shapes: dict[str, tuple[int, ...]], heads: int) -> Recognised:
    is_volume = len(shapes["input_blocks.0.0.weight"]) == 5
    rows = _pairs("time_embed.0", "time_embedding.0") + _pairs("time_embed.2", "time_embedding.2")
    rows += _pairs("input_blocks.0.0", "conv_in.conv")

    def has(prefix: str) -> bool:
        return f"{prefix}.weight" in shapes

    def layer(theirs: str, ours: str) -> list[Row]:
        """A residual block and its attention."""
        made = _adm_resnet(shapes, f"{theirs}.0", f"{ours}.resnets.0")
        return made + _adm_attentions(shapes, f"{theirs}.1", f"{ours}.attentions", heads)

    # The way down shows how many levels there are, and what is in each.
    widths, attention, layers = [], [], []
    number, level, index = 1, 0, 0
    while has(f"input_blocks.{number}.0.op") or has(f"input_blocks.{number}.0.in_layers.0"):
        block = f"input_blocks.{number}"
        if has(f"{block}.0.op"):
            rows += _pairs(f"{block}.0.op", f"down_blocks.{level}.downsampler.conv")
            level, index = level + 1, 0
        else:
            if index == 0:
                widths.append(shapes[f"{block}.0.out_layers.3.weight"][0])
                attention += [level] if any(name.startswith(f"{block}.1.") for name in shapes) else []
                layers.append(0)
            rows += layer(block, f"down_blocks.{level}.layers.{index}")
            index += 1
            layers[level] = index
        number += 1
    if len(set(layers)) != 1:
        raise ValueError(f"a level with {layers} residual blocks")

    rows += _adm_resnet(shapes, "middle_block.0", "mid_block.resnets.0")
    rows += _adm_attentions(shapes, "middle_block.1", "mid_block.attentions", heads)
    rows += _adm_resnet(shapes, "middle_block.2", "mid_block.resnets.1")
    for number in range(len(widths) * (layers[0] + 1)):
        level, index = divmod(number, layers[0] + 1)
        rows += layer(f"output_blocks.{number}", f"up_blocks.{level}.layers.{index}")
        if index == layers[0] and level < len(widths) - 1:
            last = "2" if len(widths) - 1 - level in attention else "1"
            rows += _pairs(f"output_blocks.{number}.{last}.conv", f"up_blocks.{level}.upsampler.conv.conv")
    rows += _pairs("out.0", "norm_out") + _pairs("out.2", "conv_out.conv")

    channels = shapes["out.2.weight"][0]
    config = {
        "in_channels": channels,
        "backbone": "adm",
        "convolution": "3d" if is_volume else "2d",
        "attention": "joint" if is_volume else "factorised",
        "temporal_position": "none" if is_volume else "relative_network",
        "mark_observed": shapes["input_blocks.0.0.weight"][1] == channels + 1,
        "block_out_channels": widths,
        "layers_per_block": layers[0],
        "attention_levels": attention,
        "num_attention_heads": heads,
        "has_frame_gaps": not is_volume,
        "original_quirks": not is_volume,
    }
    return Recognised("ramvid" if is_volume else "fdm", config, rows)


def _pairs(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.{leaf}", (f"{ours}.{leaf}",)) for leaf in ("weight", "bias")]


def _adm_resnet(shapes: Mapping, theirs: str, ours: str) -> list[Row]:
    parts = {x: y for x, y in ADM_RESNET.items() if x != "skip_connection" or f"{theirs}.{x}.weight" in shapes}
    return [row for x, y in parts.items() for row in _pairs(f"{theirs}.{x}", f"{ours}.{y}")]


def _adm_attentions(shapes: Mapping, theirs: str, ours: str, heads: int) -> list[Row]:
    """RaMViD's one attention, FDM's two, or none."""
    if f"{theirs}.qkv.weight" in shapes:
        return _attention(theirs, f"{ours}.0", heads)
    if f"{theirs}.temporal_attention.qkv.weight" not in shapes:
        return []
    rows = _attention(f"{theirs}.temporal_attention", f"{ours}.0")
    for x, y in RELATIVE.items():
        for part, our_part in RELATIVE_PARTS.items():
            rows += _pairs(f"{theirs}.temporal_attention.{x}.rpe_net.{part}", f"{ours}.0.{y}.{our_part}")
    return rows + _attention(f"{theirs}.spatial_attention", f"{ours}.1")


def _attention(theirs: str, ours: str, heads: int | None = None) -> list[Row]:
    rows = _pairs(f"{theirs}.norm", f"{ours}.norm") + _pairs(f"{theirs}.proj_out", f"{ours}.to_out.0")
    for leaf in ("weight", "bias"):
        rows.append(Row(f"{theirs}.qkv.{leaf}", tuple(f"{ours}.{name}.{leaf}" for name in QKV), heads))
    return rows


# --------------------------------------------------------------------------------------------------------------------
# VDM's public port


def _port(shapes: dict[str, tuple[int, ...]]) -> Recognised:
    num_levels = 0
    while f"downs.{num_levels}.0.block1.proj.weight" in shapes:
        num_levels += 1
    widths = [shapes[f"downs.{level}.0.block1.proj.weight"][0] for level in range(num_levels)]
    width = shapes["init_conv.weight"][0]
    emb_channels = shapes["downs.0.0.mlp.1.weight"][1]
    heads = shapes["time_rel_pos_bias.relative_attention_bias.weight"][1]
    head_dim = shapes["init_temporal_attn.fn.fn.fn.to_out.weight"][1] // heads

    rows = _pairs("init_conv", "conv_in.conv") + _port_attention("init_temporal_attn.fn", ".fn.fn", "attention_in")
    rows += _pairs("time_mlp.1", "time_embedding.0") + _pairs("time_mlp.3", "time_embedding.2")
    rows.append(Row("time_rel_pos_bias.relative_attention_bias.weight", ("position_bias.embedding.weight",)))
    if "null_cond_emb" in shapes:
        rows.append(Row("null_cond_emb", ("no_condition",)))
    for theirs, ours in (("downs", "down_blocks"), ("ups", "up_blocks")):
        for level in range(num_levels):
            block, layer = f"{theirs}.{level}", f"{ours}.{level}.layers.0"
            for index in (0, 1):
                rows += _port_resnet(shapes, f"{block}.{index}", f"{layer}.resnets.{index}")
            rows += _port_attention(f"{block}.2.fn", ".fn", f"{layer}.attentions.0")
            rows.append(Row(f"{block}.2.fn.fn.to_out.bias", (f"{layer}.attentions.0.to_out.0.bias",)))
            rows += _port_attention(f"{block}.3.fn", ".fn.fn", f"{layer}.attentions.1")
            if level < num_levels - 1:
                sampler = "downsampler" if theirs == "downs" else "upsampler"
                rows += _pairs(f"{block}.4", f"{ours}.{level}.{sampler}.conv")
    for index in (0, 1):
        rows += _port_resnet(shapes, f"mid_block{index + 1}", f"mid_block.resnets.{index}")
    rows += _port_attention("mid_spatial_attn.fn", ".fn.fn", "mid_block.attentions.0")
    rows += _port_attention("mid_temporal_attn.fn", ".fn.fn", "mid_block.attentions.1")
    rows += _port_resnet(shapes, "final_conv.0", "resnet_out") + _pairs("final_conv.1", "conv_out.conv")

    config = {
        "in_channels": shapes["init_conv.weight"][1],
        "backbone": "unet3d",
        "temporal_position": "bias_and_rotary",
        "mark_observed": False,
        "block_out_channels": widths,
        "layers_per_block": 1,
        "attention_levels": [],
        "num_attention_heads": heads,
        "attention_head_dim": head_dim,
        "condition_dim": emb_channels - 4 * width,
        "drop_observed": 1.0,
        "original_quirks": True,
    }
    return Recognised("vdm", config, rows)


def _port_resnet(shapes: Mapping, theirs: str, ours: str) -> list[Row]:
    rows = []
    for x, y in PORT_RESNET.items():
        if x == "res_conv" and f"{theirs}.res_conv.weight" not in shapes or x == "mlp.1" and theirs == "final_conv.0":
            continue
        if x.endswith("norm"):
            rows.append(Row(f"{theirs}.{x}.gamma", (f"{ours}.{y}.weight",)))
        else:
            rows += _pairs(f"{theirs}.{x}", f"{ours}.{y}")
    return rows


def _port_attention(theirs: str, inner: str, ours: str) -> list[Row]:
    return [
        Row(f"{theirs}.norm.gamma", (f"{ours}.norm.weight",)),
        Row(f"{theirs}{inner}.to_qkv.weight", tuple(f"{ours}.{name}.weight" for name in QKV)),
        Row(f"{theirs}{inner}.to_out.weight", (f"{ours}.to_out.0.weight",)),
    ]
