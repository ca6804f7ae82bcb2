"""Splits by whole items, users and folds in every reader, and histories of logs without times."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.data.readers.microlens import microlens
from em3_jax.data.readers.mmrec import mmrec
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.splits import numbers_of_ids
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.data.readers.table import table

USERS, ITEMS, ROWS, SEED = 30, 60, 1200, 5
PARTS = [("train", "valid", "test")[k * 7 % 5 % 3] for k in range(ITEMS)]


def log() -> dict[str, np.ndarray]:
    """Pairs of users and items, each once, without times."""
    random = np.random.default_rng(1)
    pair = random.choice(USERS * ITEMS, ROWS, replace=False)
    return {"user": pair // ITEMS, "item": pair % ITEMS, "rating": random.integers(1, 6, ROWS)}


def write_table(root: Path) -> dict:
    items = {"item": np.arange(ITEMS), "part": PARTS}
    users = {"user": np.arange(USERS), "part": [PARTS[k] for k in range(USERS)]}
    for name, columns in (("log", log()), ("items", items), ("users", users)):
        pa.csv.write_csv(pa.table(columns), root / f"{name}.csv")
    return {
        "interactions": root / "log.csv", "items": root / "items.csv", "users": root / "users.csv",
        "label": "rating>=3", "time_unit": "none", "event_fields": ("rating",),
    }  # fmt: skip


def from_table(root: Path, **options) -> Dataset:
    return table(root / "out", **write_table(root), events="all", **options)


def from_movielens(root: Path, **options) -> Dataset:
    columns = log()
    time = np.random.default_rng(2).integers(0, 500, ROWS)
    rows = zip(*columns.values(), time, strict=True)
    (root / "ratings.dat").write_text("".join("::".join(map(str, row)) + "\n" for row in rows))
    (root / "movies.dat").write_text("".join(f"{k}::Film {k} (1990)::Drama\n" for k in range(ITEMS)))
    return movielens(root / "out", source=root, threshold=3, **options)


def from_mmrec(root: Path, **options) -> Dataset:
    columns = log()
    rows = zip(columns["user"], columns["item"], np.arange(ROWS) % 3, strict=True)
    lines = [f"{user}\t{item}\t{part}\n" for user, item, part in rows if item < 40]
    (root / "interactions.tsv").write_text("userID\titemID\tx_label\n" + "".join(lines))
    np.save(root / "image_feat.npy", np.ones((4 * ITEMS, 4), np.float32))
    return mmrec(root / "out", source=root, as_clicks=True, negatives=2, **options)


def from_microlens(root: Path, **options) -> Dataset:
    random = np.random.default_rng(3)
    lists = pa.list_(pa.int64())
    for name in ("train", "valid"):
        user = np.repeat(np.arange(USERS) + USERS * (name == "valid"), 20)
        past = [random.integers(1, ITEMS, 6).tolist() for _ in range(2 * USERS)]
        columns = {
            "user_id": user, "item_id": random.integers(1, ITEMS, len(user)),
            "likes_level": np.ones(len(user), int), "views_level": np.ones(len(user), int),
            "label": random.integers(0, 2, len(user)),
            "item_seq": pa.array([[0, *past[u]] for u in user], lists),
        }  # fmt: skip
        pq.write_table(pa.table(columns), root / f"{name}.parquet", row_group_size=90)
    info = {
        "item_id": np.arange(ITEMS), "item_tags": pa.array([[1, 0]] * ITEMS, lists),
        "item_emb_d128": pa.array(np.ones((ITEMS, 4)).tolist(), pa.list_(pa.float32())),
    }  # fmt: skip
    pq.write_table(pa.table(info), root / "item_info.parquet")
    return microlens(root / "out", source=root, **options)


def from_synthetic(root: Path, **options) -> Dataset:
    return synthetic(root / "out", interactions=2000, users=USERS, items=ITEMS, **options)


READERS = [from_table, from_movielens, from_mmrec, from_microlens, from_synthetic]


def numbers_of(dataset: Dataset, kind: str) -> np.ndarray:
    """[n] the number in [0, 1) that the original id of each row's item or user has."""
    ids = (dataset.user_table if kind == "user" else dataset.item_table)["id"].to_pylist()
    return numbers_of_ids([str(one) for one in ids], str(SEED))[np.asarray(dataset.interactions[kind])]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("split", ["items:0.6,0.2,0.2", "users:0.5,0.3,0.2", "folds:4:3"])
