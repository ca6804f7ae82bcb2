"""The training and the prediction step: each one jitted function over the mesh."""

import functools
from collections.abc import Callable, Container
from typing import Any

import jax
import optax

from em3_jax import rng, tables, trees
from em3_jax.tasks import Task
from em3_jax.types import Batch, State


def make_init(task: Task, make_tables: Callable) -> Callable:
    """(root key, constants, batch) -> a fresh (params, tables).

    Args:
      make_tables: key -> the ID tables, {} for a task without IDs.
    """

    def init(root: jax.Array, constants: Any, batch: Batch):
        table = make_tables(rng.stream(root, "tables", 0))
        return task.init(rng.stream(root, "params", 0), task.inputs(_lookup(table, batch), constants, batch)), table

    return init


def _lookup(table: tables.Tables, batch: Batch) -> jax.Array | None:
    return tables.lookup(table, batch["row_id"]) if "row_id" in batch else None


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    row_optimizer: tables.RowOptimizer,
    *,
    seed: int,
    table_l2: float,
    frozen: Container[str],
    shardings: State,
) -> Callable:
    """(state, constants, batch) -> (state, named scalars), jitted; the state is donated.

    Look up the distinct rows, differentiate the loss with respect to (params, rows), update both: no gradient as long as a
    table exists, and none of the parameters named in `frozen`.

    Args:
      shardings: where the leaves of the state lie, see `sharding.Layout`.
    """

    def hold(params):
        return trees.map_named(lambda name, leaf: jax.lax.stop_gradient(leaf) if name in frozen else leaf, params)

    def step(root: jax.Array, state: State, constants: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        rows = _lookup(state.tables, batch)

        def loss(params, rows):
            return task.loss(hold(params), task.inputs(rows, constants, batch), root, state.step)

        (value, aux), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state.params, rows)
        updates, opt_state = optimizer.update(gradients[0], state.opt_state, state.params)
        norms, new_tables = {"gradient_norm": optax.tree.norm(gradients[0])}, state.tables
        if rows is not None:
            new_tables = tables.update(state.tables, batch["row_id"], gradients[1], state.step, row_optimizer, table_l2)
            norms["row_gradient_norm"] = optax.tree.norm(gradients[1])
        new_state = State(
            state.step + 1, optax.apply_updates(state.params, updates), opt_state, new_tables, state.memory
        )
        return new_state, {"loss": value} | aux | norms

    compiled = jax.jit(step, donate_argnums=1, out_shardings=(shardings, None))
    # The seed is an argument of the program, not a constant in it: runs of several seeds share what the cache has compiled.
    return functools.partial(compiled, jax.random.key(seed))


def make_apply(task: Task, function: Callable) -> Callable:
    """Jitted (params, tables, constants, batch) -> function(params, inputs): the task's `predict` or `embed`."""

    def apply(params, table: tables.Tables, constants: Any, batch: Batch):
        return function(params, task.inputs(_lookup(table, batch), constants, batch))

    return jax.jit(apply)
