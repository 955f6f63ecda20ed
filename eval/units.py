"""What a benchmark's scores belong to, which of them share an image, and how they are averaged."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


def image_label(content: bytes) -> str:
    """A short hash of an image file: samples of one image are resampled together."""
    return hashlib.sha256(content).hexdigest()[:12]


@dataclass(frozen=True)
class Units:
    """Scored rows by what a score belongs to: `rows` are those of each unit.

    A row has `unit`, `score` (from 0 to 1, the same in all rows of a unit), `failed` and `image`.
    `weights` are those of the units in the benchmark's mean; none: all weigh the same.
    """

    rows: list[list[Row]]
    weights: list[float] | None

    @classmethod
    def of(cls, rows: Sequence[Row], strata: Sequence[str] | None = None) -> Units:
        """The units of `rows`, which may come from several decoding seeds (`seed`).

        `strata` has each row's: strata weigh the same whatever their size.
        """
        places: dict[tuple[Any, Any], list[int]] = defaultdict(list)
        for place, row in enumerate(rows):
            places[row.get("seed"), row["unit"]].append(place)
        weights = None
        if strata is not None:
            firsts = [strata[unit[0]] for unit in places.values()]
            sizes = Counter(firsts)
            weights = [len(firsts) / sizes[one] for one in firsts]
        return cls([[rows[place] for place in unit] for unit in places.values()], weights)

    def where(self, keep: Callable[[Row], bool]) -> Units:
        """The units whose first row is one to keep, with their weights."""
        kept = [place for place, unit in enumerate(self.rows) if keep(unit[0])]
        weights = None if self.weights is None else [self.weights[place] for place in kept]
        return Units([self.rows[place] for place in kept], weights)

    @property
    def scores(self) -> list[float]:
        return [unit[0]["score"] for unit in self.rows]

    @property
    def best(self) -> list[float]:
        """The scores if every answer that no judge has graded is right (a row's `best`)."""
        return [
            next((row["best"] for row in unit if "best" in row), unit[0]["score"])
            for unit in self.rows
        ]

    @property
    def failed(self) -> int:
        """How many units have an answer that failed."""
        return sum(any(row["failed"] for row in unit) for unit in self.rows)

    @property
    def images(self) -> list[str]:
        return [unit[0]["image"] for unit in self.rows]

    @property
    def percent(self) -> float:
        """The weighted mean of the scores."""
        weights = self.weights or [1.0] * len(self.rows)
        total = sum(weight * one for weight, one in zip(weights, self.scores, strict=True))
        return 100 * total / sum(weights)
