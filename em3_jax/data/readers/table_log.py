"""The interactions of the table reader: which column is what, and what may stand in it."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from em3_jax.core.errors import UserError
from em3_jax.data.canonical import words_and_codes
from em3_jax.data.format import CLICK, NOT_PART
from em3_jax.data.readers.encode import Encoded, encode, field_names, known_of, many_numbers
from em3_jax.data.readers.files import column_names, place, read_table, require_numbers, require_values, text_of
from em3_jax.data.readers.numbers import Values, read_numbers
from em3_jax.data.readers.source import Source
from em3_jax.data.readers.splits import OF_FILES, Shares, Split, Whole, of_files, parts_named
from em3_jax.data.readers.table_history import Given
from em3_jax.data.readers.table_times import NO_TIMES, Times, read_times
from em3_jax.data.times import ORDER, shown

HINTS = {
    "label": "; where every row is a click, --negatives 3 or --as-retrieval",
    "time": "; where there is none, --time-unit none",
}
MOST = float(np.finfo(np.float32).max)
"""Of amounts and weights, which are kept in 32 bits."""
COMPARISONS = {
    ">=": np.greater_equal, "<=": np.less_equal, "==": np.equal, "!=": np.not_equal, ">": np.greater, "<": np.less,
}  # fmt: skip


class More(NamedTuple):
    """What columns of the interactions say besides.

    Attributes:
      labels: name -> a column of 0 and 1, or a rule; a row without a value is not part of that label.
      amounts: name -> a column of numbers from 0 up, to be learnt; a row without a value is not part of it.
      context_numbers, event_numbers: columns of numbers.
    """

    labels: Mapping[str, str] = {}
    amounts: Mapping[str, str] = {}
    context_numbers: tuple[str, ...] = ()
    event_numbers: tuple[str, ...] = ()

    @property
    def rules(self) -> dict[str, tuple[str, np.ufunc | None, float]]:
        """Name of a label -> (column, comparison, number)."""
        return {name: rule_of(rule) for name, rule in self.labels.items()}

    @property
    def columns(self) -> list[str]:
        """All of them."""
        judged = [*(column for column, *_ in self.rules.values()), *self.amounts.values()]
        return [*judged, *self.context_numbers, *self.event_numbers]


NOTHING_MORE = More()


class Log(NamedTuple):
    """The interactions in the order of the file.

    Attributes:
      user, item: ids as text, dictionary-encoded, [n].
      label: [n] bool.
      time: [n] i64.
      time_unit: of them, see `data.times`.
      split: [n] u8, or the shares of a chronological split. Of a split by whole items or users all
        are 0 until ids are matched with rows, see `splits.Whole`.
      context, event: field name -> ids and values.
      group: [n] i32 number of the session, query or impression of each; None where no column says it.
      history: what comes with each, instead of its user's earlier interactions; None where nothing does.
      notes: what is worth telling.
      weight: [n] f32 how much each counts in training; None where no column says it.
      labels: name -> [n] u8, further labels, see `Dataset.label`.
      amounts: name -> [n] f32, NaN = not observed.
      numbers: "context" and "event" -> columns of numbers, which ranges are made of.
    """

    user: pa.ChunkedArray
    item: pa.ChunkedArray
    label: np.ndarray
    time: np.ndarray
    time_unit: str
    split: np.ndarray | tuple[float, float, float]
    context: dict[str, Encoded]
    event: dict[str, Encoded]
    group: np.ndarray | None
    history: Given | None
    notes: list[str]
    weight: np.ndarray | None = None
    labels: Mapping[str, np.ndarray] = {}
    amounts: Mapping[str, np.ndarray] = {}
    numbers: Mapping[str, Values] = {}

    def take(self, rows: np.ndarray) -> "Log":
        """The rows [m]."""
        context, event = (
            {name: (ids[rows], values) for name, (ids, values) in group.items()} for group in (self.context, self.event)
        )
        return self._replace(
            user=self.user.take(pa.array(rows)),
            item=self.item.take(pa.array(rows)),
            label=self.label[rows],
            time=self.time[rows],
            split=self.split if isinstance(self.split, tuple) else self.split[rows],
            context=context,
            event=event,
            group=None if self.group is None else self.group[rows],
            history=None if self.history is None else self.history.take(rows),
            weight=None if self.weight is None else self.weight[rows],
            labels={name: values[rows] for name, values in self.labels.items()},
            amounts={name: values[rows] for name, values in self.amounts.items()},
            numbers={
                group: {name: values[rows] for name, values in of_group.items()}
                for group, of_group in self.numbers.items()
            },
        )


def read_log(
    path: Source,
    roles: dict[str, str],
    label: str | None,
    split: Split,
    context_fields: tuple[str, ...],
    event_fields: tuple[str, ...],
    times: Times,
    clicks_alone: bool = False,
    more: More = NOTHING_MORE,
) -> Log:
    """The interactions file, each value checked; arguments as those of `table`.

    Args:
      clicks_alone: without a label, every row is a click.
      more: what else its columns say.
    """
    label_column, compare, threshold = label_rule(label) if label else (roles["label"], np.equal, 1.0)
    split_column = [split] if isinstance(split, str) else []
    texts = {roles["user"], roles["item"], *context_fields, *event_fields, *split_column}
    texts -= {label_column, roles["time"]}  # these are compared as numbers, also where they serve as a field
    texts |= {roles["group"]} if "group" in roles else set()
    have = column_names(path)
    labelled = not (clicks_alone and label_column == "label" and label_column not in have)
    timed = times.unit != NO_TIMES
    of_role = {"user": roles["user"], "item": roles["item"], "label": label_column, "time": roles["time"]}
    of_role = {k: v for k, v in of_role.items() if (labelled or k != "label") and (timed or k != "time")}
    own = list(of_role.values())
    for role, name in of_role.items():
        if name == role and name not in have:
            hint = HINTS.get(role, "")
            raise UserError(
                f"{path}: no column '{role}' (there are: {', '.join(have)}); say which it is with --columns "
                f"{role}=...{hint}"
            )
    check_names(more.labels, more.amounts)
    weight_column = [roles["weight"]] if "weight" in roles else []
    others = [*more.columns, *weight_column]
    if both := sorted(texts & {*others} - {*context_fields, *event_fields}):
        raise UserError(f"{path}: column '{both[0]}' holds ids, and is named as numbers or a label; name another")
    texts -= {*others}
    table = read_table(path, [*own, *texts, *others, *context_fields, *event_fields], texts)
    if table.num_rows == 0:
        raise UserError(f"{path}: there are no rows; is it the right file?")
    needed = [*own, *split_column, *([roles["group"]] if "group" in roles else []), *weight_column]
    require_values(path, table.select(list(dict.fromkeys(needed))))
    for role in ("user", "item"):
        require_numbers(path, roles[role], table.column(roles[role]))
    context: dict[str, Encoded] = {}
    event: dict[str, Encoded] = {}
    notes: list[str] = []
    for encoded, columns in ((context, context_fields), (event, event_fields)):
        names, renamed = field_names(list(columns))
        for name in columns:
            encoded[names[name]] = encode(table.column(name))
            ids, values = encoded[names[name]]
            notes += many_numbers(f"{path.name}: column '{name}'", known_of(ids), values)
        notes += renamed
    time, time_unit = np.zeros(table.num_rows, np.int64), ORDER
    if timed:
        time, time_unit = read_times(path, roles["time"], table.column(roles["time"]), times)
    labels = np.ones(table.num_rows, bool)
    if labelled:
        labels = _labels(path, label_column, table.column(label_column), compare, threshold, label is None)
    group = words_and_codes(table.column(roles["group"]))[1] if "group" in roles else None
    return Log(
        user=table.column(roles["user"]),
        item=table.column(roles["item"]),
        label=labels,
        time=time,
        time_unit=time_unit,
        split=_split(path, split, table),
        context=context,
        event=event,
        group=group,
        history=None,
        notes=list(dict.fromkeys(notes)),
        weight=_weights(path, weight_column[0], table.column(weight_column[0])) if weight_column else None,
        labels={name: _further(path, name, table.column(rule[0]), *rule) for name, rule in more.rules.items()},
        amounts=_amounts(path, table, more.amounts),
        numbers={
            "context": read_numbers(path, table, more.context_numbers, "--context-numbers"),
            "event": read_numbers(path, table, more.event_numbers, "--event-numbers"),
        },
    )


def require_order(path: Source, log: Log) -> None:
    """Refuses a log whose lines are not in the order of time, naming the first that is too late; equal times are in order."""
    late = np.flatnonzero(log.time[1:] < log.time[:-1])
    if len(late):
        row = int(late[0]) + 1
        time, before = (shown(int(log.time[k]), log.time_unit) for k in (row, row - 1))
        raise UserError(
            f"{place(path, row)}: time {time} is before that of the line above, {before}; this log has to be in time order"
        )


def label_rule(rule: str) -> tuple[str, np.ufunc, float]:
    """(column, comparison, number) of a rule such as "rating>=4"."""
    match = re.fullmatch(r"\s*(.+?)\s*(>=|<=|==|!=|>|<)\s*(-?(?:\d+\.?\d*|\.\d+))\s*", rule, re.ASCII)
    if not match:
        raise UserError(f"label rule '{rule}': write <column><comparison><number>, e.g. \"rating>=4\"")
    return match[1], COMPARISONS[match[2]], float(match[3])


def _labels(
    path: Source,
    name: str,
    column: pa.ChunkedArray,
    compare: np.ufunc,
    threshold: float,
    plain: bool,
    rows: np.ndarray | None = None,
    option: str = "--label '",
) -> np.ndarray:
    """[n] bool.

    Args:
      rows: [n] of the file, for messages; None = all.
      option: that takes a rule, for messages.
    """
    if not (pa.types.is_boolean(column.type) or _is_number(column.type)):
        raise UserError(
            f"{path}: column '{name}' holds {column.type}, e.g. '{text_of(column[0])}'; labels must be numbers"
        )
    values = column.cast(pa.float64(), safe=False).to_numpy()
    bad = np.flatnonzero(~np.isfinite(values) if not plain else ~np.isin(values, (0, 1)))
    if len(bad):
        value = values[bad[0]]
        advice = "drop or mend the row" if not np.isfinite(value) else f"give 0 or 1, or a rule: {option}{name}>=...'"
        row = bad[0] if rows is None else rows[bad[0]]
        raise UserError(f"{place(path, row)}: label '{name}' is {value:g}; {advice}")
    return compare(values, threshold)


def check_names(labels: Mapping[str, str], amounts: Mapping[str, str]) -> None:
    """Refuses names of labels that cannot be columns, or are the first one's, or are given twice."""
    for option, name in [*(("--labels", one) for one in labels), *(("--amounts", one) for one in amounts)]:
        if not re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII):
            raise UserError(f"{option} {name}=...: a label's name has letters, digits and _ alone; choose another")
        if name in (CLICK, "label", "mean"):
            raise UserError(f"{option} {name}=...: is the first label's name, or all labels'; choose another")
        if option == "--amounts" and name in labels:
            raise UserError(f"--amounts {name}=...: is a name in --labels, too; choose another")


