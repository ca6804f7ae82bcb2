"""The training and the prediction step: each one jitted function over the mesh."""

import dataclasses
from collections.abc import Callable, Container, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from em3_jax.core import exchange, precision, rng, sharding, trees
from em3_jax.core.types import WHOLE, Batch, Shards, State
from em3_jax.tables import id_table, memory_bank, packing
from em3_jax.tasks import Task

Stepped = tuple[State, dict[str, jax.Array]]
Rate = jax.Array | None
"""[] f32 factor on all learning rates; None = 1."""


class _Named(NamedTuple):
    """The table rows that a batch names.

    Attributes:
      row_id: those to look up and to update: sorted and distinct, or in blocks those of each device.
      mesh: of the blocks; None where there are none.
      of_batch: (what is looked up, dtype) -> the rows that the batch has positions of; between
        devices they travel in this dtype.
    """

    row_id: jax.Array
    mesh: Mesh | None
    of_batch: Callable[[jax.Array, Any], jax.Array]

    def lookup(self, table: id_table.Tables) -> jax.Array:
        """The rows `row_id`."""
        if self.mesh is None:
            return id_table.lookup(table, self.row_id)
        return exchange.on_each(self.mesh, id_table.lookup)(table, self.row_id)

    def update(
        self, table: id_table.Tables, gradient: jax.Array, step: jax.Array, rate: jax.Array | None, **options: Any
    ) -> id_table.Tables:
        """The table after one optimizer step on these rows, see `id_table.update`."""
        if self.mesh is None:
            return id_table.update(table, self.row_id, gradient, step, **options, rate=rate)

        def one(table: id_table.Tables, row_id: jax.Array, gradient: jax.Array, shared: Any) -> id_table.Tables:
            padding = jnp.where(jax.lax.axis_index(sharding.AXES) == 0, 0, -1)  # is on the first device
            step, rate = shared
            return id_table.update(table, row_id, gradient, step, **options, padding=padding, rate=rate)

        return exchange.on_each(self.mesh, one, shared=1)(table, self.row_id, gradient, (step, rate))


