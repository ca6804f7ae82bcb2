"""Codebooks by k-means: of vectors, and of what each level leaves of them (RQ-KMeans).

Letters: n vectors, E their width, K codes of a level, L levels.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import rng
from em3_jax.models.quantiser import nearest

ROUNDS = 50
"""Most rounds of a k-means; it ends with the first that moves no vector."""


@functools.partial(jax.jit, static_argnames="size")
def _round(vectors: jax.Array, centers: jax.Array, size: int) -> tuple[jax.Array, ...]:
    """(code [n], squared distance [n], sums [K, E], counts [K]) of vectors [n, E] by their nearest center."""
    code = nearest(vectors, centers)
    distance = jnp.sum((vectors - centers[code]) ** 2, axis=-1)
    sums = jax.ops.segment_sum(vectors, code, size)
    return code, distance, sums, jax.ops.segment_sum(jnp.ones(len(vectors)), code, size)


def kmeans(vectors: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """[K, E] f32 centers of vectors [n, E] f32: Lloyd's rounds from a k-means++ start (Arthur and Vassilvitskii 2007).

    A center that no vector is nearest to goes where the vector lies that is farthest from its own, so
    that all codes are used as long as there are as many different vectors.

    Args:
      size: K, at most n.
      key: of the start, see `rng.numpy_key`; the same gives the same centers.
    """
    centers, before = jnp.asarray(_start(vectors, size, key)), None
    placed = jnp.asarray(vectors)
    for _ in range(ROUNDS):
        code, distance, sums, count = (np.asarray(one) for one in _round(placed, centers, size))
        dead = np.flatnonzero(count == 0)
        if before is not None and np.array_equal(code, before) and not (len(dead) and distance.max() > 0):
            break
        moved = sums / np.maximum(count, 1)[:, None]
        far = np.argsort(-distance, kind="stable")[: len(dead)]
        moved[dead] = vectors[far]
        centers, before = jnp.asarray(moved.astype(np.float32)), code
    return np.asarray(centers)


def _start(vectors: np.ndarray, size: int, key: np.uint64) -> np.ndarray:
    """[K, E]: vectors, each drawn by its squared distance to the nearest of those before it."""
    draw = rng.uniform_hash(key, np.arange(size))
    centers = np.empty((size, vectors.shape[1]), np.float32)
    centers[0] = vectors[int(draw[0] * len(vectors))]
    distance = np.full(len(vectors), np.inf)
    for k in range(1, size):
        distance = np.minimum(distance, ((vectors - centers[k - 1]) ** 2).sum(axis=1))
        total = np.cumsum(distance)
        # All vectors are centers already: any of them, whose code then nothing has.
        place = np.searchsorted(total, draw[k] * total[-1], side="right") if total[-1] > 0 else 0
        centers[k] = vectors[min(place, len(vectors) - 1)]
    return centers


def residual_kmeans(vectors: np.ndarray, levels: int, size: int, seed: int) -> np.ndarray:
    """[L, K, E] f32 codebooks: each level's are the centers of what the levels before leave of vectors [n, E].

    Args:
      levels, size: L, K.
      seed: of the starts.
    """
    residual, codebooks = vectors.astype(np.float32), []
    for level in range(levels):
        codebooks.append(kmeans(residual, size, rng.numpy_key(seed, "codebook", level)))
        code = nearest(jnp.asarray(residual), jnp.asarray(codebooks[-1]))
        residual = residual - codebooks[-1][np.asarray(code)]
    return np.stack(codebooks)
