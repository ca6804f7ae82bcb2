"""Several seeds of one experiment: a run of each, one after the other by the same compiled program, or all in one step.

Letter: K seeds.
"""

import operator
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.config import parse
from em3_jax.core.errors import UserError
from em3_jax.core.types import Batch, State
from em3_jax.features import scratch_encoders
from em3_jax.training import experiment

States = tuple[State, ...] | State
"""Of all seeds: of each one in turn, or stacked along a first axis [K, ...]."""
Batches = tuple[Batch, ...] | Batch
"""The same of batches."""


class OfOneSeed(Protocol):
    """What several seeds need of an `Experiment`."""

    parts: experiment.Experiment

    def init(self, seed: int | None = None) -> State: ...

    def evaluate(self, state: State, split: str = "valid") -> dict[str, dict[str, float]]: ...


class Seeds:
    """K runs of an experiment that differ by their seed: by parameters, dropout, drawn negatives and the order of batches.

    Each is the run of its own that config.seed makes of it, to the bit where the seeds take turns. Together they differ from
    it by rounding: products and sums of K runs at once add up in another order. A step moves apart by that what has no
    gradient but rounding, such as the bias of an attention's keys, and in the steps after it the rest follows slowly, as
    between two kinds of machine.

    Args:
      of: the experiment that they are runs of.
      seeds: whole numbers from 0, each of them once.
      together: whether a step is one of all seeds, under `jax.vmap`. None = on accelerators, whose small programs wait for
        their start; on CPUs that is no gain over turns, see benchmarks/NOTES.md.

    Attributes:
      seeds: the same.
      together: the same.

    Raises:
      UserError: no seed, one that is none or occurs twice; several devices together; encoders that begin from scratch,
        which are drawn with the experiment.
    """

    def __init__(self, of: OfOneSeed, seeds: Iterable[int], together: bool | None = None):
        self.seeds = _checked(seeds)
        work, program = of.parts.work, of.parts.program
        encoders = getattr(of.parts.config.model, "encoders", {})
        for name in work.encoders:
            if scratch_encoders.is_scratch(encoders[name]):
                raise UserError(
                    f"seeds: encoder {encoders[name]} of '{name}' is drawn by config.seed; make an Experiment of each seed"
                )
        one_device = program.mesh.size == 1
        if together and not one_device:
            raise UserError(f"seeds: together=True is for one device, and there are {program.mesh.size}; leave it out")
        on_cpu = program.mesh.devices.flat[0].platform == "cpu"
        self.together = one_device and not on_cpu if together is None else together
        self._of, self._constants = of, work.constants
        self._sources = [work.source.of_seed(seed) for seed in self.seeds]
        self._in_turn, self._roots = program.train_step.jitted, [jax.random.key(seed) for seed in self.seeds]
        self._at_once = program.train_seeds(self.seeds)

    def init(self) -> States:
        """Fresh states, see `Experiment.init`."""
        return self._gathered([self._of.init(seed) for seed in self.seeds])

    def batch(self, step: int) -> Batches:
        """The batches of a step, on the devices: of each seed that of its own run.

        Together they are stacked, but where one of them needs more room than the others, as its items are more.

        Args:
          step: 0 or more; batches go on without end, epoch after epoch.
        """
        place = self._of.parts.program.place
        batches = [source[step_number(step)] for source in self._sources]
        shapes = [jax.tree.map(np.shape, batch) for batch in batches]
        if self.together and shapes.count(shapes[0]) == len(shapes):
            return place(jax.tree.map(lambda *arrays: np.stack(arrays), *batches), stacked=True)
        return tuple(map(place, batches))

    def train_step(self, states: States, batches: Batches) -> tuple[States, dict[str, jax.Array]]:
        """(the states after one step, what `train.py` logs of each, [K] f32); see `Experiment.train_step`.

        Args:
          states: are used up: their memory becomes that of the next ones.
          batches: of `batch`.
        """
        if isinstance(states, State) and not isinstance(batches, tuple):
            return self._at_once(states, self._constants, batches)
        each = [self._one(states, k) for k in range(len(self.seeds))]
        runs = zip(self._roots, each, batches, strict=True)
        stepped = [self._in_turn(root, state, self._constants, batch) for root, state, batch in runs]
        scalars = jax.tree.map(lambda *values: jnp.stack(values), *(of for _, of in stepped))
        return self._gathered([state for state, _ in stepped]), scalars

    def state(self, states: States, seed: int) -> State:
        """The state of one seed: what `Experiment` evaluates, explains and trains on.

        Raises:
          UserError: it is none of the seeds.
        """
        if seed not in self.seeds:
            raise UserError(f"state: {seed} is none of the seeds {', '.join(map(str, self.seeds))}")
        return self._one(states, self.seeds.index(seed))

    def evaluate(self, states: States, split: str = "valid") -> dict[int, dict[str, dict[str, float]]]:
        """{seed: {slice: {metric: value}}} of a split, each as `Experiment.evaluate` has it."""
        return {seed: self._of.evaluate(self.state(states, seed), split) for seed in self.seeds}

    def _gathered(self, states: list[State]) -> States:
        """States of the seeds as they are trained."""
        if not self.together:
            return tuple(states)
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def _one(self, states: States, k: int) -> State:
        """The state of seed number k."""
        return states[k] if isinstance(states, tuple) else jax.tree.map(lambda leaf: leaf[k], states)


def _checked(seeds: Iterable[int]) -> tuple[int, ...]:
    """The seeds, which have to be such, and distinct."""
    kind: Any = parse.kind_of("seed")
    given = tuple(seeds) if isinstance(seeds, Iterable) else ()
    if not given:
        raise UserError("seeds: there is none; give one or more, such as (0, 1, 2)")
    given = tuple(int(seed) if isinstance(seed, np.integer) else seed for seed in given)
    for seed in given:
        if not kind.holds(seed):
            raise UserError(f"seeds: {parse.shown(seed)} is none; each is {kind.words}")
        if given.count(seed) > 1:
            raise UserError(f"seeds: {seed} is there {given.count(seed)} times; give each of them once")
    return given


def step_number(step: int) -> int:
    """The number of a training step.

    Raises:
      UserError: it is below 0.
    """
    number = operator.index(step)
    if number < 0:
        raise UserError(f"batch({step}): steps count from 0")
    return number
