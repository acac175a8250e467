"""Videos of held-out clips while a network is trained, and how far they are from the truth."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mcvd_diffusers.atomic import whole_file
from mcvd_diffusers.masking import tasks_of_config
from mcvd_diffusers.metrics import blend_linearly, psnr_of_mse, repeat_last_frame, video_mse
from mcvd_diffusers.visualization import save_comparison_gif, save_comparison_mp4


BASELINES = {
    "prediction": "repeating the last frame",
    "past_prediction": "repeating the first frame",
    "interpolation": "blending the given frames",
}


@dataclass
class Validation:
    """
    What validation made.

    Args:
        values (`dict[str, float]`):
            `"validation/prediction_psnr"`, `"validation/prediction_psnr_of_baseline"` and so on for each task with a truth, in
            decibels: of the mean squared error over all clips.
        files (`dict[str, Path]`): `"validation/prediction"` and so on -> GIF file.
        lines (`list[str]`): The report.
    """

    values: dict[str, float] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def validation_tasks(pipeline) -> list[str]:
    """
    The tasks that videos are made for.

    Args:
        pipeline ([`MCVDPipeline`]): The pipeline.

    Returns:
        `list[str]`:
            Those that the network was trained for. Of one that reads any frames, past prediction is left out, since it is
            prediction in a mirror; one that was never given any gets them by replacement, if the pipeline says so.
    """
    tasks = tasks_of_config(pipeline.unet.config)
    if "max_frames" not in pipeline.unet.config:
        return tasks
    if pipeline.config.replacement is not None:
        tasks = ["prediction", "interpolation", *tasks]
    if pipeline.unet.config.max_frames < 3:  # no frame between the first and the last
        tasks = [task for task in tasks if task != "interpolation"]
    return [task for task in ("prediction", "interpolation", "generation") if task in tasks]


@torch.no_grad()
def make_validation_videos(
    pipeline,
    clips: list[dict[str, torch.Tensor]],
    *,
    num_inference_steps: int,
    folder: Path,
    save_mp4: bool = True,
    is_stop_asked: Callable[[], bool] = lambda: False,
) -> Validation:
    """
    Make videos of held-out clips for each of [`validation_tasks`], with the same noise every time.

    Of a network of past, block and future the block is made. Of one that reads any frames, it is what follows the first frames
    of a window, as many as a long video goes on from, or what lies between the first and the last. With a context encoder all of
    the clip is predicted.

    Nothing is drawn from the global random stream, and the network is left in the mode in which it was. The pipeline's
    progress bar is switched off.

    Args:
        pipeline ([`MCVDPipeline`]): The pipeline, on its device.
        clips (`list[dict[str, torch.Tensor]]`): Held-out clips `{"video": (T, C, H, W)}` as the network sees them.
        num_inference_steps (`int`): Denoising steps.
        folder (`Path`): Where the task's `.gif` and `.mp4` go; it is made. A file that is there already is replaced as a whole.
        save_mp4 (`bool`, *optional*, defaults to `True`): Whether to write `.mp4` too, where PyAV is installed.
        is_stop_asked (`Callable`, *optional*):
            Asked between tasks and after each denoising step. When it says so, the task in progress is given up.

    Returns:
        [`Validation`]: Of the tasks that were finished.

    Raises:
        OSError: If a GIF cannot be written.
        RuntimeError: If the network makes values that are not finite.
    """
    networks = [network for network in (pipeline.unet, pipeline.context_encoder) if network is not None]
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        return _make_videos(pipeline, clips, num_inference_steps, folder, save_mp4, is_stop_asked)
    finally:
        for module, mode in modes:
            module.training = mode


def _make_videos(
    pipeline,
    clips: list[dict[str, torch.Tensor]],
    num_inference_steps: int,
    folder: Path,
    save_mp4: bool,
    is_stop_asked: Callable[[], bool],
) -> Validation:
    units, num_videos = pipeline.normalizer, len(clips)
    given = units.decode(torch.stack([clip["video"] for clip in clips]))  # in the user's units
    video = units.to_display(given)  # in [0, 1], for pictures and PSNR
    baselines = {
        "prediction": lambda past, future, size: repeat_last_frame(past, size),
        "past prediction": lambda past, future, size: repeat_last_frame(future.flip(1), size),
        "interpolation": blend_linearly,
        "generation": lambda past, future, size: None,
    }

    def stop_if_asked(pipeline, *_) -> None:
        pipeline._interrupt = is_stop_asked()

    pipeline.set_progress_bar_config(disable=True)
    made = Validation()
    for words in validation_tasks(pipeline):
        if is_stop_asked():
            break
        task = words.replace(" ", "_")
        start, num_before, size, num_after = _split(pipeline, words, given.shape[1])
        parts = [num_before, size, num_after]
        before_units, _, after_units = given[:, start : start + sum(parts)].split(parts, dim=1)
        before, block, after = video[:, start : start + sum(parts)].split(parts, dim=1)
        baseline = baselines[words](before, after, size)
        samples = pipeline(
            past_frames=before_units if num_before else None,
            future_frames=after_units if num_after else None,
            num_frames=size,
            batch_size=num_videos,
            height=video.shape[-2],
            width=video.shape[-1],
            num_inference_steps=num_inference_steps,
            generator=[torch.Generator().manual_seed(i) for i in range(num_videos)],
            output_type="pt",
            callback_on_step_end=stop_if_asked,
        ).frames
        if pipeline.interrupt:  # what there is of the block is noise
            break
        samples = units.to_display(samples).cpu()
        columns = (
            {"sample": samples} if baseline is None else {"truth": block, "sample": samples, "baseline": baseline}
        )
        columns = {name: torch.cat([before, x, after], dim=1) for name, x in columns.items()}
        is_given = [True] * num_before + [False] * size + [True] * num_after
        if baseline is not None:
            # Of the mean error over all clips: a clip in which nothing moves would make the baseline's mean PSNR infinite.
            psnr, baseline_psnr = (float(psnr_of_mse(video_mse(x, block).mean())) for x in (samples, baseline))
            made.values |= {f"validation/{task}_psnr": psnr, f"validation/{task}_psnr_of_baseline": baseline_psnr}
            made.lines.append(
                f"{task}: PSNR {psnr:.2f} dB, {BASELINES[task]} {baseline_psnr:.2f} dB (of the mean squared error over"
                f" {num_videos} held-out clips, one sample each; higher is better)"
            )
        made.files[f"validation/{task}"] = path = Path(folder) / f"{task}.gif"
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as partial:
            save_comparison_gif(partial, columns, is_given)
        if save_mp4:
            try:
                with whole_file(path.with_suffix(".mp4")) as partial:
                    save_comparison_mp4(partial, columns, is_given)
            except ImportError:
                save_mp4 = False
            except Exception as error:  # of PyAV or its codecs; there is the GIF
                save_mp4 = False
                made.lines.append(f"warning: {path.with_suffix('.mp4')} was not written: {error}")
    return made


def _split(pipeline, task: str, num_clip_frames: int) -> tuple[int, int, int, int]:
    """Where a task's frames begin in a clip, how many are given before those that are made, how many are made, and given after."""
    config = pipeline.unet.config
    if pipeline.context_encoder is not None and task == "prediction":
        # All of the clip, so that what is remembered shows.
        past = config.get("num_past_frames", config.get("num_context_frames")) or num_clip_frames // 2
        return 0, past, num_clip_frames - past, 0
    if "max_frames" not in config:
        past, future = config.num_past_frames, config.num_future_frames
        has_past, has_future = task in ("prediction", "interpolation"), task in ("past prediction", "interpolation")
        return (0 if has_past else past), past * has_past, config.num_frames, future * has_future
    window = config.max_frames
    past = {"prediction": window - (pipeline.config.step or window // 2), "interpolation": 1}.get(task, 0)
    future = int(task == "interpolation")
    return 0, past, window - past - future, future
