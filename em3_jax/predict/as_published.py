"""The training side of a run as it was at the versions that it has published: what it knew of ids, values and rows then."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax.config.schema import Retrieval
from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data import stream
from em3_jax.data.append import Store
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset
from em3_jax.data.shown import Shown
from em3_jax.export import publisher
from em3_jax.predict.recorded import Resolver, of_dataset
from em3_jax.serving import id_index
from em3_jax.serving.version import Version
from em3_jax.tasks.ranking.setup import open_clicks
from em3_jax.training import experiment, spread
from em3_jax.training.appended import store_of
from em3_jax.training.experiment import Experiment
from em3_jax.training.run import Run


class At(NamedTuple):
    """A run at a version.

    Attributes:
      parts: what scores; the same object for versions whose tables are as long.
      resolver: of the ids and values that the version knows.
      builder: of batches that know what the version's training showed.
    """

    parts: Experiment
    resolver: Resolver
    builder: BatchBuilder


class OfWhole:
    """A run on a dataset that is whole: exported, or published by a stream over its rows."""

    def __init__(self, parts: Experiment):
        self._parts, self._resolver = parts, of_dataset(parts.work.dataset)

    def at(self, version: Version) -> At:
        """The run at a version.

        Raises:
          UserError: the version is of other data.
        """
        work, row = self._parts.work, version.manifest.get("row")
        dataset, data = work.dataset, self._parts.config.data
        _check_data(version, dataset)
        assert work.builder is not None and not isinstance(self._parts.config, Retrieval)  # as whoever is served has it
        if row is not None:  # else exported, not published
            length = None if data.has_segments else data.history_length  # type: ignore[union-attr]
            dataset = stream.as_of(dataset, row, data.label, length)  # type: ignore[union-attr]
        return At(self._parts, self._resolver, work.builder(dataset))


class OfAppended:
    """A run whose rows are appended to its dataset: a version knows the ids of the rows that it was trained on.

    Args:
      run: the run.
      store: the rows.
      data_root: where they lie, if they were moved.
    """

    def __init__(self, run: Run, store: Store, data_root: str | Path | None):
        self._run, self._store, self._root = run, store, data_root
        self._data: Any = run.config.data  # of clicks, as there are scores
        # Of the version before: its fields, as its manifest has them, what scores, and what its rows show.
        self._fields: Any = None
        self._parts: Experiment | None = None
        self._counter, self._known = Shown(), dict[str, int]()
        ids = {kind: id_index.build(_texts(store.words(kind))) for kind in ("user", "item")}
        self._ids = ids["user"], ids["item"]

    def at(self, version: Version) -> At:
        """The run at a version.

        Raises:
          UserError: the version is of other data, or of rows that are not there.
        """
        row, fields = version.manifest.get("row", 0), version.manifest["serving"]["fields"]
        if version.manifest.get("run") != publisher.id_of(self._run.folder):
            raise UserError(
                f"{version.folder}: was not published by the run in {self._run.folder}; give the run whose store this is"
            )
        if row > self._store.rows:
            raise UserError(
                f"{version.folder}: was trained on {row:,} rows, {self._store.root} has {self._store.rows:,}; give the run's "
                "dataset with --data"
            )
        if fields != self._fields:
            self._fields, self._parts = fields, None
        if self._parts is None or row < self._counter.row:  # in other tables, or back to a version before
            self._counter, self._known = Shown(self._data.label, self._data.history_length), {}
        self._known = self._store.sizes(row, self._known, self._counter.row)
        view = self._store.view(row, self._places(fields))
        _check_data(version, view)
        dataset = open_clicks(self._data, view)
        counts = self._counter.until(dataset, row)
        if self._parts is None:
            counted = dataclasses.replace(view, counts=counts)
            self._parts = experiment.of_run(self._run.config, self._root, counted)
            self._resolver = Resolver(dataset, *self._ids)
        assert self._parts.work.builder is not None
        builder = self._parts.work.builder(dataclasses.replace(dataset, counts=counts))
        return At(self._parts, self._resolver.knowing(self._known), builder)

    def _places(self, fields: dict[str, list]) -> dict[str, int]:
        """Field -> ids that the tables have places for, see `Store.view`."""
        there = self._store.sizes(0)
        places: dict[str, int] = {}
        for group, specs in fields.items():
            for k, (name, size, *_) in enumerate(specs):
                key = group if not k and group in ("user", "item") else f"{group}_{name}"
                places |= {key: size - FIRST_KNOWN} if key in there else {}  # others are made with a batch
        return places


@contextmanager
def opened(directory: str | Path, data_root: str | Path | None) -> Iterator[OfWhole | OfAppended]:
    """A run, ready to be asked for its versions.

    Args:
      directory: its folder.
      data_root: where the dataset lies now, if it was moved.

    Raises:
      UserError: it is not served; its rows are still appended to; what it had admitted is not known.
    """
    run = Run.open(directory, data_root)
    config = run.config
    if (tables := spread.fixed_tables(directory)) and tables.admit_after > 1:
        raise UserError(
            f"{directory}: cannot be replayed: which ids its versions had admitted is not told by the "
            f"dataset, where config.tables.admit_after is {tables.admit_after}; of 1 it is"
        )
    if isinstance(config, Retrieval) or config.stream is None or not config.stream.append:
        parts = run.experiment
        if not parts.work.task.can_be_served:
            raise UserError(f"{directory}: cannot be replayed, it scores nothing that is served")
        yield OfWhole(parts)
        return
    with store_of(config.stream, paths.local(data_root or config.data.root)) as store:
        yield OfAppended(run, store, data_root)


def _check_data(version: Version, dataset: Dataset) -> None:
    """Refuses a version of other data."""
    if version.manifest["data_hash"] != dataset.meta["data_hash"]:
        raise UserError(
            f"{version.folder}: is of the data with hash {version.manifest['data_hash'][:12]}, those in {dataset.root} have "
            f"{dataset.meta['data_hash'][:12]}; give the dataset as it was with --data"
        )


def _texts(words: Iterator[str]) -> np.ndarray:
    return np.array([*words], str)
