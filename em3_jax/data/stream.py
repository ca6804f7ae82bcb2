"""The log as a stream: windows in time order, and what was known of the data when each began.

A window is scored before it is trained on. What scoring may know is what the rows before the window show: an id that they do not
show stands for `unknown`, as in serving. Training on the window knows its own rows, too.
"""

import dataclasses
import re
from typing import NamedTuple

import numpy as np

from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.core.types import Batch, Shards
from em3_jax.data import times
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.blocks import build
from em3_jax.data.checks import counts_of
from em3_jax.data.format import CLICK, Dataset, observed

SPANS = ("seconds", "minutes", "hours", "days")
MOST_WINDOWS = 100_000


class Window(NamedTuple):
    """Interaction rows `first` to `end` - 1; `complete` unless the log may still bring rows that belong to it."""

    first: int
    end: int
    complete: bool

    def __len__(self) -> int:
        return self.end - self.first


def windows(dataset: Dataset, every: str) -> list[Window]:
    """The windows of all rows of a dataset in time order, those without rows among them.

    Args:
      every: "500 examples", or "6 hours", in seconds, minutes, hours or days of the column `time`, whatever
        its unit is, from the first row on.

    Raises:
      UserError: no such window, the dataset's times are only an order, or its rows are not in that order.
    """
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", every)
    units = ("examples", *SPANS)
    unit = next((name for name in units if found and found[2].rstrip("s") == name.rstrip("s")), None)
    if found is None or unit is None or not int(found[1]):
        raise UserError(f"config.stream.window='{every}': write a number and a unit, {', '.join(units)}, e.g. '1 days'")
    size, time = int(found[1]), dataset.interactions["time"]
    if not len(time):
        return []
    _check_order(dataset)
    if unit == "examples":
        starts = np.arange(0, len(time), size)
    else:
        size = _ticks(dataset, every, size, unit)
        count = int(time[-1] - time[0]) // size + 1
        if count > MOST_WINDOWS:
            raise UserError(f"config.stream.window='{every}': makes {count:,} windows of this log; choose a longer one")
        starts = np.searchsorted(time, int(time[0]) + size * np.arange(count))
    ends = np.append(starts[1:], len(time))
    last_is_full = unit == "examples" and ends[-1] - starts[-1] == size
    complete = np.append(np.ones(len(starts) - 1, bool), last_is_full)
    return [Window(int(a), int(b), bool(c)) for a, b, c in zip(starts, ends, complete, strict=True)]


def _ticks(dataset: Dataset, every: str, count: int, unit: str) -> int:
    """A window of so many hours, say, in the unit of the dataset's times."""
    of = times.unit_of(dataset)
    size = times.ticks(count, unit, of)
    if size is None and of == times.ORDER:
        raise UserError(
            f"config.stream.window='{every}': the times of {dataset.root} have no unit, they only say which row comes first; "
            "give a number of rows, e.g. '5000 examples', or prepare the dataset with --time-unit"
        )
    if not size:
        raise UserError(
            f"config.stream.window='{every}': is no whole number of {of}, in which {dataset.root} counts "
            "time; choose a longer one"
        )
    return size


def _check_order(dataset: Dataset) -> None:
    time = dataset.interactions["time"]
    back = np.flatnonzero(time[1:] < time[:-1])
    if len(back):
        row = int(back[0]) + 1
        raise UserError(
            f"{dataset.root}: row {row} of the interactions has time {time[row]}, the row before it {time[row - 1]}; a stream "
            "has to be in time order: prepare the dataset again"
        )


def as_of(dataset: Dataset, row: int, label: str = CLICK, history_length: int | None = None) -> Dataset:
    """The dataset with the counts that the interaction rows before number `row` give.

    Args:
      label: of the rows that count.
      history_length: T, the number of last events that a row shows; None = all.
    """
    rows = range(row) if label == CLICK else rows_of(dataset, Window(0, row, True), label)
    return dataclasses.replace(dataset, counts=counts_of(dataset, rows, history_length))


def rows_of(dataset: Dataset, window: Window, label: str) -> np.ndarray:
    """[n] i64 interaction rows of a window that have the label."""
    rows = np.arange(window.first, window.end)
    return rows if label == CLICK else rows[observed(dataset.label(label)[rows])]


@dataclasses.dataclass(frozen=True)
class WindowSource:
    """Training batch number k of a window, its rows in order; the last is filled up with rows of weight 0.

    Attributes:
      builder: of the dataset as of the window's end.
      rows: [n] of the window.
      batch_size: B.
      seed: of the random replacement of ids.
      first_step: step number of batch 0.
      buckets: padded sizes, of each shard.
      shards: what of each batch is built here.
    """

    builder: BatchBuilder
    rows: np.ndarray
    batch_size: int
    seed: int
    first_step: int
    buckets: Buckets
    shards: Shards

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        position = index * self.batch_size + np.arange(self.batch_size)
        weight = (position < len(self.rows)).astype(np.float32)
        rows = self.rows[np.minimum(position, len(self.rows) - 1)]
        key = rng.numpy_key(self.seed, "unknown", self.first_step + index)
        options: dict = {"buckets": self.buckets, "key": key, "weight": weight, "number": index}
        return build(self.builder, self.shards, rows, **options)
