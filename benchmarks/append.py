"""What an hour of a followed log costs: python -m benchmarks.append [--hours 100] [--before <checkout>]

A planted log of `--rows` rows an hour: users and items by Zipf's law, some of them new in every hour. A run
of the ranking model on IDs alone follows it. An hour is written when the one before is done, and costs the
time from then until its line stands in the curve: scoring, training and the checkpoint are part of it. With
`--before`, a checkout of an earlier commit does the last tenth of the same log, the hours before it being
there at its start. Targets: hour 100 at most 1.2 x hour 2, the last tenth at most a fifth of what it took
before. Results: benchmarks/NOTES.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent.parent
HEADER = "user,item,time,label\n"
START = 1_714_564_800
NEAR = 10  # hours whose least stands for one: in some, programs are compiled


def hour(number: int, rows: int, seed: int = 0) -> str:
    """The lines of an hour: most ids are those of before, the older the more frequent; of a hundredth of the rows new."""
    random = np.random.default_rng([seed, number])
    ids = []
    for name in "ui":
        known = 2000 + number * (rows // 100)
        place = np.minimum(random.zipf(1.2, rows) - 1, known - 1)
        new = random.random(rows) < 0.01
        place[new] = random.integers(known, known + rows // 100, int(new.sum()))
        ids.append([f"{name}{k}" for k in place])
    seconds = START + 3600 * number + np.sort(random.integers(0, 3600, rows))
    label = random.random(rows) < 0.3
    lines = zip(*ids, seconds, label.astype(int), strict=True)
    return "".join(f"{user},{item},{second},{one}\n" for user, item, second, one in lines)


def follow(checkout: Path, folder: Path, first: int, hours: int, rows: int, extra: tuple[str, ...]) -> np.ndarray:
    """[hours - first] seconds that each hour from number `first` on took; those before are in the log at the start."""
    folder.mkdir(parents=True)
    log, mapping, curve = folder / "log.csv", folder / "mapping.json", folder / "run" / "stream.jsonl"
    mapping.write_text(json.dumps({"interactions": str(log)}))
    log.write_text(HEADER + "".join(hour(number, rows) for number in range(first)))
    command = [sys.executable, "train.py", "--config=configs/online.py:id_only", f"--workdir={folder / 'run'}"]
    command += [f"--config.data.root={folder / 'data'}", f"--config.stream.follow={mapping}"]
    command += [f"--config.stream.window={rows} examples", "--config.stream.poll_seconds=0.02", *extra]
    command += ["--config.data.batch_size=512"]
    took, lines = [], lambda: curve.read_bytes().count(b"\n") if curve.exists() else 0
    with (
        open(folder / "out.txt", "w", encoding="utf-8") as out,
        subprocess.Popen(
            command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)}, stdout=out, stderr=subprocess.STDOUT
        ) as process,
    ):
        for number in range(first, hours + 1):
            began = time.perf_counter()
            while lines() < number:
                if process.poll() is not None:
                    raise SystemExit((folder / "out.txt").read_text(encoding="utf-8"))
                time.sleep(0.005)
            took.append(time.perf_counter() - began)
            if number < hours:
                text = hour(number, rows)
                with open(log, "a", encoding="utf-8") as file:
                    file.write(text)
        process.terminate()
    return np.array(took[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--before", type=Path, help="a checkout of an earlier commit")
    parser.add_argument("--spare", type=float, default=1.0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, tenth = Path(temporary), given.hours // 10
        extra = ("--config.stream.append=True", f"--config.stream.spare={given.spare}")
        took = follow(HERE, folder / "now", 0, given.hours, given.rows, extra)
        second, last = took[1 : 1 + NEAR].min(), took[-NEAR:].min()
        print("seconds of each hour: " + " ".join(f"{one:.2f}" for one in took))
        print(
            f"hours 2 to {1 + NEAR}: {second:.3f} s, the last {NEAR}: {last:.3f} s, the least of each: {last / second:.2f} x"
        )
        print(
            f"sum of hours 2 to {tenth + 1}: {took[1 : tenth + 1].sum():.1f} s, of the last {tenth}: {took[-tenth:].sum():.1f} s"
        )
        if given.before:
            before = follow(given.before, folder / "before", given.hours - tenth, given.hours, given.rows, ())
            print("before, seconds of each hour: " + " ".join(f"{one:.2f}" for one in before))
            print(
                f"the last {tenth} hours: {before.sum():.1f} s before, {took[-tenth:].sum():.1f} s now: "
                f"{before.sum() / took[-tenth:].sum():.1f} x"
            )


if __name__ == "__main__":
    main()