def test_every_reader_holds_out_whole_items_and_users_by_the_hash_of_their_ids(reader, split, tmp_path):
    dataset = reader(tmp_path, split=split, seed=SEED)
    kind = "user" if split.startswith("users") else "item"
    number = numbers_of(dataset, kind)
    if split == "folds:4:3":
        expected = np.select([number >= 0.75, number < 0.25], [2, 1], 0)
    else:
        low, high = (0.6, 0.8) if kind == "item" else (0.5, 0.8)
        expected = np.select([number < low, number < high], [0, 1], 2)
    np.testing.assert_array_equal(dataset.interactions["split"], expected)
    assert dataset.meta["held_out"] == kind
    held = set(np.asarray(dataset.interactions["item"])[expected > 0].tolist())
    shown = set(np.asarray(dataset.events["item"]).tolist())
    assert shown
    found = dataset.meta["summary"]["splits"]
    if kind == "item":
        assert not shown & held
        assert [found[name]["rows_with_cold_item"] for name in SPLITS] == [0, 1, 1]
    else:
        assert [found[name]["rows_with_new_user"] for name in SPLITS] == [0, 1, 1]


def test_negatives_of_a_folder_by_items_are_of_the_part_of_their_click(tmp_path):
    dataset = from_mmrec(tmp_path, split="items:0.6,0.2,0.2", seed=SEED)
    columns = {
        name: np.asarray(dataset.interactions[name]).reshape(-1, 3) for name in ("user", "item", "label", "split")
    }
    part = np.searchsorted([0.6, 0.8], numbers_of_ids([str(k) for k in range(4 * ITEMS)], str(SEED)), side="right")
    assert (part[columns["item"]] == columns["split"]).all()
    touched = set(zip(*(columns[name][:, 0].tolist() for name in ("user", "item")), strict=True))
    assert (columns["label"] == [1, 0, 0]).all()
    for user, items in zip(columns["user"][:, 0].tolist(), columns["item"].tolist(), strict=True):
        assert len(set(items)) == 3
        assert not touched & {(user, item) for item in items[1:]}
    negatives = columns["item"][:, 1:]
    assert (negatives >= 40).any() and len(np.unique(negatives[columns["split"][:, 0] == 2])) > 10


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_negatives_of_a_table_by_items_are_of_the_part_of_their_click_and_known_by_then(by, tmp_path):
    random = np.random.default_rng(3)
    columns = {
        "user": random.integers(0, USERS, 600),
        "item": random.integers(0, ITEMS, 600),
        "time": np.arange(600) // 2,
    }
    pa.csv.write_csv(pa.table(columns), tmp_path / "log.csv")
    pa.csv.write_csv(pa.table({"item": np.arange(ITEMS), "part": PARTS}), tmp_path / "items.csv")
    dataset = table(
        tmp_path / "out", interactions=tmp_path / "log.csv", items=tmp_path / "items.csv", negatives=2,
        negatives_by=by, split="items:part", time_unit="order",
    )  # fmt: skip
    found = {name: np.asarray(dataset.interactions[name]).tolist() for name in ("user", "item", "label", "time")}
    users = [int(one) for one in dataset.user_table["id"].to_pylist()]  # in the order in which they come
    found["user"] = [users[k] for k in found["user"]]
    rows = list(zip(*found.values(), strict=True))
    clicks = [(u, i, t) for u, i, label, t in rows if label]
    assert sorted(clicks) == sorted(zip(*(column.tolist() for column in columns.values()), strict=True))
    first = {}
    for _, item, time in sorted(clicks, key=lambda row: row[2]):
        first.setdefault(item, time)
    last = None
    for user, item, label, time in rows:  # negatives follow their click
        if label:
            last = (user, time, PARTS[item])
            continue
        assert last == (user, time, PARTS[item]) and first[item] <= time
        assert not any(u == user and i == item and t <= time for u, i, t in clicks)
    assert sum(found["label"]) < len(rows) <= 3 * 600 and len(rows) > 1500
    assert np.isin(dataset.events["item"], [k for k in range(ITEMS) if PARTS[k] == "train"]).all()
    assert "2 items of its part drawn" in dataset.meta["label_rule"]


@pytest.mark.parametrize("kind", ["items", "users"])
def test_a_column_of_items_or_users_names_their_parts(kind, tmp_path):
    dataset = from_table(tmp_path, split=f"{kind}:part")
    expected = np.array([SPLITS.index(part) for part in PARTS])
    of_row = np.asarray(dataset.interactions[kind[:-1]])
    np.testing.assert_array_equal(dataset.interactions["split"], expected[of_row])
    assert f"by {kind}, as their column part says" in dataset.meta["split_rule"]


def test_without_times_a_history_is_the_other_training_rows_of_the_user_never_the_row_itself(tmp_path):
    dataset = from_table(tmp_path, split="items:part", untimed_histories="others")
    histories = histories_of(dataset)
    rows = rows_of(dataset)
    for (user, item, rating, split), history in zip(rows, histories, strict=True):
        others = [(i, r) for u, i, r, s in rows if u == user and s == 0 and (i, r) != (item, rating)]
        assert Counter(history) == Counter(others)
        assert split or item not in [i for i, _ in history]
    lengths = {len(history) for history in histories}
    assert len(lengths) > 5


