"""Runs that a table or a verdict needs: each once a seed; finished ones are reused, interrupted ones go on."""

import concurrent.futures as futures
import contextlib
import functools
import json
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.config import parse, recipes, sections
from em3_jax.config.schema import Config
from em3_jax.core import paths, strict_json, terminal
from em3_jax.core.errors import UserError
from em3_jax.data.format import ADDED, open_dataset
from em3_jax.export import vectors
from em3_jax.features.prior import prior
from em3_jax.training import experiment
from em3_jax.training.run import Run
from em3_jax.trials import worker


class PlannedRun(NamedTuple):
    """A training run, but for its seed.

    Attributes:
      name: of its folder.
      variant: argument of the config file: the names in `--config=file.py:name,name`.
      changes: config key -> value, after the variant.
      init_from: name of the run whose best it starts from.
      vectors_of: name of the run whose exported vectors are its only feature set.
      settings_of: name of the run whose search chooses its settings, its own where it is one that others are
        compared with or take theirs from; "" = those of the config.
      overlaid: whether it reads the `overlay` of the dataset that lies beside the runs, in `data`.
      config: file of its config; "" = that of the other runs.
    """

    name: str
    variant: str = ""
    changes: Mapping[str, Any] = {}
    init_from: str = ""
    vectors_of: str = ""
    settings_of: str = "em3"
    overlaid: bool = False
    config: str = ""


class Job(NamedTuple):
    """A run with its seed; everything a process needs to know of it.

    Attributes:
      name: of its folder in `root`; no two jobs share it.
      config: resolved, plain values.
      needs: names of the jobs that must be finished before.
      vectors_of: job whose vectors to export first, into the dataset folder that the config reads.
      splits: those to score when it has trained.
      cost: whether to note what its compiled step costs.
    """

    name: str
    root: str
    config: Config
    needs: tuple[str, ...]
    vectors_of: str
    splits: tuple[str, ...]
    cost: bool = False

    @property
    def directory(self) -> Path:
        return Path(self.root) / self.name

    def is_finished(self) -> bool:
        """Whether its result is there; refuses a folder that belongs to another config."""
        if not (self.directory / "run.json").exists():
            return False
        changed = sections.differences(_comparable(Run.open(self.directory).config), _comparable(self.config))
        if changed:
            raise UserError(
                f"{self.directory}: made with another config ({'; '.join(changed[:3])}); choose another --out, or delete it"
            )
        wanted = ["finished.json", *(f"eval_{split}.json" for split in self.splits)]
        return all((self.directory / name).exists() for name in wanted)


def _comparable(config: Config) -> dict:
    plain = parse.plain(config)
    plain["data"].pop("root")
    plain["train"].pop("init_from")
    return plain


