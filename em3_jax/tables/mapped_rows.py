"""An array in a file, longer whenever more is put there."""

from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.core import mapped
from em3_jax.core.errors import UserError

_LEAST, _SHARE = 1 << 12, 4  # it grows by so many rows, or by a fourth


class MappedRows:
    """Rows of a fixed type in a memory-mapped file.

    Attributes:
      rows: [m] of the file; what is beyond those that were put is zero.

    Args:
      path: of the file, which is made if it is not there.
      dtype: of a row.
      need: rows that the file has to have.

    Raises:
      UserError: it has fewer, or cannot be written.
    """

    def __init__(self, path: Path, dtype: Any, need: int = 0, writable: bool = True):
        self.path, self._dtype = path, np.dtype(dtype)
        self._mode: Any = "r+" if writable else "r"
        have = path.stat().st_size // self._dtype.itemsize if path.exists() else 0
        if have < need:
            raise UserError(
                f"{path}: has {have:,} of the {need:,} rows that the run's checkpoint names, it was cut; restore the "
                "file, or choose another --workdir"
            )
        self.rows = np.zeros(0, self._dtype)
        self._file: np.memmap | None = None
        if have or need:
            self._map(have)

    def _map(self, count: int) -> None:
        self._file = np.memmap(self.path, self._dtype, self._mode, shape=(count,))
        self.rows = np.asarray(self._file)  # whose parts are arrays, which costs less than memmaps of a few rows

    def reserve(self, count: int) -> None:
        """Makes sure that the file has so many rows."""
        if count <= len(self.rows):
            return
        count = max(count, len(self.rows) + max(_LEAST, len(self.rows) // _SHARE))
        try:
            with open(self.path, "ab") as file:
                file.truncate(count * self._dtype.itemsize)
            self._map(count)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot be made longer ({error.strerror}); free space and run again to resume"
            ) from None

    def flush(self) -> None:
        """Returns when all that was put is on the disk, and gives its memory back."""
        if self._file is not None and self._mode == "r+":
            self._file.flush()
        mapped.release(self.rows)
