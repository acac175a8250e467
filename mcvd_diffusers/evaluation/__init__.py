"""From a model, test videos and a protocol to numbers that can be checked."""

from .clips import EvaluationClips, choose_clips, draw_digits
from .evaluate import Sampler, check_output, evaluate
from .report import check_report
from .results import Number, Results, ResultsError, compare


__all__ = [
    "EvaluationClips",
    "Number",
    "Results",
    "ResultsError",
    "Sampler",
    "check_output",
    "check_report",
    "choose_clips",
    "compare",
    "draw_digits",
    "evaluate",
]
