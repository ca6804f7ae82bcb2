"""Scores the rows of a file: em3 predict --workdir=runs/em3 --rows tomorrow.parquet --out scores.parquet

Writes the rows as they are with a column `probability` (and `logit`) beside them, in their order, by the run's calibration where
it has one (`em3 eval --calibrate`), and `probability_<label>` of each further label that it learns. Users, items and values that
the dataset does not know are scored as of which nothing is known, and counted. A row's history is what the dataset has of its
user before the row's time; without a column of times, all of it; or what a column of the file lists. Rows are read and written a
piece at a time, so a file may be longer than memory; stopped and called again, it goes on.
"""

import functools
import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from em3_jax import cli
from em3_jax.core import paths, strict_json
from em3_jax.core.calibration import NONE, Calibration
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock
from em3_jax.core.progress import Progress
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import FeatureSet
from em3_jax.data.pipeline import EvaluationSource
from em3_jax.data.readers.source import Paths, Source
from em3_jax.evaluation import calibration
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.predict import files
from em3_jax.predict.rows import Read, Resolver, Rows, which
from em3_jax.protocols import runs

PIECE = 1 << 17
"""Rows in memory at once, about."""
OUTPUTS = (".parquet", ".csv")
PROBABILITY, LOGIT = "probability", "logit"


class Predicted(NamedTuple):
    """What `predict` did.

    Attributes:
      rows: scored, those of a call before among them.
      seconds: of this call.
      unknown: what the dataset does not know -> in how many rows, of this call.
    """

    rows: int
    seconds: float
    unknown: dict[str, int]


