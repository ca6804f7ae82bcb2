"""The input pipeline: whole batches as the elements of a Grain source, prepared ahead and moved to the device ahead.

A batch is a function of (seed, step), so the position in the data is the step number and nothing else has to be saved.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Any, Protocol, Self

import grain
import jax
import numpy as np

from em3_jax.core import messages, rng
from em3_jax.core.errors import UserError
from em3_jax.core.types import WHOLE, Batch, Shards
from em3_jax.data import blocks
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.blocks import build, by_user
from em3_jax.data.buckets import round_up
from em3_jax.data.by_group import BY_GROUP, GroupOrder
from em3_jax.data.by_item import ByItemSource, deal
from em3_jax.data.format import Dataset
from em3_jax.data.passes import InPasses

BY_ITEM = "by_item"
FEW = 8  # the unit of items, each of which is work for an encoder


class InEpochs:
    """A source without end that goes through its rows epoch after epoch, batches across borders.

    Attributes:
      rows: what an epoch visits.
      batch_size: B.
    """

    rows: Any
    batch_size: int

    @property
    def steps_per_epoch(self) -> int:
        """The steps that visit all rows."""
        return math.ceil(len(self.rows) / self.batch_size)

    def steps(self, epochs: float) -> int:
        """The step that so many epochs end before."""
        return math.ceil(epochs * len(self.rows) / self.batch_size)

    def of_seed(self, seed: int) -> Self:
        """The same rows in the order of another seed."""
        source: Any = self
        return dataclasses.replace(source, seed=seed)


@dataclasses.dataclass(frozen=True)
class TrainingSource(InEpochs):
    """Batch number `step` of a training run, without end; the loop decides how many there are.

    Attributes:
      builder: makes batches.
      rows: interaction rows of the training split, in time order.
      batch_size: B.
      seed: of the order and of the random replacement of ids.
      order: "shuffled": epoch after epoch, each a permutation of its own, batches running across the border;
        "chronological": the same without permutation; "by_group": see `by_group`. Within a batch see `blocks.by_user`.
      buckets: padded sizes, of each shard.
      shards: what of each batch is built here.
      groups: of order "by_group".
    """

    builder: BatchBuilder
    rows: np.ndarray | range
    batch_size: int
    seed: int
    order: str
    buckets: Buckets
    shards: Shards
    groups: GroupOrder | None = None

    def __getitem__(self, step: int) -> Batch:
        rows = rows_of_step(self.rows, self.batch_size, self.seed, self.order, step, self.groups)
        return build(
            self.builder,
            self.shards,
            rows[by_user(self.builder, self.shards, rows)],
            buckets=self.buckets,
            key=rng.numpy_key(self.seed, "unknown", step),
            number=step,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GrownSource(InPasses):
    """Batch number `step` of a run that goes on over rows that are new to it, in whole passes.

    A pass names each row once: in as few steps as hold the rows, of one size but for a row, each filled up with rows of
    weight 0. So however few the rows are, no pass is mixed with the next, and none is trained more often than another.

    Attributes:
      rows: [n] i64 interaction rows, in time order.
      batch_size, order, groups: as of `TrainingSource`.
    """

    rows: np.ndarray
    batch_size: int
    order: str
    groups: GroupOrder | None = None

    @property
    def steps_per_epoch(self) -> int:
        return steps_of_pass(len(self.rows), self.batch_size)

    def rows_of_step(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        count, steps = len(self.rows), steps_of_pass(len(self.rows), self.batch_size)
        number, part = divmod(step - self.first_step, steps)
        start, end = part * count // steps, (part + 1) * count // steps
        index = start + np.arange(self.batch_size, dtype=np.int64)
        weight = (index < end).astype(np.float32)
        index = np.minimum(index, end - 1)
        if self.order == "shuffled":
            index = rng.permute(index, count, rng.numpy_key(self.seed, "grown", self.first_step, number))
        elif self.groups is not None:
            index = self.groups(index, self.seed, "grown", self.first_step, number)
        rows = self.rows[index]
        place = by_user(self.builder, self.shards, rows)
        return rows[place], weight[place]


def steps_of_pass(rows: int, batch_size: int) -> int:
    """The steps of a pass of a `GrownSource`."""
    return -(-rows // batch_size)


@dataclasses.dataclass(frozen=True)
class EvaluationSource:
    """Batch number k of one pass over `rows` in order; the last is filled up with rows of weight 0."""

    builder: BatchBuilder
    rows: np.ndarray | range
    batch_size: int
    buckets: Buckets
    shards: Shards

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __getitem__(self, index: int) -> Batch:
        position = index * self.batch_size + np.arange(self.batch_size)
        weight = (position < len(self.rows)).astype(np.float32)
        rows = _take(self.rows, np.minimum(position, len(self.rows) - 1))
        options: dict = {"buckets": self.buckets, "weight": weight, "number": index}
        return build(self.builder, self.shards, rows, **options)


@dataclasses.dataclass(frozen=True)
class GroupedSource:
    """A source whose elements are groups of another's batches: stacked along a first axis, or one by one in a list.

    Attributes:
      source: of batches.
      groups: their numbers, see `step_groups`.
      size: of the groups to stack; smaller ones, and batches of different shapes, come in lists.
    """

    source: Any
    groups: list[range]
    size: int

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Batch | list[Batch]:
        batches = [self.source[step] for step in self.groups[index]]
        shapes = [jax.tree.map(np.shape, batch) for batch in batches]
        if len(batches) < self.size or self.size == 1 or shapes.count(shapes[0]) < len(shapes):
            return batches
        return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)


def step_groups(start: int, total: int, size: int, ends: tuple[int, ...]) -> list[range]:
    """The steps from `start` to `total` in groups of at most `size`, each ended by every multiple of the numbers `ends`."""
    stops = {total, *(stop for end in ends for stop in range(start - start % end + end, total, end))}
    groups = []
    for stop in sorted(stops):
        groups += [range(step, min(step + size, stop)) for step in range(start, stop, size)]
        start = stop
    return groups


def rows_of_step(
    rows: np.ndarray | range, batch_size: int, seed: int, order: str, step: int, groups: GroupOrder | None = None
) -> np.ndarray:
    """[B] i64: the interaction rows of a training step; each epoch visits every row exactly once."""
    epoch, index = np.divmod(step * batch_size + np.arange(batch_size, dtype=np.int64), len(rows))
    if order == "shuffled" or groups is not None:
        for number in np.unique(epoch):  # one, or two where the batch runs across the border of an epoch
            inside, key = epoch == number, (seed, "epoch", int(number))
            if groups is None:
                index[inside] = rng.permute(index[inside], len(rows), rng.numpy_key(*key))
            else:
                index[inside] = groups(index[inside], *key)
    elif order != "chronological":
        raise UserError(f"config.data.order '{order}' is unknown; choose shuffled, chronological, by_item or by_group")
    return _take(rows, index)


def _take(rows: np.ndarray | range, index: np.ndarray) -> np.ndarray:
    return rows.start + index if isinstance(rows, range) else np.asarray(rows[index])


def training_rows(dataset: Dataset, label: str, most_per_user: int, share: float = 1.0) -> np.ndarray | range:
    """The training rows that have the label, in time order, see `drawn`."""
    return drawn(dataset, dataset.split_rows("train", label), most_per_user, share)


def drawn(dataset: Dataset, rows: np.ndarray | range, most_per_user: int, share: float = 1.0) -> np.ndarray | range:
    """What a run reads of its training rows, drawn once, in their order.

    A share of them is how a learning curve is made: the rows of a smaller share are among those of
    a larger. And of each user at most so many, 0 = all: a few users with long logs otherwise make
    most of the loss, and validation has another mix. YouTube trains on the same number of examples
    for every user (Covington et al., Deep Neural Networks for YouTube Recommendations, 2016,
    section 3.4).
    """
    if share < 1.0:
        rows = np.asarray(rows)
        order = rng.uniform_hash(rng.numpy_key(0, "rows_share"), rows)
        rows = rows[order < share]
    if not most_per_user:
        return rows
    rows = np.asarray(rows)
    user = dataset.interactions["user"][rows]
    order = np.lexsort((rng.uniform_hash(rng.numpy_key(0, "most_per_user"), rows), user))
    user = user[order]
    rank = np.arange(len(rows)) - np.searchsorted(user, user)  # of a row among those of its user
    return np.sort(rows[order[rank < most_per_user]])


def training_source(
    builder: BatchBuilder,
    rows: np.ndarray | range,
    *,
    batch_size: int,
    seed: int,
    order: str,
    most_items: int = 0,
    shards: Shards = WHOLE,
    unit: int = 64,
) -> TrainingSource | ByItemSource:
    """The training source; its bucket sizes are measured on the same batches whatever the seed, so the programs are the same.

    Args:
      most_items: of order "by_item", see `ByItemSource`.
      unit: of which the bucket sizes are multiples.
    """
    if order == BY_ITEM:
        return by_item_source(builder, rows, batch_size, seed, most_items, shards, unit)
    groups = group_order(builder.dataset, rows) if order == BY_GROUP else None
    drawn = [rows_of_step(rows, batch_size, 0, order, step, groups) for step in range(8)]
    samples = [sample[by_user(builder, shards, sample)] for sample in drawn]
    buckets = bucket_sizes(builder, samples, shards, unit)
    return TrainingSource(builder, rows, batch_size, seed, order, buckets, shards, groups)


def group_order(dataset: Dataset, rows: np.ndarray | range) -> GroupOrder:
    """The order "by_group" of interaction rows: by the dataset's groups, or else its users."""
    return GroupOrder(np.asarray(dataset.group[np.asarray(rows)]))


