"""What a model is given of the rows before a cut, when all that comes after it is another.

A world is a source that a reader prepares, written twice: as it is, and with all changed that lies
behind the cut. Behind it are the rows of later splits, and those of the cut's own split that are
later than its time; of the rows at that very time, which may not know of each other, the labels
change. What is in use keeps its range (ids, values of fields), so that tables are of one size.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from configs import base
from configs import lemur as lemur_configs
from em3_jax.core import sharding
from em3_jax.data.batches import Buckets
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.readers.microlens import microlens
from em3_jax.data.readers.mind import mind
from em3_jax.data.readers.mmrec import mmrec
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.table import table
from em3_jax.data.stream import WindowSource, as_of
from em3_jax.tasks.work import Work
from tests.data.test_readers_microlens import write as write_microlens

ROWS, USERS, ITEMS, COLD = 480, 16, 40, 4
T, STEPS = 6, 3
SPLITS = {"valid": 1, "test": 2}


class World(NamedTuple):
    """A reader's source.

    Attributes:
      write: (folder, cut, changed) -> the dataset prepared of the source written in the folder.
      split: number of the cut's own split: rows of later ones are behind the cut, whenever they are.
      has_times: whether rows of that split have a time that says what is behind the cut; else none is.
    """

    write: Callable[[Path, str, bool], Dataset]
    has_times: bool = True


def own_log(random_split: bool) -> dict[str, np.ndarray]:
    """Columns of interactions in the order of time, three of a time; the last items occur late alone."""
    random = np.random.default_rng(11)
    split = np.repeat([0, 1, 2], [336, 72, 72])
    if random_split:
        split = random.permutation(split)
    item = random.integers(0, ITEMS - COLD, ROWS)
    late = np.flatnonzero(split == 2)[-2 * COLD :]
    item[late] = ITEMS - COLD + np.arange(2 * COLD) % COLD
    return {
        "user": random.integers(0, USERS, ROWS),
        "item": item,
        "rating": random.integers(1, 6, ROWS),
        "slot": random.integers(0, 4, ROWS),
        "page": np.arange(ROWS) // 4 + 1000 * (random.random(ROWS) < 0.1),
        "time": np.arange(ROWS) // 3,
        "split": split,
    }


def behind(split: np.ndarray, time: np.ndarray, cut: str) -> tuple[np.ndarray, np.ndarray]:
    """([n] bool the rows behind the cut, those at it): the cut is in the middle of the split that it is called after."""
    own = split == SPLITS[cut]
    middle = np.median(time[own]).astype(int)
    return (split > SPLITS[cut]) | (own & (time > middle)), own & (time == middle)


def change(log: dict[str, np.ndarray], cut: str, within_user: bool = False) -> dict[str, np.ndarray]:
    """`log` with other users, items and values behind the cut, and other ratings at it, too."""
    late, now = behind(log["split"], log["time"], cut)
    result, random = {name: column.copy() for name, column in log.items()}, np.random.default_rng(1)
    rows = np.flatnonzero(late)
    for name in ("item", "user", "slot", "page", "rating"):
        result[name][rows] = log[name][random.choice(rows, len(rows))]
    if within_user:
        result |= {name: log[name].copy() for name in ("item", "user")}
        for user in range(USERS):
            own = rows[log["user"][rows] == user]
            result["item"][own] = log["item"][random.permutation(own)]
    result["rating"][late | now] = 6 - result["rating"][late | now]
    return result


def write_table(random_split: bool, events: bool = False, **options) -> Callable:
    """The table reader; with `negatives` every row is a click; with `events` histories are a table of all rows."""

    def write(root: Path, cut: str, changed: bool) -> Dataset:
        log = own_log(random_split)
        vectors = np.random.default_rng(2).standard_normal((ITEMS, 5)).astype(np.float32)
        if changed:
            log = change(log, cut)
            vectors[ITEMS - COLD :] *= -2.0  # of items that no row before the cut names
        root.mkdir(parents=True)
        log["split"] = np.array(["train", "valid", "test"])[log["split"]]
        pa_csv.write_csv(pa.table(log), root / "log.csv")
        pa_csv.write_csv(pa.table({"user": np.arange(USERS)}), root / "users.csv")
        items = {"item": np.arange(ITEMS), "brand": np.arange(ITEMS) % 7}
        pa_csv.write_csv(pa.table(items), root / "items.csv")
        np.save(root / "image.npy", vectors)
        if events:
            shown = ("user", "item", "time", "rating")
            pa_csv.write_csv(pa.table({name: log[name] for name in shown}), root / "events.csv")
        return table(
            root / "out",
            interactions=root / "log.csv",
            events_table=root / "events.csv" if events else None,
            items=root / "items.csv",
            users=root / "users.csv",
            label=None if "negatives" in options else "rating>=3",
            item_fields=("brand",),
            context_fields=("slot",),
            event_fields=("rating",),
            features={"image": str(root / "image.npy")},
            split="column:split" if random_split else "0.7,0.15,0.15",
            columns={"group": "page"},
            **options,
        )

    return write


def write_untimed(histories: str) -> Callable:
    """The table reader without times, whose histories are a user's other training rows, or the earlier ones."""

    def write(root: Path, cut: str, changed: bool) -> Dataset:
        log = own_log(True)
        if changed:
            late = np.flatnonzero(log["split"] >= SPLITS[cut])
            random = np.random.default_rng(1)
            log |= {name: log[name].copy() for name in ("item", "user", "slot", "rating")}
            for name in ("item", "user", "slot", "rating"):
                log[name][late] = log[name][random.permutation(late)]
        root.mkdir(parents=True)
        log["split"] = np.array(["train", "valid", "test"])[log["split"]]
        pa_csv.write_csv(pa.table(log), root / "log.csv")
        for name, count in (("user", USERS), ("item", ITEMS)):
            pa_csv.write_csv(pa.table({name: np.arange(count)}), root / f"{name}s.csv")
        return table(
            root / "out",
            interactions=root / "log.csv",
            items=root / "items.csv",
            users=root / "users.csv",
            label="rating>=3",
            context_fields=("slot",),
            event_fields=("rating",),
            events="all",
            time_unit="none",
            untimed_histories=histories,
            split="column:split",
        )

    return write


