"""MMRec folders: interactions without times in a given split, with ready feature arrays of the items.

| file | content |
|---|---|
| interactions.tsv or <name>.inter | tab-separated: userID, itemID (numbers 0, 1, 2, ...), x_label (0 train, 1 valid, 2 test) |
| <modality>_feat.npy | [I, D] float, row = itemID; becomes the feature set <modality>; a row of zeros counts as missing |

The history of a training row is the user's other training items in random order; of a valid or test row, all of them.
With --split items: or folds: in place of x_label, negatives are of the part of their click, so that what is new tells
nothing; with users:, a row's history is its user's other items, for valid and test users too.
With --as-clicks each interaction stands against negatives, items that the user touches in no part up
to the row's own: were test items never drawn in training, what is missing there would tell them. A
training row's negatives have exactly its history: with all of the user's items, the history's length
would tell the label. What is drawn of a part does not depend on the parts after it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.core.fields import Fields
from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.histories import cyclic_histories
from em3_jax.data.readers.delimited import TextFile, TextFormat
from em3_jax.data.readers.encode import entity_table
from em3_jax.data.readers.files import load_array, open_text, place, read_array, require_columns, require_values
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.splits import Whole, held_out, of_whole
from em3_jax.data.writer import DatasetWriter

COLUMNS = ("userID", "itemID", "x_label")
FEATURES = "_feat.npy"
SPLIT = "x_label"
DRAWN = "that the user touches in no part up to this one"
SPARSE = 16  # so many times more ids than occur: these are not MMRec's dense numbers


class Log(NamedTuple):
    """The interactions, sorted by user and item, so that what is drawn does not depend on the order of the file.

    Attributes:
      user, item: [n] i64 ids.
      split: [n] i64, 0 train, 1 valid, 2 test.
      users, items: how many there are, whether they occur or not.
    """

    user: np.ndarray
    item: np.ndarray
    split: np.ndarray
    users: int
    items: int

    def take(self, rows: np.ndarray) -> "Log":
        """The rows [n] alone, of the same users and items."""
        return self._replace(user=self.user[rows], item=self.item[rows], split=self.split[rows])


def mmrec(
    out: str | Path,
    *,
    source: str | Path,
    as_clicks: bool = False,
    negatives: int = 3,
    split: str = SPLIT,
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, from an MMRec folder.

    Args:
      source: the folder.
      as_clicks: draw negatives, for ranking; without, every row is a click, for retrieval.
      negatives: with --as-clicks, how many items stand against each interaction.
      split: "x_label", the column; or "items:0.7,0.1,0.2", "users:0.8,0.1,0.1" or "folds:5:0", by a
        hash of the seed and the ids, see `em3 prepare table --help`.
      seed: of the negatives, of all orders and of a split by ids.
      overwrite: replace an existing dataset.
    """
    source = Path(source)
    if as_clicks and negatives < 1:
        raise UserError(f"--negatives {negatives}: must be at least 1; without --as-clicks there are none")
    if seed < 0:
        raise UserError(f"--seed {seed}: must be at least 0")
    rule = held_out("" if split in (SPLIT, f"column:{SPLIT}") else split, "an MMRec folder", "x_label")
    negatives = negatives if as_clicks else 0
    path = _find_interactions(source)
    arrays = sorted(source.glob(f"*{FEATURES}"))
    with DatasetWriter(out, overwrite) as writer:
        log = _read_interactions(path, arrays)
        user_table, user_fields, _ = entity_table("user", pa.array(np.arange(log.users)), {})
        item_table, item_fields, _ = entity_table("item", pa.array(np.arange(log.items)), {})
        _write_features(writer, arrays, log, hash_ids(item_table.column("id")))
        part = None
        if rule is not None:
            part = rule.of_each((item_table if rule.kind == "item" else user_table).column("id"), seed, None)
            log = log._replace(split=part[log.item if rule.kind == "item" else log.user].astype(np.int64))
        notes = _write_rows(writer, log, negatives, seed, rule, part)
        within = "of this part that the user does not touch" if rule and rule.kind == "item" else DRAWN
        drawn = f"{negatives} items {within}, drawn uniformly (seed {seed})"
        return writer.finish(
            name=f"mmrec ({source.absolute().name})",
            users=user_table,
            items=item_table,
            fields=Fields(user_fields, item_fields),
            vocabularies={"user": {}, "item": {}, "context": {}, "event": {}},
            text_columns=[],
            provenance="a folder in the form of MMRec (Zhou, MM Asia 2023 Workshops), github.com/enoche/MMRec",
            label_rule=f"an interaction is 1, against {drawn}, which are 0" if as_clicks else "all rows are 1",
            split_rule="column x_label: 0 train, 1 valid, 2 test" if rule is None else rule.told(),
            source_hash=hash_files([path]),
            time_unit="order",
            extra={
                "source": str(source.absolute()),
                "arguments": {"as_clicks": as_clicks, "negatives": negatives, "seed": seed},
                **of_whole(rule),
                "only_clicks": not as_clicks,
                **({"negatives": "uniform"} if as_clicks else {}),
                "notes": notes,
                "rows": {path.name: rows_of_file(len(log.user), len(log.user), {})},
            },
        )


