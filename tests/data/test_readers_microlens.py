"""MicroLens_1M_x1, on small files of exactly its columns and dtypes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.data.readers.microlens import microlens

ITEMS, WIDTH, TRAIN, VALID = 40, 12, 2000, 200
INT_LIST, FLOAT_LIST = pa.list_(pa.int64()), pa.list_(pa.float32())


def impressions(random: np.random.Generator, rows: int, users: range) -> pa.Table:
    """Rows in the order of users, each user with one history, left-padded; users 7, 14, ... have none."""
    user = np.sort(random.choice(users, rows))
    history = {u: random.integers(1, ITEMS, 0 if u % 7 == 0 else random.integers(1, WIDTH + 1)) for u in users}
    sequence = [[0] * (WIDTH - len(history[u])) + history[u].tolist() for u in user]
    integers = {
        "user_id": user,
        "item_id": random.integers(1, ITEMS, rows),
        "likes_level": random.integers(0, 11, rows),
        "views_level": random.integers(1, 11, rows),
        "label": random.random(rows) < 0.25,
    }
    columns = {name: pa.array(values.astype(np.int64)) for name, values in integers.items()}
    return pa.table(columns | {"item_seq": pa.array(sequence, INT_LIST)})


def write(root: Path, shuffle: bool = False) -> Path:
    root.mkdir()
    random = np.random.default_rng(0)
    train, valid = impressions(random, TRAIN, range(1, 500)), impressions(random, VALID, range(480, 600))
    if shuffle:
        train = train.take(pa.array(random.permutation(TRAIN)))
    pq.write_table(train, root / "train.parquet", row_group_size=300)
    pq.write_table(valid, root / "valid.parquet")
    tags = np.where(np.arange(5) >= random.integers(0, 6, (ITEMS, 1)), random.integers(1, 30, (ITEMS, 5)), 0)
    vectors = random.standard_normal((ITEMS, 128))
    tags[0] = vectors[0] = vectors[5] = 0  # the padding item, and an item without an embedding
    info = {
        "item_id": pa.array(np.arange(ITEMS)),
        "item_tags": pa.array(tags.tolist(), INT_LIST),
        "item_emb_d128": pa.array(vectors.tolist(), FLOAT_LIST),
    }
    pq.write_table(pa.table(info), root / "item_info.parquet")
    return root


def write_features(root: Path) -> None:
    items = np.arange(1, ITEMS)
    vectors = {"txt_emb_BERT": 768, "img_emb_CLIPRN50": 1024}
    columns = {
        "item_id": items,
        "item_title": [f"title {k}" for k in items],
        "item_tags": pa.array([[1, 2]] * len(items), INT_LIST),
        "likes_level": items % 11,
        "views_level": items % 11,
    } | {name: pa.array(np.outer(items, np.ones(width)).tolist(), FLOAT_LIST) for name, width in vectors.items()}
    pq.write_table(pa.table(columns).take(pa.array(items[::-1] - 1)), root / "item_feature.parquet")


def rows_of(source: Path) -> list[dict]:
    return [row for name in ("train", "valid") for row in pq.read_table(source / f"{name}.parquet").to_pylist()]


def item_ids(dataset: Dataset) -> np.ndarray:
    return np.array(dataset.item_table.column("id"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_rows_and_their_histories(tmp_path, shuffle):
    source = write(tmp_path / "source", shuffle)
    dataset = microlens(tmp_path / "out", source=source)
    column, ids, users = dataset.interactions, item_ids(dataset), np.array(dataset.user_table.column("id"))
    rows = rows_of(source)
    assert len(rows) == len(column["user"]) == TRAIN + VALID
    for k, row in enumerate(rows):
        assert users[column["user"][k]] == row["user_id"] and ids[column["item"][k]] == row["item_id"]
        assert column["label"][k] == row["label"] and column["time"][k] == k
        for name in ("likes_level", "views_level"):  # 0 is unknown (id 1), level 1 the first known id
            assert column[f"context_{name}"][k] == row[name] + 1
        history = ids[dataset.events["item"][column["history_start"][k] : column["history_end"][k]]]
        assert history.tolist() == [item for item in row["item_seq"] if item]
    distinct = {tuple(row["item_seq"]) for row in rows}
    assert len(dataset.events["item"]) == sum(item > 0 for sequence in distinct for item in sequence)


def test_items_have_no_padding_row(tmp_path):
    source = write(tmp_path / "source")
    dataset = microlens(tmp_path / "out", source=source)
    assert item_ids(dataset).tolist() == list(range(1, ITEMS))
    words = [0, None, *map(int, dataset.meta["vocabularies"]["item"]["tags"])]
    tags = [[words[i] for i in row] for row in dataset.item_table.column("tags").to_pylist()]
    assert tags == pq.read_table(source / "item_info.parquet").column("item_tags").to_pylist()[1:]
    features = dataset.features("item_emb")
    vectors = np.array(pq.read_table(source / "item_info.parquet").column("item_emb_d128").to_pylist())[1:]
    np.testing.assert_allclose(features.tokens[:, 0], vectors, atol=2e-3)
    assert features.mask[:, 0].tolist() == [item != 5 for item in range(1, ITEMS)]
    assert dataset.meta["notes"] == ["no item_feature.parquet: no titles, and no feature sets text and image"]


def test_features_titles_and_covers_are_joined_by_item(tmp_path):
    source = write(tmp_path / "source")
    write_features(source)
    (source / "item_images").mkdir()
    for item in range(2, ITEMS):
        (source / "item_images" / f"{item}.jpg").write_bytes(b"jpeg")
    dataset = microlens(tmp_path / "out", source=source)
    ids = item_ids(dataset)
    assert dataset.item_table.column("title").to_pylist() == [f"title {k}" for k in ids]
    for name, width in (("text", 768), ("image", 1024)):
        np.testing.assert_array_equal(dataset.features(name).tokens[:, 0], np.outer(ids, np.ones(width)))
    assert dataset.item_table.column("image").to_pylist() == [None, *(f"item_images/{k}.jpg" for k in ids[1:])]
    assert any("item_images/1.jpg" in note for note in dataset.meta["notes"])


@pytest.mark.parametrize("test", ["halves", "valid_file"])
def test_splits_do_not_cut_users(tmp_path, test):
    source = write(tmp_path / "source")
    dataset = microlens(tmp_path / "out", source=source, test=test)
    split, user = dataset.interactions["split"], dataset.interactions["user"]
    sizes = np.bincount(split, minlength=3)
    if test == "halves":
        assert sizes[0] == TRAIN and abs(sizes[1] - VALID // 2) < 10
        assert not set(user[split == 1]) & set(user[split == 2])
    else:
        assert sizes[2] == VALID and 10 <= sizes[1] <= 20
        assert not set(user[split == 0]) & set(user[split == 1])
    assert "test.parquet" in dataset.meta["split_rule"]


def _change(source: Path, name: str, **columns) -> None:
    table = pq.read_table(source / name)
    for column, (row, value) in columns.items():
        values = table.column(column).to_pylist()
        values[row] = value
        index = table.column_names.index(column)
        table = table.set_column(index, column, pa.array(values, table.schema.field(column).type))
    pq.write_table(table, source / name)


def _damage(path: Path) -> None:
    """Overwrites data in the middle; the end, which says where things are, stays."""
    content = bytearray(path.read_bytes())
    content[100 : len(content) // 2] = bytes(len(content) // 2 - 100)
    path.write_bytes(content)


BAD = {
    "no file": (lambda s: (s / "valid.parquet").unlink(), r"valid.parquet: file missing; .*MicroLens_1M_x1"),
    "no column": (
        lambda s: pq.write_table(pq.read_table(s / "train.parquet").drop_columns(["item_seq"]), s / "train.parquet"),
        r"train.parquet: no column 'item_seq'",
    ),
    "item": (lambda s: _change(s, "train.parquet", item_id=(7, 99)), r"train.parquet row 7 .*item_id 99 is not in"),
    "padding item": (lambda s: _change(s, "valid.parquet", item_id=(3, 0)), r"valid.parquet row 3 .*item_id 0 is not"),
    "history": (
        lambda s: _change(s, "valid.parquet", item_seq=(5, [0] * (WIDTH - 1) + [77])),
        r"valid.parquet row 5 .*item_seq 77 is not in item_info",
    ),
    "width": (lambda s: _change(s, "valid.parquet", item_seq=(5, [1, 2])), r"valid.parquet row 5 .*has 2 values.*12"),
    "label": (lambda s: _change(s, "train.parquet", label=(11, 2)), r"train.parquet row 11 .*label is 2, not in 0..1"),
    "no label": (lambda s: _change(s, "train.parquet", label=(11, None)), r"train.parquet row 11 .*'label' is empty"),
    "level": (lambda s: _change(s, "valid.parquet", views_level=(9, 11)), r"valid.parquet row 9 .*not in 0..10"),
    "item twice": (lambda s: _change(s, "item_info.parquet", item_id=(4, 3)), r"item_info.parquet row 4 .*id 3 occurs"),
    "damaged": (lambda s: _damage(s / "train.parquet"), r"train.parquet: damaged"),
    "not parquet": (lambda s: (s / "train.parquet").write_bytes(b"hello"), r"train.parquet: not a readable Parquet"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_named(tmp_path, case):
    act, message = BAD[case]
    source = write(tmp_path / "source")
    act(source)
    with pytest.raises(UserError, match=message):
        microlens(tmp_path / "out", source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_bad_choice_of_test(tmp_path):
    with pytest.raises(UserError, match="choose halves or valid_file"):
        microlens(tmp_path / "out", source=write(tmp_path / "source"), test="test.parquet")
