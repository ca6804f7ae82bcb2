"""The dataset of the table reader, once all its options are known to go together: in memory, or streamed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset, hash_files, hash_ids
from em3_jax.data.readers.files import nearest, read_array
from em3_jax.data.readers.log_engine import UnsuitedError
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.table_dataset import Files, Read, finish, matched, ranged, told_of, write_interactions
from em3_jax.data.readers.table_history import Events, Given
from em3_jax.data.readers.table_match import Ends
from em3_jax.data.readers.table_numbers import Options as Cut
from em3_jax.data.readers.table_part import Part, part_of_log, read_part
from em3_jax.data.readers.table_reading import Asked, Roles, read_all
from em3_jax.data.readers.table_streamed import LEAST_ROWS, MOST_IN_MEMORY, Streamed, is_suited, streamed
from em3_jax.data.writer import DatasetWriter

ENGINES = ("auto", "duckdb", "memory", "spark")
Features = dict[str, str | Path]


def check_engine(engine: str, spark: str) -> None:
    """Refuses an engine that is none, and an address of Spark for another."""
    if engine not in ENGINES:
        raise UserError(f"--engine '{engine}': {nearest(engine, ENGINES)}")
    if spark and engine != "spark":
        raise UserError(f"--spark {spark}: says where Spark runs; add --engine spark, or leave it out")


def made(writer: DatasetWriter, asked: Asked, cuts: Cut, features: Features, engine: str, spark: str) -> Dataset:
    """The dataset.

    Args:
      cuts: how numbers are.
      features: arrays to take over.
      engine: one of `ENGINES`.
      spark: where Spark runs, see `log_spark`.
    """
    files, how, events, parts, drop_unknown = asked
    facts: dict[str, Any] = {}
    done = None if engine == "memory" else _streamed(writer, asked, cuts, engine, spark)
    if done is None:
        read = read_all(files, how, events)
        ends = _ends(files, how.roles, read, *parts, drop_unknown)
        found = matched(files, ends, read, how.clicks, how.label or f"column {how.roles['label']}", how.rule)
        found, ends, ranges = ranged(found, ends, cuts)
        told, facts["more"] = told_of(found), _facts(ranges, how.more.labels, how.more.amounts)
        facts["was_unsorted"] = write_interactions(writer, found, ends, events, how.rule, how.untimed)
    else:
        told, ends, facts["was_unsorted"], ranges = done
        facts["more"] = _facts(ranges, how.more.labels, how.more.amounts)
    facts["more"] |= {"negatives": how.clicks.by} if how.clicks.negatives else {}
    _write_features(writer, features, files.items, ends.item_part.table)
    facts |= {"only_clicks": how.clicks.as_retrieval, "image_root": parts[0][4] if parts[0][3] else None}
    return finish(writer, files, told, ends, split=how.rule, **facts)


def _streamed(writer: DatasetWriter, asked: Asked, cuts: Cut, engine: str, spark: str) -> Streamed | None:
    """What was written by `table_streamed`; None where the log is to be read in memory."""
    log = asked.files.interactions
    if not is_suited(asked):
        if engine != "auto":
            raise UserError(
                f"--engine {engine}: takes logs with times, without drawn negatives, --as-retrieval, --in-order, "
                "or histories that come with rows; leave --engine out"
            )
        return None
    if engine == "auto" and log.rows < LEAST_ROWS:
        return None
    try:
        return streamed(writer, asked, cuts, spark if engine == "spark" else None)
    except UnsuitedError as reason:
        if reason.fault and log.rows > MOST_IN_MEMORY:
            raise UserError(reason.fault) from None
        if not reason.fault:
            print(f"{log}: has columns that are read in memory alone; the log is read as a whole")
        return None


def _facts(ranges: dict[str, Any], labels: Mapping[str, str], amounts: Mapping[str, str]) -> dict[str, Any]:
    """What dataset.json says of numbers and of further labels; {} without any."""
    facts = {"numbers": ranges} if ranges else {}
    for kind, given in (("labels", labels), ("amounts", amounts)):
        rules = {name: f"{rule} where it is there" for name, rule in given.items()}
        facts |= {kind: rules} if rules else {}
    return facts


def _ends(files: Files, roles: Roles, read: Read, of_items: tuple, of_users: tuple, drop_unknown: bool) -> Ends:
    """What ids may name.

    Args:
      of_items, of_users: the further arguments of `read_part`.
      drop_unknown: whether rows that name others are dropped.
    """
    log, outside = read
    item_part = _part("item", files.items, roles, (log.item, log.history, outside), of_items)
    user_part = _part("user", files.users, roles, (log.user, outside and outside.user), of_users)
    return Ends(files.items, item_part, files.users, user_part, drop_unknown)


def _part(kind: str, source: Source | None, roles: Roles, named: tuple, options: tuple) -> Part:
    """The items or the users: of their file, or else those that are named.

    Args:
      kind: "item" or "user".
      source: their file; None without one.
      named: the columns whose ids they are without a file, see `_all_named`.
      options: the further arguments of `read_part`.
    """
    if source is None:
        return part_of_log(kind, _all_named(*named))
    return read_part(kind, source, roles[f"{kind}_key"], *options)


def _all_named(used: pa.ChunkedArray, *others: Given | Events | pa.ChunkedArray | None) -> pa.ChunkedArray:
    """A column of ids and those of histories after it."""
    columns = [other if isinstance(other, pa.ChunkedArray) else other.item for other in others if other is not None]
    return pa.chunked_array([chunk for column in (used, *columns) for chunk in column.chunks], used.type)


def _write_features(
    writer: DatasetWriter, files: dict[str, str | Path], items: Source | None, item_table: pa.Table
) -> None:
    """Takes over arrays of features, name -> file with a row for each item."""
    for name, file in files.items():
        path = Path(file)
        tokens = read_array(path, item_table.num_rows, of=str(items))
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        manifest = {"encoder": f"ready made, {path.name}", "file_hash": hash_files([path])}
        mask, item_hash = (tokens != 0).any(axis=-1), hash_ids(item_table.column("id"))
        writer.features(name, tokens, mask, manifest, item_hash)
