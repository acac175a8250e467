"""`mcvd-diffusers evaluate`, `compare` and `protocols`: numbers that carry their protocol."""

import argparse
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .loading import (
    AVERAGED,
    AVERAGED_NOTE,
    add_model_options,
    add_reading_options,
    add_sampling_options,
    given_reading_options,
    in_flags,
    load_pipeline,
    reading_options,
)
from .printing import integer_from, log_progress, number_of, one_line, printable


if TYPE_CHECKING:
    # The networks and data libraries are imported where they are needed: `--help` does without.
    from mcvd_diffusers.data import ClipReader
    from mcvd_diffusers.evaluation import EvaluationClips
    from mcvd_diffusers.pipelines import MCVDPipeline
    from mcvd_diffusers.protocols import Protocol

SETTINGS_OF_A_RUN = "training_settings.yaml"  # as train_mcvd.py calls them, in its folder
NETWORKS = ("i3d", "videomae", "vjepa2")  # that can lie somewhere else than on the Hub


def add_evaluate(commands) -> None:
    """Adds the commands to those of a parser."""
    _add_evaluate(commands)
    parser = commands.add_parser(
        "compare",
        allow_abbrev=False,
        help="two models that were evaluated by one protocol on the same clips",
        description="The numbers of two evaluations beside each other, with the interval of the difference clip by clip."
        " Refused if protocols or clips differ.",
    )
    parser.add_argument("first", metavar="FIRST", help="results.parquet, or the folder that it is in")
    parser.add_argument("second", metavar="SECOND", help="the same of another model")
    parser.set_defaults(run=_compare)
    parser = commands.add_parser(
        "protocols",
        allow_abbrev=False,
        help="the published protocols, or all that one of them says",
        description="List the published protocols, or print one, for instance to begin a file of one's own with it.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="the protocol to print: a name, or a .yaml file")
    parser.add_argument("--fields", action="store_true", help="say what each field of a protocol means")
    parser.set_defaults(run=_protocols)


def _add_evaluate(commands) -> None:
    parser = commands.add_parser(
        "evaluate",
        allow_abbrev=False,
        usage="%(prog)s MODEL --data PATH --protocol NAME --output DIR [options]\n       %(prog)s --from results.parquet",
        help="a model, test videos and a protocol -> numbers with their intervals",
        description="Evaluate a model by a protocol: sample, measure, and report every number with its interval. What was"
        " interrupted goes on by the same command.",
        epilog="On several devices: accelerate launch -m mcvd_diffusers.cli evaluate ...",
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", help="folder of a pipeline, or its id on the Hub")
    add_model_options(parser)
    add("--protocol", metavar="NAME", help="a published protocol (mcvd-diffusers protocols), or a .yaml file")
    add("--output", metavar="DIR", help="folder of the results: a new one, or that of the same evaluation")
    add("--from", dest="source", metavar="FILE", help="compute all numbers again from a results.parquet, and check it")

    data = parser.add_argument_group("data")
    data.add_argument("--data", metavar="PATH", help="test videos: a file or folder, as train_mcvd.py takes them")
    data.add_argument(
        "--digits",
        choices=("mnist", "mnist-10k", "sklearn"),
        help="for protocols of moving digits: draw others than the protocol says: MNIST's (from the Hub), those of its"
        " training images that come with this package, scikit-learn's",
    )
    data.add_argument("--names", nargs="+", metavar="NAME", help='only these videos; patterns such as "val/*"')
    data.add_argument("--names_list", metavar="FILE", help="only the videos named in a file")
    data.add_argument(
        "--validation_fraction",
        type=float,
        metavar="SHARE",
        help="only the videos that train_mcvd.py holds out with this share",
    )
    data.add_argument("--split_frames", type=integer_from(1), metavar="N", help="cut long videos, as in train_mcvd.py")
    add_reading_options(data)

    sampling = parser.add_argument_group("sampling (part of each result, not of the protocol)")
    add_sampling_options(sampling)
    sampling.add_argument("--eta", type=float, default=0.0, help="DDIM's stochasticity (default: 0)")
    sampling.add_argument(
        "--final_denoise",
        action=argparse.BooleanOptionalAction,
        help="the original's last network call; by default as the model has it",
    )

    change = parser.add_argument_group("changes to the protocol, which its label then says")
    change.add_argument("--num_clips", type=integer_from(2), metavar="N", help="fewer clips, to try things out")
    change.add_argument("--samples_per_clip", type=integer_from(1), metavar="N", help="fewer samples")
    change.add_argument(
        "--leave_out", nargs="+", default=[], metavar="METRIC", help="metrics or feature networks, such as lpips i3d"
    )
    where = parser.add_argument_group("feature networks, if they are not to come from the Hub")
    where.add_argument("--i3d", metavar="FILE", help="FVD's TorchScript file: path or URL; its SHA-256 is checked")
    where.add_argument("--videomae", metavar="DIR", help="folder or Hub id of a VideoMAE")
    where.add_argument("--vjepa2", metavar="DIR", help="folder or Hub id of a V-JEPA 2")
    defaults = {action.dest: action.default for action in parser._actions}
    parser.set_defaults(run=_evaluate, refuse=parser.error, defaults=defaults)


def _evaluate(arguments: argparse.Namespace) -> int:
    try:
        if arguments.source is not None:
            return _recompute(arguments)
        missing = [name for name in ("model", "protocol", "output") if getattr(arguments, name) is None]
        if missing:
            arguments.refuse(f"missing: {', '.join('MODEL' if name == 'model' else f'--{name}' for name in missing)}")
        return _run(arguments)
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"mcvd-diffusers evaluate: {one_line(str(error))}", file=sys.stderr)
        return 1


def _run(arguments: argparse.Namespace) -> int:
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env
    from diffusers.utils import logging as diffusers_logging

    from mcvd_diffusers.evaluation import Sampler, check_output, evaluate
    from mcvd_diffusers.evaluation.report import as_table, can_plot
    from mcvd_diffusers.metrics import LPIPS, load_feature_network
    from mcvd_diffusers.protocols import load_protocol

    # What is quick to find out first: the protocol, the model, the data; then networks that may be downloaded.
    protocol = arguments.protocol  # `verify` gives it as it was
    protocol = _changed(load_protocol(protocol) if isinstance(protocol, str) else protocol, arguments)
    output = Path(arguments.output).expanduser()
    check_output(output)
    if arguments.data is not None and Path(arguments.data).is_dir():
        if output.resolve().is_relative_to(Path(arguments.data).resolve()):
            raise ValueError(
                f"--output {output} lies in --data {arguments.data}, and would be taken for data: choose another."
            )
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))  # which it does not look at itself
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    pipeline, variant = load_pipeline(arguments.model, variant=arguments.variant, scheduler=arguments.scheduler)
    clips, data_notes = _open_clips(arguments, protocol, pipeline)
    places = {name: getattr(arguments, name) for name in NETWORKS}
    useless = [name for name in NETWORKS if places[name] and name not in protocol.feature_networks]
    if useless:
        raise ValueError(f"--{useless[0]} means nothing for {protocol.label}, which does not ask for that network.")
    with state.main_process_first():  # so that what is downloaded is downloaded once
        networks = []
        for spec in protocol.feature_networks:
            place = places.get(spec)
            try:
                networks.append(load_feature_network(f"{spec}:{place}" if place else spec, device=state.device))
            except (ValueError, OSError, ImportError) as error:
                way_out = f"--{spec} says where it is, " if spec in NETWORKS else ""
                raise ValueError(f"{error} ({way_out}--leave_out {spec} does without)") from error
        try:
            lpips = LPIPS.from_package(device=state.device) if "lpips" in protocol.metrics else None
        except (OSError, ImportError) as error:
            raise ValueError(f"{error} (--leave_out lpips does without)") from error
    pipeline = pipeline.to(state.device)
    pipeline.set_progress_bar_config(disable=True)
    if state.is_main_process:
        samples = len(clips) * protocol.samples_per_clip
        print(
            printable(f"{protocol.label}: {number_of(samples, 'video')} of {number_of(len(clips), 'clip')}"),
            flush=True,
        )
        notes = [AVERAGED_NOTE] if variant == AVERAGED and arguments.variant is None else []
        for note in [*notes, *data_notes, *_notes(arguments, protocol, pipeline, clips)]:
            print(printable(f"note: {note}"), flush=True)
        if not can_plot():
            print('note: no plots: they need matplotlib, pip install "mcvd-diffusers[plots]"', flush=True)
    results = evaluate(
        pipeline,
        clips,
        protocol,
        output,
        model=f"{_name_of(arguments.model)}{f' ({variant})' if variant else ''}",
        sampler=Sampler(
            num_inference_steps=arguments.num_inference_steps,
            eta=arguments.eta,
            guidance_scale=arguments.guidance_scale,
            final_denoise=arguments.final_denoise,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
        ),
        networks=networks,
        lpips=lpips,
        process_index=state.process_index,
        num_processes=state.num_processes,
        wait_for_everyone=state.wait_for_everyone,
        progress=log_progress if state.is_main_process else lambda items, label: items,
    )
    if results is not None:
        print(printable(as_table(results)))
        print(
            printable(
                f"\nwritten to {arguments.output}; check it with: mcvd-diffusers evaluate --from {arguments.output}"
            )
        )
    state.destroy_process_group()
    return 0


