"""What is checked and counted once, when a dataset is made."""

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.core import npy
from em3_jax.core.errors import UserError
from em3_jax.core.mapped import parts
from em3_jax.data.format import MAX_EVENT_VOCABULARY, NOT_PART, SPLITS, Dataset

_CHUNK = 1 << 22
_CACHED = 1 << 19  # numbers that stay in a processor's cache between two looks


def _first(bad: np.ndarray) -> int | None:
    rows = np.flatnonzero(bad)
    return int(rows[0]) if len(rows) else None


def _check_range(name: str, array: np.ndarray, low: int, high: int) -> None:
    """Refuses values outside [low, high), naming the first such row."""
    for part in parts(len(array), array):
        block = array[part]
        if len(block) and (block.min() < low or block.max() >= high):
            row = _first((block < low) | (block >= high))
            raise UserError(
                f"{name}.npy row {part.start + row}: value {block[row]} is out of range [{low}, {high}); mend the source"
            )


def all_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array are finite, by their bits: numpy takes ten times as long to see it of halves."""
    bits = np.dtype(f"u{array.dtype.itemsize}")
    infinity = np.array(np.inf, array.dtype).view(bits)
    magnitude = bits.type(np.iinfo(bits).max >> 1)  # all but the sign
    step = max(1, _CACHED // max(1, array[:1].size))
    blocks = (array[start : start + step].view(bits) & magnitude for start in range(0, len(array), step))
    return all(block.max(initial=0) < infinity for block in blocks)


def first_not_finite(tokens: np.ndarray) -> int | None:
    """The first row of [I, N, D] that holds NaN or infinity."""
    step = max(1, _CHUNK // max(1, tokens[:1].size))
    for start in range(0, len(tokens), step):
        row = _first(~np.isfinite(tokens[start : start + step]).all(axis=(1, 2)))
        if row is not None:
            return start + row
    return None


def check_dataset(dataset: Dataset) -> None:
    """Refuses a dataset with a fault in ids, labels, times, histories, splits, fields or features, naming file and row."""
    columns, events = dataset.interactions, dataset.events
    if len(columns["time"]) == 0:
        raise UserError("interactions: there are no rows; is the source empty?")
    for table, kind in ((dataset.user_table, "user"), (dataset.item_table, "item")):
        if _different(table.column("id")) != table.num_rows:
            ids = table.column("id").to_pylist()
            first = {one: row for row, one in reversed(list(enumerate(ids)))}
            twice = next(one for row, one in enumerate(ids) if first[one] != row)
            raise UserError(f"{kind}s.parquet: {kind} id {twice!r} occurs twice; keep one row per {kind}")
    _check_range("interactions/user", columns["user"], 0, dataset.num_users)
    _check_range("interactions/item", columns["item"], 0, dataset.num_items)
    _check_range("interactions/label", columns["label"], 0, 2)
    for name in dataset.meta.get("labels", {}):
        _refuse(f"interactions/label_{name}", dataset.label(name), lambda v: (v > 1) & (v != NOT_PART), "not 0 or 1")
    for name in dataset.amounts:
        _refuse(f"interactions/amount_{name}", dataset.label(name), lambda v: v < 0, "below 0")
    _check_range("interactions/split", columns["split"], 0, 3)
    _check_range("events/item", events["item"], 0, dataset.num_items)
    _check_range("interactions/history_start", columns["history_start"], 0, len(events["item"]) + 1)
    _check_range("interactions/history_end", columns["history_end"], 0, len(events["item"]) + 1)
    if "original" in events:
        _check_range("events/original", events["original"], 0, len(events["item"]))
    row = _first_earlier(columns["time"])
    if row is not None:
        raise UserError(f"interactions/time.npy row {row}: earlier than the row before; sort the interactions by time")
    if "probability" in columns:
        _refuse("interactions/probability", columns["probability"], lambda v: ~((v >= 0) & (v <= 1)), "not in [0, 1]")
    if "weight" in columns:
        weight = columns["weight"]
        _refuse("interactions/weight", weight, lambda v: ~(np.isfinite(v) & (v >= 0)), "not a number from 0 up")
        if not any(weight[part].any() for part in parts(dataset.split_rows("train"), weight)):
            raise UserError("interactions/weight.npy: every training row has weight 0; nothing would be learnt")
    _check_histories(columns, events["time"])
    _check_fields(dataset)
    for folder in sorted((dataset.root / "features").glob("[!.]*")):
        features = dataset.features(folder.name)
        row = first_not_finite(features.tokens)
        if row is not None:
            raise UserError(f"features/{folder.name}/tokens.npy row {row}: NaN or infinity; make the features again")
    label, split = columns["label"], columns["split"]
    count = sum(
        np.bincount(split[part] * 2 + label[part], minlength=6) for part in parts(len(label), label, split)
    ).reshape(3, 2)  # type: ignore[union-attr]
    for name, of_split in zip(SPLITS, count, strict=True):
        if not of_split.sum():
            raise UserError(f"split '{name}' is empty; change the split rule or its sizes")
        if not of_split.all() and not dataset.meta.get("only_clicks"):
            only = int(of_split.argmax())
            raise UserError(
                f"split '{name}' has only label {only}; both classes are needed, change the label or split rule"
            )


def _different(ids: pa.ChunkedArray) -> int:
    """How many different ids there are; of many an eighth at a time, by their last byte, for the sake of memory."""
    if len(ids) < _CHUNK or not pa.types.is_string(ids.type):
        return pc.count_distinct(ids, mode="all").as_py()
    words = ids.combine_chunks()
    offsets = np.frombuffer(words.buffers()[1], np.int32)[words.offset : words.offset + len(words) + 1]
    last = np.frombuffer(words.buffers()[2], np.uint8)[np.maximum(offsets[1:] - 1, 0)] % 8
    return sum(pc.count_distinct(words.filter(pa.array(last == k)), mode="all").as_py() for k in range(8))


def _refuse(name: str, array: np.ndarray, is_bad: Callable[[np.ndarray], np.ndarray], what: str) -> None:
    """Refuses values, naming the first such row."""
    for part in parts(len(array), array):
        row = _first(is_bad(array[part]))
        if row is not None:
            raise UserError(f"{name}.npy row {part.start + row}: {what}; mend the source")


def _first_earlier(time: np.ndarray) -> int | None:
    """The first row whose time is before that of the row before it."""
    before = None
    for part in parts(len(time), time):
        block = time[part]
        earlier = np.concatenate([[before is not None and block[0] < before[0]], block[1:] < block[:-1]])
        row = _first(earlier)  # differences may not fit
        if row is not None:
            return int(part.start + row)
        before = block[-1:].copy()
    return None


def _check_histories(columns: dict[str, np.ndarray], event_time: np.ndarray) -> None:
    """Refuses ranges that end before they start, run backwards in time or are not strictly earlier than their row."""
    backwards = _times_back(event_time)
    read = [columns[name] for name in ("history_start", "history_end", "time")]
    for part in parts(len(columns["time"]), *read, event_time):
        first = part.start
        start, end, time = (column[part] for column in read)
        row = _first(end < start)
        if row is not None:
            raise UserError(
                f"interactions/history_end.npy row {first + row}: ends before it starts; prepare the dataset again"
            )
        some = np.flatnonzero(end > start)
        last = end[some] - 1
        row = _first((event_time[last] >= time[some]) | (backwards[last] > backwards[start[some]]))
        if row is not None:
            raise UserError(
                f"interactions/history_end.npy row {first + some[row]}: events not in order of time or not earlier than "
                "the row; prepare the dataset again"
            )


def _times_back(event_time: np.ndarray) -> np.ndarray:
    """[E] i32: how often times have gone back up to each event."""
    result, before, last = np.zeros(len(event_time), np.int32), 0, event_time[:1]
    for part in parts(len(event_time), event_time):
        block = event_time[part]
        back = np.concatenate([[block[0] < last[0]], block[1:] < block[:-1]])
        np.cumsum(back, dtype=np.int32, out=result[part])
        result[part] += before
        before, last = int(result[part][-1]), block[-1:].copy()
    return result


def _check_fields(dataset: Dataset) -> None:
    fields = dataset.fields
    for group, table in (("user", dataset.user_field_ids), ("item", dataset.item_field_ids)):
        column = 0
        for field in getattr(fields, group):
            _check_range(f"{group} field {field.name}", table[:, column : column + field.length].ravel(), 0, field.size)
            column += field.length
    for field in fields.context:
        _check_range(f"interactions/context_{field.name}", dataset.interactions[f"context_{field.name}"], 0, field.size)
    for field in fields.event:
        _check_range(f"events/field_{field.name}", dataset.events[f"field_{field.name}"], 0, field.size)
        if field.size > MAX_EVENT_VOCABULARY:
            raise UserError(
                f"event field '{field.name}' has {field.size} ids, more than {MAX_EVENT_VOCABULARY}; bucket its values"
            )


def count_training(dataset: Dataset) -> None:
    """Writes counts/: how often the training rows show each user, item (as candidate, in histories) and field value."""
    for name, array in counts_of(dataset, dataset.split_rows("train")).items():
        np.save(dataset.root / "counts" / f"{name}.npy", array)


def counts_of(dataset: Dataset, rows: np.ndarray | range, history_length: int | None = None) -> dict[str, np.ndarray]:
    """Name -> [ids] i64 how often the interaction rows `rows` [n] show each user, item and field value.

    An event counts once, however many of the rows have it in their history.

    Args:
      history_length: T, the number of last events that a row shows; None = all.
    """
    columns, fields = dataset.interactions, dataset.fields
    sizes = {"user": dataset.num_users, "item": dataset.num_items}
    sizes |= {f"context_{field.name}": field.size for field in fields.context}
    counts = {name: np.zeros(size, np.int64) for name, size in sizes.items()}
    for part in parts(rows, *(columns[name] for name in sizes)):
        for name, size in sizes.items():
            counts[name] += np.bincount(columns[name][part], minlength=size)
    return counts | _event_counts(dataset, _covered(dataset, rows, history_length))


def _covered(dataset: Dataset, rows: np.ndarray | range, history_length: int | None) -> np.ndarray:
    """[E] bool: the events that are among the last T of the history of one of the rows."""
    columns = dataset.interactions
    change = np.zeros(len(dataset.events["item"]) + 1, np.int32)  # +1 where ranges start, -1 where they end
    first, last = columns["history_start"], columns["history_end"]
    for part in parts(rows, first, last):
        start, end = first[part], last[part]
        if history_length is not None:
            start = np.maximum(start, end - history_length)
        one = np.ones(len(start), np.int32)  # with a number in its place the same takes 16 times as long (numpy 2.4)
        np.add.at(change, start, one)
        np.add.at(change, end, -one)
    return np.cumsum(change, out=change)[:-1] > 0


def history_reach(dataset: Dataset) -> int:
    """The last events of training histories that show together all that the whole histories show, or a few more.

    With as many (T), what training shows does not depend on T. In a log whose rows follow one another it is a few.
    """
    rows, columns = dataset.split_rows("train"), dataset.interactions
    is_end, longest = np.zeros(len(dataset.events["item"]) + 1, bool), 0
    for part in parts(rows, columns["history_start"], columns["history_end"]):
        start, end = columns["history_start"][part], columns["history_end"][part]
        is_end[end[end > start]] = True
        longest = max(longest, int((end - start).max(initial=0)))
    covered, reach, next_end = _covered(dataset, rows, None), 0, len(is_end) + longest
    for first in reversed(range(0, len(covered), _CHUNK)):
        place = np.arange(first, min(first + _CHUNK, len(covered)))
        ends = np.where(is_end[place + 1], place + 1, next_end)
        nearest = np.minimum.accumulate(ends[::-1])[::-1]
        reach = max(reach, int((nearest - place)[covered[place]].max(initial=0)))
        next_end = nearest[0]
    enough = reach < longest and np.array_equal(_covered(dataset, rows, reach), covered)
    return reach if enough else longest


def _event_counts(dataset: Dataset, covered: np.ndarray) -> dict[str, np.ndarray]:
    """The counts of the events where `covered` [E] is True."""
    events = dataset.events
    if "original" in events:
        again = events["original"][covered]
        covered = np.zeros(len(covered), bool)
        covered[again] = True
    sizes = {"item_history": ("item", dataset.num_items)}
    sizes |= {f"event_{field.name}": (f"field_{field.name}", field.size) for field in dataset.stored_event_fields}
    counts = {name: np.zeros(size, np.int64) for name, (_, size) in sizes.items()}
    for part in parts(len(covered), *(events[column] for column, _ in sizes.values())):
        for name, (column, size) in sizes.items():
            counts[name] += np.bincount(events[column][part][covered[part]], minlength=size)
    return counts | {f"event_{name}": dataset.counts[f"event_{name}"] for name in dataset.event_features}


def summarise(dataset: Dataset) -> dict:
    """Facts a reader reports: sizes, click rate, cold share and histories of each split; missing modalities."""
    seen_item = (
        npy.load(dataset.root / "counts" / "item.npy") + npy.load(dataset.root / "counts" / "item_history.npy") > 0
    )
    seen_user = npy.load(dataset.root / "counts" / "user.npy") > 0
    splits = {name: _of_split(dataset, name, seen_item, seen_user) for name in SPLITS}
    return {"splits": splits, "items_without": _items_without(dataset)}


def _of_split(dataset: Dataset, split: str, seen_item: np.ndarray, seen_user: np.ndarray) -> dict:
    """What `summarise` says of a split.

    Args:
      seen_item, seen_user: [I], [U] bool, those that training shows.
    """
    columns, rows = dataset.interactions, dataset.split_rows(split)
    users, items = np.zeros(dataset.num_users, bool), np.zeros(dataset.num_items, bool)
    length, clicks, cold, new = np.zeros(1, np.int64), 0, 0, 0
    names = ("user", "item", "label", "history_start", "history_end")
    for part in parts(rows, *(columns[name] for name in names)):
        user, item, label, start, end = (columns[name][part] for name in names)
        users[user], items[item] = True, True
        clicks += int(np.count_nonzero(label))
        cold += int(np.count_nonzero(~seen_item[item]))
        new += int(np.count_nonzero(~seen_user[user]))
        found = np.bincount(end - start)
        length, shorter = (found, length) if len(found) > len(length) else (length, found)
        length[: len(shorter)] += shorter
    n, until = len(rows), np.cumsum(length)
    middle = [int(np.searchsorted(until, place, side="right")) for place in ((n - 1) // 2, n // 2)]
    return {
        "rows": n,
        "click_rate": round(clicks / n, 4),
        "users": int(users.sum()),
        "items": int(items.sum()),
        "rows_with_cold_item": round(cold / n, 4),
        "rows_with_new_user": round(new / n, 4),
        "empty_histories": round(int(length[0]) / n, 4),
        "median_history": sum(middle) // 2,
    }


def _items_without(dataset: Dataset) -> dict[str, float]:
    """What of an item's content can be missing -> share of the items that miss it."""
    result = {}
    names = dataset.meta["text_columns"] + ["image"] * ("image" in dataset.item_table.column_names)
    for name in names:
        result[f"column {name}"] = np.mean([not value for value in dataset.item_table.column(name).to_pylist()])
    for folder in sorted((dataset.root / "features").glob("[!.]*")):
        result[f"features {folder.name}"] = np.mean(~dataset.features(folder.name).mask.any(axis=1))
    return {name: round(float(share), 4) for name, share in result.items()}
