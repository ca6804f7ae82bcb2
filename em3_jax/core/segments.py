"""The parts of an example's history, and the choice of one user's events for each candidate, as services make it.

Training finds the same events by indexes of a whole log (`data.segments`). Letters: b candidates, n events, K slots.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from em3_jax.core.fields import FIRST_KNOWN

LAST = "last"
SIMILAR = "similar"
NO_EVENT = -1


@dataclasses.dataclass(frozen=True)
class Segment:
    """A part of the slots of an example's history.

    Attributes:
      name: of what it holds.
      length: K.
      event_field, value: events whose field has this id; "" = of all.
      item_field: events whose item has the candidate's value of this field; "" = of all.
      content: events whose items' content is most like the candidate's, by these feature sets; () = of all.
      within: of the last so many events alone; 0 = of all.
    """

    name: str
    length: int
    event_field: str = ""
    value: int = 0
    item_field: str = ""
    content: tuple[str, ...] = ()
    within: int = 0

    @property
    def seeks(self) -> tuple[str, str]:
        """(kind, field) of the index that finds its events; empty ones of the last events."""
        found = [("event", self.event_field), ("item", self.item_field), ("content", ",".join(self.content))]
        return next((one for one in found if one[1]), ("", ""))

    @property
    def is_of_candidate(self) -> bool:
        """Whether candidates of one user have different events in it."""
        return bool(self.item_field or self.content)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Segment":
        return cls(**{**facts, "content": tuple(facts["content"])})


def most_similar(cosine: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """([r, K] i64 columns of the K largest of each row, ascending at the end; [r, K] bool whether there is one).

    Of equal ones the last columns, which are the newest events, are taken.

    Args:
      cosine: [r, n] f32, -inf where there is nothing to take.
      length: K.
    """
    rows, number = cosine.shape
    least = np.full(rows, np.finfo(np.float32).min)
    if number > length:
        least = np.maximum(least, np.partition(cosine, number - length, axis=1)[:, number - length])
    row, column = np.divmod(np.flatnonzero(cosine >= least[:, None]), number)
    is_tie = cosine[row, column] == least[row]
    surplus = np.maximum(np.bincount(row, minlength=rows) - length, 0)
    before = np.cumsum(is_tie) - is_tie  # ties before each, those of earlier rows as well
    first = np.searchsorted(row, np.arange(rows))
    rank = before - np.append(before, 0)[first][row]
    kept = ~is_tie | (rank >= surplus[row])
    row, column = row[kept], column[kept]
    end = np.cumsum(np.bincount(row, minlength=rows))
    slot = length - (end[row] - np.arange(len(row)))
    place, mask = np.zeros((rows, length), np.int64), np.zeros((rows, length), bool)
    place[row, slot], mask[row, slot] = column, True
    return place, mask


def right_aligned(places: Sequence[np.ndarray], length: int) -> np.ndarray:
    """[b, K] i64: the last K of each row's ascending places, newest last; `NO_EVENT` where there are fewer."""
    result = np.full((len(places), length), NO_EVENT)
    for row, found in zip(result, places, strict=True):
        if kept := min(len(found), length):
            row[length - kept :] = found[-kept:]
    return result


class Chooser:
    """Chooses what the slots hold of one user's events.

    Args:
      parts: of the history, in the order of the slots.
      keys: item field -> [I + 1] ids of all items, the last of one of which nothing is known.
      vectors: [I + 1, E] what the content of items is compared by, of length 1, or 0 without any.
    """

    def __init__(self, parts: Sequence[Segment], keys: Mapping[str, np.ndarray], vectors: np.ndarray | None = None):
        self.parts, self._keys, self._vectors = tuple(parts), keys, vectors

    def __call__(self, item: np.ndarray, fields: Mapping[str, np.ndarray], candidate: np.ndarray) -> np.ndarray:
        """[b, slots] i64 places among the events, `NO_EVENT` where a slot is empty.

        Args:
          item: [n] rows of the events' items, oldest first.
          fields: event field -> [n] ids of them; of a field that is not named nothing is known.
          candidate: [b] rows of items; -1 = not known.
        """
        found = [self._of(part, item, fields, candidate) for part in self.parts]
        return np.concatenate(found, axis=1)

    def _of(self, part: Segment, item: np.ndarray, fields: Mapping[str, np.ndarray], candidate: np.ndarray):
        if part.item_field:
            keys = self._keys[part.item_field]
            first = max(len(item) - part.within, 0) if part.within else 0
            of_event = keys[item[first:]]
            wanted, number = np.unique(keys[candidate], return_inverse=True)
            none = np.zeros(0, np.int64)
            each = [first + np.flatnonzero(of_event == key) if key >= FIRST_KNOWN else none for key in wanted]
            return right_aligned(each, part.length)[number]
        if part.content:
            return self._alike(part, item, candidate)
        place = np.arange(len(item))
        if part.event_field:
            place = np.flatnonzero(fields.get(part.event_field, np.zeros(len(item))) == part.value)
        return np.repeat(right_aligned([place], part.length), len(candidate), axis=0)

    def _alike(self, part: Segment, item: np.ndarray, candidate: np.ndarray) -> np.ndarray:
        assert self._vectors is not None  # or nothing is sought by content
        first = max(len(item) - part.within, 0) if part.within else 0
        place, mask = by_content(self._vectors, candidate, item[first:], part.length)
        return np.where(mask, first + place, NO_EVENT)


def by_content(
    vectors: np.ndarray, candidate: np.ndarray, item: np.ndarray, length: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(places [b, K] i64 of the events whose items are most like each candidate, [b, K] bool whether there is one).

    A product of matrices over the distinct items: an item that occurs twice has the same cosine twice.

    Args:
      vectors: [I + 1, E] of length 1, or 0 of items without content, which are like nothing.
      candidate: [b] rows of them.
      item: [n] rows of the events' items, oldest first.
      length: K.
      allowed: [b, n] bool the events that each candidate may read; None = all.
    """
    distinct, number = np.unique(item, return_inverse=True)
    of_items = vectors[distinct].astype(np.float32, copy=False)
    wanted = vectors[candidate].astype(np.float32, copy=False)
    cosine = wanted @ of_items.T
    cosine[:, ~of_items.any(axis=1)] = -np.inf
    cosine[~wanted.any(axis=1)] = -np.inf
    cosine = np.take(cosine, number, axis=1)
    if allowed is not None:
        cosine[~allowed] = -np.inf
    return most_similar(cosine, length)
