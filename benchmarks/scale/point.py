"""One point of the grid: EM3's ranking step at a batch size, history length, width and table length."""

import functools
import os
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.ranking import planted_config
from em3_jax.data.pipeline import batches
from em3_jax.plan import program
from em3_jax.plan.sizes import longer
from em3_jax.tables import id_table, packing
from em3_jax.training import experiment

BY_SHAPE = 100_000_000  # tables from here on are compiled for, and not made


class Point(NamedTuple):
    """B, T, D of the content, V, and of the activations the precision."""

    batch: int
    history: int
    width: int
    rows: int
    precision: str = "f32"

    @property
    def name(self) -> str:
        return f"B {self.batch:,}  T {self.history}  D {self.width}  V {self.rows:,}  {self.precision}"


def memory_limit() -> int:
    """Bytes that programs may use on a device; on CPUs, of what the machine has free."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


class Step:
    """The compiled step of a point, for arrays or for shapes alone.

    Args:
      root: the planted dataset.
      point: the point.
      mesh: (data, model) devices.
      devices: to choose from, perhaps only described; None = the machine's own.
      data: changes of config.data.
    """

    def __init__(self, root: Path, point: Point, mesh: tuple[int, int] = (0, 1), devices=None, **data: str):
        config = planted_config(root)
        config.data.batch_size, config.data.history_length = point.batch, point.history
        config.model.fusion_settings.width = config.model.cic.width = point.width
        config.model.fusion_settings.ffn_width = 2 * point.width
        config.model.precision = point.precision
        config.mesh.data, config.mesh.model = mesh
        config.data.update(data)
        self.parts = experiment.build(config.to_dict(), devices)
        self.batch = self.parts.program.place(self.parts.work.source[0])
        self._tables = functools.partial(
            id_table.init, count=point.rows, width=config.tables.width, scale=0.01,
            optimizer=id_table.row_optimizer(config.tables.optimizer, config.tables.learning_rate),
        )  # fmt: skip
        length = -(-point.rows // (1024 * self.parts.program.mesh.size)) * 1024 * self.parts.program.mesh.size
        self._tables = functools.partial(self._tables, length=length)
        old = self.parts.program.shapes
        self.shapes = old.replace(tables=longer(old.tables, length))
        step = self.parts.program.train_step
        self.compiled = step.compile(self.shapes, self.parts.work.constants, self.batch)

    def state(self):
        plainly = packing.unpacked(self.shapes.tables)
        where = jax.tree.map(lambda shape: shape.sharding, plainly)
        made = jax.jit(self._tables, out_shardings=where)(jax.random.key(0))
        return self.parts.program.init().replace(tables=packing.packed_as(self.shapes.tables, made))

    def counts(self) -> dict[str, float]:
        """What the program says of itself, of one device: FLOPs, bytes, what is exchanged."""
        cost, memory = self.compiled.program.cost_analysis(), self.compiled.program.memory_analysis()
        exchanged = program.exchanges(program.read(self.compiled.program.as_text()))
        return {
            "flops": cost["flops"],
            "bytes_accessed": cost["bytes accessed"],
            "argument_bytes": memory.argument_size_in_bytes,
            "temporary_bytes": memory.temp_size_in_bytes,
            "exchanged_bytes": {kind: size for kind, (_, size) in exchanged.items()},
            "collectives": sum(number for number, _ in exchanged.values()),
            "distinct_items": len(self.batch["item_id"]),
            "distinct_rows": len(self.batch["row_id"]),
        }

    def timings(self, seconds: float) -> dict[str, float]:
        """Steps on the real pipeline for so long: their median time, examples/s, the share of it spent waiting for input."""
        state, size = self.state(), self.parts.work.source.batch_size
        run = self.compiled
        stream = batches(self.parts.work.source, place=self.parts.program.place)
        spent, waited = [], []
        while len(spent) < 4 or (sum(spent) < seconds and len(spent) < 200):
            began = time.perf_counter()
            batch = next(stream)
            waited.append(time.perf_counter() - began)
            if (
                batch["item_id"].shape != self.batch["item_id"].shape
                or batch["row_id"].shape != self.batch["row_id"].shape
            ):
                waited.pop()  # of another bucket size, for which nothing is compiled
                continue
            state, aux = run(state, self.parts.work.constants, batch)
            jax.block_until_ready(aux)
            spent.append(time.perf_counter() - began)
        spent, waited = np.array(spent[1:]), np.array(waited[1:])
        return {
            "step_seconds": float(np.median(spent)),
            "examples_per_second": float(size * len(spent) / spent.sum()),
            "input_wait": float(waited.sum() / spent.sum()),
            "steps": len(spent),
        }


def measure(root: Path, point: Point, peaks: dict[str, float], seconds: float) -> dict:
    """The row of a point: counts, and timings where the machine has the memory."""
    row = point._asdict()
    step = Step(root, point)
    row |= step.counts()
    need, limit = row["argument_bytes"] + row["temporary_bytes"], memory_limit()
    if point.rows >= BY_SHAPE:
        return row | {"skipped": "by shape only"}
    if need > 0.9 * limit:
        return row | {"skipped": f"needs {need / 1e9:.1f} GB of {limit / 1e9:.1f} GB"}
    row |= step.timings(seconds)
    row["share_of_matrix_peak"] = row["flops"] / row["step_seconds"] / peaks[f"matmul_{point.precision}"]
    row["share_of_copy_peak"] = row["bytes_accessed"] / row["step_seconds"] / peaks["copy"]
    return row
