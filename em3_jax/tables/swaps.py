"""Rows that move between a table on the devices and the spill on the host, a fixed number at a time, so that no shape is new.

A row is moved with all that belongs to it, an embedding and the optimizer's slots or what a memory bank has of an item, as
it lies in memory: bit for bit. Rows that leave are gathered before the step and fetched when the next ones do, so that the host
does not wait for the device.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from em3_jax.tables import packing
from em3_jax.tables.residents import Moves
from em3_jax.tables.spill import Spill

AT_ONCE = 1024  # rows that one call moves

Fresh = Callable[[int, int], Any]
"""(number of rows n, number of the first of them among all births) -> tree of [n, ...] of new ids."""


def row_bytes(shapes: Any) -> int:
    """Of a row of all tables of a tree.

    >>> import numpy as np
    >>> from em3_jax.tables import swaps
    >>> swaps.row_bytes({"embedding": np.zeros((9, 4), np.float32), "count": np.zeros(9, np.float32)})
    20
    """
    leaves = jax.tree.leaves(shapes, is_leaf=packing.is_table)
    return sum(math.prod(leaf.shape[1:]) * np.dtype(leaf.dtype).itemsize for leaf in leaves)


class Swaps:
    """Moves rows of the tables of a tree, each [V, ...].

    Args:
      shapes: of the tree, with their shardings.
      spill: where rows go.
      fresh: what new ids begin with.
    """

    def __init__(self, shapes: Any, spill: Spill, fresh: Fresh):
        leaves, tree = jax.tree.flatten(shapes, is_leaf=packing.is_table)
        self._tree: Any = tree
        self._length, self._spill, self._fresh = leaves[0].shape[0], spill, fresh
        self._rows = [(leaf.shape[1:], np.dtype(leaf.dtype)) for leaf in leaves]
        self._waiting: list[tuple[np.ndarray, list[jax.Array]]] = []  # places, and the rows on the way there
        # Where they lie, or the step would be compiled once more for another place.
        where = [(leaf.lines if isinstance(leaf, packing.Rows) else leaf).sharding for leaf in leaves]
        self._take, self._put = jax.jit(_take), jax.jit(_put, donate_argnums=0, out_shardings=where)

    def __call__(self, tables: Any, moves: Moves) -> Any:
        """The tables with the rows moved; they are donated."""
        self.fetch()
        if not moves.any:
            return tables
        leaves = self._tree.flatten_up_to(tables)
        for start in range(0, len(moves.out), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            self._waiting.append((moves.out_place[part], self._take(leaves, self._padded(moves.out[part]))))
        rows = np.concatenate([moves.back, moves.born])
        data = split(self._spill.read(moves.back_place), self._rows)
        if len(moves.born):
            fresh = jax.tree.leaves(self._fresh(len(moves.born), moves.birth))
            data = [np.concatenate(pair) for pair in zip(data, fresh, strict=True)]
        order = np.argsort(rows)  # as packed tables want it
        for start in range(0, len(rows), AT_ONCE):
            some = order[start : start + AT_ONCE]
            leaves = self._put(leaves, self._padded(rows[some]), [_filled(one[some]) for one in data])
        return self._tree.unflatten(leaves)

    def compiled(self, tables: Any) -> Any:
        """The tables as they are, which are donated; what moves rows is compiled then, and not when the first one moves."""
        nothing, leaves = self._padded(np.zeros(0, np.int64)), self._tree.flatten_up_to(tables)
        self._take(leaves, nothing)
        zeros = [np.zeros((AT_ONCE, *tail), dtype) for tail, dtype in self._rows]
        return self._tree.unflatten(self._put(leaves, nothing, zeros))

    def _padded(self, rows: np.ndarray) -> np.ndarray:
        """[AT_ONCE] i32; rows beyond the table are none."""
        beyond = self._length + np.arange(AT_ONCE - len(rows))
        return np.concatenate([rows, beyond]).astype(np.int32)

    def fetch(self) -> None:
        """Puts rows that are on the way into the spill."""
        for places, rows in self._waiting:
            arrays = [np.asarray(one)[: len(places)] for one in rows]
            flat = [np.ascontiguousarray(one).reshape(len(places), -1).view(np.uint8) for one in arrays]
            self._spill.write(places, np.concatenate(flat, axis=1))
        self._waiting = []


def split(data: np.ndarray, rows: list[tuple[tuple[int, ...], np.dtype]]) -> list[np.ndarray]:
    """[n, ...] of each table, of rows [n, bytes] u8 of the spill.

    Args:
      rows: shape and dtype of a row of each table.

    >>> import numpy as np
    >>> from em3_jax.tables import swaps
    >>> f32 = np.dtype(np.float32)
    >>> rows = np.array([[1.0, 2.0, 7.0]], f32).view(np.uint8)  # an embedding of two, and a count
    >>> [part.tolist() for part in swaps.split(rows, [((2,), f32), ((), f32)])]
    [[[1.0, 2.0]], [7.0]]
    """
    found, start = [], 0
    for tail, dtype in rows:
        end = start + math.prod(tail) * dtype.itemsize
        found.append(np.ascontiguousarray(data[:, start:end]).view(dtype).reshape(len(data), *tail))
        start = end
    return found


def _filled(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.zeros((AT_ONCE - len(rows), *rows.shape[1:]), rows.dtype)])


def _take(leaves: list[packing.Table], rows: jax.Array) -> list[jax.Array]:
    return [packing.take(leaf, packing.among_all(leaf, rows)) for leaf in leaves]


def _put(leaves: list[packing.Table], rows: jax.Array, data: list[jax.Array]) -> list[packing.Table]:
    return [packing.put(leaf, rows, one) for leaf, one in zip(leaves, data, strict=True)]


def new_rows(seed: int, scale: float, slots: dict[str, tuple[tuple[int, ...], np.dtype]], width: int) -> Fresh:
    """What a table of normal embeddings gives new ids: a function of the seed and the number of the birth; slots are zero.

    >>> import numpy as np
    >>> from em3_jax.tables import swaps
    >>> fresh = swaps.new_rows(seed=0, scale=0.01, slots={"count": ((), np.dtype("f4"))}, width=2)
    >>> made, again = fresh(3, 100), fresh(3, 100)
    >>> bool((made["embedding"] == again["embedding"]).all()), made["slots"]["count"].tolist()
    (True, [0.0, 0.0, 0.0])
    """

    def fresh(count: int, birth: int) -> dict[str, Any]:
        drawn = np.random.Generator(np.random.Philox(key=[seed, birth])).standard_normal((count, width), np.float32)
        zeros = {name: np.zeros((count, *tail), dtype) for name, (tail, dtype) in slots.items()}
        return {"embedding": (np.float32(scale) * drawn), "slots": zeros}

    return fresh


def never_written(width: int) -> Fresh:
    """What a memory bank has of new items.

    >>> from em3_jax.tables import swaps
    >>> rows = swaps.never_written(2)(3, 0)
    >>> rows["vector"].shape, rows["written"].tolist()
    ((3, 2), [-1, -1, -1])
    """

    def fresh(count: int, birth: int) -> dict[str, Any]:
        vector = np.zeros((count, width), np.float32)
        return {"vector": vector, "written": np.full(count, -1, np.int32), "uses": np.zeros(count, np.int32)}

    return fresh
