"""A table's results as Markdown, JSON and a plot: AUC, gain as the paper counts it, spread, significance, the paper's own row."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax import metrics, strict_json
from em3_jax.reproduce import pages
from em3_jax.reproduce.tables import Row, Table

METRICS = ("auc", "gauc", "logloss")
COLD = "cold items"


def read(table: Table, root: Path, seeds: int) -> dict[str, Any]:
    """The results of a table whose runs are all finished, as JSON values."""
    result = {"table": table.number, "file": table.file, "title": table.title, "metric": table.metric, "seeds": seeds}
    result |= {"notes": list(table.notes), "groups": []}
    commits = set()
    for group in table.groups:
        rows = [_read_row(row, root, seeds, commits) for row in group.rows]
        for row in rows:
            _compare(row, rows[0], table.metric)
        result["groups"].append({"name": group.name, "rows": rows, "paper_baseline": group.rows[0].paper})
    return result | {"commits": sorted(str(commit) for commit in commits)}


def _read_row(row: Row, root: Path, seeds: int, commits: set) -> dict[str, Any]:
    reports = [
        strict_json.loads_report((root / f"{row.run}-{seed}" / "eval_test.json").read_text("utf-8"))
        for seed in range(seeds)
    ]
    commits.update(report["commit"] for report in reports)
    parts = {"all": reports[0]["slices"]["all"], COLD: reports[0]["slices"][COLD]}
    values = {
        name: {metric: [report["slices"][name][metric] for report in reports] for metric in METRICS} for name in parts
    }
    return {
        "label": row.label,
        "run": row.run,
        "paper": row.paper,
        "fusion_parameters": reports[0]["parameters"]["fusion"],
        "n": parts["all"]["n"],
        "n_cold": parts[COLD]["n"],
        "bayes_auc": parts["all"].get("bayes_auc"),
        **{metric: pages.summary(values["all"][metric]) for metric in METRICS},
        "auc_cold": pages.summary(values[COLD]["auc"]),
        "cost": json.loads((root / f"{row.run}-0" / "finished.json").read_text("utf-8")).get("cost"),
    }


def _compare(row: dict, baseline: dict, metric: str) -> None:
    """Adds gain in % of the baseline's metric, as the papers count it, and p of the paired t-test over the seeds."""
    row["gain"] = 100 * (row[metric]["mean"] / baseline[metric]["mean"] - 1)
    row["paper_gain"] = 100 * (row["paper"] / baseline["paper"] - 1) if row["paper"] and baseline["paper"] else None
    same = row is baseline or len(row[metric]["values"]) < 2
    row["p"] = None if same else metrics.paired_t_test(row[metric]["values"], baseline[metric]["values"]).p


def markdown(result: dict[str, Any], command: str) -> str:
    """The page of a table."""
    lines = [f"# Table {result['table']}: {result['title']}", ""]
    for group in result["groups"]:
        lines += [f"## {group['name']}", ""] if group["name"] else []
        lines += _rows(group["rows"], result["metric"].upper())
        lines.append("")
    lines += [f"{note}\n" for note in result["notes"]]
    first = result["groups"][0]["rows"][0]
    lines += [
        f"Test split, n = {first['n']:,}; {result['seeds']} seeds: mean ± standard deviation; gain over the first row as the "
        "paper counts it; p of the paired t-test over the seeds against the first row, not corrected for the number of rows. "
        "Step and settings were chosen on validation. The paper's numbers are of its own data.",
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
    header = ["method", "AUC", "GAUC", f"{metric} gain", "p", "logloss"]
    header += ["GFLOP a step", "ms a step", "MB of temporaries"] if cost else ["parameters of the fusion module"]
    header += [f"AUC, {rows[0]['n_cold']:,} rows of cold items"] * cold + [f"paper: {metric}", "paper: gain"]
    lines = pages.table(header, [_cells(row, row is rows[0], cold) for row in rows])
    if bayes:
        lines += ["", f"The true click probabilities score AUC {rows[0]['bayes_auc']:.4f} (Bayes)."]
    return lines


def _cells(row: dict, is_baseline: bool, cold: bool) -> list[str]:
    cells = [row["label"], pages.mean(row["auc"]), pages.mean(row["gauc"])]
    cells += [_percent(row["gain"]) if not is_baseline else "-", f"{row['p']:.2g}" if row["p"] is not None else "-"]
    cells += [pages.mean(row["logloss"])]
    if cost := row["cost"]:
        cells += [f"{cost['gigaflops']:.3f}", f"{cost['milliseconds']:.0f}", f"{cost['temporary_megabytes']:.0f}"]
    else:
        cells += [f"{row['fusion_parameters']:,}"]
    cells += [*[pages.mean(row["auc_cold"])] * cold, f"{row['paper']:.4f}" if row["paper"] else "-"]
    return [*cells, _percent(row["paper_gain"]) if row["paper_gain"] and not is_baseline else "-"]


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
    pages.plot(
        panels, f"{metric.upper()} gain over the baseline of the same seed, % (n = {result['seeds']} seeds)", path
    )


def write(table: Table, root: Path, seeds: int, out: Path, command: str) -> str:
    """Writes the table's .md, .json and .png to `out`; returns the page."""
    result = read(table, root, seeds)
    out.mkdir(parents=True, exist_ok=True)
    page = markdown(result, command)
    plot(result, out / f"{table.file}.png")
    pages.write(result, page, command, out)
    return page
