"""Draws runs: em3 plot em3=runs/em3 id_only=runs/id_only --out runs/plots

Reads <workdir>/metrics.jsonl, also of runs that still train, and writes a PNG and an HTML page that needs no network: losses,
validation with the best step marked, examples a second, waiting for input, gradient norms. On the page a pointer shows the
values of all runs at a step. Streams are drawn by `em3 curves`.
"""

import contextlib
import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax import cli
from em3_jax.config import parse
from em3_jax.config.sections import differences
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError, nearest
from em3_jax.metrics import METRIC_SIGNS, OF_CONTENT, sign
from em3_jax.report import page as plot_page
from em3_jax.report import panels
from em3_jax.report.panels import METRICS, Line, Panel
from em3_jax.training.curve import CURVE, NEW_ROWS
from em3_jax.training.run import Run

FOLDER, INPUT_WAIT = "folder", "input wait, median"  # columns of the summary
SPEED, WAIT, EVALUATION = "time/examples_per_second", "time/input_wait_share", "time/evaluation_seconds"
FIRST = {
    "losses": ("train/loss", "train/ranking_loss", "train/cic_loss", "train/sqdc_loss"),
    "validation": (
        *(f"valid/{name}" for name in ("auc", "gauc", "qauc", "logloss", "recall@20", "ndcg@20")),
        *(f"valid/{name}" for name in OF_CONTENT),
    ),
    "speed": (SPEED, WAIT),
    "norms": ("train/gradient_norm", "train/row_gradient_norm"),
    "model": (),
    "further": (),
}
"""Group -> the values that stand first in it; all others follow by name. `further` is on the page alone, folded."""
TITLES = {"train/loss": "training loss", SPEED: "examples per second", WAIT: "share of time waiting for input"}
CAPITALS = {name: name.upper() for name in ("auc", "gauc", "qauc", "ndcg", "map", "cic", "sqdc", "id")}
BESIDE = {"_uniform": "uniform"}
"""End of a name -> what it is; such a value is drawn in the panel of the name without it."""
LARGEST = 3.5e38  # number that an f32 holds, or nearly
AGAINST = {"steps": "step", "time": "minutes of training and validation"}


class Logged(NamedTuple):
    """What a run has logged.

    Attributes:
      name: as given.
      folder: its workdir.
      values: name -> step -> value, steps ascending; NaN where it is undefined.
      config, data_hash: of its run.json; {} and "" without one.
      metric: what chooses its best step; "" without a validation.
      best_step: None before the first validation. Where the dataset has grown, of what came after, see `grown_after`.
      grown_after: the step after which the dataset grew for the last time; None = it never did, or that is not known.
    """

    name: str
    folder: Path
    values: dict[str, dict[int, float]]
    config: dict
    data_hash: str
    metric: str
    best_step: int | None
    grown_after: int | None

    def last_step(self) -> int:
        return max(max(steps) for steps in self.values.values())

    def median(self, name: str) -> float:
        defined = [value for value in self.values.get(name, {}).values() if math.isfinite(value)]
        return statistics.median(defined) if defined else math.nan


def load(folder: Path, name: str) -> Logged:
    """The run of a workdir.

    Raises:
      UserError: there is none, it is a stream, or nothing is logged yet.
    """
    path = folder / METRICS
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the --workdir of a train.py run")
    if not path.is_file() and (folder / CURVE).is_file():
        raise UserError(f"{folder}: a stream; draw it with `em3 curves {folder} --out curves.png`")
    if not path.is_file():
        raise UserError(f"{path}: file missing; is {folder} the --workdir of a train.py run?")
    values = read(path)
    grown_after = max(values.pop(NEW_ROWS, {}), default=None)
    if not values:
        raise UserError(f"{path}: no step is logged yet; the first line comes after config.train.log_every steps")
    run = Run.open(folder) if (folder / "run.json").is_file() else Run(folder, {"config": {}, "data_hash": ""})
    config = _filled(run.record["config"])
    metric = config.get("eval", {}).get("metric", "")
    if f"valid/{metric}" not in values:
        known = (key.removeprefix("valid/") for key in FIRST["validation"] if key in values)
        metric = next((name for name in known if name in METRIC_SIGNS), "")
    scores = {step: sign(metric) * value for step, value in values.get(f"valid/{metric}", {}).items()}
    scores = {step: score for step, score in scores.items() if math.isfinite(score)}
    if grown_after is not None:  # validation is another set since
        scores = {step: score for step, score in scores.items() if step > grown_after}
    elif run.record.get("grown_from"):  # by an earlier version, which logged no growth
        kept = {path.name for path in (folder / "checkpoints" / "best").glob("*")}
        scores = {step: score for step, score in scores.items() if str(step) in kept}
    # Of equal ones the first, as in training.
    best = max(scores, key=lambda step: scores[step]) if scores else None
    return Logged(name, folder, values, config, run.data_hash, metric, best, grown_after)


def _filled(config: dict) -> dict:
    """The config of a run.json with what it has not yet, of an older version; as it is where this version cannot read it."""
    with contextlib.suppress(UserError):
        return parse.checked(config) if config else config
    return config


