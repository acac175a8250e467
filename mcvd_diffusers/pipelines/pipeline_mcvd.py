r"""`MCVDPipeline`: prediction, past prediction, interpolation and generation with one masked network.

Source: MCVD (https://huggingface.co/papers/2205.09853), section 3.3 and algorithm 1. The sampling loop is
[`MCVDPipeline.denoise`]; what is looped over, block by block, is a frame schedule ([`mcvd_diffusers.frame_schedules`]).
"""

import contextlib
import copy
import functools
import inspect
import itertools
import math
import numbers
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.guiders import BaseGuidance
from diffusers.hooks._helpers import AttentionProcessorMetadata, AttentionProcessorRegistry
from diffusers.hooks.group_offloading import _is_group_offload_enabled
from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput, logging, replace_example_docstring
from diffusers.utils.torch_utils import randn_tensor
from diffusers.video_processor import VideoProcessor

from mcvd_diffusers.frame_schedules import Window, blocks
from mcvd_diffusers.guidance import check_guider, classifier_free_guidance, guider_prediction
from mcvd_diffusers.hub import CheckedPipelineMixin
from mcvd_diffusers.masking import FrameRole
from mcvd_diffusers.models import MCVDUNet2DModel
from mcvd_diffusers.models.unet_mcvd import MCVDAttnProcessor
from mcvd_diffusers.normalization import FrameNormalizer
from mcvd_diffusers.publishing import PublishedPipelineMixin
from mcvd_diffusers.randomness import NoiseSequence, keyed_seed

from .frame_inputs import Frames, read_frames
from .rollout import first_slot, rollout


