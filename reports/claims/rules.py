"""From a cell to a verdict: the rules of docs/verdicts.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.audit import effects
from heima.results import verdicts
from heima.results.cells import Cell
from reports.claims.model import (
    NOT_SUPPORTED,
    NOT_TESTABLE,
    SUPPORTED,
    UNDECIDED,
    Finding,
)
from reports.tables.numbers import probability

ONE_SEED = "one training seed decides nothing about a method"


def not_testable(why: str) -> Finding:
    return Finding(NOT_TESTABLE, why)


def greater(
    cell: Cell, source: str, *, trained: bool = True, bound: float = 0.0, least: float = 0.0
) -> Finding:
    """The claim that a value is above `bound`.

    Supported where all of it lies above (`verdicts.sides`), not supported where all lies below, or
    where it is within `least` of the bound (equivalence at 5 %); else undecided.
    """
    side = verdicts.sides(cell, bound, trained=trained)
    if side is None:
        return Finding(UNDECIDED, ONE_SEED, cell, source)
    if side > 0:
        return Finding(SUPPORTED, f"all of it is above {bound:g}", cell, source)
    if side < 0:
        return Finding(NOT_SUPPORTED, f"all of it is below {bound:g}", cell, source)
    if least and verdicts.equivalent(cell, bound, least) <= verdicts.LEVEL:
        return Finding(NOT_SUPPORTED, f"within {least:g} of {bound:g}", cell, source)
    return Finding(UNDECIDED, f"both sides of {bound:g} are possible", cell, source)


def same(cell: Cell, source: str, *, margin: float) -> Finding:
    """The claim that a difference is none: inside ± `margin` (equivalence at 5 %)."""
    if cell.sd is None:
        return Finding(UNDECIDED, ONE_SEED, cell, source)
    if verdicts.equivalent(cell, 0.0, margin) <= verdicts.LEVEL:
        return Finding(SUPPORTED, f"inside ±{margin:g}", cell, source)
    if verdicts.sides(cell, margin, trained=True) == 1 or (
        verdicts.sides(cell, -margin, trained=True) == -1
    ):
        return Finding(NOT_SUPPORTED, f"all of it is outside ±{margin:g}", cell, source)
    return Finding(UNDECIDED, f"both sides of ±{margin:g} are possible", cell, source)


def at_most(cell: Cell, source: str, *, bound: float) -> Finding:
    """The claim that what is lost is less than `bound` (one-sided at 5 %): not supported where all
    of it is above; else undecided."""
    if cell.sd is None:
        return Finding(UNDECIDED, ONE_SEED, cell, source)
    if verdicts.below(cell, bound) <= verdicts.LEVEL:
        return Finding(SUPPORTED, f"less than {bound:g}", cell, source)
    if verdicts.sides(cell, bound, trained=True) == 1:
        return Finding(NOT_SUPPORTED, f"all of it is above {bound:g}", cell, source)
    return Finding(UNDECIDED, f"both sides of {bound:g} are possible", cell, source)


def all_of(findings: Sequence[Finding]) -> Finding:
    """Several statements together: not supported where one is not, supported where all are.

    The cell is that of the statement that decides, or of the first undecided one.
    """
    for verdict in (NOT_TESTABLE, NOT_SUPPORTED, UNDECIDED):
        for one in findings:
            if one.verdict == verdict:
                return one
    return min(findings, key=lambda one: one.cell.value if one.cell else 0.0)


def states_matter(cells: Mapping[str, Mapping[str, Cell]], source: str) -> Finding:
    """The claim that thinking states matter to the conclusion, by the rule of audits."""
    shown = cells.get("other", {}).get("accuracy lost")
    if shown is not None and shown.sd is None:
        return Finding(UNDECIDED, ONE_SEED, shown, source)
    verdict, p = effects.judged(cells)
    largest = max(p, key=lambda test: p[test])
    why = {
        SUPPORTED: "other states cost accuracy, donors are followed, and the image's effect passes "
        "through the states",
        NOT_SUPPORTED: f"no replacement moves accuracy by {effects.MARGIN:g} points",
        UNDECIDED: f"neither is shown; {largest}: p {probability(p[largest])}",
    }[verdict]
    return Finding(verdict, why, shown, source)
