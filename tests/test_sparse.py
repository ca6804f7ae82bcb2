"""Matrices in groups against their entries."""

import numpy as np
import pytest

from em3_jax.sparse import Entries, group_width, grouped, most_groups, transposed


def random_entries(nodes: int, count: int, seed: int) -> Entries:
    random = np.random.default_rng(seed)
    place = np.sort(random.choice(nodes * nodes, count, replace=False))
    return Entries(
        (place // nodes).astype(np.int32), (place % nodes).astype(np.int32), random.random(count, np.float32)
    )


def dense(entries: Entries, nodes: int) -> np.ndarray:
    matrix = np.zeros((nodes, nodes), np.float32)
    matrix[entries.receiver, entries.sender] = entries.weight
    return matrix


@pytest.mark.parametrize("nodes,count", [(5, 0), (5, 25), (40, 60), (40, 900)])
@pytest.mark.parametrize("width", [1, 2, 7])
def test_groups_hold_the_entries_of_their_row_in_order_and_a_bound_holds_all_groups(nodes, count, width):
    entries = random_entries(nodes, count, seed=count)
    bound = most_groups(count, nodes, width)
    got = grouped(entries, nodes, width=width, groups=bound)
    assert got.sender.shape == got.weight.shape == (bound, width) and (np.diff(got.receiver) >= 0).all()
    real = got.weight > 0
    assert not real[got.receiver == nodes].any()
    row = np.broadcast_to(got.receiver[:, None], real.shape)[real]
    for one, other in zip((row, got.sender[real], got.weight[real]), entries, strict=True):
        np.testing.assert_array_equal(one, other)
    full = -(-np.bincount(entries.receiver, minlength=nodes) // width)
    np.testing.assert_array_equal(np.bincount(got.receiver, minlength=nodes)[:nodes], full)


def test_without_a_number_of_groups_there_is_no_padding():
    receiver, sender = np.repeat(np.arange(4, dtype=np.int32), 2), np.tile(np.array([0, 3], np.int32), 4)
    every = Entries(receiver, sender, np.ones(8, np.float32))
    assert grouped(every, 4, width=2).receiver.tolist() == [0, 1, 2, 3]
    assert grouped(Entries(*(x[2:] for x in every)), 4, width=2).receiver.tolist() == [1, 2, 3]


def test_the_transpose():
    entries = random_entries(20, 90, seed=1)
    other = transposed(entries)
    assert (np.diff(other.receiver) >= 0).all()
    np.testing.assert_array_equal(dense(other, 20), dense(entries, 20).T)


def test_groups_are_as_wide_as_rows_are_long_up_to_eight():
    assert [group_width(entries, 100) for entries in (0, 100, 101, 350, 750, 5000)] == [1, 1, 2, 4, 8, 8]
