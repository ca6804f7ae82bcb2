"""Interactions without negatives, for retrieval: training pairs, drawn negatives, and the graph of users and items.

Letters: B batch, n training pairs, U users, I items, N = U + I. Graphs are symmetric matrices over
N nodes, users first, each pair in both directions. The keys of a batch: see `core.batch.PAIRS`.
"""

import dataclasses
import functools
import threading

import numpy as np

from em3_jax.core import rng, sparse
from em3_jax.core.errors import UserError
from em3_jax.core.sparse import Adjacency, Entries
from em3_jax.core.types import Batch
from em3_jax.data.format import Dataset
from em3_jax.data.pipeline import InEpochs, rows_of_step


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The training pairs of a dataset, sorted by user and item, each once.

    Attributes:
      user, item: [n] i64.
      num_users, num_items: U, I, whether they occur or not.
    """

    user: np.ndarray
    item: np.ndarray
    num_users: int
    num_items: int

    @functools.cached_property
    def user_degree(self) -> np.ndarray:
        """[U] i64: training pairs of each user."""
        return np.bincount(self.user, minlength=self.num_users)

    @functools.cached_property
    def item_degree(self) -> np.ndarray:
        """[I] i64: training pairs of each item."""
        return np.bincount(self.item, minlength=self.num_items)

    @functools.cached_property
    def candidates(self) -> np.ndarray:
        """[C] i64: the items of training, which negatives are drawn from."""
        return np.flatnonzero(self.item_degree)

    @functools.cached_property
    def by_item(self) -> np.ndarray:
        """[n] i64: the pairs in order of item, then of user."""
        return np.argsort(self.item, kind="stable")


def training_pairs(dataset: Dataset) -> Pairs:
    """The training pairs; a pair that occurs twice counts once."""
    found = dataset.split_rows("train")
    rows = slice(found.start, found.stop) if isinstance(found, range) else found
    user, item = (np.asarray(dataset.interactions[name][rows], np.int64) for name in ("user", "item"))
    key = np.unique(user * dataset.num_items + item)
    return Pairs(key // dataset.num_items, key % dataset.num_items, dataset.num_users, dataset.num_items)


class NegativeSampler:
    """(users [m], key) -> items [m]: uniform over the items of training that the user has in no training pair.

    Nothing is rejected, so nothing is tried again: of a user's free items, in order of their ids, a number r is drawn, and
    number r is candidate r + k, where k of the user's own items lie below it. Finding k is one binary search.

    Args:
      pairs: the training pairs.
    """

    def __init__(self, pairs: Pairs):
        self._candidates, self._count = pairs.candidates, len(pairs.candidates)
        self._free = self._count - pairs.user_degree  # [U]
        for user in np.flatnonzero(self._free <= 0):
            raise UserError(
                f"user row {user} has all {self._count} items of training: no negative is left for it; leave it out of training"
            )
        self._first = np.cumsum(pairs.user_degree) - pairs.user_degree  # [U] of each user's pairs
        number = np.searchsorted(self._candidates, pairs.item)  # of a pair's item among the candidates
        inside = np.arange(len(pairs.user)) - self._first[pairs.user]
        # How many free items lie below each of a user's own; ascending over all pairs, a user's block after the other.
        self._free_below = pairs.user * self._count + number - inside

    def __call__(self, users: np.ndarray, key: np.uint64) -> np.ndarray:
        uniform = rng.uniform_hash(key, np.arange(len(users)))
        number = np.minimum((uniform * self._free[users]).astype(np.int64), self._free[users] - 1)
        below = np.searchsorted(self._free_below, users * self._count + number, side="right") - self._first[users]
        return self._candidates[number + below]


def full_graph(pairs: Pairs) -> Entries:
    """The graph of all training pairs, D^-1/2 A D^-1/2 (LightGCN, He et al., SIGIR 2020, eq. 3)."""
    return _normalised(pairs, np.ones(len(pairs.user), bool))


def dropped_graph(pairs: Pairs, share: float, key: np.uint64) -> Entries:
    """The graph of a random part of the training pairs, normalised on what is left (FREEDOM, Zhou and Shen, MM 2023, eq. 5-6).

    A fixed number of pairs is drawn without replacement, each draw with probability proportional to 1 / sqrt(d_u d_i), so that
    pairs of popular users and items go first. The draw is that of exponential clocks: of independent E_p / w_p with E_p of
    Exp(1), the smallest are kept (Efraimidis and Spirakis 2006).

    Args:
      share: of the pairs that is dropped.
      key: 64-bit key.
    """
    number = len(pairs.user)
    keep = kept_pairs(number, share)
    weight = 1.0 / np.sqrt(pairs.user_degree[pairs.user] * pairs.item_degree[pairs.item])
    clock = -np.log1p(-rng.uniform_hash(key, np.arange(number))) / weight
    kept = np.zeros(number, bool)
    kept[np.argpartition(clock, keep - 1)[:keep]] = True
    return _normalised(pairs, kept)


def kept_pairs(number: int, share: float) -> int:
    """How many of `number` pairs dropping a share leaves; at least one."""
    return max(int(number * (1.0 - share)), 1)


def _normalised(pairs: Pairs, kept: np.ndarray) -> Entries:
    user, item = pairs.user[kept], pairs.item[kept]
    user_degree = np.bincount(user, minlength=pairs.num_users)
    item_degree = np.bincount(item, minlength=pairs.num_items)
    weight = 1.0 / np.sqrt(user_degree[user] * item_degree[item])
    by_item = pairs.by_item[kept[pairs.by_item]]
    user_of, item_of = pairs.user[by_item], pairs.item[by_item]
    weight_of = 1.0 / np.sqrt(user_degree[user_of] * item_degree[item_of])
    return Entries(
        receiver=np.concatenate([user, pairs.num_users + item_of]).astype(np.int32),
        sender=np.concatenate([pairs.num_users + item, user_of]).astype(np.int32),
        weight=np.concatenate([weight, weight_of]).astype(np.float32),
    )


class PairSource(InEpochs):
    """Batch number `step` of a training run over pairs, without end: a function of (seed, step).

    Epoch after epoch the pairs come in an order of their own, batches running across the border. Edges are dropped anew every
    `steps_per_epoch` steps.

    Args:
      pairs: the training pairs.
      batch_size: B.
      seed: of the order, the negatives and the dropped edges.
      edge_dropout: share of the pairs that the graph of an epoch does without; 0 = batches carry no graph.
    """

    def __init__(self, pairs: Pairs, *, batch_size: int, seed: int, edge_dropout: float):
        if not 0.0 <= edge_dropout < 1.0:
            raise UserError(f"config.data.edge_dropout={edge_dropout}: must be at least 0 and below 1")
        self.pairs, self.batch_size, self.seed = pairs, batch_size, seed
        self.rows = range(len(pairs.user))
        self._edge_dropout = edge_dropout
        self._sampler = NegativeSampler(pairs)
        self._graphs: dict[int, Adjacency] = {}
        self._lock = threading.Lock()

    def of_seed(self, seed: int) -> "PairSource":
        """The same pairs in the order, and with the negatives and edges, of another seed."""
        return PairSource(self.pairs, batch_size=self.batch_size, seed=seed, edge_dropout=self._edge_dropout)

    def __getitem__(self, step: int) -> Batch:
        rows = rows_of_step(self.rows, self.batch_size, self.seed, "shuffled", step)
        batch = {"user": self.pairs.user[rows], "positive": self.pairs.item[rows]}
        key = rng.numpy_key(self.seed, "negatives", step)
        batch["negative"] = self._sampler(batch["user"], key)
        batch = {name: value.astype(np.int32) for name, value in batch.items()}
        if not self._edge_dropout:
            return batch
        graph = self._graph(step // self.steps_per_epoch)
        return batch | {f"edge_{name}": value for name, value in graph._asdict().items()}

    def _graph(self, epoch: int) -> Adjacency:
        """The epoch's graph, made by the first thread that asks; two are kept, for threads on both sides of a border."""
        with self._lock:
            graph = self._graphs.get(epoch)
            if graph is None:
                graph = self._graphs[epoch] = self._drop(epoch)
                for old in sorted(self._graphs)[:-2]:
                    del self._graphs[old]
            return graph

    def _drop(self, epoch: int) -> Adjacency:
        entries = dropped_graph(self.pairs, self._edge_dropout, rng.numpy_key(self.seed, "edges", epoch))
        count, nodes = len(entries.receiver), self.pairs.num_users + self.pairs.num_items
        width = sparse.group_width(count, nodes)
        return sparse.grouped(entries, nodes, width=width, groups=sparse.most_groups(count, width))
