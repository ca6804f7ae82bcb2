"""Which rows of a streamed log train, validate and test: by shares in time, whole items or users, a column, or files."""

from typing import NamedTuple

import numpy as np

from em3_jax.data.readers.files import place
from em3_jax.data.readers.log_engine import PLACE, LogEngine, UnsuitedError, Words, name_of
from em3_jax.data.readers.splits import NAMES, OF_FILES, Shares, Split, Whole, is_by_items
from em3_jax.data.readers.table_match import Ends

SPLIT = "split of"
"""The relation (key, number) of a column that says the split, or of the ids of items or users that do."""


class Parts(NamedTuple):
    """How rows are split.

    Attributes:
      borders: [3] i64 where the splits end, of all rows in the order of time; None where ids or a column say it.
      of_training: training rows alone enter histories.
      column: of the log, whose values have their split in the relation `SPLIT`; "" = none.
      valid_from: the place from which training rows are valid ones, see `splits.of_files`; None = nowhere.
    """

    borders: np.ndarray | None
    of_training: bool
    column: str
    valid_from: int | None = None

    def of_rows(self, batch: dict[str, np.ndarray], done: int) -> np.ndarray:
        """[m] u8 of the rows of a batch that come after so many others."""
        if self.borders is None:
            return batch["split"]
        rows = done + np.arange(len(batch["user"]))
        return np.minimum(np.searchsorted(self.borders, rows, side="right"), 2)

    @property
    def number(self) -> str:
        """The split of a row, in SQL, where a column says it."""
        own = f"{name_of(SPLIT)}.number"
        if self.valid_from is None:
            return own
        return f"CASE WHEN {own} = 0 AND log.{name_of(PLACE)} >= {self.valid_from} THEN 1 ELSE {own} END"

    @property
    def join(self) -> str:
        """What gives rows the relation `SPLIT`, in SQL."""
        of = name_of(SPLIT)
        return f"JOIN {of} ON log.{name_of(self.column)} = {of}.key" if self.column else ""


def parts_of(
    engine: LogEngine, rule: Split, rows: int, seed: int, ends: Ends, words: dict[str, Words],
    numbers: dict[str, np.ndarray], columns: dict[str, str],
) -> Parts:  # fmt: skip
    """How a log is split by a rule.

    Args:
      rows: that are kept.
      seed: of splits that are drawn by ids.
      words, numbers: "item" and "user" -> the ids of the log, and their rows.
      columns: "item" and "user" -> the log's columns of them.
    """
    if isinstance(rule, Whole):
        part, source = (ends.item_part, ends.items) if rule.kind == "item" else (ends.user_part, ends.users)
        of_each = rule.of_each(part.table.column("id"), seed, source)
        number = numbers[rule.kind]
        engine.keep(SPLIT, words[rule.kind], np.where(number < 0, 0, of_each[number]).astype(np.int32))
        return Parts(None, is_by_items(rule), columns[rule.kind])
    if isinstance(rule, str):
        found = engine.words(rule)
        if found.form.null_count:
            raise UnsuitedError(f"{engine.source}: column '{rule}' is empty in some rows; fill it in or drop them")
        codes = _named(engine, rule, found)
        engine.keep(SPLIT, found, codes)
        train = int(found.rows[codes == 0].sum())  # which come first where files say it
        of_two = rule == OF_FILES and not (codes == 1).any()
        return Parts(None, False, rule, train - train // 10 if of_two else None)
    return Parts(borders(rule, rows), False, "")


def borders(shares: Shares, rows: int) -> np.ndarray:
    """[3] i64: where the splits of so many rows in the order of time end."""
    return np.rint(np.cumsum(shares) * rows).astype(np.int64)


def _named(engine: LogEngine, rule: str, found: Words) -> np.ndarray:
    """[m] i32 the split that each value of a column names."""
    codes = np.array([NAMES.get(form.as_py().lower(), -1) for form in found.form], np.int32)
    if (codes < 0).any():
        bad = int(np.argmin(codes))
        raise UnsuitedError(
            f"{place(engine.source, int(found.first[bad]))}: split '{rule}' is '{found.form[bad]}'; write train, valid or test"
        )
    return codes