def _changed(protocol: "Protocol", arguments: argparse.Namespace) -> "Protocol":
    """The protocol with what the flags change."""
    fields = {
        name: getattr(arguments, name)
        for name in ("num_clips", "samples_per_clip")
        if getattr(arguments, name) is not None
    }
    if arguments.digits is not None:
        if protocol.moving_digits is None:
            raise ValueError(f"--digits: {protocol.label} judges videos, not digits that are drawn: pass --data PATH.")
        fields["moving_digits"] = protocol.moving_digits | {"source": arguments.digits}
    for name in arguments.leave_out:
        lists = [
            entry for entry in ("metrics", "ensemble_metrics", "feature_networks") if name in getattr(protocol, entry)
        ]
        if not lists:
            there = ", ".join([*protocol.metrics, *protocol.ensemble_metrics, *protocol.feature_networks])
            raise ValueError(f"--leave_out {name}: {protocol.label} does not measure that, but {there}.")
        for entry in lists:
            kept = fields.get(entry, getattr(protocol, entry))
            fields[entry] = tuple(x for x in kept if x != name)
    return protocol.changed(**fields)


def _open_clips(
    arguments: argparse.Namespace, protocol: "Protocol", pipeline: "MCVDPipeline"
) -> "tuple[EvaluationClips, list[str]]":
    """The clips of the protocol, of the data that the flags name; and what is to be said of these."""
    from mcvd_diffusers.data import PieceReader, open_reader, published_split, read_names, split_videos
    from mcvd_diffusers.evaluation import choose_clips, draw_digits

    num_channels = pipeline.frame_shape[0]
    choices = {name: getattr(arguments, name) for name in ("names", "names_list", "validation_fraction")}
    given = [name for name, value in choices.items() if value is not None]
    options = given_reading_options(arguments)
    if protocol.moving_digits is not None:
        useless = ["data", *given, *options, "split_frames"]
        useless = [name for name in useless if getattr(arguments, name) is not None]
        if useless:
            raise ValueError(
                f"--{useless[0]} means nothing for {protocol.label}, which draws its digits: leave it out, or write a protocol"
                " of one's own for stored videos, such as examples/protocols/my-videos.yaml."
            )
        return draw_digits(protocol, num_channels=num_channels), []
    if arguments.data is None:
        raise ValueError(f"--data is missing: {protocol.label} judges videos. Say where they are.")
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} both say which videos: pass one of them.")
    is_as_arrays = "axes" in options or "variables" in options
    facts = [f"{name} {' '.join(value) if isinstance(value, list) else value}" for name, value in options.items()]
    try:
        published = None if is_as_arrays or given else published_split(arguments.data)
        if published is not None:
            reader = published[1]
            facts.append("test videos as published")
        else:
            reader = open_reader(arguments.data, **reading_options(arguments))
    except ValueError as error:
        raise ValueError(f"--data {arguments.data}: {in_flags(str(error), path='--data')}") from error
    whole = reader
    if arguments.split_frames is not None:
        reader = PieceReader(reader, arguments.split_frames)
        facts.append(f"in pieces of {arguments.split_frames} frames")
    if given:
        side = choices[given[0]]
        shown = _name_of(side) if given == ["names_list"] else side
        facts.append(f"--{given[0]} {' '.join(shown) if isinstance(shown, list) else shown}")
        try:
            side = read_names(side) if given == ["names_list"] else side
            reader = (
                _only(reader, side) if given != ["validation_fraction"] else split_videos(reader, validation=side)[1]
            )
        except ValueError as error:
            raise ValueError(f"--{given[0]}: {error}") from error
    fact, notes = ("", []) if published is not None else _seen_in_training(arguments, whole, reader)
    description = ", ".join([Path(arguments.data).name, *facts, *([fact] if fact else [])])
    clips = choose_clips(
        reader, protocol, normalizer=pipeline.normalizer, num_channels=num_channels, description=description
    )
    return clips, notes


