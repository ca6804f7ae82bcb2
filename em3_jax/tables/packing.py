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
from em3_jax.tables import packed_lines

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

    >>> import jax
    >>> from em3_jax.tables import packing
    >>> mesh = jax.sharding.Mesh(jax.local_devices(backend="cpu")[:1], ("rows",))
    >>> packing.form_on(mesh).is_plain, packing.form_on(mesh, dealt=True).parts
    (True, 1)
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
    """A table [V, ...] in a form; rows that are there only to divide evenly are zero.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> packing.laid_out(jnp.arange(5), packing.Form(parts=2)).lines.tolist()  # two devices
    [0, 2, 4, 1, 3, 0]
    >>> packing.laid_out(jnp.ones((8, 64)), packing.Form(lanes=128)).lines.shape  # two rows a line
    (4, 128)
    """
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
    """The table [V, ...] as checkpoints have it.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> packing.plain(packing.laid_out(jnp.arange(5), packing.Form(parts=2))).tolist()
    [0, 1, 2, 3, 4]
    """
    if not isinstance(table, Rows):
        return table
    form, array, tail = table.form, table.lines, table.tail
    if form.packs(tail):
        array = array.reshape(-1, _room(form, tail))[:, : math.prod(tail)].reshape(-1, *tail)
    array = array.reshape(form.parts, -1, *tail).swapaxes(0, 1)
    return array.reshape(-1, *tail)[: table.length]


def is_table(leaf: Any) -> bool:
    """Whether a node of a state is a table in another form: a leaf of what checkpoints have.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> table = jnp.arange(4)
    >>> packing.is_table(table), packing.is_table(packing.laid_out(table, packing.Form(parts=2)))
    (False, True)
    """
    return isinstance(leaf, Rows)


def prefix(shardings: Any) -> Any:
    """A tree of shardings with one for each table, whatever its length.

    >>> from em3_jax.tables import packing
    >>> table = packing.Rows("cut by rows", packing.Form(parts=2), length=4, tail=())
    >>> packing.prefix({"table": table, "step": "everywhere"})
    {'step': 'everywhere', 'table': 'cut by rows'}
    """
    return jax.tree.map(lambda leaf: leaf.lines if is_table(leaf) else leaf, shardings, is_leaf=is_table)


def shardings(layout: Layout, shapes: Any) -> Any:
    """Where the leaves of a state lie, by their names in checkpoints; tables that are dealt out are cut in any case.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from em3_jax.core.sharding import Layout, make_mesh
    >>> from em3_jax.tables import packing
    >>> mesh = make_mesh(1, 1, jax.devices()[:1])
    >>> state = {"table": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    >>> found = packing.shardings(Layout(mesh, ("table",)), state)
    >>> found["table"].spec, found["bias"].spec
    (P(('data', 'model'),), P())
    """
    flat = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes, is_leaf=is_table)
    everywhere = layout.shardings(flat)

    def one(leaf: Any, where: NamedSharding) -> Any:
        if not is_table(leaf):
            return where
        cut = NamedSharding(layout.mesh, BY_ROWS)
        return dataclasses.replace(leaf, lines=cut if leaf.form.parts > 1 else where)

    return jax.tree.map(one, shapes, everywhere, is_leaf=is_table)


def unpacked(state: Any) -> Any:
    """A state, or shapes of one, with its tables as checkpoints have them, cut by rows over the same devices.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from em3_jax.core.sharding import BY_ROWS, make_mesh
    >>> from em3_jax.tables import packing
    >>> mesh = make_mesh(1, 1, jax.devices()[:1])
    >>> table = packing.laid_out(jnp.arange(4), packing.Form(parts=2))
    >>> table = jax.device_put(table, jax.NamedSharding(mesh, BY_ROWS))
    >>> packing.unpacked({"table": table, "step": 3})["table"].tolist()
    [0, 1, 2, 3]
    """
    return jax.tree.map(_unpacked, state, is_leaf=is_table)


