"""A dataset that rows are appended to, at the cost of these rows, however long it is.

    <root>/appended.json              what is committed: how many rows, events, users, items and values; where in the source
                                      they end; replaced as a whole, last
    <root>/interactions, events       columns as in `data.format`, in the order of arrival, longer than what is committed
    <root>/rows/<event field>.npy     the value that each row has, whether it is an event or not
    <root>/blocks/<...>.npy           where each user's events are, see `event_blocks`
    <root>/words/<field>.jsonl        original ids and values, a line each, in the order of their numbers
    <root>/undo.npz                   the blocks that the append under way changes, as they were
    <root>/rejected.jsonl             rows that were left out, and why

Users, items and field values are numbered in the order in which rows show them first, and keep their
numbers. A history is a range of events, as in every dataset; an earlier row's stays as it was when the
row arrived.

A row is late when its time is before that of a row that arrived earlier. It is kept. Its own history is
what its user did before its time; rows that arrive after it find it at its place in time, in a block
written anew; rows that arrived before it do not.

Killed at any moment, a store is what its last commit says: what is beyond is written over, changed blocks are put back.
"""

import dataclasses
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from em3_jax.core import strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN, Field, Fields
from em3_jax.data import times
from em3_jax.data.append_entities import Entities
from em3_jax.data.arrivals import Arrivals, NoColumnError, Options, Rows, Wrong
from em3_jax.data.event_blocks import EventBlocks
from em3_jax.data.format import (
    EVENT_DTYPES,
    FORMAT_VERSION,
    INTERACTION_DTYPES,
    OPTIONAL_EVENT_DTYPES,
    STORE,
    Dataset,
    FeatureSet,
)
from em3_jax.data.growing import Column, Words
from em3_jax.data.sources.arrived import Arrived, Source

SKIP = "skip"
_FRESH: dict[str, Any] = {
    "format": 1, "rows": 0, "events": 0, "late": 0, "skipped": 0, "newest": None, "position": {}, "known": {}, "words": {},
    "rejected": 0, "commit": 0,
}  # fmt: skip


