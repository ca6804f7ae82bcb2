"""Tasks made of another task: what is not written here is as that one has it."""

import dataclasses
from typing import Any

import jax

from em3_jax.core.labels import Labels
from em3_jax.core.types import Batch
from em3_jax.tasks import Inputs, Loss, Params, Task


@dataclasses.dataclass(frozen=True, eq=False)
class WrappedTask(Task):
    """`task` by another name; classes that derive from it change some of its methods.

    Attributes:
      task: the task inside.
    """

    task: Task

    @property
    def uses_content(self) -> bool:
        return self.task.uses_content

    @property
    def rows_dtype(self) -> Any:
        return self.task.rows_dtype

    @property
    def embeds(self) -> bool:
        return self.task.embeds

    @property
    def can_be_served(self) -> bool:
        return self.task.can_be_served

    @property
    def labels(self) -> Labels:
        return self.task.labels

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Any:
        return self.task.inputs(rows, constants, batch)

    def init(self, key: jax.Array, inputs: Any) -> Params:
        return self.task.init(key, inputs)

    def loss(self, params: Params, inputs: Any, key: jax.Array, step: jax.Array) -> Loss:
        return self.task.loss(params, inputs, key, step)

    def predict(self, params: Params, inputs: Any) -> Any:
        return self.task.predict(params, inputs)

    def predict_all(self, params: Params, inputs: Any) -> jax.Array:
        return self.task.predict_all(params, inputs)

    def embed(self, params: Params, inputs: Any) -> jax.Array:
        return self.task.embed(params, inputs)

    def codes(self, params: Params, inputs: Any) -> jax.Array:
        return self.task.codes(params, inputs)

    def lookup(self, params: Params, inputs: Any) -> dict[str, jax.Array]:
        return self.task.lookup(params, inputs)

    def score(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.score(params, inputs)

    def score_all(self, params: Params, inputs: Inputs) -> jax.Array:
        return self.task.score_all(params, inputs)


@dataclasses.dataclass(frozen=True, eq=False)
class OnGivenTokens(WrappedTask):
    """`task` on tokens that come with the batch and are standardised already."""

    def inputs(self, rows: jax.Array | None, constants: Any, batch: Batch) -> Inputs:
        """The tokens as they come; `constants` are not read."""
        return Inputs(rows, batch.get("tokens", {}), batch.get("tokens_mask", {}), batch)