def predict(
    directory: str | Path,
    rows: Paths,
    out: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    without: Sequence[str] = (),
    time_format: str = "",
    step: int | None = None,
    data_root: str | Path | None = None,
    piece: int = PIECE,
) -> Predicted:
    """Scores the rows of files and writes them with their scores to `out`.

    Args:
      directory: the folder of a ranking run.
      rows: files of one form: Parquet, or text with a header.
      out: a .parquet or .csv file.
      columns: role (user, item, time, history) or context field -> column, where its name is another.
      without: context fields that the files have no column for.
      time_format: of times that are texts, as Python's strptime has it; default ISO 8601.
      step: checkpoint to score; the best on validation by default.
      data_root: where the dataset lies now, if it was moved.
      piece: rows in memory at once, about.

    Raises:
      UserError: whatever the user can mend; what is done is kept.
    """
    out, source = paths.local(out), Source(rows)
    if out.suffix.lower() not in OUTPUTS:
        raise UserError(f"--out {out}: give a file that ends in {' or '.join(OUTPUTS)}")
    if out.exists():
        raise UserError(f"--out {out}: exists already; choose another, or delete it")
    if out.resolve() in [path.resolve() for path in source.files]:
        raise UserError(f"--out {out}: is one of the files to score; choose another")
    scorer = _Scorer(directory, data_root, step)
    run = scorer.opened.run
    read = which(source.names, columns or {}, without, scorer.dataset)._replace(time_format=time_format)
    for name in (PROBABILITY, LOGIT):
        if name in source.names:
            raise UserError(f"{source}: has a column '{name}' already; rename it")
    scored_step = int(scorer.opened.state.step)
    map_ = calibration.read(run.folder, scored_step)
    resolver = Resolver(scorer.dataset, scorer.builder.history_length, read)
    batch = scorer.opened.config.eval.batch_size
    size = batch * max(piece // batch, 1)
    began, total = time.perf_counter(), source.rows
    folder = out.with_name(f".{out.name}.parts")
    out.parent.mkdir(parents=True, exist_ok=True)
    with Lock(folder, beside=True, hint="wait for it, or choose another --out"):
        _begin(folder, _plan(source, read, run.data_hash, scored_step, map_, size))
        progress, done = Progress(total, unit="row"), 0
        for number, table in enumerate(files.pieces(source, size)):
            path = folder / f"{number:06}.parquet"
            if not path.exists():
                logits = scorer(resolver(str(source), table))
                _write(path, _with_scores(table, *ranking_evaluation.of_labels(logits, scorer.labels), map_))
            done += table.num_rows
            progress.advance(table.num_rows)
        progress.close()
        if not done:
            raise UserError(f"{source}: there are no rows; is it the right file?")
        _join(folder, out)
        shutil.rmtree(folder)
    return Predicted(done, time.perf_counter() - began, resolver.unknown)


class _Scorer:
    """A run's logits of rows, computed as `em3 eval` does, so that rows of a split get the same bits.

    Features that lie on the devices hold the dataset's items alone. Rows whose candidate is new are scored by a program
    whose features come with the batches.
    """

    def __init__(self, directory: str | Path, data_root: str | Path | None, step: int | None):
        self._run = runs.ranking(directory, data_root)
        self._step = step
        run, config = self._run
        run.check_data()
        self.opened = runs.Opened(run, config, run.experiment, run.state(step))
        self.dataset = self.opened.parts.work.dataset
        self.labels = self.opened.parts.work.task.labels
        self.builder = _builder(self.opened)

    def __call__(self, rows: Rows) -> np.ndarray:
        """[n] f32, or [n, 1 + H] where the run has further labels."""
        sets, there = self._sets(self.opened), self.builder.host_features
        needs_host = rows.has_new_items and len(there) < len(sets)
        opened = self._on_host if needs_host else self.opened
        builder = rows.read_by(
            self.builder if opened is self.opened else _builder(opened), sets if needs_host else there
        )
        program, work = opened.parts.program, opened.parts.work
        assert work.evaluation is not None
        buckets, n = work.evaluation("test").buckets, len(rows.interactions["user"])
        source = EvaluationSource(builder, range(n), opened.config.eval.batch_size, buckets, work.shards)
        predict_ = program.predict_all or program.predict
        return ranking_evaluation.predict(source, lambda batch: predict_(opened.state, batch), program.place)

    @functools.cached_property
    def _on_host(self) -> runs.Opened:
        return runs.opened_on_host(*self._run, self._step)

    @staticmethod
    def _sets(opened: runs.Opened) -> tuple[FeatureSet, ...]:
        work = opened.parts.work
        return tuple(work.feature_sets) if work.task.uses_content else ()


def _builder(opened: runs.Opened) -> BatchBuilder:
    work = opened.parts.work
    assert work.builder is not None  # as runs of task ranking have it
    return work.builder(work.dataset)


def _with_scores(table: pa.Table, logits: np.ndarray, of_all: dict[str, np.ndarray], map_: Calibration) -> pa.Table:
    """The table with the probability and the logit of the first label, and the probabilities of further ones."""
    table = table.append_column(PROBABILITY, pa.array(map_.probability(logits)))
    table = table.append_column(LOGIT, pa.array(logits))
    for name, further in of_all.items():
        if label := name.removeprefix("logits").removeprefix("_"):
            table = table.append_column(f"{PROBABILITY}_{label}", pa.array(NONE.probability(further)))
    return table


def _plan(source: Source, read: Read, data_hash: str, step: int, map_: Calibration, size: int) -> dict[str, Any]:
    """What the pieces of a call are of; another plan begins afresh."""
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    facts = {
        "files": stats,
        "read": read._asdict(),
        "data": data_hash,
        "step": step,
        "map": map_.to_json(),
        "size": size,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return {"plan": hashlib.sha256(text.encode()).hexdigest()}


def _begin(folder: Path, plan: dict[str, Any]) -> None:
    """Makes the folder of pieces this plan's; what is there of the same plan stays."""
    path = folder / "plan.json"
    try:
        if json.loads(path.read_text(encoding="utf-8")) == plan:
            return
    except (OSError, ValueError):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    path.write_text(strict_json.dumps(plan), encoding="utf-8")


def _write(path: Path, table: pa.Table) -> None:
    temporary = path.with_suffix(".tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def _read(folder: Path) -> Iterator[pa.Table]:
    for path in sorted(folder.glob("*.parquet")):
        yield pq.read_table(path)


def _join(folder: Path, out: Path) -> None:
    """Writes all pieces as one file; whoever looks sees no file or the whole one."""
    temporary = folder / f"joined{out.suffix.lower()}"
    tables = _read(folder)
    first = next(tables)
    is_text = out.suffix.lower() == ".csv"
    try:
        made: Any = pa.csv.CSVWriter(temporary, first.schema) if is_text else pq.ParquetWriter(temporary, first.schema)
        with made as writer:
            writer.write_table(first)
            for table in tables:
                writer.write_table(table)
    except pa.ArrowException as error:
        raise UserError(f"--out {out}: the rows cannot be written so ({error}); give a .parquet file") from None
    temporary.replace(out)


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a ranking run")
    parser.add_argument(
        "--rows", required=True, help="files: .parquet, .csv, .tsv, .gz; a folder, a pattern, several with commas"
    )
    parser.add_argument("--out", type=paths.local, required=True, help="the .parquet or .csv file to write")
    parser.add_argument(
        "--columns", type=cli.as_pairs, default={}, help="user=uid,item=sku,time=ts,history=past, or of context fields"
    )
    parser.add_argument("--without", type=cli.as_list, default=(), help="context fields that the rows do not have")
    parser.add_argument("--time-format", default="", help='of times that are texts, e.g. "%%d.%%m.%%Y %%H:%%M"')
    parser.add_argument("--step", type=int, help="checkpoint to score (default: the best on validation)")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    args = parser.parse_args()
    done = predict(
        args.workdir, args.rows, args.out, columns=args.columns, without=args.without, time_format=args.time_format,
        step=args.step, data_root=args.data,
    )  # fmt: skip
    print(f"{args.out}: {done.rows:,} rows, {done.rows / max(done.seconds, 1e-9):,.0f} a second")
    for what, count in done.unknown.items():
        print(f"  {what}: {count:,}")
