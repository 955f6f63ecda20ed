"""Theorem 3.1 measured: what of the answer is usable in thinking tokens, and in the text chain.

Usable information is V-information (Xu et al., 2020, arXiv:2002.10689): I_V(Y; C | X) is
H_V(Y | X) - H_V(Y | X, C), where each entropy is the mean cost of the conclusion Y for the best
predictor of one family V that has learnt this format: nothing before the conclusion, the thinking
tokens, the text chain. V are the adapters on the text-CoT model. A checkpoint a
format, trained as long from the same start, stands for the best of V there (docs/audit.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from eval.audit import measures
from eval.audit.answers import continuation
from eval.audit.passes import Passes
from heima.cot.rendering import render
from heima.cot.sections import TAGS
from heima.data.turns import Turn
from heima.results.cells import Cell
from heima.results.statistics import minus, resample

ENTROPIES = ("nothing", "tokens/ids", "tokens/states", "text")
"""What stands before a conclusion. `tokens/ids`: thinking tokens whose states are the mean of
training turns' at all depths, so that they are the same whatever the question; `tokens/states`:
with their own."""

INFORMATION: Mapping[str, tuple[str, str]] = {
    "thinking tokens, ids": ("nothing", "tokens/ids"),
    "thinking tokens, states": ("nothing", "tokens/states"),
    "text chain": ("nothing", "text"),
    "gap, ids": ("tokens/ids", "text"),
    "gap, states": ("tokens/states", "text"),
}
"""Name -> the entropy that is the larger one by it, and the smaller one."""


@dataclass(frozen=True)
class Predictors:
    """The passes of the model that predicts conclusions from each format."""

    nothing: Passes
    tokens: Passes
    text: Passes


def of_batch(
    predictors: Predictors, turns: Sequence[Turn], moments: measures.Moments
) -> dict[str, np.ndarray]:
    """What the conclusion of each turn costs after each of `ENTROPIES`, in bits.

    The text chain is the turn's own, not one that a model wrote. `moments` are those of the
    thinking tokens' states in `predictors.tokens`.
    """
    gold = [continuation(turn.conclusion) for turn in turns]
    mean = [part.expand(len(turns), *part.shape) for part in moments.mean]
    nats = {
        "nothing": predictors.nothing.score(turns, gold, prefix=""),
        "tokens/ids": predictors.tokens.score(turns, gold, states=mean),
        "tokens/states": predictors.tokens.score(turns, gold),
        "text": predictors.text.score(turns, gold, prefix=[chain(turn) for turn in turns]),
    }
    return {name: scores.nll / np.log(2) for name, scores in nats.items()}


def chain(turn: Turn) -> str:
    """The text before the conclusion's tag in a turn's full answer."""
    answer = render(turn.sections, "text-cot")
    return answer[: answer.rindex(TAGS["conclusion"][0])]


def information(
    tables: Mapping[int, pd.DataFrame], *, draws: int, seed: int
) -> dict[str, dict[str, Cell]]:
    """Entropies and information in bits a conclusion, by the tables of training seeds.

    Questions about an image are resampled together, training seeds apart from them. Raises
    `ValueError` where the tables' questions differ.
    """
    first = next(iter(tables.values()))
    for key, table in tables.items():
        if list(table["turn"]) != list(first["turn"]):
            raise ValueError(f"training seed {key} was asked other questions")
    found = resample(
        {name: {key: table[name] for key, table in tables.items()} for name in ENTROPIES},
        draws=draws,
        seed=seed,
        clusters=list(first["image"]),
    )
    return {
        "entropy": {name: one.cell(seed=seed) for name, one in found.items()},
        "information": {
            name: minus(found[larger], found[smaller], n_failed=0).cell(seed=seed)
            for name, (larger, smaller) in INFORMATION.items()
        },
    }
