"""Steps on chips that are not here: python -m benchmarks.accelerators [--task lemur] [--before <a checkout>]

Compiles EM3's step, T 50, D 64, 6 tokens x 768 in f16 on the host, bf16, tables 16 wide by shape,
for each point and prints what the compilers count, of one device. `--before` does the same with the code of
022dc27, which knows no devices that are only described: there it is told that these are the machine's,
and that arrays on them are their shapes. Of LEMUR's step, as configs/lemur.py has it but
for B and a bank of as many rows as the table, the checkout is one of 2d6bea0. benchmarks/SCALE.md
reads them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from em3_jax import cli
from em3_jax.plan import targets

POINTS = (
    ("v5e:2x2", 4096, 10_000_000),
    ("v6e:2x2", 4096, 10_000_000),
    ("v5e:8x8", 4096, 100_000_000),
    ("v5e:1x1", 1024, 10_000_000),
    ("h100", 4096, 10_000_000),
)
LEMUR = (("v5e:2x2", 4096, 10_000_000),)
COMMITS = {"em3": "022dc27", "lemur": "2d6bea0"}
BEFORE = """
import jax
put = jax.device_put
def shapes(tree, where=None, **options):
    if where is None:
        return put(tree)
    one = lambda where, x: jax.ShapeDtypeStruct(x.shape, jax.dtypes.canonicalize_dtype(x.dtype), sharding=where)
    if isinstance(where, jax.sharding.Sharding):
        return jax.tree.map(lambda x: one(where, x), tree)
    return jax.tree.map(one, where, tree)
jax.devices, jax.device_put = lambda *_: devices, shapes
from benchmarks.scale.point import Point, Step
compiled = Step(root, Point(batch, 50, 64, rows, "bf16"), placement="host").compiled
"""


def of_lemur(target: targets.Target, root: Path, batch: int, rows: int, devices):
    """LEMUR's compiled step, features on the host, of the package that is imported next."""
    from configs import lemur
    from em3_jax.plan import sizes
    from em3_jax.training import experiment

    config = lemur.get_config()
    config.data.root, config.data.placement, config.data.batch_size = str(root), "host", batch
    parts = experiment.build(config.to_dict(), devices)
    arguments = sizes.resized(parts, rows=rows, items=rows)
    return targets.compiled(target, parts.program.train_step, arguments)


def compiled(target: targets.Target, task: str, root: Path, batch: int, rows: int, checkout: str):
    """The compiled step of a point."""
    devices = targets.devices(target)
    if checkout:  # whose modules are the next to be imported
        for name in list(sys.modules):
            if name.split(".")[0] in ("em3_jax", "benchmarks", "configs"):
                del sys.modules[name]
        sys.path.insert(0, checkout)
    if task == "lemur":
        return of_lemur(target, root, batch, rows, devices)
    if checkout:
        names = {"checkout": checkout, "devices": devices, "root": root, "batch": batch, "rows": rows}
        exec(BEFORE, names)
        return names["compiled"]
    from benchmarks.scale.point import Point, Step

    return Step(root, Point(batch, 50, 64, rows, "bf16"), devices=devices, placement="host").compiled.program


def counts(text: str, task: str, root: Path, batch: int, rows: int, checkout: str) -> dict:
    """What the compiler, or else the program's text, says of a point."""
    target = targets.parse(text)
    targets.prepare(target)
    with targets.quietly():
        import jax

        jax.config.update("jax_enable_compilation_cache", False)
        from em3_jax.plan import cost, program

        found = compiled(target, task, root, batch, rows, checkout)
        read, memory, own = program.read(found.as_text()), found.memory_analysis(), found.cost_analysis() or {}
        by_text = cost.items(read)
    exchanged = program.exchanges(read)
    return {
        "GB moved": own.get("bytes accessed", sum(item.bytes for item in by_text)) / 1e9,
        "collectives": sum(number for number, _ in exchanged.values()),
        "MB exchanged": sum(size for _, size in exchanged.values()) / 1e6,
        "MB temporaries": memory.temp_size_in_bytes / 1e6,
        "MB arguments": memory.argument_size_in_bytes / 1e6,
        "GFLOP": own.get("flops", sum(item.flops for item in by_text)) / 1e9,
        "scatters": sum(one.opcode == "scatter" for one in read),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(COMMITS), default="em3")
    parser.add_argument("--before", default="", help="folder of a checkout, see above")
    parser.add_argument("--targets", default=",".join(point[0] for point in POINTS), help="of the points")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a process for each
    args = parser.parse_args()
    if args.one:
        print(json.dumps(counts(*json.loads(args.one))))
        return
    from em3_jax.data.readers.synthetic import synthetic

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        if args.task == "lemur":
            synthetic(root, interactions=200_000, users=2_000, items=7_500, raw=True)
        else:
            synthetic(root, interactions=500_000, users=2_000, items=7_500, token_width=768)
        for target, batch, rows in LEMUR if args.task == "lemur" else POINTS:
            if target not in args.targets.split(","):
                continue
            for name, checkout in ((COMMITS[args.task], args.before), ("now", "")):
                if name == "now" or checkout:
                    one = json.dumps([target, args.task, str(root), batch, rows, checkout])
                    command = [sys.executable, "-m", "benchmarks.accelerators", "--one", one]
                    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                    cells = " | ".join(f"{key} {value:,.4g}" for key, value in json.loads(done.stdout).items())
                    print(f"{target}, B {batch:,}, V {rows:,} | {name} | {cells}", flush=True)


if __name__ == "__main__":
    cli.run(main)