def test_without_times_earlier_rows_are_those_before_in_one_order(tmp_path):
    dataset = from_table(tmp_path, split="items:part", untimed_histories="earlier")
    rows, histories = rows_of(dataset), histories_of(dataset)
    for user in range(USERS):
        own = [k for k, row in enumerate(rows) if row[0] == user]
        train = [k for k in own if rows[k][3] == 0]
        for place, k in enumerate(train):  # as the rows are stored
            assert histories[k] == [rows[j][1:3] for j in train[:place]]
        for k in set(own) - set(train):
            assert histories[k] == [rows[j][1:3] for j in train]
    again = from_table(tmp_path, split="items:part", untimed_histories="earlier", seed=1, overwrite=True)
    assert rows_of(again) != rows and sorted(rows_of(again)) == sorted(rows)


def test_held_out_users_without_times_have_their_own_other_rows(tmp_path):
    dataset = from_table(tmp_path, split="users:part")
    rows = rows_of(dataset)
    for (user, item, rating, _), history in zip(rows, histories_of(dataset), strict=True):
        others = [(i, r) for u, i, r, _ in rows if u == user and (i, r) != (item, rating)]
        assert Counter(history) == Counter(others)


def rows_of(dataset: Dataset) -> list[tuple[int, int, int, int]]:
    """(user, item, rating, split) of each row, the rating looked up in the source."""
    rating = {(u, i): r for u, i, r in zip(*(column.tolist() for column in log().values()), strict=True)}
    columns = [np.asarray(dataset.interactions[name]).tolist() for name in ("user", "item", "split")]
    return [(u, i, rating[u, i], s) for u, i, s in zip(*columns, strict=True)]


def histories_of(dataset: Dataset) -> list[list[tuple[int, int]]]:
    """(item, rating) of the events of each row."""
    words = [int(word) for word in dataset.meta["vocabularies"]["event"]["rating"]]
    item = np.asarray(dataset.events["item"]).tolist()
    rating = [words[k - 2] for k in dataset.events["field_rating"]]
    ranges = zip(dataset.interactions["history_start"], dataset.interactions["history_end"], strict=True)
    return [list(zip(item[a:b], rating[a:b], strict=True)) for a, b in ranges]


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "folds:2"}, "give 3 folds or more"),
        ({"split": "folds:5:5"}, "give 3 folds or more, and of which number, from 0, is test"),
        ({"split": "items:side"}, "no column 'side'"),
        ({"split": "users:part", "users": None}, "a column of the users; add their file with --users"),
        ({"split": "items:part", "untimed_histories": "all"}, "choose others or earlier"),
        ({"split": "users:part", "negatives": 2}, "without times does not go with --negatives"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, tmp_path):
    given = write_table(tmp_path) | {"events": "all"} | options
    with pytest.raises(UserError, match=message) as error:
        table(tmp_path / "out", **given)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_part_of_an_unknown_name_has_its_line(tmp_path):
    given = write_table(tmp_path)
    lines = given["items"].read_text().splitlines()
    given["items"].write_text("\n".join([*lines[:4], '3,"other"', *lines[5:]]) + "\n")
    with pytest.raises(UserError, match=r"items.csv line 5: split 'part' is 'other'; write train, valid or test"):
        table(tmp_path / "out", **given, split="items:part")


@pytest.mark.parametrize("reader", [from_mmrec, from_microlens, from_synthetic])
@pytest.mark.parametrize(
    "split,message", [("0.8,0.1,0.1", "shares in time do not go with"), ("items:part", "no such column")]
)
def test_readers_refuse_splits_that_their_files_cannot_have(reader, split, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        reader(tmp_path, split=split)
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_anime_by_its_own_column_has_the_counts_of_its_description(shared_data, tmp_path):
    source = shared_data / "anime-5k"
    if not source.is_dir():
        pytest.skip("anime-5k is not here")
    dataset = table(
        tmp_path / "out", interactions=source / "ratings.tsv", items=source / "items.tsv",
        columns={"user": "user_id", "item": "item_id"}, label="rating>=8", time_unit="none", split="items:part",
        events="all", event_fields=("rating",), item_fields=("genres:multi", "type"), max_values=13,
    )  # fmt: skip
    found = dataset.meta["summary"]["splits"]
    sizes = [[found[name][what] for what in ("rows", "users", "items")] for name in SPLITS]
    assert sizes == [[287_134, 4_610, 4_383], [41_782, 3_913, 632], [85_783, 4_334, 1_240]]
    assert [round(found[name]["click_rate"], 3) for name in SPLITS] == [0.608, 0.587, 0.625]
    columns = {name: np.asarray(values) for name, values in dataset.interactions.items()}
    held = np.unique(columns["item"][columns["split"] > 0])
    assert not np.isin(dataset.events["item"], held).any()
    length = columns["history_end"] - columns["history_start"]
    training = np.bincount(columns["user"][columns["split"] == 0], minlength=dataset.num_users)
    np.testing.assert_array_equal(length, training[columns["user"]] - (columns["split"] == 0))
    item = np.asarray(dataset.events["item"])
    for row in range(0, len(length), 1_999):
        assert columns["item"][row] not in item[columns["history_start"][row] : columns["history_end"][row]]
