"""Intervals: percentile bootstrap over samples and training seeds, many columns on one resample.

Every interval of the pipeline is a 95 % percentile bootstrap interval of a (weighted) mean. All
columns of one call see the same resampled ids, so a difference of columns is a paired difference.
`scipy.stats.bootstrap` gives the same interval for one column without clusters (tested); it has
neither clusters nor weights, and it gathers each column anew.

Where models of several training seeds answered the same questions, both are resampled, each
independently of the other, since they are crossed ("pigeonhole bootstrap": Owen 2007, Annals of
Applied Statistics 1). With few seeds that is too narrow: a resample of three seeds has two thirds
of their variance. So the t interval of the seeds' own means stands beside it (`Cell.t_interval`),
which has the spread between trainings alone, with the uncertainty of so few.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heima.results.cells import Cell

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
    deviations = _resampled_deviations(table, mass, _codes(clusters, n), draws, seed)
    return table[0][:, None] + np.percentile(deviations, PERCENTILES, axis=0).T


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


@dataclass(frozen=True)
class Resampled:
    """A statistic by training seed, and its values in resamples of the questions.

    `drawn` has shape (draws, seeds), in the order of `values`. `n` counts the samples of all seeds.
    """

    values: Mapping[int, float]
    drawn: NDArray[np.float64]
    n: int
    n_failed: int = 0

    def cell(self, *, seed: int) -> Cell:
        """The mean over training seeds, its interval over seeds and questions, and each seed's.

        `seed` is of the resampling of training seeds: statistics of equally many seeds see the
        same, so that a mean over benchmarks keeps what a seed does to all of them.
        """
        each = np.array(list(self.values.values()))
        # Deviations from the first seed's keep a constant statistic exactly constant.
        shares = _seed_shares(len(each), len(self.drawn), seed)
        drawn = each[0] + np.einsum("ds,ds->d", shares, self.drawn - each[0])
        low, high = np.percentile(drawn, PERCENTILES)
        return Cell(
            value=float(each[0] + (each - each[0]).mean()),
            low=float(low),
            high=float(high),
            n=self.n,
            n_failed=self.n_failed,
            seeds={seed: float(value) for seed, value in self.values.items()},
        )


def resample(
    columns: Mapping[Name, Mapping[int, ArrayLike]],
    *,
    draws: int,
    seed: int | Sequence[int],
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
    n_failed: Mapping[Name, int] | None = None,
    scale: float = 1.0,
) -> dict[Name, Resampled]:
    """The mean (times `scale`) of each column for each training seed, on one resample of questions.

    A column maps training seeds to values of the same n questions; `n_failed` counts its failures
    over all seeds. Other parameters and errors: see `bootstrap_intervals`.
    """
    places = [(name, key) for name, values in columns.items() for key in values]
    table = _table(np.column_stack([np.asarray(columns[name][key]) for name, key in places]))
    mass = _weights(weights, len(table))
    groups = _codes(clusters, len(table))
    drawn = table[0] + _resampled_deviations(table, mass, groups, draws, seed)
    means = table[0] + (mass @ (table - table[0])) / mass.sum()
    failed = n_failed or {}
    found, first = {}, 0
    for name, values in columns.items():
        part = slice(first, first + len(values))
        first += len(values)
        found[name] = Resampled(
            {key: float(mean) * scale for key, mean in zip(values, means[part], strict=True)},
            drawn[:, part] * scale,
            n=len(table) * len(values),
            n_failed=failed.get(name, 0),
        )
    return found


def seeded_cell(
    values: Mapping[int, ArrayLike],
    *,
    draws: int,
    seed: int,
    clusters: Sequence[Hashable] | None = None,
    weights: ArrayLike | None = None,
    n_failed: int = 0,
    scale: float = 1.0,
) -> Cell:
    """One column of `resample` as a cell: training seed -> values of the same n questions."""
    return resample(
        {"value": values},
        draws=draws,
        seed=seed,
        clusters=clusters,
        weights=weights,
        n_failed={"value": n_failed},
        scale=scale,
    )["value"].cell(seed=seed)


def mean_of(parts: Sequence[Resampled]) -> Resampled:
    """The mean of statistics of different questions, each with the same weight (of benchmarks).

    Their draws must come from independent resamples of the questions (another `seed` for each). n
    and failures add up. Raises `ValueError` for no parts, or for parts of other training seeds.
    """
    if not parts:
        raise ValueError("a mean needs parts")
    seeds = list(parts[0].values)
    for part in parts:
        if list(part.values) != seeds:
            raise ValueError(f"a mean needs the same seeds, got {seeds} and {list(part.values)}")
    return Resampled(
        {key: sum(part.values[key] for part in parts) / len(parts) for key in seeds},
        sum((part.drawn for part in parts), np.zeros_like(parts[0].drawn)) / len(parts),
        n=sum(part.n for part in parts),
        n_failed=sum(part.n_failed for part in parts),
    )


def minus(left: Resampled, right: Resampled, *, n_failed: int) -> Resampled:
    """The paired difference of two statistics on the same resamples of the same questions.

    A model that was trained with one seed alone is compared with every seed of the other one.
    Raises `ValueError` where the training seeds differ otherwise.
    """
    keys = left.values if len(left.values) >= len(right.values) else right.values
    both = [_spread(one, tuple(keys)) for one in (left, right)]
    return Resampled(
        {key: both[0].values[key] - both[1].values[key] for key in keys},
        both[0].drawn - both[1].drawn,
        n=max(left.n, right.n),
        n_failed=n_failed,
    )


def _spread(one: Resampled, keys: tuple[int, ...]) -> Resampled:
    """`one` for each of the seeds `keys`: its own, or its only one for all of them."""
    if tuple(one.values) == keys:
        return one
    if len(one.values) > 1:
        raise ValueError(f"paired seeds must match, got {list(one.values)} and {list(keys)}")
    [value] = one.values.values()
    return Resampled(dict.fromkeys(keys, value), one.drawn.repeat(len(keys), axis=1), one.n)


def agreed(cell: Cell) -> bool:
    """Whether a difference is a conclusion: several training seeds, all of one sign, that of every
    value in its interval. Of three coins all fall alike every fourth time, hence the interval.

    >>> agreed(Cell(2.0, 1.0, 3.0, n=9, seeds={1: 1.0, 2: 3.0}))
    True
    >>> agreed(Cell(2.0, -0.1, 3.0, n=9, seeds={1: 1.0, 2: 3.0}))
    False
    """
    values = [*cell.seeds.values(), cell.low, cell.high]
    return len(cell.seeds) > 1 and (min(values) > 0 or max(values) < 0)


def _table(columns: ArrayLike) -> NDArray[np.float64]:
    table = np.asarray(columns, dtype=np.float64)
    if table.ndim != 2 or len(table) == 0:
        raise ValueError(f"an interval needs samples in rows, got shape {table.shape}")
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0][0])
        raise ValueError(f"an interval needs finite values, got {table[row].tolist()} in row {row}")
    return table


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


def _resampled_deviations(
    table: NDArray[np.float64],
    mass: NDArray[np.float64],
    groups: NDArray[np.intp],
    draws: int,
    seed: int | Sequence[int],
) -> NDArray[np.float64]:
    """The weighted mean of each column in each resample minus its first row, (draws, k).

    Resampling deviations from the first row keeps a constant column exactly constant.
    """
    weighted = np.column_stack([(table - table[0]) * mass[:, None], mass])
    sums = _resampled_sums(_sum_by(groups, weighted), draws, seed)
    return sums[:, :-1] / sums[:, -1:]


def _seed_shares(seeds: int, draws: int, seed: int) -> NDArray[np.float64]:
    """The share of each training seed in each resample of them, (draws, seeds)."""
    # A stream of its own: with as many questions as seeds, both would be drawn alike.
    [counts] = _resamples(seeds, draws, (seed, seeds))
    return counts / seeds


def _resampled_sums(
    totals: NDArray[np.float64], draws: int, seed: int | Sequence[int]
) -> NDArray[np.float64]:
    """Sums over resampled clusters, (draws, k), of the clusters' totals, (clusters, k)."""
    # einsum, not BLAS: the same bits for any number of threads.
    return np.concatenate(
        [np.einsum("dc,ck->dk", counts, totals) for counts in _resamples(len(totals), draws, seed)]
    )


def _resamples(n: int, draws: int, seed: int | Sequence[int]) -> Iterator[NDArray[np.float64]]:
    """How often each of n units is drawn, shape (draws, n), in chunks of draws."""
    generator = np.random.default_rng(seed)
    rows = max(1, _CHUNK_ELEMENTS // n)
    for start in range(0, draws, rows):
        size = min(rows, draws - start)
        drawn = generator.integers(n, size=(size, n)) + np.arange(size)[:, None] * n
        counts = np.bincount(drawn.ravel(), minlength=size * n)
        yield counts.reshape(size, n).astype(np.float64)
