"""Reads a store: embeddings by original item id, click probabilities of candidates, similar items.

    with Service("store/") as service:
        model = service.model  # one version, whole; the next call may find a newer one
        vectors, known = model.lookup([17, 4711])
        scores = model.score(user=7, history=[17, 23], candidates=[4711, 99])

No training code is imported. What a model answers is in `served_model`.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.serving.scores import Lookup as Lookup
from em3_jax.serving.scores import Scores as Scores
from em3_jax.serving.served_model import USERS
from em3_jax.serving.served_model import Model as Model
from em3_jax.serving.store import Version, current_name, open_current, open_version, version_names


class Service:
    """The model of the version that a store serves: a new version is loaded beside the old one and then takes its place.

    Whoever holds `model` keeps a whole version; nothing waits while another one loads. Of a version that is a delta what has
    changed alone is read, from the version at hand on, or from the nearest whole one where that does not fit. The version
    before stays at hand, to roll back to.

    >>> import em3_jax as em3
    >>> with em3.Service("store") as service:
    ...     scores = service.model.score(user=3, history=[1, 2], candidates=[4, 5, 6])
    >>> scores.probability.shape
    (3,)

    Args:
      store: its folder.
      poll_seconds: between two looks for a new version.
      verify: compare the sha256 of all files, not their sizes alone.
      sizes: see `Model`; compiled before a version takes over, None = all.
      strict, users: see `Model`.

    Attributes:
      problem: why the newest version could not be loaded, "" if it could; the one before is served on.
      held: whether a version is served on whatever is published, see `roll_back`.

    Raises:
      UserError: neither the version that the store names nor one before it can be loaded.
    """

    def __init__(
        self,
        store: str | Path,
        *,
        poll_seconds: float = 1.0,
        verify: bool = False,
        sizes: Sequence[int] | None = None,
        strict: bool = False,
        users: int = USERS,
    ):
        self._store, self._verify = paths.local(store), verify
        self._sizes, self._strict, self._users = sizes, strict, users
        self.problem = ""
        self._refused: str | None = None
        self.held = False
        self._changing = threading.Lock()  # one change of version at a time
        self._before: Model | None = None
        self._model = self._first()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(poll_seconds,), daemon=True)
        self._thread.start()

    @property
    def model(self) -> Model:
        return self._model

    def _follow(self, poll_seconds: float) -> None:
        while not self._stop.wait(poll_seconds):
            self.refresh()

    def _first(self) -> Model:
        """The model served from the start on: of the newest version that can be loaded."""
        current = current_name(self._store)
        try:
            return self._load(open_current(self._store, self._verify))
        except Exception as error:  # whatever it is, as when a service follows
            for name in reversed(version_names(self._store)):
                if current is not None and name < current and (before := self._earlier(name)):
                    self._refuse(current, error)
                    return before
            raise

    def _load(self, version: Version, like: Model | None = None) -> Model:
        return Model(version, self._sizes, strict=self._strict, like=like, users=self._users)

    def _earlier(self, name: str) -> Model | None:
        """The model of a version, if it can be loaded."""
        try:
            return self._load(open_version(self._store, name, self._verify))
        except Exception:
            return None

    def _refuse(self, name: str, error: Exception) -> None:
        self.problem, self._refused = f"version {name}: {' '.join(str(error).split())}", name

    def refresh(self) -> None:
        """Looks for a new version now."""
        with self._changing:
            if not self.held:
                self._refresh()

    def _refresh(self) -> None:
        name = "?"
        try:
            current = current_name(self._store)
            if current is None or current in (self._model.name, self._refused):
                return
            name = current
            found = self._load(self._next(), self._model)
            self._before, self._model, self.problem = self._model, found, ""
        except Exception as error:  # whatever it is, the version before is served on
            self._refuse(name, error)

    def _next(self) -> Version:
        """The version that the store names, from the one at hand on, or afresh where deltas do not fit that."""
        try:
            return open_current(self._store, self._verify, self._model.version)
        except UserError:
            return open_current(self._store, self._verify)

    def roll_back(self) -> Model:
        """Serves the version before, and holds it whatever is published, until `go_on`.

        Raises:
          UserError: there is none: no other version has been served since the service started.
        """
        with self._changing:
            if self._before is None:
                raise UserError("there is no version before to roll back to")
            self._model, self._before, self.held = self._before, None, True
            return self._model

    def go_on(self) -> Model:
        """Serves the newest version again, and those that follow."""
        with self._changing:
            self.held, self._refused = False, None
            self._refresh()
            return self._model

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, kind, value, trace) -> None:
        self.close()
