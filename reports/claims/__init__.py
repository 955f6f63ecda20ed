"""The claim sheet: what the paper and this project claim, and what the results say of it.

A claim is an entry of the registry with a function from result files to a verdict, by rules that
were written down before (docs/verdicts.md). What a toy cannot decide is not testable there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from reports.claims.evidence import Evidence
from reports.claims.logbook import pages
from reports.claims.model import (
    NOT_SUPPORTED,
    NOT_TESTABLE,
    SUPPORTED,
    UNDECIDED,
    Claim,
    Finding,
    Judged,
)
from reports.claims.registry import CLAIMS
from reports.claims.writing import as_json, counts, markdown, summary
from reports.tables.model import Table
from reports.tables.results import Results

__all__ = [
    "CLAIMS",
    "NOT_SUPPORTED",
    "NOT_TESTABLE",
    "SUPPORTED",
    "UNDECIDED",
    "Claim",
    "Evidence",
    "Finding",
    "Judged",
    "as_json",
    "counts",
    "judge",
    "markdown",
    "pages",
    "sheet",
    "summary",
]


def sheet(results: Results, tables: Mapping[str, Table]) -> tuple[Judged, ...]:
    """Every claim with its verdict."""
    evidence = Evidence(results, tables)
    return tuple(judge(claim, evidence) for claim in CLAIMS)


def judge(claim: Claim, evidence: Evidence) -> Judged:
    """One claim; where results of this size cannot decide it, ours is shown without a verdict.

    What was not run here is judged by what another profile of this size has kept, if one was.
    """
    results = evidence.results
    found = claim.find(evidence)
    if found.verdict == NOT_TESTABLE and found.cell is None:
        for kept in results.kept:
            if (cell := kept.cell(claim.name)) is not None:
                other = kept.findings[claim.name]
                run = f"{kept.profile}, commit {kept.commit}"
                found = Finding(other.verdict, other.why, cell, kept.source, run)
                break
    if claim.scale not in ("any", results.scale) and found.verdict != NOT_TESTABLE:
        why = f"about the {claim.scale}'s models and data, these results are of the {results.scale}"
        found = replace(found, verdict=NOT_TESTABLE, why=why)
    return Judged(claim, found, results.scale, claim.reported(evidence))
