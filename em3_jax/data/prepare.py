"""Makes datasets: `em3 prepare <reader> --out <folder> ...`; `--help` after a reader lists its options.

em3 prepare synthetic --out data/synthetic
em3 prepare movielens --source <folder> --out data/ml-100k
em3 prepare microlens --source <folder> --out data/microlens
em3 prepare mind --source <folder> --out data/mind
em3 prepare mmrec --source <folder> --out data/tiktok --as-clicks --negatives 3
em3 prepare table --interactions clicks.csv --items items.csv --columns user=uid,time=ts --out data/mine
em3 prepare check --data data/ml-100k
"""

import argparse
import inspect
import json
import math
import signal
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from em3_jax import cli
from em3_jax.core import paths, strict_json, terminal
from em3_jax.core.errors import UserError
from em3_jax.data import times
from em3_jax.data.checks import check_dataset
from em3_jax.data.format import SPLITS, Dataset, hash_data, open_dataset
from em3_jax.data.readers import rows
from em3_jax.data.readers.files import nearest, require
from em3_jax.data.readers.microlens import microlens
from em3_jax.data.readers.mind import mind
from em3_jax.data.readers.mmrec import mmrec
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.data.readers.table import table


def check(*, data: str | Path) -> Dataset:
    """Checks a dataset again, all of it.

    Args:
      data: its folder.
    """
    dataset = open_dataset(data)
    check_dataset(dataset)
    if hash_data(dataset.root) != dataset.meta["data_hash"]:
        raise UserError(f"{data}: the files are not those that were prepared (data_hash); prepare the dataset again")
    return dataset


_ALL = (synthetic, movielens, mmrec, microlens, mind, table, check)
READERS: dict[str, Callable[..., Dataset]] = {reader.__name__: reader for reader in _ALL}


def main(argv: list[str] | None = None) -> None:
    arguments = vars(_parser().parse_args(argv))
    # SIGTERM is an exception, so that the unfinished folder is removed.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        _run(READERS[arguments.pop("reader")], arguments)
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(reader: Callable[..., Dataset], arguments: dict) -> None:
    if "mapping" in arguments:
        arguments = read_mapping(paths.local(arguments.pop("mapping")), reader) | arguments
    cli.check_arguments(reader, arguments, f"em3 prepare {reader.__name__} --help")
    arguments = cli.with_local_paths(reader, arguments)
    try:
        dataset = reader(**arguments)
    except OSError as error:  # no space, no permission, a file where a folder should be
        where = error.filename or arguments.get("out")
        raise UserError(f"{where}: {error.strerror or error}; nothing was written") from None
    facts = {name: dataset.meta[name] for name in ("name", "counts", "summary", "data_hash")}
    terminal.result(report(dataset), next_command=_next(dataset), root=str(dataset.root), **facts)


def _next(dataset: Dataset) -> str:
    """The command that trains on a dataset, by a recipe that goes with what it holds."""
    recipe = "retrieval" if dataset.meta.get("only_clicks") else "own_data"
    place = f"--config.data.root={dataset.root} --workdir=runs/{dataset.root.name}"
    return f"{cli.spelled('train')} --config=configs/{recipe}.py {place}"


def _parser() -> cli.Parser:
    """Options are the readers' arguments; their help is what the docstrings say."""
    parser = cli.Parser(prog="em3 prepare", description=__doc__)
    commands = parser.add_subparsers(dest="reader", required=True, metavar="reader")
    for name, reader in READERS.items():
        of_module = sys.modules[reader.__module__].__doc__ or ""
        about = of_module if reader is not check else "Checks a dataset again, all of it."
        command = commands.add_parser(name, help=about.split("\n")[0], description=about)
        command.argument_default = argparse.SUPPRESS  # what is not given takes the reader's own default
        cli.add_options(command, reader, {"out": "the folder to make"})
        if reader is table:
            command.add_argument("--mapping", metavar="FILE", help="a TOML or JSON file with any of these options")
    return parser


def read_mapping(path: Path, reader: Callable) -> dict:
    """The options in a TOML or JSON file; paths in it are relative to the working directory."""
    require(path)
    try:
        mapping = (json.loads if path.suffix == ".json" else tomllib.loads)(path.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable {path.suffix[1:].upper()} file ({error}); mend it") from None
    if not isinstance(mapping, dict):
        raise UserError(f'{path}: holds no options; write them as name = value, e.g. interactions = "clicks.csv"')
    known = inspect.signature(reader).parameters
    result = {}
    for key, value in mapping.items():
        name = key.replace("-", "_")
        if name not in known:
            raise UserError(f"{path}: no option '{key}'; {nearest(name, known)}")
        try:
            result[name] = cli.from_file(value, known[name].annotation)
        except (ValueError, argparse.ArgumentTypeError) as error:
            raise UserError(f"{path}: {key} = {json.dumps(value, default=str)}: {error}") from None
    return cli.with_local_paths(reader, result)


def _times(dataset: Dataset) -> str:
    """ "milliseconds, 2024-05-01 12:00:00 to 2024-06-01 08:30:00"."""
    unit, time = times.unit_of(dataset), dataset.interactions["time"]
    if unit == times.ORDER:
        return "only says which row comes first"
    return f"{unit}, {times.shown(int(time[0]), unit)} to {times.shown(int(time[-1]), unit)}"


def report(dataset: Dataset) -> str:
    """What a person wants to know of a dataset just made, as a few lines of text."""
    meta, summary = dataset.meta, strict_json.undefined_as_nan(dataset.meta["summary"])
    counts = {name: f"{count:,}" for name, count in meta["counts"].items()}
    bayes = strict_json.undefined_as_nan(meta.get("bayes_auc", {}))
    lines = [
        f"{dataset.root}: {meta['name']}",
        f"  {counts['interactions']} interactions, {counts['users']} users, {counts['items']} items, "
        f"{counts['events']} history events",
        f"  label  {meta['label_rule']}",
        *(f"  label {name}  {rule}" for name, rule in meta.get("labels", {}).items()),
        *(f"  amount {name}  {rule}" for name, rule in meta.get("amounts", {}).items()),
        f"  split  {meta['split_rule']}",
        f"  time   {_times(dataset)}",
        *(f"  rows   {line}" for line in rows.told(meta.get("rows", {}))),
    ]
    for group, specs in dataset.fields.groups():
        if specs:
            lines.append(f"  {group:7} " + ", ".join(f"{field.name} ({field.size - 2:,})" for field in specs))
    header = ("rows", "clicks", "users", "items", "cold item", "new user", "no history", "median history")
    table = []
    for split in SPLITS:
        facts = summary["splits"][split]
        values = (
            f"{facts['rows']:,}", f"{facts['click_rate']:.1%}", f"{facts['users']:,}", f"{facts['items']:,}",
            f"{facts['rows_with_cold_item']:.1%}", f"{facts['rows_with_new_user']:.1%}",
            f"{facts['empty_histories']:.1%}", f"{facts['median_history']:,}",
        )  # fmt: skip
        table.append([f"  {split}", *values, *([f"{bayes[split]:.4f}"] if bayes else [])])
    lines.append(terminal.table(["", *header, *(["Bayes AUC"] if bayes else [])], table))
    for name, share in summary["items_without"].items():
        kind, _, own = name.partition(" ")
        lines.append(f"  {share:.1%} of the items have no {own if kind == 'column' else name}")
    for name, value in bayes.items():
        if name not in SPLITS and math.isfinite(value):
            lines.append(f"  Bayes AUC, {name}: {value:.4f}")
    lines += [f"  note: {note}" for note in meta.get("notes", [])]
    return "\n".join(lines)
