"""Which rows train, validate and test: in time order, by a column of the rows, or by whole items or users.

Letters: n rows, E items or users.
"""

import hashlib
import math
import re
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data import canonical
from em3_jax.data.readers.files import nearest, read_verbatim, require_values
from em3_jax.data.readers.source import Source

Shares = tuple[float, float, float]
KINDS = {"items": "item", "users": "user", "folds": "item"}
OF_FILES = "part by file"
"""The column that says of which part a file's rows are, where three are given for them."""
NAMES = {
    "train": 0, "0": 0, "valid": 1, "validation": 1, "val": 1, "dev": 1, "1": 1, "test": 2, "2": 2,
}  # fmt: skip
"""How a column may name the parts, in small letters."""


class Whole(NamedTuple):
    """A split in which all rows of an item, or of a user, are of one part.

    The items of the valid and test parts are new to a model: no row and no history of training shows
    them, and histories of all rows hold items of the training part alone. The rows of one user are
    of one part likewise; their histories are the user's own earlier rows.

    Attributes:
      kind: "item" or "user".
      shares: of those in each part, by `of_ids`; None where something else says it.
      column: of the file of the items or users, which says it: by its values `test` and `valid`, see
        `of_folds`, or without them by the names of the parts.
      test, valid: the values of the test and the valid part; "" = the value after that of test.
      folds: so many parts of about one size are drawn by a hash of the id, numbered from 0, of which
        number `test` is test and the one after it valid.
    """

    kind: str
    shares: Shares | None = None
    column: str = ""
    test: str = ""
    valid: str = ""
    folds: int = 0

    def told(self) -> str:
        """The rule in words."""
        if self.shares:
            return f"by {self.kind}s, shares {_written(self.shares)} of them"
        if self.folds:
            after = (int(self.test) + 1) % self.folds
            return f"by {self.kind}s, fold {self.test} of {self.folds} is test, {after} valid, the others train"
        if not self.test:
            return f"by {self.kind}s, as their column {self.column} says"
        valid = self.valid or "the one after it"
        return f"by items, {self.column} {self.test} is test, {valid} valid, the others train"

    def of_each(self, ids: pa.Array | pa.ChunkedArray, seed: int, source: Source | None) -> np.ndarray:
        """[E] u8: the part of each item or user: 0 train, 1 valid, 2 test.

        Args:
          ids: [E] original ids.
          seed: of the draw by ids.
          source: the file of the items or users; None without one.
        """
        if self.shares:
            return of_ids(canonical.texts(ids).to_pylist(), self.shares, seed)
        if self.folds:
            number = np.floor(numbers_of_ids(canonical.texts(ids).to_pylist(), str(seed)) * self.folds)
            after = (number - int(self.test)) % self.folds
            return np.where(after == 0, 2, after == 1).astype(np.uint8)
        option = "folds" if self.test else f"{self.kind}s"
        if source is None:
            raise UserError(
                f"split '{option}:{self.column}': a column of the {self.kind}s; add their file with --{self.kind}s"
            )
        if not self.test:
            return _named(source, self.column)
        return of_folds(source, self.column, self.test, self.valid)


Split = Shares | str | Whole
"""Shares in time order, the column of the rows that says it, or a split by whole items or users."""


def parse(split: str) -> Split:
    """What an option says.

    "0.8,0.1,0.1", "column:<name>", "items:" or "users:" and shares or a column, "folds:<n>[:<test>]",
    "folds:<column>:<test>[,<valid>]", "files".

    Raises:
      UserError: it says something else.
    """
    kind, colon, rest = split.partition(":")
    if split == "files":
        return OF_FILES
    if not colon:
        return _shares(split, split)
    if kind == "column":
        return rest
    if kind not in KINDS:
        hint = nearest(kind, ("column", *KINDS))
        raise UserError(f"split '{split}': no kind of split '{kind}'; {hint}")
    if kind != "folds":
        is_column = "," not in rest and not re.fullmatch(r"[\s\d.eE+-]*", rest)
        return Whole(KINDS[kind], column=rest) if is_column else Whole(KINDS[kind], _shares(rest, split))
    if drawn := re.fullmatch(r"(\d+)(?::(\d+))?", rest):
        return _drawn_folds(split, int(drawn[1]), int(drawn[2] or 0))
    column, _, values = rest.rpartition(":")
    test, comma, valid = (part.strip() for part in values.partition(","))
    if not column or not test or (comma and not valid) or test == valid:
        raise UserError(
            f"split '{split}': write folds:<column of the items>:<value of the test part>, or two values, "
            "of the test and of the valid part, e.g. folds:fold:0,1; or folds:5:0 to draw them"
        )
    return Whole(KINDS[kind], None, column, test, valid)


def _drawn_folds(split: str, folds: int, test: int) -> Whole:
    if folds < 3 or test >= folds:
        raise UserError(f"split '{split}': give 3 folds or more, and of which number, from 0, is test")
    return Whole(KINDS["folds"], test=str(test), folds=folds)


def without_columns(split: str, of: str) -> Shares | Whole:
    """What an option says to a reader of files that have no column for it.

    Args:
      of: what has none, for the message.
    """
    rule = parse(split)
    if isinstance(rule, str) or (isinstance(rule, Whole) and rule.column):
        raise UserError(f"split '{split}': {of} has no such column; give shares, items:..., users:... or folds:5")
    return rule


