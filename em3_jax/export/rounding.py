"""What storing vectors in f16 or int8 costs: AUC on validation with what is looked up as the model gives it, and as it is stored.

Letters: n rows of validation, S distinct items of a batch.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from em3_jax import metrics
from em3_jax.core.types import Batch, State
from em3_jax.evaluation import ranking as ranking_evaluation
from em3_jax.serving.vectors import Vectors
from em3_jax.tasks import Inputs
from em3_jax.tasks.wrapped import WrappedTask
from em3_jax.training import step
from em3_jax.training.experiment import Experiment

FOUND = "looked_up"
"""Key of a batch: name -> [S, W] what was looked up of its items."""


class Cost(NamedTuple):
    """What rounding changes.

    Attributes:
      auc: on validation, of vectors as they are stored.
      loss: what the model's own have more.
      largest: change of a logit.
    """

    auc: float
    loss: float
    largest: float

    def told(self, dtype: str) -> str:
        """In words."""
        return (
            f"vectors in {dtype}: AUC on validation {self.auc:.4f}, {-self.loss:+.5f} by rounding; logits move by up to "
            f"{self.largest:.2g}"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class OnLookedUp(WrappedTask):
    """A task whose batches bring what was looked up of their items."""

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Inputs:
        return Inputs(rows, batch[FOUND], {}, batch)


class _Looked:
    """A source's batches with what is looked up of their items beside them."""

    def __init__(self, source: Any, vectors: dict[str, Vectors]):
        self._source, self._vectors = source, vectors
        self.rows = source.rows

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Batch:
        batch = {name: one for name, one in self._source[index].items() if not name.startswith("tokens")}
        return batch | {FOUND: {name: one.rows(batch["item_id"]) for name, one in self._vectors.items()}}


def cost(parts: Experiment, state: State, stored: dict[str, Vectors]) -> Cost | None:
    """What rounding changes.

    Args:
      stored: of all items of the dataset, by name.

    Returns:
      None where nothing is looked up or scored, where the first label is an amount, which has no AUC, and on several
      devices, whose batches come in blocks.
    """
    work = parts.work
    is_amount = bool(work.task.labels.first)
    if not stored or is_amount or work.evaluation is None or work.evaluate is None or parts.program.mesh.size > 1:
        return None
    apply = step.make_apply(OnLookedUp(work.task), work.task.score, parts.program.mesh, work.shards)
    source: Any = _Looked(work.evaluation("valid"), stored)  # as a source of batches has it
    rounded = ranking_evaluation.predict(
        source, lambda batch: apply(state.params, state.tables, state.memory, {}, batch)
    )
    exact = work.evaluate(parts.program.predict, state, "valid", False).arrays["logits"]
    settings: Any = parts.config.data  # of clicks, as there are scores
    label = work.dataset.label(settings.label)[np.asarray(source.rows)]
    auc = metrics.auc(label, rounded)
    return Cost(auc, metrics.auc(label, exact) - auc, float(np.abs(rounded - exact).max(initial=0)))
