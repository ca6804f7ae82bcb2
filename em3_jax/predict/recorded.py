"""Recorded requests, and what a dataset makes of them: rows and events, as a log would have them.

Letters: r requests, n candidates of all, h events of a history.
"""

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, PADDING, UNKNOWN
from em3_jax.core.numbers import value_column
from em3_jax.core.segments import NO_EVENT
from em3_jax.core.strict_json import undefined_as_nan
from em3_jax.core.values import canonical
from em3_jax.data.format import Dataset
from em3_jax.export.model import original_ids
from em3_jax.predict.rows import Rows, numbers_of, values_of
from em3_jax.serving import id_index

OF_EVENTS = ("history", "event")
"""How the names of inputs begin that say something of events."""
SLOT = "history_slot"


class Recorded(NamedTuple):
    """A line of a record, see `serving.recorder`.

    Attributes:
      place, line: where it stands, for messages.
      inputs: those of all pieces, [b, ...] or of the user alone.
      logits: [b] f64.
    """

    place: str
    line: int
    version: str
    checksum: str
    asked: dict[str, Any]
    inputs: dict[str, np.ndarray]
    logits: np.ndarray


def read(path: Path) -> Iterator[Recorded]:
    """The lines of a record; a last one that was cut off is left out.

    Raises:
      UserError: it cannot be read, or a line is none of a record.
    """
    try:
        file = open(path, encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a file of `em3 serve --record`") from None
    with file:
        for number, line in enumerate(file, 1):
            if not line.endswith("\n"):
                return
            try:
                found = json.loads(line)
                inputs = _joined(found["inputs"])
                logits = np.array(found["logits"], np.float64)
                version, asked = str(found["version"]), found["asked"]
                if len(logits) != len(asked["candidates"]):
                    raise ValueError(f"{len(logits)} logits for {len(asked['candidates'])} candidates")
                recorded = Recorded(f"{path} line {number}", number, version, found["checksum"], asked, inputs, logits)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise UserError(f"{path} line {number}: not a recorded request ({error})") from None
            yield recorded


def _moments(given: Any, count: int) -> np.ndarray:
    """[count] i64 times; 0 where they are no such: a model that reads them has refused the request."""
    try:
        found = np.array([int(one) for one in given], np.int64)
    except (TypeError, ValueError, OverflowError):
        found = np.zeros(0, np.int64)
    return found if len(found) == count else np.zeros(count, np.int64)


def _joined(pieces: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Inputs of all pieces one after the other: of candidates theirs, of the user those of the first piece.

    Where each candidate has events of its own in its slots, these are inputs of candidates, slot by slot.
    """
    found = [_in_slots({name: np.array(undefined_as_nan(value)) for name, value in piece.items()}) for piece in pieces]
    own = ("candidate", "context", *(OF_EVENTS if SLOT in pieces[0] else ()))
    return found[0] | {name: np.concatenate([one[name] for one in found]) for name in found[0] if name.startswith(own)}


def _in_slots(piece: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs with those of events, [T, ...], in the slots that hold them, [b, K, ...]; without slots as they are."""
    slot = piece.pop(SLOT, None)
    if slot is None:
        return piece
    there = slot != NO_EVENT
    result = {
        name: value[np.where(there, slot, 0)] if name.startswith(OF_EVENTS) else value for name, value in piece.items()
    }
    return result | {"history_mask": result["history_mask"] & there}


def of_dataset(dataset: Dataset) -> "Resolver":
    """The resolver of a dataset that is whole."""
    tables = dataset.user_table, dataset.item_table
    return Resolver(dataset, *(id_index.build(original_ids(table)) for table in tables))


class Resolver:
    """Makes `Rows` of requests, a row a candidate, by what the training side knows of ids and values.

    Args:
      dataset: of the run.
      users, items: the indexes of their original ids.
    """

    def __init__(self, dataset: Dataset, users: id_index.IdIndex, items: id_index.IdIndex):
        self._dataset, self._users, self._items = dataset, users, items
        self._known: Mapping[str, int] = {}
        self._values = {group: values_of(dataset, group) for group in ("context", "event")}
        self._numbers = {group: numbers_of(dataset, group) for group in ("context", "event")}

    def knowing(self, known: Mapping[str, int]) -> "Resolver":
        """The same by what was known once: of "user", "item", "context_<field>", "event_<field>" the first so many alone."""
        other = copy.copy(self)
        other._known = known
        return other

    def __call__(self, requests: Sequence[Mapping[str, Any]]) -> Rows:
        """The rows of requests [r], as `ScoreRequest` has them."""
        events = [self._events(asked) for asked in requests]
        count = [len(asked["candidates"]) for asked in requests]
        end = np.cumsum([len(one["item"]) for one in events])
        start = np.concatenate([[0], end[:-1]])
        columns: dict[str, Any] = {
            "item": self._rows_of(self._items, [one for asked in requests for one in asked["candidates"]], "item"),
            "user": np.repeat([self._user(asked.get("user")) for asked in requests], count),
            "time": np.repeat([_moments([asked.get("time")], 1)[0] for asked in requests], count),
            "history_start": np.repeat(start, count),
            "history_end": np.repeat(end, count),
        }
        n, dataset = len(columns["item"]), self._dataset
        columns["label"] = np.zeros(n, np.uint8)
        columns |= {name: np.zeros(n, np.uint8) for name in dataset.interactions if name.startswith("label_")}
        columns |= {f"amount_{name}": np.zeros(n, np.float32) for name in dataset.amounts}
        for field in dataset.fields.context:
            columns[f"context_{field.name}"] = np.concatenate(
                [self._context(field.name, asked, UNKNOWN, np.int32) for asked in requests]
            )
        for number in dataset.numbers.context:
            columns[value_column(number.name)] = np.concatenate(
                [self._context(number.name, asked, np.nan, np.float32) for asked in requests]
            )
        joined = {name: np.concatenate([one[name] for one in events]) for name in events[0]}
        return Rows(dataset, columns, joined)

    def _rows_of(self, index: id_index.IdIndex, ids: Sequence[Any], kind: str) -> np.ndarray:
        """[n] i64 rows of ids; of one that is not known the row after the last."""
        rows = index.find([math.inf if one is None else one for one in ids])  # which JSON has no number for
        there = (rows >= 0) & (rows < self._known.get(kind, len(index.words)))
        return np.where(there, rows, getattr(self._dataset, f"num_{kind}s"))

    def _user(self, user: Any) -> int:
        if canonical(user) is None:
            return self._dataset.num_users
        return int(self._rows_of(self._users, [user], "user")[0])

    def _context(self, name: str, asked: Mapping[str, Any], missing: Any, dtype: Any) -> np.ndarray:
        """[b] ids or numbers of a field of the context."""
        count, given = len(asked["candidates"]), asked.get("context", {})
        if name not in given:
            return np.full(count, missing, dtype)
        several = isinstance(given[name], list)
        found = self._found("context", name, given[name] if several else [given[name]])
        return np.asarray(found if several else np.repeat(found, count), dtype)

    def _found(self, group: str, name: str, values: Sequence[Any]) -> np.ndarray:
        """Ids or numbers of values."""
        if name in self._numbers[group]:
            return self._numbers[group][name].values(values)[0]
        ids = self._values[group][name].ids(values)[0]
        known = self._known.get(f"{group}_{name}")
        return ids if known is None else np.where(ids < known + FIRST_KNOWN, ids, UNKNOWN)

    def _events(self, asked: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The columns of a request's events, those of items that are not known left out."""
        dataset, history = self._dataset, asked.get("history", [])
        item = self._rows_of(self._items, history, "item") if history else np.zeros(0, np.int64)
        kept, given = item < dataset.num_items, asked.get("history_fields", {})
        found: dict[str, Any] = {
            "item": item[kept].astype(np.int32),
            "time": _moments(asked.get("history_times"), len(history))[kept],
        }
        for field in dataset.stored_event_fields:
            ids = np.full(len(history), PADDING)
            if field.name in given and history:
                ids = self._found("event", field.name, given[field.name])
            found[f"field_{field.name}"] = ids[kept].astype(np.int32)
        for number in dataset.numbers.event:
            values = np.full(len(history), np.nan, np.float32)
            if number.name in given and history:
                values = self._found("event", number.name, given[number.name])
            found[number.column] = values[kept]
        return found