def _amounts(path: Source, table: pa.Table, amounts: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Name -> [n] f32."""
    read = read_numbers(path, table, tuple(dict.fromkeys(amounts.values())), "--amounts")
    of_column = dict(zip(dict.fromkeys(amounts.values()), read.values(), strict=True))
    result = {}
    for name, column in amounts.items():
        values = of_column[column]
        bad = np.flatnonzero((values < 0) | (values > MOST))
        if len(bad):
            raise UserError(
                f"{place(path, bad[0])}: amount '{name}' is {values[bad[0]]:g}; amounts are numbers from 0 up, of 32 bits"
            )
        if np.nanmin(values) == np.nanmax(values):
            raise UserError(f"{path}: amount '{name}' is {np.nanmin(values):g} in every row; leave it out of --amounts")
        result[name] = values.astype(np.float32)
    return result


def rule_of(rule: str) -> tuple[str, np.ufunc | None, float]:
    """(column, comparison, number) of a rule, or of a column of 0 and 1, which has no comparison."""
    if not any(sign in rule for sign in COMPARISONS):
        return rule, None, 1.0
    return label_rule(rule)


def _further(
    path: Source, name: str, column: pa.ChunkedArray, column_name: str, compare: np.ufunc | None, threshold: float
) -> np.ndarray:
    """[n] u8 of a further label: 0, 1, or `NOT_PART` where it was not observed."""
    there = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        there = there & ~np.isnan(column.fill_null(np.nan).to_numpy(zero_copy_only=False))
    if not there.any():
        raise UserError(
            f"{path}: label '{name}' is never observed, column '{column_name}' is empty; leave it out of --labels"
        )
    rows = np.flatnonzero(there)
    of_rows = column.take(pa.array(rows))
    plain = compare is None
    found = _labels(path, column_name, of_rows, compare or np.equal, threshold, plain, rows, f"--labels '{name}=")
    if found.all() or not found.any():
        every = int(found[0])
        raise UserError(
            f"{path}: label '{name}' is {every} in every row that has it; both classes are needed, change its rule"
        )
    result = np.full(len(column), NOT_PART, np.uint8)
    result[rows] = found
    return result


def _weights(path: Source, name: str, column: pa.ChunkedArray) -> np.ndarray:
    """[n] f32."""
    if not _is_number(column.type):
        raise UserError(
            f"{path}: column '{name}' holds {column.type}, e.g. '{text_of(column[0])}'; weights must be numbers"
        )
    values = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero(~((values >= 0) & (values <= MOST)))
    if len(bad):
        raise UserError(f"{place(path, bad[0])}: weight '{name}' is {values[bad[0]]:g}; give a number from 0 up")
    if not values.any():
        raise UserError(f"{path}: every weight '{name}' is 0, so that nothing would be learnt; leave the weight out")
    return values.astype(np.float32)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind)


def _split(path: Source, split: Split, table: pa.Table) -> np.ndarray | Shares:
    """What `Log.split` is."""
    if split == OF_FILES:
        return of_files(parts_named(path, split, table.column(split)))
    if isinstance(split, str):
        return parts_named(path, split, table.column(split))
    return np.zeros(table.num_rows, np.uint8) if isinstance(split, Whole) else split