def by_item_source(
    builder: BatchBuilder,
    rows: np.ndarray | range,
    batch_size: int,
    seed: int,
    most_items: int,
    shards: Shards,
    unit: int,
    first_step: int = 0,
) -> ByItemSource:
    """The source of order "by_item", its bucket sizes measured as in `training_source`.

    A batch's candidates, which are all its items where examples have no histories, take a block that
    on one device is no longer than the bound, so that nothing is encoded only to fill it.
    """
    dealt = deal(rows, builder.dataset.interactions["item"][np.asarray(rows)], batch_size, most_items)
    source = ByItemSource(
        builder=builder, seed=seed, first_step=first_step, buckets=Buckets(64, 64), shards=shards, deal=dealt
    )
    measured = dataclasses.replace(source, seed=0, first_step=0)
    samples = [measured.rows_of_step(step)[0] for step in range(8)]
    buckets = bucket_sizes(builder, samples, shards, unit)
    if not shards.in_blocks:
        named = "encode" if builder.history_length else "items"
        buckets = dataclasses.replace(buckets, **{named: min(getattr(buckets, named), round_up(most_items, FEW))})
    return dataclasses.replace(source, buckets=buckets)


def evaluation_source(
    builder: BatchBuilder, split: str, batch_size: int, shards: Shards = WHOLE, unit: int = 64
) -> EvaluationSource:
    """One pass over a split; its bucket sizes are measured on a few batches, and one that needs more takes the next."""
    rows = builder.dataset.split_rows(split, builder.label)
    last = len(rows) - 1
    starts = np.linspace(0, max(len(rows) - batch_size, 0), num=4).astype(np.int64)
    samples = (_take(rows, np.minimum(start + np.arange(batch_size), last)) for start in starts)
    return EvaluationSource(builder, rows, batch_size, bucket_sizes(builder, samples, shards, unit), shards)


