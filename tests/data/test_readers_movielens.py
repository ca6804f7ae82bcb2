"""MovieLens folders of every kind; the real one with posters where it is at hand."""

from pathlib import Path

import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.core.values import canonical
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.format import Dataset
from em3_jax.data.readers.movielens import movielens

# user, item, rating, time; not in the order of time, with equal times
RATINGS = [
    (1, 20, 5, 100), (2, 10, 3, 50), (1, 10, 4, 100), (3, 30, 1, 70), (2, 20, 4, 60), (1, 30, 2, 90), (3, 10, 5, 110),
    (2, 30, 2, 120), (3, 20, 4, 130), (1, 40, 1, 140), (2, 40, 5, 150), (3, 40, 3, 160), (1, 50, 4, 170), (2, 50, 1, 180),
    (3, 50, 5, 190), (1, 60, 2, 200), (2, 60, 2, 210), (3, 60, 4, 220), (2, 70, 4, 230), (3, 70, 2, 240),
]  # fmt: skip
USERS = [(1, 17, "M", "writer"), (2, 53, "F", "other"), (3, 56, "M", "none")]
MOVIES = [
    (10, "Toy Story", 1995, ["Animation", "Comedy"]), (20, "Été, L'", 1968, ["Drama"]), (30, "unknown", None, ["unknown"]),
    (40, "Se7en", 1995, ["Crime", "Thriller"]), (50, "Nikita (La Femme Nikita)", 1990, ["Thriller"]),
    (60, "M", 1931, ["Crime", "Film-Noir", "Thriller"]), (70, "Heat", 1995, ["Action", "Crime"]),
]  # fmt: skip


def lines(rows, separator: str) -> str:
    return "".join(separator.join("" if value is None else str(value) for value in row) + "\n" for row in rows)


def write_posters(root: Path) -> None:
    header = [("user_id", "item_id", "rating", "timestamp")]
    (root / "ratings.tsv").write_text(lines(header + RATINGS, "\t"), "utf-8")
    users = [("user_id", "age", "gender", "occupation", "zip"), *((*user, "85711") for user in USERS)]
    (root / "users.tsv").write_text(lines(users, "\t"), "utf-8")
    items = [
        (i, title, year, "|".join(genres), f"posters/{i}.jpg" if i < 50 else None) for i, title, year, genres in MOVIES
    ]
    header = [("item_id", "title", "year", "genres", "poster")]
    (root / "items.tsv").write_text(lines(header + items, "\t"), "utf-8")
    (root / "posters").mkdir()
    for item in (10, 20, 30):  # the poster of item 40 is named, but not there
        (root / "posters" / f"{item}.jpg").write_bytes(b"jpeg")
    np.save(root / "text_minilm.npy", np.ones((len(MOVIES), 384), np.float32))


GENRES_100K = (
    "unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir Horror Musical Mystery "
    "Romance Sci-Fi Thriller War Western"
).split()


def full_title(title: str, year: int | None) -> str:
    return f"{title} ({year})" if year else title


def write_100k(root: Path) -> None:
    (root / "u.data").write_text(lines(RATINGS, "\t"), "latin-1")
    (root / "u.user").write_text(lines([(*user, "85711") for user in USERS], "|"), "latin-1")
    items = [
        (i, full_title(title, year), f"01-Jan-{year}", "", "http://x?y", *(int(g in genres) for g in GENRES_100K))
        for i, title, year, genres in MOVIES
    ]
    (root / "u.item").write_text(lines(items, "|"), "latin-1")


def write_1m(root: Path) -> None:
    (root / "ratings.dat").write_text(lines(RATINGS, "::"), "latin-1")
    users = [(i, gender, {17: 1, 53: 50, 56: 56}[age], job, "48067") for i, age, gender, job in USERS]
    (root / "users.dat").write_text(lines(users, "::"), "latin-1")
    items = [(i, full_title(title, year), "|".join(genres)) for i, title, year, genres in MOVIES]
    (root / "movies.dat").write_text(lines(items, "::"), "latin-1")


