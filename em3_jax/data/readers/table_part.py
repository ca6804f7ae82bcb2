"""The users and the items of the table reader: their ids, fields, texts and images."""

import ast
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.core.fields import Field
from em3_jax.data import canonical
from em3_jax.data.readers.encode import (
    Encoded,
    encode,
    encode_lists,
    entity_table,
    field_names,
    image_paths,
    known_of,
    many_numbers,
)
from em3_jax.data.readers.files import column_names, nearest, not_single, read_verbatim, require_distinct
from em3_jax.data.readers.numbers import read_numbers
from em3_jax.data.readers.parquet import as_text
from em3_jax.data.readers.source import Source

SEPARATORS = "|,;"
_LIST_TEXT = r"^\s*\[.*\]\s*$"


class Part(NamedTuple):
    """The users or the items: `table`, `fields`, `words` as for `DatasetWriter.finish`, and what is worth a note.

    `numbers` are columns that are yet to be cut into ranges: name -> f64, NaN where there is none.
    """

    table: pa.Table
    fields: tuple[Field, ...]
    words: dict[str, list]
    text_columns: list[str]
    notes: list[str]
    numbers: Mapping[str, np.ndarray] = {}


class Multi(NamedTuple):
    """How columns of several values are read: what stands between them in texts, how many are kept."""

    separator: str
    max_values: int


def check_multi(multi: Multi) -> None:
    """Refuses what cannot be."""
    if not multi.separator or set(multi.separator) & set("\r\n"):
        raise UserError("--separator: give the characters between the values of a :multi column, e.g. '|'")
    if multi.max_values < 1:
        raise UserError(f"--max-values {multi.max_values}: must be at least 1")


def part_of_log(kind: str, used: pa.ChunkedArray) -> Part:
    """The users or items that the interactions' column `used` names, in the order in which they come."""
    words, codes = canonical.words_and_codes(used)
    return Part(*entity_table(kind, words.take(pa.array(np.unique(codes))), {}), [], [])


def read_part(
    kind: str,
    source: Source,
    key: str,
    fields: tuple[str, ...],
    multi: Multi,
    text: tuple[str, ...] = (),
    image: str | None = None,
    image_root: Path | None = None,
    numbers: tuple[str, ...] = (),
) -> Part:
    """The users or items of a file.

    Args:
      kind: "user" or "item".
      key: the column of their ids.
      fields: categorical columns, `name:multi` for several values.
      text: columns that are texts.
      image: column of paths of images, maybe with `:multi`, relative to `image_root`.
      numbers: columns of numbers.
    """
    parsed = {name.removesuffix(":multi"): name.endswith(":multi") for name in fields}
    names = [key, *parsed, *text, *([image.removesuffix(":multi")] if image else []), *numbers]
    if key not in (have := column_names(source)):
        raise UserError(
            f"{source}: no column '{key}' for the {kind}s' ids; {nearest(key, have)}; name it with "
            f"--columns {kind}_key=<column>"
        )
    read = read_verbatim(source, names, as_text=set(names))
    if read.num_rows == 0:
        raise UserError(f"{source}: there are no rows; give one for each {kind}")
    if not canonical.is_single(read.column(key).type):
        raise not_single(source, key, read.column(key).type, "ids")
    require_distinct(source, read.column(key))
    ids = canonical.texts(read.column(key)).cast(pa.string()).combine_chunks()
    encoded, notes = _encode_fields(source, read, parsed, multi)
    text_columns = {f"{n}_text" if n in encoded or n in (kind, "id", "image") else n: n for n in text}
    extra = {new: _texts(source, old, read.column(old)) for new, old in text_columns.items()}
    if image:
        assert image_root is not None  # who names images says what their paths are relative to
        extra["image"], gone = _images(source, read, image, multi.separator, image_root)
        notes += gone
    made = Part(*entity_table(kind, ids, encoded, extra), list(text_columns), notes)
    return made._replace(numbers=read_numbers(source, read, numbers, f"--{kind}-numbers"))


def _texts(source: Source, name: str, column: pa.ChunkedArray) -> pa.Array:
    try:
        return as_text(column)
    except ValueError:
        raise not_single(source, name, column.type, "texts") from None


