"""What runs on the devices: the functions of a run, made from its config and its work."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from em3_jax.config import parse
from em3_jax.config.schema import Config
from em3_jax.core import sharding
from em3_jax.core.types import Batch, State
from em3_jax.features import in_model
from em3_jax.tables import packing
from em3_jax.tasks.work import Predict, Work
from em3_jax.training import optim, step


@dataclasses.dataclass(frozen=True)
class Program:
    """The functions of a run.

    Attributes:
      mesh: devices.
      place: batch of the source -> the same on the devices, see `sharding.place`.
      init: (seed) -> fresh State; None = the config's seed.
      shapes: of the state, with where its leaves lie; to restore one into.
      train_step, train_steps: of one batch and of several, stacked; see `step.TrainStep`.
      train_seeds: (seeds) -> the step of as many runs, stacked; see `step.make_train_step`.
      predict: (state, batch) -> what the task predicts, on all devices.
      predict_all: (state, batch) -> [B, 1 + H] logits of all labels; None where there is one.
      embed: (state, batch) -> [S, D] content embeddings of the batch's items; None without.
      frozen: parameter name -> whether the config freezes it.
    """

    mesh: Mesh
    place: Callable
    init: Callable[..., State]
    shapes: State
    train_step: step.TrainStep
    train_steps: step.TrainStep
    train_seeds: Callable[[Sequence[int]], step.TrainStep]
    predict: Predict
    predict_all: Predict | None
    embed: Predict | None
    frozen: dict[str, bool]


def make_layout(config: Config, devices: Sequence[jax.Device] | None = None) -> sharding.Layout:
    """The devices of config.mesh, and what of the state is cut over them; see `sharding.make_mesh`."""
    mesh = config.mesh
    return sharding.make_layout(mesh.data, mesh.model, mesh.by_rows, devices)


def _of_one_call(mesh: Mesh) -> dict[str, str]:
    """Options for XLA of the program that makes a state, which runs once: compiling it takes longer than running it.

    LLVM's first level is done in 0.7 of the time, for code that draws a table in 1.07 of it. It moves no bit: XLA lets
    LLVM neither reorder sums nor guess. Level 0 would: it does not fuse products with sums.
    """
    options, level = sharding.compiler_options(mesh), "xla_backend_optimization_level"
    is_chosen = jax.config.read("jax_disable_most_optimizations") or level in os.environ.get("XLA_FLAGS", "")
    if mesh.devices.flat[0].platform != "cpu" or is_chosen:
        return options
    if isinstance(jnp.zeros(()), jax.core.Tracer):  # within another program, as in `jax.eval_shape`, JAX takes none
        return options
    return options | {level: "1"}


def make_program(config: Config, work: Work, layout: sharding.Layout) -> Program:
    """The program of a config; nothing is compiled before it is called."""
    mesh = layout.mesh
    fresh = step.make_init(work.task, work.make_tables, work.make_memory, work.shards, mesh)
    root, place = jax.random.key(config.seed), functools.partial(sharding.place, mesh, work.shards)
    example = functools.cache(lambda: place(work.source[0]))
    params = jax.eval_shape(fresh, root, work.constants, example())[0]
    rules = in_model.multipliers(work.encoders, config.optim.multipliers)
    optimizer = optim.dense_optimizer(params, **parse.entries(config.optim) | {"multipliers": rules})
    frozen = optim.frozen(params, rules)

    def make(root: jax.Array, constants: Any, batch: Batch) -> State:
        params, table, bank = fresh(root, constants, batch)
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), table, bank)

    shapes = jax.eval_shape(make, root, work.constants, example())
    shardings = packing.shardings(layout, shapes)
    placed = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
    shapes = jax.tree.map(placed, shapes, shardings)

    def init(seed: int | None = None) -> State:
        key = root if seed is None else jax.random.key(seed)
        made = jax.jit(make, out_shardings=shardings, compiler_options=_of_one_call(mesh))
        state = made(key, work.constants, example())
        loaded = {name: encoder.params for name, encoder in work.encoders.items()}
        loaded = {"encoders": loaded} if loaded else {}
        loaded = jax.device_put(loaded, sharding.replicated(mesh))
        return dataclasses.replace(state, params=state.params | loaded)

    def applied(function: Callable) -> Predict:
        apply = step.make_apply(work.task, function, mesh, work.shards)
        constants = work.constants
        return lambda state, batch: apply(state.params, state.tables, state.memory, constants, batch)

    train_step = functools.partial(
        step.make_train_step,
        work.task,
        optimizer,
        work.row_optimizer,
        table_l2=work.table_l2,
        frozen={name for name, is_frozen in frozen.items() if is_frozen},
        shardings=shardings,
        shards=work.shards,
    )
    return Program(
        mesh=mesh,
        place=place,
        init=init,
        shapes=shapes,
        train_step=train_step(seed=config.seed, several=False),
        train_steps=train_step(seed=config.seed, several=True),
        train_seeds=lambda seeds: train_step(seed=seeds),
        predict=applied(work.task.predict),
        predict_all=applied(work.task.predict_all) if work.task.labels.names else None,
        embed=applied(work.task.embed) if work.task.embeds else None,
        frozen=frozen,
    )
