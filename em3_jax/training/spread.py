"""A table of fixed size as one that has a row for each id of a dataset, for whatever reads a run: `em3 eval`, export, predict.

An id's row is that of the table, or that in the spill; one that was never admitted has the row of its field's `unknown`, as it
had in training, and an item that was never encoded has none in the memory bank. See `endless`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import Retrieval
from em3_jax.config.schema.course import Tables
from em3_jax.core import mapped, sharding
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.data.format import Dataset
from em3_jax.tables import packing, swaps
from em3_jax.tables.id_keys import Texts
from em3_jax.tables.residents import Residents
from em3_jax.tables.spill import Spill
from em3_jax.training import endless, rundir
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.experiment import Experiment
from em3_jax.training.original_ids import OriginalIds

_AT_ONCE = 1 << 16  # ids whose rows are sought together


def fixed_tables(directory: str | Path) -> Tables | None:
    """The settings of a run's tables if they are of a fixed size."""
    config = rundir.config_of(directory, rundir.read(directory))
    return config.tables if not isinstance(config, Retrieval) and config.tables.capacity else None


def restore(tables: Tables, directory: str | Path, parts: Experiment, step: int | None = None) -> State:
    """The newest checkpoint of a run, or that of `step`, with rows for all ids of the dataset of `parts`.

    Args:
      tables: see `fixed_tables`.

    Raises:
      UserError: there is no such checkpoint; a file of its spill is missing, was cut, or has gone on meanwhile.
    """
    directory, shapes = Path(directory), parts.program.shapes
    bank = tables.bank_capacity or tables.capacity

    def of_length(rows: int) -> Any:
        length = sharding.padded(rows, parts.program.mesh)
        plainly = lambda x: jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype, sharding=x.sharding)  # noqa: E731
        return lambda x: packing.shapes(length, x) if packing.is_table(x) else plainly(x)

    template = dataclasses.replace(
        shapes,
        tables=jax.tree.map(of_length(tables.capacity), shapes.tables, is_leaf=packing.is_table),
        memory=jax.tree.map(of_length(bank), shapes.memory, is_leaf=packing.is_table),
    )
    checkpoints = Checkpoints(directory)
    state, _ = checkpoints.restore(template, step)
    checkpoints.close()
    whole = with_all_ids(tables, directory, packing.unpacked(state), parts.work.dataset, parts.program.mesh)
    plainly = packing.unpacked(shapes)
    placed = lambda leaf, like: jax.device_put(leaf, like.sharding)  # noqa: E731
    table = jax.tree.map(placed, whole.tables, plainly.tables)
    memory = jax.tree.map(placed, whole.memory, plainly.memory)
    return packing.packed_as(shapes, dataclasses.replace(whole, tables=table, memory=memory))


def with_all_ids(tables: Tables, directory: Path, state: State, dataset: Dataset, mesh: Mesh) -> State:
    """A state with rows for all ids of a dataset, on the host and as long as they are over a mesh.

    Args:
      tables: see `fixed_tables`.
      directory: of the run.
      state: a checkpoint's, of tables that are not packed.

    Raises:
      UserError: see `restore`.
    """
    saved, folder = endless.read(directory, int(state.step)), directory / endless.FOLDER
    count, bank = dataset.fields.num_rows, tables.bank_capacity or tables.capacity
    of_ids = _Found(folder / "tables", tables.capacity, state.tables, saved["tables"], dataset)
    table = of_ids.spread(sharding.padded(count, mesh), np.arange(1, count), unknown=True)
    memory = state.memory
    if memory:
        items = int(of_ids.names.first[endless.item_field(of_ids.names)]) + 1 + np.arange(dataset.num_items)
        of_items = _Found(folder / "memory", bank, memory, saved["memory"], dataset)
        memory = of_items.spread(sharding.padded(len(items), mesh), items, unknown=False)
    return dataclasses.replace(state, tables=table, memory=memory)


class _Found:
    """Rows of ids, wherever they are."""

    def __init__(self, folder: Path, capacity: int, tables: Any, saved: dict[str, np.ndarray], dataset: Dataset):
        leaves, tree = jax.tree.flatten(tables)
        self._tree: Any = tree
        self._leaves = [np.asarray(leaf) for leaf in leaves]
        self._rows = [(leaf.shape[1:], leaf.dtype) for leaf in self._leaves]
        era, places, texts, spilled = saved["spill"].tolist()
        self._spill = Spill(folder, swaps.row_bytes(tables), era, places, writable=False)
        if len(self._spill) != spilled:
            raise UserError(
                f"{folder}: has {len(self._spill):,} of the {spilled:,} rows of the checkpoint, which trains on; read it again"
            )
        self._residents = Residents(capacity, 1, "lru", self._spill)
        self._residents.load(saved)
        self.names = OriginalIds(dataset, Texts(folder, texts, writable=False))

    def spread(self, length: int, rows: np.ndarray, unknown: bool) -> Any:
        """Tables of `length` rows with those of ids: of table rows `rows` [n] i64 of the dataset, one after the other.

        Args:
          unknown: an id without a row has its field's unknown one, and row 0 is padding; else it has none, and the first
            id is row 0.
        """
        first = 1 if unknown else 0
        made = [np.zeros((length, *tail), dtype) for tail, dtype in self._rows]
        if not unknown:
            width = next(tail[0] for tail, _ in self._rows if tail)
            made = jax.tree.leaves(swaps.never_written(width)(length, 0))
        unknown_of = self.names.unknown_of()
        for part in mapped.parts(len(rows), size=_AT_ONCE):
            some, target = rows[part], first + np.arange(part.start, part.stop)
            keys, _ = self.names.keys(some)
            found = self._residents.find(keys)
            place = np.where(found < 0, self._spill.find(keys), -1)
            here, spilled = np.flatnonzero(found >= 0), np.flatnonzero(place >= 0)
            for table, leaf, data in zip(
                made, self._leaves, swaps.split(self._spill.read(place[spilled]), self._rows), strict=True
            ):
                table[target[here]], table[target[spilled]] = leaf[found[here]], data
            if unknown and len(absent := np.flatnonzero((found < 0) & (place < 0))):
                keys, _ = self.names.keys(unknown_of[some[absent]])
                for table, leaf in zip(made, self._leaves, strict=True):
                    table[target[absent]] = leaf[self._residents.find(keys)]
        return self._tree.unflatten(made)
