"""A run that begins with what another one has learnt."""

import dataclasses
from pathlib import Path
from typing import Any

import jax

from em3_jax.config.schema import Retrieval
from em3_jax.config.schema.course import Train
from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.features import scratch_encoders
from em3_jax.tables import packing
from em3_jax.training.experiment import Experiment
from em3_jax.training.run import Run

ADAPTERS = ("/lora_a", "/lora_b")
ALL, ENCODERS = "all", "encoders"  # of config.train.init_parts
OF_ENCODERS = ("params/encoders/", "params/adapters/")  # the adapters of encoders


def check(settings: Train) -> None:
    """Refuses config.train.init_parts without a run that they could be of."""
    if settings.init_parts != ALL and not settings.init_from:
        raise UserError(
            f"config.train.init_parts={settings.init_parts}: there is no run to take them from; set config.train.init_from"
        )


def missing(parts: Experiment) -> str:
    """What stands still at fresh, random values, of a run that starts from nothing, and what to do; "" where nothing does."""
    config = parts.config
    if config.train.init_from:
        return ""
    encoders: Any = {} if isinstance(config, Retrieval) else config.model.encoders
    loaded = [name for name in parts.work.encoders if not scratch_encoders.is_scratch(encoders[name])]
    still = {"/".join(name.split("/")[:2]) for name, is_frozen in parts.program.frozen.items() if is_frozen}
    drawn = sorted(still - {f"encoders/{name}" for name in loaded})
    if not drawn:
        return ""
    return (
        f"{', '.join(drawn)}: frozen at fresh, random values, by config.optim.multipliers or "
        "config.model.encoder_trains; set config.train.init_from to the run to take them from"
    )


def check_stream(parts: Experiment) -> None:
    """Refuses a stream, whose rows are trained once, with what would stand still at random values."""
    if said := missing(parts):
        raise UserError(said)


def warm_start(state: State, workdir_: str | Path, data_hash: str, parts: str = ALL) -> State:
    """`state` with what another run has learnt; adapters that it lacks stay fresh.

    Args:
      state: a fresh state.
      workdir_: of the other run; its best checkpoint is read.
      data_hash: of the dataset, which has to be that of the other run unless encoders alone are taken.
      parts: "all": parameters and tables. "all_but_ids": the parameters, and the ID tables stay
        fresh: in a second run these overfit what the first has shown them (DICM: Ge et al. 2018,
        5.6, partial warm-up). "encoders": the parameters of the encoders alone, and of
        their adapters, of a run that was pretrained, say.

    Raises:
      UserError: there is no such run, its dataset is another, or its parameters are others than those here.
    """
    run = Run.open(workdir_)
    where = f"config.train.init_from={workdir_}"
    if parts != ENCODERS and run.data_hash != data_hash:
        raise UserError(f"{where}: that run was trained on another dataset; choose another run")
    if parts == ALL and not isinstance(run.config, Retrieval) and run.config.tables.capacity:
        raise UserError(
            f"{where}: the ids of that run come and go in a table of fixed size; set config.train.init_parts=all_but_ids"
        )
    fresh = {"params": state.params, "tables": state.tables}
    if parts == ENCODERS and not any(name.startswith(OF_ENCODERS) for name in trees.named_leaves(fresh)):
        raise UserError(
            "config.train.init_parts=encoders: this model has none among its parameters; set "
            "config.model.content=raw and config.model.encoders, or take other parts"
        )
    sharding_ = jax.tree.leaves(state.params)[0].sharding
    saved = run.checkpoints.read(sharding_)
    run.checkpoints.close()

    def take(name: str, leaf: jax.Array) -> jax.Array:
        if not _is_taken(name, parts):
            return leaf
        found = saved.get(name)
        if found is None and name.endswith(ADAPTERS):
            return leaf
        if found is None or found.shape != leaf.shape:
            there = "absent" if found is None else list(found.shape)
            need = (
                "the same encoders of feature sets of one name"
                if parts == ENCODERS
                else "the same model but for adapters"
            )
            raise UserError(f"{where}: {name} is {there} there and {list(leaf.shape)} here; both runs need {need}")
        return jax.device_put(found, leaf.sharding)

    taken = packing.packed_as(fresh, trees.map_named(take, packing.unpacked(fresh)))
    return dataclasses.replace(state, **taken)


def _is_taken(name: str, parts: str) -> bool:
    if parts == ENCODERS:
        return name.startswith(OF_ENCODERS)
    return parts == ALL or not name.startswith("tables/")