def read(path: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value of a metrics.jsonl; a line that is cut off, of a killed run, is left out.

    Where steps go back, a run was resumed: what was logged from that step on is done again, and the later lines count. A number
    that no f32 holds is as undefined as NaN.
    """
    values: dict[str, dict[int, float]] = {}
    last = -1
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = record.pop("step", None) if isinstance(record, dict) else None
        if not isinstance(step, int):
            continue
        if step < last:
            values = {name: {s: v for s, v in steps.items() if s < step} for name, steps in values.items()}
        last = step
        for name, value in record.items():
            value = math.nan if value is None else value  # strict JSON has no NaN
            if isinstance(value, int | float):
                values.setdefault(name, {})[step] = float(value) if -LARGEST <= value <= LARGEST else math.nan
    return {name: steps for name, steps in values.items() if steps}


def minutes(run: Logged) -> dict[str, dict[int, float]]:
    """{"train": step -> minutes, "valid": ...}: training up to that step and validation, without starts and checkpoints."""
    batch_size = run.config.get("data", {}).get("batch_size")
    if not batch_size or SPEED not in run.values:
        missing = f"{SPEED} in {METRICS}" if batch_size else "run.json"
        raise UserError(f"--against time: {run.folder} has no {missing}; use --against steps")
    passed, before = 0.0, 0
    result: dict[str, dict[int, float]] = {"train": {}, "valid": {}}
    for step in sorted({step for steps in run.values.values() for step in steps}):
        if speed := run.values[SPEED].get(step, 0.0):
            passed, before = passed + (step - before) * batch_size / speed / 60, step
        result["train"][step] = passed
        passed += run.values.get(EVALUATION, {}).get(step, 0.0) / 60
        result["valid"][step] = passed
    return result


def group_of(name: str) -> str:
    """Where a logged value stands."""
    for group, names in FIRST.items():
        if name in names:
            return group
    kind, _, own = name.partition("/")
    if kind != "train":
        return "further"
    return "losses" if own.endswith("loss") else "norms" if own.endswith("norm") else "model"


def choose(runs: list[Logged], wanted: tuple[str, ...]) -> list[str]:
    """The names to draw, in their order; `wanted` are groups, names as logged, or their last parts; () = all."""
    order = {name: (k, n) for k, names in enumerate(FIRST.values()) for n, name in enumerate(names)}
    groups = list(FIRST)
    defined = {n for run in runs for n, steps in run.values.items() if any(map(math.isfinite, steps.values()))}
    defined -= {beside for name in defined for beside, _ in _beside(name)}
    names = sorted(defined, key=lambda name: (order.get(name, (groups.index(group_of(name)), len(order))), name))
    if not names:
        raise UserError(f"{runs[0].folder / METRICS}: all that is logged is NaN; there is nothing to draw")
    if not wanted:
        return names
    chosen = []
    for word in wanted:
        found = [name for name in names if word in (group_of(name), name, name.partition("/")[2])]
        if not found and word in groups:
            raise UserError(f"--panels {word}: these runs have logged nothing of it; {_known(word, names)}")
        if not found:
            raise UserError(f"--panels {word}: these runs have no such value; {_known(word, names)}")
        chosen += [name for name in found if name not in chosen]
    return chosen


def _known(word: str, names: list[str]) -> str:
    own = {name.partition("/")[2] if "/" not in word else name for name in names}
    return nearest(word, own | {group_of(name) for name in names})


def _beside(name: str) -> list[tuple[str, str]]:
    """(logged name, what it is) of the values that stand in the panel of `name`."""
    return [(name + end, what) for end, what in BESIDE.items()]


def title(name: str) -> str:
    """ "validation AUC" of "valid/auc"."""
    if name in TITLES:
        return TITLES[name]
    kind, _, own = name.partition("/") if "/" in name else ("", "", name)
    words = own.replace("@", " @").replace("_", " ").split()
    text = " ".join(CAPITALS.get(word, word) for word in words).replace(" @", "@")
    return f"validation {text}" if kind == "valid" else text


def make_panels(runs: list[Logged], names: list[str], smooth: int = 1, against: str = "steps") -> list[Panel]:
    """A panel a name.

    Args:
      names: of logged values.
      smooth: logged values of a running mean; validation stays as it is.
      against: "steps" or "time".
    """
    clocks = [minutes(run) if against == "time" else None for run in runs]
    result = []
    for name in names:
        lines, whats = [], []
        for logged, what in [(name, ""), *_beside(name)]:
            found = [
                _line(number, run, clock, logged, smooth, what)
                for number, (run, clock) in enumerate(zip(runs, clocks, strict=True))
                if run.values.get(logged)
            ]
            found = [line for line in found if line.is_drawn()]
            lines += found
            whats += [what] if found and what else []
        group = group_of(name)
        text = title(name) + (f" (dotted: {', '.join(whats)})" if whats else "")
        result.append(Panel(name, text, lines, from_zero=group == "speed", group=group))
    return result


def _line(number: int, run: Logged, clock: dict | None, name: str, smooth: int, beside: str) -> Line:
    """The line of one run's logged values, see `make_panels`."""
    logged, of_validation = run.values[name], name.startswith("valid/")
    y = panels.running_mean(list(logged.values()), 1 if of_validation else smooth)
    steps = list(logged)
    x = [clock["valid" if of_validation else "train"][step] for step in steps] if clock else steps
    best = steps.index(run.best_step) if of_validation and run.best_step in logged else None
    best = best if best is None or math.isfinite(y[best]) else None
    return Line(number, x, y, steps, best, beside)


def summary(runs: list[Logged]) -> list[dict[str, str]]:
    """A row a run, column -> text."""
    rows = []
    for run in runs:
        best = "none yet"
        if run.best_step is not None:
            value = run.values[f"valid/{run.metric}"][run.best_step]
            best = f"{run.metric} {value:.4f} at step {run.best_step:,}"
        speed, wait = run.median(SPEED), run.median(WAIT)
        rows.append(
            {
                "run": run.name,
                "steps": f"{run.last_step():,}",
                "best on validation": best,
                "examples/s, median": f"{speed:,.0f}" if math.isfinite(speed) else "",
                INPUT_WAIT: f"{wait:.1%}" if math.isfinite(wait) else "",
                FOLDER: str(run.folder),
            }
        )
    return rows


def config_table(runs: list[Logged]) -> list[list[str]]:
    """[setting, its value in each run] of the settings that differ; runs without a run.json have none."""
    known = [run for run in runs if run.config]
    changed = {line.partition(": ")[0] for run in known[1:] for line in differences(known[0].config, run.config)}
    rows = []
    for setting in sorted(changed):
        path, cells = setting.split(".")[1:], []
        for run in runs:
            value: Any = run.config
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            cells.append("" if value is None else value if isinstance(value, str) else json.dumps(value))
        rows.append([".".join(path), *cells])
    return rows


def notes(runs: list[Logged], smooth: int) -> list[str]:
    """What a reader of the pictures has to know."""
    metrics = sorted({run.metric for run in runs if run.best_step is not None})
    lines = [f"A large dot marks the best step by validation {' and '.join(metrics)}."] if metrics else []
    lines += [
        f"{run.name}: the dataset grew after step {run.grown_after:,}, and validation with it: "
        "the best is sought anew from there."
        for run in runs
        if run.grown_after is not None
    ]
    if smooth > 1:
        lines.append(f"Training values are running means over {smooth} logged ones; validation is as logged.")
    if len({run.data_hash for run in runs if run.data_hash}) > 1:
        lines.append("These runs were made on different datasets: their values do not compare.")
    return lines


def text_table(rows: list[dict[str, str]]) -> str:
    """The summary as text, the folders left out: the page has them."""
    columns = [column for column in rows[0] if column != FOLDER]
    return terminal.table(columns, [[row[column] for column in columns] for row in rows])


def outputs(out: Path | None, first: Path) -> tuple[Path, Path]:
    """(PNG, HTML) of --out: a path without an ending, or with one of the two, or a folder that is there."""
    base = out or first
    if base.is_dir():
        base = base / "plots"
    elif base.suffix in (".png", ".html"):
        base = base.with_suffix("")
    png, page = (base.with_name(base.name + ending) for ending in (".png", ".html"))
    return panels.writable(png), panels.writable(page)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", help="name=workdir, or workdir")
    parser.add_argument(
        "--out", type=paths.local, help="PATH for PATH.png and PATH.html (default: plots in the first run's folder)"
    )
    parser.add_argument("--panels", type=cli.as_list, default=(), metavar="NAME,...",
                        help=f"what to draw: {', '.join(FIRST)}, or logged names as loss, valid/auc (default: all)")  # fmt: skip
    parser.add_argument("--smooth", type=int, default=1, help="running mean of training values (default 1)")
    parser.add_argument("--against", choices=AGAINST, default="steps", help="what runs to the right (default steps)")
    args = parser.parse_args()
    panels.check_smooth(args.smooth)
    named = [panels.named_folder(spec) for spec in args.runs]
    names = panels.distinct([name for name, _ in named], args.runs)
    runs = [load(folder, name) for name, (_, folder) in zip(names, named, strict=True)]
    drawn = make_panels(runs, choose(runs, args.panels), args.smooth, args.against)
    png, page = outputs(args.out, runs[0].folder)
    unfolded = [panel for panel in drawn if args.panels or panel.group != "further"]
    panels.draw(unfolded or drawn, names, AGAINST[args.against], png)
    rows, remarks = summary(runs), notes(runs, args.smooth)
    x_label = AGAINST[args.against]
    text = plot_page.page(drawn, names, x_label, rows, config_table(runs), remarks, folded=not args.panels)
    page.write_text(text, encoding="utf-8")
    explained = f"input wait: {terminal.WORDS['input wait']}"
    said = [text_table(rows), *map(terminal.paragraph, (explained, *remarks)), f"{png}: written", f"{page}: written"]
    terminal.result("\n".join(said), runs=rows, notes=remarks, written=[str(png), str(page)])
