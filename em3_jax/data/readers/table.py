"""Anybody's interactions, items and users: CSV, TSV or Parquet, and a mapping that says which column is what.

    em3 prepare table --interactions clicks.parquet --items items.csv --users users.csv \\
        --columns user=uid,item=sku,time=ts --label "rating>=4" --item-fields brand,tags:multi --item-text title \\
        --item-image photo --user-fields city --context-fields device --event-fields rating \\
        --features image=image.npy --split 0.8,0.1,0.1 --out data/mine

Ids and field values have one form whatever the file (`core.values`): 5, 5.0 and "5.0" are the same, 007 is
another. Items and users come from their tables, in that order, or else from the interactions. The interactions are
sorted by time here; rows of equal time keep the order of the file.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.readers.delimited import TextFormat, check_format
from em3_jax.data.readers.encode import Encoded
from em3_jax.data.readers.files import nearest, read_array
from em3_jax.data.readers.log import write_log
from em3_jax.data.readers.negatives import BY
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.source import Paths, Source
from em3_jax.data.readers.table_clicks import Clicks, check_clicks, prepared
from em3_jax.data.readers.table_history import ORDERS, Events, Given, merged, read_events, read_given
from em3_jax.data.readers.table_log import Log, read_log, require_order
from em3_jax.data.readers.table_match import Ends, as_written, match, match_events, match_history, taken
from em3_jax.data.readers.table_part import Multi, check_multi, part_of_log, read_part
from em3_jax.data.readers.table_times import AUTO, Times
from em3_jax.data.writer import DatasetWriter

ROLES = ("user", "item", "label", "time", "user_key", "item_key", "group", "history")


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
    events: str | None = None,
    events_table: Paths | None = None,
    history_fields: dict[str, str] | None = None,
    history_separator: str = "",
    history_order: str = ORDERS[0],
    negatives: int = 0,
    negatives_by: str = BY[0],
    seed: int = 0,
    as_retrieval: bool = False,
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
        that name. `item_key`, `user_key`: the id's column in the items and users file, where it is another. `history`: a
        column of the items that each row's user took before, as a list or text. `group`: a session, query or impression, by
        which GAUC is taken and LEMUR's contrast masked; the model does not read it.
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
      events: "clicks", "all" or "none", the interactions that enter histories; default clicks, but none where histories are
        given or are in a table.
      events_table: files of events (user, item, time and the event fields) that are history and never an example.
      history_fields: name=column, of event fields that stand beside the column `history`, one value for each of its items.
      history_separator: between the items of a history that is a text; default that of `separator`.
      history_order: newest_last or newest_first.
      negatives: where every row is a click, so many items are set against each, of those clicked up to then by anybody (in
        splits up to the row's own), without those of its user.
      negatives_by: uniform = each item is as likely as another; popularity = in proportion to its clicks up to then.
      seed: of the negatives.
      as_retrieval: a dataset of clicks alone, for retrieval: rows that are none are left out, a user's later clicks on an
        item, too.
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
    clicks = Clicks(negatives, negatives_by, seed, as_retrieval)
    check_clicks(clicks)
    tables = None if events_table is None else Source(events_table, check_format(text))
    events = _events(events, roles, tables, history_fields or {}, event_fields)
    if items is None and (item_fields or item_text or item_image or features):
        raise UserError("fields, texts, images or features of items are given, but no items file; add --items")
    if users is None and user_fields:
        raise UserError("fields of users are given, but no users file; add --users")
    with DatasetWriter(out, overwrite) as writer:
        times = Times(time_unit, time_format)
        of_rows = () if events == "none" else event_fields
        log = read_log(interactions, roles, label, split, context_fields, of_rows, times, clicks.alone)
        if in_order:
            require_order(interactions, log)
        if "history" in roles:
            between = history_separator or separator
            given = read_given(interactions, roles["history"], history_fields or {}, between, history_order)
            log = log._replace(history=given, event=given.event)
        outside = None
        if tables is not None:
            outside = read_events(tables, roles, event_fields, times, log.time_unit)
            log, outside = _one_vocabulary(log, outside, events)
        if items is None:
            item_part = part_of_log("item", _all_named(log.item, log.history, outside))
        else:
            root = _image_root(items, image_root)
            item_part = read_part("item", items, roles["item_key"], item_fields, multi, item_text, item_image, root)
        if users is None:
            user_part = part_of_log("user", _all_named(log.user, outside and outside.user))
        else:
            user_part = read_part("user", users, roles["user_key"], user_fields, multi)
        ends = Ends(items, item_part, users, user_part, drop_unknown)
        log, item, user, dropped = match(interactions, log, ends)
        log, history_notes = match_history(interactions, log, item, user, ends)
        outside, outside_notes = match_events(tables, outside, log, item, user, ends)
        label_rule = clicks.rule(label or f"column {roles['label']}", bool(log.label.all()))
        ready = prepared(interactions, log, item, user, clicks, taken(log.history, outside, item_part))
        log, item, user = ready.log, ready.item, ready.user
        dropped |= ready.dropped
        for name, path in (features or {}).items():
            _write_features(writer, name, Path(path), items, item_part.table)
        is_event = {"clicks": log.label, "all": ~ready.drawn, "none": np.zeros(len(item), bool)}[events]
        was_unsorted = write_log(
            writer, user=user, item=item, label=log.label, time=log.time, split=log.split, is_event=is_event,
            context={name: ids for name, (ids, _) in log.context.items()},
            event={name: ids for name, (ids, _) in log.event.items()} if log.history is None else {},
            group=log.group, outside=outside, given=as_written(log.history, item_part),
        )  # fmt: skip
        account = rows_of_file(interactions.rows, int((~ready.drawn).sum()), dropped)
        sources = [source for source in (interactions, items, users, tables) if source is not None]
        notes = [*item_part.notes, *user_part.notes, *log.notes]
        notes += [*history_notes, *outside_notes, *ready.notes]
        notes += [note for source in sources for note in source.notes]
        notes += [f"{interactions.name} was not in the order of time and has been sorted"] if was_unsorted else []
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
            label_rule=label_rule,
            split_rule=split if split.startswith("column:") else f"by time, shares {split}",
            source_hash=hash_files([file for source in sources for file in source.files]),
            time_unit=log.time_unit,
            extra={
                "notes": notes,
                "only_clicks": as_retrieval,
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


def _image_root(items: Source, image_root: str | Path | None) -> Path:
    return Path(items.parent if image_root is None else image_root).absolute()


def _events(
    events: str | None, roles: dict[str, str], tables: Source | None, history_fields: dict, event_fields: tuple
) -> str:
    """Which interactions enter histories; refuses options about histories that do not go together."""
    if events not in (None, "clicks", "all", "none"):
        raise UserError(f"events '{events}': choose clicks, all or none")
    if history_fields and "history" not in roles:
        raise UserError("--history-fields: there is no history they stand beside; name it with --columns history=...")
    if "history" not in roles:
        return events or ("clicks" if tables is None else "none")
    if tables is not None or events not in (None, "none"):
        other = "--events-table" if tables is not None else f"--events {events}"
        raise UserError(f"{other} does not go with a column of histories, which has all events; leave one out")
    if event_fields:
        raise UserError(
            "--event-fields: events are those of the column of histories; say which column has a field of "
            "theirs with --history-fields name=column"
        )
    return "none"


def _all_named(used: pa.ChunkedArray, *others: Given | Events | pa.ChunkedArray | None) -> pa.ChunkedArray:
    """A column of ids and those of histories after it."""
    columns = [other if isinstance(other, pa.ChunkedArray) else other.item for other in others if other is not None]
    return pa.chunked_array([chunk for column in (used, *columns) for chunk in column.chunks], used.type)


def _one_vocabulary(log: Log, outside: Events, events: str) -> tuple[Log, Events]:
    """Event fields of the interactions and of the table of events, which are the same fields."""
    if events == "none":
        return log._replace(event=outside.event), outside
    own, others = {}, {}
    for name, encoded in log.event.items():
        ids, of_others, values = merged(encoded, outside.event[name])
        own[name], others[name] = (ids, values), (of_others, values)
    return log._replace(event=own), outside._replace(event=others)


def _write_features(writer: DatasetWriter, name: str, path: Path, items: Source, item_table: pa.Table) -> None:
    tokens = read_array(path, item_table.num_rows, of=str(items))
    tokens = tokens[:, None] if tokens.ndim == 2 else tokens
    manifest = {"encoder": f"ready made, {path.name}", "file_hash": hash_files([path])}
    writer.features(name, tokens, (tokens != 0).any(axis=-1), manifest, hash_ids(item_table.column("id")))
