"""How other writers leave Parquet: ids, times, labels and lists of every type."""

import datetime
import decimal
import json
import uuid
from pathlib import Path

import pyarrow as pa
import pytest

from tests.data.own_tables import CONTEXT, ITEMS, LOG, USERS, clicks, ids, made, parquet, queries, refused, text, texts

UUIDS = [uuid.UUID(int=k << 100) for k in range(USERS)]
FORMS = {
    "decimal": (pa.array(map(decimal.Decimal, LOG["user"]), pa.decimal128(20, 0)), texts(LOG["user"])),
    "decimal with a scale": (pa.array(map(decimal.Decimal, LOG["user"]), pa.decimal128(20, 2)), texts(LOG["user"])),
    "float": (pa.array(LOG["user"], pa.float64()), texts(LOG["user"])),
    "16 bytes": (pa.array([UUIDS[k].bytes for k in LOG["user"]], pa.binary(16)), [str(UUIDS[k]) for k in LOG["user"]]),
    "uuid": (
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([UUIDS[k].bytes for k in LOG["user"]], pa.binary(16))),
        [str(UUIDS[k]) for k in LOG["user"]],
    ),
    "binary": (pa.array([b"\xff%d" % k for k in LOG["user"]]), [(b"\xff%d" % k).hex() for k in LOG["user"]]),
    "text as binary": (pa.array([b"u%d" % k for k in LOG["user"]]), [f"u{k}" for k in LOG["user"]]),
    "view": (pa.array(texts(LOG["user"]), pa.string_view()), texts(LOG["user"])),
    "large": (pa.array(texts(LOG["user"]), pa.large_string()), texts(LOG["user"])),
    "enum": (pa.array(texts(LOG["user"])).dictionary_encode(), texts(LOG["user"])),
    "struct": (pa.array([{"id": k} for k in LOG["user"]]), texts(LOG["user"])),
    "day": (pa.array([datetime.date(2026, 1, 1 + k) for k in LOG["user"]]), [f"2026-01-0{1 + k}" for k in LOG["user"]]),
}


@pytest.mark.parametrize("form", FORMS)
def test_ids_and_fields_of_every_type(tmp_path, form):
    column, expected = FORMS[form]
    path = parquet(tmp_path, LOG | {"user": column, "query": column})
    dataset = made(tmp_path, path, **CONTEXT)
    assert ids(dataset, "user") == queries(dataset) == expected


def test_labels_and_times_of_every_type(tmp_path):
    seconds = LOG["time"]
    numbers = {"label": pa.array(map(decimal.Decimal, LOG["label"]), pa.decimal128(3, 0)),
               "time": pa.array(map(decimal.Decimal, seconds), pa.decimal128(20, 0))}  # fmt: skip
    words = {"label": pa.array(texts(LOG["label"])).dictionary_encode(), "time": pa.array(texts(seconds))}
    for k, columns in enumerate((numbers, words, {"label": pa.array([v == 1 for v in LOG["label"]])})):
        dataset = made(tmp_path / str(k), parquet(tmp_path, LOG | columns))
        assert dataset.interactions["label"].tolist() == LOG["label"]
        assert dataset.interactions["time"].tolist() == seconds and dataset.meta["time_unit"] == "seconds"


NESTED = {
    "struct of two": pa.array([{"a": k, "b": k} for k in LOG["user"]]),
    "list": pa.array([[k] for k in LOG["user"]]),
    "map": pa.array([[("a", k)] for k in LOG["user"]], pa.map_(pa.string(), pa.int64())),
}


@pytest.mark.parametrize("form", NESTED)
@pytest.mark.parametrize("role", ["user", "label", "time", "query"])
def test_columns_that_hold_no_single_values_are_named(tmp_path, form, role):
    message = refused(tmp_path, parquet(tmp_path, LOG | {role: NESTED[form]}), **CONTEXT)
    assert f"'{role}' holds" in message


def test_nan_is_no_id(tmp_path):
    column = pa.array([float("nan") if k == 17 else float(v) for k, v in enumerate(LOG["user"])])
    assert "row 17 (counted from 0): column 'user' is empty" in refused(
        tmp_path, parquet(tmp_path, LOG | {"user": column})
    )


