"""A batch for several devices: each has its own examples, and a block of what they name, sorted by owner.

Item or table row i belongs to device i % n. A block has n parts of one size, part k for what belongs
to device k, so that it can be asked for as it lies: see `core.exchange`. Positions count through the
block of the example's own device, and a table row's position 0 is padding, as everywhere.
"""

from collections.abc import Sequence

import numpy as np

from em3_jax.core.batch import CLICKS, KEYS, NONE
from em3_jax.core.types import Batch, Shards
from em3_jax.data.batches import BatchBuilder, gather_content
from em3_jax.data.buckets import Buckets, round_up

_EXACT = Buckets(1, 1, 1, unit=1)
_ENCODED = 8  # the unit of items to encode, each of which is work for an encoder
_ROWS = [name for name, key in CLICKS.items() if key.into == "row_id"]


def part(
    builder: BatchBuilder, rows: np.ndarray, weight: np.ndarray | None = None, key: np.uint64 | None = None
) -> Batch:
    """A device's shard of a batch without content, its blocks no longer than needed; see `BatchBuilder`."""
    return builder.named(rows, _EXACT, key, weight)[0]


def joined(builder: BatchBuilder, parts: Sequence[Batch], buckets: Buckets) -> Batch:
    """The batch of the shards of all devices.

    With features on the host, the tokens are those of the items that each device owns, ascending,
    or of those among them that may be encoded, which `encode_position` finds there.

    Args:
      parts: see `part`.
      buckets: usual sizes; a batch that needs more takes the next.
    """
    owners = len(parts)
    items, table_rows = _names(builder, parts)
    entries, own_items = _room(items, owners, buckets.items, buckets.own_items, buckets)
    row_entries, own_rows = _room(table_rows, owners, buckets.rows, buckets.own_rows, buckets)
    encoded, room = _encoded(builder, parts), own_items
    if builder.encode == "candidates":
        room = buckets.fit(buckets.encode, _need(encoded, owners)[1])
    blocks = [
        _block(part, item, row, owners, entries, row_entries)
        for part, item, row in zip(parts, items, table_rows, strict=True)
    ]
    batch = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for name, size in (("item_room", own_items), ("row_room", own_rows)):
        batch[name] = np.zeros(owners * size, np.bool_)
    if builder.encode != "none":
        batch |= _to_encode(items, encoded, owners, room)
    return batch | (_content(builder, encoded, owners, room) if builder.host_features else {})


def measure(builder: BatchBuilder, samples: Sequence[np.ndarray], shards: Shards, unit: int, every: bool) -> Buckets:
    """Sizes that hold some batches, with a margin of 5 %, or `every` batch that there is.

    Args:
      samples: of each batch its interaction rows [B] i64.
      unit: of which the sizes are multiples; itself a multiple of the devices.
    """
    needs = [0, 0, 0, 0, 0]
    for sample in samples:
        parts = [part(builder, sample[own]) for own in shards.slices(len(sample))]
        items, rows = _names(builder, parts)
        encoded = _need(_encoded(builder, parts), shards.total)[1]
        found = (*_need(items, shards.total), *_need(rows, shards.total), encoded)
        needs = [max(pair) for pair in zip(needs, found, strict=True)]
    margin = 1.0 if every else 1.05
    *sizes, encode = (int(need * margin) + 1 for need in needs)
    entries, own_items, row_entries, own_rows = (round_up(size, unit) for size in sizes)
    encode = min(round_up(encode, _ENCODED), own_items)
    return Buckets(entries, row_entries, encode, own_items, own_rows, unit)


def _names(builder: BatchBuilder, parts: Sequence[Batch]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The items and the table rows that each shard names, distinct and ascending."""
    items = [part["item_id"][part["item_mask"]] for part in parts]
    return items, [part["row_id"][part["row_id"] < builder.num_rows] for part in parts]


def _encoded(builder: BatchBuilder, parts: Sequence[Batch]) -> list[np.ndarray]:
    """The items of each shard whose content is read: those that may be encoded, or all."""
    if builder.encode != "candidates":
        return _names(builder, parts)[0]
    return [part["item_id"][part["encode_position"][part["encode_mask"]]] for part in parts]


def _need(named: Sequence[np.ndarray], owners: int) -> tuple[int, int]:
    """(entries of a block, so that each part holds what a shard names of an owner; ids that an owner has)."""
    most = max(int(np.bincount(ids % owners, minlength=owners).max()) for ids in named)
    distinct = np.unique(np.concatenate(named))
    # One more: what fills the blocks counts as an id.
    return owners * most, int(np.bincount(distinct % owners, minlength=owners).max()) + 1


def _room(named: Sequence[np.ndarray], owners: int, usual: int, usual_owned: int, buckets: Buckets) -> tuple[int, int]:
    """(entries of a block, ids that an owner has): the usual sizes, or the next that hold what is named."""
    entries, owned = _need(named, owners)
    return buckets.fit(usual, entries), buckets.fit(usual_owned, owned)


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
    for name, fill in (("item_mask", False), ("item_is_known", False), ("item_row", 0)):
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


def _to_encode(items: list[np.ndarray], encoded: list[np.ndarray], owners: int, room: int) -> Batch:
    """Where what may be encoded stands in `exchange.Route.owned` of its owner."""
    owned, some = (np.unique(np.concatenate(ids)) for ids in (items, encoded))
    position, mask = np.zeros((owners, room), np.int32), np.zeros((owners, room), bool)
    for owner in range(owners):
        mine = some[some % owners == owner]
        position[owner, : len(mine)] = np.searchsorted(owned[owned % owners == owner], mine)
        mask[owner, : len(mine)] = True
    return {"encode_position": position.ravel(), "encode_mask": mask.ravel()}


def _content(builder: BatchBuilder, items: Sequence[np.ndarray], owners: int, room: int) -> Batch:
    """Tokens of what each device owns of some items, ascending; of no item, none."""
    distinct = np.unique(np.concatenate(items))
    owned = np.full((owners, room), -1, np.int64)
    for owner in range(owners):
        mine = distinct[distinct % owners == owner]
        owned[owner, : len(mine)] = mine
    flat = owned.ravel()
    batch = gather_content(builder.host_features, np.maximum(flat, 0))
    batch["tokens_mask"] = {name: mask & (flat >= 0)[:, None] for name, mask in batch["tokens_mask"].items()}
    return batch
