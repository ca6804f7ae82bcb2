"""Probabilities of the whole log by models that saw a share of the rows without a click.

em3 shop --out /tmp/shop --interactions 400000 --keep-negatives 0.2
em3 prepare table --mapping /tmp/shop/shop.toml --out /tmp/shop-data
python -m benchmarks.calibration --data /tmp/shop-data --kept 0.2 --out /tmp/calibration --seeds 3

Of each seed and each way to calibrate, on test, which holds all rows: the slope of a logistic regression of the clicks on the
calibrated logits (1 is right), and the mean probability over the click rate (1 is right). Stopped and called again, it goes on.
"""

import argparse
from pathlib import Path

import numpy as np

from em3_jax import evaluate as evaluation
from em3_jax.core.calibration import METHODS
from em3_jax.data.format import CLICK, open_dataset
from em3_jax.evaluation import calibration
from em3_jax.trials import runs
from em3_jax.trials.runs import PlannedRun

CHANGES = {"data.label": CLICK, "train.epochs": 2.0, "data.row_weights": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kept", type=float, required=True, help="share of the negatives that train and valid hold")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    how = {"config": "configs/shop.py", "changes": {}, "data": args.data, "seeds": args.seeds, "root": args.out}
    runs.run_all(runs.make_jobs({"em3": PlannedRun("em3", "alone", CHANGES)}, **how), args.jobs)
    dataset = open_dataset(args.data)
    label = np.asarray(dataset.label(CLICK)[dataset.split_rows("test", CLICK)])
    for method in METHODS:
        slopes, ratios = [], []
        for seed in range(args.seeds):
            folder = args.out / f"em3-{seed}"
            found = evaluation.evaluate(folder, "test", calibrate=method, kept_negatives=args.kept)
            slopes.append(found["calibration"]["after"]["calibration_slope"])
            fitted = calibration.read(folder, found["step"]).first
            logits = np.load(folder / "eval_test_logits.npy")
            ratios.append(fitted.probability(logits).mean() / label.mean())
        told = "   ".join(f"slope {slope:.4f}, mean {ratio:.4f}" for slope, ratio in zip(slopes, ratios, strict=True))
        print(f"{method:<10}{told}", flush=True)


if __name__ == "__main__":
    main()
