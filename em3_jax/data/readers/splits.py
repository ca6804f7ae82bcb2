"""Which rows train, validate and test: in time order, by a column of the rows, or by whole items or users.

Letters: n rows, E items or users.
"""

import hashlib
import math
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data import canonical
from em3_jax.data.readers.files import nearest, read_verbatim, require_values
from em3_jax.data.readers.source import Source

Shares = tuple[float, float, float]
KINDS = {"items": "item", "users": "user", "folds": "item"}


class Whole(NamedTuple):
    """A split in which all rows of an item, or of a user, are of one part.

    The items of the valid and test parts are new to a model: no row and no history of training shows
    them, and histories of all rows hold items of the training part alone. The rows of one user are
    of one part likewise; their histories are the user's own earlier rows.

    Attributes:
      kind: "item" or "user".
      shares: of those in each part, by `of_ids`; None where a column says it.
      column: of the items' file, by whose values they are split, see `of_folds`.
      test, valid: the values of the test and the valid part; "" = the value after that of test.
    """

    kind: str
    shares: Shares | None
    column: str = ""
    test: str = ""
    valid: str = ""

    def told(self) -> str:
        """The rule in words."""
        if self.shares:
            return f"by {self.kind}s, shares {_written(self.shares)} of them"
        valid = self.valid or "the one after it"
        return f"by items, {self.column} {self.test} is test, {valid} valid, the others train"

    def of_each(self, ids: pa.Array | pa.ChunkedArray, seed: int, source: Source | None) -> np.ndarray:
        """[E] u8: the part of each item or user: 0 train, 1 valid, 2 test.

        Args:
          ids: [E] original ids.
          seed: of the draw by ids.
          source: the file of the items; None without one.
        """
        if self.shares:
            return of_ids(canonical.texts(ids).to_pylist(), self.shares, seed)
        if source is None:
            raise UserError(f"split 'folds:{self.column}': a column of the items; add their file with --items")
        return of_folds(source, self.column, self.test, self.valid)


Split = Shares | str | Whole
"""Shares in time order, the column of the rows that says it, or a split by whole items or users."""


def parse(split: str) -> Split:
    """What an option says: "0.8,0.1,0.1", "column:<name>", "items:" or "users:" and shares, "folds:<column>:<test>[,<valid>]".

    Raises:
      UserError: it says something else.
    """
    kind, colon, rest = split.partition(":")
    if not colon:
        return _shares(split, split)
    if kind == "column":
        return rest
    if kind not in KINDS:
        hint = nearest(kind, ("column", *KINDS))
        raise UserError(f"split '{split}': no kind of split '{kind}'; {hint}")
    if kind != "folds":
        return Whole(KINDS[kind], _shares(rest, split))
    column, _, values = rest.rpartition(":")
    test, comma, valid = (part.strip() for part in values.partition(","))
    if not column or not test or (comma and not valid) or test == valid:
        raise UserError(
            f"split '{split}': write folds:<column of the items>:<value of the test part>, or two values, "
            "of the test and of the valid part, e.g. folds:fold:0,1"
        )
    return Whole(KINDS[kind], None, column, test, valid)


def told(split: Split) -> str:
    """The rule in words."""
    if isinstance(split, str):
        return f"column:{split}"
    return split.told() if isinstance(split, Whole) else f"by time, shares {_written(split)}"


def _written(shares: Shares) -> str:
    return ",".join(f"{share:g}" for share in shares)


def of_ids(ids: list[str], shares: Shares, seed: int) -> np.ndarray:
    """[E] u8 parts drawn by a hash of the seed and the id: they stay as they are when others are added or left out.

    An id is of the first part for which its number, uniform in [0, 1), is below the sum of shares.
    """
    number = numbers_of_ids(ids, str(seed))
    return np.searchsorted(np.cumsum(shares[:2]), number, side="right").astype(np.uint8)


def numbers_of_ids(ids: list[str], key: str) -> np.ndarray:
    """[E] f64 uniform in [0, 1), a pure function of the key (64 bytes at most) and each id."""
    seeded = hashlib.blake2b(digest_size=8, key=key.encode())
    number = np.empty(len(ids))
    for k, one in enumerate(ids):
        drawn = seeded.copy()
        drawn.update(one.encode())
        number[k] = int.from_bytes(drawn.digest(), "big") / 2**64
    return number


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
            "users:0.8,0.1,0.1, folds:<column>:<test> or column:<name>"
        )
    return shares
