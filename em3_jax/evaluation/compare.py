"""Puts evaluated runs side by side: em3 compare id_only=runs/id-0,runs/id-1 em3=runs/em3-0,runs/em3-1

A model is a name and its runs, one a seed. Prints each model's metric by slice (mean and standard deviation
over the seeds, and the standard error of the test rows), and what it differs from the first model: the
interval that the test rows leave, in which rows of one user count as one (of one item where whole items are
held out, or as --by says), and p. With several seeds p is of the t-test over pairs of runs of one seed; with one
run each it is of the test rows. Reads what `eval.py` wrote.

Of runs that learn several labels the further ones are rows of their own, `label buy`; --label buy
compares that label alone, also with runs that learn no other (--config.data.label=buy).

A seed may be several runs, each of another fold of the same items: ids=f0+f1+f2,g0+g1+g2 has two seeds of
three. Their test splits are pooled, and measured as one.
Intervals are by influence, see `influence`; --bootstrap takes those of `em3 eval --bootstrap`, as do metrics that have no
influence, where all runs have the same draws. --metric auc,gauc,ndcg@10 shows one table a metric.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from em3_jax import cli, metrics
from em3_jax.core import paths, strict_json, terminal
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.labels import given_click
from em3_jax.data.format import CLICK, SPLITS
from em3_jax.evaluation import bootstrap, folds, labels
from em3_jax.evaluation.bootstrap import Samples
from em3_jax.evaluation.influence import KINDS, ByCluster, error_of

NAN = float("nan")
Kept = TypeVar("Kept")


class Model(NamedTuple):
    """A model's evaluated runs, in the order of their seeds.

    Attributes:
      name: as given.
      reports: what `eval.py` wrote, one per run.
      moved_by: how each user, or item, moves the metrics, one per run; None where a run was evaluated
        without it.
      by: "user" or "item", which of them.
      samples: the metrics on bootstrap samples, one per run; None where a run was evaluated without it.
    """

    name: str
    reports: list[dict]
    moved_by: list[ByCluster] | None
    by: str = KINDS[0]
    samples: list[Samples] | None = None

    @property
    def seeds(self) -> list[int]:
        return [report["config"]["seed"] for report in self.reports]

    def values(self, slice_name: str, metric: str) -> np.ndarray:
        """[runs] f64; NaN where the metric is undefined or the run has no such slice."""
        return np.array([report["slices"].get(slice_name, {}).get(metric, NAN) for report in self.reports])

    def moved(self, slice_name: str, metric: str) -> np.ndarray:
        """[G] f64 influence of each user (item) on the mean over the runs; empty where it is not known."""
        runs = [run.moved.get((slice_name, metric)) for run in self.moved_by or []]
        known = [run for run in runs if run is not None]
        if not known or len(known) < len(runs):
            return np.zeros(0)
        return np.mean(known, axis=0)

    def drawn(self, slice_name: str, metric: str) -> np.ndarray:
        """[R] f64 mean over the runs on each bootstrap sample; empty where the runs have not the same draws."""
        runs = self.samples or []
        known = [run.values[slice_name, metric] for run in runs if (slice_name, metric) in run.values]
        if not known or len(known) < len(runs) or not all(run.paired(runs[0]) for run in runs):
            return np.zeros(0)
        return np.mean(known, axis=0)


def load(spec: str, split: str, by: str = "") -> Model:
    """The model of "name=workdir,workdir,..." (or just a workdir, which is then its own name).

    Args:
      by: what rows belong together by, "user" or "item"; "" = as the runs say.
    """
    name, _, folders = spec.rpartition("=")
    named = [folder for folder in folders.split(",") if folder]
    if not named:
        raise UserError(f"'{spec}': names no run; write name=workdir or name=workdir,workdir")
    seeds = [[paths.local(one) for one in folder.split("+")] for folder in named]
    return of_folds(name or folders, seeds, split, by)


def of_runs(name: str, folders: Sequence[Path], split: str, by: str = "") -> Model:
    """The model whose evaluated runs lie in `folders`, one a seed."""
    return of_folds(name, [[folder] for folder in folders], split, by)


def of_folds(name: str, seeds: Sequence[Sequence[Path]], split: str, by: str = "") -> Model:
    """The model whose evaluated runs lie in the folders, each seed's of several folds pooled, see `folds`."""
    runs = []
    for folders in seeds:
        reports = [_evaluated(folder, split) for folder in folders]
        kind = by or reports[0].get("clusters", KINDS[0])
        result: tuple[dict, ByCluster | None]
        samples = None
        if len(folders) > 1:
            result = folds.pooled(folders, reports, split, kind)
        else:
            result = reports[0], _read(folders[0] / f"eval_{split}_{kind}s.npz", ByCluster.load)
            if reports[0].get("bootstrap", {}).get("clusters") == kind:
                samples = _read(folders[0] / f"eval_{split}_bootstrap.npz", Samples.load)
        runs.append((*result, folders[0], samples))
    runs.sort(key=lambda run: run[0]["config"]["seed"])
    for (first, _, one, _), (second, _, other, _) in itertools.pairwise(runs):
        if first["config"]["seed"] == second["config"]["seed"]:
            raise UserError(
                f"{name}: {one} and {other} have the same seed {first['config']['seed']}; name one run a seed"
            )
    moved_by = [moved for _, moved, _, _ in runs if moved is not None]
    drawn = [samples for *_, samples in runs if samples is not None]
    kind = by or runs[0][0].get("clusters", KINDS[0])
    known = moved_by if len(moved_by) == len(runs) else None
    return Model(name, [run[0] for run in runs], known, kind, drawn if len(drawn) == len(runs) else None)


