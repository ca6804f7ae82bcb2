"""Own tables that grow: a first data set, and a later one with more of everything, numbered otherwise.

Later: further users and items, in another order of the items file; a category, a city and a device that sort before those
known so far; new interactions, most of them of new users and items, after the old ones.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

USERS, ITEMS, ROWS = (40, 700), (50, 420), (700, 1500)  # so many that the padded table is longer as well
WIDTH = 8


def grown(folder: Path, later: bool, without: str | None = None, seed: int = 5) -> Dataset:
    """The dataset in `folder`, the first or the later one.

    Args:
      without: an item that is left out, with all its interactions.
      seed: of the interactions; with another one the same users and items meet otherwise.
    """
    random = np.random.default_rng(seed)
    clicks = [_clicks(random, USERS[0], ITEMS[0], 0, ROWS[0], ("phone", "web"))]
    clicks.append(_clicks(random, USERS[1], ITEMS[1], ROWS[0], ROWS[1], ("desktop", "phone", "web")))
    clicks = pa.concat_tables(clicks if later else clicks[:1])
    items = np.arange(ITEMS[later])[:: -1 if later else 1]
    names = np.array([f"i{k}" for k in items])
    clicks = clicks.filter(pa.array([item != without for item in clicks.column("item").to_pylist()]))
    items, names = items[names != without], names[names != without]
    category = [f"c{k % 4}" if k < ITEMS[0] else "a new one" for k in items]
    tags = [f"t{k % 5}|t{k % 3 + 2}" for k in items]
    users = np.arange(USERS[later])
    city = [f"town {k % 3}" if k < USERS[0] else "another" for k in users]
    folder.mkdir(parents=True)
    tables = {
        "clicks": clicks,
        "items": pa.table({"item": names, "category": category, "tags": tags}),
        "users": pa.table({"user": [f"u{k}" for k in users][::-1], "city": city[::-1]}),
    }
    for name, rows in tables.items():
        pa.csv.write_csv(rows, folder / f"{name}.csv")
    np.save(folder / "image.npy", vectors(items))
    return table(
        folder / "data",
        interactions=folder / "clicks.csv",
        items=folder / "items.csv",
        users=folder / "users.csv",
        item_fields=("category", "tags:multi"),
        user_fields=("city",),
        context_fields=("device",),
        event_fields=("device",),
        features={"image": str(folder / "image.npy")},
    )


def vectors(items: np.ndarray) -> np.ndarray:
    """[I, WIDTH] f32 the content of the items, whatever row they have."""
    return np.stack([np.random.default_rng(100 + k).standard_normal(WIDTH) for k in items]).astype(np.float32)


def _clicks(random, users: int, items: int, start: int, end: int, devices: tuple[str, ...]) -> pa.Table:
    count = end - start
    # Each user and item at least once, so that a dataset without a file of them has them all as well.
    user = np.append(random.permutation(users), random.integers(0, users, count - users))
    item = np.append(random.permutation(items), random.integers(0, items, count - items))
    return pa.table(
        {
            "user": [f"u{k}" for k in user],
            "item": [f"i{k}" for k in item],
            "time": np.arange(start, end),
            "label": random.integers(0, 2, count),
            "device": random.choice(devices, count),
        }
    )