def settings(config: str, variant: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The config of a file and variant with some keys changed."""
    result = recipes.load(config, variant, str(changes.get("data.root", "")))
    for key, value in changes.items():
        recipes.change(result, key, value)
    return result


def resolved(config: str, variant: str, changes: Mapping[str, Any]) -> Config:
    """The same, checked."""
    return parse.parse(settings(config, variant, changes))


def make_jobs(
    runs: Mapping[str, PlannedRun],
    *,
    config: str,
    changes: Mapping[str, Any],
    data: Path,
    seeds: int,
    root: Path,
    cost: bool = False,
    splits: tuple[str, ...] = ("test",),
) -> dict[str, Job]:
    """{job name: Job} of all runs and seeds.

    Args:
      config: file of the dataset's config.
      changes: config key -> value for all runs, but where a run's variant has a value of its own, or no such key.
      data: dataset folder.
      root: where the runs' folders go.
      cost: whether to note what a run's compiled step costs, once a run.
      splits: those that runs on clicks score.
    """
    jobs = {}
    for seed in range(seeds):
        for run in runs.values():
            own = {"data.root": str(data), "seed": seed}
            if run.init_from:
                own["train.init_from"] = str(root / f"{run.init_from}-{seed}")
            if run.overlaid or run.vectors_of:
                own |= {"data.root": str(root / "data")}
            if run.vectors_of:
                own |= {"data.features": (vector_set(run.vectors_of, seed),)}
            file = run.config or config
            wanted = {key: value for key, value in changes.items() if takes(file, run.variant, key)}
            made = resolved(file, run.variant, {**wanted, **run.changes, **own})
            needs = tuple(f"{name}-{seed}" for name in (run.init_from, run.vectors_of) if name)
            vectors_of = f"{run.vectors_of}-{seed}" if run.vectors_of else ""
            scored = splits if made.task in ("ranking", "lemur") else ()
            name = f"{run.name}-{seed}"
            job = Job(name, str(root), made, needs, vectors_of, scored, cost and not seed)
            jobs[job.name] = job
    return jobs


@functools.cache
def set_by_variant(config: str, variant: str) -> frozenset[str]:
    """The keys that a variant of a config sets: one pass online is one pass, however many epochs the others take."""
    plain, own = (recipes.load(config, name).to_dict() for name in ("", variant))
    return frozenset(line.partition(":")[0].removeprefix("config.") for line in sections.differences(plain, own))


def takes(config: str, variant: str, key: str) -> bool:
    """Whether a change of a key that the config has is one for its variant, too: a baseline has no encoder to change."""
    try:
        recipes.lookup(recipes.load(config, variant), key)
    except UserError:
        return False
    return key not in set_by_variant(config, variant)


def check_content(jobs: Iterable[Job], hint: str) -> None:
    """Refuses, before anything is run, what the dataset does not have of the content that a run reads.

    Args:
      jobs: all that are planned; those that read what another one is yet to export are passed over.
      hint: what to do about it where not all of them lack it, "{others}" in it for those that do not.

    Raises:
      UserError: a feature set or the item field of the encoders is not there; with the runs' names.
    """
    lacking: dict[str, list[str]] = {}
    for job in jobs:
        try:
            _open_content(job)
        except UserError as error:
            lacking.setdefault(str(error), []).append(_planned(job))
        else:
            lacking.setdefault("", []).append(_planned(job))
    others = lacking.pop("", [])
    if lacking:
        of_each = [f"{', '.join(dict.fromkeys(runs))}: {error}" for error, runs in lacking.items()]
        problems = "; ".join(of_each)
        advice = hint.format(others=",".join(dict.fromkeys(others))) if others else ""
        raise UserError(f"{problems}{advice}")


def _planned(job: Job) -> str:
    """The name of the planned run, without the seed."""
    return job.name.rpartition("-")[0]


def _open_content(job: Job) -> None:
    """Opens the feature sets that a job reads, and the field that its encoders are told."""
    model: Any = job.config.model
    if job.vectors_of or getattr(model, "content", "") == "none":
        return
    dataset = open_dataset(paths.local(job.config.data.root))
    for name in job.config.data.features:
        dataset.features(name.partition("[")[0])
    prior(dataset, getattr(model, "encoder_prior", ""))


def vector_set(run: str, seed: int) -> str:
    """Name of the feature set of a run's vectors."""
    return f"vectors_{run}_{seed}"


def overlay(data: Path, root: Path, apart: Container[str] = ()) -> Path:
    """A dataset folder of links to all of `data`, to which feature sets and codes can be added without touching it.

    Args:
      data: the dataset folder.
      root: the folder to make.
      apart: names of feature sets to leave out.
    """
    added = [path for folder in ADDED for path in sorted((data / folder).glob("[!.]*"))]
    sets = [path for path in added if path.name not in apart]
    for path in [p for p in data.iterdir() if p.name not in ADDED] + sets:
        link = root / path.relative_to(data)
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.absolute())
    return root


