"""What is measured within groups of rows: GAUC by any field, NDCG@K and MRR. Letters: n rows.

A group is what the dataset says (session, query, impression), or else the user: the lists of NDCG and MRR. GAUC may be taken by
any field besides: of the rows of one hour, of users of one age, of items of one category.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from em3_jax import metrics
from em3_jax.core import terminal
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.fields import columns
from em3_jax.data.format import Dataset
from em3_jax.evaluation import influence, ndcg

BY = "gauc_by_"
OWN = "group"  # the name of the dataset's own groups


class Asked(NamedTuple):
    """What to measure within groups beside GAUC; nothing by default.

    Attributes:
      at: lengths K of NDCG@K, with which goes MRR.
      by: fields that GAUC is taken by, too; see `of_rows`.
    """

    at: tuple[int, ...] = ()
    by: tuple[str, ...] = ()

    def headline(self) -> tuple[str, ...]:
        """The metrics of a label of 0 and 1."""
        return (*(f"ndcg@{k}" for k in self.at), *(["mrr"] if self.at else []), *(BY + field for field in self.by))


NOTHING = Asked()
"""Beside GAUC by the dataset's groups."""


class Groups(NamedTuple):
    """The groups of rows.

    Attributes:
      own: [n] the dataset's groups, or else the users.
      by: field -> [n] its values.
      at: see `Asked`.
    """

    own: np.ndarray
    by: Mapping[str, np.ndarray] = {}
    at: tuple[int, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, rows: np.ndarray, asked: Asked = NOTHING) -> "Groups":
        """Those of the interaction rows [n]."""
        by = {field: of_rows(dataset, rows, field) for field in asked.by}
        return cls(np.asarray(dataset.group[rows]), by, asked.at)

    def part(self, keep: np.ndarray) -> "Groups":
        """Of some of the rows, [n] bool."""
        return Groups(self.own[keep], {field: values[keep] for field, values in self.by.items()}, self.at)

    def lists(self, values: np.ndarray, scores: np.ndarray, is_amount: bool) -> ndcg.Lists | None:
        """The lists that NDCG is of; None where no K was asked for."""
        return ndcg.of_groups(values, scores, self.own, self.at, reciprocal=not is_amount) if self.at else None

    def measured(self, values: np.ndarray, scores: np.ndarray, is_amount: bool = False) -> dict[str, float]:
        """{metric: value} of what was asked for, and how many groups each rests on.

        Args:
          values: [n] 0/1; of an amount from 0 up, which are the gains of NDCG, and there is neither AUC nor MRR.
          scores: [n].
        """
        result: dict[str, float] = {}
        if (lists := self.lists(values, scores, is_amount)) is not None:
            result |= {metric: lists.mean(metric) for metric in lists.values}
            used = int(lists.used.sum())
            result |= {"ndcg_groups": used, "ndcg_groups_left_out": len(lists.first_row) - used}
        for field, group in self.by.items() if not is_amount else ():
            found = metrics.gauc(values, scores, group)
            name = BY + field
            result |= {name: found.value, f"{name}_groups": found.groups_used}
            result |= {f"{name}_groups_left_out": found.groups_left_out, f"{name}_rows": found.rows_used}
        return result

    def influences(self, values: np.ndarray, scores: np.ndarray, is_amount: bool = False) -> dict[str, np.ndarray]:
        """{metric: [n] influence of the rows} on what `measured` gives, of the same arguments."""
        lists = self.lists(values, scores, is_amount)
        result = {} if lists is None else {metric: lists.influence(metric, len(values)) for metric in lists.values}
        for field, group in self.by.items() if not is_amount else ():
            result[BY + field] = influence.gauc_influence(values, scores, group)
        return result


def is_of(kind: str, metric: str) -> bool:
    """Whether the influence of a "user", or "item", on a metric is known.

    Lists are of users, or of what a user saw: an item is a part of many, and its influence on them is not found.
    """
    return kind == "user" or not metric.startswith(("ndcg@", "mrr"))


def of_rows(dataset: Dataset, rows: np.ndarray, field: str, where: str = "config.eval.group_by") -> np.ndarray:
    """[n] integers: the value of a field in each row, for rows to be grouped by.

    Args:
      field: "user", "item", `OWN` for the dataset's own groups, or a field of users, items or the context.
      where: what to call the setting in messages.

    Raises:
      UserError: there is no such field, or it has several values a row.
    """
    read, fields = dataset.interactions, dataset.fields
    if field in ("user", "item", OWN) and field in read:
        return np.asarray(read[field][rows])
    if field == OWN:
        raise UserError(f"{where}={OWN}: this dataset has no groups of its own; name a field, or user")
    of_numbers = {kind: [one.name for one in numbers] for kind, numbers in dataset.numbers.groups()}  # by their ranges
    if field in {one.name for one in fields.context} | set(of_numbers.get("context", ())):
        return np.asarray(read[f"context_{field}"][rows])
    for kind, table in (("user", dataset.user_table), ("item", dataset.item_table)):
        if field in of_numbers.get(kind, ()):
            return table.column(field).to_numpy()[np.asarray(read[kind][rows])]
    for kind, known in (("user", fields.user), ("item", fields.item)):
        if field in (place := columns(known)):
            ids = dataset.user_field_ids if kind == "user" else dataset.item_field_ids
            if place[field].stop - place[field].start > 1:
                raise UserError(f"{where}={field}: has several values a row; name a field of one")
            return ids[:, place[field].start][np.asarray(read[kind][rows])]
    names = [one.name for group in (fields.user, fields.item, fields.context) for one in group if one.length == 1]
    names += [name for kind, of in of_numbers.items() if kind != "event" for name in of]
    raise UserError(f"{where}={field}: no such field; {nearest(field, names)}")


def check(dataset: Dataset, asked: Asked, where: str = "config.eval.group_by") -> None:
    """Refuses fields that rows cannot be grouped by, and what is named twice."""
    for field in asked.by:
        if asked.by.count(field) > 1:
            raise UserError(f"{where}: '{field}' is named twice; name it once")
        of_rows(dataset, np.zeros(0, np.int64), field, where)


def counts(reports: Mapping[str, Mapping[str, float]]) -> str:
    """A table of the groups that what was asked for rests on, and of those left out; "" where nothing was.

    Args:
      reports: label -> metric -> value.
    """
    metrics_of = {
        label: [name for name in of if f"{name}_left_out" in of and _is_asked(name)] for label, of in reports.items()
    }
    names = list(dict.fromkeys(name for found in metrics_of.values() for name in found))
    if not names:
        return ""
    heads = ["ndcg, mrr" if name == "ndcg_groups" else name.removesuffix("_groups") for name in names]
    rows = [
        [label, *(f"{of[name]:,} (less {of[name + '_left_out']:,})" if name in of else "" for name in names)]
        for label, of in reports.items()
    ]
    return f"{terminal.table(['groups', *heads], rows)}\nless those of one row, or of one value alone"


def _is_asked(name: str) -> bool:
    return name == "mrr" or name.startswith(("ndcg@", "ndcg_", BY))


def shown(reports: Sequence[Mapping[str, float]], names: Sequence[str]) -> list[str]:
    """The columns of a table: `names`, and behind GAUC, or at the end, what was asked for and all reports have."""
    asked = [name for name in reports[0] if _is_asked(name)]
    asked = [name for name in asked if not name.endswith(("_groups", "_groups_left_out", "_rows", "_se"))]
    asked = [name for name in asked if all(name in of for of in reports) and name not in names]
    at = list(names).index("logloss") if "logloss" in names else len(names)
    return [*names[:at], *asked, *names[at:]]