def _seen_in_training(
    arguments: argparse.Namespace, whole: "ClipReader", reader: "ClipReader"
) -> tuple[str, list[str]]:
    """
    Which of the videos the model was trained on, if its folder is that of a run on the same data.

    Args:
        arguments (`argparse.Namespace`): Of the command.
        whole ([`ClipReader`]): All videos of the data.
        reader ([`ClipReader`]): Those that are evaluated.

    Returns:
        `tuple[str, list[str]]`: A fact for the description of the data, empty if there is nothing to say; and notes.
    """
    from mcvd_diffusers.data import PieceReader, published_split, read_names, split_videos

    run = _settings_of_run(arguments.model)
    if not isinstance(run.get("train_data_dir"), str):
        return "", []
    if Path(run["train_data_dir"]).expanduser().resolve() != Path(arguments.data).expanduser().resolve():
        return "", []
    length, sides, flags = run.get("split_frames"), {}, []
    try:
        for side in ("validation", "test"):
            names, file, share = (run.get(f"{side}_{way}") for way in ("names", "list", "fraction"))
            sides[side] = names or (read_names(file) if file else share) or ()
            if names:
                flags = ["--names", *names]
            elif file:
                flags = ["--names_list", file]
            elif share and side == "validation":  # a share for testing is no flag of `evaluate`
                flags = ["--validation_fraction", str(share)]
        published = None if run.get("axes") or run.get("variables") else published_split(arguments.data)
        if published is not None:
            trained, way_out = published[0], "without flags that choose videos, the published test videos are taken"
        else:
            trained = split_videos(PieceReader(whole, length) if length else whole, **sides).train
            flags += ["--split_frames", str(length)] if length else []
            way_out = f"{shlex.join(flags)} takes videos that its training held out"
    except (ValueError, TypeError) as error:
        return "", [
            f"the model was trained on {arguments.data}; which of its videos it has seen cannot be told: {error}"
        ]
    # Pieces of other lengths have other names: then a video counts if any of it was seen.
    is_alike = length == arguments.split_frames
    names, seen = (
        [x if is_alike else re.sub(r"\[\d+:\]$", "", x) for x in map(each.name, range(len(each)))]
        for each in (reader, trained)
    )
    seen = set(seen)
    count = sum(name in seen for name in names)
    if not count:
        return "", []
    fact = f"{count} of its {number_of(len(names), 'video')} seen in training"
    return fact, [f"the model was trained on {count} of these {number_of(len(names), 'video')}: {way_out}"]


