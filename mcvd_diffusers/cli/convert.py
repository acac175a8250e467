"""`mcvd-diffusers convert`: a checkpoint of the original code -> a pipeline folder."""

import argparse
import sys

from diffusers.utils import logging as diffusers_logging

from mcvd_diffusers.conversion import SAMPLERS, CheckpointError, Conversion, convert_checkpoint
from mcvd_diffusers.presets import ORIGINAL_NAMES

from .printing import in_columns, printable


def add_convert(commands) -> None:
    """Adds the command to those of a parser."""
    parser = commands.add_parser(
        "convert",
        allow_abbrev=False,
        help="a checkpoint of the original code -> a pipeline folder",
        description="Convert a checkpoint of the original MCVD code, or of RaMViD, FDM, VDM's public port or LGC-VD, into a folder"
        " for MCVDPipeline.from_pretrained. Which of them it is, the names in the file tell.",
        epilog="The checkpoint is read as untrusted: whatever it holds, no code of it is run.\n\npresets:\n  "
        + "\n  ".join(ORIGINAL_NAMES),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .pt file, or the folder of the experiment, or its logs"
    )
    parser.add_argument("output", metavar="OUT", help="the folder to write; it appears when it is complete")
    parser.add_argument("--config", help="the run's config.yml, if it does not lie beside the checkpoint")
    parser.add_argument(
        "--preset",
        metavar="NAME",
        help="a published model instead of a lost config; listed below",
    )
    parser.add_argument(
        "--weights",
        choices=("ema", "model"),
        help="averaged or raw weights; if not given, those that the original samples with",
    )
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compare the converted network's output with a second implementation on the original's state dict",
    )
    parser.add_argument(
        "--sampler",
        choices=SAMPLERS,
        help="what the pipeline is saved with: 15 steps of DPM-Solver++ (if not given; for VDM's port the original's), or the original's"
        " scheduler, steps and last call, which published numbers were made with",
    )
    others = parser.add_argument_group(
        "RaMViD, FDM, VDM's port and LGC-VD",
        "what nothing in these checkpoints may tell; the report says what was assumed",
    )
    others.add_argument(
        "--num_heads", type=int, metavar="N", help="heads of attention, if not the published 4 (not LGC-VD)"
    )
    others.add_argument("--image_size", type=int, metavar="N", help="height and width of the training's frames (64)")
    others.add_argument(
        "--max_frames",
        type=int,
        metavar="N",
        help="frames of a window in training (20; for VDM's port 16; not LGC-VD)",
    )
    others.add_argument(
        "--attention_head_dim",
        type=int,
        metavar="N",
        help="LGC-VD: channels of a head of attention, if not the published 128",
    )
    parser.set_defaults(run=_convert)


def _convert(arguments: argparse.Namespace) -> int:
    diffusers_logging.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    try:
        result = convert_checkpoint(
            arguments.checkpoint,
            arguments.output,
            config=arguments.config,
            preset=arguments.preset,
            weights=arguments.weights,
            verify=arguments.verify,
            sampler=arguments.sampler,
            num_heads=arguments.num_heads,
            image_size=arguments.image_size,
            max_frames=arguments.max_frames,
            attention_head_dim=arguments.attention_head_dim,
        )
    except (CheckpointError, OSError) as error:
        print(f"mcvd-diffusers convert: {printable(str(error))}", file=sys.stderr)
        return 1
    print(printable(_report(result)))
    return 0


def _report(result: Conversion) -> str:
    weights = "moving average (EMA)" if result.weights == "ema" else "raw"
    after = "an unknown number of" if result.step is None else f"{result.step:,}"
    system = {"mcvd": "", "ramvid": "RaMViD: ", "fdm": "FDM: ", "vdm": "VDM's public port: ", "lgcvd": "LGC-VD: "}[
        result.system
    ]
    lines = [
        ("from", f"{system}{result.checkpoint}, with {result.config}"),
        ("sha256", result.sha256),
        ("weights", f"{weights}, {result.num_parameters:,} parameters, after {after} updates"),
        ("tasks", ", ".join(result.tasks) or "none"),
    ]
    if result.stray:
        lines.append(("ignored", f"options of the config that are not known: {', '.join(result.stray)}"))
    lines += [("note", note) for note in result.notes]
    lines += [("verified", sentence) for sentence in result.verified]
    if result.max_difference is not None:
        lines.append(("", f"(To be exact: {result.max_difference:.2e}.)"))
    lines += [("not", f"verified: {sentence}") for sentence in result.not_verified]
    lines.append(("written", f"{result.output}"))
    lines.append(("use", f'MCVDPipeline.from_pretrained("{result.output}")'))
    return in_columns(lines, 9)
