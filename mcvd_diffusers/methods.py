"""What a method is in training: its network, how a batch of clips becomes windows with roles, and what its pipeline knows.

| method | network | roles | clips |
| --- | --- | --- | --- |
| mcvd | [`MCVDUNet2DModel`] | [`masking.mcvd_roles`] | past, block and future |
| ramvid | [`SpaceTimeUNetModel`], 3D convolutions, attention among all pixels | [`masking.ramvid_roles`] | a window |
| fdm | the same class, frame by frame, attention that knows positions | [`masking.fdm_roles`] | long, windows are gathered from them |
| vdm | the same class, the backbone of VDM's public port | all LATENT | a window, and images beside it |
| lgcvd | [`LGCVDUNet2DModel`] and its memory | two frames of the window, of [`masking.lgcvd_positions`], beside it | two windows, one after the other |
| rvd | [`RVDUNet2DModel`] and what predicts frames | all LATENT, each by itself | a sequence |

`make_method` is the only way in; what trains asks the method and knows none by name.
"""

from abc import ABC, abstractmethod

import torch

from mcvd_diffusers.masking import (
    FrameRole,
    fdm_roles,
    joint_segments,
    lgcvd_positions,
    mcvd_roles,
    ramvid_roles,
    vdm_roles,
)
from mcvd_diffusers.models import (
    LGCVDContextEncoder,
    LGCVDUNet2DModel,
    MCVDUNet2DModel,
    RVDContextEncoder,
    RVDUNet2DModel,
    SpaceTimeUNetModel,
)
from mcvd_diffusers.models.context import ContextOutput
from mcvd_diffusers.randomness import Generators, keyed_seed, rand_tensor
from mcvd_diffusers.train_settings import FROM_PRETRAINED_UNET, ModelArguments, Settings
from mcvd_diffusers.training import ENCODER_STREAM, TrainingWindow, gather_window


# Clips that are drawn to tell how often FDM's windows had nothing given.
NUM_DRAWS = 4096

# Frames of a window that LGC-VD's network is given beside it, as published; RVD's predictions are learned from the third frame on.
NUM_CONTEXT_FRAMES = 2


