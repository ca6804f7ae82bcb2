"""A click changes a score: python -m benchmarks.clicks [--rate 200] [--window 100] [--batch 100] [--spare 50] [--capacity 0]

Rows are appended to a log, so many a second, one of fifty of a new user; a stream takes them up (config.stream.append), trains
and publishes; a service follows; a client asks it over HTTP, again and again. Measured is the time from the appending of each
row until an answer by a version that has learnt from it, of all rows of whole windows. Results: benchmarks/NOTES.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from benchmarks.publish import PROBE, USERS, Served, make_log, rows, settings
from em3_jax.serving import deltas, store

NEW = 50  # rows of which one is of a new user
FIRST = 10_000  # rows of the log before, so that histories are as long as they get


class Feed(threading.Thread):
    """Appends rows to a log, so many a second, and keeps when each was written."""

    def __init__(self, log: Path, first: int, rate: float):
        super().__init__(daemon=True)
        self.log, self.first, self.rate, self.stop = log, first, rate, threading.Event()
        self.written: list[float] = []

    def run(self) -> None:
        began = time.monotonic()
        with open(self.log, "a", encoding="utf-8") as log:
            while not self.stop.wait(0.02):
                start = self.first + len(self.written)
                due = int((time.monotonic() - began) * self.rate) - len(self.written)
                lines = rows(start, due).splitlines(keepends=True)
                for k, line in enumerate(lines):
                    if (start + k) % NEW == 0:
                        lines[k] = f"{USERS + (start + k) // NEW}{line[line.index(',') :]}"
                log.write("".join(lines))
                log.flush()
                self.written += [time.monotonic()] * due


def row_of(root: Path, name: str) -> int:
    """The rows that a version has learnt from; 0 where it is not there any more."""
    path = root / "versions" / name / store.MANIFEST
    manifest = json.loads(path.read_text()) if path.exists() else {}
    return manifest.get("facts", manifest).get("row", 0)


def measure(folder: Path, rate: float, window: int, batch: int, spare: float, minutes: float, capacity: int) -> None:
    make_log(folder, FIRST)
    own = {"append": True, "window": f"{window} examples", "poll_seconds": 0.05, "spare": spare, "publish_keep": 1000}
    config, root = settings(folder, **own), folder / "store"
    config["data"]["batch_size"], config["tables"]["capacity"] = batch, capacity
    (folder / "config.json").write_text(json.dumps(config))
    program = (
        "import json, sys; from em3_jax import train; train.train(json.loads(open(sys.argv[1]).read()), sys.argv[2])"
    )
    command = [sys.executable, "-c", program, str(folder / "config.json"), str(folder / "run")]
    feed, seen = Feed(folder / "log.csv", FIRST, rate), []
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as trainer:
        try:
            while row_of(root, store.current_name(root) or "none") < FIRST - window:
                time.sleep(0.2)
            with Served(root) as served:
                ask = served.client()
                feed.start()
                until, scores, learnt = time.monotonic() + 60 * minutes, None, 0
                while not feed.stop.is_set() or learnt <= FIRST + len(feed.written) - window:
                    answer = ask(PROBE)
                    if answer["scores"] != scores:
                        seen.append((time.monotonic(), answer["version"]))
                        learnt = row_of(root, answer["version"])
                    scores = answer["scores"]
                    time.sleep(0.01)
                    if time.monotonic() > until:
                        feed.stop.set()
        finally:
            trainer.kill()
    seconds, done, sizes = [], 0, []
    for at, name in seen:
        learnt, made = row_of(root, name) - FIRST, root / "versions" / name  # of rows that were fed
        seconds += [at - written for written in feed.written[done : max(learnt, done)]]
        done = max(learnt, done)
        sizes += [(made / deltas.CHANGES).stat().st_size] if (made / deltas.CHANGES).exists() else []
    found, half = np.array(seconds), len(seconds) // 2
    for name, part in (("all", found), ("second half", found[half:])):
        quantiles = ", ".join(f"p{q:g} {np.percentile(part, q):.2f} s" for q in (50, 99, 100))
        print(f"{name}: {len(part):,} rows, {quantiles}")
    print(
        f"{len(feed.written):,} rows in {minutes:g} minutes, {len(seen):,} versions answered, {np.mean(sizes):,.0f} bytes a delta"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=200.0, help="rows a second")
    parser.add_argument("--window", type=int, default=100, help="rows of one")
    parser.add_argument("--batch", type=int, default=100, help="config.data.batch_size")
    parser.add_argument("--spare", type=float, default=50.0, help="config.stream.spare")
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--capacity", type=int, default=0, help="config.tables.capacity")
    args = parser.parse_args()
    print(
        f"{args.rate:g} rows/s, windows of {args.window} rows, batches of {args.batch}, load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        measure(Path(name), args.rate, args.window, args.batch, args.spare, args.minutes, args.capacity)


if __name__ == "__main__":
    main()
