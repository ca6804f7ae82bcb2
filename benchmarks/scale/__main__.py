"""Speed and cost over the sizes that matter: python -m benchmarks.scale --out reports/scale [--quick] [--growth]

EM3's ranking step (N 6 content tokens 768 wide, 10,000 items, ID width 16) for every batch size, history length, content
width and table length: time, examples/s, shares of the measured peaks, memory, input wait, bytes exchanged. Rows are saved as
they finish, and a second call goes on. `--growth` compiles the step for 1 to 64 simulated devices and prints how its counts grow;
benchmarks/SCALE.md reads them.
"""

import argparse
import itertools
import json
import os
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from benchmarks.scale import peaks
from benchmarks.scale.point import Point, Step, measure
from em3_jax import cli
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.training import rundir

BATCH, HISTORY, WIDTH = (1024, 4096, 16384), (20, 50, 200), (64, 256)
ROWS = (100_000, 10_000_000, 100_000_000)
QUICK = (1024, 20, 64)
DEVICES = (1, 2, 4, 8, 16, 32, 64)
COLUMNS = {
    "step_seconds": ("ms", 1e3, "{:,.1f}"),
    "examples_per_second": ("examples/s", 1, "{:,.0f}"),
    "share_of_matrix_peak": ("of matmul", 100, "{:.1f} %"),
    "share_of_copy_peak": ("of copy", 100, "{:.1f} %"),
    "input_wait": ("input wait", 100, "{:.1f} %"),
    "temporary_bytes": ("temporaries MB", 1e-6, "{:,.0f}"),
    "argument_bytes": ("arguments MB", 1e-6, "{:,.0f}"),
}


def shown(row: dict) -> str:
    cells = [form.format(row[name] * unit) if name in row else "" for name, (_, unit, form) in COLUMNS.items()]
    sizes = [f"{row[name]:,}" for name in ("batch", "history", "width", "rows")]
    exchanged = f"{sum(row['exchanged_bytes'].values()) / 1e6:,.1f}"
    return " | ".join(["", *sizes, row["precision"], *cells, exchanged, row.get("skipped", ""), ""]).strip()


def grid(out: Path, root: Path, points: list[Point], seconds: float) -> None:
    """Measures the points that the file does not have yet, and prints all as a table."""
    path = out / "scale.json"
    saved = json.loads(path.read_text()) if path.exists() else {}
    machine = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    if saved.get("machine", machine) != machine:
        raise SystemExit(f"{path}: has rows of {saved['machine']}, this is {machine}; give another --out")
    best = saved.get("peaks") or {
        "matmul_f32": peaks.matrix_peak(jnp.float32),
        "matmul_bf16": peaks.matrix_peak(jnp.bfloat16),
        "copy": peaks.copy_peak(),
    }
    rows = saved.get("rows", {})
    print(f"{machine}: matrix product {best['matmul_f32'] / 1e9:,.0f} GFLOP/s f32, {best['matmul_bf16'] / 1e9:,.0f} bf16; "
          f"copy {best['copy'] / 1e9:,.1f} GB/s")  # fmt: skip
    names = ["B", "T", "D", "V", "", *(name for name, _, _ in COLUMNS.values()), "exchanged MB", ""]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for point in points:
        if point.name not in rows:
            rows[point.name] = measure(root, point, best, seconds)
            record = {
                "machine": machine,
                "jax": jax.__version__,
                "commit": rundir.commit(),
                "peaks": best,
                "rows": rows,
            }
            path.write_text(json.dumps(record, indent=1))
        print(shown(rows[point.name]), flush=True)


def growth(root: Path, batch: int, devices: tuple[int, ...], **data: str) -> None:
    """How the counts of a device grow with the devices, `batch` examples each; `data` changes config.data."""
    print(f"{batch} examples, T 50, D 64 a device; 100 M table rows by shape; {data}; MB a device and step")
    kinds = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
    names = ["devices", "distinct items", "distinct rows", "GFLOP", "state and features MB", "temporaries MB", *kinds]
    print("| " + " | ".join(names) + " |\n|" + "---|" * len(names))
    for count in devices:
        counts = Step(root, Point(batch * count, 50, 64, 100_000_000), mesh=(count, 1), **data).counts()
        exchanged = [f"{counts['exchanged_bytes'].get(kind, 0) / 1e6:,.2f}" for kind in kinds]
        cells = [
            f"{count}", f"{counts['distinct_items']:,}", f"{counts['distinct_rows']:,}", f"{counts['flops'] / 1e9:,.2f}",
            f"{counts['argument_bytes'] / 1e6:,.0f}", f"{counts['temporary_bytes'] / 1e6:,.0f}", *exchanged,
        ]  # fmt: skip
        print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("reports/scale"))
    parser.add_argument("--quick", action="store_true", help="B 1,024, T 20, D 64 alone")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--seconds", type=float, default=10.0, help="of steps for each point")
    parser.add_argument("--growth", action="store_true", help="counts by number of simulated devices")
    parser.add_argument("--devices", type=lambda text: tuple(map(int, text.split(","))), default=DEVICES)
    parser.add_argument("--batch", type=int, default=64, help="examples a device, of --growth")
    parser.add_argument("--placement", default="device", choices=("device", "host"), help="of features, of --growth")
    args = parser.parse_args()
    if args.growth:  # before the first device is made
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=64"
        jax.config.update("jax_platforms", "cpu")
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        synthetic(root, interactions=500_000, users=2_000, items=7_500, token_width=768)
        if args.growth:
            growth(root, args.batch, args.devices, placement=args.placement)
            return
        sizes = itertools.product(
            *((QUICK[k : k + 1] for k in range(3)) if args.quick else (BATCH, HISTORY, WIDTH)), ROWS
        )
        grid(args.out, root, [Point(*size, args.precision) for size in sizes], args.seconds)


if __name__ == "__main__":
    cli.run(main)
