"""Runs table 10: each grid point on seed 0, the one that validation chooses on all seeds. Test is opened for that one alone."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from em3_jax.config import recipes
from em3_jax.core.errors import UserError
from em3_jax.data.format import open_dataset
from em3_jax.trials import runs
from em3_jax.trials.runs import Job
from reproduce import retrieval_report
from reproduce.grids import MODELS, Model

CONFIG = "configs/retrieval.py"


def reproduce(
    data: list[str],
    seeds: int,
    out: str,
    *,
    config: str,
    changes: Mapping[str, Any],
    parallel: int,
    command: str,
    models: tuple[Model, ...] = MODELS,
) -> str:
    """Runs what is missing, writes table10.md, .json and .png to `out`, and returns the page.

    Args:
      data: dataset folders, made without --as-clicks.
      seeds: 0 to seeds - 1.
      out: folder of the report and, in `runs`, of the runs.
      config: config file whose argument is the model.
      changes: config key -> value for all runs.
      parallel: runs at once.
      command: to print on the page.
      models: rows of the table with their grids.
    """
    if seeds < 1 or parallel < 1:
        raise UserError("--seeds and --jobs: must be at least 1")
    folders = {Path(path).absolute().name: Path(path) for path in data}
    if len(folders) < len(data):
        raise UserError(f"--data {','.join(data)}: folders of the same name; rename one")
    root = Path(out) / "runs"
    left_out: dict[str, list[str]] = {}
    points: dict[tuple[str, str], dict[str, Job]] = {}  # (dataset, model) -> grid point -> its run on seed 0
    for name, path in folders.items():
        has_content = any(folder.is_dir() for folder in (open_dataset(path).root / "features").glob("[!.]*"))
        for model in models:
            if recipes.load(config, model.name).data.features and not has_content:
                left_out.setdefault(name, []).append(model.label)
                continue
            points[name, model.name] = {
                point: _job(config, model, point, {**changes, **own}, path, root / name, 0)
                for point, own in model.points().items()
            }
    _run(points.values(), parallel)
    by_name = {model.name: model for model in models}
    final: dict[tuple[str, str], dict[str, Job]] = {}  # (dataset, model) -> chosen grid point and seed -> its run
    chosen = {key: max(jobs, key=lambda point: _valid(jobs[point])) for key, jobs in points.items()}
    for (name, model_name), point in chosen.items():
        model = by_name[model_name]
        settings = {**changes, **model.points()[point]}
        made = [_job(config, model, point, settings, folders[name], root / name, seed) for seed in range(seeds)]
        final[name, model_name] = {job.name: job._replace(splits=("test",)) for job in made}
    _run(final.values(), parallel)
    result = retrieval_report.read(models, points, chosen, final, left_out, seeds)
    return retrieval_report.write(result, Path(out), command)


def _run(groups: Iterable[Mapping[str, Job]], parallel: int) -> None:
    runs.run_all({job.name: job for jobs in groups for job in jobs.values()}, parallel)


def _job(config: str, model: Model, point: str, changes: Mapping[str, Any], data: Path, root: Path, seed: int) -> Job:
    """The run of a grid point, in the folder <root>/<point>-<seed>; its name tells the dataset too."""
    own = {"data.root": str(data), "seed": seed}
    made = runs.resolved(config, model.name, {**changes, **own})
    return Job(f"{root.name}/{point}-{seed}", str(root.parent), made, (), "", ())


def _valid(job: Job) -> float:
    """The best of the run's metric on validation."""
    return json.loads((job.directory / "finished.json").read_text("utf-8"))["best_value"]
