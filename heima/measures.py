"""What a reconstruction is measured by, and the names of those measures in every file and table.

A metric that needs a resource (WordNet, an embedding model) is named after the resource that it
was computed with, so that a stand-in is never read as the metric of the paper.
"""

from __future__ import annotations

from heima.config import Similarity

METEOR = {"wordnet": "meteor", "exact-stem": "meteor_exact_stem"}
BERTSCORE = {"deberta-xlarge-mnli": "bertscore", "minilm-l6": "bertscore_minilm_l6"}

NLL = ("nll_per_token", "nll")
"""Negative log-likelihood of the reference in nats, a token and a text; given, not generated."""

NLL_GAIN = "nll_gain"
"""NLL(control) - NLL(own) of a text in nats: what the state itself tells of the section."""


def text_metrics(similarity: Similarity) -> tuple[str, ...]:
    """The columns that compare a reconstruction with its reference, each in percent.

    BLEU-4, METEOR, ROUGE-L and BERTScore as the paper's interpreter table has them, and `exact`,
    the share of reconstructions equal to the reference.
    """
    return (
        "bleu4",
        METEOR[similarity.meteor],
        "rougeL",
        BERTSCORE[similarity.bertscore],
        "exact",
    )


def difference(control: str) -> str:
    """The group of paired differences between the own state and a control.

    >>> difference("shuffled")
    'own-minus-shuffled'
    """
    return f"own-minus-{control}"
