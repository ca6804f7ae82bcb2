"""MMRec folders as hypothesis draws them: every interaction is in the dataset, or one line says why not."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from untidy import dataset_or_one_line, encoded, generated, lines

from em3_jax.data.format import Dataset
from em3_jax.data.readers.mmrec import mmrec

USERS, ITEMS, PER_USER = 3, 8, 4
BAD = [None, "x", "-1", "3", "1.5", "99", "1e3", "nan", '"', "2.0", " 1", "9999999999999999999"]
ARRAYS = {
    "good": lambda: np.ones((ITEMS, 3), np.float32),
    "long": lambda: np.ones((ITEMS + 2, 3), np.float16),
    "doubles": lambda: np.ones((ITEMS, 3)),
    "short": lambda: np.ones((ITEMS - 5, 3), np.float32),
    "whole": lambda: np.ones((ITEMS, 3), int),
    "flat": lambda: np.ones(ITEMS, np.float32),
    "NaN": lambda: np.full((ITEMS, 3), np.nan, np.float32),
    "objects": lambda: np.array([None] * ITEMS),
    "words": lambda: np.array(["a"] * ITEMS),
    "none of an item": lambda: np.zeros((0, 3), np.float32),
}


@st.composite
def folders(draw) -> dict:
    pairs = [[u, i] for u in range(USERS) for i in draw(st.permutations(range(ITEMS)))[:PER_USER]]
    rows = [[*pair, (0, 0, 1, 2)[k % PER_USER]] for k, pair in enumerate(pairs)]
    names = draw(st.permutations(["userID", "itemID", "x_label", "rating"]))
    return {
        "rows": draw(st.permutations(rows)),
        "names": names,
        "file": draw(st.sampled_from(["interactions.tsv", "baby.inter"])),
        "end": draw(st.sampled_from(["\n", "\r\n", "\n\n"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])),
        "rating": draw(st.sampled_from([None, '"', "Café", "5"])),
        "spoilt": draw(st.one_of(st.none(), st.tuples(st.integers(0, len(rows) - 1), st.integers(0, 2), st.sampled_from(BAD)))),
        "array": draw(st.one_of(st.sampled_from(["good", "long"]), st.sampled_from(list(ARRAYS)))),
        "negatives": draw(st.integers(0, 4)),
    }  # fmt: skip


@generated(150)
@given(folders())
def test_folders(draw):
    rows = [list(row) for row in draw["rows"]]
    if draw["spoilt"]:
        row, column, value = draw["spoilt"]
        rows[row][column] = value
    cells = [dict(zip(("userID", "itemID", "x_label"), row, strict=True)) | {"rating": draw["rating"]} for row in rows]
    text = lines([draw["names"], *([row[name] for name in draw["names"]] for row in cells)], "\t", draw["end"])
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        root.mkdir()
        encoded(root / draw["file"], text, draw["encoding"])
        np.save(root / "image_feat.npy", ARRAYS[draw["array"]](), allow_pickle=draw["array"] == "objects")
        options = {"as_clicks": bool(draw["negatives"]), "negatives": draw["negatives"]}
        made = dataset_or_one_line(lambda: mmrec(Path(folder) / "out", source=root, **options))
        if not isinstance(made, Dataset):
            assert draw["spoilt"] or draw["array"] not in ("good", "long", "doubles")
            return
        (account,) = made.meta["rows"].values()
        clicks = made.interactions["label"] == 1
        assert account["read"] == len(rows) == clicks.sum() == account["kept"]
        columns = (made.interactions[name][clicks].tolist() for name in ("user", "item", "split"))
        assert sorted(zip(*columns, strict=True)) == sorted(tuple(map(int, map(float, row))) for row in rows)
        assert len(clicks) == len(rows) * (1 + draw["negatives"])
