"""What a method is in training: its network, how a batch of clips becomes windows with roles, and what its pipeline knows.

| method | network | roles | clips |
| --- | --- | --- | --- |
| mcvd | [`MCVDUNet2DModel`] | [`masking.mcvd_roles`] | past, block and future |
| ramvid | [`SpaceTimeUNetModel`], 3D convolutions, attention among all pixels | [`masking.ramvid_roles`] | a window |
| fdm | the same class, frame by frame, attention that knows positions | [`masking.fdm_roles`] | long, windows are gathered from them |
| vdm | the same class, the backbone of VDM's public port | all LATENT | a window, and images beside it |

`make_method` is the only way in; what trains asks the method and knows none by name.
"""

from abc import ABC, abstractmethod

import torch

from mcvd_diffusers.masking import FrameRole, fdm_roles, joint_segments, mcvd_roles, ramvid_roles, vdm_roles
from mcvd_diffusers.models import MCVDUNet2DModel, SpaceTimeUNetModel
from mcvd_diffusers.randomness import Generators, rand_tensor
from mcvd_diffusers.train_settings import FROM_PRETRAINED_UNET, Settings
from mcvd_diffusers.training import TrainingWindow, gather_window


# Clips that are drawn to tell how often FDM's windows had nothing given.
NUM_DRAWS = 4096


class Method(ABC):
    """
    What is trained.

    Args:
        settings ([`Settings`]): Of the run. They are read when they are needed, since the data complete them.
    """

    network_class: type[torch.nn.Module] = SpaceTimeUNetModel
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

    def make_network(self) -> torch.nn.Module:
        """
        The network: new from the settings and their seed, or a saved one to go on with.

        Returns:
            `torch.nn.Module`: On the CPU, with what it is trained for in its config.
        """
        training, model = self.settings.training, self.settings.model
        statements = {**self.statements(), "prediction_type": training.prediction_type}
        if model.pretrained_model_name_or_path is not None:
            network = self.network_class.from_pretrained(
                model.pretrained_model_name_or_path, subfolder="unet", variant=model.variant
            )
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

    def pipeline_settings(self) -> dict:
        """
        How the pipeline samples when nothing else is asked of it.

        Returns:
            `dict`: Arguments of [`MCVDPipeline`].
        """
        return {}


class MCVD(Method):
    """Blocks of frames before and after the one to be made, each there or not."""

    network_class = MCVDUNet2DModel
    variance_type = "fixed_small"
    clip_flags = "--num_past_frames, --num_frames, --num_future_frames"

    @property
    def num_seen_frames(self) -> int:
        """The clip is the window."""
        return self.num_clip_frames

    def shape(self) -> dict:
        """As the settings say."""
        return {name: getattr(self.settings.model, name) for name in FROM_PRETRAINED_UNET}

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
        return TrainingWindow(batch["video"], _without_padding(roles, batch))


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


def make_method(settings: Settings) -> Method:
    """
    The method that settings ask for.

    Args:
        settings ([`Settings`]): Of the run.

    Returns:
        [`Method`]: What is trained.
    """
    return {"mcvd": MCVD, "ramvid": RaMViD, "fdm": FDM, "vdm": VDM}[settings.model.method](settings)


def _without_padding(roles: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Frames of a video that is too short are neither given nor learned."""
    if "is_padding" not in batch:
        return roles
    return roles.masked_fill(batch["is_padding"].to(roles.device), FrameRole.ABSENT)
