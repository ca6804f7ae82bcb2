"""Datasets that grow: a run goes on with more users, items and field values, and keeps what it has learnt of the old ones.

Growing trains the training rows that are new, config.train.epochs passes over them alone: rows that an earlier dataset of the
run had for training keep the passes that they got, whether the run came to its end, stopped early or was cut short. Steps
count on, and the best on validation is sought anew. `trained_rows` says which rows are new.

A dataset numbers its ids anew each time it is prepared, and a field's table rows begin where those of the field before it
end. So rows are matched by original values. A run keeps what its table rows stand for, of each dataset it was trained on:

    <workdir>/vocabulary/<data hash>.parquet    row k: field and value of table row k; the value of padding and unknown is null

Each checkpoint notes the hash of its data. One of other data than those in use is carried over whenever it is restored, as a
function of itself, the dataset and the seed alone: killed before its next checkpoint, a run does the same again.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from em3_jax.config.schema import Retrieval
from em3_jax.core import publish, sharding
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.core.values import canonical
from em3_jax.data.by_item import ByItemSource, deal
from em3_jax.data.canonical import forms_of
from em3_jax.data.format import Dataset
from em3_jax.data.pipeline import GrownSource, drawn, group_order
from em3_jax.tables import packing
from em3_jax.training import rundir, spread, trained_rows
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.experiment import Experiment

ROWS_AT_ONCE = 1 << 20  # that are carried over together, so that devices exchange no whole table
TEXT = pa.large_string()
HINT = "; every id that the run knows is in it: --config.train.grow=True goes on with it"


def begin(directory: str | Path, parts: Experiment, permitted: bool, *, write: bool = True) -> bool:
    """Makes `directory` this run's, or makes sure that it is; returns whether its dataset has grown.

    If it has, the record of the run still has to follow (`rundir.claim` with `grown`), once the state has.

    Args:
      permitted: config.train.grow.
      write: False only makes sure.

    Raises:
      UserError: the run belongs to another config, or to a dataset that did not grow into this one.
    """
    config, directory, data_hash = parts.config, Path(directory), parts.work.dataset.meta["data_hash"]
    record = rundir.read(directory) if (directory / "run.json").exists() else {"data_hash": data_hash}
    growing = record["data_hash"] != data_hash
    if growing:
        _check_grown(directory, record, parts, permitted)
        rundir.check_same(directory, config, data_hash, parts.feature_hashes, grown=True)
    else:
        rundir.claim(directory, config, data_hash, parts.feature_hashes, write=write)
    if parts.program.shapes.tables and write:
        remember(directory, parts.work.dataset)
        if not _on_stream(parts):  # whose rows are trained by their place
            trained_rows.remember(directory, parts.work.dataset, parts.work.source.builder.label)
    return growing


def _on_stream(parts: Experiment) -> bool:
    return not isinstance(parts.config, Retrieval) and parts.config.stream is not None


def _check_grown(directory: Path, record: Mapping[str, Any], parts: Experiment, permitted: bool) -> None:
    problem = ""
    try:
        if not parts.program.shapes.tables:
            raise UserError("this task keeps no ID tables that could grow")
        row_map(recall(directory, record["data_hash"]), vocabulary(parts.work.dataset))
    except UserError as error:
        problem = str(error)
    if not permitted:
        hint = "" if problem else HINT
        rundir.check_data(directory, record, parts.work.dataset.meta["data_hash"], parts.feature_hashes, hint=hint)
    if problem:
        raise UserError(
            f"{directory}: cannot go on with the dataset {parts.work.dataset.root}: {problem}; restore the dataset or "
            "choose another --workdir"
        )


def restore_latest(
    checkpoints: Checkpoints,
    directory: str | Path,
    parts: Experiment,
    state: State,
    notes: dict[str, Any],
    keep_notes: bool = False,
) -> tuple[State, dict[str, Any]] | None:
    """(state, notes) of the newest readable checkpoint, carried over to the dataset of `parts`; None without any.

    Carried over: the table rows and slots of known ids, and their rows of a memory bank, are those of the checkpoint, those of
    new ids and the notes are the fresh ones, as validation is another set now, with `grown`, the dataset before and the step
    it went to; all else of the state is the checkpoint's.

    Args:
      state, notes: fresh ones; the tables and the memory of the state are used up.
      keep_notes: the notes of the checkpoint are kept.
    """

    template = lambda data_hash: _template(recall(directory, data_hash), state, parts)  # noqa: E731
    restored = checkpoints.restore_latest(state, template)
    if restored is None or restored[1]["data_hash"] == checkpoints.data_hash:
        return restored
    old, saved_notes = restored
    data_hash = saved_notes["data_hash"]
    notes = saved_notes if keep_notes else notes | {"grown": {"from": data_hash, "after": int(old.step)}}
    was, now = recall(directory, data_hash), vocabulary(parts.work.dataset)
    carried = _carry_over(old, state, was, now)
    print(f"the dataset has grown: {_describe(was, now)}")
    return carried, notes


def on_new_rows(
    checkpoints: Checkpoints, directory: str | Path, parts: Experiment, step: int, notes: Mapping[str, Any]
) -> Experiment:
    """`parts` with the batches that are left to a run after `step`: of a grown dataset, those of its new rows.

    Args:
      notes: of the state, see `restore_latest`; `grown` says the dataset before, and the step that it went to.

    Raises:
      UserError: see `trained_rows.new_rows`.
    """
    grown = notes.get("grown")
    if grown is None:
        return parts
    assert not isinstance(parts.config, Retrieval)  # only a task of clicks has tables that grow
    data, source = parts.config.data, parts.work.source
    new = trained_rows.new_rows(parts.work.dataset, data.label, trained_rows.recall(directory, grown["from"]))
    rows = np.asarray(drawn(parts.work.dataset, new.rows, data.most_rows_per_user, data.rows_share))
    source = _of_new_rows(source, rows, grown["after"])
    samples = [source.rows_of_step(source.first_step + k)[0] for k in range(min(source.steps_per_epoch, 8))]
    if step == grown["after"]:
        gone = f", {new.gone:,} are gone" if new.gone else ""
        print(
            f"{len(rows):,} rows are new; {new.kept:,} that were there for training before are not trained again{gone}"
        )
        checkpoints.forget_best(after=step)
    assert parts.work.buckets is not None
    source = dataclasses.replace(source, buckets=parts.work.buckets(samples))
    return dataclasses.replace(parts, work=dataclasses.replace(parts.work, source=source))


def _of_new_rows(source: Any, rows: np.ndarray, after: int) -> GrownSource | ByItemSource:
    """The source of whole passes over `rows`, in the order of the run's, from step `after` on."""
    if isinstance(source, ByItemSource):
        item = source.builder.dataset.interactions["item"][rows]
        dealt = deal(rows, item, source.batch_size, source.deal.most_items)
        return dataclasses.replace(source, deal=dealt, first_step=after)
    return GrownSource(
        builder=source.builder,
        rows=rows,
        batch_size=source.batch_size,
        seed=source.seed,
        order=source.order,
        groups=None if source.groups is None else group_order(source.builder.dataset, rows),
        first_step=after,
        buckets=source.buckets,
        shards=source.shards,
    )


