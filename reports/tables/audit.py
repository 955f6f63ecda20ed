"""The table of audits: what conclusions owe to the thinking states, a row a checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from eval.audit.trust import trusted
from heima.config import Params, chains
from heima.results.cells import Cell
from reports.tables import captions, expected
from reports.tables.model import Block, Entry, Label, Panel
from reports.tables.numbers import probability
from reports.tables.panels import by_training_seed

VERDICTS = "Do the thinking states matter to the conclusion?"
LOST = "Accuracy lost (points)"
COST = "Negative log-likelihood gained (nats)"
"""Titles by which figures and compact forms find these panels."""

EFFECTS = {LOST: "accuracy lost", "Answers changed (%)": "answers changed", COST: "nll gained"}
"""Panel -> the effect that it has, of each measure."""

PLANTED = "planted-"
"""How the names of checkpoints begin whose effects are known beforehand."""

VARIANT, ACCURACY, FOLLOWS = "variant", "accuracy (%)", "follows the donor"
"""Columns of the verdicts and of the answers with a donor's states."""

_CORNER = "checkpoint"
REPLACED = ("zero", "mean", "noise", "first", "same", "other")
"""Replacements of states, in their order; what else was done comes after them."""


@dataclass(frozen=True)
class Audit:
    """The effects of one checkpoint and what its file says of them."""

    cells: Mapping[str, Mapping[str, Cell]]
    source: str
    questions: int
    power: float
    verdict: str
    p: Mapping[str, float]

    def entry(self, measure: str, what: str) -> Entry | Label:
        cell = self.cells.get(measure, {}).get(what)
        return Label("–", self.source) if cell is None else Entry.of(cell, self.source)


Audits = Mapping[str, Audit]


def read_audits(root: Path, params: Params, problems: list[str]) -> Audits:
    """Checkpoint -> its audit, for each of `audit.checkpoints` and no other."""
    found = {}
    for name in params.audit.checkpoints:
        source = f"metrics/effects/{name}.json"
        read = expected.metrics(root, source, f"effects@{name}", params, problems)
        if read is None:
            continue
        cells, made = read
        found[name] = Audit(
            cells, source, made["questions"], made["power"], made["verdict"], made["p"]
        )
    expected.no_other(root, "metrics/effects", params.audit.checkpoints, problems)
    return found


def audit_block(params: Params, audits: Audits) -> Block:
    """Verdicts with what they rest on, then every effect."""
    rows = tuple(audits)
    panels = [_verdicts(params, audits), _donors(audits)]
    for title, what in EFFECTS.items():
        measures = _ordered(
            {name for one in audits.values() for name, found in one.cells.items() if what in found}
        )
        if not measures:
            # No answer had any value, as of a model that never ends.
            continue
        panels.append(
            Panel(
                title,
                _CORNER,
                rows,
                dict.fromkeys(measures, 2 if what == "nll gained" else 1),
                {(row, one): audits[row].entry(one, what) for row in rows for one in measures},
            )
        )
    if any("mediation" in one.cells for one in audits.values()):
        panels.append(_mediation(audits))
    panels.append(_probabilities(audits))
    seeds = {row: one.entry("other", "accuracy lost") for row, one in audits.items()}
    panels += by_training_seed(f"{LOST}: other, by training seed", _CORNER, params, seeds)
    return Block(
        f"{params.profile} profile",
        f"Audit of thinking states ({captions.about(params)})",
        captions.audit(params) + _trust(params, audits),
        tuple(panels),
    )


def _trust(params: Params, audits: Audits) -> str:
    """What the planted controls among the checkpoints say of all audits; nothing without any."""
    closed = {name: params.checkpoints[name].attention for name in audits}
    planted = {closed[name]: one.cells for name, one in audits.items() if closed[name] != "open"}
    return f" {trusted(planted)[1]}" if planted else ""


def nothing(params: Params) -> Block:
    return Block(
        f"{params.profile} profile",
        f"Audit of thinking states ({captions.about(params)})",
        captions.NO_AUDIT,
        (),
    )


def _ordered(measures: Collection[str]) -> list[str]:
    return [
        *(one for one in REPLACED if one in measures),
        *sorted(one for one in measures if one not in REPLACED),
    ]


def _verdicts(params: Params, audits: Audits) -> Panel:
    asking: dict[str, str] = {}
    for variant, checkpoint in chains.audited_variants(params).items():
        asking.setdefault(checkpoint, variant)
    entries: dict[tuple[str, str], Entry | Label] = {}
    for row, one in audits.items():
        # By which other tables know the method.
        entries[row, VARIANT] = Label(asking.get(row, "–"), one.source)
        entries[row, "verdict"] = Label(one.verdict, one.source)
        entries[row, ACCURACY] = one.entry("own", "accuracy")
        entries[row, "questions"] = Entry(one.questions, one.source)
        entries[row, "power"] = Entry(one.power, one.source)
        entries[row, "planted"] = Label("yes" if row.startswith(PLANTED) else "no", one.source)
    digits = {VARIANT: 0, "verdict": 0, ACCURACY: 1, "questions": 0, "power": 2, "planted": 0}
    return Panel(VERDICTS, _CORNER, tuple(audits), digits, entries)


def _donors(audits: Audits) -> Panel:
    """What becomes of answers with the states of a donor that concludes otherwise."""
    known = {what for one in audits.values() for what in one.cells.get("other", {})}
    shown = sorted(known - set(EFFECTS.values()) | {FOLLOWS})
    return Panel(
        "With the states of a donor of another conclusion (%)",
        _CORNER,
        tuple(audits),
        dict.fromkeys(shown, 1),
        {(row, what): one.entry("other", what) for row, one in audits.items() for what in shown},
    )


def _mediation(audits: Audits) -> Panel:
    columns = {
        "te": "total (nats)",
        "nie": "through the states",
        "nde": "past them",
        "share": "share",
    }
    return Panel(
        "Another image: its effect, and how much of it passes through the states",
        _CORNER,
        tuple(audits),
        dict.fromkeys(columns.values(), 2),
        {
            (row, shown): one.entry("mediation", what)
            for row, one in audits.items()
            for what, shown in columns.items()
        },
    )


def _probabilities(audits: Audits) -> Panel:
    """A row a test: its name is long."""
    tests = dict.fromkeys(test for one in audits.values() for test in one.p)
    return Panel(
        "p of the verdicts' tests",
        "test",
        tuple(tests),
        dict.fromkeys(audits, 0),
        {
            (test, row): Label(probability(one.p[test]) if test in one.p else "–", one.source)
            for test in tests
            for row, one in audits.items()
        },
    )