class Method(ABC):
    """
    What is trained.

    Args:
        settings ([`Settings`]): Of the run. They are read when they are needed, since the data complete them.
    """

    network_class: type[torch.nn.Module] = SpaceTimeUNetModel
    context_encoder_class: type[torch.nn.Module] | None = None
    variance_type = "fixed_large"
    """Of the ancestral sampler, as published."""
    clip_flags = "--max_frames"
    """What a clip's length follows from, for messages."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @property
    def num_clip_frames(self) -> int:
        """Frames of a clip of the data."""
        return self.settings.num_window_frames

    @property
    def num_seen_frames(self) -> int:
        """Frames that the network sees at a time in training."""
        return self.settings.model.max_frames

    @property
    def depends_on_batch(self) -> bool:
        """Whether what is made of a clip depends on the others of its batch."""
        return False

    @property
    def num_stages(self) -> int:
        """Windows that an update learns of each clip, one after the other, each with a step of the optimizer."""
        return 1

    @property
    def makes_residuals(self) -> bool:
        """Whether the network makes what a context encoder did not predict."""
        return False

    def make_components(self, largest_value: float = 1.0) -> torch.nn.ModuleDict:
        """
        All that is trained: `"unet"`, the network, and, if the method has one, `"context_encoder"`.

        Args:
            largest_value (`float`, *optional*, defaults to 1.0): Of frames as the network sees them; predictions are clamped to it.

        Returns:
            `torch.nn.ModuleDict`: On the CPU, by the names that they have in the pipeline.

        Raises:
            ValueError: If saved weights are not finite.
        """
        components = {"unet": self.make_network()}
        source, variant = self.settings.pretrained
        if self.context_encoder_class is not None and source is not None:
            components["context_encoder"] = self.context_encoder_class.from_pretrained(
                source, subfolder="context_encoder", variant=variant
            )
            components["context_encoder"].register_to_config(sample_size=list(self.settings.size))
        elif self.context_encoder_class is not None:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(keyed_seed(self.settings.training.seed, ENCODER_STREAM))
                components["context_encoder"] = self.context_encoder_class(
                    sample_size=list(self.settings.size),
                    in_channels=components["unet"].config.in_channels,
                    **self.context_encoder_shape(largest_value),
                )
        components = torch.nn.ModuleDict(components)
        if source is None:
            return components
        bad = next((name for name, x in components.named_parameters() if not x.isfinite().all()), None)
        if bad is not None:
            raise ValueError(
                f"{source} has weights that are NaN or infinite, in {bad}: what it was trained by has diverged. Pass another pipeline or"
                " checkpoint."
            )
        return components

    def make_network(self) -> torch.nn.Module:
        """
        The network: new from the settings and their seed, or a saved one to go on with.

        Returns:
            `torch.nn.Module`: On the CPU, with what it is trained for in its config.
        """
        training = self.settings.training
        statements = {**self.statements(), "prediction_type": training.prediction_type}
        source, variant = self.settings.pretrained
        if source is not None:
            network = self.network_class.from_pretrained(source, subfolder="unet", variant=variant)
            network.register_to_config(sample_size=list(self.settings.size), **statements)
            return network
        shape = self.shape()
        shape["in_channels"] += self.settings.data.nan_mask_channel
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            return self.network_class(
                sample_size=list(self.settings.size),
                num_train_timesteps=training.num_train_timesteps,
                **shape,
                **statements,
            )

    @abstractmethod
    def shape(self) -> dict:
        """What a new network is made with, without size, noise and statements."""

    @abstractmethod
    def statements(self) -> dict:
        """What the network's config says of its masks."""

    @abstractmethod
    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """
        Make windows of a batch of clips.

        Args:
            batch (`dict[str, torch.Tensor]`):
                `"video"` `(B, T, C, H, W)` as the network sees it. If there, `"is_padding"` `(B, T)`: frames that are none,
                which get no role; `"images"` `(B, n, C, H, W)`.
            generators (`torch.Generator` or a list of them): One for each clip.

        Returns:
            [`TrainingWindow`]: What the network sees.
        """

    def draw_next(
        self, window: TrainingWindow, batch: dict[str, torch.Tensor], estimate: torch.Tensor | None
    ) -> TrainingWindow:
        """
        Make the windows of the next stage.

        Args:
            window ([`TrainingWindow`]): Of the stage before.
            batch (`dict[str, torch.Tensor]`): As for [`Method.draw`].
            estimate (`torch.Tensor` of the shape of `window.video`): What the network takes the frames of that window for.

        Returns:
            [`TrainingWindow`]: What the network sees.
        """
        raise NotImplementedError

    def context_encoder_shape(self, largest_value: float) -> dict:
        """What a new context encoder is made with, without size and channels."""
        raise NotImplementedError

    def roles_in_time(self, window: TrainingWindow) -> torch.Tensor:
        """
        Which frames of the video are given and which are learned, to tell tasks apart.

        Args:
            window ([`TrainingWindow`]): What the network sees.

        Returns:
            `torch.Tensor` of shape `(B, t)`: [`FrameRole`] of frames in the order of time.
        """
        return window.roles

    def encode(self, encoder: torch.nn.Module | None, window: TrainingWindow) -> ContextOutput | None:
        """
        What the context encoder knows before windows.

        Args:
            encoder (`torch.nn.Module`, *optional*): The encoder, perhaps wrapped.
            window ([`TrainingWindow`]): The windows.

        Returns:
            [`ContextOutput`]: With a mean for each frame of the windows, if any; `None` without an encoder.
        """
        return None

    def pipeline_settings(self) -> dict:
        """
        How the pipeline samples when nothing else is asked of it.

        Returns:
            `dict`: Arguments of [`MCVDPipeline`].
        """
        return {}


