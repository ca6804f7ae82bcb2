"""Batches of items, not of interactions: for training on content alone, and for computing something of every item.

Letters: B items of a batch. The keys of a batch: see `core.batch.CATALOGUE`.
"""

import dataclasses
import math

import numpy as np

from em3_jax.core import rng
from em3_jax.core.types import Batch
from em3_jax.data.batches import gather_content
from em3_jax.data.format import FeatureSet
from em3_jax.data.pipeline import InEpochs, rows_of_step


@dataclasses.dataclass(frozen=True)
class CatalogueSource(InEpochs):
    """Batch number `step` of a training run over items, without end; epoch after epoch, each a permutation of its own.

    A batch across the border of two epochs may name an item twice; its mask counts it once.

    Attributes:
      rows: [n] items.
      batch_size: B.
      seed: of the order.
      host_features: feature sets to gather into the batch; empty when they lie on the device.
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    host_features: tuple[FeatureSet, ...]

    def __getitem__(self, step: int) -> Batch:
        items = rows_of_step(self.rows, self.batch_size, self.seed, "shuffled", step)
        mask = np.zeros(self.batch_size, bool)
        mask[np.unique(items, return_index=True)[1]] = True
        return _batch(items, mask, self.host_features)


@dataclasses.dataclass(frozen=True)
class CataloguePass:
    """Batch number k of one pass over the items `rows` [n] in order, the last one filled up."""

    rows: np.ndarray
    batch_size: int
    host_features: tuple[FeatureSet, ...]

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        position = index * self.batch_size + np.arange(self.batch_size)
        items = self.rows[np.minimum(position, len(self.rows) - 1)]
        return _batch(items, position < len(self.rows), self.host_features)


def _batch(items: np.ndarray, mask: np.ndarray, host_features: tuple[FeatureSet, ...]) -> Batch:
    batch = {"item_id": items.astype(np.int32), "item_mask": mask}
    return batch | gather_content(host_features, batch["item_id"])


def hold_out(num_items: int, share: float) -> tuple[np.ndarray, np.ndarray]:
    """(items to train on, items held out), `share` of them chosen at random, the same in every run."""
    order = rng.permute(np.arange(num_items), num_items, rng.numpy_key(0, "epoch", 0))
    held = max(int(share * num_items), 1)
    return np.sort(order[held:]), np.sort(order[:held])
