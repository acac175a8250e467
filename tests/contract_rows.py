"""The networks and pipelines of this package, one row each, in the tests' contracts (`tests/contracts`).

A new network joins all tests of the contract by a row in `NETWORKS`, a new pipeline by a row in `PIPELINES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ModelMixin

from mcvd_diffusers import FrameRole, MCVDPipeline, MCVDUNet2DModel
from mcvd_diffusers.models import (
    LGCVDContextEncoder,
    LGCVDUNet2DModel,
    RVDContextEncoder,
    RVDUNet2DModel,
    SpaceTimeUNetModel,
)


# A small network of windows, and what makes it each of the three systems'.
SMALL_SPACE_TIME = {
    "sample_size": 8,
    "in_channels": 1,
    "max_frames": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "num_attention_heads": 2,
}
SYSTEMS = {
    "fdm": {"has_frame_gaps": True},
    "ramvid": {"convolution": "3d", "attention": "joint", "temporal_position": "none", "mark_observed": False},
    "vdm": {"backbone": "unet3d", "temporal_position": "bias_and_rotary", "mark_observed": False},
}


def shaken(network: torch.nn.Module) -> torch.nn.Module:
    """Fresh networks end in weights of nearly zero: move all of them, so that each part matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


@dataclass(frozen=True)
class NetworkRow:
    """
    A network of the contract.

    Args:
        name (`str`): Of the row.
        network_class (`type`): Its class.
        config (`dict`): Arguments that make a tiny one, of two levels at least, with attention.
        inputs (`Callable[[int], dict]`): Keyword arguments of `forward` for a batch size, always the same; tensors, or tuples of them.
        output_shape (`tuple[int, ...]`): Of the output, without the batch.
        is_dispatched (`Callable[[Module], bool]`): Whether an attention is computed by Diffusers' attention backends.
        masks_attention (`bool`): Whether the inputs make attention masked or biased, which some backends refuse.
    """

    name: str
    network_class: type[ModelMixin]
    config: dict
    inputs: Callable[[int], dict]
    output_shape: tuple[int, ...]
    is_dispatched: Callable[[torch.nn.Module], bool] = lambda attention: True
    masks_attention: bool = False

    def make(self, **overrides) -> ModelMixin:
        """The network with weights that are always the same."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return shaken(self.network_class(**self.config, **overrides))


@dataclass(frozen=True)
class PipelineRow:
    """
    A pipeline of the contract.

    Args:
        name (`str`): Of the row.
        network (`NetworkRow`): Its denoiser.
        make (`Callable[[], DiffusionPipeline]`): The pipeline, always the same, without a progress bar.
        inputs (`Callable[[int], dict]`): Arguments of a call for a batch size, but for `generator`: few steps, `"pt"`.
        output_shape (`tuple[int, ...]`): Of `frames`, without the batch, as `"pt"`.
        reads_given (`bool`, *optional*, defaults to `True`):
            Whether the network sees given frames, so that there is a guidance over absent ones.
        refused_guidance (`str`, *optional*): What a call with such a guidance is told where there is none, a pattern.
        needs_given (`bool`, *optional*, defaults to `False`): Whether frames must be given, so that nothing is made from nothing.
        needs_gradient (`bool`, *optional*, defaults to `False`): Whether it is guided by a gradient through the network.
    """

    name: str
    network: NetworkRow
    make: Callable[[], DiffusionPipeline]
    inputs: Callable[[int], dict]
    output_shape: tuple[int, ...]
    reads_given: bool = True
    refused_guidance: str = "all given frames enter by `replacement`, so that it never sees any"
    needs_given: bool = False
    needs_gradient: bool = False

    @torch.no_grad()
    def window(self, pipe: DiffusionPipeline, batch_size: int) -> dict:
        """What the pipeline's `denoise` needs of a window: the network's own, the same frames LATENT in all videos."""
        inputs = self.network.inputs(batch_size)
        window = {"sample": inputs["sample"], "roles": inputs["roles"]}
        if pipe.context_encoder is not None:
            is_latent = (window["roles"] == FrameRole.LATENT).all(dim=0)
            kept = is_latent | (window["roles"] == FrameRole.OBSERVED).any(dim=0)
            window = {name: value[:, kept] for name, value in window.items()}
            clip_frames = pipe.context_encoder.clip_frames or 3
            frames = torch.rand(batch_size, clip_frames, 1, 8, 8, generator=torch.Generator().manual_seed(4))
            window["context"] = pipe.context_encoder(2 * frames - 1, num_frames=int(is_latent.sum()))
        return window


def mcvd_window(batch_size: int) -> dict:
    """Two past frames, a block of two, one future frame of 8x8 pixels; in each second video the past is absent."""
    generator = torch.Generator().manual_seed(2)
    sample = torch.randn(batch_size, 5, 1, 8, 8, generator=generator)
    roles = torch.tensor([FrameRole.OBSERVED] * 2 + [FrameRole.LATENT] * 2 + [FrameRole.OBSERVED]).repeat(
        batch_size, 1
    )
    roles[1::2, :2] = FrameRole.ABSENT
    timestep = torch.linspace(10, 900, batch_size).long()
    return {"sample": sample, "timestep": timestep, "roles": roles}


def remembered_window(batch_size: int) -> dict:
    """As `mcvd_window`, with the map of a memory."""
    memory = torch.randn(batch_size, 12, 4, 4, generator=torch.Generator().manual_seed(5))
    return mcvd_window(batch_size) | {"context": (memory,)}


def noisy_window(batch_size: int) -> dict:
    """As `mcvd_window`, with noise on given frames, of which the network is told."""
    return mcvd_window(batch_size) | {"observed_noise": torch.linspace(0.1, 0.3, batch_size)}


def mcvd_network(conditioning: str, name: str | None = None, **more) -> NetworkRow:
    """A row of `MCVDUNet2DModel`."""
    config = {
        "sample_size": 8,
        "in_channels": 1,
        "num_past_frames": 2,
        "num_frames": 2,
        "num_future_frames": 1,
        "conditioning": conditioning,
        "spatin_channels": 8,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "attention_head_dim": 8,
        "layers_per_block": 1,
        "embed_past_kept": True,
    } | more
    inputs = (
        remembered_window if "context_channels" in more else noisy_window if "observed_noise" in more else mcvd_window
    )
    return NetworkRow(f"mcvd-{name or conditioning}", MCVDUNet2DModel, config, inputs, (5, 1, 8, 8))


def mcvd_pipeline(
    network: NetworkRow,
    task: str,
    make_encoder: Callable[[], torch.nn.Module | None] = lambda: None,
    clip_range: float = 1.0,
    **row,
) -> PipelineRow:
    """A row of `MCVDPipeline` with a network of blocks, or of neighbouring frames, for a task."""
    num_frames = {"prediction": 3, "interpolation": 2, "generation": 5}[task]

    def make() -> MCVDPipeline:
        scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True, clip_sample_range=clip_range)
        pipe = MCVDPipeline(network.make(), scheduler, context_encoder=make_encoder())
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(batch_size: int) -> dict:
        frames = torch.rand(batch_size, 3, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        arguments = {"num_inference_steps": 2, "output_type": "pt", "num_frames": num_frames}
        if task == "generation":
            return arguments | {"batch_size": batch_size}
        if task == "interpolation":
            num_past = 1 if network.name == "lgcvd" else 2  # which is shown two frames in all
            return arguments | {"past_frames": frames[:, :num_past], "future_frames": frames[:, 2:]}
        return arguments | {"past_frames": frames[:, :2]}

    return PipelineRow(f"{network.name}-{task}", network, make, inputs, (num_frames, 1, 8, 8), **row)


def space_time_window(system: str) -> Callable[[int], dict]:
    """Four frames of 8x8 pixels, of which in each second video the given one is absent; at FDM's with gaps, at VDM's with an image."""

    def inputs(batch_size: int) -> dict:
        generator = torch.Generator().manual_seed(2)
        roles = torch.tensor([FrameRole.OBSERVED] + [FrameRole.LATENT] * 3).repeat(batch_size, 1)
        roles[1::2, 0] = FrameRole.ABSENT
        arguments = {
            "sample": torch.randn(batch_size, 4, 1, 8, 8, generator=generator),
            "timestep": torch.linspace(10, 900, batch_size).long(),
            "roles": roles,
        }
        if system == "fdm":
            arguments["frame_indices"] = torch.tensor([0, 7, 8, 30]) + torch.arange(batch_size)[:, None]
        elif system == "vdm":
            arguments["segment_ids"] = torch.tensor([[0, 0, 0, 1]]).repeat(batch_size, 1)
        return arguments

    return inputs


def space_time_network(system: str) -> NetworkRow:
    """A row of `SpaceTimeUNetModel`: FDM's, RaMViD's or VDM's network."""
    return NetworkRow(
        system,
        SpaceTimeUNetModel,
        SMALL_SPACE_TIME | SYSTEMS[system],
        space_time_window(system),
        (4, 1, 8, 8),
        is_dispatched=lambda attention: attention.kind != "linear" and attention.relative_query is None,
        masks_attention=system != "fdm",  # there the one attention that is masked is not dispatched
    )


