"""Table 10 as Markdown, JSON and a plot: a row a model, its chosen grid point, mean and spread, and what was published."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.evaluation import compare
from em3_jax.trials.runs import Job
from reproduce import pages
from reproduce.grids import BASELINE, CHOSEN_ON_VALIDATION, METRICS, PRINTED, Model, published_name

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
    result: dict[str, Any] = {"table": 10, "file": "table10", "title": "Public evaluation"}
    result |= {"seeds": seeds, "datasets": []}
    commits: set[str] = set()
    for dataset in dict.fromkeys(name for name, _ in points):
        own = [model for model in models if (dataset, model.name) in points]
        tested = {
            model.name: compare.of_runs(
                model.label, [job.directory for job in final[dataset, model.name].values()], "test"
            )
            for model in own
        }
        compare.check_paired(list(tested.values()))
        commits.update(str(report["commit"]) for runs in tested.values() for report in runs.reports)
        rows = []
        for model in own:
            key = dataset, model.name
            rows.append(_row(model, dataset, points[key], chosen[key], tested[model.name], tested.get(BASELINE)))
        result["datasets"].append({"name": dataset, "rows": rows, "left_out": left_out.get(dataset, [])})
    return result | {"commits": sorted(commits)}


def _row(
    model: Model,
    dataset: str,
    grid: Mapping[str, Job],
    point: str,
    tested: compare.Model,
    baseline: compare.Model | None,
) -> dict[str, Any]:
    slices, against = tested.reports[0]["slices"], baseline or tested
    test = {metric: pages.measured(against, tested, "all", metric) for metric in METRICS}
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
        "n": slices["all"]["n"],
        "n_cold": slices["cold items"]["n"],
        "test": test,
        "gain": _gain(test[CHOICE]),
        "cold": pages.measured(against, tested, "cold items", CHOICE),
        "paper": PRINTED.get(published, {}).get(model.name),
        "paper_chosen_on_validation": CHOSEN_ON_VALIDATION.get(published, {}).get(model.name),
    }


def _gain(measured: Mapping[str, Any]) -> float | None:
    """The gain in % of the baseline's metric; None for the baseline."""
    if "difference" not in measured:
        return None
    other = measured["mean"] - measured["difference"]
    return 100 * measured["difference"] / other if other else None


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
        f"Test split; {pages.seeds(result['seeds'])}: mean ± standard deviation. "
        "Validation chose the step of each run. Where a grid was tried, each point ran on seed "
        "0; the one with the best Recall@20 on validation ran on all seeds, and test was opened "
        "for it alone. Gain and p (paired t-test over the seeds, one seed: of the test users; "
        "not corrected for the number of rows) are of Recall@20 against FREEDOM, as is the 95 % "
        "interval of the difference over test users; ± users: the standard error of Recall@20 "
        "that they leave. Paper: as printed, chosen by the score on test, one seed. Logs: what "
        "the logs released with it score on test at the grid point that validation chooses.",
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
        row["label"]: [f"{settings_of(point['settings'])}: {point['valid']:.4f}" for point in row["grid"]]
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
    header = [
        "model",
        "chosen on validation",
        *short,
        "± users",
        "gain",
        "difference, 95 %",
        "p",
        f"R@20, {rows[0]['n_cold']:,} users of cold items",
    ]
    header += [f"paper: {name}" for name in short] + ["logs: R@20", "logs: N@20"]
    lines = []
    for row in rows:
        cells = [row["label"], settings_of(row["chosen"])]
        cells += [pages.mean(row["test"][metric]) for metric in METRICS]
        cells += [
            pages.number(row["test"][CHOICE]["se"], ".4f"),
            f"{row['gain']:+.1f} %" if row["gain"] is not None else "-",
            pages.interval(row["test"][CHOICE]),
            pages.number(row["test"][CHOICE].get("p"), ".2g"),
            pages.mean(row["cold"]),
        ]
        cells += [pages.number(value, ".4f") for value in row["paper"] or [None] * len(METRICS)]
        cells += [pages.number(value, ".4f") for value in row["paper_chosen_on_validation"] or (None, None)]
        lines.append(cells)
    return pages.table(header, lines)


def settings_of(changes: Mapping[str, Any]) -> str:
    """ "queries 1, dropout 0.5" of a grid point."""
    return ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in changes.items()) or "-"


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
    pages.plot(panels, f"Recall@20 on test (n = {pages.seeds(result['seeds'])})", path)


def write(result: dict[str, Any], out: Path, command: str) -> str:
    """Writes table10.md, .json and .png to `out`; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    page = markdown(result, command)
    plot(result, out / "table10.png")
    pages.write(result, page, command, out)
    return page
