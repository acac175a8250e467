r"""`MCVDPipeline`: prediction, past prediction, interpolation and generation with one masked network.

Source: MCVD (https://huggingface.co/papers/2205.09853), section 3.3 and algorithm 1. The sampling loop is
[`MCVDPipeline.denoise`]; what is looped over, block by block, is a frame schedule ([`mcvd_diffusers.frame_schedules`]).
"""

import contextlib
import inspect
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from mcvd_diffusers.frame_plans import FramePlan
from mcvd_diffusers.frame_schedules import FRAME_SCHEDULES, Window, schedule_name
from mcvd_diffusers.guidance import downsample, one_step_back
from mcvd_diffusers.hub import CheckedPipelineMixin
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.models import (
    LGCVDContextEncoder,
    LGCVDUNet2DModel,
    MCVDUNet2DModel,
    RVDContextEncoder,
    RVDUNet2DModel,
    SpaceTimeUNetModel,
)
from mcvd_diffusers.models.context import ContextOutput
from mcvd_diffusers.models.space_time_layers import SpaceTimeAttnProcessor
from mcvd_diffusers.models.unet_lgcvd import LGCVDAttnProcessor
from mcvd_diffusers.models.unet_mcvd import MCVDAttnProcessor
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.objectives import add_observed_noise, sampling_level
from mcvd_diffusers.publishing import PublishedPipelineMixin
from mcvd_diffusers.randomness import NoiseSequence, keyed_seed
from mcvd_diffusers.samplers import trained_noise as noise_of

from .carried_context import CarriedContext, check_context_encoder
from .frame_inputs import Frames
from .guided_prediction import GuidedPrediction
from .layouts import REPLACEMENTS, Layout
from .request import (
    CALLBACK_INPUTS,
    MOST_GUIDANCE,
    Call,
    Request,
    check_replacement,
    is_number,
    read_request,
)
from .rollout import Job, rollout
from .scheduler_checks import check_trained_noise, serves, set_timesteps


EXAMPLE_DOC_STRING = """
    Examples:
        ```py
        >>> import torch
        >>> from mcvd_diffusers import MCVDPipeline

        >>> pipe = MCVDPipeline.from_pretrained("path/to/checkpoint")
        >>> past = torch.rand(1, pipe.unet.config.num_past_frames, 1, 64, 64)  # your frames, in [0, 1]

        >>> video = pipe(past_frames=past, num_frames=20, output_type="pt").frames  # (1, 20, 1, 64, 64)
        ```
"""


@dataclass
class MCVDPipelineOutput(BaseOutput):
    """
    The output of [`MCVDPipeline`].

    Args:
        frames (`torch.Tensor`, `np.ndarray` or `list[list[PIL.Image.Image]]`):
            The generated videos. `"pt"`: `(B, T, C, H, W)` in `[0, 1]`; `"np"`: `(B, T, H, W, C)` in `[0, 1]`;
            `"pil"`: a list of frames for each video; `"latent"`: `(B, T, C, H, W)`, about `[-1, 1]`, not clamped.
            With an ensemble, the `ensemble_size` futures of a video stand one after the other on the batch axis.
        positions (`list[int]`, *optional*):
            Where each of the frames is in the video, counted from 0; all of them, unless the call was interrupted.
        uncertainty (`torch.Tensor` or `np.ndarray`, *optional*):
            Standard deviation over the ensemble of each pixel, in the units of `frames`, one map for each input
            video: `(B, T, C, H, W)`, or `(B, T, H, W, C)` for `"np"` and `"pil"`.
    """

    frames: torch.Tensor | np.ndarray | list
    uncertainty: torch.Tensor | np.ndarray | None = None
    positions: list[int] | None = None


