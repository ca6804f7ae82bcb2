"""Splits by whole items, users and folds: who is where, what histories then show, and what is refused."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import prepare
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.splits import of_ids, parse, told
from em3_jax.data.readers.table import table

DOCS = Path(__file__).parents[2] / "docs" / "pictures.md"
SHARES = (0.7, 0.1, 0.2)
USERS, ITEMS, ROWS = 20, 60, 900


def write(root: Path, folds: list | None = None) -> dict[str, Path]:
    """A log of 900 rows in which users come back to items, and the items' table with five folds."""
    random = np.random.default_rng(4)
    folds = [k * 7 % 5 for k in range(ITEMS)] if folds is None else folds
    log = {
        "user": random.integers(0, USERS, ROWS),
        "item": [f"i{k}" for k in random.integers(0, ITEMS, ROWS)],
        "label": random.integers(0, 2, ROWS),
        "time": 1_600_000_000 + np.arange(ROWS) // 2,
    }
    items = {"item": [f"i{k}" for k in range(ITEMS)], "fold": folds}
    for name, columns in (("clicks", log), ("items", items)):
        pa.csv.write_csv(pa.table(columns), root / f"{name}.csv")
    return {"interactions": root / "clicks.csv", "items": root / "items.csv"}


def parts(dataset: Dataset, name: str) -> dict[int, set[int]]:
    """Split -> the users or items of its rows."""
    split, of_row = (np.asarray(dataset.interactions[one]) for one in ("split", name))
    return {code: set(of_row[split == code].tolist()) for code in range(3)}


def shown(dataset: Dataset, row: int) -> list[tuple[int, int]]:
    """(time, item) of a row's history."""
    start, end = (int(dataset.interactions[f"history_{one}"][row]) for one in ("start", "end"))
    return [(int(dataset.events["time"][k]), int(dataset.events["item"][k])) for k in range(start, end)]


def require_histories_of_training(dataset: Dataset, every: int) -> None:
    """Each history is all strictly earlier training rows of its user: none that is missing, none of another part."""
    column = {name: np.asarray(dataset.interactions[name]) for name in ("user", "item", "time", "split")}
    some = 0
    for row in range(0, len(column["user"]), every):
        earlier = (column["user"] == column["user"][row]) & (column["time"] < column["time"][row])
        rows = np.flatnonzero(earlier & (column["split"] == 0))
        expected = sorted(zip(column["time"][rows].tolist(), column["item"][rows].tolist(), strict=True))
        assert sorted(shown(dataset, row)) == expected
        some += len(expected)
    assert some


@pytest.mark.parametrize("kind", ["items", "users"])
def test_whole_items_and_users(kind, tmp_path):
    dataset = table(tmp_path / "out", **write(tmp_path), split=f"{kind}:0.6,0.2,0.2", events="all")
    found = parts(dataset, kind[:-1])
    assert all(found.values()) and len(set.union(*found.values())) == sum(map(len, found.values()))
    other = parts(dataset, "user" if kind == "items" else "item")
    assert other[0] & other[2]
    if kind == "items":
        require_histories_of_training(dataset, 1)
    else:  # a user who is new has the own earlier rows
        column = dataset.interactions
        row = int(np.flatnonzero(np.asarray(column["split"]) == 2)[-1])
        earlier = (column["user"] == column["user"][row]) & (column["time"] < column["time"][row])
        assert len(shown(dataset, row)) == int(earlier.sum()) > 0


def test_an_item_keeps_its_part_when_others_come_and_with_another_seed_the_draw_is_another():
    ids = [str(k) for k in range(20_000)]
    part = of_ids(ids, SHARES, 0)
    assert (of_ids(ids[::-7], SHARES, 0) == part[::-7]).all()
    np.testing.assert_allclose(np.bincount(part) / len(ids), SHARES, atol=0.01)
    assert 0.4 < (of_ids(ids, SHARES, 1) == part).mean() < 0.6  # 0.7^2 + 0.1^2 + 0.2^2 = 0.54
    assert part[:12].tolist() == [0, 0, 2, 1, 2, 0, 0, 0, 0, 0, 0, 1]  # of blake2b, for ever


