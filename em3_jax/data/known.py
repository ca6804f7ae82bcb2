"""What a run's training shows: an id that its rows never show stands for `unknown`.

The counts beside a dataset are of all its training rows and their whole histories. A run may learn another label, take some rows
of each user, and read the last T events of a history, so the ids that it learns are fewer.
"""

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

from em3_jax.core import npy
from em3_jax.data.checks import counts_of
from em3_jax.data.format import Dataset

KEPT_ROWS = 10_000_000  # counts of more rows than that are kept beside the dataset
FOLDER = ".training_counts"  # in features/, where files may be added to a dataset


def as_trained(dataset: Dataset, rows: np.ndarray | range, history_length: int, key: str) -> Dataset:
    """The dataset with the counts of a run's training: its own, where the run takes all rows and T is enough to show as much.

    Args:
      dataset: the dataset.
      rows: [n] the run's training rows.
      history_length: T.
      key: what `rows` are of, as part of a file name, e.g. "click-0"; counts of long logs are read again under it.
    """
    reach = dataset.meta.get("history_reach")
    if reach is not None and history_length >= reach and len(rows) == dataset.meta["splits"]["train"][1]:
        return dataset
    path = dataset.root / "features" / FOLDER / f"{dataset.meta['data_hash'][:16]}-{key}-{history_length}.npz"
    counts = _read(path, dataset) if len(rows) > KEPT_ROWS else None
    if counts is None:
        counts = counts_of(dataset, rows, history_length)
        if len(rows) > KEPT_ROWS and os.access(dataset.root / "features", os.W_OK):
            _write(path, counts)
    return dataclasses.replace(dataset, counts=counts)


def _read(path: Path, dataset: Dataset) -> dict[str, np.ndarray] | None:
    """The counts in a file; None if there is none that is whole."""
    try:
        counts = npy.archive(path)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    same = {name: array.shape for name, array in counts.items()}
    return counts if same == {name: array.shape for name, array in dataset.counts.items()} else None


def _write(path: Path, counts: dict[str, np.ndarray]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    with open(temporary, "wb") as file:
        np.savez(file, **counts)  # type: ignore[arg-type]  # one may be allow_pickle, says the stub
    os.replace(temporary, path)
