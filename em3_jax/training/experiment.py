"""A config made into what it stands for: the work of its task, and the program.

All commands build the same from the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
from ml_collections import ConfigDict

from em3_jax.config import parse, schema
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.types import State
from em3_jax.data.format import Dataset
from em3_jax.tasks.lemur.setup import lemur
from em3_jax.tasks.pretraining.setup import pretraining
from em3_jax.tasks.ranking.setup import ranking
from em3_jax.tasks.retrieval.setup import retrieval
from em3_jax.tasks.work import Report, Work
from em3_jax.training.program import Program, make_layout, make_program

AnyConfig = TypeVar("AnyConfig", bound=schema.Config)
TASKS = {"ranking": ranking, "lemur": lemur, "pretraining": pretraining, "retrieval": retrieval}


@dataclass(frozen=True)
class Experiment:
    """What a config stands for.

    Attributes:
      config: the config.
      work: the dataset, its batches, what is optimized and how it is measured.
      program: the functions that run on the devices.
    """

    config: schema.Config
    work: Work
    program: Program

    @property
    def feature_hashes(self) -> dict[str, str]:
        """Name -> hash of the feature sets in use, "codes/<name>" -> code sets, "sought/<name>" -> by which events are sought."""
        of_codes = {f"codes/{one.name}": one.manifest["hash"] for one in self.work.code_sets}
        sought = {f"sought/{one.name}": one.manifest["hash"] for one in self.work.sought_sets}
        return {one.name: one.manifest["hash"] for one in self.work.feature_sets} | of_codes | sought

    def validate(self, state: State) -> dict[str, float]:
        """{metric: value} on validation."""
        return self.work.validate(self.program.predict_all or self.program.predict, state)

    def evaluate(self, state: State, split: str, errors: bool = True) -> Report:
        """What is measured on a split; only for a task that scores one, see `Work.evaluate`.

        Args:
          errors: whether to find how each user moves the metrics, too.
        """
        assert self.work.evaluate is not None
        return self.work.evaluate(self.program.predict_all or self.program.predict, state, split, errors)


def build(
    config: Mapping[str, Any] | ConfigDict | schema.Config,
    devices: Sequence[jax.Device] | None = None,
    dataset: Dataset | None = None,
) -> Experiment:
    """The experiment of a config.

    Args:
      devices: to choose from; None = the machine's own. On devices that are only described its
        steps can be compiled, not run.
      dataset: of clicks, where it is open already; None = that of config.data.

    Raises:
      UserError: whatever of it the user can mend, see `parse.parse` and the setup of its task.
    """
    config = parse.parse(config)
    layout = make_layout(config, devices)
    opened = () if dataset is None else (dataset,)
    work: Work = TASKS[config.task](config, layout.mesh, *opened)  # type: ignore[operator]
    if config.eval.metric not in work.headline:
        known = nearest(config.eval.metric, work.headline)
        key = f"config.eval.metric={config.eval.metric}"
        raise UserError(f"{key}: not a metric of this run; {known}")
    return Experiment(config, work, make_program(config, work, layout))


def step_cost(parts: Experiment) -> dict[str, float]:
    """{"gigaflops", "temporary_megabytes"} of the compiled training step, as XLA counts them."""
    work, program = parts.work, parts.program
    batch = program.place(work.source[0])
    compiled = program.train_step.compile(program.shapes, work.constants, batch).program
    cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
    assert cost is not None and memory is not None  # CPUs and GPUs count both
    megabytes = memory.temp_size_in_bytes / 1e6
    return {"gigaflops": cost["flops"] / 1e9, "temporary_megabytes": megabytes}


def with_all_ids(config: AnyConfig) -> AnyConfig:
    """The config where tables have a row for each id of the dataset, see `spread`."""
    if isinstance(config, schema.Retrieval) or not config.tables.capacity:
        return config
    return replace(config, tables=replace(config.tables, capacity=0))


def of_run(config: schema.Config, data_root: str | Path | None = None, dataset: Dataset | None = None) -> Experiment:
    """The experiment of a run that is there, to score with.

    It is on one device where the run's mesh does not fit this machine. A table of fixed size is one with a row for each id
    of the dataset here, see `spread`.

    Args:
      config: of the run.
      data_root: the dataset folder, if it is not where it was in training.
      dataset: of clicks, where it is open already.

    Raises:
      UserError: there is no dataset; the commands that score a run have --data for a moved one.
    """
    if config.mesh.data * config.mesh.model > len(jax.devices()):
        config = replace(config, mesh=replace(config.mesh, data=1, model=1))
    config = with_all_ids(config)
    if data_root:
        moved: Any = replace(config.data, root=str(data_root))
        config = replace(config, data=moved)
    elif not Path(config.data.root).is_dir():
        raise UserError(
            f"{config.data.root}: no such folder, but the run was trained on the dataset there; if it "
            "was moved, say where it is with --data"
        )
    return build(config, dataset=dataset)
