"""Training pairs: drawn negatives, pruned graphs, and batches that are a function of (seed, step)."""

import itertools
import threading

import numpy as np
import pytest

from em3_jax.core import rng
from em3_jax.core.sparse import Adjacency
from em3_jax.data.pairs import NegativeSampler, Pairs, PairSource, dropped_graph, full_graph, kept_pairs, training_pairs
from em3_jax.data.pipeline import batches
from em3_jax.data.readers.mmrec import mmrec
from tests.conftest import user_error

USERS, ITEMS = 40, 60
KEY = rng.numpy_key(0, "test")


def make_pairs(seed: int = 0, share: float = 0.2) -> Pairs:
    """Items of very different popularity; item 59 and user 39 have no pair."""
    random = np.random.default_rng(seed)
    chosen = random.random((USERS, ITEMS)) < 2 * share * np.linspace(0.05, 1, ITEMS)
    chosen[-1], chosen[:, -1] = False, False
    return Pairs(*np.nonzero(chosen), USERS, ITEMS)


def source(pairs: Pairs, **settings) -> PairSource:
    return PairSource(pairs, **({"batch_size": 32, "seed": 0, "edge_dropout": 0.0} | settings))


def dense(pairs: Pairs, kept: np.ndarray) -> np.ndarray:
    """D^-1/2 A D^-1/2 as a formula over the whole matrix."""
    a = np.zeros((USERS + ITEMS, USERS + ITEMS))
    a[pairs.user[kept], USERS + pairs.item[kept]] = a[USERS + pairs.item[kept], pairs.user[kept]] = 1
    degree = a.sum(axis=1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros_like(degree), where=degree > 0)
    return scale[:, None] * a * scale


def as_matrix(edges) -> np.ndarray:
    a = np.zeros((USERS + ITEMS, USERS + ITEMS))
    np.add.at(a, (edges.receiver, edges.sender), edges.weight)
    return a


# Negatives.


def test_negatives_are_items_of_training_that_the_user_does_not_have():
    pairs = make_pairs()
    own = set(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))
    users = np.repeat(np.arange(USERS), 500)
    drawn = NegativeSampler(pairs)(users, KEY)
    pairs_drawn = set(zip(users.tolist(), drawn.tolist(), strict=True))
    candidates = set(pairs.item.tolist())
    assert len(candidates) < ITEMS  # an item without a pair is never drawn
    everything = {(user, item) for user in range(USERS) for item in candidates}
    assert pairs_drawn == everything - own  # all that may come does come


def test_negatives_are_uniform():
    pairs, draws = make_pairs(share=0.4), 20_000
    sampler = NegativeSampler(pairs)
    for user in (0, 5, 39):  # 39 has no pair
        drawn = sampler(np.full(draws, user), rng.numpy_key(1, user))
        free = len(pairs.candidates) - pairs.user_degree[user]
        observed = np.bincount(drawn, minlength=ITEMS)
        assert (observed > 0).sum() == free
        chi_square = ((observed[observed > 0] - draws / free) ** 2 / (draws / free)).sum()
        assert chi_square < free - 1 + 4 * np.sqrt(2 * (free - 1))  # mean and 4 standard deviations


def test_a_user_with_one_item_left_gets_it_and_one_with_none_is_an_error():
    chosen = np.ones((3, 9), bool)
    chosen[1, 4] = chosen[2, :4] = chosen[2, 5:] = False
    chosen[0, 1:] = False
    assert set(NegativeSampler(Pairs(*np.nonzero(chosen), 3, 9))(np.full(50, 1), KEY)) == {4}
    chosen[1, 4] = True
    message = user_error(NegativeSampler, Pairs(*np.nonzero(chosen), 3, 9))
    assert "user row 1 has all 9 items of training" in message


# The graph.


def test_the_full_graph_is_the_normalised_matrix_sorted_by_receiver():
    pairs = make_pairs()
    edges = full_graph(pairs)
    np.testing.assert_allclose(as_matrix(edges), dense(pairs, np.ones(len(pairs.user), bool)), rtol=1e-6)
    assert (np.diff(edges.receiver) >= 0).all() and len(edges.receiver) == 2 * len(pairs.user)
    assert [column.dtype for column in edges] == [np.int32, np.int32, np.float32]


@pytest.mark.parametrize("share", [0.1, 0.8, 0.9999])
def test_a_dropped_graph_is_the_normalised_matrix_of_a_fixed_number_of_pairs(share):
    pairs = make_pairs()
    for epoch in range(5):
        edges = dropped_graph(pairs, share, rng.numpy_key(0, "edges", epoch))
        assert len(edges.receiver) == 2 * kept_pairs(len(pairs.user), share)
        assert (np.diff(edges.receiver) >= 0).all()
        kept = np.isin(
            pairs.user * ITEMS + pairs.item,
            [u * ITEMS + v - USERS for u, v in zip(edges.receiver, edges.sender, strict=True) if u < USERS],
        )
        assert kept.sum() == kept_pairs(len(pairs.user), share)
        np.testing.assert_allclose(as_matrix(edges), dense(pairs, kept), rtol=1e-6)


