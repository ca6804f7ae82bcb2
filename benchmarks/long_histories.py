"""Histories of thousands of events: the last 50 beside the last of the candidate's category (SIM), on planted tastes by category.

python -m benchmarks.long_histories --out /tmp/long --seeds 3

Each of 40 users has a taste in each of 40 categories, a direction t of eight; a click is drawn with
sigmoid(4 <t, z> - 0.3) of the item's z. Items are shown evenly, so the last 50 events hold about one of the
candidate's category, and some 3,000 before them another 75. Every variant trains alike on IDs alone, from the
same seeds, in turns; validation chooses the step, test is opened once.
"""

import argparse
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import em3_synthetic
from em3_jax import evaluate as evaluation
from em3_jax import metrics, train
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table

USERS, CATEGORIES, ITEMS, WIDTH = 40, 40, 4000, 8
VARIANTS = {
    "last 50": {"history_length": 50},
    "last 25, similar 25": {
        "history_length": 25,
        "similar_by": "category",
        "similar_length": 25,
        "similar_within": 4000,
    },
    "last 50, similar 25": {
        "history_length": 50,
        "similar_by": "category",
        "similar_length": 25,
        "similar_within": 4000,
    },
}


def planted(folder: Path, rows: int) -> Dataset:
    """The dataset of so many impressions."""
    random = np.random.default_rng(0)
    unit = lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    content = unit(random.standard_normal((ITEMS, WIDTH)))
    taste = unit(random.standard_normal((USERS, CATEGORIES, WIDTH)))
    user, item = random.integers(0, USERS, rows), random.integers(0, ITEMS, rows)
    category = np.arange(ITEMS) % CATEGORIES
    score = 4 * np.einsum("nk,nk->n", taste[user, category[item]], content[item]) - 0.3
    probability = 1 / (1 + np.exp(-score))
    label = (random.random(rows) < probability).astype(np.int8)
    last = slice(int(0.9 * rows), rows)
    print(f"best possible AUC, test: {metrics.auc(label[last], probability[last]):.4f}")
    folder.mkdir(parents=True, exist_ok=True)
    log = {"user": user, "item": item, "time": np.arange(rows), "label": label}
    pq.write_table(pa.table(log), folder / "log.parquet")
    pq.write_table(pa.table({"item": np.arange(ITEMS), "category": category}), folder / "items.parquet")
    return table(
        folder / "data", interactions=folder / "log.parquet", items=folder / "items.parquet", item_fields=("category",),
        time_unit="order", overwrite=True,
    )  # fmt: skip


def run(dataset: Dataset, folder: Path, variant: str, seed: int, epochs: float) -> tuple[float, float]:
    """(test AUC, examples a second of the later steps)."""
    config = em3_synthetic.get_config("id_only")
    config.data.root, config.data.batch_size, config.seed = str(dataset.root), 1024, seed
    config.model.backbone_settings.dropout = 0.0
    config.train.epochs, config.train.eval_every, config.train.log_every, config.train.patience = epochs, 0, 50, 0
    for name, value in VARIANTS[variant].items():
        setattr(config.data, name, value)
    shutil.rmtree(folder, ignore_errors=True)
    train.train(config, folder)
    auc = evaluation.evaluate(folder, "test")["slices"]["all"]["auc"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speed = [line["time/examples_per_second"] for line in lines if "time/examples_per_second" in line]
    return auc, statistics.median(speed[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    args = parser.parse_args()
    dataset = planted(args.out, args.rows)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in VARIANTS}
    for seed in range(args.seeds):
        for number, name in enumerate(VARIANTS):
            found[name].append(run(dataset, args.out / f"run-{number}-{seed}", name, seed, args.epochs))
    first = next(iter(VARIANTS))
    for name, runs in found.items():
        aucs, speeds = zip(*runs, strict=True)
        of_first, speeds_of_first = zip(*found[first], strict=True)
        p = metrics.paired_t_test(aucs, of_first).p
        slower = statistics.median(a / b for a, b in zip(speeds_of_first, speeds, strict=True))
        spread = statistics.stdev(aucs) if len(aucs) > 1 else float("nan")
        print(f"{name:<22} AUC {statistics.mean(aucs):.4f} ± {spread:.4f}  p {p:.2g}  step {slower:.2f} x")


if __name__ == "__main__":
    main()
