"""What a claim is, and what was found of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from heima.results.cells import Cell

if TYPE_CHECKING:
    from reports.claims.evidence import Evidence

Verdict = Literal["supported", "not supported", "undecided", "not testable here"]

SUPPORTED: Verdict = "supported"
NOT_SUPPORTED: Verdict = "not supported"
UNDECIDED: Verdict = "undecided"
NOT_TESTABLE: Verdict = "not testable here"
VERDICTS = (SUPPORTED, NOT_SUPPORTED, UNDECIDED, NOT_TESTABLE)


@dataclass(frozen=True)
class Finding:
    """Our value with its interval where there is one, and the verdict with its reason.

    `kept` names the other profile that it is of, and its commit; "" where it is this one's.
    """

    verdict: Verdict
    why: str
    cell: Cell | None = None
    source: str = ""
    kept: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim of the paper or of this project.

    Attributes:
        name: a short name that stays.
        where: the place that makes it.
        rule: when it is supported and when not, in words; `find` is that rule.
        scale: results of which size can decide it: the `paper`'s own models and data, the `toy`'s,
            or `any` for what is said of the method; a verdict is about the size it was found at.
        reported: the value that the claim states, in `unit`; None: it states none.
    """

    name: str
    text: str
    of: Literal["paper", "project"]
    where: str
    rule: str
    unit: str
    scale: Literal["paper", "toy", "any"]
    find: Callable[[Evidence], Finding]
    reported: Callable[[Evidence], float | None] = lambda evidence: None


@dataclass(frozen=True)
class Judged:
    """A claim with what was found of it, at which size, and the value that it states."""

    claim: Claim
    finding: Finding
    scale: str
    reported: float | None
