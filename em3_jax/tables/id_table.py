"""The ID embedding table: a lookup and an update that cost what the touched rows cost, however long the table is.

A step names its distinct rows once, sorted; row 0 is padding and stays zero; surplus entries of `row_id` lie beyond the
table's own rows, read as zeros and are not written. Updates are in place when the caller donates the state.

A table may be cut by rows over the devices of a mesh, and lie in another form there, see `tables.packing`. Each device then looks
up and updates its own among the R rows, and only these travel. That holds because nothing is differentiated through the lookup:
the gradient of a `take` is as long as the table.

Letters: V table rows, W width, R distinct rows of a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.core.errors import UserError
from em3_jax.tables import packing

Tables = dict[str, Any]
"""{"embedding": [V, W] f32, "slots": {name: [V, ...] f32}}"""


class RowOptimizer(NamedTuple):
    """A pure optimizer for table rows.

    Attributes:
      init: (embedding [V, W]) -> slots, a dict of [V, ...] arrays.
      update: (slots of the rows, gradient [R, W], step [] i32) -> (delta [R, W], new slots of the rows).
      is_dense: whether every row moves at every step; R is then V, and rows that a step does not
        touch have a gradient of zero, but for an l2 penalty.
    """

    init: Callable
    update: Callable
    is_dense: bool = False


def init(
    key: jax.Array,
    count: int,
    width: int,
    scale: float,
    optimizer: RowOptimizer,
    length: int | None = None,
    form: packing.Form = packing.PLAIN,
) -> Tables:
    """A table of normal embeddings (standard deviation `scale`), its padding row zero, with the optimizer's slots.

    Args:
      count: of rows, of which row 0 is the padding row.
      length: V, at least `count`; what is beyond them is zero and stays so. Default: `count`.
      form: in which the table lies.

    >>> import jax
    >>> from em3_jax.tables import id_table
    >>> tables = id_table.init(jax.random.key(0), 5, 2, 0.01, id_table.rowwise_adagrad(0.1))
    >>> embedding, slots = tables["embedding"], tables["slots"]
    >>> embedding.shape, embedding[0].tolist(), slots["accumulator"].shape
    ((5, 2), [0.0, 0.0], (5,))
    """
    length = length or count
    row = jnp.arange(length)[:, None]
    embedding = scale * jax.random.normal(key, (length, width), jnp.float32)
    embedding = jnp.where((row > 0) & (row < count), embedding, 0.0)
    tables = {"embedding": embedding, "slots": optimizer.init(embedding)}
    return jax.tree.map(lambda array: packing.laid_out(array, form), tables)


def lookup(tables: Tables, row_id: jax.Array) -> jax.Array:
    """[R, W] the rows `row_id` [R] i32 (sorted, distinct); zeros beyond the table.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> tables = {"embedding": jnp.arange(6.0).reshape(3, 2)}
    >>> id_table.lookup(tables, jnp.array([0, 2, 3])).tolist()  # row 3 is beyond the table
    [[0.0, 1.0], [4.0, 5.0], [0.0, 0.0]]
    """
    return packing.take(tables["embedding"], row_id, is_sorted=True)


def update(
    tables: Tables,
    row_id: jax.Array,
    gradient: jax.Array,
    step: jax.Array,
    optimizer: RowOptimizer,
    l2: float = 0.0,
    padding: jax.Array | int = 0,
    rate: jax.Array | None = None,
) -> Tables:
    """The tables after one optimizer step on the rows `row_id`; no other row changes.

    Args:
      row_id: [R] i32, sorted, distinct.
      gradient: [R, W] of the loss with respect to the rows.
      step: [] i32, steps done before this one.
      l2: weight of an L2 penalty 0.5 l2 |row|^2 on the touched rows.
      padding: [] the padding row, which stays as it is; -1 where it is on another device.
      rate: [] f32 factor on the learning rate; None = 1.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> optimizer = id_table.rowwise_adagrad(0.5)
    >>> embedding = jnp.zeros((4, 2))
    >>> tables = {"embedding": embedding, "slots": optimizer.init(embedding)}
    >>> row, gradient = jnp.array([0, 2]), jnp.ones((2, 2))
    >>> tables = id_table.update(tables, row, gradient, jnp.array(0), optimizer)
    >>> tables["embedding"].tolist()  # row 2 alone: row 0 is padding
    [[0.0, 0.0], [0.0, 0.0], [-0.5, -0.5], [0.0, 0.0]]
    """
    if optimizer.is_dense:
        return _update_all(tables, row_id, gradient, step, optimizer, l2, padding, rate)
    old = {name: packing.take(slot, row_id, is_sorted=True) for name, slot in tables["slots"].items()}
    if l2:
        gradient = gradient + l2 * lookup(tables, row_id)
    delta, new = optimizer.update(old, gradient, step)
    delta = delta if rate is None else rate * delta

    def add(table: packing.Table, change: jax.Array) -> packing.Table:
        # Adding is in place on donated buffers; setting would copy on CPU.
        kept = (row_id == padding).reshape(-1, *[1] * (change.ndim - 1))
        return packing.add(table, row_id, jnp.where(kept, 0.0, change))

    slots = {name: add(slot, new[name] - old[name]) for name, slot in tables["slots"].items()}
    return {"embedding": add(tables["embedding"], delta), "slots": slots}


def _update_all(
    tables: Tables,
    row_id: jax.Array,
    gradient: jax.Array,
    step: jax.Array,
    optimizer: RowOptimizer,
    l2: float,
    padding: jax.Array | int,
    rate: jax.Array | None,
) -> Tables:
    """`update` with an optimizer that moves every row. What is zero for good, padding and surplus, stays so."""
    embedding = tables["embedding"]
    kept = (row_id == padding)[:, None]
    every = packing.add(jax.tree.map(jnp.zeros_like, embedding), row_id, jnp.where(kept, 0.0, gradient))
    if l2:
        every = jax.tree.map(lambda g, row: g + l2 * row, every, embedding)
    delta, slots = optimizer.update(tables["slots"], every, step)
    move = lambda row, by: row + (by if rate is None else rate * by)  # noqa: E731
    return {"embedding": jax.tree.map(move, embedding, delta), "slots": slots}


def adam(learning_rate: float, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> RowOptimizer:
    """Adam (Kingma and Ba, 2015) of the whole table, as PyTorch and Keras train embeddings by default.

    A row goes on by its momentum on steps that do not touch it, so one that is touched once moves some
    32 times as far as with `lazy_adam`. A step costs as much as the table is long.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> optimizer, embedding = id_table.adam(0.1), jnp.zeros((2, 1))
    >>> _, slots = optimizer.update(optimizer.init(embedding), jnp.array([[1.0], [0.0]]), jnp.array(0))
    >>> delta, _ = optimizer.update(slots, jnp.zeros((2, 1)), jnp.array(1))
    >>> print(delta.round(3).squeeze() < 0)  # the first row goes on by its momentum
    [ True False]
    """

    def init_slots(embedding):
        # Names of their own: a checkpoint with "variance" and no "count" is an old one of lazy Adam.
        return {"first_moment": jnp.zeros_like(embedding), "second_moment": jnp.zeros_like(embedding)}

    def update_all(slots, gradient, step):
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, slots["first_moment"], gradient)
        variance = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g**2, slots["second_moment"], gradient)
        first, second = (1 - b ** (step + 1.0) for b in (b1, b2))
        move = lambda m, v: -learning_rate * (m / first) / (jnp.sqrt(v / second) + epsilon)  # noqa: E731
        return jax.tree.map(move, mean, variance), {"first_moment": mean, "second_moment": variance}

    return RowOptimizer(init_slots, update_all, is_dense=True)


def rowwise_adagrad(learning_rate: float, epsilon: float = 1e-8) -> RowOptimizer:
    """Adagrad with one accumulator per row: a += mean(g^2), row -= lr g / (sqrt(a) + eps).

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> optimizer = id_table.rowwise_adagrad(0.1)
    >>> slots, gradient = optimizer.init(jnp.zeros((1, 2))), jnp.array([[3.0, 4.0]])
    >>> delta, slots = optimizer.update(slots, gradient, jnp.array(0))
    >>> print(delta.round(3), slots["accumulator"])  # the mean of 9 and 16
    [[-0.085      -0.11300001]] [12.5]
    """

    def init_slots(embedding):
        return {"accumulator": jnp.zeros(embedding.shape[0], jnp.float32)}

    def update_rows(slots, gradient, step):
        accumulator = slots["accumulator"] + jnp.mean(gradient**2, axis=1)
        delta = -learning_rate * gradient / (jnp.sqrt(accumulator)[:, None] + epsilon)
        return delta, {"accumulator": accumulator}

    return RowOptimizer(init_slots, update_rows)


def lazy_adam(learning_rate: float, b1: float = 0.9, b2: float = 0.999, epsilon: float = 1e-8) -> RowOptimizer:
    """Adam (Kingma and Ba, 2015) of each row by itself, on the steps that touch the row.

    Moments decay on these steps only, so their bias is that of as many steps, and a count of them
    (4 bytes a row beside the 8 W of the moments) corrects it. By the global step, a row that a late
    step touches first would move by 0.1 / sqrt(0.001), 3.2 times the rate.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> optimizer = id_table.lazy_adam(0.1)
    >>> slots = optimizer.init(jnp.zeros((1, 1)))
    >>> delta, slots = optimizer.update(slots, jnp.array([[0.25]]), jnp.array(10_000))
    >>> print(delta.round(4), slots["count"])  # the first touch moves by the rate, however late
    [[-0.09999999]] [1.]
    """

    def init_slots(embedding):
        # Two arrays: one shared buffer could not be donated twice.
        slots = {"mean": jnp.zeros_like(embedding), "variance": jnp.zeros_like(embedding)}
        return slots | {"count": jnp.zeros(embedding.shape[0], jnp.float32)}

    def update_rows(slots, gradient, step):
        mean = b1 * slots["mean"] + (1 - b1) * gradient
        variance = b2 * slots["variance"] + (1 - b2) * gradient**2
        count = slots["count"] + 1
        first, second = (1 - b ** count[:, None] for b in (b1, b2))
        delta = -learning_rate * (mean / first) / (jnp.sqrt(variance / second) + epsilon)
        return delta, {"mean": mean, "variance": variance, "count": count}

    return RowOptimizer(init_slots, update_rows)


def counts_of_moments(variance: jax.Array, step: jax.Array) -> jax.Array:
    """[V] f32 counts for the moments of a lazy Adam that did not count yet and corrected by `step`.

    Rows that were ever touched go on as they were corrected then; others begin.

    Args:
      variance: [V, W] f32.
      step: [] i32, steps done.

    >>> import jax.numpy as jnp
    >>> from em3_jax.tables import id_table
    >>> id_table.counts_of_moments(jnp.array([[0.0, 0.0], [0.5, 0.0]]), jnp.array(8)).tolist()
    [0.0, 8.0]
    """
    return jnp.where(jnp.any(variance > 0, axis=1), step.astype(jnp.float32), 0.0)


def row_optimizer(name: str, learning_rate: float) -> RowOptimizer:
    """The row optimizer `name`.

    >>> from em3_jax.tables import id_table
    >>> id_table.row_optimizer("adam", 0.1).is_dense, id_table.row_optimizer("lazy_adam", 0.1).is_dense
    (True, False)
    """
    known: dict[str, Callable[[float], RowOptimizer]] = {
        "rowwise_adagrad": rowwise_adagrad,
        "lazy_adam": lazy_adam,
        "adam": adam,
    }
    if name not in known:
        raise UserError(f"config.tables.optimizer '{name}' is unknown; choose one of {', '.join(known)}")
    return known[name](learning_rate)
