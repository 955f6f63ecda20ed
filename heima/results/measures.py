"""What a reconstruction is measured by, and the names of those measures in every file and table.

A metric that needs a resource (WordNet, an embedding model, a judge) is named after the resource
that it was computed with, so that a stand-in is never read as the metric of the paper.
"""

from __future__ import annotations

import re

from heima.config import EmbeddedRules, OpenAIJudge, Params, Similarity

METEOR = {
    "wordnet": "meteor",
    "wordnet-no-punkt": "meteor_no_punkt",
    "exact-stem": "meteor_exact_stem",
}
BERTSCORE = {"deberta-xlarge-mnli": "bertscore", "minilm-l6": "bertscore_minilm_l6"}

BLEU_STATISTICS = (
    "bleu_hypothesis_length",
    "bleu_reference_length",
    *(f"bleu_matches_{n}" for n in range(1, 5)),
    *(f"bleu_total_{n}" for n in range(1, 5)),
)
"""The counts of each sample whose sums give the corpus BLEU."""

CORPUS_BLEU = "corpus_bleu"
"""BLEU of all samples together (sacrebleu): not a mean over samples."""

NLL = ("nll_per_token", "nll")
"""Negative log-likelihood of the reference in nats, a token and a text; given, not generated."""

NLL_GAIN = "nll_gain"
"""NLL(control) - NLL(own) of a text in nats: what the state itself tells of the section."""

EMBEDDED_RULES = "embedded-rules"
"""The judge without a language model."""


def paper_metrics(similarity: Similarity) -> tuple[str, ...]:
    """BLEU-4, METEOR, ROUGE-L and BERTScore as in the paper's interpreter table, in percent."""
    return ("bleu4", METEOR[similarity.meteor], "rougeL", BERTSCORE[similarity.bertscore])


def further_metrics() -> tuple[str, ...]:
    """ROUGE-1 and ROUGE-2, and the share of reconstructions equal to their section, in percent."""
    return ("rouge1", "rouge2", "exact")


def text_metrics(similarity: Similarity) -> tuple[str, ...]:
    """The columns that compare a reconstruction with its reference, each in percent."""
    return (*paper_metrics(similarity), *further_metrics())


def judge_name(judge: EmbeddedRules | OpenAIJudge) -> str:
    return EMBEDDED_RULES if isinstance(judge, EmbeddedRules) else judge.model


def is_gpt4o(model: str) -> bool:
    """Whether a model is gpt-4o itself, of whatever date.

    >>> [is_gpt4o(name) for name in ("gpt-4o", "gpt-4o-2024-11-20", "gpt-4o-mini")]
    [True, True, False]
    """
    return re.fullmatch(r"gpt-4o(-\d{4}-\d{2}-\d{2})?", model) is not None


def judge_column(judge: EmbeddedRules | OpenAIJudge) -> str:
    """The column of a judge's grades from 1 to 5, named after the judge.

    `gpt4o_similarity` is the paper's; only gpt-4o itself has that name.
    """
    name = judge_name(judge)
    if is_gpt4o(name):
        return "gpt4o_similarity"
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + "_similarity"


def judged(control: str, params: Params) -> bool:
    """Whether the judge grades the reconstructions of a control."""
    return control in params.similarity.judged


def metrics_of(control: str, params: Params) -> tuple[str, ...]:
    """The measures of a control's reconstructions, likelihoods aside: text metrics, corpus BLEU,
    and the judge's grade where it sees them."""
    grade = (judge_column(params.judge),) if judged(control, params) else ()
    return (*text_metrics(params.similarity), CORPUS_BLEU, *grade)


def difference(control: str) -> str:
    """The group of paired differences between the own state and a control.

    >>> difference("shuffled")
    'own-minus-shuffled'
    """
    return f"own-minus-{control}"
