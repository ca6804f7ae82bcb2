"""The same search for a model and for the baseline it is compared with: as many settings each, chosen on validation.

A gain over a baseline whose settings nobody chose is a gain of the choosing. So each run that a table searches
for, the baseline as well as the model, tries the settings of its config and `count - 1` points more, drawn
from the same values of what both have (rates, dropout, weight decay of the tables) and, for a model with
content, from those of the content part: on seed 0, on validation alone. Rows that take a part away or
exchange it keep the settings of the whole.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.config import recipes
from em3_jax.core.errors import UserError
from em3_jax.metrics import METRIC_SIGNS
from em3_jax.trials import runs
from em3_jax.trials.runs import Job, PlannedRun

SPACE: Mapping[str, tuple[float, ...]] = {
    "model.backbone_settings.dropout": (0.0, 0.2, 0.4, 0.6),
    "tables.learning_rate": (0.005, 0.01, 0.02, 0.05),
    "tables.l2": (0.0, 1e-4, 1e-3, 1e-2),
    "optim.learning_rate": (3e-4, 1e-3, 3e-3),
    "model.fusion_settings.dropout": (0.0, 0.3, 0.5),
    "model.cic.weight": (0.03, 0.1, 0.3),
    "model.sqdc.weight": (0.01, 0.03, 0.1),
}
"""Setting -> values to draw from; a model draws those that it reads."""
SEED = 20240


def points(config: str, run: PlannedRun, changes: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """[count] points, each {config key: value}; the first is {}, the config as it stands.

    Args:
      config: file of the dataset's config.
      run: the run that is searched for.
      changes: config key -> value for all runs; what the user has set is not searched for.
      count: how many; fewer where the space has not so many.
    """
    own = runs.settings(config, run.variant, {})
    keys = [key for key in SPACE if key not in changes and key not in run.changes and _is_used(own, key)]
    draw = np.random.default_rng(SEED)
    result: list[dict[str, Any]] = [{}]
    size = int(np.prod([len(SPACE[key]) for key in keys]))
    standing = {key: recipes.lookup(own, key) for key in keys}
    seen = {tuple(standing.values())}
    for _ in range(20 * size):
        if len(result) >= min(count, size):
            break
        point = {key: SPACE[key][draw.integers(len(SPACE[key]))] for key in keys}
        if tuple(point.values()) not in seen:
            seen.add(tuple(point.values()))
            result.append(point)
    return result


def _is_used(config: Any, key: str) -> bool:
    """Whether a config has the key and reads it: a baseline on IDs alone has no fusion to set."""
    try:
        value = recipes.lookup(config, key)
    except UserError:
        return False
    if config.model.get("content") == "none" and key.startswith(("model.fusion_settings.", "model.cic.")):
        return False
    return bool(value) or not key.endswith(".weight")  # a part that is left out stays out


def jobs(
    needed: Mapping[str, PlannedRun], *, config: str, changes: Mapping[str, Any], data: Path, root: Path, count: int
) -> dict[str, list[tuple[dict[str, Any], Job]]]:
    """{name of a searched run: [(point, its job on seed 0)]}; arguments as of `runs.make_jobs`."""
    result = {}
    for run in needed.values():
        if run.settings_of != run.name:
            continue
        tried = []
        for number, point in enumerate(points(config, run, changes, count)):
            named = run._replace(name=f"{run.name}_point{number}", changes={**point, **run.changes})
            made = runs.make_jobs({named.name: named}, config=config, changes=changes, data=data, seeds=1, root=root)
            (job,) = made.values()
            tried.append((point, job._replace(splits=())))
        result[run.name] = tried
    return result


def chosen(tried: list[tuple[dict[str, Any], Job]]) -> dict[str, Any]:
    """The point that is best on validation; of equals the first."""
    return max(tried, key=lambda one: _sign(one[1]) * _valid(one[1]))[0]


def with_chosen(needed: Mapping[str, PlannedRun], best: Mapping[str, Mapping[str, Any]]) -> dict[str, PlannedRun]:
    """The runs with the settings that were chosen for them, or for the run whose settings they take."""
    return {
        name: run._replace(changes={**best.get(run.settings_of, {}), **run.changes}) for name, run in needed.items()
    }


def summary(tried: Mapping[str, list[tuple[dict[str, Any], Job]]]) -> dict[str, list[dict[str, Any]]]:
    """{searched run: [{"settings", "valid", "chosen"}]}, as JSON values."""
    return {
        name: [{"settings": point, "valid": _valid(job), "chosen": point == chosen(of_run)} for point, job in of_run]
        for name, of_run in tried.items()
    }


def _valid(job: Job) -> float:
    return json.loads((job.directory / "finished.json").read_text("utf-8"))["best_value"]


def _sign(job: Job) -> int:
    return METRIC_SIGNS[job.config.eval.metric]