def _evaluated(folder: Path, split: str) -> dict:
    """The report of a run."""
    path = folder / f"eval_{split}.json"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --workdir of a run that was evaluated")
    if not path.exists():
        raise UserError(f"{path}: file missing; run `em3 eval --workdir={folder} --split={split}` first")
    return _read_report(path)


def _read_report(path: Path) -> dict:
    try:
        report = strict_json.loads_report(path.read_text(encoding="utf-8"))
        report["slices"]["all"], report["config"]["seed"], report["data_hash"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not what `eval.py` writes; evaluate the run again") from None
    return report


def _read(path: Path, load: Callable[[Path], Kept]) -> Kept | None:
    """What `eval.py` keeps of the rows; None where there is none."""
    if not path.exists():
        return None
    try:
        return load(path)
    except (OSError, ValueError, KeyError):
        raise UserError(f"{path}: cannot be read; evaluate the run again") from None


def of_label(model: Model, label: str) -> Model:
    """The model, of one of its labels alone.

    Raises:
      UserError: a run does not learn it.
    """
    reports, moved_by, samples = [], [], []
    for number, report in enumerate(model.reports):
        known, config = report.get("labels", {}), report["config"]
        first = config["data"].get("label", CLICK)
        if label != first and label not in known:
            raise UserError(f"--label {label}: {model.name} does not learn it; {nearest(label, [first, *known])}")
        values = report["slices"]["all"] if label == first else known[label]
        config = config | {"data": config["data"] | {"label": label}}
        reports.append(report | {"slices": {"all": values}, "labels": {}, "config": config})
        name = "all" if label == first else labels.slice_of(label)
        as_all = lambda kept, name=name: {("all", m): one for (of, m), one in kept.items() if of == name}  # noqa: E731
        if model.moved_by is not None:
            moved = model.moved_by[number]
            moved_by.append(dataclasses.replace(moved, moved=as_all(moved.moved)))
        if model.samples is not None:
            drawn = model.samples[number]
            samples.append(drawn._replace(values=as_all(drawn.values)))
    return model._replace(reports=reports, moved_by=moved_by or None, samples=samples or None)


def _with_labels(model: Model, names: Sequence[str]) -> Model:
    """The model with further labels among its slices."""
    more = [{labels.slice_of(name): report["labels"][name] for name in names} for report in model.reports]
    reports = [
        report | {"slices": report["slices"] | of_labels} for report, of_labels in zip(model.reports, more, strict=True)
    ]
    return model._replace(reports=reports)


def check_paired(models: Sequence[Model]) -> None:
    """Refuses models whose runs do not belong together: other data, another label, other seeds."""
    first = models[0]
    reports = [report for model in models for report in model.reports]
    if len({report["data_hash"] for report in reports}) > 1:
        raise UserError("these runs were made on different datasets; compare runs on one dataset")
    tasks = {(report["config"].get("task"), report["config"]["data"].get("label")) for report in reports}
    if len({label for _, label in tasks}) > 1:
        named = ", ".join(sorted(str(label) for _, label in tasks))
        raise UserError(f"these runs predict different labels ({named}); compare runs of one label, or give --label")
    if len({model.by for model in models}) > 1:
        raise UserError("these runs count their rows by user and by item; choose one with --by")
    for model in models[1:]:
        if model.seeds != first.seeds and (len(model.seeds) > 1 or len(first.seeds) > 1):
            raise UserError(
                f"{model.name} has seeds {_list(model.seeds)}, {first.name} {_list(first.seeds)}; runs are paired by "
                "seed, so give the same ones"
            )


def _list(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))


