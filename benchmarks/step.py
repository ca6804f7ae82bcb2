"""EM3's step, of this checkout and of others, in turns.

    python -m benchmarks.step --against <checkout>[,<checkout>] [--precision bf16] [--repeats 15]

Each checkout has a process of its own, which compiles the step of `benchmarks.ranking` (B 1024, T 50,
6 tokens x 768, D 64) on its own planted data of the same seed, and then waits for its turns. Results:
benchmarks/NOTES.md.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parent.parent
STEPS = 3  # of a turn; the first brings back what the others' turns took from the cache


def alone(precision: str) -> None:
    """The process of one checkout: an empty line asks for a turn, and [[wall, processor] ms, ...] answers."""
    # Before JAX, as train.py does; the module has moved.
    for name in ("em3_jax.core.allocator", "em3_jax.allocator"):
        try:
            __import__(name, fromlist=[""]).keep_large_blocks()
            break
        except ModuleNotFoundError:
            continue
    import jax

    from benchmarks.ranking import Trainer, planted_config
    from em3_jax.data.readers.synthetic import synthetic

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        synthetic(root, interactions=500_000, users=20_000, items=7_500, token_width=768)
        config = planted_config(root)
        config.model.precision = precision
        trainer = Trainer(config)

        def step() -> tuple[float, float]:
            wall, processor = time.perf_counter(), time.process_time()
            jax.block_until_ready((trainer(), trainer.state))
            return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)

        step()
        print(json.dumps(len(trainer.batch["item_id"])), flush=True)
        for _ in sys.stdin:
            print(json.dumps([step() for _ in range(STEPS)]), flush=True)


def started(checkout: Path, precision: str) -> subprocess.Popen:
    """That process."""
    return subprocess.Popen(
        [sys.executable, __file__, "--alone", "--precision", precision],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def answer(process: subprocess.Popen, name: str):
    """The next line of a process, read as JSON."""
    assert process.stdout is not None  # a pipe
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"{name}: its process ended with {process.wait()}, see above")
    return json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", help="other checkouts, comma-separated")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--repeats", type=int, default=15, help="turns of each")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return alone(args.precision)
    checkouts = [Path(name).resolve() for name in args.against.split(",") if name]
    processes = {}
    for checkout in [*checkouts, ROOT]:  # one compiles after the other
        processes[checkout] = started(checkout, args.precision)
        print(f"{checkout.name}: {answer(processes[checkout], checkout.name):,} items", flush=True)
    found: dict[Path, list] = {checkout: [] for checkout in processes}
    for _ in range(args.repeats):
        for checkout, process in processes.items():
            assert process.stdin is not None  # a pipe
            process.stdin.write("\n")
            process.stdin.flush()
            found[checkout] += answer(process, checkout.name)[1:]
    for process in processes.values():
        process.communicate()
    first = np.array(next(iter(found.values())))
    for checkout, values in found.items():
        own = np.array(values)
        ratio = np.median(own / first, axis=0)
        print(
            f"{checkout.name:<20} {own[:, 0].min():6.1f} ms (median {np.median(own[:, 0]):.1f}), "
            f"processor {np.median(own[:, 1]):.1f} ms; of the first {ratio[0]:.2f} x, {ratio[1]:.2f} x"
        )


if __name__ == "__main__":
    main()
