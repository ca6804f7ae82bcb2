"""MovieLens: the folder with posters, and GroupLens' own ml-100k, ml-1m, ml-10m, ml-20m, ml-25m, ml-32m and ml-latest.

A click is a rating of at least the threshold. Histories hold all strictly earlier ratings of the user, with the rating as
a field of the event. The split is chronological by row: 80 / 10 / 10 %; rows of one second are ordered by user and item.
Or it is by whole movies or users, see `splits`: then histories hold ratings of the movies that train.

| kind | known by | users | images |
|---|---|---|---|
| posters | ratings.tsv, users.tsv, items.tsv | age, gender, occupation | posters/ |
| ml-100k | u.data, u.user, u.item | age, gender, occupation | --posters |
| ml-1m | ratings.dat, users.dat, movies.dat | age, gender, occupation | --posters |
| ml-10m | ratings.dat, movies.dat | only their ids | --posters |
| ml-latest | ratings.csv, movies.csv | only their ids | --posters |
"""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.data.format import LOGGED, NOT_PART, Dataset, hash_files, hash_ids
from em3_jax.data.readers.delimited import TextFile, TextFormat
from em3_jax.data.readers.encode import encode, encode_lists, entity_table, image_paths, rows_of
from em3_jax.data.readers.files import open_text, place, read_array, require_columns, require_distinct, require_values
from em3_jax.data.readers.log import write_log
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.splits import Split, Whole, of_whole, told, without_columns
from em3_jax.data.writer import DatasetWriter

AGES = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}  # ml-1m's classes
MAX_GENRES = 6
GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()
HIGHEST = 5  # stars
SPLIT = "0.8,0.1,0.1"
RATING = ["user", "item", "rating", "time"]
_TYPES = {"rating": pa.float64(), "year": pa.int64()}
_TYPES |= dict.fromkeys(GENRES_100K, pa.int64())
_TYPES |= dict.fromkeys(("user", "user_id", "userId", "item", "item_id", "movieId", "id", "age"), pa.int64())
_TYPES |= dict.fromkeys(("time", "timestamp"), pa.int64())
TEXT_VECTORS = "text_minilm.npy"
POSTER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", "")  # "" is a folder of frames


class Source(NamedTuple):
    """A MovieLens folder, read.

    Attributes:
      kind: which of the kinds above.
      files: all files read, the ratings first, the items last.
      ratings: columns user, item, rating, time, in file order.
      users: columns id and the user's fields; None where the kind has no such file.
      items: columns id, title, year (null where unknown), genres (list) and image (path, null where there is none).
    """

    kind: str
    files: list[TextFile]
    ratings: pa.Table
    users: pa.Table | None
    items: pa.Table


