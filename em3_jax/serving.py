"""Reads a store: embeddings by original item id, click probabilities of candidates, similar items. No training code is imported.

    with Service("store/") as service:
        model = service.model                               # one version, whole; the next call may find a newer one
        vectors, known = model.lookup([17, 4711])
        scores = model.score(user=7, history=[17, 23], candidates=[4711, 99])

Letters: I items, n ids asked for, b candidates, T history, D width.
"""

import bisect
import functools
import io
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import export

from em3_jax.errors import UserError
from em3_jax.fields import FIRST_KNOWN, PADDING, UNKNOWN
from em3_jax.id_index import IdIndex
from em3_jax.neighbours import Neighbours
from em3_jax.store import Version, current_name, open_current

CONTENT = "content"
WORDS = {"context": "context", "event": "history"}  # what the fields of a group are called in a request
LONGEST_ECHO = 100  # characters of a request that are repeated when it is refused
SIZES = (16, 64, 256, 512, 1024)  # candidates that the compiled programs take; more are cut into pieces


class Lookup(NamedTuple):
    """What `Model.lookup` found.

    Attributes:
      vectors: [n, D] content embeddings; of an unknown item that of an item without any content.
      known: [n] bool, whether the item is in the store.
    """

    vectors: np.ndarray
    known: np.ndarray


class Scores(NamedTuple):
    """What `Model.score` gives.

    Attributes:
      probability: [b] f64 of a click.
      logit: [b] f32.
      known: [b] bool, whether the candidate is in the store; others are scored as an item of which nothing is known.
      user_known: whether the user is.
      history_used: how many events of the history were read: the last T of known items.
    """

    probability: np.ndarray
    logit: np.ndarray
    known: np.ndarray
    user_known: bool
    history_used: int


