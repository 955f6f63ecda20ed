"""What claims are judged by: cells of result files and tables, and the paper's values."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from heima.config import ProtocolName, chains
from heima.results import verdicts
from heima.results.cells import Cell
from heima.results.measures import NLL_GAIN, difference
from heima.results.scores import ACCURACY, CHANCE, MEAN, score_group
from reports.tables import theorem
from reports.tables.ablation import DIFFERENCES
from reports.tables.model import Entry, Table
from reports.tables.reading import LATENCY, REFERENCE, VERSUS, latency_group
from reports.tables.results import Results
from reports.tables.series import points


@dataclass(frozen=True)
class Evidence:
    """Results and the tables made of them."""

    results: Results
    tables: Mapping[str, Table]

    def protocol(self, wanted: ProtocolName) -> ProtocolName:
        """A protocol, or the first one of a profile that has not got it."""
        known = self.results.params.protocols
        return wanted if wanted in known else next(iter(known))

    def gain(
        self, variant: str, wanted: ProtocolName, benchmark: str = MEAN
    ) -> tuple[Cell, str] | None:
        """Mean score of heima minus a variant's in points, paired, and its source.

        None: it was not run.
        """
        protocol = self.protocol(wanted)
        for block in self.tables["ablation"].blocks:
            if not block.origin.endswith(f"protocol {protocol}"):
                continue
            for panel in block.panels:
                if panel.title == DIFFERENCES:
                    entry = panel.entries.get((variant, benchmark))
                    return _negated(entry) if isinstance(entry, Entry) else None
        return None

    def accuracy(self, variant: str, wanted: ProtocolName, benchmark: str) -> Cell | None:
        return self._score(variant, wanted, benchmark, ACCURACY)

    def chance(self, wanted: ProtocolName, benchmark: str) -> float | None:
        cell = self._score(REFERENCE, wanted, benchmark, CHANCE)
        return None if cell is None else cell.value

    def token_ratio(
        self, variant: str, wanted: ProtocolName, benchmark: str = MEAN
    ) -> tuple[Cell, str] | None:
        """Decoded tokens of a variant over heima's; the bounds of a ratio of two intervals."""
        theirs = self._score(variant, wanted, benchmark, "decoded_tokens")
        ours = self._score(REFERENCE, wanted, benchmark, "decoded_tokens")
        if theirs is None or ours is None:
            return None
        cell = Cell(
            theirs.value / ours.value,
            theirs.low / ours.high,
            theirs.high / ours.low,
            n=ours.n,
            n_failed=ours.n_failed,
            seeds={seed: theirs.value / value for seed, value in ours.seeds.items()},
        )
        return cell, f"metrics/score/{variant}.json / metrics/score/{REFERENCE}.json"

    def _score(
        self, variant: str, wanted: ProtocolName, benchmark: str, metric: str
    ) -> Cell | None:
        if variant not in self.results.scores:
            return None
        cells, _ = self.results.scores[variant]
        return cells.get(score_group(self.protocol(wanted), benchmark), {}).get(metric)

    def state_gain(self, section: str, control: str) -> tuple[Cell, str] | None:
        """What a section's own state saves in nats a text against a control; None: not run."""
        if control not in self.results.params.reconstruct.controls:
            return None
        cells, source = self.results.similarities[section]
        return cells[difference(control)][NLL_GAIN], source

    def shared_minus_own(self, section: str) -> tuple[Cell, str] | None:
        """BLEU-4 of the interpreter of all sections minus that of the section's own, paired."""
        params = self.results.params
        for panel in self.tables["interpreters"].blocks[0].panels:
            if not panel.title.startswith("Other interpreters minus"):
                continue
            for name in panel.rows:
                one = params.reconstructions[name]
                sections = params.interpreters[one.interpreter].sections
                entry = panel.entries[name, "bleu4"]
                if one.section == section and set(sections) == set(params.sections):
                    return (entry.cell(), entry.source) if isinstance(entry, Entry) else None
        return None

    def speedup(self, variant: str, size: int) -> tuple[Cell, str] | None:
        """How many times faster than text-CoT an answer is end to end; None: not measured."""
        cases = self.results.params.latency.cases
        case = next(
            (name for name, one in cases.items() if one.variant == variant and one.budget is None),
            None,
        )
        group = latency_group(f"{case}{VERSUS}text-cot", size)
        cell = self.results.latency.get(group, {}).get("speedup")
        return None if cell is None else (cell, LATENCY)

    def audit(self, variant: str) -> tuple[Mapping[str, Mapping[str, Cell]], str] | None:
        """The effects that an audit found of a variant's answers; None: they were not audited."""
        checkpoint = chains.audited_variants(self.results.params).get(variant)
        found = self.results.audits.get(checkpoint) if checkpoint else None
        return None if found is None else (found.cells, found.source)

    def theorem_gap(self) -> tuple[Cell, str] | None:
        """Bits that text has more than the states of thinking tokens; None: not measured."""
        cell = self.results.theorem.get("information", {}).get(theorem.GAP)
        return None if cell is None else (cell, theorem.METRICS)

    def predicting(self) -> str:
        """Who predicts conclusions where the theorem is measured."""
        return theorem.predicting(self.results.params)

    def series(self, name: str) -> dict[str, str]:
        """Row -> variant, of the series that was trained here, without heima itself."""
        found = points(self.results.params, name)
        return {row: variant for row, variant in found.items() if variant != REFERENCE}

    @cached_property
    def _published(self) -> dict[tuple[str, str, str], dict[str, str]]:
        path = self.results.root / "reports" / "published" / "benchmarks.csv"
        with path.open(encoding="utf-8", newline="") as file:
            return {
                (row["family"], row["model"], row["benchmark"]): row for row in csv.DictReader(file)
            }

    def published(
        self, model: str, benchmark: str, column: str = "accuracy", family: str | None = None
    ) -> float | None:
        """A value of the paper's main table; `mean`: of all its benchmarks; None: it has none."""
        family = family or self.results.params.published_family
        values = [
            float(row[column])
            for (one, name, label), row in self._published.items()
            if (one, name) == (family, model) and benchmark in (label, MEAN)
        ]
        return sum(values) / len(values) if values else None

    def published_series(self, name: str) -> dict[str, float]:
        """Row of a series of the paper -> its mean over the benchmarks."""
        found: dict[str, list[float]] = {}
        for row in self.results.published[name]:
            found.setdefault(row[name], []).append(float(row["accuracy"]))
        return {row: sum(values) / len(values) for row, values in found.items()}


def _negated(entry: Entry) -> tuple[Cell, str]:
    left, _, right = entry.source.partition(" - ")
    return verdicts.negated(entry.cell()), f"{right} - {left}"
