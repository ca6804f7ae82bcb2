"""A config made into an experiment whose steps are called one by one, in a notebook or a script."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from em3_jax import train
from em3_jax.config import parse, schema
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.types import Batch, State
from em3_jax.data.format import SPLITS
from em3_jax.evaluation import labels
from em3_jax.notebook.explain import Explained, Explanation, explanation, make_explained
from em3_jax.notebook.seeds import Seeds, step_number
from em3_jax.notebook.tree import model_tree
from em3_jax.training import endless, experiment, warm_start


class Experiment:
    """What a config stands for: its dataset, its model and its steps.

    >>> import em3_jax as em3
    >>> config = em3.load_config("em3_synthetic", {"data.root": "data/synthetic"})
    >>> experiment = em3.Experiment(config)
    >>> state = experiment.init()
    >>> for step in range(3):
    ...     state, scalars = experiment.train_step(state, experiment.batch(step))
    >>> int(state.step), sorted(scalars)[:2]
    (3, ['cic_accuracy', 'cic_loss'])
    >>> 0 < experiment.evaluate(state, "valid")["all"]["auc"] < 1
    True

    What is printed of it is its model as a tree. Nothing is written: `em3_jax.train.train(config, folder)`
    is the loop of `train.py`, with checkpoints, from which `eval.py` and all else goes on.

    Args:
      config: of `load_config`, or what `parse.parse` takes.

    Attributes:
      config: the same, checked.
      parts: what it is made of: `work`, with the dataset and its batches, and `program`.

    Raises:
      UserError: a setting contradicts another or the dataset, or the config is of a stream.
    """

    def __init__(self, config: Mapping[str, Any] | ConfigDict | schema.Config):
        parsed = parse.parse(config)
        warm_start.check(parsed.train)
        if not isinstance(parsed, schema.Retrieval):
            endless.check(parsed)
            if parsed.stream is not None:
                raise UserError("config.stream: a stream has no steps to call one by one; train it with `em3 train`")
        train.prepare_process(parsed.train)
        self.config = parsed
        self.parts = experiment.build(parsed)

    def init(self, seed: int | None = None) -> State:
        """A fresh state, or with config.train.init_from one that begins with what another run has learnt.

        Args:
          seed: of parameters and tables; None = config.seed. Batches and dropout are config.seed's
            in any case.
        """
        state, settings = self.parts.program.init(seed), self.config.train
        if settings.init_from:
            data_hash = self.parts.work.dataset.meta["data_hash"]
            state = warm_start.warm_start(state, settings.init_from, data_hash, settings.init_parts)
        return state

    def batch(self, step: int) -> Batch:
        """The training batch of a step, on the devices, by the names and shapes of `core.batch`.

        Args:
          step: 0 or more; batches go on without end, epoch after epoch.
        """
        return self.parts.program.place(self.parts.work.source[step_number(step)])

    def train_step(self, state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        """(the state after one step, what `train.py` logs of it, each [] f32): the step of `train.py`, to the bit.

        Args:
          state: is used up: its memory becomes that of the next one.
          batch: of `batch`.
        """
        return self.parts.program.train_step(state, self.parts.work.constants, batch)

    def evaluate(self, state: State, split: str = "valid") -> dict[str, dict[str, float]]:
        """{slice: {metric: value}} of a split, as `eval.py` has it; "label <name>" for further labels.

        Args:
          state: any; it is not used up.
          split: "train", "valid" or "test".

        Raises:
          UserError: there is no such split, or the task scores none.
        """
        if split not in SPLITS:
            raise UserError(f"evaluate: no split '{split}'; {nearest(split, SPLITS)}")
        if self.parts.work.evaluate is None:
            raise UserError(
                f"evaluate: task {self.config.task} scores no split; experiment.parts.validate(state) measures it"
            )
        report = self.parts.evaluate(state, split, errors=False)
        return report.slices | {labels.slice_of(name): dict(of) for name, of in report.labels.items()}

    def seeds(self, seeds: Iterable[int], together: bool | None = None) -> Seeds:
        """Runs of several seeds, with `init`, `batch`, `train_step` and `evaluate` of all of them; arguments as of `Seeds`."""
        return Seeds(self, seeds, together)

    def explain(self, state: State, batch: Batch, example: int | None = None) -> Explanation:
        """What the model looks at in a batch, see `Explanation`.

        Args:
          state: any; it is not used up.
          batch: of `batch`, B examples.
          example: the one of these whose logit the gradients are of; None = the sum of all.

        Raises:
          UserError: the task scores no single examples, or there are several devices.
        """
        return explanation(self.parts, self._explained, state, batch, example)

    @functools.cached_property
    def _explained(self) -> Explained:
        return make_explained(self.parts)

    def tree(self) -> str:
        """The model as a tree: modules, shapes by letters, and how many parameters each has."""
        return model_tree(self.parts)

    def __repr__(self) -> str:
        return self.tree()
