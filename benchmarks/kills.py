"""Killed at random moments, the same to the bit: python -m benchmarks.kills [--kills 100] [--seed 0] [--whole]

A stream takes up appended rows into a table of fixed size whose ids come, leave and come back, trains, and
publishes after each step and window; a service follows its store. Both are killed by SIGKILL, again and again: most
often while windows are trained, spilled and published, one time in five as the process starts. The service is
killed with every third one; after each it has to come to the newest version by itself. What is left in the end is held against
a run that was left alone: the curve, the checkpoint, who has which row, the rows of all ids wherever they are (by
`em3 seal`), and each version of the store. With --whole the log is prepared again as it grows, and not appended to.
Results: benchmarks/NOTES.md.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.publish import HEADER, PROBE, Served, settings
from em3_jax.serving import store
from em3_jax.training import endless, seal
from em3_jax.training.curve import CURVE, read_curve
from em3_jax.training.run import Run

PROGRAM = "import json, sys; from em3_jax import train; train.train(json.loads(open(sys.argv[1]).read()), sys.argv[2])"
ROWS_A_KILL, LIVING, STAY = 600, 150, 6  # ids that live at once, and rows after which one makes way for another


def rows(count: int) -> str:
    """Lines of a log whose users and items are born and die; one in ten is of somebody of long ago."""
    draw, lines = np.random.default_rng(0), []
    for row in range(count):
        born, last = row // STAY, row // STAY + LIVING
        user, item = (draw.integers(born if draw.random() < 0.9 else 0, last) for _ in range(2))
        lines.append(f"u{user},i{item},{1_700_000_000 + row * 60},{draw.integers(0, 2)}\n")
    return "".join(lines)


def begin(folder: Path, name: str) -> subprocess.Popen:
    command = [sys.executable, "-c", PROGRAM, str(folder / f"{name}.json"), str(folder / f"run-{name}")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def windows(folder: Path) -> int:
    path = folder / "run-killed" / CURVE
    return len(read_curve(path)) if path.exists() else 0


def has_newest(service: Served, root: Path) -> None:
    """Waits until the service answers by the newest version, and holds its checksum against the store's."""
    ask, until, answer = service.client(), time.monotonic() + 120, {"version": ""}
    while answer["version"] != store.current_name(root):
        assert time.monotonic() < until, answer
        answer = ask(PROBE)
    assert answer["checksum"] == store.open_current(root).checksum


def killed(folder: Path, kills: int, seed: int) -> tuple[int, int]:
    """(kills of the stream, of the service) until `kills`, or the log is used up; the stream then goes on to the end."""
    draw, done, of_service, root = random.Random(seed), 0, 0, folder / "store-killed"
    service: Served | None = None
    while done < kills:
        process, there, at_start = begin(folder, "killed"), windows(folder), draw.random() < 0.2
        if at_start:
            time.sleep(draw.uniform(0, 8))
        while not at_start and process.poll() is None and windows(folder) <= there:
            time.sleep(0.02)
        time.sleep(0 if at_start else draw.uniform(0, 1))
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read().decode()[-2000:] if process.stderr else ""
            break
        if service is None and store.current_name(root) is not None:
            service = Served(root)
        process.send_signal(signal.SIGKILL)
        process.wait()
        done += 1
        if service is not None:
            has_newest(service, root)
        if service is not None and done % 3 == 0:
            service.process.send_signal(signal.SIGKILL)
            service, of_service = None, of_service + 1
        if done % 10 == 0:
            print(f"{done} kills, {windows(folder):,} windows", flush=True)
    if service is not None:
        service.process.kill()
    last = begin(folder, "killed")
    assert last.wait() == 0, last.stderr.read().decode()[-2000:] if last.stderr else ""
    return done, of_service


def without_times(directory: Path) -> str:
    kept = [{k: v for k, v in line.items() if not k.startswith("time/")} for line in read_curve(directory / CURVE)]
    return json.dumps(kept)


def what_differs(folder: Path, whole: bool) -> list[str]:
    """What of the killed run is other than that of the one left alone."""
    runs, stores = ([folder / f"{kind}-{name}" for name in ("alone", "killed")] for kind in ("run", "store"))
    found = [] if without_times(runs[0]) == without_times(runs[1]) else ["the curve"]
    step = read_curve(runs[0] / CURVE)[-1]["step"]
    maps = [endless.read(run, step)["tables"] for run in runs]
    found += [
        f"map: {name}" for name in maps[0] if name != "spill" and maps[0][name].tobytes() != maps[1][name].tobytes()
    ]
    if not whole:
        for name in ("alone", "killed"):
            seal.seal(folder / f"run-{name}", folder / f"sealed-{name}", folder / f"run-sealed-{name}")
        runs = [folder / f"run-sealed-{name}" for name in ("alone", "killed")]
    states = [Run.open(run).state() for run in runs]
    same = [
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(*map(jax.tree.leaves, states), strict=True)
    ]
    found += [] if all(same) else [f"{same.count(False)} arrays of the state"]
    names = [store.version_names(root) for root in stores]
    found += [] if names[0] == names[1] else [f"{len(names[0])} and {len(names[1])} versions"]
    for name in sorted({*names[0]} & {*names[1]}):
        one, other = (store.open_version(root, name) for root in stores)
        if one.checksum != other.checksum:
            of_both = ({**version.arrays, **version.files} for version in (one, other))
            mine, theirs = ({key: bytes(value) for key, value in of.items()} for of in of_both)
            found.append(f"version {name} ({', '.join(key for key in mine if mine[key] != theirs.get(key))})")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "log.csv").write_text(HEADER + rows(ROWS_A_KILL * args.kills + 4000))
        said = {"interactions": str(folder / "log.csv"), "time_unit": "seconds"}
        (folder / "mapping.json").write_text(json.dumps(said))
        for name in ("alone", "killed"):
            made = settings(folder, idle_seconds=0.1, publish_every=1, publish_whole=7, append=not args.whole)
            made["stream"] |= {"publish": str(folder / f"store-{name}"), "publish_keep": 3, "poll_seconds": 0.05}
            made["data"] = dict(made["data"], root=str(folder / f"data-{name}"), history_length=5, batch_size=50)
            made["tables"] = dict(made["tables"], capacity=400, evict="lru")
            made["train"] = dict(made["train"], compilation_cache=str(folder / "compiled"))
            (folder / f"{name}.json").write_text(json.dumps(made))
        began = time.monotonic()
        alone = begin(folder, "alone")
        assert alone.wait() == 0, alone.stderr.read().decode()[-2000:] if alone.stderr else ""
        print(f"left alone: {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)
        done, of_service = killed(folder, args.kills, args.seed)
        last, differs = read_curve(folder / "run-alone" / CURVE)[-1], what_differs(folder, args.whole)
        print(
            f"{done} kills of the stream, {of_service} of the service, in {time.monotonic() - began:.0f} s: "
            f"{last['window'] + 1:,} windows, {last['ids/evicted']:,} ids left and {last['ids/returned']:,} came back, "
            f"{len(store.version_names(folder / 'store-alone')):,} versions kept; other: {', '.join(differs) or 'nothing'}"
        )


if __name__ == "__main__":
    main()
