"""The training and the prediction step: each one jitted function over the mesh."""

import dataclasses
from collections.abc import Callable, Container
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from em3_jax.core import rng, sharding, trees
from em3_jax.core.types import Batch, State
from em3_jax.tables import id_table, memory_bank
from em3_jax.tasks import Task


class _Rows(NamedTuple):
    """The table rows of a batch: `row_id` sorted and distinct, and `position` in it of each row that the batch names."""

    row_id: jax.Array
    position: jax.Array | None

    def of_batch(self, rows: jax.Array) -> jax.Array:
        return rows if self.position is None else jnp.take(rows, self.position, axis=0)


def _merged(table: id_table.Tables, batch: Batch, shards: int) -> tuple[_Rows | None, Batch]:
    """The rows of a batch and the batch with each item counted once, where `shards` have named both apart."""
    if shards == 1 or "row_id" not in batch:  # of a pass over the catalogue, the whole batch names the items
        return (_Rows(batch["row_id"], None) if "row_id" in batch else None), batch
    rows = _Rows(*id_table.distinct(batch["row_id"], len(table["embedding"])))
    mask, item = batch["item_mask"], batch["item_id"]
    number = jnp.arange(len(item))
    order = jnp.lexsort((number, ~mask, item))  # of an item's places, one that counts comes first
    repeats = jnp.concatenate([jnp.zeros(1, bool), item[order][1:] == item[order][:-1]])
    return rows, batch | {"item_mask": mask & ~jnp.zeros_like(mask).at[order].set(repeats)}


def _with_stored(bank: memory_bank.Bank, batch: Batch) -> Batch:
    """The batch with what the memory bank, if there is one, holds of its items."""
    return batch | {"stored": memory_bank.read(bank, batch["item_id"])} if bank else batch


def make_init(task: Task, make_tables: Callable, make_memory: Callable) -> Callable:
    """(root key, constants, batch) -> a fresh (params, tables, memory).

    Args:
      make_tables: key -> the ID tables, {} for a task without IDs.
      make_memory: () -> the memory bank, {} for a task without.
    """

    def init(root: jax.Array, constants: Any, batch: Batch):
        table, bank = make_tables(rng.stream(root, "tables", 0)), make_memory()
        rows = id_table.lookup(table, batch["row_id"]) if "row_id" in batch else None
        inputs = task.inputs(rows, constants, _with_stored(bank, batch))
        return task.init(rng.stream(root, "params", 0), inputs), table, bank

    return init


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, constants, batch) -> (state, named scalars), jitted; the state is donated.

    Attributes:
      jitted: the same with the root key of all randomness as its first argument.
      root: that key.
    """

    jitted: jax.stages.Wrapped
    root: jax.Array

    def __call__(self, state: State, constants: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        return self.jitted(self.root, state, constants, batch)

    def compile(self, state: State, constants: Any, batch: Batch, **options: Any) -> "CompiledStep":
        """The step compiled for arguments like these, which may be shapes alone, with options of the compiler."""
        return CompiledStep(self.jitted.lower(self.root, state, constants, batch).compile(options), self.root)


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A `TrainStep` for arguments of one shape; `program` tells its cost, its memory and its text."""

    program: jax.stages.Compiled
    root: jax.Array

    def __call__(self, state: State, constants: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        return self.program(self.root, state, constants, batch)


def make_train_step(
    task: Task,
    optimizer: optax.GradientTransformation,
    row_optimizer: id_table.RowOptimizer | None,
    *,
    seed: int,
    table_l2: float,
    frozen: Container[str],
    shardings: State,
    shards: int = 1,
    several: bool = False,
) -> TrainStep:
    """The training step of a task.

    Look up the distinct rows, differentiate the loss with respect to (params, rows), update both: no gradient as long as a
    table exists, and none of the parameters named in `frozen`.

    Args:
      shardings: where the leaves of the state lie, see `sharding.Layout`.
      shards: which have named the batch's items and rows apart.
      several: the batch is several ones, stacked along a first axis, and so are the scalars: one dispatch for as many steps.
    """

    def hold(params):
        return trees.map_named(lambda name, leaf: jax.lax.stop_gradient(leaf) if name in frozen else leaf, params)

    def step(root: jax.Array, state: State, constants: Any, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        merged, batch = _merged(state.tables, batch, shards)
        rows = merged and id_table.lookup(state.tables, merged.row_id)
        batch = _with_stored(state.memory, batch)

        def loss(params, rows):
            rows = merged and merged.of_batch(rows)
            return task.loss(hold(params), task.inputs(rows, constants, batch), root, state.step)

        (value, aux), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(state.params, rows)
        updates, opt_state = optimizer.update(gradients[0], state.opt_state, state.params)
        norms, new_tables = {"gradient_norm": optax.tree.norm(gradients[0])}, state.tables
        if merged:
            assert row_optimizer is not None  # as a task with tables has it
            new_tables = id_table.update(state.tables, merged.row_id, gradients[1], state.step, row_optimizer, table_l2)
            norms["row_gradient_norm"] = optax.tree.norm(gradients[1])
        bank = state.memory
        if writes := aux.pop("writes", None):
            bank = memory_bank.write(bank, batch["item_id"], batch["stored"], writes, state.step)
        params = optax.apply_updates(state.params, updates)
        new_state = State(state.step + 1, params, opt_state, new_tables, bank)
        return new_state, {"loss": value} | aux | norms

    def steps(root: jax.Array, state: State, constants: Any, batches: Batch) -> tuple[State, dict[str, jax.Array]]:
        return jax.lax.scan(lambda state, batch: step(root, state, constants, batch), state, batches)

    compiled = jax.jit(steps if several else step, donate_argnums=1, out_shardings=(shardings, None))
    # The seed is an argument of the program, not a constant in it: runs of several seeds share what the cache has compiled.
    return TrainStep(compiled, jax.random.key(seed))


def make_apply(task: Task, function: Callable, mesh: Mesh, shards: int = 1) -> Callable:
    """Jitted (params, tables, memory, constants, batch) -> function(params, inputs), on all devices: `predict` or `embed`."""

    def apply(params, table: id_table.Tables, bank: memory_bank.Bank, constants: Any, batch: Batch):
        merged, batch = _merged(table, batch, shards)
        batch = _with_stored(bank, batch)
        rows = merged and merged.of_batch(id_table.lookup(table, merged.row_id))
        return function(params, task.inputs(rows, constants, batch))

    return jax.jit(apply, out_shardings=sharding.replicated(mesh))
