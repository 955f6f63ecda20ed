"""Intervals: percentile bootstrap over samples or whole clusters, many columns on one resample.

Every interval of the pipeline is a 95 % percentile bootstrap interval of a (weighted) mean. All
columns of one call see the same resampled ids, so a difference of columns is a paired difference.
`scipy.stats.bootstrap` gives the same interval for one column without clusters (tested); it has
neither clusters nor weights, and it gathers each column anew.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heima.results import Cell

Name = TypeVar("Name", bound=Hashable)

PERCENTILES = (2.5, 97.5)

DRAWS = 1_000
"""Resamples behind the intervals of held-out losses and timings, which no parameter governs: a
model is not trained again for another interval."""

_CHUNK_ELEMENTS = 4_000_000
"""Resampled ids held at once: 32 MB, whatever the number of samples and draws."""


def bootstrap_intervals(
    columns: ArrayLike,
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
) -> NDArray[np.float64]:
    """95 % percentile bootstrap intervals of the mean of each column, on one resample of ids.

    Parameters
    ----------
    columns: finite numbers, shape (n, k): one row a sample.
    draws: how many resamples.
    seed: of the resampling; the same seed, n and clusters give the same resampled ids.
    clusters: n labels; samples that share a label (questions on one image) are resampled
        together. None: every sample is its own cluster, which gives the same numbers as n
        different labels.
    weights: n positive numbers; the mean is then sum(w * x) / sum(w), as for a loss per token
        (x: loss per token of a text, w: its tokens).

    Returns shape (k, 2): low and high. Raises `ValueError` for no samples, a value that is not
    finite, or lengths that differ.
    """
    table = _table(columns)
    n = len(table)
    mass = _weights(weights, n)
    groups = _codes(clusters, n)
    # Resampling deviations from the first row keeps a constant column exactly constant.
    origin = table[0]
    weighted = np.column_stack([(table - origin) * mass[:, None], mass])
    sums = _resampled_sums(_sum_by(groups, weighted), draws, seed)
    means = sums[:, :-1] / sums[:, -1:]
    return origin[:, None] + np.percentile(means, PERCENTILES, axis=0).T


def bootstrap_sums(
    columns: ArrayLike,
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
) -> NDArray[np.float64]:
    """The sum of each column in each resample, shape (draws, k): what a ratio of sums needs.

    The resampled ids are those of `bootstrap_intervals` with the same seed, n and clusters, so
    that draws of two calls are paired. Parameters and errors: see there.
    """
    table = _table(columns)
    return _resampled_sums(_sum_by(_codes(clusters, len(table)), table), draws, seed)


def drawn_cell(value: float, drawn: ArrayLike, *, n: int, n_failed: int = 0) -> Cell:
    """A statistic that is no mean, with the 95 % percentile interval of its values in resamples.

    `drawn` has shape (draws,).
    """
    low, high = np.percentile(np.asarray(drawn, dtype=np.float64), PERCENTILES)
    return Cell(float(value), float(low), float(high), n=n, n_failed=n_failed)


def bootstrap_interval(
    values: ArrayLike,
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of `values`, shape (n,).

    The parameters and errors are those of `bootstrap_intervals`.

    >>> bootstrap_interval([1.0, 1.0, 1.0], draws=100, seed=0)
    (1.0, 1.0)
    """
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    low, high = bootstrap_intervals(
        column, draws=draws, seed=seed, clusters=clusters, weights=weights
    )[0]
    return float(low), float(high)


def cells(
    columns: Mapping[Name, ArrayLike],
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
    n_failed: Mapping[Name, int] | None = None,
    scale: float = 1.0,
) -> dict[Name, Cell]:
    """The mean of each column (times `scale`) with its 95 % interval, on one resample of ids.

    A column holds every sample, a failure with the score that a failure gets, so that n counts
    it; `n_failed` says for each column how many those are (0 where it does not name it). Other
    parameters and errors: see `bootstrap_intervals`.
    """
    table = _table(np.column_stack([np.asarray(column) for column in columns.values()]))
    bounds = bootstrap_intervals(table, draws=draws, seed=seed, clusters=clusters, weights=weights)
    mass = _weights(weights, len(table))
    means = table[0] + (mass @ (table - table[0])) / mass.sum()
    failed = n_failed or {}
    return {
        name: Cell(
            value=float(mean) * scale,
            low=float(low) * scale,
            high=float(high) * scale,
            n=len(table),
            n_failed=failed.get(name, 0),
        )
        for name, mean, (low, high) in zip(columns, means, bounds, strict=True)
    }


