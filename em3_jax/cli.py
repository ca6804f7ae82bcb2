"""How a command begins and ends: its options are a function's arguments; user errors are one line and exit code 2."""

import argparse
import inspect
import os
import re
import signal
import sys
import threading
import traceback
import types
import typing
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from em3_jax.core import addresses, paths, terminal
from em3_jax.core.errors import UserError, nearest

EXTRAS = dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn", "faiss"), "serve")
EXTRAS |= dict.fromkeys(("huggingface_hub", "onnx", "safetensors", "tokenizers", "transformers"), "encoders")
EXTRAS |= dict.fromkeys(("sklearn", "threadpoolctl"), "analysis")
EXTRAS |= dict.fromkeys(("libtpu", "jax_cuda12_plugin", "jax_cuda12_pjrt", "nvidia_cuda_nvcc_cu12"), "plan")
EXTRAS |= dict.fromkeys(("jax2onnx", "onnxruntime"), "onnx")
EXTRAS |= dict.fromkeys(("fsspec", "s3fs", "gcsfs", "adlfs"), "buckets")
EXTRAS["pyspark"] = "spark"
EXTRAS["confluent_kafka"] = "kafka"
"""Imported package -> the extra of `pyproject.toml` that brings it."""

HELP_OF_QUIET = "print results, warnings and errors alone"
HELP_OF_JSON = "print a JSON object a line in place of text; the last has the event result"


