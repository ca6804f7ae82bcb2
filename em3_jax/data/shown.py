"""How often the rows of a log show each id, counted onward as rows come: `checks.counts_of` at the cost of the new rows."""

import numpy as np

from em3_jax.data.format import CLICK, Dataset, observed


class Shown:
    """The counts of the rows before a row, which only moves on.

    The histories are those of `data.append`: a user's ranges begin alike until its events are written anew.

    Args:
      label: of the rows that count.
      history_length: T, the number of last events that a row shows; None = all.
    """

    def __init__(self, label: str = CLICK, history_length: int | None = None):
        self._label, self.history_length, self.row = label, history_length, 0
        self._counts: dict[str, np.ndarray] = {}
        self._is_shown = np.zeros(0, bool)  # of each event, at the first place that stores it
        self._until = np.zeros(
            0, np.int32
        )  # of each place where a range begins: the events from there on to the last shown

    def until(self, dataset: Dataset, row: int) -> dict[str, np.ndarray]:
        """Name -> [ids] i64 counts of the rows before number `row`; the arrays are the counter's own.

        Args:
          dataset: in which rows, events and ids are those of the last call, and maybe more.
        """
        assert row >= self.row  # counts never go back
        columns, events, size = dataset.interactions, dataset.events, dataset.counts
        for name, of in size.items():
            mine = self._counts.get(name, np.zeros(0, np.int64))
            self._counts[name] = np.pad(mine, (0, len(of) - len(mine))) if len(of) > len(mine) else mine
        if len(events["item"]) > len(self._is_shown):
            more = max(len(events["item"]), 2 * len(self._is_shown)) - len(self._is_shown)
            self._is_shown, self._until = np.pad(self._is_shown, (0, more)), np.pad(self._until, (0, more))
        rows = np.arange(self.row, row)
        if self._label != CLICK:
            rows = rows[observed(dataset.label(self._label)[rows])]
        self.row = row
        for name in ("user", "item", *(f"context_{field.name}" for field in dataset.fields.context)):
            self._add(name, columns[name][rows])
        new = self._new_events(columns["history_start"][rows], columns["history_end"][rows], events["original"])
        self._add("item_history", events["item"][new])
        for field in dataset.stored_event_fields:
            self._add(f"event_{field.name}", events[f"field_{field.name}"][new])
        kept = {f"event_{name}": dataset.counts[f"event_{name}"] for name in dataset.event_features}
        return self._counts | kept

    def _add(self, name: str, ids: np.ndarray) -> None:
        np.add.at(self._counts[name], ids, np.ones(len(ids), np.int64))

    def _new_events(self, start: np.ndarray, end: np.ndarray, original: np.ndarray) -> np.ndarray:
        """The events, at the first place that stores each, that these ranges [n] show for the first time."""
        some = end > start
        start, end = start[some], end[some]
        low = start if self.history_length is None else np.maximum(start, end - self.history_length)
        order = np.lexsort((end, start))
        start, low, end = start[order], low[order], end[order]
        shown = start + self._until[start]
        # What ended before, of the same beginning, has shown all up to there from its own lowest on.
        previous = np.where(np.diff(start, prepend=-1) == 0, np.roll(end, 1), shown)
        previous = np.maximum(previous, shown)
        low = np.where(end >= previous, np.maximum(low, previous), low)
        np.maximum.at(self._until, start, (end - start).astype(np.int32))
        length = np.maximum(end - low, 0)
        place = np.repeat(low - np.cumsum(length) + length, length) + np.arange(length.sum())
        found = original[place]
        found = np.unique(found[~self._is_shown[found]])
        self._is_shown[found] = True
        return found
