"""Anybody's interactions, items and users: CSV, TSV or Parquet, and a mapping that says which column is what.

    python -m em3_jax.prepare table --interactions clicks.parquet --items items.csv --users users.csv \\
        --columns user=uid,item=sku,time=ts --label "rating>=4" --item-fields brand,tags:multi --item-text title \\
        --item-image photo --user-fields city --context-fields device --event-fields rating \\
        --features image=image.npy --split 0.8,0.1,0.1 --out data/mine

Ids and field values are taken as text, as they stand. Items and users come from their tables, in that order, or else from
the interactions. The interactions are sorted by time here; rows of equal time keep the order of the file.
"""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.readers.encode import (
    Encoded,
    encode,
    encode_lists,
    entity_table,
    field_name,
    image_paths,
    rows_of,
    words_and_codes,
)
from em3_jax.data.readers.files import nearest, place, read_array, read_table, require_distinct
from em3_jax.data.readers.log import write_log
from em3_jax.data.readers.table_log import Log, read_log, require_order
from em3_jax.data.readers.table_times import AUTO, Times
from em3_jax.data.writer import DatasetWriter
from em3_jax.fields import FIRST_KNOWN, Field, Fields
from em3_jax.types import UserError

ROLES = ("user", "item", "label", "time", "user_key", "item_key")
SEPARATORS = "|,;"


class Part(NamedTuple):
    """The users or the items: `table`, `fields`, `words` as for `DatasetWriter.finish`, and what is worth a note."""

    table: pa.Table
    fields: tuple[Field, ...]
    words: dict[str, list]
    text_columns: list[str]
    notes: list[str]