class Model:
    """One version of a store, ready to be asked; all calls may come from several threads.

    Args:
      version: the opened version.
      sizes: numbers of candidates to compile for at once; empty compiles on demand.

    Attributes:
      name: of the version.
      manifest: see `store.publish`.
    """

    def __init__(self, version: Version, sizes: Sequence[int] = ()):
        self.version, self.manifest, self.name = version, version.manifest, version.name
        facts = self.manifest["serving"]
        self.history_length: int = facts["history_length"]
        self._fields = facts["fields"]
        self._vocabularies = {
            group: {name: {str(v): FIRST_KNOWN + k for k, v in enumerate(values)} for name, values in fields.items()}
            for group, fields in facts["vocabularies"].items()
        }
        self.items, self.users = (
            IdIndex(version[f"{kind}_words"], version[f"{kind}_slots"], facts[f"{kind}_ids"] == "text")
            for kind in ("item", "user")
        )
        self._item_rows, self._user_rows = version["item_rows"], version["user_rows"]
        self._looked_up = version.starting_with("looked_up.")
        self._lookups = {group: version.starting_with(f"{group}_lookup.") for group in ("context", "event")}
        platforms = facts["platforms"]
        if jax.default_backend() not in [{"cuda": "gpu", "rocm": "gpu"}.get(name, name) for name in platforms]:
            raise UserError(
                f"{version.folder}: its scorer is compiled for {', '.join(platforms)}, this machine runs "
                f"{jax.default_backend()}; export again with --platforms"
            )
        try:
            program = export.deserialize(bytearray(version.read_bytes("scorer.bin")))
            with np.load(io.BytesIO(version.read_bytes("params.npz")), allow_pickle=False) as arrays:
                params = {name: arrays[name] for name in arrays.files}
        except Exception as error:  # bytes that are damaged, though as many as there should be, raise what they like
            raise UserError(
                f"{version.folder}: scorer.bin or params.npz cannot be read ({str(error).strip()[:200]}); export again"
            ) from error
        self._program, self._params = jax.jit(program.call), jax.device_put(params)
        self._table = jax.device_put(version["table"])
        self._similar_lock = threading.Lock()
        for size in sizes:
            nothing = self._request(-1, np.zeros(0, np.int64), {}, np.full(size, -1), {})
            jax.block_until_ready(self._program(self._params, self._table, nothing))

    @property
    def has_content(self) -> bool:
        """Whether the model has content embeddings at all."""
        return CONTENT in self._looked_up

    def lookup(self, item_ids: Sequence | np.ndarray) -> Lookup:
        """Content embeddings of items, by original id.

        Args:
          item_ids: [n], all integers or all texts, as the dataset has them.

        Raises:
          UserError: ids of the other type, or the model has no content.
        """
        self._need_content()
        row = self.items.find(item_ids)
        return Lookup(np.take(self._looked_up[CONTENT], row, axis=0), row >= 0)  # row -1 is the unknown item's

    def score(
        self,
        user: Any,
        history: Sequence | np.ndarray,
        candidates: Sequence | np.ndarray,
        *,
        context: Mapping[str, Any] | None = None,
        history_fields: Mapping[str, Sequence] | None = None,
    ) -> Scores:
        """The click probability of each candidate.

        Args:
          user: original id; None or an unknown one is scored as a new user.
          history: [h] original ids of the user's events, oldest first; the last T of them are read.
          candidates: [b] original ids.
          context: context field -> its value, or one for each candidate; a field not named is unknown.
          history_fields: event field -> its value for each event of the history; a field not named says nothing.

        Raises:
          UserError: ids of the other type, no such field, or as many values as there are not events or candidates.
        """
        candidate, events = self.items.find(candidates), self.items.find(history)
        given = self._events(history_fields or {}, len(events))
        kept = np.flatnonzero(events >= 0)[-self.history_length :]
        given = {name: ids[kept] for name, ids in given.items()}
        user_row = int(self.users.find([user])[0]) if user is not None else -1
        logits, largest = [np.zeros(0, np.float32)], SIZES[-1]
        context = self._context(context or {}, len(candidate))
        for start in range(0, len(candidate), largest):
            part = candidate[start : start + largest]
            size = SIZES[bisect.bisect_left(SIZES, len(part))]
            padded = np.append(part, np.full(size - len(part), -1))
            of_part = {name: np.resize(ids[start : start + largest], size) for name, ids in context.items()}
            request = self._request(user_row, events[kept], given, padded, of_part)
            logits.append(np.asarray(self._program(self._params, self._table, request))[: len(part)])
        logit = np.concatenate(logits)
        probability = 1.0 / (1.0 + np.exp(-logit.astype(np.float64)))
        return Scores(probability, logit, candidate >= 0, user_row >= 0, len(kept))

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
        query = np.asarray(self._looked_up[CONTENT][row], np.float32)
        found, cosine = self._neighbours.search(query, count, leave_out=row)
        some = found[0] >= 0
        return list(zip(self.items.ids(found[0][some]), cosine[0][some].tolist(), strict=True))

    @property
    def _neighbours(self) -> Neighbours:
        with self._similar_lock:  # built when it is first asked for, once
            return self._built_neighbours

    @functools.cached_property
    def _built_neighbours(self) -> Neighbours:
        vectors = np.asarray(self._looked_up[CONTENT][:-1], np.float32)
        return Neighbours(vectors, self.version["has_content"][:-1])

    def _need_content(self) -> None:
        if not self.has_content:
            raise UserError(f"{self.version.folder}: its model uses IDs alone, there are no content embeddings")

    def _request(self, user: int, history: np.ndarray, events: dict, candidate: np.ndarray, context: dict) -> dict:
        """What the compiled program takes; rows [*] i64 of the store, -1 = unknown."""
        length, number = self.history_length, len(history)
        slots = np.full(length, -1)
        slots[length - number :] = history  # newest last, as in training
        event_row = np.zeros((length, len(self._fields["event"])), np.int32)
        context_row = np.zeros((len(candidate), len(self._fields["context"])), np.int32)
        for k, name in enumerate(self._names("event")):
            event_row[length - number :, k] = self._lookups["event"][name][events.get(name, np.full(number, PADDING))]
        for k, name in enumerate(self._names("context")):
            ids = context.get(name, np.full(len(candidate), UNKNOWN))
            context_row[:, k] = self._lookups["context"][name][ids]

        def take(array: np.ndarray, row: np.ndarray) -> np.ndarray:
            return np.take(array, row, axis=0)

        def looked_up(row: np.ndarray) -> dict[str, np.ndarray]:
            return {name: np.asarray(take(array, row), np.float32) for name, array in self._looked_up.items()}

        return {
            "candidate_row": take(self._item_rows, candidate),
            "history_row": take(self._item_rows, slots),
            "event_row": event_row,
            "context_row": context_row,
            "user_row": self._user_rows[user],
            "history_mask": slots >= 0,
            "candidate": looked_up(candidate),
            "history": looked_up(slots),
        }

    def _names(self, group: str) -> list[str]:
        return [name for name, *_ in self._fields[group]]

    def _events(self, given: Mapping[str, Sequence], number: int) -> dict[str, np.ndarray]:
        for name, values in given.items():
            if len(values) != number:
                raise UserError(
                    f"history field '{name}': {len(values)} values for a history of {number}; give one an event"
                )
        return {name: self._ids("event", name, values) for name, values in given.items()}

    def _context(self, given: Mapping[str, Any], number: int) -> dict[str, np.ndarray]:
        result = {}
        for name, values in given.items():
            several = isinstance(values, list | tuple | np.ndarray)
            if several and len(values) != number:
                raise UserError(
                    f"context field '{name}': {len(values)} values for {number} candidates; give one, or one each"
                )
            ids = self._ids("context", name, values if several else [values])
            result[name] = ids if several else np.repeat(ids, number)
        return result

    def _ids(self, group: str, name: str, values: Sequence) -> np.ndarray:
        """[n] ids of a field's values: by its vocabulary, or as they are where the dataset has none."""
        what = f"{WORDS[group]} field '{name[:LONGEST_ECHO]}'"
        if name not in self._names(group):
            there = ", ".join(self._names(group)) or "none"
            raise UserError(f"{what}: no such field; there are: {there}")
        vocabulary = self._vocabularies[group].get(name)
        if vocabulary:
            if any(isinstance(value, list | tuple | dict) for value in values):
                raise UserError(f"{what}: takes texts or numbers, not lists or objects")
            return np.array([vocabulary.get(str(value), UNKNOWN) for value in values], np.int64)
        size = len(self._lookups[group][name])
        whole = all(isinstance(value, int | np.integer) and not isinstance(value, bool) for value in values)
        if not whole or not all(0 <= value < size for value in values):
            raise UserError(f"{what}: has no vocabulary; give its ids, integers from 0 to {size - 1}")
        return np.array(values, np.int64)


