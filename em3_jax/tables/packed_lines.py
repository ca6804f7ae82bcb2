"""Rows of a table that are packed into lines: what is added to rows, or put in their place, as what happens to lines."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def later(one: Any, other: Any) -> Any:
    """Of (value, whether it is written), `other` where it is.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packed_lines
    >>> yes, no = jnp.array([True]), jnp.array([False])
    >>> [packed_lines.later((1.0, yes), (2.0, one))[0].tolist() for one in (yes, no)]
    [[2.0], [1.0]]
    """
    return jnp.where(other[1], other[0], one[0]), one[1] | other[1]


def of_rows(
    lines: int, per_line: int, room: int, row: jax.Array, values: Any, merge: Callable
) -> tuple[jax.Array, Any]:
    """([R] i32 lines, values [R, lanes] for them), each line once: the first of its rows has those of all.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import packed_lines
    >>> row, change = jnp.array([0, 1]), jnp.array([[3.0], [4.0]])  # two rows of one number in a line of two
    >>> line, changes = packed_lines.of_rows(5, 2, 1, row, change, merge=jnp.add)
    >>> line.tolist(), changes[0].tolist()  # the second is beyond the table: the first has what is its
    ([0, 6], [3.0, 4.0])

    Args:
      lines: of the table; what is beyond them is not written.
      per_line: rows of a line.
      room: numbers that a row has in its line.
      row: [R] i32 ascending.
      values: tree of [R, ...].
      merge: two trees of [R, lanes] -> one.
    """
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
    beyond = lines + jnp.arange(len(row), dtype=line.dtype)
    # Apart from the scatter: fused into it, XLA would sweep over the whole table.
    return jax.lax.optimization_barrier((jnp.where(is_first, line, beyond), values))
