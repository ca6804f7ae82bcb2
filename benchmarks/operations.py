"""What single operations of a step move on chips that are not here: python -m benchmarks.operations [--only token]

Compiles, for each chip, the lookup of 4,096 rows of a table and their update by widths and lengths, as
JAX has them and as em3_jax lays tables out; of tokens of items and their masks, as a product then reads
them; and gathers and sums by index that many positions share. Writes the compilers' own counts to
docs/operations.md and docs/operations.json, and says what differs from those that are there: another
version of a compiler may count, or do, otherwise.
"""

import argparse
import functools
import importlib.metadata
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from em3_jax import cli
from em3_jax.plan import targets

FOLDER = Path(__file__).parents[1] / "docs"
TARGETS = ("v5e:1x1", "v6e:1x1", "h100")
WIDTHS = (8, 16, 32, 48, 64, 96, 128, 256)
LENGTHS = (1 << 20, 1 << 23)
ROWS, POSITIONS, ITEMS = 4096, 51_200, 6_720
TOKENS = {"6 x 768 in f16": ("float16", 6, 768), "768 in f32": ("float32", 1, 768), "64 in f16": ("float16", 1, 64)}
CATALOGUES = (100_000, 800_000)
_TOLERANCE = 0.01  # of a count, below which it is the same


def counts(target: targets.Target, only: str) -> dict[str, float]:
    """Operation -> megabytes moved, of those whose name has `only` in it."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from em3_jax.core import gather, sharding
    from em3_jax.plan import cost, program
    from em3_jax.tables import id_table, packing

    mesh = Mesh(targets.devices(target)[:1], ("d",))
    where = NamedSharding(mesh, PartitionSpec())
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype, sharding=where)  # noqa: E731

    found: dict[str, float] = {}

    def megabytes(name: str, function, *arguments, donate=()) -> None:
        if only not in name:
            return
        options = sharding.compiler_options(mesh)
        compiled = jax.jit(function, donate_argnums=donate).lower(*arguments).compile(options)
        counted = (compiled.cost_analysis() or {}).get("bytes accessed")
        if counted is None:  # of CUDA
            read = program.read(compiled.as_text())
            counted = sum(times * cost.bytes_moved(read, one) for one, times in read.kernels())
        found[name] = round(counted / 1e6, 2)

    optimizer, row = id_table.rowwise_adagrad(0.1), shape(ROWS, dtype=jnp.int32)
    form = packing.form_on(mesh)
    update = functools.partial(id_table.update, optimizer=optimizer)

    def step(tables, row, gradient):
        return update(tables, row, gradient * id_table.lookup(tables, row), jnp.zeros((), jnp.int32))

    for width in WIDTHS:
        for length in LENGTHS:
            for name, own in (("as JAX has it", packing.PLAIN), ("as em3_jax has it", form)):
                make = functools.partial(id_table.init, jax.random.key(0), length, width, 0.1, optimizer, form=own)
                tables = jax.tree.map(lambda leaf: shape(*leaf.shape, dtype=leaf.dtype), jax.eval_shape(make))
                what = f"{width} wide, {length >> 20} M rows, {name}"
                megabytes(f"lookup, {what}", id_table.lookup, tables, row)
                megabytes(f"lookup and update, {what}", step, tables, row, shape(ROWS, width), donate=0)
    take = lambda array, index: jnp.take(array, index, axis=0)  # noqa: E731
    tokens_of(megabytes, mesh, shape)
    index = shape(POSITIONS, dtype=jnp.int32)
    for dtype in (jnp.float32, jnp.bfloat16):
        block, values = shape(ITEMS, 64, dtype=dtype), shape(POSITIONS, 64, dtype=dtype)
        what = f"51,200 positions of 6,720 rows, 64 wide, {jnp.dtype(dtype).name}"
        megabytes(f"gather, {what}, jnp.take", take, block, index)
        megabytes(f"gather, {what}, as em3_jax does it", gather.rows, block, index)
        scatter = functools.partial(gather._scattered, length=ITEMS)
        megabytes(f"sum, {what}, scatter", scatter, values, index)
        megabytes(f"sum, {what}, in blocks", functools.partial(gather._block_sums, length=ITEMS), values, index)
        megabytes(f"sum, {what}, as em3_jax does it", functools.partial(gather.sums, length=ITEMS), values, index)
    return found


def tokens_of(megabytes: Callable, mesh: Any, shape: Callable) -> None:
    """Tokens of items, looked up and multiplied by a matrix [E, 64]."""
    import jax.numpy as jnp

    from em3_jax.tables import slabs
    from em3_jax.tasks import gathered

    def used(tokens, mask, index, kernel):
        batch = {"item_id": index}
        found = gathered(None, {"it": (tokens, mask)}, batch)
        tokens, mask = found.tokens["it"], found.tokens_mask["it"]
        return jnp.where(mask[..., None], jnp.einsum("sne,ed->snd", tokens, kernel), 0)

    for name, (dtype, *tail) in TOKENS.items():
        for length in CATALOGUES:
            tables = (shape(length, *tail, dtype=dtype), shape(length, tail[0], dtype=bool))
            rest = shape(ROWS, dtype=jnp.int32), shape(tail[-1], 64, dtype=dtype)
            what = f"tokens of 4,096 items, {name}, of {length:,} items"
            megabytes(f"{what}, as JAX has them", used, *tables, *rest)
            own = lying(mesh, tables[0])
            mask = tables[1] if lying(mesh, tables[1]) is tables[1] else slabs.Within()
            megabytes(f"{what}, as em3_jax has them", used, own, mask, *rest)


def lying(mesh: Any, table: Any) -> Any:
    """The shapes of a table of content as it lies on the devices of a mesh."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from em3_jax.tables import slabs

    kind = slabs.kind_on(mesh, np.empty((0, *table.shape[1:]), table.dtype))
    if kind is None:
        return table
    lines = jax.eval_shape(functools.partial(kind.of, xp=jnp), table)
    return kind(jax.ShapeDtypeStruct(lines.shape, lines.dtype, sharding=table.sharding), table.shape[1:])


