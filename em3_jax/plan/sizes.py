"""A step's arguments as shapes, of sizes that are not at hand yet."""

import dataclasses
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from em3_jax.config import parse
from em3_jax.config.schema import Config
from em3_jax.core import sharding
from em3_jax.core.batch import KEYS
from em3_jax.core.errors import UserError
from em3_jax.data.buckets import round_up
from em3_jax.data.features import write_features
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.tables import packing
from em3_jax.training.experiment import Experiment

MOST_ROWS = 2**31 - 1
Tokens = Mapping[str, tuple[int, int]]
"""Feature set -> (tokens of an item, their width)."""


class Arguments(NamedTuple):
    """What a step is compiled for: shapes, or arrays."""

    state: Any
    constants: Any
    batch: Any


def at_hand(parts: Experiment) -> Arguments:
    """The arguments of an experiment's own sizes."""
    return Arguments(parts.program.shapes, parts.work.constants, parts.program.place(parts.work.source[0]))


def resized(
    parts: Experiment, rows: int | None = None, items: int | None = None, distinct: int | None = None
) -> Arguments:
    """The arguments with other sizes.

    Args:
      rows: of the ID table.
      items: of the catalogue: of feature tables on the devices, and of a memory bank.
      distinct: items that a batch names; its table rows grow with them.

    Raises:
      UserError: a size does not fit 32 bits, or the task has nothing of it.
    """
    state, constants, batch = at_hand(parts)
    mesh = parts.program.mesh
    for name, size in (("rows", rows), ("items", items), ("distinct", distinct)):
        if size is not None and sharding.padded(size, mesh) > MOST_ROWS:
            raise UserError(f"--{name}={size}: ids are 32 bits wide; give at most {MOST_ROWS - 2048:,}")
    if rows is not None:
        if not state.tables:
            raise UserError(f"--rows={rows}: config.task={parts.config.task} has no ID table; leave it out")
        state = dataclasses.replace(state, tables=longer(state.tables, sharding.padded(rows, mesh)))
    if items is not None:
        if parts.work.builder is None:
            raise UserError(
                f"--items={items}: config.task={parts.config.task} is planned on its own data; leave it out"
            )
        state = dataclasses.replace(state, memory=longer(state.memory, sharding.padded(items, mesh)))
        constants = longer(constants, round_up(items, mesh.size))
    if distinct is not None:
        batch = _naming(parts, batch, distinct)
    return Arguments(state, constants, batch)


def longer(tree: Any, length: int) -> Any:
    """The shapes of a tree of tables, each with so many rows."""

    def one(leaf: Any) -> Any:
        if packing.is_table(leaf):
            return packing.shapes(length, leaf)
        return jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(one, tree, is_leaf=packing.is_table)


def slots(parts: Experiment) -> int:
    """How many items the examples of a batch name, each as often as it is named: candidates and histories."""
    data: Any = parts.config.data
    return data.batch_size * (1 + data.slots)


def named(parts: Experiment) -> int:
    """How many distinct items the batch at hand names; 0 = it names none by position."""
    host = parts.work.source[0]
    return len(np.unique(host["item_id"][host["item_mask"]])) if "item_position" in host else 0


def _naming(parts: Experiment, batch: Any, distinct: int) -> Any:
    """The shapes of a batch that names `distinct` items in all.

    A device of several names as many of them as it has slots for, at most.
    """
    if "item_position" not in batch:
        raise UserError(
            f"--distinct={distinct}: config.task={parts.config.task} names no items by position; leave it out"
        )
    if distinct > slots(parts):
        raise UserError(f"--distinct={distinct}: the examples of a batch name {slots(parts):,} items at most")
    host, devices = parts.work.source[0], parts.program.mesh.size
    now = named(parts)
    # An item more may bring a row of each of its fields; one less takes its own away, others may share the rest.
    unit, fields = 8 * devices, host["item_row"].shape[1] if distinct > now else 1
    size = {"S": distinct, "C": distinct}
    if "item_room" in host:
        size |= {"S": devices * min(distinct, slots(parts) // devices), "C": distinct, "O": distinct}
        size["P"] = max(len(host["row_room"]) + (distinct - now) * fields, 1)
    size["R"] = max(len(host["row_id"]) + (size["S"] - len(host["item_id"])) * fields, 1)
    size = {letter: round_up(length, unit) for letter, length in size.items()}
    if "encode_position" in host:
        size["C"] = len(host["encode_position"])

    def one(name: str, leaf: Any) -> Any:
        length = size.get(KEYS[name].axes[0], len(leaf))
        return jax.ShapeDtypeStruct((length, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding)

    return {name: jax.tree.map(lambda leaf, name=name: one(name, leaf), value) for name, value in batch.items()}


def on_stand_in(config: Config, root: Path) -> Config:
    """A config on the data of `stand_in`; fields that these lack are left out of it."""
    changed = parse.editable(config)
    fields = open_dataset(root).fields
    names = [field.name for _, group in fields.groups() for field in group]
    changed.data.root = str(root)
    changed.data.label = "click"
    changed.data.codes, changed.model.all_numbers = (), "ranges"
    floors = dict(changed.data.unknown_floor)
    with changed.unlocked():
        changed.data.unknown_floor = {name: floor for name, floor in floors.items() if name in names}
        changed.model.numbers = {}
    of_items = [field.name for field in fields.item]
    known = tuple(name for name in changed.model.cic.id_fields if name in of_items)
    changed.model.cic.id_fields = known or (of_items[0],)
    return parse.parse(changed)


@contextmanager
def stand_in(features: tuple[str, ...], tokens: Tokens, batch_size: int) -> Iterator[Path]:
    """A folder with planted data in the place of a dataset that is not at hand, while it is needed.

    Args:
      features: feature sets that a config names, "image[0]" being one of "image"; raw ones are those
        of planted raw content.
      tokens: of these.
      batch_size: B; there are twice as many interactions.
    """
    with tempfile.TemporaryDirectory() as folder:
        names = {name.partition("[")[0] for name in features if not name.startswith("raw_")}
        if unknown := sorted({*tokens} - names):
            known = ", ".join(sorted(names)) or "none"
            raise UserError(f"--tokens: config.data.features has no '{unknown[0]}' without data; it has {known}")
        root = Path(folder) / "planted"
        raw = any(name.startswith("raw_") for name in features)
        synthetic(root, interactions=max(2 * batch_size, 20_000), users=2_000, items=4_000, raw=raw)
        dataset = open_dataset(root)
        for name in names:
            count, width = tokens.get(name, (1, 768))
            array = np.ones((dataset.num_items, count, width), np.float16)
            manifest = {"encoder": "a stand-in", "counts": {"items_with_content": dataset.num_items}}
            mask = np.ones(array.shape[:2], bool)
            write_features(root, name, array, mask, manifest, dataset.meta["item_hash"], overwrite=True)
        yield root
