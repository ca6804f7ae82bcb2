"""From values to ids: categorical fields, tables of users and items, image paths."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN, Field
from em3_jax.data import canonical

_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

Encoded = tuple[np.ndarray, list]
"""Ids [n] or [n, L] i32 (0 = padding, 1 = unknown) and the texts of the ids 2, 3, ... in order."""


def encode(column: canonical.Column) -> Encoded:
    """Ids [n] of a column's values in canonical form, in the order of the values (numbers as numbers).

    What has no value (null, NaN, the empty text) is unknown.
    """
    words, codes = canonical.words_and_codes(column)
    if not _is_ordered(words.type):
        words = canonical.forms_of(words)
    order = pc.sort_indices(words)
    texts = canonical.texts(words.take(order)).combine_chunks()  # two numbers may share a text
    rank = np.full(len(words) + 1, UNKNOWN, np.int32)  # the last one's is that of code -1
    places = texts.indices.fill_null(UNKNOWN - FIRST_KNOWN).to_numpy(zero_copy_only=False)
    rank[order.to_numpy()] = places + FIRST_KNOWN
    return rank[codes], texts.dictionary.to_pylist()


def _is_ordered(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def encode_lists(column: canonical.Column, limit: int) -> tuple[Encoded, int]:
    """((ids [n, L], values), number of lists cut): a column of lists, padded at the end.

    Lists have the length of the longest of at most `limit`; what has no value is left out.
    """
    column = canonical.lists(column)
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
    """[n] i32: the row in `ids` of each value of a column of the same type; -1 for one not there."""
    words, codes = canonical.words_and_codes(column)
    rows = pc.index_in(words, value_set=ids).fill_null(-1).to_numpy(zero_copy_only=False)
    return np.append(rows, -1).astype(np.int32)[codes]


def field_names(columns: list[str]) -> tuple[dict[str, str], list[str]]:
    """(column -> its name as a field's, notes): letters, digits and underscores, as in file names.

    Columns that differ in punctuation alone have it spelt out: "ad slot" and "ad-slot" are the fields
    ad_x20_slot and ad_x2d_slot, whatever their order.
    """
    names = {column: re.sub(r"\W", "_", column) for column in columns}
    taken = list(names.values())
    alike = [column for column, name in names.items() if taken.count(name) > 1]
    for column in alike:
        names[column] = re.sub(r"\W", lambda sign: f"_x{ord(sign[0]):x}_", column)
    if len(set(names.values())) < len(names):
        raise UserError(f"columns {' and '.join(map(repr, alike))} have one name as fields; rename one")
    return names, [f"column '{column}' is the field {names[column]}" for column in alike]


def known_of(ids: np.ndarray) -> int:
    """How many of the ids of a field stand for a value."""
    return int(np.count_nonzero(ids >= FIRST_KNOWN))


def many_numbers(what: str, known: int, values: list[str]) -> list[str]:
    """A note where nearly every value of a field is a number of its own, so that it says nothing.

    Args:
      what: the column, for the note.
      known: how many values are there.
      values: the different ones.
    """
    if len(values) < 20 or 2 * len(values) < known or not all(map(_NUMBER.fullmatch, values)):
        return []
    return [
        f"{what} holds {len(values):,} different numbers in {known:,} values; each is a category of its own and "
        "hardly any is seen twice: name it as numbers (--item-numbers, --user-numbers, ...), which are cut into ranges"
    ]


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