def _find_interactions(source: Path) -> Path:
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the MMRec folder as --source")
    found = [*source.glob("interactions.tsv"), *sorted(source.glob("*.inter"))]
    if len(found) != 1:
        names = f"{len(found)} interactions files, {', '.join(path.name for path in found)}" if found else "none"
        raise UserError(f"{source}: must hold exactly one of interactions.tsv and <name>.inter, but there are {names}")
    return found[0]


def _read_interactions(path: Path, arrays: list[Path]) -> Log:
    """The interactions, checked; `arrays` may know more items."""
    file = open_text(path, TextFormat("\t", quoting="off"))
    require_columns(file, COLUMNS, file.names)
    table = file.read(list(COLUMNS), set(), dict.fromkeys(COLUMNS, pa.int64()))
    if table.num_rows == 0:
        raise UserError(f"{path}: there are no rows; is it the right file?")
    require_values(file, table)
    user, item, split = (column.to_numpy() for column in table.columns)
    for name, ids in (("userID", user), ("itemID", item)):
        _require_dense(file, name, ids)
    for row in np.flatnonzero((split < 0) | (split > 2)):
        raise UserError(f"{place(file, row)}: x_label is {split[row]}; must be 0 (train), 1 (valid) or 2 (test)")
    for code, name in enumerate(("train", "valid", "test")):
        if not (split == code).any():
            raise UserError(f"{path}: no row has x_label {code} ({name}); all three parts are needed")
    users = int(user.max()) + 1
    items = max([int(item.max()) + 1, *(len(_open_array(array)) for array in arrays)])
    key = user * items + item
    order = np.argsort(key, kind="stable")
    again = np.flatnonzero(np.diff(key[order]) == 0)
    if len(again):
        k = again[np.argmin(order[again + 1])]
        one, other = order[k], order[k + 1]
        line = place(file, one).removeprefix(f"{path} ")
        raise UserError(
            f"{place(file, other)}: user {user[one]} and item {item[one]} again, as in {line}; keep one of the rows"
        )
    return Log(user[order], item[order], split[order], users, items)


def _require_dense(file: TextFile, name: str, ids: np.ndarray) -> None:
    for row in np.flatnonzero(ids < 0):
        raise UserError(f"{place(file, row)}: {name} is {ids[row]}; ids are numbers from 0")
    distinct = len(np.unique(ids))
    if ids.max(initial=0) >= SPARSE * distinct + 1000:
        highest = int(np.argmax(ids))
        raise UserError(
            f"{place(file, highest)}: {name} is {ids[highest]}, but only {distinct} different ones occur; "
            "number them 0, 1, 2, ..."
        )


def _open_array(path: Path) -> np.ndarray:
    array = load_array(path)
    if array.ndim != 2:
        raise UserError(f"{path}: shape is {array.shape}; must be [items, D]")
    return array


def _write_features(writer: DatasetWriter, arrays: list[Path], log: Log, item_hash: str) -> None:
    for path in arrays:
        tokens = read_array(path, log.items, of="the catalogue (highest itemID or longest array)")
        manifest = {"encoder": f"ready made, {path.name}", "file_hash": hash_files([path])}
        mask = (tokens != 0).any(axis=1, keepdims=True)
        writer.features(path.name.removesuffix(FEATURES), tokens, mask, manifest, item_hash)


