"""Reads .npy and .npz files, in any number of threads; nothing is unpickled.

NumPy reads a header with `ast`. Under Python 3.11 that raises SystemError now and then where two
threads do so at once and garbage is collected in between, which jax makes likely
(findings/numpy_load_in_threads_of_jax.sh). Nothing is wrong with the file then, so it is read again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np

_TRIES = 20
_T = TypeVar("_T")


def load(path: Path | str, mmap_mode: Literal["r", "r+"] | None = None) -> Any:
    """The array of a .npy file, with `mmap_mode` a `numpy.memmap`.

    Args:
      mmap_mode: see `numpy.load`; None = it is read as a whole.

    Raises:
      OSError, ValueError, EOFError: it is not there, it is damaged, or it is an archive.
    """
    found = _again(lambda: np.load(path, mmap_mode, allow_pickle=False))
    if not isinstance(found, np.ndarray):
        with found:
            raise ValueError(f"an archive (.npz) of {', '.join(found.files[:5]) or 'nothing'}")
    return found


def archive(file: Path | BinaryIO) -> dict[str, np.ndarray]:
    """Name -> array of a .npz file, all of them read.

    Raises:
      OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile: it is not there or damaged.
    """

    def read() -> dict[str, np.ndarray]:
        if not isinstance(file, Path):
            file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}

    return _again(read)


def _again(read: Callable[[], _T]) -> _T:
    for _ in range(_TRIES - 1):
        try:
            return read()
        except SystemError:
            continue
    return read()