def page(found: dict) -> str:
    """docs/operations.md."""
    names = list(found)
    lines = [
        "# What single operations move",
        "",
        "Megabytes that one device reads and writes, by the compilers' own counts, of NVIDIA's from the text of the program.",
        "Made by `python -m benchmarks.operations`, which says what has changed since.",
        "",
        "| operation | " + " | ".join(f"{name}, {found[name]['compiler']}" for name in names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for operation in found[names[0]]["counts"]:
        cells = [f"{found[name]['counts'].get(operation, float('nan')):,.1f}" for name in names]
        lines.append(f"| {operation} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def changes(before: dict, now: dict) -> list[str]:
    """What is otherwise than it was, a line each."""
    lines = []
    for name, one in now.items():
        old = before.get(name, {"counts": {}, "compiler": "none"})
        for operation, count in one["counts"].items():
            was = old["counts"].get(operation)
            if was is not None and abs(was - count) > _TOLERANCE * max(was, 1.0):
                lines.append(f"{name}: {operation}: {was:,.1f} MB with {old['compiler']}, {count:,.1f} MB now")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=lambda text: tuple(text.split(",")), default=TARGETS)
    parser.add_argument(
        "--only", default="", help="a word; operations that have it in their name are counted, the others stay"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process for each compiler
    args = parser.parse_args()
    if args.one:
        target = targets.parse(args.one)
        targets.prepare(target)
        with targets.quietly():
            found = counts(target, args.only)
        package = {"tpu": "libtpu", "gpu": "jax-cuda12-pjrt", "cpu": "jaxlib"}[target.platform]
        print(json.dumps({"counts": found, "compiler": f"{package} {importlib.metadata.version(package)}"}))
        return
    path, found = FOLDER / "operations.json", {}
    for name in args.targets:
        command = [sys.executable, "-m", "benchmarks.operations", "--one", name, "--only", args.only]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[name] = json.loads(done.stdout.splitlines()[-1])
    before = json.loads(path.read_text()) if path.exists() else {}
    print("\n".join(changes(before, found)) or "nothing has changed" if before else "nothing to compare with")
    for name, one in found.items() if args.only else ():
        one["counts"] = before.get(name, {"counts": {}})["counts"] | one["counts"]
    found = before | found
    path.write_text(json.dumps(found, indent=1) + "\n")
    (FOLDER / "operations.md").write_text(page(found))


if __name__ == "__main__":
    cli.run(main)
