"""Datasets in which so many rows of each held-out item, or user, are known: zero-shot and k-shot.

The dataset holds whole items or users out (`--split items:...`, `users:...`, `folds:...`). With K
the largest number of shots, the rows of each of those, ordered by time (equal times, and logs
without times, by a hash), are

    the first k    training, at k shots
    up to the K-th of no split, so that the rest is the same for all k
    the rest       of its split, as it was: test, or validation

Items with K rows or fewer are left out whole. Items of validation are treated as those of test, so
that the best step is chosen for what is tested. Nothing leaks. Of items, the known rows are examples
and enter no history: histories show what they did, training rows of the other items. Of users, the
known rows are all that histories show of the log: these are cut off at the first row that is not
known, and empty in a log without times.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.data.format import ADDED, SPLITS, Dataset, open_dataset
from em3_jax.data.readers.table_times import NO_TIMES
from em3_jax.data.writer import DatasetWriter

KINDS = {"items": "item", "users": "user"}
"""What --of names -> the column that says it of a row."""
_OWN = {
    "format_version", "name", "provenance", "label_rule", "split_rule", "source_hash", "time_unit", "counts", "fields",
    "vocabularies", "text_columns", "item_hash", "splits", "summary", "history_reach", "data_hash", "rows", "notes", "bayes_auc",
}  # fmt: skip
"""Of dataset.json, what the writer makes anew, and what is not so of fewer rows."""


class Ranked(NamedTuple):
    """The rows of a log, and which of a held-out item's, or user's, they are.

    Attributes:
      of_row: [n] the item, or user.
      rank: [n] i64, 0 for the first of its rows; -1 in training.
      number: [n] i64, how many rows it has; 0 in training.
    """

    of_row: np.ndarray
    rank: np.ndarray
    number: np.ndarray


def check(dataset: Dataset, of: str) -> None:
    """Refuses a dataset that does not hold whole items, or users, out.

    Args:
      of: "items" or "users".
    """
    kind, held = KINDS[of], dataset.meta.get("held_out")
    if held != kind:
        there = f"holds {held}s out" if held else "holds neither items nor users out"
        raise UserError(f"{dataset.root}: {there}; prepare it with --split {of}:0.7,0.1,0.2 for cold {of}")


def ranked(dataset: Dataset, of: str) -> Ranked:
    """Which of its item's, or user's, rows each row is, in the order of time."""
    columns = {name: np.asarray(dataset.interactions[name]) for name in (KINDS[of], "time", "split")}
    of_row, held = columns[KINDS[of]], np.flatnonzero(columns["split"])
    drawn = rng.uniform_hash(rng.numpy_key(0, "shots"), held)
    time = np.zeros(len(held), np.int64) if dataset.meta["time_unit"] == NO_TIMES else columns["time"][held]
    rows = held[np.lexsort((drawn, time, of_row[held]))]
    first = np.searchsorted(of_row[rows], of_row[rows])
    rank, number = np.full(len(of_row), -1, np.int64), np.zeros(len(of_row), np.int64)
    rank[rows] = np.arange(len(rows)) - first
    number[rows] = np.searchsorted(of_row[rows], of_row[rows], side="right") - first
    return Ranked(of_row, rank, number)


def derive(dataset: Dataset, of: str, shots: int, most: int, root: Path) -> Dataset:
    """The dataset in folder `root`, of so many shots; made where it is not there yet.

    Args:
      dataset: whose items, or users, are held out, see `check`.
      of: "items" or "users".
      shots: k.
      most: K.
      root: the folder.

    Raises:
      UserError: the folder holds something else; no item, or user, of the test or the valid part
        has more than K rows.
    """
    facts = {"of": of, "shots": shots, "most": most, "data_hash": dataset.meta["data_hash"]}
    if (root / "dataset.json").exists():
        there = open_dataset(root)
        if there.meta.get("shots") != facts:
            raise UserError(
                f"{root}: made of other data ({there.meta.get('shots')}); choose another --out, or delete it"
            )
        return there
    found, split = ranked(dataset, of), np.array(dataset.interactions["split"])
    tested = found.rank >= most
    for code, name in enumerate(SPLITS[1:], 1):
        if not (tested & (split == code)).any():
            part = f"no {KINDS[of]} of the {name} part has more than {most} rows"
            raise UserError(f"{dataset.root}: {part}; give fewer --shots")
    known = (found.rank >= 0) & (found.rank < shots) & (found.number > most)
    kept = np.flatnonzero((split == 0) | known | tested)
    columns = {name: np.asarray(column[kept]) for name, column in dataset.interactions.items()}
    columns["split"][known[kept]] = 0
    if of == "users":
        columns["history_end"] = _cut(dataset, found, shots, kept)
    meta = dataset.meta
    with DatasetWriter(root) as writer:
        writer.columns("interactions", columns)
        for name in dataset.events:
            _link(dataset.root / "events" / f"{name}.npy", writer.path / "events" / f"{name}.npy")
        for folder in sorted(one for kind in ADDED for one in (dataset.root / kind).glob("[!.]*")):
            _link(folder, writer.path / folder.relative_to(dataset.root))
        return writer.finish(
            name=meta["name"],
            users=dataset.user_table,
            items=dataset.item_table,
            fields=dataset.fields,
            vocabularies=meta["vocabularies"],
            text_columns=meta["text_columns"],
            provenance=f"{meta['provenance']}; {shots} rows known of each held-out {KINDS[of]}",
            label_rule=meta["label_rule"],
            split_rule=f"{meta['split_rule']}; of its {of}, the first {shots} rows train and those after {most} are kept",
            source_hash=meta["source_hash"],
            time_unit=meta["time_unit"],
            extra={name: value for name, value in meta.items() if name not in _OWN} | {"shots": facts},
        )


def _link(of: Path, link: Path) -> None:
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(of.resolve())


def _cut(dataset: Dataset, found: Ranked, shots: int, kept: np.ndarray) -> np.ndarray:
    """[kept] i64: where histories end, of held-out users before the first row that is not known.

    Events of a user that come from no row of the log (choices before it begins, a table of events)
    stay, as far as they are strictly earlier than that row.
    """
    columns, events = dataset.interactions, dataset.events["time"]
    start, end = (np.array(columns[f"history_{name}"][kept]) for name in ("start", "end"))
    cut = np.flatnonzero(found.rank[kept] >= shots)
    if dataset.meta["time_unit"] == NO_TIMES:
        end[cut] = start[cut]
        return end
    first = np.flatnonzero(found.rank == shots)  # of each held-out user the first row that is not known
    until = np.zeros(dataset.num_users, np.int64)
    until[found.of_row[first]] = columns["time"][first]
    for k in cut:
        span = events[start[k] : end[k]]
        end[k] = start[k] + np.searchsorted(span, until[found.of_row[kept[k]]])
    return end
