"""How the rows of a table lie on the devices, and how a few of them are read and written.

A table is an array [V, ...] whose rows are looked up. CPUs and GPUs have it as it is, and so have
checkpoints, whatever wrote them. It lies otherwise, as `Rows`, where that costs less:

    TPU                 lays out arrays narrower than 128 by columns: a row is in as many places as
                        it has numbers, and from 64 wide on each lookup transposes the whole table.
                        So rows are packed into lines of 128 numbers, or made up to a multiple of it.
    several devices     row r lies on device r % n, so that all of them hold as many of the rows that
                        a batch names, whatever fields these are of; see `core.exchange`.

Both are permutations with zeros between: the numbers are the same bit for bit.

Letters: V rows of the table, R rows of a batch, W width.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from em3_jax.core.sharding import BY_ROWS, Layout

LANES = 128  # numbers of a line on TPUs


@dataclasses.dataclass(frozen=True)
class Form:
    """How tables lie.

    Attributes:
      parts: over how many devices rows are dealt out, one after the other.
      lanes: numbers of a line that rows are packed into; 0 = rows as they are.
      unit: of which the number of lines is a multiple, so that they divide over the devices.
      singles: whether tables of one number a row are packed, too.
    """

    parts: int = 1
    lanes: int = 0
    unit: int = 1
    singles: bool = True

    @property
    def is_plain(self) -> bool:
        """Whether tables lie as checkpoints have them."""
        return self.parts == 1 and not self.lanes

    def packs(self, tail: tuple[int, ...]) -> bool:
        """Whether tables with rows of shape `tail` lie in lines."""
        return bool(self.lanes) and (self.singles or bool(tail))

    def per_line(self, tail: tuple[int, ...]) -> int:
        """Rows of a line, for rows of shape `tail`: a power of two; 1 where a row takes a line or more."""
        if not self.packs(tail):
            return 1
        return 1 << int(math.log2(max(self.lanes // math.prod(tail), 1)))


PLAIN = Form()


def form_on(mesh: Mesh, dealt: bool = False) -> Form:
    """How tables lie on the devices of a mesh.

    Args:
      dealt: row r lies on device r % n, as `core.exchange` wants it.
    """
    device = mesh.devices.flat[0]
    lanes = LANES if device.platform == "tpu" else 0
    # Of an array of single numbers a v5e writes the tiles alone; a v6e goes through all of it.
    singles = "v5 lite" not in device.device_kind
    return Form(mesh.size if dealt else 1, lanes, mesh.size, singles) if lanes or dealt else PLAIN


@functools.partial(jax.tree_util.register_dataclass, data_fields=("lines",), meta_fields=("form", "length", "tail"))
@dataclasses.dataclass(frozen=True)
class Rows:
    """A table [V, ...] that lies in another form.

    Attributes:
      lines: what lies on the devices; cut by its first axis, or one device's part of it.
      form: how.
      length: V.
      tail: shape of a row.
    """

    lines: jax.Array
    form: Form
    length: int
    tail: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, *self.tail)

    @property
    def dtype(self) -> Any:
        return self.lines.dtype

    @property
    def size(self) -> int:
        """Numbers that the table has, without those which only fill lines."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.length

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(plain(self), dtype)


Table = jax.Array | Rows


