"""One version of a store, ready to be asked: embeddings, click probabilities, similar items.

No training code is imported. Ids and values may be of any type: 5, 5.0 and "5" are the same.

Letters: I items, n ids asked for, b candidates, T history, D width.
"""

import functools
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from em3_jax.core import event_features, npy
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.event_features import RECENCY
from em3_jax.core.fields import PADDING, UNKNOWN
from em3_jax.core.ranges import Ranges
from em3_jax.core.segments import NO_EVENT
from em3_jax.core.values import canonical
from em3_jax.serving import vectors
from em3_jax.serving.event_choice import LastEvents, SeveralHistories, seconds_since
from em3_jax.serving.field_values import LONGEST_ECHO, FieldValues, NumberValues, Unknown
from em3_jax.serving.id_index import IdIndex
from em3_jax.serving.neighbours import Neighbours
from em3_jax.serving.programs import Programs
from em3_jax.serving.scores import Lookup, Meaning, Scores
from em3_jax.serving.user_cache import Past, UserCache, key_of
from em3_jax.serving.version import Version

CONTENT = "content"
WORDS = {"context": "context", "event": "history"}  # what a group's fields are called in messages
PLACES = {"context": "context", "event": "history_fields"}  # and where they stand in a request
USERS = 1000  # whose sides of requests are kept
Ids = dict[str, np.ndarray]  # field name -> [n] i64; of a number that is read as a value f32


class Asked(NamedTuple):
    """What a compiled program was asked: see `core.batch.REQUEST`, and how many of its candidates are the request's."""

    request: dict[str, Any]
    candidates: int


