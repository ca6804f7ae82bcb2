"""MovieLens folders as hypothesis draws them: every rating is in the dataset, or one line says why not."""

import csv
import io
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from untidy import dataset_or_one_line, encoded, generated, lines

from em3_jax.data.format import Dataset
from em3_jax.data.readers.movielens import GENRES_100K, movielens

ROWS, USERS, ITEMS = 20, 4, 5
TITLES = ["Film (1999)", "Été, L' (1968)", '"Crocodile" Dundee (1986)', "M (1931)", "Nikita (La Femme Nikita)", "", "A, B (2001)",
          "unknown", "Star: The: Movie (1964)", "7", "nan", "(1999)", '5" (2000)']  # fmt: skip
GENRES = ["Drama", "Drama|Comedy", "(no genres listed)", "", "Film-Noir|Drama|Comedy|War|Western|Horror|Crime|Mystery"]
KINDS = ["posters", "ml-100k", "ml-1m", "ml-10m", "ml-latest"]
STARS = st.sampled_from([1, 2, 3]), st.sampled_from([4, 5])  # in turns: each split has both classes


@st.composite
def folders(draw) -> dict:
    return {
        "kind": draw(st.sampled_from(KINDS)),
        "ratings": [
            [draw(st.integers(1, USERS)), draw(st.integers(1, ITEMS)), draw(STARS[k % 2]),
             978_300_000 + 1_000 * k + draw(st.integers(0, 999))]
            for k in draw(st.permutations(range(ROWS)))
        ],
        "titles": draw(st.lists(st.sampled_from(TITLES), min_size=ITEMS, max_size=ITEMS)),
        "genres": draw(st.lists(st.sampled_from(GENRES), min_size=ITEMS, max_size=ITEMS)),
        "people": draw(st.lists(st.sampled_from([(24, "M", "artist"), (1, "F", "3"), (None, None, None), (99, "", "x")]),
                                min_size=USERS, max_size=USERS)),
        "encoding": draw(st.sampled_from(["utf-8", "latin-1", "utf-8-sig"])),
        "end": draw(st.sampled_from(["\n", "\r\n", "\n\n"])),
        "spare": draw(st.sampled_from([0, 0, 1, 3])),
        "spoilt": draw(st.one_of(st.none(), st.none(), st.tuples(
            st.integers(0, ROWS - 1), st.integers(0, 3), st.sampled_from([None, "x", "99", "0.5", "nan", "1e9", '"', "-1"])
        ))),
    }  # fmt: skip


def quoted(rows: list[list], end: str) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator=end).writerows(rows)
    return out.getvalue()


def write(root: Path, draw: dict) -> None:
    """A folder of `draw["kind"]`; `spare` empty columns stand behind those of the tables with a header."""
    ratings = [list(row) for row in draw["ratings"]]
    if draw["spoilt"]:
        row, column, value = draw["spoilt"]
        ratings[row][column] = value
    titles, genres, kind, end = draw["titles"], draw["genres"], draw["kind"], draw["end"]
    movies = [[k + 1, titles[k], genres[k]] for k in range(ITEMS)]
    people = [[k + 1, *draw["people"][k]] for k in range(USERS)]
    if kind == "posters":
        tables = {
            "ratings.tsv": [["user_id", "item_id", "rating", "timestamp"], *ratings],
            "users.tsv": [["user_id", "age", "gender", "occupation"], *people],
            "items.tsv": [["item_id", "title", "year", "genres", "poster"],
                          *([k, title, 1999, genre, None] for k, title, genre in movies)],
        }  # fmt: skip
        texts = {
            name: lines([[*row, *[""] * draw["spare"]] for row in rows], "\t", end) for name, rows in tables.items()
        }
    elif kind == "ml-latest":
        tables = {
            "ratings.csv": [["userId", "movieId", "rating", "timestamp"], *ratings],
            "movies.csv": [["movieId", "title", "genres"], *movies],
        }
        texts = {name: quoted([[*row, *[""] * draw["spare"]] for row in rows], end) for name, rows in tables.items()}
    elif kind == "ml-100k":
        flags = [[int(genre in g.split("|")) for genre in GENRES_100K] for g in genres]
        films = [[k, title, "01-Jan-1995", "", "http://x", *flags[k - 1]] for k, title, _ in movies]
        texts = {"u.data": lines(ratings, "\t", end), "u.item": lines(films, "|", end)}
        texts["u.user"] = lines([[*row, "55117"] for row in people], "|", end)
    else:
        texts = {"ratings.dat": lines(ratings, "::", end), "movies.dat": lines(movies, "::", end)}
        if kind == "ml-1m":
            people = [[row[0], row[2], row[1], row[3], "55117"] for row in people]
            texts["users.dat"] = lines(people, "::", end)
    for name, text in texts.items():
        encoded(root / name, text, draw["encoding"])


@generated(150)
@given(folders())
def test_folders(draw):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "source"
        root.mkdir()
        write(root, draw)
        made = dataset_or_one_line(lambda: movielens(Path(folder) / "out", source=root))
        if not isinstance(made, Dataset):
            return
        (account,) = made.meta["rows"].values()
        assert account == {"read": ROWS, "kept": ROWS, "dropped": {}}
        ids = {name: getattr(made, f"{name}_table").column("id").to_pylist() for name in ("user", "item")}
        column = made.interactions
        rows = zip(column["user"], column["item"], column["time"], strict=True)
        read = [[ids["user"][u], ids["item"][i], t] for u, i, t in rows]
        if not draw["spoilt"]:
            assert sorted(read) == sorted([row[0], row[1], row[3]] for row in draw["ratings"])
            assert column["label"].sum() == sum(row[2] >= 4 for row in draw["ratings"])
            assert f"movielens ({draw['kind']})" == made.meta["name"]


def test_tidy_folders_are_read():
    """What the test above calls a dataset or one line is a dataset, where nothing is wrong."""
    people = [(24, "M", "artist"), (1, "F", "3"), (None, None, None), (99, "", "x")]
    ratings = [[1 + k % USERS, 1 + k % ITEMS, (1, 4)[k % 2], 978_300_000 + k] for k in range(ROWS)]
    for kind in KINDS:
        for encoding in ("utf-8", "latin-1"):
            draw = {"kind": kind, "ratings": ratings, "titles": TITLES[:ITEMS], "genres": GENRES, "people": people,
                    "encoding": encoding if kind in ("ml-100k", "ml-1m", "ml-10m") else "utf-8", "end": "\r\n", "spare": 3,
                    "spoilt": None}  # fmt: skip
            with tempfile.TemporaryDirectory() as folder:
                root = Path(folder) / "source"
                root.mkdir()
                write(root, draw)
                made = movielens(Path(folder) / "out", source=root)
                titles = made.item_table.column("title").to_pylist()
                assert titles[1] == ("Été, L'" if kind != "posters" else "Été, L' (1968)")
                assert made.num_users == USERS
