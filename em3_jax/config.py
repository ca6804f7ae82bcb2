"""Between a config and the functions it speaks to: every key of a section must be a parameter, and every parameter set."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from em3_jax.types import UserError


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint: the known name nearest to `name`, or all of them where none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'?" if close else f"known: {', '.join(known)}"


def call(function: Callable, section: Mapping[str, Any], where: str, **given) -> Any:
    """function(**section, **given), refusing unknown and missing keys of the config section called `where`."""
    parameters = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in given and name not in ("parent", "name")  # the two that Linen adds to modules
    }
    open_ended = [name for name, parameter in parameters.items() if parameter.kind is inspect.Parameter.VAR_KEYWORD]
    for name in open_ended:  # **settings, which the function checks itself
        del parameters[name]
    for key in section:
        if key not in parameters and not open_ended:
            raise UserError(f"{where}.{key}: unknown key; {nearest(key, parameters)}")
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in section:
            raise UserError(f"{where}.{name}: missing; set it in the config file")
    return function(**section, **given)


def check_sections(config: Mapping[str, Any], known: Iterable[str]) -> None:
    """Refuses top-level keys that are not in `known`, and known ones that are absent."""
    known = tuple(known)
    for key in config:
        if key not in known:
            raise UserError(f"config.{key}: unknown key; {nearest(key, known)}")
    for key in known:
        if key not in config:
            raise UserError(f"config.{key}: missing; set it in the config file")


def split_lists(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same with lists of names as the command line gives them, --config.data.features=image,text, taken apart."""
    result = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            value = split_lists(value)
        elif isinstance(value, tuple) and all(isinstance(entry, str) for entry in value):
            value = tuple(name.strip() for entry in value for name in entry.split(",") if name.strip())
        result[key] = value
    return result


def differences(old: Mapping[str, Any], new: Mapping[str, Any], where: str = "config") -> list[str]:
    """["config.model.dropout: 0.1 -> 0.2", ...] between two nested mappings."""
    lines = []
    for key in sorted(set(old) | set(new)):
        name, a, b = f"{where}.{key}", old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            lines += differences(a, b, name)
        elif a != b:
            lines.append(f"{name}: {a} -> {b}")
    return lines