class Model:
    """One version of a store, ready to be asked; all calls may come from several threads.

    Args:
      version: the opened version.
      sizes: numbers of candidates (`programs`) whose programs are compiled and run at once, None =
        all; the others are tried without XLA, and compiled on demand.
      strict: refuse ids and values that the store does not know, where a call does not say.
      like: the model of another version, whose programs are taken over where they are the same.
      users: how many users' sides of requests are kept, see `user_cache`.

    Attributes:
      user_cache: of these.
      name, checksum: of the version.
      manifest: see `store.publish`.

    Raises:
      ProgramError: its programs do not run here.

    >>> from em3_jax.serving import Service
    >>> with Service("store") as service:
    ...     model = service.model  # whoever holds it keeps this version, whole
    >>> model.name, [len(model.score(user=3, history=[], candidates=[4, 5]).probability)]
    ('0000001', [2])
    """

    def __init__(
        self,
        version: Version,
        sizes: Sequence[int] | None = (),
        *,
        strict: bool = False,
        like: "Model | None" = None,
        users: int = USERS,
    ):
        self.user_cache = UserCache(users)
        self.version, self.manifest, self.name = version, version.manifest, version.name
        self.checksum = version.checksum
        facts = self.manifest["serving"]
        self.history_length: int = facts["history_length"]
        self._fields = facts["fields"]
        self._event_features: list[str] = facts.get("event_features", [])
        self._strict = strict
        self._meaning = Meaning(version)
        self.items, self.users = (
            IdIndex(version[f"{kind}_words"], version[f"{kind}_slots"], facts[f"{kind}_ids"] == "text")
            for kind in ("item", "user")
        )
        self._item_rows, self._user_rows = version["item_rows"], version["user_rows"]
        self._numbers: dict[str, list[str]] = facts.get("values", {})  # group -> those that are read as values
        self._of_side = {kind: version[f"{kind}_numbers"] for kind in ("user", "item") if kind in self._numbers}
        self._looked_up = vectors.stored(version.starting_with(vectors.PREFIX), version.starting_with(vectors.SCALE))
        self._lookups = {group: version.starting_with(f"{group}_lookup.") for group in ("context", "event")}
        self._values = {group: self._values_of(group, facts) for group in WORDS}
        taken_over = like is not None and like._runs(version)
        self._programs: Programs = like._programs if like is not None and taken_over else Programs(version)
        largest = self._programs.sizes[-1]
        several = bool(facts.get("segments"))
        self._choice = SeveralHistories(version, largest) if several else LastEvents(self.history_length, largest)
        try:
            params = npy.archive(io.BytesIO(version.read_bytes("params.npz")))
        except Exception as error:  # damaged bytes raise what they like
            what = f"{version.folder}: params.npz cannot be read"
            raise UserError(f"{what} ({str(error).strip()[:200]}); export again") from error
        self._params, self._table = jax.device_put((params, version["table"]))
        self._similar_lock = threading.Lock()
        if not taken_over:
            self._programs.try_out(self._nothing, self._programs.sizes if sizes is None else sizes)

    def _runs(self, version: Version) -> bool:
        """Whether the programs of this model are those of another version, for a table of the same shape."""
        mine, same = self.version.files, self.version["table"].shape == version["table"].shape
        return same and all(mine.get(name) == one for name, one in version.files.items() if name != "params.npz")

    def _values_of(self, group: str, facts: Mapping[str, Any]) -> dict[str, FieldValues | NumberValues]:
        """Field name -> the ids of its values; name of a number -> its values."""
        vocabularies = facts["vocabularies"].get(group, {})
        result: dict[str, FieldValues | NumberValues] = {
            name: NumberValues(f"{WORDS[group]} number '{name}'") for name in self._numbers.get(group, ())
        }
        for name in self._named(group):
            size = len(self._lookups[group][name])
            what = f"{WORDS[group]} field '{name}'"
            cut = facts.get("numbers", {}).get(group, {}).get(name)
            ranges = None if cut is None else Ranges.from_json(cut)
            result[name] = FieldValues(what, vocabularies.get(name) or (), size, ranges)
        return result

    def _nothing(self, size: int) -> tuple[Any, Any, dict]:
        """What a program is called with, of a request of which nothing is known."""
        nobody = Past(-1, np.zeros(0, np.int64), {}, {}, None)
        request = self._request(nobody, nobody.item, np.full(size, -1), {})
        return self._params, self._table, request

    @property
    def has_content(self) -> bool:
        """Whether the model has content embeddings at all."""
        return CONTENT in self._looked_up

    def lookup(self, item_ids: Sequence | np.ndarray) -> Lookup:
        """Content embeddings of items, by original id.

        Args:
          item_ids: [n] integers, texts, numbers of any other type; 1, 1.0 and "1" are the same.

        Raises:
          UserError: an id is missing (None, NaN) or a list, or the model has no content.
        """
        self._need_content()
        row = self.items.find(item_ids)
        return Lookup(self._looked_up[CONTENT].rows(row), row >= 0)  # row -1 is the unknown item's

    def score(
        self,
        user: Any,
        history: Sequence | np.ndarray,
        candidates: Sequence | np.ndarray,
        *,
        context: Mapping[str, Any] | None = None,
        history_fields: Mapping[str, Sequence] | None = None,
        time: Any = None,
        history_times: Sequence | np.ndarray | None = None,
        strict: bool | None = None,
        seen: "list[Asked] | None" = None,
    ) -> Scores:
        """The probability of each candidate: of a click, and of each further label that the model has learnt.

        Ids and values may be of any type: they are known by their canonical form.

        Args:
          user: original id; None or an unknown one is scored as a new user.
          history: [h] original ids of the user's events, oldest first; the last T of them are read, of a model of several
            histories what these hold of all.
          candidates: [b] original ids.
          context: context field -> its value, or one for each candidate; a field not named, and
            None, is unknown.
          history_fields: event field -> its value for each event of the history; a field not named
            says nothing.
          time, history_times: of the request, and of each event of the history, as whole numbers in the dataset's unit;
            models that read how long ago events were need them, others look at neither.
          strict: refuse ids and values that the store does not know; None = as the model is opened.
          seen: takes what the compiled program was asked.

        Raises:
          UserError: an id is missing, no such field, as many values as there are not events or
            candidates, or something unknown in a strict request.
        """
        unknown = Unknown(is_strict := self._strict if strict is None else strict)
        past = self._past(user, history, history_fields or {}, time, history_times, is_strict)
        unknown.counts |= past.unknown
        candidate = self._item_row("candidates", candidates, unknown)
        logits, read = [self._meaning.nothing], [self._choice.of_all(len(past.item))]
        given = self._context(context or {}, len(candidate), unknown)
        for piece in self._choice(past.item, past.fields, candidate):
            part = candidate[piece.of]
            size = self._programs.size_for(len(part))
            padded = np.append(part, np.full(size - len(part), -1))
            of_part = {name: np.resize(ids[piece.of], size) for name, ids in given.items()}
            request = self._request(past, piece.event, padded, of_part, piece.slot)
            found = np.asarray(self._programs(size, self._params, self._table, request))[: len(part)]
            logits.append(found)
            read.append(piece.event)
            if seen is not None:
                seen.append(Asked(request, len(part)))
        used = len(np.unique(np.concatenate(read)))
        means = self._meaning(np.concatenate(logits))
        return Scores(*means, candidate >= 0, past.user >= 0, used, unknown.counts)

    def _past(self, user: Any, history: Any, history_fields: Any, time: Any, history_times: Any, strict: bool) -> Past:
        """The user's side of a request; of one that is not strict from the cache, if it is there."""
        key = key_of(user, history, history_fields, time, history_times)
        if not strict and (found := self.user_cache.get(key)):
            return found
        unknown = Unknown(strict)
        user_row = self._user_row(user, unknown)
        events = self._item_row("history", history, unknown)
        given = self._events(history_fields, len(events), unknown)
        since = None
        if RECENCY in self._event_features:
            since = seconds_since(time, history_times, len(events), self.manifest["serving"])
        kept = np.flatnonzero(events >= 0)
        place = np.arange(len(kept), 0, -1)
        made = event_features.ids(self._event_features, None if since is None else since[kept], place)
        item, fields = events[kept], {name: ids[kept] for name, ids in given.items()} | made
        past = Past(user_row, item, fields, unknown.counts, None)
        if not self._choice.slots:  # all candidates read the same events
            past = past._replace(side=jax.device_put(self._user_side(past, self._choice.of_all(len(item)), 1)))
        self.user_cache.put(key, past)
        return past

    def similar(self, item_id: Any, count: int) -> list[tuple[Any, float]]:
        """(original id, cosine of the content embeddings) of the items nearest to an item, the nearest first.

        Raises:
          UserError: no such item, or one without content.
        """
        self._need_content()
        row = self.items.find([item_id])
        if row[0] < 0:
            raise UserError(f"item {item_id!r}: not in the store")
        if not self.version["has_content"][row[0]]:
            raise UserError(f"item {item_id!r}: has no content to compare")
        query = self._looked_up[CONTENT].rows(row)
        found, cosine = self._neighbours.search(query, count, leave_out=row)
        some = found[0] >= 0
        return list(zip(self.items.ids(found[0][some]), cosine[0][some].tolist(), strict=True))

    @property
    def _neighbours(self) -> Neighbours:
        with self._similar_lock:  # built when it is first asked for, once
            return self._built_neighbours

    @functools.cached_property
    def _built_neighbours(self) -> Neighbours:
        return Neighbours(self._looked_up[CONTENT].rows(slice(-1)), self.version["has_content"][:-1])

    def _item_row(self, name: str, ids: Sequence | np.ndarray, unknown: Unknown) -> np.ndarray:
        """[n] i64 rows of a request's items; -1 = unknown."""
        try:
            rows = self.items.find(ids)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        unknown.add(name, ids, rows >= 0)
        return rows

    def _user_row(self, user: Any, unknown: Unknown) -> int:
        """The row of a request's user; -1 = unknown, or none is named."""
        if canonical(user) is None:
            return -1
        try:
            rows = self.users.find([user])
        except UserError as error:
            raise UserError(f"user: {error}") from None
        unknown.add("user", [user], rows >= 0)
        return int(rows[0])

    def _need_content(self) -> None:
        if not self.has_content:
            raise UserError(f"{self.version.folder}: its model uses IDs alone, there are no content embeddings")

    def _request(
        self, past: Past, event: np.ndarray, candidate: np.ndarray, context: Ids, slot: np.ndarray | None = None
    ) -> dict[str, Any]:
        """What the compiled program takes, see `core.batch.REQUEST`.

        Args:
          event: [m] i64 which of the past's events are read.
          candidate: [b] i64 rows of the store, -1 = unknown.
          context: field -> [b] ids.
          slot: see `event_choice.Piece`.
        """
        context_row = np.zeros((len(candidate), len(self._fields["context"])), np.int32)
        for k, name in enumerate(self._names("context")):
            ids = context.get(name, np.full(len(candidate), UNKNOWN))
            context_row[:, k] = self._lookups["context"][name][ids]
        request = dict(past.side or self._user_side(past, event, len(candidate)))
        request |= {"context_row": context_row} | self._items("candidate", candidate)
        if "context" in self._numbers:
            request["context_number"] = self._given_numbers("context", context, len(candidate))
        if self._choice.slots:
            first = self._choice.length(len(candidate)) - len(event)
            of_candidate = np.full((len(candidate), self._choice.slots), NO_EVENT, np.int32)
            if slot is not None:
                of_candidate[: len(slot)] = np.where(slot == NO_EVENT, NO_EVENT, slot + first)
            request["history_slot"] = of_candidate
        return request

    def _user_side(self, past: Past, event: np.ndarray, candidates: int) -> dict[str, Any]:
        """What `_request` has of the user and of the events that are read, for so many candidates."""
        length, number = self._choice.length(candidates), len(event)
        slots = np.full(length, -1)
        slots[length - number :] = past.item[event]  # newest last, as in training
        fields = {name: ids[event] for name, ids in past.fields.items()}
        event_row = np.zeros((length, len(self._fields["event"])), np.int32)
        for k, name in enumerate(self._names("event")):
            event_row[length - number :, k] = self._lookups["event"][name][fields.get(name, np.full(number, PADDING))]
        side = self._items("history", slots) | {"event_row": event_row, "history_mask": slots >= 0}
        side["user_row"] = self._user_rows[past.user]
        if "user" in self._of_side:
            side["user_number"] = self._of_side["user"][past.user]
        if "event" in self._numbers:
            side["event_number"] = self._given_numbers("event", fields, length)
        return side

    def _items(self, name: str, row: np.ndarray) -> dict[str, Any]:
        """What `_request` has of items by that name, "candidate" or "history"."""
        found: dict[str, Any] = {name: {of: one.rows(row) for of, one in self._looked_up.items()}}
        found[f"{name}_row"] = np.take(self._item_rows, row, axis=0)
        if "item" in self._of_side:
            found[f"{name}_number"] = np.take(self._of_side["item"], row, axis=0)
        return found

    def _given_numbers(self, group: str, given: Ids, places: int) -> np.ndarray:
        """[places, m] f32 the numbers of a group that a request gives, the last ones at the end; NaN = missing."""
        result = np.full((places, len(self._numbers[group])), np.nan, np.float32)
        for k, name in enumerate(self._numbers[group]):
            if name in given:
                result[places - len(given[name]) :, k] = given[name]
        return result

    def _names(self, group: str) -> list[str]:
        return [name for name, *_ in self._fields[group]]

    def names_of(self, group: str) -> list[str]:
        """The fields of a group, "context" or "event", that requests may name, numbers that are read as values among them."""
        return list(self._values[group])

    def _named(self, group: str) -> list[str]:
        """The fields that requests may name."""
        return [name for name in self._names(group) if group != "event" or name not in self._event_features]

    def _events(self, given: Mapping[str, Sequence], number: int, unknown: Unknown) -> Ids:
        for name, values in given.items():
            if len(values) != number:
                raise UserError(
                    f"history field '{name[:LONGEST_ECHO]}': {len(values)} values for a history of "
                    f"{number}; give one an event"
                )
        return {name: self._ids("event", name, values, unknown) for name, values in given.items()}

    def _context(self, given: Mapping[str, Any], number: int, unknown: Unknown) -> Ids:
        result = {}
        for name, values in given.items():
            several = isinstance(values, list | tuple) or np.ndim(values) > 0
            if several and len(values) != number:
                raise UserError(
                    f"context field '{name[:LONGEST_ECHO]}': {len(values)} values for {number} "
                    "candidates; give one, or one each"
                )
            ids = self._ids("context", name, values if several else [values], unknown)
            result[name] = ids if several else np.repeat(ids, number)
        return result

    def _ids(self, group: str, name: str, values: Sequence, unknown: Unknown) -> np.ndarray:
        """[n] i64 ids of a field's values; of a number that is read as a value [n] f32."""
        if name not in self._values[group]:
            name, there = name[:LONGEST_ECHO], list(self._values[group])
            hint = nearest(name, there) if there else "there are none"
            raise UserError(f"{WORDS[group]} field '{name}': no such field; {hint}")
        of = self._values[group][name]
        found, known = of.values(values) if isinstance(of, NumberValues) else of.ids(values)
        unknown.add(f"{PLACES[group]}.{name}", values, known)
        return found
