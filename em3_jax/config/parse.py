"""Between what people write, settings as mappings, and what the program reads, the `schema`.

The command line, a config file and the config that a run has saved come through `parse`, so that
whatever is unknown or out of range is named before anything is made. Choices that other settings or
the dataset decide are checked where those are known.
"""

import dataclasses
import difflib
import functools
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

from ml_collections import ConfigDict

from em3_jax.config import schema
from em3_jax.config.kinds import LARGEST_WHOLE, Choice, Kind, Several, Whole, is_finite, is_section
from em3_jax.config.schema.retrieval import ChosenBy
from em3_jax.core.errors import UserError, nearest

Section = TypeVar("Section")
Settings = Mapping[str, Any]
ROOTS: dict[str, type] = {
    "ranking": schema.Ranking,
    "pretraining": schema.Ranking,
    "lemur": schema.Lemur,
    "retrieval": schema.Retrieval,
}
"""Task -> what its config is."""
LONGEST_ECHO = 200  # characters of a value that a message repeats
ON_STREAMS = ("ranking", "lemur")


class Field(NamedTuple):
    """What the schema says of one entry of a section.

    Attributes:
      section: its class, where the entry is a section.
      chosen: what names its class, where another setting does.
      kind: of the setting; None for a section.
      free: it holds settings for any name, each of that kind.
    """

    section: type | None = None
    chosen: ChosenBy | None = None
    kind: Kind | None = None
    free: bool = False


@functools.cache
def fields(section: Any) -> dict[str, Field]:
    """Name -> what the schema says of it, for the entries of a section."""
    hints = typing.get_type_hints(section, include_extras=True)
    return {field.name: _field(hints[field.name]) for field in dataclasses.fields(section)}


def _field(hint: Any) -> Field:
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        hint = next(one for one in typing.get_args(hint) if one is not types.NoneType)
    if typing.get_origin(hint) is Annotated:
        found = typing.get_args(hint)[1]
        return Field(chosen=found) if isinstance(found, ChosenBy) else Field(kind=found)
    if typing.get_origin(hint) is not None:  # a mapping of names
        return _field(typing.get_args(hint)[1])._replace(free=True)
    return Field(section=hint)


RETIRED = (("data", "distinct"),)
"""(section, key) of settings that configs of earlier versions may have."""


def parse(config: Mapping[str, Any] | ConfigDict | schema.Config) -> schema.Config:
    """The config of a run, checked; keys that are not there take the schema's default.

    Args:
      config: a recipe's, a saved one, or one that is parsed already.

    Raises:
      UserError: a key is unknown, or a value is out of its range; names key, value and range.
    """
    given: Any = plain(config) if dataclasses.is_dataclass(config) else config
    given = given.to_dict() if isinstance(given, ConfigDict) else given
    if not isinstance(given, Mapping):
        raise UserError(f"config={shown(given)}: is no mapping of sections; see docs/settings.md")
    given = _without_retired(given)
    task = _checked("task", given.get("task", "ranking"), RANGES["task"])
    if given.get("stream") is not None and task not in ON_STREAMS:
        raise UserError(f"config.stream: task {task} is not trained on a stream; leave it out")
    result: schema.Config = section(ROOTS[task], given, "")
    return result


def _without_retired(given: Settings) -> Settings:
    """A config without the settings of earlier versions that make no difference any more."""
    result = dict(given)
    for name, key in RETIRED:
        if isinstance(result.get(name), Mapping) and key in result[name]:
            result[name] = {one: value for one, value in result[name].items() if one != key}
    return result


def section(made: type[Section], given: Settings, where: str, default: Any = None) -> Section:
    """One section of the schema with the settings that are given.

    Args:
      made: its class.
      where: its full name, "model.cic"; "" for the config as a whole.
      default: what the settings are that are not given; None = those of the class.

    Raises:
      UserError: as of `parse`.
    """
    known = fields(typing.cast(Any, made))
    default = made() if default is None else default
    values: dict[str, Any] = {}
    prefix = f"{where}." if where else ""
    for key, value in given.items():
        name = f"{prefix}{key}"
        if key not in known:
            raise UserError(f"config.{name}: {unknown(name, known)}")
        if known[key].chosen is None:
            values[key] = _value(known[key], value, name, getattr(default, key))
    for key, field in known.items():
        if field.chosen is not None:  # once what chooses it is known
            choice = values.get(field.chosen.setting, getattr(default, field.chosen.setting))
            values[key] = _chosen(field.chosen, choice, given.get(key), f"{prefix}{key}")
    return dataclasses.replace(default, **values)


