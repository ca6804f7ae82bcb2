"""From tables that have been read to a dataset: ids become rows, and all of it is written.

Letters: n interactions.
"""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN, Field, Fields
from em3_jax.data.format import NOT_PART, Dataset, hash_files
from em3_jax.data.readers.encode import rows_of
from em3_jax.data.readers.log import write_log
from em3_jax.data.readers.rows import rows_of_file
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.splits import Split, Whole, is_by_items, of_whole, told
from em3_jax.data.readers.table_clicks import Clicks, Ready, prepared
from em3_jax.data.readers.table_history import Events
from em3_jax.data.readers.table_log import Log
from em3_jax.data.readers.table_match import Ends, as_written, match, match_events, match_history
from em3_jax.data.readers.table_match import taken as taken_before
from em3_jax.data.readers.table_numbers import Options, with_ranges
from em3_jax.data.readers.table_times import Untimed, drawn_order
from em3_jax.data.writer import DatasetWriter


class Files(NamedTuple):
    """What is read: interactions, and items, users, a table of events; None where not given."""

    interactions: Source
    items: Source | None
    users: Source | None
    events: Source | None

    def given(self) -> list[Source]:
        """Those that are there."""
        return [source for source in self if source is not None]


BROUGHT = "brought"
"""The writer's folder of what was no file here, or is packed, until all is read."""


@contextlib.contextmanager
def brought(writer: DatasetWriter, files: Files, unpack: bool) -> Iterator[None]:
    """What lies in a bucket or in memory is here as a file; errors about it name what it was.

    Args:
      unpack: whether packed texts are unpacked beside it, not into memory.
    """
    called: dict[str, str] = {}
    try:
        for source in files.given():
            called |= source.bring(writer.path / BROUGHT / str(len(called)), unpack)
        yield
    except UserError as error:
        said = str(error)
        for path, name in called.items():
            said = said.replace(path, name)
        raise UserError(said) from None


class Read(NamedTuple):
    """Interactions, with histories if they have such, and a table of events; None without one."""

    log: Log
    events: Events | None


class Matched(NamedTuple):
    """Interactions whose items and users are rows.

    Attributes:
      ready: the interactions as they are to be written.
      outside: the columns of the table of events, see `match_events`; None without one.
      dropped: reason -> rows dropped.
      label_rule: what a click is, in words.
      notes: what is worth a note of histories, events and clicks.
    """

    ready: Ready
    outside: dict[str, np.ndarray] | None
    dropped: dict[str, int]
    label_rule: str
    notes: list[str]


class Told(NamedTuple):
    """What dataset.json says of the interactions.

    Attributes:
      kept: rows of the file that were kept.
      dropped: reason -> rows dropped.
      label_rule: what a click is, in words.
      time_unit: see `data.times`.
      notes: what is worth a note.
      context, event: field name -> values.
    """

    kept: int
    dropped: dict[str, int]
    label_rule: str
    time_unit: str
    notes: list[str]
    context: Mapping[str, list]
    event: Mapping[str, list]


def told_of(found: Matched) -> Told:
    """What is to be told of interactions in memory."""
    log = found.ready.log
    context, event = ({name: values for name, (_, values) in of.items()} for of in (log.context, log.event))
    kept, notes = int((~found.ready.drawn).sum()), [*log.notes, *found.notes]
    return Told(kept, found.dropped, found.label_rule, log.time_unit, notes, context, event)


def matched(files: Files, ends: Ends, read: Read, clicks: Clicks, label: str, split: Split) -> Matched:
    """What has been read, with rows of the items and users in the place of their ids.

    Args:
      files: to name in messages.
      ends: what ids may name.
      read: the interactions and the table of events.
      clicks: of logs of clicks alone.
      label: the rule or the column that says what a click is.
      split: the rule.
    """
    log, item, user, dropped = match(files.interactions, read.log, ends)
    outside = read.events
    split_notes: list[str] = []
    if isinstance(split, Whole):
        part = ends.item_part if split.kind == "item" else ends.user_part
        source = files.items if split.kind == "item" else files.users
        of_each = split.of_each(part.table.column("id"), clicks.seed, source)
        log = log._replace(split=of_each[item if split.kind == "item" else user])
        if split.kind == "item":
            log, outside, split_notes = _without_new_items(log, outside, of_each, ends)
    log, history_notes = match_history(files.interactions, log, item, user, ends)
    events, event_notes = match_events(files.events, outside, log, item, user, ends)
    label_rule = clicks.rule(label, bool(log.label.all()))
    taken = taken_before(log.history, events, ends.item_part)
    ready = prepared(files.interactions, log, item, user, clicks, taken)
    notes = [*split_notes, *history_notes, *event_notes, *ready.notes]
    return Matched(ready, events, dropped | ready.dropped, label_rule, notes)


def ranged(found: Matched, ends: Ends, options: Options) -> tuple[Matched, Ends, dict]:
    """(interactions, ends, facts for dataset.json) with numbers as fields of ranges; see `table_numbers`."""
    ready, parts = found.ready, (ends.item_part, ends.user_part)
    log, items, users, facts = with_ranges(ready.log, ready.item, ready.user, parts, options)
    return found._replace(ready=ready._replace(log=log)), ends._replace(item_part=items, user_part=users), facts


