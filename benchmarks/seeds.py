"""Several seeds of one config: runs one after the other, in two processes, and in one vmapped step.

    python -m benchmarks.seeds --config em3_movielens:id_only --data data/ml-100k --seeds 3

Milliseconds of a step of one seed, and of the processor; variants take turns, ratios are of the medians. Steps are
called as a run calls them: each is waited for. `processes` are as `em3 reproduce --jobs` has them, a core for each run.
Then how far the states are apart, and how many seconds a further seed takes to its first step, where compiled programs
are kept. Results: NOTES.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import em3_jax as em3
from em3_jax.core import compilation_cache

STEPS = 8  # of a turn, and of a dispatch of several


class Alone:
    """One run after the other, each by the program that it has alone.

    Args:
      size: steps of a dispatch.
    """

    def __init__(self, experiment: em3.Experiment, seeds: range, size: int = 1):
        self.runs, self.size = experiment.seeds(seeds, together=False), size
        self.states = list(self.runs.init())
        steps = [self.runs.batch(step) for step in range(STEPS)]
        of_seeds = list(zip(*steps, strict=True))
        if size > 1:
            of_seeds = [(jax.tree.map(lambda *one: jnp.stack(one), *batches),) for batches in of_seeds]
        program = experiment.parts.program
        self.batches, self.constants = of_seeds, experiment.parts.work.constants
        self.jitted = (program.train_steps if size > 1 else program.train_step).jitted
        self.roots = [jax.random.key(seed) for seed in seeds]

    def __call__(self) -> None:
        for k, batches in enumerate(self.batches):
            for batch in batches:
                self.states[k], scalars = self.jitted(self.roots[k], self.states[k], self.constants, batch)
                jax.block_until_ready(scalars)


class Together:
    """One step of all seeds.

    Args:
      shared: whether all read the batches of the first.
    """

    def __init__(self, experiment: em3.Experiment, seeds: range, shared: bool):
        self.runs, self.seeds = experiment.seeds(seeds, together=True), seeds
        self.states, self.constants = self.runs.init(), experiment.parts.work.constants
        self.batches = [(experiment if shared else self.runs).batch(step) for step in range(STEPS)]
        stacked = [not isinstance(batch, tuple) for batch in self.batches]
        assert all(stacked), "a batch needs more room than those of the other seeds; time other steps"
        step = experiment.parts.program.train_step.jitted
        over: Any = (0, 0, None, None if shared else 0)
        self.jitted = jax.jit(jax.vmap(step, in_axes=over), donate_argnums=1)
        self.roots = jnp.stack([jax.random.key(seed) for seed in seeds])

    def __call__(self) -> None:
        for batch in self.batches:
            self.states, scalars = self.jitted(self.roots, self.states, self.constants, batch)
            jax.block_until_ready(scalars)

    def each(self) -> list:
        """The states of the seeds, one by one."""
        return [self.runs.state(self.states, seed) for seed in self.seeds]


class Processes:
    """A run in each of as many processes as there are cores, at once, each on one core."""

    def __init__(self, config: str, data: str):
        command = [sys.executable, "-m", "benchmarks.seeds", f"--config={config}", f"--data={data}", "--alone"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        cores = len(os.sched_getaffinity(0))
        self.pool = [subprocess.Popen([*command, str(k)], **pipes) for k in range(cores)]
        self.processor = 0.0

    def __call__(self) -> None:
        for process in self.pool:
            print("turn", file=process.stdin, flush=True)
        self.processor = sum(float(process.stdout.readline()) for process in self.pool if process.stdout)

    def close(self) -> None:
        for process in self.pool:
            process.communicate()


def alone(config: str, data: str, seed: int) -> None:
    """A turn of steps of one run for each line that is read; prints the seconds of the processor that it took."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[seed]})
    run = Alone(em3.Experiment(em3.load_config(config, {"data.root": data})), range(seed, seed + 1))
    for _ in sys.stdin:
        began = time.process_time()
        run()
        print(time.process_time() - began, flush=True)


def steps(config: str, data: str, count: int, repeats: int) -> None:
    """Times the variants in turns, and prints them."""
    experiment, seeds = em3.Experiment(em3.load_config(config, {"data.root": data})), range(count)
    processes = Processes(config, data)
    single, dispatched = Alone(experiment, seeds), Alone(experiment, seeds, STEPS)
    together = Together(experiment, seeds, shared=False)
    variants: dict[str, tuple[Callable[[], None], int]] = {
        "one by one": (single, count),
        f"one by one, {STEPS} steps a dispatch": (dispatched, count),
        "together": (together, count),
        "together, on one batch": (Together(experiment, seeds, shared=True), count),
        f"{len(processes.pool)} processes": (processes, len(processes.pool)),
    }
    for call, _ in variants.values():
        call()  # compiles
    clock: dict[str, list[float]] = {name: [] for name in variants}
    processor: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, (call, runs) in variants.items():
            began, used = time.perf_counter(), time.process_time()
            call()
            clock[name].append((time.perf_counter() - began) / STEPS / runs)
            used = processes.processor if call is processes else time.process_time() - used
            processor[name].append(used / STEPS / runs)
    processes.close()
    first = next(iter(variants))
    print(f"{config}, {count} seeds, load {os.getloadavg()[0]:.1f}: a step of one seed")
    for name in variants:
        line = f"  {name:<31}"
        for unit, of in (("ms", clock), ("ms of the processor", processor)):
            middle = statistics.median(of[name])
            line += f" {1e3 * middle:7.2f} {unit} = {middle / statistics.median(of[first]):.2f} x"
        print(f"{line} (ms {1e3 * min(clock[name]):.2f} to {1e3 * max(clock[name]):.2f})")
    for name, states in (("of several a dispatch", dispatched.states), ("together", together.each())):
        apart = jax.tree.map(lambda one, other: float(abs(one - other).max(initial=0)), single.states, states)
        most = max(jax.tree.leaves(apart))
        print(f"  steps {name}, after {(repeats + 1) * STEPS}: at most {most:.1g} from their own run's numbers")


def further(config: str, data: str, repeats: int) -> None:
    """Seconds that a further seed takes to its first step: an experiment of its own, and as one of several seeds."""
    number = iter(range(1 << 20))

    def own() -> None:
        one = em3.Experiment(em3.load_config(config, {"data.root": data, "seed": next(number)}))
        jax.block_until_ready(one.train_step(one.init(), one.batch(0)))

    experiment = em3.Experiment(em3.load_config(config, {"data.root": data}))

    def of_several() -> None:
        runs = experiment.seeds([next(number)], together=False)
        jax.block_until_ready(runs.train_step(runs.init(), runs.batch(0)))

    variants = {"an experiment of its own": own, "one of several seeds": of_several}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for call in variants.values():
        call()
    for _ in range(repeats):
        for name, call in variants.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    for name, of in seconds.items():
        print(f"  a further seed, {name:<24} {statistics.median(of):5.2f} s ({min(of):.2f} to {max(of):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="em3_synthetic:id_only", help="a recipe")
    parser.add_argument("--data", required=True, help="its dataset folder")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=15, help=f"turns of {STEPS} steps")
    parser.add_argument("--alone", type=int, help="a process of `processes`: the seed of its run")
    args = parser.parse_args()
    if args.alone is not None:
        alone(args.config, args.data, args.alone)
        return
    steps(args.config, args.data, args.seeds, args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        compilation_cache.use(folder)
        further(args.config, args.data, repeats=3)


if __name__ == "__main__":
    main()