def _value(field: Field, value: Any, name: str, default: Any) -> Any:
    if value is None and default is None:
        return None
    if field.section is not None:
        return section(field.section, _a_section(name, value), name, default)
    assert field.kind is not None  # whoever calls this has asked for what is chosen
    if not field.free:
        return _checked(name, value, field.kind)
    given = _a_section(name, value)
    return {key: _checked(f"{name}.{key}", one, field.kind) for key, one in given.items()}


def _chosen(by: ChosenBy, choice: str, value: Any, name: str) -> Any:
    """The settings of a part that another setting chooses; None = all are left out."""
    if (made := by.known.get(choice)) is None:
        return {} if value is None else _of_own_part(_a_section(name, value), name)
    if value is None:
        return made()
    for key in _a_section(name, value):  # those of another choice, where the choice alone is changed
        if key not in fields(made):
            raise UserError(
                f"config.{name}.{key}: unknown key of '{choice}'; {nearest(str(key), fields(made))}; "
                f"a recipe of its own is --config=configs/retrieval.py:{choice}"
            )
    return section(made, value, name)


def _of_own_part(given: Settings, name: str) -> dict[str, Any]:
    """Settings of a part of the user's own, which knows itself which it has; the range of those that library parts have."""
    result: dict[str, Any] = {}
    for key, value in given.items():
        full = f"{name}.{key}"
        if is_section(value):
            result[key] = _of_own_part(value, full)
        elif kind := kind_of(full):
            result[key] = _checked(full, value, kind)
        elif any(full in places for places in PLACES.values()):
            raise _no_section(full, value)
        else:
            result[key] = _tuples(value)
    return result


def _a_section(name: str, value: Any) -> Settings:
    if not is_section(value):
        raise _no_section(name, value)
    return value


def unknown(name: str, known: Iterable[str]) -> str:
    """What to tell of a name that a section has not."""
    tasks = [task for task, made in ROOTS.items() if name in PLACES[made]]
    if not tasks:
        own, known = name.rpartition(".")[2], tuple(known)
        there = {place for places in PLACES.values() for place in places if place.endswith(f".{own}")}
        if there and not difflib.get_close_matches(own, known, n=1):
            first = sorted(there, key=lambda place: (place.count("."), place))[:3]
            return f"unknown key; did you mean {' or '.join(f'config.{place}' for place in first)}?"
        return f"unknown key; {nearest(own, known)}"
    shown = " and ".join(filter(None, (", ".join(tasks[:-1]), tasks[-1])))
    return f"unknown key, one of task {shown}; start from a recipe of that task, or leave it out"


def _no_section(name: str, value: Any) -> UserError:
    hint = f"is a section; set its keys, config.{name}.<key>"
    return UserError(f"config.{name}={shown(value)}: {hint}")


