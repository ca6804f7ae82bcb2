"""Full ranking: each user's best items out of all of them, and what the lists are worth. Nothing is sampled.

The contract:
- The whole score matrix never exists: users and items come in blocks, and a running list of the best k is merged.
- Results do not depend on the sizes of the blocks, bit for bit. A matrix product rounds differently at different shapes, so every
  score comes out of one compiled program of one shape, for the same rows at the same place, whatever the blocks.
- Of equal scores the smaller item number comes first.
- A metric without a user is NaN, never 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.metrics import KS

USER_TILE, ITEM_TILE = 256, 1024
NO_ITEM = -1


class Seen(NamedTuple):
    """Pairs (row of a user, item) that are left out of a ranking; sorted by row.

    Attributes:
      row, item: [E] integers.
    """

    row: np.ndarray
    item: np.ndarray


def best_items(
    users: jax.Array, items: jax.Array, seen: Seen, *, k: int = max(KS), user_block: int, item_block: int
) -> np.ndarray:
    """[n, k] i32: the k items of highest score u . i, best first; `NO_ITEM` where fewer than k items are left.

    Args:
      users: [n, D] f32.
      items: [I, D] f32.
      seen: pairs that are not ranked, the training positives.
      k: length of the lists.
      user_block, item_block: users and items at once; rounded up to whole tiles.

    Raises:
      ValueError: an embedding is NaN or infinite, which has no place in an order.
    """
    if not bool(jnp.isfinite(users).all() & jnp.isfinite(items).all()):
        raise ValueError("a user or item embedding is not finite")
    number, num_items = len(users), len(items)
    user_block, item_block = _whole_tiles(user_block, USER_TILE), _whole_tiles(item_block, ITEM_TILE)
    user_block, item_block = (
        min(user_block, _whole_tiles(number, USER_TILE)),
        min(item_block, _whole_tiles(num_items, ITEM_TILE)),
    )
    user_tiles = _tiles(users, USER_TILE, user_block)
    item_tiles = [tile.T for tile in _tiles(items, ITEM_TILE, item_block)]  # [D, ITEM_TILE]
    starts = np.arange(0, number, user_block)
    bounds = np.searchsorted(seen.row, np.append(starts, number))
    most = int(np.diff(bounds).max(initial=0))
    per_block, lists = user_block // USER_TILE, []
    for block, start in enumerate(starts):
        tiles = user_tiles[block * per_block : (block + 1) * per_block]
        part = slice(bounds[block], bounds[block + 1])
        row, item = _padded(seen.row[part] - start, most, user_block), _padded(seen.item[part], most, 0)
        best = _empty(user_block, k)
        for first in range(0, num_items, item_block):
            columns = item_tiles[first // ITEM_TILE : (first + item_block) // ITEM_TILE]
            scores = [[_tile_scores(rows, column) for column in columns] for rows in tiles]
            best = _merge(*best, scores, row, item, first, num_items)
        lists.append(best[1])
        jax.block_until_ready(lists[-2:][0])  # one block ahead and no more: what is dispatched already holds its memory
    return np.concatenate(jax.device_get(lists))[:number]


def _whole_tiles(size: int, tile: int) -> int:
    return max(-(-size // tile), 1) * tile


def _tiles(embeddings: jax.Array, tile: int, block: int) -> list[jax.Array]:
    """[n, D] as arrays [tile, D], the last ones filled up with zeros to whole blocks."""
    padding = -len(embeddings) % block
    padded = jnp.pad(embeddings, ((0, padding), (0, 0)))
    return list(padded.reshape(-1, tile, embeddings.shape[1]))


def _padded(values: np.ndarray, size: int, fill: int) -> np.ndarray:
    result = np.full(size, fill, np.int32)
    result[: len(values)] = values
    return result


@functools.partial(jax.jit, static_argnums=(0, 1))
def _empty(rows: int, k: int) -> tuple[jax.Array, jax.Array]:
    return jnp.full((rows, k), -jnp.inf), jnp.full((rows, k), NO_ITEM, jnp.int32)


@jax.jit
def _tile_scores(users: jax.Array, items: jax.Array) -> jax.Array:
    """[USER_TILE, ITEM_TILE]: the one product that all scores come from."""
    return jnp.matmul(users, items, precision="highest")


@jax.jit
def _merge(score, index, tiles, seen_row, seen_item, first, num_items):
    """(score [n, k], index [n, k]): the best so far and those of one more block of items, of higher numbers.

    `top_k` puts the first of equal values first, and lists are in order of item number among equals, so ties stay in it.

    Args:
      score, index: [n, k] the best so far.
      tiles: scores of the block, rows of tiles.
      seen_row, seen_item: [E] pairs to leave out; rows from n on are padding.
      first: number of the block's first item.
      num_items: I; columns beyond are padding.
    """
    scores = jnp.concatenate([jnp.concatenate(row, axis=1) for row in tiles])  # [n, M]
    count = scores.shape[1]
    # Indices below 0 would count from the end.
    column = jnp.where(seen_item >= first, seen_item - first, count)
    scores = scores.at[seen_row, column].set(-jnp.inf, mode="drop")
    scores = jnp.where(first + jnp.arange(count) < num_items, scores, -jnp.inf)
    k = score.shape[1]
    if count < k:
        scores = jnp.pad(scores, ((0, 0), (0, k - count)), constant_values=-jnp.inf)
    block_score, column = jax.lax.top_k(scores, k)
    block_index = jnp.where(block_score > -jnp.inf, first + column, NO_ITEM)
    both_score = jnp.concatenate([score, block_score], axis=1)
    both_index = jnp.concatenate([index, block_index], axis=1)
    score, place = jax.lax.top_k(both_score, k)
    return score, jnp.take_along_axis(both_index, place, axis=1)


class Metrics(NamedTuple):
    """Metrics of users' lists, user by user, so that any part of the users can be averaged.

    Attributes:
      rows: [m] rows of the users with at least one positive, ascending; the arrays of `values` follow them.
      values: "recall@20" -> [m] f64.
    """

    rows: np.ndarray
    values: dict[str, np.ndarray]

    def mean(self, keep: np.ndarray | None = None) -> dict[str, float]:
        """{"n": users, metric: mean over them}.

        Args:
          keep: [m] bool, which users; None = all.
        """
        part = self if keep is None else self.of(keep)
        result: dict[str, float] = {"n": len(part.rows)}
        for name, values in part.values.items():
            result[name] = float(values.mean()) if len(part.rows) else float("nan")
        return result

    def of(self, keep: np.ndarray) -> "Metrics":
        """Those of some of the users: `keep` is [m] bool."""
        return Metrics(self.rows[keep], {name: values[keep] for name, values in self.values.items()})


def metrics(lists: np.ndarray, row: np.ndarray, item: np.ndarray) -> Metrics:
    """Recall, NDCG, Precision and MAP at `KS` of each user with a positive.

    With P positives of a user and hit(j) = 1 where the item of rank j (from 1) is one of them:
      recall@k = sum_{j<=k} hit(j) / P
      precision@k = sum_{j<=k} hit(j) / k
      ndcg@k = sum_{j<=k} hit(j) / log2(j + 1), divided by the same sum of a list that begins with all positives,
        sum_{j<=min(P,k)} 1 / log2(j + 1)
      map@k: average precision, sum_{j<=k} hit(j) precision@j / min(P, k)

    Args:
      lists: [n, K] items, best first, K at least max(KS); `NO_ITEM` beyond the end.
      row, item: [p] the positives: row of the user in `lists`, and item. No pair occurs twice.
    """
    order = np.argsort(row, kind="stable")
    row, item = row[order], item[order]
    rows, user, positives = np.unique(row, return_inverse=True, return_counts=True)
    found, rank = np.nonzero(lists[row] == item[:, None])  # rank from 0, of the positives in the lists
    owner, depth = user[found], lists.shape[1]
    hit = np.zeros((len(rows), depth))
    hit[owner, rank] = 1.0
    total = hit.cumsum(axis=1)  # [m, K]
    place = np.arange(1, depth + 1)
    discount = 1.0 / np.log2(place + 1)
    gain, ideal = (hit * discount).cumsum(axis=1), discount.cumsum()
    precision_sum = (hit * total / place).cumsum(axis=1)
    values: dict[str, np.ndarray] = {}
    for k in KS:
        reachable = np.minimum(positives, k)
        values |= {
            f"recall@{k}": total[:, k - 1] / positives,
            f"ndcg@{k}": gain[:, k - 1] / ideal[reachable - 1],
            f"precision@{k}": total[:, k - 1] / k,
            f"map@{k}": precision_sum[:, k - 1] / reachable,
        }
    return Metrics(rows, values)
