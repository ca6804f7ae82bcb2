"""A config made into parts: data, model, step functions, state. `train.py` and `eval.py` build the same from the same."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from em3_jax import config as config_
from em3_jax import encoding, evaluators, optim, placement, sharding, step, tables, trees, workdir
from em3_jax.checkpoint import Checkpoints
from em3_jax.data import catalogue
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset, FeatureSet, open_dataset
from em3_jax.data.pipeline import TrainingSource, evaluation_source, training_rows, training_source
from em3_jax.tasks import Task
from em3_jax.tasks.pretraining import METRICS, pretraining
from em3_jax.tasks.ranking import ranking
from em3_jax.tasks.raw import with_encoders
from em3_jax.types import State, UserError

ADAPTERS = ("/lora_a", "/lora_b")
SECTIONS = ("seed", "task", "data", "model", "tables", "optim", "train", "eval", "mesh", "pretraining")


class DataSettings(NamedTuple):
    """config.data.

    Attributes:
      root: dataset folder.
      label: which of the dataset's labels: "click" or a further one, e.g. "conversion".
      features: feature sets that make the content tokens, whole or some slots of them: "image", "image[0]", "image[:4]".
      placement: of the features: "device", "host" (gathered by the input pipeline), or "auto": device if they fit.
      history_length: T.
      batch_size: B, of all devices together.
      order: "shuffled" or "chronological".
      most_rows_per_user: training rows of a user, see `pipeline.training_rows`; 0 = all.
      unknown_alpha, unknown_floor: random replacement of ids by `unknown` in training, see `BatchBuilder`.
    """

    root: str
    label: str
    features: tuple[str, ...]
    placement: str
    history_length: int
    batch_size: int
    order: str
    most_rows_per_user: int
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


class PretrainingSettings(NamedTuple):
    """config.pretraining: `temperature` of the contrast, share of the items to `hold_out` for validation."""

    temperature: float
    hold_out: float


class Experiment(NamedTuple):
    """What a config stands for.

    Attributes:
      dataset: the opened dataset.
      feature_sets: the content features in use.
      feature_tables: those that lie on the device.
      mesh: devices.
      source: the training batches.
      evaluation: split -> source of its batches; None for a task without clicks.
      init: () -> fresh State.
      train_step: see `step.make_train_step`.
      predict: (state, batch) -> logits [B].
      embed: (state, batch) -> [S, D] content embeddings of the batch's items; None without content.
      validate: state -> {metric: value} on validation.
      headline: the metrics to show.
      frozen: parameter name -> whether the config freezes it.
      eval: config.eval.
    """

    dataset: Dataset
    feature_sets: list[FeatureSet]
    feature_tables: step.Features
    mesh: Mesh
    source: TrainingSource | catalogue.CatalogueSource
    evaluation: Callable | None
    init: Callable
    train_step: Callable
    predict: Callable
    embed: Callable | None
    validate: Callable
    headline: tuple[str, ...]
    frozen: dict[str, bool]
    eval: EvalSettings

    @property
    def feature_hashes(self) -> dict[str, str]:
        """Name -> hash of the feature sets in use."""
        return {features.name: features.manifest["hash"] for features in self.feature_sets}


class _Content(NamedTuple):
    """The content features of a run: all of them, those to gather on the host, and the tables on the device."""

    sets: list[FeatureSet]
    on_host: tuple[FeatureSet, ...]
    tables: step.Features


class _Work(NamedTuple):
    """What differs between the tasks: what is optimized, on which batches, and how it is measured.

    Attributes:
      task, source, evaluation, headline: as in `Experiment`.
      make_tables: key -> the ID tables.
      row_optimizer: of these; None without IDs.
      validate: predict (state, batch) -> function of the state.
    """

    task: Task
    source: TrainingSource | catalogue.CatalogueSource
    evaluation: Callable | None
    headline: tuple[str, ...]
    make_tables: Callable
    row_optimizer: tables.RowOptimizer | None
    validate: Callable


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
    make = config_.part("config.task", config["task"], {"ranking": _ranking, "pretraining": _pretraining})

    dataset = open_dataset(data.root)
    content, encoders, work = make(config, dataset, data, table_settings, eval_settings, mesh, num_steps)
    if eval_settings.metric not in work.headline:
        raise UserError(f"config.eval.metric: {config_.nearest(eval_settings.metric, work.headline)}")
    fresh = step.make_init(work.task, work.make_tables)
    root = jax.random.key(config["seed"])
    example = functools.cache(lambda: work.source[0])
    shapes = functools.cache(lambda: jax.eval_shape(fresh, root, content.tables, example())[0])
    optimizer = config_.call(optim.dense_optimizer, config["optim"], "config.optim", params=shapes())
    frozen = optim.frozen(shapes(), config["optim"]["multipliers"])

    def init() -> State:
        @functools.partial(jax.jit, out_shardings=sharding.replicated(mesh))
        def make(root, features, batch):
            params, table = fresh(root, features, batch)
            return State(jnp.zeros((), jnp.int32), params, optimizer.init(params), table, {})

        state = make(root, content.tables, example())
        loaded = {"encoders": {name: encoder.params for name, encoder in encoders.items()}} if encoders else {}
        return state.replace(params=state.params | jax.device_put(loaded, sharding.replicated(mesh)))

    def applied(function: Callable | None) -> Callable | None:
        if function is None:
            return None
        compiled = step.make_apply(function)
        return lambda state, batch: compiled(state.params, state.tables, content.tables, batch)

    predict = applied(work.task.predict)
    return Experiment(
        dataset=dataset,
        feature_sets=content.sets,
        feature_tables=content.tables,
        mesh=mesh,
        source=work.source,
        evaluation=work.evaluation,
        init=init,
        train_step=step.make_train_step(
            work.task,
            optimizer,
            work.row_optimizer,
            seed=config["seed"],
            table_l2=table_settings.l2,
            frozen={name for name, is_frozen in frozen.items() if is_frozen},
            mesh=mesh,
        ),
        predict=predict,
        embed=applied(work.task.embed),
        validate=work.validate(predict),
        headline=work.headline,
        frozen=frozen,
        eval=eval_settings,
    )


def _ranking(config, dataset, data, table_settings, eval_settings, mesh, num_steps):
    if dataset.meta.get("only_clicks"):
        raise UserError(f"{data.root}: holds clicks alone, nothing to rank them against; prepare it with --as-clicks")
    task = config_.call(ranking, config["model"], "config.model", fields=dataset.fields)
    content = _content(dataset, data, mesh) if task.uses_content else _Content([], (), {})
    encoders = encoding.raw_encoders(task.encoders, content.sets)
    task = with_encoders(task, encoders) if encoders else task
    builder = _builder(dataset, data, content.on_host)
    row_optimizer = optim.row_optimizer(table_settings.optimizer, table_settings.learning_rate)
    evaluation = functools.cache(lambda split: evaluation_source(builder, split, eval_settings.batch_size))

    def validate(predict: Callable) -> Callable:
        def report(state: State) -> dict[str, float]:
            source = evaluation("valid")
            logits = evaluators.predict(source, lambda batch: predict(state, batch))
            share = eval_settings.popular_share
            return evaluators.evaluate(dataset, np.asarray(source.rows), logits, content.sets, share, data.label)["all"]

        return report

    rows = training_rows(dataset, data.label, data.most_rows_per_user)
    work = _Work(
        task=task,
        source=training_source(
            builder,
            rows,
            batch_size=data.batch_size,
            seed=config["seed"],
            order=data.order,
            num_steps=num_steps(len(rows), data.batch_size),
        ),
        evaluation=evaluation,
        headline=("auc", "gauc", "logloss"),
        make_tables=lambda key: tables.init(
            key, dataset.fields.num_rows, table_settings.width, table_settings.init_scale, row_optimizer
        ),
        row_optimizer=row_optimizer,
        validate=validate,
    )
    return content, encoders, work


def _pretraining(config, dataset, data, table_settings, eval_settings, mesh, num_steps):
    settings = config_.call(PretrainingSettings, config["pretraining"], "config.pretraining")
    model = config["model"]
    task = pretraining(
        fusion=model["fusion"], fusion_settings=model["fusion_settings"], temperature=settings.temperature
    )
    content = _content(dataset, data, mesh)
    train_items, held_out = catalogue.hold_out(dataset.num_items, settings.hold_out)
    steps = num_steps(len(train_items), data.batch_size)

    def validate(predict: Callable) -> Callable:
        source = catalogue.CataloguePass(held_out, eval_settings.batch_size, content.on_host)

        def report(state: State) -> dict[str, float]:
            results = jax.device_get([predict(state, source[k]) for k in range(len(source))])
            count = np.array([result["count"] for result in results])
            return {name: float(np.average([result[name] for result in results], weights=count)) for name in METRICS}

        return report

    work = _Work(
        task=task,
        source=catalogue.CatalogueSource(train_items, data.batch_size, config["seed"], steps, content.on_host),
        evaluation=None,
        headline=METRICS,
        make_tables=lambda key: {},
        row_optimizer=None,
        validate=validate,
    )
    return content, {}, work


def _content(dataset: Dataset, data: DataSettings, mesh: Mesh) -> _Content:
    sets = placement.load_features(dataset, data.features)
    if placement.on_device(data.placement, sets):
        return _Content(sets, (), placement.to_device(sets, mesh))
    return _Content(sets, tuple(sets), {})


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
        label=data.label,
    )


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