def _settings_of_run(model: str) -> dict:
    """What the run was started with whose folder, or one of whose checkpoints, a model is; empty if it is none."""
    import yaml

    folder = Path(model).expanduser()
    for place in (folder, folder.resolve().parent) if folder.is_dir() else ():
        try:
            settings = yaml.safe_load((place / SETTINGS_OF_A_RUN).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            continue
        if isinstance(settings, dict):
            return settings
    return {}


def _name_of(path: str) -> str:
    """What something is called, without where it lies: results are given away."""
    place = Path(path).expanduser()
    return place.resolve().name if place.exists() else path


def _only(reader, names: list[str]):
    """The videos with these names or patterns, all of them if need be."""
    from mcvd_diffusers.data import SubsetReader, find_videos

    return SubsetReader(reader, find_videos(reader, names))


def _notes(
    arguments: argparse.Namespace, protocol: "Protocol", pipeline: "MCVDPipeline", clips: "EvaluationClips"
) -> list[str]:
    """What a user would want to know before hours of sampling."""
    from mcvd_diffusers.pipelines.carried_context import reads_before_past
    from mcvd_diffusers.protocols import list_protocols

    notes, config = [], pipeline.unet.config
    for side in ("past", "future"):
        given = getattr(protocol, f"num_{side}_frames")
        read = config.get(f"num_{side}_frames", given)
        if given > read and (side == "future" or not reads_before_past(pipeline.context_encoder, config)):
            notes.append(f"the model reads {read} of the {given} {side} frames that are given, the nearest")
    if protocol.changes:
        notes.append(
            f"these are no numbers of {protocol.name} v{protocol.version} itself: the label says what was changed"
        )
    if arguments.data is not None and protocol.name in list_protocols():
        notes.append(f"whether {arguments.data} holds what {protocol.name} is about is taken on trust")
    if clips.num_skipped:
        notes.append(f"{number_of(clips.num_skipped, 'video')} too short for a clip are left out")
    return notes


def _recompute(arguments: argparse.Namespace) -> int:
    """`--from`: all numbers again, and whether the files beside say the same."""
    from mcvd_diffusers.evaluation import Results, ResultsError, check_report
    from mcvd_diffusers.evaluation.report import as_table, save_report

    useless = [
        name
        for name, default in arguments.defaults.items()
        if name not in ("source", "output", "help") and getattr(arguments, name) != default
    ]
    if useless:
        name = "MODEL" if useless[0] == "model" else f"--{useless[0]}"
        raise ValueError(f"{name} means nothing with --from: the file says what was evaluated, and how.")
    source = Path(arguments.source).expanduser()
    results = Results.read(source)
    print(printable(as_table(results)))
    if arguments.output is not None:
        output = Path(arguments.output).expanduser()
        if output.exists() and (not output.is_dir() or any(output.iterdir())):
            raise FileExistsError(f"{output} exists and is not empty: choose another folder. Nothing is overwritten.")
        output.mkdir(parents=True, exist_ok=True)
        save_report(output, results)
    folder = source if source.is_dir() else source.parent
    try:
        is_there = check_report(results, folder)
    except ResultsError as error:
        raise ValueError(f"{error} The table above is computed from the results themselves.") from error
    print("\nThe file is as it was written" + (", and results.json agrees." if is_there else "."))
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from mcvd_diffusers.evaluation import Results, compare
    from mcvd_diffusers.evaluation.report import as_comparison

    try:
        first, second = (Results.read(path) for path in (arguments.first, arguments.second))
        print(printable(as_comparison(first, second, compare(first, second))))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"mcvd-diffusers compare: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


def _protocols(arguments: argparse.Namespace) -> int:
    import yaml

    from mcvd_diffusers.protocols import list_protocols, load_protocol, protocol_fields

    try:
        if arguments.fields:
            print(protocol_fields())
        elif arguments.name is not None:
            protocol = load_protocol(arguments.name)
            fields = {name: value for name, value in protocol.to_dict().items() if name != "changes"}
            print(printable(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120).rstrip()))
            print(f"# {protocol.label}; SHA-256 of what is measured: {protocol.digest}")
        else:
            for name in list_protocols():
                print(f"{name:36}{load_protocol(name).title}")
    except (ValueError, OSError) as error:
        print(f"mcvd-diffusers protocols: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0
