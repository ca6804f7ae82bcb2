"""How far a stream is in its log."""

from typing import NamedTuple

from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset


class Position(NamedTuple):
    """How far a run is, of the JSON notes of a checkpoint.

    Attributes:
      window: windows done.
      row: interaction rows done.
      time: of the last of them.
    """

    window: int = 0
    row: int = 0
    time: int | None = None


def check_same_past(dataset: Dataset, position: Position) -> None:
    """Refuses a grown log whose first rows are not those that were trained on."""
    time_ = dataset.interactions["time"]
    if position.row > len(time_) or (position.row and int(time_[position.row - 1]) != position.time):
        found = time_[position.row - 1] if position.row <= len(time_) else "nothing"
        raise UserError(
            f"{dataset.root}: row {position.row - 1} of the interactions has time {found}, it had {position.time} when the run "
            "trained on it; a stream may only be appended to"
        )
