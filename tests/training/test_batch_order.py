"""The order of samples: every sample once an epoch, images together, work shared out whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heima.training import batch_order

GROUPS = st.lists(st.integers(0, 12), min_size=1, max_size=80)


def epochs(lengths, groups, batch_size, *, by_length=True, seed=1, count=2):
    """The batches of the first epochs."""
    per_epoch = -(-len(lengths) // batch_size)
    found = batch_order.batches(lengths, groups, batch_size, seed=seed, by_length=by_length)
    return [list(itertools.islice(found, per_epoch)) for _ in range(count)]


@given(GROUPS, st.integers(1, 9), st.booleans(), st.integers(0, 5))
def test_an_epoch_has_every_sample_once_in_full_batches(groups, batch_size, by_length, seed):
    lengths = [7 * group % 5 + index % 3 for index, group in enumerate(groups)]
    for batches in epochs(lengths, groups, batch_size, by_length=by_length, seed=seed):
        assert sorted(itertools.chain(*batches)) == list(range(len(groups)))
        assert all(len(batch) == batch_size for batch in batches[:-1])


@given(GROUPS, st.integers(2, 9), st.integers(0, 5))
def test_a_group_is_parted_only_by_the_edge_of_a_batch(groups, batch_size, seed):
    """So it lies in no more batches than its samples would need by themselves, and one."""
    (batches,) = epochs([1] * len(groups), groups, batch_size, seed=seed, count=1)
    for group in set(groups):
        touched = sum(any(groups[i] == group for i in batch) for batch in batches)
        assert touched <= -(-groups.count(group) // batch_size) + 1


@pytest.mark.parametrize("count", [100, 1024, 1027])
def test_batches_are_of_like_length_and_their_neighbours_are_not(count):
    lengths = np.random.default_rng(0).integers(10, 500, size=count).tolist()
    first, second = epochs(lengths, range(count), 16)
    assert first != second
    means = [np.mean([lengths[i] for i in batch]) for batch in first]
    if count > 100:
        spread = [np.ptp([lengths[i] for i in batch]) for batch in first]
        assert np.mean(spread) < np.ptp(lengths) / 4
        assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.5


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=50, unique=True),
    st.integers(1, 9),
    st.none() | st.integers(1, 9),
)
def test_processes_share_a_batch_in_equally_many_micro_batches(batch, processes, micro):
    shares = [
        batch_order.share(batch, process=process, processes=processes, micro_batch_size=micro)
        for process in range(processes)
    ]
    assert len({len(share) for share in shares}) == 1
    counted = [one for share in shares for one in share if one.counted]
    assert [index for one in counted for index in one.indices] == batch
    for one in itertools.chain(*shares):
        assert one.indices and (micro is None or len(one.indices) <= micro)
