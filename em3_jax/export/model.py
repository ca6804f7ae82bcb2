"""What a service needs of the ranking model: tables, ids, parameters, and the compiled programs.

Letters: I items, U users, C columns of a field group.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from em3_jax.core import trees
from em3_jax.core.event_features import RECENCY
from em3_jax.core.types import State
from em3_jax.data import times
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.format import Dataset, fields_to_json
from em3_jax.data.segments import keys_of_items
from em3_jax.export import onnx_model, scorer
from em3_jax.serving import id_index, programs
from em3_jax.serving.event_choice import events_of
from em3_jax.tasks import Task
from em3_jax.training.experiment import Experiment

PARAMS = "params.npz"


def original_ids(table) -> np.ndarray:
    """[n] original ids of users or items: integers, or texts."""
    column = table.column("id").combine_chunks()
    if hasattr(column, "dictionary_decode"):
        column = column.dictionary_decode()
    ids = column.to_numpy(zero_copy_only=False)
    return ids if np.issubdtype(ids.dtype, np.integer) else ids.astype(str)


def write_model(
    folder: Path,
    parts: Experiment,
    state: State,
    widths: dict[str, int],
    carried: bool,
    platforms: Sequence[str],
    with_onnx: bool = False,
    any_candidates: bool = False,
) -> dict[str, Any]:
    """Writes tables, ids, parameters and the compiled programs.

    Returns what a service has to know of them.

    Args:
      widths: of what is looked up, by name.
      carried: the dataset has grown since training: ids of which nothing has been learnt stand for `unknown`.
      platforms: for which to compile.
      with_onnx: whether to write the model as an ONNX file as well.
      any_candidates: whether that is for any number of candidates.
    """
    assert parts.work.builder is not None  # what can be served has clicks
    dataset, builder = parts.work.dataset, parts.work.builder(parts.work.dataset)
    table = np.asarray(state.tables["embedding"])
    ids, facts = ids_of(dataset)
    for name, array in (arrays_of(dataset, builder, table, _touched(state) if carried else None) | ids).items():
        np.save(folder / f"{name}.npy", array)
    (folder / PARAMS).write_bytes(params_of(state))
    if with_onnx:
        request, opened = _request(dataset, builder, widths, onnx_model.CANDIDATES), ["B"] if any_candidates else []
        # As many as these candidates' slots hold.
        opened += ["T"] if any_candidates and len(builder.segments.parts) > 1 else []
        facts["onnx"] = onnx_model.write_onnx(
            folder / onnx_model.FILE, parts.work.task, state.params, table, request, opened
        )
    made, of_programs = programs_of(parts.work.task, dataset, builder, state.params, table, widths, platforms)
    for name, content in made.items():
        (folder / name).write_bytes(content)
    return facts | facts_of(parts.work.task, dataset, builder, widths) | of_programs


def ids_of(dataset: Dataset) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """(arrays of the index of users and of items, what a service has to know of them)."""
    arrays: dict[str, np.ndarray] = {}
    facts: dict[str, Any] = {}
    for kind, ids in (("user", original_ids(dataset.user_table)), ("item", original_ids(dataset.item_table))):
        index = id_index.build(ids)
        arrays |= {f"{kind}_words": index.words, f"{kind}_slots": index.slots}
        facts[f"{kind}_ids"] = "text" if index.is_text else "integer"
    return {name: _as_stored(array) for name, array in arrays.items()}, facts


def params_of(state: State) -> bytes:
    """The content of params.npz: all parameters, by the names of the leaves."""
    buffer = io.BytesIO()
    params = {name: np.asarray(leaf) for name, leaf in trees.named_leaves(state.params).items()}
    # The stub takes any name for that of its own flag; here each has a slash in it.
    np.savez(buffer, **params)  # type: ignore[arg-type]
    return buffer.getvalue()


def _request(dataset: Dataset, builder: BatchBuilder, widths: dict[str, int], size: int) -> dict[str, Any]:
    """The shapes of a request for `size` candidates."""
    segments, length = builder.segments.parts, builder.history_length
    several = len(segments) > 1
    events = events_of(segments, size) if several else length
    return scorer.request_shapes(dataset.fields, events, widths, size, length if several else 0, dataset.numbers)


def programs_of(
    task: Task,
    dataset: Dataset,
    builder: BatchBuilder,
    params: Any,
    table: np.ndarray,
    widths: dict[str, int],
    platforms: Sequence[str],
) -> tuple[dict[str, bytes], dict[str, Any]]:
    """({file name: the ranking model compiled for so many candidates}, what a service has to know of it)."""
    of_table, made = jax.ShapeDtypeStruct(table.shape, table.dtype), []
    for size in programs.SIZES:
        request = _request(dataset, builder, widths, size)
        made.append(scorer.compile_ahead(task, params, of_table, request, platforms))
    files = {programs.file_name(size): bytes(one.serialize()) for size, one in zip(programs.SIZES, made, strict=True)}
    return files, {"platforms": list(platforms), "programs": programs.facts(made, programs.SIZES)}


def facts_of(task: Task, dataset: Dataset, builder: BatchBuilder, widths: dict[str, int]) -> dict[str, Any]:
    """What a service has to know of the model's inputs and labels."""
    segments = builder.segments.parts
    values = {group: [number.name for number in of] for group, of in dataset.numbers.groups()}
    return ({"values": values} if values else {}) | {
        "history_length": builder.history_length,
        "segments": [part.to_json() for part in segments] if len(segments) > 1 else [],
        "fields": fields_to_json(dataset.fields),
        "vocabularies": {group: dataset.meta["vocabularies"].get(group, {}) for group in ("context", "event")},
        "numbers": {group: dataset.meta.get("numbers", {}).get(group, {}) for group in ("context", "event")},
        "event_features": list(dataset.event_features),
        "time_unit": times.unit_of(dataset),
        "seconds_per_tick": times.seconds_per_tick(dataset) if RECENCY in dataset.event_features else None,
        "looked_up": widths,
        "labels": task.labels.to_json() if task.labels.names or task.labels.first else {},
    }


