"""The text of a model card, section by section: what the model does, how to call it, how good it is, how it was made.

Everything in a card is known, not promised: a section without facts is left out, and no date or path is in it, so that
the same facts give the same card.
"""

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mcvd_diffusers.json_files import read_json
from mcvd_diffusers.protocols import published_results


if TYPE_CHECKING:
    from .facts import CardFacts


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

# What the systems whose networks there are call themselves, and their papers.
SYSTEMS = {
    "MCVD": ("masked conditional video diffusion", "2205.09853"),
    "FDM": ("flexible diffusion modeling of long videos", "2205.11495"),
    "RaMViD": ("random-mask video diffusion", "2206.07696"),
    "VDM": ("video diffusion", "2204.03458"),
    "LGC-VD": ("video diffusion with local-global context guidance", "2306.02562"),
    "RVD": ("residual video diffusion", "2203.09481"),
}
CITATIONS = {
    "FDM": """\
```bibtex
@inproceedings{harvey2022flexible,
  title     = {Flexible Diffusion Modeling of Long Videos},
  author    = {Harvey, William and Naderiparizi, Saeid and Masrani, Vaden and Weilbach, Christian and Wood, Frank},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  eprint    = {2205.11495},
}
```""",
    "RaMViD": """\
```bibtex
@article{hoeppe2022ramvid,
  title   = {Diffusion Models for Video Prediction and Infilling},
  author  = {H{\\"o}ppe, Tobias and Mehrjou, Arash and Bauer, Stefan and Nielsen, Didrik and Dittadi, Andrea},
  journal = {Transactions on Machine Learning Research},
  year    = {2022},
  eprint  = {2206.07696},
}
```""",
    "VDM": """\
```bibtex
@inproceedings{ho2022video,
  title     = {Video Diffusion Models},
  author    = {Ho, Jonathan and Salimans, Tim and Gritsenko, Alexey and Chan, William and Norouzi, Mohammad and Fleet, David J.},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2022},
  eprint    = {2204.03458},
}
```""",
    "LGC-VD": """\
```bibtex
@inproceedings{yang2023video,
  title     = {Video Diffusion Models with Local-Global Context Guidance},
  author    = {Yang, Siyuan and Zhang, Lu and Liu, Yu and Jiang, Zhizhuo and He, You},
  booktitle = {International Joint Conference on Artificial Intelligence},
  year      = {2023},
  eprint    = {2306.02562},
}
```""",
    "RVD": """\
```bibtex
@article{yang2022diffusion,
  title  = {Diffusion Probabilistic Modeling for Video Generation},
  author = {Yang, Ruihan and Srivastava, Prakhar and Mandt, Stephan},
  year   = {2022},
  eprint = {2203.09481},
}
```""",
}


def render_card(folder: Path, facts: "CardFacts") -> str:
    """
    Write the card of an [`MCVDPipeline`].

    Args:
        folder (`Path`): The pipeline's folder: its configs and its evaluations are read.
        facts ([`CardFacts`]): What else is known.

    Returns:
        `str`: The card, YAML head and Markdown.

    Raises:
        ValueError: If a config is not what it must be.
    """
    model = _Model(Path(folder))
    evaluations = _read_evaluations(Path(folder))
    sections = {
        "Samples": _samples(facts),
        "Tasks": _tasks(model, facts),
        "Use": _use(model, facts),
        "Results": _results(evaluations, facts),
        "Training data": _data(model, facts),
        "Training": _training(model, facts),
        "Weights": _weights(facts),
        "Source": facts.source,
        "Verification": facts.verification,
        "Samples of the original": _samples_of_the_original(model, facts),
        "Notes": facts.notes,
        "Limits": _limits(model, evaluations, facts),
        "Check this card": _check(facts),
        "Citation": "\n\n".join([CITATION, *_further_citations(model)]),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items() if text)
    data = "" if facts.dataset is None else f"`{plain_text(facts.dataset)}` "  # as code it is no link
    title = f"{plain_text(facts.name)}: {model.system}, {data}{model.height}x{model.width}"
    words, paper = SYSTEMS[model.system]
    introduction = (
        f"A network of {words} ([{model.system}](https://arxiv.org/abs/{paper})), for the library `mcvd_diffusers`, an extension"
        f" of Hugging Face Diffusers. {_sees(model)}: {', '.join(facts.tasks) or 'no task is known'}."
    )
    head = _head(model, evaluations, facts).to_yaml()
    return str(ModelCard(f"---\n{head}\n---\n\n# {title}\n\n{introduction}\n\n{body}\n"))