def write_latest(root: Path) -> None:
    (root / "ratings.csv").write_text(lines([("userId", "movieId", "rating", "timestamp"), *RATINGS], ","), "utf-8")
    items = [
        (i, f'"{full_title(title, year)}"', "|".join(genres).replace("unknown", "(no genres listed)"))
        for i, title, year, genres in MOVIES
    ]
    (root / "movies.csv").write_text(lines([("movieId", "title", "genres"), *items], ","), "utf-8")


KINDS = {"posters": write_posters, "ml-100k": write_100k, "ml-1m": write_1m, "ml-latest": write_latest}


@pytest.fixture(params=KINDS)
def folder(request, tmp_path) -> tuple[str, Path]:
    root = tmp_path / "source"
    root.mkdir()
    KINDS[request.param](root)
    return request.param, root


def values(dataset: Dataset, group: str, name: str) -> list:
    """The original values of a plain field; None for unknown."""
    words = [None, None, *dataset.meta["vocabularies"][group][name]]
    table = dataset.item_table if group == "item" else dataset.user_table
    return [words[i] for i in table.column(name).to_pylist()]


def test_every_kind_gives_the_same_log(folder, tmp_path):
    kind, root = folder
    dataset = movielens(tmp_path / "out", source=root)
    ordered = sorted(RATINGS, key=lambda row: (row[3], row[0], row[1]))
    column, events = dataset.interactions, dataset.events
    ids = {name: np.array(getattr(dataset, f"{name}_table").column("id")) for name in ("user", "item")}
    read = zip(ids["user"][column["user"]], ids["item"][column["item"]], column["label"], column["time"], strict=True)
    assert list(read) == [(user, item, rating >= 4, time) for user, item, rating, time in ordered]
    assert column["split"].tolist() == [0] * 16 + [1] * 2 + [2] * 2
    ratings = dataset.meta["vocabularies"]["event"]["rating"]
    assert ratings == ["1", "2", "3", "4", "5"]
    for k, (user, _, _, time) in enumerate(ordered):
        part = slice(column["history_start"][k], column["history_end"][k])
        rated = [int(ratings[i - 2]) for i in events["field_rating"][part]]
        history = list(zip(ids["item"][events["item"][part]], rated, events["time"][part], strict=True))
        assert history == [row[1:] for row in ordered if row[0] == user and row[3] < time]
    assert dataset.meta["name"] == f"movielens ({kind})" and dataset.meta["label_rule"] == "rating >= 4"
    assert dataset.meta["negatives"] == "logged"


def test_the_conversion_is_a_highest_rating_among_the_clicks(folder, tmp_path):
    dataset = movielens(tmp_path / "out", source=folder[1])
    ratings = [row[2] for row in sorted(RATINGS, key=lambda row: (row[3], row[0], row[1]))]
    clicked = [k for k, rating in enumerate(ratings) if rating >= 4]
    rows = np.concatenate([dataset.split_rows(split, "conversion") for split in ("train", "valid", "test")])
    assert rows.tolist() == clicked and 0 < len(clicked) < len(ratings)
    assert dataset.label("conversion")[rows].tolist() == [ratings[k] == 5 for k in clicked]
    builder = BatchBuilder(dataset, history_length=3, unknown_alpha=0.0, unknown_floor={}, label="conversion")
    batch = builder(rows, buckets=Buckets(64, 64))
    assert batch["label"].tolist() == [ratings[k] == 5 for k in clicked]
    with pytest.raises(UserError, match="no label 'cart'; there are: click, conversion"):
        dataset.label("cart")


