"""MIND, the Microsoft News Dataset, small or large, and whatever has its form: impressions with histories.

| file | columns, without a header |
|---|---|
| behaviors.tsv | impression id, user, time as 11/11/2019 9:05:58 AM, history and impressions, both with blanks between |
| news.tsv | id, category, subcategory, title, abstract, and maybe url, entities of the title and of the abstract |

The folders of train and dev each have both. A row is a news item shown in an impression, N1-1 clicked and
N2-0 not; what an impression shows is a group, by which GAUC is taken. Its history is the one that its line
gives, oldest first; equal histories share their events, which have no times of their own (-1).

The folder of train trains. A test folder with labels is test, and dev is valid; without one (MINDlarge's test
has no labels) dev is cut in two by its impressions in time order: the first half valid, the second test.
Impressions without labels are left out and counted. Impression ids are of their file. A news id without a row
in any news.tsv is an item without texts and categories.

Files are read a block at a time, twice: first what an impression is, then what it shows. What is kept in
memory are impressions, news, users and hashes of distinct histories.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import DTypeLike

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.data.format import LOGGED, Dataset, hash_files
from em3_jax.data.readers.encode import entity_table
from em3_jax.data.readers.mind_lines import Block, blocks, words_of
from em3_jax.data.readers.mind_news import Histories, News, Numbers, require_once
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.splits import Shares, Split, Whole, of_whole, told, without_columns
from em3_jax.data.writer import DatasetWriter

TIME = "%m/%d/%Y %I:%M:%S %p"
BEHAVIORS = "impression id, user, time, history, impressions"
KNOWN_BY = {"train": ("train",), "valid": ("dev", "valid"), "test": ("test",)}
HALVES = "{train} trains; first half of {valid} in time order is valid, second half test"
BY_FOLDERS = "{train} trains, {valid} is valid, {test} test"
_LABEL = r"^.+-[01]$"
_CHUNK = 1 << 16


class Impressions(NamedTuple):
    """What the lines of one file are.

    Attributes:
      user, history: [n] i64 numbers, see `Numbers`.
      time: [n] i64 seconds since 1970, the clock taken as UTC.
      shown: [n] i64 news that each shows with a label; 0 without labels.
      unlabelled: how many rows have no label.
    """

    user: np.ndarray
    history: np.ndarray
    time: np.ndarray
    shown: np.ndarray
    unlabelled: int


def mind(
    out: str | Path,
    *,
    source: str | Path | None = None,
    train: str | Path | None = None,
    valid: str | Path | None = None,
    test: str | Path | None = None,
    split: str = "",
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`.

    Args:
      source: the folder that holds MINDsmall_train and MINDsmall_dev, or others that end in train, dev and test.
      train: its folder, in place of `source`.
      valid: that of dev.
      test: that of test; without it, dev is cut in two.
      split: in place of that by folders: three shares in time order; "items:0.7,0.1,0.2",
        "users:0.8,0.1,0.1" or "folds:5:0", by a hash of the seed and the ids, see `em3 prepare table
        --help`; by items or folds, histories are without the news held out.
      seed: of such a split.
      overwrite: replace an existing dataset.
    """
    folders = _folders(source, {"train": train, "valid": valid, "test": test})
    rule = without_columns(split, "MIND") if split else None
    with DatasetWriter(out, overwrite) as writer:
        news, users, histories = News(folders), Numbers(), Histories(writer.appender("events/item", np.int32))
        files = {name: folder / "behaviors.tsv" for name, folder in folders.items()}
        found = {name: _scan(path, news, users, histories) for name, path in files.items()}
        histories.events.close()
        for name in ("train", "valid"):
            if not found[name].shown.any():
                raise UserError(f"{files[name]}: no impression has labels, as N1-1 N2-0; give the files that have")
        places = _write_impressions(writer, list(found.values()), histories)
        _write_shown(writer, list(files.values()), places, news)
        user_table, user_fields, _ = entity_table("user", pa.array(list(users), pa.string()), {})
        item_table, item_fields, item_words = news.table()
        ids = {"user": user_table.column("id"), "item": item_table.column("id")}
        if isinstance(rule, Whole):
            split_rule = _write_whole(writer, rule, rule.of_each(ids[rule.kind], seed, None))
        else:
            split_rule = _write_split(writer, rule, folders, found, places)
        sources = [*files.values(), *(folder / "news.tsv" for folder in folders.values())]
        return writer.finish(
            name="MIND",
            users=user_table,
            items=item_table,
            fields=Fields(user_fields, item_fields),
            vocabularies={"user": {}, "item": item_words, "context": {}, "event": {}},
            text_columns=["title", "abstract"],
            provenance="MIND, Microsoft News Dataset (Wu et al., ACL 2020), msnews.github.io",
            label_rule="clicked in its impression",
            split_rule=split_rule,
            source_hash=hash_files(sources),
            time_unit="seconds",
            extra=_facts(rule, files, found, news),
        )


