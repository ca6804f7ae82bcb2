"""How the content of items lies on the devices: tables [I, ...] that are read an item at a time, and not written.

CPUs and GPUs have them as they are. A TPU lays out an array in tiles of 8 lines of 128 numbers, of
neighbouring items or of neighbouring numbers, as it has less to fill up. So it reads 8 items for
each, or transposes the whole table at each lookup, which moves 0.5 GB for 4,096 items of 6 x 768
numbers in 16 bits, and 5 GB for 1 x 768 in 32 bits of 800,000 items. There

    tokens  are slabs of two lines an item, of bytes four, which are a tile of its own
    masks   are in the tokens, of which those that are none hold a number that no standardised token
            does; of raw content, bits of one number an item

and a lookup reads as much whatever I is, but for the bits, which a v5e brings whole into its fast
memory where they fit: 4 bytes an item. docs/operations.md has the counts.

Letters: I items, N tokens of an item, K lines of a slab, H numbers of a line.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from em3_jax.tables.packing import LANES

_TILE = 8  # lines
_WORD = 32  # bits
_pytree = functools.partial(jax.tree_util.register_dataclass, data_fields=("lines",), meta_fields=("tail",))


@_pytree
@dataclasses.dataclass(frozen=True)
class Slabs:
    """A table [I, *tail] whose items lie as slabs.

    Attributes:
      lines: [I, K, H] the numbers of an item one after the other, zeros behind them.
      tail: of an item.
    """

    lines: Any
    tail: tuple[int, ...]

    def items(self, found: jax.Array) -> jax.Array:
        """[S, *tail] of `lines` [S, K, H] that were looked up."""
        return found.reshape(len(found), -1)[:, : math.prod(self.tail)].reshape(len(found), *self.tail)

    @staticmethod
    def of(array: Any, xp: Any) -> Any:
        """`lines` of a table [I, *tail], by `xp`, jax.numpy or numpy."""
        count, width = _count(array.dtype), math.prod(array.shape[1:])
        line = -(-width // (count * LANES)) * LANES
        flat = xp.pad(array.reshape(len(array), width), ((0, 0), (0, count * line - width)))
        return flat.reshape(len(array), count, line)


@_pytree
@dataclasses.dataclass(frozen=True)
class Bits:
    """A table [I, N] bool, N at most 32, whose items lie as the bits of a number.

    Attributes:
      lines: [I] i32.
      tail: (N,).
    """

    lines: Any
    tail: tuple[int, ...]

    def items(self, found: jax.Array) -> jax.Array:
        """[S, N] bool of `lines` [S] that were looked up."""
        return (found[:, None] >> jnp.arange(self.tail[0], dtype=jnp.int32)) & 1 > 0

    @staticmethod
    def of(array: Any, xp: Any) -> Any:
        """`lines` of a table [I, N] bool, by `xp`, jax.numpy or numpy."""
        place = xp.left_shift(xp.uint32(1), xp.arange(array.shape[1], dtype=xp.uint32))
        words = xp.where(array, place, xp.uint32(0)).sum(axis=1, dtype=xp.uint32)
        return words.view(xp.int32)


@functools.partial(jax.tree_util.register_dataclass, data_fields=(), meta_fields=())
@dataclasses.dataclass(frozen=True)
class Within:
    """A mask [I, N] that is in its tokens [I, N, E], standardised: |x| is sqrt(E) there at most."""

    @staticmethod
    def marked(tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The tokens with those that are none marked."""
        return jnp.where(mask[..., None], tokens, jnp.finfo(tokens.dtype).max)

    @staticmethod
    def parted(tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(tokens [S, N, E], zero where there are none; mask [S, N]) of marked ones."""
        mask = tokens[..., 0] < jnp.finfo(tokens.dtype).max
        return jnp.where(mask[..., None], tokens, 0), mask


Table = jax.Array | Slabs | Bits
"""[I, ...], as it is or not."""


def lines(table: Table) -> jax.Array:
    """What lies on the devices of a table.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import slabs
    >>> mask = slabs.Bits(slabs.Bits.of(jnp.array([[True, False, True]]), jnp), (3,))
    >>> slabs.lines(mask).tolist(), slabs.lines(jnp.arange(3)).tolist()  # bits 0 and 2 of a number
    ([5], [0, 1, 2])
    """
    return table.lines if isinstance(table, Slabs | Bits) else table


def items(table: Table, look_up: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """[S, ...] some items of a table, of which `look_up` finds what lies on the devices.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import slabs
    >>> tokens = jnp.arange(12.0).reshape(3, 2, 2)
    >>> table = slabs.Slabs(slabs.Slabs.of(tokens, jnp), (2, 2))
    >>> slabs.items(table, lambda lines: lines[jnp.array([2])]).tolist()
    [[[8.0, 9.0], [10.0, 11.0]]]
    """
    found = look_up(lines(table))
    return table.items(found) if isinstance(table, Slabs | Bits) else found


def kind_on(mesh: Mesh, array: np.ndarray) -> type[Slabs] | type[Bits] | None:
    """How a table [I, N, E], or [I, N] bool, lies on the devices of a mesh; None: as it is.

    >>> import jax
    >>> import numpy as np
    >>> from em3_jax.tables import slabs
    >>> mesh = jax.sharding.Mesh(jax.local_devices(backend="cpu")[:1], ("devices",))
    >>> slabs.kind_on(mesh, np.zeros((3, 4, 32), np.float16)) is None  # a CPU has it as it is
    True
    """
    if mesh.devices.flat[0].platform != "tpu":
        return None
    if array.dtype == bool and array.ndim == 2 and array.shape[1] <= _WORD:
        return Bits
    lines, width = array.shape[-2:]
    is_tile = lines % _TILE == 0 or (lines % _count(array.dtype) == 0 and _TILE % lines == 0)
    return None if array.ndim == 3 and is_tile and width % LANES == 0 else Slabs


def bytes_on(mesh: Mesh, array: np.ndarray) -> int:
    """Of a table [I, N, E] on the devices of a mesh.

    >>> import jax
    >>> import numpy as np
    >>> from em3_jax.tables import slabs
    >>> mesh = jax.sharding.Mesh(jax.local_devices(backend="cpu")[:1], ("devices",))
    >>> slabs.bytes_on(mesh, np.zeros((3, 4, 32), np.float16))
    768
    """
    kind = kind_on(mesh, array)
    return len(array) * kind.of(array[:1], np).nbytes if kind else array.nbytes


def _count(dtype: Any) -> int:
    """K: numbers of fewer than 32 bits lie on each other."""
    return max(2, 4 // np.dtype(dtype).itemsize)
