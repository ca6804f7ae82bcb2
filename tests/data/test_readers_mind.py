"""MIND, on small files of its form: all that is read is compared with a loop over the raw lines."""

import datetime
import itertools
from pathlib import Path

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.data import prepare
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.data.readers import mind_lines
from em3_jax.data.readers.mind import mind
from em3_jax.data.readers.splits import numbers_of_ids

NEWS = 40
KNOWN = {"train": range(0, 30), "dev": range(10, 38), "test": range(0, 38)}  # rows of news.tsv; N38, N39 have none
SIZES = {"train": 300, "dev": 120, "test": 50}
START = {"train": (2019, 11, 9), "dev": (2019, 11, 15), "test": (2019, 11, 16)}


def news_line(k: int) -> str:
    abstract = "" if k % 7 == 0 else f'He said "no {k}'
    cells = [f"N{k}", f"cat{k % 4}", f"sub{k % 9}", f"Title {k}, été", abstract, "https://x", "[]", "[]"]
    return "\t".join(cells) + "\n"


def behaviors(name: str, labelled: bool = True) -> list[str]:
    """Lines not in the order of time; users have one history each, of which some are empty."""
    random = np.random.default_rng(len(name))
    lines = []
    for k in range(SIZES[name]):
        user = int(random.integers(0, 40))
        past = " ".join(f"N{n}" for n in np.random.default_rng(user).integers(0, NEWS - 1, user % 6))
        when = datetime.datetime(*START[name]) + datetime.timedelta(seconds=int(random.integers(0, 80_000)))
        time = f"{when.month}/{when.day}/{when.year} {when:%I:%M:%S %p}".replace(" 0", " ")
        shown = random.choice(NEWS, random.integers(2, 6), replace=False)
        words = [f"N{n}-{int(random.random() < 0.4)}" if labelled else f"N{n}" for n in shown]
        lines.append("\t".join([str(k + 1), f"U{user}", time, past, " ".join(words)]) + "\n")
    return lines


def write(root: Path, names=("train", "dev"), labelled: bool = True) -> Path:
    for name in names:
        folder = root / f"MINDsmall_{name}"
        folder.mkdir(parents=True)
        (folder / "news.tsv").write_text("".join(map(news_line, KNOWN[name])), "utf-8")
        (folder / "behaviors.tsv").write_text("".join(behaviors(name, labelled or name != "test")), "utf-8")
    return root


def raw(root: Path, name: str) -> list[dict]:
    """The rows that the lines of a file make, one by one."""
    rows = []
    for k, line in enumerate((root / f"MINDsmall_{name}" / "behaviors.tsv").read_text("utf-8").splitlines()):
        _, user, time, past, shown = line.split("\t")
        at = datetime.datetime.strptime(time, "%m/%d/%Y %I:%M:%S %p").replace(tzinfo=datetime.UTC)
        for word in shown.split():
            item, _, label = word.rpartition("-")
            rows.append(
                {"impression": (name, k), "user": user, "time": int(at.timestamp()), "item": item, "label": int(label),
                 "history": past.split()}
            )  # fmt: skip
    return sorted(rows, key=lambda row: row["time"])  # the files' order is kept within a moment


def rows_of(dataset: Dataset) -> list[dict]:
    users, items = (table["id"].to_pylist() for table in (dataset.user_table, dataset.item_table))
    column = {name: np.asarray(values).tolist() for name, values in dataset.interactions.items()}
    event = np.asarray(dataset.events["item"]).tolist()
    return [
        {
            "user": users[column["user"][k]], "time": column["time"][k], "item": items[column["item"][k]],
            "label": column["label"][k],
            "history": [items[e] for e in event[column["history_start"][k] : column["history_end"][k]]],
        }
        for k in range(len(column["user"]))
    ]  # fmt: skip


@pytest.fixture(params=[1 << 24, 700], ids=["at once", "in blocks"])
def block(request, monkeypatch):
    monkeypatch.setattr(mind_lines, "BLOCK", request.param)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("mind"))


@pytest.fixture(scope="module")
def made(source, tmp_path_factory) -> Dataset:
    return mind(tmp_path_factory.mktemp("made") / "out", source=source)


def require_all(dataset: Dataset, expected: list[dict]) -> None:
    found = rows_of(dataset)
    assert found == [{key: value for key, value in row.items() if key != "impression"} for row in expected]
    group = np.asarray(dataset.group)
    names = [row["impression"] for row in expected]
    changes = [a != b for a, b in itertools.pairwise(names)]
    assert (np.diff(group) == changes).all() and len(set(names)) == group[-1] + 1


