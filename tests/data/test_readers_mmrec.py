"""MMRec folders: the drawn negatives, the histories without times, and the real TikTok folder where it is at hand."""

from pathlib import Path

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.pipeline import training_rows, training_source
from em3_jax.data.readers.mmrec import Log, draw_negatives, mmrec

ITEMS = 40
TRAIN = [12, 1, 0, 5, 2, 30, 7, 3]  # training items of each user; user 1 has one and user 2 none
HELD_OUT = [2, 1, 1, 0, 2, 3, 1, 1]  # of valid, and of test


def log_rows() -> list[tuple[int, int, int]]:
    random, rows = np.random.default_rng(0), []
    for user, (train, held_out) in enumerate(zip(TRAIN, HELD_OUT, strict=True)):
        items = random.permutation(ITEMS - 1)[: train + 2 * held_out]  # the last item occurs nowhere
        split = np.repeat([0, 1, 2], [train, held_out, held_out])
        rows += zip([user] * len(items), items.tolist(), split.tolist(), strict=True)
    return [rows[k] for k in random.permutation(len(rows))]


ROWS = log_rows()
COMMON = "userID\titemID\tx_label\n"


def write(root: Path, rows=ROWS) -> Path:
    root.mkdir()
    (root / "interactions.tsv").write_text(COMMON + "".join(f"{u}\t{i}\t{x}\n" for u, i, x in rows))
    return root


def vectors(width: int) -> np.ndarray:
    return np.random.default_rng(width).standard_normal((ITEMS, width)).astype(np.float32)


def train_items(user: int) -> set[int]:
    return {i for u, i, x in ROWS if u == user and x == 0}


def histories(dataset: Dataset) -> list[list[int]]:
    columns, item = dataset.interactions, dataset.events["item"]
    ranges = zip(columns["history_start"], columns["history_end"], strict=True)
    return [item[start:end].tolist() for start, end in ranges]


@pytest.fixture(scope="module", params=[0, 1, 3])
def prepared(request, tmp_path_factory) -> tuple[Dataset, int]:
    """A dataset, and the number of negatives of each click; without any it is one for retrieval."""
    root, count = tmp_path_factory.mktemp("mmrec"), request.param
    write(root / "source")
    np.save(root / "source" / "image_feat.npy", vectors(8))
    settings = {"as_clicks": True, "negatives": count} if count else {}
    return mmrec(root / "out", source=root / "source", **settings), count


def test_each_interaction_stands_before_its_negatives_in_its_split(prepared):
    dataset, count = prepared
    group, columns = 1 + count, dataset.interactions
    assert len(columns["user"]) == group * len(ROWS)
    assert dataset.num_users == len(TRAIN) and dataset.num_items == ITEMS
    groups = {name: column.reshape(-1, group) for name, column in columns.items()}
    for name in ("user", "split", "time", "history_start", "history_end"):
        assert (groups[name] == groups[name][:, :1]).all()
    np.testing.assert_array_equal(groups["label"], np.tile([1] + [0] * count, (len(ROWS), 1)))
    clicks = zip(*(groups[name][:, 0].tolist() for name in ("user", "item", "split")), strict=True)
    clicks = list(clicks)
    assert sorted(clicks) == sorted(ROWS) and clicks != sorted(clicks, key=lambda row: (row[2], row[0], row[1]))
    assert (np.diff(columns["split"].astype(int)) >= 0).all()
    assert (np.diff(groups["user"][groups["split"][:, 0] == 0, 0]) < 0).any()  # not sorted by user
    for code, name in enumerate(("train", "valid", "test")):
        rows = dataset.split_rows(name)
        assert isinstance(rows, range) and len(rows) == group * sum(x == code for _, _, x in ROWS)


def test_negatives_are_different_and_not_touched_up_to_their_part(prepared):
    """In training an item of a later part is drawn like any other: that it never is would tell which they are."""
    dataset, count = prepared
    part, columns, later = {(u, i): x for u, i, x in ROWS}, dataset.interactions, 0
    item = columns["item"].reshape(-1, 1 + count)
    for k, row in enumerate(item.tolist()):
        user, split = int(columns["user"][k * (1 + count)]), int(columns["split"][k * (1 + count)])
        assert len(set(row)) == 1 + count
        parts = [part.get((user, negative), 3) for negative in row[1:]]
        assert all(x > split for x in parts)
        later += sum(x < 3 for x in parts)
    assert later or not count


