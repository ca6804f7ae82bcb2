"""Runs that a protocol opens, and such that it trains: one after another in this process."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from em3_jax.config.schema import Config, OnClicks, Ranking, Retrieval
from em3_jax.core import strict_json
from em3_jax.core.errors import UserError
from em3_jax.core.types import State
from em3_jax.training import experiment, rundir
from em3_jax.training.run import Run, restored
from em3_jax.trials.runs import Job, execute


class Opened(NamedTuple):
    """A run that is there.

    Attributes:
      run: its folder and record.
      config: as it was trained.
      parts: what that stands for, on this machine.
      state: to score with.
    """

    run: Run
    config: OnClicks
    parts: experiment.Experiment
    state: State


def ranking(directory: str | Path, data_root: str | Path | None = None) -> tuple[Run, Ranking]:
    """(the run of a folder, its config); refuses one that is no ranking run."""
    run = Run.open(directory, data_root)
    config = run.config
    if not isinstance(config, Ranking) or config.task != "ranking":
        raise UserError(f"{directory}: a run of task {config.task}; this is for runs of task ranking")
    return run, config


def scoring(directory: str | Path, data_root: str | Path | None = None) -> tuple[Run, OnClicks]:
    """(the run of a folder, its config); refuses one that scores no rows: of retrieval, or of pretraining."""
    run = Run.open(directory, data_root)
    config = run.config
    if isinstance(config, Retrieval) or config.task == "pretraining":
        raise UserError(f"{directory}: a run of task {config.task}; this is for runs of task ranking and lemur")
    return run, config


def opened(run: Run, config: Ranking) -> Opened:
    """The best step of a run, its data checked, as `em3 eval` opens it.

    Raises:
      UserError: its first label is an amount, and protocols measure clicks.
    """
    run.check_data()
    check_clicks(run, config)
    return Opened(run, config, run.experiment, run.state())


def check_clicks(run: Run, config: Ranking) -> None:
    """Refuses a run whose first label is an amount: there is no AUC to lose."""
    if run.experiment.work.task.labels.first:
        raise UserError(f"{run.folder}: learns the amount {config.data.label}; this is for runs of labels of 0 and 1")


def opened_on_host(run: Run, config: OnClicks, step: int | None = None) -> Opened:
    """The same on one device, whatever the mesh, with features that come with the batches.

    Args:
      run, config: of `ranking` or `scoring`.
      step: checkpoint to score; the best on validation by default.
    """
    data: Any = dataclasses.replace(config.data, placement="host")
    mesh = dataclasses.replace(config.mesh, data=1, model=1)
    parts = experiment.of_run(dataclasses.replace(config, data=data, mesh=mesh), run.data_root)
    rundir.check_data(run.folder, run.record, parts.work.dataset.meta["data_hash"], parts.feature_hashes)
    return Opened(run, config, parts, restored(run, parts, step))


def finish(config: Config, directory: Path, split: str, say=print) -> None:
    """Trains and evaluates a run, or what of it is missing; what it prints goes to <run>/log.txt.

    It goes on with a run that was killed.

    Raises:
      UserError: the folder belongs to another config; the run cannot be trained.
      KeyboardInterrupt: a signal came; the run has saved its state.
    """
    job = Job(directory.name, str(directory.parent), config, (), "", (split,))
    if job.is_finished():
        say(f"{job.name}: finished before", flush=True)
        return
    try:
        stopped_by = execute(job)
    except UserError as error:
        raise UserError(f"run {job.name}: {error}") from None
    if stopped_by:
        raise KeyboardInterrupt
    found = json.loads((directory / "finished.json").read_text(encoding="utf-8"))
    best = f"best {config.eval.metric} on validation {found['best_value']:.4f} at step {found['best_step']:,}"
    say(f"{job.name}: {best}, {found['seconds']:.0f} s", flush=True)


def with_data(config: Config, root: Path) -> Config:
    """The config with the dataset folder `root`."""
    data: Any = dataclasses.replace(config.data, root=str(root))
    return dataclasses.replace(config, data=data)


def require_same(path: Path, facts: Mapping[str, Any], hint: str) -> None:
    """Writes what a folder was made from, or makes sure that it is the same as what is there.

    Raises:
      UserError: it was made from something else.
    """
    facts = json.loads(strict_json.dumps(facts))
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(strict_json.dumps(facts), encoding="utf-8")
        temporary.replace(path)
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise UserError(f"{path}: not valid JSON; {hint}") from None
    changed = sorted(name for name in {*facts, *there} if facts.get(name) != there.get(name))
    if changed:
        name = changed[0]
        raise UserError(f"{path}: {name} was {there.get(name)} and is {facts.get(name)}; {hint}")
