"""The labels of a model, the first and the further ones: which, and their logits by name. Letters: n rows, H further labels."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

LOG_KEPT = "log_kept"
"""Array of a split: what logits of its rows are lower by than those of the whole log; see `data.sampling`."""


class Labels(NamedTuple):
    """Which further labels a run learns, and what the first one is; see `tasks.Task`.

    Attributes:
      names: of all of them.
      amounts: those that are amounts -> their loss.
      levels: of the amounts those of ordered levels -> these, ascending.
      first: the loss of the first label where that is an amount; "" = it is 0 or 1.
      first_levels: of the first label, where it is of ordered levels.
      entire_space: the one further label is of clicked rows (ESMM).
    """

    names: tuple[str, ...] = ()
    amounts: Mapping[str, str] = {}
    entire_space: bool = False
    levels: Mapping[str, tuple[float, ...]] = {}
    first: str = ""
    first_levels: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values; `from_json` reads them."""
        facts = {"names": list(self.names), "amounts": dict(self.amounts), "entire_space": self.entire_space}
        facts |= {"levels": {name: list(of) for name, of in self.levels.items()}} if self.levels else {}
        return facts | ({"first": self.first, "first_levels": list(self.first_levels)} if self.first else {})

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> "Labels":
        """What `to_json` gives; of {} there are none."""
        if not facts:
            return cls()
        levels = {name: tuple(of) for name, of in facts.get("levels", {}).items()}
        first = facts.get("first", ""), tuple(facts.get("first_levels", ()))
        return cls(tuple(facts["names"]), dict(facts["amounts"]), bool(facts["entire_space"]), levels, *first)


def parted(logits: np.ndarray, what: Labels) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """([n] logits of the first label, {further label: [n] its logits, or scores of an amount}).

    Of ESMM there are the logits given a click, by the name `given_click`, and those of a click and the label.

    Args:
      logits: [n], or [n, 1 + H] of the first and the further labels.
    """
    if logits.ndim == 1:
        return logits, {}
    first = np.ascontiguousarray(logits[:, 0])
    further = {name: np.ascontiguousarray(logits[:, 1 + k]) for k, name in enumerate(what.names)}
    if what.entire_space:
        (name,) = what.names
        further = {name: both(first, further[name]), given_click(name): further[name]}
    return first, further


def given_click(label: str) -> str:
    """What a label of clicked rows alone is called, where the label itself is of all rows."""
    return f"{label}_given_click"


def both(first: np.ndarray, further: np.ndarray) -> np.ndarray:
    """[n] f32 logits of sigmoid(first) sigmoid(further), without rounding either to 0 or 1."""
    a, b = first.astype(np.float64), further.astype(np.float64)
    no_click, click = -np.logaddexp(0.0, a), -np.logaddexp(0.0, -a)
    yes = click - np.logaddexp(0.0, -b)
    return (yes - np.logaddexp(no_click, click - np.logaddexp(0.0, b))).astype(np.float32)