def test_rows_groups_and_histories_are_those_of_the_lines(source, block, tmp_path):
    dataset = mind(tmp_path / "out", source=source)
    expected = sorted(raw(source, "train") + raw(source, "dev"), key=lambda row: row["time"])
    require_all(dataset, expected)
    distinct = {tuple(row["history"]) for row in expected}
    assert () in distinct and len(dataset.events["item"]) == sum(map(len, distinct))
    assert dataset.meta["time_unit"] == "seconds" and dataset.meta["negatives"] == "logged"


def test_news_have_their_texts_and_those_without_a_row_none(made):
    ids = made.item_table["id"].to_pylist()
    assert sorted(ids) == sorted(f"N{k}" for k in range(NEWS)) and ids[:30] == [f"N{k}" for k in range(30)]
    table = {row["id"]: row for row in made.item_table.to_pylist()}
    words = made.meta["vocabularies"]["item"]
    for k in range(38):
        assert table[f"N{k}"]["title"] == f"Title {k}, été"
        assert table[f"N{k}"]["abstract"] == (None if k % 7 == 0 else f'He said "no {k}')
        assert words["category"][table[f"N{k}"]["category"] - 2] == f"cat{k % 4}"
        assert words["subcategory"][table[f"N{k}"]["subcategory"] - 2] == f"sub{k % 9}"
    for k in (38, 39):
        assert table[f"N{k}"]["title"] is None and table[f"N{k}"]["category"] == 1
    assert any("2 news have no row in news.tsv" in note and "N38" in note for note in made.meta["notes"])
    assert made.meta["text_columns"] == ["title", "abstract"]


def test_dev_is_cut_in_two_by_impressions_where_no_test_has_labels(source, made):
    split = np.asarray(made.interactions["split"])
    assert (split[np.asarray(made.interactions["time"]) < 1_573_776_000] == 0).all()  # the 15th begins
    assert len(split[split == 0]) == len(raw(source, "train"))
    assert (np.diff(split.astype(int)) >= 0).all()
    groups = [len(np.unique(np.asarray(made.group)[split == code])) for code in (1, 2)]
    assert groups == [60, 60]
    assert "MINDsmall_dev in time order is valid" in made.meta["split_rule"]


def test_a_test_folder_with_labels_is_test_and_one_without_is_left_out(tmp_path):
    root = write(tmp_path / "a", ("train", "dev", "test"))
    dataset = mind(tmp_path / "one", source=root)
    require_all(dataset, sorted([row for n in SIZES for row in raw(root, n)], key=lambda row: row["time"]))
    sizes = [dataset.meta["summary"]["splits"][name]["rows"] for name in SPLITS]
    assert sizes == [len(raw(root, name)) for name in SIZES]
    root = write(tmp_path / "b", ("train", "dev", "test"), labelled=False)
    without = mind(tmp_path / "two", source=root)
    shown = sum(len(line.split("\t")[4].split()) for line in behaviors("test", labelled=False))
    assert without.meta["rows"]["MINDsmall_test/behaviors.tsv"] == {
        "read": shown, "kept": 0, "dropped": {"without a label": shown}
    }  # fmt: skip
    require_all(without, sorted(raw(root, "train") + raw(root, "dev"), key=lambda row: row["time"]))
    assert f"{shown:,} dropped: without a label" in prepare.report(without)


def test_folders_by_their_own_names_are_the_same_dataset(source, made, tmp_path):
    folders = {"train": source / "MINDsmall_train", "valid": source / "MINDsmall_dev"}
    options = [word for name, folder in folders.items() for word in (f"--{name}", str(folder))]
    prepare.main(["mind", *options, "--out", str(tmp_path / "out")])
    again = prepare.check(data=tmp_path / "out")
    assert again.meta["data_hash"] == made.meta["data_hash"]


