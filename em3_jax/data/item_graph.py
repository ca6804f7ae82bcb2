"""Item graphs: every item reads the k items whose features are nearest by cosine.

With s the cosine and N_i the k nearest of item i, S_ij is s(i, j) ("cosine", LATTICE) or 1 ("binary", FREEDOM) for j in N_i, else
0, and the graph is

    S_ij / sqrt(d_i d_j),   d_i = sum_j S_ij      normalisation "rows", as both papers have it
    S_ij / sqrt(d_i e_j),   e_j = sum_i S_ij      normalisation "both", the symmetric one of a directed graph

"rows" on a binary graph gives every entry 1 / k, which is what the released code of FREEDOM and EM3 computes. "both" lets an item
that is near to many speak less to each. Negative cosines count as 0. An item without content (a zero vector) reads none and is
read by none. Who is nearest, ties included, does not depend on the blocks: near the k-th place cosines are computed again in f64,
and equal ones go by index.

Letters: I items, E width of a feature, k neighbours.
"""

import hashlib
import io
import os
from pathlib import Path

import numpy as np

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.sparse import Entries

WEIGHTS = ("binary", "cosine")
NORMALISATIONS = ("rows", "both")
_VERSION = 2  # of the cached files and of the algorithm
_BLOCK_BYTES = 1 << 25  # of similarities at once
_CLOSE = 1e-5  # f32 cosines nearer than that are not told apart
_DIGITS = 10  # f64 cosines that agree to these are equal
_PAIRS = 4096  # evaluated in f64 at once


def item_graph(
    features: np.ndarray, *, neighbours: int, include_self: bool, weights: str, normalisation: str
) -> Entries:
    """The graph of one modality, built in blocks: k entries a row, of ascending columns, with weight 0 where an item has fewer.

    Args:
      features: [I, E] f32, finite.
      neighbours: k.
      include_self: whether an item counts as its own neighbour, the nearest.
      weights: one of `WEIGHTS`.
      normalisation: one of `NORMALISATIONS`.
    """
    for name, value, known in (("weights", weights, WEIGHTS), ("normalisation", normalisation, NORMALISATIONS)):
        if value not in known:
            raise UserError(f"config.model.item_graph.{name} '{value}' is unknown; known: {', '.join(known)}")
    items = len(features)
    most = items if include_self else items - 1
    if not 1 <= neighbours <= most:
        raise UserError(f"config.model.item_graph.neighbours={neighbours}: must be 1 to {most} with {items} items")
    rows = np.asarray(features, np.float32)  # never copied: they may be larger than all else
    length = np.sqrt(np.einsum("ie,ie->i", rows, rows, dtype=np.float64))
    present = length > 0
    inverse = np.divide(1.0, length, out=np.zeros(items), where=present)
    nearest = np.empty((items, neighbours), np.int32)
    size = max(1, _BLOCK_BYTES // (4 * items))
    for start in range(0, items, size):
        nearest[start : start + size] = _nearest(
            rows, inverse, start, min(start + size, items), neighbours, include_self
        )
    sender = np.sort(nearest, axis=1).reshape(-1)
    receiver = np.repeat(np.arange(items, dtype=np.int32), neighbours)
    weight = (present[receiver] & present[sender]).astype(np.float64)
    if weights == "cosine":
        weight *= np.maximum(_cosines(rows, inverse, receiver, sender), 0.0)
    of_row = np.bincount(receiver, weight, minlength=items)
    of_column = of_row if normalisation == "rows" else np.bincount(sender, weight, minlength=items)
    scale = np.sqrt(of_row[receiver] * of_column[sender])
    weight = np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0)
    return Entries(receiver, sender, weight.astype(np.float32))


def _nearest(
    rows: np.ndarray, inverse: np.ndarray, start: int, stop: int, count: int, include_self: bool
) -> np.ndarray:
    """[stop - start, count] the nearest of rows start to stop of `rows` [I, E], in any order; `inverse` [I] of their lengths."""
    unit = (rows[start:stop] * inverse[start:stop, None]).astype(np.float32)  # before the product: nothing overflows
    score = unit @ rows.T  # [b, I]
    score *= inverse.astype(np.float32)
    own = np.arange(start, stop)
    score[np.arange(len(own)), own] = np.inf if include_self else -np.inf
    if count == score.shape[1]:
        return np.broadcast_to(np.arange(count), (len(own), count))
    best = np.argpartition(-score, count, axis=1)[:, : count + 1]  # the last of them is the (k + 1)-th
    value = np.take_along_axis(score, best, axis=1)
    chosen = best[:, :count].copy()
    last = value[:, :count].min(axis=1)
    for row in np.flatnonzero(last - value[:, count] <= _CLOSE):
        sure = np.flatnonzero(score[row] > last[row] + _CLOSE)
        close = np.flatnonzero(np.abs(score[row] - last[row]) <= _CLOSE)  # ascending
        exact = np.round(_cosines(rows, inverse, np.full(len(close), start + row), close), _DIGITS)
        order = np.argsort(-exact, kind="stable")[: count - len(sure)]
        chosen[row] = np.concatenate([sure, close[order]])
    return chosen


def _cosines(rows: np.ndarray, inverse: np.ndarray, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """[n] f64 cosines of rows `one` [n] and `other` [n] of `rows`, each computed alone."""
    result = np.empty(len(one))
    for start in range(0, len(one), _PAIRS):
        part = slice(start, start + _PAIRS)
        product = np.einsum("ne,ne->n", rows[one[part]], rows[other[part]], dtype=np.float64)
        result[part] = product * inverse[one[part]] * inverse[other[part]]
    return result


def cached_item_graph(folder: Path, features: np.ndarray, **settings) -> Entries:
    """`item_graph(features, **settings)`, kept in `folder` under a key over the features' values and all settings.

    A changed feature file has another key, so its graph is built anew. A file that cannot be read is replaced.
    """
    features = np.ascontiguousarray(features, np.float32)
    digest = hashlib.blake2b(repr((_VERSION, features.shape, sorted(settings.items()))).encode(), digest_size=16)
    digest.update(features.data)
    path = Path(folder) / f"{digest.hexdigest()}.npy"
    graph = _read(path, len(features), settings["neighbours"])
    if graph is None:
        graph = item_graph(features, **settings)
        buffer = io.BytesIO()
        np.save(buffer, np.stack([graph.sender, graph.weight.view(np.int32)]))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        temporary.write_bytes(buffer.getvalue())
        os.replace(temporary, path)
    return graph


def _read(path: Path, items: int, neighbours: int) -> Entries | None:
    """The graph in a file; None if there is none that is whole."""
    try:
        stored = npy.load(path)
    except (OSError, ValueError, EOFError):
        return None
    if stored.shape != (2, items * neighbours) or stored.dtype != np.int32:
        return None
    receiver = np.repeat(np.arange(items, dtype=np.int32), neighbours)
    return Entries(receiver, stored[0], stored[1].view(np.float32))
