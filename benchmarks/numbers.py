"""Numbers as ranges and as values, on a planted table whose clicks depend on four of them, smoothly.

python -m benchmarks.numbers --out /tmp/numbers --seeds 3

The log odds of a click are the sum of

    price    of the item, lognormal    -log(price), standardised: clicks fall with it
    age      of the user, 16 to 80     1 - ((age - 40) / 20)^2, at least -2: those around 40 click most
    hour     of the impression         sin(2 pi hour / 6): four waves a day
    seconds  of the events             1.5 tanh of the mean over the last 5 of the standardised log(seconds)

and of an item's and a user's own effect (N(0, 0.5^2)); a tenth of the prices and of the hours are missing, which count as 0. IDs
alone, 4 epochs, the best step by validation. Of each kind the test AUC, the mean over the seeds and their standard deviation, and
the difference to the first of them, paired by seed; the best possible AUC on these rows is printed beside. `--bins` is
--number-bins. Stopped and called again, it goes on.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax import metrics
from em3_jax.core.numbers import KINDS
from em3_jax.data.readers.table import table
from em3_jax.trials import runs
from em3_jax.trials.runs import PlannedRun

ROWS, USERS, ITEMS, LAST = 120_000, 2_000, 1_000, 5
CHANGES = {
    "data.batch_size": 512, "data.history_length": 10, "train.epochs": 4.0, "train.patience": 0, "eval.batch_size": 2048,
}  # fmt: skip


def planted(rows: int = ROWS, seed: int = 0) -> tuple[dict, dict, dict, np.ndarray]:
    """(log, items, users: columns by name; [rows] the true log odds)."""
    random = np.random.default_rng(seed)
    user, item = random.integers(0, USERS, rows), random.integers(0, ITEMS, rows)
    price, age = random.lognormal(3.0, 1.0, ITEMS), random.uniform(16, 80, USERS)
    hour, seconds = random.uniform(0, 24, rows), random.lognormal(3.0, 1.0, rows)
    of_item, of_user = random.normal(0, 0.5, ITEMS), random.normal(0, 0.5, USERS)
    past: list[list[float]] = [[] for _ in range(USERS)]
    activity = np.zeros(rows)
    for k in range(rows):
        own = past[user[k]]
        activity[k] = np.tanh(np.mean(own[-LAST:])) if own else 0.0
        own.append(np.log(seconds[k]) - 3.0)
    no_price, no_hour = random.random(ITEMS) < 0.1, random.random(rows) < 0.1
    effects = {
        "price": np.where(no_price, 0.0, 3.0 - np.log(price))[item],
        "age": np.maximum(1 - ((age - 40) / 20) ** 2, -2.0)[user],
        "hour": np.where(no_hour, 0.0, np.sin(2 * np.pi * hour / 6)),
        "seconds": 1.5 * activity,
    }
    odds = sum(effects.values()) + of_item[item] + of_user[user]
    label = random.random(rows) < 1 / (1 + np.exp(-odds))
    log = {"user": user, "item": item, "label": label.astype(np.int8), "time": 1_600_000_000 + np.arange(rows)}
    log |= {"hour": np.where(no_hour, np.nan, hour), "seconds": seconds}
    items = {"item": np.arange(ITEMS), "price": np.where(no_price, np.nan, price)}
    return log, items, {"user": np.arange(USERS), "age": age}, odds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS), help="the first is what others are compared with")
    parser.add_argument("--bins", type=int, default=16)
    parser.add_argument("--backbone", default="din")
    parser.add_argument("--frequency-scale", type=float, default=1.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    log, items, users, odds = planted(args.rows)
    for name, columns in (("log", log), ("items", items), ("users", users)):
        pq.write_table(pa.table(columns), args.out / f"{name}.parquet")
    dataset = table(
        args.out / "data", interactions=args.out / "log.parquet", items=args.out / "items.parquet",
        users=args.out / "users.parquet", item_numbers=("price",), user_numbers=("age",), context_numbers=("hour",),
        event_numbers=("seconds",), number_bins=args.bins, events="all", overwrite=True,
    )  # fmt: skip
    changes = CHANGES | {"model.backbone": args.backbone, "model.number_settings.frequency_scale": args.frequency_scale}
    kinds = args.kinds.split(",")
    planned = {kind: PlannedRun(kind, "id_only", {"model.all_numbers": kind}) for kind in kinds}
    how = {"config": "configs/own_data.py", "changes": changes, "data": dataset.root, "seeds": args.seeds}
    runs.run_all(runs.make_jobs(planned, root=args.out, **how), args.jobs)
    rows = np.asarray(dataset.split_rows("test"))
    label = np.asarray(dataset.label("click")[rows])
    found = {
        kind: [
            metrics.auc(label, np.load(args.out / f"{kind}-{seed}" / "eval_test_logits.npy"))
            for seed in range(args.seeds)
        ]
        for kind in planned
    }
    print(f"{'best possible':<16}{metrics.auc(label, odds[rows]):.4f}")
    for kind, values in found.items():
        line = f"{kind:<16}{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"
        if kind != kinds[0] and len(values) > 1:
            test = metrics.paired_t_test(values, found[kinds[0]])
            line += f"   to {kinds[0]} {test.mean_difference:+.4f}, p {test.p:.3f}"
        print(line)


if __name__ == "__main__":
    main()
