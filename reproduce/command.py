"""Reproduces tables of the EM3 paper: em3 reproduce --table 3 --data data/ml-100k --seeds 5 --out reports/table3

Runs what is missing, chooses on validation, scores the test split once, and writes table<N>.md, .json and .png. Stopped at any
moment and called again, it goes on: finished runs are reused, interrupted ones resumed. `--table all` shares runs between tables.
Table 10, not among them, compares retrieval models, each with its grid: --table 10 --data data/baby,data/sports
And `--table lemur` has LEMUR's comparisons, with the cost of each; `--table images` the systems with pictures in the ranker, on
a dataset, or on several that are the folds of one: --data data/ads-0,data/ads-1,data/ads-2
"""

import argparse
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np

from em3_jax import cli
from em3_jax.config import recipes
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.lock import Lock
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.evaluation import folds
from em3_jax.trials import runs
from em3_jax.trials.runs import PlannedRun
from reproduce import images, kept, lemur, report, retrieval, search, tables
from reproduce.grids import MODELS

SEARCH = 6
LEMUR, IMAGES = "lemur", "images"
APART = {LEMUR: (lemur.table, "configs/lemur.py"), IMAGES: (images.table, images.CONFIG)}
"""Tables that stand alone, with rows to choose and the cost of each: how they are made, and their config."""
CONFIGS = {
    "movielens": "configs/em3_movielens.py",
    "synthetic": "configs/em3_synthetic.py",
    "mmrec": "configs/em3_mmrec.py",
}


class _Common(TypedDict):
    """What all jobs of a call have, see `runs.make_jobs`."""

    config: str
    changes: Mapping[str, Any]
    data: Path
    root: Path


def reproduce(
    numbers: tuple[int | str, ...],
    data: str,
    seeds: int,
    out: str,
    *,
    config: str,
    changes: dict,
    parallel: int,
    command: str,
    only: tuple[str, ...] = (),
    search_count: int = 0,
) -> list[str]:
    """Runs and writes tables; returns their pages.

    Args:
      numbers: of the tables, or a name of `APART`.
      data: dataset folder; of `images` also several with commas, the folds of one, whose tests are pooled.
      seeds: 0 to seeds - 1.
      out: folder of the reports and, in `runs`, of the runs.
      config: config file.
      changes: config key -> value for all runs, but where a run's variant has a value of its own.
      parallel: runs at once.
      command: to print on the pages.
      only: rows of a table of `APART`; none: all.
      search_count: settings that the baseline and the model each try on validation first, see `search`; 0 = those
        of the config for all.
    """
    if seeds < 1 or parallel < 1 or search_count < 0:
        raise UserError("--seeds and --jobs: must be at least 1, --search at least 0")
    folders = [Path(one) for one in data.split(",")]
    if len(folders) > 1 and numbers != (IMAGES,):
        raise UserError(f"--data {data}: only tables {IMAGES} and 10 take several datasets; give one")
    datasets = [open_dataset(folder) for folder in folders]
    chosen = [
        APART[number][0](only)
        if isinstance(number, str)
        else tables.make(number, datasets[0], runs.settings(config, "", changes).data)
        for number in numbers
    ]
    root = Path(out) / "runs"
    roots = [root / f"fold{k}" for k in range(len(folders))] if len(folders) > 1 else [root]
    needed = {name: run for table in chosen for name, run in table.runs.items()}
    _check(needed, folders, datasets, roots, config, changes, choosable=numbers[0] in APART)
    found: dict[str, list[dict[str, Any]]] = {}
    for folder, place in zip(folders, roots, strict=True):
        common: _Common = {"config": config, "changes": changes, "data": folder, "root": place}
        if any(run.vectors_of for run in needed.values()):
            runs.overlay(folder, place / "data")
        tried = _search(needed, parallel, search_count, **common) if search_count else {}
        best = {name: search.chosen(of_run) for name, of_run in tried.items()}
        made = search.with_chosen(needed, best)
        jobs = runs.make_jobs(made, seeds=seeds, cost=numbers[0] in APART, **common)
        runs.run_all(jobs, parallel)
        for name, points in search.summary(tried).items():
            found[name if len(folders) == 1 else f"{name} on {folder.name}"] = points
    return [report.write(table, roots, seeds, Path(out), command, found) for table in chosen]


def _check(
    needed: Mapping[str, PlannedRun],
    folders: Sequence[Path],
    datasets: Sequence[Dataset],
    roots: Sequence[Path],
    config: str,
    changes: Mapping[str, Any],
    *,
    choosable: bool,
) -> None:
    """Refuses datasets that are no folds of one, or lack what a run reads: before the first run.

    Args:
      choosable: whether --models says which rows the table has.
    """
    if len(datasets) > 1:
        folds.check_catalogue(folders, datasets)
        label = runs.settings(config, "", changes).data.label
        rows = [np.asarray(one.split_rows("test", label)) for one in datasets]
        tested = [one.interactions["item"][k] for one, k in zip(datasets, rows, strict=True)]
        folds.check_apart(folders, tested)
    hint = "; make them, or take the other rows with --models {others}" if choosable else ""
    for folder, root in zip(folders, roots, strict=True):
        jobs = runs.make_jobs(needed, config=config, changes=changes, data=folder, seeds=1, root=root)
        runs.check_content(jobs.values(), hint)