def write_mind(root: Path, cut: str, changed: bool) -> Dataset:
    """MIND: impressions of four news, one a minute; the second half of dev is the test split."""
    log, random = own_log(False), np.random.default_rng(5)
    page = np.arange(ROWS) // 4
    log |= {"time": page, "user": log["user"][page * 4], "item": random.permuted(np.tile(np.arange(ITEMS), 12))}
    past = random.integers(0, ITEMS, (ROWS // 4, 3))
    label = log["rating"] > 3
    if changed:
        late, now = behind(log["split"], log["time"], cut)
        rows = np.flatnonzero(late)
        other = random.permutation(np.unique(page[late]))
        past[np.unique(page[late])] = past[other]
        log["user"][rows] = np.repeat(log["user"][other * 4], 4)
        log["item"][rows] = log["item"][random.permutation(rows)]
        label = label ^ (late | now)
    for name, some in (("train", page < 84), ("dev", page >= 84)):
        folder = root / name
        folder.mkdir(parents=True)
        (folder / "news.tsv").write_text("".join(f"N{k}\tc{k % 5}\ts\tTitle\tText\n" for k in range(ITEMS)))
        lines = []
        for one in np.unique(page[some]):
            rows = np.flatnonzero(page == one)
            shown = " ".join(f"N{log['item'][row]}-{int(label[row])}" for row in rows)
            time = f"11/11/2019 {one // 60 + 1}:{one % 60:02}:00 AM"
            lines.append(f"{one}\tU{log['user'][rows[0]]}\t{time}\t{' '.join(f'N{k}' for k in past[one])}\t{shown}\n")
        (folder / "behaviors.tsv").write_text("".join(lines))
    return mind(root / "out", source=root)


def write_movielens(root: Path, cut: str, changed: bool) -> Dataset:
    random, log = np.random.default_rng(3), own_log(False)
    pair = random.permutation(USERS * ITEMS)[:ROWS]  # nobody rates a movie twice
    log |= {"user": pair // ITEMS, "item": pair % ITEMS}
    log["split"] = np.repeat([0, 1, 2], [384, 48, 48])  # as the reader cuts it
    if changed:
        log = change(log, cut, within_user=True)
    root.mkdir(parents=True)
    columns = {"userId": "user", "movieId": "item", "rating": "rating", "timestamp": "time"}
    pa_csv.write_csv(pa.table({name: log[column] for name, column in columns.items()}), root / "ratings.csv")
    titles = pa.array([f"movie {k} (19{k + 10})" for k in range(ITEMS)])
    genres = pa.array(["Drama", "Crime|Drama"] * (ITEMS // 2))
    movies = pa.table({"movieId": pa.array(range(ITEMS)), "title": titles, "genres": genres})
    pa_csv.write_csv(movies, root / "movies.csv")
    return movielens(root / "out", source=root)


def write_mmrec(**options) -> Callable:
    def write(root: Path, cut: str, changed: bool) -> Dataset:
        random = np.random.default_rng(4)
        pair = np.sort(random.permutation(USERS * ITEMS)[:ROWS])
        user, item, split = pair // ITEMS, pair % ITEMS, random.choice(3, ROWS, p=[0.6, 0.2, 0.2])
        if changed:  # the parts have no times: those after the cut's own are behind it, with other items of their users
            late = split > SPLITS[cut] - 1
            for one in range(USERS):
                own = np.flatnonzero(late & (user == one))
                taken = item[(user == one) & ~late]
                item[own] = random.permutation(np.setdiff1d(np.arange(ITEMS), taken))[: len(own)]
        root.mkdir(parents=True)
        lines = "".join(f"{u}\t{i}\t{x}\n" for u, i, x in zip(user, item, split, strict=True))
        (root / "interactions.tsv").write_text("userID\titemID\tx_label\n" + lines)
        np.save(root / "image_feat.npy", np.random.default_rng(2).standard_normal((ITEMS, 5)).astype(np.float32))
        return mmrec(root / "out", source=root, **options)

    return write


def write_given(root: Path, cut: str, changed: bool) -> Dataset:
    """MicroLens: the histories come with the rows; the second half of its valid file is the test split."""
    write_microlens(root)
    path = root / "valid.parquet"
    rows = pq.read_table(path)
    late = np.flatnonzero(np.arange(len(rows)) >= len(rows) * (0.25 if cut == "valid" else 0.75))
    if changed:
        order = np.arange(len(rows))
        order[late] = np.random.default_rng(1).permutation(late)
        for name in ("item_id", "label", "likes_level", "views_level", "item_seq"):
            column = rows.column(name).combine_chunks().take(pa.array(order))
            rows = rows.set_column(rows.column_names.index(name), name, column)
        pq.write_table(rows, path)
    return microlens(root / "out", source=root)


def write_planted(planted: Dataset) -> Callable:
    """The planted data has no source: its columns are changed where they lie."""

    def write(root: Path, cut: str, changed: bool) -> Dataset:
        shutil.copytree(planted.root, root)
        if changed:
            columns = {name: np.array(column) for name, column in planted.interactions.items()}
            late, now = behind(columns["split"], columns["time"], cut)
            order = np.random.default_rng(1).permutation(np.flatnonzero(late))
            for name in ("user", "item", "label", "probability"):
                columns[name][late] = columns[name][order]
            columns["label"][now] = 1 - columns["label"][now]
            events = np.array(planted.events["item"])
            later = planted.events["time"] >= columns["time"][now][0]  # the clicks of these rows
            events[later] = np.random.default_rng(2).permutation(events[later])
            np.save(root / "events" / "item.npy", events)
            for name in ("user", "item", "label", "probability"):
                np.save(root / "interactions" / f"{name}.npy", columns[name])
        return open_dataset(root)

    return write


def ranking_config(dataset: Dataset, task: str = "ranking", **data) -> dict:
    """A tiny model; content, where there is any, comes with the batch, so that it is among what is looked at."""
    config = (lemur_configs.get_config() if task == "lemur" else base.ranking()).to_dict()
    sets = sorted(path.name for path in (dataset.root / "features").glob("[!.]*"))[:1]
    config["data"] |= {"root": str(dataset.root), "features": tuple(sets), "placement": "host", "history_length": T}
    config["data"] |= {"batch_size": 32, "unknown_alpha": 20.0} | data  # so that every count shows in what is replaced
    config["eval"]["batch_size"] = 32
    config["mesh"] |= {"data": 1}
    model = config["model"]
    if task == "lemur":
        model["encoder"] |= {"width": 8, "layers": 1, "heads": 1, "mlp_width": 8, "output": 8}
        model |= {"short_history": 3, "query_history": 3, "decoder_layers": 1, "decoder_hidden": 8}
    else:
        model["content"] = "end_to_end" if sets else "none"
        model["fusion_settings"] |= {"width": 8, "ffn_width": 8, "heads": 1}
    return config


def mesh(config: dict):
    return sharding.make_layout(1, 1, ()).mesh


def observed_rows(dataset: Dataset, cut: str, has_times: bool = True) -> np.ndarray:
    """[n] i64: the rows before the cut or at it that are not of training."""
    split, time = np.asarray(dataset.interactions["split"]), np.asarray(dataset.interactions["time"])
    if not has_times:
        return np.flatnonzero((split > 0) & (split < SPLITS[cut]))
    late, _ = behind(split, time, cut)
    return np.flatnonzero((split > 0) & ~late)


def given(work: Work, rows: np.ndarray) -> dict[str, np.ndarray]:
    """All that training is given, and what the model is given of the rows [n] but their labels."""
    batches = {f"train {step}": work.source[step] for step in range(STEPS)}
    builder = work.evaluation("valid").builder
    for first in range(0, len(rows), 32):
        batch = builder(rows[first : first + 32], buckets=Buckets(192, 192))
        batches[f"rows {first}"] = {name: value for name, value in batch.items() if name != "label"}
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(batches)}


def given_in_stream(dataset: Dataset, work: Work, end: int) -> dict[str, np.ndarray]:
    """All that a stream is given up to row `end` in windows of 100 rows, to score each and then to train on it.

    The last window is scored alone: its labels are behind the cut.
    """
    result, buckets = {}, Buckets(192, 192)

    def known(row: int):
        return work.builder(as_of(dataset, row, "click", T))

    for first in range(0, end, 100):
        rows = np.arange(first, min(first + 100, end))
        batch = known(first)(rows, buckets=buckets)
        result |= {f"scored {first} {name}": value for name, value in batch.items() if name != "label"}
        if first + 100 < end:
            batch = WindowSource(known(first + 100), rows, 100, 0, first, buckets, work.shards)[0]
            result |= {f"trained {first} {name}": value for name, value in batch.items()}
    return {name: np.asarray(value) for name, value in result.items() if not isinstance(value, dict)}


def differing(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> list[str]:
    """Names of what is not the same to the bit."""
    assert list(one) == list(other)
    return [name for name, value in one.items() if value.tobytes() != other[name].tobytes()]


def facts(dataset: Dataset) -> str:
    """What dataset.json says the model's sizes are."""
    return json.dumps(dataset.meta["fields"])