class Store:
    """The dataset in a folder, which this process alone appends to.

    Args:
      root: the folder; made where it is not there.
      how: what the rows are read by.
      on_bad_row: "stop" or "skip".

    Raises:
      UserError: the folder holds something else, or was made by other options.
    """

    def __init__(self, root: Path, how: Options, on_bad_row: str):
        self.root, self.how, self._skips = root, how, on_bad_row == SKIP
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: is a file; name a folder that is not there yet with config.data.root")
        if root.exists() and any(root.iterdir()) and not (root / STORE).exists() and (root / "dataset.json").exists():
            raise UserError(
                f"{root}: is a dataset that was prepared, which rows are not appended to; name a folder that is not there yet"
            )
        root.mkdir(parents=True, exist_ok=True)
        self._state = dict(_FRESH) | {"options": _plain(how)}
        self.hash = hashlib.sha256(json.dumps(self._state["options"], sort_keys=True).encode()).hexdigest()
        if (root / STORE).exists():
            self._state |= _read(root / STORE)
            if self._state["options"] != _plain(how):
                raise UserError(
                    f"{root}: was made by other options of the mapping; restore them, or name another folder"
                )
        self._arrivals = Arrivals(how, self._state["known"])
        dtypes = INTERACTION_DTYPES | {f"context_{name}": np.int32 for name in how.context.values()}
        dtypes |= {f"label_{name}": np.uint8 for name in how.labels} | {
            f"amount_{name}": np.float32 for name in how.amounts
        }
        dtypes |= {"weight": np.float32} if "weight" in how.roles else {}
        self._columns = {name: Column(root / "interactions" / f"{name}.npy", dtype) for name, dtype in dtypes.items()}
        # What events of all rows would have: how many values there are is then told by the rows, of whichever are events.
        self._of_rows = {name: Column(root / "rows" / f"{name}.npy", np.int32) for name in how.event.values()}
        dtypes = EVENT_DTYPES | OPTIONAL_EVENT_DTYPES | {f"field_{name}": np.int32 for name in how.event.values()}
        self._events = EventBlocks(root, dtypes, self._state["events"], self._state["commit"])
        fields = {"user": how.users.fields, "item": how.items.fields, "context": how.context, "event": how.event}
        names = ["user", "item", *(f"{group}_{name}" for group, of in fields.items() for name in of.values())]
        self._words: dict[str, Words] = {
            name: Words(root / "words" / f"{name}.jsonl", self._state["words"].get(name, 0)) for name in names
        }
        self._told = {"user": how.users, "item": how.items}
        self._entities = {kind: Entities(root, kind, told, self._words) for kind, told in self._told.items()}

    @property
    def rows(self) -> int:
        """Rows that are committed."""
        return self._state["rows"]

    @property
    def late(self) -> int:
        """Of these, rows that came after one of a later time."""
        return self._state["late"]

    @property
    def skipped(self) -> int:
        """Rows that were left out."""
        return self._state["skipped"]

    @property
    def newest(self) -> int | None:
        """The latest time of a row; None before the first."""
        return self._state["newest"]

    @property
    def position(self) -> dict[str, Any]:
        """Where in the source the committed rows end."""
        return self._state["position"]

    @property
    def unit(self) -> str:
        """Of the times, see `data.times`."""
        return self._arrivals.known["unit"] or times.ORDER

    def words(self, name: str) -> Iterator[str]:
        """The original ids or values in the order of their numbers: of "user", "item", "context_<field>", ..."""
        return iter(self._words[name])

    def words_between(self, name: str, first: int, end: int) -> list[str]:
        """The original ids or values of numbers from `first` up to `end`, at their own cost and that of later ones."""
        return self._words[name].after(first)[: end - first]

    def event_values(self, name: str) -> np.ndarray:
        """[rows] i32 ids of an event field, of all rows."""
        return self._of_rows[name].first(self.rows)

    def __getitem__(self, name: str) -> np.ndarray:
        """[rows] a column of the interactions."""
        return self._columns[name].first(self.rows)

    def take(self, source: Source) -> bool:
        """Appends what a source has beyond the position, some of it if it is much, and commits; returns whether it has any.

        Raises:
          UserError: a row or the columns are wrong, and such are not to be skipped; nothing was appended.
        """
        arrived = source.poll(self.position)
        if arrived is not None:
            self._refuse(arrived.bad)
            self._add(arrived)
        return arrived is not None

    def _add(self, arrived: Arrived) -> None:
        """Appends rows that have arrived and commits them."""
        table, place = arrived.table, arrived.place
        known = json.loads(json.dumps(self._arrivals.known))
        try:
            rows, wrong = self._arrivals.read(table, arrived.where)
        except UserError as error:
            self._arrivals.known = known
            if isinstance(error, NoColumnError):
                raise
            if not self._skips:
                raise UserError(f"{error}; config.stream.on_bad_row={SKIP} leaves such rows out") from None
            rows, wrong = None, [Wrong(row, str(error)) for row in range(table.num_rows)]
        if rows is not None:
            rows, wrong = self._named(rows, wrong)
        if wrong and not self._skips:
            more = f" ({len(wrong):,} such rows)" if len(wrong) > 1 else ""
            raise UserError(
                f"{place(wrong[0].row)}: {wrong[0].why}{more}; mend it, or leave such rows out with "
                f"config.stream.on_bad_row={SKIP}"
            )
        self._reject(table, wrong, place)
        if rows is not None:
            self._append(rows)
        self._commit(arrived.position)

    def _named(self, rows: Rows, wrong: list[Wrong]) -> tuple[Rows, list[Wrong]]:
        """The same, where rows whose user or item is in no line of its file are wrong."""
        bad: dict[int, str] = {}
        for kind, entities in self._entities.items():
            ids = getattr(rows, kind)
            for k in np.flatnonzero(entities.absent(ids)):
                bad.setdefault(int(k), f"its {kind} '{ids[int(k)]}' is in no line of {self._told[kind].file}")
        if not bad:
            return rows, wrong
        found = [Wrong(int(rows.row[k]), why) for k, why in bad.items()]
        return rows.take(np.setdiff1d(np.arange(len(rows.row)), [*bad])), sorted([*wrong, *found])

    def _refuse(self, lines: list[tuple[str, str, str]]) -> None:
        """Leaves lines out that are no rows, or refuses them.

        Args:
          lines: of each its place, what is wrong, and its text.
        """
        if lines and not self._skips:
            raise UserError(
                f"{lines[0][0]}: {lines[0][1]}; mend it, or leave such rows out with config.stream.on_bad_row={SKIP}"
            )
        self._note([{"at": at, "why": why, "row": text} for at, why, text in lines])

    def _reject(self, table: pa.Table, wrong: list[Wrong], place: Callable[[int], str]) -> None:
        rows = table.take(pa.array([one.row for one in wrong], pa.int64())).to_pylist() if wrong else []
        found = zip(wrong, rows, strict=True)
        self._note([{"at": place(one.row), "why": one.why, "row": row} for one, row in found])

    def _note(self, records: list[dict]) -> None:
        """Writes rows that are left out; they count with the next commit."""
        if not records:
            return
        with open(self.root / "rejected.jsonl", "ab") as file:
            file.truncate(self._state["rejected"])
            file.write("".join(json.dumps(record, default=str) + "\n" for record in records).encode())
            self._state["rejected"] = file.tell()
        self._state["skipped"] += len(records)

    def _append(self, rows: Rows) -> None:
        count, first = len(rows.time), self.rows
        if not count:
            return
        user, item = (self._ids_of(kind, getattr(rows, kind)) for kind in ("user", "item"))
        values = {"user": user, "item": item, "label": rows.label, "time": rows.time, **rows.columns}
        values["split"] = np.zeros(count, np.uint8)
        for name, texts in rows.context.items():
            values[f"context_{name}"] = self._ids(f"context_{name}", texts)
        is_event = {"clicks": rows.label == 1, "all": np.ones(count, bool), "none": np.zeros(count, bool)}[
            self.how.events
        ]
        of_event = {"item": item, "time": rows.time}
        of_event |= {f"field_{name}": self._ids(f"event_{name}", texts) for name, texts in rows.event.items()}
        values["history_start"], values["history_end"] = self._events.add(
            user, rows.time, is_event, of_event, self._state["commit"]
        )
        for name, array in values.items():
            self._columns[name].write(first, array)
        for name, column in self._of_rows.items():
            column.write(first, of_event[f"field_{name}"])
        newest = self.newest if self.newest is not None else int(rows.time[0])
        before = np.maximum.accumulate(np.concatenate([[newest], rows.time]))
        self._state |= {
            "rows": first + count, "newest": int(before[-1]),
            "late": self.late + int((rows.time < before[:-1]).sum()),
        }  # fmt: skip

    def _ids_of(self, kind: str, texts: pa.DictionaryArray) -> np.ndarray:
        """[n] i32 numbers of users or items; of those that are new, what is known is kept."""
        words = self._words[kind]
        before = len(words)
        number = words.numbers(texts)
        self._entities[kind].add(before, words.after(before))
        return number.astype(np.int32)

    def _ids(self, name: str, texts: pa.DictionaryArray) -> np.ndarray:
        number = self._words[name].numbers(texts)
        return np.where(number < 0, UNKNOWN, number + FIRST_KNOWN).astype(np.int32)

    def _commit(self, position: Mapping[str, Any]) -> None:
        for words in self._words.values():
            words.flush()
        self._state |= {
            "position": dict(position), "known": self._arrivals.known, "commit": self._state["commit"] + 1,
            "events": self._events.end, "words": {name: words.bytes for name, words in self._words.items()},
        }  # fmt: skip
        temporary = self.root / f"{STORE}.tmp"
        temporary.write_text(strict_json.dumps(self._state), encoding="utf-8")
        os.replace(temporary, self.root / STORE)

    def close(self) -> None:
        for words in self._words.values():
            words.close()

    def sizes(self, rows: int, known: Mapping[str, int] | None = None, after: int = 0) -> dict[str, int]:
        """Field -> how many users, items, values the first `rows` show: "user", "item", "context_<name>", "event_<name>".

        Args:
          known: of the first `after` rows, so that only those between are looked through.
        """
        result, part = dict(known or {}), slice(after, rows)
        columns = {"user": (self._columns["user"], 0), "item": (self._columns["item"], 0)}
        of_context = self.how.context.values()
        columns |= {f"context_{name}": (self._columns[f"context_{name}"], FIRST_KNOWN) for name in of_context}
        columns |= {f"event_{name}": (column, FIRST_KNOWN) for name, column in self._of_rows.items()}
        for name, (column, lowest) in columns.items():
            number = int(column.first(rows)[part].max(initial=-1)) + 1 - lowest
            result[name] = max(result.get(name, 0), number)
        for kind, told in self._told.items():  # of those that are new
            new = slice((known or {}).get(kind, 0), result[kind])
            for name in told.fields.values():
                number = int(self._entities[kind].ids(name).first(result[kind])[new].max(initial=0)) + 1 - FIRST_KNOWN
                result[f"{kind}_{name}"] = max(result.get(f"{kind}_{name}", 0), number)
        return result

    def view(self, rows: int, sizes: Mapping[str, int]) -> "Appended":
        """The first rows as a dataset, all of them for training, with places for as many users, items and values as `sizes` says.

        Its counts are 0, see `shown`.
        """
        names = {kind: [*told.fields.values()] for kind, told in self._told.items()}
        names |= {"context": [*self.how.context.values()], "event": [*self.how.event.values()]}
        of = {group: [Field(n, sizes[f"{group}_{n}"] + FIRST_KNOWN) for n in found] for group, found in names.items()}
        for kind in self._told:
            of[kind].insert(0, Field(kind, sizes[kind] + FIRST_KNOWN))
        fields = Fields(**{group: tuple(found) for group, found in of.items()})
        vocabularies = {
            group: {n: list(itertools.islice(self._words[f"{group}_{n}"], sizes[f"{group}_{n}"])) for n in found}
            for group, found in names.items()
        }
        how = self.how
        meta = {
            "format_version": FORMAT_VERSION, "name": self.root.name, "data_hash": self.hash, "item_hash": self.hash,
            "time_unit": self.unit, "vocabularies": vocabularies, "text_columns": [], "history_reach": 0,
            "splits": {"train": [0, rows, True], "valid": [0, 0, True], "test": [0, 0, True]},
            "labels": dict.fromkeys(how.labels, ""), "amounts": dict(how.amounts), "label_rule": how.rule,
        }  # fmt: skip
        counts = {name: np.zeros(sizes[name], np.int64) for name in ("user", "item")}
        counts["item_history"] = np.zeros(sizes["item"], np.int64)
        for group in ("context", "event"):
            counts |= {f"{group}_{f.name}": np.zeros(f.size, np.int64) for f in getattr(fields, group)}
        interactions = {name: column.first(rows) for name, column in self._columns.items()}
        users, items = (self._table(kind, fields, sizes[kind]) for kind in self._told)
        sets = self._entities["item"].sets(sizes["item"], self.hash)
        events = self._events.columns()
        return Appended(self.root, meta, fields, interactions, events, counts, users, items, sets=sets, store=self)

    def _table(self, kind: str, fields: Fields, places: int) -> pa.Table:
        """Of so many users or items, without their ids."""
        columns: dict[str, Any] = {"id": pa.nulls(places, pa.string())}
        for field in getattr(fields, kind)[1:]:
            ids = self._entities[kind].ids(field.name).first(places)
            # Those that the rows of a view do not name may have values that it does not know.
            columns[field.name] = pa.array(np.where(ids < field.size, ids, UNKNOWN).astype(np.int32))
        return pa.table(columns)