def _sees(model: "_Model") -> str:
    """What the network makes, and of what."""
    if model.system == "RVD":
        made = _count(model.unet["max_frames"], "frame")
        made = f"It makes {made} at a time, of what recurrent networks know of all frames before"
    elif model.is_beside:
        shown = f"of which it is shown {model.unet['num_context_frames']} at most"
        if model.unet.get("drop_observed") == 1:
            shown = "none of which was ever given in training"
        made = f"It makes {model.unet['max_frames']} neighbouring frames at a time, {shown}"
    elif model.has_windows:
        made = f"It sees up to {model.unet['max_frames']} frames at a time, any of which may be given"
        if model.unet.get("drop_observed") == 1:
            made = f"It makes up to {model.unet['max_frames']} frames at a time, and was never given any in training"
    else:
        past, block, future = model.frames
        made = f"It makes {_count(block, 'frame')} at a time, given up to {past} past and {future} future frames"
        if past + future == 0:
            made = f"It makes {_count(block, 'frame')} at a time, given none"
    made += ", and has a memory of those before" * (model.has_memory and not model.makes_one_window)
    return made + ", of each of which a recurrent network has predicted a part" * model.makes_residuals


def usage_example(folder: Path, facts: "CardFacts") -> str:
    """
    The Python of the card's example.

    Args:
        folder (`Path`): The pipeline's folder.
        facts ([`CardFacts`]): As for [`render_card`].

    Returns:
        `str`: It loads the model and calls it once for each task. It is made of numbers and checked names only.
    """
    return _example(_Model(Path(folder)), facts)


def _example(model: "_Model", facts: "CardFacts") -> str:
    past, block, future = model.frames
    values = "in [0, 1]" if model.units is None else "in the units of the data"
    frames = f"{model.num_channels}, {model.height}, {model.width})"
    lines = ["import torch", "from mcvd_diffusers import MCVDPipeline", ""]
    which = f', variant="{facts.variant}"' if facts.variant else ""
    if facts.repo_id is None:
        lines.append("# run in this folder, or put its path here")
    lines.append(f'pipe = MCVDPipeline.from_pretrained("{facts.repo_id or "."}"{which})')
    tasks = set(facts.tasks)
    if model.units is not None and tasks - {"generation"}:
        low, high = ([float(x) for x in model.units[name]] for name in ("low", "high"))
        lines.append(f"low, high = torch.tensor({low}).view(-1, 1, 1), torch.tensor({high}).view(-1, 1, 1)")
    drawn = "{}" if model.units is None else "low + (high - low) * {}"
    if {"prediction", "interpolation"} & tasks:
        lines.append(f"# (videos, frames, channels, height, width), {values}: put your frames here")
        lines.append("past = " + drawn.format(f"torch.rand(1, {past}, {frames}"))
    if {"past prediction", "interpolation"} & tasks:
        lines.append("future = " + drawn.format(f"torch.rand(1, {future}, {frames}"))
    lines.append("")
    for task, arguments in _calls(model, facts).items():
        lines.append(f"video = pipe({arguments}, {_options(facts)}).frames  # {task}")
    return "\n".join(lines)


# --------------------------------------------------------------------------------------------------------------------
# What is read


