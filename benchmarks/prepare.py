"""Speed and memory of `em3 prepare table` beside a bare DuckDB script, and beside an older checkout, in turns.

python -m benchmarks.prepare --rows 10000000 --repeats 3 --folder /tmp/prepare
python -m benchmarks.prepare --rows 10000000 --repeats 3 --folder /tmp/prepare --against ../old
python -m benchmarks.prepare --rows 3000000 --repeats 3 --folder /tmp/prepare --text --numbers --only ours,memory

The log is drawn: a user for each 20 rows, 100,000 items, times in no order, a label, and two fields. The
bare script numbers ids by their first row, codes the fields, sorts by time, splits and writes one Parquet
file: no histories, counts, checks or report. Each call is a process of its own; `peak` is the largest
memory that it held, files that it mapped among it. `memory` is ours with --engine memory, `spark` with --engine
spark. --against names a checkout, whose `em3 prepare
table` takes its turn, in this environment.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

PART = 1_000_000
FIELDS = "device,slot"


def write_log(path: Path, rows: int, users: int) -> None:
    """A log of so many rows, a part at a time, as Parquet or CSV."""
    random, items = np.random.default_rng(0), 100_000
    temporary, made = path.with_suffix(".tmp"), None
    devices = pa.array([f"device {k}" for k in range(8)])
    for first in range(0, rows, PART):
        n = min(PART, rows - first)
        part = pa.table(
            {
                "user": 7 * random.integers(0, users, n) + 1000,
                "item": (items * random.random(n) ** 2).astype(np.int64),
                "time": 1_700_000_000 + random.integers(0, 30 * 86_400, n),
                "label": (random.random(n) < 0.3).astype(np.int8),
                "device": devices.take(pa.array(random.integers(0, 8, n))),
                "slot": random.integers(0, 100, n),
                "price": np.round(random.lognormal(3, 1, n), 2),
            }
        )
        writer = pacsv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter
        made = made or writer(temporary, part.schema)
        made.write_table(part)
    assert made is not None  # there are rows
    made.close()
    temporary.replace(path)


def bare(log: str, out: str) -> None:
    """What an engineer writes in a minute."""
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET temp_directory = '{out}.tmp'; SET memory_limit = '8GB'")
    connection.execute(
        f"CREATE VIEW log AS SELECT *, file_row_number AS place FROM read_parquet('{log}', file_row_number=true)"
    )
    for name in ("user", "item"):
        connection.execute(
            f'CREATE TABLE {name}s AS SELECT "{name}" AS key, row_number() OVER (ORDER BY min(place)) - 1 AS id '
            f'FROM log GROUP BY "{name}"'
        )
    for name in FIELDS.split(","):
        connection.execute(
            f"CREATE TABLE {name}s AS SELECT {name} AS key, row_number() OVER (ORDER BY {name}) + 1 AS id "
            f"FROM (SELECT DISTINCT {name} FROM log)"
        )
    rows = connection.execute("SELECT count(*) FROM log").fetchone()[0]
    connection.execute(
        f"COPY (SELECT users.id AS user, items.id AS item, label, time, devices.id AS device, slots.id AS slot, "
        f"CASE WHEN row_number() OVER (ORDER BY time, place) <= {int(0.8 * rows)} THEN 0 "
        f"WHEN row_number() OVER (ORDER BY time, place) <= {int(0.9 * rows)} THEN 1 ELSE 2 END AS split FROM log "
        f"JOIN users ON log.user = users.key JOIN items ON log.item = items.key "
        f"JOIN devices ON log.device = devices.key JOIN slots ON log.slot = slots.key "
        f"ORDER BY time, place) TO '{out}.parquet' (FORMAT parquet)"
    )


def measured(command: list[str], cwd: Path | None = None) -> dict[str, float]:
    """Seconds and megabytes of a process and what it started."""
    began = time.perf_counter()
    code = (
        "import resource,subprocess,sys;r=subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL).returncode;"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss);sys.exit(r)"
    )
    done = subprocess.run([sys.executable, "-c", code, *command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return {"seconds": time.perf_counter() - began, "megabytes": int(done.stdout.split()[-1]) / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--users", type=int, help="default: one for each 20 rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="for the log and what is made of it")
    parser.add_argument("--against", type=Path, help="an older checkout")
    parser.add_argument("--only", default="ours,bare,older", help="which of ours, bare, older, memory and spark")
    parser.add_argument("--text", action="store_true", help="a log as CSV")
    parser.add_argument("--numbers", action="store_true", help="a column of numbers is cut into ranges")
    parser.add_argument("--bare", nargs=2, metavar=("LOG", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.bare:
        bare(*args.bare)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    log, out = (
        args.folder / f"log-{args.rows}-{args.users or 'by-rows'}.{'csv' if args.text else 'parquet'}",
        args.folder / "out",
    )
    if not log.exists():
        write_log(log, args.rows, args.users or max(args.rows // 20, 1))
    options = [
        "prepare",
        "table",
        "--interactions",
        str(log.absolute()),
        "--context-fields",
        FIELDS,
        "--out",
        str(out.absolute()),
        *(["--context-numbers", "price"] if args.numbers else []),
    ]
    ways = {
        "ours": ([sys.executable, "-m", "em3_jax", *options, "--overwrite"], None),
        "bare": (
            [sys.executable, "-m", "benchmarks.prepare", "--folder", str(args.folder), "--bare", str(log), str(out)],
            None,
        ),
    }
    for engine in ("memory", "spark"):
        ways[engine] = ([*ways["ours"][0], "--engine", engine], None)
    if args.against:
        older = args.against.absolute()
        module = ["em3_jax"] if (older / "em3_jax/__main__.py").exists() else ["em3_jax.prepare"]
        ways["older"] = (
            [sys.executable, "-m", *module, *options[len(module[0].split(".")) - 1 :], "--overwrite"],
            older,
        )
    ways = {name: way for name, way in ways.items() if name in args.only.split(",")}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.repeats):
        for name, (command, cwd) in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            found[name].append(measured(command, cwd))
            print(name, json.dumps({key: round(value, 2) for key, value in found[name][-1].items()}), flush=True)
    for name, runs in found.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        peak = max(run["megabytes"] for run in runs)
        print(f"{name:<6} {seconds:8.2f} s  {args.rows / seconds:12,.0f} rows/s  peak {peak:8,.0f} MB")


if __name__ == "__main__":
    main()
