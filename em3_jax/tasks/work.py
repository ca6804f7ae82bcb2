"""From the sections of a config to the work of a run: a module a task. `experiment` makes the rest, which is alike for all."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from em3_jax.config import sections
from em3_jax.core.types import WHOLE, Shards
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.evaluation.influence import ByUser
from em3_jax.tables import id_table
from em3_jax.tasks import Task

SECTIONS = ("seed", "task", "data", "model", "tables", "optim", "train", "eval", "mesh", "pretraining")


class TableSettings(NamedTuple):
    """config.tables: `width` of the embeddings, `init_scale`, row `optimizer` with `learning_rate`, weight of `l2`."""

    width: int
    init_scale: float
    optimizer: str
    learning_rate: float
    l2: float


class Report(NamedTuple):
    """What was measured on a split.

    Attributes:
      slices: slice -> metric -> value.
      arrays: name -> array behind them.
      by_user: how each user moves them; None where that was not asked for.
    """

    slices: dict[str, dict[str, float]]
    arrays: dict[str, np.ndarray]
    by_user: ByUser | None


class Work(NamedTuple):
    """What differs between the tasks: what is optimized, on which batches, and how it is measured.

    Attributes:
      task: what is optimized.
      dataset: the opened dataset.
      feature_sets: the content features in use.
      constants: what lies on the device for the whole run, for `task.inputs`.
      encoders: feature set -> its encoder, whose weights are among the parameters.
      source: the training batches.
      evaluation: split -> source of its batches; None where none are scored.
      headline: the metrics to show, one of which chooses the best step.
      eval: config.eval; has the field `metric`.
      make_tables: key -> the ID tables.
      row_optimizer, table_l2: of these; None and 0 without.
      validate: predict (state, batch) -> function of the state: {metric: value} on validation.
      evaluate: predict -> (state, split) -> `Report`; None without a split to score.
      shards: what of each batch the sources build here.
      make_memory: () -> the memory bank; {} without.
      builder: dataset -> its batch builder, for the same data with other counts; None where there are no clicks.
      buckets: [interaction rows of some batches] -> bucket sizes that hold them.
    """

    task: Task
    dataset: Dataset
    feature_sets: list[FeatureSet]
    constants: Any
    encoders: dict[str, Any]
    source: Any
    evaluation: Callable | None
    headline: tuple[str, ...]
    eval: Any
    make_tables: Callable
    row_optimizer: id_table.RowOptimizer | None
    table_l2: float
    validate: Callable
    evaluate: Callable | None
    shards: Shards = WHOLE
    make_memory: Callable = dict
    builder: Callable | None = None
    buckets: Callable | None = None


def table_settings(section: dict) -> TableSettings:
    """config.tables."""
    return sections.call(TableSettings, section, "config.tables")
