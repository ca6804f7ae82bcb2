"""Columns of numbers of a streamed log: written as they stand, then cut into ranges at quantiles of the training rows.

The quantiles are exact (`core.order_statistics`), so that ranges are those of a log in memory. The numbers themselves are
kept beside the ranges.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from em3_jax.core import mapped, npy
from em3_jax.core.numbers import Fit, as_values, value_column
from em3_jax.core.ranges import Ranges
from em3_jax.data.readers.encode import field_names
from em3_jax.data.readers.log_stream import Column
from em3_jax.data.readers.log_values import number
from em3_jax.data.readers.table_numbers import Options, encoded, fitted, of_training, with_fields
from em3_jax.data.readers.table_part import Part
from em3_jax.data.writer import DatasetWriter

PREFIX = {"context": "context_", "event": "field_"}
"""Group -> how the files of its fields begin."""


def fields_of(names: Iterable[str]) -> dict[str, str]:
    """Column -> its name as a field."""
    return field_names(list(dict.fromkeys(names)))[0]


def columns_of(group: str, names: Iterable[str]) -> list[Column]:
    """The columns that a group's numbers are before they are cut; of events those of all rows, too, to fit ranges to."""
    made = []
    for column, field in fields_of(names).items():
        value = f"coalesce({number(column)}, CAST('NaN' AS DOUBLE))"
        made.append(Column(f"{PREFIX[group]}{field}", value, np.float64))
        made += [Column(f"number_{field}", value, np.float64)] if group == "event" else []
    return made


def cut(
    writer: DatasetWriter, group: str, names: Iterable[str], options: Options, folder: str
) -> tuple[dict[str, list], dict[str, Any]]:
    """(field -> words; what dataset.json keeps) of a group's numbers, whose files become those of fields.

    Args:
      folder: of the writer's, where the numbers of all rows are.
    """
    fields = list(fields_of(names).values())
    split = npy.load(writer.path / "interactions" / "split.npy", mmap_mode="r")

    def fit(field: str) -> dict[str, Any]:
        name = f"{folder}/number_{field}" if group == "event" else f"interactions/{PREFIX[group]}{field}"
        values = npy.load(writer.path / f"{name}.npy", mmap_mode="r")

        def training() -> Iterator[np.ndarray]:
            for part in mapped.parts(len(values), values, split):
                yield values[part][split[part] == 0]

        ranges = Ranges.fitted_in_parts(training, options.bins)
        return ranges.to_json() | Fit.of_parts((one, None) for one in training()).to_json()

    facts = fitted(fields, group, options, fit)
    ranges = {field: Ranges.from_json(found) for field, found in facts.items()}
    for field, found in ranges.items():
        _replace(writer, "events" if group == "event" else "interactions", group, field, found, f"{folder}/cut")
    return {field: found.words() for field, found in ranges.items()}, facts


def _replace(writer: DatasetWriter, of: str, group: str, field: str, ranges: Ranges, name: str) -> None:
    """Writes the ids of a file's numbers in their place, and the numbers beside them.

    Args:
      of: folder of the columns.
      name: of a file of the writer's that is there meanwhile.
    """
    path = writer.path / of / f"{PREFIX[group]}{field}.npy"
    values, file = npy.load(path, mmap_mode="r"), writer.appender(name, np.int32)
    kept = writer.appender(f"{of}/{value_column(field)}", np.float32)
    for part in mapped.parts(len(values), values):
        numbers = np.asarray(values[part])
        file.append(ranges.ids(numbers))
        kept.append(as_values(numbers))
    file.close()
    kept.close()
    (writer.path / f"{name}.npy").replace(path)


def cut_part(kind: str, part: Part, counts: np.ndarray | None, options: Options) -> tuple[Part, dict[str, Any]]:
    """(the items or users with their numbers as fields, what dataset.json keeps).

    Args:
      kind: "item" or "user".
      counts: how many training rows each has; None where there are no numbers.
    """
    facts = fitted(part.numbers, kind, options, lambda name: of_training(part.numbers[name], options.bins, counts))
    return with_fields(part, encoded(part.numbers, facts), kind), facts
