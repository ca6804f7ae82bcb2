"""A table's results as Markdown, JSON and a plot: AUC, gain as the paper counts it, spread, significance, the paper's own row."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax.evaluation import compare
from em3_jax.evaluation.compare import Model
from reproduce import pages
from reproduce.tables import Row, Table

METRICS = ("auc", "gauc", "logloss")
COLD = "cold items"


def read(table: Table, roots: Sequence[Path], seeds: int, searched: Mapping[str, list[dict]]) -> dict[str, Any]:
    """The results of a table whose runs are all finished, as JSON values.

    Args:
      roots: folder of the runs; of several folds, which are pooled, the folder of each.
      searched: what `search.summary` gives; {} where the config's settings were taken.
    """
    result: dict[str, Any] = {"table": table.number, "file": table.file, "title": table.title}
    result |= {"metric": table.metric, "seeds": seeds, "notes": list(table.notes), "groups": []}
    commits: set[str | None] = set()
    for group in table.groups:
        models = [
            compare.of_folds(
                row.label, [[root / f"{row.run}-{seed}" for root in roots] for seed in range(seeds)], "test"
            )
            for row in group.rows
        ]
        compare.check_paired(models)
        commits.update(report["commit"] for model in models for report in model.reports)
        rows = [_row(row, model, models[0], roots[0]) for row, model in zip(group.rows, models, strict=True)]
        for row in rows:
            _gains(row, rows[0], table.metric)
        result["groups"].append({"name": group.name, "rows": rows, "paper_baseline": group.rows[0].paper})
    result["by"] = models[0].by
    result["search"] = {name: points for name, points in searched.items() if name.partition(" ")[0] in table.runs}
    return result | {"commits": sorted(str(commit) for commit in commits)}


def _row(row: Row, model: Model, baseline: Model, root: Path) -> dict[str, Any]:
    slices = model.reports[0]["slices"]
    return {
        "label": row.label,
        "run": row.run,
        "paper": row.paper,
        "fusion_parameters": model.reports[0]["parameters"]["fusion"],
        "n": slices["all"]["n"],
        "n_cold": slices.get(COLD, {"n": 0})["n"],
        "bayes_auc": slices["all"].get("bayes_auc"),
        **{metric: pages.measured(baseline, model, "all", metric) for metric in METRICS},
        "auc_cold": pages.measured(baseline, model, COLD, "auc"),
        "cost": json.loads((root / f"{row.run}-0" / "finished.json").read_text("utf-8")).get("cost"),
    }


def _gains(row: dict, baseline: dict, metric: str) -> None:
    """Adds the gains in % of the baseline's metric, as the papers count them."""
    row["gain"] = 100 * (row[metric]["mean"] / baseline[metric]["mean"] - 1)
    row["paper_gain"] = 100 * (row["paper"] / baseline["paper"] - 1) if row["paper"] and baseline["paper"] else None


def markdown(result: dict[str, Any], command: str) -> str:
    """The page of a table."""
    lines = [f"# Table {result['table']}: {result['title']}", ""]
    for group in result["groups"]:
        lines += [f"## {group['name']}", ""] if group["name"] else []
        lines += _rows(group["rows"], result["metric"])
        lines.append("")
    lines += [f"{note}\n" for note in result["notes"]]
    first = result["groups"][0]["rows"][0]
    lines += [
        f"Test split, n = {first['n']:,}; {pages.seeds(result['seeds'])}: "
        "mean ± standard deviation. ± rows: standard error of the mean that the test rows "
        f"leave, those of one {result['by']} counted as one; 95 %: of the difference from the first row, "
        "over test rows. Gain over the first row as the paper counts it. p: paired t-test over "
        "the seeds against the first row (one seed: of the test rows), not corrected for the "
        "number of rows. Step and settings were chosen on validation. The paper's numbers are "
        "of its own data.",
        "",
        *_search(result["search"]),
        "",
        f"    {command}",
        "",
        f"![table {result['table']}]({result['file']}.png)",
        "",
        f"Commit of the runs: {', '.join(result['commits'])}",
    ]
    return "\n".join(lines) + "\n"