def test_pairs_are_kept_as_often_as_draws_without_replacement_keep_them():
    """Against numpy's sequential draws with probability proportional to 1 / sqrt(d_u d_i)."""
    pairs, share, rounds = make_pairs(share=0.08), 0.7, 3000
    number = len(pairs.user)
    keep = kept_pairs(number, share)
    weight = 1 / np.sqrt(pairs.user_degree[pairs.user] * pairs.item_degree[pairs.item])
    random, expected, got = np.random.default_rng(0), np.zeros(number), np.zeros(number)
    key_of = {pair: k for k, pair in enumerate(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True))}
    for k in range(rounds):
        expected[random.choice(number, keep, replace=False, p=weight / weight.sum())] += 1
        edges = dropped_graph(pairs, share, rng.numpy_key(0, "edges", k))
        for u, v in zip(edges.receiver[:keep].tolist(), edges.sender[:keep].tolist(), strict=True):
            got[key_of[u, v - USERS]] += 1
    p = expected / rounds
    spread = np.sqrt(2 * p * (1 - p) / rounds)  # of the difference of two shares
    z = (got / rounds - p) / np.maximum(spread, 1e-3)
    assert np.abs(z).max() < 5 and np.mean(z**2) == pytest.approx(1, abs=0.4)
    degree = np.bincount(pairs.user, got / rounds, minlength=USERS)
    np.testing.assert_allclose(degree, np.bincount(pairs.user, p, minlength=USERS), atol=0.15)  # the expected degrees
    assert np.corrcoef(weight, got)[0, 1] > 0.9  # pairs of popular users and items go first


# Batches.


def test_an_epoch_visits_each_pair_once():
    pairs = make_pairs()
    steps = len(pairs.user)  # batches of 32: 32 whole epochs
    made = [source(pairs)[step] for step in range(steps)]
    user, positive = (np.concatenate([batch[name] for batch in made]) for name in ("user", "positive"))
    for epoch in np.split(user * ITEMS + positive, 32):
        np.testing.assert_array_equal(np.sort(epoch), np.sort(pairs.user * ITEMS + pairs.item))
    assert made[0]["user"].dtype == made[0]["positive"].dtype == made[0]["negative"].dtype == np.int32


def test_a_batch_is_a_function_of_seed_and_step():
    pairs = make_pairs()
    one, other = source(pairs, edge_dropout=0.5), source(pairs, edge_dropout=0.5)
    for step in (37, 3, 90, 3):  # in any order, by any source
        assert_same(one[step], other[step])
    assert_same(one[3], other[3])
    changed = source(pairs, edge_dropout=0.5, seed=1)[3]
    assert all((changed[name] != one[3][name]).any() for name in ("user", "negative", "edge_sender"))
    assert (one[3]["negative"] != one[4]["negative"]).any()


def assert_same(a, b) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_array_equal(value, b[name])


def test_the_graph_changes_once_an_epoch_and_is_made_once():
    pairs = make_pairs()
    made = source(pairs, edge_dropout=0.5)
    per_epoch = -(-len(pairs.user) // 32)
    assert made.steps_per_epoch == per_epoch
    graphs = [made[step]["edge_sender"] for step in range(2 * per_epoch)]
    assert all(graph is graphs[0] for graph in graphs[:per_epoch])
    assert all(graph is graphs[-1] for graph in graphs[per_epoch:])
    assert not np.array_equal(graphs[0], graphs[-1])
    assert "edge_sender" not in source(pairs)[0]


def test_a_batch_carries_the_dropped_graph_in_one_shape():
    pairs = make_pairs()
    made = source(pairs, edge_dropout=0.5)
    shapes = set()
    for epoch in range(3):
        batch = made[epoch * made.steps_per_epoch]
        graph = Adjacency(*(batch[f"edge_{name}"] for name in Adjacency._fields))
        shapes.add(tuple(part.shape for part in graph))
        a = np.zeros((USERS + ITEMS + 1, USERS + ITEMS))
        for receiver, sender, weight in (
            (np.arange(USERS + ITEMS), graph.sender, graph.weight),
            (graph.more_receiver, graph.more_sender, graph.more_weight),
        ):
            np.add.at(a, (np.broadcast_to(receiver[:, None], sender.shape), sender), weight)
        expected = as_matrix(dropped_graph(pairs, 0.5, rng.numpy_key(0, "edges", epoch)))
        np.testing.assert_array_equal(a[:-1], expected)
        assert not a[-1].any()  # padding
    assert len(shapes) == 1


def test_threads_make_the_same_batches():
    pairs = make_pairs()
    made = source(pairs, edge_dropout=0.5)
    expected = [source(pairs, edge_dropout=0.5)[step] for step in range(60)]
    for step, batch in enumerate(itertools.islice(batches(made, threads=4), 60)):
        assert_same(batch, expected[step])
    results = {}
    workers = [threading.Thread(target=lambda k=k: results.update({k: made[k % 5 * 13]})) for k in range(20)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for k, batch in results.items():
        assert_same(batch, source(pairs, edge_dropout=0.5)[k % 5 * 13])


@pytest.mark.parametrize("share", [1.0, -0.1])
def test_a_share_that_leaves_nothing_is_refused(share):
    assert "config.data.edge_dropout" in user_error(lambda: source(make_pairs(), edge_dropout=share))


def test_training_pairs_of_a_dataset(tmp_path):
    rows = [(0, 2, 0), (3, 1, 0), (0, 0, 0), (1, 4, 1), (3, 0, 2), (2, 3, 0)]
    (tmp_path / "in").mkdir()
    lines = "".join(f"{u}\t{i}\t{x}\n" for u, i, x in rows)
    (tmp_path / "in" / "interactions.tsv").write_text("userID\titemID\tx_label\n" + lines)
    pairs = training_pairs(mmrec(tmp_path / "out", source=tmp_path / "in"))
    assert list(zip(pairs.user.tolist(), pairs.item.tolist(), strict=True)) == [(0, 0), (0, 2), (2, 3), (3, 1)]
    assert (pairs.num_users, pairs.num_items) == (4, 5)
    assert pairs.user_degree.tolist() == [2, 0, 1, 1] and pairs.candidates.tolist() == [0, 1, 2, 3]
