"""Tables of a reproduction: which cells each expects, and how they become LaTeX, Markdown and CSV.

A table reads the files that the parameters name and no other; a cell that is missing, left over or
of another profile raises `TableError` with all of them. Every entry knows the file it came from.
The paper's own values stand in a block of their own beside ours, with a caption that says so: they
come from other models, data and judges. So does what other profiles have kept
(`reports.tables.kept`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path

from heima.config import Params
from reports.tables import captions
from reports.tables.ablation import ablation_block
from reports.tables.appendix import latex
from reports.tables.audit import audit_block
from reports.tables.audit import nothing as no_audit
from reports.tables.benchmarks import benchmarks_block
from reports.tables.compact import compact_files
from reports.tables.families import GAINS, families_blocks
from reports.tables.interpreters import interpreters_block
from reports.tables.kept import PlainBlock
from reports.tables.latency import latency_block
from reports.tables.leaks import leaks_blocks
from reports.tables.methods import methods_block
from reports.tables.model import Block, Entry, Label, Panel, Table, TableError
from reports.tables.panels import ACCURACIES, DECODED
from reports.tables.published import (
    published_ablation,
    published_benchmarks,
    published_interpreters,
)
from reports.tables.reported import comparisons, counts, reported_table
from reports.tables.results import Results, read
from reports.tables.samples import samples_block
from reports.tables.series import SERIES, nothing, own_series, series_blocks
from reports.tables.states import states_block
from reports.tables.theorem import nothing as no_theorem
from reports.tables.theorem import theorem_table
from reports.tables.writing import comma_separated, markdown

__all__ = [
    "Block",
    "Entry",
    "Label",
    "Panel",
    "Results",
    "Table",
    "TableError",
    "build",
    "comma_separated",
    "compact_files",
    "comparisons",
    "counts",
    "latex",
    "markdown",
    "of_results",
    "read",
    "to_keep",
]

NAMES = (
    "benchmarks",
    "ablation",
    "methods",
    "interpreters",
    "latency",
    *SERIES,
    "families",
    "leaks",
    "audit",
    "theorem",
    "states",
    "samples",
    "reported",
)
"""The tables, in their order."""


def build(root: Path, params: Params) -> dict[str, Table]:
    """The tables from the result files below `root`, by name. Raises `TableError` (`read`)."""
    return of_results(read(root, params))


def of_results(results: Results) -> dict[str, Table]:
    """The tables (`NAMES`) of results that were read."""
    params, scores, published = results.params, results.scores, results.published
    benchmarks, interpreters = _own_benchmarks(results), _own_interpreters(results)
    made: tuple[Table, ...] = (
        Table(
            "benchmarks",
            (
                *benchmarks,
                *published_benchmarks(published["benchmarks"]),
            ),
        ),
        Table(
            "ablation",
            (
                *(
                    ablation_block(params, protocol, scores, results.samples)
                    for protocol in params.protocols
                ),
                *published_ablation(published["benchmarks"]),
            ),
        ),
        Table(
            "methods",
            (
                methods_block(
                    params,
                    scores,
                    results.samples,
                    results.flops,
                    results.latency,
                    results.latency_provenance["skipped"],
                ),
            ),
        ),
        Table(
            "interpreters",
            (
                *interpreters,
                *published_interpreters(params, published["interpreters"]),
            ),
        ),
        Table("latency", (latency_block(params, results.latency, results.latency_provenance),)),
        *(
            Table(
                name,
                series_blocks(params, name, scores, results.kept, published[name]) or nothing(name),
            )
            for name in SERIES
        ),
        Table(
            "families",
            families_blocks(params, benchmarks, interpreters, results.kept, published["families"]),
        ),
        Table("leaks", leaks_blocks(params, results.leaks, scores)),
        *(Table(name, (block, *_beside(results, name))) for name, block in _audits(results)),
        Table("samples", (samples_block(params, results.rebuilt),)),
        reported_table(results, comparisons(results)),
    )
    return {table.name: table for table in made}


def _own_benchmarks(results: Results) -> tuple[Block, ...]:
    return tuple(
        benchmarks_block(results.params, protocol, results.scores, results.published["benchmarks"])
        for protocol in results.params.protocols
    )


def _own_interpreters(results: Results) -> tuple[Block, ...]:
    return (
        interpreters_block(
            results.root,
            results.params,
            results.similarities,
            results.reconstructed,
            results.published["interpreters"],
            results.rebuilt,
            results.probe,
        ),
    )


def _audits(results: Results) -> Iterator[tuple[str, Block]]:
    """What is found of thinking states, by table; a sentence where it is not measured."""
    params, audits, theorem = results.params, results.audits, results.theorem
    yield "audit", audit_block(params, audits) if audits else no_audit(params)
    measured = theorem_table(params, theorem) if theorem else no_theorem(params)
    yield from (("theorem", block) for block in measured.blocks)
    yield "states", states_block(params, results.examined)


def _beside(results: Results, name: str) -> tuple[Block, ...]:
    """What other profiles have kept of a table."""
    return tuple(
        captions.kept_block(block, one) for one in results.kept for block in one.blocks(name)
    )


def to_keep(results: Results) -> dict[str, tuple[PlainBlock, ...]]:
    """What the tables of other profiles show of these results: blocks by table."""
    wanted = (ACCURACIES, DECODED)
    blocks = {
        "benchmarks": [_with(block, wanted) for block in _own_benchmarks(results)],
        "interpreters": [
            _with(block, [p.title for p in block.panels if p.title.endswith(GAINS)])
            for block in _own_interpreters(results)
        ],
        # Sentences that nothing was measured are nobody's results.
        **{name: [block] if block.panels else [] for name, block in _audits(results)},
        **{name: own_series(results.params, name, results.scores) for name in SERIES},
    }
    return {
        name: tuple(PlainBlock.of(block) for block in found)
        for name, found in blocks.items()
        if found
    }


def _with(block: Block, titles: Collection[str]) -> Block:
    return replace(block, panels=tuple(p for p in block.panels if p.title in titles))
