"""What examples on one device need of what another one holds: asked for by id, and handed out by all-to-all.

Each device has its own examples, and a block of the items that these name and of their table rows.
Item or row i belongs to device i % n: there its content is encoded, its row looked up and updated,
once, however many examples on however many devices name it. So a step

    asks      the ids of its block go to the devices they belong to, which find the distinct ones
    hands out what these make of them goes to the blocks that named them, in the same places

and gradients come back the same way. Nothing that travels grows with a table, with the catalogue,
or with the batch of other devices. Blocks have a fixed size, which the host chooses: see `data.blocks`.

Letters: n devices, A entries of a block for one owner, so that a block has n A; O most distinct ids
of an owner; D width.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from em3_jax.core import gather
from em3_jax.core.batch import NONE
from em3_jax.core.sharding import AXES, BY_ROWS
from em3_jax.core.types import Batch

_mesh: ContextVar[Mesh | None] = ContextVar("mesh of blocks", default=None)


class Route(NamedTuple):
    """Where what a block names is found, and where it goes.

    Attributes:
      owned: [n O] i32 rows of a device's part of a table, ascending, distinct; surplus ones lie beyond.
      slot: [n n A] i32 which of them an entry asks for that a device was sent.
      is_first: [n n A] bool, whether it is the first to ask: of the entries of all blocks that name
        an id, one.
    """

    owned: jax.Array
    slot: jax.Array
    is_first: jax.Array


@contextlib.contextmanager
def blocks_on(mesh: Mesh | None) -> Iterator[None]:
    """While a program is traced: positions count through the block of an example's own device.

    Args:
      mesh: the devices; None = there is one block, of all examples.
    """
    token = _mesh.set(mesh)
    try:
        yield
    finally:
        _mesh.reset(token)


def in_block(function: Callable) -> Callable:
    """`function` of arrays of a batch, on each device's own block and examples where there are several."""
    mesh = _mesh.get()
    return function if mesh is None else on_each(mesh, function)


def rows(array: jax.Array, index: jax.Array) -> jax.Array:
    """`gather.rows` of each device's block by the positions of its own examples."""
    return in_block(gather.rows)(array, index)


def picked(array: jax.Array, index: jax.Array) -> jax.Array:
    """[*, ...] the same of what no gradient is taken of, such as ids and flags."""
    return in_block(functools.partial(jnp.take, axis=0))(array, index)


def on_each(mesh: Mesh, function: Callable, *, shared: int = 0) -> Callable:
    """`function` on each device's part of its arguments, of which the last `shared` are the same everywhere."""

    def call(*arguments: Any) -> Any:
        split = len(arguments) - shared
        specs = (BY_ROWS,) * split + (PartitionSpec(),) * shared
        mapped = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=BY_ROWS, check_vma=False)
        return mapped(*arguments)

    return call


def routes(mesh: Mesh, asked: Mapping[str, jax.Array], room: Mapping[str, int]) -> dict[str, Route]:
    """Where the ids of all blocks are found; one exchange for all kinds.

    Args:
      asked: kind -> [n n A] i32 the ids of each device's block, those of one owner after the other.
      room: kind -> O.
    """

    def one(asked: Mapping[str, jax.Array]) -> dict[str, Route]:
        sent = {kind: ids.reshape(mesh.size, -1) for kind, ids in asked.items()}
        got = _swap(jnp.concatenate(list(sent.values()), axis=1)) // mesh.size
        found, start = {}, 0
        for kind, ids in sent.items():
            found[kind] = _distinct(got[:, start : start + ids.shape[1]].ravel(), room[kind])
            start += ids.shape[1]
        return found

    return on_each(mesh, one)(dict(asked))


def _swap(blocks: jax.Array) -> jax.Array:
    """[n, ...]: entry k from device k, which this device has sent its entry for."""
    return jax.lax.all_to_all(blocks, AXES, 0, 0, tiled=True)


def _distinct(row: jax.Array, room: int) -> Route:
    """The route of the rows [n A] that a device was asked for. By sorting: scatters would queue."""
    number = jnp.arange(len(row), dtype=jnp.int32)
    ascending, order = jax.lax.sort((row, number), num_keys=1)
    is_new = jnp.pad(ascending[1:] != ascending[:-1], (1, 0), constant_values=True)
    place = jnp.cumsum(is_new, dtype=jnp.int32) - 1
    owned = jnp.sort(jnp.where(is_new, ascending, NONE + number))[:room]
    surplus = room - len(owned)
    owned = jnp.pad(owned, (0, max(surplus, 0)), constant_values=jnp.iinfo(jnp.int32).max)
    _, slot, is_first = jax.lax.sort((order, place, is_new), num_keys=1)
    return Route(owned, slot, is_first)


def hand_out(mesh: Mesh, route: Route, values: jax.Array, *columns: jax.Array, dtype: Any = None) -> jax.Array:
    """[n n A, D + columns] the values of what each entry of each block names.

    The gradient is the sum over all entries that name a value, in f32.

    Args:
      values: [n O, D] of `route.owned`.
      columns: each [n n A], of the entries as their owner has them; without gradient. They travel
        with the values, and so take no exchange of their own.
      dtype: in which they travel, and so does the gradient of each entry, which is rounded once
        before it is summed; default: that of `values`.
    """

    def one(values: jax.Array, route: Route, *columns: jax.Array) -> jax.Array:
        found = gather.rows(values, route.slot, dtype)
        sent = jnp.concatenate([found, *(column[:, None].astype(found.dtype) for column in columns)], axis=1)
        return _swap(sent.reshape(mesh.size, -1, sent.shape[1])).reshape(-1, sent.shape[1])

    result: jax.Array = on_each(mesh, one)(values, route, *columns)
    return result