def restore(
    checkpoints: Checkpoints, directory: str | Path, parts: Experiment, step: int | None = None
) -> tuple[State, bool]:
    """(the best checkpoint of a run or that of `step`, whether it was carried over) for the dataset of `parts`, which may have
    grown since.

    Raises:
      UserError: see `Checkpoints.restore`; the dataset is another, which did not grow from the run's.
    """
    is_same = checkpoints.data_hash == parts.work.dataset.meta["data_hash"]
    if tables := spread.fixed_tables(directory):
        return spread.restore(tables, directory, parts, step), not is_same
    if is_same:
        return checkpoints.restore(parts.program.shapes, step)[0], False
    assert checkpoints.data_hash is not None  # that of the run's record
    was, now = recall(directory, checkpoints.data_hash), vocabulary(parts.work.dataset)
    row_map(was, now)
    old, _ = checkpoints.restore(_template(was, parts.program.shapes, parts), step)
    return _carry_over(old, parts.program.init(), was, now), True


def _template(was: pa.Table, state: State, parts: Experiment) -> State:
    """`state` with tables and memory as long as with the dataset of that vocabulary."""
    return with_lengths(state, parts, was.num_rows, _items(was)[1])


def with_lengths(state: State, parts: Experiment, rows: int, items: int) -> State:
    """`state` with tables of so many rows, and a memory of so many items; or of as many as the mesh makes of it."""

    def of_length(rows: int):
        length = sharding.padded(rows, parts.program.mesh)
        plainly = lambda x: jax.ShapeDtypeStruct((length, *x.shape[1:]), x.dtype, sharding=x.sharding)  # noqa: E731
        return lambda x: packing.shapes(length, x) if packing.is_table(x) else plainly(x)

    return dataclasses.replace(
        state,
        tables=jax.tree.map(of_length(rows), state.tables, is_leaf=packing.is_table),
        memory=jax.tree.map(of_length(items), state.memory, is_leaf=packing.is_table),
    )


