"""Does content pay on your data? em3 verdict --data data/shop --budget 15min --out reports/verdict

Trains a ladder of models, from IDs alone to content that is trained with the click: all on a fifth of the
training rows, the better ones on more, the best on all with several seeds. All is chosen on validation; the
test split is read at the end. Prints the verdict and writes verdict.html and verdict.json to --out. Stopped at
any moment and called again, it goes on. The time is an estimate, the same on every machine of as many cores.
"""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em3_jax import cli
from em3_jax.config import recipes
from em3_jax.core import paths, strict_json, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.data.format import Dataset, open_dataset
from em3_jax.protocols.runs import require_same
from em3_jax.training import rundir
from em3_jax.trials import runs
from em3_jax.verdict import budget, climb, conclude, ladder, page, words
from em3_jax.verdict.ladder import CODES, IDS, LADDER, Rung
from em3_jax.verdict.measure import Rows

CONFIG = "configs/own_data.py"
BUDGET = "15min"


def verdict(
    data: str | Path,
    out: str | Path,
    *,
    budget_seconds: float,
    config: str = CONFIG,
    changes: Mapping[str, Any] | None = None,
    rungs: Sequence[Rung] | None = None,
    parallel: int = 0,
    say=print,
) -> dict[str, Any]:
    """The verdict on a dataset, also written to `out`; see `conclude.conclude`.

    Args:
      data: dataset folder.
      out: folder of the page and, in `runs`, of the runs.
      budget_seconds: nominal time, see `budget.plan`.
      config: config file, whose variant id_only is the baseline.
      changes: config key -> value of all runs.
      rungs: the ladder, whose first is IDs alone; none: all that the dataset has content for.
      parallel: runs at once; 0 = two where there are only CPUs, else one.

    Raises:
      UserError: there is no content, nothing to compare, or too small a budget.
    """
    out, changes = Path(out), dict(changes or {})
    dataset = open_dataset(data)
    if dataset.meta.get("only_clicks"):
        raise UserError(f"{data}: holds clicks alone; prepare it with --negatives 3 (mmrec: --as-clicks)")
    plain = runs.settings(config, "", {**changes, "data.root": str(data)})
    if plain.task != "ranking":
        raise UserError(f"--config {config}: is of task {plain.task}; give a recipe of task ranking, such as {CONFIG}")
    rungs = rungs or (*LADDER, *_of_raw(dataset))
    if not plain.data.features or plain.model.content == "none":
        rungs = [rung for rung in rungs if rung.name == IDS or rung.config]
    label = plain.data.label
    climb.check(dataset, rungs, label)
    rows = len(dataset.split_rows("train", label))
    plan = budget.plan(rows, rungs, budget_seconds, rundir.cores())
    read = {name: dataset.features(name.partition("[")[0]).manifest["hash"] for name in plain.data.features}
    facts = {"data_hash": dataset.meta["data_hash"], "features": read}
    require_same(out / "made_from.json", facts, "choose another --out")
    say(f"{data}: {rows:,} training rows; about {max(round(plan.seconds / 60), 1)} min", flush=True)
    ladder_ = climb.Climb(dataset, config, changes, rungs, plan, out, parallel or _at_once())
    chosen, finalists = climb.climb(ladder_, Rows.of(dataset, "valid", label), say)
    found = conclude.conclude(ladder_, chosen, finalists, Rows.of(dataset, "test", label))
    found["command"] = _training(ladder_, found["recommended"], config)
    found["budget"] = budget_seconds
    (out / "verdict.json").write_text(strict_json.dumps(found, indent=1), encoding="utf-8")
    (out / "verdict.html").write_text(page.page(found), encoding="utf-8")
    return found


def _of_raw(dataset: Dataset) -> Sequence[Rung]:
    """The rungs of the raw content that there is."""
    sets = sorted(path.parent.name for path in dataset.root.glob("features/[!.]*/manifest.json"))
    raw = tuple(name for name in sets if "raw" in dataset.features(name).manifest)
    return ladder.of_raw(raw) if raw else ()


def _at_once() -> int:
    """Runs at once: on CPUs two, each with half of the cores, are faster than one after the other."""
    accelerators = [path for kind in ("nvidia0", "accel0", "vfio/0") if (path := Path("/dev") / kind).exists()]
    return 1 if accelerators else min(rundir.cores(), 2)


def _training(ladder_: climb.Climb, name: str, config: str) -> str:
    """The command that trains a rung on all rows, after the one that makes what it reads."""
    rung = ladder_.rung(name)
    config = rung.config or config
    variant = f":{rung.variant}" if rung.variant else ""
    given = {key: value for key, value in ladder_.changes.items() if runs.takes(config, rung.variant, key)}
    changes = {**given, **ladder_.settings_for(name), **rung.changes}
    options = [f"--config.{key}={_spelled(value)}" for key, value in changes.items()]
    place = [f"--config.data.root={ladder_.dataset.root}", f"--workdir=runs/{name}"]
    said = shlex.join(["em3", "train", f"--config={config}{variant}", *place, *options])
    root = str(ladder_.dataset.root)
    if rung.vectors_of:
        source = str(ladder_.folders[rung.vectors_of, ladder_.plan.shares[-1]][0])
        first = ["em3", "vectors", f"--workdir={source}", f"--data={root}", f"--name={name}"]
        return f"{shlex.join(first)} && {said} --config.data.features={name}"
    if rung.codes:
        of = ",".join(ladder_.features)
        first = ["em3", "codes", f"--data={root}", f"--features={of}", f"--name={CODES}"]
        return f"{shlex.join(first)} && {said}"
    return said


def _spelled(value: Any) -> str:
    """A setting as the command line takes it."""
    if not isinstance(value, tuple | list):
        return str(value)
    flat = not any(isinstance(one, tuple | list) for one in value)
    return ",".join(map(str, value)) if flat else repr(tuple(map(tuple, value)))


def main() -> None:
    parser = cli.Parser(prog="em3 verdict", description=__doc__)
    parser.add_argument("--data", type=paths.local, required=True, help="dataset folder, with a feature set or more")
    parser.add_argument("--out", type=paths.local, required=True, help="folder of the page and the runs")
    parser.add_argument("--budget", default=BUDGET, help=f"time, e.g. 15min, 900s or 2h (default {BUDGET})")
    parser.add_argument("--config", default=CONFIG, help=f"config file (default {CONFIG})")
    parser.add_argument("--jobs", type=int, default=0, help="runs at once (default: 2 on CPUs, else 1)")
    parser.epilog = "Further options --config.<key>=<value> change the config of all runs, as for em3 train."
    args, others = parser.parse_known_args()
    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs}: give 1 or more")
    given = recipes.options(others)
    plain = recipes.load(args.config, "", str(args.data))
    changes = {key: recipes.parsed(key, text, recipes.lookup(plain, key)) for key, text in given.items()}
    seconds = budget.seconds_of(args.budget)
    with Lock(args.out, hint="wait for it, or choose another --out"):
        found = verdict(
            args.data, args.out, budget_seconds=seconds, config=args.config, changes=changes, parallel=args.jobs
        )
    text = f"\n{words.text(found)}\n\nwritten to {args.out / 'verdict.html'}"
    terminal.result(text, next_command=found["command"], **found)