def test_histories_are_the_other_training_items(prepared):
    dataset, _ = prepared
    columns, clicked = dataset.interactions, None
    for k, history in enumerate(histories(dataset)):
        user, item, label = (int(columns[name][k]) for name in ("user", "item", "label"))
        clicked = item if label else clicked  # a group begins with its click
        others = train_items(user) - ({clicked} if columns["split"][k] == 0 else set())
        assert len(history) == len(others) and set(history) == others
        assert item not in history
    order = next(
        h for h, u, x in zip(histories(dataset), columns["user"], columns["split"], strict=True) if u == 5 and x
    )
    assert order != sorted(order) and order != [i for u, i, x in ROWS if u == 5 and x == 0]


def test_counts_are_of_the_training_rows(prepared):
    dataset, _ = prepared
    train = slice(0, dataset.split_rows("train").stop)
    for name in ("user", "item"):
        expected = np.bincount(dataset.interactions[name][train], minlength=len(dataset.counts[name]))
        np.testing.assert_array_equal(dataset.counts[name], expected)
    shown = [i for u, i, x in ROWS if x == 0 and TRAIN[u] > 1]  # an only item stands in no training history
    np.testing.assert_array_equal(dataset.counts["item_history"], np.bincount(shown, minlength=ITEMS))


def test_negatives_are_uniform():
    """All ordered pairs of free items are equally frequent; users touch the first, the last and neighbouring items."""
    users, items, touched = 3000, 9, [0, 3, 4, 8]
    user, item = np.repeat(np.arange(users), len(touched)), np.tile(touched, users)
    log = Log(user, item, np.zeros_like(user), users, items)
    every_row = np.arange(len(user))
    drawn = draw_negatives(np.random.default_rng(0), log, every_row, 2)
    pairs, observed = np.unique(drawn, axis=0, return_counts=True)
    assert set(pairs.ravel()) == set(range(items)) - set(touched) and len(pairs) == 5 * 4
    expected = len(drawn) / len(pairs)
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 19 + 4 * np.sqrt(2 * 19)  # mean and 4 standard deviations at 19 degrees of freedom
    every = draw_negatives(np.random.default_rng(0), log, every_row, 5)
    np.testing.assert_array_equal(np.sort(every, axis=1), np.tile([1, 2, 5, 6, 7], (len(every), 1)))


def test_the_seed_fixes_everything_drawn(tmp_path):
    source, turned = write(tmp_path / "source"), write(tmp_path / "turned", ROWS[::-1])
    makes = {"a": (source, 0), "b": (source, 0), "order of the file": (turned, 0), "other seed": (source, 1)}
    hashes = {
        name: mmrec(tmp_path / name, source=folder, as_clicks=True, seed=seed).meta["data_hash"]
        for name, (folder, seed) in makes.items()
    }
    assert hashes["a"] == hashes["b"] == hashes["order of the file"] != hashes["other seed"]
    one, three = (mmrec(tmp_path / f"{n}", source=source, as_clicks=True, negatives=n) for n in (1, 3))
    np.testing.assert_array_equal(one.events["item"], three.events["item"])
    np.testing.assert_array_equal(one.interactions["history_start"], three.interactions["history_start"][::4].repeat(2))


def test_provenance(prepared):
    dataset, count = prepared
    meta = dataset.meta
    assert meta["name"] == "mmrec (source)" and "x_label" in meta["split_rule"]
    assert meta["arguments"] == {"as_clicks": count > 0, "negatives": count, "seed": 0}
    assert meta["label_rule"].startswith(f"an interaction is 1, against {count} items" if count else "all rows are 1")
    assert meta.get("negatives") == ("uniform" if count else None)


def test_clicks_on_items_that_are_only_negative_are_noted(tmp_path):
    rows = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 2, 1), (1, 3, 2)]
    dataset = mmrec(tmp_path / "out", source=write(tmp_path / "source", rows), as_clicks=True, negatives=1)
    columns = dataset.interactions
    negatives = set(columns["item"][(columns["split"] == 0) & (columns["label"] == 0)])
    counts = int(2 in negatives), int(3 in negatives)
    assert any(counts)
    assert dataset.meta["notes"][0].startswith(f"{counts[0]} valid and {counts[1]} test clicks are on items that")


