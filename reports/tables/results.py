"""All that the tables and the claims read, once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heima.config import Params
from heima.results.cells import Cell, Cells
from reports.tables.audit import Audits, read_audits
from reports.tables.kept import Kept, Scale, read_kept
from reports.tables.leaks import Leaks, read_leaks
from reports.tables.model import TableError
from reports.tables.published import PAPERS
from reports.tables.reading import (
    Samples,
    Scores,
    read_flops,
    read_latency,
    read_probe,
    read_published,
    read_reconstructed,
    read_samples,
    read_scores,
    read_similarities,
)
from reports.tables.samples import Rebuilt, read_rebuilt
from reports.tables.states import Examined, read_examined
from reports.tables.theorem import read_theorem

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Results:
    """The result files of a reproduction, complete and consistent, and the paper's values.

    `kept` is what other profiles of the same size have left.
    """

    root: Path
    params: Params
    scores: Scores
    similarities: Scores
    reconstructed: Mapping[str, pd.DataFrame]
    samples: Mapping[str, Samples]
    latency: Mapping[str, Mapping[str, Cell]]
    latency_provenance: Mapping[str, Any]
    flops: Mapping[str, Mapping[str, Cell]]
    published: Mapping[str, list[dict[str, str]]]
    audits: Audits = field(default_factory=dict)
    rebuilt: Rebuilt = field(default_factory=dict)
    leaks: Leaks = field(default_factory=Leaks)
    probe: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    kept: tuple[Kept, ...] = ()
    theorem: Cells = field(default_factory=dict)
    examined: Examined = field(default_factory=Examined)

    @property
    def comparable(self) -> bool:
        """Whether models, data and rules are the paper's."""
        return self.params.profile in PAPERS

    @property
    def scale(self) -> Scale:
        return scale_of(self.params)


def scale_of(params: Params) -> Scale:
    """What results are of: `paper`, or `toy` for models that are trained from scratch."""
    return "paper" if params.profile in PAPERS else "toy"


def read(root: Path, params: Params) -> Results:
    """Read the result files below `root` that the parameters name, and no other.

    Raises `TableError` naming every file or cell that is missing, left over or inconsistent.
    """
    problems: list[str] = []
    scores = read_scores(root, params, problems)
    similarities = read_similarities(root, params, problems)
    reconstructed = read_reconstructed(root, params, problems)
    samples = read_samples(root, params, problems)
    latency, provenance = read_latency(root, params, problems)
    flops = read_flops(root, params, problems)
    published = read_published(root, params, problems)
    audits = read_audits(root, params, problems)
    rebuilt = read_rebuilt(root, params, problems)
    leaks = read_leaks(root, params, problems)
    probe = read_probe(root, params, problems)
    kept = read_kept(root, params.profile, scale_of(params), problems)
    theorem = read_theorem(root, params, problems)
    examined = read_examined(root, params, problems)
    if problems:
        raise TableError(problems)
    return Results(
        root,
        params,
        scores,
        similarities,
        reconstructed,
        samples,
        latency,
        provenance,
        flops,
        published,
        audits,
        rebuilt,
        leaks,
        probe,
        kept,
        theorem,
        examined,
    )
