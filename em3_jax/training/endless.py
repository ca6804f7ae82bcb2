"""Ids that come and go in a table of fixed size, on a stream: config.tables.capacity.

A batch names table rows of its dataset, one for each id. Here they become rows of the table that there is, see
`tables.residents`: before a step, ids that are new or come back take theirs, and others leave. That is told ahead of the
steps, in the thread that places batches, and what has to be moved is moved when their turn comes. The batch is of the
shapes it had, and nothing is compiled again, however many ids there were. The same is done with LEMUR's memory bank, where
an item takes a row when it is first encoded.

    <workdir>/spill/<step>.npz    who has which row, and the sketch, as of the checkpoint of that step
    <workdir>/spill/tables/       the rows that have left, see `tables.spill`; memory/ those of the memory bank
"""

import dataclasses
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from em3_jax.config.schema import OnClicks, Retrieval
from em3_jax.config.schema.course import Tables
from em3_jax.core import npy, sharding
from em3_jax.core.batch import CLICKS
from em3_jax.core.errors import UserError
from em3_jax.core.types import Batch, State
from em3_jax.data.batches import Distinct
from em3_jax.data.format import Dataset
from em3_jax.tables import packing, swaps
from em3_jax.tables.id_keys import TEXT, Keys
from em3_jax.training import original_ids, rundir
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.experiment import Experiment
from em3_jax.training.id_rows import IdRows
from em3_jax.training.original_ids import OriginalIds
from em3_jax.training.whereabouts import Changes

FOLDER = "spill"
_ROWS = [name for name, key in CLICKS.items() if key.into == "row_id"]
_NO_ROW = 1 << 29  # from here on a memory bank has none, and each item is another
_WHERE = "config.tables.capacity"
SETTINGS = ("capacity", "admit_after", "evict", "bank_capacity")
"""Those of config.tables that are of a table of fixed size."""


def check(config: OnClicks) -> None:
    """Refuses a table of fixed size where it cannot be had, and without one what would have no effect."""
    if not config.tables.capacity:
        for name in SETTINGS[1:]:
            if (value := getattr(config.tables, name)) != getattr(Tables(), name):
                raise UserError(
                    f"config.tables.{name}={value}: has no effect without config.tables.capacity; set that, or leave it out"
                )
        return
    given = f"{_WHERE}={config.tables.capacity}"
    if config.stream is None:
        raise UserError(
            f"{given}: ids come and go on a stream alone; set config.stream (configs/online.py), or leave it out"
        )
    mesh = config.mesh
    if mesh.model > 1 or (mesh.data or jax.device_count()) > 1:
        raise UserError(f"{given}: a table whose ids come and go is on one device; set config.mesh.data=1")
    if config.tables.optimizer == "adam":
        raise UserError(
            f"{given}: config.tables.optimizer=adam moves every row at each step, also those that have left; choose "
            "lazy_adam or rowwise_adagrad"
        )
    if config.train.init_from and config.train.init_parts == "all":
        raise UserError(
            f"{given}: the ID tables of config.train.init_from are of the ids of a dataset; set "
            "config.train.init_parts=all_but_ids"
        )
    if config.data.placement == "device":
        raise UserError(
            f"{given}: config.data.placement=device holds the content of all items; choose host, or leave it out"
        )


def check_rows(parts: Experiment) -> None:
    """Refuses a table that has no more rows than each batch names, and a capacity of a memory bank that is not there."""
    config, always = parts.config, original_ids.always(parts.work.dataset)
    assert not isinstance(config, Retrieval)
    if config.tables.capacity <= len(always) + 1:
        raise UserError(
            f"{_WHERE}={config.tables.capacity}: {len(always) + 1} rows are in each batch; give more than these"
        )
    if config.tables.bank_capacity and not parts.program.shapes.memory:
        raise UserError(
            f"config.tables.bank_capacity={config.tables.bank_capacity}: has no effect on a model without a memory bank; "
            "leave it out"
        )


def begin(directory: str | Path, parts: Experiment, permitted: bool = True) -> bool:
    """Makes `directory` this run's, or makes sure that it is; returns whether its dataset has grown; see `growth.begin`.

    What the rows of the table stand for is in the map, so ids may be gone from the dataset.
    """
    config, data_hash = parts.config, parts.work.dataset.meta["data_hash"]
    check_rows(parts)
    if (Path(directory) / "run.json").exists() and rundir.read(directory)["data_hash"] != data_hash:
        rundir.check_same(directory, config, data_hash, parts.feature_hashes, grown=permitted)
        return True
    rundir.claim(directory, config, data_hash, parts.feature_hashes)
    return False


def restore_latest(
    checkpoints: Checkpoints, directory: Path, parts: Experiment, state: State, notes: dict[str, Any], keep_notes: bool
) -> tuple[State, dict[str, Any]] | None:
    """(state, notes) of the newest readable checkpoint, of whatever dataset; arguments as of `growth.restore_latest`."""
    del directory, parts, notes, keep_notes
    return checkpoints.restore_latest(state, lambda data_hash: state)