def space_time_pipeline(network: NetworkRow, task: str) -> PipelineRow:
    """A row of `MCVDPipeline` with a network of windows, for a task; VDM's is guided towards the frames that are given."""
    by_guidance = {"replacement": "noised", "reconstruction_guidance": 1.0} if network.name == "vdm" else {}
    num_frames = {"prediction": 3, "interpolation": 2, "infilling": 2, "generation": 5}[task]

    def make() -> MCVDPipeline:
        scheduler = DDIMScheduler(prediction_type="v_prediction", clip_sample=True)
        pipe = MCVDPipeline(network.make(), scheduler, **by_guidance)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def inputs(batch_size: int) -> dict:
        frames = torch.rand(batch_size, 2, 1, 8, 8, generator=torch.Generator().manual_seed(3))
        arguments = {"num_inference_steps": 2, "output_type": "pt", "num_frames": num_frames}
        if task == "generation":
            return arguments | {"batch_size": batch_size}
        if task == "interpolation":
            return arguments | {"past_frames": frames[:, :1], "future_frames": frames[:, 1:]}
        if task == "infilling":
            return arguments | {"observed_frames": frames, "observed_positions": [0, 2]}
        return arguments | {"past_frames": frames}  # in two windows

    return PipelineRow(
        f"{network.name}-{task}",
        network,
        make,
        inputs,
        (num_frames, 1, 8, 8),
        reads_given=not by_guidance,
        needs_gradient=bool(by_guidance),
    )


