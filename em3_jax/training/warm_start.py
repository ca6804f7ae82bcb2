"""A run that begins with what another one has learnt."""

import dataclasses
from pathlib import Path

import jax

from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.tables import packing
from em3_jax.training.run import Run

ADAPTERS = ("/lora_a", "/lora_b")


def warm_start(state: State, workdir_: str | Path, data_hash: str) -> State:
    """`state` with the parameters and tables of another run on the same data; adapters that it lacks stay fresh.

    Args:
      state: a fresh state.
      workdir_: of the other run; its best checkpoint is read.
      data_hash: of the dataset.

    Raises:
      UserError: there is no such run, its dataset is another, or its parameters are others than those here.
    """
    run = Run.open(workdir_)
    if run.data_hash != data_hash:
        raise UserError(
            f"config.train.init_from={workdir_}: that run was trained on another dataset; choose another run"
        )
    sharding_ = jax.tree.leaves(state.params)[0].sharding
    saved = run.checkpoints.read(sharding_)
    run.checkpoints.close()

    def take(name: str, leaf: jax.Array) -> jax.Array:
        found = saved.get(name)
        if found is None and name.endswith(ADAPTERS):
            return leaf
        if found is None or found.shape != leaf.shape:
            there = "absent" if found is None else list(found.shape)
            raise UserError(
                f"config.train.init_from={workdir_}: {name} is {there} there and {list(leaf.shape)} here; both runs need the "
                "same model but for adapters"
            )
        return jax.device_put(found, leaf.sharding)

    fresh = {"params": state.params, "tables": state.tables}
    taken = packing.packed_as(fresh, trees.map_named(take, packing.unpacked(fresh)))
    return dataclasses.replace(state, **taken)