class _Now(argparse.Action):
    """An option that acts when it is read, and leaves nothing among the arguments."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, *, act: Callable[[], None], help: str, default: object = None
    ):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)
        self._act = act

    def __call__(self, *_: Any) -> None:
        self._act()


class Parser(argparse.ArgumentParser):
    """`argparse.ArgumentParser`, whose refusals are a `UserError`: one line, without the usage, with the nearest name.

    Every command has --quiet and --json-lines, see `core.terminal`.
    """

    def __init__(self, *args: Any, **settings: Any):
        super().__init__(*args, **({"formatter_class": argparse.RawDescriptionHelpFormatter} | settings))
        self.add_argument("--quiet", action=_Now, act=terminal.be_quiet, help=HELP_OF_QUIET)
        self.add_argument("--json-lines", action=_Now, act=terminal.be_json, help=HELP_OF_JSON)

    # With argparse's three overloads the line would be four definitions.
    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """The options; one that there is not is refused with the nearest that there is."""
        found, others = self.parse_known_args(args, namespace)
        if others:
            name = others[0].partition("=")[0]
            hint = nearest(name, self._names(found)) if name.startswith("-") else ""
            self.error(f"{others[0]}: no such option" + (f"; {hint}" if hint.startswith("did") else ""))
        return found

    def error(self, message: str) -> typing.NoReturn:
        """Refuses with argparse's words."""
        command = f"python {self.prog}" if self.prog.endswith(".py") else self.prog
        hint = "" if message.endswith("?") else f"; see `{command} --help`"
        raise UserError(f"{message.removeprefix('argument ')}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """In place of argparse's own, which lists all there is, as Python writes it."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"'{value}': {nearest(str(value), map(str, action.choices))}")

    def _names(self, found: argparse.Namespace) -> list[str]:
        """The options that there are, those of the command that was chosen among them."""
        names = list(self._option_string_actions)
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                names += action.choices[getattr(found, action.dest)]._option_string_actions
        return names


def run(command: Callable[[], int | None]) -> None:
    """Runs `command` and exits with its code; a `UserError` is printed as one line, with exit code 2."""
    warnings.filterwarnings("ignore", "coroutine .* was never awaited")  # Orbax's own, after an error that is reported
    # What fails in a thread of Orbax or Grain is raised again where its result is asked for: once is enough.
    threading.excepthook = sys.excepthook = sys.unraisablehook = _say_nothing
    warnings.showwarning = lambda message, *_, **__: print(
        f"{terminal.styled('warning:', 'yellow', sys.stderr)} {message}", file=sys.stderr
    )
    try:
        with terminal.shown():
            code = command()
    except UserError as error:
        show_error(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # threads that end with the process repeat the error in full
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # whoever reads the output has seen enough, as `| head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left in the buffer would fail again at exit
        code = 128 + signal.SIGPIPE
    except Exception as error:
        package = (getattr(error, "name", "") or "").split(".")[0]
        if isinstance(error, ModuleNotFoundError) and package in EXTRAS:
            show_error(UserError(f"this needs {package}; pip install 'em3_jax[{EXTRAS[package]}]'"))
            code = 2
        else:
            traceback.print_exc()
            code = 1
    sys.exit(code or 0)


def _say_nothing(*_: object) -> None:
    """In place of a hook that reports an error."""


def refuse_module(module: str, command: str, door: str) -> None:
    """Ends `python -m <module>` where it would come too late to advise the allocator: numpy and jax are there already."""
    show_error(UserError(f"{module}: call it as `{command}` or `python {door}`"))
    sys.exit(2)


def spelled(command: str) -> str:
    """How the user calls a command, to be named in what is printed: as `python eval.py` in a checkout's way, else as `em3 eval`.

    Args:
      command: "train" or "eval".
    """
    by_file = Path(sys.argv[0]).name in ("train.py", "eval.py")
    return f"python {command}.py" if by_file else f"em3 {command}"


def show_error(error: UserError) -> None:
    said = terminal.styled("error:", "red", sys.stderr)
    print(f"{said} {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def add_options(
    parser: argparse._ActionsContainer,
    function: Callable,
    helps: dict[str, str] | None = None,
    besides: Callable | None = None,
) -> None:
    """Adds an option for each argument of `function`; help is what its docstring says.

    Args:
      parser: where `argument_default` is SUPPRESS, so that what is not given takes the function's own default.
      helps: argument -> help, where the docstring has none.
      besides: a function whose options are there already.
    """
    helps = (helps or {}) | _argument_texts(function)
    there = inspect.signature(besides).parameters if besides else {}
    for name, parameter in inspect.signature(function).parameters.items():
        if name not in there:
            _add_option(parser, name, parameter, helps[name])


def check_arguments(function: Callable, arguments: dict, help_command: str) -> None:
    """Refuses arguments that `function` does not take, and missing ones that have no default."""
    parameters = inspect.signature(function).parameters
    for name in arguments:
        if name not in parameters:
            raise UserError(f"{_option(name)} does not go with the other options; see `{help_command}`")
    for name, parameter in parameters.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise UserError(f"{_option(name)} is missing; see `{help_command}`")


def with_local_paths(function: Callable, arguments: dict) -> dict:
    """The arguments with every path among them as `paths.local` has it: those that `function` annotates with Path.

    Tables that may also be frames may lie in a bucket, see `readers.source`.
    """
    kinds = {name: str(parameter.annotation) for name, parameter in inspect.signature(function).parameters.items()}
    return {
        name: _local(value, "Frame" in kinds[name]) if "Path" in kinds[name] else value
        for name, value in arguments.items()
    }


def _local(value: Any, anywhere: bool = False) -> Any:
    """A path, or paths, as `paths.local` has them; addresses as they are where they may be `anywhere`."""
    if isinstance(value, str | Path):
        return value if anywhere and addresses.kind_of(value) else paths.local(value)
    if isinstance(value, dict):
        return {name: _local(one) for name, one in value.items()}
    return tuple(_local(one, anywhere) for one in value) if isinstance(value, tuple | list) else value


def _add_option(parser: argparse._ActionsContainer, name: str, parameter: inspect.Parameter, text: str) -> None:
    kinds, default = typing.get_args(parameter.annotation) or (parameter.annotation,), parameter.default
    if isinstance(default, int | float | str) and default is not False and default != "":
        text += f" (default {default})"
    text = text.replace("%", "%%")
    if parameter.annotation == (bool | None):  # yes, no, or what the function finds itself
        parser.add_argument(_option(name), action=argparse.BooleanOptionalAction, help=text)
        return
    if parameter.annotation is bool:
        parser.add_argument(_option(name), action="store_true", help=text)
        return
    number = next((kind for kind in kinds if kind in (int, float)), None)
    annotation = str(parameter.annotation)
    convert: Callable[[str], Any] = number or str
    metavar = "VALUE"
    if number is None and "dict" in annotation:
        convert, metavar = as_pairs, "NAME=VALUE,..."
    elif number is None and "tuple" in annotation:
        convert, metavar = as_list, "NAME,..."
    parser.add_argument(_option(name), type=convert, metavar=metavar, help=text)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _argument_texts(function: Callable) -> dict[str, str]:
    """Argument -> what the docstring's `Args:` says of it."""
    section = (inspect.getdoc(function) or "").split("Args:\n")[1].split("\n\n")[0]
    texts: dict[str, str] = {}
    for entry in re.split(r"\n(?=  \S)", section):
        names, text = entry.split(":", 1)
        texts |= dict.fromkeys((name.strip() for name in names.split(",")), " ".join(text.split()).rstrip("."))
    return texts


def from_file(value: Any, annotation: Any) -> Any:
    """An option as a TOML or JSON file has it, as the type that its argument has.

    A list may stand for a text with commas and the other way round, a table for name=value pairs.

    Raises:
      ValueError: it has another type; argparse.ArgumentTypeError: a text is no list of pairs.
    """
    union = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    kinds = {typing.get_origin(kind) or kind for kind in union}
    if bool in kinds:
        return _require(value, isinstance(value, bool), "write true or false")
    if kinds & {int, float}:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
        whole = is_number and (float in kinds or float(value).is_integer())
        _require(value, whole, f"write a {'number' if float in kinds else 'whole number'}")
        return value if float in kinds else int(value)
    if dict in kinds:
        value = as_pairs(value) if isinstance(value, str) else value
        is_table = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
        return _require(value, is_table, 'write a table of texts, e.g. { user = "uid", item = "sku" }')
    if tuple in kinds or Sequence in kinds:
        if isinstance(value, str):
            return as_list(value) if tuple in kinds else value
        is_list = isinstance(value, list) and all(isinstance(one, str) for one in value)
        return tuple(_require(value, is_list, 'write a list of texts, e.g. ["a", "b"]'))
    if isinstance(value, list) and all(isinstance(one, int | float) for one in value):
        return ",".join(map(str, value))  # shares
    return _require(value, isinstance(value, str), 'write a text, in quotes, e.g. "rating>=4" or "0.8,0.1,0.1"')


def _require(value: Any, is_right: bool, hint: str) -> Any:
    if not is_right:
        raise ValueError(hint)
    return value


def as_list(text: str) -> tuple[str, ...]:
    """("a", "b") from "a, b"."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def as_numbers(kind: type, what: str) -> Callable[[str], tuple]:
    """The type of an option that is numbers with commas between.

    Args:
      kind: int or float.
      what: they are, with an example, for the message.
    """

    def parse(text: str) -> tuple:
        try:
            return tuple(kind(one) for one in as_list(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"'{text}': write {what}") from None

    return parse


def as_pairs(text: str) -> dict[str, str]:
    """{"a": "b"} from "a=b,..."."""
    parts = [part.partition("=") for part in as_list(text)]
    if not all(sign and value for _, sign, value in parts):
        raise argparse.ArgumentTypeError(f"'{text}': write name=value, separated by commas")
    names = [name.strip() for name, _, _ in parts]
    if twice := [name for k, name in enumerate(names) if name in names[:k]]:
        raise argparse.ArgumentTypeError(f"'{text}': '{twice[0]}' is named twice; name it once")
    return {name.strip(): value.strip() for name, _, value in parts}
