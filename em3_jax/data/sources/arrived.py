"""What sources give."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from em3_jax.core.errors import UserError

SOURCE = "source"
"""Key of a position: the source that it is within, as messages name it."""
UNTYPED = {"cells": "text"}
"""Metadata of a table from text, where each column is of texts, whatever they say."""
LOOSE = {"columns": "of these rows"}
"""Metadata of a table whose columns are those that its rows happen to name, of messages, say."""


class Arrived(NamedTuple):
    """Rows that have come.

    Attributes:
      table: the rows, in order.
      position: where in the source they end.
      where: what they come from, for messages.
      place: number among them -> what it is to be called.
      bad: lines that are no rows: place, why, text.
    """

    table: pa.Table
    position: dict[str, Any]
    where: str
    place: Callable[[int], str]
    bad: list[tuple[str, str, str]]


class Source(Protocol):
    """Where rows come from.

    Attributes:
      name: for messages.
    """

    name: str

    def check(self, position: Mapping[str, Any]) -> None:
        """Refuses a position within another source, as far as can be told before there is more to read.

        Raises:
          UserError: the rows up to it came from another source.
        """
        ...

    def poll(self, position: Mapping[str, Any]) -> Arrived | None:
        """What has come after a position, some of it if it is much; None where nothing has.

        Raises:
          UserError: what was read before is no longer there, or what comes cannot be read.
        """
        ...


def check_kind(name: str, position: Mapping[str, Any], key: str) -> None:
    """Refuses a position within a source of another kind.

    Args:
      name: of the source, for messages.
      key: that its own positions have.
    """
    if position and key not in position:
        raise of_another(name, position.get(SOURCE, "a source of another kind"))


def of_another(name: str, was: str) -> UserError:
    """That rows came from the source `was`, and `name` is another."""
    return UserError(
        f"{name}: the rows so far came from {was}; name that one in the mapping again, or begin with another config.data.root "
        "and --workdir"
    )
