"""Planted data as the rows that rivals read, see rows.py; there are no raw files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.speedrun.rows import HISTORY, LIST, write
from em3_jax.core.fields import PADDING, Field
from em3_jax.data.format import Dataset, open_dataset

NAMES = {"user": "user_id", "item": "item_id"}


def _texts(table: pa.Table, fields: tuple[Field, ...], first: str) -> list[dict[str, str]]:
    """Of each user or item the columns of its fields."""
    names = [first, *(field.name for field in fields[1:])]
    columns = [table.column("id" if name == first else name).to_pylist() for name in names]
    out = []
    for values in zip(*columns, strict=True):
        lists = [value if isinstance(value, list) else [value] for value in values]
        row = {name: LIST.join(str(v) for v in many if v != PADDING) for name, many in zip(names, lists, strict=True)}
        out.append(row | {first: str(values[0])})
    return out


def _rows(dataset: Dataset, rows: range, length: int) -> Iterator[dict[str, str]]:
    users = _texts(dataset.user_table, dataset.fields.user, NAMES["user"])
    items = _texts(dataset.item_table, dataset.fields.item, NAMES["item"])
    columns, event = dataset.interactions, np.asarray(dataset.events["item"])
    for row in rows:
        start, end = int(columns["history_start"][row]), int(columns["history_end"][row])
        past = event[max(start, end - length) : end]
        context = {field.name: str(columns[f"context_{field.name}"][row]) for field in dataset.fields.context}
        history = LIST.join(items[item][NAMES["item"]] for item in past)
        click = {"history": history, "click": str(int(columns["label"][row]))}
        yield users[columns["user"][row]] | items[columns["item"][row]] | context | click


def write_rows(root: Path, out: Path, length: int = HISTORY) -> None:
    """train.csv, valid.csv and rows.json in `out`, of the dataset in `root`."""
    dataset = open_dataset(root)
    fields = dataset.fields
    groups = [("user", fields.user), ("item", fields.item), ("context", fields.context)]
    named = [(NAMES.get(f.name, f.name), f, kind) for kind, group in groups for f in group]
    columns = {
        "single": [name for name, field, _ in named if field.length == 1],
        "lists": {name: field.length for name, field, _ in named if field.length > 1},
        "item": NAMES["item"],
        "of_item": [name for name, _, kind in named if kind == "item" and name != NAMES["item"]],
        "history": {NAMES["item"]: "history"},
        "length": length,
        "label": "click",
    }
    parts = ((part, dataset.split_rows(part)) for part in ("train", "valid"))
    write(out, columns, ((part, _rows(dataset, rows, length)) for part, rows in parts))