def test_floats_that_were_several_whole_numbers_are_told(tmp_path):
    wide = [2**60 + user for user in LOG["user"]]
    path = parquet(tmp_path, LOG | {"user": pa.array(map(float, wide))})  # as DuckDB writes sums
    (note,) = made(tmp_path, path).meta["notes"]
    assert "column 'user' has floats so large" in note and "integers of 64 bits" in note
    for name, column in {
        "integers": pa.array(wide),
        "decimals": pa.array(map(decimal.Decimal, wide), pa.decimal128(38, 0)),
        "floats": pa.array([2.0**53 - 1 - user for user in LOG["user"]]),
    }.items():
        dataset = made(tmp_path / name, parquet(tmp_path, LOG | {"user": column}))
        assert len(dataset.user_table) == USERS and not dataset.meta["notes"]
    lists = [[2.0**24 + (k > 2)] for k in range(ITEMS)]
    items = item_parquet(tmp_path, "tags", pa.array(lists, pa.list_(pa.float32())))
    dataset = made(tmp_path / "lists", path, items=items, item_fields=("tags:multi",))
    assert any("column 'tags' has floats" in note for note in dataset.meta["notes"])


def test_ids_written_in_two_ways(tmp_path):
    log = clicks(tmp_path, text(LOG | {"user": [f"{k}.0" for k in LOG["user"]]}))
    users = clicks(tmp_path, text({"user": range(USERS)}), "users.csv")
    assert ids(made(tmp_path, log, users=users), "user") == texts(LOG["user"])
    twice = clicks(tmp_path, text({"user": ["0", "1", "2", "3", "1.0"]}), "users.csv")
    message = refused(tmp_path / "b", log, users=twice)
    assert "line 6: id 1.0 occurs a second time (it is the same as 1, in" in message and "line 3)" in message


def item_parquet(root: Path, name: str, column: pa.Array) -> Path:
    return parquet(root, {"item": list(range(ITEMS)), name: column}, "items.parquet")


LISTS = {
    "structs": (pa.array([[{"name": "a"}, {"name": "b"}], [], None] * 2), [["a", "b"], [], []]),
    "enums": (
        pa.array([["a", "b"], [], None] * 2, pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        [["a", "b"], [], []],
    ),
    "floats with NaN": (pa.array([[1.5, float("nan")], [2.0, None], None] * 2), [["1.5"], ["2"], []]),
    "fixed size": (pa.array([[1, 2], [3, 4], None] * 2, pa.list_(pa.int8(), 2)), [["1", "2"], ["3", "4"], []]),
    "texts of lists": (pa.array(["['a', 'b']", "[]", None] * 2), [["a", "b"], [], []]),
    "JSON lists": (pa.array(['["a", 2.0]', "[null]", None] * 2), [["a", "2"], [], []]),
    "texts": (pa.array(["a| b", "", None] * 2), [["a", "b"], [], []]),
}


@pytest.mark.parametrize("form", LISTS)
def test_lists(tmp_path, form):
    column, expected = LISTS[form]
    items = item_parquet(tmp_path, "tags", column)
    dataset = made(tmp_path, clicks(tmp_path, text(LOG)), items=items, item_fields=("tags:multi",))
    words = [None, None, *dataset.meta["vocabularies"]["item"]["tags"]]
    rows = [row if isinstance(row, list) else [row] for row in dataset.item_table.column("tags").to_pylist()]
    assert [[words[k] for k in row if k] for row in rows[:3]] == expected
    json.loads((dataset.root / "dataset.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_lists_that_cannot_be_read(tmp_path):
    log = clicks(tmp_path, text(LOG))
    for values, message in (
        (pa.array(["[1 2]"] * ITEMS), "a list that neither JSON nor Python reads"),
        (pa.array([[{"a": 1, "b": 2}]] * ITEMS), "lists of single values"),
        (NESTED["map"][:ITEMS], "'tags' holds map"),
    ):
        items = item_parquet(tmp_path, "tags", values)
        assert message in refused(tmp_path, log, items=items, item_fields=("tags:multi",))


def test_texts_of_every_type(tmp_path):
    log = clicks(tmp_path, text(LOG))
    for k, (column, expected) in enumerate(
        (
            (pa.array([["red", "shoe"], [], None] * 2), ["red, shoe", "", None]),
            (pa.array(["5.0", "True", None] * 2), ["5.0", "True", None]),  # a text is no value
            (pa.array(["5.0", "True", None] * 2).dictionary_encode(), ["5.0", "True", None]),
        )
    ):
        items = item_parquet(tmp_path, "title", column)
        dataset = made(tmp_path / str(k), log, items=items, item_text=("title",))
        assert dataset.item_table.column("title").to_pylist()[:3] == expected
    items = item_parquet(tmp_path, "title", NESTED["struct of two"][:ITEMS])
    assert "where texts are needed" in refused(tmp_path, log, items=items, item_text=("title",))
