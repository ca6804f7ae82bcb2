"""A dataset of a few hundred rows that has everything a dataset may have, and the plain log behind it.

Equal times, users without events, rows and items that training never shows, padding and unknown ids in the data, fields of
several values, two event fields, splits that are no ranges, items that miss one modality or both.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.fields import Field, Fields
from em3_jax.core.numbers import Fit, Number, Numbers
from em3_jax.data.format import NOT_PART, Dataset, hash_ids
from em3_jax.data.histories import history_ranges, sort_events
from em3_jax.data.writer import DatasetWriter

USERS, ITEMS, ROWS, EVENTS = 23, 37, 311, 600
FIRST_NEW_USER, FIRST_COLD_ITEM, USER_WITHOUT_EVENTS = 19, 31, 0
HISTORY_ONLY_ITEM = FIRST_COLD_ITEM - 1  # training shows it in histories, but never as a candidate
TOKENS = {"image": (11, 8), "text": (13, 6)}  # modality -> (N, E)
FIELDS = Fields(
    user=(Field("user", USERS + 2), Field("age", 5), Field("languages", 6, 2)),
    item=(Field("item", ITEMS + 2), Field("category", 6), Field("tags", 9, 3)),
    context=(Field("slot", 5), Field("hour", 7)),
    event=(Field("rating", 7), Field("kind", 4)),
)


class Tiny(NamedTuple):
    """The dataset and what went into it.

    Attributes:
      dataset: the opened dataset.
      rows: interaction columns, each [ROWS].
      events: event columns, each [EVENTS], in any order.
      users, items: field name -> ids, one entry (or list) per user or item.
    """

    dataset: Dataset
    rows: dict[str, np.ndarray]
    events: dict[str, np.ndarray]
    users: dict[str, np.ndarray]
    items: dict[str, np.ndarray]


def write_tiny(root: Path, num_events: int = EVENTS) -> Tiny:
    random = np.random.default_rng(7)
    rows, events = _log(random, num_events)
    users = {
        "user": np.arange(USERS) + 2,
        "age": random.integers(0, 5, USERS),
        "languages": random.integers(0, 6, (USERS, 2)),
    }
    tags = random.integers(0, 8, (ITEMS, 3))
    tags[FIRST_COLD_ITEM:, 0] = 8  # a tag that only cold items have
    items = {"item": np.arange(ITEMS) + 2, "category": random.integers(0, 6, ITEMS), "tags": tags}
    with DatasetWriter(root) as writer:
        order = sort_events(events["user"], events["time"])
        start, end = history_ranges(events["user"][order], events["time"][order], rows["user"], rows["time"])
        writer.columns("interactions", rows | {"history_start": start, "history_end": end})
        writer.columns("events", {name: column[order] for name, column in events.items() if name != "user"})
        item_table = _table(items, FIELDS.item)
        for name, (count, width) in TOKENS.items():
            mask = random.random((ITEMS, count)) < 0.8
            mask[[3, 5 if name == "text" else 6]] = False  # item 3 has no modality at all
            tokens = random.standard_normal((ITEMS, count, width)).astype(np.float16)
            writer.features(name, tokens, mask, {}, hash_ids(item_table.column("id")))
        dataset = writer.finish(
            name="tiny",
            users=_table(users, FIELDS.user),
            items=item_table,
            fields=FIELDS,
            vocabularies={},
            text_columns=[],
            provenance="tests/tiny.py",
            label_rule="coin",
            split_rule="by chance",
            source_hash="",
            time_unit="order",
        )
    return Tiny(dataset, rows, events, users, items)


def with_label(dataset: Dataset) -> Dataset:
    """The dataset with a further label, "buy": its rows are 0, 1 and no part of it, in turns."""
    values = np.array([0, 1, NOT_PART], np.uint8)[np.arange(len(dataset.interactions["label"])) % 3]
    columns = {**dataset.interactions, "label_buy": values}
    return dataclasses.replace(dataset, meta={**dataset.meta, "labels": {"buy": ""}}, interactions=columns)


def with_numbers(dataset: Dataset) -> Dataset:
    """The dataset with a number of users, items, impressions and events, read as a value."""
    number = Number("x", "standardised", Fit.of(np.arange(3.0)), (), False)

    def more(columns: dict) -> dict:
        return columns | {number.column: np.zeros(len(columns["item"]), np.float32)}

    users, items = (
        table.append_column(number.column, pa.array(np.zeros(len(table), np.float32)))
        for table in (dataset.user_table, dataset.item_table)
    )
    return dataclasses.replace(
        dataset, numbers=Numbers(*((number,),) * 4), interactions=more(dataset.interactions),
        events=more(dataset.events), user_table=users, item_table=items,
    )  # fmt: skip


def _log(random: np.random.Generator, num_events: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    split = random.choice(3, ROWS, p=[0.6, 0.2, 0.2])
    train = split == 0
    rows = {
        "user": np.where(train, random.integers(0, FIRST_NEW_USER, ROWS), random.integers(0, USERS, ROWS)),
        "item": np.where(train, random.integers(0, HISTORY_ONLY_ITEM, ROWS), random.integers(0, ITEMS, ROWS)),
        "label": random.integers(0, 2, ROWS),
        "time": np.sort(random.integers(0, 100, ROWS)),  # about three rows share a time
        "split": split,
        "context_slot": np.where(train, random.integers(0, 4, ROWS), random.integers(0, 5, ROWS)),
        "context_hour": random.integers(0, 7, ROWS),
    }
    user = random.integers(USER_WITHOUT_EVENTS + 1, USERS, num_events)
    new = user >= FIRST_NEW_USER
    events = {
        "user": user,
        "item": np.where(new, random.integers(0, ITEMS, num_events), random.integers(0, FIRST_COLD_ITEM, num_events)),
        "time": random.integers(-20, 100, num_events),
        "field_rating": random.integers(0, 7, num_events),
        "field_kind": np.where(new, random.integers(0, 4, num_events), random.integers(0, 3, num_events)),
    }
    return rows, events


def _table(ids: dict[str, np.ndarray], fields: tuple[Field, ...]) -> pa.Table:
    columns = {"id": pa.array(range(len(ids[fields[0].name])), pa.int64())}
    for field in fields[1:]:
        values = pa.array(ids[field.name].astype(np.int32).ravel())
        columns[field.name] = values if field.length == 1 else pa.FixedSizeListArray.from_arrays(values, field.length)
    return pa.table(columns)
