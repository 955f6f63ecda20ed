"""What `dvc metrics show` lists: a row a variant or reconstruction, a few numbers each.

DVC spreads every key of every metrics file over a column of its own, and in `dvc exp show` over one
for each file. The files with all cells, intervals and provenance would fill thousands, so these
small ones stand beside them; the numbers of each benchmark are in the tables, and drawn by `dvc
plots show` (reports/figures/plots.py).
"""

from __future__ import annotations

from pathlib import Path

from heima.config import Params
from heima.results.cells import Cell, read_metrics
from heima.results.files import write_json
from heima.results.measures import NLL_GAIN, difference
from heima.results.scores import ACCURACY, MEAN, score_group

DECODED = "decoded"
"""Decoded tokens of an answer, under the protocol that is named first."""

CONTROLS = ("shuffled", "question-only")
"""Controls whose gains are listed, where they were run: another turn's state, and none."""


def _rounded(cell: Cell) -> float:
    return round(cell.value, 3)


def summarise_scores(metrics_file: Path, summary_file: Path, params: Params) -> None:
    """For each protocol the mean accuracy of the benchmarks in percent; and decoded tokens."""
    cells, _ = read_metrics(metrics_file)
    means = {protocol: cells[score_group(protocol, MEAN)] for protocol in params.protocols}
    summary = {protocol: _rounded(group[ACCURACY]) for protocol, group in means.items()}
    first = next(iter(means.values()))
    write_json(summary_file, {**summary, DECODED: _rounded(first["decoded_tokens"])})


def summarise_similarity(metrics_file: Path, summary_file: Path, params: Params) -> None:
    """BLEU-4 of the own state, and what its likelihood gains over `CONTROLS` in nats a text."""
    cells, _ = read_metrics(metrics_file)
    gains = {
        f"{NLL_GAIN}_{control}": _rounded(cells[difference(control)][NLL_GAIN])
        for control in CONTROLS
        if control in params.reconstruct.controls
    }
    write_json(summary_file, {"bleu4": _rounded(cells["own"]["bleu4"]), **gains})