@pytest.mark.parametrize("split", ["items:0.6,0.2,0.2", "users:0.6,0.2,0.2", "folds:5:1"])
def test_whole_news_and_users_are_held_out(split, source, made, tmp_path):
    dataset = mind(tmp_path / "out", source=source, split=split, seed=2)
    kind = "user" if split.startswith("users") else "item"
    ids = (dataset.user_table if kind == "user" else dataset.item_table)["id"].to_pylist()
    number = numbers_of_ids(ids, "2")
    part = np.searchsorted([0.6, 0.8], number, side="right")
    if split.startswith("folds"):
        part = np.select([np.floor(number * 5) == 1, np.floor(number * 5) == 2], [2, 1], 0)
    np.testing.assert_array_equal(dataset.interactions["split"], part[np.asarray(dataset.interactions[kind])])
    known = {f"N{k}" for k in range(NEWS)}
    if kind == "item":
        known = {one for one, code in zip(ids, part, strict=True) if code == 0}
    expected = [row | {"history": [item for item in row["history"] if item in known]} for row in rows_of(made)]
    assert rows_of(dataset) == expected and any(row["history"] for row in expected)


def test_shares_in_time_cut_no_impression(source, tmp_path):
    dataset = mind(tmp_path / "out", source=source, split="0.5,0.3,0.2")
    split, group = np.asarray(dataset.interactions["split"]), np.asarray(dataset.group)
    assert (np.diff(split.astype(int)) >= 0).all()
    assert all(len(np.unique(split[group == one])) == 1 for one in np.unique(group))
    np.testing.assert_allclose(np.bincount(split) / len(split), [0.5, 0.3, 0.2], atol=0.01)


def changed(root: Path, name: str, line: int, text: str) -> Path:
    path = root / f"MINDsmall_{name}"
    lines = path.read_text("utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[: line - 1], text, *lines[line:]]), "utf-8")
    return root


GOOD = "7\tU1\t11/11/2019 9:05:58 AM\tN1 N2\tN1-1 N2-0\n"


@pytest.mark.parametrize(
    "file,line,text,message",
    [
        ("train/behaviors.tsv", 5, GOOD.replace("\tN1 N2\t", "\t"), r"train/behaviors.tsv line 5: 4 cells, must be 5"),
        (
            "dev/behaviors.tsv",
            9,
            GOOD.replace("9:05", "25:05"),
            r"dev/behaviors.tsv line 9: the time is '11/11/2019 25:05:58",
        ),
        ("train/behaviors.tsv", 3, GOOD.replace("U1", ""), "line 3: the user is empty"),
        ("train/behaviors.tsv", 3, GOOD.replace("N1-1 N2-0", " "), "line 3: it shows no news"),
        ("train/behaviors.tsv", 3, GOOD.replace("N2-0", "N2"), "line 3: some of the news have a label"),
        ("train/behaviors.tsv", 30, GOOD, "line 30: impression id 7 again, as in line 7"),
        ("train/news.tsv", 4, "N1\tcat\tsub\n", "news.tsv line 4: 3 cells, must be 8"),
        ("train/news.tsv", 4, news_line(1), "news.tsv line 4: news id N1 again, as in line 2"),
    ],
)
def test_a_line_that_is_wrong_is_named(file, line, text, message, block, tmp_path):
    changed(write(tmp_path / "source"), file, line, text)
    with pytest.raises(UserError, match=message) as error:
        mind(tmp_path / "out", source=tmp_path / "source")
    assert "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_what_is_not_there_is_named(source, tmp_path):
    (tmp_path / "MINDsmall_train").mkdir()
    for options, message in (
        ({}, "give the folder with --train"),
        ({"source": tmp_path}, "no folder in it ends in train and holds behaviors.tsv"),
        ({"source": source, "train": source}, "--source does not go with --train"),
        ({"train": tmp_path, "valid": source}, r"news.tsv: file missing"),
        ({"source": source, "split": "items:part"}, "MIND has no such column"),
    ):
        with pytest.raises(UserError, match=message) as error:
            mind(tmp_path / "out", **options)
        assert "\n" not in str(error.value)
    root = write(tmp_path / "unlabelled")
    path = root / "MINDsmall_dev" / "behaviors.tsv"
    path.write_text("".join(behaviors("dev", labelled=False)), "utf-8")
    with pytest.raises(UserError, match=r"dev/behaviors.tsv: no impression has labels"):
        mind(tmp_path / "out", source=root)
    path.write_bytes(b"1\tU1\t11/11/2019 9:05:58 AM\tN1\tN1-1\n2\tU\xff\tx\ty\tz\n")
    with pytest.raises(UserError, match=r"dev/behaviors.tsv line 2: not UTF-8"):
        mind(tmp_path / "out", source=root)
    path.write_text("\n\n", "utf-8")
    with pytest.raises(UserError, match=r"dev/behaviors.tsv: there are no rows"):
        mind(tmp_path / "out", source=root)
