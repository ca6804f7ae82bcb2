"""Columns of numbers of the table reader: cut into ranges at quantiles of the training rows, each range a value of a field.

What was cut where is kept in dataset.json, `numbers`, with mean and spread, so that a service, `em3 predict` and a longer log
do alike. The numbers are kept as well, for runs that read them as values.
Letters: n interactions, m numbers, k edges.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field
from em3_jax.core.numbers import Fit, as_values, value_column
from em3_jax.core.ranges import Ranges
from em3_jax.data.readers.encode import Encoded
from em3_jax.data.readers.log import chronological_split
from em3_jax.data.readers.table_log import Log
from em3_jax.data.readers.table_part import Part

BINS = 16


class Options(NamedTuple):
    """How numbers are cut.

    Attributes:
      bins: most ranges of a field.
      like: a dataset whose ranges are taken over; "" = they are fitted.
    """

    bins: int = BINS
    like: str | Path = ""


def check(options: Options) -> None:
    """Refuses what cannot be."""
    if options.like and options.bins != BINS:
        raise UserError(f"--number-bins {options.bins}: ranges are those of --numbers-like; leave one of them out")
    if not 2 <= options.bins <= 1000:
        raise UserError(f"--number-bins {options.bins}: give 2 to 1000")


def fitted(names: Iterable[str], group: str, options: Options, fit: Callable[[str], dict[str, Any]]) -> dict[str, Any]:
    """Field -> where it is cut, see `Ranges`, and its `Fit`, as plain values.

    Args:
      names: fields of a group.
      group: "user", "item", "context" or "event".
      fit: that of a field's numbers in the training rows, see `of_training`; a ValueError where there is none.

    Raises:
      UserError: the dataset to be like has no such field; no training row has a number.
    """
    names, result = list(names), {}
    there = _there(options.like).get(group, {}) if options.like and names else {}
    for name in names:
        if options.like:
            if name not in there:
                raise UserError(
                    f"--numbers-like {options.like}: has no numbers '{name}' of the {group}; fit them afresh"
                )
            result[name] = there[name]
            continue
        try:
            result[name] = fit(name)
        except ValueError:
            raise UserError(f"numbers '{name}': no training row has one; leave the column out") from None
    return result


def of_training(numbers: np.ndarray, bins: int, counts: np.ndarray | None = None) -> dict[str, Any]:
    """What is kept of numbers [m], each of which `counts` [m] training rows have; None = one has each.

    Raises:
      ValueError: none is there.
    """
    return Ranges.fitted(numbers, bins, counts).to_json() | Fit.of(numbers, counts).to_json()


def _there(root: str | Path) -> dict[str, Any]:
    path = paths.local(root) / "dataset.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("numbers", {})
    except (OSError, ValueError):
        raise UserError(f"--numbers-like {root}: is no dataset; give a folder made by `em3 prepare`") from None


def encoded(values: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> dict[str, Encoded]:
    """Field -> ids and words; without a value it is `unknown`, or a value of its own where training has such rows."""
    ranges = {name: Ranges.from_json(found) for name, found in facts.items()}
    return {name: (ranges[name].ids(of_all), ranges[name].words()) for name, of_all in values.items()}


def with_ranges(log: Log, item: np.ndarray, user: np.ndarray, parts: tuple[Part, Part], options: Options):
    """(log, items, users, facts for dataset.json) with the numbers as fields.

    Args:
      log: with `numbers` of the context and of events.
      item, user: [n] rows.
      parts: the items and the users, with their `numbers`.
    """
    split = log.split
    if isinstance(split, tuple):
        shares, split = split, np.empty(len(log.time), np.uint8)
        split[np.argsort(log.time, kind="stable")] = chronological_split(len(split), shares)
    train = np.flatnonzero(np.asarray(split) == 0)
    facts: dict[str, dict[str, Any]] = {}

    def fields(group: str, values: Mapping[str, np.ndarray], training: np.ndarray) -> dict[str, Encoded]:
        found = fitted(values, group, options, lambda name: of_training(values[name][training], options.bins))
        if found:
            facts[group] = found
        return encoded(values, found)

    of_context, of_event = (log.numbers.get(group, {}) for group in ("context", "event"))
    log = log._replace(
        context=joined(log.context, fields("context", of_context, train), "context"),
        event=joined(log.event, fields("event", of_event, train), "event"),
        numbers={"context": _values(of_context), "event": _values(of_event)},
    )
    items = with_fields(parts[0], fields("item", parts[0].numbers, item[train]), "item")
    users = with_fields(parts[1], fields("user", parts[1].numbers, user[train]), "user")
    return log, items, users, facts


def with_fields(part: Part, more: dict[str, Encoded], kind: str) -> Part:
    """The users or items with further fields."""
    words = joined(part.words, {name: values for name, (_, values) in more.items()}, kind)
    table = part.table
    for name, (ids, _) in more.items():
        if name in table.column_names:
            raise UserError(f"{kind}s: column '{name}' is given twice; name it once")
        table = table.append_column(name, pa.array(ids, pa.int32()))
    for name, values in _values(part.numbers).items():
        if value_column(name) in table.column_names:
            raise UserError(f"{kind}s: column '{value_column(name)}' is where the numbers '{name}' are kept; rename it")
        table = table.append_column(value_column(name), pa.array(values, pa.float32()))
    sizes = tuple(Field(name, len(values) + FIRST_KNOWN) for name, (_, values) in more.items())
    return part._replace(table=table, fields=(*part.fields, *sizes), words=words, numbers={})


def _values(numbers: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: as_values(of_all) for name, of_all in numbers.items()}


def joined(fields: dict, more: Mapping, kind: str) -> dict:
    """Fields, and those of numbers behind them; refuses a name that both have."""
    for name in more:
        if name in fields:
            raise UserError(f"{kind} fields: '{name}' is given as categories and as numbers; name it once")
    return fields | dict(more)
