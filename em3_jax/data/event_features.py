"""Fields of events that depend on the row that reads them, see `core.event_features`: made with the batch, stored nowhere."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from em3_jax.core import event_features
from em3_jax.core.errors import UserError
from em3_jax.core.event_features import RECENCY
from em3_jax.core.fields import FIRST_KNOWN, Field
from em3_jax.data import times
from em3_jax.data.format import Dataset


def with_event_features(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The dataset whose event fields include these features, after its own: whoever reads event fields reads them.

    Raises:
      UserError: the dataset has such a field already, or its events have no times to be recent by.
    """
    if not names:
        return dataset
    known = [field.name for field in dataset.fields.event]
    for name in names:
        if name in known or names.count(name) > 1:
            what = f"{dataset.root} has an event field of that name" if name in known else "is named twice"
            raise UserError(f"config.data.event_features: '{name}': {what}; leave it out")
    if RECENCY in names:
        _check_times(dataset)
    words = {name: event_features.ranges(name) for name in names}
    fields = [Field(name, len(of) + FIRST_KNOWN) for name, of in words.items()]
    # All ranges are known: one that training never shows keeps the row that it began with.
    counts = {f"event_{field.name}": np.ones(field.size, np.int64) for field in fields}
    vocabularies = dict(dataset.meta["vocabularies"])
    vocabularies["event"] = dict(vocabularies.get("event", {})) | words
    return dataclasses.replace(
        dataset,
        fields=dataclasses.replace(dataset.fields, event=(*dataset.fields.event, *fields)),
        counts=dataset.counts | counts,
        meta=dataset.meta | {"vocabularies": vocabularies, "event_features": list(names)},
    )


def _check_times(dataset: Dataset) -> None:
    where = f"config.data.event_features={RECENCY}: {dataset.root}"
    if times.unit_of(dataset) == times.ORDER:
        raise UserError(
            f"{where}: its times only say which row comes first; prepare it with --time-unit, or take position alone"
        )
    first = dataset.events["time"][:1000]
    if len(first) and (first == times.UNTIMED).all():
        raise UserError(f"{where}: its histories came with the rows, and have no times; take position alone")


def made(dataset: Dataset, rows: np.ndarray, event_time: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    """Event feature -> ids [B, T] of the events that rows read; {} where the dataset has none.

    Args:
      dataset: of `with_event_features`.
      rows: [B] of the interactions.
      event_time: [E] of its events, one at least.
      index: [B, T] places among them; of empty slots any.
    """
    names = dataset.event_features
    if not names:
        return {}
    columns, seconds = dataset.interactions, None
    if RECENCY in names:
        ticks = columns["time"][rows][:, None] - np.take(event_time, index)
        seconds = ticks * times.seconds_per_tick(dataset)
    return event_features.ids(names, seconds, columns["history_end"][rows][:, None] - index)
