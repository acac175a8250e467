"""The card of a pipeline: what is known of it, as data (`facts.py`), and the text that says so (`card.py`)."""

from .card import CITATION, plain_text, render_card, usage_example
from .facts import (
    CARD,
    EVALUATION_FILES,
    EVALUATIONS,
    FACTS,
    CardError,
    CardFacts,
    add_evaluation,
    check_regular,
    check_same_weights,
    count_parameters,
    differences,
    facts_of_configs,
    measure,
    pipeline_paths,
    read_facts,
    tensors_digest,
    weight_files,
    write_card,
)


__all__ = [
    "CARD",
    "CITATION",
    "EVALUATIONS",
    "EVALUATION_FILES",
    "FACTS",
    "CardError",
    "CardFacts",
    "add_evaluation",
    "check_regular",
    "check_same_weights",
    "count_parameters",
    "differences",
    "facts_of_configs",
    "measure",
    "pipeline_paths",
    "plain_text",
    "read_facts",
    "render_card",
    "tensors_digest",
    "usage_example",
    "weight_files",
    "write_card",
]