def _carry_over(old: State, fresh: State, was: pa.Table, now: pa.Table) -> State:
    """`old` with tables and memory as long as those of `fresh`, which are used up."""
    place, (first, items) = row_map(was, now), _items(was)
    return moved(old, fresh, place, place[first : first + items] - _items(now)[0])


def moved(old: State, fresh: State, place: np.ndarray, of_items: np.ndarray) -> State:
    """`old` with tables and memory as long as those of `fresh`, which are used up.

    Args:
      place: [table rows of `old`] i64 their rows in the tables of `fresh`.
      of_items: [items of `old`] i64 their rows in the memory of `fresh`.
    """
    template, fresh, old = fresh, packing.unpacked(fresh), packing.unpacked(old)
    tables = jax.tree.map(lambda fresh, saved: carry(fresh, saved, place), fresh.tables, old.tables)
    bank = jax.tree.map(lambda fresh, saved: carry(fresh, saved, of_items), fresh.memory, old.memory)
    return packing.packed_as(template, dataclasses.replace(old, tables=tables, memory=bank))


def carry(fresh: jax.Array, saved: jax.Array, place: np.ndarray) -> jax.Array:
    """`fresh` [V, ...] with row k of `saved` as its row place[k], bit for bit; `fresh` is donated and stays where it lies."""
    size = min(ROWS_AT_ONCE, len(place))
    move = jax.jit(_move, donate_argnums=0, out_shardings=fresh.sharding)
    for start in range(0, len(place), size):
        part = place[start : start + size]
        target = np.append(part, len(fresh) + np.arange(size - len(part)))  # rows beyond the last are dropped
        fresh = move(fresh, saved, np.arange(start, start + size, dtype=np.int32), target.astype(np.int32))
    return fresh


def _move(fresh: jax.Array, saved: jax.Array, row: jax.Array, target: jax.Array) -> jax.Array:
    # As integers: devices sum what each of them has of the rows, and a sum of floats turns -0 into 0.
    bits = functools.partial(jax.lax.bitcast_convert_type, new_dtype=f"uint{8 * fresh.dtype.itemsize}")
    rows = jnp.take(bits(saved), row, axis=0, mode="fill", fill_value=0, unique_indices=True, indices_are_sorted=True)
    moved = bits(fresh).at[target].set(rows, mode="drop", unique_indices=True)
    return jax.lax.bitcast_convert_type(moved, fresh.dtype)


def vocabulary(dataset: Dataset) -> pa.Table:
    """What the table rows of a dataset stand for: columns `field`, "item/category", and `value`, the original value as text.

    Row 0 (padding) and the first row of each field (unknown) have no value, nor has a field whose vocabulary the dataset
    does not tell. The schema's metadata say which rows are whose.
    """
    names, values, blocks = [pa.array([None], TEXT)], [pa.array([None], TEXT)], []
    for group, fields in dataset.fields.groups():
        for k, field in enumerate(fields):
            known = _known_values(dataset, group, field.name, is_id=k == 0 and group in ("user", "item"))
            rows = field.size - 1
            known = known if len(known) == rows - 1 else pa.nulls(rows - 1, TEXT)
            names.append(pa.array([f"{group}/{field.name}"], TEXT).take(pa.array(np.zeros(rows, np.int64))))
            values += [pa.nulls(1, TEXT), known]
            blocks.append([f"{group}/{field.name}", rows])
    table = pa.table({"field": pa.chunked_array(names), "value": pa.chunked_array(values)})
    values_too = {"numbers": json.dumps(dataclasses.asdict(dataset.numbers))} if any(dataset.numbers.groups()) else {}
    return table.replace_schema_metadata({"blocks": json.dumps(blocks)} | values_too)


