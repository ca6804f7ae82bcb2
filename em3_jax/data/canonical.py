"""`values.canonical` of whole Arrow columns: the same text for each value, an operation for all.

Files bring one value in many types: whole numbers, floats, decimals, text, enums, bytes. What is
looked up in a vocabulary or among ids passes through here when it is read from a file.
"""

import itertools
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.values import TRUTHS, WHOLE_TEXT, canonical

TEXTS = pa.dictionary(pa.int32(), pa.string())
Column: TypeAlias = pa.Array | pa.ChunkedArray
_BYTES = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
_LISTS = (
    pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view,
    pa.types.is_large_list_view,
)  # fmt: skip
_VIEWS = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def plain(column: Column) -> Column:
    """A column in a type that Arrow computes with: no extension type, view, run-ends, half floats.

    A struct of one field is that field.
    """
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _map(column, lambda chunk: _uuids(chunk.storage))
    if isinstance(kind, pa.BaseExtensionType):
        return plain(_map(column, lambda chunk: chunk.storage))
    if pa.types.is_run_end_encoded(kind):
        return plain(pc.run_end_decode(column))
    if pa.types.is_struct(kind) and kind.num_fields == 1:
        return plain(_map(column, lambda chunk: chunk.flatten()[0]))
    if kind == pa.float16():
        return _map(column, _halves)
    if pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind):
        return _map(column, _of_list_views)
    if pa.types.is_decimal32(kind) or pa.types.is_decimal64(kind):
        return column.cast(pa.decimal128(kind.precision, kind.scale))
    return column.cast(_VIEWS[kind]) if kind in _VIEWS else column


def _map(column: Column, change: Callable[[pa.Array], pa.Array]) -> Column:
    if isinstance(column, pa.Array):
        return change(column)
    if not column.num_chunks:
        empty = change(pa.array([], column.type))
        return pa.chunked_array([], empty.type)
    return pa.chunked_array([change(chunk) for chunk in column.chunks])


def _uuids(storage: pa.Array) -> pa.Array:
    """The usual text of UUIDs, whatever their 16 bytes would spell."""
    texts = (value and value.hex() for value in storage.to_pylist())
    parts = (0, 8, 12, 16, 20, 32)
    split = (t and "-".join(t[a:b] for a, b in itertools.pairwise(parts)) for t in texts)
    return pa.array(split, pa.string())


def _of_list_views(chunk: pa.Array) -> pa.ListArray:
    """The lists of a view; Arrow's own cast leaves the last offset out (version 26)."""
    size = pc.list_value_length(chunk).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(size)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, pc.list_flatten(chunk), mask=chunk.is_null())


def _halves(chunk: pa.Array) -> pa.Array:
    return pa.array([canonical(value) for value in chunk.to_numpy(zero_copy_only=False)], pa.string())


def words_and_codes(column: Column) -> tuple[pa.Array, np.ndarray]:
    """(distinct values, [n] place of each value among them; -1 for null)."""
    column = plain(column)
    if pa.types.is_null(column.type):
        return pa.nulls(0, pa.string()), np.full(len(column), -1, np.int32)
    if not len(column):
        kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
        return pa.nulls(0, kind), np.zeros(0, np.int32)
    array = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    if isinstance(array, pa.ChunkedArray):
        array = array.unify_dictionaries().combine_chunks()
    words, codes = array.dictionary, array.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    if words.null_count:  # categories of their own, as some writers have it
        codes = np.where(words.is_null().to_numpy(zero_copy_only=False)[codes], -1, codes)
    return words, codes


def is_single(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a single value in each row, so that it has a text."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_single(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return is_single(kind.value_type)
    if pa.types.is_struct(kind) and kind.num_fields == 1:
        return is_single(kind.field(0).type)
    return not (pa.types.is_nested(kind) or pa.types.is_interval(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a column of this type holds a list in each row; a map is none."""
    if isinstance(kind, pa.BaseExtensionType):
        return is_list(kind.storage_type)
    return any(is_kind(kind) for is_kind in _LISTS)


def texts(column: Column) -> pa.ChunkedArray:
    """The canonical texts [n] of a column of single values, as dictionary<int32, string>.

    Words stand in the order in which the values do first; null, NaN and "" are null.
    """
    words, codes = words_and_codes(column)
    forms = forms_of(words).dictionary_encode()
    places = forms.indices.cast(pa.int32()).take(pa.array(codes, mask=codes < 0))
    words = forms.dictionary.cast(pa.string())
    return pa.chunked_array([pa.DictionaryArray.from_arrays(places, words)], TEXTS)


def forms_of(words: Column) -> pa.Array:
    """The canonical text of each value of a column, as strings [n]."""
    words = plain(words)
    words = words.combine_chunks() if isinstance(words, pa.ChunkedArray) else words
    kind = words.type
    if pa.types.is_dictionary(kind):
        return forms_of(words.dictionary).take(words.indices)
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
        return words.cast(pa.string())
    if pa.types.is_floating(kind):
        return _of_floats(words)
    if pa.types.is_null(kind):
        return pa.nulls(len(words), pa.string())
    if any(is_kind(kind) for is_kind in _BYTES):
        if pc.any(pc.equal(pc.binary_length(words), 16)).as_py():  # maybe UUIDs
            return _one_by_one(words)
        try:
            words = words.cast(pa.string())
        except pa.ArrowInvalid:  # no UTF-8
            return _one_by_one(words)
    if pa.types.is_string(words.type) or pa.types.is_large_string(words.type):
        return _of_strings(words.cast(pa.string()))
    return _one_by_one(words)


def _of_floats(words: pa.Array) -> pa.Array:
    values = words.to_numpy(zero_copy_only=False)
    missing = np.isnan(values)
    few = np.abs(values) < 2**53
    whole = few & (values == np.floor(values))
    result = np.full(len(values), None, object)
    result[whole] = values[whole].astype(np.int64).astype(str)
    result[few & ~whole] = values[few & ~whole].astype(str)  # the shortest that reads back the same
    rest = ~few & ~missing
    result[rest] = [canonical(value) for value in values[rest]]
    return pa.array(result, pa.string())


def _of_strings(words: pa.Array) -> pa.Array:
    none = pa.scalar(None, pa.string())
    words = pc.if_else(pc.equal(words, ""), none, words)
    special = pc.or_(pc.match_substring_regex(words, WHOLE_TEXT), pc.is_in(words, pa.array(list(TRUTHS))))
    if not pc.any(special).as_py():
        return words
    changed = pa.array(map(canonical, words.filter(special).to_pylist()), pa.string())
    return pc.replace_with_mask(words, special.fill_null(False), changed)


def _one_by_one(words: pa.Array) -> pa.Array:
    """Decimals, dates, times, bytes. A time that Python has no value for has Arrow's text."""

    def one(scalar: pa.Scalar) -> str | None:
        try:
            return canonical(scalar.as_py())
        except (ValueError, OverflowError, KeyError):
            return str(scalar.cast(pa.string()))

    return pa.array(map(one, words), pa.string())


def lists(column: Column) -> pa.ListArray:
    """A column of lists as lists of canonical texts; what has no value is left out of its list."""
    column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    column = column.storage if isinstance(column.type, pa.BaseExtensionType) else column
    size = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False)
    values = texts(pc.list_flatten(column)).combine_chunks()
    known = values.is_valid()
    row = np.repeat(np.arange(len(size)), size)[known.to_numpy(zero_copy_only=False)]
    ends = np.cumsum(np.bincount(row, minlength=len(size)))
    offsets = pa.array(np.concatenate([[0], ends]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values.filter(known), mask=column.is_null())
