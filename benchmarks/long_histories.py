"""Histories of thousands of events: the last 50 beside those of the candidate's category (SIM) or content (MUSE).

python -m benchmarks.long_histories --out /tmp/long --seeds 3                  # IDs alone, hard search
python -m benchmarks.long_histories --out /tmp/muse --seeds 3 --table muse     # content: hard and soft search, SimTier, SA-TA

Each of 40 users has a taste in each of 40 categories, a direction t of eight; a click is drawn with
sigmoid(4 <t, z> - 0.3) of the item's z. Items are shown evenly, so the last 50 events hold about one of the
candidate's category, and some 3,000 before them another 75. Content is a vector of 24 numbers: a direction of the
category, z, and noise. Every variant trains alike from the same seeds, in turns; validation chooses the step, test
is opened once. Times are of steps, by the process's own clock as well, for other work on the machine.
"""

import argparse
import json
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from configs import em3_synthetic
from em3_jax import evaluate as evaluation
from em3_jax import metrics, train
from em3_jax.data import soft_search
from em3_jax.data.features import write_features
from em3_jax.data.format import Dataset
from em3_jax.data.readers.table import table
from em3_jax.training import experiment

USERS, CATEGORIES, ITEMS, WIDTH = 40, 40, 4000, 8
LONG = {"similar_length": 25, "similar_within": 4000}
HARD, SOFT = LONG | {"similar_by": "category"}, LONG | {"similar_content": ("content",)}
CONTENT: dict[str, Any] = {"model.content": "pre_extracted", "model.content_parts": ("item",), "features": ("content",)}
SIMTIER, SATA = {"model.content_parts": ("item", "simtier")}, {"model.similar_attention": True}
HALF = CONTENT | {"history_length": 25}
TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "sim": {
        "last 50": {"history_length": 50},
        "last 25, similar 25": HARD | {"history_length": 25},
        "last 50, similar 25": HARD | {"history_length": 50},
    },
    "muse": {
        "last 50, IDs": CONTENT | {"history_length": 50},
        "last 50, SimTier, SA-TA": CONTENT | {"history_length": 50} | SIMTIER | SATA,
        "hard, IDs": HALF | HARD,
        "hard, SimTier, SA-TA": HALF | HARD | SIMTIER | SATA,
        "soft, IDs": HALF | SOFT,
        "soft, SimTier": HALF | SOFT | SIMTIER,
        "soft, SA-TA": HALF | SOFT | SATA,
        "soft, SimTier, SA-TA": HALF | SOFT | SIMTIER | SATA,
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
    dataset = table(
        folder / "data", interactions=folder / "log.parquet", items=folder / "items.parquet", item_fields=("category",),
        time_unit="order", overwrite=True,
    )  # fmt: skip
    of_category = unit(random.standard_normal((CATEGORIES, 2 * WIDTH)))
    vectors = np.concatenate([1.5 * of_category[category], content], axis=1)
    vectors += 0.1 * random.standard_normal(vectors.shape)
    place = np.array(dataset.item_table.column("id").to_pylist()).astype(int)
    write_features(
        dataset.root, "content", vectors[place].astype(np.float32), np.ones((len(place), 1), bool), {"encoder": "planted"},
        dataset.meta["item_hash"], overwrite=True,
    )  # fmt: skip
    return dataset


def config_of(dataset: Dataset, settings: dict[str, Any], seed: int, epochs: float) -> Any:
    """The config of a variant."""
    config = em3_synthetic.get_config("" if "model.content" in settings else "id_only")
    config.data.root, config.data.batch_size, config.seed = str(dataset.root), 1024, seed
    config.model.backbone_settings.dropout, config.model.cic.weight = 0.0, 0.0
    config.train.epochs, config.train.eval_every, config.train.log_every, config.train.patience = epochs, 0, 50, 0
    for name, value in settings.items():
        section, _, key = name.rpartition(".")
        setattr(config[section or "data"], key, value)
    return config


def timed(dataset: Dataset, variants: dict[str, dict[str, Any]], steps: int) -> None:
    """Prints what a step of each costs, and apart from it the making of its batch, the variants in turns of ten."""
    opened: dict[str, list[Any]] = {}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for name, settings in variants.items():
        parts = experiment.build(config_of(dataset, settings, 0, 1.0))
        opened[name] = [parts, parts.program.init()]
    for turn in range(steps // 10 + 1):
        for name, (parts, state) in opened.items():
            for k in range(10):
                began = time.thread_time()
                batch = parts.work.source[10 * turn + k]
                of_batch = time.thread_time() - began
                batch = jax.block_until_ready(parts.program.place(batch))
                wall, processor = time.perf_counter(), time.process_time()
                state, logged = parts.program.train_step(state, parts.work.constants, batch)
                jax.block_until_ready((state, logged))
                if turn:  # the first compiles
                    found[name].append((time.perf_counter() - wall, time.process_time() - processor, of_batch))
            opened[name][1] = state
    first = np.array(found[next(iter(variants))])
    for name, times in found.items():
        own = np.array(times)
        told = []
        for what, of in (("least", np.min), ("lower quartile", lambda x: np.quantile(x, 0.25))):
            told.append(f"{what} {1e3 * of(own[:, 0]):.1f} ms ({of(own[:, 0]) / of(first[:, 0]):.2f} x)")
        for what, k in (("of processors", 1), ("its batch", 2)):
            middle = np.median(own[:, k])
            told.append(f"{what} {1e3 * middle:.1f} ms ({middle / np.median(first[:, k]):.2f} x)")
        print(f"{name:<24} {', '.join(told)}")


def run(
    dataset: Dataset, folder: Path, settings: dict[str, Any], seed: int, epochs: float
) -> tuple[float, float, float]:
    """(test AUC, seconds a step by the median of the later lines of the log, processor seconds of all in all)."""
    config = config_of(dataset, settings, seed, epochs)
    shutil.rmtree(folder, ignore_errors=True)
    began = time.process_time()
    train.train(config, folder)
    seconds = time.process_time() - began
    auc = evaluation.evaluate(folder, "test")["slices"]["all"]["auc"]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    speed = [line["time/examples_per_second"] for line in lines if "time/examples_per_second" in line]
    return auc, config.data.batch_size / statistics.median(speed[1:]), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", choices=TABLES, default="sim")
    parser.add_argument("--variants", default="", help="numbers of some of the table, from 0: 0,1,7; default all")
    parser.add_argument("--rows", type=int, default=250_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3.0)
    parser.add_argument("--steps", type=int, default=0, help="time so many steps of each variant, and train nothing")
    args = parser.parse_args()
    dataset, variants = planted(args.out, args.rows), TABLES[args.table]
    if args.variants:
        variants = {name: variants[name] for k, name in enumerate(variants) if str(k) in args.variants.split(",")}
    shutil.rmtree(dataset.root / "features" / soft_search.FOLDER, ignore_errors=True)
    if args.steps:
        return timed(dataset, variants, args.steps)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in variants}
    for seed in range(args.seeds):
        for number, (name, settings) in enumerate(variants.items()):
            found[name].append(run(dataset, args.out / f"run-{number}-{seed}", settings, seed, args.epochs))
            auc, step, processor = found[name][-1]
            print(
                f"seed {seed}  {name:<24} AUC {auc:.4f}  {1e3 * step:.1f} ms a step, {processor:.0f} s of processors",
                flush=True,
            )
    first = next(iter(variants))
    for name, runs in found.items():
        aucs, steps, _ = zip(*runs, strict=True)
        of_first, steps_of_first, _ = zip(*found[first], strict=True)
        p = metrics.paired_t_test(aucs, of_first).p
        slower = statistics.median(b / a for a, b in zip(steps_of_first, steps, strict=True))
        spread = statistics.stdev(aucs) if len(aucs) > 1 else float("nan")
        print(f"{name:<24} AUC {statistics.mean(aucs):.4f} ± {spread:.4f}  p {p:.2g}  step {slower:.2f} x")


if __name__ == "__main__":
    main()