def movielens(
    out: str | Path,
    *,
    source: str | Path,
    posters: str | Path | None = None,
    threshold: float = 4.0,
    split: str = SPLIT,
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, from a MovieLens folder of any kind.

    Args:
      source: the folder.
      posters: folder of `<item_id>.jpg` (or .jpeg, .png, .webp) or `<item_id>/` with frames, for the kinds without
        posters of their own; of an item the first found in that order.
      threshold: ratings of at least this are clicks.
      split: three shares in time order, or "items:0.7,0.1,0.2" or "users:0.8,0.1,0.1", by a hash of
        the seed and their ids, so that all ratings of a movie or a user are of one part; or
        "folds:5:0", movies in five such parts, of which number 0 is test and the next valid.
      seed: of a split by items, users or folds.
      overwrite: replace an existing dataset.
    """
    source = Path(source)
    if not math.isfinite(threshold):
        raise UserError(f"--threshold {threshold}: must be a number of stars")
    rule = without_columns(split, "MovieLens")
    with DatasetWriter(out, overwrite) as writer:
        read = _open(source)
        ratings = read.files[0]
        image_root, image, notes = _images(source, read.items, posters)
        items, item_fields, item_words, cut = _item_table(read.items, image)
        users, user_fields, user_words = _user_table(read)
        rating, rating_words = _write_ratings(writer, read, users, items, threshold, rule, seed)
        if cut:
            notes.append(f"{cut} items have more than {MAX_GENRES} genres; the first {MAX_GENRES} are kept")
        if read.kind == "posters" and (source / TEXT_VECTORS).is_file():
            tokens = read_array(source / TEXT_VECTORS, items.num_rows, of="items.tsv")
            mask = np.ones((len(tokens), 1), bool)
            manifest = {
                "encoder": "sentence-transformers/all-MiniLM-L6-v2, mean pooling, length 1",
                "input": "title. genre, genre, ...",
                "file_hash": hash_files([source / TEXT_VECTORS]),
            }
            writer.features("text_minilm", tokens, mask, manifest, hash_ids(items.column("id")))
        return writer.finish(
            name=f"movielens ({read.kind})",
            users=users,
            items=items,
            fields=Fields(user_fields, item_fields, event=(rating,)),
            vocabularies={"user": user_words, "item": item_words, "context": {}, "event": {"rating": rating_words}},
            text_columns=["title", "genres_text"],
            provenance="MovieLens, GroupLens Research, University of Minnesota (Harper and Konstan, TiiS 5(4), 2015)",
            label_rule=f"rating >= {threshold:g}",
            split_rule=_in_words(rule),
            source_hash=hash_files([file.path for file in read.files]),
            time_unit="seconds",
            extra={
                "source": str(source.absolute()),
                "image_root": image_root,
                "notes": notes + [note for file in read.files for note in file.notes],
                "rows": {ratings.path.name: rows_of_file(ratings.rows, read.ratings.num_rows, {})},
                **of_whole(rule),
                "negatives": LOGGED,
                "labels": {"conversion": f"rating = {HIGHEST} among rating >= {threshold:g}"},
            },
        )


def _in_words(rule: Split) -> str:
    if isinstance(rule, str | Whole):
        return told(rule)
    train, valid, test = (f"{100 * share:g} %" for share in rule)
    return f"by time: the first {train} of the rows train, the next {valid} valid, the last {test} test"


def _open(source: Path) -> Source:
    """The folder, read and checked: no empty ratings, no user or item twice."""
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give the MovieLens folder as --source")
    for names, read in KINDS.items():
        if all((source / name).is_file() for name in names):
            found = read([source / name for name in names])
            for file, rows in ((found.files[0], found.ratings), (found.files[-1], found.items)):
                if rows.num_rows == 0:
                    raise UserError(f"{file.path}: there are no rows; is it the right file?")
            stars = found.ratings.column("rating")
            stars = pc.if_else(pc.is_finite(stars), stars, pa.scalar(None, stars.type))
            place_of = found.ratings.column_names.index("rating")
            require_values(found.files[0], found.ratings.set_column(place_of, "rating", stars))
            require_distinct(found.files[-1], found.items.column("id"))
            if found.users is not None:
                require_distinct(found.files[1], found.users.column("id"))
            return found
    looked_for = "; or ".join(", ".join(names) for names in KINDS)
    raise UserError(f"{source}: not a MovieLens folder; looked for {looked_for}")


def _read(
    path: Path,
    columns: list[str],
    delimiter: str,
    names: list[str] | None = None,
    quoting: str = "off",
    old: bool = False,
) -> tuple[TextFile, pa.Table]:
    """(the file, its columns `columns`).

    Args:
      names: of all columns, where the file has no header; there may be more behind them.
      old: of the years in which GroupLens wrote Latin-1, which people have since converted.
    """
    encoding = "latin-1" if old and not _is_utf8(path) else ""
    file = open_text(path, TextFormat(delimiter, quoting, encoding, names=tuple(names or ())))
    require_columns(file, columns, file.names)
    return file, file.read(columns, set(), {name: _TYPES.get(name, pa.string()) for name in columns})


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _read_posters(paths: list[Path]) -> Source:
    columns = (
        ["user_id", "item_id", "rating", "timestamp"],
        ["user_id", "age", "gender", "occupation"],
        ["item_id", "title", "year", "genres", "poster"],
    )
    read = [_read(path, wanted, "\t") for path, wanted in zip(paths, columns, strict=True)]
    files, (ratings, users, items) = zip(*read, strict=True)
    return Source(
        "posters",
        list(files),
        ratings.rename_columns(RATING),
        _users(users.rename_columns({"user_id": "id"})),
        pa.table(
            {
                "id": items.column("item_id"),
                "title": items.column("title"),
                "year": items.column("year"),
                "genres": pc.split_pattern(items.column("genres"), "|"),
                "image": items.column("poster"),
            }
        ),
    )


def _read_100k(paths: list[Path]) -> Source:
    flags = GENRES_100K
    movie = ["id", "title", "date", "video", "url", *flags]
    person = ["id", "age", "gender", "occupation", "zip"]
    first, ratings = _read(paths[0], RATING, "\t", RATING)
    second, users = _read(paths[1], person[:4], "|", person, old=True)
    third, items = _read(paths[2], ["id", "title", *flags], "|", movie, old=True)
    table = np.stack([items.column(flag).fill_null(0).to_numpy() for flag in flags], axis=1)
    genres = pa.array([[flags[k] for k in np.flatnonzero(row)] for row in table], pa.list_(pa.string()))
    movies = _movies(items.column("id"), items.column("title"), genres)
    return Source("ml-100k", [first, second, third], ratings, _users(users), movies)


def _read_1m(paths: list[Path]) -> Source:
    person = ["id", "gender", "age", "occupation", "zip"]
    second, users = _read(paths[1], person[:4], "::", person, old=True)
    source = _read_10m([paths[0], paths[2]])
    files = [source.files[0], second, source.files[1]]
    return source._replace(kind="ml-1m", files=files, users=_users(users))


def _read_10m(paths: list[Path]) -> Source:
    names = ["id", "title", "genres"]
    first, ratings = _read(paths[0], RATING, "::", RATING)
    last, items = _read(paths[1], names, "::", names, old=True)
    return Source("ml-10m", [first, last], ratings, None, _with_genres(items))


def _read_latest(paths: list[Path]) -> Source:
    first, ratings = _read(paths[0], ["userId", "movieId", "rating", "timestamp"], ",", quoting="auto")
    last, items = _read(paths[1], ["movieId", "title", "genres"], ",", quoting="auto")
    items = items.rename_columns(["id", "title", "genres"])
    return Source("ml-latest", [first, last], ratings.rename_columns(RATING), None, _with_genres(items))


def _with_genres(items: pa.Table) -> pa.Table:
    named = items.column("genres")
    named = pc.if_else(pc.equal(named, "(no genres listed)"), pa.scalar(None, named.type), named)
    return _movies(items.column("id"), items.column("title"), pc.split_pattern(named, "|"))


KINDS: dict[tuple[str, ...], Callable[[list[Path]], Source]] = {
    ("ratings.tsv", "users.tsv", "items.tsv"): _read_posters,
    ("u.data", "u.user", "u.item"): _read_100k,
    ("ratings.dat", "users.dat", "movies.dat"): _read_1m,
    ("ratings.dat", "movies.dat"): _read_10m,
    ("ratings.csv", "movies.csv"): _read_latest,
}


def _users(table: pa.Table) -> pa.Table:
    """Ages as ml-1m's seven classes; the postcode is left out: it names nearly every user."""
    ages = np.array(list(AGES))
    years = table.column("age").fill_null(-1).to_numpy()
    names = np.array(list(AGES.values()))[np.searchsorted(ages, np.maximum(years, ages[0]), side="right") - 1]
    return pa.table(
        {
            "id": table.column("id"),
            "age": pa.array(names, mask=years < 0),
            "gender": table.column("gender"),
            "occupation": table.column("occupation"),
        }
    )


def _movies(ids: pa.ChunkedArray, titles: pa.ChunkedArray, genres: pa.Array) -> pa.Table:
    """Items whose title ends with the year in brackets."""
    parts = pc.extract_regex(titles.combine_chunks(), r"^(?P<title>.*?)\s*(?:\((?P<year>\d{4})\)\s*)?$")
    year = parts.field("year")
    return pa.table(
        {
            "id": ids,
            "title": parts.field("title"),
            "year": pc.if_else(pc.equal(year, ""), pa.scalar(None, pa.string()), year).cast(pa.int64()),
            "genres": genres,
            "image": pa.nulls(len(ids), pa.string()),
        }
    )


def _images(source: Path, items: pa.Table, posters: str | Path | None) -> tuple[str, pa.Array, list[str]]:
    """(folder, path of each item's image in it, notes)."""
    if posters is None:
        return str(source.absolute()), *image_paths(source, items.column("image").to_pylist())
    folder = Path(posters)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of <item_id>.jpg or <item_id>/ as --posters")
    with os.scandir(folder) as entries:  # one listing, not five look-ups an item
        is_folder = {entry.name: entry.is_dir() for entry in entries}
    ids = items.column("id").to_pylist()
    names = [
        next((name for suffix in POSTER_SUFFIXES if is_folder.get(name := f"{item}{suffix}") == (not suffix)), None)
        for item in ids
    ]
    paths, notes = image_paths(folder, names)
    if paths.null_count == len(paths):
        raise UserError(
            f"{folder}: holds no image of any item, e.g. no {ids[0]}.jpg; name the files <item_id>.jpg "
            f"(or {', '.join(POSTER_SUFFIXES[1:-1])}), or the folders of frames <item_id>"
        )
    return str(folder.absolute()), paths, notes


def _item_table(items: pa.Table, image: pa.Array) -> tuple[pa.Table, tuple, dict, int]:
    genres, cut = encode_lists(items.column("genres"), MAX_GENRES)
    extra = {
        "title": items.column("title"),
        "genres_text": pc.binary_join(items.column("genres").combine_chunks(), ", "),
        "image": image,
    }
    table, fields, words = entity_table(
        "item", items.column("id"), {"year": encode(items.column("year")), "genres": genres}, extra
    )
    return table, fields, words, cut


def _user_table(read: Source) -> tuple[pa.Table, tuple, dict]:
    if read.users is None:
        ids = pc.unique(read.ratings.column("user"))
        return entity_table("user", ids.take(pc.sort_indices(ids)), {})
    encoded = {name: encode(read.users.column(name)) for name in ("age", "gender", "occupation")}
    return entity_table("user", read.users.column("id"), encoded)


def _write_ratings(
    writer: DatasetWriter, read: Source, users: pa.Table, items: pa.Table, threshold: float, rule: Split, seed: int
) -> tuple[Field, list]:
    """Writes the log; returns the event field `rating` and its values."""
    ids = {}
    for name, table in (("user", users), ("item", items)):
        ids[name] = rows_of(read.ratings.column(name), table.column("id"))
        absent = np.flatnonzero(ids[name] < 0)
        if len(absent):
            value, others = (
                read.ratings.column(name)[int(absent[0])],
                ", ".join(file.path.name for file in read.files[1:]),
            )
            raise UserError(
                f"{place(read.files[0], absent[0])}: {name} {value} is not in {others}; add it there or drop the row"
            )
    rating, time = (read.ratings.column(name).to_numpy() for name in ("rating", "time"))
    label = rating >= threshold
    rating_ids, values = encode(read.ratings.column("rating"))
    order = np.lexsort((ids["item"], ids["user"], time))
    split, is_event = rule, None
    if isinstance(rule, Whole):
        table = items if rule.kind == "item" else users
        split = rule.of_each(table.column("id"), seed, None)[ids[rule.kind]][order]
        is_event = split == 0 if rule.kind == "item" else None
    assert not isinstance(split, str | Whole)  # which `without_columns` refuses
    write_log(
        writer,
        user=ids["user"][order],
        item=ids["item"][order],
        label=label[order],
        time=time[order],
        split=split,
        is_event=is_event,
        event={"rating": rating_ids[order]},
        labels={"conversion": np.where(label, rating >= HIGHEST, NOT_PART)[order]},
    )
    return Field("rating", len(values) + FIRST_KNOWN), values
