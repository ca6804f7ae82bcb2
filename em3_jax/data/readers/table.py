"""Anybody's interactions, items and users: CSV, TSV or Parquet, and a mapping that says which column is what.

    python -m em3_jax.prepare table --interactions clicks.parquet --items items.csv --users users.csv \\
        --columns user=uid,item=sku,time=ts --label "rating>=4" --item-fields brand,tags:multi --item-text title \\
        --item-image photo --user-fields city --context-fields device --event-fields rating \\
        --features image=image.npy --split 0.8,0.1,0.1 --out data/mine

Ids and field values are taken as text, as they stand. Items and users come from their tables, in that order, or else from
the interactions. The interactions are sorted by time here; rows of equal time keep the order of the file.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.readers.delimited import TextFormat, check_format
from em3_jax.data.readers.encode import Encoded, rows_of
from em3_jax.data.readers.files import nearest, place, read_array
from em3_jax.data.readers.log import write_log
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.source import Paths, Source
from em3_jax.data.readers.table_log import Log, read_log, require_order
from em3_jax.data.readers.table_part import Multi, Part, check_multi, part_of_log, read_part
from em3_jax.data.readers.table_times import AUTO, Times
from em3_jax.data.writer import DatasetWriter
from em3_jax.fields import FIRST_KNOWN, Field, Fields
from em3_jax.types import UserError

ROLES = ("user", "item", "label", "time", "user_key", "item_key")


def table(
    out: str | Path,
    *,
    interactions: Paths,
    items: Paths | None = None,
    users: Paths | None = None,
    columns: dict[str, str] | None = None,
    label: str | None = None,
    item_fields: tuple[str, ...] = (),
    item_text: tuple[str, ...] = (),
    item_image: str | None = None,
    image_root: str | Path | None = None,
    user_fields: tuple[str, ...] = (),
    context_fields: tuple[str, ...] = (),
    event_fields: tuple[str, ...] = (),
    features: dict[str, str | Path] | None = None,
    separator: str = "|",
    max_values: int = 8,
    split: str = "0.8,0.1,0.1",
    events: str = "clicks",
    drop_unknown: bool = False,
    time_unit: str = AUTO,
    time_format: str = "",
    in_order: bool = False,
    delimiter: str = "",
    quoting: str = "auto",
    encoding: str = "",
    header: bool | None = None,
    column_names: tuple[str, ...] = (),
    item_column_names: tuple[str, ...] = (),
    user_column_names: tuple[str, ...] = (),
    overwrite: bool = False,
) -> Dataset:
    """The dataset in folder `out`, from tables.

    Args:
      interactions, items, users: files, .csv, .tsv, .txt or .parquet, text also as .gz, .zst, .bz2, .xz; a folder of
        parts, a pattern such as "parts/*.csv", or several with commas.
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
      delimiter: between the cells of text files: a character or several, or tab; default what the suffix says.
      quoting: what double quotes in text files mean: on = they enclose values, off = they are part of them, auto = as all
        of the file's show.
      encoding: of text files, as Python names it; default UTF-8, or UTF-16 where that is certain.
      header: whether text files have one; default yes, but for those whose columns are named here.
      column_names, item_column_names, user_column_names: of all columns of the interactions, items and users, in order.
      overwrite: replace an existing dataset.
    """
    multi = Multi(separator, max_values)
    check_multi(multi)
    text = TextFormat(delimiter, quoting, encoding, header)
    interactions, items, users = (
        None if paths is None else Source(paths, check_format(text._replace(names=tuple(names))))
        for paths, names in ((interactions, column_names), (items, item_column_names), (users, user_column_names))
    )
    roles = _roles(columns or {})
    if events not in ("clicks", "all"):
        raise UserError(f"events '{events}': choose clicks or all")
    if items is None and (item_fields or item_text or item_image or features):
        raise UserError("fields, texts, images or features of items are given, but no items file; add --items")
    if users is None and user_fields:
        raise UserError("fields of users are given, but no users file; add --users")
    with DatasetWriter(out, overwrite) as writer:
        times = Times(time_unit, time_format)
        log = read_log(interactions, roles, label, split, context_fields, event_fields, times)
        if in_order:
            require_order(interactions, log)
        if items is None:
            item_part = part_of_log("item", log.item)
        else:
            root = _image_root(items, image_root)
            item_part = read_part("item", items, roles["item_key"], item_fields, multi, item_text, item_image, root)
        if users is None:
            user_part = part_of_log("user", log.user)
        else:
            user_part = read_part("user", users, roles["user_key"], user_fields, multi)
        log, item, user, dropped = _match(interactions, log, items, item_part, users, user_part, drop_unknown)
        for name, path in (features or {}).items():
            _write_features(writer, name, Path(path), items, item_part.table)
        is_event = log.label if events == "clicks" else None
        was_unsorted = write_log(
            writer, user=user, item=item, label=log.label, time=log.time, split=log.split, is_event=is_event,
            context={name: ids for name, (ids, _) in log.context.items()},
            event={name: ids for name, (ids, _) in log.event.items()},
        )  # fmt: skip
        account = rows_of_file(interactions.rows, len(log.time), dropped)
        notes = [*item_part.notes, *user_part.notes, *log.notes, *_notes(interactions, dropped)]
        notes += [note for source in (interactions, items, users) if source for note in source.notes]
        notes += [f"{interactions.name} was not in the order of time and has been sorted"] if was_unsorted else []
        sources = [source for source in (interactions, items, users) if source is not None]
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
            provenance=f"own tables: {', '.join(source.name for source in sources)}",
            label_rule=label or f"column {roles['label']}",
            split_rule=split if split.startswith("column:") else f"by time, shares {split}",
            source_hash=hash_files([file for source in sources for file in source.files]),
            time_unit=log.time_unit,
            extra={
                "notes": notes,
                "rows": {interactions.name: account},
                "image_root": str(_image_root(items, image_root)) if item_image else None,
            },
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


def _notes(interactions: Source, dropped: dict[str, int]) -> list[str]:
    return [f"{count} rows of {interactions.name} dropped: {why}" for why, count in dropped.items()]


def _image_root(items: Source, image_root: str | Path | None) -> Path:
    return Path(items.parent if image_root is None else image_root).absolute()


def _match(
    path: Source,
    log: Log,
    items: Source | None,
    item_part: Part,
    users: Source | None,
    user_part: Part,
    drop_unknown: bool,
) -> tuple[Log, np.ndarray, np.ndarray, dict[str, int]]:
    """(log, item rows [n], user rows [n], reason -> rows dropped): rows whose item or user its file does not have are
    refused, or dropped and counted under the first reason.
    """
    rows, known, dropped = {}, np.ones(len(log.time), bool), {}
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
            dropped[f"their {kind} is not in {source.name}"] = int(known[absent].sum())
            known[absent] = False
    if not known.all():
        log, rows = log.take(known), {kind: values[known] for kind, values in rows.items()}
    return log, rows["item"], rows["user"], dropped


def _write_features(writer: DatasetWriter, name: str, path: Path, items: Source, item_table: pa.Table) -> None:
    tokens = read_array(path, item_table.num_rows, of=str(items))
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens
    manifest = {"encoder": f"ready made, {path.name}", "file_hash": hash_files([path])}
    writer.features(name, tokens, (tokens != 0).any(axis=-1), manifest, hash_ids(item_table.column("id")))
