"""Models on new items, or users: em3 coldstart --config em3_movielens --data data/cold --out rep

The dataset holds whole items (or, with --of users, users) out: `em3 prepare ... --split
items:0.7,0.1,0.2`. For each k of --shots, the first k rows of each of them train and the models are
trained anew; the test rows, those after the largest k, are the same for all. What k rows are worth
to IDs, and what content is worth before and beside them, is one curve each.

--config names models: one config file stands for itself and for IDs alone (its variant id_only),
several for what they are, ids=configs/own_data.py:id_only em3=configs/own_data.py; --workdir takes
the configs of runs that are there. The first model is what the others are compared with. Settings
(--config.train.epochs=3) are of all. Killed, the same command goes on.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax import cli
from em3_jax.config import recipes
from em3_jax.config.schema import Config
from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.evaluation import compare
from em3_jax.protocols import page, points, runs, shots
from em3_jax.training.run import Run

SHOTS = (0, 1, 3, 10)
SPLIT = "test"
TASKS = ("ranking", "lemur")
ConfigOf = Callable[[Path], Config]


def coldstart(
    models: Mapping[str, ConfigOf],
    data: str | Path,
    out: str | Path,
    *,
    of: str = "items",
    ks: Sequence[int] = SHOTS,
    seeds: int = 1,
    say=print,
) -> dict[str, Any]:
    """The curves of models over the rows that are known of each held-out item, or user.

    Args:
      models: name -> its config on a dataset folder; its seed is set here. A recipe may look into the
        folder, whose items are the less new the more rows of them are known.
      data: the dataset, which holds whole items or users out.
      out: folder of the datasets and runs that are made.
      of: "items" or "users".
      ks: numbers of rows.
      seeds: runs of each model.
      say: what to call with a line of progress.

    Returns:
      {"of", "data", "seeds", "rows", "tested", "clusters", "curves": {model: [point]}}, see
        `points.of`.

    Raises:
      UserError: the dataset holds no such items or users out; a number is none; a config is of a
        task without clicks.
    """
    out, ks = Path(out), sorted(set(ks))
    if not ks or ks[0] < 0:
        raise UserError(f"--shots {','.join(map(str, ks))}: give numbers of rows from 0 up, e.g. 0,1,3,10")
    if seeds < 1:
        raise UserError(f"--seeds {seeds}: give 1 or more")
    for name, config_of in models.items():
        if (task := config_of(Path(data)).task) not in TASKS:
            raise UserError(f"{name}: a config of task {task}; this is for models of clicks")
    dataset = open_dataset(data)
    for name, config_of in models.items():
        if (label := config_of(Path(data)).data.label) in dataset.amounts:  # type: ignore[union-attr]
            raise UserError(f"{name}: config.data.label={label} is an amount; this is for labels of 0 and 1")
    shots.check(dataset, of)
    facts = {"data_hash": dataset.meta["data_hash"], "of": of, "largest number of shots": ks[-1]}
    runs.require_same(out / "data" / "made_from.json", facts, "choose another --out")
    derived = {k: shots.derive(dataset, of, k, ks[-1], out / "data" / f"{of}-{k}") for k in ks}
    found: dict[str, list[compare.Model]] = {name: [] for name in models}
    for k in ks:
        for name, config_of in models.items():
            config = config_of(derived[k].root)
            folders = [out / "runs" / f"{name}-{k}-seed{seed}" for seed in range(seeds)]
            for seed, folder in enumerate(folders):
                here: Any = dataclasses.replace(config, seed=seed)
                runs.finish(here, folder, SPLIT, say)
            found[name].append(compare.of_runs(name, folders, SPLIT))
    first = next(iter(models))
    tested = derived[ks[0]]
    rows = np.asarray(tested.split_rows(SPLIT))
    curves = {
        name: [
            points.of(k, model, {"difference": of_model[0], "above": found[first][place]})
            for place, (k, model) in enumerate(zip(ks, of_model, strict=True))
        ]
        for name, of_model in found.items()
    }
    return {
        "of": of,
        "data": str(data),
        "data_hash": dataset.meta["data_hash"],
        "seeds": seeds,
        "rows": len(rows),
        "tested": len(np.unique(tested.interactions[shots.KINDS[of]][rows])),
        "held_out": _held_out(dataset, of),
        "clusters": points.clusters(found[first][0]),
        "curves": curves,
    }


def _held_out(dataset: Dataset, of: str) -> int:
    """The items, or users, of the test part, those with too few rows among them."""
    rows = np.asarray(dataset.split_rows(SPLIT))
    return len(np.unique(dataset.interactions[shots.KINDS[of]][rows]))


def make_page(report: dict[str, Any], command: str) -> page.Page:
    """The page of a report."""
    of, names, seeds = report["of"], list(report["curves"]), report["seeds"]
    ks = [point["x"] for point in report["curves"][names[0]]]
    left_out = report["held_out"] - report["tested"]
    said = [
        f"New {of} of {report['data']}: n = {report['rows']:,} test rows of {report['tested']:,} {of}, the same for all "
        f"numbers of shots: those after the first {ks[-1]} of each; {left_out:,} {of} of the test part have no more and are "
        f"left out. {seeds} seed{'s' * (seeds > 1)}.",
        f"At k, the first k rows of each held-out {of[:-1]} train, and the models are trained anew. They are examples and "
        + ("enter no history: histories show training rows of the other items alone. " if of == "items" else
           "what a new user's history shows; it ends before the first row that is not known. ")
        + f"'difference' is from the same model at {ks[0]}, 'above' from {names[0]} at the same k. "
        + points.legend(seeds, report["clusters"]),
    ]  # fmt: skip
    tables = [
        points.table(metric, "shots", "{:g}".format, report["curves"], above=names[0]) for metric in points.METRICS
    ]
    picture = points.picture(report["curves"], f"known rows of each new {of[:-1]}")
    return page.Page(f"Cold start: new {of}", said, tables, picture, command)


def of_configs(specs: Sequence[str], changes: Mapping[str, str | None]) -> dict[str, ConfigOf]:
    """Name -> config on a dataset folder of what --config says, its first word on each a name or none.

    Args:
      specs: "name=file[:variant]", or one "file[:variant]" for itself and its variant id_only.
      changes: settings of the command line, for all.
    """
    named = [spec.partition("=")[::2] if "=" in spec else ("", spec) for spec in specs]
    if len(named) == 1 and not named[0][0]:
        path, argument = recipes.split(named[0][1])
        ids = f"{path}:{','.join(filter(None, [argument, 'id_only']))}"
        named = [("ids", ids), (Path(path).stem, named[0][1])]
    result: dict[str, ConfigOf] = {}
    for name, flag in named:
        name = name or flag.replace("/", "_")
        if name in result:
            raise UserError(f"--config: two models are called {name}; give each a name of its own: name=file")
        result[name] = functools.partial(_recipe, flag, changes)
    return result


def _recipe(flag: str, changes: Mapping[str, str | None], root: Path) -> Config:
    return recipes.read(flag, {**changes, "data.root": str(root)})


def main() -> None:
    parser = cli.Parser(description=__doc__, allow_abbrev=False)
    numbers = cli.as_numbers(int, "numbers of rows with commas, e.g. 0,1,3,10")
    parser.add_argument("--config", nargs="+", default=[], help="config files: one, or name=file[:variant] each")
    parser.add_argument("--workdir", nargs="+", default=[], metavar="NAME=RUN", help="runs whose configs are models")
    parser.add_argument("--data", type=paths.local, required=True, help="a dataset that holds items or users out")
    parser.add_argument("--of", choices=shots.KINDS, default="items", help="what is new (default items)")
    parser.add_argument("--shots", type=numbers, default=SHOTS, metavar="K,...", help="known rows (default 0,1,3,10)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each model (default 1)")
    parser.add_argument("--out", type=paths.local, required=True, help="a folder for the page, the data and the runs")
    args, others = parser.parse_known_args()
    given = [(spec.partition("=")[::2] if "=" in spec else (Path(spec).name, spec)) for spec in args.workdir]
    folders = {name: paths.local(folder) for name, folder in given}
    models = of_configs(args.config, recipes.options(others))
    models |= {name: functools.partial(runs.with_data, Run.open(folder).config) for name, folder in folders.items()}
    if not models:
        raise UserError("--config or --workdir: names no model; give a config file, see `em3 coldstart --help`")
    page.folder(args.out)
    report = coldstart(models, args.data, args.out, of=args.of, ks=args.shots, seeds=args.seeds)
    made = make_page(report, page.command_line())
    page.show(made, report, page.write(args.out, "coldstart", report, made))
