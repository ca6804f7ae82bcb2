"""The items of highest product with users' embeddings out of millions, by a graph of Faiss: approximate.

The graph (HNSW; Malkov and Yashunin 2018) is of distances, and the largest product is the least distance once every item
has one more number that makes all of one length (Bachrach et al., Speeding Up the Xbox Recommender System, RecSys 2014,
section 3). Products are taken again exactly of what it proposes. Letters: I items, D width, n users.
"""

import numpy as np

from em3_jax.evaluation.full_ranking import NO_ITEM
from em3_jax.serving.neighbours import BUILD_BREADTH, LINKS, SEARCH_BREADTH, load_faiss

_BLOCK = 1 << 16  # items at once


class NearestItems:
    """A graph over items.

    Args:
      items: [I, D] f32.

    Raises:
      UserError: Faiss is not installed.
    """

    def __init__(self, items: np.ndarray):
        self._items = np.ascontiguousarray(items, np.float32)
        squares = np.einsum("id,id->i", self._items, self._items)
        longest = squares.max(initial=0.0)
        self._index = load_faiss().IndexHNSWFlat(self._items.shape[1] + 1, LINKS)
        self._index.hnsw.efConstruction = BUILD_BREADTH
        for start in range(0, len(self._items), _BLOCK):
            part = slice(start, start + _BLOCK)
            last = np.sqrt(np.maximum(longest - squares[part], 0))
            self._index.add(np.concatenate([self._items[part], last[:, None]], axis=1))

    def best(self, users: np.ndarray, count: int, left_out: list[np.ndarray]) -> np.ndarray:
        """[n, count] i64 items of about the highest products, the highest first; `NO_ITEM` where fewer are left.

        Args:
          users: [n, D] f32.
          left_out: [n] arrays of items that a user's list has not.
        """
        most = max((len(one) for one in left_out), default=0)
        wanted = min(count + most, len(self._items))
        breadth = load_faiss().SearchParametersHNSW(efSearch=max(SEARCH_BREADTH, 2 * wanted))
        queries = np.concatenate([users, np.zeros((len(users), 1), np.float32)], axis=1)
        _, found = self._index.search(np.ascontiguousarray(queries, np.float32), wanted, params=breadth)
        lists = np.full((len(users), count), NO_ITEM)
        for k, (user, own) in enumerate(zip(users, found, strict=True)):
            own = np.sort(
                own[(own >= 0) & ~np.isin(own, left_out[k] if left_out else [])]
            )  # ties: the lower item first
            order = np.argsort(-(self._items[own] @ user), kind="stable")[:count]
            lists[k, : len(order)] = own[order]
        return lists