class _Model:
    """What a pipeline's configs say."""

    def __init__(self, folder: Path) -> None:
        unet = read_json(folder / "unet" / "config.json")
        index = read_json(folder / "model_index.json")
        self.scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
        entry = index.get("guider")
        self.guider_name = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        entry = index.get("context_encoder")
        self.has_encoder = isinstance(entry, list) and any(entry)
        self.guider = {} if self.guider_name is None else read_json(folder / "guider" / "guider_config.json")
        # A network of windows takes any frames given any others, or has places for a few of them beside its window; one of blocks,
        # those beside the block that it makes.
        self.has_windows, self.is_beside = "max_frames" in unet, "num_context_frames" in unet
        names = ("num_past_frames", "num_frames", "num_future_frames", "in_channels", "spatin_channels")
        if self.has_windows:
            names = ("max_frames", "in_channels", *["num_context_frames"] * self.is_beside)
        size = unet.get("sample_size")
        self.height, self.width = size if isinstance(size, list) and len(size) == 2 else (size, size)
        for name, value in [(name, unet.get(name)) for name in names] + [("sample_size", self.height)] * 2:
            if type(value) is not int or not 0 <= value <= 65_536:  # it becomes code in the example
                raise ValueError(f"{folder / 'unet' / 'config.json'}: `{name}` must be a number, got {value!r}.")
        if type(self.width) is not int:
            raise ValueError(f"{folder / 'unet' / 'config.json'}: `sample_size` must be numbers, got {size!r}.")
        if not self.has_windows and unet.get("conditioning") not in ("concat", "spatin"):
            raise ValueError(f"{folder / 'unet' / 'config.json'}: `conditioning` must be concat or spatin.")
        self.unet = unet
        # What the example gives of a window, and what it makes.
        if self.is_beside and not unet["num_context_frames"]:
            self.frames = (2, max(4, unet["max_frames"]), 0)
        elif self.is_beside:
            side = unet["num_context_frames"] if unet.get("drop_observed") != 1 else 0
            self.frames = (side, max(1, unet["max_frames"] - side), side)
        elif self.has_windows:
            side = max(1, unet["max_frames"] // 4)
            self.frames = (side, max(1, unet["max_frames"] - 2 * side), side)
        else:
            self.frames = tuple(unet[name] for name in names[:3])
        self.frame_schedule, self.replacement = (index.get(name) for name in ("frame_schedule", "replacement"))
        self.reconstruction_guidance = index.get("reconstruction_guidance") or 0
        self.final_denoise = index.get("final_denoise") is True
        self.samples_as_the_original = self.scheduler.get("_class_name") in ("DDPMScheduler", "DDIMScheduler")
        self.units = index.get("normalization")
        self.num_channels, self.value_ranges = unet["in_channels"], [(0.0, 1.0)]  # of all channels, or of each
        if self.units is not None:
            try:
                self.num_channels -= bool(self.units.get("has_mask_channel"))
                ends = [[float(x) for x in self.units[name]] for name in ("low", "high")]
                is_range = all(map(math.isfinite, sum(ends, []))) and len(ends[0]) == len(ends[1]) > 0
                self.value_ranges = list(dict.fromkeys(zip(*ends)))
            except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
                is_range = False
            if not is_range:
                raise ValueError(f"{folder / 'model_index.json'}: `normalization` must be what a pipeline saves.")

    @property
    def system(self) -> str:
        """Whose network it is."""
        if not self.has_windows:
            return "MCVD"
        if self.is_beside:
            return "RVD" if "residual" in self.unet else "LGC-VD"
        if self.unet.get("backbone") == "unet3d":
            return "VDM"
        return "RaMViD" if self.unet.get("convolution") == "3d" else "FDM"

    @property
    def has_memory(self) -> bool:
        """Whether it is told what LGC-VD's encoder knows of the clips before."""
        return self.system == "LGC-VD" or (self.system == "MCVD" and bool(self.unet.get("context_channels")))

    @property
    def makes_one_window(self) -> bool:
        """Whether it never was given frames, so that no video is longer than its window."""
        return self.is_beside and self.unet.get("drop_observed") == 1

    @property
    def was_given_any(self) -> bool:
        """Whether frames anywhere in a window were given in training: of LGC-VD's network a task of its own."""
        shares = self.unet.get("task_shares")
        return shares is None or shares[3] > 0

    @property
    def makes_residuals(self) -> bool:
        """Whether it makes what RVD's encoder did not predict."""
        return self.unet.get("residual") is True

    @property
    def scheduler_name(self) -> str:
        return str(self.scheduler.get("_class_name", "")).removesuffix("Scheduler")

    @property
    def conditioning(self) -> str:
        kind = self._conditioning_by_frames()
        kind += "; a memory of the frames before, by cross-attention" * self.has_memory
        return kind + "; made is what a recurrent network does not predict" * self.makes_residuals

    def _conditioning_by_frames(self) -> str:
        past, _, future = self.frames
        if past + future == 0:
            return "no given frames"
        if self.system == "RVD":
            return "frames before by feature maps of recurrent networks"
        if self.is_beside:
            return "given frames by concatenation, each with its place"
        if self.has_windows:
            kind = "frames by themselves, and attention among them"
            if self.unet.get("convolution") == "3d":
                kind = "convolutions and attention over space and time"
            given = "known by their lack of noise"
            if self.unet.get("drop_observed") == 1:
                given = "put in at sampling"
            elif self.unet.get("mark_observed"):
                given = "marked by a plane"
            return f"{kind}; given frames {given}"
        if self.unet["conditioning"] == "spatin":
            return f"given frames by SPATIN with {self.unet['spatin_channels']} channels"
        return "given frames by concatenation"


# What a card takes from results.json. `float` stands for any number, or none.
_RESULT = {
    "protocol": {"name": str, "label": str, "title": str},
    "data": {"description": str, "num_clips": int, "num_videos": int},
    "model": {"weights_sha256": str},
    "sampler": {"scheduler": str, "num_inference_steps": int},
    "numbers": [
        dict.fromkeys(("metric", "made_by", "samples", "protocol", "unit", "interval"), str)
        | dict.fromkeys(("value", "low", "high"), float)
        | dict.fromkeys(("num_clips", "num_videos"), int)
    ],
}
_COST = {"device": str, "network_calls": int, "num_videos": int, "seconds_per_video": float}


def _read_evaluations(folder: Path) -> dict[str, dict]:
    """Name -> content of results.json."""
    found = {}
    for path in sorted(folder.glob("evaluation/*/results.json")):
        found[path.parent.name] = result = read_json(path)
        form = _RESULT | ({"cost": _COST} if result.get("cost") is not None else {})
        if wrong := _wrong_place(result, form):
            raise ValueError(f"{path} is no result of `mcvd-diffusers evaluate`: look at `{wrong}`.")
    return found


def _wrong_place(content: object, form: object, place: str = "") -> str | None:
    """Where something has another form than it should, if anywhere."""
    if isinstance(form, dict):
        if not isinstance(content, dict):
            return place
        wrong = (_wrong_place(content.get(name), part, f"{place}.{name}".lstrip(".")) for name, part in form.items())
    elif isinstance(form, list):
        if not isinstance(content, list):
            return place
        wrong = (_wrong_place(x, form[0], f"{place}[{number}]") for number, x in enumerate(content))
    elif form is float:
        is_number = isinstance(content, (int, float)) and not isinstance(content, bool) and abs(content) < 1e300
        return None if is_number or content is None else place
    else:
        is_right = type(content) is form and (form is not int or 0 <= content < 10**15)
        return None if is_right else place
    return next(filter(None, wrong), None)


# --------------------------------------------------------------------------------------------------------------------
# Sections


def _head(model: _Model, evaluations: dict[str, dict], facts: "CardFacts") -> ModelCardData:
    past, _, future = model.frames
    tag = "video-to-video" if past + future else "unconditional-image-generation"
    results = [
        EvalResult(
            task_type=tag,
            task_name="; ".join(facts.tasks),
            dataset_type=facts.dataset_id
            or "-".join(re.findall("[a-z0-9]+", result["data"]["description"].lower()))[:90],
            dataset_name=plain_text(result["data"]["description"]),
            # Results of equal data set and configuration would be merged.
            dataset_config=f"{result['protocol']['label']}; {_weights_of(result, facts)}; {_sampler(result)}",
            metric_type=_identifier(number["metric"]),
            metric_name=f"{number['metric']}, {number['samples']}, {_weights_of(result, facts)}; {number['protocol']}",
            metric_value=number["value"],
            metric_args={
                "low": number["low"],
                "high": number["high"],
                "interval": number["interval"],
                "clips": number["num_clips"],
                "videos": number["num_videos"],
                "sampler": _sampler(result),
                "weights": _weights_of(result, facts),
            },
        )
        for result in evaluations.values()
        for number in _shown_numbers(result)
        if number["made_by"] == "model" and number["value"] is not None
    ]
    widget = [{"text": text, "output": {"url": path}} for path, text in facts.samples.items()]
    return ModelCardData(
        library_name="diffusers",
        pipeline_tag=tag,
        license=facts.model_license,
        datasets=[facts.dataset_id] if facts.dataset_id else None,
        base_model=facts.base_model,
        tags=[*dict.fromkeys(["mcvd", *(TASK_TAGS[task] for task in facts.tasks), "pixel-space"])],
        widget=widget or None,
        model_name=plain_text(facts.name) if results else None,
        eval_results=results or None,
    )


def _samples(facts: "CardFacts") -> str | None:
    if not facts.samples:
        return None
    pictures = [
        f"{plain_text(text).capitalize()}:\n\n![{plain_text(text)}]({path})" for path, text in facts.samples.items()
    ]
    legend = "Each column says what it is. Frames with a green border were given, those with an orange one were made."
    return "\n\n".join([*pictures, legend])


def _tasks(model: _Model, facts: "CardFacts") -> str:
    past, block, future = model.frames
    if model.has_windows:
        return _tasks_of_windows(model, facts)
    rows = {
        "prediction": f"| prediction | {_count(past, 'past frame')} | the frames after them, any number, {block} at a time |",
        "past prediction": f"| past prediction | {_count(future, 'future frame')} | the frames before them |",
        "interpolation": f"| interpolation | {past} past and {_count(future, 'future frame')} | the {block} between them |",
        "generation": f"| generation | nothing | videos of any length, {block} frames at a time |",
    }
    if past == 0 and not model.has_memory:
        rows["generation"] = (
            f"| generation | nothing | {_count(block, 'frame')}; of more, blocks that know nothing of each other |"
        )
    lines = ["| task | given | made |", "| --- | --- | --- |", *(rows[task] for task in facts.tasks)]
    return "\n".join([*lines, "", _units(model)])


def _tasks_of_windows(model: _Model, facts: "CardFacts") -> str:
    rows = {
        "prediction": "| prediction | past frames | any number of frames after them |",
        "past prediction": "| past prediction | future frames | any number of frames before them |",
        "interpolation": "| interpolation | past and future frames | those between them |",
        "infilling": "| infilling, temporal super-resolution | `observed_frames` at `observed_positions` | all others |",
        "generation": "| generation | nothing | videos of any length |",
        "small": "| spatial super-resolution | `low_resolution_frames`, beside any of these | the frames in full size |",
    }
    by_guidance = []
    if model.makes_one_window or model.system == "RVD":
        shown = list(facts.tasks)
    elif model.unet.get("drop_observed") != 1:
        shown = [*(task for task in facts.tasks if task != "generation"), *["infilling"] * model.was_given_any]
        shown += [task for task in facts.tasks if task == "generation"]
    else:
        shown = list(facts.tasks)
        by_guidance = ["prediction", "past prediction", "interpolation", "infilling"]
    if not model.was_given_any:
        size, num_context = model.unet["max_frames"], model.unet["num_context_frames"]
        rows["prediction"] = (
            f"| prediction | {_count(num_context, 'past frame')}, or more | any number of frames after them |"
        )
        rows["interpolation"] = f"| interpolation | a past and a future frame | the {size - 2} between them |"
    if model.makes_one_window:
        rows["generation"] = f"| generation | nothing | videos of {_count(model.unet['max_frames'], 'frame')} |"
    lines = ["| task | given | made |", "| --- | --- | --- |", *(rows[task] for task in [*shown, "small"])]
    if by_guidance:
        lines += [
            "",
            "It was trained without given frames. They are put in at sampling, by replacement and guidance, which needs a"
            ' gradient through the network (`replacement="noised"`, `reconstruction_guidance`). With `num_resamples=4, eta=1.0` what is'
            " made joins them better, at four times the cost:",
            "",
            *lines[:2],
            *(rows[task] for task in by_guidance),
        ]
    if model.has_memory and not model.makes_one_window:
        lines += [
            "",
            "Frames of a window are neighbours. Those farther away it knows by its memory, in which each clip of"
            f" {_count(model.unet['max_frames'], 'frame')} counts half as much as the next.",
        ]
    elif not model.is_beside and not model.unet.get("has_frame_gaps"):
        lines += [
            "",
            "Frames of a window are neighbours: of those farther away than a window is long, it sees nothing.",
        ]
    return "\n".join([*lines, "", _units(model)])


def _units(model: _Model) -> str:
    """Size and values of frames."""
    ranges = [f"{plain_text(low)} to {plain_text(high)}" for low, high in model.value_ranges]
    units = "in [0, 1]" if model.units is None else f"in the units of the data, {ranges[0]}"
    if len(ranges) > 1:
        units = f"in the units of the data, channel by channel: {'; '.join(ranges)}"
    return (
        f"Frames have {_count(model.num_channels, 'channel')} of {model.height}x{model.width} pixels (other sizes run, and were not"
        f" trained), values are floats {units}. Shapes are (videos, frames, channels, height, width)."
    )


def _calls(model: _Model, facts: "CardFacts") -> dict[str, str]:
    """Task -> arguments of the pipeline."""
    block = model.frames[1]
    num_predicted = facts.num_predicted_frames or 2 * block
    if model.makes_one_window:
        num_predicted = block
    between = "past_frames=past, future_frames=future" + f", num_frames={block}" * model.has_windows
    if model.is_beside:  # it is shown the frame before and the one after
        num_between = max(1, model.unet["max_frames"] - 2)
        between = f"past_frames=past[:, -1:], future_frames=future[:, :1], num_frames={num_between}"
    calls = {
        "prediction": f"past_frames=past, num_frames={num_predicted}",
        "past prediction": f"future_frames=future, num_frames={block}",
        "interpolation": between,
        "generation": f"num_frames={num_predicted}, batch_size=4",
    }
    return {task: arguments for task, arguments in calls.items() if task in facts.tasks}


def _options(facts: "CardFacts") -> str:
    steps = f"num_inference_steps={facts.num_inference_steps}"
    if facts.timesteps is not None:
        steps = f"timesteps=list(range({', '.join(map(str, facts.timesteps))}))"
    return f'{steps}, output_type="pt"'


def _use(model: _Model, facts: "CardFacts") -> str:
    return f"With `mcvd-diffusers` {plain_text(facts.written_by)} or newer installed:\n\n```python\n{_example(model, facts)}\n```"


def _further_citations(model: _Model) -> list[str]:
    """Of the systems whose network and context encoder these are, if they are not MCVD's."""
    systems = [model.system, *["LGC-VD"] * model.has_memory, *["RVD"] * model.makes_residuals]
    return [CITATIONS[system] for system in dict.fromkeys(systems) if system in CITATIONS]


def _shown_numbers(result: dict) -> list[dict]:
    """All but the histogram's, of which each is one bar."""
    return [number for number in result["numbers"] if number["metric"] != "rank_histogram"]


def _results(evaluations: dict[str, dict], facts: "CardFacts") -> str | None:
    if not evaluations:
        return None
    parts = []
    for name, result in evaluations.items():
        protocol = result["protocol"]
        rows = [
            "| metric | of | samples | value | 95 % interval, or where it was read |",
            "| --- | --- | --- | --- | --- |",
        ]
        for number in _shown_numbers(result):
            value = "not defined"
            if number["value"] is not None:
                value = f"{number['value']:.5g} {plain_text(number['unit'])}".strip()
            ends = (number["low"], number["high"])
            interval = "" if None in ends else f"{ends[0]:.5g} to {ends[1]:.5g}"
            rows.append(
                f"| {plain_text(number['metric'])} | {plain_text(number['made_by'])} | {plain_text(number['samples'])} | {value} |"
                f" {interval} |"
            )
        for row in published_results(protocol["name"]):
            rows.append(
                f"| {row['metric']} | {row['model']} (paper) | {row['samples']} | {row['value']:g} | {row['remark']} |"
            )
        cost, weights = result.get("cost") or {}, _weights_of(result, facts)
        sentences = [
            f"Every row, frame by frame, is in `evaluation/{plain_text(name)}/results.parquet`; the whole protocol in `results.md` beside it."
        ]
        if cost.get("num_videos") and cost["seconds_per_video"] is not None:
            sentences.append(
                f"It took {cost['network_calls'] / cost['num_videos']:.4g} network calls and {cost['seconds_per_video']:.3g} s a"
                f" video on {plain_text(cost['device'])}."
            )
        summary = (
            f"{plain_text(protocol['title'])}. {result['data']['num_clips']} clips of {result['data']['num_videos']} videos"
            f" ({plain_text(result['data']['description'])})."
        )
        parts.append(
            "\n".join(
                [
                    f"### {plain_text(protocol['label'])}: {weights}, {_sampler(result)}\n",
                    f"{summary}\n",
                    *rows,
                    "",
                    " ".join(sentences),
                ]
            )
        )
    return "\n\n".join(parts)


def _data(model: _Model, facts: "CardFacts") -> str:
    if facts.dataset is None:
        return "Not stated by who published this model."
    name = f"`{plain_text(facts.dataset)}`"
    if facts.dataset_id:
        name = f"[{facts.dataset_id}](https://huggingface.co/datasets/{facts.dataset_id})"
    licence = "not stated by who trained this model; it holds all the same"
    if facts.data_license:
        licence = plain_text(facts.data_license)
    return _table([("name", name), ("licence", licence), *_plain_rows(facts.data)])


def _training(model: _Model, facts: "CardFacts") -> str:
    past, block, future = model.frames
    frames = f"{past} past, {block} at a time, {future} future; {_count(model.num_channels, 'channel')}"
    if model.has_windows:
        up_to = "" if model.is_beside else "up to "
        frames = f"{up_to}{model.unet['max_frames']} at a time; {_count(model.num_channels, 'channel')}"
    sampler = f"{plain_text(model.scheduler_name)}, {facts.num_inference_steps} steps a block"
    if model.guider_name is not None:
        sampler += f", {_guider(model.guider_name, model.guider)}"
    if model.frame_schedule is not None:
        sampler += f", longer videos by the frame schedule {plain_text(model.frame_schedule)}"
    if model.replacement is not None:
        sampler += f", given frames put in {plain_text(model.replacement)}"
        sampler += f", reconstruction guidance {plain_text(model.reconstruction_guidance)}"
    if model.final_denoise:
        sampler += ", and the original's final denoising call"
    networks = "UNet and context encoder" if model.has_encoder else "UNet"
    rows = [
        ("frames", f"{frames}, {model.height}x{model.width} pixels"),
        ("network", f"{networks}, {facts.num_parameters:,} parameters, {model.conditioning}"),
        ("sampler", sampler),
    ]
    text = _table([*rows, *_plain_rows(facts.training)])
    if facts.command:
        text += f"\n\n```bash\n{facts.command}\n```"
    if facts.hyperparameters:
        settings = _table([(f"`{name}`", value) for name, value in _plain_rows(facts.hyperparameters)])
        text += f"\n\n<details><summary>All settings</summary>\n\n{settings}\n\n</details>"
    return text


def _weights(facts: "CardFacts") -> str:
    licence = (
        f"Licence: {plain_text(facts.model_license)}."
        if facts.model_license
        else "No licence of the weights is stated."
    )
    digests = [f"Tensors of {name or 'no variant'}: SHA-256 `{plain_text(x)}`." for name, x in facts.tensors.items()]
    rows = ["| file | bytes | SHA-256 |", "| --- | --- | --- |"]
    for path, file in facts.files.items():
        if path.endswith(".safetensors"):
            rows.append(f"| `{plain_text(path)}` | {file['bytes']:,} | `{plain_text(file['sha256'])}` |")
    return "\n\n".join([*([facts.weights] if facts.weights else []), licence, "\n".join(rows), *digests])


def _samples_of_the_original(model: _Model, facts: "CardFacts") -> str | None:
    example = next(iter(_calls(model, facts).values()), None)
    if facts.source is None or example is None:
        return None
    if not model.samples_as_the_original:
        return (
            "This pipeline is saved with another sampler than the original's. To repeat the original's samples, convert its checkpoint"
            " anew, with `--sampler original`; the card then says how."
        )
    lines = [
        "The original draws all noise from one stream in its own order, for the whole batch at once. Its samples are repeated"
        " by its recorded draws, or by a generator in the state that the original's had when it began to sample, with the same"
        " batch. (A seed alone is not that state: making the network and loading data draw from the stream, too.)",
        "",
        "```python",
        "from mcvd_diffusers import NoiseSequence",
        "",
        "noise = NoiseSequence(torch.Generator().manual_seed(0))  # or a list of recorded draws; goes on from call to call",
        f"video = pipe({example}, {_options(facts)}, generator=noise).frames",
        "```",
    ]
    if model.final_denoise:
        lines += [
            "",
            "After the last step the original calls the network once more, with a noise level that is too high, which takes"
            " contrast away (about 4 % at 100 steps, for a perfect network). The config of this checkpoint asks for it, so it is"
            " on; `final_denoise=False` leaves it out.",
        ]
    return "\n".join(lines)


def _limits(model: _Model, evaluations: dict[str, dict], facts: "CardFacts") -> str:
    data = "its training data" if facts.dataset is None else f"`{plain_text(facts.dataset)}`"
    part = "window" if model.has_windows else "block"
    reads = "given frames of those before"
    if model.system == "RVD":
        part, reads = "frame" if model.unet["max_frames"] == 1 else part, "of what is known of all before"
    lines = [
        f"- It knows what {data} shows, at the size and frame rate of the training. Of other data its videos may be wrong"
        " without looking wrong.",
        *[f"- Videos that are longer than a {part} are made {part} by {part}, each {reads}: errors add up."]
        * (not model.makes_one_window),
        "- A sample is one possible future, not the future. Do not take single samples for measurements or forecasts on which"
        " somebody depends; make an ensemble, and measure how well its spread is calibrated.",
    ]
    if not evaluations:
        lines.append("- This card knows of no evaluation on held-out videos by a protocol.")
    if facts.source is not None:
        lines.append("- The licences of the weights' authors and of the training data are not known to it, and hold.")
    return "\n".join(lines)


def _check(facts: "CardFacts") -> str:
    return (
        f"`mcvd-diffusers verify {facts.repo_id or '.'}` computes again what this card claims: the hashes, the parameters, the example, the"
        " evaluations' numbers from their rows, and with `--data` the evaluations themselves."
    )


# --------------------------------------------------------------------------------------------------------------------
# Words


def _weights_of(result: Mapping, facts: "CardFacts") -> str:
    """Which of the model's weights were evaluated."""
    digest = result["model"]["weights_sha256"]
    variants = [variant for variant, tensors in facts.tensors.items() if tensors == digest]
    if not variants:
        return f"weights {plain_text(digest[:12])}, which are not here"
    names = {"ema": "averaged weights (EMA)", "": "raw weights" if "ema" in facts.tensors else "weights"}
    return names.get(variants[0], f"weights of variant {plain_text(variants[0])}")


def _sampler(result: Mapping) -> str:
    sampler = result["sampler"]
    text = f"{plain_text(sampler['scheduler']).removesuffix('Scheduler')}, {sampler['num_inference_steps']} steps"
    if sampler.get("guidance_scale", 1) != 1:
        text += f", guidance {plain_text(sampler['guidance_scale'])}"
    guider = sampler.get("guider")
    if isinstance(guider, Mapping):
        text += f", {_guider(guider.get('name'), guider)}"
    return text + (", final denoising call" if sampler.get("final_denoise") else "")


def _guider(name: object, settings: Mapping) -> str:
    scale = settings.get("guidance_scale")
    return f"guided by {plain_text(name)}" + (f" of scale {plain_text(scale)}" if scale is not None else "")


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)])


def _plain_rows(table: Mapping[str, object]) -> list[tuple[str, str]]:
    return [(plain_text(name), plain_text(value)) for name, value in table.items() if value is not None]


def _identifier(text: str) -> str:
    return "".join(character if character.isalnum() else "_" for character in text.lower())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def plain_text(value: object) -> str:
    """
    A value that may come from an untrusted file, as text that ends no table's cell, code span or tag.

    Args:
        value (`object`): Text or a number.

    Returns:
        `str`: At most 200 characters.
    """
    if isinstance(value, (list, tuple)):
        return plain_text(" ".join(map(str, value)))
    is_count = isinstance(value, int) and not isinstance(value, bool)
    text = f"{value:,}" if is_count else str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:  # else all of its digits
        text = f"{value:g}"
    return "".join(x if x.isprintable() and x not in "`|<>[]\\" else "?" for x in text[:200])
