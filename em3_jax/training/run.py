"""A run's folder, opened: the one way from there to its config, dataset, checkpoints, state and experiment."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from em3_jax.config.schema import Config
from em3_jax.training import rundir

if TYPE_CHECKING:
    from em3_jax.core.types import State
    from em3_jax.training.checkpoint import Checkpoints
    from em3_jax.training.experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Run:
    """A training run that is there. What costs time is made when it is first asked for, and once.

    Attributes:
      folder: its --workdir.
      record: what its run.json says, see `rundir.read`.
      data_root: the dataset folder, if it was moved since training; None = where it was.
      measure: settings of config.eval to measure with in place of the run's own.
    """

    folder: Path
    record: dict[str, Any]
    data_root: str | Path | None = None
    measure: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def open(
        cls, folder: str | Path, data_root: str | Path | None = None, measure: Mapping[str, Any] | None = None
    ) -> "Run":
        """The run of a folder.

        Raises:
          UserError: there is none, or its run.json is damaged.
        """
        return cls(Path(folder), rundir.read(folder), data_root, measure or {})

    @functools.cached_property
    def config(self) -> Config:
        """Its config; what an older run has not, is the schema's default."""
        return rundir.config_of(self.folder, self.record)

    @property
    def data_hash(self) -> str:
        """Of the dataset that it was trained on, and its newest checkpoint belongs to."""
        return self.record["data_hash"]

    @functools.cached_property
    def experiment(self) -> "Experiment":
        """What its config stands for, on this machine's devices.

        Raises:
          UserError: there is no dataset; the commands that score a run have --data for one that was moved.
        """
        from em3_jax.training import experiment  # whoever only reads the record does not wait for JAX

        config: Any = self.config
        if self.measure:
            config = dataclasses.replace(config, eval=dataclasses.replace(config.eval, **self.measure))
        return experiment.of_run(config, self.data_root)

    def check_data(self, grown: bool = False) -> None:
        """Refuses a dataset, feature sets or own files other than those of the run; arguments as of `rundir.check_data`."""
        parts = self.experiment
        rundir.check_data(self.folder, self.record, parts.work.dataset.meta["data_hash"], parts.feature_hashes, grown)

    @functools.cached_property
    def checkpoints(self) -> "Checkpoints":
        """Those of its folder."""
        from em3_jax.training.checkpoint import Checkpoints

        return Checkpoints(self.folder, self.data_hash)

    def state(self, step: int | None = None) -> "State":
        """The state of a checkpoint, on the devices of `experiment`.

        Args:
          step: of the checkpoint; None = the best on validation.

        Raises:
          UserError: there is no such checkpoint, or it belongs to another dataset or model.
        """
        return restored(self, self.experiment, step)


def restored(run: Run, parts: "Experiment", step: int | None = None) -> "State":
    """The state of a checkpoint of a run, as `parts`, which is made of its config, has it; see `Run.state`."""
    from em3_jax.training import spread

    if tables := spread.fixed_tables(run.folder):
        return spread.restore(tables, run.folder, parts, step)
    return run.checkpoints.restore(parts.program.shapes, step)[0]
