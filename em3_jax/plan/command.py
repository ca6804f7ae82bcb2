"""What a training step costs on devices that are not here: em3 plan --config=configs/em3_movielens.py --target v5e:4x4

Targets: v5e:4x4, v6e:2x2, v5p:2x2x1, tpu7x:2x2x1, h100, h100:8, h200, a100:8, cpu:8. The step is compiled for them by
their own compilers (pip install 'em3_jax[plan]', or a folder named by EM3_COMPILERS), and what the program says of itself is
shown. Neither a device nor data are needed: where config.data.root is not there, planted data stand in, and sizes can be given.
"""

import argparse
import contextlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from em3_jax import cli
from em3_jax.core import paths, terminal
from em3_jax.core.errors import UserError
from em3_jax.plan import targets

DOES_NOT_FIT = 3
MOST_EXAMPLES = 1 << 20


def main() -> None:
    args, changes = _parser().parse_known_args()
    target = targets.parse(args.target)
    targets.prepare(target)  # before JAX is imported
    with targets.quietly():
        from em3_jax.plan import page

        devices = targets.devices(target)
    place = _checked(paths.local(args.json)) if args.json else None
    found = plan(target, devices, args, _changes(changes, args.batch))
    terminal.result(page.text(found), **found.as_json())
    if place:
        place.write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
    if found.fits is False:
        sys.exit(DOES_NOT_FIT)


def _checked(path: Path) -> Path:
    """A file that can be written, before minutes have gone into what is to be written."""
    if path.is_dir():
        raise UserError(f"--json={path}: is a folder; give a file in it")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(f"--json={path}: cannot be written; make its folder, or give another file")
    return path


def _parser() -> cli.Parser:
    parser = cli.Parser(prog="em3 plan", description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="config file, as for em3 train")
    parser.add_argument("--target", required=True, help="devices, e.g. v5e:4x4, h100:8 or cpu:8")
    parser.add_argument("--rows", type=int, help="rows of the ID table")
    parser.add_argument("--items", type=int, help="items of the catalogue")
    parser.add_argument("--batch", type=int, help="examples a step, of all devices")
    parser.add_argument("--distinct", type=int, help="distinct items that a batch names (default: as in the data)")
    parser.add_argument(
        "--tokens", default="", help="content without data: image=4x768,text=1x384 (default 1x768 each)"
    )
    parser.add_argument("--json", type=Path, help="file for all that is known, as JSON")
    parser.epilog = (
        "Further options --config.<key>=<value> change the config, as for em3 train. "
        f"Exit code {DOES_NOT_FIT}: it does not fit."
    )
    return parser


def _changes(given: list[str], batch: int | None) -> dict[str, str | None]:
    """--config.<key>=<value> -> {key: value}; anything else is refused."""
    changes: dict[str, str | None] = {}
    for text in given:
        option, sign, value = text.partition("=")
        if not option.startswith("--config.") or not sign:
            raise UserError(f"{text}: no option of em3 plan; see `em3 plan --help`")
        changes[option.removeprefix("--config.")] = value
    if batch is not None:
        if changes.get("data.batch_size", str(batch)) != str(batch):
            raise UserError(f"--batch={batch}: --config.data.batch_size says otherwise; give one of them")
        changes |= {"data.batch_size": str(batch)}
    return changes


def plan(
    target: targets.Target, devices: Sequence[Any], args: argparse.Namespace, changes: dict[str, str | None]
) -> Any:
    """The plan that the command line asks for, for the devices of `target`.

    Raises:
      UserError: see `targets`, `sizes` and the setup of a task.
    """
    from em3_jax.config import recipes
    from em3_jax.plan import report, sizes
    from em3_jax.training import experiment

    for name in ("rows", "items", "batch", "distinct"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name}={value}: give a positive number")
    if args.items and args.distinct and args.distinct > args.items:
        raise UserError(f"--distinct={args.distinct}: is more than --items={args.items}; give at most as many")
    config = recipes.read(args.config, changes)
    data: Any = config.data
    if data.batch_size > MOST_EXAMPLES:
        raise UserError(f"--batch={data.batch_size}: plans go up to {MOST_EXAMPLES:,} examples a step")
    assumptions = []
    with contextlib.ExitStack() as stack:
        is_here = (Path(data.root) / "dataset.json").is_file()
        if args.tokens and is_here:
            raise UserError(f"--tokens={args.tokens}: {data.root} is here and has its own; leave it out")
        if not is_here and config.task == "retrieval":
            raise UserError(f"config.data.root={data.root}: not here, and retrieval is planned on data of its own")
        if not is_here:
            place = sizes.stand_in(data.features, _tokens(args.tokens), data.batch_size)
            where = stack.enter_context(place)
            assumptions.append(
                f"no dataset in '{data.root}': its fields, histories and popularity are those of planted data"
            )
            config = sizes.on_stand_in(config, where)
        parts = experiment.build(config, devices)
        distinct, rows, here = args.distinct, args.rows, parts.work.dataset.num_items
        items = args.items or here
        if distinct is None and items > here:
            distinct = min(items, sizes.slots(parts) // 2)
            assumptions.append("of so many items a batch names another in every second slot; --distinct says otherwise")
        elif distinct is None and items < sizes.named(parts):
            distinct = items
        elif distinct is None and assumptions:
            assumptions.append("a batch names as many distinct items as in these data; --distinct says otherwise")
        if rows is None and items > here and parts.program.shapes.tables:
            rows = parts.work.dataset.fields.num_rows + items - here
            assumptions.append("the ID table has a row more for each item more; --rows says otherwise")
        arguments = sizes.resized(parts, rows, args.items, distinct)
        with targets.quietly():
            compiled = targets.compiled(target, parts.program.train_step, arguments)
    precision = getattr(config.model, "precision", "f32")
    return report.make(
        target,
        compiled,
        arguments,
        examples=data.batch_size,
        items=items,
        precision=precision,
        versions=_versions(target),
        assumptions=assumptions,
    )


def _tokens(text: str) -> dict[str, tuple[int, int]]:
    found = {}
    for part in filter(None, text.split(",")):
        name, sign, shape = part.partition("=")
        count, times, width = shape.partition("x")
        if not (sign and times and count.isdigit() and width.isdigit() and int(count) and int(width)):
            raise UserError(f"--tokens={text}: write name=NxE, separated by commas, e.g. image=4x768,text=1x384")
        if name.strip() in found:
            raise UserError(f"--tokens={text}: names {name.strip()} twice; leave one out")
        found[name.strip()] = int(count), int(width)
    return found


def _versions(target: targets.Target) -> dict[str, str]:
    packages = {"tpu": ("libtpu",), "gpu": ("jax-cuda12-pjrt",), "cpu": ("jaxlib",)}[target.platform]
    return {name: importlib.metadata.version(name) for name in ("jax", *packages)}