def rvd_window(batch_size: int) -> dict:
    """Two frames of 8x8 pixels with a context each, of which in each second video the first is absent."""
    generator = torch.Generator().manual_seed(2)
    roles = torch.full((batch_size, 2), FrameRole.LATENT)
    roles[1::2, 0] = FrameRole.ABSENT
    sizes = ((8, 8), (16, 4))  # channels and pixels of the levels
    return {
        "sample": torch.randn(batch_size, 2, 1, 8, 8, generator=generator),
        "timestep": torch.linspace(10, 900, batch_size).long(),
        "roles": roles,
        "context": tuple(torch.randn(batch_size, 2, d, size, size, generator=generator) for d, size in sizes),
    }


def rvd_network() -> NetworkRow:
    """A row of `RVDUNet2DModel`."""
    config = {"sample_size": 8, "in_channels": 1, "block_out_channels": (8, 16), "norm_num_groups": 4}
    config |= {"num_attention_heads": 2, "attention_head_dim": 4, "num_train_timesteps": 1000}
    return NetworkRow("rvd", RVDUNet2DModel, config, rvd_window, (2, 1, 8, 8), is_dispatched=lambda attention: False)


def lgcvd_window(batch_size: int) -> dict:
    """Two frames of context and a clip of four of 8x8 pixels, with a memory; in each second video the context is absent."""
    generator = torch.Generator().manual_seed(2)
    roles = torch.tensor([FrameRole.OBSERVED] * 2 + [FrameRole.LATENT] * 4).repeat(batch_size, 1)
    roles[1::2, :2] = FrameRole.ABSENT
    return {
        "sample": torch.randn(batch_size, 6, 1, 8, 8, generator=generator),
        "timestep": torch.linspace(10, 900, batch_size).long(),
        "roles": roles,
        "frame_indices": torch.tensor([4, 6, 4, 5, 6, 7]) + torch.arange(batch_size)[:, None],
        "context": (torch.randn(batch_size, 16, 4, 4, generator=generator),),
    }