def test_items_split_alike_by_every_reader_and_form_of_their_ids(tmp_path):
    paths = write(tmp_path)
    one = table(tmp_path / "one", **paths, split="items:0.6,0.2,0.2", seed=3)
    part = dict(zip(one.item_table.column("id").to_pylist(), _part_of_items(one), strict=True))
    expected = of_ids(list(part), (0.6, 0.2, 0.2), 3)
    assert all(found in (-1, right) for found, right in zip(part.values(), expected.tolist(), strict=True))


def _part_of_items(dataset: Dataset) -> list[int]:
    """[I]: the split of each item's rows; -1 without any."""
    part = np.full(dataset.num_items, -1)
    part[np.asarray(dataset.interactions["item"])] = dataset.interactions["split"]
    return part.tolist()


@pytest.mark.parametrize("split,test,valid", [("0", 0, 1), ("4", 4, 0), ("2,4", 2, 4)])
def test_folds_of_a_column_of_the_items(split, test, valid, tmp_path):
    paths = write(tmp_path)
    dataset = table(tmp_path / "out", **paths, split=f"folds:fold:{split}", events="all")
    found = parts(dataset, "item")
    assert found[2] == {k for k in range(ITEMS) if k * 7 % 5 == test}
    assert found[1] == {k for k in range(ITEMS) if k * 7 % 5 == valid}
    require_histories_of_training(dataset, 3)


def test_events_of_a_table_and_given_histories_show_no_item_that_is_held_out(tmp_path):
    paths = write(tmp_path)
    events = tmp_path / "events.csv"
    log = pa.csv.read_csv(paths["interactions"])
    pa.csv.write_csv(log.drop_columns("label").set_column(2, "time", pa.array(np.arange(ROWS) + 1_500_000_000)), events)
    dataset = table(tmp_path / "out", **paths, split="folds:fold:0", events_table=events)
    held = {k for k in range(ITEMS) if k * 7 % 5 in (0, 1)}
    stored = set(np.asarray(dataset.events["item"]).tolist())
    assert stored and not stored & held
    assert any("events of a table left out" in note for note in dataset.meta["notes"])
    past = ["|".join(f"i{(k + j) % ITEMS}" for j in range(5)) for k in range(ROWS)]
    pa.csv.write_csv(log.append_column("past", pa.array(past)), paths["interactions"])
    options = {"columns": {"history": "past"}, "overwrite": True}
    dataset = table(tmp_path / "out", **paths, split="folds:fold:0", **options)
    stored = set(np.asarray(dataset.events["item"]).tolist())
    assert stored and not stored & held
    assert sum(len(shown(dataset, row)) for row in range(ROWS)) == sum(
        int(one[1:]) not in held for text in past for one in text.split("|")
    )


