"""A config made into parts: data, model, step functions, state. `train.py` and `eval.py` build the same from the same."""

import functools
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from em3_jax import config as config_
from em3_jax import encoding, optim, sharding, step, tasks, trees, workdir
from em3_jax.checkpoint import Checkpoints
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset, FeatureSet, open_dataset
from em3_jax.data.pipeline import TrainingSource, evaluation_source, training_source
from em3_jax.types import State, UserError

ADAPTERS = ("/lora_a", "/lora_b")
SECTIONS = ("seed", "data", "model", "tables", "optim", "train", "eval", "mesh")


class DataSettings(NamedTuple):
    """config.data.

    Attributes:
      root: dataset folder.
      features: names of the feature sets that make the content tokens.
      placement: of the features: "device", "host" (gathered by the input pipeline), or "auto": device if they fit.
      history_length: T.
      batch_size: B, of all devices together.
      order: "shuffled" or "chronological".
      unknown_alpha, unknown_floor: random replacement of ids by `unknown` in training, see `BatchBuilder`.
    """

    root: str
    features: tuple[str, ...]
    placement: str
    history_length: int
    batch_size: int
    order: str
    unknown_alpha: float
    unknown_floor: Mapping[str, float]


class TableSettings(NamedTuple):
    """config.tables: `width` of the embeddings, `init_scale`, row `optimizer` with `learning_rate`, weight of `l2`."""

    width: int
    init_scale: float
    optimizer: str
    learning_rate: float
    l2: float


class EvalSettings(NamedTuple):
    """config.eval: `batch_size`, `metric` that chooses the best step on validation, `popular_share` of the items."""

    batch_size: int
    metric: str
    popular_share: float


class Experiment(NamedTuple):
    """What a config stands for.

    Attributes:
      dataset: the opened dataset.
      feature_sets: the content features in use.
      feature_tables: those that lie on the device.
      mesh: devices.
      source: the training batches.
      evaluation: split -> source of its batches.
      init: () -> fresh State.
      train_step: see `step.make_train_step`.
      predict: (state, batch) -> logits [B].
      frozen: parameter name -> whether the config freezes it.
      eval: config.eval.
    """

    dataset: Dataset
    feature_sets: list[FeatureSet]
    feature_tables: step.Features
    mesh: Mesh
    source: TrainingSource
    evaluation: Callable
    init: Callable
    train_step: Callable
    predict: Callable
    frozen: dict[str, bool]
    eval: EvalSettings

    @property
    def feature_hashes(self) -> dict[str, str]:
        """Name -> hash of the feature sets in use."""
        return {features.name: features.manifest["hash"] for features in self.feature_sets}


def build(config: Mapping[str, Any], num_steps: Callable[[int, int], int]) -> Experiment:
    """The experiment of a config.

    Args:
      config: sections `SECTIONS`.
      num_steps: (training rows, batch size) -> length of the run in steps.
    """
    config_.check_sections(config, SECTIONS)
    data = config_.call(DataSettings, config["data"], "config.data")
    table_settings = config_.call(TableSettings, config["tables"], "config.tables")
    eval_settings = config_.call(EvalSettings, config["eval"], "config.eval")
    mesh = config_.call(sharding.make_mesh, config["mesh"], "config.mesh")
    sharding.check_divides(mesh, "data.batch_size", data.batch_size)
    sharding.check_divides(mesh, "eval.batch_size", eval_settings.batch_size)

    dataset = open_dataset(data.root)
    task = config_.call(tasks.ranking, config["model"], "config.model", fields=dataset.fields)
    feature_sets = _load_features(dataset, data.features) if task.uses_content else []
    encoders = encoding.raw_encoders(task.encoders, feature_sets)
    task = tasks.with_encoders(task, encoders) if encoders else task
    on_device = _on_device(data.placement, feature_sets)
    feature_tables = _to_device(feature_sets, mesh) if on_device else {}
    builder = _builder(dataset, data, () if on_device else tuple(feature_sets))
    source = training_source(
        builder,
        batch_size=data.batch_size,
        seed=config["seed"],
        order=data.order,
        num_steps=num_steps(len(dataset.split_rows("train")), data.batch_size),
    )

    row_optimizer = optim.row_optimizer(table_settings.optimizer, table_settings.learning_rate)
    fresh = step.make_init(
        task, dataset.fields.num_rows, table_settings.width, table_settings.init_scale, row_optimizer, config["seed"]
    )
    example = functools.cache(lambda: source[0])
    shapes = functools.cache(lambda: jax.eval_shape(fresh, feature_tables, example())[0])
    make_optimizer = functools.partial(config_.call, optim.dense_optimizer, config["optim"], "config.optim")
    optimizer = make_optimizer(params=shapes())
    frozen = optim.frozen(shapes(), config["optim"]["multipliers"])

    def init() -> State:
        @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        def make(features, batch):
            params, table = fresh(features, batch)
            return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), table, {})

        state = make(feature_tables, example())
        loaded = {"encoders": {name: encoder.params for name, encoder in encoders.items()}} if encoders else {}
        return state.replace(params=state.params | jax.device_put(loaded, sharding.replicated(mesh)))

    predict = step.make_predict_step(task)
    return Experiment(
        dataset=dataset,
        feature_sets=feature_sets,
        feature_tables=feature_tables,
        mesh=mesh,
        source=source,
        evaluation=lambda split: evaluation_source(builder, split, eval_settings.batch_size),
        init=init,
        train_step=step.make_train_step(
            task,
            optimizer,
            row_optimizer,
            seed=config["seed"],
            table_l2=table_settings.l2,
            frozen={name for name, is_frozen in frozen.items() if is_frozen},
            mesh=mesh,
        ),
        predict=lambda state, batch: predict(state.params, state.tables, feature_tables, batch),
        frozen=frozen,
        eval=eval_settings,
    )