def _facts(rule: Split | None, files: dict[str, Path], found: dict[str, Impressions], news: News) -> dict[str, Any]:
    """Further facts for dataset.json."""
    rows = {}
    for name, path in files.items():
        kept, without = int(found[name].shown.sum()), found[name].unlabelled
        rows[f"{path.parent.name}/{path.name}"] = rows_of_file(kept + without, kept, {"without a label": without})
    return {"notes": news.notes, "rows": rows, "negatives": LOGGED, **of_whole(rule)}


def _folders(source: str | Path | None, given: dict[str, str | Path | None]) -> dict[str, Path]:
    """ "train", "valid" and maybe "test" -> folder."""
    folders = {name: Path(path) for name, path in given.items() if path is not None}
    if source is not None:
        if folders:
            raise UserError("--source does not go with --train, --valid or --test; give the one or the others")
        source = Path(source)
        inside = sorted(path.parent for path in source.glob("*/behaviors.tsv"))
        for name, endings in KNOWN_BY.items():
            fitting = [folder for folder in inside if folder.name.lower().endswith(endings)]
            if len(fitting) > 1:
                two = " and ".join(folder.name for folder in fitting[:2])
                raise UserError(f"{source}: {two} may both be {name}; name the folders with --train, --valid, --test")
            if fitting:
                folders[name] = fitting[0]
    for name in ("train", "valid"):
        if name not in folders:
            hint = f"{source}: no folder in it ends in {' or '.join(KNOWN_BY[name])} and holds behaviors.tsv; " * (
                source is not None
            )
            raise UserError(f"{hint}give the folder with --{name}")
    return folders


def _scan(path: Path, news: News, users: Numbers, histories: Histories) -> Impressions:
    """What the impressions of a file are; numbers users and histories, and stores the histories' events."""
    parts, ids, lines, unlabelled = [], [], [], 0
    for block in blocks(path, (5,), BEHAVIORS):
        number, user, time, history, shown = block.cells
        block.refuse(
            pc.equal(user, "").to_numpy(zero_copy_only=False), "the user is empty; fill it in or drop the line"
        )
        _, labelled, length = _shown(block, shown)
        unlabelled += int(length[~labelled].sum())
        length[~labelled] = 0
        ids.append(number)
        lines.append(block.line)
        parts.append((users.of(user), histories.of(history, news), _seconds(block, time), length))
    if not parts:
        raise UserError(f"{path}: there are no rows; is it the right file?")
    require_once(path, np.concatenate(lines), pa.concat_arrays(ids), "impression id")
    user, history, time, shown = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Impressions(user, history, time, shown, unlabelled)


def _seconds(block: Block, time: pa.StringArray) -> np.ndarray:
    """[n] i64 seconds since 1970 of times as 11/11/2019 9:05:58 AM."""
    moments = pc.strptime(pc.utf8_trim_whitespace(time), TIME, "s", error_is_null=True)
    bad = moments.is_null().to_numpy(zero_copy_only=False)
    if bad.any():
        said = time[int(np.argmax(bad))].as_py()[:40]
        block.refuse(bad, f"the time is '{said}', must be as 11/11/2019 9:05:58 AM; mend it")
    return moments.cast(pa.int64()).to_numpy()


def _shown(block: Block, shown: pa.StringArray) -> tuple[pa.Array, np.ndarray, np.ndarray]:
    """(all news shown, with their labels, [n] bool whether an impression has labels, [n] i64 how many it shows)."""
    words, length = words_of(shown)
    block.refuse(length == 0, "it shows no news; drop the line")
    has_label = pc.match_substring_regex(words, _LABEL).to_numpy(zero_copy_only=False)
    number = np.add.reduceat(has_label, np.cumsum(length) - length, dtype=np.int64)
    block.refuse((number > 0) & (number < length), "some of the news have a label, as N1-1 or N2-0, some none; mend it")
    return words, number > 0, length


