"""Matrices in groups against their entries."""

import numpy as np
import pytest

from em3_jax.core.sparse import Entries, group_width, grouped, most_groups, transposed


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
    bound = most_groups(count, width)
    got = grouped(entries, nodes, width=width, groups=bound)
    assert got.sender.shape == got.weight.shape == (nodes, width)
    assert got.more_sender.shape == got.more_weight.shape == (bound, width) and (np.diff(got.more_receiver) >= 0).all()
    assert not (got.more_weight > 0)[got.more_receiver == nodes].any()
    for row in range(nodes):
        own, more = entries.receiver == row, got.more_receiver == row
        real = np.concatenate([got.weight[row], *got.more_weight[more]]) > 0
        for name in ("sender", "weight"):
            held = np.concatenate([getattr(got, name)[row], *getattr(got, f"more_{name}")[more]])
            np.testing.assert_array_equal(held[real], getattr(entries, name)[own])
        assert more.sum() == max(-(-own.sum() // width) - 1, 0)


def test_without_a_number_of_groups_there_are_as_many_as_it_takes():
    receiver, sender = np.repeat(np.arange(4, dtype=np.int32), [2, 3, 0, 5]), np.arange(10, dtype=np.int32)
    entries = Entries(receiver, sender, np.ones(10, np.float32))
    assert grouped(entries, 4, width=2).more_receiver.tolist() == [1, 3, 3]
    assert grouped(entries, 4, width=3).more_receiver.tolist() == [3, 4]  # two at least, here with one of padding


def test_the_transpose():
    entries = random_entries(20, 90, seed=1)
    other = transposed(entries)
    assert (np.diff(other.receiver) >= 0).all()
    np.testing.assert_array_equal(dense(other, 20), dense(entries, 20).T)


def test_groups_are_twice_as_wide_as_rows_are_long_up_to_eight():
    assert [group_width(entries, 100) for entries in (0, 50, 51, 100, 147, 200, 350, 5000)] == [1, 1, 2, 2, 4, 4, 8, 8]