def _write_rows(
    writer: DatasetWriter, log: Log, negatives: int, seed: int, rule: Whole | None, part: np.ndarray | None
) -> list[str]:
    """Writes interactions and events; returns notes.

    Args:
      rule: the split, if it is not by the column.
      part: of each item or user, as `rule` has it.
    """
    random = np.random.default_rng(seed).spawn(3)  # the histories do not depend on the number of negatives
    if rule is None or rule.kind == "item":
        of_events = random[0].permutation(np.flatnonzero(log.split == 0))
    else:  # of each part by a generator of its own
        rows = [np.flatnonzero(log.split == code) for code in range(3)]
        of_events = np.concatenate([r.permutation(own) for r, own in zip(random[0].spawn(3), rows, strict=True)])
    events, original, start, end = cyclic_histories(of_events, log.user, log.users)
    drawn = np.empty((len(log.user), negatives), np.int32)
    parts = []
    for code, (of_negatives, of_order) in enumerate(zip(random[1].spawn(3), random[2].spawn(3), strict=True)):
        so_far, own = np.flatnonzero(log.split <= code), np.flatnonzero(log.split == code)
        if part is not None and rule is not None and rule.kind == "item":
            drawn[own] = _within(of_negatives, log.take(own), np.flatnonzero(part == code), negatives)
        else:
            drawn[own] = draw_negatives(of_negatives, log.take(so_far), np.searchsorted(so_far, own), negatives)
        parts.append(of_order.permutation(own))
    order = np.concatenate(parts)
    group = 1 + negatives
    columns = {"user": log.user, "split": log.split, "history_start": start, "history_end": end}
    columns = {name: np.repeat(values[order], group) for name, values in columns.items()}
    columns["item"] = np.concatenate([log.item[order, None], drawn[order]], axis=1).ravel()
    columns["label"] = np.tile(np.arange(group) == 0, len(order))
    columns["time"] = np.repeat(np.arange(len(order)), group)  # there are no times; this only keeps the order
    writer.columns("interactions", columns)
    writer.columns("events", {"item": log.item[events], "time": np.full(len(events), -1), "original": original})
    train = log.split == 0
    clicks = np.bincount(log.item[train], minlength=log.items)
    only_negative = (clicks == 0) & (np.bincount(drawn[train].ravel(), minlength=log.items) > 0)
    counts = [int(only_negative[log.item[log.split == code]].sum()) for code in (1, 2)]
    notes = []
    if any(counts):
        notes.append(
            f"{counts[0]} valid and {counts[1]} test clicks are on items that training shows only as negatives; "
            "such items do not count as cold"
        )
    return notes


def _within(random: np.random.Generator, log: Log, items: np.ndarray, count: int) -> np.ndarray:
    """[n, count] i32: negatives of all rows [n] of a log, of the items [m] alone that its part has."""
    own = log._replace(item=np.searchsorted(items, log.item), items=len(items))
    return items[draw_negatives(random, own, np.arange(len(log.user)), count)]


def draw_negatives(random: np.random.Generator, log: Log, rows: np.ndarray, count: int) -> np.ndarray:
    """[n, count] i32: for each of the rows [n] of `log` different items that its user touches nowhere in it, uniformly.

    Of a user's free items, in order of their ids, numbers are drawn: number r is item r + k, where k of the items that
    the user touches lie below it. So there is nothing to reject, however many items a user touches.
    """
    touched = np.bincount(log.user, minlength=log.users)
    free, first = log.items - touched, np.cumsum(touched) - touched
    for user in np.flatnonzero(free < count):
        raise UserError(
            f"user {user} touches {touched[user]} of the {log.items} items: {free[user]} are left for {count} negatives; "
            "choose a smaller --negatives"
        )
    # How many free items lie below each touched one; ascending over all users.
    free_below = log.user * log.items + log.item - (np.arange(len(log.user)) - first[log.user])
    user = log.user[rows]
    numbers, result = np.empty((len(rows), 0), np.int64), np.empty((len(rows), count), np.int32)
    for column in range(count):
        number = random.integers(0, free[user] - column)
        for earlier in numbers.T:  # ascending: skips those already drawn
            number += number >= earlier
        numbers = np.sort(np.column_stack([numbers, number]), axis=1)
        below = np.searchsorted(free_below, user * log.items + number, side="right") - first[user]
        result[:, column] = number + below
    return result
