"""The interactions and the events of the table reader, put together from what its files and options say."""

from typing import NamedTuple

import numpy as np

from em3_jax.data.readers.source import Source
from em3_jax.data.readers.splits import Split
from em3_jax.data.readers.table_clicks import Clicks
from em3_jax.data.readers.table_dataset import Files, Read
from em3_jax.data.readers.table_history import Events, merged, read_events, read_given
from em3_jax.data.readers.table_log import Log, More, read_log, require_order
from em3_jax.data.readers.table_times import NO_TIMES, Times, Untimed

Names = tuple[str, ...]
Roles = dict[str, str]


class Reading(NamedTuple):
    """How interactions are read: the options of `table`.

    Attributes:
      event_fields: those that are read of the interactions; `of_events` are those of a table of events.
      histories: fields, separator and order of histories that come with the interactions.
    """

    roles: Roles
    label: str | None
    rule: Split
    context_fields: Names
    event_fields: Names
    of_events: Names
    times: Times
    clicks: Clicks
    more: More
    in_order: bool
    untimed: Untimed | None
    histories: tuple[dict[str, str], str, str]


class Asked(NamedTuple):
    """What a dataset is to be made of, once all options are known to go together.

    Attributes:
      files: what is read.
      how: how interactions are.
      events: which of them enter histories: "clicks", "all" or "none".
      parts: the further arguments of `read_part`, of items and users.
      drop_unknown: whether rows that name items or users that are in no file are dropped.
    """

    files: Files
    how: Reading
    events: str
    parts: tuple[tuple, tuple]
    drop_unknown: bool


def read_all(files: Files, how: Reading, events: str) -> Read:
    """The interactions, with histories if they have such, and the table of events.

    Args:
      events: which interactions enter histories.
    """
    fields = (how.context_fields, how.event_fields)
    log = read_log(files.interactions, how.roles, how.label, how.rule, *fields, how.times, how.clicks.alone, how.more)
    if how.in_order:
        require_order(files.interactions, log)
    log = _with_note(files.interactions, log, how.times.unit, how.untimed)
    log = _with_history(files, log, how.roles, *how.histories)
    return Read(*_with_events(files, log, how.roles, how.of_events, how.times, events))


def _with_note(source: Source, log: Log, unit: str, untimed: Untimed | None) -> Log:
    """The log with a note on what histories hold, where there are no times."""
    if unit != NO_TIMES:
        return log
    note = f"{source.name} has no times, so its rows are no history of others"
    if untimed is not None:
        which = "the other rows" if untimed.histories == "others" else "the rows before it"
        note = (
            f"{source.name} has no times: histories hold {which} of a user in an order drawn with seed {untimed.seed}"
        )
    return log._replace(notes=[*log.notes, note])


def _with_history(
    files: Files, log: Log, roles: dict[str, str], fields: dict[str, str], between: str, order: str
) -> Log:
    """The log with the histories of a column of it, if there is one; see `read_given`."""
    if "history" not in roles:
        return log
    given = read_given(files.interactions, roles["history"], fields, between, order)
    return log._replace(history=given, event=given.event)


def _with_events(
    files: Files, log: Log, roles: dict[str, str], fields: Names, times: Times, events: str
) -> tuple[Log, Events | None]:
    """(log, table of events; None without one), their event fields numbered alike."""
    if files.events is None:
        return log, None
    outside = read_events(files.events, roles, fields, times, log.time_unit)
    return _one_vocabulary(log, outside, events)


def _one_vocabulary(log: Log, outside: Events, events: str) -> tuple[Log, Events]:
    """Event fields of the interactions and of the table of events, which are the same fields."""
    own, others = {}, {}
    if (
        events == "none"
    ):  # the interactions are no events: they have the fields' values, and no event of theirs is written
        of_none = np.zeros(len(log.user), np.int32)
        own = {name: (of_none, values) for name, (_, values) in outside.event.items()}
        return log._replace(event=own), outside
    for name, encoded in log.event.items():
        ids, of_others, values = merged(encoded, outside.event[name])
        own[name], others[name] = (ids, values), (of_others, values)
    return log._replace(event=own), outside._replace(event=others)