class Service:
    """The model of the version that a store serves: a new version is loaded beside the old one and then takes its place.

    Whoever holds `model` keeps a whole version; nothing waits while another one loads.

    Args:
      store: its folder.
      poll_seconds: between two looks for a new version.
      verify: compare the sha256 of all files, not their sizes alone.
      sizes: see `Model`; compiled before a version takes over.

    Attributes:
      problem: why the newest version could not be loaded, "" if it could; the one before is served on.
    """

    def __init__(
        self, store: str | Path, *, poll_seconds: float = 1.0, verify: bool = False, sizes: Sequence[int] = SIZES
    ):
        self._store, self._verify, self._sizes = Path(store), verify, tuple(sizes)
        self._model = Model(open_current(store, verify), self._sizes)
        self.problem, self._refused = "", None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(poll_seconds,), daemon=True)
        self._thread.start()

    @property
    def model(self) -> Model:
        return self._model

    def _follow(self, poll_seconds: float) -> None:
        while not self._stop.wait(poll_seconds):
            self.refresh()

    def refresh(self) -> None:
        """Looks for a new version now."""
        name = "?"
        try:
            name = current_name(self._store)
            if name in (None, self._model.name, self._refused):
                return
            self._model, self.problem = Model(open_current(self._store, self._verify), self._sizes), ""
        except Exception as error:  # whatever it is, the version before is served on, and the next one is looked for
            self.problem, self._refused = f"version {name}: {' '.join(str(error).split())}", name

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.close()
