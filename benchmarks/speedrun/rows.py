"""The rows that every rival reads, as plain files: train.csv, valid.csv, and rows.json, which says what a column is.

    python rows.py <MovieLens folder> <out>

A script of the standard library alone, timed as a part of what a rival needs from the raw files: whoever trains such a
library writes one. Rows, labels, histories and split are those of `em3 prepare movielens` (a click is a rating of at
least 4; chronological, rows of one second by user and item; histories of strictly earlier ratings); `race.check_rows`
holds the labels equal. The test split is not written: nothing here is chosen on it, nor reported from it.
"""

import csv
import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

HISTORY, GENRES = 50, 6
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
)
LIST = "^"  # between the values of a list
MOVIELENS = {
    "single": ["user_id", "age", "gender", "occupation", "item_id", "year"],
    "lists": {"genres": GENRES},
    "item": "item_id",
    "of_item": ["year", "genres"],  # columns that the item decides
    "history": {"item_id": "history", "rating": "history_rating"},  # what an event holds, the item first
    "length": HISTORY,
    "label": "click",
}


def read(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def tables(source: Path) -> tuple[list[dict[str, str]], ...]:
    """(ratings, users, items) of the folder with posters, or of GroupLens' ml-100k."""
    if not (source / "u.data").is_file():
        ratings, users, items = (read(source / f"{name}.tsv") for name in ("ratings", "users", "items"))
        return ratings, users, items

    def split(name: str, by: str, columns: str) -> list[dict[str, str]]:
        lines = (source / name).read_text("latin-1").splitlines()
        return [dict(zip(columns.split(), line.split(by), strict=True)) for line in lines if line]

    ratings = split("u.data", "\t", "user_id item_id rating timestamp")
    users = split("u.user", "|", "user_id age gender occupation zip")
    items = split("u.item", "|", f"item_id title released video url {GENRES_100K}")
    for item in items:
        item["year"] = "".join(re.findall(r"\((\d{4})\)\s*$", item["title"]))  # as `em3 prepare movielens` has it
        item["genres"] = "|".join(name for name in GENRES_100K.split() if item[name] == "1")
    return ratings, users, items


def movielens_rows(source: Path) -> Iterator[dict[str, str]]:
    """The rows in time order, as columns of MOVIELENS."""
    ratings, *others = tables(source)
    users, items = ({row[key]: row for row in table} for key, table in zip(("user_id", "item_id"), others, strict=True))
    ratings.sort(key=lambda row: (int(row["timestamp"]), int(row["user_id"]), int(row["item_id"])))
    seen: dict[str, list[tuple[str, str, int]]] = {}
    for row in ratings:
        past, time = seen.setdefault(row["user_id"], []), int(row["timestamp"])
        events = [event for event in past[-4 * HISTORY :] if event[2] < time][-HISTORY:]
        known = users[row["user_id"]] | items[row["item_id"]] | row
        known["genres"] = LIST.join(known["genres"].split("|")[:GENRES])
        known |= {"history": LIST.join(e[0] for e in events), "history_rating": LIST.join(e[1] for e in events)}
        yield known | {"click": str(int(float(row["rating"]) >= 4))}
        past.append((row["item_id"], row["rating"], time))


def write(out: Path, columns: dict, parts: Iterable[tuple[str, Iterable[dict[str, str]]]]) -> None:
    """The files of (part, rows); columns that are empty say "none"."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.json").write_text(json.dumps(columns))
    singles = [*columns["single"], *columns["lists"]]
    names = [*singles, *columns["history"].values(), columns["label"]]
    for part, rows in parts:
        with open(out / f"{part}.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            for row in rows:
                writer.writerow(
                    [row[name] or "none" for name in singles] + [row[name] for name in names[len(singles) :]]
                )


def main() -> None:
    source, out = map(Path, sys.argv[1:])
    rows = list(movielens_rows(source))
    train, valid = int(0.8 * len(rows)), int(0.9 * len(rows))
    write(out, MOVIELENS, [("train", rows[:train]), ("valid", rows[train:valid])])


if __name__ == "__main__":
    main()
