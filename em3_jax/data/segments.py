"""Which of a user's past events an example reads: the last ones, and besides the last of a kind, or the last like the candidate.

A long history costs an example two binary searches, however long it is: all events stand in one sorted array, by
user, by what is sought of them, and by time. SIM (Pi et al., Search-based User Interest Modeling, CIKM 2020, section
3.1) seeks the events of the candidate's category so ("hard search"); with codes of content as the item field (`em3
codes`) it seeks those of like content. Its soft search, by cosines, is in `soft_search`. Letters: B examples, E events, K slots.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import FIRST_KNOWN, columns
from em3_jax.core.segments import LAST, SIMILAR, Segment
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.data.soft_search import SoftSearch, check_sets, content_vectors

SOUGHT = "sought_item"
"""Column of interactions of the item by which events are sought, where that is not the candidate."""


class Found(NamedTuple):
    """Events of a segment: [B, K] i64 places among the events, oldest first; [B, K] bool whether there is one."""

    place: np.ndarray
    mask: np.ndarray


def segments(
    dataset: Dataset,
    length: int,
    by: str,
    lengths: dict[str, int],
    similar: str,
    similar_length: int,
    within: int,
    content: tuple[str, ...] = (),
) -> "Segments":
    """The segments of config.data, that of the last events at the end.

    Args:
      length: T, of the last events.
      by, lengths: event field, and value -> K of the histories of its own events.
      similar, similar_length, within: item field of those like the candidate, K, and of how many; "" = there are none.
      content: feature sets by which the similar ones are those of the largest cosine, in the place of a field.

    Raises:
      UserError: a field or a value is none, or K is more than the events that it is of.
    """
    if similar and content:
        raise UserError("config.data.similar_by, similar_content: each says what similar events are; choose one")
    result: list[Segment] = []
    known = {field.name: field for field in dataset.stored_event_fields}
    if lengths and by not in known:
        hint = nearest(by, known) if known else "the dataset has no event fields"
        raise UserError(f"config.data.histories_by={by or 'none'}: names no event field; {hint}")
    if by and not lengths:
        raise UserError(f"config.data.histories_by={by}: says of which values in config.data.histories, e.g. buy=20")
    words = dataset.meta["vocabularies"].get("event", {}).get(by, [])
    for word, slots in lengths.items():
        if word not in words:
            raise UserError(f"config.data.histories.{word}: no value of event field '{by}'; {nearest(word, words)}")
        result.append(Segment(f"of_{word}", slots, event_field=by, value=FIRST_KNOWN + words.index(word)))
    if similar:
        fields = {field.name: field for field in dataset.fields.item[1:]}
        if similar not in fields:
            raise UserError(f"config.data.similar_by={similar}: names no item field; {nearest(similar, fields)}")
        if fields[similar].length > 1:
            raise UserError(f"config.data.similar_by={similar}: has several values an item; name a field of one")
        result.append(Segment(SIMILAR, similar_length, item_field=similar, within=within))
    if content:
        if twice := [name for k, name in enumerate(content) if name in content[:k]]:
            raise UserError(f"config.data.similar_content: '{twice[0]}' is named twice; name it once")
        result.append(Segment(SIMILAR, similar_length, content=tuple(content), within=within))
    if (similar or content) and within and similar_length > within:
        raise UserError(
            f"config.data.similar_length={similar_length}: is more than config.data.similar_within={within}, of which "
            "they are; choose less"
        )
    return Segments((*result, Segment(LAST, length)), [dataset.features(name) for name in content])


class Segments:
    """The segments of a run's histories, and the indexes that find their events.

    Args:
      parts: in the order of the slots.
      sets: feature sets by which some are sought.
    """

    def __init__(self, parts: tuple[Segment, ...], sets: Sequence[FeatureSet] = ()):
        self.parts, self.sets = parts, tuple(sets)
        check_sets(self.sets)
        self._events: dict[str, np.ndarray] | None = None
        self._indexes: dict[tuple[str, str], Sought | SoftSearch] = {}

    @property
    def slots(self) -> int:
        """Of all segments."""
        return sum(part.length for part in self.parts)

    @functools.cached_property
    def vectors(self) -> np.ndarray:
        """[I + 1, E] what the content of items is compared by."""
        return content_vectors(self.sets)

    def indexes(self, dataset: Dataset) -> "dict[tuple[str, str], Sought | SoftSearch]":
        """`Segment.seeks` -> index of a dataset's events; of the same events as the last time the same ones."""
        if dataset.events is not self._events:
            wanted = dict.fromkeys(part.seeks for part in self.parts if any(part.seeks))
            digest = " ".join(f"{one.name} {one.manifest['hash']}" for one in self.sets)
            self._indexes = {
                (kind, field): Sought(dataset, kind, field)
                if kind != "content"
                else SoftSearch(dataset, lambda: self.vectors, digest)
                for kind, field in wanted
            }
            self._events = dataset.events
        return self._indexes


