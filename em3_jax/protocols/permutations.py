"""Which row stands in for which: permutations of a split's rows, of rows within groups, and of whole groups.

All are a function of a key alone. Letters: n rows of a split.
"""

import numpy as np

from em3_jax.core import rng


def among_rows(count: int, key: np.uint64) -> np.ndarray:
    """[n] i64 the row that stands in for each, of all rows."""
    return rng.permute(np.arange(count), count, key)


def within_groups(group: np.ndarray, key: np.uint64) -> np.ndarray:
    """[n] i64 the row that stands in for each, of the same group.

    Args:
      group: [n] ids.
      key: of the draw.
    """
    rows = np.arange(len(group))
    result = np.empty(len(group), np.int64)
    result[np.lexsort((rows, group))] = np.lexsort((rng.uniform_hash(key, rows), group))
    return result


def of_groups(group: np.ndarray, key: np.uint64) -> np.ndarray:
    """[n] i64 the row that stands in for each, where groups change places as wholes.

    The k-th row of a group reads that of another, which begins anew where it is shorter.

    Args:
      group: [n] ids.
      key: of the draw.
    """
    _, number, size = np.unique(group, return_inverse=True, return_counts=True)
    order = np.argsort(number, kind="stable")
    first = np.cumsum(size) - size
    rank = np.arange(len(group)) - first[number[order]]
    other = rng.permute(np.arange(len(size)), len(size), key)[number[order]]
    result = np.empty(len(group), np.int64)
    result[order] = order[first[other] + rank % size[other]]
    return result
