"""From a model, test videos and a protocol to numbers that can be checked."""

from .clips import EvaluationClips, choose_clips, draw_digits
from .evaluate import Sampler, evaluate
from .results import Number, Results, ResultsError, compare


__all__ = [
    "EvaluationClips",
    "Number",
    "Results",
    "ResultsError",
    "Sampler",
    "choose_clips",
    "compare",
    "draw_digits",
    "evaluate",
]