def _touched(state: State) -> np.ndarray:
    """[table rows] bool, whether anything has been learnt there."""
    slots = [np.asarray(slot) for slot in state.tables["slots"].values()]
    return np.any([slot.reshape(len(slot), -1).any(axis=1) for slot in slots], axis=0)


def arrays_of(
    dataset: Dataset, builder: BatchBuilder, table: np.ndarray, touched: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Name -> array of the table, of the rows of users, items and values, and of what else is known of these.

    Args:
      table: of the ids.
      touched: [table rows] bool, those in use; others stand for `unknown`. None = all are.
    """
    fields, unknown = dataset.fields, builder.unknown
    rows_of = {"user_rows": builder.user_rows, "item_rows": builder.item_rows}
    rows_of |= {
        f"{group}_lookup.{field.name}": rows
        for group, lookups in (("context", builder.context_lookup), ("event", builder.event_lookup))
        for field, rows in zip(getattr(fields, group), lookups, strict=True)
    }
    if touched is not None:  # ids that came since training have rows of their own, but nothing has been learnt there
        rows_of = {name: np.where(touched[rows], rows, unknown[rows]) for name, rows in rows_of.items()}
    arrays = {"table": table, **rows_of}
    values = dict(dataset.numbers.groups())
    for kind, of_all in (("user", builder.user_numbers), ("item", builder.item_numbers)):
        if kind in values:  # the last row is that of one who is not known
            arrays[f"{kind}_numbers"] = np.vstack([of_all, np.full(len(values[kind]), np.nan, np.float32)])
    for kind, specs in (("user", fields.user), ("item", fields.item)):
        offsets = fields.offsets()[kind]
        of_unknown = [offsets[field.name] if k == 0 else 0 for field in specs for k in range(field.length)]
        arrays[f"{kind}_rows"] = np.vstack([arrays[f"{kind}_rows"], of_unknown])
    for part in builder.segments.parts:
        if part.item_field:
            arrays[f"item_key.{part.item_field}"] = keys_of_items(dataset, part.item_field)
        if part.content:
            arrays["content_vectors"] = builder.segments.vectors
    return {name: _as_stored(array) for name, array in arrays.items()}


def _as_stored(array: np.ndarray) -> np.ndarray:
    """The array in the dtype that a version has it in."""
    return array if array.dtype in (np.float32, np.float16, np.uint64) else array.astype(np.int32)
