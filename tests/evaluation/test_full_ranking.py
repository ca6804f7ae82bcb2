"""Full ranking: against plain loops, ties included; block sizes, padding and the lengths of lists change nothing."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.evaluation import full_ranking
from em3_jax.evaluation.full_ranking import NO_ITEM, Seen, best_items, metrics
from em3_jax.metrics import KS

USERS, ITEMS, WIDTH = 300, 1300, 12  # more than a tile of each


def tied_embeddings(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Small integers: every product is exact, and many scores are equal."""
    random = np.random.default_rng(seed)
    return tuple(random.integers(-2, 3, (n, WIDTH)).astype(np.float32) for n in (USERS, ITEMS))


def seen_pairs(seed: int = 1) -> Seen:
    random = np.random.default_rng(seed)
    chosen = random.random((USERS, ITEMS)) < 0.05
    chosen[[3, 299]] = False
    chosen[7] = True
    chosen[7, [4, 900, 1299]] = False  # a user with three items left
    chosen[8] = True  # and one with none
    return Seen(*np.nonzero(chosen))


def plain_lists(users: np.ndarray, items: np.ndarray, seen: Seen, k: int) -> np.ndarray:
    left_out = [set(seen.item[seen.row == row].tolist()) for row in range(len(users))]
    lists = np.full((len(users), k), NO_ITEM)
    for row, user in enumerate(users):
        scores = [(-float(np.dot(user, item)), number) for number, item in enumerate(items)]
        best = [number for _, number in sorted(scores) if number not in left_out[row]][:k]
        lists[row, : len(best)] = best
    return lists


BLOCKS = [(256, 1024), (512, 2048), (1, 1), (300, 1300), (10_000, 10_000), (256, 2048), (512, 1024)]


@pytest.mark.parametrize("user_block,item_block", BLOCKS)
def test_lists_are_those_of_a_plain_loop_with_ties_by_number(user_block, item_block):
    users, items = tied_embeddings()
    seen = seen_pairs()
    got = best_items(jnp.array(users), jnp.array(items), seen, user_block=user_block, item_block=item_block)
    np.testing.assert_array_equal(got, plain_lists(users, items, seen, 50))
    assert got.dtype == np.int32
    assert (got[7, 3:] == NO_ITEM).all() and sorted(got[7, :3]) == [4, 900, 1299] and (got[8] == NO_ITEM).all()


def test_lists_do_not_depend_on_the_blocks_bit_for_bit():
    """Scores that differ in their last bits alone: rounding decides the order, so it must be the same everywhere."""
    random = np.random.default_rng(2)
    base = random.standard_normal(WIDTH).astype(np.float32)
    users = base + random.standard_normal((USERS, WIDTH)).astype(np.float32)
    items = (base + 1e-7 * random.standard_normal((ITEMS, WIDTH))).astype(np.float32)
    lists = [
        best_items(jnp.array(users), jnp.array(items), seen_pairs(), user_block=user_block, item_block=item_block)
        for user_block, item_block in BLOCKS
    ]
    for other in lists[1:]:
        np.testing.assert_array_equal(other, lists[0])
    exact = users.astype(np.float64) @ items.T.astype(np.float64)
    assert (np.abs(exact - exact[:, :1]) < 1e-4).all()  # or there would be nothing to decide


def test_all_items_equal_come_by_number():
    users, items = np.ones((5, 4), np.float32), np.ones((2100, 4), np.float32)
    seen = Seen(np.array([0, 1, 1]), np.array([0, 1, 2]))
    got = best_items(jnp.array(users), jnp.array(items), seen, user_block=256, item_block=1024)
    np.testing.assert_array_equal(got[4], np.arange(50))
    np.testing.assert_array_equal(got[0], np.arange(1, 51))
    np.testing.assert_array_equal(got[1], [0, *range(3, 52)])


def test_fewer_items_than_the_list_has_places():
    users, items = tied_embeddings()
    nothing = Seen(np.zeros(0, int), np.zeros(0, int))
    got = best_items(jnp.array(users), jnp.array(items[:7]), nothing, user_block=256, item_block=1024)
    np.testing.assert_array_equal(got, plain_lists(users, items[:7], nothing, 50))
    assert (got[:, 7:] == NO_ITEM).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_is_refused(bad):
    users, items = tied_embeddings()
    items[5, 3] = bad
    with pytest.raises(ValueError, match="not finite"):
        best_items(jnp.array(users), jnp.array(items), seen_pairs(), user_block=256, item_block=1024)


def test_scores_never_exist_as_a_whole():
    """The largest array of the compiled merge holds one block."""
    tiles = [[jnp.zeros((full_ranking.USER_TILE, full_ranking.ITEM_TILE))] * 2]
    empty = jnp.zeros(0, jnp.int32)
    text = full_ranking._merge.lower(*full_ranking._empty(256, 50), tiles, empty, empty, 0, 5000).as_text()
    assert "256x2048" in text and "256x5000" not in text


def plain_metrics(lists: np.ndarray, row: np.ndarray, item: np.ndarray) -> dict[int, dict[str, float]]:
    """User by user, place by place, as the definitions read."""
    result = {}
    for user in sorted(set(row.tolist())):
        positives = set(item[row == user].tolist())
        values = {}
        for k in KS:
            hits, gain, precisions = 0, 0.0, 0.0
            for place, candidate in enumerate(lists[user][:k].tolist(), start=1):
                if candidate in positives:
                    hits += 1
                    gain += 1 / math.log2(place + 1)
                    precisions += hits / place
            reachable = min(len(positives), k)
            ideal = sum(1 / math.log2(place + 1) for place in range(1, reachable + 1))
            values |= {
                f"recall@{k}": hits / len(positives),
                f"precision@{k}": hits / k,
                f"ndcg@{k}": gain / ideal,
                f"map@{k}": precisions / reachable,
            }
        result[user] = values
    return result


def test_metrics_are_those_of_a_plain_loop():
    random = np.random.default_rng(3)
    users, items = tied_embeddings()
    lists = plain_lists(users[:40], items[:120], Seen(np.zeros(0, int), np.zeros(0, int)), 50)
    chosen = random.random((40, 120)) < 0.1
    chosen[5, :80] = True  # more positives than the list has places
    chosen[[0, 6]] = False  # no positives
    chosen[9, lists[9, :7]] = True  # everything right at first
    row, item = np.nonzero(chosen)
    order = random.permutation(len(row))
    got, expected = metrics(lists, row[order], item[order]), plain_metrics(lists, row, item)
    assert got.rows.tolist() == sorted(expected)
    for name, values in got.values.items():
        np.testing.assert_allclose(values, [expected[user][name] for user in got.rows], rtol=1e-12)
    keep = got.rows % 2 == 0
    mean = got.mean(keep)
    assert mean["n"] == keep.sum()
    assert mean["ndcg@20"] == pytest.approx(np.mean([expected[user]["ndcg@20"] for user in got.rows[keep]]))


def test_a_perfect_list_scores_one_and_an_empty_slice_is_nan():
    lists = np.arange(50)[None]
    got = metrics(lists, np.zeros(5, int), np.arange(5))
    assert all(got.values[f"{name}@{k}"] == 1 for name in ("recall", "ndcg", "map") for k in KS)
    assert got.values["precision@10"] == 0.5
    nothing = metrics(lists, np.zeros(0, int), np.zeros(0, int)).mean()
    assert nothing.pop("n") == 0 and all(math.isnan(value) for value in nothing.values())