def _unpacked(leaf: Any) -> Any:
    if not is_table(leaf):
        return leaf
    where = NamedSharding(leaf.lines.sharding.mesh, BY_ROWS)
    if isinstance(leaf.lines, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
    return jax.jit(plain, out_shardings=where)(leaf)


def packed_as(template: Any, state: Any) -> Any:
    """A state of `unpacked` with its tables in the form of those of `template`, a state or shapes of one.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> from em3_jax.core.sharding import BY_ROWS, make_mesh
    >>> from em3_jax.tables import packing
    >>> mesh = make_mesh(1, 1, jax.devices()[:1])
    >>> table = packing.laid_out(jnp.arange(4), packing.Form(parts=2))
    >>> table = jax.device_put(table, jax.NamedSharding(mesh, BY_ROWS))
    >>> packing.packed_as(table, jnp.array([5, 6, 7, 8])).lines.tolist()
    [5, 7, 6, 8]
    """

    def one(wanted: Any, leaf: Any) -> Any:
        if not is_table(wanted):
            return leaf
        return jax.jit(laid_out, static_argnums=1, out_shardings=wanted.lines.sharding)(leaf, wanted.form)

    return jax.tree.map(one, template, state, is_leaf=is_table)


def shapes(length: int, like: Rows) -> Rows:
    """The shapes of a table of `length` rows that lies like another.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> table = packing.laid_out(jnp.zeros((4, 64)), packing.Form(lanes=128))
    >>> longer = packing.shapes(9, table)
    >>> longer.shape, longer.lines.shape  # two rows a line
    ((9, 64), (5, 128))
    """
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

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> table = packing.laid_out(jnp.arange(8.0).reshape(4, 2), packing.Form(lanes=128))
    >>> packing.take(table, jnp.array([2, 0])).tolist()
    [[4.0, 5.0], [0.0, 1.0]]
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
    """Rows that an array holds: of a table, or of one device's part of it.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> packing.held(packing.laid_out(jnp.zeros((5, 64)), packing.Form(lanes=128)))
    5
    """
    if not isinstance(table, Rows):
        return len(table)
    return min(table.length, len(table.lines) * table.form.per_line(table.tail))


def among_all(table: Table, row: jax.Array) -> jax.Array:
    """[R] i32 where rows [R] i32 of a table lie in it, the parts of all devices being one array.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> table = packing.laid_out(jnp.arange(4), packing.Form(parts=2))
    >>> place = packing.among_all(table, jnp.arange(4))
    >>> place.tolist(), table.lines[place].tolist()
    ([0, 2, 1, 3], [0, 1, 2, 3])
    """
    if not isinstance(table, Rows) or table.form.parts == 1:
        return row
    parts = table.form.parts
    of_part = len(table.lines) // parts * table.form.per_line(table.tail)
    return row % parts * of_part + row // parts


def add(table: Table, row: jax.Array, change: jax.Array) -> Table:
    """The table with `change` [R, ...] added to the rows `row` [R] i32, ascending and distinct.

    Rows beyond a device's part are not written. In place where the table is donated.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> table = packing.laid_out(jnp.zeros((3, 1)), packing.Form(lanes=128))
    >>> packing.plain(packing.add(table, jnp.array([0, 2]), jnp.array([[1.0], [5.0]]))).tolist()
    [[1.0], [0.0], [5.0]]
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

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packing
    >>> packing.put(jnp.zeros(3), jnp.array([1, 9]), jnp.array([4.0, 6.0])).tolist()  # 9 is beyond it
    [0.0, 4.0, 0.0]
    """
    if not isinstance(table, Rows):
        return table.at[row].set(value, mode="drop")
    if not table.form.packs(table.tail):
        return dataclasses.replace(table, lines=table.lines.at[row].set(value, mode="drop"))
    written = jnp.ones(value.shape, bool)
    line, (value, written) = _in_lines(table, row, (value, written), merge=packed_lines.later)
    old = jnp.take(table.lines, line, axis=0, mode="fill", fill_value=0)
    new = jax.lax.optimization_barrier(jnp.where(written, value, old))
    lines = table.lines.at[line].set(new, mode="drop", unique_indices=True)
    return dataclasses.replace(table, lines=lines)


def _in_lines(table: Rows, row: jax.Array, values: Any, merge: Callable) -> tuple[jax.Array, Any]:
    """`packed_lines.of_rows` of a table."""
    per_line, room = table.form.per_line(table.tail), _room(table.form, table.tail)
    return packed_lines.of_rows(len(table.lines), per_line, room, row, values, merge)
