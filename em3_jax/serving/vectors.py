"""Vectors of a store in f32, f16 or int8; read as f32 by whoever reads them.

An int8 vector is whole numbers from -127 to 127 times a scale of its own, its largest magnitude / 127: a quarter of the
bytes of f32, each number off by at most half the scale. Letters: n rows, W width.
"""

import hashlib
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

MOST = 127
PREFIX, SCALE = "looked_up.", "scale."
"""Of the names of a version's arrays: what is looked up of items, and the scales of its int8 vectors."""


class Vectors(NamedTuple):
    """Vectors as they lie on disk.

    Attributes:
      values: [n, W] f32, f16 or i8.
      scale: [n] f32 of i8; None of others.
    """

    values: np.ndarray
    scale: np.ndarray | None = None

    @property
    def width(self) -> int:
        """W."""
        return self.values.shape[1]

    def rows(self, row: np.ndarray | slice) -> np.ndarray:
        """[.., W] f32 of some rows; negative ones count from the end."""
        values = np.asarray(self.values[row], np.float32)
        return values if self.scale is None else values * self.scale[row][..., None]

    def write(self, row: np.ndarray | slice | int, vectors: np.ndarray) -> None:
        """Puts vectors [.., W] f32 into some rows."""
        if self.scale is None:
            self.values[row] = vectors
            return
        scale = np.abs(vectors).max(axis=-1, initial=0) / np.float32(MOST)
        with np.errstate(divide="ignore", invalid="ignore"):
            whole = np.where(scale[..., None] > 0, vectors / scale[..., None], 0)
            self.values[row] = np.clip(np.rint(np.nan_to_num(whole)), -MOST, MOST)
        self.scale[row] = scale

    def copy_rows(self, row: np.ndarray, other: "Vectors", from_row: np.ndarray) -> None:
        """Takes rows over from vectors of the same form, to the bit."""
        self.values[row] = other.values[from_row]
        if self.scale is not None and other.scale is not None:
            self.scale[row] = other.scale[from_row]

    def finite(self, part: slice) -> bool:
        """Whether all numbers of these rows are."""
        return bool(np.isfinite(self.values[part] if self.scale is None else self.scale[part]).all())


def stored(arrays: Mapping[str, np.ndarray], scales: Mapping[str, np.ndarray]) -> dict[str, Vectors]:
    """Name -> vectors, of what a version has by `PREFIX` and `SCALE`."""
    return {name: Vectors(values, scales.get(name)) for name, values in arrays.items()}


def hash_rows(vectors: np.ndarray) -> list[str]:
    """[n] of vectors [n, W] f32: 16 hexadecimal digits of the bytes of each."""
    rows = np.ascontiguousarray(vectors, np.float32)
    return [hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in rows]
