"""What `dvc metrics show` lists: a row a variant or section, a column a number.

DVC spreads every key of a metrics file over its own column. The files with all cells, intervals
and provenance would fill thousands, so these small ones stand beside them.
"""

from __future__ import annotations

from pathlib import Path

from heima.config import Params
from heima.results.cells import Cell, read_metrics
from heima.results.files import write_json
from heima.results.measures import NLL_GAIN, difference, metrics_of
from heima.results.scores import ACCURACY, MEAN, score_group


def _rounded(cell: Cell) -> float:
    return round(cell.value, 3)


def summarise_scores(metrics_file: Path, summary_file: Path, params: Params) -> None:
    """For each protocol: accuracy of each benchmark in percent, their mean, and decoded tokens."""
    cells, _ = read_metrics(metrics_file)
    summary = {}
    for protocol in params.protocols:
        groups = {b: cells[score_group(protocol, b)] for b in (*params.benchmarks, MEAN)}
        summary[protocol] = {name: _rounded(group[ACCURACY]) for name, group in groups.items()}
        summary[protocol]["decoded"] = _rounded(groups[MEAN]["decoded_tokens"])
    write_json(summary_file, summary)


def summarise_similarity(metrics_file: Path, summary_file: Path, params: Params) -> None:
    """Metrics of the own state, and what its likelihood gains over each control in nats."""
    cells, _ = read_metrics(metrics_file)
    row = {name: _rounded(cells["own"][name]) for name in metrics_of("own", params)}
    gains = {
        f"{NLL_GAIN}_{control}": _rounded(cells[difference(control)][NLL_GAIN])
        for control in params.reconstruct.controls
        if control != "own"
    }
    write_json(summary_file, {**row, **gains})
