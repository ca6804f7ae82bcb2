"""Order statistics of more numbers than memory holds, exactly: a digit of their bits a pass, as radix sort has them."""

from collections.abc import Callable, Iterator

import numpy as np

_BITS, _DIGIT, _COUNTERS = 64, 16, 22
_SIGN = np.uint64(1 << 63)


def at_ranks(parts: Callable[[], Iterator[np.ndarray]], ranks: np.ndarray) -> np.ndarray:
    """[r] f64: the numbers that stand at `ranks` of all in ascending order, in at most 32 MiB of counters.

    Args:
      parts: gives all numbers from the first on, each time it is called: [m] f64 without NaN, some at a time.
      ranks: [r] i64 from 0.
    """
    prefixes, of_rank = np.zeros(1, np.uint64), np.zeros(len(ranks), np.int64)
    within, left = np.asarray(ranks, np.int64).copy(), _BITS
    while left:
        step = min(left, _DIGIT, _COUNTERS - len(prefixes).bit_length())
        ends = _counted(parts(), prefixes, left, step).cumsum(axis=1)
        found = np.empty(len(ranks), np.uint64)
        for k, prefix in enumerate(of_rank):
            digit = int(np.searchsorted(ends[prefix], within[k], side="right"))
            within[k] -= ends[prefix, digit - 1] if digit else 0
            found[k] = (int(prefixes[prefix]) << step) | digit
        prefixes, of_rank = np.unique(found, return_inverse=True)
        left -= step
    return _numbers(prefixes[of_rank])


def _counted(parts: Iterator[np.ndarray], prefixes: np.ndarray, left: int, step: int) -> np.ndarray:
    """[p, 2^step] i64: of the numbers whose first bits are a prefix [p], how many have each digit after it.

    Args:
      left: bits behind the prefixes; step: bits of the digit.
    """
    counts = np.zeros(len(prefixes) << step, np.int64)
    for values in parts:
        keys, place = _keys(values), np.zeros(1, np.int64)
        if left < _BITS:
            high = keys >> np.uint64(left)
            place = np.minimum(np.searchsorted(prefixes, high), len(prefixes) - 1)
            kept = prefixes[place] == high
            keys, place = keys[kept], place[kept]
        digit = ((keys >> np.uint64(left - step)) & np.uint64((1 << step) - 1)).astype(np.int64)
        counts += np.bincount((place << step) + digit, minlength=len(counts))
    return counts.reshape(len(prefixes), -1)


def _keys(values: np.ndarray) -> np.ndarray:
    """[m] u64 whose order is that of the numbers; one of them for both zeros."""
    bits = (np.asarray(values, np.float64) + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def _numbers(keys: np.ndarray) -> np.ndarray:
    """What has these keys."""
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float64)
