"""`em3 <command> ...`, or `python -m em3_jax <command> ...`: all that em3_jax does, by its name."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from em3_jax import __version__, cli
from em3_jax.core import allocator, collector, compilation_cache
from em3_jax.core.errors import UserError, nearest


class Command(NamedTuple):
    """A command.

    Attributes:
      module: the one whose `main()` it is; imported when the command is called.
      about: what it does, in a line.
      manual: the module whose `main()` answers --help in its place, where importing `module` takes seconds.
    """

    module: str
    about: str
    manual: str = ""


COMMANDS = {
    "prepare": Command(
        "em3_jax.data.prepare", "makes a dataset of a log: MovieLens, tables of your own, planted truth, ..."
    ),
    "shop": Command("em3_jax.data.shop", "a planted shop's log as files: several labels, numbers, sessions, a weight"),
    "extract": Command("em3_jax.features.extract", "content features by a frozen encoder, or from ready arrays"),
    "features": Command("em3_jax.features.command", "the feature sets of a dataset: lists them, or makes one"),
    "raw": Command("em3_jax.features.raw", "raw content, token ids and pixels, for encoders that train from scratch"),
    "train": Command("em3_jax.train", "trains a model, or goes on with a run", manual="em3_jax.config.manual"),
    "eval": Command("em3_jax.evaluate", "scores a split with the best step of a run"),
    "predict": Command(
        "em3_jax.predict.command", "scores the rows of a file, and writes them with their probabilities"
    ),
    "recommend": Command("em3_jax.predict.recommend", "the best items of each user, by a ranking or retrieval run"),
    "compare": Command("em3_jax.evaluation.compare", "evaluated runs side by side, with how sure the differences are"),
    "importance": Command("em3_jax.protocols.importance", "what each input of a run is worth, by permuting it"),
    "missing": Command("em3_jax.protocols.missing", "what runs lose where a share of the items lacks a modality"),
    "coldstart": Command("em3_jax.protocols.coldstart", "models on items or users of which so many rows are known"),
    "plot": Command("em3_jax.report.plot", "curves of runs, as a picture and a page"),
    "curves": Command("em3_jax.report.streams", "curves of runs on streams"),
    "merge": Command("em3_jax.training.merge", "folds the adapters of a LoRA run back into its weights"),
    "seal": Command(
        "em3_jax.training.seal", "a stream whose rows are appended as a dataset and a run that all commands read"
    ),
    "vectors": Command("em3_jax.export.vectors", "a run's content embeddings as a feature set"),
    "codes": Command("em3_jax.export.codes", "items' content as a few small numbers, which are item fields"),
    "analyze": Command("em3_jax.analysis.command", "what embeddings have learnt, by the neighbours that items have"),
    "export": Command("em3_jax.export.command", "writes a run into a store that services read"),
    "serve": Command("em3_jax.serving.http", "serves a store over HTTP"),
    "replay": Command(
        "em3_jax.predict.replay", "what a service recorded, once more by the training code: is trained what is served"
    ),
    "plan": Command("em3_jax.plan.command", "what a training step costs on TPUs and GPUs that are not here"),
    "verdict": Command("em3_jax.verdict.command", "whether content pays on a dataset, and which way of using it"),
    "convert-config": Command("em3_jax.config.convert_config", "an experiment of FuxiCTR as a mapping and a recipe"),
    "reproduce": Command("reproduce.command", "the tables of the papers, in a checkout"),
}

KEEPS_NO_PROGRAMS = ("prepare", "shop", "raw", "compare", "plot", "curves", "convert-config", "plan")
"""Commands that compile nothing, and `plan`: it names lines of the source, and a program that was kept has old ones."""


def call(name: str, arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code.

    Args:
      name: a key of `COMMANDS`.
      arguments: of its command line; None takes those of the process, as a file that stands for one command has them.
    """
    command = COMMANDS[name]
    if arguments is not None:
        sys.argv = [f"em3 {name}", *arguments]
    asks_for_help = {"-h", "--help"} & set(sys.argv[1:])
    module = command.manual if command.manual and asks_for_help else command.module
    allocator.keep_large_blocks()  # before numpy and jax, which start threads
    if name not in KEEPS_NO_PROGRAMS and not asks_for_help:
        compilation_cache.keep()  # before jax, which reads the environment once
    cli.run(lambda: _module(name, module).main())


def _module(name: str, module: str) -> ModuleType:
    if name == "reproduce":
        _find_reproduce()
    with collector.paused():
        return importlib.import_module(module)


def _find_reproduce() -> None:
    """Makes `reproduce`, which lies beside the package, importable from wherever it is called."""
    checkout = Path(__file__).parents[1]
    if (checkout / "reproduce" / "command.py").is_file() and str(checkout) not in sys.path:
        sys.path.append(str(checkout))
    if importlib.util.find_spec("reproduce") is None:
        raise UserError(
            "reproduce: trains by the recipes of a checkout, which are not here; call it in a checkout, as "
            "python -m reproduce"
        )


def manual() -> str:
    """What `em3 --help` says."""
    lines = [f"  {name:<12}{command.about}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: em3 <command> [--option value ...]",
            "",
            "commands:",
            *lines,
            "",
            "em3 <command> --help lists its options; all commands have",
            f"  --quiet      {cli.HELP_OF_QUIET}",
            f"  --json-lines {cli.HELP_OF_JSON}",
        ]
    )


def main() -> None:
    """The command that the process's arguments name."""
    name, arguments = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    if name in COMMANDS:
        call(name, arguments)
    cli.run(lambda: _without_command(name))


def _without_command(name: str) -> None:
    if name not in ("-h", "--help", "--version"):
        raise UserError(f"em3 {name}: no such command; {nearest(name, COMMANDS)}")
    print(__version__ if name == "--version" else manual())


if __name__ == "__main__":
    main()