def _encode_fields(
    source: Source, read: pa.Table, fields: dict[str, bool], multi: Multi
) -> tuple[dict[str, Encoded], list[str]]:
    """(field name -> ids and values, notes); `fields` says which columns hold several values."""
    encoded, notes = {}, []
    names, renamed = field_names(list(fields))
    for name, is_multi in fields.items():
        column = column_of(source, read, name, is_multi, multi.separator)
        if is_multi:
            encoded[names[name]], cut = encode_lists(column, multi.max_values)
            if cut:
                notes.append(f"{source.name}: {cut} rows have more than {multi.max_values} {name}; the first are kept")
        else:
            encoded[names[name]] = encode(column)
        ids, values = encoded[names[name]]
        notes += many_numbers(f"{source.name}: column '{name}'", known_of(ids), values)
    return encoded, [*notes, *renamed]


def _images(source: Source, read: pa.Table, image: str, separator: str, root: Path) -> tuple[pa.Array, list[str]]:
    """(column `image` of the items [I], notes), from the column `image`, which may end in `:multi`."""
    name, is_multi = image.removesuffix(":multi"), image.endswith(":multi")
    kind = read.column(name).type
    try:
        if not canonical.is_single(kind.value_type if canonical.is_list(kind) else kind):
            raise pa.ArrowTypeError
        column = column_of(source, read, name, is_multi, separator)
        column = column.cast(pa.list_(pa.string()) if is_multi else pa.string())
    except pa.ArrowException:
        raise UserError(f"{source}: column '{name}' holds {kind}; give paths of images, as text") from None
    images, gone = image_paths(root, column.to_pylist())
    if images.null_count == len(images):
        raise UserError(f"{source}: no image of column '{name}' is in {root}; say where they are with --image-root")
    return images, gone


def column_of(
    source: Source, read: pa.Table, name: str, is_multi: bool, separator: str, option: str = "--separator"
) -> pa.ChunkedArray | pa.Array:
    """The column `name`: of lists where it is one of several values, else of single ones.

    Args:
      separator: between values that are texts.
      option: what sets it, for messages.
    """
    column = read.column(name)
    kind = column.type
    if canonical.is_single(kind):
        return _split(source, name, column, separator, option) if is_multi else column
    if not canonical.is_list(kind):
        raise not_single(source, name, kind, "values" if is_multi else "single values")
    if not canonical.is_single(kind.value_type):
        raise not_single(source, name, kind, "lists of single values")
    if not is_multi:
        raise UserError(f"{source}: column '{name}' holds lists; name it '{name}:multi'")
    return column


def _split(source: Source, name: str, column: pa.ChunkedArray, separator: str, option: str) -> pa.Array:
    """Lists from texts with separators, or that are lists themselves; refuses another separator."""
    words = pc.utf8_trim_whitespace(as_text(column))
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    if pc.all(pc.match_substring_regex(words, _LIST_TEXT)).as_py() and words.null_count < len(words):
        return _written_lists(source, name, words)
    if not pc.any(pc.match_substring(words, separator)).as_py():
        for other in SEPARATORS.replace(separator, ""):
            if pc.any(pc.match_substring(words, other)).as_py():
                raise UserError(
                    f"{source}: column '{name}' has no '{separator}' but '{other}'; pass {option} '{other}'"
                )
    return pc.split_pattern_regex(words, rf"\s*{re.escape(separator)}\s*")


def _written_lists(source: Source, name: str, words: pa.Array) -> pa.Array:
    """Lists that a table program has written out as text, as ['a', 'b'] or ["a", "b"]."""
    lists = []
    for row, word in enumerate(words.to_pylist()):
        try:
            values = None if word is None else _parsed(word)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise UserError(
                f"{source.place(row)}: column '{name}' is '{word[:60]}', a list that neither JSON nor Python "
                "reads; write its values with a separator between them"
            ) from None
        lists.append(values and [canonical.canonical(value) for value in values])
    return pa.array(lists, pa.list_(pa.string()))


def _parsed(word: str) -> list:
    try:
        values = json.loads(word)
    except ValueError:
        values = ast.literal_eval(word)  # of constants only: nothing is run
    if not isinstance(values, list) or any(isinstance(value, list | dict | tuple | set) for value in values):
        raise ValueError
    return values
