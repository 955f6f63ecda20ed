"""How far a running stage is, read from outside: from its log, and from what it keeps.

Code of a stage that trains says its step a few times a run. What it does beside that would be part
of its fingerprint, and a model would be trained again for a bar; so this looks at the files.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SNAPSHOTS = Path(".cache/training")
"""`heima.training.snapshots.ROOT`, without importing torch."""
_STEP = re.compile(r"\bstep (\d+)/(\d+)\b")
_BAR = re.compile(r"\|\s*(\d+)/(\d+) \[")
"""Of tqdm."""

_WIDTH = 12
_ENOUGH = 10.0
"""Seconds after which a stage's own speed tells what is left of it."""


@dataclass(frozen=True)
class Advance:
    """So many of `total` are done."""

    done: int
    total: int

    @property
    def share(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    def __str__(self) -> str:
        """
        >>> str(Advance(3, 12))
        '[###.........]  25 %'
        """
        filled = int(_WIDTH * self.share)
        return f"[{'#' * filled}{'.' * (_WIDTH - filled)}] {100 * self.share:3.0f} %"

    def left(self, seconds: float) -> float | None:
        """Seconds until the rest is done, at the speed so far; None while that says nothing.

        >>> Advance(1, 4).left(30.0), Advance(1, 4).left(2.0), Advance(0, 4).left(30.0)
        (90.0, None, None)
        """
        if not self.done or seconds < _ENOUGH:
            return None
        return seconds * (1 - self.share) / self.share


def read(lines: list[str], stage: str, root: Path = Path()) -> Advance | None:
    """The newest state that a stage's log tells, or a snapshot of its training that is newer.

    None where neither says anything. `lines` are the last ones of the log.
    """
    for line in reversed(lines):
        if found := _STEP.search(line):
            done, total = map(int, found.groups())
            return Advance(max(done, _snapshot(stage, root)), total)
        if found := _BAR.search(line):
            return Advance(*map(int, found.groups()))
    return None


def _snapshot(stage: str, root: Path) -> int:
    """The updates behind the newest snapshot of a stage's training; 0 without one."""
    steps = (root / SNAPSHOTS / stage).glob("*/step-*[0-9]")
    return max((int(one.name.removeprefix("step-")) for one in steps), default=0)
