"""Time to quality, against everybody.

    python -m benchmarks.speedrun [--only "em3_jax DIN,FuxiCTR DIN"] [--data movielens] [--repeats 3] [--cores 1]

Trains every contender on the same rows until its validation AUC reaches the target of targets.json, in turns, each in an
environment of its own, which is made where it is missing; prints one table per dataset and appends it to
benchmarks/SPEEDRUN.md, a line per run to results.jsonl beside this file. With --find-target contenders run to their own
end instead, and targets.json is written from all such runs of results.jsonl; that is done once.
"""

import argparse
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.speedrun import environments, planted, report, rows
from benchmarks.speedrun.contenders import CONTENDERS, MOVIELENS, PLANTED, ROOT, Ours, Rival, World, movielens
from benchmarks.speedrun.race import CONVERGED, Run, check_rows, prepare

HERE = Path(__file__).parent
TARGETS, RESULTS, PAGE = HERE / "targets.json", HERE / "results.jsonl", ROOT / "benchmarks" / "SPEEDRUN.md"
BELOW_THE_BEST = 0.005  # on planted data
RULES = {
    MOVIELENS: "the best rival's: the highest, over contenders that are not ours, of the median over seeds of the best "
    "validation AUC of a run to its own end",
    PLANTED: f"{BELOW_THE_BEST} below the best known: the highest, over all contenders, of the median over seeds of the "
    "best validation AUC of a run to its own end",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="contenders, with commas between")
    parser.add_argument("--data", choices=[MOVIELENS, PLANTED, "both"], default="both")
    parser.add_argument("--repeats", type=int, default=3, help="seeds 0, 1, ..., in turns")
    parser.add_argument("--cores", type=int, default=os.cpu_count(), help="each contender is pinned to so many")
    parser.add_argument("--limit", type=float, default=900, help="seconds of a run")
    parser.add_argument("--source", type=Path, default=Path("../shared/data/ml-100k-posters"), help="MovieLens")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "em3_jax" / "speedrun")
    parser.add_argument("--out", type=Path, help="folder for data and runs; default: one that is deleted")
    parser.add_argument("--page", type=Path, default=PAGE, help="to append the table to")
    parser.add_argument("--results", type=Path, default=RESULTS, help="to append the runs to")
    parser.add_argument("--targets", type=Path, default=TARGETS)
    parser.add_argument("--find-target", action="store_true", help="run to the end, and write --targets")
    return parser.parse_args()


def chosen(only: str) -> list[Rival | Ours]:
    """The contenders named, or all."""
    names = [name.strip() for name in only.split(",") if name.strip()]
    known = {one.name: one for one in CONTENDERS}
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"--only: no contender '{unknown[0]}'; there are: {', '.join(known)}")
    return [known[name] for name in names] or list(CONTENDERS)


def make_data(world: World) -> None:
    """Our dataset and the rivals' rows, and that both validate on the same."""
    world.dataset.parent.mkdir(parents=True, exist_ok=True)
    if world.data == MOVIELENS:
        prepare([movielens(world), [sys.executable, rows.__file__, world.source, world.rows]], str(ROOT), world.cores)
    else:
        command = [sys.executable, "-m", "em3_jax", "prepare", "synthetic", "--raw", "--overwrite", "--out"]
        prepare([[*command, world.dataset]], str(ROOT), world.cores)
        planted.write_rows(world.dataset, world.rows)
    with open(world.rows / "valid.csv", encoding="utf-8") as file:
        labels = [int(line.rsplit(",", 1)[1]) for line in file.readlines()[1:]]
    check_rows(np.array(labels), world.labels())


def one_run(contender: Rival | Ours, world: World, seed: int, target: float, limit: float) -> Run:
    """Prepares and trains."""
    try:
        preparing = prepare(contender.preparations(world), contender.python_path, world.cores)
    except RuntimeError as error:
        return Run(f"preparation: {error}")
    run = contender.run(world, seed, target=target, limit=limit)
    run.preparing = preparing if world.data == MOVIELENS else None
    return run


