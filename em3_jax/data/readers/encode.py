"""From values to ids: categorical fields, tables of users and items, image paths."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.fields import FIRST_KNOWN, UNKNOWN, Field
from em3_jax.types import UserError

Encoded = tuple[np.ndarray, list]
"""Ids [n] or [n, L] i32 (0 = padding, 1 = unknown) and the values of the ids 2, 3, ... in order."""


def words_and_codes(column: pa.Array | pa.ChunkedArray) -> tuple[pa.Array, np.ndarray]:
    """(distinct values, [n] place of each value among them; -1 for null)."""
    array = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
    return array.dictionary, array.indices.fill_null(-1).to_numpy(zero_copy_only=False)


def encode(column: pa.Array | pa.ChunkedArray) -> Encoded:
    """Ids [n] of a column's values, in the order of the values; null and the empty string are unknown."""
    words, codes = words_and_codes(column)
    order = pc.sort_indices(words)
    values = words.take(order).to_pylist()
    rank = np.empty(len(words) + 1, np.int32)
    rank[order.to_numpy()] = np.arange(FIRST_KNOWN, FIRST_KNOWN + len(words))
    rank[-1] = UNKNOWN  # code -1
    if values and values[0] == "":
        rank, values = np.maximum(rank - 1, UNKNOWN), values[1:]
    return rank[codes], values


def encode_lists(column: pa.Array | pa.ChunkedArray, limit: int) -> tuple[Encoded, int]:
    """((ids [n, L], values), number of lists cut): a column of lists, padded at the end to the longest of at most `limit`."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    length = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    ids, values = encode(column.flatten())
    row = np.repeat(np.arange(len(length)), length)
    position = np.arange(len(ids)) - np.repeat(np.cumsum(length) - length, length)
    width = int(np.clip(length.max(initial=0), 1, limit))
    result = np.zeros((len(length), width), np.int32)
    inside = position < width
    result[row[inside], position[inside]] = ids[inside]
    return (result, values), int((length > width).sum())


def rows_of(column: pa.Array | pa.ChunkedArray, ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """[n] i32: the row in `ids` of each value of a column of the same type; -1 for one that is not there."""
    words, codes = words_and_codes(column)
    rows = pc.index_in(words, value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.append(rows, -1).astype(np.int32)[codes]


def field_name(column: str) -> str:
    """A column's name as a field's: letters, digits and underscores, since it becomes part of file names."""
    return re.sub(r"\W", "_", column)


def entity_table(
    kind: str, ids: pa.Array, encoded: dict[str, Encoded], extra: dict[str, pa.Array] | None = None
) -> tuple[pa.Table, tuple[Field, ...], dict[str, list]]:
    """(table, fields, vocabularies) of the users or items, as `DatasetWriter.finish` takes them.

    Args:
      kind: "user" or "item", the name of the id's own field.
      ids: original ids, [n].
      encoded: field name -> ids and values.
      extra: further columns: texts, image paths.
    """
    fields, columns = [Field(kind, len(ids) + FIRST_KNOWN)], {"id": ids}
    for name, (values_ids, values) in encoded.items():
        length = values_ids.shape[1] if values_ids.ndim > 1 else 1
        flat = pa.array(values_ids.ravel(), pa.int32())
        fields.append(Field(name, len(values) + FIRST_KNOWN, length))
        columns[name] = flat if length == 1 else pa.FixedSizeListArray.from_arrays(flat, length)
    for name, column in (extra or {}).items():
        columns[name] = column
    expected = 1 + len(encoded) + len(extra or {})
    if kind in encoded or len(columns) != expected:
        raise UserError(f"{kind}s: a name is used twice, or is '{kind}' or 'id'; rename a column")
    return pa.table(columns), tuple(fields), {name: values for name, (_, values) in encoded.items()}


def image_paths(root: Path, paths: Iterable[str | list[str] | None]) -> tuple[pa.Array, list[str]]:
    """([I] the paths that are there, null where none is; notes about those not there).

    Args:
      root: what the paths are relative to.
      paths: of each item the path of an image or of a folder of frames, or a list of such paths; with any list among
        them the result is a column of lists.
    """
    paths = list(paths)
    lists = [[path for path in (value if isinstance(value, list) else [value]) if path] for value in paths]
    there = {path: os.path.exists(root / path) for row in lists for path in row}
    gone = [path for path, ok in there.items() if not ok]
    notes = []
    if gone:
        names = ", ".join(gone[:5]) + (", ..." if len(gone) > 5 else "")
        notes.append(f"{len(gone)} images are not in {root} and count as missing: {names}")
    found = [[path for path in row if there[path]] or None for row in lists]
    if any(isinstance(value, list) for value in paths):
        return pa.array(found, pa.list_(pa.string())), notes
    return pa.array([row and row[0] for row in found], pa.string()), notes
