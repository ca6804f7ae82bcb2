"""The inputs of a ranking model over a split's rows, each of which can be given to other rows.

So that a row can have what is another's, each row is a user of its own and its candidate an item of
its own: rows that share a user or an item do so by value. The histories' items are the catalogue's.
All batches are thus made alike, whatever is permuted, and one compiled program predicts them.
Letters: n rows of the split, I items, C columns of a field group.
"""

import dataclasses
from typing import NamedTuple

import numpy as np

from em3_jax.core import rng
from em3_jax.core.fields import columns
from em3_jax.core.numbers import value_column
from em3_jax.core.types import WHOLE
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.buckets import Buckets
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.data.pipeline import EvaluationSource
from em3_jax.data.segments import SOUGHT
from em3_jax.protocols import permutations

USER, ITEM, CONTEXT, EVENT = "user", "item", "context", "event"
CONTENT, HISTORY = "content", "history"
ALL_CONTENT = "all of it"
OF_USER = (USER, HISTORY)
"""The kinds of inputs that are a user's, whatever the candidate."""
SCOPES = ("rows", "groups")
"""Among what is permuted: all rows of the split; or so that what differs between groups stays."""
UNUSED = np.uint64(0)
_SAMPLES = 16  # batches by which bucket sizes are measured


class Input(NamedTuple):
    """An input: its `kind`, and the `name` of its field or feature set.

    Kinds are "user", "item", "context", "event", "content" and "history"; the first field of users
    and of items `is_id`.
    """

    kind: str
    name: str
    is_id: bool = False

    def told(self) -> str:
        """The two as one, "item category"."""
        if self.kind == HISTORY or self.name == ALL_CONTENT:
            return f"{self.kind}, all of it"
        return f"{self.kind} ID" if self.is_id else f"{self.kind} {self.name}"