def cell(
    values: ArrayLike,
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
    n_failed: int = 0,
    scale: float = 1.0,
) -> Cell:
    """One column of `cells`."""
    return cells(
        {"value": values},
        draws=draws,
        seed=seed,
        clusters=clusters,
        weights=weights,
        n_failed={"value": n_failed},
        scale=scale,
    )["value"]


def paired_cell(
    a: ArrayLike,
    b: ArrayLike,
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
    n_failed: int = 0,
    scale: float = 1.0,
) -> Cell:
    """The mean difference a - b of paired samples as a cell."""
    return cell(
        _difference(a, b),
        draws=draws,
        seed=seed,
        clusters=clusters,
        weights=weights,
        n_failed=n_failed,
        scale=scale,
    )


def clustered_stderr(
    values: ArrayLike,
    *,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
) -> float:
    """Standard error of a (weighted) mean whose samples come in clusters.

    Equation 4 of Miller 2024 (arXiv 2411.00640), as lmms-eval has it (tested): the standard error
    of independent samples, plus the products of different samples of one cluster. Parameters: see
    `bootstrap_intervals`. Raises `ValueError` for fewer than two samples.
    """
    table = _table(np.asarray(values, dtype=np.float64).reshape(-1, 1))
    n = len(table)
    if n < 2:
        raise ValueError("a standard error needs at least two samples")
    mass = _weights(weights, n)[:, None]
    mean = (mass * table).sum() / mass.sum()
    deviations = mass * (table - mean) * (n / mass.sum())
    squares = float((deviations**2).sum())
    within = float((_sum_by(_codes(clusters, n), deviations) ** 2).sum())
    # Rounding may leave a constant column a hair below nothing.
    return math.sqrt(max(0.0, squares / (n * (n - 1)) + (within - squares) / n**2))


def two_sided_p(difference: float, stderr: float) -> float:
    """The probability of a difference at least as large by chance (normal approximation).

    >>> round(two_sided_p(1.96, 1.0), 3), two_sided_p(0.0, 0.0), two_sided_p(1.0, 0.0)
    (0.05, 1.0, 0.0)
    """
    if stderr == 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / stderr / math.sqrt(2))


def mean_of(cells: Sequence[Cell]) -> Cell:
    """The mean of independent cells, each with the same weight (a mean over benchmarks).

    Its interval adds the distances of the cells' bounds in squares (MOVER: Zou and Donner 2008,
    Statistics in Medicine 27); n and failures add up. Raises `ValueError` for no cells.
    """
    if not cells:
        raise ValueError("a mean needs cells")
    value = sum(cell.value for cell in cells) / len(cells)
    return Cell(
        value=value,
        low=value - math.hypot(*(cell.value - cell.low for cell in cells)) / len(cells),
        high=value + math.hypot(*(cell.high - cell.value for cell in cells)) / len(cells),
        n=sum(cell.n for cell in cells),
        n_failed=sum(cell.n_failed for cell in cells),
    )


def _table(columns: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"an interval needs samples in rows, got shape {table.shape}")
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0][0])
        raise ValueError(f"an interval needs finite values, got {table[row].tolist()} in row {row}")
    return table


def _difference(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    left, right = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if left.shape != right.shape:
        raise ValueError(f"paired values must match, got shapes {left.shape} and {right.shape}")
    return left - right


def _weights(weights: ArrayLike | None, n: int) -> NDArray[np.float64]:
    if weights is None:
        return np.ones(n)
    mass = np.asarray(weights, dtype=np.float64)
    if mass.shape != (n,) or not (np.isfinite(mass) & (mass > 0)).all():
        raise ValueError(f"weights must be {n} positive numbers, got shape {mass.shape}")
    return mass


def _codes(clusters: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    """Cluster numbers in order of first appearance."""
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError(f"clusters must label all {n} samples, got {len(clusters)} labels")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(label, len(numbers)) for label in clusters], dtype=np.intp)


def _sum_by(codes: NDArray[np.intp], table: NDArray[np.float64]) -> NDArray[np.float64]:
    sums = np.zeros((int(codes.max()) + 1, table.shape[1]))
    np.add.at(sums, codes, table)
    return sums


def _resampled_sums(totals: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over resampled clusters, (draws, k), of the clusters' totals, (clusters, k)."""
    # einsum, not BLAS: the same bits for any number of threads.
    return np.concatenate(
        [np.einsum("dc,ck->dk", counts, totals) for counts in _resamples(len(totals), draws, seed)]
    )


def _resamples(n: int, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each of n units is drawn, shape (draws, n), in chunks of draws."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        drawn = generator.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n)
        yield counts.reshape(size, n).astype(np.float64)
