"""A comparison as text, Markdown and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from tabulate import tabulate

import reports
from heima.results.cells import Cell
from reports.comparing.model import Comparison, Flip, Group, Run
from reports.comparing.sides import Side
from reports.page.samples import evenly
from reports.tables.ablation import verdict
from reports.tables.numbers import fixed, interval, probability

_UNMATCHED = 5
"""How many unmatched questions are named in text of each side, benchmark and reason."""

HEADERS = (
    "benchmark",
    "A",
    "B",
    "A - B",
    "95 % interval",
    "verdict",
    "n",
    "only A",
    "only B",
    "McNemar p",
)


class _Page:
    """Which questions the page of results shows, and how it is addressed."""

    def __init__(self, comparison: Comparison) -> None:
        self._a, self._b = comparison.a, comparison.b
        self._docs: Counter[tuple[str, str]] = Counter()
        for protocol, benchmark, _ in {
            (row["protocol"], row["benchmark"], row.get("doc_id")) for row in self._a.rows
        }:
            self._docs[protocol, benchmark] += 1

    @cached_property
    def _pages(self) -> list[tuple[str, Side, int]]:
        """The pages on which a side's samples can be seen, one where both sides are on it."""
        found: dict[str, tuple[str, Side, int]] = {}
        for side in (self._a, self._b):
            if side.place is None or side.place.revision is not None:
                continue
            params = side.place.params
            path = side.place.root / reports.folder(str(params.get("profile"))) / "index.html"
            samples = params.get("page", {}).get("samples", 0)
            if path.is_file() and samples:
                shown = path if side.place.name else path.relative_to(side.place.root)
                found.setdefault(str(shown), (str(shown), side, samples))
        return list(found.values())

    def links(self, flip: Flip) -> list[str]:
        """Addresses of the question, with both answers; empty where no page shows it."""
        total = self._docs[flip.protocol, flip.benchmark]
        found = []
        for path, side, samples in self._pages:
            on_it = [doc for doc in flip.docs if doc in evenly(total, samples)]
            if not on_it:
                continue
            wanted = {"protocol": flip.protocol, "benchmark": flip.benchmark, "doc": on_it[0]}
            sides = [one for one in (self._a, self._b) if one.place == side.place]
            wanted |= {key: one.variant for key, one in zip("ab", sides, strict=False)}
            found.append(f"{path}#questions?{urlencode(wanted)}")
        return found


def text(comparison: Comparison, most: int | None) -> str:
    """For a terminal; at most `most` flips of each protocol (None: all)."""
    parts = [_title(comparison), *_notes(comparison, "")]
    for protocol, groups in _by_protocol(comparison).items():
        table = tabulate(
            [_line(group) for group in groups],
            HEADERS,
            disable_numparse=True,
            colalign=("left", *["right"] * 3, "left", "left", *["right"] * 4),
        )
        parts += [f"\nprotocol {protocol}, accuracy in percent\n", table]
        parts += _flips(comparison, protocol, most, "  {}")
    return "\n".join([*parts, *_unmatched(comparison, "  {}")])


def markdown(comparison: Comparison, most: int | None) -> str:
    """The same for a pull request or notes; files are links from the repository's root."""
    parts = [f"# {_title(comparison)}", "", *_notes(comparison, "- ")]
    for protocol, groups in _by_protocol(comparison).items():
        parts += ["", f"## Protocol {protocol}, accuracy in percent", ""]
        parts += [f"| {' | '.join(HEADERS)} |", f"|{'---|' * len(HEADERS)}"]
        parts += [f"| {' | '.join(map(_escaped, _line(group)))} |" for group in groups]
        parts += _flips(comparison, protocol, most, "- {}", linked=True)
    return "\n".join([*parts, *_unmatched(comparison, "- {}")]) + "\n"


def as_json(comparison: Comparison) -> dict[str, Any]:
    """All of it: every flip and every question that was not compared."""
    page = _Page(comparison)
    return {
        "a": _named(comparison.a),
        "b": _named(comparison.b),
        "paired": comparison.paired,
        "notes": comparison.notes,
        "groups": [
            {
                "protocol": group.protocol,
                "benchmark": group.benchmark,
                "a": group.a.to_json(),
                "b": group.b.to_json(),
                "difference": {
                    key: value
                    for key, value in asdict(group.difference).items()
                    if value not in (None, {}) and key != "n_unanswered"
                },
                "verdict": _verdict(group),
                "runs": [{**asdict(run), "p": run.p} for run in group.runs],
            }
            for group in comparison.groups
        ],
        "flips": [{**asdict(flip), "page": page.links(flip)} for flip in comparison.flips],
        "unmatched": comparison.unmatched,
    }