def _named(task: Task, table: id_table.Tables, batch: Batch, shards: Shards, mesh: Mesh) -> tuple[_Named | None, Batch]:
    """The table rows of a batch, and the batch with the routes of its items where it comes in blocks."""
    if "row_id" not in batch:  # a pass over the catalogue, or a task without ids
        return None, batch
    if shards.in_blocks:
        asked = {"row": batch["row_id"]} | ({"item": batch["item_id"]} if task.uses_content else {})
        rooms = {kind: len(batch[f"{kind}_room"]) // mesh.size for kind in asked}
        found = exchange.routes(mesh, asked, rooms)
        with_route = batch | ({"item_route": found["item"]} if task.uses_content else {})
        out = lambda rows, dtype: exchange.hand_out(mesh, found["row"], rows, dtype=dtype)  # noqa: E731
        return _Named(found["row"].owned, mesh, out), with_route
    return _Named(batch["row_id"], None, lambda rows, dtype: rows), batch


def _with_stored(bank: memory_bank.Bank, batch: Batch, mesh: Mesh) -> Batch:
    """The batch with what the memory bank, if there is one, holds of its items.

    In blocks, of those that a device owns.
    """
    if not bank:
        return batch
    if "item_route" in batch:
        read = exchange.on_each(mesh, memory_bank.read_part)
        return batch | {"stored": read(bank, batch["item_route"].owned)}
    return batch | {"stored": memory_bank.read(bank, batch["item_id"])}


def _written(
    bank: memory_bank.Bank, batch: Batch, writes: memory_bank.Writes, step: jax.Array, mesh: Mesh
) -> memory_bank.Bank:
    """The bank after a step."""
    if "item_route" not in batch:
        return memory_bank.write(bank, batch["item_id"], batch["stored"], writes, step)
    write = exchange.on_each(mesh, memory_bank.write, shared=1)
    return write(bank, batch["item_route"].owned, batch["stored"], writes, step)


def make_init(task: Task, make_tables: Callable, make_memory: Callable, shards: Shards, mesh: Mesh) -> Callable:
    """(root key, constants, batch) -> a fresh (params, tables, memory).

    Args:
      make_tables: key -> the ID tables, {} for a task without IDs.
      make_memory: () -> the memory bank, {} for a task without.
      shards, mesh: see `make_train_step`.
    """

    def init(root: jax.Array, constants: Any, batch: Batch):
        table, bank = make_tables(rng.stream(root, "tables", 0)), make_memory()
        with exchange.blocks_on(mesh if shards.in_blocks else None):
            named, batch = _named(task, table, batch, shards, mesh)
            rows = named and named.of_batch(named.lookup(table), jnp.float32)
            inputs = task.inputs(rows, constants, _with_stored(bank, batch, mesh))
            return task.init(rng.stream(root, "params", 0), inputs), table, bank

    return init


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, constants, batch) -> (state, named scalars), jitted; the state is donated.

    With a factor on all learning rates as a further argument, [] f32, it is another program.

    Attributes:
      jitted: the same with the root key of all randomness as its first argument.
      root: that key; of the step of K seeds, [K] of them.
    """

    jitted: jax.stages.Wrapped
    root: jax.Array

    def __call__(
        self, state: State, constants: Any, batch: Batch, rate: np.float32 | None = None
    ) -> tuple[State, dict[str, jax.Array]]:
        if rate is None:
            return self.jitted(self.root, state, constants, batch)
        return self.jitted(self.root, state, constants, batch, rate)

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
    seed: int | Sequence[int],
    table_l2: float,
    frozen: Container[str],
    shardings: State,
    shards: Shards = WHOLE,
    several: bool = False,
) -> TrainStep:
    """The training step of a task.

    Look up the distinct rows, differentiate the loss with respect to (params, rows), update both: no gradient as long as a
    table exists, and none of the parameters named in `frozen`.

    Args:
      seed: of all randomness of the steps; several ones: state, batch and scalars are those of so many runs, stacked along
        a first axis.
      shardings: where the leaves of the state lie, see `sharding.Layout`.
      shards: which have named the batch's items and rows apart, or in blocks.
      several: the batch is several ones, stacked along a first axis, and so are the scalars: one dispatch for as many steps.
    """

    def hold(params):
        return trees.map_named(lambda name, leaf: jax.lax.stop_gradient(leaf) if name in frozen else leaf, params)

    mesh = jax.tree.leaves(shardings)[0].mesh
    blocks = mesh if shards.in_blocks else None

    def step(root: jax.Array, state: State, constants: Any, batch: Batch, rate: Rate = None) -> Stepped:
        with exchange.blocks_on(blocks):
            return one(root, state, constants, batch, rate)

    def one(root: jax.Array, state: State, constants: Any, batch: Batch, rate: Rate) -> Stepped:
        named, batch = _named(task, state.tables, batch, shards, mesh)
        rows = named and named.lookup(state.tables)
        batch = _with_stored(state.memory, batch, mesh)

        def loss(params, rows):
            rows = named and named.of_batch(rows, task.rows_dtype)
            return task.loss(hold(params), task.inputs(rows, constants, batch), root, state.step)

        differentiated = precision.sums_in_f32(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        (value, aux), gradients = differentiated(state.params, rows)
        updates, opt_state = optimizer.update(gradients[0], state.opt_state, state.params)
        if rate is not None:
            updates = jax.tree.map(lambda update: rate * update, updates)
        norms, new_tables = {"gradient_norm": optax.tree.norm(gradients[0])}, state.tables
        if named:
            assert row_optimizer is not None  # as a task with tables has it
            options = {"optimizer": row_optimizer, "l2": table_l2}
            new_tables = named.update(state.tables, gradients[1], state.step, rate, **options)
            norms["row_gradient_norm"] = optax.tree.norm(gradients[1])
        bank = state.memory
        if writes := aux.pop("writes", None):
            bank = _written(bank, batch, writes, state.step, mesh)
        params = trees.replaced(optax.apply_updates(state.params, updates), aux.pop("statistics", {}))
        new_state = State(state.step + 1, params, opt_state, new_tables, bank)
        return new_state, {"loss": value} | aux | norms

    def steps(root: jax.Array, state: State, constants: Any, batches: Batch, rate: Rate = None) -> Stepped:
        return jax.lax.scan(lambda state, batch: step(root, state, constants, batch, rate), state, batches)

    function = steps if several else step
    if isinstance(seed, int):
        root = jax.random.key(seed)
    else:
        root, function = jnp.stack([*map(jax.random.key, seed)]), jax.vmap(function, in_axes=(0, 0, None, 0))
    compiled = jax.jit(
        function,
        donate_argnums=1,
        out_shardings=(packing.prefix(shardings), None),
        compiler_options=sharding.compiler_options(mesh),
    )
    # The seed is an argument of the program, not a constant in it: runs of several seeds share what the cache has compiled.
    return TrainStep(compiled, root)


def make_apply(task: Task, function: Callable, mesh: Mesh, shards: Shards = WHOLE) -> Callable:
    """Jitted (params, tables, memory, constants, batch) -> function(params, inputs), on all devices: `predict` or `embed`."""

    def apply(params, table: id_table.Tables, bank: memory_bank.Bank, constants: Any, batch: Batch):
        with exchange.blocks_on(mesh if shards.in_blocks else None):
            named, batch = _named(task, table, batch, shards, mesh)
            batch = _with_stored(bank, batch, mesh)
            rows = named and named.of_batch(named.lookup(table), task.rows_dtype)
            return function(params, task.inputs(rows, constants, batch))

    options = sharding.compiler_options(mesh)
    return jax.jit(apply, out_shardings=sharding.replicated(mesh), compiler_options=options)