def bucket_sizes(builder: BatchBuilder, samples: Iterable[np.ndarray], shards: Shards, unit: int) -> Buckets:
    """Bucket sizes of a batch: the same in all processes.

    Args:
      samples: interaction rows [B] of the batches to measure.
      unit: of which the sizes are multiples.
    """
    if shards.in_blocks:
        return blocks.measure(builder, samples, shards, unit)
    return builder.measure_buckets(samples, unit)


class Source(Protocol):
    """Batches by their number; reading one twice gives the same. One without a length has no end."""

    def __getitem__(self, index: int, /) -> Batch: ...


@dataclasses.dataclass(frozen=True)
class _Endless:
    """A source without end, for Grain, which asks for a length."""

    source: Source

    def __len__(self) -> int:
        return 1 << 48

    def __getitem__(self, index: int) -> Batch:
        return self.source[index]


def batches(
    source: Source, *, start: int = 0, place: Callable[[Batch], Batch] | None = None, threads: int = 2, ahead: int = 4
) -> Iterator[Batch]:
    """The source's batches from number `start` on, prepared in threads and moved to the devices ahead of their use.

    Args:
      place: moves a batch of numpy arrays, see `sharding.place`; None leaves them.
      threads: threads that build batches; 0 builds in the caller's.
      ahead: batches in flight.
    """
    with contextlib.ExitStack() as of_pass:
        source = _in_pass(source, of_pass)
        sized: Any = source if isinstance(source, Sized) else _Endless(source)
        dataset = grain.MapDataset.source(sized)[start:]
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=ahead)
        stream = dataset.to_iter_dataset(options)
        if place is not None:
            prefetch = grain.experimental.ThreadPrefetchIterDataset
            stream = prefetch(stream.map(place), prefetch_buffer_size=2)
        return _closing(iter(stream), of_pass.pop_all())


def _in_pass(source: Any, of_pass: contextlib.ExitStack) -> Any:
    """The source with messages of this pass, where other processes build parts of its batches."""
    if isinstance(source, GroupedSource):
        return dataclasses.replace(source, source=_in_pass(source.source, of_pass))
    shards = getattr(source, "shards", WHOLE)
    if not shards.are_apart:
        return source
    of_this = of_pass.enter_context(messages.opened())
    return dataclasses.replace(source, shards=dataclasses.replace(shards, messages=of_this))


def _closing(stream: Iterator[Batch], of_pass: contextlib.ExitStack) -> Iterator[Batch]:
    with of_pass:
        yield from stream
