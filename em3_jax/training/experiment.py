"""A config made into parts: data, model, step functions, state. `train.py` and `eval.py` build the same from the same."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from em3_jax.config import ranges, sections
from em3_jax.core import sharding
from em3_jax.core.errors import UserError
from em3_jax.core.types import Shards, State
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.tasks import Task
from em3_jax.tasks.lemur.setup import lemur
from em3_jax.tasks.pretraining.setup import pretraining
from em3_jax.tasks.ranking.setup import ranking
from em3_jax.tasks.retrieval.setup import SECTIONS as RETRIEVAL_SECTIONS
from em3_jax.tasks.retrieval.setup import retrieval
from em3_jax.tasks.work import SECTIONS
from em3_jax.training import optim, processes, step

ON_STREAMS = ("ranking", "lemur")
TASKS = {"ranking": ranking, "lemur": lemur, "pretraining": pretraining, "retrieval": retrieval}


class Experiment(NamedTuple):
    """What a config stands for.

    Attributes:
      dataset: the opened dataset.
      feature_sets: the content features in use.
      constants: what lies on the device for the whole run: feature tables, graphs.
      mesh: devices.
      source: the training batches.
      place: batch of `source` -> the same on the devices, see `sharding.place`.
      evaluation: split -> source of its batches; None for a task that scores no batches.
      init: () -> fresh State.
      shapes: of the state, with where its leaves lie; to restore one into.
      train_step, train_steps: of one batch and of several, stacked; see `step.make_train_step`.
      predict: (state, batch) -> what the task predicts: logits [B], or the embeddings of all users and items.
      embed: (state, batch) -> [S, D] content embeddings of the batch's items; None without.
      task: what is optimized.
      validate: state -> {metric: value} on validation.
      evaluate: (state, split) -> (slice -> metric -> value, {name: array behind them}); None for a task without clicks.
      headline: the metrics to show.
      frozen: parameter name -> whether the config freezes it.
      eval: config.eval.
      builder, buckets, shards: see `work.Work`.
    """

    dataset: Dataset
    feature_sets: list[FeatureSet]
    constants: Any
    mesh: Mesh
    source: Any
    place: Callable
    evaluation: Callable | None
    init: Callable
    shapes: State
    train_step: functools.partial
    train_steps: functools.partial
    predict: Callable
    embed: Callable | None
    task: Task
    validate: Callable
    evaluate: Callable | None
    headline: tuple[str, ...]
    frozen: dict[str, bool]
    eval: Any
    builder: Callable | None
    buckets: Callable | None
    shards: Shards

    @property
    def feature_hashes(self) -> dict[str, str]:
        """Name -> hash of the feature sets in use."""
        return {features.name: features.manifest["hash"] for features in self.feature_sets}


def check_sections(config: Mapping[str, Any]) -> None:
    """Refuses sections that the config's task does not have, and asks for those that are not there."""
    known = RETRIEVAL_SECTIONS if config.get("task") == "retrieval" else SECTIONS
    of_stream = ("stream",) if "stream" in config and config.get("task") in ON_STREAMS else ()
    sections.check_sections(config, (*known, *of_stream))


