"""What the LaTeX tables call benchmarks, metrics and variants: the names that readers know."""

from __future__ import annotations

from collections.abc import Mapping

from heima.config.benchmarks import BENCHMARKS
from heima.results.scores import MEAN

_METRICS = {
    "bleu4": "BLEU-4",
    "meteor": "METEOR",
    "meteor_no_punkt": "METEOR (no Punkt)",
    "meteor_exact_stem": "METEOR (stems)",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bertscore": "BERTScore",
    "bertscore_f1": "BERTScore",
    "bertscore_minilm_l6": "BERTScore (MiniLM)",
    "corpus_bleu": "corpus BLEU",
    "gpt4o_similarity": "GPT-4o",
    "embedded_rules_similarity": "rules (1-5)",
    "nll_per_token": "NLL/token",
    "nll": "NLL",
    "nll_gain": "NLL gain",
}

_VARIANTS = {
    "text-cot": "text CoT",
    "heima": "Heima",
    "heima-forced-prefix": "forced prefix",
    "heima-no-recover": "w/o recovering",
    "heima-no-progressive": "w/o progressive",
    "answer-only": "answer only",
}

COLUMNS: Mapping[str, str] = {
    **{name: one.spelling for name, one in BENCHMARKS.items()},
    MEAN: "Mean",
    **_METRICS,
}
"""A column of a panel -> its heading; one that is not here has its own name."""


def heading(column: str) -> str:
    """The heading of a column.

    >>> heading("mmvet"), heading("seed 42")
    ('MM-Vet', 'seed 42')
    """
    return COLUMNS.get(column, column)


def variant(name: str) -> str:
    """A variant as a row of a compact table.

    >>> variant("heima-no-recover"), variant("chance"), variant("mine")
    ('w/o recovering', 'chance', 'mine')
    """
    return _VARIANTS.get(name, name)
