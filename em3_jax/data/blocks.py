"""A batch for several devices: each has its own examples, and a block of what they name, sorted by owner.

Item or table row i belongs to device i % n. A block has n parts of one size, part k for what belongs
to device k, so that it can be asked for as it lies: see `core.exchange`. Positions count through the
block of the example's own device, and a table row's position 0 is padding, as everywhere.
"""

import contextlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from em3_jax.core import messages
from em3_jax.core.batch import CLICKS, KEYS, NONE
from em3_jax.core.types import Batch, Shards
from em3_jax.data.batches import BatchBuilder, gather_content
from em3_jax.data.buckets import Buckets, round_up

_EXACT = Buckets(1, 1, 1, unit=1)
_ENCODED = 8  # the unit of items to encode, each of which is work for an encoder
_ROWS = [name for name, key in CLICKS.items() if key.into == "row_id"]


def build(
    builder: BatchBuilder,
    shards: Shards,
    rows: np.ndarray,
    *,
    buckets: Buckets,
    key: np.uint64 | None = None,
    weight: np.ndarray | None = None,
    number: int = 0,
) -> Batch:
    """The process's shards of the batch of interaction rows `rows` [B] i64; whole where there is one device.

    Args:
      buckets, key, weight: see `BatchBuilder`.
      number: of the batch among those of its source.
    """
    if not shards.in_blocks:
        return builder(rows, buckets=buckets, key=key, weight=weight)
    own = [(rows[part], None if weight is None else weight[part]) for part in shards.slices(len(rows))]
    return joined(builder, [_part(builder, *one, key) for one in own], shards, buckets, number)


def by_user(builder: BatchBuilder, shards: Shards, rows: np.ndarray) -> np.ndarray:
    """[B] i64: the places of a training batch's interaction rows `rows` [B] i64, in an order in which shards name less.

    In blocks the examples of a user stand together: their histories are much the same, so a shard
    names fewer items and rows, and fewer travel. Else they stay as they are.
    """
    if not shards.in_blocks:
        return np.arange(len(rows))
    return np.argsort(builder.dataset.interactions["user"][rows], kind="stable")


def _part(
    builder: BatchBuilder, rows: np.ndarray, weight: np.ndarray | None = None, key: np.uint64 | None = None
) -> Batch:
    """A device's shard of a batch without content, its blocks no longer than needed; see `BatchBuilder`."""
    return builder.named(rows, _EXACT, key, weight)[0]


def joined(builder: BatchBuilder, parts: Sequence[Batch], shards: Shards, buckets: Buckets, number: int) -> Batch:
    """The batch of the shards of this process's devices.

    With features on the host, the tokens are those of the items that each device owns, ascending,
    or of those among them that may be encoded, which `encode_position` finds there.

    Args:
      parts: of these shards, see `_part`.
      buckets: usual sizes; a batch that needs more, on any device, takes the next.
      number: of the batch among those of its source.
    """
    named = _names(builder, parts)
    item, row, *some = _asked([*named, *_encoded(builder, parts)], shards, number)
    entries, row_entries = buckets.fit(buckets.items, item.entries), buckets.fit(buckets.rows, row.entries)
    own_items, own_rows = buckets.fit(buckets.own_items, item.most), buckets.fit(buckets.own_rows, row.most)
    encoded, room = item, own_items
    if some:
        encoded, room = some[0], buckets.fit(buckets.encode, some[0].most)
    blocks = [
        _block(part, items, rows, shards.total, entries, row_entries)
        for part, items, rows in zip(parts, *named, strict=True)
    ]
    batch = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for name, size in (("item_room", own_items), ("row_room", own_rows)):
        batch[name] = np.zeros(shards.count * size, np.bool_)
    if builder.encode != "none":
        batch |= _to_encode(item.owned, encoded.owned, shards, room)
    return batch | (_content(builder, encoded.owned, shards, room) if builder.host_features else {})


def measure(builder: BatchBuilder, samples: Iterable[np.ndarray], shards: Shards, unit: int) -> Buckets:
    """Sizes that hold some batches, with a margin of 5 %: the same in all processes, each of which looks at all shards.

    Args:
      samples: of each batch its interaction rows [B] i64.
      unit: of which the sizes are multiples; itself a multiple of the devices.
    """
    needs = [0, 0, 0, 0, 0]
    for sample in samples:
        parts = [_part(builder, sample[own]) for own in shards.all.slices(len(sample))]
        item, row, *some = _asked([*_names(builder, parts), *_encoded(builder, parts)], shards.all, 0)
        encoded = some[0] if some else item
        found = (item.entries, row.entries, item.most, row.most, encoded.most)
        needs = [max(pair) for pair in zip(needs, found, strict=True)]
    *sizes, encode = (int(need * 1.05) + 1 for need in needs)
    entries, row_entries, own_items, own_rows = (round_up(size, unit) for size in sizes)
    encode = min(round_up(encode, _ENCODED), own_items)
    return Buckets(entries, row_entries, encode, own_items, own_rows, unit)