class Moved(NamedTuple):
    """What has to move before a batch: rows of the ID tables, and of the memory bank; None = all were there."""

    ids: Changes | None
    bank: Changes | None


class Endless:
    """The ids of a run's tables, through all datasets that it sees.

    Args:
      directory: the run's folder.
      shapes: of the run's state.
      step: of the checkpoint to go on from; None = the run begins.
      followed: whether `spread` is asked for.

    Raises:
      UserError: a file is missing, was cut, or is of other fields.
    """

    def __init__(self, config: OnClicks, directory: Path, shapes: State, step: int | None, followed: bool = False):
        self._folder, self._config = directory / FOLDER, config
        self._saved_step, saved = step, {} if step is None else read(directory, step)
        self._fields = list(saved.get("fields", []))
        slots = {name: (leaf.shape[1:], np.dtype(leaf.dtype)) for name, leaf in shapes.tables["slots"].items()}
        fresh = swaps.new_rows(config.seed, config.tables.init_scale, slots, shapes.tables["embedding"].shape[1])
        table = config.tables
        parts = {"tables": (table.capacity, shapes.tables, table.admit_after, table.evict, _WHERE, fresh)}
        if shapes.memory:
            never = swaps.never_written(shapes.memory["vector"].shape[1])
            rows, where = table.bank_capacity or table.capacity, "config.tables.bank_capacity"
            parts["memory"] = (rows, shapes.memory, 1, table.evict, where, never)
        self._parts = {
            name: IdRows(self._folder / name, *one, saved.get(name, {}), followed) for name, one in parts.items()
        }
        self._ids, self._items = self._parts["tables"], self._parts.get("memory")
        self._distinct = Distinct(table.capacity)

    def bind(self, dataset: Dataset) -> None:
        """From now on batches are of this dataset.

        Raises:
          UserError: its fields are others than before, or its events have new values.
        """
        part, count = self._ids, dataset.fields.num_rows
        names = part.begin(dataset, count)
        if self._fields and self._fields != names.fields:
            raise UserError(
                f"{dataset.root}: its fields are {', '.join(names.fields)}, those of the run {', '.join(self._fields)}; "
                "choose another --workdir"
            )
        if self._items:
            self._items.begin(dataset, 1 + dataset.num_items, int(names.first[item_field(names)]))
        always = original_ids.always(dataset)
        keys, kept = names.keys(always)
        if not self._fields:
            keys.word[:] = np.where(keys.kind == TEXT, kept.words(keys, np.arange(len(always))), keys.word)
            self._pin(keys, always, sum(field.size - 1 for field in dataset.fields.event), count)
            self._fields = names.fields
        found = part.residents.find(keys)
        if (found < 0).any() or np.count_nonzero(part.residents.pinned) != 1 + len(always):
            raise UserError(
                f"{dataset.root}: a field of its events has other values than the run began with, whose rows {_WHERE} sets "
                "apart; choose another --workdir"
            )
        part.settle(always, found)
        self._unknown = part.know_of(names.unknown_of())
        self._unknown_item = int(self._unknown[names.first[item_field(names)]])

    def _pin(self, keys: Keys, always: np.ndarray, of_events: int, count: int) -> None:
        """Gives rows to what is in each batch: the table's last to values of events' fields, where models look for them."""
        own = self._ids.residents
        is_event = always >= count - of_events
        fits = is_event | (always < own.capacity - of_events)
        rows = np.where(is_event, always - count + own.capacity, always)
        spare = np.setdiff1d(np.arange(1, len(always) + 1), rows[fits])
        rows[~fits] = spare[: np.count_nonzero(~fits)]
        own.pin(keys, rows)

    def compiled(self, state: State) -> State:
        """The state as it is, which is donated; what moves rows is compiled then."""
        tables = self._ids.swaps.compiled(state.tables)
        memory = self._items.swaps.compiled(state.memory) if self._items else state.memory
        return dataclasses.replace(state, tables=tables, memory=memory)

    def named(self, batch: Batch, learn: bool) -> tuple[Batch, Moved]:
        """(a batch of the dataset as the table names its ids, what has to move before it).

        It does not wait for the devices: batches may be named ahead of the steps, one after the other.

        Args:
          learn: the batch is trained on; False scores it, which admits nobody.
        """
        virtual = batch["row_id"][batch["row_id"] < len(self._unknown)].astype(np.int64)
        rows, moves = self._ids.rows(virtual, learn)
        rows = np.where(rows < 0, self._unknown[virtual], rows)
        distinct, position = self._distinct(rows)
        beyond = self._config.tables.capacity + np.arange(len(batch["row_id"]) - len(distinct))
        row_id = np.concatenate([distinct, beyond]).astype(np.int32)
        batch = batch | {name: position[batch[name]] for name in _ROWS} | {"row_id": row_id}
        batch["item_is_known"] = row_id[batch["item_row"][:, 0]] != self._unknown_item
        if self._items is None:
            return batch, Moved(moves, None)
        batch, of_bank = self._in_bank(self._items, batch, learn)
        return batch, Moved(moves, of_bank)

    def _in_bank(self, items: IdRows, batch: Batch, learn: bool) -> tuple[Batch, Changes | None]:
        """`named` for the memory bank: an item that a step may encode has a row, others if they had one."""
        item, position = np.unique(batch["item_id"], return_inverse=True)
        may_be_written = np.zeros(len(item), bool)
        if learn:
            may_be_written[position[batch["encode_position"][batch["encode_mask"]]]] = True
        rows, moves = items.rows(item.astype(np.int64) + 1, learn, may_be_written)
        rows = np.where(rows < 0, _NO_ROW + np.arange(len(rows)), rows)
        return batch | {"item_id": rows[position].astype(np.int32)}, moves

    def moved(self, state: State, moves: Moved) -> State:
        """The state, which is donated, with the rows moved that a batch wants; batches come in the order of their names."""
        if moves.ids is not None:
            state = dataclasses.replace(state, tables=self._ids.moved(state.tables, moves.ids))
        if moves.bank is not None and self._items:
            state = dataclasses.replace(state, memory=self._items.moved(state.memory, moves.bank))
        return state

    def spread(self, state: State, mesh: Mesh) -> tuple[State, np.ndarray]:
        """(the state with a row for each id of the dataset, as of the last step; which table rows [V] have been learnt).

        Of the tables it has the embeddings alone; all arrays are on the host, and the next call may write them again.
        """
        where = self._ids.where
        assert where is not None  # whoever asks has said so
        self._ids.swaps.fetch()
        embedding = np.asarray(packing.unpacked(state.tables["embedding"]))
        shape = sharding.padded(len(where.is_somewhere), mesh), *embedding.shape[1:]
        (embedding,) = where.spread([embedding], lambda: [np.zeros(shape, embedding.dtype)])
        state = dataclasses.replace(state, tables={"embedding": embedding})
        if self._items is not None:
            state = dataclasses.replace(state, memory=self._spread_bank(self._items, state.memory, mesh))
        return state, where.is_somewhere

    def _spread_bank(self, items: IdRows, memory: Any, mesh: Mesh) -> Any:
        """`spread` of the memory bank, in which the first item, that is the second id, has the first row."""
        where, plain = items.where, packing.unpacked(memory)
        assert where is not None
        items.swaps.fetch()
        leaves, tree = jax.tree.leaves(plain), jax.tree.structure(plain)
        length, width = 1 + sharding.padded(len(where.is_somewhere) - 1, mesh), memory["vector"].shape[1]
        never = lambda: jax.tree.leaves(swaps.never_written(width)(length, 0))  # noqa: E731
        whole = where.spread([np.asarray(leaf) for leaf in leaves], never)
        return jax.tree.unflatten(tree, [one[1:] for one in whole])

    def save(self, step: int) -> None:
        """Writes what belongs to the checkpoint of `step`, which follows."""
        if step == self._saved_step:
            return
        arrays: Any = {f"{name}/{key}": a for name, part in self._parts.items() for key, a in part.state().items()}
        path = self._folder / f"{step}.npz"
        temporary = path.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                np.savez(file, fields=np.array(self._fields), **arrays)
            temporary.replace(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written ({error.strerror}); free space and run again to resume"
            ) from None

    def saved(self, step: int, kept: list[int]) -> None:
        """The checkpoint of `step` has been begun; `kept`: the steps of those that are there."""
        if step == self._saved_step:
            return
        self._saved_step = step
        for part in self._parts.values():
            part.spill.saved()
        for path in self._folder.glob("*.npz"):
            if int(path.stem) not in (step, *kept):
                path.unlink()

    def __str__(self) -> str:
        """ "ids 1,000 of 1,024 rows, 350 spilled": for the progress."""
        own = self._ids
        return f"ids in {len(own.residents):,} of {own.residents.capacity:,} rows, {len(own.spill):,} spilled"

    def report(self) -> dict[str, int]:
        """What the curve has of a window."""
        own = self._ids.residents
        counts = {name: getattr(own, name) for name in ("admitted", "evicted", "returned")}
        return {f"ids/{name}": value for name, value in counts.items()} | {
            "ids/resident": len(own),
            "ids/spilled": len(self._ids.spill),
            "ids/spill_bytes": self._ids.spill.bytes,
        }


def item_field(names: OriginalIds) -> int:
    """Number of the field that is the item's own id."""
    return next(k for k, name in enumerate(names.fields) if name.startswith("item/"))


def read(directory: Path, step: int) -> dict[str, Any]:
    """Part -> name -> array of what a run's checkpoint of `step` has beside its state; "fields" -> their names.

    Raises:
      UserError: the file is missing or damaged.
    """
    path = directory / FOLDER / f"{step}.npz"
    try:
        arrays = npy.archive(path)
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not readable ({str(error)[:80]}), so nothing says whose the rows of the table are; restore the file, "
            "or choose another --workdir"
        ) from None
    result: dict[str, Any] = {"fields": arrays.pop("fields").tolist()}
    for name, array in arrays.items():
        part, _, key = name.partition("/")
        result.setdefault(part, {})[key] = array
    return result
