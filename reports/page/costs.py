"""What each stage took, as its metrics files say, beside what the plan says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from heima.results.cells import read_metrics

RECORDED = {
    "teach": "training",
    "distill": "training",
    "interpret": "training",
    "predict": "decoding",
}
"""Stages whose metrics files have times, and of what."""


@dataclass(frozen=True)
class Cost:
    """A kind of stage; hours are of one device. None: the plan or the files say nothing of it."""

    stage: str
    runs: int
    planned: float | None
    recorded: float | None
    of: str
    usd: float | None
    judge_calls: int | None


def shown(hours: float | None) -> str:
    """
    >>> shown(None), shown(0.0034), shown(0.25), shown(31.4)
    ('–', '12 s', '15.0 min', '31.4 h')
    """
    if hours is None:
        return "–"
    if hours < 1 / 60:
        return f"{3600 * hours:.0f} s"
    return f"{60 * hours:.1f} min" if hours < 1 else f"{hours:.1f} h"


def compared(root: Path, names: Iterable[str], planned: Sequence[Mapping[str, Any]]) -> list[Cost]:
    """A row for each kind of the stages `names`; `planned` are those of `stages.plan --json`."""
    items: dict[str, list[str]] = {}
    for name in names:
        kind, _, item = name.partition("@")
        items.setdefault(kind, []).append(item)
    found = []
    for kind, own_items in items.items():
        own = [stage for stage in planned if stage["name"].partition("@")[0] == kind]
        hours = sum(stage["gpu_hours"] for stage in own)
        calls = sum(stage["judge_calls"] for stage in own)
        usd = sum(stage["usd"] for stage in own)
        found.append(
            Cost(
                kind,
                len(own_items),
                hours or None,
                _recorded(root, kind, own_items) if kind in RECORDED else None,
                RECORDED.get(kind, ""),
                usd or None,
                calls or None,
            )
        )
    return [*found, _together(found)]


def _together(rows: Sequence[Cost]) -> Cost:
    """The sums of what is known; times are those of the stages that have both."""
    both = [one for one in rows if one.planned is not None and one.recorded is not None]
    return Cost(
        "all",
        sum(one.runs for one in rows),
        sum(one.planned or 0 for one in both) or None,
        sum(one.recorded or 0 for one in both) or None,
        "those with both times",
        sum(one.usd or 0 for one in rows) or None,
        sum(one.judge_calls or 0 for one in rows) or None,
    )


def _recorded(root: Path, kind: str, items: Collection[str]) -> float | None:
    """Hours that the metrics files of these items have; None where they have none.

    Files of other items may lie there, of another profile or of seeds that were taken out.
    """
    seconds = []
    folder = root / "metrics" / kind
    for path in sorted(folder.rglob("*.json")):
        if "-".join(path.relative_to(folder).with_suffix("").parts) not in items:
            continue
        cells, provenance = read_metrics(path)
        if "seconds" in provenance:
            seconds.append(float(provenance["seconds"]))
        times = [row["seconds_per_sample"] for row in cells.values() if "seconds_per_sample" in row]
        seconds += [time.value * time.n for time in times]
    return sum(seconds) / 3600 if seconds else None
