"""The training and the prediction step: each one jitted function over the mesh."""

import functools
from collections.abc import Callable, Container

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from em3_jax import rng, sharding, tables, trees
from em3_jax.tasks import Inputs, Task, standardise
from em3_jax.types import Batch, State

Features = dict[str, tuple[jax.Array, jax.Array]]
"""Feature tables on the device: {modality: (standardised or raw tokens [I, N, E], mask [I, N])}."""


def inputs_of(rows: jax.Array | None, features: Features, batch: Batch) -> Inputs:
    """A task's inputs: content tokens come with the batch, or are gathered once per distinct item from the device."""
    if "tokens" in batch:
        masks = batch["tokens_mask"]
        tokens = {name: standardise(tokens, masks[name]) for name, tokens in batch["tokens"].items()}
    else:
        tokens = {name: jnp.take(tokens, batch["item_id"], axis=0) for name, (tokens, _) in features.items()}
        masks = {name: jnp.take(mask, batch["item_id"], axis=0) for name, (_, mask) in features.items()}
    return Inputs(rows, tokens, masks, batch)


def make_init(task: Task, make_tables: Callable) -> Callable:
    """(root key, features, batch) -> a fresh (params, tables).

    Args:
      make_tables: key -> the ID tables, {} for a task without IDs.
    """

    def init(root: jax.Array, features: Features, batch: Batch):
        table = make_tables(rng.stream(root, "tables", 0))
        return task.init(rng.stream(root, "params", 0), inputs_of(_lookup(table, batch), features, batch)), table

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
    mesh: Mesh,
) -> Callable:
    """(state, features, batch) -> (state, named scalars), jitted; the state is donated.

    Look up the distinct rows, differentiate the loss with respect to (params, rows), update both: no gradient as long as a
    table exists, and none of the parameters named in `frozen`.
    """

    def hold(params):
        return trees.map_named(lambda name, leaf: jax.lax.stop_gradient(leaf) if name in frozen else leaf, params)

    def step(root: jax.Array, state: State, features: Features, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        rows = _lookup(state.tables, batch)

        def loss(params, rows):
            return task.loss(hold(params), inputs_of(rows, features, batch), root, state.step)

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

    compiled = jax.jit(step, donate_argnums=1, out_shardings=sharding.replicated(mesh))
    # The seed is an argument of the program, not a constant in it: runs of several seeds share what the cache has compiled.
    return functools.partial(compiled, jax.random.key(seed))


def make_apply(function: Callable) -> Callable:
    """Jitted (params, tables, features, batch) -> function(params, inputs): a task's `predict` or `embed`."""

    def apply(params, table: tables.Tables, features: Features, batch: Batch):
        return function(params, inputs_of(_lookup(table, batch), features, batch))

    return jax.jit(apply)
