"""Publishes what a stream learns, as it learns: a whole version first, then what has changed since the version before.

A version has table rows, parameters and ids as the stream has them at its step, and the rows that stand for ids as its own
scoring would know them then. Bytes follow the rows touched (`serving.deltas`). The versions of a run are a function of its
steps: killed at any moment and begun again, it leaves those alone that it had published, and goes on to the same store.

The vectors of items are a cache (EM3, section 3.5), made anew by explicit rules: of new items, and of those whose content has
changed, at the next version; of hot ones, which training has shown most often, by age (config.stream.refresh_hot); of all
others by age where config.stream.refresh_cold says so; and what a memory bank has of an item with each write to it.

Letters: I items.
"""

import hashlib
import json
import shutil
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.config import parse
from em3_jax.config.schema import OnClicks
from em3_jax.config.schema.course import Stream
from em3_jax.core import paths, trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.data.append import Appended
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset
from em3_jax.export import model, same_data
from em3_jax.export.cached_items import CachedItems
from em3_jax.export.command import content_of
from em3_jax.export.published_ids import PublishedIds
from em3_jax.serving import deltas, programs, store
from em3_jax.serving.version import Version
from em3_jax.training import rundir
from em3_jax.training.experiment import Experiment

NAME = "publisher.json"
"""In the run's folder: the id by which a store knows whose versions it has."""


