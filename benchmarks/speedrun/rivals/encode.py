"""Rows as arrays of ids, for libraries whose users encode by themselves (LabelEncoder in their examples). Needs numpy."""

import csv
import json
from pathlib import Path

import numpy as np

PADDING, UNKNOWN, FIRST = 0, 1, 2


def encode(rows: Path) -> tuple[dict, dict[str, int], dict[str, dict[str, np.ndarray]]]:
    """(what the columns are, ids of each vocabulary, part -> column -> [N] or [N, length] i64).

    Vocabularies are those of train.csv: 0 is padding, 1 what it does not show. Lists are padded on the left; a list of
    what a single column holds (the history of items) shares its ids.
    """
    columns = json.loads((rows / "rows.json").read_text())
    lists = dict(columns["lists"]) | dict.fromkeys(columns["history"].values(), columns["length"])
    shared = {name: of for of, name in columns["history"].items() if of in columns["single"]}
    words: dict[str, dict[str, int]] = {}
    tables, out = {}, {}
    for part in ("train", "valid"):
        with open(rows / f"{part}.csv", encoding="utf-8", newline="") as file:
            tables[part] = list(csv.DictReader(file))
    for name in [*columns["single"], *(name for name in lists if name not in shared)]:
        seen = {word for row in tables["train"] for word in row[name].split("^") if word}
        words[name] = {word: FIRST + k for k, word in enumerate(sorted(seen))}
    for part, table in tables.items():
        arrays = {columns["label"]: np.array([int(row[columns["label"]]) for row in table])}
        for name in columns["single"]:
            arrays[name] = np.array([words[name].get(row[name], UNKNOWN) for row in table])
        for name, length in lists.items():
            known = words[shared.get(name, name)]
            arrays[name] = np.zeros((len(table), length), np.int64)
            for line, row in zip(arrays[name], table, strict=True):
                if row[name]:
                    ids = [known.get(word, UNKNOWN) for word in row[name].split("^")][-length:]
                    line[-len(ids) :] = ids
        out[part] = arrays
    return columns, {name: FIRST + len(found) for name, found in words.items()}, out


def save(rows: Path, work: Path) -> None:
    """The same in the files train.npz, valid.npz and columns.json."""
    columns, sizes, parts = encode(rows)
    (work / "columns.json").write_text(json.dumps({"columns": columns, "sizes": sizes}))
    for part, arrays in parts.items():
        np.savez(work / f"{part}.npz", **arrays)


def load(work: Path) -> tuple[dict, dict[str, int], dict[str, dict[str, np.ndarray]]]:
    """What `save` wrote, as `encode` returns it."""
    known = json.loads((work / "columns.json").read_text())
    parts = {part: dict(np.load(work / f"{part}.npz")) for part in ("train", "valid")}
    return known["columns"], known["sizes"], parts