def held_out(split: str, of: str, own: str) -> Whole | None:
    """The split by whole items or users of a reader whose files are not split by time; "" = none, as `own` has it.

    Args:
      of: what the files are, for messages.
      own: what splits them instead, and may be chosen.
    """
    rule = without_columns(split, of) if split else None
    if rule is not None and not isinstance(rule, Whole):
        raise UserError(
            f"split '{split}': shares in time do not go with {of}; give items:..., users:... or folds:5, or {own}"
        )
    return rule


def is_by_items(split: Split | None) -> bool:
    """Whether whole items are held out, so that histories hold training rows alone."""
    return isinstance(split, Whole) and split.kind == "item"


def of_whole(split: Split | None) -> dict[str, str]:
    """What dataset.json keeps of a split by whole items or users: which are held out."""
    return {"held_out": split.kind} if isinstance(split, Whole) else {}


def told(split: Split) -> str:
    """The rule in words."""
    if isinstance(split, str):
        return "by files" if split == OF_FILES else f"column:{split}"
    return split.told() if isinstance(split, Whole) else f"by time, shares {_written(split)}"


def _written(shares: Shares) -> str:
    return ",".join(f"{share:g}" for share in shares)


def of_ids(ids: list[str], shares: Shares, seed: int) -> np.ndarray:
    """[E] u8 parts drawn by a hash of the seed and the id: they stay as they are when others are added or left out.

    An id is of the first part for which its number, uniform in [0, 1), is below the sum of shares.
    """
    borders = np.cumsum(shares[:2])
    return np.searchsorted(borders, numbers_of_ids(ids, str(seed)), side="right").astype(np.uint8)


def numbers_of_ids(ids: list[str], key: str) -> np.ndarray:
    """[E] f64 a number of each id, uniform in [0, 1): blake2b of the id with the key, of at most 64 bytes."""
    seeded = hashlib.blake2b(digest_size=8, key=key.encode())
    number = np.empty(len(ids))
    for k, one in enumerate(ids):
        drawn = seeded.copy()
        drawn.update(one.encode())
        number[k] = int.from_bytes(drawn.digest(), "big") / 2**64
    return np.minimum(number, np.nextafter(1, 0))


def _named(source: Source, name: str) -> np.ndarray:
    """[E] u8 parts by a column of train, valid and test."""
    read = read_verbatim(source, [name], {name})
    require_values(source, read)
    return parts_named(source, name, canonical.texts(read.column(name)))


def parts_named(source: Source, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """[n] u8 parts from names or numbers of them; refuses others, naming the first.

    Args:
      source, name: the table and the column, for the message.
      column: [n] texts.
    """
    words, codes = canonical.words_and_codes(column)
    known = np.array([NAMES.get(word.as_py().lower(), 255) for word in words], np.uint8)[codes]
    bad = np.flatnonzero(known == 255)
    if len(bad):
        value = column[int(bad[0])]
        raise UserError(f"{source.place(bad[0])}: split '{name}' is '{value}'; write train, valid or test")
    return known


def of_files(part: np.ndarray) -> np.ndarray:
    """[n] u8 parts of rows whose file says them; where none is of valid, the last tenth of train's becomes it."""
    train = np.flatnonzero(part == 0)
    if not (part == 1).any():
        part[train[len(train) - len(train) // 10 :]] = 1
    return part


def of_folds(source: Source, name: str, test: str, valid: str) -> np.ndarray:
    """[E] u8 parts by the column `name` of the items: one value is test, one valid, the others train.

    Args:
      test, valid: the values; without `valid` it is the one after that of test, or the first after the last.
    """
    read = read_verbatim(source, [name], {name})
    require_values(source, read)
    words, codes = canonical.words_and_codes(read.column(name))
    texts = [str(word) for word in canonical.texts(words).to_pylist()]
    values = sorted(set(texts), key=lambda text: (not text.isdigit(), int(text) if text.isdigit() else 0, text))
    for value in (test, valid or test):
        if value not in values:
            raise UserError(f"{source}: no {name} is '{value}'; {nearest(value, values)}")
    if len(values) < 3:
        raise UserError(f"{source}: {name} has {len(values)} values; a fold to train on is left from 3 on")
    valid = valid or values[(values.index(test) + 1) % len(values)]
    part = np.array([{test: 2, valid: 1}.get(text, 0) for text in texts], np.uint8)
    return part[codes]


def _shares(text: str, split: str) -> Shares:
    try:
        train, valid, test = map(float, text.split(","))
    except ValueError:  # also where there are more or fewer than three
        train = valid = test = math.nan
    shares = (train, valid, test)
    if not min(shares) > 0 or not abs(sum(shares) - 1) <= 1e-6:  # NaN is neither
        raise UserError(
            f"split '{split}': give three shares that sum to 1, e.g. 0.8,0.1,0.1, or items:0.7,0.1,0.2, "
            "users:0.8,0.1,0.1, items:<column>, folds:5, folds:<column>:<test>, column:<name> or files"
        )
    return shares