def _search(needed: dict, parallel: int, count: int, **common: Unpack[_Common]) -> dict:
    """What `search.jobs` gives, run: after what the searched runs start from."""
    first = {
        run.init_from: needed[run.init_from] for run in needed.values() if run.settings_of == run.name and run.init_from
    }
    runs.run_all(runs.make_jobs(first, seeds=1, **common), parallel)
    tried = search.jobs(needed, count=count, **common)
    runs.run_all({job.name: job for of_run in tried.values() for _, job in of_run}, parallel)
    return tried


def _config_for(name: str) -> str:
    kind = name.split(" ")[0]
    if kind not in CONFIGS:
        raise UserError(f"no config for datasets of kind '{name}'; give one with --config configs/<name>.py")
    return CONFIGS[kind]


def _changes(options: list[str], config: str, argument: str = "") -> dict:
    """{"train.epochs": 3.0, ...} of ["--config.train.epochs=3", ...], as `train.py` takes them.

    Args:
      options: the command's own.
      config: config file, which knows their types.
      argument: what the file makes of it: of a model, with settings that others have not.
    """
    given = recipes.options(options)
    plain = recipes.load(config, argument, given.get("data.root") or "")
    return {key: recipes.parsed(key, text, recipes.lookup(plain, key)) for key, text in given.items()}


def main() -> None:
    parser = cli.Parser(prog="em3 reproduce", description=__doc__)
    parser.add_argument("--table", required=True, help="1 to 7, several as 3,5, or all; or 10, lemur or images")
    parser.add_argument(
        "--data", required=True, help="dataset folder; for tables 10 and images also several, with commas between"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many (default 5)")
    parser.add_argument("--out", type=paths.local, required=True, help="folder of the reports and the runs")
    parser.add_argument("--config", default="", help="config file (default: the one for the dataset's kind)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once (default 1); on CPUs more may be faster")
    parser.add_argument(
        "--models", default="", help="rows of table 10, e.g. freedom,em3, of lemur or images (default: all)"
    )
    parser.add_argument(
        "--search",
        type=int,
        default=SEARCH,
        metavar="COUNT",
        help=f"settings that the baseline and the model each try on validation (default {SEARCH}); 0 = those of the config",
    )
    parser.add_argument("--no-grid", action="store_true", help="table 10 with the settings of the config alone")
    parser.add_argument(
        "--keep",
        type=paths.local,
        metavar="FILE",
        help="also write all of it as one table of a page, docs/results/NAME.json, see reproduce/results.py",
    )
    parser.epilog = (
        "Further options --config.<key>=<value> change the config of all runs, as for train.py, but for keys that a "
        "run's variant (online, pretraining, ...) sets itself."
    )
    args, others = parser.parse_known_args()
    if args.keep:
        kept.check(args.keep)
    with Lock(args.out, hint="wait for it, or choose another --out"):
        stems, pages = _tables(args, others, "em3 reproduce " + shlex.join(sys.argv[1:]))
        texts = list(pages)
        if args.keep:
            kept.write(args.keep, [Path(args.out) / f"{stem}.json" for stem in stems], args.config)
    # What is printed are tables of 80 columns, what is written is Markdown.
    shown = [f"\n{terminal.markdown(one)}" for one in texts]
    written = f"written to {args.out}" + (f" and {args.keep}" if args.keep else "")
    terminal.result("\n".join([*shown, written]), out=str(args.out), pages=texts)


def _tables(args: argparse.Namespace, others: list[str], command: str) -> tuple[list[str], Iterable[str]]:
    """(the stems of the reports' files, the pages as they are made) of what --table asks for; sets --config."""
    if args.table == "10":
        return ["table10"], [_table_10(args, others, command)]
    args.data = ",".join(str(paths.local(one)) for one in args.data.split(","))
    only = tuple(filter(None, args.models.split(",")))
    if args.no_grid or (only and args.table not in APART):
        raise UserError("--no-grid: of table 10 alone, --models: of tables 10, lemur and images; leave them out")
    names = [str(number) for number in tables.NUMBERS] if args.table == "all" else args.table.split(",")
    alone = len(names) == 1 and names[0] in APART
    for name in names if not alone else []:
        if not name.isdigit() or int(name) not in tables.NUMBERS:
            raise UserError(f"--table {args.table}: give numbers from 1 to 7, all, or 10, lemur or images alone")
    if alone:
        args.config = args.config or APART[names[0]][1]
    args.config = args.config or _config_for(open_dataset(args.data).meta["name"])
    changes = _changes(others, args.config)
    settings = {"config": args.config, "changes": changes, "parallel": args.jobs, "command": command, "only": only}
    settings["search_count"] = args.search
    numbers = tuple(int(name) if name.isdigit() else name for name in names)
    stems = [f"table{name}" if isinstance(name, int) else f"table_{name}" for name in numbers]
    return stems, reproduce(numbers, args.data, args.seeds, args.out, **settings)


def _table_10(args: argparse.Namespace, others: list[str], command: str) -> str:
    """The page of table 10; sets --config."""
    config = args.config = args.config or retrieval.CONFIG
    wanted, known = list(filter(None, args.models.split(","))), {model.name: model for model in MODELS}
    for name in wanted:
        if name not in known:
            raise UserError(f"--models {name}: no such model; {nearest(name, known)}")
    models = tuple(known[name] for name in wanted or known)
    if args.no_grid:
        models = tuple(model._replace(grid={}) for model in models)
    changes = _changes(others, config, models[0].name if len(models) == 1 else "")
    settings = {"config": config, "changes": changes, "parallel": args.jobs, "command": command}
    data = [str(paths.local(folder)) for folder in args.data.split(",")]
    return retrieval.reproduce(data, args.seeds, args.out, **settings, models=models)
