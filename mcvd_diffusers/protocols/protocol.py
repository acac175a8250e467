"""A protocol: everything that has to be the same for two numbers to be comparable.

Published ones are the YAML files beside this one; a user's own is one more file, with the same fields. A number without its
protocol is no number: [`Protocol.label`] stands beside each, and two labels that differ are two quantities.

| field | says |
| --- | --- |
| `name`, `version` | the label, with what was changed; a file that changes gets another version |
| `task` | `prediction`, `past_prediction`, `interpolation` or `generation` |
| `num_past_frames`, `num_frames`, `num_future_frames` | given before, made, given after |
| `frame_size`, `resize`, `num_channels`, `frame_stride` | what frames are brought to before anything is measured |
| `num_clips`, `clip_choice`, `clip_seed`, `short_videos`, `moving_digits` | which clips |
| `samples_per_clip`, `best_of` | how many videos a clip, and which of them counts |
| `metrics` | what is measured on each video |
| `ssim_quantisation`, `ssim_color` | what SSIM sees |
| `ensemble_metrics` | what is measured on all samples of a clip together |
| `feature_networks` | distances between all made and all true videos, one for each network |
| `given_frames_in_distances` | whether these see the given frames, too |
| `distance_per_trajectory` | whether they are also computed for each of the samples apart |
| `missing_values` | what is done where data are missing |
"""

import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import reprlib
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml


FOLDER = Path(__file__).parent

TASKS = ("prediction", "past_prediction", "interpolation", "generation")
METRICS = ("mse", "psnr_of_mean_mse", "psnr_of_video_mse", "psnr_frame_mean", "ssim", "lpips")
ENSEMBLE_METRICS = ("crps", "fair_crps", "energy_score", "spread_skill_ratio", "rank_histogram")
DIGIT_FIELDS = ("num_digits", "digit_size", "max_speed", "num_images", "source")
DIGIT_SOURCES = ("mnist", "mnist-10k", "sklearn")

MAX_FILE_BYTES = 2**20  # of a protocol: a page of text
MAX_SCALAR = 10_000  # characters of one value in a file: what is longer is no text of one line
MAX_TEXT = 1000  # characters of a line of text

# Least and greatest of each integer: wide of what is run, and narrow enough that nothing overflows or fills the memory.
_BOUNDS = {
    "version": (1, 10**6),
    "num_frames": (1, 100_000),
    "num_past_frames": (0, 100_000),
    "num_future_frames": (0, 100_000),
    "frame_stride": (1, 10**6),
    "samples_per_clip": (1, 10_000),
    "num_clips": (2, 10**7),
    "num_channels": (1, 10_000),
    "clip_seed": (0, 2**32 - 1),
}
_MAX_SIDE = 16_384
_DIGIT_BOUNDS = {"num_digits": (1, 100), "digit_size": (1, 10**6), "max_speed": (0, 10**6), "num_images": (0, 10**6)}
_MAX_DIGIT_CLIPS, _MAX_DIGIT_FRAMES, _MAX_DIGIT_SIDE = 10**6, 10_000, 4096  # these are drawn on the way

# What does not change a number.
_PROSE = ("title", "source", "notes")

# What can be left out, as a label says: "without lpips, i3d".
_MEASURES = ("metrics", "ensemble_metrics", "feature_networks")


class ProtocolError(ValueError):
    """A protocol that does not exist or says what cannot be; the message names the field."""