def _builder(dataset: Dataset, data: DataSettings, host_features: tuple[FeatureSet, ...]) -> BatchBuilder:
    known = [field.name for _, fields in dataset.fields.groups() for field in fields]
    for name in data.unknown_floor:
        if name not in known:
            raise UserError(f"config.data.unknown_floor.{name}: no such field; {config_.nearest(name, known)}")
    return BatchBuilder(
        dataset,
        history_length=data.history_length,
        unknown_alpha=data.unknown_alpha,
        unknown_floor=dict(data.unknown_floor),
        host_features=host_features,
    )


def _load_features(dataset: Dataset, names: tuple[str, ...]) -> list[FeatureSet]:
    if not names:
        raise UserError(
            "config.data.features is empty but config.model.content uses content; name at least one feature set"
        )
    sets = [dataset.features(name) for name in names]
    for features in sets:
        if features.manifest.get("random_weights") is not None:
            warnings.warn(f"features '{features.name}' come from an encoder with random weights", stacklevel=2)
        if features.is_raw:
            continue
        for start in range(0, len(features.tokens), 4096):
            block = (
                np.isfinite(features.tokens[start : start + 4096]).all(axis=-1) | ~features.mask[start : start + 4096]
            )
            if not block.all():
                row = start + int(np.flatnonzero(~block.all(axis=1))[0])
                path = dataset.root / "features" / features.name / "tokens.npy"
                raise UserError(f"{path} row {row}: NaN or infinity; mend the array or mask the token")
    return sets


def _on_device(placement: str, feature_sets: list[FeatureSet]) -> bool:
    if placement not in ("device", "host", "auto"):
        raise UserError(f"config.data.placement '{placement}' is unknown; choose device, host or auto")
    if placement != "auto":
        return placement == "device"
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return sum(features.tokens.nbytes for features in feature_sets) <= memory / 2


def _to_device(feature_sets: list[FeatureSet], mesh: Mesh) -> step.Features:
    place = functools.partial(jax.device_put, device=sharding.replicated(mesh))
    tables = {}
    for features in feature_sets:
        mask = place(np.asarray(features.mask))
        tables[features.name] = (tasks.standardise(place(np.asarray(features.tokens)), mask), mask)
    return tables


def warm_start(state: State, workdir_: str | Path, data_hash: str) -> State:
    """`state` with the parameters and tables of another run on the same data; adapters that it lacks stay fresh.

    Args:
      state: a fresh state.
      workdir_: of the other run; its best checkpoint is read.
      data_hash: of the dataset.

    Raises:
      UserError: there is no such run, its dataset is another, or its parameters are others than those here.
    """
    record = workdir.read(workdir_)
    if record["data_hash"] != data_hash:
        raise UserError(
            f"config.train.init_from={workdir_}: that run was trained on another dataset; choose another run"
        )
    sharding_ = jax.tree.leaves(state.params)[0].sharding
    checkpoints = Checkpoints(workdir_)
    saved = checkpoints.read(sharding_)
    checkpoints.close()

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
        return found

    taken = trees.map_named(take, {"params": state.params, "tables": state.tables})
    return state.replace(**taken)
