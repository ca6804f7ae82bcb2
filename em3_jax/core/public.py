"""Public names of a package that are imported when they are first used: reading a file does not cost a trainer's imports."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def getter(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package (PEP 562).

    Args:
      package: its name.
      modules: public name -> the module that has it.
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(importlib.import_module(modules[name]), name)
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get