@dataclasses.dataclass(frozen=True)
class Appended(Dataset):
    """Rows of a store as a dataset, see `Store.view`.

    Attributes:
      sets: the feature sets of its items.
      store: whose rows they are.
    """

    sets: Mapping[str, FeatureSet] = dataclasses.field(default_factory=dict)
    store: Store = dataclasses.field(kw_only=True)

    @property
    def with_ids(self) -> Dataset:
        """The same with how many rows it has, and with the users and items that there are, under their original ids."""
        _, rows, _ = self.meta["splits"]["train"]
        sizes, tables = self.store.sizes(rows), {}
        for kind, table in (("user", self.user_table), ("item", self.item_table)):
            ids = pa.array(itertools.islice(self.store.words(kind), sizes[kind]), pa.string())
            tables[f"{kind}_table"] = table.slice(0, sizes[kind]).set_column(0, "id", ids)
        return dataclasses.replace(self, meta=self.meta | {"counts": {"interactions": rows}}, **tables)

    def features(self, name: str) -> FeatureSet:
        if name not in self.sets:
            there = ", ".join(self.sets) or "none"
            raise UserError(f"{self.root}: no feature set '{name}'; the mapping names as `features`: {there}")
        return self.sets[name]


def _plain(how: Options) -> dict[str, Any]:
    """The options as JSON values that can be compared."""

    def rule(of: tuple) -> list:
        return [of[0], of[1] and of[1].__name__, of[2]]

    plain = how._asdict() | {"label": rule(how.label), "labels": {name: rule(one) for name, one in how.labels.items()}}
    return json.loads(json.dumps(plain | {"times": list(how.times)}))


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(
            f"{path}: not valid JSON ({error}); delete the folder, it is made again from the source"
        ) from None
