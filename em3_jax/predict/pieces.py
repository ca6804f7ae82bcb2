"""A result written a piece at a time beside its place: killed, it goes on; whoever looks sees no file or all of it."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from em3_jax.core import paths, strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.lock import Lock

OUTPUTS = (".parquet", ".csv")


class Pieces:
    """The pieces of a table that becomes the file `out`; a context manager that holds them against other processes.

    Args:
      out: a .parquet or .csv file that is not there yet.
      plan: what the pieces are of; those of another plan are thrown away.

    Raises:
      UserError: the file is of another kind, or is there.
    """

    def __init__(self, out: str | Path, plan: dict[str, Any]):
        self.out = checked(out)
        self._folder = self.out.with_name(f".{self.out.name}.parts")
        self._plan = {"plan": hashlib.sha256(json.dumps(plan, sort_keys=True, default=str).encode()).hexdigest()}
        self._lock = Lock(self._folder, beside=True, hint="wait for it, or choose another --out")

    def __enter__(self) -> "Pieces":
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self._lock.__enter__()
        path = self._folder / "plan.json"
        try:
            same = json.loads(path.read_text(encoding="utf-8")) == self._plan
        except (OSError, ValueError):
            same = False
        if not same:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            path.write_text(strict_json.dumps(self._plan), encoding="utf-8")
        return self

    def __exit__(self, kind, value, trace) -> None:
        if not any(self._folder.glob("*.parquet")):
            shutil.rmtree(self._folder, ignore_errors=True)
        self._lock.__exit__(kind, value, trace)

    def has(self, number: int) -> bool:
        """Whether a piece is written, by this call or one before."""
        return self._path(number).exists()

    def write(self, number: int, table: pa.Table) -> None:
        """Writes a piece, whole or not at all."""
        temporary = self._path(number).with_suffix(".tmp")
        pq.write_table(table, temporary)
        temporary.replace(self._path(number))

    def finish(self) -> int:
        """Makes one file of all pieces, in the order of their numbers; returns its rows."""
        temporary = self._folder / f"joined{self.out.suffix.lower()}"
        tables = self._tables()
        first = next(tables)
        rows = first.num_rows
        is_text = self.out.suffix.lower() == ".csv"
        try:
            made: Any = (
                pa.csv.CSVWriter(temporary, first.schema) if is_text else pq.ParquetWriter(temporary, first.schema)
            )
            with made as writer:
                writer.write_table(first)
                for table in tables:
                    writer.write_table(table)
                    rows += table.num_rows
        except pa.ArrowException as error:
            raise UserError(f"--out {self.out}: cannot be written so ({error}); give a .parquet file") from None
        temporary.replace(self.out)
        shutil.rmtree(self._folder)
        return rows

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:06}.parquet"

    def _tables(self) -> Iterator[pa.Table]:
        for path in sorted(self._folder.glob("*.parquet")):
            yield pq.read_table(path)


def checked(out: str | Path) -> Path:
    """The path of a result; refuses what is no such file, or is there."""
    out = paths.local(out)
    if out.suffix.lower() not in OUTPUTS:
        raise UserError(f"--out {out}: give a file that ends in {' or '.join(OUTPUTS)}")
    if out.exists():
        raise UserError(f"--out {out}: exists already; choose another, or delete it")
    return out
