"""Config files, and the settings that the command line changes: --config=configs/em3_movielens.py:id_only --config.seed=3

A config file has `get_config(argument) -> ConfigDict`; the argument is what stands behind the colon. Where it has
`VARIANTS`, these are the arguments that it knows, each with its function or a line of text.
"""

import importlib.util
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from em3_jax.config import parse, schema
from em3_jax.config.kinds import Flag, Kind, Number, Several, Text, Whole
from em3_jax.core import paths
from em3_jax.core.errors import UserError, nearest

OPTION = "--config."


def load(path: str, argument: str, root: str = "") -> ConfigDict:
    """The config of a file, with the defaults of what it leaves out.

    Args:
      argument: what the file makes of it.
      root: the dataset folder, for a config file that looks into it.
    """
    module = _module(path)
    function = getattr(module, "get_config", None)
    if not callable(function):
        raise UserError(f"--config={path}: has no function get_config; see configs/em3_synthetic.py for one")
    takes = inspect.signature(function).parameters
    if argument and not takes:
        raise UserError(f"--config={path}:{argument}: this config file takes no argument; leave it out")
    given = {"root": root} if "root" in takes else {}
    config = _guarded(path, lambda: function(*filter(None, [argument]), **given))
    if isinstance(config, schema.Config):
        config = ConfigDict(parse.plain(config))
    if not isinstance(config, ConfigDict):
        raise UserError(f"--config={path}: get_config gives no ConfigDict; see configs/em3_synthetic.py for one")
    return parse.editable(parse.filled(config.to_dict()))


def split(flag: str) -> tuple[str, str]:
    """(file, argument) of what stands behind --config=."""
    path, _, argument = flag.partition(":")
    return path, argument


def variants(path: str) -> Mapping[str, Any]:
    """Argument -> its function or a line of text, of those that a config file knows."""
    return getattr(_module(path), "VARIANTS", {})


def folder() -> Path:
    """Where the recipes lie: in `configs/` of a checkout, or where the installed package has them."""
    package = Path(__file__).parents[1]
    beside = package.parent / "configs"
    return beside if (beside / "base.py").is_file() else package / "configs"


def find(path: str) -> Path:
    """The config file that `path` names: a file, or a recipe by its name from anywhere.

    Args:
      path: "mine/own.py"; "em3_movielens", "em3_movielens.py" or "configs/em3_movielens.py" of the
        recipes that come with em3_jax, where there is no such file.
    """
    given = paths.local(path)
    if given.is_file():
        return given
    name = path.removeprefix("configs/").removesuffix(".py")
    if (recipe := folder() / f"{name}.py").is_file() and Path(name).name == name:
        return recipe
    known = sorted(str(one) for one in Path("configs").glob("*.py") if one.name != "base.py")
    known = known or sorted(one.stem for one in folder().glob("*.py") if one.name != "base.py")
    raise UserError(f"--config={path}: no such file; {nearest(path, known) if known else 'give a config file'}")


def _module(path: str) -> ModuleType:
    file = find(path)
    _make_importable()
    spec = importlib.util.spec_from_file_location(file.stem, file.absolute())
    if spec is None or spec.loader is None:
        raise UserError(f"--config={path}: is no Python file; give one that ends in .py")
    module = importlib.util.module_from_spec(spec)
    execute = spec.loader.exec_module
    _guarded(path, lambda: execute(module))
    return module


def _make_importable() -> None:
    """Lets recipes say `from configs import base` wherever they are called, beside what a user has in `configs`."""
    if "configs" not in sys.modules:
        package = ModuleType("configs")
        package.__path__ = [str(folder()), str(Path("configs").absolute())]
        sys.modules["configs"] = package


def _guarded(path: str, function: Callable[[], Any]) -> Any:
    """What `function` gives; what fails inside the config file is one line."""
    try:
        return function()
    except UserError:
        raise
    except SyntaxError as error:
        raise UserError(f"--config={path}: line {error.lineno}: {error.msg}; mend the file") from None
    except ValueError as error:  # a config file's own word on its argument
        raise UserError(f"--config={path}: {_plain(error)}") from None
    except ImportError as error:
        raise UserError(f"--config={path}: it imports what is not there ({error.msg}); mend the file") from None
    except Exception as error:
        trace, line = error.__traceback__, ""
        while trace is not None:
            if Path(trace.tb_frame.f_code.co_filename).name == Path(path).name:
                line = f"line {trace.tb_lineno}: "
            trace = trace.tb_next
        raise UserError(f"--config={path}: {line}{_said(error)}; mend the file") from None


def _said(error: Exception) -> str:
    """What to tell of an error inside a config file; a wrong name of a setting is in plain words."""
    text = _plain(error)
    missing = re.match(r"""\W*(?:Key )?\W*(\w+)\W*(?:does not exist|Did you mean|$)""", text)
    if not isinstance(error, AttributeError | KeyError) or missing is None:
        return f"{type(error).__name__}: {text}"
    if missing[1] == "stream":
        return "config.stream: this recipe is no stream; make it one with base.stream(config, window)"
    near = re.search(r"Did you mean \W*(\w+)", text)
    hint = f"did you mean '{near[1]}'?" if near else "docs/settings.md lists all"
    return f"'{missing[1]}': no such setting; {hint}"


def _plain(error: Exception) -> str:
    """An error's own words, in one line and without the quotes that Python puts around them."""
    text = " ".join(map(str, error.args)).replace("\\n", " ").replace("\\'", "'").strip('"')
    return " ".join(text.split()) or type(error).__name__


