"""Events that come in the order of time and are stored user by user: each at its place, in bounded memory."""

from typing import Any

import numpy as np

from em3_jax.data.writer import DatasetWriter

BUCKET = 1 << 22
"""Events that are in memory at once, about."""


class PlacedEvents:
    """The columns of a dataset's events.

    Args:
      writer: of the dataset.
      dtypes: column -> its dtype.
      count: E, how many events there will be; each place from 0 to E - 1 is put once.
      folder: of the writer's, for what waits to be placed.
    """

    def __init__(self, writer: DatasetWriter, dtypes: dict[str, Any], count: int, folder: str):
        self.dtypes, self._count = dtypes, count
        self._record = np.dtype([("at", np.int64), *dtypes.items()])
        self._columns = {name: writer.appender(f"events/{name}", dtype) for name, dtype in dtypes.items()}
        self._buckets = max(-(-count // BUCKET), 1)
        self._waiting: list[np.ndarray] = []  # where one bucket is enough
        self._paths = [writer.path / folder / f"events-{k}" for k in range(self._buckets)] if self._buckets > 1 else []
        self._files = [open(path, "wb") for path in self._paths]

    def put(self, at: np.ndarray, values: dict[str, np.ndarray]) -> None:
        """Takes events.

        Args:
          at: [m] i64 their places.
          values: column -> [m].
        """
        records = np.empty(len(at), self._record)
        records["at"] = at
        for name in self.dtypes:
            records[name] = values[name]
        if not self._files:
            self._waiting.append(records)
            return
        bucket = (at // BUCKET).astype(np.uint16)
        order = np.argsort(bucket, kind="stable")  # of 16 bits: by radix
        records = records[order]
        ends = np.searchsorted(bucket[order], np.arange(self._buckets), side="right")
        for file, first, end in zip(self._files, [0, *ends[:-1]], ends, strict=True):
            file.write(records[first:end].data)

    def finish(self) -> None:
        """Writes the columns."""
        if not self._files:
            self._place(0, np.concatenate(self._waiting or [np.empty(0, self._record)]))
        for k, (file, path) in enumerate(zip(self._files, self._paths, strict=True)):
            file.close()
            self._place(k, np.fromfile(path, self._record))
            path.unlink()
        for column in self._columns.values():
            column.close()

    def _place(self, bucket: int, records: np.ndarray) -> None:
        """Writes the events of a bucket, which comes after those written."""
        first = bucket * BUCKET
        size = min(BUCKET, self._count - first)
        if len(records) != size:
            raise AssertionError(f"{len(records)} events came for {size} places")
        at = records["at"] - first
        for name, column in self._columns.items():
            placed = np.empty(size, self.dtypes[name])
            placed[at] = records[name]
            column.append(placed)
