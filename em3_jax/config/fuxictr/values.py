"""Values of FuxiCTR's YAML: numbers that may be texts, names in groups, regularizers, metrics."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from em3_jax.core.errors import UserError


def one(kind: Callable[[Any], Any], key: str, value: Any) -> Any:
    """A number."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return kind(float(value)) if kind is int else kind(value)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"{key} {shown(value)}: is no number; mend it") from None


def truth(key: str, value: Any) -> bool:
    """Yes or no, which may be a text."""
    said = str(value).strip().lower()
    if said in ("true", "yes", "on", "1"):
        return True
    if said in ("false", "no", "off", "0", "none", ""):
        return False
    raise UserError(f"{key} {shown(value)}: is neither true nor false; mend it")


def several(key: str, value: Any) -> tuple[int, ...]:
    """Whole numbers: a list, one alone, or a text of either."""
    try:
        value = yaml.safe_load(value) if isinstance(value, str) else value
    except yaml.YAMLError:
        raise UserError(f"{key} {shown(value)}: is no list of numbers; mend it") from None
    return tuple(one(int, key, each) for each in (value if isinstance(value, list | tuple) else [value]))


def penalty(key: str, value: Any, notes: list[str]) -> float:
    """The l2 part of a regularizer: a number, "l2(1e-5)", "l1_l2(1e-6,1e-5)"; others are told."""
    text = str(value).strip().lower()
    if text in ("none", "", "null"):
        return 0.0
    number = r"([-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?)"
    if found := re.fullmatch(rf"(?:l2(?:_reg)?\()?{number}\)?", text):
        return float(found[1])
    found = re.fullmatch(rf"l1_l2(?:_reg)?\({number},\s*{number}\)", text)
    notes.append(f"{key} {shown(value)}: of it the l2 part alone, if it has one")
    return float(found[2]) if found else 0.0


def metric(monitor: Any, labels: list[str], notes: list[str]) -> str:
    """What chooses the step.

    Args:
      monitor: a metric of FuxiCTR, or several with their signs.
      labels: those that are learnt; of several a metric without a label's name is their mean.
    """
    monitor = monitor or "auc"
    first = str(next(iter(monitor)) if isinstance(monitor, Mapping) else monitor)
    if isinstance(monitor, Mapping) and len(monitor) > 1:
        notes.append(f"monitor {dict(monitor)}: {first} alone chooses the step")
    known = {"auc": "auc", "logloss": "logloss", "gauc": "gauc", "binary_crossentropy": "logloss"}
    label, _, name = first.rpartition("_") if first.rpartition("_")[0] in labels else ("", "", first)
    found = known.get(name.lower())
    if found is None:
        notes.append(f"monitor {first}: no metric here; auc chooses the step")
        return "auc"
    if label or len(labels) < 2:
        return f"{label}_{found}" if label in labels[1:] else found
    return f"mean_{found}"


def listed(value: Any) -> list[str]:
    """A name, several, or groups of several, as a list of names."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [name for each in value for name in listed(each)]
    return [str(value)]


def found(names: list[str], known: tuple[str, ...]) -> str:
    """The column whose name says what it is; "" where none does."""
    by_small = {name.lower(): name for name in names}
    return next((by_small[each.lower()] for each in known if each.lower() in by_small), "")


def shown(value: Any) -> str:
    """A value in a line."""
    return str(value).replace("\n", " ")[:80]


def toml(value: Any) -> str:
    """A value of TOML: a text, a list or a table in a line."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(str(value), ensure_ascii=False)  # a text of TOML is one of JSON