def _named(side: Side) -> dict[str, Any]:
    return {"name": side.label, "variant": side.variant, "rows": len(side.rows)}


def _title(comparison: Comparison) -> str:
    how = "paired on the same questions" if comparison.paired else "not paired"
    return f"A = {comparison.a.label}, B = {comparison.b.label}: {how}"


def _notes(comparison: Comparison, mark: str) -> list[str]:
    return [f"{mark}{note}" for note in comparison.notes]


def _by_protocol(comparison: Comparison) -> Mapping[str, list[Group]]:
    found: dict[str, list[Group]] = {}
    for group in comparison.groups:
        found.setdefault(group.protocol, []).append(group)
    return found


def _line(group: Group) -> tuple[str, ...]:
    difference = group.difference
    return (
        group.benchmark,
        _value(group.a),
        _value(group.b),
        f"{difference.value:+.1f}",
        interval(difference, 1) or "",
        _verdict(group),
        "" if difference.n is None else str(difference.n),
        _each(group.runs, lambda run: run.only_a),
        _each(group.runs, lambda run: run.only_b),
        ", ".join(probability(run.p) for run in group.runs),
    )


def _value(cell: Cell) -> str:
    failed = f" ({cell.n_failed} failed)" if cell.n_failed else ""
    return f"{fixed(cell.value, 1)}{failed}"


def _verdict(group: Group) -> str:
    return "" if group.difference.low is None else verdict(group.difference).text


def _each(runs: Sequence[Run], count: Callable[[Run], int]) -> str:
    """One number a run, in the order of the seeds."""
    return ", ".join(str(count(run)) for run in runs)


def _flips(
    comparison: Comparison, protocol: str, most: int | None, line: str, *, linked: bool = False
) -> list[str]:
    flips = [flip for flip in comparison.flips if flip.protocol == protocol]
    if not comparison.paired:
        return []
    page = _Page(comparison)
    counts = Counter(flip.right for flip in flips)
    found = [
        f"\n{len(flips)} flips: {counts['A']} answers that only A has right, {counts['B']} that "
        "only B has"
    ]
    found += [""] if linked else []
    # Those that can be looked at on the page come first.
    ordered = sorted(flips, key=lambda flip: not page.links(flip))
    for flip in ordered[:most]:
        seeds = [
            f"{kind} seed {seed}"
            for kind, seed in (("training", flip.training_seed), ("decoding", flip.seed))
            if seed is not None
        ]
        places = [*page.links(flip), *flip.where]
        shown = [f"[{_escaped(one)}]({_target(one)})" for one in places] if linked else places
        name = f"{flip.benchmark} {flip.unit}"
        said = ", ".join([_escaped(name) if linked else name, *seeds, f"only {flip.right} right"])
        found.append(line.format(f"{said}: {' '.join(shown)}"))
    if most is not None and len(flips) > most:
        found.append(line.format(f"and {len(flips) - most} more: --flips all, or --json"))
    return found


def _target(place: str) -> str:
    """An address that Markdown can hold: a line of a file as GitHub names it."""
    file, colon, number = place.rpartition(":")
    if colon and number.isdigit():
        place = f"{file}#L{number}"
    return place.replace(" ", "%20").replace("(", "%28").replace(")", "%29")


def _escaped(words: str) -> str:
    for sign in r"\`*_[]<>|":
        words = words.replace(sign, f"\\{sign}")
    return words


def _unmatched(comparison: Comparison, line: str) -> list[str]:
    if not comparison.unmatched:
        return []
    groups: dict[tuple[str, ...], list[str]] = {}
    for one in comparison.unmatched:
        key = one["side"], one["protocol"], one["benchmark"], one["why"]
        groups.setdefault(key, []).append(one["unit"])
    found = [f"\n{len(comparison.unmatched)} questions were not compared:"]
    found += [""] if line.startswith("-") else []
    for (side, protocol, benchmark, why), units in groups.items():
        more = f" and {len(units) - _UNMATCHED} more" if len(units) > _UNMATCHED else ""
        named = ", ".join(units[:_UNMATCHED])
        found.append(
            line.format(f"{len(units)} of {benchmark} ({protocol}) in {side}, {why}: {named}{more}")
        )
    if any(len(units) > _UNMATCHED for units in groups.values()):
        found.append(line.format("--json names each"))
    return found


def write(comparisons: Sequence[Comparison], form: str, most: int | None) -> str:
    """Several comparisons, one after the other, or a JSON list of them if there are several."""
    if form == "json":
        whole: Any = [as_json(one) for one in comparisons]
        return json.dumps(
            whole[0] if len(whole) == 1 else whole, indent=1, ensure_ascii=False, allow_nan=False
        )
    return "\n\n".join((markdown if form == "md" else text)(one, most) for one in comparisons)
