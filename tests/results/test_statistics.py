import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from heima.results import statistics
from heima.results.cells import Cell

DRAWS = {"draws": 4000, "seed": 7}


def interval(values, **options):
    """`bootstrap_intervals` of one column."""
    column = np.asarray(values, dtype=np.float64).reshape(-1, 1)
    return tuple(statistics.bootstrap_intervals(column, **options)[0].tolist())


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(3.0, 2.0, size=150)


def test_agrees_with_scipy(values):
    low, high = interval(values, **DRAWS)
    other = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=4000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # The bounds of 4000 draws have a Monte-Carlo error of about 3 % of a standard error.
    tolerance = 0.15 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(other.low, abs=tolerance)
    assert high == pytest.approx(other.high, abs=tolerance)


def test_constant_values_have_no_width():
    # .1 has no exact double: a mean of copies may differ from it in the last bit.
    assert interval([0.1] * 33, **DRAWS) == (0.1, 0.1)


def test_clusters_of_one_are_no_clusters(values):
    labels = [f"sample {number}" for number in reversed(range(len(values)))]
    assert interval(values, clusters=labels, **DRAWS) == interval(values, **DRAWS)


def test_copies_in_one_cluster_add_no_information(values):
    """Each sample four times, its copies resampled together: the interval of one copy."""
    single = interval(values, **DRAWS)
    labels = np.repeat(np.arange(len(values)), 4).tolist()
    assert interval(np.repeat(values, 4), clusters=labels, **DRAWS) == pytest.approx(single)
    independent = interval(np.repeat(values, 4), **DRAWS)
    assert independent[1] - independent[0] < 0.7 * (single[1] - single[0])


def test_the_difference_of_equal_columns_is_zero(values):
    both = statistics.resample({"a": {1: values, 2: values + 1}}, **DRAWS)["a"]
    cell = statistics.minus(both, both, n_failed=0).cell(seed=7)
    assert (cell.value, cell.low, cell.high, cell.sd) == (0.0, 0.0, 0.0, 0.0)


def test_sums_are_of_the_resamples_that_the_intervals_see(values):
    labels = (np.arange(len(values)) // 3).tolist()
    columns = np.column_stack([values, np.ones(len(values))])
    sums = statistics.bootstrap_sums(columns, clusters=labels, **DRAWS)
    assert sums.shape == (DRAWS["draws"], 2)
    bounds = np.percentile(sums[:, 0] / sums[:, 1], statistics.PERCENTILES)
    expected = interval(values, clusters=labels, **DRAWS)
    assert tuple(bounds) == pytest.approx(expected)


def test_columns_share_one_resample(values):
    noise = np.random.default_rng(2).normal(size=len(values))
    both = statistics.bootstrap_intervals(np.column_stack([values, values + noise]), **DRAWS)
    assert tuple(both[0]) == interval(values, **DRAWS)
    assert tuple(both[1]) == interval(values + noise, **DRAWS)


def test_weights_give_the_ratio_of_totals():
    losses, tokens = np.array([4.0, 30.0, 9.0]), np.array([2.0, 10.0, 3.0])
    cell = statistics.cell(losses / tokens, weights=tokens, **DRAWS)
    assert cell.value == pytest.approx(losses.sum() / tokens.sum())
    random = np.random.default_rng(DRAWS["seed"])
    drawn = random.integers(3, size=(DRAWS["draws"], 3))
    ratios = losses[drawn].sum(axis=1) / tokens[drawn].sum(axis=1)
    assert (cell.low, cell.high) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))


def test_draws_in_chunks_are_the_same_draws(values, monkeypatch):
    whole = interval(values, **DRAWS)
    monkeypatch.setattr(statistics, "_CHUNK_ELEMENTS", 150 * 700)
    assert interval(values, **DRAWS) == pytest.approx(whole, abs=1e-12)


def test_cells_count_and_scale():
    found = statistics.cells(
        {"a": [0.0, 1.0, 1.0, 0.0], "b": [1.0] * 4}, n_failed={"a": 1}, scale=100, **DRAWS
    )
    assert found["b"] == Cell(100.0, 100.0, 100.0, n=4)
    assert (found["a"].value, found["a"].n, found["a"].n_failed) == (50.0, 4, 1)
    assert found["a"].low < 50 < found["a"].high