def check_sampled(models: Sequence[Model]) -> None:
    """Refuses runs that were evaluated without bootstrap samples, or on other draws than the first."""
    for model in models:
        if model.samples is None:
            drawn = {report.get("bootstrap", {}).get("clusters", model.by) for report in model.reports} - {model.by}
            if drawn:
                raise UserError(
                    f"--by {model.by}: bootstrap samples of {model.name} are of {drawn.pop()}s; leave --by out"
                )
            raise UserError(
                f"{model.name}: has no bootstrap samples; run `em3 eval --bootstrap 1000` on its runs first"
            )
        if not all(run.paired((models[0].samples or [])[0]) for run in model.samples):
            raise UserError(
                f"{model.name}: its bootstrap samples are not those of {models[0].name}; evaluate both with the same "
                "--bootstrap and --seed"
            )


def compare(models: Sequence[Model], metric: str, by_samples: bool = False) -> dict[str, dict]:
    """Slice -> {"n", "bayes", model name -> values}, see `measured`."""
    check_paired(models)
    names = labels.common([report for model in models for report in model.reports])
    models = [_with_labels(model, names) for model in models]
    slices = models[0].reports[0]["slices"]
    if not any(metric in of_slice for of_slice in slices.values()):
        known = [name for of in slices.values() for name in of if not name.endswith("_se")]
        known = [name for name in dict.fromkeys(known) if not name.startswith("bayes_")]
        raise UserError(f"--metric {metric}: these runs have none; {nearest(metric, known)}")
    result = {}
    for name, first in slices.items():
        is_same = name == "all" or name.startswith(labels.slice_of(""))  # what is popular a run may say itself
        if is_same and any(model.reports[0]["slices"].get(name, first)["n"] != first["n"] for model in models[1:]):
            hint = f"; of ESMM's give --label {given_click('<label>')}" if len(slices) == 1 else ""
            raise UserError(f"{name}: these runs were measured on different rows, so they cannot be compared{hint}")
        result[name] = {"n": first["n"], "bayes": first.get(f"bayes_{metric}", NAN)}
        for model in models:
            result[name][model.name] = measured(models[0], model, name, metric, by_samples)
    return result


def measured(base: Model, model: Model, slice_name: str, metric: str, by_samples: bool = False) -> dict[str, float]:
    """What is known of a model in a slice, and of its difference from the model `base`.

    "mean" and "sd" over the seeds; "se", the standard error of the mean that the test rows leave; and against
    the first model: "difference", its 95 % interval "low" to "high" over the test rows, "p_rows" of the same,
    "p_seeds" of the paired t-test over the seeds, and "p", that of the seeds where there are several.

    Args:
      by_samples: takes errors of the bootstrap where they are known, too, and not only where those by influence are not.
    """
    values, moved = model.values(slice_name, metric), model.moved(slice_name, metric)
    drawn = model.drawn(slice_name, metric)
    of_samples = len(drawn) > 0 and (by_samples or not len(moved))
    error = bootstrap.interval(drawn)["se"] if of_samples else error_of(float(values.mean()), moved).error
    result = {"mean": float(values.mean()), "sd": float(values.std(ddof=1)) if len(values) > 1 else NAN, "se": error}
    if model is base:
        return result
    others, others_moved = base.values(slice_name, metric), base.moved(slice_name, metric)
    difference, p_seeds = float((values - others).mean()), metrics.paired_t_test(values, others).p
    others_drawn = base.drawn(slice_name, metric)
    if of_samples and len(others_drawn) and (model.samples or [])[0].paired((base.samples or [])[0]):
        between = bootstrap.interval(drawn - others_drawn)
        low, high, p_rows = between["low"], between["high"], bootstrap.p_value(drawn - others_drawn)
    else:
        paired = len(moved) == len(others_moved) and len(moved) > 0
        _, _, low, high, p_rows, _ = error_of(difference, moved - others_moved if paired else np.zeros(0))
    return result | {
        "difference": difference,
        "low": low,
        "high": high,
        "p_rows": p_rows,
        "p_seeds": p_seeds,
        "p": p_seeds if len(values) > 1 else p_rows,
    }


