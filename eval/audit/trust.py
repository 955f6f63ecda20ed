"""Whether audits are to be trusted, by those of planted controls.

Their answers are known: the audit of a `blind` checkpoint must read nothing, that of a `bottleneck`
everything. Where it does not, no other audit is to be trusted.
"""

from __future__ import annotations

from collections.abc import Mapping

from heima.config import Attention
from heima.results.cells import Cell

ROUNDING = 1e-3
"""Of a measure's full scale: what single precision may add to an effect that is exactly known."""

Cells = Mapping[str, Mapping[str, Cell]]
"""Measure -> what of it -> its cell, as `effects.Audited.cells` has them."""


def trusted(planted: Mapping[Attention, Cells]) -> tuple[bool, str]:
    """Whether audits are to be trusted by what those of planted controls read, and why (not).

    Under `blind` each replacement must change nothing, and under `bottleneck` the donor must be
    followed always and the whole of the image's effect pass through the states: each known value
    within its 95 % interval, to `ROUNDING`. Without both controls nothing is proved.
    """
    if missing := sorted({"blind", "bottleneck"} - planted.keys()):
        return False, (
            "The audit is not to be trusted: none of a checkpoint with attention = "
            f"{missing[0]!r} is there."
        )
    for attention, known in (("blind", _nothing), ("bottleneck", _everything)):
        cells = planted[attention]  # type: ignore[index]
        for (measure, what), wanted in known(cells).items():
            cell = cells.get(measure, {}).get(what)
            name = f"{measure}, {what}, of the {attention} control"
            if cell is None:
                return False, (
                    f"The audit is not to be trusted: it has no {name}, which must be {wanted:g}."
                )
            slack = ROUNDING * max(1.0, abs(wanted))
            if not cell.low - slack <= wanted <= cell.high + slack:
                return False, (
                    f"The audit is not to be trusted: {name}, reads {cell.value:.4g} "
                    f"[{cell.low:.4g}, {cell.high:.4g}], and must be {wanted:g}."
                )
    return True, "The planted controls read what was planted."


def _nothing(cells: Cells) -> dict[tuple[str, str], float]:
    """Of a control that cannot see its thinking tokens: every effect of their states is 0."""
    changed = {
        (measure, what): 0.0
        for measure, of in cells.items()
        if measure in REPLACEMENTS
        for what in of
        if what in ("accuracy lost", "answers changed", "nll gained")
    }
    return {
        **changed,
        ("other", "follows the donor"): 0.0,
        ("mediation", "nie"): 0.0,
        ("mediation", "share"): 0.0,
        ("closed/thinking/all", "nll gained"): 0.0,
    }


def _everything(cells: Cells) -> dict[tuple[str, str], float]:
    """Of a control that sees nothing but its thinking tokens."""
    return {
        ("other", "answers as the donor"): 100.0,
        ("mediation", "share"): 1.0,
        ("mediation", "nde"): 0.0,
        ("closed/image/all", "nll gained"): 0.0,
    }


REPLACEMENTS = ("zero", "mean", "noise", "first", "same", "other")
"""What a verdict, or a planted control, may put in the place of the states."""