def test_one_training_seed_has_the_interval_of_its_questions(values):
    labels = (np.arange(len(values)) // 3).tolist()
    weights = np.linspace(1, 2, len(values))
    options = {"clusters": labels, "weights": weights, "n_failed": 2, "scale": 100, **DRAWS}
    one, plain = statistics.seeded_cell({42: values}, **options), statistics.cell(values, **options)
    assert (one.value, one.low, one.high) == pytest.approx((plain.value, plain.low, plain.high))
    assert (one.n, one.n_failed, one.seeds) == (plain.n, plain.n_failed, {42: one.value})
    assert one.sd is one.t_interval is one.p is None


def test_copies_of_a_training_seed_add_no_information(values):
    one = statistics.seeded_cell({1: values}, **DRAWS)
    three = statistics.seeded_cell({1: values, 2: values, 3: values}, **DRAWS)
    assert (three.value, three.low, three.high) == pytest.approx((one.value, one.low, one.high))
    assert (three.sd, three.n) == (0.0, 3 * one.n)


def test_seeds_and_questions_are_resampled_as_a_naive_loop_does():
    """Crossed: a draw takes seeds and questions, each with replacement, and averages the grid."""
    random = np.random.default_rng(3)
    table = random.normal(size=(40, 1)) + random.normal(size=(1, 4)) + random.normal(size=(40, 4))
    cell = statistics.seeded_cell({seed: table[:, seed] for seed in range(4)}, **DRAWS)
    means = [
        table[np.ix_(random.integers(40, size=40), random.integers(4, size=4))].mean()
        for _ in range(4000)
    ]
    low, high = np.percentile(means, statistics.PERCENTILES)
    tolerance = 0.1 * np.std(means)
    assert (cell.low, cell.high) == pytest.approx((low, high), abs=2 * tolerance)
    assert cell.value == pytest.approx(table.mean())


@given(st.lists(st.floats(-100, 100), min_size=2, max_size=6))
def test_t_interval_and_p_are_those_of_scipy(means):
    cell = Cell(float(np.mean(means)), -200.0, 200.0, n=9, seeds=dict(enumerate(means)))
    if np.std(means) < 1e-6:
        return
    test = scipy.stats.ttest_1samp(means, 0.0)
    interval = test.confidence_interval(0.95)
    assert cell.t_interval == pytest.approx((interval.low, interval.high), rel=1e-6, abs=1e-9)
    assert cell.p == pytest.approx(test.pvalue, rel=1e-6)
    assert cell.sd == pytest.approx(np.std(means, ddof=1))
    assert Cell.from_json(cell.to_json()) == cell


def test_a_mean_over_benchmarks_keeps_what_a_seed_does_to_all_of_them():
    """Seeds move all benchmarks alike: their mean is no more certain than one. Questions average.

    Two benchmarks of constant questions differ by seed alone, two of equal seeds by question alone.
    """
    seeds = {1: [0.0] * 50, 2: [1.0] * 50, 3: [2.0] * 50}
    questions = dict.fromkeys((1, 2, 3), np.arange(50.0))

    def half_width(columns) -> float:
        parts = [
            statistics.resample({"a": columns}, draws=4000, seed=(7, place))["a"]
            for place in range(4)
        ]
        cell, single = statistics.mean_of(parts).cell(seed=7), parts[0].cell(seed=7)
        return (cell.high - cell.low) / (single.high - single.low)

    assert half_width(seeds) == pytest.approx(1.0)
    assert half_width(questions) == pytest.approx(0.5, rel=0.1)


def test_a_model_of_one_seed_is_compared_with_every_seed(values):
    found = statistics.resample({"a": {1: values, 2: values + 2}, "b": {42: values + 1}}, **DRAWS)
    cell = statistics.minus(found["a"], found["b"], n_failed=0).cell(seed=7)
    assert cell.seeds == pytest.approx({1: -1.0, 2: 1.0})
    assert cell.value == pytest.approx(0.0, abs=1e-12)
    back = statistics.minus(found["b"], found["a"], n_failed=0).cell(seed=7)
    assert (back.low, back.high) == pytest.approx((-cell.high, -cell.low), abs=1e-12)
    other = statistics.resample({"c": {3: values, 4: values}}, **DRAWS)["c"]
    with pytest.raises(ValueError, match="paired seeds must match"):
        statistics.minus(found["a"], other, n_failed=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: statistics.cell([], **DRAWS), "needs samples"),
        (lambda: statistics.cell([1.0, float("nan")], **DRAWS), "finite values.*row 1"),
        (lambda: statistics.cell([1.0, 2.0], clusters=["a"], **DRAWS), "all 2 samples, got 1"),
        (lambda: statistics.cell([1.0], weights=[0.0], **DRAWS), "positive"),
        (lambda: statistics.mean_of([]), "needs parts"),
    ],
)
def test_unusable_values_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()