LGCVD_LEVELS = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "attention_levels": (1,),
    "attention_head_dim": 8,
}


def lgcvd_network() -> NetworkRow:
    """The row of `LGCVDUNet2DModel`."""
    config = {"sample_size": 8, "in_channels": 1, "max_frames": 4, **LGCVD_LEVELS}
    return NetworkRow("lgcvd", LGCVDUNet2DModel, config, lgcvd_window, (6, 1, 8, 8))


def clip_memory(**config) -> LGCVDContextEncoder:
    """LGC-VD's memory of clips of four frames, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LGCVD_LEVELS | config
        return shaken(LGCVDContextEncoder(sample_size=8, in_channels=1, max_frames=4, **config))


def recurrent_encoder(context_block_out_channels: tuple[int, ...] | None = (8, 16)) -> RVDContextEncoder:
    """RVD's predictor, and what tells its network of the frames before, unless that is left out; always the same."""
    config = {"sample_size": 8, "in_channels": 1, "norm_num_groups": 4, "predictor_block_out_channels": (8, 16)}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return shaken(RVDContextEncoder(context_block_out_channels=context_block_out_channels, **config))


MCVD_NETWORKS = [mcvd_network("concat"), mcvd_network("spatin", observed_noise=0.3, patch_size=2)]
MEMORY_NETWORK = mcvd_network("concat", "memory", context_channels=12)
SPACE_TIME_NETWORKS = [space_time_network(system) for system in ("fdm", "ramvid", "vdm")]
NETWORKS = MCVD_NETWORKS + SPACE_TIME_NETWORKS + [lgcvd_network(), rvd_network(), MEMORY_NETWORK]
PIPELINES = [mcvd_pipeline(network, task) for network in MCVD_NETWORKS for task in ("prediction", "interpolation")] + [
    mcvd_pipeline(NETWORKS[0], "generation")
]
PIPELINES += [
    space_time_pipeline(network, task)
    for network in SPACE_TIME_NETWORKS
    for task in ("prediction", {"fdm": "infilling", "ramvid": "interpolation", "vdm": "generation"}[network.name])
]
# What the two make are residuals, which reach from -2 to 2, and have no counterpart without given frames.
RESIDUAL = {
    "clip_range": 2.0,
    "reads_given": False,
    "refused_guidance": "makes what its `context_encoder` did not predict, so that .* cannot be compared",
}
PIPELINES += [
    *(mcvd_pipeline(lgcvd_network(), task, clip_memory) for task in ("prediction", "interpolation", "generation")),
    mcvd_pipeline(rvd_network(), "prediction", recurrent_encoder, needs_given=True, **RESIDUAL),
    mcvd_pipeline(MEMORY_NETWORK, "prediction", lambda: clip_memory(block_out_channels=(8, 12), attention_head_dim=4)),
    mcvd_pipeline(
        mcvd_network("concat", "residual", residual=True), "prediction", lambda: recurrent_encoder(None), **RESIDUAL
    ),
]
