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
      within: of the last so many events alone; 0 = of all.
    """

    name: str
    length: int
    event_field: str = ""
    value: int = 0
    item_field: str = ""
    within: int = 0

    @property
    def seeks(self) -> tuple[str, str]:
        """(kind, field) of the index that finds its events; empty ones of the last events."""
        found = [("event", self.event_field), ("item", self.item_field)]
        return next((one for one in found if one[1]), ("", ""))

    @property
    def is_of_candidate(self) -> bool:
        """Whether candidates of one user have different events in it."""
        return bool(self.item_field)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Segment":
        return cls(**facts)


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
    """

    def __init__(self, parts: Sequence[Segment], keys: Mapping[str, np.ndarray]):
        self.parts, self._keys = tuple(parts), keys

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
        place = np.arange(len(item))
        if part.event_field:
            place = np.flatnonzero(fields.get(part.event_field, np.zeros(len(item))) == part.value)
        return np.repeat(right_aligned([place], part.length), len(candidate), axis=0)
