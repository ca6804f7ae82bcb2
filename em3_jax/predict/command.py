"""Scores the rows of a file: em3 predict --workdir=runs/em3 --rows tomorrow.parquet --out scores.parquet

Writes the rows as they are with a column `probability` (and `logit`) beside them, in their order, by
the run's calibration where it has one (`em3 eval --calibrate`), and `probability_<label>` of each
further label that it learns, calibrated as well; of ESMM that of a click and the label, and
`probability_<label>_given_click`; of a label that is an amount `expected_<label>`, and where the
first label is one, `expected` in the place of both columns. Users, items and
values that the dataset does not know are scored as of which nothing is known, and counted. A row's
history is what the dataset has of its user before the row's time; without a column of times, all of
it; or what a column of the file lists. Times are dates, or numbers as the dataset counts them;
numbers that are dates in another unit are converted. Rows are read and written a piece at a time, so
a file may be longer than memory; stopped and called again, it goes on.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.core.labels import given_click
from em3_jax.core.progress import Progress
from em3_jax.data.readers.source import Paths, Source
from em3_jax.predict import files, pieces
from em3_jax.predict.pieces import Pieces
from em3_jax.predict.rows import Resolver, which
from em3_jax.predict.scorer import Scorer

PIECE = 1 << 17
"""Rows in memory at once, about."""
PROBABILITY, LOGIT, EXPECTED = "probability", "logit", "expected"


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
    history_separator: str = "|",
    step: int | None = None,
    data_root: str | Path | None = None,
    piece: int = PIECE,
) -> Predicted:
    """Scores the rows of files and writes them with their scores to `out`.

    Args:
      directory: the folder of a run of task ranking or lemur.
      rows: files of one form: Parquet, or text with a header.
      out: a .parquet or .csv file.
      columns: role (user, item, time, history) or context field -> column, where its name is another.
      without: context fields that the files have no column for.
      time_format: of times that are texts, as Python's strptime has it; default ISO 8601.
      history_separator: between the items of a history that is a text.
      step: checkpoint to score; the best on validation by default.
      data_root: where the dataset lies now, if it was moved.
      piece: rows in memory at once, about.

    Raises:
      UserError: whatever the user can mend; what is done is kept.
    """
    out, source = pieces.checked(out), Source(rows)
    scorer = Scorer(directory, data_root, step)
    read = which(source.names, columns or {}, without, scorer.dataset)
    read = read._replace(time_format=time_format, separator=history_separator)
    labels = [*scorer.what.names, *map(given_click, scorer.what.names)]
    expected = [f"{EXPECTED}_{label}" for label in scorer.what.amounts]
    first = [EXPECTED] if scorer.what.first else [PROBABILITY, LOGIT]
    written = [*first, *(f"{PROBABILITY}_{label}" for label in labels), *expected]
    if taken := [name for name in written if name in source.names]:
        raise UserError(f"{source}: has a column '{taken[0]}' already; rename it")
    resolver = Resolver(scorer.dataset, scorer.history_length, read)
    batch = scorer.config.eval.batch_size
    size = batch * max(piece // batch, 1)
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]
    plan = {"files": stats, "read": read._asdict(), "data": scorer.run.data_hash, "step": scorer.step, "size": size}
    began, done = time.perf_counter(), 0
    with Pieces(out, plan | {"calibration": scorer.calibrations.to_json()}) as made:
        progress = Progress(source.rows, unit="row")
        for number, table in enumerate(files.pieces(source, size)):
            if not made.has(number):
                logits, further = scorer(resolver(source.after(done), table))
                scores = scorer.probabilities(logits, further), scorer.expected(logits, further)
                made.write(number, _with_scores(table, logits, *scores))
            done += table.num_rows
            progress.advance(table.num_rows)
        progress.close()
        if not done:
            raise UserError(f"{source}: there are no rows; is it the right file?")
        made.finish()
    return Predicted(done, time.perf_counter() - began, resolver.unknown)


def _with_scores(
    table: pa.Table, logits: np.ndarray, probabilities: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> pa.Table:
    """The table with the probability and the logit of the first label, and what is predicted of further ones."""
    if "" in expected:
        table = table.append_column(EXPECTED, pa.array(expected[""]))
    else:
        table = table.append_column(PROBABILITY, pa.array(probabilities[""]))
        table = table.append_column(LOGIT, pa.array(logits))
    for name, probability in probabilities.items():
        if name:
            table = table.append_column(f"{PROBABILITY}_{name}", pa.array(probability))
    for name, amount in expected.items():
        if name:
            table = table.append_column(f"{EXPECTED}_{name}", pa.array(amount))
    return table


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--workdir", type=paths.local, required=True, help="the folder of a ranking or LEMUR run")
    parser.add_argument(
        "--rows", required=True, help="files: .parquet, .csv, .tsv, .gz; a folder, a pattern, several with commas"
    )
    parser.add_argument("--out", type=paths.local, required=True, help="the .parquet or .csv file to write")
    parser.add_argument(
        "--columns", type=cli.as_pairs, default={}, help="user=uid,item=sku,time=ts,history=past, or of context fields"
    )
    parser.add_argument("--without", type=cli.as_list, default=(), help="context fields that the rows do not have")
    parser.add_argument("--time-format", default="", help='of times that are texts, e.g. "%%d.%%m.%%Y %%H:%%M"')
    parser.add_argument(
        "--history-separator", default="|", help="between the items of a history that is a text (default |)"
    )
    parser.add_argument("--step", type=int, help="checkpoint to score (default: the best on validation)")
    parser.add_argument("--data", type=paths.local, help="the dataset folder, if it was moved since training")
    args = parser.parse_args()
    done = predict(
        args.workdir, args.rows, args.out, columns=args.columns, without=args.without, time_format=args.time_format,
        history_separator=args.history_separator,
        step=args.step, data_root=args.data,
    )  # fmt: skip
    lines = [f"{args.out}: {done.rows:,} rows, {done.rows / max(done.seconds, 1e-9):,.0f} a second"]
    lines += [f"  {what}: {count:,}" for what, count in done.unknown.items()]
    terminal.result(
        "\n".join(lines), out=str(args.out), rows=done.rows, seconds=done.seconds, unknown=dict(done.unknown)
    )