@dataclasses.dataclass(frozen=True)
class _Shown(FeatureSet):
    """A feature set of which place k shows the item `item_of[k]`."""

    item_of: np.ndarray

    def of_items(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().of_items(self.item_of[items])


class Inputs:
    """Batches of a split's rows, with one input permuted or none.

    Args:
      builder: of the run's batches, its features on the host.
      rows: [n] of the interactions.
      batch_size: B.
      sets: the content features in use; () without.
      reads_history: whether examples have one.
    """

    def __init__(
        self,
        builder: BatchBuilder,
        rows: np.ndarray,
        batch_size: int,
        sets: tuple[FeatureSet, ...],
        reads_history: bool,
    ):
        self._builder, self._batch_size, self._sets = builder, batch_size, sets
        taken = {name: np.asarray(column[rows]) for name, column in builder.dataset.interactions.items()}
        self._columns = taken | {"group": np.asarray(builder.dataset.group[rows])}
        self._reads_history, self.rows = reads_history, rows
        self._catalogue = len(builder.item_rows)
        user, item = self._columns["user"], self._columns["item"]
        self._user_rows, self._user_numbers = builder.user_rows[user], builder.user_numbers[user]
        self._item_of = np.concatenate([np.arange(self._catalogue), item])
        owners = np.unique(np.stack([self._columns["group"], user]), axis=1)
        self._is_of_users = len(np.unique(owners[0])) == owners.shape[1]
        self._event = self._shown_events()
        self._shown_items = np.union1d(item, builder.dataset.events["item"][self._event])
        self._buckets: Buckets | None = None

    def named(self) -> list[Input]:
        """All inputs there are; fields of events only where there are histories."""
        fields = self._builder.dataset.fields
        result = [
            Input(group, field.name, group != CONTEXT and number == 0)
            for group in (USER, ITEM, CONTEXT)
            for number, field in enumerate(getattr(fields, group))
        ]
        if self._reads_history:
            stored = self._builder.dataset.stored_event_fields  # the others go with the history
            result += [Input(HISTORY, HISTORY), *(Input(EVENT, f.name) for f in stored)]
        numbers = self._builder.dataset.numbers.groups()
        result += [
            Input(group, one.name) for group, of in numbers if group != EVENT or self._reads_history for one in of
        ]
        result += [Input(CONTENT, one.name) for one in self._sets]
        return result + [Input(CONTENT, ALL_CONTENT)] * (len(self._sets) > 1)

    def scopes(self, one: Input) -> tuple[str, ...]:
        """The `SCOPES` of an input; content, whose items are in many groups, has one for both."""
        return SCOPES[:1] if one.kind == CONTENT else SCOPES

    def source(self, one: Input | None = None, scope: str = SCOPES[0], key: np.uint64 = UNUSED) -> EvaluationSource:
        """The batches of all rows.

        Args:
          one: what is permuted; None = nothing.
          scope: of `SCOPES`. "groups" is within groups for what varies there (the candidate's fields,
            the context, the events of a history), and of groups as wholes for what is of a user.
          key: of the draw.
        """
        if self._buckets is None:
            self._buckets = self._measured()
        builder = self._reading() if one is None else self._permuted(one, scope, key)
        return EvaluationSource(builder, range(len(self.rows)), self._batch_size, self._buckets, WHOLE)

    def _permuted(self, one: Input, scope: str, key: np.uint64) -> BatchBuilder:
        """The builder whose input `one` is that of other rows, or of other items."""
        fields = self._builder.dataset.fields
        if one.kind == CONTENT:
            return self._reading(permuted=self._content_permuted(one.name, key))
        numbers = [number.name for number in getattr(self._builder.dataset.numbers, one.kind, ())]
        number = value_column(one.name) if one.name in numbers else ""
        if one.kind == EVENT:
            name = number or f"field_{one.name}"
            return self._reading(events={name: self._events_permuted(name, scope, key)})
        source = self._stand_ins(one.kind in OF_USER, scope, key)
        if one.kind == HISTORY:
            names = ("history_start", "history_end", "time")  # events are as long ago as for the row that they are of
            return self._reading(interactions={name: self._columns[name][source] for name in names})
        if one.kind == CONTEXT:
            name = number or f"context_{one.name}"
            return self._reading(interactions={name: self._columns[name][source]})
        if number:
            return self._with_numbers_of(one.kind, numbers.index(one.name), source)
        column = columns(getattr(fields, one.kind))[one.name]
        if one.kind == USER:
            user_rows = self._user_rows.copy()
            user_rows[:, column] = self._user_rows[source, column]
            return self._reading(user_rows=user_rows)
        item_rows = self._builder.item_rows[self._item_of]
        own = item_rows[self._catalogue :].copy()
        item_rows[self._catalogue :, column] = own[source, column]
        by = [part.item_field for part in self._builder.segments.parts]
        sought = {SOUGHT: self._columns["item"][source]} if one.name in by else None
        return self._reading(sought, item_rows=item_rows)

    def _with_numbers_of(self, kind: str, k: int, source: np.ndarray) -> BatchBuilder:
        """The builder whose users, or candidates, have number `k` of those of the rows `source` [n]."""
        if kind == USER:
            numbers = self._user_numbers.copy()
            numbers[:, k] = numbers[source, k]
            return self._reading(user_numbers=numbers)
        numbers = self._builder.item_numbers[self._item_of]
        numbers[self._catalogue :, k] = numbers[self._catalogue + source, k]
        return self._reading(item_numbers=numbers)

    def _stand_ins(self, of_user: bool, scope: str, key: np.uint64) -> np.ndarray:
        """[n] i64 the row whose value each row has."""
        if scope == SCOPES[0]:
            return permutations.among_rows(len(self.rows), key)
        how = permutations.of_groups if of_user and self._is_of_users else permutations.within_groups
        return how(self._columns["group"], key)

    def _content_permuted(self, name: str, key: np.uint64) -> dict[str, np.ndarray]:
        """Feature set -> [I] i64 the item whose content each item has, wherever it stands."""
        item = np.arange(self._catalogue)
        shown = self._shown_items
        item[shown] = shown[rng.permute(np.arange(len(shown)), len(shown), key)]
        return {one.name: item for one in self._sets if name in (one.name, ALL_CONTENT)}

    def _events_permuted(self, name: str, scope: str, key: np.uint64) -> np.ndarray:
        """[events] the values of a column of events, permuted among all shown or a user's."""
        values = np.array(self._builder.dataset.events[name])
        group = np.zeros(len(self._event), np.int64)
        if scope == SCOPES[1]:  # a history begins where its user's events do
            starts = np.unique(self._columns["history_start"])
            group = np.searchsorted(starts, self._event, side="right")
        values[self._event] = values[self._event[permutations.within_groups(group, key)]]
        return values

    def _shown_events(self) -> np.ndarray:
        """[m] i64 the events among the last T of some row's history; of several histories all of it."""
        length = self._builder.history_length if self._reads_history else 0
        start, end = self._columns["history_start"], self._columns["history_end"]
        if length and len(self._builder.segments.parts) > 1:  # what is sought may be of any time
            length = int((end - start).max(initial=0))
        change = np.zeros(len(self._builder.dataset.events["item"]) + 1, np.int64)
        np.add.at(change, np.maximum(start, end - length), 1)
        np.add.at(change, end, -1)
        return np.flatnonzero(np.cumsum(change)[:-1] > 0)

    def _reading(
        self,
        interactions: dict[str, np.ndarray] | None = None,
        events: dict[str, np.ndarray] | None = None,
        user_rows: np.ndarray | None = None,
        item_rows: np.ndarray | None = None,
        permuted: dict[str, np.ndarray] | None = None,
        user_numbers: np.ndarray | None = None,
        item_numbers: np.ndarray | None = None,
    ) -> BatchBuilder:
        """The builder of the split's rows with some of what it reads replaced."""
        n, dataset = len(self.rows), self._builder.dataset
        own = {"user": np.arange(n), "item": self._catalogue + np.arange(n), SOUGHT: self._columns["item"]}
        view: Dataset = dataclasses.replace(
            dataset,
            interactions=self._columns | own | (interactions or {}),
            events=dataset.events if events is None else dataset.events | events,
        )
        sets = []
        for one in self._sets:
            item_of = self._item_of
            if one.name in (permuted or {}):
                item_of = (permuted or {})[one.name][item_of]
            sets.append(_Shown(one.name, one.tokens, one.mask, one.manifest, item_of))
        return self._builder.reading(
            view,
            self._user_rows if user_rows is None else user_rows,
            self._builder.item_rows[self._item_of] if item_rows is None else item_rows,
            tuple(sets),
            self._user_numbers if user_numbers is None else user_numbers,
            self._builder.item_numbers[self._item_of] if item_numbers is None else item_numbers,
        )

    def _measured(self) -> Buckets:
        """Bucket sizes that hold batches in order, and those of random rows, which name most."""
        builder, n = self._reading(), len(self.rows)
        starts = np.unique(np.linspace(0, max(n - self._batch_size, 0), num=_SAMPLES).astype(np.int64))
        samples = [np.minimum(start + np.arange(self._batch_size), n - 1) for start in starts]
        drawn = permutations.among_rows(n, rng.numpy_key(0, "buckets"))
        return builder.measure_buckets([*samples, *(drawn[sample] for sample in samples)])
