"""Table 10 as Markdown, JSON and a plot: a row a model, its chosen grid point, mean and spread, and what was published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax import metrics, strict_json
from em3_jax.reproduce import pages
from em3_jax.reproduce.grids import BASELINE, CHOSEN_ON_VALIDATION, METRICS, PRINTED, Model, published_name
from em3_jax.reproduce.runs import Job

CHOICE = "recall@20"


def read(
    models: tuple[Model, ...],
    points: Mapping[tuple[str, str], Mapping[str, Job]],
    chosen: Mapping[tuple[str, str], str],
    final: Mapping[tuple[str, str], Mapping[str, Job]],
    left_out: Mapping[str, list[str]],
    seeds: int,
) -> dict[str, Any]:
    """The results of runs that are all finished, as JSON values.

    Args:
      models: rows.
      points: (dataset, model) -> name of the grid point -> its run on seed 0.
      chosen: (dataset, model) -> name of the chosen grid point.
      final: (dataset, model) -> name -> run of the chosen point, one a seed.
      left_out: dataset -> labels of models that it has no content for.
      seeds: how many.
    """
    result = {"table": 10, "file": "table10", "title": "Public evaluation", "seeds": seeds, "datasets": []}
    commits: set[str] = set()
    for dataset in dict.fromkeys(name for name, _ in points):
        rows = [
            _row(model, dataset, points[key], chosen[key], list(final[key].values()), commits)
            for model in models
            if (key := (dataset, model.name)) in points
        ]
        baseline = next((row for row in rows if row["model"] == BASELINE), None)
        for row in rows:
            _compare(row, baseline)
        result["datasets"].append({"name": dataset, "rows": rows, "left_out": left_out.get(dataset, [])})
    return result | {"commits": sorted(commits)}


def _row(
    model: Model, dataset: str, grid: Mapping[str, Job], point: str, final: list[Job], commits: set[str]
) -> dict[str, Any]:
    reports = [strict_json.loads_report((job.directory / "eval_test.json").read_text("utf-8")) for job in final]
    commits.update(str(report["commit"]) for report in reports)
    finished = {name: json.loads((job.directory / "finished.json").read_text("utf-8")) for name, job in grid.items()}
    published = published_name(dataset)
    return {
        "model": model.name,
        "label": model.label,
        "chosen": model.points()[point],
        "grid": [
            {"settings": model.points()[name], "valid": run["best_value"], "step": run["best_step"]}
            for name, run in finished.items()
        ],
        "n": reports[0]["slices"]["all"]["n"],
        "n_cold": reports[0]["slices"]["cold items"]["n"],
        "test": {metric: pages.summary([report["slices"]["all"][metric] for report in reports]) for metric in METRICS},
        "cold": pages.summary([report["slices"]["cold items"][CHOICE] for report in reports]),
        "paper": PRINTED.get(published, {}).get(model.name),
        "paper_chosen_on_validation": CHOSEN_ON_VALIDATION.get(published, {}).get(model.name),
    }


def _compare(row: dict, baseline: dict | None) -> None:
    """Adds the gain in % of the baseline's test Recall@20, and p of the paired t-test over the seeds."""
    row["gain"] = row["p"] = None
    if baseline is None or row is baseline:
        return
    own, other = row["test"][CHOICE], baseline["test"][CHOICE]
    row["gain"] = 100 * (own["mean"] / other["mean"] - 1) if other["mean"] else None
    if len(own["values"]) > 1:
        row["p"] = metrics.paired_t_test(own["values"], other["values"]).p


def markdown(result: dict[str, Any], command: str) -> str:
    """The page."""
    lines = [f"# Table 10: {result['title']}", ""]
    for dataset in result["datasets"]:
        title = f"## {dataset['name']}, {dataset['rows'][0]['n']:,} test users"
        lines += [title, "", *_table(dataset["rows"])]
        if dataset["left_out"]:
            lines += ["", f"Not run, for want of item features: {', '.join(dataset['left_out'])}."]
        lines += ["", *_grids(dataset["rows"]), ""]
    lines += [
        f"Test split; {result['seeds']} seeds: mean ± standard deviation. Validation chose the step of each run. Where a "
        "grid was tried, each point ran on seed 0; the one with the best Recall@20 on validation ran on all seeds, and "
        "test was opened for it alone. Gain and p (paired t-test over the seeds, not corrected for the number of rows) "
        "are of Recall@20 against FREEDOM. Paper: as printed, chosen by the score on test, one seed. Logs: what the logs "
        "released with it score on test at the grid point that validation chooses.",
        "",
        f"    {command}",
        "",
        "![table 10](table10.png)",
        "",
        f"Commit of the runs: {', '.join(result['commits'])}",
    ]
    return "\n".join(lines) + "\n"


def _grids(rows: list[dict]) -> list[str]:
    tried = [row for row in rows if len(row["grid"]) > 1]
    if not tried:
        return ["No grid was tried: every model ran with the settings of its config."]
    points = {
        row["label"]: [f"{_settings(point['settings'])}: {point['valid']:.4f}" for point in row["grid"]]
        for row in tried
    }
    return [
        "Recall@20 on validation of every grid point (seed 0):",
        "",
        *(f"- {label}: {'; '.join(values)}" for label, values in points.items()),
    ]


def _table(rows: list[dict]) -> list[str]:
    names = {"recall": "R", "ndcg": "N"}
    short = [f"{names[metric.partition('@')[0]]}@{metric.partition('@')[2]}" for metric in METRICS]
    header = ["model", "chosen on validation", *short, "gain", "p", f"R@20, {rows[0]['n_cold']:,} users of cold items"]
    header += [f"paper: {name}" for name in short] + ["logs: R@20", "logs: N@20"]
    lines = []
    for row in rows:
        cells = [row["label"], _settings(row["chosen"])]
        cells += [pages.mean(row["test"][metric]) for metric in METRICS]
        cells += [
            f"{row['gain']:+.1f} %" if row["gain"] is not None else "-",
            _number(row["p"], ".2g"),
            pages.mean(row["cold"]),
        ]
        cells += [_number(value, ".4f") for value in row["paper"] or [None] * len(METRICS)]
        cells += [_number(value, ".4f") for value in row["paper_chosen_on_validation"] or (None, None)]
        lines.append(cells)
    return pages.table(header, lines)


def _settings(changes: Mapping[str, Any]) -> str:
    """ "queries 1, dropout 0.5" of a grid point."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in changes.items()) or "-"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else f"{value:{form}}"


def plot(result: dict[str, Any], path: Path) -> None:
    """Test Recall@20 of all rows, the paper's beside it."""
    choice = METRICS.index(CHOICE)
    panels = {
        dataset["name"]: [
            pages.Bar(row["label"], np.array(row["test"][CHOICE]["values"]), row["paper"] and row["paper"][choice])
            for row in dataset["rows"]
        ]
        for dataset in result["datasets"]
    }
    pages.plot(panels, f"Recall@20 on test (n = {result['seeds']} seeds)", path)


def write(result: dict[str, Any], out: Path, command: str) -> str:
    """Writes table10.md, .json and .png to `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    page = markdown(result, command)
    plot(result, out / "table10.png")
    pages.write(result, page, command, out)
    return page
