"""The format on disk: what is written comes back, and what is wrong is refused by name and place."""

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from em3_jax.core.errors import UserError
from em3_jax.core.fields import Field, Fields
from em3_jax.data.checks import check_dataset
from em3_jax.data.features import write_features
from em3_jax.data.format import Dataset, hash_ids, open_dataset
from em3_jax.data.histories import history_ranges, sort_events
from em3_jax.data.writer import DatasetWriter

ROWS, USERS, ITEMS = 12, 3, 5
FIELDS = Fields(
    user=(Field("user", USERS + 2),),
    item=(Field("item", ITEMS + 2), Field("tags", 5, 2)),
    context=(Field("slot", 4),),
    event=(Field("rating", 7),),
)
TAGS = [[2, 0], [3, 4], [0, 0], [4, 2], [1, 0]]


def interactions() -> dict[str, np.ndarray]:
    """Twelve rows in time order, both classes in each split; row k has the history of the first k // 4 events."""
    row = np.arange(ROWS)
    return {
        "user": row % USERS,
        "item": row % ITEMS,
        "label": row % 2,
        "time": 10 + row,
        "split": row // 4,
        "history_start": 0 * row,
        "history_end": row // 4,
        "context_slot": 1 + row % 3,
        "probability": row / ROWS,
    }


def events() -> dict[str, np.ndarray]:
    return {"item": np.array([4, 0, 2, 1]), "time": np.array([1, 2, 2, 3]), "field_rating": np.array([2, 6, 3, 0])}


def write(root: Path, *, rows=None, event=None, fields=FIELDS, items=None, overwrite=False) -> Dataset:
    """A small dataset with the given columns in place of its own."""
    items = items or {"id": [f"i{k}" for k in range(ITEMS)], "tags": TAGS, "title": ["a", "b", "", None, "e"]}
    with DatasetWriter(root, overwrite) as writer:
        writer.columns("interactions", interactions() | (rows or {}))
        writer.columns("events", events() | (event or {}))
        table = pa.table(items)
        tokens = np.arange(ITEMS * 6, dtype=np.float16).reshape(ITEMS, 2, 3)
        mask = np.arange(ITEMS)[:, None] >= [1, 2]
        writer.features("image", tokens, mask, {"encoder": "none"}, hash_ids(table.column("id")))
        return writer.finish(
            name="small",
            users=pa.table({"id": range(USERS)}),
            items=table,
            fields=fields,
            vocabularies={},
            text_columns=["title"],
            provenance="test",
            label_rule="odd rows",
            split_rule="thirds",
            source_hash="",
            time_unit="order",
            extra={"notes": ["a note"]},
        )


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    return write(tmp_path / "small")


def test_what_is_written_comes_back(dataset):
    for name, column in interactions().items():
        np.testing.assert_array_equal(dataset.interactions[name], np.asarray(column, dataset.interactions[name].dtype))
    for name, column in events().items():
        np.testing.assert_array_equal(dataset.events[name], column)
    assert dataset.fields == FIELDS
    assert (dataset.num_users, dataset.num_items) == (USERS, ITEMS)
    np.testing.assert_array_equal(dataset.item_field_ids, [[k + 2, *TAGS[k]] for k in range(ITEMS)])
    np.testing.assert_array_equal(dataset.user_field_ids, [[2], [3], [4]])
    assert [dataset.split_rows(s) for s in ("train", "valid", "test")] == [range(0, 4), range(4, 8), range(8, 12)]
    features = dataset.features("image")
    assert features.tokens.shape == (ITEMS, 2, 3) and features.tokens.dtype == np.float16
    assert features.mask.tolist() == [[False, False], [True, False], [True, True], [True, True], [True, True]]
    assert features.manifest["encoder"] == "none" and dataset.meta["notes"] == ["a note"]
    assert dataset.meta["summary"]["items_without"] == {"column title": 0.4, "features image": 0.2}


def test_training_counts_are_of_training_rows_and_of_events_they_see(tmp_path):
    rows = {"split": np.array([0] * 6 + [1] * 2 + [2] * 4)}  # so that training rows 4 and 5 see event 0
    counts = write(tmp_path / "small", rows=rows).counts
    assert counts["item"].tolist() == [2, 1, 1, 1, 1] and counts["item_history"].tolist() == [0, 0, 0, 0, 1]
    assert counts["user"].tolist() == [2, 2, 2] and counts["context_slot"].tolist() == [0, 2, 2, 2]
    assert counts["event_rating"].tolist() == [0, 0, 1, 0, 0, 0, 0]


