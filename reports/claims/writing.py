"""The claim sheet as Markdown and as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from heima.config import Params
from heima.results.cells import Cell
from reports.claims.model import NOT_SUPPORTED, VERDICTS, Judged
from reports.tables.numbers import fixed

_DIGITS = {"nats a text": 2, "times": 1}


def counts(sheet: Sequence[Judged]) -> dict[str, int]:
    """Verdict -> how many claims have it, of every verdict."""
    found = Counter(one.finding.verdict for one in sheet)
    return {verdict: found[verdict] for verdict in VERDICTS}


def as_json(sheet: Sequence[Judged], params: Params, reported: Mapping[str, int]) -> dict[str, Any]:
    """All that is known of each claim; `reported` counts the paper's cells by verdict."""
    return {
        "profile": params.profile,
        "family": params.family,
        "rules": "docs/verdicts.md",
        "counts": counts(sheet),
        "reported": dict(reported),
        "claims": [
            {
                "name": one.claim.name,
                "claim": one.claim.text,
                "of": one.claim.of,
                "where": one.claim.where,
                "unit": one.claim.unit,
                "reported": one.reported,
                "ours": one.finding.cell.to_json() if one.finding.cell else None,
                "source": one.finding.source,
                "kept": one.finding.kept or None,
                "scale": one.scale,
                "verdict": one.finding.verdict,
                "why": one.finding.why,
                "rule": one.claim.rule,
            }
            for one in sheet
        ],
    }


def summary(plain: Mapping[str, Any]) -> str:
    """The lines that a run ends with, from the sheet as `as_json` gives it."""

    def listed(found: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {verdict}" for verdict, count in found.items() if count)

    scales = {one["scale"] for one in plain["claims"]}
    total = len(plain["claims"])
    lines = [f"{total} claims at the size {', '.join(sorted(scales))}: {listed(plain['counts'])}"]
    if plain["reported"]:
        cells = sum(plain["reported"].values())
        lines.append(f"{cells} cells of the paper: {listed(plain['reported'])}")
    return "\n".join(lines)


def markdown(sheet: Sequence[Judged], params: Params, reported: Mapping[str, int]) -> str:
    """A line a claim, then the reasons."""
    lines = [
        f"# Claims ({params.profile} profile, family {params.family})",
        "",
        summary(as_json(sheet, params, reported)).replace("\n", "; ") + ".",
        "",
        "A verdict is about the size that it was found at: `toy` says nothing about the paper's "
        "models. The rules: [docs/verdicts.md](../../docs/verdicts.md).",
        "",
        "| claim | of | reported | ours [95 % interval] | n | size | verdict |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in sheet:
        digits = _DIGITS.get(one.claim.unit, 1)
        stated = "–" if one.reported is None else fixed(one.reported, digits)
        shown = "–" if one.finding.cell is None else _shown(one.finding.cell, digits)
        count = "–" if one.finding.cell is None else str(one.finding.cell.n)
        kept = f" ({one.finding.kept})" if one.finding.kept else ""
        unit = "" if one.finding.cell is None and one.reported is None else f" {one.claim.unit}"
        mark = "**" if one.finding.verdict == NOT_SUPPORTED else ""
        cells = (
            f"{one.claim.text} (`{one.claim.name}`)",
            one.claim.of,
            stated + (unit if one.reported is not None else ""),
            shown + (unit if one.finding.cell is not None else "") + kept,
            count,
            one.scale,
            f"{mark}{one.finding.verdict}{mark}",
        )
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    lines += ["", "## Why", ""]
    for one in sheet:
        source = f" Source: `{one.finding.source}`." if one.finding.source else ""
        lines.append(
            f"- `{one.claim.name}` ({one.claim.where}): {one.finding.verdict}, {one.finding.why}."
            f"{source} Rule: {one.claim.rule}."
        )
    return "\n".join(lines) + "\n"


def _shown(cell: Cell, digits: int) -> str:
    low, high = fixed(cell.low, digits), fixed(cell.high, digits)
    seeds = ""
    if len(cell.seeds) > 1:
        values = ", ".join(fixed(value, digits) for value in cell.seeds.values())
        seeds = f" (seeds {values})"
    return f"{fixed(cell.value, digits)} [{low}, {high}]{seeds}"
