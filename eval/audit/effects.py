"""From questions to effects with intervals, and the verdict by a rule that was fixed before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri

from heima.results import verdicts
from heima.results.cells import Cell
from heima.results.statistics import Resampled, resample

MARGIN = 2.0
"""Points of accuracy within which a replacement does nothing."""
SHARE = 0.05
"""The share of an image's effect that must pass through the thinking states."""
DIFFERING = 0.1
"""The share of answers that differ between two conditions, in the power that is said of an audit:
about as many as a replacement that does nothing on average turns one way or the other."""
DECIDING = ("mean", "noise", "first", "same", "other")
"""Replacements that a verdict looks at; zeros lie far from any state, and are printed alone."""

Verdict = Literal["supported", "not supported", "undecided"]


@dataclass(frozen=True)
class Effect:
    """A mean of questions, `scale` times: of a column, less another one."""

    column: str
    less: str | None = None
    scale: float = 100.0


def effects_of(columns: Sequence[str]) -> dict[tuple[str, str], Effect]:
    """(measure, what of it) -> how it follows from the columns of `measures.of_batch`."""
    found = {
        ("own", "accuracy"): Effect("own/right"),
        ("own", "nll"): Effect("own/nll", scale=1.0),
    }
    for column in columns:
        measure, _, what = column.rpartition("/")
        if measure == "own" or measure.startswith("moved"):
            continue
        if what == "right":
            found[measure, "accuracy lost"] = Effect("own/right", column)
        elif what == "changed":
            found[measure, "answers changed"] = Effect(column)
        elif what == "nll" and not measure.startswith("closed"):
            found[measure, "nll gained"] = Effect(column, "own/nll", scale=1.0)
        elif what == "nll":
            found[measure, "nll gained"] = Effect(column, scale=1.0)
        elif measure == "mediation":
            found[measure, what] = Effect(column, scale=1.0)
    if "other/followed" in columns:
        found["other", "follows the donor"] = Effect("other/followed", "other/alike")
        found["other", "answers as the donor"] = Effect("other/followed")
    return found


@dataclass(frozen=True)
class Audited:
    """The effects of one checkpoint, the questions that each leaves out, and the verdict.

    An effect that leaves out all has no cell.
    """

    cells: dict[str, dict[str, Cell]]
    left_out: dict[str, int]
    verdict: Verdict
    p: dict[str, float]


def audited(tables: Mapping[int, pd.DataFrame], *, draws: int, seed: int) -> Audited:
    """The effects in the tables of a checkpoint's training seeds, which ask the same questions.

    A question counts where every seed has a value for it: `left_out` says how many of an effect's
    have not. Questions about one image are resampled together. Raises `ValueError` where the
    tables' questions differ.
    """
    first = next(iter(tables.values()))
    for key, table in tables.items():
        if list(table["turn"]) != list(first["turn"]):
            raise ValueError(f"training seed {key} was audited on other questions")
    effects = effects_of([name for name in first.columns if "/" in name])
    images = first["image"].to_numpy()
    cells: dict[str, dict[str, Cell]] = {}
    left_out: dict[str, int] = {}
    for (measure, what), effect in effects.items():
        values = {key: _values(table, effect) for key, table in tables.items()}
        there = np.all([np.isfinite(one) for one in values.values()], axis=0)
        if count := int((~there).sum()):
            left_out[f"{measure}, {what}"] = count
        if not there.any():
            continue
        found = resample(
            {"value": {key: one[there] for key, one in values.items()}},
            draws=draws,
            seed=seed,
            clusters=list(images[there]),
            scale=effect.scale,
        )["value"]
        cells.setdefault(measure, {})[what] = found.cell(seed=seed)
    if (share := _share(tables, images, draws=draws, seed=seed)) is not None:
        cells.setdefault("mediation", {})["share"] = share
    verdict, p = judged(cells)
    return Audited(cells, left_out, verdict, p)


def power(questions: int, *, differing: float = DIFFERING) -> float:
    """The probability that two one-sided tests show an accuracy to lie within `MARGIN` points of
    another one that is the same, where so large a share of the answers differ.

    By the normal approximation, for so many independent questions.

    >>> round(power(3000), 2), round(power(2000), 2), power(660)
    (0.93, 0.76, 0.0)
    """
    error = 100 * math.sqrt(differing / questions)
    reach = MARGIN / error - ndtri(1 - verdicts.LEVEL)
    return max(0.0, float(2 * ndtr(reach) - 1))


def _values(table: pd.DataFrame, effect: Effect) -> np.ndarray:
    values = table[effect.column].to_numpy(dtype=np.float64)
    return values if effect.less is None else values - table[effect.less].to_numpy(np.float64)


def _share(
    tables: Mapping[int, pd.DataFrame], images: np.ndarray, *, draws: int, seed: int
) -> Cell | None:
    """The indirect part of the image's total effect, a ratio of means; None where the total effect
    is not clearly there, for then the ratio means nothing."""
    columns = ("mediation/nie", "mediation/te")
    if any(column not in next(iter(tables.values())) for column in columns):
        return None
    each = {
        column: {key: table[column].to_numpy(np.float64) for key, table in tables.items()}
        for column in columns
    }
    there = np.all([np.isfinite(one) for part in each.values() for one in part.values()], axis=0)
    if not there.any():
        return None
    found = resample(
        {column: {key: one[there] for key, one in part.items()} for column, part in each.items()},
        draws=draws,
        seed=seed,
        clusters=list(images[there]),
    )
    indirect, total = (found[column] for column in columns)
    whole = total.cell(seed=seed)
    if whole.low <= 0 or min(whole.seeds.values()) <= 0 or (total.drawn <= 0).any():
        return None
    return Resampled(
        {key: indirect.values[key] / total.values[key] for key in total.values},
        indirect.drawn / total.drawn,
        n=total.n,
    ).cell(seed=seed)


def judged(cells: Mapping[str, Mapping[str, Cell]]) -> tuple[Verdict, dict[str, float]]:
    """Whether the thinking states matter, and the p values behind it.

    Supported: with other states (a donor's of another conclusion) accuracy is lost, the donor is
    followed, and more than `SHARE` of the image's effect passes through the states, all three after
    Holm's adjustment. Not supported: no replacement of `DECIDING` moves accuracy by `MARGIN`
    points (two one-sided tests each). Else undecided. Where there is no cell (no question is left,
    or no total effect of the image, of which a share might pass through the states), p is 1.
    """

    def above(measure: str, what: str, bound: float) -> float:
        cell = cells.get(measure, {}).get(what)
        return 1.0 if cell is None else verdicts.above(cell, bound)

    tests = {
        "accuracy lost to another conclusion's states": above("other", "accuracy lost", 0),
        "follows the donor": above("other", "follows the donor", 0),
        f"share above {SHARE}": above("mediation", "share", SHARE),
    }
    adjusted = dict(zip(tests, verdicts.holm(list(tests.values())), strict=True))
    lost = {name: cells[name].get("accuracy lost") for name in DECIDING if name in cells}
    alike = {
        f"{name} within {MARGIN} points": (
            1.0 if cell is None else verdicts.equivalent(cell, 0, MARGIN)
        )
        for name, cell in lost.items()
    }
    if max(adjusted.values()) < verdicts.LEVEL:
        verdict: Verdict = "supported"
    elif max(alike.values(), default=1.0) < verdicts.LEVEL:
        verdict = "not supported"
    else:
        verdict = "undecided"
    return verdict, {**adjusted, **alike}