def test_a_split_may_lie_anywhere(tmp_path):
    split = np.array([0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2])
    dataset = write(tmp_path / "small", rows={"split": split})
    for code, name in enumerate(("train", "valid", "test")):
        np.testing.assert_array_equal(dataset.split_rows(name), np.flatnonzero(split == code))


def test_a_column_of_unknown_length_is_written_piece_by_piece(tmp_path):
    with DatasetWriter(tmp_path / "out") as writer:
        column = writer.appender("events/item", np.int32)
        for size in (0, 3, 200_000, 1):
            column.append(np.arange(size))
        column.close()
        read = np.load(writer.path / "events" / "item.npy", allow_pickle=False)
        np.testing.assert_array_equal(read, np.r_[0:3, 0:200_000, 0])
    assert list(tmp_path.iterdir()) == []


def test_an_existing_dataset_is_replaced_only_when_asked_and_only_by_a_good_one(tmp_path):
    root = tmp_path / "small"
    write(root)
    with pytest.raises(UserError, match=r"exists already.*--overwrite"):
        write(root)
    with pytest.raises(UserError, match="label"):
        write(root, rows={"label": np.full(ROWS, 7)}, overwrite=True)
    assert open_dataset(root).meta["name"] == "small"
    write(root, rows={"time": np.arange(ROWS) + 50}, overwrite=True)
    assert open_dataset(root).interactions["time"][0] == 50
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


