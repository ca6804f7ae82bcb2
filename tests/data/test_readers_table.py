"""Anybody's tables: what they hold comes back, and each mistake is named by file and place."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

ROWS, USERS, ITEMS = 60, 5, 8
MAPPING = {
    "columns": {"user": "uid", "item": "sku", "time": "ts"},
    "label": "rating>=4",
    "item_fields": ("brand", "tags:multi"),
    "item_text": ("title", "brand"),
    "item_image": "photo",
    "user_fields": ("city",),
    "context_fields": ("device os",),
    "event_fields": ("rating",),
}


def tables() -> dict[str, pa.Table]:
    """Interactions out of order, with ids that only text keeps apart ("7" and "007")."""
    random = np.random.default_rng(1)
    row = np.arange(ROWS)
    interactions = {
        "uid": [f"u{u}" for u in random.integers(0, USERS, ROWS)],
        "sku": [["7", "007", *"abcdef"][i] for i in random.integers(0, ITEMS, ROWS)],
        "rating": random.integers(1, 6, ROWS),
        "ts": random.permutation(row // 2) + 1_000,
        "device os": [["web", "NA", None][k % 3] for k in row],
        "part": [["train", "train", "valid", "test"][k % 4] for k in row],
    }
    items = {
        "sku": ["7", "007", *"abcdef"],
        "brand": ["x", "y", None, "x", "z", "y", "x", "x"],
        "tags": ["red|big", "big", None, "red | small|big|new", "new", "red", "red", "red"],
        "title": ["seven", "bond", "a, b", None, 'quoted "d"', "e", "f", "g"],
        "photo": ["p0.jpg", "p1.jpg", None, "p3.jpg", "gone.jpg", None, None, None],
    }
    users = {"uid": [f"u{u}" for u in range(USERS)], "city": ["Oslo", "Bergen", "Oslo", None, "Oslo"]}
    return {"interactions": pa.table(interactions), "items": pa.table(items), "users": pa.table(users)}


def write(root: Path, kind: str = ".csv", **changed: pa.Table) -> dict[str, Path]:
    """Writes the tables (with others in place of some) and returns their paths, as arguments of `table`."""
    root.mkdir(exist_ok=True)
    paths = {}
    for name, content in (tables() | changed).items():
        paths[name] = root / f"{name}{kind}"
        if kind == ".parquet":
            pq.write_table(content, paths[name])
        else:
            options = pa.csv.WriteOptions(delimiter="\t" if kind == ".tsv" else ",")
            pa.csv.write_csv(content, paths[name], options)
    for image in ("p0.jpg", "p1.jpg", "p3.jpg"):
        (root / image).write_bytes(b"jpeg")
    return paths


def original(dataset: Dataset, group: str, name: str) -> list:
    words = [None, None, *dataset.meta["vocabularies"][group][name]]
    columns = {"context": dataset.interactions, "event": dataset.events}
    if group in columns:
        return [words[i] for i in columns[group][f"{'context' if group == 'context' else 'field'}_{name}"]]
    return [words[i] for i in (dataset.item_table if group == "item" else dataset.user_table).column(name).to_pylist()]


@pytest.mark.parametrize("kind", [".csv", ".tsv", ".parquet"])
def test_tables_come_back_whatever_their_form(tmp_path, kind):
    dataset = table(tmp_path / "out", **write(tmp_path / "in", kind), **MAPPING)
    source = tables()
    rows = sorted(source["interactions"].to_pylist(), key=lambda row: row["ts"])  # stable, as the reader
    column = dataset.interactions
    users, items = (np.array(t.column("id").to_pylist()) for t in (dataset.user_table, dataset.item_table))
    assert users[column["user"]].tolist() == [row["uid"] for row in rows]
    assert items[column["item"]].tolist() == [row["sku"] for row in rows]
    assert column["label"].tolist() == [row["rating"] >= 4 for row in rows]
    assert column["time"].tolist() == [row["ts"] for row in rows]
    assert original(dataset, "context", "device_os") == [row["device os"] for row in rows]
    assert column["split"].tolist() == [0] * 48 + [1] * 6 + [2] * 6
    for k, row in enumerate(rows):
        part = slice(column["history_start"][k], column["history_end"][k])
        clicks = [r for r in rows if r["uid"] == row["uid"] and r["ts"] < row["ts"] and r["rating"] >= 4]
        assert items[dataset.events["item"][part]].tolist() == [r["sku"] for r in clicks]
        assert original(dataset, "event", "rating")[part] == [str(r["rating"]) for r in clicks]
    assert dataset.item_table.column("title").to_pylist() == source["items"].column("title").to_pylist()
    assert dataset.item_table.column("brand_text").to_pylist() == source["items"].column("brand").to_pylist()
    assert original(dataset, "item", "brand") == source["items"].column("brand").to_pylist()
    assert original(dataset, "user", "city") == source["users"].column("city").to_pylist()
    words = [None, None, *dataset.meta["vocabularies"]["item"]["tags"]]
    tags = [[words[i] for i in row if i] for row in dataset.item_table.column("tags").to_pylist()]
    assert tags[:4] == [["red", "big"], ["big"], [], ["red", "small", "big", "new"]]
    assert dataset.item_table.column("image").to_pylist() == ["p0.jpg", "p1.jpg", None, "p3.jpg", *[None] * 4]
    assert any("gone.jpg" in note for note in dataset.meta["notes"])
    assert any("sorted" in note for note in dataset.meta["notes"])
    assert dataset.meta["image_root"] == str(tmp_path / "in")


def test_items_and_users_may_come_from_the_interactions(tmp_path):
    paths = write(tmp_path / "in")
    dataset = table(
        tmp_path / "out", interactions=paths["interactions"], columns=MAPPING["columns"], label="rating>3", events="all"
    )
    source = tables()["interactions"]
    assert dataset.item_table.column("id").to_pylist() == list(dict.fromkeys(source.column("sku").to_pylist()))
    assert dataset.meta["counts"]["events"] == ROWS


def test_a_split_of_ones_own_a_label_column_and_dates(tmp_path):
    changed = tables()["interactions"]
    days = pa.array(np.array(changed.column("ts")) * 86_400, pa.timestamp("s"))
    changed = changed.set_column(3, "time", days).append_column("label", pa.array(np.arange(ROWS) % 8 < 4))
    paths = write(tmp_path / "in", interactions=changed)
    dataset = table(
        tmp_path / "out",
        interactions=paths["interactions"],
        columns={"user": "uid", "item": "sku"},
        split="column:part",
    )
    assert np.bincount(dataset.interactions["split"]).tolist() == [30, 15, 15]
    assert dataset.interactions["time"][0] == 1_000 * 86_400 * 1_000  # milliseconds
    assert dataset.interactions["label"].sum() == sum(k % 8 < 4 for k in range(ROWS))


def test_other_names_for_the_ids_of_items(tmp_path):
    paths = write(tmp_path / "in", items=tables()["items"].rename_columns({"sku": "article"}))
    mapping = MAPPING | {"columns": MAPPING["columns"] | {"item_key": "article"}}
    assert table(tmp_path / "out", **paths, **mapping).num_items == ITEMS


def test_lists_and_dates_with_a_zone_in_parquet(tmp_path):
    items = tables()["items"]
    lists = pa.array([["red"], [], None, ["a", "b", "red"], ["a"] * 9, ["b"], ["b"], ["b"]])
    items = items.set_column(2, "tags", lists)
    log = tables()["interactions"]
    log = log.set_column(3, "ts", pa.array(np.array(log.column("ts")), pa.timestamp("s", tz="Europe/Oslo")))
    dataset = table(tmp_path / "out", **write(tmp_path / "in", ".parquet", items=items, interactions=log), **MAPPING)
    tags = dataset.item_table.column("tags").to_pylist()
    assert tags[0] == [4, *[0] * 7] and tags[1] == tags[2] == [0] * 8 and tags[3] == [2, 3, 4, *[0] * 5]
    assert "items.parquet: 1 rows have more than 8 tags; the first are kept" in dataset.meta["notes"]
    assert dataset.interactions["time"].min() == 1_000_000


PHOTOS = [
    ["p0.jpg", "gone.jpg", "p1.jpg"], ["p1.jpg"], None, ["frames", None, "p3.jpg"], ["gone.jpg"], [], ["p0.jpg"],
    ["frames"],
]  # fmt: skip


@pytest.mark.parametrize("kind", ["texts", "lists"])
def test_several_images_of_an_item(tmp_path, kind):
    form = ".parquet" if kind == "lists" else ".csv"
    photos = PHOTOS if kind == "lists" else [" | ".join(path or "" for path in row or ()) for row in PHOTOS]
    paths = write(tmp_path / "in", form, items=tables()["items"].set_column(4, "photo", pa.array(photos)))
    (tmp_path / "in" / "frames").mkdir()
    dataset = table(tmp_path / "out", **paths, **(MAPPING | {"item_image": "photo:multi"}))
    image = dataset.item_table.column("image")
    assert image.type == pa.list_(pa.string())
    there = [[path for path in row or () if path not in (None, "gone.jpg")] or None for row in PHOTOS]
    assert image.to_pylist() == there
    assert dataset.meta["summary"]["items_without"]["column image"] == there.count(None) / ITEMS
    assert f"1 images are not in {tmp_path / 'in'} and count as missing: gone.jpg" in dataset.meta["notes"]


def test_a_folder_of_frames_is_an_image(tmp_path):
    paths = write(tmp_path / "in", **with_value("items", "photo", 4, "frames"))
    (tmp_path / "in" / "frames").mkdir()
    image = table(tmp_path / "out", **paths, **MAPPING).item_table.column("image")
    assert image.type == pa.string()
    assert image.to_pylist() == ["p0.jpg", "p1.jpg", None, "p3.jpg", "frames", *[None] * 3]


def test_columns_that_are_no_paths_of_images(tmp_path):
    for values, image, message in (
        ([["p0.jpg"]] * ITEMS, "photo", r"items.parquet: column 'photo' holds lists; name it 'photo:multi'"),
        ([[b"\xff\xd8"]] * ITEMS, "photo:multi", r"column 'photo' holds list<.*binary>; give paths of images"),
        (
            [{"bytes": b"\xff", "path": ""}] * ITEMS,
            "photo",
            r"column 'photo' holds struct<bytes: binary, path: .*; give paths",
        ),
    ):
        paths = write(tmp_path / "in", ".parquet", items=tables()["items"].set_column(4, "photo", pa.array(values)))
        with pytest.raises(UserError, match=message) as error:
            table(tmp_path / "out", **paths, **(MAPPING | {"item_image": image}))
        assert "\n" not in str(error.value)


def test_ready_features_with_rows_of_zeros_for_missing_items(tmp_path):
    paths = write(tmp_path / "in")
    image, text = np.ones((ITEMS, 3)), np.ones((ITEMS, 2, 4), np.float16)
    image[2] = text[1, 1] = 0
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "text.npy", text)
    features = {name: str(tmp_path / f"{name}.npy") for name in ("image", "text")}
    dataset = table(tmp_path / "out", **paths, **MAPPING, features=features)
    assert dataset.features("image").tokens.dtype == np.float32 and dataset.features("text").tokens.dtype == np.float16
    assert dataset.features("image").mask[:, 0].tolist() == [k != 2 for k in range(ITEMS)]
    assert dataset.features("text").mask.tolist() == [[True, k != 1] for k in range(ITEMS)]


def test_rows_of_unknown_items_are_dropped_when_asked(tmp_path):
    paths = write(tmp_path / "in", items=tables()["items"].slice(1))
    dataset = table(tmp_path / "out", **paths, **MAPPING, drop_unknown=True)
    unknown = tables()["interactions"].column("sku").to_pylist().count("7")
    assert dataset.meta["counts"]["interactions"] == ROWS - unknown
    dropped = dataset.meta["rows"]["interactions.csv"]["dropped"]
    assert dropped == {"their item is not in items.csv": unknown}


def with_value(name: str, column: str, row: int, value) -> dict[str, pa.Table]:
    """The table `name` with one value replaced; the column becomes text."""
    content = tables()[name]
    values = [None if v is None else str(v) for v in content.column(column).to_pylist()]
    values[row] = value
    return {name: content.set_column(content.column_names.index(column), column, pa.array(values))}


def arrays(array: np.ndarray):
    def save(root: Path) -> dict:
        np.save(root / "f.npy", array)
        return {"features": {"image": str(root / "f.npy")}}

    return save


HALF = np.full((ITEMS, 2), np.nan)
HALF[:4] = 0
ITEM_TWICE = pa.concat_tables([tables()["items"], tables()["items"].slice(3, 1)])
LOG = tables()["interactions"]
NO_VALID = LOG.set_column(5, "part", pa.array([["train", "test"][k % 2] for k in range(ROWS)]))
# case -> (tables in place of the good ones, arguments in place of the good ones or a function that makes them, message)
BAD = {
    "missing file": ({}, {"items": Path("nowhere.csv")}, r"nowhere.csv: file missing"),
    "kind of file": ({}, {"items": Path(__file__)}, r"test_readers_table.py: unknown kind of file; give one of .csv"),
    "missing column": ({}, {"item_fields": ("brnd",)}, r"items.csv: no column 'brnd'; did you mean 'brand'\?"),
    "missing role": ({}, {"columns": {"item": "sku", "time": "ts"}}, r"interactions.csv: no column 'user'.*--columns user="),
    "unknown role": ({}, {"columns": {"usr": "uid"}}, r"no role 'usr'; did you mean 'user'\?"),
    "text for a time": (with_value("interactions", "ts", 4, "noon"), {}, r"interactions.csv line 6: time 'ts' is 'noon'"),
    "part of a second": (with_value("interactions", "ts", 0, "0.5"), {}, r"interactions.csv line 2: time 'ts' is 0.5"),
    "text for a rating": (with_value("interactions", "rating", 1, "good"), {}, r"interactions.csv.*'rating' holds string"),
    "empty time": (with_value("interactions", "ts", 9, None), {}, r"interactions.csv line 11: column 'ts' is empty"),
    "empty id": (with_value("interactions", "sku", 2, None), {}, r"interactions.csv line 4: column 'sku' is empty"),
    "label NaN": (with_value("interactions", "rating", 3, "nan"), {}, r"interactions.csv line 5: label 'rating' is nan"),
    "label not 0/1": ({}, {"label": None, "columns": MAPPING["columns"] | {"label": "rating"}}, r"'rating' is .*--label"),
    "label rule": ({}, {"label": "rating is good"}, r"label rule 'rating is good': write"),
    "number of a label rule": ({}, {"label": "rating>=4.5.1"}, r"label rule 'rating>=4\.5\.1': write"),
    "unknown item": ({"items": tables()["items"].slice(0, 7)}, {}, r"interactions.csv line \d+: item 'f' is not in .*--drop"),
    "unknown user": ({"users": tables()["users"].slice(1)}, {}, r"interactions.csv line \d+: user 'u0' is not in .*users"),
    "item twice": ({"items": ITEM_TWICE}, {}, r"items.csv line 10: id b occurs a second time"),
    "empty item id": (with_value("items", "sku", 1, None), {}, r"items.csv line 3: the id is empty"),
    "no items": ({"items": tables()["items"].slice(0, 0)}, {}, r"items.csv: there are no rows"),
    "no rows": ({"interactions": tables()["interactions"].slice(0, 0)}, {}, r"interactions.csv: there are no rows"),
    "one class": ({}, {"label": "rating>=1"}, r"interactions.csv: every row is a click, .*--negatives 3, or .*--as-retrieval"),
    "empty split": ({"interactions": NO_VALID}, {"split": "column:part"}, r"split 'valid' is empty"),
    "split shares": ({}, {"split": "80,10,10"}, r"split '80,10,10': give three shares that sum to 1"),
    "split NaN": ({}, {"split": "nan,0.1,0.2"}, r"split 'nan,0.1,0.2': give three shares"),
    "no row left": ({"items": tables()["items"].slice(0, 1).set_column(0, "sku", pa.array(["z"]))}, {"drop_unknown": True},
                    r"interactions.csv: no row is left, the ids of none are all in items.csv"),
    "split name": (with_value("interactions", "part", 8, "tain"), {"split": "column:part"}, r"line 10: split 'part' is 'tain'"),
    "separator": ({}, {"item_fields": ("tags:multi",), "separator": ";"}, r"items.csv: column 'tags' has no ';' but '\|'"),
    "no image column": ({}, {"item_image": "phto:multi"}, r"items.csv: no column 'phto'; did you mean 'photo'\?"),
    "images elsewhere": ({}, {"image_root": "/nowhere"}, r"no image of column 'photo' is in /nowhere; .*--image-root"),
    "features short": ({}, arrays(np.ones((ITEMS - 1, 2))), r"f.npy: 7 rows, but .*items.csv has 8"),
    "features long": ({}, arrays(np.ones((ITEMS + 1, 2))), r"f.npy: 9 rows"),
    "features NaN": ({}, arrays(HALF), r"f.npy row 4 \(counted from 0\): NaN or infinity \(4 such rows\)"),
    "features int": ({}, arrays(np.ones((ITEMS, 2), int)), r"f.npy: dtype is int64; save features as float16 or float32"),
    "features flat": ({}, arrays(np.ones(ITEMS)), r"f.npy: shape is \(8,\)"),
    "features pickled": ({}, arrays(np.array([{}] * ITEMS)), r"f.npy: not a readable .npy file"),
    "items missing": ({}, {"items": None}, r"no items file; add --items"),
    "users missing": ({}, {"users": None}, r"no users file; add --users"),
    "events": ({}, {"events": "likes"}, r"events 'likes': choose clicks, all or none"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(tmp_path, case):
    changed, arguments, message = BAD[case]
    paths = write(tmp_path / "in", **changed)
    arguments = arguments(tmp_path / "in") if callable(arguments) else arguments
    with pytest.raises(UserError, match=message) as error:
        table(tmp_path / "out", **(paths | MAPPING | arguments))
    assert "\n" not in str(error.value) and [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("word", ["nan", "NaN", "null", "None", "NA"])
def test_a_word_for_a_missing_number_is_no_id(tmp_path, word):
    def log(*ids: object) -> Path:
        rows = "".join(f"{ids[k % len(ids)]},{k % 5},{k},{k % 2}\n" for k in range(60))
        (tmp_path / "log.csv").write_text("user,item,time,label\n" + rows)
        return tmp_path / "log.csv"

    with pytest.raises(
        UserError, match=f"log.csv line 4: column 'user' is '{word}', where all others are numbers; fill"
    ):
        table(tmp_path / "out", interactions=log(1, 2.0, word, 4))
    among_names = table(tmp_path / "out", interactions=log("amy", 2, word))
    assert word in among_names.user_table.column("id").to_pylist(), "there it may be a name"


def test_lines_of_broken_text_are_counted(tmp_path):
    paths = write(tmp_path / "in")
    lines = paths["interactions"].read_text().splitlines()
    for broken, message in (("u1,7,4", "line 5: Expected 6 columns, got 3"), ('u1,"7\nu1', "interactions.csv")):
        paths["interactions"].write_text("\n".join([*lines[:4], broken, *lines[4:]]) + "\n")
        with pytest.raises(UserError, match=message):
            table(tmp_path / "out", **paths, **MAPPING)
    paths["interactions"].write_bytes("\n".join(lines).replace("web", "w\xe9b").encode("latin-1"))
    with pytest.raises(UserError, match=r"interactions.csv.*UTF-?8"):
        table(tmp_path / "out", **paths, **MAPPING)


def test_names_of_fields(tmp_path):
    items = tables()["items"].append_column("item", pa.array(["x"] * ITEMS))
    paths = write(tmp_path / "in", items=items)
    with pytest.raises(UserError, match="'item' or 'id'; rename a column"):
        table(tmp_path / "out", **(paths | MAPPING | {"item_fields": ("item",)}))
