"""Evaluates a run: python eval.py --workdir=runs/em3 --split=test

Restores the step that was best on validation (or --step), scores the split and prints its metrics, overall and by slice: AUC,
GAUC, logloss and calibration of a ranking model, Recall and NDCG of a retrieval model. Writes <workdir>/eval_<split>.json and
what is behind it: the scores eval_<split>_logits.npy, or each user's list eval_<split>_items.npy; and eval_<split>_users.npz
and eval_<split>_items.npz, how much each user and each item moves each metric, from which `em3 compare` knows how sure a
difference is. Standard errors count the rows of one user as one, or of one item where whole items are held out.

--at 5,10 adds NDCG@5, NDCG@10 and MRR of the rows of a group (session, query or impression; the user where there is none),
--group-by hour,category adds GAUC of the rows of an hour and of a category: any field of users, items or the context. Both are of
all labels, and stand in for config.eval.at and config.eval.group_by of the run.

--bootstrap 1000 draws the users 1,000 times again (items, where whole items are held out), and prints and stores 95 % intervals
of each label's metrics; runs with the same --seed have the same draws, of which `em3 compare` makes intervals of differences.

--plots draws, for each label, what was predicted against what was observed by tenths of the rows, with 95 % intervals, as trained
and calibrated: eval_<split>_calibration.png and .html.

--calibrate fits on validation what turns scores into probabilities and keeps it with the run (calibration.json); reports have
log-loss and calibration with it as well, and `em3 export` and `em3 predict` apply it. Where the log's negatives were sampled
down before, --kept-negatives 0.1 says to which share, and what is served are the probabilities of the whole log.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from scipy.special import expit

from em3_jax import cli
from em3_jax.config import parse
from em3_jax.core import paths, strict_json, terminal, trees
from em3_jax.core.calibration import METHODS, Calibrations, probabilities
from em3_jax.core.errors import UserError
from em3_jax.core.labels import LOG_KEPT
from em3_jax.core.types import State
from em3_jax.data.format import CLICK, SPLITS, observed
from em3_jax.evaluation import bootstrap, calibration, groups, reliability
from em3_jax.evaluation import labels as evaluated_labels
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.report import reliability as reliability_report
from em3_jax.report import reliability_page
from em3_jax.training.run import Run


class Beside(NamedTuple):
    """What to measure beside what every evaluation does.

    Attributes:
      at, group_by: in place of the run's config.eval.at and .group_by; None = as these are.
      bootstrap: samples of users for intervals; 0 = none.
      seed: of these samples.
      plots: whether to draw reliability diagrams.
    """

    at: tuple[int, ...] | None = None
    group_by: tuple[str, ...] | None = None
    bootstrap: int = 0
    seed: int = 0
    plots: bool = False

    def settings(self) -> dict[str, Any]:
        """Of config.eval."""
        given = {"at": self.at, "group_by": self.group_by}
        return {name: value for name, value in given.items() if value is not None}


AS_THE_RUN = Beside()


def evaluate(
    directory: str | Path,
    split: str,
    step: int | None = None,
    data_root: str | Path | None = None,
    calibrate: str = "",
    kept_negatives: float = 1.0,
    beside: Beside = AS_THE_RUN,
) -> dict:
    """The report of a run on a split.

    Args:
      directory: the run's folder.
      split: "train", "valid" or "test".
      step: checkpoint to score; the best on validation by default.
      data_root: where the dataset lies now, if it was moved.
      calibrate: what to fit on validation, "platt" or "isotonic", and to keep with the run; "" = nothing.
      kept_negatives: see `core.calibration.Calibration`; with `calibrate`.
      beside: what else to measure.

    Returns:
      {"step", "split", "slices": {slice: {metric: value}}, ...}. Of a run with further labels, "labels": {label: {metric:
      value}} on the rows that have the label; of one with a calibration, "calibration": {"method", "kept_negatives",
      "before", "after", "deciles"} of the rows as the split has them. Where asked for, "bootstrap" as `bootstrap.report` and
      "reliability" as `reliability.of_heads` give them.
    """
    directory = Path(directory)
    run = Run.open(directory, data_root, beside.settings())
    if beside != AS_THE_RUN and not hasattr(run.config.eval, "at"):
        raise UserError(f"{directory}: --at, --group-by, --bootstrap and --plots are of runs that score clicks")
    record, parts = run.record, run.experiment
    if parts.work.evaluate is None:
        raise UserError(f"{directory}: trained on content alone, there are no clicks to score; use `em3 vectors`")
    run.check_data()
    state = run.state(step)
    if calibrate:
        _calibrate(run, state, calibrate, kept_negatives)
    report, arrays, moved_by, labels = parts.evaluate(state, split)
    held = parts.work.dataset.meta.get("held_out", "user")
    clusters = held if held in moved_by else "user"
    for name, metric in moved_by[clusters].moved:
        of_slice = report[name] if name in report else labels[name.removeprefix(evaluated_labels.slice_of(""))]
        error = moved_by[clusters].error(name, metric, of_slice[metric]).error
        of_slice[f"{metric}_se"] = error
    sizes = {name: leaf.size for name, leaf in trees.named_leaves(state.params).items()}
    result = {
        "split": split,
        "step": int(state.step),
        "chosen_by": "--step" if step else f"best {parts.config.eval.metric} on validation",
        "config": parse.plain(run.config),
        "data_hash": record["data_hash"],
        "commit": record["commit"],
        "clusters": clusters,
        "parameters": {
            "dense": sum(sizes.values()),
            "fusion": sum(n for name, n in sizes.items() if "/fusion/" in name),
        },
        "slices": report,
    }
    if (found := calibration.read(directory, int(state.step)).first).method:
        label = getattr(run.config.data, "label", CLICK)
        clicked = np.asarray(parts.work.dataset.label(label)[np.asarray(parts.work.dataset.split_rows(split, label))])
        less = arrays.get(LOG_KEPT, np.zeros(1, np.float32))
        after = found.of_rows(arrays["logits"]) - less
        result["calibration"] = {
            "method": found.method,
            "kept_negatives": found.kept_negatives,
            "before": calibration.measured(clicked, arrays["logits"] - less),
            "after": calibration.measured(clicked, after),
            "deciles": calibration.deciles(clicked, after),
        }
    if labels:
        result["labels"] = labels
    if beside.bootstrap or beside.plots:
        rows, heads = _heads(run, split, arrays)
        of_row = np.asarray(parts.work.dataset.interactions[clusters][rows])
    if beside.bootstrap:
        samples = bootstrap.sampled(heads, of_row, clusters, beside.bootstrap, beside.seed)
        result["bootstrap"] = bootstrap.report(samples, clusters, evaluated_labels.by_slice(result))
        samples.save(directory / f"eval_{split}_bootstrap.npz")
    if beside.plots:
        calibrated = _calibrated(directory, int(state.step), heads, arrays)
        result["reliability"] = reliability.of_heads(heads, calibrated, of_row)
        _draw(directory, result)
    else:  # those of another evaluation would stand beside this one's numbers
        for picture in pictures(directory, split):
            picture.unlink(missing_ok=True)
    for name, array in arrays.items():
        np.save(directory / f"eval_{split}_{name}.npy", array)
    for kind, moved in moved_by.items():
        moved.save(directory / f"eval_{split}_{kind}s.npz")
    (directory / f"eval_{split}.json").write_text(strict_json.dumps(result, indent=1), encoding="utf-8")
    return result


def _heads(run: Run, split: str, arrays: Mapping[str, np.ndarray]) -> tuple[np.ndarray, list[evaluated_labels.Head]]:
    """([n] interaction rows of a split, each label of them) of the scores that a report of the split has."""
    parts, config = run.experiment, cast(Any, run.experiment.config)
    dataset, asked = parts.work.dataset, groups.Asked(config.eval.at, config.eval.group_by)
    rows = np.asarray(dataset.split_rows(split, config.data.label))
    return rows, evaluated_labels.heads(dataset, rows, arrays, config.data.label, parts.work.task.labels, asked)


def pictures(directory: Path, split: str) -> tuple[Path, Path]:
    """(PNG, HTML) of a split's reliability diagrams."""
    png, page = (directory / f"eval_{split}_calibration.{ending}" for ending in ("png", "html"))
    return png, page