logger = logging.get_logger(__name__)

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
        uncertainty (`torch.Tensor` or `np.ndarray`, *optional*):
            Standard deviation over the ensemble of each pixel, in the units of `frames`, one map for each input
            video: `(B, T, C, H, W)`, or `(B, T, H, W, C)` for `"np"` and `"pil"`.
    """

    frames: torch.Tensor | np.ndarray | list
    uncertainty: torch.Tensor | np.ndarray | None = None


@dataclass
class _Request:
    """One validated call of the pipeline."""

    windows: list[Window] | Iterator[Window]
    num_windows: int | None  # None: no end
    given: dict[int, torch.Tensor]  # position -> (B, C, H, W) in [-1, 1]
    past: torch.Tensor | None  # as given, in [0, 1] or the user's units: (batch, p', C, H, W)
    future: torch.Tensor | None
    batch_size: int  # input videos
    ensemble_size: int
    frame_shape: tuple[int, int, int]
    # (seed of the video, number of the ensemble member), one for each output video; or one stream for all of them
    seeds: list[tuple[int, int]] | NoiseSequence
    generator_device: torch.device
    latents: torch.Tensor | None
    max_batch_size: int | None
    step_options: dict = field(default_factory=dict)  # what `denoise` takes

    @property
    def num_videos(self) -> int:
        return self.batch_size * self.ensemble_size

    def given_frames(self, like: torch.Tensor, normalizer: FrameNormalizer | None) -> list[torch.Tensor]:
        """
        The frames before and after those to be made, once for each output video, (num_videos, T, C, H, W), as they came
        or, with a normalizer, as the network sees them.
        """
        sides = []
        for frames in (self.past, self.future):
            if frames is None:
                sides.append(like[:, :0])
                continue
            frames = frames if normalizer is None else normalizer.encode(frames)
            sides.append(frames.repeat_interleave(self.ensemble_size, dim=0).to(like))
        return sides


class MCVDPipeline(CheckedPipelineMixin, PublishedPipelineMixin, DiffusionPipeline):
    r"""
    Pipeline for video prediction, past prediction, interpolation and generation. Which one follows from what is given:

    | given | task |
    | --- | --- |
    | `past_frames` | prediction of `num_frames` frames after them, block by block |
    | `future_frames` | prediction of `num_frames` frames before them |
    | both | interpolation: `num_frames` frames between them |
    | neither | generation of `num_frames` frames |

    This model inherits from [`DiffusionPipeline`]: see there for loading, saving, devices and offloading.

    Args:
        unet ([`MCVDUNet2DModel`]): The network.
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
    """

    model_cpu_offload_seq = "unet"
    _optional_components = ["guider"]
    _callback_tensor_inputs = ["latents"]

    def __init__(
        self,
        unet: MCVDUNet2DModel,
        scheduler: SchedulerMixin,
        final_denoise: bool = False,
        normalization: dict | None = None,
        guider: BaseGuidance | None = None,
    ) -> None:
        super().__init__()
        for name, value, base in (
            ("unet", unet, torch.nn.Module),  # of this package, or such a one compiled
            ("scheduler", scheduler, SchedulerMixin),
            ("guider", guider, BaseGuidance),
        ):
            if not isinstance(value, base) and not (name == "guider" and value is None):
                raise ValueError(f"`{name}` must be an object, a {base.__name__}, got {reprlib.repr(value)}.")
        if not isinstance(final_denoise, bool):
            raise ValueError(f"`final_denoise` must be True or False, got {final_denoise!r}.")
        self.normalizer = FrameNormalizer.from_config(normalization)
        self.normalizer.num_channels(unet.config.in_channels)  # raises if it is for another network
        self.register_modules(unet=unet, scheduler=scheduler, guider=guider)
        self.register_to_config(final_denoise=final_denoise, normalization=normalization)
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
        """As in the base class: `normalization` must be a map."""
        FrameNormalizer.from_config(options.get("normalization"))

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
        in progress is returned as it is, and no further block is begun.
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
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 100,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
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
                Frames before those to be made, in time order, at most as many as the network reads. A tensor
                `(B, T, C, H, W)` or `(T, C, H, W)`; an array `(B, T, H, W, C)` as Diffusers returns them, or
                `(B, T, C, H, W)` (told apart by the network's number of channels), or without `B`; a list of
                `PIL.Image`s, or a list of such lists; a list of tensors or arrays, one each video. Floats in
                `[0, 1]`, or `uint8` in `[0, 255]`; with a `normalization`, numbers of any type in the units of the
                training data, NaN where missing if it has a fill. Fewer frames than the network reads: the others are ABSENT, if the
                network was trained with masks.
            future_frames (`torch.Tensor`, `np.ndarray` or `list`, *optional*): Frames after those to be made.
            num_frames (`int`, *optional*):
                How many frames to make, by default one block. Any number; an interpolation needs at least one block.
            batch_size (`int`, *optional*, defaults to 1): Number of videos, when no frames are given.
            height (`int`, *optional*): Height when no frames are given, by default the network's `sample_size`.
            width (`int`, *optional*): Width when no frames are given, by default the network's `sample_size`.
            num_inference_steps (`int`, *optional*, defaults to 100): Denoising steps a block.
            timesteps (`list[int]`, *optional*): Own timesteps, if the scheduler takes them.
            sigmas (`list[float]`, *optional*): Own noise levels, if the scheduler takes them.
            eta (`float`, *optional*, defaults to 0.0): DDIM's stochasticity, for schedulers that know it.
            guidance_scale (`float`, *optional*, defaults to 1.0):
                Classifier-free guidance over absent frames: 1 is none, above 1 follows the given frames more closely.
                Doubles the cost. The network must have been trained with masks. For other kinds of guidance give the
                pipeline a `guider`.
            ensemble_size (`int`, *optional*, defaults to 1): How many different videos to make for each input.
            generator (`torch.Generator`, `list[torch.Generator]` or [`NoiseSequence`], *optional*):
                Randomness. Each video, ensemble member and block has a random stream of its own, seeded by a number
                that is drawn for the video from `generator` (from the i-th of a list). So video `i` does not depend
                on the batch size, member `j` not on the ensemble's size, and streaming gives the same frames. With a
                [`NoiseSequence`] all noise comes from one stream in the original's order instead, to repeat its
                samples; then `max_batch_size` cannot divide the batch.
            latents (`torch.Tensor` of shape `(B * ensemble_size, blocks * k, C, H, W)`, *optional*):
                The initial noise, block after block in the order in which they are made (`k` frames each, also when
                the last is not needed whole).
            final_denoise (`bool`, *optional*, defaults to the pipeline's `final_denoise`):
                The original's last network call: subtracts what the network still takes for noise after the last
                step. For reproducing published numbers only. The call tells the network a noise level that is too
                high unless the steps are all 1000, which costs about 4 % of the contrast at 100 steps.
            cache_conditioning (`bool`, *optional*, defaults to `True`):
                Compute what depends on given frames only once a block instead of once a step. `False` saves memory.
            max_batch_size (`int`, *optional*):
                Videos that go through the network together, by default all. When the accelerator's memory does not
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
                `pipe._guidance_scale` changes the guidance for the rest of the block.
            callback_on_step_end_tensor_inputs (`list[str]`, *optional*, defaults to `["latents"]`):
                What the callback gets in `kwargs`; `"latents"` is all there is, `(b, k, C, H, W)`.

        Examples:

        Returns:
            [`MCVDPipelineOutput`] or `tuple`:
                With `return_dict=False` a tuple of the frames and, if asked for, the uncertainty.

        Raises:
            ValueError: If an argument does not fit the network, the scheduler or the others; before any work.
        """
        if output_uncertainty and ensemble_size == 1:
            raise ValueError("`output_uncertainty=True` needs several futures to compare: pass `ensemble_size` > 1.")
        request = self._check_request(
            past_frames=past_frames,
            future_frames=future_frames,
            num_frames=num_frames,
            batch_size=batch_size,
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            sigmas=sigmas,
            eta=eta,
            guidance_scale=guidance_scale,
            ensemble_size=ensemble_size,
            generator=generator,
            latents=latents,
            final_denoise=final_denoise,
            cache_conditioning=cache_conditioning,
            max_batch_size=max_batch_size,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            callback_on_step_end_tensor_inputs=callback_on_step_end_tensor_inputs,
        )
        made = {}
        for window, block in self._generate(request):
            made.update(zip(window.latent, block.unbind(dim=1)))
        frames = torch.stack([made[position] for position in sorted(made)], dim=1)
        if output_type != "latent":
            frames = self.normalizer.decode(frames)

        uncertainty = None
        if output_uncertainty:
            uncertainty = frames.unflatten(0, (request.batch_size, ensemble_size)).std(dim=1)
        if return_given_frames:
            before, after = request.given_frames(frames, self.normalizer if output_type == "latent" else None)
            frames = torch.cat([before, frames, after], dim=1)
            if output_uncertainty:  # given frames are certain
                padding = (0, 0, 0, 0, 0, 0, before.shape[1], after.shape[1])
                uncertainty = torch.nn.functional.pad(uncertainty, padding)

        frames = self._postprocess(frames, output_type)
        if uncertainty is not None and output_type in ("np", "pil"):
            uncertainty = uncertainty.movedim(2, -1).cpu().numpy()
        self.maybe_free_model_hooks()
        if not return_dict:
            return (frames, uncertainty) if output_uncertainty else (frames,)
        return MCVDPipelineOutput(frames=frames, uncertainty=uncertainty)

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
            Blocks of frames `(B, n, ...)`, the same frames that `__call__` makes with the same generator. In time
            order, except that past prediction goes backwards from block to block.

        Raises:
            ValueError: As in `__call__`, when the method is called, not when the first block is asked for.
        """
        unknown = set(kwargs) - (set(inspect.signature(self._check_request).parameters) - {"latents"})
        if unknown:
            raise TypeError(f"`stream` has no arguments {sorted(unknown)}.")
        request = self._check_request(
            past_frames=past_frames,
            future_frames=future_frames,
            num_frames=num_frames,
            endless=num_frames is None and future_frames is None,
            output_type=output_type,
            **kwargs,
        )

        def run() -> Iterator:
            made = self._generate(request)
            try:
                for _, block in made:
                    # A copy, because the next blocks read these frames.
                    block = block.clone() if output_type == "latent" else self.normalizer.decode(block)
                    yield self._postprocess(block, output_type)
            finally:  # also when the caller stops listening
                made.close()
                self.maybe_free_model_hooks()

        return run()

    # ------------------------------------------------------------------------------------------------------------
    # The loop over windows, and the loop over denoising steps

    def _generate(self, request: _Request) -> Iterator[tuple[Window, torch.Tensor]]:
        """Yield each window of the request with its latent frames, (num_videos, n, C, H, W) in [-1, 1]."""
        config, device = self.unet.config, self._execution_device
        slots = {name: config[name] for name in ("num_past_frames", "num_frames", "num_future_frames")}
        size = config.num_frames
        chunk_size = request.max_batch_size or request.num_videos
        num_steps = len(self._set_timesteps(request.step_options, device))

        def total() -> float:
            num_chunks = -(-request.num_videos // chunk_size)
            return (float("inf") if request.num_windows is None else request.num_windows) * num_steps * num_chunks

        def generate(number: int, window: Window, frames: dict[int, torch.Tensor]) -> torch.Tensor:
            nonlocal chunk_size
            self._block_index = number
            bar.set_description(f"block {number + 1}/{request.num_windows or '?'}")
            start = first_slot(window, **slots)
            sample, roles = self._fill_window(start, frames, request)
            made = []
            while len(made) < request.num_videos:
                chunk = slice(len(made), min(len(made) + chunk_size, request.num_videos))
                initial = None
                if request.latents is not None:
                    initial = request.latents[chunk, number * size : (number + 1) * size]
                if isinstance(request.seeds, NoiseSequence):
                    generator = request.seeds
                else:
                    generator = _window_generators(request.seeds[chunk], number, request.generator_device)
                try:
                    made += self.denoise(
                        sample[chunk],
                        roles[chunk],
                        generator=generator,
                        latents=initial,
                        bar=bar,
                        **request.step_options,
                    )
                except torch.OutOfMemoryError:
                    # One stream for the whole batch cannot be divided, nor gone back in.
                    if chunk_size == 1 or isinstance(generator, NoiseSequence):
                        raise
                    chunk_size = (chunk_size + 1) // 2
                    bar.total = total()
            if not torch.isfinite(torch.stack(made)).all():
                raise RuntimeError(
                    f"Block {number + 1} has values that are NaN or infinite: the network's weights, its precision"
                    f" ({self.unet.dtype}) or a callback made them. Try `pipe.to(torch.float32)`."
                )
            offset = min(window.latent) - start - slots["num_past_frames"]
            return torch.stack(made)[:, offset : offset + len(window.latent)]

        with self.progress_bar(total=total()) as bar:
            # A schedule that is not written out runs forwards and reads the last frames.
            memory = None if isinstance(request.windows, list) else config.num_past_frames
            for window, block in rollout(request.windows, request.given, generate, memory=memory):
                yield window, block
                if self._interrupt:
                    return

    @torch.no_grad()
    def denoise(
        self,
        sample: torch.Tensor,
        roles: torch.Tensor,
        *,
        generator: list[torch.Generator] | torch.Generator | NoiseSequence | None = None,
        latents: torch.Tensor | None = None,
        num_inference_steps: int = 100,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        final_denoise: bool = False,
        cache_conditioning: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        bar=None,
    ) -> torch.Tensor:
        """
        The sampling loop: denoise the block of one window (MCVD, algorithm 1, with any of Diffusers' schedulers).

        Args:
            sample (`torch.Tensor` of shape `(B, T, C, H, W)`, in `[-1, 1]`):
                The window with its OBSERVED frames. What stands at the others is not read.
            roles (`torch.Tensor` of shape `(B, T)`): [`FrameRole`] of each frame; the block is LATENT.
            generator (`list[torch.Generator]`, *optional*):
                One random stream for each video, or one for all; or a [`NoiseSequence`].
            latents (`torch.Tensor` of shape `(B, k, C, H, W)`, *optional*): The initial noise, N(0, 1).
            bar (*optional*): A progress bar, updated once a step.
            num_inference_steps, timesteps, sigmas, eta, guidance_scale, final_denoise, cache_conditioning,
                callback_on_step_end, callback_on_step_end_tensor_inputs: As in [`~MCVDPipeline.__call__`].

        Returns:
            `torch.Tensor` of shape `(B, k, C, H, W)`, float32: The block, about `[-1, 1]`, not clamped.
        """
        device = self._execution_device
        # Schedulers remember former steps; setting the timesteps makes them forget, so no window sees another's.
        options = {"num_inference_steps": num_inference_steps, "timesteps": timesteps, "sigmas": sigmas}
        steps = self._set_timesteps(options, device)
        noise = generator if isinstance(generator, NoiseSequence) else None
        generator = None if noise is not None else generator
        step_takes = inspect.signature(self.scheduler.step).parameters
        step_kwargs = {name: x for name, x in (("eta", eta), ("generator", generator)) if name in step_takes}

        if latents is None and noise is not None:
            latents = noise.draw(sample[:, self._block].shape)
        elif latents is None:
            latents = randn_tensor(sample[:, self._block].shape, generator, device, torch.float32)
        latents = latents.to(device, torch.float32) * getattr(self.scheduler, "init_noise_sigma", 1.0)

        # The network with the frames that are given and, for guidance, a second time without them.
        self._guidance_scale = guidance_scale
        absent = torch.where(roles == FrameRole.OBSERVED, FrameRole.ABSENT, roles)
        is_guided = guidance_scale != 1 and bool((roles == FrameRole.OBSERVED).any())
        guider = copy.deepcopy(self.guider)  # it remembers former steps, and no window sees another's
        if guider is not None:
            # One call after the other: a guider may leave one out, or change the network for it.
            _register_attention()
            with_given = self._window_network(sample, roles, cache_conditioning)
            without = self._window_network(sample, absent, cache_conditioning)
        elif is_guided:
            both = torch.cat([sample, sample]), torch.cat([roles, absent])
            with_and_without = self._window_network(*both, cache_conditioning)
        else:
            with_given = self._window_network(sample, roles, cache_conditioning)

        def predict(noisy: torch.Tensor, timestep: torch.Tensor, step: int) -> torch.Tensor:
            if guider is not None:
                calls = (functools.partial(network, noisy, timestep) for network in (with_given, without))
                at = {"step": step, "num_inference_steps": len(steps), "timestep": timestep}
                return guider_prediction(guider, self.unet, *calls, **at)
            if is_guided:
                predictions = with_and_without(torch.cat([noisy, noisy]), timestep).chunk(2)
                return classifier_free_guidance(*predictions, self._guidance_scale)
            return with_given(noisy, timestep)

        for i, t in enumerate(steps):
            if self._interrupt:
                continue
            noisy = latents
            if hasattr(self.scheduler, "scale_model_input"):
                noisy = self.scheduler.scale_model_input(latents, t)
            prediction = predict(noisy, t, i)
            with noise.replacing_randn(is_last=i == len(steps) - 1) if noise is not None else contextlib.nullcontext():
                latents = self.scheduler.step(prediction, t, latents, **step_kwargs, return_dict=False)[0]
            if callback_on_step_end is not None:
                callback_kwargs = {}
                for name in callback_on_step_end_tensor_inputs:
                    callback_kwargs[name] = locals()[name]
                outputs = callback_on_step_end(self, i, t, callback_kwargs)
                latents = _replaced_latents(outputs, latents)
            if bar is not None:
                bar.update()

        if final_denoise and not self._interrupt:
            # The original numbers its steps 0, 1, 2, ... and tells the network the number of the last one instead of
            # its noise level; in Diffusers' convention that is this timestep.
            label_timestep = steps.new_tensor(self.unet.config.num_train_timesteps - len(steps))
            sigma = (1 - self.scheduler.alphas_cumprod[steps[-1].long()]) ** 0.5
            latents = latents - sigma.to(latents) * predict(latents, label_timestep, len(steps) - 1)
        return latents

    def _window_network(
        self, sample: torch.Tensor, roles: torch.Tensor, cache_conditioning: bool
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """The network for one window: a function of the noisy block and the timestep; both blocks (B, k, C, H, W)."""
        # A window of its own: the noisy block is written into it at each step.
        sample = sample.to(self._execution_device, self.unet.dtype, copy=True)
        roles = roles.to(sample.device)
        conditioning = None
        # Group offloading moves weights when a block's `forward` is called, which encoding does not do.
        if cache_conditioning and not _is_group_offload_enabled(self.unet):
            conditioning = self.unet.encode_conditioning(sample, roles)

        def network(noisy: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
            sample[:, self._block] = noisy.to(sample.dtype)
            prediction = self.unet(sample, timestep, roles, conditioning=conditioning, return_dict=False)[0]
            return prediction[:, self._block].float()

        return network

    # ------------------------------------------------------------------------------------------------------------
    # Windows

    @property
    def _block(self) -> slice:
        """Where the block of frames to be denoised stands in the network's window."""
        past = self.unet.config.num_past_frames
        return slice(past, past + self.unet.config.num_frames)

    def _fill_window(
        self, start: int, frames: dict[int, torch.Tensor], request: _Request
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A window (num_videos, T, C, H, W) that starts at a position of the video, and its roles (num_videos, T)."""
        num_window_frames = self.unet.num_window_frames
        sample = torch.zeros(
            request.num_videos, num_window_frames, *request.frame_shape, device=self._execution_device
        )
        roles = torch.full((request.num_videos, num_window_frames), FrameRole.ABSENT, device=sample.device)
        roles[:, self._block] = FrameRole.LATENT
        for position, frame in frames.items():
            sample[:, position - start] = frame
            roles[:, position - start] = FrameRole.OBSERVED
        return sample, roles

    def _set_timesteps(self, options: dict, device: torch.device, scheduler: SchedulerMixin | None = None):
        """Reset the scheduler to its first step; returns its timesteps."""
        scheduler = scheduler or self.scheduler
        for name in ("timesteps", "sigmas"):
            if options[name] is not None:
                if name not in inspect.signature(scheduler.set_timesteps).parameters:
                    raise ValueError(f"`{name}`: {type(scheduler).__name__} does not take own {name}.")
                scheduler.set_timesteps(device=device, **{name: options[name]})
                return scheduler.timesteps
        scheduler.set_timesteps(options["num_inference_steps"], device=device)
        return scheduler.timesteps

    def _postprocess(self, frames: torch.Tensor, output_type: str) -> torch.Tensor | np.ndarray | list:
        if output_type in ("latent", "pt"):
            return frames
        if output_type == "pil":
            frames = self.normalizer.to_display(frames)
        return self.video_processor.postprocess_video(frames.transpose(1, 2), output_type)

    # ------------------------------------------------------------------------------------------------------------
    # Checks, all before the first network call

    def _check_request(
        self,
        *,
        past_frames: Frames | None = None,
        future_frames: Frames | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 100,
        timesteps: list[int] | None = None,
        sigmas: list[float] | None = None,
        eta: float = 0.0,
        guidance_scale: float = 1.0,
        ensemble_size: int = 1,
        generator: torch.Generator | list[torch.Generator] | NoiseSequence | None = None,
        latents: torch.Tensor | None = None,
        final_denoise: bool | None = None,
        cache_conditioning: bool = True,
        max_batch_size: int | None = None,
        output_type: str = "pil",
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],
        endless: bool = False,
    ) -> _Request:
        """Check a call whole, and say what is to be done. The arguments are those of `__call__` and `stream`."""
        config = self.unet.config
        for name, value in (
            ("num_frames", num_frames),
            ("batch_size", batch_size),
            ("height", height),
            ("width", width),
            ("num_inference_steps", num_inference_steps),
            ("ensemble_size", ensemble_size),
            ("max_batch_size", max_batch_size),
        ):
            if value is not None and (
                not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1
            ):
                raise ValueError(f"`{name}` must be a positive integer, got {value!r}.")
        if num_inference_steps is None or ensemble_size is None:
            raise ValueError("`num_inference_steps` and `ensemble_size` must be positive integers, got None.")
        if num_inference_steps > config.num_train_timesteps:
            raise ValueError(
                f"`num_inference_steps` must be at most {config.num_train_timesteps}, the timesteps of this network's"
                f" training, got {num_inference_steps}."
            )
        if output_type not in ("pil", "np", "pt", "latent"):
            raise ValueError(f'`output_type` must be "pil", "np", "pt" or "latent", got {output_type!r}.')
        num_channels = self.normalizer.num_channels(config.in_channels)
        if output_type == "pil" and num_channels not in (1, 3, 4):
            raise ValueError(
                f'`output_type="pil"`: frames of {num_channels} channels are no images; use "np" or "pt".'
            )
        if isinstance(callback_on_step_end, (PipelineCallback, MultiPipelineCallbacks)):
            callback_on_step_end_tensor_inputs = callback_on_step_end.tensor_inputs
        is_list = isinstance(callback_on_step_end_tensor_inputs, (list, tuple))
        unknown = (
            [x for x in callback_on_step_end_tensor_inputs if x not in self._callback_tensor_inputs] if is_list else []
        )
        if unknown or not is_list:
            raise ValueError(
                f"`callback_on_step_end_tensor_inputs` has to be in {self._callback_tensor_inputs}, got"
                f" {callback_on_step_end_tensor_inputs!r}."
            )
        if callback_on_step_end is not None and not callable(callback_on_step_end):
            raise ValueError(
                "`callback_on_step_end` must be a function (pipe, step, timestep, kwargs), got"
                f" {type(callback_on_step_end).__name__}."
            )
        final_denoise = self.config.final_denoise if final_denoise is None else final_denoise
        if not isinstance(final_denoise, (bool, np.bool_)):
            raise ValueError(f"`final_denoise` must be True or False, got {final_denoise!r}.")

        # Frames
        past, future = (
            None
            if frames is None
            else read_frames(
                name, frames, num_channels=num_channels, most=config[f"num_{name}"], normalizer=self.normalizer
            )
            for name, frames in (("past_frames", past_frames), ("future_frames", future_frames))
        )
        given = [frames for frames in (past, future) if frames is not None]
        batch_size, height, width = self._check_geometry(given, batch_size, height, width)

        # Windows
        num_past = past.shape[1] if past is not None else 0
        num_future = future.shape[1] if future is not None else 0
        num_frames = num_frames or config.num_frames
        total = num_past + num_frames + num_future
        windows, num_windows = self._plan_windows(num_past, None if endless else num_frames, num_future)
        checked = windows if isinstance(windows, list) else [next(windows)]  # forwards, the first reads least
        self._check_masks(checked, num_past, num_future, guidance_scale)
        if not isinstance(windows, list):
            windows = itertools.chain(checked, windows)

        # Sampler
        if timesteps is not None and sigmas is not None:
            raise ValueError("`timesteps` and `sigmas` both say which steps to take: pass one of them.")
        if not _is_number(eta) or not 0 <= eta <= 1:
            raise ValueError(f"`eta` must be a number in [0, 1], got {eta!r}.")
        if eta > 0 and "eta" not in inspect.signature(self.scheduler.step).parameters:
            raise ValueError(f"`eta` is {eta}, but {type(self.scheduler).__name__} does not know it: leave it at 0.")
        if self.unet.training and config.dropout > 0:
            logger.warning("The network is in training mode, so its dropout is active: call `pipe.unet.eval()`.")
        if guidance_scale != 1 and num_windows == 1 and not given:
            logger.warning("`guidance_scale` changes nothing here: no frames are given, and only one block is made.")
        options = {"num_inference_steps": int(num_inference_steps), "timesteps": timesteps, "sigmas": sigmas}
        steps = self._check_scheduler(options, final_denoise)
        if self.guider is not None:
            _register_attention()
            check_guider(self.guider, self.unet, (config.num_frames, config.in_channels, height, width), len(steps))
        num_videos = batch_size * ensemble_size
        frame_shape = (config.in_channels, height, width)
        if latents is not None:
            _check_latents(latents, (num_videos, (num_windows or 1) * config.num_frames, *frame_shape))
        generator = _check_generator(generator, batch_size)
        if isinstance(generator, NoiseSequence) and (max_batch_size or num_videos) < num_videos:
            raise ValueError(
                f"`max_batch_size` is {max_batch_size} for {num_videos} videos, but a `NoiseSequence` draws for all of them at"
                " once: leave it out, or pass a torch.Generator."
            )

        self._guidance_scale, self._num_timesteps, self._interrupt = guidance_scale, len(steps), False
        device = self._execution_device
        positions = [*range(num_past), *range(total - num_future, total)]
        inside = [frame for x in given for frame in self.normalizer.encode(x.to(device)).unbind(dim=1)]  # (B, C, H, W)
        source = generator[0] if isinstance(generator, list) else generator
        return _Request(
            windows=windows,
            num_windows=num_windows,
            given={p: frame.repeat_interleave(ensemble_size, dim=0) for p, frame in zip(positions, inside)},
            past=past,
            future=future,
            batch_size=batch_size,
            ensemble_size=ensemble_size,
            frame_shape=frame_shape,
            seeds=generator
            if isinstance(generator, NoiseSequence)
            else _draw_seeds(generator, batch_size, ensemble_size),
            generator_device=source.device if isinstance(source, torch.Generator) else device,
            latents=latents,
            max_batch_size=max_batch_size,
            step_options={
                **options,
                "eta": eta,
                "guidance_scale": guidance_scale,
                "final_denoise": final_denoise,
                "cache_conditioning": cache_conditioning,
                "callback_on_step_end": callback_on_step_end,
                "callback_on_step_end_tensor_inputs": callback_on_step_end_tensor_inputs,
            },
        )

    def _check_geometry(
        self, given: list[torch.Tensor], batch_size: int | None, height: int | None, width: int | None
    ) -> tuple[int, int, int]:
        """Batch size, height and width of the videos: of the given frames, else as asked for, else the network's."""
        if len({frames.shape[-2:] for frames in given}) > 1 or len({len(frames) for frames in given}) > 1:
            raise ValueError(
                "`past_frames` and `future_frames` must agree in batch, height and width, got"
                f" {' and '.join(str(tuple(frames.shape)) for frames in given)}."
            )
        size = self.unet.config.sample_size
        default = (1, *size) if isinstance(size, (list, tuple)) and len(size) == 2 else (1, *[np.ravel(size)[0]] * 2)
        if given:
            default = (len(given[0]), *given[0].shape[-2:])
        actual = []
        for name, asked, value in zip(("batch_size", "height", "width"), (batch_size, height, width), default):
            if given and asked is not None and asked != value:
                raise ValueError(f"`{name}` is {asked}, but the given frames have {value}; leave it out.")
            actual.append(int(asked or value))
        return tuple(actual)

    def _plan_windows(
        self, num_past: int, num_frames: int | None, num_future: int
    ) -> tuple[list[Window] | Iterator[Window], int | None]:
        """The frame schedule and its length; a list only if it reads the future, since forwards it may be very long."""
        config = self.unet.config
        if num_past and num_future and num_frames < config.num_frames:
            raise ValueError(
                f"`num_frames` must be at least {config.num_frames}, one block of this network, to interpolate; got"
                f" {num_frames}."
            )
        total = None if num_frames is None else num_past + num_frames + num_future
        windows = blocks(
            total,
            observed=[*range(num_past), *(range(total - num_future, total) if num_future else ())],
            step=config.num_frames,
            num_past_frames=config.num_past_frames,
            num_future_frames=config.num_future_frames,
        )
        num_windows = None if num_frames is None else -(-num_frames // config.num_frames)
        return (list(windows) if num_future else windows), num_windows

    def _check_masks(self, windows: list[Window], num_past: int, num_future: int, guidance_scale: float) -> None:
        """Whether the network was trained with the frames missing that these windows leave out."""
        if not _is_number(guidance_scale) or not 0 <= guidance_scale < float("inf"):
            raise ValueError(f"`guidance_scale` must be a number of at least 0, got {guidance_scale!r}.")
        if self.guider is not None and guidance_scale != 1:
            raise ValueError(
                f"`guidance_scale` is {guidance_scale}, but the pipeline's `guider`, a {type(self.guider).__name__}, guides"
                " already: leave it at 1 and give the guider its scale, or set `pipe.guider = None`."
            )
        config = self.unet.config
        for side, given in (("past", num_past), ("future", num_future)):
            needed, dropped = config[f"num_{side}_frames"], config[f"drop_{side}"]
            if given and dropped == 1:
                raise ValueError(
                    f"`{side}_frames`: this network never had them in training (`unet.config.drop_{side}` is 1); leave"
                    " them out."
                )
            if needed == 0 or dropped > 0:
                continue
            for window in windows:
                is_side = [position < min(window.latent) for position in window.observed]
                have = sum(is_side) if side == "past" else len(is_side) - sum(is_side)
                if have < needed:
                    raise ValueError(
                        f"This network always had its {needed} {side} frames in training (`unet.config.drop_{side}` is"
                        f" 0), and frames {window.latent[0]} to {window.latent[-1]} would be made with {have} of them."
                        f" `{side}_frames` has {given}: pass {needed}, or use a network that was trained with"
                        f" `drop_{side}` > 0" + ("." if side == "past" else ", one block at a time otherwise.")
                    )
            if guidance_scale != 1 or self.guider is not None:
                name, way_out = "guidance_scale", "leave it at 1"
                if self.guider is not None:
                    name, way_out = "guider", "set `pipe.guider = None`"
                raise ValueError(
                    f"`{name}` compares with absent frames, which this network never saw absent in training"
                    f" (`unet.config.drop_{side}` is 0): {way_out}."
                )

    def _check_scheduler(self, options: dict, final_denoise: bool) -> torch.Tensor:
        """Try the scheduler's first step on a copy; returns its timesteps."""
        if not isinstance(self.scheduler, SchedulerMixin):
            raise ValueError(f"`scheduler` must be one of Diffusers' schedulers, an object, got {self.scheduler!r}.")
        name, config = type(self.scheduler).__name__, self.scheduler.config
        prediction_type = config.get("prediction_type")
        other = "DDPMScheduler" if name == "DDIMScheduler" else "DDIMScheduler"
        way_out = f"Use another, such as {other}.from_config(pipe.scheduler.config)."
        for needed in ("prediction_type", "beta_schedule"):
            if needed not in inspect.signature(type(self.scheduler).__init__).parameters:
                raise ValueError(
                    f"`scheduler`: {name} cannot serve this network: it has no `{needed}`, so it is for another kind of"
                    f" model, such as one trained by flow matching or with EDM's noise levels. {way_out}"
                )
        trained = self.unet.config.prediction_type
        if trained not in (None, prediction_type):
            raise ValueError(
                f"`scheduler`: {name} cannot serve this network: it was trained with prediction_type={trained!r}, the"
                f" scheduler has {prediction_type!r}. Make it with prediction_type={trained!r} and the noise schedule of"
                " the training, or from the scheduler that was saved with the network."
            )
        num_train_timesteps = self.unet.config.num_train_timesteps
        if config.get("num_train_timesteps", num_train_timesteps) != num_train_timesteps:
            raise ValueError(
                f"`scheduler` has {config.num_train_timesteps} training timesteps, the network {num_train_timesteps}."
            )
        for argument, least, most in (
            ("timesteps", 0, num_train_timesteps - 1),
            ("sigmas", 0.0, _largest_sigma(self.scheduler)),
        ):
            if options[argument] is None:
                continue
            if argument not in inspect.signature(self.scheduler.set_timesteps).parameters:
                raise ValueError(
                    f"`{argument}`: {name} does not take own {argument}. Leave them out, or use a scheduler that does, such as"
                    f" {'DDPMScheduler' if argument == 'timesteps' else 'EulerDiscreteScheduler'}.from_config(pipe.scheduler.config)."
                )
            _check_steps(argument, options[argument], least, most)
        # Try the whole way on a copy, with a network that always answers the same: it takes milliseconds.
        trial = copy.deepcopy(self.scheduler)
        try:
            steps = self._set_timesteps(options, torch.device("cpu"), trial)
            probe = answer = torch.full((1, self.unet.config.num_frames, self.unet.config.in_channels, 2, 2), 0.5)
            probe = probe * getattr(trial, "init_noise_sigma", 1.0)
            takes_generator = "generator" in inspect.signature(trial.step).parameters  # spare the global stream
            kwargs = {"generator": torch.Generator().manual_seed(0)} if takes_generator else {}
            for step in steps:
                if hasattr(trial, "scale_model_input"):
                    trial.scale_model_input(probe, step)
                probe = trial.step(answer, step, probe, **kwargs, return_dict=False)[0]
        except Exception as error:  # whatever the scheduler's own code raises, it does not serve
            own = [key for key in ("timesteps", "sigmas") if options[key] is not None]
            asked = own[0] if own else "num_inference_steps"
            raise ValueError(
                f"`scheduler`: {name} cannot serve prediction_type={prediction_type!r} with"
                f" {asked}={reprlib.repr(options[asked])}: {error} {way_out}"
            ) from error
        if len(steps) == 0 or steps.min() < 0 or steps.max() >= num_train_timesteps or steps[-1] > steps[0]:
            way = f"from {float(steps[0]):.4g} to {float(steps[-1]):.4g}" if len(steps) else "nowhere"
            raise ValueError(
                f"`scheduler`: {name} cannot serve this network with these settings: it would go {way}, and the network"
                f" goes down from {num_train_timesteps - 1} to 0 at most. {way_out}"
            )
        if not torch.isfinite(probe).all():
            raise ValueError(
                f"`scheduler`: {name} cannot serve this noise schedule in {len(steps)} steps: its own arithmetic gives NaN,"
                f" whatever the network says. {way_out}"
            )
        if final_denoise and (prediction_type != "epsilon" or not hasattr(self.scheduler, "alphas_cumprod")):
            raise ValueError(
                "`final_denoise=True` subtracts predicted noise: it needs prediction_type='epsilon' and a scheduler"
                f" with `alphas_cumprod`, got {prediction_type!r} and {name}."
            )
        return steps


def _register_attention() -> None:
    """
    Tell Diffusers what the network's attention returns when a guider leaves its branch out, the residual alone. Not at
    import: Diffusers' table imports the processors of all its networks.
    """
    skipped = AttentionProcessorMetadata(lambda attn, hidden_states: hidden_states / 2**0.5)
    AttentionProcessorRegistry.register(MCVDAttnProcessor, skipped)


def _largest_sigma(scheduler: SchedulerMixin) -> float:
    """The highest noise level of the noise schedule, as noise over signal; a little more, since it is known in digits."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if not torch.is_tensor(alphas_cumprod):
        return math.inf
    smallest = float(alphas_cumprod.min())
    return 1.01 * ((1 - smallest) / smallest) ** 0.5 if smallest > 0 else math.inf


def _check_steps(name: str, values, least: float, most: float) -> None:
    """Own timesteps or noise levels: numbers that fall, within what the network was trained on."""
    kind = numbers.Integral if name == "timesteps" else numbers.Real
    values = values.tolist() if isinstance(values, (torch.Tensor, np.ndarray)) else values
    is_list = isinstance(values, (list, tuple, range)) and len(values) > 0
    if (
        not is_list
        or not all(isinstance(x, kind) and not isinstance(x, bool) and least <= x <= most for x in values)
        or not all(x > y for x, y in itertools.pairwise(values))
    ):
        raise ValueError(
            f"`{name}` must be a list of {'integers' if name == 'timesteps' else 'numbers'} that fall, from at most"
            f" {most:.6g} to at least {least:.6g}, got {reprlib.repr(values)}."
        )
    if name == "sigmas" and len(values) < 2:
        raise ValueError(
            f"`sigmas` must be at least two, the last being the one to end with, usually 0, got {values}."
        )


def _check_latents(latents: torch.Tensor, shape: tuple[int, ...]) -> None:
    if not torch.is_tensor(latents) or tuple(latents.shape) != shape or not latents.is_floating_point():
        got = tuple(latents.shape) if torch.is_tensor(latents) else type(latents).__name__
        raise ValueError(f"`latents` must be a float tensor of shape {shape} for this call, got {got}.")
    if not torch.isfinite(latents).all():
        raise ValueError("`latents` has values that are NaN or infinite.")


def _check_generator(generator, batch_size: int) -> torch.Generator | list[torch.Generator] | NoiseSequence | None:
    if isinstance(generator, NoiseSequence):
        return generator
    generator = list(generator) if isinstance(generator, tuple) else generator
    for source in generator if isinstance(generator, list) else [generator]:
        if generator is not None and not isinstance(source, torch.Generator):
            raise ValueError(
                f"`generator` must be a torch.Generator or a list of them, got {type(source).__name__}. From a number:"
                " torch.Generator().manual_seed(number)."
            )
    if isinstance(generator, list) and len(generator) != batch_size:
        raise ValueError(f"`generator` is a list of {len(generator)} for {batch_size} videos: one each is needed.")
    return generator


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


def _is_number(value) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _draw_seeds(
    generator: torch.Generator | list[torch.Generator] | None, batch_size: int, ensemble_size: int
) -> list[tuple[int, int]]:
    """(seed, member) of each video: one number drawn for each input video, one after the other."""
    generators = generator if isinstance(generator, list) else [generator] * batch_size
    seeds = [
        int(torch.randint(2**63 - 1, (), generator=g, device=g.device if g is not None else "cpu")) for g in generators
    ]
    return [(seed, member) for seed in seeds for member in range(ensemble_size)]


def _window_generators(seeds: list[tuple[int, int]], number: int, device: torch.device) -> list[torch.Generator]:
    """The random stream of each video for one window."""
    return [torch.Generator(device).manual_seed(keyed_seed(seed, member, number)) for seed, member in seeds]