def test_every_kind_gives_the_same_items_and_users(folder, tmp_path):
    kind, root = folder
    dataset = movielens(tmp_path / "out", source=root)
    assert dataset.item_table.column("id").to_pylist() == [movie[0] for movie in MOVIES]
    assert dataset.item_table.column("title").to_pylist() == [movie[1] for movie in MOVIES]
    assert values(dataset, "item", "year") == [canonical(movie[2]) for movie in MOVIES]
    genres = [movie[3] if movie[3] != ["unknown"] or kind != "ml-latest" else [] for movie in MOVIES]
    words = [None, None, *dataset.meta["vocabularies"]["item"]["genres"]]
    assert [[words[i] for i in row if i] for row in dataset.item_table.column("genres").to_pylist()] == genres
    assert [text or "" for text in dataset.item_table.column("genres_text").to_pylist()] == [
        ", ".join(g) for g in genres
    ]
    assert dict((f.name, f.length) for f in dataset.fields.item) == {"item": 1, "year": 1, "genres": 3}
    assert dataset.user_table.column("id").to_pylist() == [1, 2, 3]
    if kind == "ml-latest":
        assert [field.name for field in dataset.fields.user] == ["user"]
    else:
        assert values(dataset, "user", "age") == ["under 18", "50-55", "56+"]
        assert values(dataset, "user", "gender") == ["M", "F", "M"]
        assert values(dataset, "user", "occupation") == ["writer", "other", "none"]
        assert "zip" not in dataset.user_table.column_names


def test_posters_of_their_own_and_text_vectors(tmp_path):
    write_posters(tmp_path)
    dataset = movielens(tmp_path / "out", source=tmp_path)
    paths = dataset.item_table.column("image").to_pylist()
    assert paths == ["posters/10.jpg", "posters/20.jpg", "posters/30.jpg", None, None, None, None]
    assert all((Path(dataset.meta["image_root"]) / path).is_file() for path in paths if path)
    assert dataset.meta["source"] == str(tmp_path)
    assert any("1 images are not in" in note and "posters/40.jpg" in note for note in dataset.meta["notes"])
    assert dataset.meta["summary"]["items_without"]["column image"] == round(4 / 7, 4)
    features = dataset.features("text_minilm")
    assert features.tokens.shape == (7, 1, 384) and features.tokens.dtype == np.float32 and features.mask.all()


def test_posters_from_another_folder_and_another_threshold(tmp_path):
    (tmp_path / "ml").mkdir()
    (tmp_path / "images").mkdir()
    write_1m(tmp_path / "ml")
    for item in (10, 60):
        (tmp_path / "images" / f"{item}.jpg").write_bytes(b"jpeg")
    dataset = movielens(tmp_path / "out", source=tmp_path / "ml", posters=tmp_path / "images", threshold=3)
    assert dataset.item_table.column("image").to_pylist() == ["10.jpg", *[None] * 4, "60.jpg", None]
    assert dataset.meta["image_root"] == str(tmp_path / "images")
    assert dataset.interactions["label"].sum() == sum(rating >= 3 for _, _, rating, _ in RATINGS)


def test_of_several_posters_of_an_item_the_first_counts(tmp_path):
    suffixes = (".jpg", ".jpeg", ".png", ".webp", "")  # in order of preference; none for a folder
    for folder in ("ml", "images"):
        (tmp_path / folder).mkdir()
    write_1m(tmp_path / "ml")
    for k, (item, *_) in enumerate(MOVIES):  # the k-th item lacks the first k kinds
        for suffix in suffixes[k:]:
            path = tmp_path / "images" / f"{item}{suffix}"
            path.write_bytes(b"image") if suffix else path.mkdir()
    (tmp_path / "images" / f"{MOVIES[-1][0]}").write_bytes(b"a file of no kind")
    dataset = movielens(tmp_path / "out", source=tmp_path / "ml", posters=tmp_path / "images")
    first = [f"{item}{suffix}" for (item, *_), suffix in zip(MOVIES, suffixes, strict=False)]
    assert dataset.item_table.column("image").to_pylist() == [*first, None, None]