class Sought:
    """The events of a dataset by what segments seek of them.

    Args:
      dataset: whose events and whose ranges of them.
      kind, field: see `Segment.seeks`.
    """

    def __init__(self, dataset: Dataset, kind: str, field: str):
        self._events = len(dataset.events["item"])
        self._first = _runs(dataset)
        if kind == "event":
            keys = np.asarray(dataset.events[f"field_{field}"])
            self._of_item, self._keys = None, int(keys.max(initial=0)) + 1
        else:
            self._of_item = keys_of_items(dataset, field)
            keys = self._of_item[np.asarray(dataset.events["item"])]
            self._keys = int(self._of_item.max(initial=0)) + 1
        place = np.arange(self._events)
        pairs, number = np.unique(self._run(place) * self._keys + keys, return_inverse=True)
        self._pairs = pairs  # [P] user and key
        self._sorted = number * (self._events + 1) + place
        self._sorted.sort()

    def _run(self, place: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, place, side="right") - 1

    def __call__(self, segment: Segment, item: np.ndarray, start: np.ndarray, end: np.ndarray) -> Found:
        """The last events that a segment seeks.

        Args:
          segment: by the index's field.
          item: [B] the candidates.
          start, end: [B] i64 ranges of the examples' histories.
        """
        low = np.maximum(start, end - segment.within) if segment.within else start
        if not self._events:
            return Found(np.zeros((len(item), segment.length), np.int64), np.zeros((len(item), segment.length), bool))
        key = np.full(len(item), segment.value) if self._of_item is None else self._of_item[item]
        pair = self._run(start) * self._keys + key
        number = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        there = (self._pairs[number] == pair) & (key >= FIRST_KNOWN)
        group = number * (self._events + 1)
        first, last = np.searchsorted(self._sorted, group + low), np.searchsorted(self._sorted, group + end)
        at = last[:, None] + np.arange(-segment.length, 0)
        mask = (at >= first[:, None]) & there[:, None]
        index = self._sorted[np.maximum(at, 0)] % (self._events + 1)
        return Found(np.where(mask, index, 0), mask)


def keys_of_items(dataset: Dataset, field: str) -> np.ndarray:
    """[I + 1] i32 ids of an item field of one value; the last is of an item of which nothing is known."""
    column = columns(dataset.fields.item)[field].start
    return np.append(dataset.item_field_ids[:, column], 0).astype(np.int32)


def _runs(dataset: Dataset) -> np.ndarray:
    """[R] i64 ascending: where the events begin of which ranges of histories share some."""
    start, end = (np.asarray(dataset.interactions[f"history_{name}"]) for name in ("start", "end"))
    some = end > start
    first = np.unique(start[some])
    if not len(first):
        return np.zeros(1, np.int64)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, np.searchsorted(first, start[some]), end[some])
    until = np.concatenate([[0], np.maximum.accumulate(last)[:-1]])
    return np.union1d(first[first >= until], [0])
