"""EM3's step, of this checkout and of others, in turns.

    python -m benchmarks.step --against <checkout>[,<checkout>] [--precision bf16] [--processes 3]

Each checkout has a process of its own, which compiles the step of `benchmarks.ranking` (B 1024, T 50,
6 tokens x 768, D 64) on its own planted data of the same seed, and then waits for its turns. It depends
on the heap that a process happens to get whether it maps its temporaries anew in each step, which is
30 to 70 ms; so all begin again several times, and minima are compared besides. Results:
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
        # -P: not with this folder first in its path, whose `numbers` is not Python's.
        [sys.executable, "-P", __file__, "--alone", "--precision", precision],
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


def race(checkouts: list[Path], precision: str, repeats: int) -> dict[Path, list[list[float]]]:
    """[wall, processor] ms of the steps of each checkout, by one process each."""
    processes = {}
    for checkout in checkouts:  # one compiles after the other
        processes[checkout] = started(checkout, precision)
        answer(processes[checkout], checkout.name)
    found: dict[Path, list] = {checkout: [] for checkout in checkouts}
    for _ in range(repeats):
        for checkout, process in processes.items():
            assert process.stdin is not None  # a pipe
            process.stdin.write("\n")
            process.stdin.flush()
            found[checkout] += answer(process, checkout.name)[1:]
    for process in processes.values():
        process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="", help="other checkouts, comma-separated")
    parser.add_argument("--precision", default="f32", choices=("f32", "bf16"))
    parser.add_argument("--processes", type=int, default=3, help="of each, one after the other")
    parser.add_argument("--repeats", type=int, default=6, help="turns of each process")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.alone:
        return alone(args.precision)
    checkouts = [*(Path(name).resolve() for name in args.against.split(",") if name), ROOT]
    found: dict[Path, list] = {checkout: [] for checkout in checkouts}
    for number in range(args.processes):
        for checkout, values in race(checkouts, args.precision, args.repeats).items():
            found[checkout] += values
            clock = np.array(values)[:, 0]
            print(
                f"{number + 1}: {checkout.name:<20} {clock.min():6.1f} ms (median {np.median(clock):.1f})", flush=True
            )
    first = np.array(found[checkouts[0]])
    for checkout, values in found.items():
        own = np.array(values)
        least, turns = own.min(axis=0) / first.min(axis=0), np.median(own / first, axis=0)
        print(
            f"{checkout.name:<20} {own[:, 0].min():6.1f} ms (median {np.median(own[:, 0]):.1f}), processor "
            f"{own[:, 1].min():.1f} ({np.median(own[:, 1]):.1f}); of the first by minima {least[0]:.2f} and "
            f"{least[1]:.2f} x, by turns {turns[0]:.2f} and {turns[1]:.2f} x"
        )


if __name__ == "__main__":
    main()