def machine(cores: int) -> str:
    """In words."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    return f"{model}, {os.cpu_count()} cores, of which each contender had {cores}"


@functools.cache
def commit() -> str:
    """Of this checkout, as it was when this was first asked for; "+" says that more than results differ from it."""
    git = ["git", "-C", ROOT]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    results = [f":!{path.relative_to(ROOT)}" for path in (PAGE, RESULTS, TARGETS)]
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", *results], capture_output=True).returncode
    return f"{head}{'+' * bool(changed)}" if head else "no commit"


def find_target(data: str, results: Path, targets: Path) -> None:
    """Writes the dataset's target, and how it was found, from all runs to their own end that `results` holds.

    Raises:
      SystemExit: there are none that count.
    """
    found: dict[str, list[float]] = {}
    for line in map(json.loads, results.read_text().splitlines()):
        if line["data"] == data and line["target"] is None and line["ended"] == CONVERGED:
            found.setdefault(line["contender"], []).append(line["best"])
    ours = {one.name for one in CONTENDERS if one.is_ours}
    best = {name: round(statistics.median(aucs), 4) for name, aucs in found.items()}
    counted = {name: auc for name, auc in best.items() if data == PLANTED or name not in ours}
    if not counted:
        raise SystemExit(f"{results}: no run to its own end from which {data}'s target could be found")
    leader = max(counted, key=counted.__getitem__)
    auc = round(counted[leader] - (BELOW_THE_BEST if data == PLANTED else 0), 4)
    known = json.loads(targets.read_text()) if targets.exists() else {}
    known[data] = {
        "auc": auc, "rule": RULES[data], "of": leader, "best": best, "runs": {name: len(one) for name, one in found.items()},
        "commit": commit(), "date": time.strftime("%Y-%m-%d"),
    }  # fmt: skip
    targets.write_text(json.dumps(known, indent=1) + "\n")
    print(f"{data}: target {auc:.4f}, of {leader}; written to {targets}")


def race(world: World, contenders: list[Rival | Ours], args: argparse.Namespace) -> None:
    """All contenders on a dataset."""
    target = float("inf")
    if not args.find_target:
        target = json.loads(args.targets.read_text())[world.data]["auc"]
    make_data(world)
    runs: dict[str, list[Run]] = {}
    missing: dict[str, str] = {}
    ready = []
    for one in (one for one in contenders if world.data in one.data):
        try:
            if not one.is_ours:
                environments.python_of(world.environments / one.environment, one.requirements)
                if not one.script:
                    raise environments.NotInstalledError("it installs here, but no script in rivals/ runs it")
            ready.append(one)
        except environments.NotInstalledError as error:
            missing[one.name] = f"not run: {error}"
            print(f"{world.data}: {one.name}: {error}", flush=True)
    for seed in range(args.repeats):
        for one in ready:
            run = one_run(one, world, seed, target, args.limit)
            runs.setdefault(one.name, []).append(run)
            report.log(args.results, one.name, run, data=world.data, seed=seed, target=None if args.find_target else target,
                       commit=commit(), date=time.strftime("%Y-%m-%d %H:%M"), cores=world.cores)  # fmt: skip
            print(f"{world.data}, seed {seed}: {one.name}: {run.ended} after {run.seconds:.1f} s and {run.evaluations} "
                  f"evaluations, best AUC {run.best:.4f}, load {run.load:.1f}", flush=True)  # fmt: skip
    if args.find_target:
        return find_target(world.data, args.results, args.targets)
    made = report.table(runs, missing)
    loads = report.spread((run.load for found in runs.values() for run in found), ".1f")
    said = (f"Target: validation AUC {target:.4f}. {machine(world.cores)}; load {loads}; {args.repeats} in turns, seeds from 0; "
            f"at most {args.limit:.0f} s a run.")  # fmt: skip
    print(f"\n{said}\n\n{made}")
    report.append(args.page, f"{world.data}, {time.strftime('%Y-%m-%d')}, commit {commit()}", said, made)


def main() -> None:
    args = arguments()
    commit()  # of the code that runs, whatever is committed meanwhile
    contenders = chosen(args.only)
    with tempfile.TemporaryDirectory() as folder:
        for data in (MOVIELENS, PLANTED) if args.data == "both" else (args.data,):
            if data == MOVIELENS and not args.source.is_dir():
                print(f"{data}: skipped, no folder {args.source}; --source names one")
                continue
            out = (args.out or Path(folder)).absolute()
            world = World(data, args.source.absolute(), out, args.environments.absolute(), args.cores)
            race(world, contenders, args)


if __name__ == "__main__":
    main()
