"""How numbers are written in every form of a table."""

from __future__ import annotations

from reports.tables.model import Entry


def fixed(value: float, digits: int) -> str:
    """A decimal number; what rounds to nothing has no sign.

    >>> fixed(-0.04, 1), fixed(-0.06, 1)
    ('0.0', '-0.1')
    """
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text


def spread(entry: Entry, digits: int) -> str:
    """A value, with the standard deviation between training seeds where there is one."""
    value = fixed(entry.value, digits)
    return value if entry.sd is None else f"{value} ± {fixed(entry.sd, digits)}"


def interval(entry: Entry, digits: int) -> str | None:
    """The interval in brackets; None where there is none."""
    if entry.low is None or entry.high is None:
        return None
    return f"[{fixed(entry.low, digits)}, {fixed(entry.high, digits)}]"


def probability(p: float) -> str:
    """A p value as it is printed, without the nought.

    >>> probability(0.0004), probability(0.0351), probability(1.0)
    ('<.001', '.035', '1.000')
    """
    return "<.001" if p < 0.001 else f"{p:.3f}".removeprefix("0")
