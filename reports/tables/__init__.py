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
from reports.tables.benchmarks import benchmarks_block
from reports.tables.interpreters import interpreters_block
from reports.tables.latency import latency_block
from reports.tables.model import Block, Entry, Label, Panel, Table, TableError
from reports.tables.published import (
    published_ablation,
    published_benchmarks,
    published_interpreters,
)
from reports.tables.reading import (
    read_latency,
    read_published,
    read_reconstructed,
    read_samples,
    read_scores,
    read_similarities,
)
from reports.tables.writing import comma_separated, latex, markdown

__all__ = [
    "Block",
    "Entry",
    "Label",
    "Panel",
    "Table",
    "TableError",
    "build",
    "comma_separated",
    "latex",
    "markdown",
]


def build(root: Path, params: Params) -> dict[str, Table]:
    """The tables benchmarks, ablation, interpreters and latency from the result files below `root`.

    Raises `TableError` naming every file or cell that is missing, left over or inconsistent.
    """
    problems: list[str] = []
    scores = read_scores(root, params, problems)
    similarities = read_similarities(root, params, problems)
    reconstructed = read_reconstructed(root, params, problems)
    samples = read_samples(root, params, problems)
    latency = read_latency(root, params, problems)
    published = read_published(root, params, problems)
    if problems:
        raise TableError(problems)
    tables: tuple[Table, ...] = (
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
                    ablation_block(params, protocol, scores, samples)
                    for protocol in params.protocols
                ),
                *published_ablation(published["benchmarks"]),
            ),
        ),
        Table(
            "interpreters",
            (
                interpreters_block(
                    root, params, similarities, reconstructed, published["interpreters"]
                ),
                *published_interpreters(params, published["interpreters"]),
            ),
        ),
    )
    tables += (Table("latency", (latency_block(params, *latency),)),)
    return {table.name: table for table in tables}
