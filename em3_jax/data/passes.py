"""Training batches in whole passes over rows, each filled up to one size with rows of weight 0."""

import abc
import dataclasses
import math
from typing import Self

import numpy as np

from em3_jax.core import rng
from em3_jax.core.types import Batch, Shards
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.blocks import build


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPasses(abc.ABC):
    """A source without end: batch number `step` of a run, from `first_step` on, is a function of that number.

    Letters: B batch.

    Attributes:
      builder: makes batches of rows.
      seed: of the order and of the random replacement of ids.
      first_step: the step of the first batch.
      buckets: padded sizes, of each shard.
      shards: what of each batch is built here.
    """

    builder: BatchBuilder
    seed: int
    first_step: int
    buckets: Buckets
    shards: Shards

    @property
    @abc.abstractmethod
    def steps_per_epoch(self) -> int:
        """The steps of a pass."""

    @abc.abstractmethod
    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """([B] i64 interaction rows, [B] f32 weights, 0 of those that fill up) of the steps from `first_step` on."""

    def steps(self, epochs: float) -> int:
        """The step that so many passes end before."""
        return self.first_step + math.ceil(epochs * self.steps_per_epoch - 1e-9)

    def of_seed(self, seed: int) -> Self:
        """The same rows in the order of another seed."""
        return dataclasses.replace(self, seed=seed)

    def __getitem__(self, step: int) -> Batch:
        rows, weight = self.rows_of_step(step)
        key = rng.numpy_key(self.seed, "unknown", step)
        options: dict = {"buckets": self.buckets, "key": key, "weight": weight, "number": step}
        return build(self.builder, self.shards, rows, **options)
