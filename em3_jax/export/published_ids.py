"""The ids that the versions of a stream know: all of a dataset that is whole, those shown so far of one that is appended to.

A version of an appended dataset has places for ids to come, as the tables have. What it says of them is a function of
the rows that were trained on, not of those that have come and wait: so the versions of a run are the same however rows came.
"""

from typing import Any

import numpy as np

from em3_jax.data.append import Appended
from em3_jax.data.format import Dataset
from em3_jax.export import model
from em3_jax.serving.id_index import GrowingIndex

KINDS = ("user", "item")


class PublishedIds:
    """The indexes of users and items, version after version, at the cost of those that are new.

    Args:
      dataset: in use.
    """

    def __init__(self, dataset: Dataset):
        self._store = dataset.store if isinstance(dataset, Appended) else None
        self._rows, self._sizes = 0, {"user": dataset.num_users, "item": dataset.num_items}
        if self._store is None:
            self._arrays, self._facts = model.ids_of(dataset)
        else:
            self._sizes = {}
            self._indexes = {kind: GrowingIndex() for kind in KINDS}

    def go_on_in(self, dataset: Dataset) -> bool:
        """Whether these are ids of the rows that `dataset` is of: one that is appended to, in longer tables."""
        return self._store is not None and isinstance(dataset, Appended) and dataset.store is self._store

    def until(self, row: int) -> dict[str, int]:
        """Field -> how many ids the rows before number `row` have shown; it does not go back.

        Of "user" and "item" and, of a dataset that is appended to, of "context_<name>" and "event_<name>".
        """
        if self._store is not None:
            self._sizes, self._rows = self._store.sizes(row, self._sizes, self._rows), row
            for kind, index in self._indexes.items():
                index.add(self._store.words_between(kind, len(index), self._sizes[kind]))
        return self._sizes

    def known(
        self, arrays: dict[str, np.ndarray], serving: dict[str, Any]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, facts of serving) of a version with the ids that `until` has found, and with none that are yet to come.

        Args:
          arrays, serving: see `model.arrays_of` and `model.facts_of`.
        """
        if self._store is None:
            return arrays | self._arrays, self._facts | serving
        found: dict[str, np.ndarray] = {}
        facts: dict[str, Any] = {}
        for kind, index in self._indexes.items():
            of_kind = index.index
            found |= {f"{kind}_words": of_kind.words, f"{kind}_slots": of_kind.slots}
            facts[f"{kind}_ids"] = "text"
            rows = arrays[f"{kind}_rows"]
            rows[len(index) : -1] = rows[-1]  # the last is that of one who is not known
        words = {
            group: {name: values[: self._sizes[f"{group}_{name}"]] for name, values in of.items()}
            for group, of in serving["vocabularies"].items()
        }
        return arrays | found, facts | serving | {"vocabularies": words}