def table(
    out: str | Path,
    *,
    interactions: str | Path,
    items: str | Path | None = None,
    users: str | Path | None = None,
    columns: dict[str, str] | None = None,
    label: str | None = None,
    item_fields: tuple[str, ...] = (),
    item_text: tuple[str, ...] = (),
    item_image: str | None = None,
    image_root: str | Path | None = None,
    user_fields: tuple[str, ...] = (),
    context_fields: tuple[str, ...] = (),
    event_fields: tuple[str, ...] = (),
    features: dict[str, str] | None = None,
    separator: str = "|",
    max_values: int = 8,
    split: str = "0.8,0.1,0.1",
    events: str = "clicks",
    drop_unknown: bool = False,
    time_unit: str = AUTO,
    time_format: str = "",
    in_order: bool = False,
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, from tables.

    Args:
      interactions, items, users: files, .csv, .tsv or .parquet.
      columns: role -> column, for the roles user, item, label, time of the interactions; a role not named is a column of
        that name. `item_key`, `user_key`: the id's column in the items and users file, where it is another.
      label: a rule such as "rating>=4", in place of a column of 0 and 1.
      item_fields, user_fields: categorical columns; `name:multi` for several values, a list or text with separators.
      item_text: columns of the items that hold texts.
      item_image: column of the items, path of an image or of a folder of frames; `name:multi` for several.
      image_root: what the paths are relative to; default the folder of the items file.
      context_fields: categorical columns of the interactions that describe the impression.
      event_fields: categorical columns of the interactions that describe them once they are history.
      features: name -> .npy file with one row an item, in the order of the items file; a row of zeros is missing.
      separator: between the values of a `:multi` column of texts.
      max_values: most values of a `:multi` field that are kept.
      split: three shares in time order, or "column:<name>" of train, valid, test (or 0, 1, 2).
      events: "clicks" or "all", the interactions that enter histories.
      drop_unknown: drop interactions whose user or item is not in its file; else they are an error.
      time_unit: of whole numbers as times: seconds, milliseconds, ..., days; order = they only say which row comes first;
        auto = by their size, between 1980 and 2100, else order.
      time_format: of times that are texts, as Python's strptime has it, e.g. "%d.%m.%Y %H:%M"; default ISO 8601.
      in_order: refuse interactions that are not in the order of time, naming the first; default they are sorted.
      overwrite: replace an existing dataset.
    """
    interactions, items, users = (Path(p) if p is not None else None for p in (interactions, items, users))
    roles = _roles(columns or {})
    if events not in ("clicks", "all"):
        raise UserError(f"events '{events}': choose clicks or all")
    if items is None and (item_fields or item_text or item_image or features):
        raise UserError("fields, texts, images or features of items are given, but no items file; add --items")
    if users is None and user_fields:
        raise UserError("fields of users are given, but no users file; add --users")
    multi = separator, max_values
    with DatasetWriter(out, overwrite) as writer:
        times = Times(time_unit, time_format)
        log = read_log(interactions, roles, label, split, context_fields, event_fields, times)
        if in_order:
            require_order(interactions, log)
        item_part = _part(
            "item", items, roles["item_key"], log.item, item_fields, multi, item_text, item_image, image_root
        )
        user_part = _part("user", users, roles["user_key"], log.user, user_fields, multi)
        log, item, user, dropped = _match(interactions, log, items, item_part, users, user_part, drop_unknown)
        for name, path in (features or {}).items():
            _write_features(writer, name, Path(path), items, item_part.table)
        is_event = log.label if events == "clicks" else None
        was_unsorted = write_log(
            writer, user=user, item=item, label=log.label, time=log.time, split=log.split, is_event=is_event,
            context={name: ids for name, (ids, _) in log.context.items()},
            event={name: ids for name, (ids, _) in log.event.items()},
        )  # fmt: skip
        notes = [*item_part.notes, *user_part.notes, *dropped]
        notes += [f"{interactions.name} was not in the order of time and has been sorted"] if was_unsorted else []
        files = [path for path in (interactions, items, users) if path is not None]
        return writer.finish(
            name=interactions.stem,
            users=user_part.table,
            items=item_part.table,
            fields=Fields(user_part.fields, item_part.fields, _fields(log.context), _fields(log.event)),
            vocabularies={
                "user": user_part.words,
                "item": item_part.words,
                "context": {name: values for name, (_, values) in log.context.items()},
                "event": {name: values for name, (_, values) in log.event.items()},
            },
            text_columns=item_part.text_columns,
            provenance=f"own tables: {', '.join(path.name for path in files)}",
            label_rule=label or f"column {roles['label']}",
            split_rule=split if split.startswith("column:") else f"by time, shares {split}",
            source_hash=hash_files(files),
            time_unit=log.time_unit,
            extra={"notes": notes, "image_root": str(_image_root(items, image_root)) if item_image else None},
        )


def _roles(columns: dict[str, str]) -> dict[str, str]:
    """Role -> column name, complete."""
    for role in columns:
        if role not in ROLES:
            raise UserError(f"columns: no role '{role}'; {nearest(role, ROLES)}")
    roles = {role: role for role in ROLES[:4]} | columns
    return {"user_key": roles["user"], "item_key": roles["item"]} | roles


def _fields(encoded: dict[str, Encoded]) -> tuple[Field, ...]:
    return tuple(Field(name, len(values) + FIRST_KNOWN) for name, (_, values) in encoded.items())


def _part(
    kind: str,
    path: Path | None,
    key: str,
    used: pa.ChunkedArray,
    fields: tuple[str, ...],
    multi: tuple[str, int],
    text: tuple[str, ...] = (),
    image: str | None = None,
    image_root: str | Path | None = None,
) -> Part:
    """The users or items of a file; of the interactions' column `used` where there is no file."""
    if path is None:
        words, codes = words_and_codes(used)
        return Part(*entity_table(kind, words.take(pa.array(np.unique(codes))), {}), [], [])
    parsed = {name.removesuffix(":multi"): name.endswith(":multi") for name in fields}
    names = [key, *parsed, *text, *([image.removesuffix(":multi")] if image else [])]
    source = read_table(path, names, as_text=set(names))
    if source.num_rows == 0:
        raise UserError(f"{path}: there are no rows; give one for each {kind}")
    require_distinct(path, source.column(key))
    ids = source.column(key).cast(pa.string()).combine_chunks()
    encoded, notes = _encode_fields(path, source, parsed, *multi)
    text_columns = {f"{n}_text" if n in encoded or n in (kind, "id", "image") else n: n for n in text}
    extra = {new: source.column(old).cast(pa.string()) for new, old in text_columns.items()}
    if image:
        extra["image"], gone = _images(path, source, image, multi[0], _image_root(path, image_root))
        notes += gone
    return Part(*entity_table(kind, ids, encoded, extra), list(text_columns), notes)


def _encode_fields(
    path: Path, source: pa.Table, fields: dict[str, bool], separator: str, max_values: int
) -> tuple[dict[str, Encoded], list[str]]:
    """(field name -> ids and values, notes); `fields` says which columns hold several values."""
    encoded, notes = {}, []
    for name, is_multi in fields.items():
        column = _column(path, source, name, is_multi, separator)
        if is_multi:
            encoded[field_name(name)], cut = encode_lists(column, max_values)
            if cut:
                notes.append(f"{path.name}: {cut} rows have more than {max_values} {name}; the first are kept")
        else:
            encoded[field_name(name)] = encode(column)
    return encoded, notes


def _images(path: Path, source: pa.Table, image: str, separator: str, root: Path) -> tuple[pa.Array, list[str]]:
    """(column `image` of the items [I], notes), from the column `image`, which may end in `:multi`."""
    name, is_multi = image.removesuffix(":multi"), image.endswith(":multi")
    column = _column(path, source, name, is_multi, separator)
    try:
        column = column.cast(pa.list_(pa.string()) if is_multi else pa.string())
    except pa.ArrowException:
        raise UserError(f"{path}: column '{name}' holds {column.type}; give paths of images, as text") from None
    images, gone = image_paths(root, column.to_pylist())
    if images.null_count == len(images):
        raise UserError(f"{path}: no image of column '{name}' is in {root}; say where they are with --image-root")
    return images, gone


def _column(path: Path, source: pa.Table, name: str, is_multi: bool, separator: str) -> pa.ChunkedArray | pa.Array:
    """The column `name`: of lists where it is one of several values, else of single ones."""
    column = source.column(name)
    if not pa.types.is_nested(column.type):
        return _split(path, name, column, separator) if is_multi else column
    if not is_multi:
        raise UserError(f"{path}: column '{name}' holds lists; name it '{name}:multi'")
    return column


def _split(path: Path, name: str, column: pa.ChunkedArray, separator: str) -> pa.Array:
    """Lists from texts with separators; refuses a column that plainly has another separator."""
    words = column.cast(pa.string()).combine_chunks()
    words = pc.if_else(pc.equal(words, ""), pa.scalar(None, pa.string()), words)
    if not pc.any(pc.match_substring(words, separator)).as_py():
        for other in SEPARATORS.replace(separator, ""):
            if pc.any(pc.match_substring(words, other)).as_py():
                raise UserError(
                    f"{path}: column '{name}' has no '{separator}' but '{other}'; pass --separator '{other}'"
                )
    return pc.split_pattern_regex(words, rf"\s*{re.escape(separator)}\s*")


def _image_root(items: Path, image_root: str | Path | None) -> Path:
    return Path(items.parent if image_root is None else image_root).absolute()


def _match(
    path: Path, log: Log, items: Path | None, item_part: Part, users: Path | None, user_part: Part, drop_unknown: bool
) -> tuple[Log, np.ndarray, np.ndarray, list[str]]:
    """(log, item rows [n], user rows [n], notes); rows whose item or user its file does not have are refused or dropped."""
    rows, known, notes = {}, np.ones(len(log.time), bool), []
    for kind, source, column, part in (("item", items, log.item, item_part), ("user", users, log.user, user_part)):
        rows[kind] = rows_of(column, part.table.column("id"))
        absent = np.flatnonzero(rows[kind] < 0)
        if len(absent) and not drop_unknown:
            value = column[int(absent[0])].as_py()
            raise UserError(
                f"{place(path, absent[0])}: {kind} '{value}' is not in {source} ({len(absent)} such rows); add it there, "
                "or drop such rows with --drop-unknown"
            )
        if len(absent):
            notes.append(f"{len(absent)} rows of {path.name} dropped: their {kind} is not in {source.name}")
            known[absent] = False
    if not known.all():
        log, rows = log.take(known), {kind: values[known] for kind, values in rows.items()}
    return log, rows["item"], rows["user"], notes


def _write_features(writer: DatasetWriter, name: str, path: Path, items: Path, item_table: pa.Table) -> None:
    tokens = read_array(path, item_table.num_rows, of=str(items))
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens
    manifest = {"encoder": f"ready made, {path.name}", "file_hash": hash_files([path])}
    writer.features(name, tokens, (tokens != 0).any(axis=-1), manifest, hash_ids(item_table.column("id")))
