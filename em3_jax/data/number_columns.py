"""Numbers of a dataset that a run reads as values: which these are, and their columns.

Beside the ids of a number's ranges a dataset has the numbers themselves, `number_<name>`: a column of the
interactions (of the context), of the events, of users.parquet or of items.parquet.

Letters: n rows, m numbers of a group.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError, nearest
from em3_jax.core.numbers import RANGES, Fit, Number, Numbers, value_column
from em3_jax.data.format import Dataset


def with_numbers(dataset: Dataset, kinds: Mapping[str, str], others: str) -> Dataset:
    """The dataset as a run reads it: `numbers` has those read as values, which are no fields of ranges any more.

    Args:
      dataset: as it was opened.
      kinds: config.model.numbers, the kind of the numbers of that name.
      others: config.model.all_numbers, the kind of all others.

    Raises:
      UserError: a name is no number of the dataset, or its values were not kept.
    """
    there: Mapping[str, Mapping[str, Any]] = dataset.meta.get("numbers", {})
    known = {name for of_group in there.values() for name in of_group}
    for name in kinds:
        if name not in known:
            hint = nearest(name, known) if known else "it has none; prepare it with --item-numbers, --context-numbers"
            raise UserError(f"config.model.numbers.{name}: no such number in {dataset.root}; {hint}")
    if others != RANGES and not known:
        raise UserError(f"config.model.all_numbers={others}: {dataset.root} has no numbers; leave it out")
    found: dict[str, tuple[Number, ...]] = {}
    for group, of_group in there.items():
        chosen = {name: kinds.get(name, others) for name in of_group}
        values = tuple(_number(dataset, group, name, kind) for name, kind in chosen.items() if kind != RANGES)
        found |= {group: values} if values else {}
    if not found:
        return dataset
    names = {group: {number.name for number in values} for group, values in found.items()}
    fields = {
        group: tuple(field for field in specs if field.name not in names.get(group, ()))
        for group, specs in dataset.fields.groups()
    }
    return dataclasses.replace(dataset, fields=dataclasses.replace(dataset.fields, **fields), numbers=Numbers(**found))


def _number(dataset: Dataset, group: str, name: str, kind: str) -> Number:
    facts = dataset.meta["numbers"][group][name]
    fit, column = Fit.from_json(facts), value_column(name)
    columns: Mapping[str, Any] = {
        "user": dataset.user_table.column_names, "item": dataset.item_table.column_names,
        "context": dataset.interactions, "event": dataset.events,
    }  # fmt: skip
    if fit is None or column not in columns[group]:
        raise UserError(
            f"config.model.numbers.{name}={kind}: {dataset.root} has its ranges alone, as datasets had that were made "
            "before; prepare it again, without --numbers-like of such a one"
        )
    return Number(name, kind, fit, tuple(facts["edges"]), bool(facts["missing"]))


def of_table(table: pa.Table, numbers: tuple[Number, ...]) -> np.ndarray:
    """[rows, m] f32 the numbers of all users or items."""
    columns = [table.column(number.column).to_numpy() for number in numbers]
    return np.stack(columns, axis=1).astype(np.float32) if columns else np.zeros((table.num_rows, 0), np.float32)


def of_columns(columns: Mapping[str, np.ndarray], numbers: tuple[Number, ...], places: np.ndarray) -> np.ndarray:
    """[*, m] f32 the numbers at `places` [*] of the interactions or of the events."""
    return np.stack([np.take(columns[number.column], places) for number in numbers], axis=-1)
