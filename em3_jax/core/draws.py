"""Randomness on the host as a pure function of a key and indices: where row i goes in the shuffle of an epoch, or the
uniform number of (key, user, item), without an array as long as the data; the same bits on every machine. See `core.rng`.
"""

import functools
import hashlib
import math
import operator

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio, the step of splitmix64
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_FEISTEL_ROUNDS = 6
_SMALL_SIZE = 2**12  # up to here `permute` sorts
_LARGEST_SIZE = 2**40


def numpy_key(seed: int, *parts: int | str) -> np.uint64:
    """Returns the 64-bit key of (seed, parts...), for `permute` and `uniform_hash`.

    Args:
      seed: the run's seed, any integer.
      *parts: what the key is for, e.g. ("shuffle", epoch). 1 and "1" are different parts.

    Returns:
      A hash of the tuple: tuples that differ anywhere have unrelated keys.
    """
    text = repr([str(part) if isinstance(part, str) else operator.index(part) for part in (seed, *parts)])
    return np.frombuffer(hashlib.blake2b(text.encode(), digest_size=8).digest(), "<u8")[0]


def permute(index: ArrayLike, size: int, key: int | np.uint64) -> np.ndarray:
    """Returns the images of `index` under the pseudo-random permutation of range(size) that `key` names.

    A shuffle without memory: the cost follows the indices asked for, not `size`. Numbers are written as (left, right)
    in a rectangle of a x b >= size with a, b about sqrt(size). Each Feistel round adds a keyed hash of one half to the
    other, modulo its side; that can be undone, so it permutes the rectangle. Images outside range(size) are permuted
    again until they fall inside (Black and Rogaway 2002); the rectangle is so tight that this is rare.
    Small ranges, where a few rounds would not reach all orders evenly, are sorted by a random number instead.

    Args:
      index: integers in [0, size), any shape; may be any part of the range, in any order.
      size: number of elements, 1 to 2**40.
      key: 64-bit key, see `numpy_key`.

    Returns:
      int64, shape of `index`. permute(arange(size), size, key) is a permutation of range(size).
    """
    index = np.asarray(index)
    if not 1 <= size <= _LARGEST_SIZE:
        raise ValueError(f"size must be in [1, 2**40], got {size}")
    if index.size and (index.min() < 0 or index.max() >= size):
        raise ValueError(f"index must be in [0, {size}), got values from {index.min()} to {index.max()}")
    if size <= _SMALL_SIZE:
        return np.argsort(uniform_hash(key, np.arange(size)), kind="stable")[index]
    sides = _rectangle(size)
    round_keys = _mix(np.uint64(key) + _GOLDEN * np.arange(1, _FEISTEL_ROUNDS + 1, dtype=np.uint64))
    image = _feistel(_words(index.reshape(-1)), sides, round_keys)
    outside = np.flatnonzero(image >= size)
    while outside.size:
        image[outside] = _feistel(image[outside], sides, round_keys)
        outside = outside[image[outside] >= size]
    return image.astype(np.int64).reshape(index.shape)


def uniform_hash(key: int | np.uint64, *ids: ArrayLike, dtype: DTypeLike = np.float64) -> np.ndarray:
    """Returns numbers uniform in [0, 1), a pure function of (key, ids...), element by element.

    The number of (user, item) does not depend on what else is in the batch. The order of the ids matters.

    Args:
      key: 64-bit key, see `numpy_key`.
      *ids: integer arrays or scalars that broadcast together.
      dtype: float64 (53 random bits) or float32 (24).

    Returns:
      `dtype`, the broadcast shape of `ids`.
    """
    bits = {np.dtype(np.float64): 53, np.dtype(np.float32): 24}.get(np.dtype(dtype))
    if bits is None:
        raise ValueError(f"dtype must be float32 or float64, got {np.dtype(dtype)}")
    state = hash_words(key, *ids)
    # Only the bits that the mantissa holds: rounding more of them could give 1. Signed integers convert faster.
    mantissa = np.asarray(state >> np.uint64(64 - bits)).view(np.int64)
    return np.multiply(mantissa, 2.0**-bits, dtype=np.float64).astype(dtype, copy=False)


def hash_words(key: int | np.uint64, *ids: ArrayLike) -> np.ndarray:
    """Returns 64-bit hashes, u64 of the broadcast shape of `ids`: arguments as of `uniform_hash`."""
    with np.errstate(over="ignore"):  # numpy warns of wrapping for scalars, though not for arrays
        state = _mix(np.asarray(np.uint64(key) + _GOLDEN))
        for part in ids:  # output number `part` of the splitmix64 generator seeded with what came before
            state = _mix(state + _GOLDEN * _words(np.asarray(part)))
    return state


def _words(integers: np.ndarray) -> np.ndarray:
    """Returns integers as u64, negative ones modulo 2**64; a float array is an error, not rounded."""
    if integers.dtype.kind not in "iu":
        raise TypeError(f"want integers, got {integers.dtype}")
    return integers.astype(np.uint64)


def _mix(x: np.ndarray) -> np.ndarray:
    """Returns the splitmix64 finaliser of `x` (u64): a bijection, each input bit flips half of the output bits."""
    x = (x ^ (x >> np.uint64(30))) * _MULTIPLIER_1
    x = (x ^ (x >> np.uint64(27))) * _MULTIPLIER_2
    return x ^ (x >> np.uint64(31))


@functools.lru_cache(maxsize=256)
def _rectangle(size: int) -> tuple[int, int]:
    """Returns sides (a, b), both about sqrt(size), with a * b >= size and little to spare (a short search)."""
    root = math.isqrt(size - 1) + 1  # sqrt(size) rounded up
    a = min(range(root, root + min(root // 8, 64) + 1), key=lambda side: -size % side)
    return a, -(-size // a)


def _feistel(x: np.ndarray, sides: tuple[int, int], round_keys: np.ndarray) -> np.ndarray:
    """Returns the images of `x` ([n] u64, below a * b) under the keyed permutation of the rectangle: [n] u64."""
    a, b = np.uint64(sides[0]), np.uint64(sides[1])
    right = x // a
    left = x - right * a
    for first_key, second_key in zip(round_keys[::2], round_keys[1::2], strict=True):
        left = _add_hash(left, right, first_key, a)
        right = _add_hash(right, left, second_key, b)
    return right * a + left


def _add_hash(half: np.ndarray, other: np.ndarray, round_key: np.uint64, side: np.uint64) -> np.ndarray:
    """Returns (half + hash(round_key, other)) mod side: one Feistel round, a shift of `half` that `other` decides."""
    word = (other ^ round_key) * _MULTIPLIER_1
    word = (word ^ (word >> np.uint64(32))) * _MULTIPLIER_2
    total = half + (word >> np.uint64(16))  # the best 48 bits: room for the sum, and no bias modulo at most 2**20
    return total - total // side * side  # numpy's % is four times slower
