"""The rows that a run was trained on, of each dataset it had: growing trains those that are new, and no others.

A dataset numbers its rows anew each time it is prepared, so rows are known by what they say:

    <workdir>/rows/<data hash>.npy    [n] u64: a fingerprint of each training row, of the original ids
                                      of its user and item and of its time, if times are counted

A row that occurs several times counts as often as it occurs; of equal ones the earliest are the old.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core import npy, publish, rng
from em3_jax.core.errors import UserError
from em3_jax.data import times
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.training import rundir


class NewRows(NamedTuple):
    """What a grown dataset brings: `rows` [n] i64 to train, in time order; how many it had before were `kept`, or are `gone`."""

    rows: np.ndarray
    kept: int
    gone: int


def fingerprints(dataset: Dataset, rows: np.ndarray | range) -> np.ndarray:
    """[n] u64 of interaction rows: the same in every dataset that is prepared of them, in whatever unit it counts time."""
    rows, unit = np.asarray(rows), times.unit_of(dataset)
    parts = [
        _of_rows(table.column("id"), dataset.interactions[kind][rows])
        for kind, table in (("user", dataset.user_table), ("item", dataset.item_table))
    ]
    if unit != times.ORDER:  # else it is the place in the log, which moves
        parts.append(dataset.interactions["time"][rows] * np.int64(times.NANOSECONDS[unit]))
    return rng.hash_words(rng.numpy_key(0, "rows"), *parts)


def _of_rows(ids: pa.ChunkedArray, rows: np.ndarray) -> np.ndarray:
    """[n] u64 of the ids of rows [n]; of few rows, no other id is looked at."""
    if len(rows) >= len(ids):
        return _of_ids(ids)[rows]
    named, place = np.unique(rows, return_inverse=True)
    return _of_ids(ids.take(pa.array(named)))[place]


def _of_ids(ids: pa.ChunkedArray) -> np.ndarray:
    """[n] u64 of ids as text."""
    digests = (hashlib.blake2b(str(one).encode(), digest_size=8).digest() for one in ids.to_pylist())
    return np.frombuffer(b"".join(digests), np.dtype("<u8"))


def _path(directory: str | Path, data_hash: str) -> Path:
    return Path(directory) / "rows" / f"{data_hash}.npy"


def remember(directory: str | Path, dataset: Dataset, label: str) -> None:
    """Keeps in a run's folder which rows it is trained on, if it is not there.

    Args:
      label: config.data.label.
    """
    path, rows = _path(directory, dataset.meta["data_hash"]), dataset.split_rows("train", label)
    publish.write_once(path, lambda file: np.save(file, fingerprints(dataset, rows)))


def recall(directory: str | Path, data_hash: str) -> np.ndarray:
    """[n] u64 the training rows of the dataset with that hash."""
    path, tells = _path(directory, data_hash), "which rows the run was trained on"
    errors = (ValueError, OSError, EOFError)
    return rundir.read_kept(path, data_hash, npy.load, errors, form=".npy", tells=tells)


def new_rows(dataset: Dataset, label: str, seen: np.ndarray) -> NewRows:
    """The training rows of a grown dataset that are not among those seen.

    Args:
      label: config.data.label.
      seen: [m] u64, see `recall`.

    Raises:
      UserError: there are none; rows seen are now in validation or test; or none of those seen is there.
    """
    rows = np.asarray(dataset.split_rows("train", label))
    every = fingerprints(dataset, range(dataset.meta["counts"]["interactions"]))
    found = every[rows]
    known, times_seen = np.unique(seen, return_counts=True)
    is_new = _occurrence(found) >= _counts(known, times_seen, found)
    kept = len(rows) - int(is_new.sum())
    if len(seen) and not kept:
        raise UserError(
            f"none of the {len(seen):,} rows that the run was trained on is among the training rows of {dataset.root}; were "
            "times or ids written otherwise? prepare it as before"
        )
    missing = times_seen - _counts(*np.unique(found[~is_new], return_counts=True), known)
    for split in SPLITS[1:]:
        held_out = every[np.asarray(dataset.split_rows(split, label))]
        moved = int((_occurrence(held_out) < _counts(known, missing, held_out)).sum())
        if moved:
            raise UserError(
                f"{dataset.root}: {moved:,} rows that the run was trained on are now of the {split} split, where they "
                "would flatter it; prepare the dataset so that what was trained stays in train, e.g. --split column:<name>"
            )
    if kept == len(rows):
        raise UserError(
            f"{dataset.root}: all its {len(rows):,} training rows are rows that the run was trained on; there is nothing to train"
        )
    return NewRows(rows[is_new], kept, len(seen) - kept)


def _occurrence(values: np.ndarray) -> np.ndarray:
    """[n] i64: how many equal values come before each."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    result = np.empty(len(values), np.int64)
    result[order] = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    return result


def _counts(values: np.ndarray, counts: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """[n] i64: the count of each value asked for, of `values` [k] sorted and distinct with `counts` [k]; 0 for others."""
    if not len(values):
        return np.zeros(len(asked), np.int64)
    place = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.where(values[place] == asked, counts[place], 0)
