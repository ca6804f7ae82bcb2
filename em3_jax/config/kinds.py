"""What a setting may be: its type, its range or its choices, in words, and how the command line writes it."""

import ast
import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any

from em3_jax.core import paths

LARGEST_WHOLE = 2**31 - 1
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of value. `empty` says what an empty or zero value stands for, where that has a meaning of its own."""

    empty: str = dataclasses.field(default="", kw_only=True)

    @property
    def words(self) -> str:
        """The values it takes, to follow "give"."""
        return self._words() + (f"; {self.empty}" if self.empty else "")

    def holds(self, value: Any) -> bool:
        """Whether `value` is one of them; tuples and lists are the same."""
        raise NotImplementedError

    def parse(self, text: str) -> Any:
        """The value that a text of the command line stands for; a ValueError where it stands for none."""
        return text

    def resolved(self, value: Any) -> Any:
        """A value that holds, as the program uses it."""
        return value

    def _words(self) -> str:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Whole(Kind):
    """A whole number from `least` to `most`; None = any that devices count with."""

    least: int | None = 0
    most: int | None = None

    def _words(self) -> str:
        if self.most is not None:
            return f"a whole number from {self.least} to {self.most}"
        return "a whole number" + ("" if self.least is None else f" of {self.least} or more")

    def holds(self, value: Any) -> bool:
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and (-LARGEST_WHOLE if self.least is None else self.least) <= value
            and value <= (LARGEST_WHOLE if self.most is None else self.most)
        )

    def parse(self, text: str) -> int:
        return int(text)


@dataclasses.dataclass(frozen=True)
class Number(Kind):
    """A finite number from `least` to `most`, or above and below them."""

    least: float = 0.0
    most: float = math.inf
    above: bool = False
    below: bool = False

    def _words(self) -> str:
        if math.isinf(self.least):
            return "a number"
        least = f"above {self.least:g}" if self.above else f"of {self.least:g} or more"
        most = f"below {self.most:g}" if self.below else f"{self.most:g} at most"
        return f"a number {least}" + (f", {most}" if math.isfinite(self.most) else "")

    def holds(self, value: Any) -> bool:
        if not isinstance(value, int | float) or isinstance(value, bool) or not is_finite(value):
            return False
        low = value > self.least if self.above else value >= self.least
        return low and (value < self.most if self.below else value <= self.most)

    def parse(self, text: str) -> float:
        return float(text)

    def resolved(self, value: float) -> float:
        return float(value)


@dataclasses.dataclass(frozen=True)
class Flag(Kind):
    """True or False."""

    def _words(self) -> str:
        return "True or False"

    def holds(self, value: Any) -> bool:
        return isinstance(value, bool)

    def parse(self, text: str) -> bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError
        return text.lower() in _TRUE


@dataclasses.dataclass(frozen=True)
class Text(Kind):
    """A text, not an empty one unless `empty` says what that stands for."""

    def _words(self) -> str:
        return "a text"

    def holds(self, value: Any) -> bool:
        return isinstance(value, str) and bool(value or self.empty)


@dataclasses.dataclass(frozen=True)
class Folder(Text):
    """The path of a folder or file on this machine."""

    def _words(self) -> str:
        return "a path"

    def resolved(self, value: str) -> str:
        return str(paths.local(value)) if value else value


@dataclasses.dataclass(frozen=True)
class Choice(Kind):
    """One of `names`; with `own` also a part of the user's, "my_file:MyPart" or that class or function itself."""

    names: tuple[str, ...]
    own: bool = False

    def _words(self) -> str:
        own: tuple[str, ...] = ("my_file:MyPart for your own",) if self.own else ()
        *others, last = (*self.names, *own)
        return f"{', '.join(others)} or {last}" if others else last

    def holds(self, value: Any) -> bool:
        if not isinstance(value, str):
            return self.own and callable(value)
        return value in self.names or (self.own and ":" in value)


@dataclasses.dataclass(frozen=True)
class Several(Kind):
    """A tuple of values of one kind, written with commas between."""

    of: Kind
    least: int = 0

    def _words(self) -> str:
        some = "" if self.least == 0 else f"at least {self.least} of them, "
        return f"values with commas between, {some}each {self.of.words}"

    def holds(self, value: Any) -> bool:
        return isinstance(value, tuple | list) and len(value) >= self.least and all(map(self.of.holds, value))

    def parse(self, text: str) -> tuple:
        if text.startswith(("(", "[")):
            try:
                value = ast.literal_eval(text)
            except SyntaxError:
                raise ValueError from None
            return tuple(value) if isinstance(value, tuple | list) else (value,)
        return tuple(self.of.parse(part.strip()) for part in text.split(",") if part.strip())


@dataclasses.dataclass(frozen=True)
class Pattern(Text):
    """A regular expression."""

    def _words(self) -> str:
        return "a regular expression"

    def holds(self, value: Any) -> bool:
        try:
            return super().holds(value) and bool(re.compile(value))
        except re.error:
            return False


@dataclasses.dataclass(frozen=True)
class Multiplier(Kind):
    """A pair of a regular expression and a factor."""

    def _words(self) -> str:
        return "('regular expression', a number of 0 or more)"

    def holds(self, value: Any) -> bool:
        pair = isinstance(value, tuple | list) and len(value) == 2
        return pair and Pattern().holds(value[0]) and Number().holds(value[1])

    def parse(self, text: str) -> Any:
        raise ValueError  # a tuple is written as Python does


def is_finite(value: int | float) -> bool:
    """Whether a number is a finite float; whole numbers may be larger than any."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def is_section(value: Any) -> bool:
    """Whether a value of a config is a section of settings and not a setting."""
    return isinstance(value, Mapping)
