"""What the memory bank saves: python -m benchmarks.lemur

Steps of LEMUR on planted raw data whose histories fill all T slots, B 512: candidates encoded and histories read from the bank,
against every distinct history item encoded in the step; the p/q grid; and banks of 100 k and 10 M rows. FLOPs and temporaries are
XLA's own account of the compiled step; times are minima, of the grid and the banks of steps that take turns. Results:
benchmarks/NOTES.md.
"""

import argparse
import tempfile
from pathlib import Path

import jax

from benchmarks.timing import interleaved, milliseconds
from configs import lemur
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.tables import memory_bank
from em3_jax.training import experiment

LENGTHS = (50, 200, 1000)
GRID = ((100, 100), (100, 20), (20, 20), (10, 10))
BATCHES = 4


class Steps:
    """A run that trains on the same few batches again and again.

    Args:
      config: of the run.
      rows: of the memory bank; 0 = as many as there are items.
    """

    def __init__(self, config, rows: int = 0):
        self.parts = experiment.build(config.to_dict())
        self.state, self.step = self.parts.program.init(), 0
        if rows:
            width = self.state.memory["vector"].shape[1]
            self.state = self.state.replace(memory=memory_bank.init(rows, width))
        self.batches = [self.parts.program.place(self.parts.work.source[k]) for k in range(BATCHES)]

    def __call__(self):
        batch = self.batches[self.step % BATCHES]
        self.step += 1
        self.state, scalars = self.parts.program.train_step(self.state, self.parts.work.constants, batch)
        return scalars


def config_of(root: Path, length: int, **model):
    config = lemur.get_config()
    config.data.root, config.data.batch_size, config.data.history_length = str(root), 512, length
    config.model.update(model)
    return config


def lengths(root: Path, repeats: int) -> None:
    print("T      encode       ms a step                      GFLOP  MB of temporaries")
    for length in LENGTHS:
        seconds = {}
        for name in ("candidates", "all"):
            # Not in turns: blocks of GBs go back to the system, and the step after them would fault its memory in afresh.
            step = Steps(config_of(root, length, encode=name))
            seconds |= interleaved({name: step}, repeats)
            cost = experiment.step_cost(step.parts)
            print(
                f"{length:<6} {name:<12} {milliseconds(seconds[name]):<30} {cost['gigaflops']:>6.2f}"
                f"  {cost['temporary_megabytes']:>8.1f}",
                flush=True,
            )
        print(f"       the bank saves {seconds['all'].min() / seconds['candidates'].min():.2f} x", flush=True)


def grid(root: Path, repeats: int) -> None:
    print("\np    q    ms a step                      GFLOP")
    steps = {
        (p, q): Steps(config_of(root, LENGTHS[0], forward_percent=float(p), backward_percent=float(q))) for p, q in GRID
    }
    seconds = interleaved(steps, repeats)
    for (p, q), one in steps.items():
        cost = experiment.step_cost(one.parts)
        print(f"{p:<4} {q:<4} {milliseconds(seconds[p, q]):<30} {cost['gigaflops']:>6.2f}", flush=True)


def banks(root: Path, repeats: int) -> None:
    steps = {rows: Steps(config_of(root, LENGTHS[0]), rows) for rows in (100_000, 10_000_000)}
    seconds = interleaved(steps, repeats)
    print()
    for rows, taken in seconds.items():
        print(f"bank of {rows:>10,} rows: {milliseconds(taken)}", flush=True)
    small, large = (taken.min() for taken in seconds.values())
    print(f"10 M rows against 100 k: {large / small:.3f} x the step time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--items", type=int, default=20_000)
    args = parser.parse_args()
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind}, {args.items:,} items")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "data"
        synthetic(root, interactions=20_000, users=1_000, items=args.items, choices=1_100.0, new_users=0.0, raw=True)
        lengths(root, args.repeats)
        grid(root, args.repeats)
        banks(root, args.repeats)


if __name__ == "__main__":
    main()