class _Places(NamedTuple):
    """Where the impressions of all files lie, those of the first file first.

    Attributes:
      order: [m] i64 the impressions with labels in the order of time; of one moment, of the files.
      shown: [n] i64 rows of each.
      first: [n] i64 its first row.
    """

    order: np.ndarray
    shown: np.ndarray
    first: np.ndarray

    def write(self, writer: DatasetWriter, name: str, value: np.ndarray, dtype: DTypeLike) -> None:
        """Writes the column of interactions whose rows have the value [n] of their impression."""
        column = writer.column(f"interactions/{name}", int(self.shown.sum()), dtype)
        for begin in range(0, len(self.order), _CHUNK):
            some = self.order[begin : begin + _CHUNK]
            start = self.first[some[0]]
            column[start : start + self.shown[some].sum()] = np.repeat(value[some], self.shown[some])


def _write_impressions(writer: DatasetWriter, found: list[Impressions], histories: Histories) -> _Places:
    """Writes the columns that all rows of an impression share, but the split."""
    user, history, time, shown = (np.concatenate([one[k] for one in found]) for k in range(4))
    order = np.argsort(time, kind="stable")
    order = order[shown[order] > 0]
    first, group = np.zeros(len(time), np.int64), np.zeros(len(time), np.int64)
    first[order] = np.cumsum(shown[order]) - shown[order]
    group[order] = np.arange(len(order))
    places, ends = _Places(order, shown, first), np.array(histories.ends)
    places.write(writer, "user", user, np.int32)
    places.write(writer, "time", time, np.int64)
    places.write(writer, "group", group, np.int32)
    places.write(writer, "history_start", ends[history], np.int64)
    places.write(writer, "history_end", ends[history + 1], np.int64)
    writer.column("events/time", histories.events.rows, np.int64)[:] = -1
    return places


def _write_shown(writer: DatasetWriter, files: list[Path], places: _Places, news: News) -> None:
    """Writes the items and labels of all impressions."""
    rows = int(places.shown.sum())
    item, label = (writer.column(f"interactions/{n}", rows, d) for n, d in (("item", np.int32), ("label", np.uint8)))
    begin = 0
    for path in files:
        for block in blocks(path, (5,), BEHAVIORS):
            words, labelled, length = _shown(block, block.cells[4])
            part = slice(begin, begin + len(length))
            words, length = words.filter(pa.array(np.repeat(labelled, length))), places.shown[part]
            inside = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
            row = np.repeat(places.first[part], length) + inside
            item[row] = news.rows(pc.utf8_slice_codeunits(words, 0, -2))
            label[row] = pc.ends_with(words, "-1").to_numpy(zero_copy_only=False)
            begin += len(labelled)


def _write_whole(writer: DatasetWriter, rule: Whole, part: np.ndarray) -> str:
    """Writes the split column by the part [E] of each item or user, and by items the histories without news held out."""
    of_row = npy.load(writer.path / "interactions" / f"{rule.kind}.npy", mmap_mode="r")
    column = writer.column("interactions/split", len(of_row), np.uint8)
    for begin in range(0, len(of_row), _CHUNK):
        column[begin : begin + _CHUNK] = part[of_row[begin : begin + _CHUNK]]
    if rule.kind == "item":
        _keep_events(writer, part == 0)
    return rule.told()


def _write_split(
    writer: DatasetWriter,
    shares: Shares | None,
    folders: dict[str, Path],
    found: dict[str, Impressions],
    places: _Places,
) -> str:
    """Writes the split column, by time where there are shares, else by folders; returns the rule in words."""
    order, shown, code = places.order, places.shown, np.zeros(len(places.shown), np.uint8)
    if shares is not None:  # no impression is cut
        borders = np.rint(np.cumsum(shares[:2]) * shown.sum())
        code[order] = np.searchsorted(borders, places.first[order], side="right")
        places.write(writer, "split", code, np.uint8)
        return told(shares)
    code = np.repeat(np.arange(len(found), dtype=np.uint8), [len(one.time) for one in found.values()])
    has_test = "test" in found and bool(found["test"].shown.any())
    if not has_test:
        valid = order[code[order] == 1]
        code[valid[len(valid) // 2 :]] = 2
    places.write(writer, "split", code, np.uint8)
    names = {name: folder.name for name, folder in folders.items()}
    return (BY_FOLDERS if has_test else HALVES).format(**names)


def _keep_events(writer: DatasetWriter, known: np.ndarray) -> None:
    """Leaves out the events of items where `known` [I] is False."""
    item = npy.load(writer.path / "events" / "item.npy")
    kept = known[item]
    place = np.concatenate([[0], np.cumsum(kept)])
    writer.columns("events", {"item": item[kept], "time": np.full(int(place[-1]), -1)})
    for name in ("history_start", "history_end"):
        column = npy.load(writer.path / "interactions" / f"{name}.npy", mmap_mode="r+")
        for begin in range(0, len(column), _CHUNK):
            column[begin : begin + _CHUNK] = place[column[begin : begin + _CHUNK]]
