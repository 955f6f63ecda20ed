"""How many words of a section are read from its thinking state, by a probe and by an interpreter.

The measure is the macro-F1 over words in percent, of whether a text has each word, on held-out
turns. No mean over turns: intervals come from resampled counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from heima.config import Control, Params
from heima.results import statistics
from heima.results.cells import Cell

PROBE, SHUFFLED_LABELS, AHEAD = "probe", "probe_shuffled_labels", "own_minus_probe"
"""The probe, the same one trained on other turns' words, and the interpreter's own state minus the
probe."""
_CONTROLS: tuple[Control, ...] = ("own", "shuffled", "shuffled-same-gold", "question-only")

Said = Mapping[int, NDArray[np.bool_]]
"""Training seed -> which held-out turn is said to have which word, (turns, words)."""


def controls(params: Params) -> tuple[Control, ...]:
    """Those whose reconstructions are asked for words."""
    return tuple(one for one in _CONTROLS if one in params.reconstruct.controls)


def columns(params: Params) -> tuple[str, ...]:
    """The cells of a reconstruction."""
    return (PROBE, SHUFFLED_LABELS, *controls(params), AHEAD)


def evaluate(
    said: Mapping[str, Said], truth: NDArray[np.bool_], images: Sequence[str], params: Params
) -> dict[str, Cell]:
    """A cell for each way of saying which words there are, and `AHEAD`.

    `truth` is (turns, words); turns on one image are resampled together, all ways alike.
    """
    found = {way: _resampled(by_seed, truth, images, params) for way, by_seed in said.items()}
    found[AHEAD] = statistics.minus(found["own"], found[PROBE], n_failed=0)
    return {way: one.cell(seed=params.seed) for way, one in found.items()}


def macro_f1(
    counts: NDArray[np.float64], drawn: NDArray[np.float64]
) -> tuple[float, NDArray[np.float64]]:
    """The macro-F1 in percent of counts, (3, words) true positives, false ones and false negatives,
    and of those of each resample, (draws, 3, words).

    A word that is neither there nor said counts in no mean (none such: 0). Where a resample lacks
    it, it has its F1 of the whole: a mean over the other words would be of another measure.
    """

    def by_word(given: NDArray[np.float64], else_: NDArray[np.float64]) -> NDArray[np.float64]:
        right, wrong, missed = np.moveaxis(given, -2, 0)
        total = 2 * right + wrong + missed
        found: NDArray[np.float64] = np.divide(
            200 * right, total, out=np.broadcast_to(else_, total.shape).copy(), where=total > 0
        )
        return found

    there = counts.sum(axis=0) > 0
    if not there.any():
        return 0.0, np.zeros(len(drawn))
    whole = by_word(counts, np.zeros(counts.shape[1]))
    return float(whole[there].mean()), by_word(drawn, whole)[:, there].mean(axis=1)


def _resampled(
    said: Said, truth: NDArray[np.bool_], images: Sequence[str], params: Params
) -> statistics.Resampled:
    values, drawn = {}, []
    for seed, found in said.items():
        counts = np.concatenate([found & truth, found & ~truth, ~found & truth], axis=1)
        sums = statistics.bootstrap_sums(
            counts.astype(np.float64),
            draws=params.similarity.draws,
            seed=params.seed,
            clusters=images,
        )
        values[seed], rest = macro_f1(
            counts.sum(axis=0, dtype=np.float64).reshape(3, -1), sums.reshape(len(sums), 3, -1)
        )
        drawn.append(rest)
    return statistics.Resampled(values, np.array(drawn).T, n=len(truth) * len(values))
