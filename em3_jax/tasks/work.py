"""The work of a run, made from its config by a module a task.

`training.program` adds what is alike for all of them.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from em3_jax.core.types import WHOLE, Batch, Shards, State
from em3_jax.data.codes import CodeSet
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.evaluation.influence import ByCluster
from em3_jax.tables import id_table
from em3_jax.tasks import Task

Predict = Callable[[State, Batch], Any]
"""(state, batch) -> logits [B], or the embeddings of all users and items: what the task predicts."""


class Report(NamedTuple):
    """What was measured on a split.

    Attributes:
      slices: slice -> metric -> value.
      arrays: name -> array behind them.
      moved_by: "user" or "item" -> how each of them moves the slices; {} where that was not asked for.
      labels: further label -> metric -> value; {} without any.
    """

    slices: dict[str, dict[str, float]]
    arrays: dict[str, np.ndarray]
    moved_by: dict[str, ByCluster]
    labels: Mapping[str, dict[str, float]] = {}


class Evaluate(Protocol):
    """How a task scores a split; `errors` asks for `Report.moved_by`."""

    def __call__(self, predict: Predict, state: State, split: str, /, errors: bool = True) -> Report: ...


@dataclass(frozen=True)
class Work:
    """What differs between the tasks: what is optimized, on which batches, and how it is measured.

    Attributes:
      task: what is optimized.
      dataset: the opened dataset.
      feature_sets: the content features in use.
      beside: the values of an item field that encoders read beside their inputs; None without.
      constants: what lies on the device for the whole run, for `task.inputs`: features, graphs.
      encoders: feature set -> its encoder, whose weights are among the parameters.
      source: the training batches, without end: batch number `step` is a function of the seed and
        that number. It has `rows`, `batch_size`, `of_seed` and `steps`, epochs -> the step that so many end
        before.
      evaluation: split -> source of its batches; None where none are scored.
      headline: the metrics to show, one of which chooses the best step.
      validate: predict, state -> {metric: value} on validation.
      make_tables: key -> the ID tables; {} without.
      row_optimizer, table_l2: of these; None and 0 without.
      evaluate: None without a split to score.
      shards: what of each batch the sources build here.
      make_memory: () -> the memory bank; {} without.
      builder: dataset -> its batch builder, for the same data with other counts; None where there
        are no clicks.
      buckets: [interaction rows of some batches] -> bucket sizes that hold them.
      code_sets: those whose codes are among the dataset's item fields.
      sought_sets: feature sets by which past events are sought.
    """

    task: Task
    dataset: Dataset
    feature_sets: list[FeatureSet]
    constants: Any
    encoders: dict[str, Any]
    source: Any
    evaluation: Callable | None
    headline: tuple[str, ...]
    validate: Callable[[Predict, State], dict[str, float]]
    make_tables: Callable = lambda key: {}
    row_optimizer: id_table.RowOptimizer | None = None
    table_l2: float = 0.0
    evaluate: Evaluate | None = None
    shards: Shards = WHOLE
    make_memory: Callable = dict
    builder: Callable | None = None
    buckets: Callable | None = None
    beside: FeatureSet | None = None
    code_sets: Sequence[CodeSet] = ()
    sought_sets: Sequence[FeatureSet] = ()

    @property
    def content_sets(self) -> list[FeatureSet]:
        """All that a batch has of its items' content: the feature sets, and what is beside them."""
        return self.feature_sets if self.beside is None else [*self.feature_sets, self.beside]