def to_examples(batch: Batch, *values: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(values [S, D] in the places that a batch's items have, [S] bool whether a place counts its item).

    Args:
      batch: in blocks, "item_route" says how; else the items are all there, each in one place.
      values: [*, D] of the items whose content is here, float.
    """
    if "item_route" not in batch:  # nor has a request an "item_mask"
        return values, batch.get("item_mask", jnp.ones(values[0].shape[0], bool))
    mesh = _mesh.get()
    assert mesh is not None  # whoever finds a route has traced on its blocks
    joined = jnp.concatenate(values, axis=1)  # in the widest of their types
    route = batch["item_route"]
    joined = hand_out(mesh, route, joined, route.is_first)
    parts, start = [], 0
    for value in values:
        parts.append(joined[:, start : start + value.shape[1]].astype(value.dtype))
        start += value.shape[1]
    return tuple(parts), batch["item_mask"] & (joined[:, -1] > 0)


def own_items(batch: Batch) -> jax.Array:
    """[S] i32 the items whose content is here: in blocks what each device owns, else "item_id"."""
    if "item_route" not in batch:
        return batch["item_id"]
    mesh = _mesh.get()
    assert mesh is not None  # see `to_examples`

    def one(owned: jax.Array) -> jax.Array:
        return owned * mesh.size + jax.lax.axis_index(AXES)

    return on_each(mesh, one)(batch["item_route"].owned)


def of_all(*values: jax.Array) -> tuple[tuple[jax.Array, ...], jax.Array]:
    """(`values` [B, *] of all devices' examples, [] i32 where those of this device begin).

    Only within `in_block`: there the values are those of a device's own examples. They travel as
    one, and gradients come back summed, each to the device of its example.

    Args:
      values: f32 [B, D], or i32 or bool [B], which have no gradient.
    """
    if _mesh.get() is None:
        return values, jnp.zeros((), jnp.int32)

    def as_floats(one: jax.Array) -> jax.Array:
        same_bits = jax.lax.bitcast_convert_type(one.astype(jnp.int32), jnp.float32)
        return same_bits[:, None]

    columns = [one if one.ndim == 2 else as_floats(one) for one in values]
    every = jax.lax.all_gather(jnp.concatenate(columns, axis=1), AXES, tiled=True)
    found, start = [], 0
    for one, column in zip(values, columns, strict=True):
        part = every[:, start : start + column.shape[1]]
        start += column.shape[1]
        if one.ndim == 1:
            part = jax.lax.bitcast_convert_type(part[:, 0], jnp.int32).astype(one.dtype)
        found.append(part)
    return tuple(found), jax.lax.axis_index(AXES) * len(values[0])


def sums(values: jax.Array, index: jax.Array, length: int) -> jax.Array:
    """[length, ...] f32 `gather.sums` of each device's examples into its own block."""
    mesh = _mesh.get()
    if mesh is None:
        return gather.sums(values, index, length)
    return on_each(mesh, functools.partial(gather.sums, length=length // mesh.size))(values, index)


def total(batch: Batch, values: jax.Array) -> jax.Array:
    """[S] f32 the sum of `values` [S] over all places that an item has in the blocks, at each of them."""
    mesh, route = _mesh.get(), batch["item_route"]
    assert mesh is not None
    out = functools.partial(hand_out, mesh, route)
    # What comes back of a sum over all places is the gradient of what went out to them.
    _, back = jax.vjp(out, jnp.zeros((len(route.owned), 1), jnp.float32))
    (owned,) = back(values.astype(jnp.float32)[:, None])
    return out(owned)[:, 0]


def largest(values: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """([count] f32 the largest of `values` [S] f32, [count] i32 their places), the same on every device.

    Of each device's block only its own largest travel.
    """
    mesh = _mesh.get()
    if mesh is None:
        return jax.lax.top_k(values, count)

    def one(values: jax.Array) -> tuple[jax.Array, jax.Array]:
        value, place = jax.lax.top_k(values, min(count, len(values)))
        place = place + jax.lax.axis_index(AXES) * len(values)
        both = jnp.stack([value, jax.lax.bitcast_convert_type(place.astype(jnp.int32), jnp.float32)])
        every = jax.lax.all_gather(both, AXES, axis=1, tiled=True)
        value, which = jax.lax.top_k(every[0], count)
        return value, jax.lax.bitcast_convert_type(every[1], jnp.int32)[which]

    both = (PartitionSpec(), PartitionSpec())
    return jax.shard_map(one, mesh=mesh, in_specs=BY_ROWS, out_specs=both, check_vma=False)(values)


def from_table(table: jax.Array, batch: Batch) -> jax.Array:
    """Rows of a table [I, ...] of all items: of those that a device owns, in blocks, else of "item_id"."""
    mesh, item = _mesh.get(), batch["item_id"]
    if mesh is None:
        return jnp.take(table, item, axis=0)
    if "item_route" in batch:
        take = functools.partial(jnp.take, axis=0, mode="fill", fill_value=0)
        return on_each(mesh, take)(table, batch["item_route"].owned)
    part = len(table) // mesh.size  # of a pass over the catalogue, which names items of any device
    return jnp.take(table, item % mesh.size * part + item // mesh.size, axis=0)
