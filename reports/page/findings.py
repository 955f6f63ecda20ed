"""What came out, in five sentences; every number is a link to its cell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from heima.config import Params
from heima.results.measures import NLL_GAIN
from heima.results.scores import MEAN
from reports.page.cells import Cells, number
from reports.page.errors import PageError
from reports.tables.ablation import DIFFERENCES, VERDICTS, verdict
from reports.tables.model import Entry
from reports.tables.reading import REFERENCE


@dataclass(frozen=True)
class Part:
    """A piece of a sentence; with `cell`, a link to it."""

    text: str
    cell: str | None = None


Sentence = tuple[Part, ...]


def sentences(params: Params, cells: Cells) -> list[Sentence]:
    """One sentence each about compressing, its training, the control, the states and the time.

    A sentence about variants or cases that the parameters do not name is left out. Raises
    `PageError` where a table lacks a cell that they do.
    """
    told = _Told(params, cells)
    each = (told.compressing(), told.training(), told.control(), told.states(), told.time())
    return [tuple(parts) for parts in each if parts]


@dataclass(frozen=True)
class _Told:
    params: Params
    cells: Cells

    @property
    def _origin(self) -> str:
        """Ours, under the protocol that is named first."""
        return f"{self.params.profile} profile, protocol {next(iter(self.params.protocols))}"

    def _number(
        self,
        table: str,
        panel: str,
        row: str,
        column: str,
        *,
        digits: int = 1,
        origin: str | None = None,
        unit: str = "",
    ) -> Part:
        entry, cell = self._entry(table, panel, row, column, origin)
        return Part(number(entry.value, digits) + unit, cell)

    def _entry(
        self, table: str, panel: str, row: str, column: str, origin: str | None = None
    ) -> tuple[Entry, str]:
        place = (table, origin or self._origin, panel, row, column)
        entry = self.cells.entries.get(place)
        if not isinstance(entry, Entry):
            raise PageError(f"the tables have no number at {' / '.join(place)}")
        return entry, self.cells.ids[place]

    def _verdict(self, variant: str) -> Part:
        place = ("ablation", self._origin, VERDICTS, variant, MEAN)
        if place not in self.cells.entries:
            raise PageError(f"the tables have nothing at {' / '.join(place)}")
        entry = self.cells.entries[place]
        return Part(getattr(entry, "text", ""), self.cells.ids[place])

    def _difference(self, variant: str) -> Iterator[Part]:
        """The paired difference to heima with its interval, and the verdict."""
        entry, cell = self._entry("ablation", DIFFERENCES, variant, MEAN)
        yield Part(f"{entry.value:+.1f}", cell)
        if entry.low is not None and entry.high is not None:
            yield Part(f" [{number(entry.low, 1)}, {number(entry.high, 1)}]")
        yield Part(" points, ")
        yield self._verdict(variant)

    def _has(self, *variants: str) -> bool:
        return all(variant in self.params.variants for variant in variants)

    def compressing(self) -> list[Part]:
        if not self._has("text-cot"):
            return []
        accuracy, tokens = "Accuracy (%)", "Decoded tokens per answer"
        return [
            Part(f"Compressed answers ({REFERENCE}) take "),
            self._number("benchmarks", tokens, REFERENCE, MEAN),
            Part(" decoded tokens and score "),
            self._number("benchmarks", accuracy, REFERENCE, MEAN, unit=" %"),
            Part("; those written out (text-cot) take "),
            self._number("benchmarks", tokens, "text-cot", MEAN),
            Part(" and score "),
            self._number("benchmarks", accuracy, "text-cot", MEAN, unit=" %"),
            Part(". On the same questions text-cot differs by "),
            *self._difference("text-cot"),
            Part("."),
        ]

    def training(self) -> list[Part]:
        known = [
            (variant, words)
            for variant, words in (
                ("heima-no-recover", "Without recovering"),
                ("heima-no-progressive", "without progressive compression"),
            )
            if self._has(variant)
        ]
        parts: list[Part] = []
        for variant, words in known:
            shown = words if parts else words[0].upper() + words[1:]
            parts.append(Part(f"; {shown} " if parts else f"{shown} the score differs by "))
            parts += self._difference(variant)
        return [*parts, Part(".")] if parts else []

    def control(self) -> list[Part]:
        if not self._has("answer-only"):
            return []
        return [
            Part(
                "The control (answer-only: bare answers, trained for as many updates) differs by "
            ),
            *self._difference("answer-only"),
            Part("."),
        ]

    def states(self) -> list[Part]:
        known = (("shuffled", "another turn's"), ("question-only", "the question alone"))
        compared = [one for one in known if one[0] in self.params.reconstruct.controls]
        parts = [Part("What the interpreters read from a thinking state, in nats a text: ")]
        for place, section in enumerate(self.params.sections):
            parts.append(Part(f"{'; ' if place else ''}{section} "))
            for number_, (control, words) in enumerate(compared):
                panel = f"{section}: own minus control"
                origin = f"{self.params.profile} profile"
                entry, cell = self._entry("interpreters", panel, control, NLL_GAIN, origin)
                parts.append(Part(", " if number_ else ""))
                parts.append(Part(number(entry.value, 2), cell))
                told = verdict(entry).text.replace(" (", ", ").removesuffix(")")
                parts.append(Part(f" over {words} ({told})"))
        return [*parts, Part(".")] if compared else []

    def time(self) -> list[Part]:
        cases, sizes = self.params.latency.cases, self.params.latency.batch_sizes
        if not {"text-cot", REFERENCE} <= cases.keys():
            return []
        # Sizes that the device could not hold are in no table.
        size = next(
            (
                one
                for one in sizes
                if ("latency", *self._time(one, REFERENCE)[1:]) in self.cells.entries
            ),
            None,
        )
        if size is None:
            return []
        _, origin, panel, _, column = self._time(size, REFERENCE)
        shown = [
            self._number("latency", panel, case, column, origin=origin, unit=" ms")
            for case in (REFERENCE, "text-cot")
        ]
        return [
            Part(f"On the machine of this run, a batch of {size} takes {REFERENCE} "),
            shown[0],
            Part(" end to end, text-cot "),
            shown[1],
            Part("."),
        ]

    def _time(self, size: int, case: str) -> tuple[str, str, str, str, str]:
        return "latency", f"{self.params.profile} profile", f"Batch {size}: latency", case, "e2e_ms"