def test_features_are_the_rows_of_the_arrays(tmp_path):
    source = write(tmp_path / "source")
    arrays = {"image": vectors(8), "text": vectors(4).astype(np.float16), "audio": vectors(6).astype(np.float64)}
    arrays["audio"][[3, 7]] = 0
    for name, array in arrays.items():
        np.save(source / f"{name}_feat.npy", array)
    dataset = mmrec(tmp_path / "out", source=source)
    assert dataset.num_items == ITEMS  # more than occur
    for name, array in arrays.items():
        features = dataset.features(name)
        assert features.tokens.dtype == (np.float16 if name == "text" else np.float32)
        np.testing.assert_array_equal(features.tokens, array[:, None].astype(features.tokens.dtype))
        np.testing.assert_array_equal(features.mask, array.any(axis=1)[:, None])
    assert np.flatnonzero(~dataset.features("audio").mask[:, 0]).tolist() == [3, 7]


def test_an_inter_file_with_more_columns(tmp_path):
    plain = mmrec(tmp_path / "plain", source=write(tmp_path / "source"))
    (tmp_path / "other").mkdir()
    lines = "".join(f"{x}\t{i}\t4.5\tword\t{u}\n" for u, i, x in ROWS)
    (tmp_path / "other" / "baby.inter").write_text("x_label\titemID\trating\ttimestamp\tuserID\n" + lines)
    other = mmrec(tmp_path / "out", source=tmp_path / "other")
    assert other.num_items == max(i for _, i, _ in ROWS) + 1
    for name, column in plain.interactions.items():
        np.testing.assert_array_equal(column, other.interactions[name])


def _append(root: Path, line: str) -> None:
    with open(root / "interactions.tsv", "a") as file:
        file.write(line + "\n")


def _save(root: Path, name: str, array: np.ndarray) -> None:
    np.save(root / name, array, allow_pickle=array.dtype == object)


def _with_nan() -> np.ndarray:
    array = vectors(8)
    array[5, 2] = np.nan
    return array