class MCVD(Method):
    """
    Blocks of frames before and after the one to be made, each there or not. As ablations: with LGC-VD's memory or RVD's
    prediction, or learning from a past that it made itself.
    """

    network_class = MCVDUNet2DModel
    variance_type = "fixed_small"
    clip_flags = "--num_past_frames, --num_frames, --num_future_frames"

    @property
    def context_encoder_class(self) -> type[torch.nn.Module] | None:
        """That of the ablation, if any."""
        if self.settings.model.clip_memory:
            return LGCVDContextEncoder
        return RVDContextEncoder if self.settings.model.residual else None

    @property
    def num_stages(self) -> int:
        """Two, if the second window is to remember, or to begin with, the first."""
        return 2 if self.settings.model.clip_memory or self.settings.training.own_predictions else 1

    @property
    def makes_residuals(self) -> bool:
        """If it is asked for."""
        return bool(self.settings.model.residual)

    @property
    def num_clip_frames(self) -> int:
        """Past, block and future, of the first window and of the one that begins a block later."""
        return self.num_seen_frames + (self.num_stages - 1) * self.settings.model.num_frames

    @property
    def num_seen_frames(self) -> int:
        """Past, block and future."""
        model = self.settings.model
        return model.num_past_frames + model.num_frames + model.num_future_frames

    def shape(self) -> dict:
        """As the settings say."""
        shape = {name: getattr(self.settings.model, name) for name in FROM_PRETRAINED_UNET}
        memory = self.settings.model.block_out_channels[-1] if self.settings.model.clip_memory else 0
        return {**shape, "context_channels": memory, "residual": self.makes_residuals}

    def context_encoder_shape(self, largest_value: float) -> dict:
        """A memory of the past and the block before, or a recurrent network that predicts."""
        model = self.settings.model
        if model.clip_memory:
            return {"max_frames": model.num_past_frames + model.num_frames, **_memory_shape(model)}
        return {"context_block_out_channels": None, "clip_range": largest_value, **_predictor_shape(self.settings)}

    def statements(self) -> dict:
        """How often each side was absent."""
        return {"drop_past": self.settings.training.drop_past, "drop_future": self.settings.training.drop_future}

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        model, training = self.settings.model, self.settings.training
        roles = mcvd_roles(
            len(batch["video"]),
            num_past_frames=model.num_past_frames,
            num_frames=model.num_frames,
            num_future_frames=model.num_future_frames,
            drop_past=training.drop_past,
            drop_future=training.drop_future,
            generator=generators,
        )
        video = batch["video"][:, : self.num_seen_frames]
        return TrainingWindow(video, _without_padding(roles, batch), before=self._past(video))

    def draw_next(
        self, window: TrainingWindow, batch: dict[str, torch.Tensor], estimate: torch.Tensor | None
    ) -> TrainingWindow:
        """The same masks a block later; the network's own block is the end of the past, unless true frames are asked for."""
        model = self.settings.model
        past, step, stop = model.num_past_frames, model.num_frames, self.num_seen_frames
        video = batch["video"][:, step : step + stop]
        finished = estimate if self.settings.training.own_predictions else window.video
        finished = finished[:, : past + step]  # without its future
        video = torch.cat([finished[:, step:], video[:, past:]], dim=1)
        roles = _without_padding(window.roles, batch, step)
        return TrainingWindow(video, roles, before=finished if model.clip_memory else self._past(video))

    def encode(self, encoder: torch.nn.Module | None, window: TrainingWindow) -> ContextOutput | None:
        """The memory of the window before; or what follows the past, where that is given."""
        model = self.settings.model
        if encoder is None:
            return None
        if model.clip_memory:
            return _remember(encoder, window.before)
        context = encoder(window.before, num_frames=model.num_frames)
        is_given = (window.roles[:, : model.num_past_frames] == FrameRole.OBSERVED).all(dim=1)
        mean = torch.where(is_given.to(context.mean.device)[:, None, None, None, None], context.mean, 0)
        sides = mean.new_zeros(mean.shape[0], 1, *mean.shape[2:])
        past, future = (
            sides.expand(-1, count, -1, -1, -1) for count in (model.num_past_frames, model.num_future_frames)
        )
        return ContextOutput(mean=torch.cat([past, mean, future], dim=1), scale=context.scale)

    def _past(self, video: torch.Tensor) -> torch.Tensor | None:
        """What a recurrent network reads."""
        if self.settings.model.clip_memory:
            return video[:, :0]
        return video[:, : self.settings.model.num_past_frames] if self.makes_residuals else None


class SpaceTimeMethod(Method):
    """A method whose network sees a window frame by frame."""

    def shape(self) -> dict:
        """What the settings say; each method adds what makes the network its own."""
        model = self.settings.model
        names = ("in_channels", "max_frames", "block_out_channels", "layers_per_block", "num_attention_heads")
        return {name: getattr(model, name) for name in (*names, "attention_head_dim", "dropout")}


class RaMViD(SpaceTimeMethod):
    """A few frames anywhere in the window are given."""

    def shape(self) -> dict:
        """A volume, in which frames are known by their place and given ones by their lack of noise."""
        volume = {"convolution": "3d", "attention": "joint", "temporal_position": "none", "mark_observed": False}
        return {**super().shape(), "attention_levels": self.settings.model.attention_levels, **volume}

    def statements(self) -> dict:
        """How often nothing was given."""
        return {"drop_observed": self.settings.training.drop_observed}

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        training = self.settings.training
        roles = ramvid_roles(
            len(batch["video"]),
            num_frames=self.num_seen_frames,
            max_observed=training.max_observed,
            drop_observed=training.drop_observed,
            generator=generators,
        )
        return TrainingWindow(batch["video"], _without_padding(roles, batch))

    def pipeline_settings(self) -> dict:
        """Windows one after the other, each given as many frames as there were in training."""
        max_frames, max_observed = self.settings.model.max_frames, self.settings.training.max_observed
        return {"frame_schedule": "autoreg", "step": max_frames - max_observed}


