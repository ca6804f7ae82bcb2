"""The log as a stream: windows in time order, and what was known of the data when each began.

A window is scored before it is trained on. What scoring may know is what the rows before the window show: an id that they do not
show stands for `unknown`, as in serving. Training on the window knows its own rows, too.
"""

import bisect
import dataclasses
import re
from pathlib import Path
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

EXAMPLES = "examples"
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
    size, unit = length_of(every)
    time = dataset.interactions["time"]
    if not len(time):
        return []
    _check_order(dataset)
    if unit == EXAMPLES:
        starts = np.arange(0, len(time), size)
    else:
        size = ticks_of(every, size, unit, times.unit_of(dataset), dataset.root)
        count = int(time[-1] - time[0]) // size + 1
        if count > MOST_WINDOWS:
            raise UserError(f"config.stream.window='{every}': makes {count:,} windows of this log; choose a longer one")
        starts = np.searchsorted(time, int(time[0]) + size * np.arange(count))
    ends = np.append(starts[1:], len(time))
    last_is_full = unit == EXAMPLES and ends[-1] - starts[-1] == size
    complete = np.append(np.ones(len(starts) - 1, bool), last_is_full)
    return [Window(int(a), int(b), bool(c)) for a, b, c in zip(starts, ends, complete, strict=True)]


def length_of(every: str) -> tuple[int, str]:
    """(number, unit) of "500 examples" or "6 hours"."""
    found = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", every)
    units = (EXAMPLES, *SPANS)
    unit = next((name for name in units if found and found[2].rstrip("s") == name.rstrip("s")), None)
    if found is None or unit is None or not int(found[1]):
        raise UserError(f"config.stream.window='{every}': write a number and a unit, {', '.join(units)}, e.g. '1 days'")
    return int(found[1]), unit


def ticks_of(every: str, count: int, unit: str, of: str, root: Path) -> int:
    """A window of so many hours, say, in the unit `of` the times of the dataset in `root`."""
    size = times.ticks(count, unit, of)
    if size is None and of == times.ORDER:
        raise UserError(
            f"config.stream.window='{every}': the times of {root} have no unit, they only say which row comes first; "
            "give a number of rows, e.g. '5000 examples', or prepare the dataset with --time-unit"
        )
    if not size:
        raise UserError(
            f"config.stream.window='{every}': is no whole number of {of}, in which {root} counts time; choose a longer one"
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


class Arriving:
    """The windows of rows in the order of arrival, as they come; a window of time ends with the first row of a later time.

    Args:
      every: see `windows`.
      root: of the dataset, for messages.
    """

    def __init__(self, every: str, root: Path):
        self._every, self._root, self._size = every, root, length_of(every)
        self._rows, self._start, self._latest = 0, 0, 0  # looked at; the first time; the latest
        self._ends: list[int] = []
        self._times: list[int] = []  # the latest time of the rows up to each end

    def has(self, number: int) -> bool:
        """Whether all rows of a window are there."""
        return number < len(self._ends)

    def __getitem__(self, number: int) -> Window:
        return Window(self._ends[number - 1] if number else 0, self._ends[number], True)

    def newest(self, window: Window) -> int:
        """The latest time of the rows up to the end of a window."""
        return self._times[bisect.bisect_left(self._ends, window.end)]

    def late(self, window: Window, time: np.ndarray) -> int:
        """How many rows of a window come after one of a later time.

        Args:
          time: [rows] i64 of all rows.
        """
        own = time[max(window.first - 1, 0) : window.end]
        if window.first:
            own = np.concatenate([[self._times[bisect.bisect_left(self._ends, window.first)]], own[1:]])
        return int((own[1:] < np.maximum.accumulate(own)[:-1]).sum())

    def extend(self, time: np.ndarray, unit: str) -> None:
        """Finds the windows that rows have completed.

        Args:
          time: [rows] i64 of all rows, of which those that were there the last time are not looked at again.
          unit: of the times.
        """
        if len(time) == self._rows:
            return
        if not self._rows:
            self._start = self._latest = int(time[0])
        latest = np.maximum.accumulate(np.concatenate([[self._latest], time[self._rows :]]))[1:]
        count, of = self._size
        if of == EXAMPLES:
            ends = np.arange((len(self._ends) + 1) * count, len(time) + 1, count)
        else:
            size = ticks_of(self._every, count, of, unit, self._root)
            done = int(latest[-1] - self._start) // size
            if done > len(self._ends) + MOST_WINDOWS:
                raise UserError(
                    f"config.stream.window='{self._every}': makes {done:,} windows of this log; choose a longer one"
                )
            starts = self._start + size * np.arange(len(self._ends) + 1, done + 1)
            ends = self._rows + np.searchsorted(latest, starts)
        before = np.concatenate([[self._latest], latest])
        self._times += before[ends - self._rows].tolist()
        self._ends += ends.tolist()
        self._rows, self._latest = len(time), int(latest[-1])
