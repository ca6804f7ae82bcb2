"""Items on a plane: t-SNE of a space, the same from run to run, turned to lie like the map of another space."""

import numpy as np

from em3_jax.analysis.spaces import unit
from em3_jax.core.errors import UserError

PERPLEXITY = 30.0
MOST_COMPONENTS = 50  # that t-SNE reads; beyond them distances are mostly noise, and slow
LEAST_ITEMS = 5
SIDE = 10_000  # of the square that a map fills


def make(vectors: np.ndarray, present: np.ndarray, seed: int) -> np.ndarray:
    """[n, 2] f64 positions by cosine distance, centred, in a square of side 2; NaN for items that have no place in the space.

    Args:
      vectors: [n, D] f32.
      present: [n] bool.
      seed: of t-SNE.
    """
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise UserError(
            f"scikit-learn cannot be loaded ({error}); install it with `pip install scikit-learn`"
        ) from None
    result = np.full((len(vectors), 2), np.nan)
    rows = np.flatnonzero(present & (np.abs(vectors).sum(axis=1) > 0))
    if len(rows) == 0:
        return result
    points = unit(vectors[rows])  # squared Euclidean distance of unit vectors is twice the cosine distance
    if np.ptp(points, axis=0).max() < 1e-6:  # all in one place
        result[rows] = 0.0
        return result
    points = PCA(min(MOST_COMPONENTS, *points.shape), random_state=seed).fit_transform(points)
    if len(rows) < LEAST_ITEMS:
        flat = np.zeros((len(rows), 2))
        flat[:, : min(2, points.shape[1])] = points[:, :2]
    else:
        perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
        start = "pca" if points.shape[1] > 1 else "random"
        # One thread: its sums are the same on every machine, and threads that wait for each other by spinning are slower
        # by far where other programs run, 8 times here.
        with threadpool_limits(1, "openmp"):
            flat = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(points)
    flat = flat - flat.mean(axis=0)
    flat = (
        flat @ np.linalg.svd(flat, full_matrices=False)[2].T if len(rows) > 1 else flat
    )  # screens are wide: so is the map
    result[rows] = flat / max(np.abs(flat).max(), 1e-12)
    return result


def turned(positions: np.ndarray, like: np.ndarray) -> np.ndarray:
    """[n, 2]: a map, turned and mirrored to lie as near as it can to another; distances in it stay what they are."""
    both = np.isfinite(positions).all(axis=1) & np.isfinite(like).all(axis=1)
    if not both.any():
        return positions
    left, _, right = np.linalg.svd(positions[both].T @ like[both])
    return positions @ (left @ right)


def whole(positions: np.ndarray) -> list[list[int]] | None:
    """[[x, y], ...] in whole numbers of a square of SIDE, y downwards; an empty pair for items without a place; None: no item."""
    here = np.isfinite(positions).all(axis=1)
    if not here.any():
        return None
    low, high = positions[here].min(axis=0), positions[here].max(axis=0)
    scale = SIDE / max((high - low).max(), 1e-12)
    middle = (low + high) / 2
    return [
        np.round((p - middle) * scale + SIDE / 2).astype(int).tolist() if ok else []
        for p, ok in zip(positions, here, strict=True)
    ]
