"""Users or items of a log that is appended to, of a file that grows beside it: their fields, and the content of items.

A line counts from when a row names its user or item for the first time, and stays as it was then. So what is
known of the users and items that rows name is a function of the rows and of these lines.

    <root>/<kind>s/<field>.npy         id of the field's value, of each user or item that rows have named, in their order
    <root>/content/<name>/...          tokens and mask of the items that rows have named, in their order
"""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.data import canonical
from em3_jax.data.format import FeatureSet
from em3_jax.data.growing import Column, Words
from em3_jax.data.sources.files import GrowingFile


class Told(NamedTuple):
    """What a mapping says of users or items.

    Attributes:
      file: where their lines stand; "" = what is known of them is what rows say.
      key: the column of their ids.
      fields: column -> name of a categorical field.
      features: name -> .npy file of a row for each line of `file`.
    """

    file: str = ""
    key: str = ""
    fields: Mapping[str, str] = {}
    features: Mapping[str, str] = {}


class Entities:
    """The users or items of a dataset that is appended to.

    Args:
      root: of the dataset.
      kind: "user" or "item".
      told: what the mapping says of them.
      words: "<kind>_<field>" -> its values.
    """

    def __init__(self, root: Path, kind: str, told: Told, words: Mapping[str, Words]):
        self._kind, self._told, self._words, self._root = kind, told, words, root
        self._file = GrowingFile(Path(told.file)) if told.file else None
        self._position: dict = {}
        self._line: dict[str, int] = {}  # id -> number of its line
        self._values: dict[str, list[str | None]] = {column: [] for column in told.fields}
        self._columns = {name: Column(root / f"{kind}s" / f"{name}.npy", np.int32) for name in told.fields.values()}
        self._sets: dict[str, _Content] = {}

    def _look(self) -> None:
        """Reads the lines that have come."""
        while self._file is not None and (found := self._file.poll(self._position)) is not None:
            if found.bad:
                raise UserError(f"{found.bad[0][0]}: {found.bad[0][1]}; mend it")
            for column in (self._told.key, *self._told.fields):
                if column not in found.table.column_names:
                    there = ", ".join(found.table.column_names)
                    raise UserError(f"{self._told.file}: no column '{column}' (there are: {there})")
            first = len(next(iter(self._values.values()), self._line))
            for k, one in enumerate(canonical.texts(found.table.column(self._told.key)).to_pylist()):
                if one is None or one in self._line:
                    why = "has no id" if one is None else f"is the second of {self._kind} '{one}'"
                    raise UserError(f"{found.place(k)}: {why}; write one line for each, once")
                self._line[one] = first + k
            for column, values in self._values.items():
                values += canonical.texts(found.table.column(column)).to_pylist()
            self._position = found.position

    def absent(self, ids: pa.DictionaryArray) -> np.ndarray:
        """[n] bool: those that are in no line of the file; of none where there is no file."""
        if self._file is None:
            return np.zeros(len(ids), bool)
        used = ids.dictionary.to_pylist()
        if any(one not in self._line for one in used):
            self._look()
        missing = np.array([one not in self._line for one in used] + [False])
        return missing[ids.indices.fill_null(-1).to_numpy(zero_copy_only=False)]

    def add(self, first: int, ids: list[str]) -> None:
        """Keeps what lines say of users or items, number `first` and on, that rows name for the first time."""
        if self._file is None or not ids:
            return
        lines = np.array([self._line[one] for one in ids])
        for column, name in self._told.fields.items():
            texts = pa.array([self._values[column][k] for k in lines], pa.string()).dictionary_encode()
            number = self._words[f"{self._kind}_{name}"].numbers(texts)
            self._columns[name].write(first, np.where(number < 0, UNKNOWN, number + FIRST_KNOWN).astype(np.int32))
        for name, file in self._told.features.items():
            rows = _rows(file, lines, self._told.file)
            if name not in self._sets:
                self._sets[name] = _Content(self._root / "content" / name, rows.shape[1:], rows.dtype)
            self._sets[name].write(first, rows, file)

    def ids(self, name: str) -> Column:
        """The values' ids of a field."""
        return self._columns[name]

    def sets(self, places: int, digest: str) -> dict[str, FeatureSet]:
        """The feature sets, for so many items; those that rows have not named yet have no content, until they do."""
        for name, file in self._told.features.items():
            if name not in self._sets:
                rows = _rows(file, np.zeros(0, np.int64), self._told.file)
                self._sets[name] = _Content(self._root / "content" / name, rows.shape[1:], rows.dtype)
        return {name: one.of(name, places, digest) for name, one in self._sets.items()}


class _Content:
    """Tokens and mask of items in files that grow."""

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: np.dtype):
        self._shape = shape
        self._tokens, self._mask = Column(folder / "tokens.npy", dtype), Column(folder / "mask.npy", np.bool_)

    def write(self, first: int, rows: np.ndarray, file: str) -> None:
        if rows.shape[1:] != self._shape:
            raise UserError(f"{file}: has rows of {rows.shape[1:]} numbers, it had rows of {self._shape}; restore it")
        count, _ = self._shape
        self._tokens.write(first * rows[0].size, rows.ravel())
        self._mask.write(first * count, (rows != 0).any(axis=2).ravel())

    def of(self, name: str, places: int, digest: str) -> FeatureSet:
        count, width = self._shape
        tokens = self._tokens.first(places * count * width).reshape(places, count, width)
        mask = self._mask.first(places * count).reshape(places, count)
        return FeatureSet(name, tokens, mask, {"encoder": "ready arrays", "hash": digest})


def _rows(file: str, lines: np.ndarray, of: str) -> np.ndarray:
    """[n, N, D] f16 or f32 of lines [n]."""
    try:
        array = npy.load(file, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{file}: not a readable .npy file ({error}); write one row for each line of {of}") from None
    if array.dtype not in (np.float16, np.float32) or array.ndim not in (2, 3):
        raise UserError(
            f"{file}: {array.dtype.name} {list(array.shape)}; write f16 or f32 [items, D] or [items, tokens, D]"
        )
    if len(lines) and lines.max() >= len(array):
        raise UserError(
            f"{file}: has {len(array):,} rows, and row {lines.max():,} is asked for; write one for each line of {of}"
        )
    rows = np.asarray(array[lines])
    if not np.isfinite(rows).all():
        row = int(lines[np.flatnonzero(~np.isfinite(rows).reshape(len(rows), -1).all(axis=1))[0]])
        raise UserError(f"{file} row {row}: NaN or infinity; mend the array")
    return rows if rows.ndim == 3 else rows[:, None, :]
