"""Logs in which it is known what decides a click, and runs on them, once for all tests."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest

from configs import base
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.data.codes import write_codes
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

USERS, ITEMS, ROWS = 40, 50, 2400
BRANDS = 5


def write_shop(root: Path, split: str, time_unit: str = "auto") -> Dataset:
    """Clicks that an item's brand and its image decide, and beside them fields that say nothing."""
    random = np.random.default_rng(5)
    user, item = random.integers(0, USERS, ROWS), random.integers(0, ITEMS, ROWS)
    brand, shown = random.integers(0, BRANDS, ITEMS), random.choice([-1.0, 1.0], ITEMS)
    logit = 3.0 * (brand[item] % 2) - 1.5 + 1.5 * shown[item]
    log = {
        "user": [f"u{k}" for k in user],
        "item": [f"i{k}" for k in item],
        "label": (random.random(ROWS) < 1 / (1 + np.exp(-logit))).astype(int),
        "time": 1_600_000_000 + np.arange(ROWS) // 2,
        "slot": random.integers(0, 3, ROWS),
        "rating": random.integers(1, 6, ROWS),
    }
    items = {"item": [f"i{k}" for k in range(ITEMS)], "brand": brand, "colour": random.integers(0, 4, ITEMS)}
    users = {"user": [f"u{k}" for k in range(USERS)], "city": random.integers(0, 4, USERS)}
    root.mkdir(parents=True)
    for name, columns in (("clicks", log), ("items", items), ("users", users)):
        pa.csv.write_csv(pa.table(columns), root / f"{name}.csv")
    directions = random.normal(size=(2, 8))
    arrays = {
        "image": shown[:, None, None] * directions[None] + random.normal(0, 0.3, (ITEMS, 2, 8)),
        "text": random.normal(size=(ITEMS, 1, 6)),
    }
    for name, array in arrays.items():
        np.save(root / f"{name}.npy", array.astype(np.float32))
    return table(
        root / "data",
        interactions=root / "clicks.csv",
        items=root / "items.csv",
        users=root / "users.csv",
        item_fields=("brand", "colour"),
        user_fields=("city",),
        context_fields=("slot",),
        event_fields=("rating",) if time_unit == "auto" else (),
        features={name: root / f"{name}.npy" for name in arrays},
        split=split,
        events="all" if time_unit == "auto" else None,
        time_unit=time_unit,
    )


def write_codes_of(dataset: Dataset, features: str) -> None:
    """Adds a code set "sid", said to be made of these features, to a dataset."""
    number = dataset.num_items
    manifest = {"kind": "rq_kmeans", "levels": 2, "size": 4, "seed": 0, "features": {features: {}}}
    codes = np.random.default_rng(0).integers(0, 4, (number, 2)).astype(np.uint8)
    books = {"codebooks": np.zeros((2, 4, 3), np.float32)}
    digest = np.zeros((number, 16), np.uint8)
    write_codes(dataset, "sid", codes, np.ones(number, bool), books, digest, manifest)


def config_of(dataset: Dataset, seed: int = 0, **changes):
    """A small ranking run, which takes seconds."""
    config = base.ranking()
    config.data.root, config.data.features = str(dataset.root), ("image", "text")
    config.data.history_length, config.data.batch_size, config.eval.batch_size = 6, 64, 64
    config.model.backbone_settings.hidden = (16,)
    config.model.fusion_settings.width = config.model.fusion_settings.ffn_width = 16
    config.model.cic.negatives = 16
    config.tables.learning_rate, config.optim.learning_rate = 0.05, 1e-2
    config.train.epochs, config.seed = 2.0, seed
    config.train.log_every = config.train.eval_every = 20
    for name, value in changes.items():
        setattr(config.train, name, value)
    return config


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Dataset:
    """The log, split by time."""
    return write_shop(tmp_path_factory.mktemp("shop") / "shop", "0.6,0.1,0.3")


@pytest.fixture(scope="session")
def trained(shop, tmp_path_factory) -> Path:
    """A run on it, evaluated on the test split."""
    folder = tmp_path_factory.mktemp("runs") / "em3"
    train.train(config_of(shop), folder)
    evaluation.evaluate(folder, "test")
    return folder
