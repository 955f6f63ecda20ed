import numpy as np
import pytest
import scipy.stats

from heima import statistics
from heima.results import Cell

DRAWS = {"draws": 4000, "seed": 7}


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, size=150)


def test_agrees_with_scipy(values):
    low, high = statistics.bootstrap_interval(values, **DRAWS)
    other = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # The bounds of 4000 draws have a Monte-Carlo error of about 3 % of a standard error.
    tolerance = 0.15 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(other.low, abs=tolerance)
    assert high == pytest.approx(other.high, abs=tolerance)


def test_constant_values_have_no_width():
    # .1 has no exact double: a mean of copies may differ from it in the last bit.
    assert statistics.bootstrap_interval([0.1] * 33, **DRAWS) == (0.1, 0.1)


def test_clusters_of_one_are_no_clusters(values):
    labels = [f"sample {number}" for number in reversed(range(len(values)))]
    assert statistics.bootstrap_interval(
        values, clusters=labels, **DRAWS
    ) == statistics.bootstrap_interval(values, **DRAWS)


def test_copies_in_one_cluster_add_no_information(values):
    """Each sample four times, its copies resampled together: the interval of one copy."""
    single = statistics.bootstrap_interval(values, **DRAWS)
    labels = np.repeat(np.arange(len(values)), 4).tolist()
    assert statistics.bootstrap_interval(
        np.repeat(values, 4), clusters=labels, **DRAWS
    ) == pytest.approx(single)
    independent = statistics.bootstrap_interval(np.repeat(values, 4), **DRAWS)
    assert independent[1] - independent[0] < 0.7 * (single[1] - single[0])


def test_the_difference_of_equal_columns_is_zero(values):
    cell = statistics.paired_cell(values, values, **DRAWS)
    assert (cell.value, cell.low, cell.high) == (0.0, 0.0, 0.0)


def test_sums_are_of_the_resamples_that_the_intervals_see(values):
    labels = (np.arange(len(values)) // 3).tolist()
    columns = np.column_stack([values, np.ones(len(values))])
    sums = statistics.bootstrap_sums(columns, clusters=labels, **DRAWS)
    assert sums.shape == (DRAWS["draws"], 2)
    bounds = np.percentile(sums[:, 0] / sums[:, 1], statistics.PERCENTILES)
    expected = statistics.bootstrap_interval(values, clusters=labels, **DRAWS)
    assert tuple(bounds) == pytest.approx(expected)


def test_columns_share_one_resample(values):
    noise = np.random.default_rng(2).normal(size=len(values))
    both = statistics.bootstrap_intervals(np.column_stack([values, values + noise]), **DRAWS)
    assert tuple(both[0]) == statistics.bootstrap_interval(values, **DRAWS)
    assert tuple(both[1]) == statistics.bootstrap_interval(values + noise, **DRAWS)


def test_weights_give_the_ratio_of_totals():
    losses, tokens = np.array([4.0, 30.0, 9.0]), np.array([2.0, 10.0, 3.0])
    cell = statistics.cell(losses / tokens, weights=tokens, **DRAWS)
    assert cell.value == pytest.approx(losses.sum() / tokens.sum())
    random = np.random.default_rng(DRAWS["seed"])
    drawn = random.integers(3, size=(DRAWS["draws"], 3))
    ratios = losses[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    assert (cell.low, cell.high) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))


def test_draws_in_chunks_are_the_same_draws(values, monkeypatch):
    whole = statistics.bootstrap_interval(values, **DRAWS)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 150 * 700)
    assert statistics.bootstrap_interval(values, **DRAWS) == pytest.approx(whole, abs=1e-12)


def test_cells_count_and_scale():
    found = statistics.cells(
        {"a": [0.0, 1.0, 1.0, 0.0], "b": [1.0] * 4}, n_failed={"a": 1}, scale=100, **DRAWS
    )
    assert found["b"] == Cell(100.0, 100.0, 100.0, n=4)
    assert (found["a"].value, found["a"].n, found["a"].n_failed) == (50.0, 4, 1)
    assert found["a"].low < 50 < found["a"].high


def test_mean_of_independent_cells_is_narrower():
    cells = [Cell(50.0, 46.0, 54.0, n=10, n_failed=1), Cell(70.0, 67.0, 73.0, n=20)]
    assert statistics.mean_of(cells) == Cell(60.0, 57.5, 62.5, n=30, n_failed=1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.cell([], **DRAWS), "needs samples"),
        (lambda: statistics.cell([1.0, float("nan")], **DRAWS), "finite values.*row 1"),
        (lambda: statistics.cell([1.0, 2.0], clusters=["a"], **DRAWS), "all 2 samples, got 1"),
        (lambda: statistics.cell([1.0], weights=[0.0], **DRAWS), "positive"),
        (lambda: statistics.paired_cell([1.0], [1.0, 2.0], **DRAWS), "must match"),
        (lambda: statistics.mean_of([]), "needs cells"),
    ],
)
def test_unusable_values_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_clustered_stderr_is_that_of_lmms_eval(values):
    from lmms_eval.api.metrics import clustered_stderr

    labels = np.random.default_rng(1).integers(40, size=len(values)).tolist()
    expected = clustered_stderr(values.tolist(), labels)
    assert statistics.clustered_stderr(values, clusters=labels) == pytest.approx(expected)
    alone = statistics.clustered_stderr(values)
    assert alone == pytest.approx(scipy.stats.sem(values))
    assert statistics.clustered_stderr(values, weights=[3.0] * len(values)) == pytest.approx(alone)


def test_clustered_stderr_agrees_with_the_bootstrap_under_weights(values):
    labels = (np.arange(len(values)) // 3).tolist()
    weights = np.random.default_rng(2).uniform(0.5, 2, size=len(values))
    low, high = statistics.bootstrap_interval(values, clusters=labels, weights=weights, **DRAWS)
    expected = (high - low) / (2 * 1.96)
    found = statistics.clustered_stderr(values, clusters=labels, weights=weights)
    assert found == pytest.approx(expected, rel=0.1)


def test_clustered_stderr_needs_two_samples():
    with pytest.raises(ValueError, match="at least two samples"):
        statistics.clustered_stderr([1.0])
    constant = statistics.clustered_stderr([0.1] * 7, clusters=[0, 0, 0, 1, 1, 2, 3])
    assert constant == pytest.approx(0, abs=1e-15)


def test_two_sided_p_is_that_of_the_normal_distribution():
    for z in (0.0, 0.3, 1.96, -2.5, 8.0):
        expected = 2 * scipy.stats.norm.sf(abs(z))
        assert statistics.two_sided_p(3 * z, 3.0) == pytest.approx(expected, rel=1e-9)