def execute(job: Job) -> str:
    """Trains and evaluates; returns "" or the signal that stopped it. What it prints goes to <run>/log.txt."""
    job.directory.mkdir(parents=True, exist_ok=True)
    with (
        open(job.directory / "log.txt", "a", encoding="utf-8") as log,
        contextlib.redirect_stdout(log),
        contextlib.redirect_stderr(log),
    ):
        if job.vectors_of:
            name = job.config.data.features[0]
            if not (Path(job.config.data.root) / "features" / name).exists():
                vectors.export_vectors(Path(job.root) / job.vectors_of, name, job.config.data.root)
        began = time.perf_counter()
        train.prepare_process(job.config.train)
        result = train.train(job.config, job.directory)
        if result["stopped_by"].startswith("SIG"):
            return result["stopped_by"]
        for split in job.splits:
            evaluation.evaluate(job.directory, split)
    if job.cost:
        result |= {"cost": _cost(job)}
    path = job.directory / "finished.json"
    if not path.exists():  # or it was trained before, and only its evaluation was missing
        temporary = job.directory / "finished.tmp"
        temporary.write_text(strict_json.dumps(result | {"seconds": time.perf_counter() - began}), encoding="utf-8")
        os.replace(temporary, path)
    return ""


def _cost(job: Job) -> dict[str, float]:
    """{"gigaflops", "temporary_megabytes", "milliseconds"} of a training step: compiled, and as the run's log has it."""
    cost = experiment.step_cost(experiment.build(job.config))
    lines = [json.loads(line) for line in (job.directory / "metrics.jsonl").read_text("utf-8").splitlines()]
    speed = [line["time/examples_per_second"] for line in lines if "time/examples_per_second" in line]
    return cost | {"milliseconds": 1e3 * job.config.data.batch_size / statistics.median(speed)}


def run_all(jobs: Mapping[str, Job], parallel: int, say=print) -> None:
    """Runs the jobs, each after those it needs, `parallel` at once, and says how far it is.

    Raises:
      UserError: a run failed; the others of that moment are finished first.
      KeyboardInterrupt: SIGINT or SIGTERM came; the runs in progress have saved their state.
    """
    waiting = {name: job for name, job in jobs.items() if not job.is_finished()}
    done = set(jobs) - set(waiting)
    if jobs:
        count = f"{len(jobs):,} run{'s' * (len(jobs) > 1)}"
        say(f"{count}: {len(done):,} finished before, {len(waiting):,} to do", flush=True)
    if not waiting:
        return
    began, finished = time.perf_counter(), 0
    running: dict[futures.Future[str], Job] = {}
    context = multiprocessing.get_context("spawn")
    before = {number: signal.signal(number, _interrupt) for number in _STOPPING}
    initargs = (context.Value("i", 0), parallel)
    with futures.ProcessPoolExecutor(parallel, context, initializer=worker.begin, initargs=initargs) as pool:
        try:
            while waiting or running:
                for job in ready(waiting.values(), set(jobs) - done)[: parallel - len(running)]:
                    running[pool.submit(execute, waiting.pop(job.name))] = job
                for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                    job = running.pop(future)
                    _check(job, future)
                    done.add(job.name)
                    finished += 1
                    left = (time.perf_counter() - began) / finished * (len(waiting) + len(running))
                    say(
                        f"[{len(done)}/{len(jobs)}] {job.name}: {_result(job)}, {terminal.duration(left)} left",
                        flush=True,
                    )
        except KeyboardInterrupt:
            for process in multiprocessing.active_children():
                assert process.pid is not None  # those that run have one
                os.kill(process.pid, signal.SIGTERM)  # each saves its state and leaves
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def ready(waiting: Iterable[Job], to_do: Container[str]) -> list[Job]:
    """The jobs that need none of those that are still to do; what else they need was run before."""
    return [job for job in waiting if not any(name in to_do for name in job.needs)]


_STOPPING = (signal.SIGTERM, signal.SIGINT)


def _interrupt(*_) -> None:
    """Once: a second one, while the runs save their state, would leave a pool that waits for ever."""
    for number in _STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _check(job: Job, future: futures.Future) -> None:
    try:
        stopped_by = future.result()
    except UserError as error:
        raise UserError(f"run {job.name}: {error}") from None
    except Exception as error:
        log = job.directory / "log.txt"
        raise UserError(f"run {job.name}: {type(error).__name__}: {error}; see {log}; run again to go on") from error
    if stopped_by:
        raise KeyboardInterrupt


def _result(job: Job) -> str:
    finished = json.loads((job.directory / "finished.json").read_text("utf-8"))
    return (
        f"{job.config.eval.metric} on validation {finished['best_value']:.4f}, {terminal.duration(finished['seconds'])}"
    )