def laid_out(array: jax.Array, form: Form) -> Table:
    """A table [V, ...] in a form; rows that are there only to divide evenly are zero."""
    if form.is_plain:
        return array
    length, tail = len(array), array.shape[1:]
    per_line = form.per_line(tail)
    lines = -(-length // (form.parts * per_line))  # of a device
    while lines * form.parts % form.unit:
        lines += 1
    count = lines * per_line
    array = jnp.pad(array, [(0, count * form.parts - length)] + [(0, 0)] * len(tail))
    array = array.reshape(count, form.parts, *tail).swapaxes(0, 1).reshape(count * form.parts, *tail)
    if form.packs(tail):
        array = array.reshape(len(array), math.prod(tail))
        array = jnp.pad(array, ((0, 0), (0, _room(form, tail) - array.shape[1])))
        array = array.reshape(lines * form.parts, -1)
    return Rows(array, form, length, tail)


def plain(table: Table) -> jax.Array:
    """The table [V, ...] as checkpoints have it."""
    if not isinstance(table, Rows):
        return table
    form, array, tail = table.form, table.lines, table.tail
    if form.packs(tail):
        array = array.reshape(-1, _room(form, tail))[:, : math.prod(tail)].reshape(-1, *tail)
    array = array.reshape(form.parts, -1, *tail).swapaxes(0, 1)
    return array.reshape(-1, *tail)[: table.length]


def is_table(leaf: Any) -> bool:
    """Whether a node of a state is a table in another form: a leaf of what checkpoints have."""
    return isinstance(leaf, Rows)


def prefix(shardings: Any) -> Any:
    """A tree of shardings with one for each table, whatever its length."""
    return jax.tree.map(lambda leaf: leaf.lines if is_table(leaf) else leaf, shardings, is_leaf=is_table)


def shardings(layout: Layout, shapes: Any) -> Any:
    """Where the leaves of a state lie, by their names in checkpoints; tables that are dealt out are cut in any case."""
    flat = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes, is_leaf=is_table)
    everywhere = layout.shardings(flat)

    def one(leaf: Any, where: NamedSharding) -> Any:
        if not is_table(leaf):
            return where
        cut = NamedSharding(layout.mesh, BY_ROWS)
        return dataclasses.replace(leaf, lines=cut if leaf.form.parts > 1 else where)

    return jax.tree.map(one, shapes, everywhere, is_leaf=is_table)


def unpacked(state: Any) -> Any:
    """A state, or shapes of one, with its tables as checkpoints have them, cut by rows over the same devices."""
    return jax.tree.map(_unpacked, state, is_leaf=is_table)