def table(models: Sequence[Model], rows: dict[str, dict], metric: str, split: str) -> str:
    """The comparison as text: a line for each model in each slice, and what they mean."""
    return f"{_lines(models, rows, metric, split)}\n\n{_legend(models)}"


def _lines(models: Sequence[Model], rows: dict[str, dict], metric: str, split: str) -> str:
    planted = any(np.isfinite(row["bayes"]) for row in rows.values())
    several = len(models[0].reports) > 1
    header = [f"{metric} on {split}", metric, "± rows", "differs by", "95 % over rows", "p"]
    lines: list[list[str] | str] = []
    for name, row in rows.items():
        if not np.isfinite(row[models[0].name]["mean"]):
            continue
        lines.append(f"{name}, n {row['n']:,}")
        lines += [_cells(models[0], model, row, several, planted) for model in models]
        if np.isfinite(row["bayes"]):
            best = f"{row['bayes']:.4f}" + " " * len(" ± 0.0000") * several
            lines.append(["  Bayes", best, *[""] * (len(header) - 2 + planted)])
    return terminal.table([*header, "gap closed"] if planted else header, lines)


def _cells(base: Model, model: Model, row: dict, several: bool, planted: bool) -> list[str]:
    """The line of a model in a slice."""
    value, first = row[model.name], row[base.name]["mean"]
    mean = f"{value['mean']:.4f}" + (f" ± {value['sd']:.4f}" if several else "")
    cells = [f"  {model.name}", mean, _number(value["se"], ".4f")]
    if model is base:
        return [*cells, "", "", *[""] * (1 + planted)]
    interval = f"{value['low']:+.4f} to {value['high']:+.4f}" if np.isfinite(value["low"]) else ""
    cells += [f"{value['difference']:+.4f}", interval, _number(value["p"], ".2g")]
    if not planted:
        return cells
    is_known = np.isfinite(row["bayes"])
    return [*cells, f"{(value['mean'] - first) / (row['bayes'] - first):.0%}" if is_known else ""]


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else ""


def _legend(models: Sequence[Model], by_samples: bool = False) -> str:
    seeds = len(models[0].reports)
    spread = "mean ± standard deviation over the seeds; " if seeds > 1 else ""
    test = f"paired t-test over {seeds} seeds" if seeds > 1 else "of the test rows"
    text = f"{spread}± rows: standard error of the test rows, those of one {models[0].by} counted as one; p: {test}"
    said = [text, "errors and intervals over rows are of the bootstrap samples"] if by_samples else [text]
    if any(model.moved_by is None for model in models):
        said.append("some runs were evaluated before errors were kept: run eval.py on them again for intervals")
    return "\n".join(map(terminal.paragraph, said))


def _write(path: Path, rows: dict[str, dict]) -> None:
    try:
        path.write_text(strict_json.dumps(rows, indent=1), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); choose another --json") from None


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("models", nargs="+", help="name=workdir[,workdir...]; the first is the baseline")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument(
        "--metric",
        type=cli.as_list,
        default=("auc",),
        help="one or several: auc, gauc, logloss, calibration, ndcg@10, gauc_by_hour, rmse; recall@20, ... (default auc)",
    )
    parser.add_argument(
        "--label", default="", help="compare this label alone (default: the first, and those common to all)"
    )
    parser.add_argument("--bootstrap", action="store_true", help="intervals of `em3 eval --bootstrap`")
    parser.add_argument("--by", default="", choices=KINDS, help="whose rows count as one (default: as the runs say)")
    parser.add_argument("--json", type=paths.local, help="also write the numbers to this file")
    args = parser.parse_args()
    if not args.metric:
        raise UserError("--metric: names none; give one or several, auc,gauc")
    models = [load(spec, args.split, args.by) for spec in args.models]
    models = [of_label(model, args.label) for model in models] if args.label else models
    names = [model.name for model in models]
    if len(set(names)) < len(names):
        raise UserError(
            f"two models are called {max(names, key=names.count)}; give each a name of its own: name=workdir"
        )
    if args.bootstrap:
        check_sampled(models)
    rows = {metric: compare(models, metric, args.bootstrap) for metric in args.metric}
    tables = [_lines(models, rows[metric], metric, args.split) for metric in args.metric]
    terminal.result("\n\n".join([*tables, _legend(models, args.bootstrap)]), split=args.split, metrics=rows)
    if args.json:
        _write(args.json, rows[args.metric[0]] if len(args.metric) == 1 else rows)