class MCVDPipeline(CheckedPipelineMixin, PublishedPipelineMixin, DiffusionPipeline):
    r"""
    Pipeline for video prediction, past prediction, interpolation and generation. Which one follows from what is given:

    | given | task |
    | --- | --- |
    | `past_frames` | prediction of `num_frames` frames after them, block by block |
    | `future_frames` | prediction of `num_frames` frames before them |
    | both | interpolation: `num_frames` frames between them |
    | neither | generation of `num_frames` frames |
    | `observed_frames`, wherever they are | infilling of all others; temporal super-resolution |
    | `low_resolution_frames` | spatial super-resolution, alone or with any of the above |

    This model inherits from [`DiffusionPipeline`]: see there for loading, saving, devices and offloading.

    Args:
        unet ([`MCVDUNet2DModel`], [`SpaceTimeUNetModel`], [`LGCVDUNet2DModel`] or [`RVDUNet2DModel`]): The network.
        scheduler ([`SchedulerMixin`]):
            One of Diffusers' noise schedulers, with the noise schedule and the `prediction_type` of the training.
            Swap with `OtherScheduler.from_config(pipe.scheduler.config)`.
        final_denoise (`bool`, *optional*, defaults to `False`):
            Default of the call's `final_denoise`.
        normalization (`dict`, *optional*):
            The user's units, as [`FrameNormalizer.to_config`] writes them. Given frames are then taken, and videos
            returned, in these units: kelvin in, kelvin out. By default frames are images, in `[0, 1]`.
        guider ([`~diffusers.guiders.BaseGuidance`], *optional*):
            One of Diffusers' guiders, for other guidance than the call's `guidance_scale`, which must then be 1. Its
            conditional prediction is the network's with the given frames, its unconditional one without them, in each
            block, so the network must have been trained with masks. Saved and loaded with the pipeline. Each block
            begins with a copy of it, so nothing that it remembers goes from one block or call into the next. One that
            changes layers needs them named, for instance `LayerSkipConfig([1], fqn="down_blocks", skip_ff=False)`.
            Two settings make a video depend on its batch: `AdaptiveProjectedGuidance` that is told to normalise over
            the batch's axis, and layers with a `dropout` below 1, which also draws from torch's global stream.
        frame_schedule (`str`, *optional*):
            Name of the frame schedule for videos that do not fit into one window, as of
            [`~mcvd_diffusers.frame_schedules.frame_schedule`]. Default of the call's `frame_schedule`; without it, blocks.
        step (`int`, *optional*): Default of the call's `step`.
        replacement (`str`, *optional*): Default of the call's `replacement`; `"noised"` for an unconditional network.
        reconstruction_guidance (`float`, *optional*, defaults to 0.0): Default of the call's `reconstruction_guidance`.
        context_encoder ([`LGCVDContextEncoder`] or [`RVDContextEncoder`], *optional*):
            What remembers the frames before a window, and may predict those in it: a network that was trained with one needs it.
            It reads given and generated frames; what it knows is a value of each call, and carried from window to window. The
            denoiser then makes `(frame - mean) / scale` with what the encoder predicts (by default 0 and 1).
        num_inference_steps (`int`, *optional*): Default of the call's `num_inference_steps`; 100 if not given.
        trained_noise (`dict`, *optional*):
            What the network was trained for, as [`~samplers.trained_noise`] says it of a scheduler; that of `scheduler`, if not given.
            A scheduler that is swapped in later must have the same noise. (What an older version saved does not say it: load it once with
            its own scheduler, and save it.)
    """

    model_cpu_offload_seq = "context_encoder->unet"
    _optional_components = ["guider", "context_encoder"]
    _callback_tensor_inputs = CALLBACK_INPUTS

    def __init__(
        self,
        unet: MCVDUNet2DModel | SpaceTimeUNetModel | LGCVDUNet2DModel | RVDUNet2DModel,
        scheduler: SchedulerMixin,
        final_denoise: bool = False,
        normalization: dict | None = None,
        guider: BaseGuidance | None = None,
        frame_schedule: str | None = None,
        step: int | None = None,
        replacement: str | None = None,
        reconstruction_guidance: float = 0.0,
        context_encoder: LGCVDContextEncoder | RVDContextEncoder | None = None,
        num_inference_steps: int | None = None,
        trained_noise: dict | None = None,
    ) -> None:
        super().__init__()
        for name, value, base in (
            ("unet", unet, torch.nn.Module),  # of this package, or such a one compiled
            ("scheduler", scheduler, SchedulerMixin),
            ("guider", guider, BaseGuidance),
            ("context_encoder", context_encoder, torch.nn.Module),
        ):
            if not isinstance(value, base) and not (name in self._optional_components and value is None):
                raise ValueError(f"`{name}` must be an object, a {base.__name__}, got {reprlib.repr(value)}.")
        if not isinstance(final_denoise, bool):
            raise ValueError(f"`final_denoise` must be True or False, got {final_denoise!r}.")
        sampling = {
            "frame_schedule": frame_schedule,
            "step": step,
            "replacement": replacement,
            "reconstruction_guidance": reconstruction_guidance,
            "num_inference_steps": num_inference_steps,
        }
        _check_defaults(**sampling)
        check_trained_noise(trained_noise)
        if trained_noise is None and serves(scheduler, unet.config):
            trained_noise = noise_of(scheduler)
        self.normalizer = FrameNormalizer.from_config(normalization)
        self.normalizer.num_channels(unet.config.in_channels)  # raises if it is for another network
        check_context_encoder(context_encoder, unet)
        self.register_modules(unet=unet, scheduler=scheduler, guider=guider, context_encoder=context_encoder)
        self.register_to_config(
            final_denoise=final_denoise, normalization=normalization, trained_noise=trained_noise, **sampling
        )
        self._guidance_scale, self._num_timesteps, self._block_index, self._interrupt = 1.0, 0, 0, False
        # Frames are brought into [0, 1] here, and given ones are returned as they came.
        self.video_processor = VideoProcessor(do_resize=False, do_normalize=False, vae_scale_factor=1)

    def __setattr__(self, name: str, value) -> None:
        super().__setattr__(name, value)
        if name == "guider" and isinstance(value, BaseGuidance):
            # Where there was none before, Diffusers does not take down that there is one, and would not save it.
            self.register_to_config(guider=_fetch_class_library_tuple(value))

    @classmethod
    def check_options(cls, options: dict) -> None:
        """As in the base class: `normalization` must be a map, and the defaults of a call ones that a call would take."""
        FrameNormalizer.from_config(options.get("normalization"))
        check_trained_noise(options.get("trained_noise"))
        names = ("frame_schedule", "step", "replacement", "reconstruction_guidance", "num_inference_steps")
        _check_defaults(**{name: options[name] for name in names if name in options})

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Channels (in the user's units, so without a mask), height and width of a frame in training."""
        config = self.unet.config
        height, width = (int(side) for side in np.broadcast_to(config.sample_size, 2))
        return self.normalizer.num_channels(config.in_channels), height, width

    # ------------------------------------------------------------------------------------------------------------
    # Per-call state that Diffusers' callbacks read

    @property
    def guidance_scale(self) -> float:
        """The guidance scale of the call that runs or ran last."""
        return self._guidance_scale

    @property
    def do_classifier_free_guidance(self) -> bool:
        """Whether that call uses classifier-free guidance; a `guider` is asked by itself."""
        return self._guidance_scale != 1

    @property
    def default_num_inference_steps(self) -> int:
        """Denoising steps a block of a call that does not say how many."""
        return self.config.num_inference_steps or 100

    @property
    def num_timesteps(self) -> int:
        """Denoising steps a block of that call."""
        return self._num_timesteps

    @property
    def block_index(self) -> int:
        """Number of the block that is being made, from 0."""
        return self._block_index

    @property
    def interrupt(self) -> bool:
        """
        Whether the call is to stop; a callback sets `pipe._interrupt = True`. The network is not called again, the block
        in progress is returned as it is, and no further block is begun (nor, by an adaptive schedule, a further video). The
        output's `positions` say which frames there are.
        """
        return self._interrupt

    # ------------------------------------------------------------------------------------------------------------
    # Entry points

    @torch.no_grad()
    @replace_example_docstring(EXAMPLE_DOC_STRING)
    def __call__(
        self,
        past_frames: Frames | None = None,
        future_frames: Frames | None = None,
        num_frames: int | None = None,
        observed_frames: Frames | None = None,
        observed_positions: Sequence[int] | None = None,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        history_guidance: list[tuple[list[int] | None, float]] | None = None,
        frame_schedule: str | list[Window] | Iterator[Window] | FramePlan | None = None,
        max_frames: int | None = None,
        step: int | None = None,
        max_parallel_windows: int | None = None,
        frame_embedding: Callable[[torch.Tensor], torch.Tensor] | None = None,
        replacement: str | dict[str, str] | None = None,
        num_resamples: int = 1,
        reconstruction_guidance: float | None = None,
        low_resolution_frames: Frames | None = None,
        super_resolution_guidance: float = 1.0,
        overwrite_given: bool = False,
        observed_noise: float = 0.0,
        ensemble_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | NoiseSequence | None = None,
        latents: torch.Tensor | None = None,
        final_denoise: bool | None = None,
        cache_conditioning: bool = True,
        max_batch_size: int | None = None,
        return_given_frames: bool = False,
        output_uncertainty: bool = False,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
    ) -> MCVDPipelineOutput | tuple:
        r"""
        Make videos.

        Args:
            past_frames (`torch.Tensor`, `np.ndarray` or `list`, *optional*):
                Frames before those to be made, in time order, at most as many as the network reads; any number, if a context
                encoder reads those before. A tensor
                `(B, T, C, H, W)` or `(T, C, H, W)`; an array `(B, T, H, W, C)` as Diffusers returns them, or
                `(B, T, C, H, W)` (told apart by the network's number of channels), or without `B`; a list of
                `PIL.Image`s, or a list of such lists; a list of tensors or arrays, one each video. Floats in
                `[0, 1]`, or `uint8` in `[0, 255]`; with a `normalization`, numbers of any type in the units of the
                training data, NaN where missing if it has a fill. Fewer frames than the network reads: the others are ABSENT, if the
                network was trained with masks.
            future_frames (`torch.Tensor`, `np.ndarray` or `list`, *optional*): Frames after those to be made.
            num_frames (`int`, *optional*):
                How many frames to make, by default one block, or what makes a window full. Any number; an interpolation
                by a network of blocks needs at least one block.
            observed_frames (`torch.Tensor`, `np.ndarray` or `list`, *optional*):
                Frames that are given wherever they are, instead of `past_frames` and `future_frames`, in the same forms.
            observed_positions (`Sequence[int]`, *optional*):
                Where each of them is in the video, counted from 0. Without `num_frames` the video ends with the last.
            batch_size (`int`, *optional*, defaults to 1): Number of videos, when no frames are given.
            height (`int`, *optional*): Height when no frames are given, by default the network's `sample_size`.
            width (`int`, *optional*): Width when no frames are given, by default the network's `sample_size`.
            num_inference_steps (`int`, *optional*): Denoising steps a block; by default the pipeline's, else 100.
            timesteps (`list[int]`, *optional*): Own timesteps, if the scheduler takes them. Frames begin as
                pure noise, so the first should be the noisiest, or nearly, unless `latents` are less noisy.
            sigmas (`list[float]`, *optional*): Own noise levels, if the scheduler takes them.
            eta (`float`, *optional*, defaults to 0.0): DDIM's stochasticity, for schedulers that know it.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Classifier-free guidance over absent frames: 1 is none, above 1 follows the given frames more closely.
                Doubles the cost. The network must have been trained with masks; one of volumes (RaMViD's) is shown a shorter
                clip instead, so that frames must be given at its ends only. For other kinds of guidance give the
                pipeline a `guider`.
            history_guidance (`list` of pairs, *optional*):
                Guidance by several histories instead: which of a window's given frames (numbers in time order, -1 the last;
                `None`: all), and with what weight they pull away from what the network says without any. Weights of 1
                in all are no guidance. `[(None, 1.0), ([-1], 0.5)]`: all frames, and the last one more strongly. Frames that
                are replaced are not counted; in windows that have none of its frames a history is left out.
            frame_schedule (`str`, `list[Window]`, `Iterator[Window]` or [`FramePlan`], *optional*):
                How the video is cut into windows: a name that [`~mcvd_diffusers.frame_schedules.frame_schedule`] knows, such
                as `"hierarchy-2"`, or own windows. By default the pipeline's; without one, all at once if the network
                can, else autoregressively.
            max_frames (`int`, *optional*): Frames of a window at most, given ones included; by default what the network takes.
            step (`int`, *optional*):
                Frames that a window of the schedule makes; by default the pipeline's, else half of `max_frames`, or a block.
            max_parallel_windows (`int`, *optional*):
                Windows that do not depend on one another and may go through the network together, where the schedule is
                known ahead (not adaptive ones, nor a network's own blocks). By default as many as make 64 with all videos on an
                accelerator, and 1 on a CPU, with a [`NoiseSequence`], and in a stream.
            frame_embedding (`Callable`, *optional*):
                For adaptive schedules: of a frame `(C, H, W)` in `[0, 1]` or the user's units it makes a vector; the distance
                between frames is that between their vectors, squared. By default the pixels; FDM's is
                `metrics.LPIPS.from_package().embed`.
            replacement (`str` or `dict`, *optional*):
                For networks that were trained without given frames: in each step given frames are put into their places,
                `"noised"` to the level of the others (VDM, section 3.1), or `"clean"` (the public code of RaMViD). A map such as
                `{"future": "noised"}` says it for the frames after those to be made only. `"none"`: the network reads them as
                they are. By default the pipeline's.
            num_resamples (`int`, *optional*, defaults to 1):
                How often each step is made, going one step back in between (RePaint; RaMViD): what is made then fits better
                to frames that were put in, by replacement or guidance; 4 with `eta=1.0` is a good start. For noise schedulers
                without memory.
            reconstruction_guidance (`float`, *optional*):
                Weight with which frames are moved so that the network's own idea of the replaced ones fits them (VDM, equation
                7); by default the pipeline's. Needs a gradient through the network, about three times the time.
            low_resolution_frames (`torch.Tensor`, `np.ndarray` or `list`, *optional*):
                The frames to be made, seen small: their size divides that of the video, whose means over pixels they are.
            super_resolution_guidance (`float`, *optional*, defaults to 1.0):
                Weight with which frames are moved so that they fit these; a gradient as above.
            overwrite_given (`bool`, *optional*, defaults to `False`):
                For networks that make the frames they are shown anew (LGC-VD's): whether these take the place of the frames that
                were there, given ones and those of the window before, as in the original's code. By default a given frame is
                returned as it came, and a frame that was made stays.
            observed_noise (`float`, *optional*, defaults to 0.0):
                Noise on the frames that each window is given, as a share, of which the network is told: at most that of its training
                (`unet.config.observed_noise`). Long videos drift less with a little of it.
            ensemble_size (`int`, *optional*, defaults to 1): How many different videos to make for each input.
            generator (`torch.Generator`, `list[torch.Generator]` or [`NoiseSequence`], *optional*):
                Randomness. Each video, ensemble member and block has a random stream of its own, seeded by a number
                that is drawn for the video from `generator` (from the i-th of a list). So video `i` does not depend
                on the batch size, member `j` not on the ensemble's size, and streaming gives the same frames. With a
                [`NoiseSequence`] all noise comes from one stream in the original's order instead, to repeat its
                samples; then `max_batch_size` cannot divide the batch.
            latents (`torch.Tensor` of shape `(B * ensemble_size, blocks * k, C, H, W)`, *optional*):
                The initial noise, window after window of the schedule, of all frames that the network makes for it: `k`
                for each block, also when the last is not needed whole.
            final_denoise (`bool`, *optional*, defaults to the pipeline's `final_denoise`):
                The original's last network call: subtracts what the network still takes for noise after the last
                step. For reproducing published numbers only. The call tells the network a noise level that is too
                high unless the steps are all 1000, which costs about 4 % of the contrast at 100 steps.
            cache_conditioning (`bool`, *optional*, defaults to `True`):
                Compute what depends on given frames only once a block instead of once a step. `False` saves memory.
            max_batch_size (`int`, *optional*):
                Videos that go through the network together (windows, if several are made at a time), by default all. When the accelerator's memory does not
                suffice, the number is halved until it does. Results do not depend on it, but for rounding.
            return_given_frames (`bool`, *optional*, defaults to `False`):
                Return the whole video, the given frames as they came.
            output_uncertainty (`bool`, *optional*, defaults to `False`):
                Also return the ensemble's standard deviation at each pixel; NaN where a member has a missing value.
            output_type (`str`, *optional*, defaults to `"pil"`): `"pil"`, `"np"`, `"pt"` or `"latent"`.
            return_dict (`bool`, *optional*, defaults to `True`): Return an [`MCVDPipelineOutput`].
            callback_on_step_end (`Callable`, *optional*):
                Called as `callback(pipe, step, timestep, kwargs)` after each denoising step of each block
                (`pipe.block_index`) and of each part of the batch, if `max_batch_size` divides it; may return
                `{"latents": ...}`. Setting `pipe._interrupt = True` ends the call with the block in progress; setting
                `pipe._guidance_scale` changes the guidance for the rest of the block, if there was any at its start.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`):
                What the callback gets in `kwargs`; `"latents"` is all there is, `(b, k, C, H, W)`.

        Examples:

        Returns:
            [`MCVDPipelineOutput`] or `tuple`:
                With `return_dict=False` a tuple of the frames and, if asked for, the uncertainty.

        Raises:
            ValueError: If an argument does not fit the network, the scheduler or the others; before any work.
        """
        arguments = locals()
        call = Call(**{field.name: arguments[field.name] for field in fields(Call)})
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("`output_uncertainty=True` needs several futures to compare: pass `ensemble_size` > 1.")
        request = read_request(self, call)
        self._begin(request)
        made = {}
        for window, block in self._generate(request):
            made.update(zip(window.latent, block.unbind(dim=1)))
        if not return_given_frames:  # what was made in the place of given ones
            made = {position: frame for position, frame in made.items() if position not in request.as_given}
        positions = sorted(made)
        frames = torch.stack([made[position] for position in positions], dim=1)
        if output_type != "latent":
            frames = self.normalizer.decode(frames)

        uncertainty = None
        if output_uncertainty:
            uncertainty = frames.unflatten(0, (request.batch_size, ensemble_size)).std(dim=1)
        if return_given_frames and request.as_given:
            frames = self._with_given_frames(frames, positions, request, is_latent=output_type == "latent")
            if output_uncertainty:  # given frames are certain
                certain = uncertainty.new_zeros(len(uncertainty), frames.shape[1], *uncertainty.shape[2:])
                in_video = sorted({*positions, *request.as_given})
                certain[:, [in_video.index(position) for position in positions]] = uncertainty
                uncertainty = certain
            positions = sorted({*positions, *request.as_given})

        frames = self._postprocess(frames, output_type)
        if uncertainty is not None and output_type in ("np", "pil"):
            uncertainty = uncertainty.movedim(2, -1).cpu().numpy()
        self.maybe_free_model_hooks()
        if not return_dict:
            return (frames, uncertainty) if output_uncertainty else (frames,)
        return MCVDPipelineOutput(frames=frames, uncertainty=uncertainty, positions=positions)

    def stream(
        self,
        past_frames: Frames | None = None,
        future_frames: Frames | None = None,
        num_frames: int | None = None,
        *,
        output_type: str = "pil",
        **kwargs,
    ) -> Iterator[torch.Tensor | np.ndarray | list]:
        """
        Make a video of any length, yielding each block as soon as it is finished. Memory stays flat: only the frames
        that the next blocks read are kept.

        Args:
            past_frames, future_frames: As in [`~MCVDPipeline.__call__`].
            num_frames (`int`, *optional*): Frames to make. `None`: no end (prediction and generation only).
            output_type (`str`, *optional*, defaults to `"pil"`): As in `__call__`, of each block.
            **kwargs: As in `__call__`, but for `latents`, `return_dict`, `return_given_frames` and
                `output_uncertainty`, which a stream does not have.

        Yields:
            Blocks of frames `(B, n, ...)`, the same frames that `__call__` makes with the same generator. In time order,
            those of a schedule that leaps ahead as soon as all before them are there; but past prediction by a network of
            blocks goes backwards from block to block. Without an end no schedule leaps ahead: windows go forwards one after
            the other, whatever the pipeline's `frame_schedule`.

        Raises:
            ValueError: As in `__call__`, when the method is called, not when the first block is asked for.
        """
        unknown = set(kwargs) - ({field.name for field in fields(Call)} - {"latents"})
        if unknown:
            raise TypeError(f"`stream` has no arguments {sorted(unknown)}.")
        kwargs.setdefault("max_parallel_windows", 1)  # frames are given away as soon as they are there
        call = Call(past_frames, future_frames, num_frames, output_type=output_type, **kwargs)
        endless = num_frames is None and future_frames is None and call.observed_frames is None
        request = read_request(self, call, endless=endless)
        if request.plan.adaptive is not None:
            raise ValueError(
                "`frame_schedule` is adaptive, so that each video has windows of its own: call the pipeline, or stream by"
                " another schedule."
            )
        if request.overwrites_given:
            raise ValueError(
                "`overwrite_given=True` changes frames that a stream has given away: call the pipeline, or leave it out."
            )
        self._begin(request)

        def run() -> Iterator:
            made = self._generate(request)
            try:
                for block in _in_time_order(made, request) if request.plan.is_in_time_order else (x for _, x in made):
                    # A copy, because the next blocks read these frames.
                    block = block.clone() if output_type == "latent" else self.normalizer.decode(block)
                    yield self._postprocess(block, output_type)
            finally:  # also when the caller stops listening
                made.close()
                self.maybe_free_model_hooks()

        return run()

    # ------------------------------------------------------------------------------------------------------------
    # The loop over windows, and the loop over denoising steps

    def _begin(self, request: Request) -> None:
        """What callbacks may ask the pipeline for during a call."""
        self._guidance_scale, self._interrupt = request.step_options["guidance_scale"], False
        self._num_timesteps = request.num_steps

    def _generate(self, request: Request) -> Iterator[tuple[Window, torch.Tensor]]:
        """Yield each window of the request with its latent frames, (num_videos, n, C, H, W) in [-1, 1]."""
        num_videos = request.num_videos
        chunk_size = request.max_batch_size or num_videos * max(map(len, request.batches or [[0]]))
        num_steps = request.num_steps * request.step_options["num_resamples"]
        plan, carried = request.plan, None
        if self.context_encoder is not None:
            carried = CarriedContext(self.context_encoder, self.unet.config, request.given)

        def total() -> float:
            if plan.num_windows is None:
                return float("inf")
            if request.batches is None:  # there may be very many
                return plan.num_windows * -(-num_videos // chunk_size) * num_steps
            return sum(-(-len(batch) * num_videos // chunk_size) for batch in request.batches) * num_steps

        def divide() -> None:
            """Take fewer videos at a time, after memory did not suffice."""
            nonlocal chunk_size
            # One stream for the whole batch cannot be divided, nor gone back in.
            if chunk_size == 1 or isinstance(request.seeds, NoiseSequence):
                raise
            chunk_size = (chunk_size + 1) // 2
            bar.total = total()

        def generate(jobs: list[Job], frames: dict[int, torch.Tensor]) -> list[torch.Tensor]:
            self._block_index = jobs[0][0]
            bar.set_description(f"block {jobs[0][0] + 1}/{plan.num_windows or '?'}")
            layouts = [plan.lay_out(window) for _, window in jobs]
            conditions = self._fill_windows(layouts, frames, request)  # a row for each window and video
            context = None
            while carried is not None and context is None:  # then there is one window
                try:
                    context = carried.before(jobs[0][1], layouts[0], conditions["sample"][:, :0], chunk_size)
                except torch.OutOfMemoryError:
                    divide()
            made = []
            while len(made) < len(jobs) * num_videos:
                chunk = slice(len(made), min(len(made) + chunk_size, len(jobs) * num_videos))
                rows = [divmod(row, num_videos) for row in range(chunk.start, chunk.stop)]  # (job, video)
                initial = None
                if request.latents is not None:
                    initial = torch.stack([request.noise_of(jobs[job][0], video) for job, video in rows])
                if isinstance(request.seeds, NoiseSequence):
                    generator = request.seeds
                else:
                    keys = [(*request.seeds[video], jobs[job][0]) for job, video in rows]
                    generator = [
                        torch.Generator(request.generator_device).manual_seed(keyed_seed(*key)) for key in keys
                    ]
                try:
                    made += self.denoise(
                        **{name: x if x is None else x[chunk] for name, x in conditions.items()},
                        generator=generator,
                        latents=initial,
                        context=None if context is None else context.rows(chunk),
                        bar=bar,
                        **request.step_options,
                    )
                except torch.OutOfMemoryError:
                    divide()
            made = torch.stack(made)
            if not torch.isfinite(made).all():
                weights = "the network's weights" if carried is None else "the weights of network or context encoder"
                raise RuntimeError(
                    f"Block {jobs[0][0] + 1} has values that are NaN or infinite: {weights}, its precision"
                    f" ({self.unet.dtype}) or a callback made them. Try `pipe.to(torch.float32)`."
                )
            latent_slots = [slot for slot, role in enumerate(layouts[0].roles) if role == FrameRole.LATENT]
            chosen = [[latent_slots.index(slot) for slot in layout.made] for layout in layouts]
            blocks = [block[:, slots] for block, slots in zip(made.split(num_videos), chosen)]
            if carried is not None:
                carried.add(jobs[0][1].latent, blocks[0])
            return blocks

        with self.progress_bar(total=total()) as bar:
            if plan.adaptive is not None:
                yield from self._generate_adaptively(request, generate)
                return
            made = rollout(plan.windows, request.given, generate, memory=plan.memory, batches=request.batches)
            for window, block in made:
                yield window, block
                if self._interrupt:
                    return

    def _generate_adaptively(self, request: Request, generate: Callable) -> Iterator[tuple[Window, torch.Tensor]]:
        """As `_generate`, one video after the other, since the windows of each depend on its frames."""
        videos = []
        for video in range(request.num_videos):
            if self._interrupt:  # the rest is not begun
                break
            finished = {position: frames[video] for position, frames in request.given.items()}
            vectors = {}

            def vector(position: int) -> torch.Tensor:
                if position not in vectors:
                    vectors[position] = self._embed(finished[position], request.frame_embedding)
                    lengths = {len(x) for x in vectors.values()}
                    if len(lengths) > 1:
                        raise ValueError(f"`frame_embedding` must make vectors of one length, got {sorted(lengths)}.")
                return vectors[position]

            def distance(first: int, second: int) -> float:
                return float((vector(first) - vector(second)).square().sum())

            # `generate` makes the videos that are in the frames it gets: here one.
            seeds = request.seeds if isinstance(request.seeds, NoiseSequence) else [request.seeds[video]]
            alone = replace(
                request,
                plan=replace(request.plan, windows=request.plan.adaptive(distance), adaptive=None),
                given={position: frame[None] for position, frame in finished.items()},
                low_resolution={p: x[video : video + 1] for p, x in request.low_resolution.items()},
                batch_size=1,
                ensemble_size=1,
                seeds=seeds,
            )
            given = dict(finished)
            for window, block in self._generate(alone):
                finished.update(zip(window.latent, block[0].unbind(dim=0)))
                if self._interrupt:
                    break
            videos.append({p: frame for p, frame in finished.items() if p not in given})
        # Interrupted, those that were finished, or what there is of the first.
        videos = [video for video in videos if len(video) == max(map(len, videos))]
        positions = sorted(videos[0])
        frames = [torch.stack([video[position] for position in positions]) for video in videos]
        yield Window((), tuple(positions)), torch.stack(frames)

    def _embed(self, frame: torch.Tensor, embedding: Callable | None) -> torch.Tensor:
        """The vector of a frame (C, H, W) in [-1, 1] that adaptive schedules compare."""
        vector = frame
        if embedding is not None:
            vector = embedding(self.normalizer.decode(frame[None, None])[0, 0])
            if not torch.is_tensor(vector) or vector.is_complex() or vector.numel() == 0:
                raise ValueError(
                    "`frame_embedding` must make a tensor of real numbers of a frame (C, H, W), got"
                    f" {tuple(vector.shape) if torch.is_tensor(vector) else type(vector).__name__}."
                )
        vector = vector.detach().flatten().cpu().double()
        if not vector.isfinite().all():
            raise ValueError("`frame_embedding` made a vector with values that are NaN or infinite.")
        return vector

    @torch.no_grad()
    def denoise(
        self,
        sample: torch.Tensor,
        roles: torch.Tensor,
        *,
        frame_indices: torch.Tensor | None = None,
        low_resolution: torch.Tensor | None = None,
        context: ContextOutput | None = None,
        generator: list[torch.Generator] | torch.Generator | NoiseSequence | None = None,
        latents: torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        history_guidance: list[tuple[list[int] | None, float]] | None = None,
        replacement: str | dict[str, str] | None = None,
        num_resamples: int = 1,
        reconstruction_guidance: float = 0.0,
        super_resolution_guidance: float = 1.0,
        observed_noise: float = 0.0,
        final_denoise: bool = False,
        cache_conditioning: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        bar=None,
    ) -> torch.Tensor:
        """
        The sampling loop: denoise the LATENT frames of one window (MCVD, algorithm 1, with any of Diffusers' schedulers).

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`):
                The window with its OBSERVED frames. What stands at the others is not read.
            roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame; the same frames are LATENT in all rows.
            frame_indices (`torch.Tensor` of shape `(B, T)`, *optional*):
                Positions in the video; if not given consecutive, those beside a window being its first.
            low_resolution (`torch.Tensor` of shape `(B, T, C, h, w)`, in `[-1, 1]`, *optional*):
                What frames look like small; NaN where that is not known.
            context ([`ContextOutput`], *optional*):
                What the pipeline's context encoder knows of the frames before the window, with a `mean` for each LATENT frame, if
                any. A pipeline that has such an encoder needs it.
            generator (`list[torch.Generator]`, *optional*):
                One random stream for each video, or one for all; or a [`NoiseSequence`].
            latents (`torch.Tensor` of shape `(B, k, C, H, W)`, *optional*): The initial noise, N(0, 1).
            bar (*optional*): A progress bar, updated once a step.
            replacement (`str` or `dict`, *optional*): As in `__call__`, but `None` is `"none"`: the network reads given frames.
            num_inference_steps, timesteps, sigmas, eta, guidance_scale, history_guidance, num_resamples, reconstruction_guidance,
                super_resolution_guidance, observed_noise, final_denoise, cache_conditioning,
                callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`~MCVDPipeline.__call__`].

        Returns:
            `torch.Tensor` of shape `(B, k, C, H, W)`, float32: The LATENT frames, about `[-1, 1]`, not clamped.
        """
        device, replacement = self._execution_device, None if replacement == "none" else replacement
        check_replacement(replacement)
        if context is None and self.context_encoder is not None:
            raise ValueError(
                "`context` must be given: what `pipe.context_encoder` knows of the frames before this window, such as"
                " `pipe.context_encoder(frames)`."
            )
        context = ContextOutput() if context is None else context
        # Schedulers remember former steps; setting the timesteps makes them forget, so no window sees another's.
        num_inference_steps = num_inference_steps or self.default_num_inference_steps
        options = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        # Timesteps stay on the CPU: asked for one on the device, the scheduler would wait in each step for all that is computed.
        steps = set_timesteps(self.scheduler, options, torch.device("cpu"))
        noise = generator if isinstance(generator, NoiseSequence) else None
        generator = None if noise is not None else generator
        step_takes = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {name: x for name, x in (("eta", eta), ("generator", generator)) if name in step_takes}

        def draw(shape: tuple[int, ...]) -> torch.Tensor:
            drawn = noise.draw(shape) if noise is not None else randn_tensor(shape, generator, device, torch.float32)
            return drawn.to(device, torch.float32)

        # Where frames stand is worked out on the CPU, too.
        sample, roles = sample.to(device, torch.float32), roles.cpu()
        is_latent = roles == FrameRole.LATENT
        if not (is_latent == is_latent[:1]).all():
            raise ValueError("`roles` must have the same frames LATENT in all rows: denoise the others by themselves.")
        slots = is_latent[0].nonzero().flatten()
        if frame_indices is None:
            num_beside = self.unet.config.get("num_context_frames", 0)
            counts = (num_beside, roles.shape[1] - num_beside)
            frame_indices = torch.cat([torch.arange(count) for count in counts]).expand_as(roles)
        shape = (len(sample), len(slots), *sample.shape[2:])
        if context.mean is not None and context.mean.shape != shape:
            raise ValueError(
                f"`context` must have a `mean` of shape {shape}, a frame for each LATENT one, got {tuple(context.mean.shape)}."
            )
        latents = draw(shape) if latents is None else latents.to(device, torch.float32)
        latents = latents * getattr(self.scheduler, "init_noise_sigma", 1.0)
        if observed_noise:
            is_observed = (roles == FrameRole.OBSERVED).to(device)
            sample = add_observed_noise(sample, is_observed, draw(tuple(sample.shape)), observed_noise)
        self._guidance_scale = guidance_scale
        if context.mean is not None:
            mean = context.mean.to(device, torch.float32)
            if low_resolution is not None:  # of what is denoised
                low_resolution = low_resolution.to(sample)
                small = downsample(mean, low_resolution.shape[-2:])
                low_resolution = low_resolution.index_add(1, slots.to(device), small, alpha=-1) / context.scale
        predict = GuidedPrediction(
            self,
            sample,
            roles,
            frame_indices.cpu(),
            slots=slots,
            low_resolution=low_resolution,
            draw=draw,
            context=context.features,
            observed_noise=observed_noise,
            timesteps=steps,
            history_guidance=history_guidance,
            replacement=replacement,
            reconstruction_guidance=reconstruction_guidance,
            super_resolution_guidance=super_resolution_guidance,
            cache_conditioning=cache_conditioning,
        )

        for i, t in enumerate(steps):
            for repetition in range(num_resamples):
                if self._interrupt:
                    continue
                noisy = latents
                if hasattr(self.scheduler, "scale_model_input"):
                    noisy = self.scheduler.scale_model_input(latents, t)
                prediction = predict(noisy, t, i)
                is_last = i == len(steps) - 1
                before = dict(vars(self.scheduler)) if num_resamples > 1 else {}
                with noise.replacing_randn(is_last=is_last) if noise is not None else contextlib.nullcontext():
                    latents = self.scheduler.step(prediction, t, latents, **step_kwargs, return_dict=False)[0]
                if repetition < num_resamples - 1:
                    latents = self._step_back(latents, draw, t, None if is_last else steps[i + 1], before)
                if bar is not None:
                    bar.update()
            if callback_on_step_end is not None and not self._interrupt:
                callback_kwargs = {}
                for name in callback_on_step_end_tensor_inputs:
                    callback_kwargs[name] = locals()[name]
                outputs = callback_on_step_end(self, i, t, callback_kwargs)
                latents = _replaced_latents(outputs, latents)

        if final_denoise and not self._interrupt:
            # The original numbers its steps 0, 1, 2, ... and tells the network the number of the last one instead of
            # its noise level; in Diffusers' convention that is this timestep.
            label_timestep = steps.new_tensor(self.unet.config.num_train_timesteps - len(steps))
            sigma = (1 - self.scheduler.alphas_cumprod[steps[-1].long()]) ** 0.5
            latents = latents - sigma.to(latents) * predict(
                latents, steps[-1], len(steps) - 1, told=label_timestep.to(device)
            )
        return latents if context.mean is None else mean + context.scale * latents

    def _step_back(
        self,
        latents: torch.Tensor,
        draw: Callable[[tuple[int, ...]], torch.Tensor],
        timestep: torch.Tensor,
        next_timestep: torch.Tensor | None,
        scheduler_before: dict,
    ) -> torch.Tensor:
        """Undo a step of the scheduler, and add the noise that it took away."""
        is_clean = next_timestep is None and not hasattr(self.scheduler, "sigmas")
        level = (1.0, 0.0) if is_clean else sampling_level(self.scheduler, next_timestep)
        vars(self.scheduler).update(scheduler_before)
        noisier = sampling_level(self.scheduler, timestep)
        # Some schedulers keep frames of full signal under growing noise, which they scale for the network.
        is_scaled = getattr(self.scheduler, "init_noise_sigma", 1.0) != 1.0
        latents = latents * level[0] if is_scaled else latents
        latents = one_step_back(latents, draw(latents.shape), level=level, noisier=noisier)
        return latents / noisier[0] if is_scaled else latents

    # ------------------------------------------------------------------------------------------------------------
    # Frames

    def _fill_windows(
        self, layouts: list[Layout], frames: dict[int, torch.Tensor], request: Request
    ) -> dict[str, torch.Tensor | None]:
        """Windows as `denoise` takes them, one row for each window and video."""
        device, num_videos, length = self._execution_device, request.num_videos, len(layouts[0].roles)
        sample = torch.zeros(len(layouts), num_videos, length, *request.frame_shape, device=device)
        small = next(iter(request.low_resolution.values()), None)
        low_resolution = None
        if small is not None:
            low_resolution = torch.full((*sample.shape[:3], *small.shape[1:]), torch.nan, device=device)
        for job, layout in enumerate(layouts):
            for slot, (position, role) in enumerate(zip(layout.positions, layout.roles)):
                if role == FrameRole.OBSERVED:
                    sample[job, :, slot] = frames[position]
                elif role == FrameRole.LATENT and position in request.low_resolution:
                    low_resolution[job, :, slot] = request.low_resolution[position]
        indices, roles = (
            torch.tensor([list(map(int, x)) for x in rows]).repeat_interleave(num_videos, dim=0)
            for rows in ([layout.positions for layout in layouts], [layout.roles for layout in layouts])
        )
        return {
            "sample": sample.flatten(0, 1),
            "roles": roles,
            "frame_indices": indices,
            "low_resolution": None if low_resolution is None else low_resolution.flatten(0, 1),
        }

    def _with_given_frames(
        self, frames: torch.Tensor, positions: list[int], request: Request, *, is_latent: bool
    ) -> torch.Tensor:
        """Generated frames (num_videos, n, C, H, W) at positions, with the given ones as they came, or as the network sees them."""
        video = dict(zip(positions, frames.unbind(dim=1)))
        for position, frame in request.as_given.items():
            if position in video:  # overwritten
                continue
            repeated = frame.repeat_interleave(request.ensemble_size, dim=0)
            video[position] = (request.given[position] if is_latent else repeated).to(frames)
        return torch.stack([video[position] for position in sorted(video)], dim=1)

    def _postprocess(self, frames: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list:
        if output_type in ("latent", "pt"):
            return frames
        if output_type == "pil":
            frames = self.normalizer.to_display(frames)
        return self.video_processor.postprocess_video(frames.transpose(1, 2), output_type)

    @staticmethod
    def register_attention() -> None:
        """
        Tell Diffusers what the networks' attention returns when a guider leaves its branch out, the residual alone. Not at
        import: Diffusers' table imports the processors of all its networks.
        """
        for processor, residual in (
            (MCVDAttnProcessor, lambda attn, hidden_states, context=None: hidden_states / 2**0.5),
            (LGCVDAttnProcessor, lambda attn, hidden_states, memory=None: hidden_states / 2**0.5),
            (SpaceTimeAttnProcessor, lambda attn, hidden_states, context: hidden_states),
        ):
            AttentionProcessorRegistry.register(processor, AttentionProcessorMetadata(residual))


def _in_time_order(made: Iterator[tuple[Window, torch.Tensor]], request: Request) -> Iterator[torch.Tensor]:
    """Finished frames in time order, as many together as are there."""
    waiting, position = {}, 0
    for window, block in made:
        waiting.update(zip(window.latent, block.unbind(dim=1)))
        ready = []
        while position in waiting or position in request.as_given:
            if position in waiting:
                ready.append(waiting.pop(position))
            position += 1
        if ready:
            yield torch.stack(ready, dim=1)


def _check_defaults(
    *,
    frame_schedule: str | None = None,
    step: int | None = None,
    replacement: str | None = None,
    reconstruction_guidance: float = 0.0,
    num_inference_steps: int | None = None,
) -> None:
    """The defaults of a call that a pipeline carries."""
    if frame_schedule is not None and (
        not isinstance(frame_schedule, str) or schedule_name(frame_schedule) not in FRAME_SCHEDULES
    ):
        raise ValueError(
            f"`frame_schedule` must be one of {FRAME_SCHEDULES} or None, got {reprlib.repr(frame_schedule)}."
        )
    for name, value in (("step", step), ("num_inference_steps", num_inference_steps)):
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value is not None and not is_count:
            raise ValueError(f"`{name}` must be a positive integer or None, got {reprlib.repr(value)}.")
    if replacement is not None and replacement not in REPLACEMENTS:
        raise ValueError(f"`replacement` must be one of {REPLACEMENTS} or None, got {reprlib.repr(replacement)}.")
    if not is_number(reconstruction_guidance) or not 0 <= reconstruction_guidance <= MOST_GUIDANCE:
        raise ValueError(
            f"`reconstruction_guidance` must be a number from 0 to {MOST_GUIDANCE:g}, got"
            f" {reprlib.repr(reconstruction_guidance)}."
        )
    if reconstruction_guidance and replacement != "noised":
        raise ValueError(
            f'`reconstruction_guidance` is {reconstruction_guidance}, which needs `replacement="noised"`, got {replacement!r}.'
        )


def _replaced_latents(outputs: dict | None, latents: torch.Tensor) -> torch.Tensor:
    """The latents that a callback returned, or those that it did not replace."""
    if outputs is not None and not isinstance(outputs, dict):
        raise ValueError(f"`callback_on_step_end` must return a dictionary or None, got {type(outputs).__name__}.")
    replaced = (outputs or {}).get("latents", latents)
    if not torch.is_tensor(replaced) or replaced.shape != latents.shape or not replaced.is_floating_point():
        got = f"{tuple(replaced.shape)}, {replaced.dtype}" if torch.is_tensor(replaced) else type(replaced).__name__
        raise ValueError(
            f"`callback_on_step_end` returned latents {got} in place of {tuple(latents.shape)}, {latents.dtype}."
        )
    return replaced.to(latents)