def _unpacked(leaf: Any) -> Any:
    if not is_table(leaf):
        return leaf
    where = NamedSharding(leaf.lines.sharding.mesh, BY_ROWS)
    if isinstance(leaf.lines, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.jit(plain, out_shardings=where)(leaf)


def packed_as(template: Any, state: Any) -> Any:
    """A state of `unpacked` with its tables in the form of those of `template`, a state or shapes of one."""

    def one(wanted: Any, leaf: Any) -> Any:
        if not is_table(wanted):
            return leaf
        return jax.jit(laid_out, static_argnums=1, out_shardings=wanted.lines.sharding)(leaf, wanted.form)

    return jax.tree.map(one, template, state, is_leaf=is_table)


def shapes(length: int, like: Rows) -> Rows:
    """The shapes of a table of `length` rows that lies like another."""
    plainly = jax.ShapeDtypeStruct((length, *like.tail), like.dtype)
    found: Any = jax.eval_shape(lambda array: laid_out(array, like.form), plainly)
    lines = jax.ShapeDtypeStruct(found.lines.shape, like.dtype, sharding=like.lines.sharding)
    return dataclasses.replace(found, lines=lines)


def _room(form: Form, tail: tuple[int, ...]) -> int:
    """Numbers that a row has in its line, or in its lines."""
    per_line = form.per_line(tail)
    return form.lanes // per_line if per_line > 1 else -(-math.prod(tail) // form.lanes) * form.lanes


def take(table: Table, row: jax.Array, *, is_sorted: bool = False) -> jax.Array:
    """[R, ...] the rows `row` [R] i32 of a device's part; zeros beyond it.

    Args:
      is_sorted: `row` ascends, and none occurs twice.
    """
    array = table.lines if isinstance(table, Rows) else table
    options: dict = {"axis": 0, "mode": "fill", "fill_value": 0, "indices_are_sorted": is_sorted}
    if not isinstance(table, Rows) or not table.form.packs(table.tail):
        return jnp.take(array, row, unique_indices=is_sorted, **options)
    width, per_line = math.prod(table.tail), table.form.per_line(table.tail)
    # Apart from what follows: fused with it, the gather would be of whole lines once more.
    line = jax.lax.optimization_barrier(jnp.take(array, row // per_line, **options))
    if per_line > 1:
        mine = (row % per_line)[:, None] == jnp.arange(per_line)
        if width > 1:
            line, mine = line.reshape(len(row), per_line, -1), mine[:, :, None]
        line = jnp.where(mine, line, 0).sum(axis=1).reshape(len(row), -1)
    return line[:, :width].reshape(len(row), *table.tail)


def held(table: Table) -> int:
    """Rows that an array holds: of a table, or of one device's part of it."""
    if not isinstance(table, Rows):
        return len(table)
    return min(table.length, len(table.lines) * table.form.per_line(table.tail))


def among_all(table: Table, row: jax.Array) -> jax.Array:
    """[R] i32 where rows [R] i32 of a table lie in it, the parts of all devices being one array."""
    if not isinstance(table, Rows) or table.form.parts == 1:
        return row
    parts = table.form.parts
    of_part = len(table.lines) // parts * table.form.per_line(table.tail)
    return row % parts * of_part + row // parts


def add(table: Table, row: jax.Array, change: jax.Array) -> Table:
    """The table with `change` [R, ...] added to the rows `row` [R] i32, ascending and distinct.

    Rows beyond a device's part are not written. In place where the table is donated.
    """
    options: dict = {"mode": "drop", "unique_indices": True}
    if not isinstance(table, Rows):
        return table.at[row].add(change, indices_are_sorted=True, **options)
    if not table.form.packs(table.tail):
        lines = table.lines.at[row].add(change, indices_are_sorted=True, **options)
        return dataclasses.replace(table, lines=lines)
    line, change = _in_lines(table, row, change, merge=jnp.add)
    return dataclasses.replace(table, lines=table.lines.at[line].add(change, **options))


def put(table: Table, row: jax.Array, value: jax.Array) -> Table:
    """The table with `value` [R, ...] as its rows `row` [R] i32, ascending; a row that occurs twice has equal values.

    Rows beyond a device's part are not written. In place where the table is donated.
    """
    if not isinstance(table, Rows):
        return table.at[row].set(value, mode="drop")
    if not table.form.packs(table.tail):
        return dataclasses.replace(table, lines=table.lines.at[row].set(value, mode="drop"))
    written = jnp.ones(value.shape, bool)
    line, (value, written) = _in_lines(table, row, (value, written), merge=_later)
    old = jnp.take(table.lines, line, axis=0, mode="fill", fill_value=0)
    new = jax.lax.optimization_barrier(jnp.where(written, value, old))
    lines = table.lines.at[line].set(new, mode="drop", unique_indices=True)
    return dataclasses.replace(table, lines=lines)


def _later(one: Any, other: Any) -> Any:
    """Of (value, whether it is written), `other` where it is."""
    return jnp.where(other[1], other[0], one[0]), one[1] | other[1]


def _in_lines(table: Rows, row: jax.Array, values: Any, merge: Callable) -> tuple[jax.Array, Any]:
    """([R] i32 lines, values [R, lanes] for them), each line once: the first of its rows has those of all.

    Args:
      row: [R] i32 ascending.
      values: tree of [R, ...].
      merge: two trees of [R, lanes] -> one.
    """
    per_line = table.form.per_line(table.tail)
    room = _room(table.form, table.tail)
    mine = jnp.repeat((row % per_line)[:, None] == jnp.arange(per_line), room, axis=1)

    def spread(value: jax.Array) -> jax.Array:
        flat = value.reshape(len(row), -1)
        flat = jnp.pad(flat, ((0, 0), (0, room - flat.shape[1])))
        return jnp.where(mine, jnp.tile(flat, (1, per_line)), 0)

    line, values = row // per_line, jax.tree.map(spread, values)
    reach = 1
    while reach < min(per_line, len(row)):  # each has what `reach` rows from it on have of its line
        same = jnp.pad(line[reach:] == line[:-reach], (0, reach))[:, None]
        later = jax.tree.map(lambda x, n=reach: jnp.pad(x[n:], ((0, n), (0, 0))), values)
        later = jax.tree.map(lambda x, same=same: jnp.where(same, x, 0), later)
        values, reach = merge(values, later), 2 * reach
    is_first = jnp.pad(line[1:] != line[:-1], (1, 0), constant_values=True)
    beyond = len(table.lines) + jnp.arange(len(row), dtype=line.dtype)
    # Apart from the scatter: fused into it, XLA would sweep over the whole table.
    return jax.lax.optimization_barrier((jnp.where(is_first, line, beyond), values))