def options(arguments: Iterable[str]) -> dict[str, str | None]:
    """{"train.epochs": "3"} of ["--config.train.epochs=3"] or of two arguments; None for a flag without a value.

    Raises:
      UserError: an argument is no such option.
    """
    found, waiting = {}, ""
    for argument in arguments:
        if argument.startswith(OPTION):
            name, equals, value = argument.removeprefix(OPTION).partition("=")
            found[name] = value if equals else None
            waiting = "" if equals else name
        elif waiting:
            found[waiting], waiting = argument, ""
        else:
            raise UserError(f"{argument}: unknown option; settings are --config.<key>=<value>, see --help")
    return found


def with_options(config: ConfigDict, changes: Mapping[str, str | None]) -> ConfigDict:
    """The config with settings as the command line writes them."""
    for name, text in changes.items():
        change(config, name, parsed(name, text, lookup(config, name)))
    return config


def lookup(config: ConfigDict, name: str) -> Any:
    """The value of "model.cic.weight"; None for a free name that its section has not got yet.

    Raises:
      UserError: there is no such key; names the nearest.
    """
    *path, last = name.split(".")
    section, where = config, "config"
    for key in path:
        section = _entry(section, key, where)
        where += f".{key}"
        if not isinstance(section, ConfigDict):
            raise UserError(f"{where}: is a setting, not a section; set {where}=<value>")
    if last not in section and ".".join(path) in parse.ANY_NAME:
        return None
    value = _entry(section, last, where)
    if isinstance(value, ConfigDict):
        keys = ", ".join(f"{where}.{last}.{key}" for key in value) or f"{where}.{last}.<name>"
        raise UserError(f"{where}.{last}: is a section; set its keys: {keys}")
    return value


def _entry(section: ConfigDict, key: str, where: str) -> Any:
    if key not in section and f"{where}.{key}" == "config.stream":
        raise UserError("config.stream: this recipe is no stream; start from configs/online.py")
    if key not in section:
        name = f"{where}.{key}".removeprefix("config.")
        raise UserError(f"config.{name}: {parse.unknown(name, section)}")
    return section[key]


def parsed(name: str, text: str | None, current: Any) -> Any:
    """The value that a text of the command line stands for.

    Args:
      name: of the setting.
      text: None = the name alone, which turns a flag on.
      current: the value that it replaces: it tells what a setting is that the schema does not have.
    """
    kind = parse.kind_of(name) or _kind_like(current)
    if text is None:
        if not isinstance(kind, Flag):
            raise UserError(f"config.{name}: has no value; give {kind.words}, {OPTION}{name}=<value>")
        return True
    try:
        return kind.parse(text)
    except ValueError:
        raise UserError(parse.refusal(name, text, kind).replace(f"'{text}'", text, 1)) from None


def _kind_like(value: Any) -> Kind:
    """How to read a setting of the user's own, by the value it has."""
    if isinstance(value, bool):
        return Flag()
    if isinstance(value, int):
        return Whole(least=None)
    if isinstance(value, float):
        return Number(least=-math.inf)
    return Several(Text()) if isinstance(value, tuple | list) else Text(empty="or none")


def change(config: ConfigDict, name: str, value: Any) -> None:
    """Sets "model.cic.weight" of a config that has it, or that takes any name there."""
    lookup(config, name)
    section = config
    *path, last = name.split(".")
    for key in path:
        section = section[key]
    with config.unlocked(), section.ignore_type():
        section[last] = value


def read(flag: str, changes: Mapping[str, str | None]) -> schema.Config:
    """The config of --config=<flag> with the settings of the command line."""
    config = load(*split(flag), changes.get("data.root") or "")
    task = config.get("task")
    return _of_task(task, with_options(config, changes))


def load_config(name: str | os.PathLike, overrides: Mapping[str, Any] | None = None) -> schema.Config:
    """The config of a recipe, some of its settings changed: what `--config` and its options are in a shell.

    >>> import em3_jax as em3
    >>> config = em3.load_config("em3_synthetic:id_only", {"train.epochs": 3, "model.backbone": "dcnv2"})
    >>> config.model.content, config.train.epochs, config.data.batch_size
    ('none', 3.0, 256)

    Args:
      name: of a recipe, "em3_synthetic", or a path, "mine/own.py"; behind a colon its variants,
        "em3_synthetic:id_only".
      overrides: full name of a setting, "data.root" or "model.fusion" -> its value. Where the
        command line takes "my_file:MyPart", that class or function may stand itself.

    Returns:
      The config, which does not change any more: a frozen dataclass, see `config.schema`.

    Raises:
      UserError: there is no such recipe or setting, or a value is out of its range; names the nearest.
    """
    changes = {key: os.fspath(one) if isinstance(one, os.PathLike) else one for key, one in (overrides or {}).items()}
    root = changes.get("data.root", "")
    config = load(*split(os.fspath(name)), root if isinstance(root, str) else "")
    task = config.get("task")
    for key, value in changes.items():
        change(config, key, value)
    return _of_task(task, config)


def _of_task(task: Any, config: ConfigDict) -> schema.Config:
    """The parsed config of a recipe of that task, whose settings were changed."""
    if parse.ROOTS.get(config.get("task")) is not parse.ROOTS.get(task):
        raise UserError(
            f"config.task={config.task}: this recipe is of task {task}; start from one of task {config.task}: "
            "configs/lemur.py, configs/retrieval.py or a ranking recipe"
        )
    return parse.parse(config)
