"""Speed and memory of ranking training: python -m benchmarks.ranking [--only step,table,input,run,din]

Planted data of the size the targets name: B 1024, T 50, N 6 content tokens 768 wide, D 64; 10,000 items, of which a batch
names some 6,000. `din` needs the shared MovieLens folder (--movielens). Results and their history: benchmarks/NOTES.md.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks.timing import interleaved, milliseconds
from configs import base, em3_movielens
from em3_jax import train
from em3_jax.core import sharding
from em3_jax.data.batches import BatchBuilder
from em3_jax.data.pipeline import batches
from em3_jax.data.readers.movielens import movielens
from em3_jax.data.readers.synthetic import synthetic
from em3_jax.tables import id_table
from em3_jax.training import experiment


def planted_config(root: Path):
    config = base.ranking()
    config.data.root = str(root)
    config.data.features = ("image", "text")
    return config


class Trainer:
    """A state and the batches to step on, for timing single steps."""

    def __init__(self, config, distinct_items: bool = True, table_rows: int | None = None):
        self.parts = experiment.build(config.to_dict())
        source = self.parts.work.source
        builder = BatchBuilder(
            self.parts.work.dataset,
            history_length=config.data.history_length,
            unknown_alpha=config.data.unknown_alpha,
            unknown_floor=dict(config.data.unknown_floor),
            distinct_items=distinct_items,
        )
        self.batch = builder(np.asarray(source.rows)[: config.data.batch_size], buckets=source.buckets)
        self.state = self.parts.program.init()
        if table_rows:
            self._grow(table_rows, config)
        self.batch = jax.device_put(self.batch, sharding.batch_shardings(self.parts.program.mesh, self.batch))
        start = time.perf_counter()
        step = self.parts.program.train_step
        self.compiled = step.compile(self.state, self.parts.work.constants, self.batch)
        self.compile_seconds = time.perf_counter() - start

    def _grow(self, rows: int, config) -> None:
        """A table of `rows` rows, the batch's rows spread over it."""
        old = self.parts.work.dataset.fields.num_rows
        row_id = self.batch["row_id"].astype(np.int64)
        self.batch["row_id"] = np.where(row_id < old, row_id * (rows // old), rows + row_id - old).astype(np.int32)
        optimizer = id_table.row_optimizer(config.tables.optimizer, config.tables.learning_rate)
        grown = id_table.init(jax.random.key(0), rows, config.tables.width, 0.01, optimizer)
        self.state = self.state.replace(tables=grown)

    def __call__(self):
        self.state, aux = self.compiled(self.state, self.parts.work.constants, self.batch)
        return aux


def step(root: Path, repeats: int) -> None:
    """Step time and memory, one row per distinct item against one per slot."""
    config = planted_config(root)
    variants = {"distinct items": Trainer(config), "all slots": Trainer(config, distinct_items=False)}
    seconds = interleaved(variants, repeats)
    for name, trainer in variants.items():
        memory = trainer.compiled.program.memory_analysis()
        print(
            f"step, {name:<16} {milliseconds(seconds[name]):<30} items {int(trainer.batch['item_mask'].sum()):>6,} in "
            f"{len(trainer.batch['item_id']):>6,}   compile {trainer.compile_seconds:.1f} s   "
            f"temporaries {memory.temp_size_in_bytes / 1e6:,.0f} MB"
        )
    print(
        f"step, all slots / distinct: {seconds['all slots'].min() / seconds['distinct items'].min():.1f} x (target 6)"
    )


def table(root: Path, repeats: int) -> None:
    """Step time against table rows, for both row optimizers."""
    for optimizer in ("lazy_adam", "rowwise_adagrad"):
        config = planted_config(root)
        config.tables.optimizer = optimizer
        variants = {f"{rows:,}": Trainer(config, table_rows=rows) for rows in (100_000, 10_000_000)}
        seconds = interleaved(variants, repeats)
        small, large = (value.min() for value in seconds.values())
        for name, value in seconds.items():
            print(f"table, {optimizer}, {name:>10} rows: {milliseconds(value)}")
        print(f"table, {optimizer}, 10 M / 100 k rows: {large / small:.2f} x (target at most 1.15)")


def input_(root: Path, repeats: int) -> None:
    """Examples/s of the input pipeline alone."""
    parts = experiment.build(planted_config(root).to_dict())
    source = parts.work.source
    source[0]
    seconds = interleaved({"batch": lambda: source[np.random.randint(1000)]}, 20 * repeats)["batch"]
    size = source.batch_size
    print(
        f"input, one thread: {milliseconds(seconds)} a batch, {size / seconds.min():,.0f} examples/s (target 1,000,000)"
    )
    for threads in (1, 2):
        stream, best = batches(source, threads=threads), np.inf
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(100):
                next(stream)
            best = min(best, time.perf_counter() - start)
        print(f"input, Grain with {threads} threads: {100 * size / best:,.0f} examples/s")


def run(root: Path, repeats: int) -> None:
    """Input wait and peak memory of a real run."""
    config = planted_config(root)
    config.train.epochs, config.train.eval_every, config.train.log_every = 0.25, 1000, 20
    with tempfile.TemporaryDirectory() as workdir:
        train.train(config.to_dict(), workdir)
        lines = [json.loads(line) for line in (Path(workdir) / "metrics.jsonl").read_text().splitlines()]
    windows = [line for line in lines if "time/input_wait_share" in line][1:]  # the first holds the compilation
    wait = np.mean([line["time/input_wait_share"] for line in windows])
    speed = np.mean([line["time/examples_per_second"] for line in windows])
    print(f"run: {speed:,.0f} examples/s, {wait:.1%} of the time waiting for input (target at most 5 %)")
    print(f"run: peak memory of this process {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB")


def din(movielens_source: Path, repeats: int) -> None:
    """Examples/s of the ID-only DIN on MovieLens-100K, whole loop; FuxiCTR's beside it, in turns: benchmarks.fuxictr."""
    with tempfile.TemporaryDirectory() as folder:
        movielens(out=Path(folder) / "data", source=movielens_source)
        config = em3_movielens.get_config("id_only")
        config.data.root = f"{folder}/data"
        trainer = Trainer(config)
        print(f"din, step: {milliseconds(interleaved({'step': trainer}, 4 * repeats)['step'])}")
        config.train.epochs, config.train.eval_every, config.train.log_every = 5.0, 1000, 50
        train.train(config.to_dict(), f"{folder}/run")
        lines = [json.loads(line) for line in Path(f"{folder}/run/metrics.jsonl").read_text().splitlines()]
    windows = [line for line in lines if "time/examples_per_second" in line][1:]
    speed = np.median([line["time/examples_per_second"] for line in windows])
    wait = np.mean([line["time/input_wait_share"] for line in windows])
    print(f"din, training loop: {speed:,.0f} examples/s, input wait {wait:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"step": step, "table": table, "input": input_, "run": run, "din": din}
    parser.add_argument("--only", default=",".join(parts), help="which parts, comma-separated")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--movielens", type=Path, default=Path("../shared/data/ml-100k-posters"))
    parser.add_argument("--default-malloc", action="store_true", help="without core.allocator, to compare")
    args = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.devices()}")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "planted"
        if set(args.only.split(",")) - {"din"}:
            synthetic(root, interactions=500_000, users=20_000, items=7_500, token_width=768)
        for name in args.only.split(","):
            if name == "din" and not args.movielens.is_dir():
                print(f"din: skipped, no folder {args.movielens}")
                continue
            parts[name](args.movielens if name == "din" else root, args.repeats)


if __name__ == "__main__":
    main()
