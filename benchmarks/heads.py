"""Several labels on one model against a model a label, on planted clicks, purchases and likes.

em3 prepare synthetic --labels --out /tmp/labels
python -m benchmarks.heads --data /tmp/labels --out /tmp/heads --seeds 3

em3 shop --out /tmp/shop && em3 prepare table --mapping /tmp/shop/shop.toml --out /tmp/shop-data
python -m benchmarks.heads --config configs/shop.py --labels buy,long --only mmoe,esmm --data /tmp/shop-data --out /tmp/heads

Of each label the test AUC (and of `buy` over all rows that of a click and a purchase, P(click) P(buy)), the mean over the seeds
and their standard deviation, and the difference to the label's own model, paired by seed. The config is that of
configs/em3_synthetic.py, or --config; --variant id_only leaves content out. Stopped and called again, it goes on.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax import metrics
from em3_jax.core.labels import given_click
from em3_jax.data.format import CLICK, NOT_PART, open_dataset
from em3_jax.trials import runs
from em3_jax.trials.runs import PlannedRun

CONFIG = "configs/em3_synthetic.py"
BOTH = "click and buy"


def logits_of(folder: Path, label: str) -> np.ndarray:
    """[n] test logits of a label that a run has learnt; its own one is the first."""
    names = (f"eval_test_logits_{given_click(label)}.npy", f"eval_test_logits_{label}.npy", "eval_test_logits.npy")
    return np.load(next(path for name in names if (path := folder / name).exists()))


def together(labels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Name -> what it changes, of the models that learn several labels; purchases are the first of the further ones."""
    kinds: dict[str, dict[str, Any]] = {
        kind: {"model.heads.labels": labels, "model.heads.kind": kind} for kind in ("shared_bottom", "mmoe", "ple")
    }
    kinds["uncertainty"] = kinds["mmoe"] | {"model.heads.learn_weights": True}
    kinds["esmm"] = {"model.heads.labels": labels[:1], "model.heads.kind": "esmm"}
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--variant", default="")
    parser.add_argument("--config", default=CONFIG)
    parser.add_argument("--labels", default="buy,like", help="beside click, first the one that follows a click")
    parser.add_argument("--only", default="", help="kinds of heads with commas between; default all")
    args = parser.parse_args()
    further = tuple(args.labels.split(","))
    alone = {label: {"data.label": label, "model.heads.labels": ()} for label in (CLICK, *further)}
    several = {name: one for name, one in together(further).items() if name in (args.only or name).split(",")}
    planned = {name: PlannedRun(name, args.variant, changes) for name, changes in (alone | several).items()}
    how = {"config": args.config, "changes": {}, "data": args.data, "seeds": args.seeds, "root": args.out}
    runs.run_all(runs.make_jobs(planned, **how), args.jobs)
    dataset = open_dataset(args.data)
    rows = {label: np.asarray(dataset.split_rows("test", label)) for label in (CLICK, *further)}
    click = np.asarray(dataset.label(CLICK)[rows[CLICK]])
    bought = np.asarray(dataset.label(further[0])[rows[CLICK]])
    found: dict[tuple[str, str], list[float]] = {}
    for name in planned:
        for seed in range(args.seeds):
            folder = args.out / f"{name}-{seed}"
            learnt = [name] if name in alone else [CLICK, *several[name]["model.heads.labels"]]
            for label in learnt:
                values = np.asarray(dataset.label(label)[rows[CLICK]])
                own = logits_of(folder, label)
                there = values != NOT_PART
                scores = own[there] if len(own) == len(there) else own
                found.setdefault((label, name), []).append(metrics.auc(values[there], scores))
            if name in several:
                probability = [
                    1 / (1 + np.exp(-logits_of(folder, label).astype(np.float64))) for label in (CLICK, further[0])
                ]
                found.setdefault((BOTH, name), []).append(
                    metrics.auc((click == 1) & (bought == 1), np.prod(probability, axis=0))
                )
    for (label, name), values in sorted(found.items()):
        line = f"{label:<15}{name:<16}{np.mean(values):.4f} ± {np.std(values, ddof=1) if len(values) > 1 else 0:.4f}"
        if (label, label) in found and name != label:
            test = metrics.paired_t_test(values, found[label, label])
            line += f"   to its own model {test.mean_difference:+.4f}, p {test.p:.3f}"
        print(line)


if __name__ == "__main__":
    main()
