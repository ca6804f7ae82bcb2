"""From interaction rows to a batch: the distinct items, the distinct table rows, and positions into both.

The keys of a batch, and letters: see `core.batch.CLICKS`; here C are columns of a field group.
"""

import copy
import threading
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from em3_jax.core import rng
from em3_jax.core.batch import CLICKS
from em3_jax.core.fields import PADDING, to_rows
from em3_jax.core.segments import LAST, Segment
from em3_jax.core.types import Batch
from em3_jax.data import event_features, number_columns
from em3_jax.data.buckets import Buckets, round_up
from em3_jax.data.format import CLICK, Dataset, FeatureSet, observed
from em3_jax.data.segments import SOUGHT, Segments
from em3_jax.data.table_rows import field_rows, replace_probability, row_counts, unknown_rows


class Distinct:
    """Finds the distinct values of integer arrays in [0, size).

    Up to `SCAN_LIMIT` a flag per value is set and the flags are scanned, which is fastest and yields sorted values. Beyond,
    a table remembers where each value was last seen: slower by half, but its cost does not depend on `size`.
    """

    SCAN_LIMIT = 1 << 20

    def __init__(self, size: int):
        self._size = size
        self._local = threading.local()  # the pipeline's threads must not share the scratch arrays

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(distinct [n] i64 sorted, position [m] i32) with distinct[position] == values [m] i64."""
        table = self._scratch("table", np.int32)
        order = np.arange(len(values), dtype=np.int32)
        if self._size <= self.SCAN_LIMIT:
            flags = self._scratch("flags", np.bool_)
            flags[values] = True
            distinct = np.flatnonzero(flags)
            flags[distinct] = False
        else:
            table[values] = order
            distinct = values[np.take(table, values) == order]  # one occurrence of each value is the one remembered
            distinct.sort()
        table[distinct] = order[: len(distinct)]
        return distinct, np.take(table, values)

    def _scratch(self, name: str, dtype: DTypeLike) -> np.ndarray:
        if not hasattr(self._local, name):
            setattr(self._local, name, np.zeros(self._size, dtype))
        return getattr(self._local, name)


class BatchBuilder:
    """Builds batches of one dataset; a pure function of the interaction rows and a key.

    Ids that training never shows stand for `unknown` from the start. In training, further ids are replaced by `unknown` at
    random, rare ones more often, so that the unknown row learns what an id without a history is worth.

    Args:
      dataset: the opened dataset.
      history_length: T, the number of last events an example sees.
      unknown_alpha: an id seen n times in training is replaced with probability alpha / (alpha + n).
      unknown_floor: field name -> least probability of replacement, however frequent the id.
      unknown_below: ids that training shows fewer times stand for `unknown` from the start, like those it never shows.
      distinct_items: False builds one row per item slot instead of one per distinct item (for tests and benchmarks).
      host_features: feature sets to gather into the batch; empty when they lie on the device.
      label: which of the dataset's labels.
      encode: which of its distinct items a batch names for encoding: "none", "candidates", or "all".
      queries: name of the context field that says which query, and [field size, L] i32 words of each; None without.
      row_weights: whether the dataset's weights, if it has such, count in training.
      labels: further ones of the dataset, in batches beside the first.
      segments: what the slots of a history hold; None = the last T events.
      log_q: name of a key of training batches -> [I] f32 what it says of each item, see `data.sampling`.
      groups: whether a batch says what group, or else user, its rows are of; where it names items to encode it does.

    Attributes:
      history_length: slots of all segments.
      user_rows, item_rows: [U, C], [I, C] i64 table rows of all users and items, of ids that training never shows `unknown`'s.
      user_numbers, item_numbers: [U, m], [I, m] f32 their numbers that are read as values, NaN = missing.
      unknown: [table rows] i32 the row of `unknown` of each row's field.
      context_lookup, event_lookup: the same of these fields, for each [size] i32 from an id to its row.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        history_length: int,
        unknown_alpha: float,
        unknown_floor: dict[str, float],
        distinct_items: bool = True,
        host_features: tuple[FeatureSet, ...] = (),
        label: str = CLICK,
        encode: str = "none",
        queries: tuple[str, np.ndarray] | None = None,
        row_weights: bool = True,
        labels: tuple[str, ...] = (),
        segments: Segments | None = None,
        unknown_below: int = 1,
        groups: bool = False,
        log_q: Mapping[str, np.ndarray] = MappingProxyType({}),
    ):
        self.dataset, self.row_weights, self.labels = dataset, row_weights, labels
        for name in labels:
            dataset.label(name)  # or there is no such label
        self.encode, self.queries, self.groups = encode, queries, groups or encode != "none"
        self.label, self.log_q = label, log_q
        self._label = dataset.label(label)
        self.segments = segments or Segments((Segment(LAST, history_length),))
        self.history_length = self.segments.slots
        self._sought: dict[Any, Any] = self.segments.indexes(dataset)
        self._is_whole = True  # and not some rows beside it
        self.distinct_items = distinct_items
        self.host_features = host_features
        fields, offsets = dataset.fields, dataset.fields.offsets()
        self.num_rows = fields.num_rows
        self._events = _with_an_event(dataset.events)
        counts = row_counts(dataset)
        self.unknown = unknown_rows(fields)
        self._replace_probability = replace_probability(fields, counts, unknown_alpha, unknown_floor)
        is_rare = (counts >= 0) & (counts < max(unknown_below, 1))
        self._canonical = np.where(is_rare, self.unknown, np.arange(self.num_rows, dtype=np.int32))
        self.user_rows = self._canonical[field_rows(dataset.user_field_ids, fields.user, offsets["user"])].astype(
            np.int64
        )
        self.item_rows = self._canonical[field_rows(dataset.item_field_ids, fields.item, offsets["item"])].astype(
            np.int64
        )
        self.user_numbers = number_columns.of_table(dataset.user_table, dataset.numbers.user)
        self.item_numbers = number_columns.of_table(dataset.item_table, dataset.numbers.item)
        self._unknown_item_row = offsets["item"][fields.item[0].name]
        # Always in row_id: padding, which must come first; unknown rows, the target of replacements; event fields, whose
        # positions then follow from their ids without a search over all B x T events.
        event_rows = np.arange(self.num_rows - sum(field.size - 1 for field in fields.event), self.num_rows)
        self._always_present = np.union1d(np.unique(self.unknown), event_rows)
        self.context_lookup, self.event_lookup = (
            [self._canonical[to_rows(np.arange(f.size), offsets[group][f.name])] for f in getattr(fields, group)]
            for group in ("context", "event")
        )
        self._distinct_item = Distinct(dataset.num_items)
        self._distinct_row = Distinct(self.num_rows)

    def __call__(
        self, rows: np.ndarray, *, buckets: Buckets, key: np.uint64 | None = None, weight: np.ndarray | None = None
    ) -> Batch:
        """The batch of interaction rows `rows` [B] i64.

        Args:
          buckets: padded sizes of the distinct blocks.
          key: replaces ids by unknown at random (training); None keeps all known ids (evaluation).
          weight: [B] f32, default ones.
        """
        batch, with_content = self.named(rows, buckets, key, weight)
        return batch | gather_content(self.host_features, with_content)

    def named(
        self, rows: np.ndarray, buckets: Buckets, key: np.uint64 | None = None, weight: np.ndarray | None = None
    ) -> tuple[Batch, np.ndarray]:
        """(the batch without content, the items whose content it wants)."""
        columns_ = self.dataset.interactions
        item, user = columns_["item"][rows], columns_["user"][rows]
        weight = np.ones(len(rows), np.float32) if weight is None else weight
        if self.row_weights and key is not None and "weight" in columns_:  # in training; a score has none
            weight = weight * columns_["weight"][rows]
        batch = {"label": self._label[rows].astype(np.float32), "weight": weight}
        if self.labels:
            values = [self.dataset.label(name)[rows] for name in self.labels]
            batch["further"] = np.stack([np.where(observed(one), one, np.float32(-1)) for one in values], axis=1)
        event_index, batch["history_mask"] = self._history(rows)
        batch |= self._items(item, event_index, batch["history_mask"], buckets)
        history = event_index, batch["history_mask"]
        batch |= self._table_rows(rows, user, batch["item_id"], history, key, buckets)
        batch |= self._numbers(rows, user, batch["item_id"], event_index)
        for name, of_items in self.log_q.items() if key is not None else ():
            batch[name] = of_items[batch["item_id"] if CLICKS[name].axes == ["S"] else item]
        with_content = batch["item_id"]
        batch |= {"group": self.dataset.group[rows]} if self.groups else {}
        if self.encode != "none":
            batch |= self._to_encode(batch, buckets)
            if self.queries:
                field, words = self.queries
                query = columns_[f"context_{field}"][rows]
                batch |= {"query_tokens": words[query]}
                batch |= {} if "group" in columns_ else {"group": query}
            with_content = with_content[batch["encode_position"]]
        return batch, with_content

    def reading(
        self,
        dataset: Dataset,
        user_rows: np.ndarray,
        item_rows: np.ndarray,
        host_features: tuple[FeatureSet, ...],
        user_numbers: np.ndarray,
        item_numbers: np.ndarray,
    ) -> "BatchBuilder":
        """A builder of the same batches of other inputs, for measuring what an input is worth.

        Args:
          dataset: whose interactions and events are read; its users and items are the rows of the next two.
          user_rows, item_rows: [U', C], [I', C] i64 table rows, see the attributes.
          host_features: the content of these items, all of it; none lies on the device.
          user_numbers, item_numbers: [U', m], [I', m] f32, see the attributes.
        """
        other = copy.copy(self)
        other.dataset, other._label = dataset, dataset.label(self.label)
        other._events = _with_an_event(dataset.events)
        other._sought = self.segments.indexes(dataset)
        other._is_whole = self._is_whole and dataset.interactions is self.dataset.interactions
        other.user_rows, other.item_rows, other.host_features = user_rows, item_rows, host_features
        other.user_numbers, other.item_numbers = user_numbers, item_numbers
        other._distinct_item = Distinct(len(item_rows))
        return other

    def _to_encode(self, batch: Batch, buckets: Buckets) -> Batch:
        position = np.arange(len(batch["item_id"]), dtype=np.int32)
        if self.encode == "candidates":
            position = np.unique(batch["item_position"])
        size = buckets.fit(buckets.encode, len(position)) if self.encode == "candidates" else len(position)
        mask = batch["item_mask"][position] | (
            not self.distinct_items
        )  # without which a slot's mask says it is the first
        return {"encode_position": _pad(position, size, fill=position[0]), "encode_mask": _pad(mask, size, fill=False)}

    def _history(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(index into the events [B, T] i64, mask [B, T]): of each segment the last events of each row, right-aligned."""
        columns_ = self.dataset.interactions
        start, end = columns_["history_start"][rows], columns_["history_end"][rows]
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for segment in self.segments.parts:
            if segment.content and self._is_whole:
                found.append(_before(self._sought[segment.seeks].of_dataset(segment, self.dataset)[rows], end))
                continue
            if segment.seeks in self._sought:
                item = columns_.get(SOUGHT, columns_["item"])[rows]
                found.append(self._sought[segment.seeks](segment, item, start, end))
                continue
            index = end[:, None] + np.arange(-segment.length, 0)  # [B, T]
            mask = index >= start[:, None]
            found.append((np.maximum(index, 0, out=index), mask))
        if len(found) == 1:
            return found[0]
        indices, masks = zip(*found, strict=True)
        return np.concatenate(indices, axis=1), np.concatenate(masks, axis=1)

    def _items(self, item: np.ndarray, event_index: np.ndarray, mask: np.ndarray, buckets: Buckets) -> Batch:
        # Empty slots repeat the candidate, so they add no item to the distinct block.
        slots = np.empty((len(item), 1 + self.history_length), np.int64)  # [B, 1 + T]
        slots[:, 0] = item
        slots[:, 1:] = np.where(mask, np.take(self._events["item"], event_index), item[:, None])
        distinct, position = self._distinct_item(slots.ravel())
        if self.distinct_items:
            size, item_mask = buckets.fit(buckets.items, len(distinct)), np.arange(len(distinct)) >= 0
        else:
            first = np.unique(slots.ravel(), return_index=True)[1]
            distinct, position, size = slots.ravel(), np.arange(slots.size, dtype=np.int32), slots.size
            item_mask = np.zeros(size, bool)
            item_mask[first] = True
        position = position.reshape(slots.shape)
        item_id = _pad(distinct.astype(np.int32), size, fill=distinct[0])
        block = {"item_id": item_id, "item_mask": _pad(item_mask, size, fill=False)}
        return block | {"item_position": position[:, 0], "history_position": position[:, 1:]}

    def _table_rows(self, rows, user, item_id, history, key, buckets: Buckets) -> Batch:
        fields, (event_index, mask) = self.dataset.fields, history
        context = [
            np.take(lookup, self.dataset.interactions[f"context_{f.name}"][rows])
            for f, lookup in zip(fields.context, self.context_lookup, strict=True)
        ]
        blocks = {
            "item": np.take(self.item_rows, item_id, axis=0),
            "user": np.take(self.user_rows, user, axis=0),
            "context": np.stack(context, axis=1) if context else np.zeros((len(rows), 0), np.int64),
        }
        flat = np.concatenate([self._always_present, *(block.ravel() for block in blocks.values())])
        distinct, position = self._distinct_row(flat)
        if key is not None:
            replaced = rng.uniform_hash(key, distinct) < self._replace_probability[distinct]
            distinct, position = self._replace(distinct, position, replaced)
        start, result = len(self._always_present), {}
        for group, block in blocks.items():
            result[f"{group}_row"] = position[start : start + block.size].reshape(block.shape)
            start += block.size
        size = buckets.fit(buckets.rows, len(distinct))
        result["row_id"] = np.concatenate(
            [distinct, np.arange(self.num_rows, self.num_rows + size - len(distinct))]
        ).astype(np.int32)
        result["item_is_known"] = distinct[result["item_row"][:, 0]] != self._unknown_item_row
        # Event fields own the table's last rows, and all of them are present: they are the last of the distinct rows too.
        shift = len(distinct) - self.num_rows
        result["history_row"] = np.empty((*event_index.shape, len(fields.event)), np.int32)  # [B, T, C]
        made = event_features.made(self.dataset, rows, self._events["time"], event_index)
        for k, (field, rows_of_id) in enumerate(zip(fields.event, self.event_lookup, strict=True)):
            positions = np.where(rows_of_id == 0, 0, rows_of_id + shift).astype(np.int32)
            ids = made.get(field.name)
            ids = np.take(self._events[f"field_{field.name}"], event_index) if ids is None else ids
            # An empty slot reads the padding row: the event there may have a value that only later rows show.
            result["history_row"][:, :, k] = positions[np.where(mask, ids, PADDING)]
        return result

    def _numbers(self, rows: np.ndarray, user: np.ndarray, item_id: np.ndarray, event_index: np.ndarray) -> Batch:
        """The numbers of each group that are read as values; {} without any."""
        of, columns_ = self.dataset.numbers, self.dataset.interactions
        batch = {"item_number": np.take(self.item_numbers, item_id, axis=0)} if of.item else {}
        batch |= {"user_number": np.take(self.user_numbers, user, axis=0)} if of.user else {}
        batch |= {"context_number": number_columns.of_columns(columns_, of.context, rows)} if of.context else {}
        if of.event:
            batch["history_number"] = number_columns.of_columns(self._events, of.event, event_index)
        return batch

    def _replace(self, rows: np.ndarray, position: np.ndarray, replaced: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, position) with the rows where `replaced` [len(rows)] gives way to their field's unknown row."""
        moved = (np.cumsum(~replaced) - 1).astype(np.int32)  # where the remaining rows go
        moved[replaced] = moved[np.searchsorted(rows, self.unknown[rows[replaced]])]  # unknown rows are always present
        return rows[~replaced], np.take(moved, position)

    def measure_buckets(self, samples: Iterable[np.ndarray], unit: int = 64) -> Buckets:
        """Bucket sizes that hold some batches, with a margin of 5 %.

        Args:
          samples: of each batch its interaction rows [B] i64.
          unit: of which the sizes are multiples.
        """
        items = rows = encode = 0
        for sample in samples:
            batch, _ = self.named(sample, Buckets(64, 64))
            encode = max(encode, len(np.unique(batch["item_position"])))
            items = max(items, int(batch["item_mask"].sum()))
            rows = max(rows, int((batch["row_id"] < self.num_rows).sum()))
        items, rows, encode = (int(size * 1.05) + 1 for size in (items, rows, encode))
        items = min(items, len(self.item_rows))
        items, rows, encode = (round_up(size, unit) for size in (items, rows, min(encode, items)))
        return Buckets(items, rows, encode, unit=unit)


def _before(back: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places [B, K] i64 among the events, mask) of how far before `end` [B] they stand; 0 = there is none."""
    mask = back > 0
    return np.where(mask, end[:, None] - back, 0), mask


def _with_an_event(events: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The events; where there are none, one, for empty histories point at event 0, which must exist."""
    return {name: np.zeros(1, e.dtype) if len(e) == 0 else e for name, e in events.items()}


def gather_content(feature_sets: tuple[FeatureSet, ...], items: np.ndarray) -> Batch:
    """{"tokens", "tokens_mask"} of the items [S], by feature set; {} without any."""
    if not feature_sets:
        return {}
    found = {features.name: features.of_items(items) for features in feature_sets}
    return {
        "tokens": {name: tokens for name, (tokens, _) in found.items()},
        "tokens_mask": {name: mask for name, (_, mask) in found.items()},
    }


def _pad(array: np.ndarray, size: int, fill) -> np.ndarray:
    return np.concatenate([array, np.full(size - len(array), fill, array.dtype)])