def _names(builder: BatchBuilder, parts: Sequence[Batch]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The items and the table rows that each shard names, distinct and ascending."""
    items = [part["item_id"][part["item_mask"]] for part in parts]
    return items, [part["row_id"][part["row_id"] < builder.num_rows] for part in parts]


def _encoded(builder: BatchBuilder, parts: Sequence[Batch]) -> list[list[np.ndarray]]:
    """[the items of each shard that may be encoded], or [] where these are all."""
    if builder.encode != "candidates":
        return []
    return [[part["item_id"][part["encode_position"][part["encode_mask"]]] for part in parts]]


class _Asked(NamedTuple):
    """What the examples of a batch ask of the devices: items, table rows, or items to encode.

    Attributes:
      owned: [*] i64 what is asked of this process's devices, distinct and ascending.
      entries: of a block, so that each part holds what a shard names of an owner; the same in all
        processes.
      most: ids that an owner has, the same in all processes; one more, for what fills the blocks
        counts as an id.
    """

    owned: np.ndarray
    entries: int
    most: int


def _asked(named: Sequence[Sequence[np.ndarray]], shards: Shards, number: int) -> list[_Asked]:
    """What is asked of each kind, the ids of its shards being named; processes tell each other."""
    owners = shards.total
    most = [max(_most(ids, owners) for ids in kind) for kind in named]
    owned = [np.unique(np.concatenate(kind)) for kind in named]
    if not shards.are_apart:
        return [_Asked(ids, owners * one, _most(ids, owners) + 1) for ids, one in zip(owned, most, strict=True)]
    with contextlib.ExitStack() as alone:
        talk = shards.messages or alone.enter_context(messages.opened())
        processes = owners // shards.count
        at = [ids % owners // shards.count for ids in owned]
        own = [[np.array(most), *(ids[of == k] for ids, of in zip(owned, at, strict=True))] for k in range(processes)]
        got = [_read(text) for text in talk.exchange(number, "asked", [_written(arrays) for arrays in own])]
        owned = [np.unique(np.concatenate(kind)) for kind in list(zip(*got, strict=True))[1:]]
        room = np.array([_most(ids, owners) for ids in owned])
        rooms = talk.exchange(number, "room", [_written([room])] * processes)
        most = np.max([arrays[0] for arrays in got], axis=0)
        room = np.max([_read(text)[0] for text in rooms], axis=0)
    return [_Asked(ids, owners * int(a), int(b) + 1) for ids, a, b in zip(owned, most, room, strict=True)]


def _most(ids: np.ndarray, owners: int) -> int:
    """The most of some distinct ids that one owner has."""
    return int(np.bincount(ids % owners, minlength=owners).max())


def _written(arrays: Sequence[np.ndarray]) -> bytes:
    """Integer arrays as a message."""
    lengths = [len(arrays), *map(len, arrays)]
    return np.concatenate([lengths, *arrays]).astype(np.int32).tobytes()


def _read(message: bytes) -> list[np.ndarray]:
    """The arrays [*] i32 of a message."""
    numbers = np.frombuffer(message, np.int32)
    ends = 1 + numbers[0] + np.cumsum(numbers[1 : 1 + numbers[0]])
    return np.split(numbers, ends - numbers[1 : 1 + numbers[0]])[1:]


def _block(part: Batch, items: np.ndarray, rows: np.ndarray, owners: int, entries: int, row_entries: int) -> Batch:
    """A shard's batch with its blocks sorted by owner."""
    item_place, item_id = _by_owner(items, owners, entries)
    row_place, row_id = _by_owner(rows, owners, row_entries)
    result = {name: value for name, value in part.items() if KEYS[name].axes[0] != "C"}
    for name in _ROWS:
        result[name] = row_place[part[name]].astype(np.int32)
    for name in ("item_position", "history_position"):
        result[name] = item_place[part[name]].astype(np.int32)
    count = len(items)
    fills: list[tuple[str, float]] = [("item_mask", False), ("item_is_known", False), ("item_row", 0)]
    fills += [("item_number", np.nan)] if "item_number" in part else []
    fills += [("log_present", 0.0)] if "log_present" in part else []
    for name, fill in fills:
        spread = np.full((entries, *part[name].shape[1:]), fill, result[name].dtype)
        spread[item_place] = result[name][:count]
        result[name] = spread
    return result | {"item_id": item_id, "row_id": row_id}


def _by_owner(ids: np.ndarray, owners: int, entries: int) -> tuple[np.ndarray, np.ndarray]:
    """([len(ids)] the place of each id in the block, [entries] i32 the block); what fills it stands for nothing."""
    owner, size = ids % owners, entries // owners
    order = np.argsort(owner, kind="stable")
    count = np.bincount(owner, minlength=owners)
    place = np.empty(len(ids), np.int64)
    place[order] = np.arange(len(ids)) - np.repeat(np.cumsum(count) - count, count) + owner[order] * size
    block = np.repeat(NONE // owners * owners + np.arange(owners), size).astype(np.int32)
    block[place] = ids
    return place, block


def _to_encode(items: np.ndarray, some: np.ndarray, shards: Shards, room: int) -> Batch:
    """Where what may be encoded, `some` of the `items`, stands in `exchange.Route.owned` of its owner."""
    position, mask = np.zeros((shards.count, room), np.int32), np.zeros((shards.count, room), bool)
    for k, (owned, mine) in enumerate(zip(_of_each(items, shards), _of_each(some, shards), strict=True)):
        position[k, : len(mine)] = np.searchsorted(owned, mine)
        mask[k, : len(mine)] = True
    return {"encode_position": position.ravel(), "encode_mask": mask.ravel()}


def _of_each(ids: np.ndarray, shards: Shards) -> list[np.ndarray]:
    """Those of some ids that each of this process's devices owns."""
    owner = ids % shards.total
    return [ids[owner == shards.first + k] for k in range(shards.count)]


def _content(builder: BatchBuilder, items: np.ndarray, shards: Shards, room: int) -> Batch:
    """Tokens of what each device owns of some items, ascending; of no item, none."""
    owned = np.full((shards.count, room), -1, np.int64)
    for k, mine in enumerate(_of_each(items, shards)):
        owned[k, : len(mine)] = mine
    flat = owned.ravel()
    batch = gather_content(builder.host_features, np.maximum(flat, 0))
    batch["tokens_mask"] = {name: mask & (flat >= 0)[:, None] for name, mask in batch["tokens_mask"].items()}
    return batch
