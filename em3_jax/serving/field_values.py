"""Field values as requests give them -> ids, by their canonical form, or numbers; what is not known is counted.

Letters: n values.
"""

import decimal
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, UNKNOWN
from em3_jax.core.numbers import as_values
from em3_jax.core.ranges import Ranges
from em3_jax.core.values import canonical

LONGEST_ECHO = 100  # characters of a request that are repeated when it is refused
_NOT_KNOWN = -1
_NUMBERS = (int, float, decimal.Decimal, np.number)
_PADDED = re.compile(r"-?(?:0|[1-9]\d*)\.\d*0", re.ASCII)


def _padded_numbers(written: dict[str, int]) -> dict[str, int]:
    """Canonical form of a number -> the id of the one value that writes it with zeros at its end, as 4.50.

    As texts these are names, 1.10 another one than 1.1; but a number has no other way to name them.
    """
    found: dict[str, list[int]] = {}
    for text, id_ in written.items():
        if _PADDED.fullmatch(text):
            form = canonical(decimal.Decimal(text))
            assert form is not None  # a number that is written out has a text
            found.setdefault(form, []).append(id_)
    return {form: ids[0] for form, ids in found.items() if len(ids) == 1}


class Unknown:
    """Counts the values and ids of one request that the store does not know.

    Args:
      strict: refuse the first one instead.

    Attributes:
      counts: what it stands for in the request -> how many, such as {"history_fields.rating": 3}.
    """

    def __init__(self, strict: bool):
        self._strict = strict
        self.counts: dict[str, int] = {}

    def add(self, name: str, values: Sequence | np.ndarray, known: np.ndarray) -> None:
        """Counts those of the values [n] that are not `known` [n] bool.

        Raises:
          UserError: there is one, and the request is strict.
        """
        missed = np.flatnonzero(~known)
        if not len(missed):
            return
        if self._strict:
            value = str(values[missed[0]])[:LONGEST_ECHO]
            raise UserError(f"{name}: '{value}' is not known, which a strict request refuses")
        self.counts[name] = self.counts.get(name, 0) + len(missed)


class FieldValues:
    """The ids of one field's values.

    Args:
      what: the field, for messages.
      values: its vocabulary, of the ids 2, 3, ...; empty where the dataset has none.
      size: number of its ids.
      ranges: of a field of numbers, where they are cut.
    """

    def __init__(self, what: str, values: Sequence, size: int, ranges: Ranges | None = None):
        self._what, self._size, self._ranges = what, size, ranges
        written = {str(value): FIRST_KNOWN + k for k, value in enumerate(values)}
        forms = {
            form: FIRST_KNOWN + k
            for k, value in reversed([*enumerate(values)])
            if (form := canonical(value)) is not None
        }
        self._ids = forms | written  # both: datasets prepared before values had one form say 5.0
        self._of_numbers = _padded_numbers(written)

    def ids(self, values: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """([n] i64 ids, [n] bool whether the value is known, or said to be missing).

        Missing values (None, NaN, the empty text) have the id `UNKNOWN`, as in training.

        Raises:
          UserError: a list or an object; or, of a field without a vocabulary, none of its ids.
        """
        values = _single(self._what, values)
        ids = np.array([*map(self._id if self._ids else self._own_id, values)], np.int64)
        known = ids != _NOT_KNOWN
        return np.where(known, ids, UNKNOWN), known

    def _id(self, value: Any) -> int:
        if isinstance(value, str) and value in self._ids:
            return self._ids[value]
        form = canonical(value)
        if self._ranges is not None:
            return self._of_number(form)
        if form is None:
            return UNKNOWN
        known = self._ids.get(form, _NOT_KNOWN)
        if known == _NOT_KNOWN and isinstance(value, _NUMBERS) and not isinstance(value, bool):
            return self._of_numbers.get(form, _NOT_KNOWN)
        return known

    def _of_number(self, form: str | None) -> int:
        """The id of a number, as text; None = it is missing."""
        assert self._ranges is not None
        number = _as_number(form)
        return _NOT_KNOWN if number is None else int(self._ranges.ids([number])[0])

    def _own_id(self, value: Any) -> int:
        form = canonical(value)
        if form is None:
            return UNKNOWN
        if not form.isdecimal() or len(form) > 18 or not int(form) < self._size:
            last = self._size - 1
            ids = f"its ids, integers from 0 to {last}"
            raise UserError(f"{self._what}: has no vocabulary; give {ids}")
        return int(form)


class NumberValues:
    """The values of a number that the model reads as a value.

    Args:
      what: the number, for messages.
    """

    def __init__(self, what: str):
        self._what = what

    def values(self, values: Sequence) -> tuple[np.ndarray, np.ndarray]:
        """([n] f32 numbers, [n] bool whether the value is one, or said to be missing).

        Missing values (None, NaN, the empty text) are NaN, as in training, and so are those that are no numbers.

        Raises:
          UserError: a list or an object.
        """
        found = [_as_number(canonical(value)) for value in _single(self._what, values)]
        known = np.array([number is not None and not np.isinf(number) for number in found], bool)
        numbers = [number if is_known else np.nan for number, is_known in zip(found, known, strict=True)]
        return as_values(numbers), known


def _single(what: str, values: Sequence) -> list[Any]:
    """The values; refuses one that is several."""
    values = list(values)
    if any(isinstance(value, list | tuple | dict | np.ndarray) for value in values):
        raise UserError(f"{what}: takes texts or numbers, not lists or objects")
    return values


def _as_number(form: str | None) -> float | None:
    """The number that a value's canonical form says, NaN = it is missing; None = it says none."""
    try:
        return np.nan if form is None else float(form)
    except ValueError:
        return None