def _without_new_items(
    log: Log, outside: Events | None, of_each: np.ndarray, ends: Ends
) -> tuple[Log, Events | None, list[str]]:
    """(log, table of events, notes) without events of items that training does not know, of given histories and of tables.

    Args:
      of_each: [I] u8 the part of each item.
    """
    ids, notes = ends.item_part.table.column("id"), []
    in_training = np.append(of_each == 0, True)  # the last: of an unknown item, which is looked at later
    if log.history is not None:
        kept = in_training[rows_of(log.history.item, ids)]
        log = log._replace(history=log.history.keep(kept))
        if gone := int((~kept).sum()):
            notes.append(f"{gone} events of histories left out: their items are of the valid or test part")
    if outside is not None:
        kept = in_training[rows_of(outside.item, ids)]
        outside = outside.take(np.flatnonzero(kept))
        if gone := int((~kept).sum()):
            notes.append(f"{gone} events of a table left out: their items are of the valid or test part")
    return log, outside, notes


def write_interactions(
    writer: DatasetWriter, found: Matched, ends: Ends, events: str, split: Split, untimed: Untimed | None
) -> bool:
    """Writes interactions and histories; returns whether they were not in the order of time.

    Args:
      events: which interactions enter histories: "clicks", "all" or "none".
      split: the rule; where it is by whole items, training rows alone enter histories.
      untimed: of a log without times, whose rows enter histories; None of any other.
    """
    log, item, user, drawn = found.ready[:4]
    is_event = {"clicks": log.label, "all": ~drawn, "none": np.zeros(len(item), bool)}[events]
    of_training = is_by_items(split)
    if untimed is not None:
        assert isinstance(log.split, np.ndarray)  # a log without times is not split by time
        log = log._replace(time=drawn_order(log.split, untimed.seed))
        of_training = not isinstance(split, Whole) or of_training
    if of_training:
        is_event = is_event & (log.split == 0)
    was_unsorted = write_log(
        writer, user=user, item=item, label=log.label, time=log.time, split=log.split,
        is_event=is_event,
        context={name: ids for name, (ids, _) in log.context.items()},
        event={name: ids for name, (ids, _) in log.event.items()} if log.history is None else {},
        labels=_further_labels(log.labels, drawn), amounts=_amounts(log.amounts, drawn),
        numbers=log.numbers, weight=log.weight,
        group=log.group, outside=found.outside, given=as_written(log.history, ends.item_part),
        cycles=untimed is not None and untimed.histories == "others",
    )  # fmt: skip
    return was_unsorted and untimed is None


def _further_labels(labels: Mapping[str, np.ndarray], drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Further labels; negatives that were drawn [n] bool were never shown, so nothing of theirs was observed."""
    return {name: np.where(drawn, NOT_PART, values).astype(np.uint8) for name, values in labels.items()}


def _amounts(amounts: Mapping[str, np.ndarray], drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Amounts, none of which was observed of negatives that were drawn [n] bool."""
    return {name: np.where(drawn, np.float32(np.nan), values) for name, values in amounts.items()}


def finish(
    writer: DatasetWriter,
    files: Files,
    interactions_told: Told,
    ends: Ends,
    *,
    split: Split,
    was_unsorted: bool,
    only_clicks: bool,
    image_root: Path | None,
    more: dict[str, Any],
) -> Dataset:
    """The dataset, once all arrays are written.

    Args:
      interactions_told: what is told of the interactions.
      split: the rule.
      was_unsorted: the interactions were not in the order of time.
      only_clicks: it is for retrieval.
      image_root: what paths of images are relative to; None without any.
      more: facts worth keeping besides.
    """
    log, sources, interactions = interactions_told, files.given(), files.interactions
    items, users = ends.item_part, ends.user_part
    notes = [*items.notes, *users.notes, *log.notes]
    notes += [note for source in sources for note in source.notes]
    if was_unsorted:
        notes.append(f"{interactions.name} was not in the order of time and has been sorted")
    rows = {interactions.name: rows_of_file(interactions.rows, log.kept, log.dropped)}
    source_hash = hash_files([file for source in sources for file in source.files])
    shutil.rmtree(writer.path / BROUGHT, ignore_errors=True)
    return writer.finish(
        name=interactions.stem,
        users=users.table,
        items=items.table,
        fields=Fields(users.fields, items.fields, _fields(log.context), _fields(log.event)),
        vocabularies={"user": users.words, "item": items.words, "context": dict(log.context), "event": dict(log.event)},
        text_columns=items.text_columns,
        provenance=f"own tables: {', '.join(source.name for source in sources)}",
        label_rule=log.label_rule,
        split_rule=told(split),
        source_hash=source_hash,
        time_unit=log.time_unit,
        extra={
            "notes": notes,
            "only_clicks": only_clicks,
            **of_whole(split),
            "rows": rows,
            "image_root": None if image_root is None else str(image_root),
            **more,
        },
    )


def _fields(words: Mapping[str, list]) -> tuple[Field, ...]:
    return tuple(Field(name, len(values) + FIRST_KNOWN) for name, values in words.items())
