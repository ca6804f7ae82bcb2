"""The canonical form of whole columns is `values.canonical` of each value, in every type of Arrow."""

import datetime
import decimal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from em3_jax.core.values import canonical
from em3_jax.data import canonical as columns

FEW = settings(max_examples=15, deadline=None, derandomize=True)
WRITTEN = ["5", "5.0", "+5.0", "-0.0", "007", "1.10", "True", "FALSE", "tRUE", "nan", "", " 5", "1e3", "5.0\n", "é"]
WORDS = st.one_of(st.sampled_from(WRITTEN), st.text(max_size=6))
ZONED = pa.timestamp("us", "Europe/Oslo")
MOMENTS = st.datetimes(datetime.datetime(1971, 1, 1), datetime.datetime(2100, 1, 1))
OF_TYPE = {
    **{kind: st.integers(-128, 127) for kind in (pa.int8(), pa.int16(), pa.int32())},
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.bool_(): st.booleans(),
    pa.float16(): st.floats(width=16),
    pa.float32(): st.floats(width=32),
    pa.float64(): st.one_of(st.floats(), st.integers(-(2**60), 2**60).map(float)),
    **{kind: WORDS for kind in (pa.string(), pa.large_string(), pa.string_view())},
    **{kind: st.one_of(WORDS.map(str.encode), st.binary(max_size=17))
       for kind in (pa.binary(), pa.large_binary(), pa.binary_view())},
    **{kind: st.binary(min_size=16, max_size=16) for kind in (pa.binary(16), pa.uuid())},
    **{kind(9, 3): st.decimals(-99_999, 99_999, places=3)
       for kind in (pa.decimal32, pa.decimal64, pa.decimal128, pa.decimal256)},
    **{kind: st.dates() for kind in (pa.date32(), pa.date64())},
    pa.time32("s"): st.times().map(lambda time: time.replace(microsecond=0)),
    pa.time64("us"): st.times(),
    pa.timestamp("s"): MOMENTS.map(lambda time: time.replace(microsecond=0)),
    pa.timestamp("us"): MOMENTS,
    pa.timestamp("ns"): MOMENTS,
    ZONED: MOMENTS.map(lambda time: time.replace(tzinfo=datetime.UTC)),
    pa.duration("us"): st.timedeltas(datetime.timedelta(-9999), datetime.timedelta(9999)),
    pa.null(): st.none(),
}  # fmt: skip


def forms(column: pa.Array | pa.ChunkedArray) -> list[str | None]:
    texts = columns.texts(column)
    assert texts.type == columns.TEXTS
    for chunk in texts.chunks:
        words = chunk.dictionary.to_pylist()
        assert len(set(words)) == len(words) and None not in words, "a word is itself in one form"
    return texts.to_pylist()


@pytest.mark.parametrize("kind", OF_TYPE, ids=str)
def test_every_type(kind):
    @FEW
    @given(st.lists(st.one_of(st.none(), OF_TYPE[kind]), max_size=12))
    def check(values):
        storage = pa.array(values, pa.binary(16) if kind == pa.uuid() else kind)
        column = pa.ExtensionArray.from_storage(kind, storage) if kind == pa.uuid() else storage
        exact = column.to_numpy(False) if pa.types.is_floating(kind) else column.to_pylist()
        expected = [canonical(value) for value in exact]
        assert forms(column) == expected
        assert forms(pa.chunked_array([column[:3], column[3:]])) == expected
        if kind not in (pa.uuid(), pa.float16(), pa.null()) and not pa.types.is_decimal(kind):
            assert forms(plain_dictionary(column)) == expected
            assert forms(pa.StructArray.from_arrays([column], ["only"])) == expected

    check()


def plain_dictionary(column: pa.Array) -> pa.DictionaryArray:
    """The column as a categorical with every value a category of its own, as careless writers do."""
    return pa.DictionaryArray.from_arrays(pa.array(range(len(column)), pa.int16()), column)


@FEW
@given(st.lists(WORDS, min_size=1, max_size=12))
def test_text_of_a_csv(values):
    values = [value for value in values if "\x00" not in value and "\r" not in value]
    table = pa.table({"a": pa.array(values, pa.string()), "b": pa.array(["x"] * len(values), pa.string())})
    sink = pa.BufferOutputStream()
    pa.csv.write_csv(table, sink)
    options = pa.csv.ConvertOptions(column_types={"a": columns.TEXTS, "b": columns.TEXTS}, strings_can_be_null=True)
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    read = pa.csv.read_csv(pa.BufferReader(sink.getvalue()), convert_options=options, parse_options=parse)
    null = read.column("a").to_pylist()
    assert forms(read.column("a")) == [None if n is None else canonical(v) for v, n in zip(values, null, strict=True)]


@FEW
@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.floats(width=32)), max_size=4)), max_size=8))
def test_lists_leave_out_what_has_no_value(values):
    expected = [v and [c for c in map(canonical, map(_f32, v)) if c is not None] for v in values]
    for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_view(pa.float32())):
        assert columns.lists(pa.array(values, kind)).to_pylist() == expected


def _f32(value: float | None) -> np.float32 | None:
    return None if value is None else np.float32(value)


def test_times_of_nanoseconds_keep_their_digits():
    kind = pa.timestamp("ns")
    assert forms(pa.array([1_000, 1_001], pa.int64()).cast(kind)) == [
        "1970-01-01T00:00:00.000001",
        "1970-01-01 00:00:00.000001001",
    ]


def test_forms_are_one_across_types():
    five = [5, 5.0, decimal.Decimal("5.00")]
    kinds = pa.int64(), pa.float32(), pa.decimal128(5, 2)
    assert {forms(pa.array([v], k))[0] for v, k in zip(five, kinds, strict=True)} == {"5"}
    assert forms(pa.array(["5.0", b"5".decode(), "+5.00"])) == ["5"] * 3
    assert columns.texts(pa.array(["5.0", "b", "5"])).chunk(0).dictionary.to_pylist() == ["5", "b"]
    assert forms(pa.array([b"5.0", "Å".encode()], pa.binary())) == ["5", "Å"]


def test_what_has_no_single_value():
    nested = (
        pa.list_(pa.int8()),
        pa.map_(pa.string(), pa.int8()),
        pa.struct([("a", pa.int8()), ("b", pa.int8())]),
        pa.month_day_nano_interval(),
    )
    assert not any(columns.is_single(kind) for kind in nested)
    assert all(columns.is_single(kind) for kind in OF_TYPE)
    assert columns.is_single(pa.struct([("id", pa.int64())]))