LAST = len(ROWS) + 2  # the line that is appended
BAD = {
    "no file": (lambda r: (r / "interactions.tsv").unlink(), r"source: must hold exactly one of .* there are none"),
    "two files": (
        lambda r: (r / "baby.inter").touch(),
        r"there are 2 interactions files, interactions.tsv, baby.inter",
    ),
    "no column": (
        lambda r: (r / "interactions.tsv").write_text("userID\titem_ID\tx_label\n0\t0\t0\n"),
        r"interactions.tsv: no column 'itemID'; did you mean 'item_ID'",
    ),
    "no x_label": (
        lambda r: (
            (r / "interactions.tsv").unlink(),
            (r / "baby.inter").write_text("userID\titemID\trating\n0\t0\t5.0\n"),
        ),
        r"baby.inter: no column 'x_label'",
    ),
    "no valid": (
        lambda r: (r / "interactions.tsv").write_text(COMMON + "0\t0\t0\n0\t1\t2\n"),
        r"interactions.tsv: no row has x_label 1 \(valid\)",
    ),
    "empty file": (lambda r: (r / "interactions.tsv").write_text(""), r"interactions.tsv: the file is empty"),
    "no rows": (lambda r: (r / "interactions.tsv").write_text(COMMON), r"interactions.tsv: there are no rows"),
    "part": (lambda r: _append(r, "0\t39\t3"), rf"interactions.tsv line {LAST}: x_label is 3; must be 0"),
    "no test": (
        lambda r: (r / "interactions.tsv").write_text(COMMON + "0\t0\t0\n0\t1\t1\n"),
        r"interactions.tsv: no row has x_label 2 \(test\)",
    ),
    "word": (lambda r: _append(r, "0\tB07\t0"), rf"interactions.tsv line {LAST}, column 'itemID': .*'B07'"),
    "fraction": (lambda r: _append(r, "0.5\t39\t0"), rf"interactions.tsv line {LAST}, column 'userID': .*'0.5'"),
    "empty value": (lambda r: _append(r, "0\t\t0"), rf"interactions.tsv line {LAST}: column 'itemID' is empty"),
    "negative id": (lambda r: _append(r, "-1\t39\t0"), rf"interactions.tsv line {LAST}: userID is -1; ids are"),
    "not dense": (
        lambda r: _append(r, "0\t123456789\t0"),
        rf"line {LAST}: itemID is 123456789, but only \d+ different",
    ),
    "short line": (lambda r: _append(r, "0\t1"), rf"interactions.tsv line {LAST}: Expected 3 columns"),
    "twice": (
        lambda r: _append(r, f"{ROWS[4][0]}\t{ROWS[4][1]}\t1\n{ROWS[2][0]}\t{ROWS[2][1]}\t1"),
        rf"line {LAST}: user {ROWS[4][0]} and item {ROWS[4][1]} again, as in line 6; keep one",
    ),
    "few rows": (
        lambda r: _save(r, "image_feat.npy", vectors(8)[:7]),
        r"image_feat.npy: 7 rows, but the catalogue .*39",
    ),
    "other rows": (
        lambda r: (_save(r, "image_feat.npy", vectors(8)), _save(r, "text_feat.npy", vectors(8)[:-1])),
        r"text_feat.npy: 39 rows, but the catalogue .* has 40",
    ),
    "dimensions": (lambda r: _save(r, "image_feat.npy", vectors(8)[:, None]), r"image_feat.npy: shape is \(40, 1, 8\)"),
    "nan": (lambda r: _save(r, "image_feat.npy", _with_nan()), r"image_feat.npy row 5 .*NaN"),
    "integers": (lambda r: _save(r, "image_feat.npy", vectors(8).astype(int)), r"image_feat.npy: dtype is int64"),
    "pickled": (
        lambda r: _save(r, "image_feat.npy", vectors(8).astype(object)),
        r"image_feat.npy: not a readable .npy",
    ),
    "name": (lambda r: _save(r, "my-image_feat.npy", vectors(8)), r"feature set name 'my-image' must be letters"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_named(tmp_path, case):
    act, message = BAD[case]
    source = write(tmp_path / "source")
    act(source)
    with pytest.raises(UserError, match=message):
        mmrec(tmp_path / "out", source=source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    "settings,message",
    [
        ({"negatives": 0}, "--negatives 0: must be at least 1"),
        ({"negatives": 4}, r"user 5 touches 36 of the 39 items: 3 are left for 4 negatives; .*smaller --negatives"),
        ({"seed": -1}, "--seed -1: must be at least 0"),
        ({"source": "nowhere"}, "nowhere: no such folder; give the MMRec folder as --source"),
    ],
)
def test_bad_options(tmp_path, settings, message):
    source = write(tmp_path / "source")
    with pytest.raises(UserError, match=message):
        mmrec(tmp_path / "out", **({"source": source, "as_clicks": True} | settings))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_interactions_alone_of_the_plain_folders(shared_data, tmp_path):
    """The counts that their READMEs state."""
    sizes = {"tiktok": (9_308, 6_710, (59_541, 3_051, 6_130)), "baby": (19_445, 7_050, (118_551, 21_682, 20_559))}
    for name, (users, items, splits) in sizes.items():
        if not (shared_data / name).is_dir():
            pytest.skip(f"{name} is not here")
        dataset = mmrec(tmp_path / name, source=shared_data / name)
        assert (dataset.num_users, dataset.num_items) == (users, items) and dataset.meta["only_clicks"]
        assert tuple(len(dataset.split_rows(part)) for part in ("train", "valid", "test")) == splits
        have = sorted(path.name for path in (dataset.root / "features").iterdir())
        assert have == (["audio", "image"] if name == "tiktok" else [])


def test_tiktok(shared_data, tmp_path):
    """The counts its README states, and a batch."""
    if not (shared_data / "tiktok").is_dir():
        pytest.skip("tiktok is not here")
    mmrec(tmp_path / "out", source=shared_data / "tiktok", as_clicks=True)
    dataset = open_dataset(tmp_path / "out")
    counts = {"interactions": 4 * 68_722, "users": 9_308, "items": 6_710, "events": 2 * 59_541}
    assert dataset.meta["counts"] == counts
    assert [len(dataset.split_rows(name)) for name in ("train", "valid", "test")] == [
        4 * 59_541, 4 * 3_051, 4 * 6_130,
    ]  # fmt: skip
    assert dataset.meta["notes"][0].startswith("223 valid and 449 test clicks")
    assert dataset.counts["item_history"].max() > 0 and (dataset.counts["user"] == 0).sum() == 10
    for name in ("image", "audio"):
        array = np.load(shared_data / "tiktok" / f"{name}_feat.npy", allow_pickle=False)
        np.testing.assert_array_equal(dataset.features(name).tokens[:, 0], array)
        assert dataset.features(name).mask.all()
    sets = tuple(map(dataset.features, ("image", "audio")))
    builder = BatchBuilder(dataset, history_length=50, unknown_alpha=0.25, unknown_floor={}, host_features=sets)
    rows = training_rows(dataset, "click", 40)
    assert np.bincount(dataset.interactions["user"][rows]).max() == 40
    batch = training_source(builder, rows, batch_size=256, seed=0, order="shuffled")[0]
    assert batch["history_position"].shape == (256, 50)
    assert batch["tokens"]["image"].shape == (len(batch["item_id"]), 1, 128)