@dataclass(frozen=True)
class Protocol:
    """
    How videos are made and measured: see the table above.

    Args:
        name (`str`): Letters, digits, `-`, `_` and `.`, such as `"mcvd-kth-10-30"`.
        version (`int`): From 1.
        title (`str`): One line of at most 1000 characters: data set, frames.
        source (`str`): One line: where it comes from, such as paper, section, code.
        task (`str`): What the model is given: past frames, future frames, both or nothing.
        num_frames (`int`): Frames that are made and judged.
        num_past_frames, num_future_frames (`int`, *optional*, default to 0): Frames that are given before and after.
        num_channels (`int`, *optional*): Channels of the frames: 1 is also made of colour; by default those of the data.
        frame_size (`tuple[int, int]`, *optional*): Height and width in pixels; by default those of the data.
        resize (`str`, *optional*, defaults to `"stretch"`): As in [`ClipDataset`]: `"stretch"`, `"cover"` or `"crop"`.
        frame_stride (`int`, *optional*, defaults to 1): Frames of the video from one frame of a clip to the next.
        num_clips (`int`, *optional*): Clips that are judged; by default one of each video.
        clip_choice (`str`, *optional*, defaults to `"first"`):
            Where a clip begins in its video. `"first"`: at its first frame. `"random"`: anywhere. `"mcvd"`: anywhere but at
            the last possible frame, as the original draws. With fewer clips than videos, these are spread over all
            videos; with more, `"first"` is refused, and the others take several of a video.
        clip_seed (`int`, *optional*, defaults to 0): Seed of the starts, and of moving digits.
        short_videos (`str`, *optional*, defaults to `"refuse"`): Videos that are shorter than a clip: `"refuse"` or `"skip"`.
        moving_digits (`dict[str, int | str]`, *optional*):
            For digits that are drawn: `num_digits`, `digit_size`, `max_speed`, `num_images`, how many images of the
            held-out ones are used (from the first; 0 for all), and their `source`, `"mnist"` or `"sklearn"`.
        samples_per_clip (`int`, *optional*, defaults to 1): Videos that are made for each clip.
        best_of (`str`, *optional*, defaults to `"mean"`):
            Of several samples: `"each_metric"`, the best by each metric on its own (which no one sample need reach), or
            `"mean"`, the mean over them.
        metrics (`tuple[str, ...]`, *optional*):
            `"mse"`, `"psnr_of_mean_mse"` (decibels of the mean squared error over all clips: finite also when a clip is met
            exactly), `"psnr_of_video_mse"` (mean of the videos' decibels, each of all pixels of all its frames),
            `"psnr_frame_mean"` (mean of the frames' decibels), `"ssim"`, `"lpips"`. Values are in `[0, 1]`: of the range of
            the model's units.
        ssim_quantisation (`str`, *optional*, defaults to `"none"`): As in [`metrics.frame_ssim`].
        ssim_color (`str`, *optional*, defaults to `"channels"`): As in [`metrics.frame_ssim`].
        ensemble_metrics (`tuple[str, ...]`, *optional*):
            `"crps"`, `"fair_crps"`, `"energy_score"`, `"spread_skill_ratio"`, `"rank_histogram"`, in the model's units.
        feature_networks (`tuple[str, ...]`, *optional*): As [`metrics.load_feature_network`] takes them, such as `"i3d"`.
        given_frames_in_distances (`bool`, *optional*, defaults to `False`): Whether given frames are part of these videos.
        distance_per_trajectory (`bool`, *optional*, defaults to `False`):
            Whether distances are also computed for the first sample of all clips, the second, and so on.
        missing_values (`str`, *optional*, defaults to `"refuse"`):
            NaN in a clip: `"refuse"`, or `"fill"` with what the model was trained to see there, in truth and samples.
        notes (`tuple[str, ...]`, *optional*): One line each: what is known, what is not, and what differs from the source.
        changes (`tuple[str, ...]`, *optional*):
            What was changed on the way, such as `"num_clips=8"`, `"without lpips"`; part of the label.

    Raises:
        [`ProtocolError`]: If a field is of another type or out of range, or fields contradict each other.
    """

    name: str
    version: int
    title: str
    source: str
    task: Literal["prediction", "past_prediction", "interpolation", "generation"]
    num_frames: int
    num_past_frames: int = 0
    num_future_frames: int = 0
    num_channels: int | None = None
    frame_size: tuple[int, int] | None = None
    resize: Literal["stretch", "cover", "crop"] = "stretch"
    frame_stride: int = 1
    num_clips: int | None = None
    clip_choice: Literal["first", "random", "mcvd"] = "first"
    clip_seed: int = 0
    short_videos: Literal["refuse", "skip"] = "refuse"
    moving_digits: dict[str, int | str] | None = None
    samples_per_clip: int = 1
    best_of: Literal["each_metric", "mean"] = "mean"
    metrics: tuple[str, ...] = ()
    ssim_quantisation: Literal["none", "floor_8bit", "round_8bit", "binary"] = "none"
    ssim_color: Literal["luma", "channels"] = "channels"
    ensemble_metrics: tuple[str, ...] = ()
    feature_networks: tuple[str, ...] = ()
    given_frames_in_distances: bool = False
    distance_per_trajectory: bool = False
    missing_values: Literal["refuse", "fill"] = "refuse"
    notes: tuple[str, ...] = ()
    changes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if isinstance(value, list):
                object.__setattr__(self, entry.name, tuple(value))
        self._check_types()
        self._check_frames()
        self._check_measures()

    @property
    def label(self) -> str:
        """The name that stands beside each number, such as `"mcvd-kth-10-30 v1 (num_clips=8)"`."""
        return f"{self.name} v{self.version}" + (f" ({', '.join(self.changes)})" if self.changes else "")

    @property
    def digest(self) -> str:
        """SHA-256 of all that can change a number: equal labels must have equal digests."""
        measured = {name: value for name, value in self.to_dict().items() if name not in _PROSE}
        return hashlib.sha256(json.dumps(measured, sort_keys=True).encode()).hexdigest()

    @property
    def num_clip_frames(self) -> int:
        """Frames of a clip: given and made."""
        return self.num_past_frames + self.num_frames + self.num_future_frames

    def to_dict(self) -> dict:
        """
        All fields.

        Returns:
            `dict`: Plain numbers, strings, lists; `Protocol(**d)` gives the protocol back.
        """
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }

    def changed(self, **fields) -> "Protocol":
        """
        Another protocol, whose label says what is different.

        The label says what is different, then what is left out of the measures: `"num_clips=8, without lpips, i3d"`.
        Without feature networks, or with 1 sample a clip, `distance_per_trajectory` means nothing: it becomes `False`,
        and the label does not say so.

        Args:
            **fields: Names and values of fields.

        Returns:
            [`Protocol`]: The other; this one, if nothing is different.

        Raises:
            [`ProtocolError`]: If the other cannot be.
        """
        fields = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
        different = {name: value for name, value in fields.items() if getattr(self, name) != value}
        if not different:
            return self
        changes, without = [], []
        for name in (entry.name for entry in dataclasses.fields(self) if entry.name in different):
            before, value = getattr(self, name), different[name]
            if name in _MEASURES and value == tuple(x for x in before if x in value):
                without += [x for x in before if x not in value]
            elif isinstance(before, dict) and isinstance(value, dict):
                changes += [f"{name}.{key}={x}" for key, x in value.items() if before.get(key) != x]
            else:
                changes.append(f"{name}={_shown(value)}")
        changes += [f"without {', '.join(without)}"] if without else []
        if not fields.get("feature_networks", self.feature_networks) or fields.get("samples_per_clip") == 1:
            different.setdefault("distance_per_trajectory", False)
        made_anew = {change.split("=")[0] for change in changes if "=" in change}
        former = [change for change in self.changes if change.split("=")[0] not in made_anew]
        return dataclasses.replace(self, **different, changes=(*former, *changes))

    # ------------------------------------------------------------------------------------------------------------

    def _refuse(self, name: str, expected: str, hint: str = "") -> ProtocolError:
        got = _brief(getattr(self, name))
        return ProtocolError(f"protocol {self.name}: `{name}` must be {expected}, got {got}.{hint}")

    def _check_types(self) -> None:
        if not isinstance(self.name, str) or not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", self.name):
            raise ProtocolError(f"`name` must be letters, digits, `-`, `_` and `.`, got {_brief(self.name)}.")
        for name in ("title", "source"):
            if not _is_line(getattr(self, name)):
                raise self._refuse(name, f"a line of text: printable, at most {MAX_TEXT} characters")
        for name, (least, most) in _BOUNDS.items():
            value = getattr(self, name)
            if value is None and name in ("num_clips", "num_channels"):
                continue
            if not _is_integer(value, least, most):
                raise self._refuse(name, f"an integer from {least} to {most:,}")
        choices = {"task": TASKS, "resize": ("stretch", "cover", "crop"), "clip_choice": ("first", "random", "mcvd")}
        choices |= {"short_videos": ("refuse", "skip"), "best_of": ("each_metric", "mean")}
        choices |= {"ssim_quantisation": ("none", "floor_8bit", "round_8bit", "binary")}
        choices |= {"ssim_color": ("luma", "channels"), "missing_values": ("refuse", "fill")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise self._refuse(name, f"one of {', '.join(allowed)}")
        for name in ("given_frames_in_distances", "distance_per_trajectory"):
            if not isinstance(getattr(self, name), bool):
                raise self._refuse(name, "true or false")
        for name in (*_MEASURES, "notes", "changes"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(x, str) for x in value):
                raise self._refuse(name, "a list of texts")
        for name, allowed in (("metrics", METRICS), ("ensemble_metrics", ENSEMBLE_METRICS)):
            value = getattr(self, name)
            unknown = [x for x in value if x not in allowed]
            if unknown or len(set(value)) < len(value):
                hint = _did_you_mean(unknown[0], allowed) if unknown else ""
                raise self._refuse(name, f"different ones of {', '.join(allowed)}", hint)
        for name in ("feature_networks", "notes", "changes"):
            wrong = [x for x in getattr(self, name) if not _is_line(x)]
            if wrong:
                raise ProtocolError(
                    f"protocol {self.name}: each of `{name}` must be a line of text: printable, at most {MAX_TEXT}"
                    f" characters, got {_brief(wrong[0])}."
                )

    def _check_frames(self) -> None:
        size = self.frame_size
        if size is not None and (
            not isinstance(size, tuple) or len(size) != 2 or not all(_is_integer(x, 1, _MAX_SIDE) for x in size)
        ):
            raise self._refuse(
                "frame_size", f"height and width in pixels, each an integer from 1 to {_MAX_SIDE:,}, such as [64, 64]"
            )
        given = {  # task: (past frames given, future frames given)
            "prediction": (True, False),
            "past_prediction": (False, True),
            "interpolation": (True, True),
            "generation": (False, False),
        }[self.task]
        for name, is_given in zip(("num_past_frames", "num_future_frames"), given):
            if bool(getattr(self, name)) != is_given:
                raise self._refuse(name, f"{'at least 1' if is_given else '0'} for {self.task}")
        if self.moving_digits is not None:
            self._check_digits()

    def _check_digits(self) -> None:
        digits, size = self.moving_digits, self.frame_size
        if not isinstance(digits, dict) or set(digits) != set(DIGIT_FIELDS):
            raise self._refuse(
                "moving_digits", f"a mapping of {', '.join(DIGIT_FIELDS[:-1])} to numbers and of source to text"
            )
        for name, (least, most) in _DIGIT_BOUNDS.items():
            if not _is_integer(digits[name], least, most):
                raise ProtocolError(
                    f"protocol {self.name}: `moving_digits.{name}` must be an integer from {least} to {most:,}, got"
                    f" {_brief(digits[name])}."
                )
        if digits["source"] not in DIGIT_SOURCES:
            raise ProtocolError(
                f"protocol {self.name}: `moving_digits.source` must be one of {', '.join(DIGIT_SOURCES)}, got"
                f" {_brief(digits['source'])}."
            )
        if size is None or self.num_clips is None:
            raise self._refuse("moving_digits", "together with a `frame_size` and `num_clips`")
        if max(size) > _MAX_DIGIT_SIDE:
            raise self._refuse("frame_size", f"at most {_MAX_DIGIT_SIDE} on each side for `moving_digits`")
        if self.num_clips > _MAX_DIGIT_CLIPS:
            raise self._refuse("num_clips", f"an integer from 2 to {_MAX_DIGIT_CLIPS:,} for `moving_digits`")
        if self.num_clip_frames > _MAX_DIGIT_FRAMES:
            raise ProtocolError(
                f"protocol {self.name}: `num_past_frames`, `num_frames` and `num_future_frames` must be at most"
                f" {_MAX_DIGIT_FRAMES:,} together for `moving_digits`, got {self.num_clip_frames:,}."
            )

    def _check_measures(self) -> None:
        if not self.metrics and not self.ensemble_metrics and not self.feature_networks:
            raise ProtocolError(
                f"protocol {self.name} measures nothing: name `metrics`, `ensemble_metrics` or `feature_networks`."
            )
        if self.task == "generation" and (self.metrics or self.ensemble_metrics):
            raise ProtocolError(
                f"protocol {self.name}: what is generated from nothing has no true video to be compared with, so `metrics` and"
                " `ensemble_metrics` must be empty; `feature_networks` compare all videos with all."
            )
        if self.ensemble_metrics and self.samples_per_clip < 2:
            raise self._refuse("samples_per_clip", "at least 2 for `ensemble_metrics`")
        if self.distance_per_trajectory and self.samples_per_clip < 2:
            raise self._refuse("distance_per_trajectory", "false if there is 1 sample a clip")
        if len(set(self.feature_networks)) < len(self.feature_networks):
            raise self._refuse("feature_networks", "different networks")


def list_protocols() -> list[str]:
    """
    The published protocols.

    Returns:
        `list[str]`: Their names, sorted.
    """
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def published_results(name: str) -> list[dict]:
    """
    What papers report by a protocol, to stand beside one's own numbers.

    Args:
        name (`str`): Of the protocol.

    Returns:
        `list[dict]`: `"model"`, `"metric"`, `"samples"`, `"value"` and `"remark"`, which says where the value was read.
    """
    return json.loads((FOLDER / "published.json").read_text("utf-8")).get(name, [])


def protocol_fields() -> str:
    """
    What each field means, for a terminal.

    Returns:
        `str`: The fields of [`Protocol`], as its documentation describes them, without markup.
    """
    text = (inspect.getdoc(Protocol) or "").partition("Args:\n")[2].partition("\nRaises:")[0]
    text = textwrap.dedent(text).strip()
    text = re.sub(r"\[`([^`]*)`\]", r"\1", text)  # links
    # Types and defaults, between the name and the colon.
    return re.sub(r"(?m)^(\w[\w, ]*\()([^)]*)(?=\):)", lambda x: x[1] + re.sub("[`*]", "", x[2]), text)


def load_protocol(name: str | Path) -> Protocol:
    """
    Reads a protocol.

    Args:
        name (`str` or `Path`): The name of a published one ([`list_protocols`]), or the path of a YAML file of one's own.

    Returns:
        [`Protocol`]: The protocol.

    Raises:
        [`ProtocolError`]: If there is no such protocol or file, it is no YAML mapping, or a field is missing, unknown or wrong.
    """
    published = list_protocols()
    is_file = str(name).lower().endswith((".yaml", ".yml"))
    if not is_file and str(name) not in published:
        raise ProtocolError(
            f"There is no protocol {_brief(str(name))}.{_did_you_mean(str(name)[:100].lower(), published, most=1)} There are"
            f" {', '.join(published)}; one's own is a path that ends in .yaml."
        )
    path = Path(name) if is_file else FOLDER / f"{name}.yaml"
    try:
        path = path.expanduser() if is_file else path
        if not path.is_file() and path.exists() or path.stat().st_size > MAX_FILE_BYTES:
            raise ProtocolError(f"{path} must be a text file of at most {MAX_FILE_BYTES} bytes.")
        fields = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except ProtocolError:
        raise
    except RecursionError as error:
        raise ProtocolError(
            f"The protocol {path} cannot be read: lists or mappings stand too deep in each other."
        ) from error
    except Exception as error:  # for a wrong tag or number PyYAML raises whatever comes: KeyError, OverflowError, ...
        raise ProtocolError(f"The protocol {path} cannot be read: {_cut(str(error), 300)}") from error
    known = [entry.name for entry in dataclasses.fields(Protocol) if entry.name != "changes"]
    if not isinstance(fields, dict) or not all(isinstance(key, str) for key in fields):
        raise ProtocolError(f"The protocol {path} must be `field: value` lines. The fields are {', '.join(known)}.")
    unknown = sorted(set(fields) - set(known))
    if unknown:
        hint = _did_you_mean(unknown[0], known, mark="`") or f" The fields are {', '.join(known)}."
        raise ProtocolError(f"The protocol {path} has a field `{_cut(unknown[0])}`, which is not known.{hint}")
    missing = [
        entry.name
        for entry in dataclasses.fields(Protocol)
        if entry.default is dataclasses.MISSING
        and entry.default_factory is dataclasses.MISSING
        and entry.name not in fields
    ]
    if missing:
        raise ProtocolError(f"The protocol {path} must have {', '.join(f'`{name}`' for name in missing)}.")
    protocol = Protocol(**fields)
    if path.resolve().parent != FOLDER.resolve() and protocol.name.casefold() in {x.casefold() for x in published}:
        raise ProtocolError(
            f"The protocol {path} is named {protocol.name}, as a published one. Give it a `name` of its own, so that their"
            " numbers are not mixed up."
        )
    return protocol


class _Loader(yaml.SafeLoader):
    """Plain YAML: no alias (a few lines of them stand for billions of values), no merge key, no key twice."""

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.YAMLError(
                f"line {event.start_mark.line + 1} has an alias, `*{_cut(event.anchor)}`, which a protocol must not have."
                " Write the value out."
            )
        return super().compose_node(parent, index)

    def compose_scalar_node(self, anchor):
        node = super().compose_scalar_node(anchor)
        if len(node.value) > MAX_SCALAR:
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1} has a value of {len(node.value)} characters; {MAX_SCALAR} are the most."
            )
        return node

    def flatten_mapping(self, node):
        if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
            raise yaml.YAMLError(f"line {node.start_mark.line + 1} has a merge key (<<). Write the lines out.")

    def construct_mapping(self, node, deep=False):
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    raise yaml.YAMLError(
                        f"`{_cut(key.value)}` stands twice, again in line {key.start_mark.line + 1}. Leave one out."
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80


def _brief(value) -> str:
    """A value in a message: whatever it is, not much longer than a line."""
    try:
        return _cut(_REPR.repr(value))
    except ValueError:  # Python does not print integers of thousands of digits
        return f"{'an' if isinstance(value, int) else 'a'} {type(value).__name__} with too many digits to be shown"


def _cut(text: str, most: int = 100) -> str:
    """Printable, in one line."""
    text = " ".join(text[: 10 * most].split())
    text = "".join(x if x.isprintable() else "?" for x in text)
    return text if len(text) <= most else text[: most - 3] + "..."


def _did_you_mean(name: str, known: Sequence[str], *, mark: str = "", most: int = 3) -> str:
    near = [x for x in known if len(name) > 1 and x.startswith(name)]
    near = near or difflib.get_close_matches(name[:100], known, n=1)
    return f" Did you mean {', '.join(mark + x + mark for x in near[:most])}?" if near else ""


def _is_integer(value, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_line(value) -> bool:
    return isinstance(value, str) and bool(value.strip()) and value.isprintable() and len(value) <= MAX_TEXT


def _shown(value) -> str:
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple) else str(value)