class FDM(SpaceTimeMethod):
    """Frames from anywhere in a long clip are given, and others made."""

    clip_flags = "--clip_frames, twice --max_frames if not given,"

    def shape(self) -> dict:
        """Frame by frame; attention knows how far apart frames are."""
        model = self.settings.model
        return {
            **super().shape(),
            "attention_levels": model.attention_levels,
            "temporal_position": model.temporal_position,
        }

    def statements(self) -> dict:
        """How often nothing was given, which is counted; and that windows have gaps."""
        model = self.settings.model
        with torch.device("cpu"):  # whatever the network is made on
            roles = fdm_roles(
                NUM_DRAWS,
                num_frames=model.clip_frames,
                max_frames=model.max_frames,
                generator=torch.Generator().manual_seed(0),
            )
        share = (roles != FrameRole.OBSERVED).all(dim=1).double().mean()
        return {"drop_observed": round(float(share), 2), "has_frame_gaps": model.clip_frames > model.max_frames}

    @property
    def depends_on_batch(self) -> bool:
        """Where the next clip of the batch fills windows."""
        return self.settings.training.fill_with_other_clips

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        model = self.settings.model
        roles = fdm_roles(
            len(batch["video"]), num_frames=model.clip_frames, max_frames=model.max_frames, generator=generators
        )
        return gather_window(
            batch["video"],
            _without_padding(roles, batch),
            model.max_frames,
            fill_with_other_clips=self.settings.training.fill_with_other_clips,
            is_padding=batch.get("is_padding"),
            generator=generators,
        )

    def pipeline_settings(self) -> dict:
        """From afar to near, if windows have gaps; half given, half made."""
        step = max(1, self.settings.model.max_frames // 2)
        model = self.settings.model
        leaps = step > 1 and model.clip_frames > model.max_frames
        return {"frame_schedule": "hierarchy-2" if leaps else "autoreg", "step": step}


class VDM(SpaceTimeMethod):
    """Nothing is given in training; single images stand beside the clip."""

    variance_type = "fixed_small"

    def shape(self) -> dict:
        """The backbone of VDM's public port."""
        position = self.settings.model.temporal_position
        own = {"backbone": "unet3d", "attention_levels": [], "temporal_position": position}
        return {**super().shape(), **own, "mark_observed": False}

    def statements(self) -> dict:
        """Nothing was given."""
        return {"drop_observed": 1.0}

    @property
    def num_seen_frames(self) -> int:
        """With the images."""
        return self.settings.model.max_frames + self.settings.training.num_joint_images

    @property
    def depends_on_batch(self) -> bool:
        """Where images are frames of its other clips."""
        return self.settings.training.num_joint_images > 0 and self.settings.data.image_data_dir is None

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        video, num_images = batch["video"], self.settings.training.num_joint_images
        batch_size, num_frames = video.shape[:2]
        roles = vdm_roles(batch_size, num_frames=num_frames)
        roles = _without_padding(roles, batch)
        if not num_images:
            return TrainingWindow(video, roles)
        images, is_padding = batch.get("images"), batch.get("is_padding")
        image_roles = vdm_roles(batch_size, num_frames=num_images)
        if images is None:  # a frame of each of the next clips of the batch
            keys = rand_tensor((batch_size, num_images, num_frames), generators)
            numbers = torch.arange(batch_size)[:, None]
            # In a batch of one, or with many images, a clip's own turn comes, too.
            others = (numbers + 1 + torch.arange(num_images) % max(batch_size - 1, 1)) % batch_size  # (B, n)
            if is_padding is not None:
                keys = keys.masked_fill(is_padding.cpu()[others], -1)
            images = video[others.to(video.device), keys.argmax(dim=2).to(video.device)]
        return TrainingWindow(
            video=torch.cat([video, images.to(video)], dim=1),
            roles=torch.cat([roles, image_roles], dim=1),
            segment_ids=joint_segments(batch_size, num_frames=num_frames, num_images=num_images),
        )

    def pipeline_settings(self) -> dict:
        """Blocks, half given and half made; what is given enters by replacement and guidance."""
        return {
            "frame_schedule": "autoreg",
            "step": max(1, self.settings.model.max_frames // 2),
            "replacement": "noised",
            "reconstruction_guidance": 2.0,
        }


class LGCVD(Method):
    """Two frames of a window, and a memory of what came before, are given; in the second window both are of its own making."""

    network_class = LGCVDUNet2DModel
    context_encoder_class = LGCVDContextEncoder
    variance_type = "fixed_small"

    @property
    def num_stages(self) -> int:
        """A window whose memory is grey, and the next, which remembers it."""
        return 2

    @property
    def num_clip_frames(self) -> int:
        """Of two windows, which share the frames that the second is given."""
        return 2 * self.settings.model.max_frames - NUM_CONTEXT_FRAMES

    @property
    def num_seen_frames(self) -> int:
        """The window, and what is given beside it."""
        return NUM_CONTEXT_FRAMES + self.settings.model.max_frames

    def shape(self) -> dict:
        """As the settings say."""
        model = self.settings.model
        own = {"num_context_frames": NUM_CONTEXT_FRAMES, "max_frames": model.max_frames}
        return {"in_channels": model.in_channels, **own, **_memory_shape(model)}

    def context_encoder_shape(self, largest_value: float) -> dict:
        """The way down of the network."""
        return {"max_frames": self.settings.model.max_frames, **_memory_shape(self.settings.model)}

    def statements(self) -> dict:
        """How often nothing was given, and what was."""
        shares = list(self.settings.training.task_shares)
        return {"drop_observed": shares[1], "task_shares": shares}

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        size = self.settings.model.max_frames
        positions = lgcvd_positions(
            len(batch["video"]),
            num_frames=size,
            task_shares=self.settings.training.task_shares,
            generator=generators,
        ).to(batch["video"].device)
        clip = batch["video"][:, :size]
        slots = positions.clamp(min=0)
        shown = clip[torch.arange(len(clip), device=clip.device)[:, None], slots]
        roles = torch.where(positions < 0, int(FrameRole.ABSENT), int(FrameRole.OBSERVED))
        frames = torch.arange(size, device=clip.device).expand(len(clip), size)
        made = _without_padding(torch.full_like(frames, FrameRole.LATENT), batch)
        is_there = made.gather(1, slots) == FrameRole.LATENT
        return TrainingWindow(
            video=torch.cat([shown, clip], dim=1),
            roles=torch.cat([roles.masked_fill(~is_there, int(FrameRole.ABSENT)), made], dim=1),
            frame_indices=torch.cat([slots, frames], dim=1),
            before=clip[:, :0],
        )

    def draw_next(
        self, window: TrainingWindow, batch: dict[str, torch.Tensor], estimate: torch.Tensor | None
    ) -> TrainingWindow:
        """The same task in the next window. For prediction, what it is given is the end of what was made, too."""
        size = self.settings.model.max_frames
        step, slots = size - NUM_CONTEXT_FRAMES, window.frame_indices[:, :NUM_CONTEXT_FRAMES]
        finished = estimate if self.settings.training.own_predictions else window.video
        finished = finished[:, NUM_CONTEXT_FRAMES:]
        clip = batch["video"][:, step : step + size]
        shown = clip[torch.arange(len(clip), device=clip.device)[:, None], slots]
        is_shown = window.roles[:, :NUM_CONTEXT_FRAMES] == FrameRole.OBSERVED
        first = torch.arange(NUM_CONTEXT_FRAMES, device=slots.device)
        is_prediction = ((slots == first) & is_shown).all(dim=1)[:, None, None, None, None]
        made = _without_padding(torch.full_like(slots[:, :1].expand(-1, size), FrameRole.LATENT), batch, step)
        is_there = is_shown & (made.gather(1, slots) == FrameRole.LATENT)
        return TrainingWindow(
            video=torch.cat([torch.where(is_prediction, finished[:, step:], shown), clip], dim=1),
            roles=torch.cat([torch.where(is_there, int(FrameRole.OBSERVED), int(FrameRole.ABSENT)), made], dim=1),
            frame_indices=window.frame_indices,
            before=finished,
        )

    def roles_in_time(self, window: TrainingWindow) -> torch.Tensor:
        """What is shown beside the window stands in it, too."""
        shown, made = window.roles.split([NUM_CONTEXT_FRAMES, self.settings.model.max_frames], dim=1)
        places = window.frame_indices[:, :NUM_CONTEXT_FRAMES]
        is_given = torch.zeros_like(made).scatter_add(1, places, (shown == FrameRole.OBSERVED).to(made.dtype)) > 0
        return made.masked_fill(is_given, int(FrameRole.OBSERVED))

    def encode(self, encoder: torch.nn.Module | None, window: TrainingWindow) -> ContextOutput | None:
        """The memory of the window before."""
        return _remember(encoder, window.before)


class RVD(Method):
    """Each frame of a sequence is made by itself, from what recurrent networks know of all before it."""

    network_class = RVDUNet2DModel
    context_encoder_class = RVDContextEncoder
    variance_type = "fixed_small"
    clip_flags = "--clip_frames"

    @property
    def num_seen_frames(self) -> int:
        """Those that are learned."""
        return self.settings.model.clip_frames - NUM_CONTEXT_FRAMES

    @property
    def makes_residuals(self) -> bool:
        """Unless it is not wanted."""
        return bool(self.settings.model.residual)

    def shape(self) -> dict:
        """As the settings say."""
        model = self.settings.model
        names = ("in_channels", "block_out_channels", "num_attention_heads")
        shape = {name: getattr(model, name) for name in names}
        if model.attention_head_dim is not None:
            shape["attention_head_dim"] = model.attention_head_dim
        return {**shape, "residual": self.makes_residuals}

    def context_encoder_shape(self, largest_value: float) -> dict:
        """A map for each level of the network, and what predicts."""
        predictor = _predictor_shape(self.settings) if self.makes_residuals else {"predictor_block_out_channels": None}
        widths = self.settings.model.block_out_channels
        return {"context_block_out_channels": widths, "clip_range": largest_value, **predictor}

    def statements(self) -> dict:
        """Something always was given."""
        return {"drop_observed": 0.0}

    def draw(self, batch: dict[str, torch.Tensor], generators: Generators) -> TrainingWindow:
        """See the base class."""
        video = batch["video"]
        roles = _without_padding(vdm_roles(len(video), num_frames=video.shape[1]), batch)
        return TrainingWindow(
            video=video[:, NUM_CONTEXT_FRAMES:], roles=roles[:, NUM_CONTEXT_FRAMES:], before=video[:, :-1]
        )

    def roles_in_time(self, window: TrainingWindow) -> torch.Tensor:
        """Each frame is given all before it."""
        return torch.nn.functional.pad(window.roles, (1, 0), value=int(FrameRole.OBSERVED))

    def encode(self, encoder: torch.nn.Module | None, window: TrainingWindow) -> ContextOutput | None:
        """What is known before each frame."""
        context, count = encoder(window.before, each_frame=True), window.video.shape[1]
        mean = None if context.mean is None else context.mean[:, -count:]
        return ContextOutput(tuple(x[:, -count:] for x in context.features), mean=mean, scale=context.scale)


def make_method(settings: Settings) -> Method:
    """
    The method that settings ask for.

    Args:
        settings ([`Settings`]): Of the run.

    Returns:
        [`Method`]: What is trained.
    """
    methods = {"mcvd": MCVD, "ramvid": RaMViD, "fdm": FDM, "vdm": VDM, "lgcvd": LGCVD, "rvd": RVD}
    return methods[settings.model.method](settings)


def _memory_shape(model: ModelArguments) -> dict:
    """What LGC-VD's network and its memory have in common."""
    levels = [len(model.block_out_channels) - 1] if model.attention_levels is None else model.attention_levels
    shape = {"block_out_channels": model.block_out_channels, "attention_levels": levels}
    return shape | {"layers_per_block": model.layers_per_block, "attention_head_dim": model.attention_head_dim}


def _predictor_shape(settings: Settings) -> dict:
    """What predicts frames."""
    model = settings.model
    widths = model.block_out_channels if model.predictor_channels is None else model.predictor_channels
    return {"predictor_block_out_channels": widths, "scale": model.residual_scale}


def _remember(encoder: torch.nn.Module, clip: torch.Tensor) -> ContextOutput:
    """The memory of one clip alone, as in LGC-VD's training; of grey, if there is none."""
    return encoder(clip, averages=False)


def _without_padding(roles: torch.Tensor, batch: dict[str, torch.Tensor], start: int = 0) -> torch.Tensor:
    """Roles of a window that begins somewhere in the clip; frames of a video that is too short are neither given nor learned."""
    if "is_padding" not in batch:
        return roles
    is_padding = batch["is_padding"].to(roles.device)[:, start : start + roles.shape[1]]
    return roles.masked_fill(is_padding, int(FrameRole.ABSENT))
