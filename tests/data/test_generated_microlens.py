"""MicroLens folders as hypothesis draws them: every impression is in the dataset, or one line says why not."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st
from untidy import NUMBERS, as_type, dataset_or_one_line, generated

from em3_jax.data.format import Dataset
from em3_jax.data.readers.microlens import INFO, ROWS, microlens

COUNT, ITEMS, LENGTH = 10, 6, 4
LISTS = [pa.list_(pa.int64()), pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_(pa.int64(), LENGTH),
         pa.list_view(pa.int64()), pa.list_(pa.float64())]  # fmt: skip
SPOILT = ["a null", "a null in a list", "a list too short", "an unknown item", "no list", "a word", "a fraction", "no rows",
          "a huge id", "a negative id", "a column less", "twice", "a struct"]  # fmt: skip


@st.composite
def folders(draw) -> dict:
    return {
        "kinds": {name: draw(st.sampled_from(NUMBERS)) for name in (*ROWS, *INFO)},
        "list": draw(st.sampled_from(LISTS)),
        "users": [draw(st.lists(st.integers(1, 3), min_size=COUNT, max_size=COUNT)) for _ in range(2)],
        "items": [draw(st.lists(st.integers(1, ITEMS), min_size=COUNT, max_size=COUNT)) for _ in range(2)],
        "seen": [draw(st.lists(st.lists(st.integers(0, ITEMS), min_size=LENGTH, max_size=LENGTH), min_size=COUNT,
                               max_size=COUNT)) for _ in range(2)],
        "order": draw(st.permutations(ROWS)),
        "spoilt": draw(st.one_of(st.none(), st.sampled_from(SPOILT))),
        "column": draw(st.sampled_from(ROWS)),
        "test": draw(st.sampled_from(["halves", "valid_file"])),
    }  # fmt: skip


def interactions(draw: dict, part: int) -> pa.Table:
    numbers = {"user_id": draw["users"][part], "item_id": draw["items"][part], "label": [k % 2 for k in range(COUNT)],
               "likes_level": [k % 10 + 1 for k in range(COUNT)], "views_level": [k % 11 for k in range(COUNT)]}  # fmt: skip
    kinds = draw["kinds"]
    columns = {name: as_type(values, kinds[name]) for name, values in numbers.items()}
    columns["item_seq"] = pa.array(draw["seen"][part], draw["list"])
    return pa.table({name: columns[name] for name in draw["order"]})


def spoil(draw: dict, table: pa.Table) -> pa.Table:
    name, how = draw["column"], draw["spoilt"]
    values = table.column(name).to_pylist()
    is_list = name == "item_seq"
    column = {
        "a null": lambda: [None, *values[1:]],
        "a null in a list": lambda: [[None, *v[1:]] if is_list else v for v in values],
        "a list too short": lambda: [v[:-1] if is_list and k == 3 else v for k, v in enumerate(values)],
        "an unknown item": lambda: [[77, *v[1:]] if is_list else 77 for v in values],
        "no list": lambda: list(range(len(values))) if is_list else [[v] for v in values],
        "a word": lambda: ["x"] * len(values),
        "a fraction": lambda: [[0.5] * LENGTH if is_list else 0.5] * len(values),
        "a huge id": lambda: [[2**40] * LENGTH if is_list else 2**40] * len(values),
        "a negative id": lambda: [[-1] * LENGTH if is_list else -1] * len(values),
        "a struct": lambda: [{"a": 1, "b": 2}] * len(values),
    }.get(how)
    if how == "no rows":
        return table.slice(0, 0)
    if how == "a column less":
        return table.drop_columns([name])
    if column is None:
        return table
    return table.set_column(table.column_names.index(name), name, pa.array(column()))


@generated(120)
@given(folders())
def test_folders(draw):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        root.mkdir()
        train, valid = (interactions(draw, part) for part in range(2))
        pq.write_table(train, root / "train.parquet")
        pq.write_table(spoil(draw, valid), root / "valid.parquet")
        ids = [*range(ITEMS + 1), *([3] if draw["spoilt"] == "twice" else [])]
        info = {"item_id": as_type(ids, draw["kinds"]["item_id"]), "item_tags": [[0, 1, k] for k in ids],
                "item_emb_d128": np.ones((len(ids), 4), np.float32).tolist()}  # fmt: skip
        pq.write_table(pa.table(info), root / "item_info.parquet")
        made = dataset_or_one_line(lambda: microlens(Path(folder) / "out", source=root, test=draw["test"]))
        if not isinstance(made, Dataset):
            return
        assert [account["read"] for account in made.meta["rows"].values()] == [COUNT, COUNT]
        assert made.meta["counts"]["interactions"] == 2 * COUNT
        if draw["spoilt"] in (None, "twice"):
            assert draw["spoilt"] is None
            known = [int(float(user)) for user in made.user_table.column("id").to_pylist()]
            assert [known[u] for u in made.interactions["user"]] == [*draw["users"][0], *draw["users"][1]]
            assert made.interactions["label"].tolist() == [k % 2 for k in range(COUNT)] * 2