class Publisher:
    """Publishes the states of one run to a store.

    Args:
      config: of the run.
      own: config.stream, which names the store.
      directory: the run's folder.
    """

    def __init__(self, config: OnClicks, own: Stream, directory: Path):
        self._config, self._own, self._directory = config, own, directory
        self._store = paths.local(own.publish)
        self._version: Version | None = None  # the newest of this run
        self._ids: PublishedIds | None = None
        self._compacting: threading.Thread | None = None

    def begin(self, parts: Experiment) -> None:
        """Takes up a dataset, or the one that it has grown into.

        Raises:
          UserError: the run cannot be served, or the store is of another dataset.
        """
        if not parts.work.task.can_be_served:
            raise UserError(f"config.stream.publish={self._own.publish}: the run scores nothing that can be served")
        self._parts, self._run = parts, id_of(self._directory) or _new_id(self._directory)
        dataset, record = parts.work.dataset, rundir.read(self._directory)
        dataset = dataset.with_ids if isinstance(dataset, Appended) else dataset
        with store.writing(self._store):
            store.settle(self._store)
        served = self._served()
        manifest, hint = served.manifest if served else None, "choose another config.stream.publish"
        same_data.check(self._store, manifest, record, dataset, permitted=False, hint=hint)
        self._version = served if served and served.manifest.get("run") == self._run else None
        self._step: int = self._version.manifest["checkpoint"]["step"] if self._version else -1
        if self._ids is None or not self._ids.go_on_in(parts.work.dataset):
            self._ids = PublishedIds(parts.work.dataset)
        self._commit = record["commit"]
        self._facts = {
            "data_hash": dataset.meta["data_hash"],
            "rows": self._sample(dataset),
            "features": {name: facts for name, _, facts in content_of(parts)},
            "dtype": self._own.publish_dtype,
        }
        self._items = CachedItems(parts, self._own, self._version)
        self._compact()

    def _sample(self, dataset: Dataset) -> list[str]:
        """Rows that tell the dataset; of one that is appended to those of the first version, however far it was read since."""
        if isinstance(dataset, Appended) and self._version is not None:
            return self._version.manifest["rows"]
        return same_data.sample(dataset)

    def due(self, step: int) -> bool:
        """Whether a version is due after a step within a window."""
        return bool(self._own.publish_every) and step % self._own.publish_every == 0

    def publish(self, state: State, row: int, builder: BatchBuilder, learnt: np.ndarray | None = None) -> None:
        """Publishes a state, unless it was before the run was killed.

        Args:
          row: interaction rows before this number have been trained on.
          builder: of batches that know what these rows show.
          learnt: [table rows] bool, those of ids that were admitted; others stand for `unknown`. None = all.
        """
        step = int(state.step)
        if step <= self._step:
            return
        if bad := trees.non_finite(state.params):
            served = store.current_name(self._store)
            raise UserError(
                f"step {step:,}: {bad[0]} holds NaN or infinity, so it is not published to {self._store}; version {served} is "
                "served on; lower the learning rates"
            )
        with store.writing(self._store) as folder:
            base = self._version
            if base is not None and store.current_name(self._store) != base.name:
                base = None  # somebody else has published
            arrays, files, facts = self._content(state, row, builder, learnt, base)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if base is None:
                deltas.write_whole(folder, Version.made(folder, {}, arrays, files))
                manifest = deltas.with_sums(facts, arrays, files)
                made = Version.made(folder, manifest, arrays, files)
            else:
                made, manifest = deltas.write(folder, base, deltas.difference(base, arrays, files), facts)
            name = store.publish(self._store, manifest, self._own.publish_keep)
            self._version, self._step = deltas.named(made, name), step
        self._compact()

    def close(self) -> None:
        """Waits for what is done in the background."""
        while self._compacting is not None:
            self._compacting.join()
            self._compacting = None
            self._compact()

    def _served(self) -> Version | None:
        """The version served, if there is one that can be read."""
        if store.current_name(self._store) is None:
            return None
        try:
            return store.open_current(self._store)
        except UserError as error:
            print(f"{error}: a whole version is published")
            return None

    def _content(
        self, state: State, row: int, builder: BatchBuilder, learnt: np.ndarray | None, base: Version | None
    ) -> tuple[dict[str, np.ndarray], dict[str, bytes], dict[str, Any]]:
        """(arrays, other files, facts) of the version of a state."""
        work, dataset = self._parts.work, builder.dataset
        table = np.array(state.tables["embedding"])  # a copy: the next step is given the buffers
        assert self._ids is not None  # `begin` took them up
        sizes = self._ids.until(row)
        items = self._items.after(state, dataset.counts["item"], sizes["item"])
        widths = self._items.widths
        arrays, serving = self._ids.known(
            model.arrays_of(dataset, builder, table, learnt), model.facts_of(work.task, dataset, builder, widths)
        )
        arrays |= items
        made_of = self._made_of(serving, table, widths)
        if base is not None and base.manifest["programs_of"] == made_of:
            names = [name for name in base.files if name != model.PARAMS]
            files = {name: base.read_bytes(name) for name in names}
            serving |= {key: base.manifest["serving"][key] for key in ("platforms", "programs")}
        else:
            platforms = self._own.publish_platforms
            files, of_programs = model.programs_of(work.task, dataset, builder, state.params, table, widths, platforms)
            serving |= of_programs
        facts = self._facts | {
            "checkpoint": {"workdir": self._directory.name, "step": int(state.step), "model_hash": ""},
            "run": self._run,
            "row": row,
            "commit": self._commit,
            "counts": {
                "users": sizes["user"],
                "items": sizes["item"],
                "items_with_content": int(items["has_content"][:-1].sum()),
            },
            "programs_of": made_of,
            "serving": serving,
        }
        return arrays, files | {model.PARAMS: model.params_of(state)}, json.loads(json.dumps(facts))

    def _made_of(self, serving: dict[str, Any], table: np.ndarray, widths: dict[str, int]) -> str:
        """A hash of all that the compiled programs depend on."""
        facts = [
            serving["fields"],
            serving["history_length"],
            serving["segments"],
            serving["labels"],
            table.shape,
            widths,
        ]
        plain = parse.plain(self._config)
        of_data = {name: one for name, one in plain["data"].items() if name != "root"}  # a folder may be moved
        own = [plain["task"], plain["model"], of_data, self._own.publish_platforms]
        text = json.dumps([facts, own, programs.versions(), self._commit], sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()

    def _compact(self) -> None:
        """Makes the version whole that ends a chain of config.stream.publish_whole deltas, beside the training."""
        if self._compacting is not None and self._compacting.is_alive():
            return
        names = store.version_names(self._store) if self._version is not None else []
        whole = max((name for name in names if store.whole_folder(self._store, name)), default="")
        chain = [name for name in names if name > whole]
        if not whole or len(chain) < self._own.publish_whole:
            return
        due = chain[self._own.publish_whole - 1]
        self._compacting = threading.Thread(target=self._make_whole, args=(due,), daemon=True)
        self._compacting.start()

    def _make_whole(self, name: str) -> None:
        try:
            store.compact(self._store, name, self._own.publish_keep)
        except (UserError, OSError) as error:
            print(
                f"{self._store}: version {name} could not be made whole ({error}); the next one is published whole",
                flush=True,
            )
            self._version = None


def id_of(directory: Path) -> str:
    """The id by which stores know a run; "" where it has published nothing.

    Raises:
      UserError: the file that says it is damaged.
    """
    path = directory / NAME
    if not path.exists():
        return ""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path}: not readable; delete it, and the store begins with a whole version") from None


def _new_id(directory: Path) -> str:
    """An id for a run that publishes for the first time."""
    new = uuid.uuid4().hex
    store.write_json(directory / NAME, {"id": new})
    return new
