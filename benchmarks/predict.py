"""Speed of `em3 predict` beside evaluation of the same rows by the same run, in turns.

python -m benchmarks.predict --workdir runs/demo/em3 --times 10 --repeats 5
python -m benchmarks.predict --workdir runs/demo/em3 --memory 1000000,10000000

Evaluation scores the test split in batches and keeps logits; `predict` reads the same rows,
repeated, from a Parquet file, finds ids and histories, scores them, and writes the rows with
their probabilities. Both are run once before, so that nothing is compiled.

With --memory the command itself is run on files of so many rows, each in a process of its own, and
its peak memory is shown.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from em3_jax.data.format import Dataset, open_dataset
from em3_jax.data.readers.source import Source
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.export.model import original_ids
from em3_jax.predict import files
from em3_jax.predict.pieces import Pieces
from em3_jax.predict.rows import Resolver, which
from em3_jax.predict.scorer import Scorer
from em3_jax.training.run import Run


def rows_of(dataset: Dataset, times: int) -> pa.Table:
    """The test split as somebody would have it, so many times."""
    rows, columns = np.tile(np.asarray(dataset.split_rows("test")), times), dataset.interactions
    users, items = (original_ids(table) for table in (dataset.user_table, dataset.item_table))
    table = {"user": users[columns["user"][rows]], "item": items[columns["item"][rows]], "time": columns["time"][rows]}
    for field in dataset.fields.context:
        words = np.array([None, None, *dataset.meta["vocabularies"]["context"][field.name]], object)
        table[field.name] = words[columns[f"context_{field.name}"][rows]].tolist()
    return pa.table(table)


def write_rows(path: Path, dataset: Dataset, count: int) -> None:
    """A Parquet file of `count` rows, the test split's again and again, written a piece at a time."""
    split = len(dataset.split_rows("test"))
    piece = rows_of(dataset, -(-min(count, 1 << 20) // split))
    with pq.ParquetWriter(path, piece.schema) as writer:
        for first in range(0, count, len(piece)):
            writer.write_table(piece.slice(0, count - first))


def measure_memory(workdir: Path, counts: list[int]) -> None:
    """Peak memory and rate of `em3 predict` on files of so many rows."""
    dataset = Run.open(workdir).experiment.work.dataset
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            rows, scores = Path(folder) / "rows.parquet", Path(folder) / f"scores-{count}.parquet"
            write_rows(rows, dataset, count)
            began = time.perf_counter()
            words = ["predict", "--workdir", workdir, "--rows", rows, "--out", scores]
            command = [sys.executable, "-m", "em3_jax", *map(str, words)]
            process = subprocess.Popen(command)
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = status
            if status:
                raise SystemExit(f"em3 predict ended with {status}")
            took = time.perf_counter() - began
            assert pq.read_metadata(scores).num_rows == count
            print(f"{count:>12,} rows: {count / took:>10,.0f} rows/s, peak {used.ru_maxrss / 1024:,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=Path, required=True, help="a ranking run")
    parser.add_argument("--times", type=int, default=10, help="how often the test rows are repeated")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", default="", help="numbers of rows, with commas between")
    args = parser.parse_args()
    if args.memory:
        return measure_memory(args.workdir, [int(count) for count in args.memory.split(",")])
    scorer = Scorer(args.workdir, None, None)
    parts = Run.open(args.workdir).experiment
    source, state = parts.work.evaluation("test"), Run.open(args.workdir).state()
    rates: dict[str, list[float]] = {"evaluation": [], "predict": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.parquet"
        pq.write_table(rows_of(open_dataset(parts.work.dataset.root), args.times), path)
        rows = Source(path)
        read = which(rows.names, {}, (), scorer.dataset)

        def evaluated() -> int:
            for _ in range(args.times):
                ranking_evaluation.predict(
                    source, lambda batch: parts.program.predict(state, batch), parts.program.place
                )
            return args.times * len(source.rows)

        def predicted() -> int:
            resolver, out = Resolver(scorer.dataset, scorer.history_length, read), Path(folder) / "scores.parquet"
            out.unlink(missing_ok=True)
            with Pieces(out, {}) as made:
                for number, table in enumerate(files.pieces(rows, 1 << 17)):
                    logits, further = scorer(resolver(rows, table))
                    probability = scorer.probabilities(logits, further)[""]
                    made.write(number, table.append_column("probability", pa.array(probability)))
                return made.finish()

        for repeat in range(args.repeats + 1):
            for name, run in (("evaluation", evaluated), ("predict", predicted)):
                began = time.perf_counter()
                count = run()
                if repeat:
                    rates[name].append(count / (time.perf_counter() - began))
    for name, values in rates.items():
        print(f"{name:<12}{statistics.median(values):>12,.0f} rows a second ({min(values):,.0f} to {max(values):,.0f})")
    ratios = [one / other for one, other in zip(rates["predict"], rates["evaluation"], strict=True)]
    print(f"predict to evaluation: {statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
