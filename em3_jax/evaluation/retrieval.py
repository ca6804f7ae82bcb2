"""Honest evaluation of a retrieval model on a split: full ranking of all items, overall and by slice."""

import jax
import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.data.pairs import Pairs
from em3_jax.evaluation import full_ranking
from em3_jax.evaluation.full_ranking import NO_ITEM
from em3_jax.evaluation.influence import ByCluster, mean_influence

HEADLINE = tuple(f"{name}@{k}" for name in ("recall", "ndcg") for k in (10, 20))


class FullRanking:
    """(users [U, D], items [I, D]) -> (slice -> metric -> value, lists [U, 50] i32, `ByCluster`) of a split.

    Ranked are all items but the user's training items, also those that training never shows; valid positives stay candidates
    on test. A user counts with at least one positive in the split and one training pair; users without a training pair are
    left out and counted. Slices of items take the positives of such items alone, out of the same lists: "cold items" have no
    training pair. The training split is ranked with nothing left out.

    Args:
      dataset: the dataset.
      pairs: its training pairs.
      split: "train", "valid" or "test".
      features: feature sets in use, for the slices of items without one.
      user_block, item_block: see `full_ranking.best_items`.
      activity: lower bounds of the slices of users by number of training pairs, ascending.
    """

    def __init__(
        self,
        dataset: Dataset,
        pairs: Pairs,
        split: str,
        features: list[FeatureSet],
        *,
        user_block: int,
        item_block: int,
        activity: tuple[int, ...],
    ):
        self._blocks = {"user_block": user_block, "item_block": item_block}
        self._num_users = pairs.num_users
        rows = dataset.split_rows(split)
        part = slice(rows.start, rows.stop) if isinstance(rows, range) else rows
        user, item = (np.asarray(dataset.interactions[name][part], np.int64) for name in ("user", "item"))
        has_training = pairs.user_degree[user] > 0
        self.users_left_out = len(np.unique(user[~has_training]))
        self.users, self._row = np.unique(user[has_training], return_inverse=True)
        self._item = item[has_training]
        if not len(self.users):
            raise UserError(
                f"{dataset.root}: no user of the {split} split has a training interaction, there is nothing to rank; "
                "prepare it with another split"
            )
        if split == "train":
            self._seen = full_ranking.Seen(np.zeros(0, np.int64), np.zeros(0, np.int64))
        else:
            row_of = np.full(pairs.num_users, -1)
            row_of[self.users] = np.arange(len(self.users))
            kept = row_of[pairs.user] >= 0
            self._seen = full_ranking.Seen(row_of[pairs.user[kept]], pairs.item[kept])
        self._user_slices = _by_activity(pairs.user_degree, activity)
        cold = pairs.item_degree == 0
        self._item_slices = {"cold items": cold, "warm items": ~cold}
        for feature_set in features:
            self._item_slices[f"items without {feature_set.name}"] = ~feature_set.mask.any(axis=1)

    def lists(self, users: jax.Array, items: jax.Array) -> np.ndarray:
        """[n, 50] i32: the best items of each of `users`, see `full_ranking.best_items`."""
        return full_ranking.best_items(users[self.users], items, self._seen, **self._blocks)

    def overall(self, users: jax.Array, items: jax.Array) -> dict[str, float]:
        """{"n": users, metric: value} without slices."""
        return full_ranking.metrics(self.lists(users, items), self._row, self._item).mean()

    def __call__(self, users: jax.Array, items: jax.Array) -> tuple[dict[str, dict[str, float]], np.ndarray, ByCluster]:
        lists = self.lists(users, items)
        everything = full_ranking.metrics(lists, self._row, self._item)
        report = {"all": everything.mean() | {"positives": len(self._item), "users_left_out": self.users_left_out}}
        by_user = ByCluster.of(self.users)
        self._add(by_user, "all", everything)
        for name, items_in in self._item_slices.items():
            keep = items_in[self._item]
            part = full_ranking.metrics(lists, self._row[keep], self._item[keep])
            report[name] = part.mean() | {"positives": int(keep.sum())}
            self._add(by_user, name, part)
        for name, users_in in self._user_slices.items():
            keep = users_in[self.users]
            report[name] = everything.mean(keep) | {"positives": int(keep[self._row].sum())}
            self._add(by_user, name, everything.of(keep))
        whole = np.full((self._num_users, lists.shape[1]), NO_ITEM, np.int32)
        whole[self.users] = lists
        return report, whole, by_user

    def _add(self, by_user: ByCluster, name: str, part: full_ranking.Metrics) -> None:
        for metric, values in part.values.items():
            by_user.add(name, metric, mean_influence(values), self.users[part.rows])


def _by_activity(degree: np.ndarray, bounds: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Slice name -> [U] bool: users by number of training pairs, from each bound to below the next."""
    if list(bounds) != sorted(set(bounds)):
        raise UserError(f"config.eval.activity: {bounds} must ascend; e.g. (1, 5, 10)")
    result = {}
    for first, end in zip(bounds, [*bounds[1:], None], strict=True):
        if end is None:
            result[f"users of {first} pairs or more"] = degree >= first
        else:
            name = f"{first}-{end - 1}" if end - first > 1 else f"{first}"
            result[f"users of {name} pairs"] = (degree >= first) & (degree < end)
    return result
