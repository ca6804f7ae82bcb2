"""Training batches with a bound on their distinct candidates, so that few items are encoded for many examples.

DeepCTR (Chen et al. 2016, 4.2) trains on 20 pictures with 500 impressions each, CSCNN (Liu et al.
2020) on a fixed number of pictures; encoded once each, they cost what the pictures cost, not the
impressions. The rows of an item are cut into chunks of nearly one size, which are sorted by size
and dealt out round by round, one of each round to a batch. Any chunk of a round may so take the
place of any other, and in every epoch they do at random; and which rows make a chunk is drawn anew.
So the number of batches is the same in every epoch, each row is in one of them, and batches of one
epoch are about equally full.

Letters: B batch, n rows, M most items of a batch, C chunks, K batches of an epoch.
"""

import dataclasses
import functools
from typing import Any

import numpy as np

from em3_jax.core import rng
from em3_jax.data.passes import InPasses


@dataclasses.dataclass(frozen=True)
class Deal:
    """How the rows of an epoch are cut and dealt out; it takes 16 bytes a row, and as many an epoch.

    Attributes:
      rows: [n] i64 interaction rows, those of an item side by side.
      item: [n] i64 number of each row's item.
      start, size: [C] i64 each chunk's rows, largest chunk first.
      batches: K.
      batch_size: B.
      most_items: M.
    """

    rows: np.ndarray
    item: np.ndarray
    start: np.ndarray
    size: np.ndarray
    batches: int
    batch_size: int
    most_items: int

    def epoch(self, seed: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """([n] i64 rows as this epoch orders them within their items, [K, M] i64 chunks of each batch; -1 = none)."""
        order = np.lexsort((rng.uniform_hash(rng.numpy_key(seed, "by_item", number), self.rows), self.item))
        rounds = -(-len(self.size) // self.batches)
        place = np.arange(rounds * self.batches).reshape(rounds, self.batches)
        drawn = rng.uniform_hash(rng.numpy_key(seed, "by_item_chunk", number), place)
        chunk = np.take_along_axis(place, np.argsort(drawn, axis=1, kind="stable"), axis=1)
        return self.rows[order], np.where(chunk < len(self.size), chunk, -1).T


def deal(rows: np.ndarray | range, item: np.ndarray, batch_size: int, most_items: int) -> Deal:
    """The deal with the fewest batches, and among those the smallest chunks.

    Args:
      rows: [n] interaction rows.
      item: [n] their candidates.
      batch_size: B.
      most_items: M, from 1 to B.
    """
    order = np.argsort(item, kind="stable")
    rows, item = np.asarray(rows, np.int64)[order], np.asarray(item, np.int64)[order]
    first = np.flatnonzero(np.diff(item, prepend=-1))
    count = np.diff(first, append=len(item))
    found: list[tuple[int, int, np.ndarray, np.ndarray]] = []
    largest = batch_size // most_items
    while largest:
        parts = -(-count // largest)  # chunks of each item, of sizes that differ by one at most
        of = np.repeat(np.arange(len(count)), parts)
        part = np.arange(len(of)) - np.repeat(np.cumsum(parts) - parts, parts)
        begin, end = part * count[of] // parts[of], (part + 1) * count[of] // parts[of]
        start, size = first[of] + begin, end - begin
        sorted_ = np.argsort(-size, kind="stable")
        start, size = start[sorted_], size[sorted_]
        found.append((_batches(size, batch_size, most_items), largest, start, size))
        largest = min(2 * largest, batch_size) if largest < batch_size else 0
    batches, _, start, size = min(found, key=lambda one: one[:2])
    return Deal(rows, item, start, size, batches, batch_size, most_items)


def _batches(size: np.ndarray, batch_size: int, most_items: int) -> int:
    """The fewest batches K that chunks of descending `size` fit in, whichever of each round a batch gets.

    There are ceil(C / K) rounds, M at most, and a batch of the largest of each holds B rows at most.
    """
    low, high = max(-(-len(size) // most_items), -(-int(size.sum()) // batch_size)), len(size)
    while low < high:
        middle = (low + high) // 2
        fits = size[::middle].sum() <= batch_size
        low, high = (low, middle) if fits else (middle + 1, high)
    return low


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByItemSource(InPasses):
    """Batch number `step` of a training run, without end, of at most M distinct candidates.

    A pass names each row once, in batches that are filled up with rows of weight 0.

    Attributes:
      deal: of the rows.
    """

    deal: Deal

    @property
    def rows(self) -> np.ndarray:
        """[n] i64 what an epoch visits."""
        return self.deal.rows

    @property
    def batch_size(self) -> int:
        return self.deal.batch_size

    @property
    def steps_per_epoch(self) -> int:
        return self.deal.batches

    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        epoch, number = divmod(step - self.first_step, self.deal.batches)
        rows, chunks = self._epoch(epoch)
        chosen = chunks[number][chunks[number] >= 0]
        start, size = self.deal.start[chosen], self.deal.size[chosen]
        offset = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        found = rows[np.repeat(start, size) + offset]
        weight = (np.arange(self.batch_size) < len(found)).astype(np.float32)
        return np.resize(found, self.batch_size), weight

    @functools.cached_property
    def _epoch(self) -> Any:
        """Epoch -> `Deal.epoch`; two are kept, as batches ahead may be of the next."""
        return functools.lru_cache(maxsize=2)(functools.partial(self.deal.epoch, self.seed))
