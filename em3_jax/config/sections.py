"""Between a config and the functions it speaks to: every key of a section must be a parameter, and every parameter set."""

import dataclasses
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from em3_jax.core.errors import UserError, nearest

OWN = "own_"
"""Begins the name of a module that was made of a user's file."""


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


def part(where: str, name: str | Callable, known: Mapping[str, Callable]) -> Callable:
    """What the config's entry `where` names: one of `known`, or "my_file:MyPart" from a file or module of the user's.

    Args:
      where: "config.model.fusion".
      name: a key of `known`; or a file without ".py", relative to the working directory, or the dotted name of an importable
        module, with the part's name behind the colon; or the class or function itself.
      known: the library's own parts.

    Raises:
      UserError: there is no such part.
    """
    if not isinstance(name, str):
        if dataclasses.is_dataclass(name) and not isinstance(name, type):  # a Linen module that is made already
            made = type(name).__name__
            raise UserError(f"{where}: is a {made} that is made already; give the class, {made}, or a function")
        return name
    if ":" not in name:
        if name not in known:
            raise UserError(f"{where} '{name}' is unknown; {nearest(name, known)}, or my_file:MyPart for your own")
        return known[name]
    source, _, attribute = name.partition(":")
    module = _import(where, source)
    found = getattr(module, attribute, None)
    if not callable(found):
        names = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise UserError(
            f"{where}={name}: {module.__file__} has no class or function '{attribute}'; {nearest(attribute, names)}"
        )
    return found


def named(config: Mapping[str, Any], where: str = "config") -> dict[str, Any]:
    """The config with "module:name" in the place of classes and functions, by which a run's folder remembers them.

    Args:
      config: nested settings.
      where: the full name of the section.

    Raises:
      UserError: another process would not find one by its name: it is a lambda, or a notebook's, say.
    """
    result: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{where}.{key}"
        if isinstance(value, Mapping):
            result[key] = named(value, name)
        else:
            result[key] = _named(name, value) if callable(value) else value
    return result


def _named(where: str, value: Callable) -> str:
    module, name = getattr(value, "__module__", None) or "", getattr(value, "__qualname__", "")
    there = getattr(sys.modules.get(module), name, None) is value
    if module == "__main__" or not there:
        what = f"{module}.{name}".strip(".") or type(value).__name__
        raise UserError(
            f"{where}: {what} cannot be found again by a name, which a run's folder keeps; put it at the "
            "top level of a file, my_file.py, and import it from there"
        )
    package = module.partition(".")[0]
    if getattr(sys.modules.get(package), name, None) is value:  # optax:scale_by_lion, wherever it was written
        module = package
    spec = getattr(sys.modules[module], "__spec__", None)
    if module.startswith(OWN) and spec is not None and spec.origin:  # by its path, as `_import` made it
        return f"{Path(spec.origin).with_suffix('')}:{name}"
    return f"{module}:{name}"


def own_files(section: Mapping[str, Any]) -> dict[str, str]:
    """Path -> sha256 of the user's files that a config takes parts from."""
    found: dict[str, str] = {}
    for value in section.values():
        if isinstance(value, Mapping):
            found |= own_files(value)
        elif isinstance(value, str) and _file(value.partition(":")[0]).is_file() and ":" in value:
            path = _file(value.partition(":")[0])
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _file(source: str) -> Path:
    return Path(source if source.endswith(".py") else f"{source}.py")


def _import(where: str, source: str) -> Any:
    path = _file(source)
    try:
        if not path.is_file():
            return importlib.import_module(source)
        name = f"{OWN}{path.stem}"  # not the name of a module that is there already
        spec = importlib.util.spec_from_file_location(name, path.absolute())
        assert spec is not None and spec.loader is not None  # there is one for what ends in .py
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        spec.loader.exec_module(module)
        return module
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == source.split(".")[0]:
            raise UserError(f"{where}={source}:...: no file {path} here and no such module; check the name") from None
        raise UserError(f"{where}={source}:...: {error}, which it imports; install it") from None
    except (SyntaxError, ImportError, NameError, AttributeError, TypeError, ValueError) as error:
        raise UserError(f"{where}={source}:...: {type(error).__name__}: {error}; mend the file") from None


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