def test_a_folder_that_is_no_dataset_is_never_replaced(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    with pytest.raises(UserError, match="is no dataset"):
        write(tmp_path / "thesis", overwrite=True)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")


BIG = Fields(FIELDS.user, FIELDS.item, FIELDS.context, (Field("rating", 2000),))
FAULTS = {
    "user out of range": ({"rows": {"user": np.arange(ROWS)}}, r"interactions/user.npy row 3: value 3 .*\[0, 3\)"),
    "negative item": ({"rows": {"item": np.arange(ROWS) % 5 - 1}}, r"interactions/item.npy row 0: value -1"),
    "label": ({"rows": {"label": np.arange(ROWS) % 3}}, r"interactions/label.npy row 2: value 2"),
    "unsorted": ({"rows": {"time": 30 - np.arange(ROWS)}}, r"interactions/time.npy row 1: earlier .* sort"),
    "empty split": ({"rows": {"split": np.arange(ROWS) // 6}}, r"split 'test' is empty"),
    "one class": ({"rows": {"label": np.arange(ROWS) < 4}}, r"split 'train' has only label 1"),
    "range": ({"rows": {"history_end": np.full(ROWS, 9)}}, r"interactions/history_end.npy row 0: value 9"),
    "range backwards": ({"rows": {"history_start": np.full(ROWS, 1)}}, r"history_end.npy row 0: ends before it starts"),
    "history not earlier": ({"event": {"time": np.array([14, 14, 14, 14])}}, r"history_end.npy row 4: .*not earlier"),
    "history order": ({"event": {"time": np.array([5, 4, 4, 4])}}, r"history_end.npy row 8: events not in order"),
    "event item": ({"event": {"item": np.array([0, 0, 0, 5])}}, r"events/item.npy row 3: value 5"),
    "event field": ({"event": {"field_rating": np.array([0, 0, 7, 0])}}, r"events/field_rating.npy row 2: value 7"),
    "event vocabulary": ({"fields": BIG}, r"event field 'rating' has 2000 ids.*bucket"),
    "context": ({"rows": {"context_slot": np.full(ROWS, 4)}}, r"interactions/context_slot.npy row 0: value 4"),
    "probability": ({"rows": {"probability": np.full(ROWS, np.nan)}}, r"interactions/probability.npy row 0"),
    "no rows": ({"rows": {name: column[:0] for name, column in interactions().items()}}, r"there are no rows"),
    "item twice": ({"items": {"id": list("abbde"), "tags": TAGS, "title": list("abcde")}}, r"item id 'b' occurs twice"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_refused_and_leave_nothing(tmp_path, fault):
    change, message = FAULTS[fault]
    with pytest.raises(UserError, match=message):
        write(tmp_path / "small", **change)
    assert list(tmp_path.iterdir()) == []


def _replace(path: Path, array: np.ndarray) -> None:
    path.unlink()
    np.save(path, array)


DAMAGE = {
    "missing column": (lambda r: (r / "interactions/user.npy").unlink(), r"user.npy: file missing"),
    "dtype": (lambda r: _replace(r / "interactions/user.npy", np.zeros(ROWS)), r"user.npy: dtype is float64"),
    "length": (lambda r: _replace(r / "events/time.npy", np.zeros(3, np.int64)), r"time.npy: shape is \(3,\)"),
    "cut file": (lambda r: (r / "events/time.npy").write_bytes(b"\x93NUMPY"), r"time.npy: not a readable .npy"),
    "pickle": (lambda r: _replace(r / "events/item.npy", np.array([{}] * 4)), r"item.npy: not a readable .npy"),
    "table": (lambda r: (r / "items.parquet").write_bytes(b"PAR1"), r"items.parquet: not a readable Parquet"),
    "json": (lambda r: (r / "dataset.json").write_text("{"), r"dataset.json: not valid JSON"),
    "no json": (lambda r: (r / "dataset.json").unlink(), r"dataset.json: file missing"),
    "version": (lambda r: (r / "dataset.json").write_text('{"format_version": 99}'), r"version 99, this program"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named_when_opening(dataset, damage):
    act, message = DAMAGE[damage]
    act(dataset.root)
    with pytest.raises(UserError, match=message):
        open_dataset(dataset.root)


def test_features_must_fit_the_items_and_be_finite(dataset):
    item_hash = dataset.meta["item_hash"]
    tokens, mask = np.ones((ITEMS, 3), np.float32), np.ones((ITEMS, 1), bool)
    bad = tokens.copy()
    bad[3, 1] = np.inf
    for name, array, message in (
        ("text", bad, r"features 'text': row 3 holds NaN or infinity"),
        ("image", tokens, r"name in use"),
        ("my text", tokens, r"letters, digits"),
    ):
        with pytest.raises(UserError, match=message):
            write_features(dataset.root, name, array, mask, {}, item_hash)
    write_features(dataset.root, "other", tokens, mask, {}, "another hash")
    write_features(dataset.root, "short", tokens[:-1], mask[:-1], {}, item_hash)
    for name, message in (("other", "item_hash"), ("short", "shape"), ("none", "has: image, other, short")):
        with pytest.raises(UserError, match=message):
            dataset.features(name)
    with pytest.raises(UserError, match="item_hash"):
        check_dataset(dataset)
    write_features(dataset.root, "text", tokens, mask, {}, item_hash)
    assert dataset.features("text").tokens.shape == (ITEMS, 1, 3)


def test_the_item_hash_is_of_ids_in_order(dataset):
    assert dataset.meta["item_hash"] == hash_ids([f"i{k}" for k in range(ITEMS)]) != hash_ids(["i1", "i0"])
    assert json.loads((dataset.root / "features/image/manifest.json").read_text())["item_hash"] == hash_ids(
        dataset.item_table.column("id")
    )


@pytest.mark.parametrize("unit", [1, 10**15])  # the second makes users times time span exceed 64 bits
def test_histories_are_the_strictly_earlier_events_of_the_user(unit):
    random = np.random.default_rng(3)
    for events_, rows, users in ((40, 60, 5), (0, 10, 4), (30, 25, 30), (1, 1, 1)):
        user, time = random.integers(0, users, events_), random.integers(-9, 9, events_) * unit
        row_user, row_time = random.integers(0, users, rows), random.integers(-9, 9, rows) * unit
        order = sort_events(user, time)
        start, end = history_ranges(user[order], time[order], row_user, row_time)
        for k in range(rows):
            expected = [e for e in range(events_) if user[e] == row_user[k] and time[e] < row_time[k]]
            expected.sort(key=lambda e: time[e])  # stable: equal times in the order given
            assert order[start[k] : end[k]].tolist() == expected


def test_messages_are_one_line(tmp_path):
    for change, _ in FAULTS.values():
        with pytest.raises(UserError) as error:
            write(tmp_path / "small", **change)
        assert re.fullmatch(r"[^\n]+", str(error.value))
