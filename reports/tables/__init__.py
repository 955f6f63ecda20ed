"""Tables of a reproduction: which cells each expects, and how they become LaTeX, Markdown and CSV.

A table reads the files that the parameters name and no other; a cell that is missing, left over or
of another profile raises `TableError` with all of them. Every entry knows the file it came from.
The paper's own values stand in a block of their own beside ours, with a caption that says so: they
come from other models, data and judges.
"""

from __future__ import annotations

from pathlib import Path

from heima.config import Params
from reports.tables.ablation import ablation_block
from reports.tables.appendix import latex
from reports.tables.benchmarks import benchmarks_block
from reports.tables.compact import compact_files
from reports.tables.interpreters import interpreters_block
from reports.tables.latency import latency_block
from reports.tables.model import Block, Entry, Label, Panel, Table, TableError
from reports.tables.published import (
    published_ablation,
    published_benchmarks,
    published_interpreters,
)
from reports.tables.reported import comparisons, counts, reported_table
from reports.tables.results import Results, read
from reports.tables.series import SERIES, nothing, series_blocks
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
]

NAMES = ("benchmarks", "ablation", "interpreters", "latency", *SERIES, "reported")
"""The tables, in their order."""


def build(root: Path, params: Params) -> dict[str, Table]:
    """The tables from the result files below `root`, by name. Raises `TableError` (`read`)."""
    return of_results(read(root, params))


def of_results(results: Results) -> dict[str, Table]:
    """The tables (`NAMES`) of results that were read."""
    params, scores, published = results.params, results.scores, results.published
    made: tuple[Table, ...] = (
        Table(
            "benchmarks",
            (
                *(
                    benchmarks_block(params, protocol, scores, published["benchmarks"])
                    for protocol in params.protocols
                ),
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
            "interpreters",
            (
                interpreters_block(
                    results.root,
                    params,
                    results.similarities,
                    results.reconstructed,
                    published["interpreters"],
                ),
                *published_interpreters(params, published["interpreters"]),
            ),
        ),
        Table("latency", (latency_block(params, results.latency, results.latency_provenance),)),
        *(
            Table(name, series_blocks(params, name, scores, published[name]) or nothing(name))
            for name in SERIES
        ),
        reported_table(results, comparisons(results)),
    )
    return {table.name: table for table in made}