def _rows(rows: list[dict], metric: str) -> list[str]:
    cold, bayes, cost = rows[0]["n_cold"] > 0, rows[0]["bayes_auc"] is not None, bool(rows[0]["cost"])
    name, other = metric.upper(), _other(metric).upper()
    header = [
        "method",
        "AUC",
        "± rows",
        "GAUC",
        f"{name} gain",
        f"{name} difference, 95 %",
        "p",
        f"p of {other}",
        "logloss",
    ]
    header += ["GFLOP a step", "ms a step", "MB of temporaries"] if cost else ["parameters of the fusion module"]
    header += [f"AUC, {rows[0]['n_cold']:,} rows of cold items", "± rows", "p"] * cold
    header += [f"paper: {name}", "paper: gain"]
    lines = pages.table(header, [_cells(row, metric, cold) for row in rows])
    if bayes:
        lines += ["", f"The true click probabilities score AUC {rows[0]['bayes_auc']:.4f} (Bayes)."]
    return lines


def _other(metric: str) -> str:
    return "gauc" if metric == "auc" else "auc"


def _cells(row: dict, metric: str, cold: bool) -> list[str]:
    is_baseline = "difference" not in row[metric]
    cells = [row["label"], pages.mean(row["auc"]), pages.number(row["auc"]["se"], ".4f"), pages.mean(row["gauc"])]
    cells += [_percent(row["gain"]) if not is_baseline else "-", pages.interval(row[metric])]
    cells += [pages.number(row[name].get("p"), ".2g") for name in (metric, _other(metric))]
    cells += [pages.mean(row["logloss"])]
    if cost := row["cost"]:
        cells += [f"{cost['gigaflops']:.3f}", f"{cost['milliseconds']:.0f}", f"{cost['temporary_megabytes']:.0f}"]
    else:
        cells += [f"{row['fusion_parameters']:,}"]
    if cold:
        of_cold = row["auc_cold"]
        cells += [pages.mean(of_cold), pages.number(of_cold["se"], ".4f"), pages.number(of_cold.get("p"), ".2g")]
    cells += [f"{row['paper']:.4f}" if row["paper"] else "-"]
    return [*cells, _percent(row["paper_gain"]) if row["paper_gain"] and not is_baseline else "-"]


def _search(searched: Mapping[str, list[dict]]) -> list[str]:
    """How the settings were chosen."""
    if not searched:
        return ["Settings: those of the config, for all rows; nothing was searched for this table."]
    counts = sorted({len(points) for points in searched.values()})
    lines = [
        f"Settings: {' and '.join(searched)} tried {' to '.join(map(str, counts))} points each on seed 0, and validation "
        "chose; rows that change a part keep the settings of the whole. Best on validation of each point:",
        "",
    ]
    for name, points in searched.items():
        cells = [
            f"{'**' * one['chosen']}{_point(one['settings'])}: {one['valid']:.4f}{'**' * one['chosen']}"
            for one in points
        ]
        lines.append(f"- {name}: {'; '.join(cells)}")
    return lines


def _point(settings: Mapping[str, Any]) -> str:
    """ "backbone_settings.dropout 0.2, l2 0.001" of a point."""
    names = {key: ".".join(key.split(".")[-2:]) for key in settings}
    return ", ".join(f"{names[key]} {value:g}" for key, value in settings.items()) or "the config's own"


def _percent(value: float) -> str:
    return f"{value:+.3f} %"


def plot(result: dict[str, Any], path: Path) -> None:
    """The gains of all rows over the baseline of the same seed, the paper's beside them."""
    panels = {}
    for group in result["groups"]:
        metric = result["metric"]
        baseline = np.array(group["rows"][0][metric]["values"])
        panels[group["name"] or f"Table {result['table']}: {result['title']}"] = [
            pages.Bar(row["label"], 100 * (np.array(row[metric]["values"]) / baseline - 1), row["paper_gain"])
            for row in group["rows"][1:]
        ]
    what = f"{metric.upper()} gain over the baseline of the same seed, %"
    pages.plot(panels, f"{what} (n = {pages.seeds(result['seeds'])})", path)


def write(
    table: Table, roots: Sequence[Path], seeds: int, out: Path, command: str, searched: Mapping[str, list[dict]]
) -> str:
    """Writes the table's .md, .json and .png to `out`; returns the page. Arguments as of `read`."""
    result = read(table, roots, seeds, searched)
    out.mkdir(parents=True, exist_ok=True)
    page = markdown(result, command)
    plot(result, out / f"{table.file}.png")
    pages.write(result, page, command, out)
    return page
