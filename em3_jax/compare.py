"""Puts evaluated runs side by side: python -m em3_jax.compare id_only=runs/id-0,runs/id-1 em3=runs/em3-0,runs/em3-1

A model is a name and its runs, one a seed. Prints each model's metric by slice (mean and standard deviation over the seeds),
the Bayes value on planted data, and against the first model the paired p: a t-test over the seeds, or for one run each
DeLong's test on the rows (AUC only). Reads what `eval.py` wrote.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from em3_jax import cli, metrics, paths, strict_json
from em3_jax.config import nearest
from em3_jax.data.format import SPLITS, open_dataset
from em3_jax.types import UserError


class Model(NamedTuple):
    """A model's evaluated runs.

    Attributes:
      name: as given.
      reports: what `eval.py` wrote, one per run.
      folders: of the runs.
    """

    name: str
    reports: list[dict]
    folders: list[Path]

    def values(self, slice_name: str, metric: str) -> np.ndarray:
        """[runs] f64; JSON has NaN where a metric is undefined."""
        return np.array([report["slices"][slice_name][metric] for report in self.reports], np.float64)


def load(spec: str, split: str) -> Model:
    """The model of "name=workdir,workdir,..." (or just a workdir, which is then its own name)."""
    name, _, folders = spec.rpartition("=")
    reports, found = [], list(map(paths.local, folders.split(",")))
    for folder in found:
        path = folder / f"eval_{split}.json"
        if not path.exists():
            raise UserError(f"{path}: file missing; run `python eval.py --workdir={folder} --split={split}` first")
        reports.append(strict_json.loads_report(path.read_text(encoding="utf-8")))
    return Model(name or folders, reports, paths)


def compare(models: list[Model], split: str, metric: str) -> dict[str, dict]:
    """Slice -> {"n", "bayes", model name -> {"mean", "sd", "p"}}; p against the first model, NaN where undefined."""
    if len({report["data_hash"] for model in models for report in model.reports}) > 1:
        raise UserError("these runs were made on different datasets; compare runs on one dataset")
    result = {}
    slices = models[0].reports[0]["slices"]
    if metric not in slices["all"]:
        raise UserError(f"--metric {metric}: these runs have none; {nearest(metric, slices['all'])}")
    for name, first in slices.items():
        row = {"n": first["n"], "bayes": first.get(f"bayes_{metric}", float("nan"))}
        for model in models:
            values = model.values(name, metric)
            row[model.name] = {
                "mean": float(values.mean()),
                "sd": float(values.std(ddof=1)) if len(values) > 1 else float("nan"),
                "p": _p_value(models[0], model, split, name, metric),
            }
        result[name] = row
    return result


def _p_value(base: Model, model: Model, split: str, slice_name: str, metric: str) -> float:
    if model is base or len(base.reports) != len(model.reports):
        return float("nan")
    if len(base.reports) > 1:
        return metrics.paired_t_test(model.values(slice_name, metric), base.values(slice_name, metric)).p
    if metric != "auc" or slice_name != "all":
        return float("nan")
    data = base.reports[0]["config"]["data"]
    dataset = open_dataset(data["root"])
    label = dataset.label(data["label"])[np.asarray(dataset.split_rows(split, data["label"]))]
    logits = [np.load(m.folders[0] / f"eval_{split}_logits.npy", allow_pickle=False) for m in (model, base)]
    return metrics.delong_test(label, *logits).p


def table(models: list[Model], rows: dict[str, dict], metric: str, split: str) -> str:
    """The comparison as text."""
    planted = any(np.isfinite(row["bayes"]) for row in rows.values())
    seeds = max(len(model.reports) for model in models)
    width = 20 if seeds > 1 else 12
    lines = [f"{f'{metric} on {split}':<26}{'n':>8}" + "".join(f"{m.name:>{width}}" for m in models)]
    lines[0] += f"{'Bayes':>10}{'gap closed':>12}" if planted else ""
    lines[0] += f"{'p':>10}" if len(models) > 1 else ""
    for name, row in rows.items():
        if not np.isfinite(row[models[0].name]["mean"]):
            continue
        line = f"{name:<26}{row['n']:>8,}"
        for model in models:
            value = row[model.name]
            cell = f"{value['mean']:.4f}" + (f" ± {value['sd']:.4f}" if seeds > 1 else "")
            line += f"{cell:>{width}}"
        last, first = row[models[-1].name], row[models[0].name]["mean"]
        if planted:
            line += f"{row['bayes']:>10.4f}{(last['mean'] - first) / (row['bayes'] - first):>12.0%}"
        if len(models) > 1:
            line += f"{last['p']:>10.2g}" if np.isfinite(last["p"]) else f"{'':>10}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="name=workdir[,workdir...]; the first is the baseline")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--metric", default="auc", help="auc, gauc, logloss, calibration; recall@20, ...")
    parser.add_argument("--json", type=paths.local, help="also write the numbers to this file")
    args = parser.parse_args()
    models = [load(spec, args.split) for spec in args.models]
    rows = compare(models, args.split, args.metric)
    print(table(models, rows, args.metric, args.split))
    if args.json:
        args.json.write_text(strict_json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    cli.run(main)