def _draw(directory: Path, report: dict[str, Any]) -> None:
    """Draws what was predicted against what was observed."""
    title = f"{directory.name}, step {report['step']:,}, {report['split']} split"
    png, page = pictures(directory, report["split"])
    reliability_report.draw(report["reliability"], title, png)
    page.write_text(reliability_page.page(report["reliability"], title), encoding="utf-8")


def _calibrated(
    directory: Path, step: int, heads: Sequence[evaluated_labels.Head], arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Label -> [n] its calibrated probabilities of the rows as they were kept; {} where the run has no calibration."""
    found = calibration.read(directory, step)
    if not found.first.method:
        return {}
    first, *others = heads
    further = {one.label: arrays[f"logits_{one.label}"] for one in others if not one.is_amount}
    as_kept = found._replace(first=found.first._replace(kept_negatives=1.0))
    probability = probabilities(as_kept, arrays["logits"], further)
    if LOG_KEPT in arrays:
        probability[""] = expit(as_kept.first.of_rows(arrays["logits"]) - arrays[LOG_KEPT])
    return {name or first.label: values for name, values in probability.items()}


def _calibrate(run: Run, state: State, method: str, kept_negatives: float) -> None:
    """Fits a calibration on validation and keeps it with the run."""
    parts, label = run.experiment, getattr(run.config.data, "label", CLICK)
    if parts.work.task.labels.first:
        raise UserError(
            f"{run.folder}: --calibrate is of probabilities, and {label} is an amount, which is expected as it is"
        )
    arrays = parts.evaluate(state, "valid", errors=False).arrays
    if "logits" not in arrays:
        raise UserError(f"{run.folder}: --calibrate is for runs that predict clicks, and this one ranks all items")
    rows = np.asarray(parts.work.dataset.split_rows("valid", label))
    clicked, less = parts.work.dataset.label(label)[rows], arrays.get(LOG_KEPT)
    first = calibration.fitted(clicked, arrays["logits"], method, kept_negatives, log_kept=less)
    task, further = parts.work.task, {}
    for name, values in evaluated_labels.values_of(parts.work.dataset, rows, label, task.labels).items():
        if name in task.labels.amounts:  # an expectation, not a probability
            continue
        there = observed(values)
        further[name] = calibration.fitted(values[there], arrays[f"logits_{name}"][there], method, name=f"label {name}")
    fitted = Calibrations(first, further)
    facts = {"split": "valid", "rows": len(rows), "step": int(state.step), "data_hash": run.data_hash}
    calibration.write(run.folder, fitted, facts)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a training run")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--step", type=int, help="checkpoint to score (default: the best on validation)")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    parser.add_argument("--calibrate", choices=METHODS, help="fit a calibration on validation and keep it with the run")
    parser.add_argument(
        "--kept-negatives",
        type=float,
        help="with --calibrate: share of the log's negatives that the data hold (default 1)",
    )
    parser.add_argument("--at", type=cli.as_numbers(int, "whole numbers, 5,10"), help="lengths K of NDCG@K, 5,10")
    parser.add_argument("--group-by", type=cli.as_list, help="fields that GAUC is taken by as well, hour,category")
    parser.add_argument("--bootstrap", type=int, metavar="SAMPLES", help="95 %% intervals by drawing users again, 1000")
    parser.add_argument("--seed", type=int, default=0, help="of --bootstrap's draws (default 0)")
    parser.add_argument("--plots", action="store_true", help="draw what was predicted against what was observed")
    args = parser.parse_args()
    if args.bootstrap is not None:
        bootstrap.check(args.bootstrap, args.seed)
    if args.at and min(args.at) < 1:
        raise UserError(f"--at {min(args.at)}: lengths of lists are 1 or more")
    beside = Beside(args.at, args.group_by, args.bootstrap or 0, args.seed, args.plots)
    if args.kept_negatives is not None and not args.calibrate:
        raise UserError("--kept-negatives is kept with a calibration; give --calibrate platt or isotonic with it")
    kept = 1.0 if args.kept_negatives is None else args.kept_negatives
    if args.calibrate:
        calibration.check(args.calibrate, kept)
    result = evaluate(args.workdir, args.split, args.step, args.data, args.calibrate or "", kept, beside)
    written = [str(path) for path in pictures(args.workdir, args.split)] if args.plots else []
    numbers = {name: value for name, value in result.items() if name != "config"}
    text, place = _text(result, args.workdir, written), {"workdir": str(args.workdir), "written": written}
    command = f"em3 compare <baseline>=<its workdir> {args.workdir.name}={args.workdir} --split={args.split}"
    terminal.result(text, next_command=command, **place, **numbers)


def _text(result: dict[str, Any], directory: Path, written: Sequence[str]) -> str:
    """A report as it is printed.

    Args:
      result: of `evaluate`.
      directory: of the run.
      written: files beside the report.
    """
    heading = f"{directory}: step {result['step']:,} ({result['chosen_by']}), split {result['split']}"
    parts = [f"{heading}\n{ranking_evaluation.table(result['slices'])}"]
    if found := result.get("labels"):
        parts.append(evaluated_labels.table(found))
    if counted := groups.counts({"all": result["slices"]["all"], **result.get("labels", {})}):
        parts.append(counted)
    if drawn := result.get("bootstrap"):
        parts.append(bootstrap.table(drawn, evaluated_labels.by_slice(result)))
    if found := result.get("calibration"):
        share = f", of {found['kept_negatives']:g} of the log's negatives" if found["kept_negatives"] < 1 else ""
        table = calibration.table(found["before"], found["after"], found["deciles"])
        parts.append(f"calibration: {found['method']}, fitted on validation{share}\n{table}")
        if found["kept_negatives"] < 1:
            said = "These are of the rows as they are; what is predicted and served is of the whole log, and lower."
            parts[-1] += f"\n{terminal.paragraph(said)}"
    if written:
        parts.append("\n".join(f"{path}: written" for path in written))
    return "\n\n".join(parts)


if __name__ == "__main__":
    cli.refuse_module("em3_jax.evaluate", "em3 eval", "eval.py")
