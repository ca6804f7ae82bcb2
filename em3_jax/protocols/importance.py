"""What each input of a run is worth: em3 importance --workdir runs/em3 --out reports/importance

An input is permuted over the rows of a split, and the run's best step scores them again: what AUC,
GAUC and log-loss lose is what the model owes to that input (Breiman, Random Forests, 2001, section
10; of a trained model, Fisher, Rudin and Dominici, All Models are Wrong, but Many are Useful,
2019). Nothing is trained, and the inputs share one compiled program.

- AUC and log-loss: the value of a field of the user, the candidate or the context, or the whole
  history, is that of another row of the split.
- GAUC: the candidate's fields and the context change places within their group (the dataset's
  groups, or else a user's rows), so that the loss is of the order within groups; what is a user's
  own, fields and history, changes places between groups as a whole.
- Fields of events change places among all events of the histories, or for GAUC within one user's; what a row makes
  of its events (config.data.event_features) goes with the history.
- Content: a modality changes places among the items that the split shows, as candidates or in
  histories, and an item has the same stranger's content in both, so that nothing is similar to the
  history by its true content any more. "All of it" moves all modalities together: what one alone
  loses, another may still tell.

An input that two others tell as well loses little when it alone is permuted; the losses do not add
up. Intervals are 95 %: of the rows, paired, those of one user (or of one item where whole items are
held out) counted as one, and of the draws.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax import cli, metrics
from em3_jax.core import paths, rng
from em3_jax.core.errors import UserError
from em3_jax.core.progress import Progress
from em3_jax.core.types import State
from em3_jax.data.format import SPLITS, Dataset
from em3_jax.evaluation import influence
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.protocols import attention, page, runs
from em3_jax.protocols.inputs import SCOPES, Inputs
from em3_jax.training.experiment import Experiment

MOST_ROWS = 100_000
METRICS = {"auc": SCOPES[0], "gauc": SCOPES[1], "logloss": SCOPES[0]}
"""Metric -> the scope of the permutation that it is measured under."""


class _Rows(NamedTuple):
    """What is the same of all scores of the split: `label`, `group` and `cluster`, each [n]."""

    label: np.ndarray
    group: np.ndarray
    cluster: np.ndarray

    def measured(self, logits: np.ndarray) -> dict[str, tuple[float, np.ndarray]]:
        """Metric -> (its value, [clusters] how each moves it); NaN where it is undefined."""
        label, group = self.label, self.group
        found = {
            "auc": (metrics.auc(label, logits), influence.auc_influence(label, logits)),
            "gauc": (metrics.gauc(label, logits, group).value, influence.gauc_influence(label, logits, group)),
            "logloss": (metrics.logloss(label, logits), influence.logloss_influence(label, logits)),
        }
        return {name: (value, np.bincount(self.cluster, of_row)) for name, (value, of_row) in found.items()}


class _Lost:
    """What a metric loses by the permutations of an input, draw after draw."""

    def __init__(self, metric: str):
        self._sign = metrics.sign(metric)
        self._values: list[float] = []
        self._moved: list[np.ndarray] = []

    def add(self, before: tuple[float, np.ndarray], after: tuple[float, np.ndarray]) -> None:
        """Adds a draw: (value, influence of the clusters) of the metric before and after."""
        self._values.append(self._sign * (before[0] - after[0]))
        self._moved.append(self._sign * (before[1] - after[1]))

    def told(self) -> dict[str, float]:
        """{"drop", "low", "high", "se", "sd_draws"}: the mean over the draws and how sure it is."""
        values = np.array(self._values)
        error = influence.error_of(float(values.mean()), np.mean(self._moved, axis=0))
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        # Of the rows, and of the few draws: a stranger's content is one for all users.
        standard = float(np.hypot(error.error, spread / np.sqrt(len(values))))
        half = standard * (error.high - error.value) / error.error if error.error > 0 else 0.0
        half = half if np.isfinite(error.error) else np.nan
        return {
            "drop": error.value,
            "low": error.value - half,
            "high": error.value + half,
            "se": standard,
            "sd_draws": spread,
        }


def importance(
    directory: str | Path,
    split: str = "test",
    *,
    repeats: int = 5,
    seed: int = 0,
    most_rows: int = MOST_ROWS,
    step: int | None = None,
    data_root: str | Path | None = None,
) -> dict[str, Any]:
    """What a run's inputs are worth on a split.

    Args:
      directory: the run's folder.
      split: "train", "valid" or "test".
      repeats: draws of each permutation.
      seed: of the draws.
      most_rows: of more, so many are taken, of users drawn whole; 0 = all.
      step: checkpoint to score; the best on validation by default.
      data_root: where the dataset lies now, if it was moved.

    Returns:
      {"run", "split", "step", "rows", "of_rows", "groups", "clusters", "base": {metric: value},
      "inputs": [{"kind", "name", metric: {"drop", "low", "high", "se", "sd_draws"}}], "attention":
      see `attention.mass`, ...}; a drop is positive where the permuted input is worse.

    Raises:
      UserError: it is no ranking run, or there are no repeats.
    """
    if repeats < 1:
        raise UserError(f"--repeats {repeats}: give 1 or more")
    if most_rows < 0:
        raise UserError(f"--rows {most_rows}: give a number of rows, or 0 for all")
    asked = runs.ranking(directory, data_root)
    runs.check_clicks(*asked)
    run, config, parts, state = runs.opened_on_host(*asked, step)
    work = parts.work
    assert work.builder is not None  # as runs of task ranking have it
    every = np.asarray(work.dataset.split_rows(split, config.data.label))
    rows = _of_some_users(work.dataset, every, most_rows, seed)
    sets = tuple(work.feature_sets) if work.task.uses_content else ()
    reads_history = config.data.slots > 0
    inputs = Inputs(work.builder(work.dataset), rows, config.eval.batch_size, sets, reads_history)
    found = _rows(work.dataset, rows, config.data.label)
    before = found.measured(_logits(parts, state, inputs.source()))
    named = inputs.named()
    progress = Progress(len(named) * repeats, unit="permutation")
    result: list[dict[str, Any]] = []
    for one in named:
        lost = {metric: _Lost(metric) for metric in METRICS}
        scopes = inputs.scopes(one)
        for repeat in range(repeats):
            after = {}
            for scope in scopes:
                key = rng.numpy_key(seed, "importance", one.kind, one.name, scope, repeat)
                after[scope] = found.measured(_logits(parts, state, inputs.source(one, scope, key)))
            for metric, scope in METRICS.items():
                lost[metric].add(before[metric], after[scope if scope in scopes else scopes[0]][metric])
            progress.advance()
        of_metrics = {metric: of_metric.told() for metric, of_metric in lost.items()}
        result.append({"kind": one.kind, "name": one.name, "told": one.told(), **of_metrics})
    progress.close()
    return {
        "run": str(directory),
        "split": split,
        "step": int(state.step),
        "seed": seed,
        "repeats": repeats,
        "rows": len(rows),
        "of_rows": len(every),
        "groups": len(np.unique(found.group)),
        "clusters": {"by": _clusters(work.dataset), "number": len(np.unique(found.cluster))},
        "data_hash": run.data_hash,
        "base": {metric: value for metric, (value, _) in before.items()},
        "inputs": result,
        "attention": attention.mass(parts, state, rows),
    }


def _of_some_users(dataset: Dataset, rows: np.ndarray, most: int, seed: int) -> np.ndarray:
    """The rows [n]; of more than `most` (0 = all), so many, of users drawn whole, one at least."""
    if not most or len(rows) <= most:
        return rows
    users, number, count = np.unique(dataset.interactions["user"][rows], return_inverse=True, return_counts=True)
    order = np.argsort(rng.uniform_hash(rng.numpy_key(seed, "importance users"), users))
    taken = np.zeros(len(users), bool)
    taken[order[: max(int(np.searchsorted(np.cumsum(count[order]), most, side="right")), 1)]] = True
    return rows[taken[number]]


def _clusters(dataset: Dataset) -> str:
    """What rows belong together by: "item" where whole items are held out, else "user"."""
    held = dataset.meta.get("held_out", influence.KINDS[0])
    return held if held in influence.KINDS else influence.KINDS[0]


def _rows(dataset: Dataset, rows: np.ndarray, label: str) -> _Rows:
    cluster = np.unique(dataset.interactions[_clusters(dataset)][rows], return_inverse=True)[1]
    return _Rows(np.asarray(dataset.label(label)[rows]), np.asarray(dataset.group[rows]), cluster)


def _logits(parts: Experiment, state: State, source: Any) -> np.ndarray:
    return ranking_evaluation.predict(source, lambda batch: parts.program.predict(state, batch), parts.program.place)


def table(report: dict[str, Any]) -> page.Table:
    """The losses, the largest of GAUC first."""
    metric = "gauc" if np.isfinite(report["base"]["gauc"]) else "auc"
    ordered = sorted(report["inputs"], key=lambda one: -_or_zero(one[metric]["drop"]))
    names = {"auc": "AUC lost", "gauc": "GAUC lost", "logloss": "log-loss gained"}
    header = ["input", *(cell for name in names.values() for cell in (name, "95 %"))]
    cells = []
    for one in ordered:
        row = [one["told"]]
        for name in names:
            row += [page.signed(one[name]["drop"]), page.interval(one[name]["low"], one[name]["high"])]
        cells.append(row)
    return page.Table(f"What each input is worth, by {metric.upper()} lost", header, cells)


def _or_zero(value: float) -> float:
    return value if np.isfinite(value) else 0.0


def make_page(report: dict[str, Any], command: str) -> page.Page:
    """The page of a report; its picture has a bar an input and metric."""
    base, clusters = report["base"], report["clusters"]
    some = f" of {report['of_rows']:,}, of users drawn whole," if report["rows"] < report["of_rows"] else ""
    times = f"{report['repeats']} time{'s' * (report['repeats'] > 1)} (seed {report['seed']})"
    said = [
        f"{report['run']}: step {report['step']:,}, split {report['split']}, n = {report['rows']:,} rows{some} in "
        f"{report['groups']:,} groups. As trained: AUC {base['auc']:.4f}, GAUC {base['gauc']:.4f}, log-loss "
        f"{base['logloss']:.4f}.",
        f"Each input was permuted {times}. For AUC and log-loss it is given to other rows of the split; for GAUC "
        "within a group what varies there (the candidate's fields, the context, fields of events within a "
        "history), and between groups as a whole what is the user's own. Content changes places among items, "
        "the same in candidate and history. Intervals (95 %) are of the rows, paired, those of one "
        f"{clusters['by']} counted as one ({clusters['number']:,}), and of the draws. Inputs that tell the same "
        "share what they are worth: the losses do not add up.",
    ]
    tables = [table(report)]
    if report["attention"] is not None:
        tables.append(attention.table(report["attention"]))
    panels = []
    for metric, title in (("gauc", "GAUC lost"), ("auc", "AUC lost")):
        if np.isfinite(base[metric]):
            ordered = sorted(report["inputs"], key=lambda one: -_or_zero(one[metric]["drop"]))
            bars = [page.Bar(o["told"], o[metric]["drop"], o[metric]["low"], o[metric]["high"]) for o in ordered]
            panels.append((title, bars))
    return page.Page("Importance of inputs", said, tables, page.bars(panels) if panels else None, command)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a ranking run")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--repeats", type=int, default=5, help="draws of each permutation (default 5)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default 0)")
    parser.add_argument(
        "--rows", type=int, default=MOST_ROWS, help="of more, those of some users (default 100000; 0 = all)"
    )
    parser.add_argument("--step", type=int, help="checkpoint to score (default: the best on validation)")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    parser.add_argument("--out", type=paths.local, help="a folder for importance.json, .md, .html and .png")
    args = parser.parse_args()
    options = {"repeats": args.repeats, "seed": args.seed, "most_rows": args.rows, "step": args.step}
    if args.out:
        page.folder(args.out)
    report = importance(args.workdir, args.split, data_root=args.data, **options)
    made = make_page(report, page.command_line())
    page.show(made, report, page.write(args.out, "importance", report, made) if args.out else ())