def test_a_log_without_times_has_no_histories(tmp_path):
    paths = write(tmp_path)
    pa.csv.write_csv(pa.csv.read_csv(paths["interactions"]).drop_columns("time"), paths["interactions"])
    dataset = table(tmp_path / "out", **paths, split="items:0.6,0.2,0.2", time_unit="none")
    assert dataset.meta["counts"]["events"] == 0 and len(dataset.interactions["user"]) == ROWS
    assert any("has no times" in note for note in dataset.meta["notes"])
    assert "only says which row comes first" in prepare.report(dataset)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"split": "items:0.7,0.3"}, "give three shares that sum to 1"),
        ({"split": "items:0.7,0.2,0.2"}, "give three shares that sum to 1"),
        ({"split": "item:0.7,0.1,0.2"}, "no kind of split 'item'; did you mean 'items'"),
        ({"split": "folds:fold"}, "write folds:<column of the items>:<value of the test part>"),
        ({"split": "folds:fold:1,1"}, "write folds:<column of the items>:<value of the test part>"),
        ({"split": "folds:part:1"}, r"items.csv: no column 'part'"),
        ({"split": "folds:fold:9"}, r"items.csv: no fold is '9'"),
        ({"split": "folds:fold:1", "items": None}, "a column of the items; add their file with --items"),
        ({"time_unit": "none"}, "--time-unit none: nothing says which rows come first"),
        ({"time_unit": "none", "split": "users:0.6,0.2,0.2", "in_order": True}, "--in-order needs times"),
        ({"columns": {"time": "when"}}, "no column 'when'"),
    ],
)
def test_what_cannot_be_is_one_line(options, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        table(tmp_path / "out", **(write(tmp_path) | options))
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_folds_that_are_empty_or_too_few_are_named(tmp_path):
    with pytest.raises(UserError, match=r"items.csv.*fold"):
        table(tmp_path / "out", **write(tmp_path, [None, *[k % 5 for k in range(1, ITEMS)]]), split="folds:fold:0")
    with pytest.raises(UserError, match="fold has 2 values"):
        table(tmp_path / "out", **write(tmp_path, [k % 2 for k in range(ITEMS)]), split="folds:fold:0")


def test_a_missing_time_says_how_to_do_without(tmp_path):
    paths = write(tmp_path)
    pa.csv.write_csv(pa.csv.read_csv(paths["interactions"]).drop_columns("time"), paths["interactions"])
    with pytest.raises(UserError, match=r"no column 'time' .* --time-unit none"):
        table(tmp_path / "out", **paths)


def test_rules_in_words():
    assert told(parse("0.80,0.1,0.1")) == "by time, shares 0.8,0.1,0.1"
    assert told(parse("column:part")) == "column:part"
    assert told(parse("items:0.7,0.1,0.2")) == "by items, shares 0.7,0.1,0.2 of them"
    assert told(parse("folds:my:fold:3,4")) == "by items, my:fold 3 is test, 4 valid, the others train"


@pytest.fixture
def real(shared_data, tmp_path, monkeypatch) -> Path:
    """A working directory beside the real folders, as the documentation's mappings have them."""
    for name in ("bad-ads", "ml-100k-posters"):
        if not (shared_data / name).is_dir():
            pytest.skip(f"{name} is not here")
        (tmp_path / name).symlink_to(shared_data / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepared(mapping: int, out: Path, *options: str) -> Dataset:
    blocks = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    (out.parent / "own.toml").write_text(blocks[mapping], "utf-8")
    prepare.main(["table", "--mapping", "own.toml", "--out", str(out), *options])
    return open_dataset(out)


def test_the_documented_mappings_read_the_real_folders(real):
    ads = [prepared(0, real / f"ads{k}", "--split", f"folds:fold:{k}") for k in range(5)]
    tests = [set(np.asarray(one.interactions["item"])[one.split_rows("test")].tolist()) for one in ads]
    assert len(set.union(*tests)) == sum(map(len, tests)) == 500
    assert sum(len(one.split_rows("test")) for one in ads) == 5_104
    assert abs(np.mean(ads[0].interactions["label"]) - 0.324) < 0.001
    assert ads[0].item_table.column("image").null_count == 0
    films = prepared(1, real / "films")
    found = parts(films, "item")
    assert not found[0] & (found[1] | found[2]) and 300 < len(found[2]) < 400
    require_histories_of_training(films, 997)
    assert films.item_table.column("image").null_count == 1_682 - 1_417


def test_movielens_with_movies_held_out(real):
    films = movielens(real / "films", source=real / "ml-100k-posters", split="items:0.7,0.1,0.2")
    by_mapping = prepared(1, real / "mapped")
    for split in ("train", "test"):
        one, other = (
            {(int(u), int(i)) for u, i in zip(d.interactions["user"][rows], d.interactions["item"][rows], strict=True)}
            for d in (films, by_mapping)
            for rows in [d.split_rows(split)]
        )
        assert one == other
    require_histories_of_training(films, 997)
    with pytest.raises(UserError, match="MovieLens has no such column"):
        movielens(real / "bad", source=real / "ml-100k-posters", split="folds:fold:0")