def _checked(name: str, value: Any, kind: Kind) -> Any:
    """A setting as the program uses it: paths with their home expanded, lists as tuples."""
    if not kind.holds(value):
        raise UserError(refusal(name, value, kind))
    try:
        return _tuples(kind.resolved(value))
    except UserError as error:
        raise UserError(f"config.{name}: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, tuple | list) else value


def entries(section: Any) -> dict[str, Any]:
    """Name -> value of the entries of a section, as they are."""
    return {one.name: getattr(section, one.name) for one in dataclasses.fields(section)}


def plain(config: Any) -> dict[str, Any]:
    """A config or one of its sections as a nested dictionary, without what is None."""
    return {name: _plain(value) for name, value in entries(config).items() if value is not None}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not callable(value):  # as Linen modules are
        return plain(value)
    return {key: _plain(one) for key, one in value.items()} if is_section(value) else value


def filled(given: Settings) -> dict[str, Any]:
    """A config with the defaults of what it has not, unchecked: for whoever changes it before it is parsed."""
    made = ROOTS.get(given.get("task", "ranking"))
    if made is None:
        raise UserError(refusal("task", given["task"], RANGES["task"]))
    return _filled(made(), given)


def _filled(default: Any, given: Settings) -> dict[str, Any]:
    result, known = plain(default), fields(typing.cast(Any, type(default)))
    for key, value in given.items():
        is_known = key in known and is_section(value) and dataclasses.is_dataclass(getattr(default, key))
        result[key] = _filled(getattr(default, key), value) if is_known else value
    for key, field in known.items():
        if (by := field.chosen) is not None:
            choice, own = given.get(by.setting, getattr(default, by.setting)), given.get(key, {})
            whole = plain(by.known[choice]()) if choice in by.known else {}
            result[key] = whole | dict(own) if is_section(own) else own
    return result


def checked(config: Mapping[str, Any] | ConfigDict | schema.Config) -> dict[str, Any]:
    """What `parse` gives, as a nested dictionary."""
    return plain(parse(config))


def editable(config: schema.Config | Settings) -> ConfigDict:
    """A config for a recipe to change; names that the schema has not are errors there."""
    given = config if isinstance(config, Mapping) else plain(config)
    result = ConfigDict(given, type_safe=False).lock()  # `parse` says it in plain words
    for name in ANY_NAME:
        inside = result
        for key in name.split("."):
            inside = inside.get(key) if isinstance(inside, ConfigDict) else None
        if isinstance(inside, ConfigDict):
            inside.unlock()
    return result


def _leaves(made: type, where: str = "") -> Iterator[tuple[str, Kind]]:
    for name, field in fields(made).items():
        full = f"{where}.{name}" if where else name
        if field.chosen is not None:
            for one in field.chosen.known.values():
                yield from _leaves(one, full)
        elif field.section is not None:
            yield from _leaves(field.section, full)
        else:
            assert field.kind is not None
            yield (f"{full}.*" if field.free else full), field.kind


CONFIGS = tuple(dict.fromkeys(ROOTS.values()))
RANGES: dict[str, Kind] = {name: kind for made in CONFIGS for name, kind in _leaves(made)}
"""Full name -> what the setting may be; * stands for any name, that of a dataset's field, say."""
PLACES: dict[type, set[str]] = {
    made: {
        ".".join(name.removesuffix(".*").split(".")[: depth + 1])
        for name, _ in _leaves(made)
        for depth in range(name.count(".") + 1)
    }
    for made in CONFIGS
}
"""Config -> full names of its settings and sections."""
ANY_NAME = sorted(name.removesuffix(".*") for name in RANGES if name.endswith(".*"))
"""The sections that take a setting for any name."""


def kind_of(name: str) -> Kind | None:
    """What the setting with that full name may be; None for one that the schema does not have."""
    inside, _, _ = name.rpartition(".")
    return RANGES.get(name) or RANGES.get(f"{inside}.*")


def settings(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """(full name, value) of every setting of a config as a dictionary."""
    for key, value in config.items():
        name = f"{where}.{key}" if where else str(key)
        if is_section(value):
            yield from settings(value, name)
        else:
            yield name, value


def refusal(name: str, value: Any, kind: Kind) -> str:
    """What to tell of a value that a setting cannot have."""
    near, wrong, choice = "", value, kind
    if isinstance(kind, Several) and isinstance(value, str):
        near = "; in a config file a tuple of them"
    elif isinstance(kind, Several) and isinstance(value, tuple | list):
        choice, wrong = kind.of, next((one for one in value if not kind.of.holds(one)), None)
    if isinstance(choice, Choice) and isinstance(wrong, str):
        hint = nearest(wrong, choice.names)
        near = f"; {hint}" if hint.startswith("did") else ""
    if isinstance(wrong, int) and wrong > LARGEST_WHOLE and isinstance(choice, Whole):
        near = f"; {LARGEST_WHOLE} at most" if choice.most is None else ""
    elif isinstance(wrong, int | float) and not is_finite(wrong):
        near = "; a finite one"
    return f"config.{name}={shown(value)}: give {kind.words}{near}"


def shown(value: Any) -> str:
    """A value in a message, the beginning of one that is long."""
    try:
        text = getattr(value, "__qualname__", str(value)) if callable(value) else str(value)
        text = f"'{value}'" if isinstance(value, str) else text
    except ValueError:  # which Python says of numbers that have more than 4,300 digits
        return "a number of thousands of digits"
    return text if len(text) <= LONGEST_ECHO else f"{text[:LONGEST_ECHO]}..."
