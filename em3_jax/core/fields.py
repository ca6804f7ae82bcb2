"""Categorical fields and where their rows lie in the one embedding table.

All fields share one table, so a step makes one lookup and one update. Row 0 is the padding row of every field; field k
owns the rows from its offset on, its id 1 (unknown) first. A field of `size` ids (0 = padding, 1 = unknown, 2.. = known)
takes size - 1 rows.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np

PADDING, UNKNOWN, FIRST_KNOWN = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class Field:
    """A categorical field.

    Attributes:
      name: column name.
      size: number of ids, counting 0 = padding and 1 = unknown.
      length: values per record; 1 for a plain field, more for a multi-valued one (padded with 0).
    """

    name: str
    size: int
    length: int = 1


@dataclasses.dataclass(frozen=True)
class Fields:
    """The fields of a dataset, by what they describe.

    Attributes:
      user: fields of the user; the first is the user id itself.
      item: fields of the item; the first is the item id itself.
      context: fields of the impression (hour, slot, ...).
      event: fields of a history event (rating, ...); small vocabularies, wholly present in each batch.
    """

    user: tuple[Field, ...]
    item: tuple[Field, ...]
    context: tuple[Field, ...] = ()
    event: tuple[Field, ...] = ()

    def groups(self) -> Iterator[tuple[str, tuple[Field, ...]]]:
        for group in ("user", "item", "context", "event"):
            yield group, getattr(self, group)

    def offsets(self) -> dict[str, dict[str, int]]:
        """group -> field name -> first row (that of the field's unknown id)."""
        result: dict[str, dict[str, int]] = {}
        row = 1
        for group, fields in self.groups():
            result[group] = {}
            for field in fields:
                result[group][field.name] = row
                row += field.size - 1
        return result

    @property
    def num_rows(self) -> int:
        """Rows of the embedding table, the padding row included."""
        return 1 + sum(field.size - 1 for _, fields in self.groups() for field in fields)


def columns(fields: tuple[Field, ...]) -> dict[str, slice]:
    """Field name -> its columns in a [*, C] block that lays the fields' values side by side."""
    result, start = {}, 0
    for field in fields:
        result[field.name] = slice(start, start + field.length)
        start += field.length
    return result


def to_rows(ids: np.ndarray, offset: int) -> np.ndarray:
    """Table rows of a field's ids (any shape, int): padding stays row 0, id i >= 1 is row offset + i - 1."""
    return np.where(ids == PADDING, 0, ids + (offset - 1)).astype(np.int32)
