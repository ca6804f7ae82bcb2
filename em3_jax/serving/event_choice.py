"""Which events of a request's history the compiled programs read, for which of its candidates.

Letters: b candidates of a request, n events, P events that a program takes, K slots of a candidate.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.segments import NO_EVENT, Chooser, Segment
from em3_jax.serving.store import Version

Ids = Mapping[str, np.ndarray]  # field name -> [n] i64
MOST = 4096
"""P at most, but for what one candidate's slots hold."""


class Piece(NamedTuple):
    """Candidates that one call of a program scores.

    Attributes:
      of: which of the request's.
      event: [m] i64 places of the events that are read, ascending; m at most P.
      slot: [b, K] i64 places among these, `NO_EVENT` = none; None where all candidates read the same.
    """

    of: slice
    event: np.ndarray
    slot: np.ndarray | None


class LastEvents:
    """The last events alone, for all candidates.

    Args:
      length: T.
      largest: most candidates of a program.
    """

    slots = 0

    def __init__(self, length: int, largest: int):
        self._length, self._largest = length, largest

    def length(self, size: int) -> int:
        """P of the program for `size` candidates."""
        return self._length

    def of_all(self, number: int) -> np.ndarray:
        """[m] i64 places of the events that all candidates read, of so many."""
        return np.arange(max(number - self._length, 0), number)

    def __call__(self, item: np.ndarray, fields: Ids, candidate: np.ndarray) -> Iterator[Piece]:
        """The pieces of a request, see `Chooser`."""
        event = self.of_all(len(item))
        for start in range(0, len(candidate), self._largest):
            yield Piece(slice(start, start + self._largest), event, None)


class SeveralHistories:
    """What each candidate's slots hold, as in training.

    Args:
      version: the opened version.
      largest: most candidates of a program.

    Attributes:
      slots: K.
    """

    def __init__(self, version: Version, largest: int):
        facts = version.manifest["serving"]
        parts = [Segment.from_json(one) for one in facts["segments"]]
        keys = {part.item_field: version[f"item_key.{part.item_field}"] for part in parts if part.item_field}
        vectors = version["content_vectors"] if any(part.content for part in parts) else None
        self._choose, self._largest = Chooser(parts, keys, vectors), largest
        self._parts = parts
        self.slots: int = sum(part.length for part in parts)

    def length(self, size: int) -> int:
        """P of the program for `size` candidates."""
        return events_of(self._parts, size)

    def of_all(self, number: int) -> np.ndarray:
        """[0] i64: which events are read depends on the candidate."""
        return np.zeros(0, np.int64)

    def __call__(self, item: np.ndarray, fields: Ids, candidate: np.ndarray) -> Iterator[Piece]:
        """The pieces of a request: of candidates whose slots hold together more than P events there are several."""
        for start in range(0, len(candidate), self._largest):
            of = slice(start, min(start + self._largest, len(candidate)))
            yield from self._cut(of.start, self._choose(item, fields, candidate[of]))

    def _cut(self, start: int, slot: np.ndarray) -> Iterator[Piece]:
        event = np.unique(slot[slot != NO_EVENT])
        if len(slot) > 1 and len(event) > self.length(len(slot)):
            half = len(slot) // 2
            yield from self._cut(start, slot[:half])
            yield from self._cut(start + half, slot[half:])
            return
        place = np.where(slot == NO_EVENT, NO_EVENT, np.searchsorted(event, slot))
        yield Piece(slice(start, start + len(slot)), event, place)


def seconds_since(
    time: Any, history_times: Sequence | np.ndarray | None, number: int, facts: Mapping[str, Any]
) -> np.ndarray:
    """[h] f64 seconds since the events of a request.

    Args:
      time, history_times: of the request and of its events, see `Model.score`.
      number: h.
      facts: of the version: "time_unit", "seconds_per_tick".

    Raises:
      UserError: they are not there, or no whole numbers.
    """
    given = [] if history_times is None else history_times
    if time is None or len(given) != number:
        raise UserError(
            "time, history_times: the model reads how long ago events were; give the time of the request, and as "
            f"many as there are events ({number}), not {len(given)}, as whole numbers of {facts['time_unit']}"
        )
    try:
        moments = np.array([int(one) for one in (time, *given)], np.int64)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"time, history_times: give whole numbers of {facts['time_unit']}") from None
    return (moments[0] - moments[1:]) * facts["seconds_per_tick"]


def events_of(parts: Sequence[Segment], size: int) -> int:
    """P of a program for `size` candidates: all that their slots may hold, or `MOST`."""
    shared = sum(part.length for part in parts if not part.is_of_candidate)
    own = 0
    for part in parts:
        if part.is_of_candidate:
            every = part.length * size
            own += min(part.within, every) if part.within else every
    return min(shared + own, max(MOST, sum(part.length for part in parts)))
