"""Rows of the ID table: those of a dataset's ids, how often training has each, how often it gives way to `unknown`."""

import numpy as np

from em3_jax.core.fields import UNKNOWN, Fields, columns, to_rows
from em3_jax.data.format import Dataset


def row_counts(dataset: Dataset) -> np.ndarray:
    """[table rows] i64: how often training shows each table row; -1 for the padding row and the unknown rows."""
    fields, offsets = dataset.fields, dataset.fields.offsets()
    counts = np.zeros(fields.num_rows, np.int64)
    item_count = dataset.counts["item"] + dataset.counts["item_history"]
    for group, ids, weight in (
        ("user", dataset.user_field_ids, dataset.counts["user"]),
        ("item", dataset.item_field_ids, item_count),
    ):
        for field, column in zip(getattr(fields, group), columns(getattr(fields, group)).values(), strict=True):
            for k in range(column.start, column.stop):
                rows = to_rows(ids[:, k], offsets[group][field.name])
                counts += np.bincount(rows, weights=weight, minlength=fields.num_rows).astype(np.int64)
    for group in ("context", "event"):
        for field in getattr(fields, group):
            first = offsets[group][field.name]
            counts[first : first + field.size - 1] = dataset.counts[f"{group}_{field.name}"][UNKNOWN:]
    counts[0] = -1
    for names in offsets.values():
        counts[list(names.values())] = -1
    return counts


def unknown_rows(fields: Fields) -> np.ndarray:
    """[table rows] i32: the row of the unknown id of the field that owns each row (0 for the padding row)."""
    result = np.zeros(fields.num_rows, np.int32)
    for group, specs in fields.groups():
        for field in specs:
            first = fields.offsets()[group][field.name]
            result[first : first + field.size - 1] = first
    return result


def field_rows(ids: np.ndarray, specs, offsets: dict[str, int]) -> np.ndarray:
    """[*, C] i32 table rows of a group's field ids [*, C]."""
    result = np.empty_like(ids)
    for field, column in zip(specs, columns(specs).values(), strict=True):
        result[:, column] = to_rows(ids[:, column], offsets[field.name])
    return result


def replace_probability(fields: Fields, counts: np.ndarray, alpha: float, floor: dict[str, float]) -> np.ndarray:
    """[table rows] f32: alpha / (alpha + count), at least the field's floor; 0 for padding, unknown and event rows."""
    probability = np.where(counts > 0, alpha / (alpha + np.maximum(counts, 1)), 0.0).astype(np.float32)
    for group, specs in fields.groups():
        for field in specs:
            first = fields.offsets()[group][field.name]
            own = slice(first + 1, first + field.size - 1)
            if group == "event":
                probability[own] = 0.0
            elif field.name in floor:
                probability[own] = np.maximum(probability[own], floor[field.name])
    return probability
