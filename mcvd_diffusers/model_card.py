"""The model card of a pipeline: what it does, how to call it, how it was made, what was verified.

Everything in a card is known, not promised: a section without facts is left out, and no date or path is in it, so that
the same facts give the same card.
"""

from collections.abc import Mapping

from huggingface_hub import ModelCard, ModelCardData


# Tags by which the Hub's users look for these tasks; it has no pipeline tag of its own for them.
TASK_TAGS = {
    "prediction": "video-prediction",
    "past prediction": "video-prediction",
    "interpolation": "frame-interpolation",
    "generation": "unconditional-video-generation",
}

CITATION = """\
```bibtex
@inproceedings{voleti2022mcvd,
  title     = {{MCVD}: Masked Conditional Video Diffusion for Prediction, Generation, and Interpolation},
  author    = {Voleti, Vikram and Jolicoeur-Martineau, Alexia and Pal, Christopher},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022}
}
```"""


def model_card(
    *,
    unet: Mapping,
    scheduler: str,
    tasks: list[str],
    num_parameters: int,
    dataset: str,
    num_inference_steps: int = 100,
    timesteps: str | None = None,
    num_predicted_frames: int | None = None,
    final_denoise: bool = False,
    training: Mapping[str, object] | None = None,
    source: str | None = None,
    verification: str | None = None,
    weights: str | None = None,
    variant: str | None = None,
    units: str | None = None,
) -> str:
    """
    Write the card of an [`MCVDPipeline`].

    Args:
        unet (`Mapping`): The config of its [`MCVDUNet2DModel`].
        scheduler (`str`): How its samples are drawn, such as `"DDPM"`.
        tasks (`list[str]`): From [`masking.trained_tasks`].
        num_parameters (`int`): Of the network.
        dataset (`str`): Name of the training data.
        num_inference_steps (`int`, *optional*, defaults to 100): Denoising steps a block.
        timesteps (`str`, *optional*): Python for own timesteps, in place of their number.
        num_predicted_frames (`int`, *optional*): Frames of the example; two blocks by default.
        final_denoise (`bool`, *optional*, defaults to `False`): Whether the pipeline makes the original's last call.
        training (`Mapping[str, object]`, *optional*): Settings, name -> value.
        source (`str`, *optional*): Where the weights come from, in Markdown.
        verification (`str`, *optional*): What was checked, in Markdown.
        weights (`str`, *optional*): Which weights there are, in Markdown.
        variant (`str`, *optional*): Which of them the example loads.
        units (`str`, *optional*): Units of the frames; images in `[0, 1]` by default.

    Returns:
        `str`: The card, YAML head and Markdown.
    """
    size = unet["sample_size"]
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    past, block, future = unet["num_past_frames"], unet["num_frames"], unet["num_future_frames"]
    channels = unet["in_channels"]
    sentences = []
    for task, line in {
        "prediction": f"| prediction | {_frames(past, 'past')} | the frames after them, any number, {block} at a time |",
        "past prediction": f"| past prediction | {_frames(future, 'future')} | the frames before them |",
        "interpolation": f"| interpolation | {past} past and {_frames(future, 'future')} | the {block} between them |",
        "generation": f"| generation | nothing | videos of any length, {block} frames at a time |",
    }.items():
        if task in tasks:
            sentences.append(line)
    head = ModelCardData(
        library_name="diffusers",
        pipeline_tag="video-to-video" if past + future else "unconditional-image-generation",
        tags=[*dict.fromkeys(["mcvd", *(TASK_TAGS[task] for task in tasks), "pixel-space"])],
    )

    num_predicted = num_predicted_frames or 2 * block
    values = "in [0, 1]" if units is None else "in the units of the data"
    frames = f"{channels}, {height}, {width})  # (videos, frames, channels, height, width), {values}"
    usage = ["import torch", "from mcvd_diffusers import MCVDPipeline", ""]
    which = f', variant="{variant}"' if variant else ""
    usage.append(f'pipe = MCVDPipeline.from_pretrained("path/to/this/folder"{which})')
    if {"prediction", "interpolation"} & set(tasks):
        usage.append(f"past = torch.rand(1, {past}, {frames}: put your frames here")
    if {"past prediction", "interpolation"} & set(tasks):
        usage.append(f"future = torch.rand(1, {future}, {channels}, {height}, {width})")
    steps = f"timesteps={timesteps}" if timesteps else f"num_inference_steps={num_inference_steps}"
    options = f'{steps}, output_type="pt"'
    usage.append("")
    calls = {
        "prediction": f"past_frames=past, num_frames={num_predicted}",
        "past prediction": f"future_frames=future, num_frames={block}",
        "interpolation": "past_frames=past, future_frames=future",
        "generation": f"num_frames={num_predicted}, batch_size=4",
    }
    for task, arguments in calls.items():
        if task in tasks:
            usage.append(f"video = pipe({arguments}, {options}).frames  # {task}")

    facts = {
        "training data": f"`{plain_text(dataset)}`",
        "frames": f"{past} past, {block} at a time, {future} future; {channels} channel{'s' if channels > 1 else ''},"
        f" {height}x{width} pixels",
        "network": f"UNet, {num_parameters:,} parameters, {_conditioning(unet)}",
        "sampler": f"{scheduler}, {num_inference_steps} steps a block"
        + (", and the original's final denoising call" if final_denoise else ""),
        **({"units": units} if units else {}),
        **(training or {}),
    }
    example = next((arguments for task, arguments in calls.items() if task in tasks), None)
    reproduce = [
        "The original draws all noise from one stream in its own order, for the whole batch at once. Its samples are repeated"
        " by its recorded draws, or by a generator in the state that the original's had when it began to sample, with the same"
        " batch. (A seed alone is not that state: making the network and loading data draw from the stream, too.)",
        "",
        "```python",
        "from mcvd_diffusers import NoiseSequence",
        "",
        "noise = NoiseSequence(torch.Generator().manual_seed(0))  # or a list of recorded draws; goes on from call to call",
        f"video = pipe({example}, {options}, generator=noise).frames",
        "```",
    ]
    if final_denoise:
        reproduce += [
            "",
            "After the last step the original calls the network once more, with a noise level that is too high, which takes"
            " contrast away (about 4 % at 100 steps, for a perfect network). The config of this checkpoint asks for it, so it is"
            " on; `final_denoise=False` leaves it out.",
        ]
    sections = {
        "Tasks": "\n".join(["| task | given | made |", "| --- | --- | --- |", *sentences]),
        "Use": "\n".join(["```python", *usage, "```"]),
        "Weights": weights,
        "Facts": "\n".join(
            [
                "| | |",
                "| --- | --- |",
                *(
                    f"| {name} | {value if name == 'training data' else plain_text(value)} |"
                    for name, value in facts.items()
                ),
            ]
        ),
        "Source": source,
        "Verification": verification,
        "Samples of the original": "\n".join(reproduce) if source and example else None,
        "Limits": "This card knows of no trial on real frames. The licences of the weights' authors and of the training data are"
        " not known to it, and hold.",
        "Citation": CITATION,
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    title = f"MCVD, `{plain_text(dataset)}` {height}x{width}, {past} + {block} + {future} frames"
    introduction = (
        "A network of masked conditional video diffusion ([paper](https://arxiv.org/abs/2205.09853)), for the library"
        " `mcvd_diffusers`, an extension of Hugging Face Diffusers."
    )
    return str(ModelCard(f"---\n{head.to_yaml()}\n---\n\n# {title}\n\n{introduction}\n\n{body}\n"))


def _frames(count: int, side: str) -> str:
    return f"{count} {side} frame{'s' if count != 1 else ''}"


def _conditioning(unet: Mapping) -> str:
    if unet["num_past_frames"] + unet["num_future_frames"] == 0:
        return "no given frames"
    if unet["conditioning"] == "spatin":
        return f"given frames by SPATIN with {unet['spatin_channels']} channels"
    return "given frames by concatenation"


def plain_text(value: object) -> str:
    """
    A value that may come from an untrusted file, as text that ends no table's cell, code span or tag.

    Args:
        value (`object`): Text or a number.

    Returns:
        `str`: At most 200 characters.
    """
    text = f"{value:g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return "".join(x if x.isprintable() and x not in "`|<>[]\\" else "?" for x in text[:200])