def _known_values(dataset: Dataset, group: str, name: str, is_id: bool) -> pa.Array:
    if not is_id:
        values = dataset.meta["vocabularies"].get(group, {}).get(name, [])
        return pa.array(map(canonical, values), TEXT)
    ids = (dataset.user_table if group == "user" else dataset.item_table).column("id").combine_chunks()
    return forms_of(ids).cast(TEXT)


def _path(directory: str | Path, data_hash: str) -> Path:
    return Path(directory) / "vocabulary" / f"{data_hash}.parquet"


def remember(directory: str | Path, dataset: Dataset) -> None:
    """Keeps the vocabulary of a dataset in a run's folder, if it is not there."""
    path = _path(directory, dataset.meta["data_hash"])
    publish.write_once(path, lambda file: pq.write_table(vocabulary(dataset), file))


def recall(directory: str | Path, data_hash: str) -> pa.Table:
    """The vocabulary that a run keeps of the dataset with that hash."""
    path, tells = _path(directory, data_hash), "which id a table row belongs to"
    errors = (pa.ArrowException, OSError)
    return rundir.read_kept(path, data_hash, pq.read_table, errors, form="Parquet", tells=tells)


def _blocks(table: pa.Table) -> dict[str, tuple[int, int]]:
    """ "item/category" -> (its first row, that of `unknown`; its rows)."""
    result, row = {}, 1
    for name, rows in json.loads(table.schema.metadata[b"blocks"]):
        result[name] = row, rows
        row += rows
    return result


def _items(table: pa.Table) -> tuple[int, int]:
    """(first table row of an item's own id, number of items): a memory bank has a row for each item, in the same order."""
    start, rows = next(block for name, block in _blocks(table).items() if name.startswith("item/"))
    return start + 1, rows - 1


def row_map(old: pa.Table, new: pa.Table) -> np.ndarray:
    """[rows of `old`] i64: the row of `new` that stands for the same, of the vocabularies of two datasets.

    Raises:
      UserError: fields differ, a vocabulary is not known, a value of `old` is not in `new`, or numbers are read otherwise.
    """
    was, now = _blocks(old), _blocks(new)
    if list(was) != list(now):
        raise UserError(f"its fields are {', '.join(now)}, those of the run {', '.join(was)}")
    if old.schema.metadata.get(b"numbers") != new.schema.metadata.get(b"numbers"):
        raise UserError(
            "its numbers are scaled otherwise than the run's; prepare it with --numbers-like <the dataset before>"
        )
    place = np.zeros(old.num_rows, np.int64)
    for name, (start, rows) in was.items():
        place[start] = now[name][0]
        known, here = (_values(name, table, *blocks[name]) for table, blocks in ((old, was), (new, now)))
        found = pc.index_in(known, value_set=here).fill_null(-1).to_numpy(zero_copy_only=False)
        missing = np.flatnonzero(found < 0)
        if len(missing):
            raise UserError(
                f"{len(missing):,} of the {len(known):,} ids of field '{name}' that the run knows are not among its "
                f"{len(here):,}, e.g. '{known[int(missing[0])]}', and tables never shrink"
            )
        place[start + 1 : start + rows] = now[name][0] + 1 + found
    taken = np.zeros(new.num_rows, bool)
    taken[place] = True
    if taken.sum() < len(place):
        raise UserError("a value occurs twice in the vocabulary of one of the run's fields")
    return place


def _values(name: str, table: pa.Table, start: int, rows: int) -> pa.Array:
    """The known values of a field, whose rows of `table` those are."""
    values = table.column("value").slice(start + 1, rows - 1).combine_chunks()
    if values.null_count:
        raise UserError(f"the vocabulary of field '{name}' is not known (dataset.json does not tell it)")
    return forms_of(values)  # a run of before may have written 5.0 for 5


def _describe(was: pa.Table, now: pa.Table) -> str:
    """ "user/user 120 -> 150, item/item 150 -> 170": the fields with more ids than before."""
    before, after = _blocks(was), _blocks(now)
    grown = [
        f"{name} {before[name][1] - 1:,} -> {rows - 1:,}" for name, (_, rows) in after.items() if rows > before[name][1]
    ]
    return ", ".join(grown) or "in interactions alone"