def build(config: Mapping[str, Any], num_steps: Callable[[int, int], int]) -> Experiment:
    """The experiment of a config.

    Args:
      config: the sections of its task.
      num_steps: (training rows, batch size) -> length of the run in steps.
    """
    check_sections(config)
    config = ranges.checked(config)
    of_layout = {key: value for key, value in config["mesh"].items() if key not in processes.Settings._fields}
    layout = sections.call(sharding.make_layout, of_layout, "config.mesh")
    mesh = layout.mesh
    work = sections.part("config.task", config["task"], TASKS)(config, mesh, num_steps)
    if work.eval.metric not in work.headline:
        known = sections.nearest(work.eval.metric, work.headline)
        raise UserError(f"config.eval.metric={work.eval.metric}: not a metric of this run; {known}")
    fresh = step.make_init(work.task, work.make_tables, work.make_memory)
    root, place = jax.random.key(config["seed"]), functools.partial(sharding.place, mesh, work.shards)
    example = functools.cache(lambda: place(work.source[0]))
    params = jax.eval_shape(fresh, root, work.constants, example())[0]
    optimizer = sections.call(optim.dense_optimizer, config["optim"], "config.optim", params=params)
    frozen = optim.frozen(params, config["optim"]["multipliers"])

    def make(root, constants, batch) -> State:
        params, table, bank = fresh(root, constants, batch)
        return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), table, bank)

    shapes = jax.eval_shape(make, root, work.constants, example())
    shardings = layout.shardings(shapes)
    shapes = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, shardings)

    def init() -> State:
        state = jax.jit(make, out_shardings=shardings)(root, work.constants, example())
        loaded = {name: encoder.params for name, encoder in work.encoders.items()}
        loaded = {"encoders": loaded} if loaded else {}
        return dataclasses.replace(state, params=state.params | jax.device_put(loaded, sharding.replicated(mesh)))

    def compiled(function: Callable) -> Callable:
        program = step.make_apply(work.task, function, mesh, work.shards.total)
        return lambda state, batch: program(state.params, state.tables, state.memory, work.constants, batch)

    def applied(function: Callable | None) -> Callable | None:
        return None if function is None else compiled(function)

    train_step = functools.partial(
        step.make_train_step,
        work.task,
        optimizer,
        work.row_optimizer,
        seed=config["seed"],
        table_l2=work.table_l2,
        frozen={name for name, is_frozen in frozen.items() if is_frozen},
        shardings=shardings,
        shards=work.shards.total,
    )
    predict = compiled(work.task.predict)
    return Experiment(
        dataset=work.dataset,
        feature_sets=work.feature_sets,
        constants=work.constants,
        mesh=mesh,
        source=work.source,
        place=place,
        evaluation=work.evaluation,
        init=init,
        shapes=shapes,
        train_step=train_step(several=False),
        train_steps=train_step(several=True),
        predict=predict,
        embed=applied(work.task.embed if work.task.embeds else None),
        task=work.task,
        validate=work.validate(predict),
        evaluate=work.evaluate and work.evaluate(predict),
        headline=work.headline,
        frozen=frozen,
        eval=work.eval,
        builder=work.builder,
        buckets=work.buckets,
        shards=work.shards,
    )


def step_cost(parts: Experiment) -> dict[str, float]:
    """{"gigaflops", "temporary_megabytes"} of the compiled training step, as XLA counts them."""
    program = parts.train_step.func
    assert isinstance(program, jax.stages.Wrapped)  # as `jax.jit` gives it
    batch = parts.place(parts.source[0])
    compiled = program.lower(*parts.train_step.args, parts.shapes, parts.constants, batch).compile()
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None and memory is not None  # CPUs and GPUs count both
    return {"gigaflops": cost["flops"] / 1e9, "temporary_megabytes": memory.temp_size_in_bytes / 1e6}


def of_run(record: Mapping[str, Any], data_root: str | Path | None = None) -> Experiment:
    """The experiment of a run that is there, to score with: on one device where its mesh does not fit this machine.

    Args:
      record: of the run, see `rundir.read`.
      data_root: the dataset folder, if it is not where it was in training.

    Raises:
      UserError: there is no dataset; the commands that score a run have --data for one that was moved.
    """
    config = dict(record["config"])
    mesh = config["mesh"]
    if mesh["data"] * mesh["model"] > len(jax.devices()):
        config["mesh"] = mesh | {"data": 1, "model": 1}
    if data_root:
        config["data"] = config["data"] | {"root": str(data_root)}  # a setting is a text
    elif not Path(config["data"]["root"]).is_dir():
        raise UserError(
            f"{config['data']['root']}: no such folder, but the run was trained on the dataset there; if it was moved, say "
            "where it is with --data"
        )
    return build(config, lambda rows, size: 1)