BAD = {
    "not a folder": (lambda r: r / "nowhere", r"nowhere: no such folder"),
    "nothing known": (
        lambda r: (r / "users.tsv").unlink(),
        r"not a MovieLens folder; looked for ratings.tsv, .* u.data",
    ),
    "unknown item": (lambda r: _append(r, "ratings.tsv", "1\t99\t4\t900"), r"ratings.tsv line 22: item 99 is not in"),
    "unknown user": (lambda r: _append(r, "ratings.tsv", "9\t10\t4\t900"), r"ratings.tsv line 22: user 9 is not in"),
    "item twice": (lambda r: _append(r, "items.tsv", "10\tAgain\t1999\tDrama\t"), r"items.tsv line 9: id 10 .*second"),
    "user twice": (lambda r: _append(r, "users.tsv", "3\t20\tF\twriter\t1"), r"users.tsv line 5: id 3 .*second"),
    "text for a rating": (lambda r: _append(r, "ratings.tsv", "1\t10\tgood\t900"), r"ratings.tsv line 22.*'good'"),
    "empty rating": (
        lambda r: _append(r, "ratings.tsv", "1\t10\t\t900"),
        r"ratings.tsv line 22: column 'rating' is empty",
    ),
    "missing value": (lambda r: _append(r, "ratings.tsv", "1\t10\t3"), r"ratings.tsv line 22: Expected 4 columns"),
    "empty file": (lambda r: (r / "ratings.tsv").write_text(""), r"ratings.tsv: the file is empty"),
    "no column": (
        lambda r: (r / "items.tsv").write_text("item_id\ttitel\tyear\tgenres\tposter\n"),
        r"items.tsv: no column 'title'; did you mean 'titel'",
    ),
    "vectors": (
        lambda r: np.save(r / "text_minilm.npy", np.ones((6, 384), np.float32)),
        r"text_minilm.npy: 6 rows, but items.tsv has 7",
    ),
}


def _append(root: Path, name: str, line: str) -> None:
    with open(root / name, "a", encoding="utf-8") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_named(tmp_path, case):
    act, message = BAD[case]
    source = tmp_path / "source"
    source.mkdir()
    write_posters(source)
    changed = act(source)
    with pytest.raises(UserError, match=message):
        movielens(tmp_path / "out", source=changed if isinstance(changed, Path) else source)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_bad_posters_folder(tmp_path):
    write_1m(tmp_path)
    (tmp_path / "images").mkdir()
    for folder, message in (("nowhere", "no such folder"), ("images", r"holds no image of any item, e.g. no 10.jpg")):
        with pytest.raises(UserError, match=message):
            movielens(tmp_path / "out", source=tmp_path, posters=tmp_path / folder)


def test_movielens_100k_with_posters(shared_data, tmp_path):
    """The counts its README states."""
    if not (shared_data / "ml-100k-posters").is_dir():
        pytest.skip("ml-100k-posters is not here")
    dataset = movielens(tmp_path / "out", source=shared_data / "ml-100k-posters")
    assert dataset.meta["counts"] == {"interactions": 100_000, "users": 943, "items": 1682, "events": 100_000}
    assert [dataset.split_rows(split) for split in ("train", "valid", "test")] == [
        range(80_000), range(80_000, 90_000), range(90_000, 100_000)
    ]  # fmt: skip
    assert round(float(dataset.interactions["label"].mean()), 3) == 0.554
    splits = dataset.meta["summary"]["splits"]
    assert [round(splits[name]["click_rate"], 3) for name in splits] == [0.551, 0.567, 0.563]
    assert [(splits[name]["users"], splits[name]["items"]) for name in splits] == [
        (751, 1616),
        (197, 1200),
        (166, 1343),
    ]
    assert round(splits["test"]["empty_histories"], 3) == 0.017 and splits["test"]["median_history"] == 88
    assert round(1 - splits["test"]["rows_with_new_user"], 3) == 0.142
    assert round(1 - splits["test"]["rows_with_cold_item"], 3) == 0.985
    without = dataset.meta["summary"]["items_without"]
    assert without == {
        "column title": 0,
        "column genres_text": 0,
        "column image": round(265 / 1682, 4),
        "features text_minilm": 0,
    }
    assert dataset.meta["notes"] == []
    assert {field.name: field.length for field in dataset.fields.item}["genres"] == 6
