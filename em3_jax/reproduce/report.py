"""A table's results as Markdown, JSON and a plot: AUC, gain as the paper counts it, spread, significance, the paper's own row."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from em3_jax import metrics
from em3_jax.reproduce.tables import Row, Table

METRICS = ("auc", "gauc", "logloss")
COLD = "cold items"


def read(table: Table, root: Path, seeds: int) -> dict[str, Any]:
    """The results of a table whose runs are all finished, as JSON values."""
    result = {"table": table.number, "title": table.title, "seeds": seeds, "notes": list(table.notes), "groups": []}
    commits = set()
    for group in table.groups:
        rows = [_read_row(row, root, seeds, commits) for row in group.rows]
        for row in rows:
            _compare(row, rows[0])
        result["groups"].append({"name": group.name, "rows": rows, "paper_baseline": group.rows[0].paper})
    return result | {"commits": sorted(str(commit) for commit in commits)}


def _read_row(row: Row, root: Path, seeds: int, commits: set) -> dict[str, Any]:
    reports = [json.loads((root / f"{row.run}-{seed}" / "eval_test.json").read_text("utf-8")) for seed in range(seeds)]
    commits.update(report["commit"] for report in reports)
    parts = {"all": reports[0]["slices"]["all"], COLD: reports[0]["slices"][COLD]}
    values = {
        name: {metric: [report["slices"][name][metric] for report in reports] for metric in METRICS} for name in parts
    }
    return {
        "label": row.label,
        "run": row.run,
        "paper_auc": row.paper,
        "fusion_parameters": reports[0]["parameters"]["fusion"],
        "n": parts["all"]["n"],
        "n_cold": parts[COLD]["n"],
        "bayes_auc": parts["all"].get("bayes_auc"),
        **{metric: _summary(values["all"][metric]) for metric in METRICS},
        "auc_cold": _summary(values[COLD]["auc"]),
    }


def _summary(values: list[float]) -> dict[str, Any]:
    numbers = np.array(values, np.float64)
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")
    return {"values": values, "mean": float(numbers.mean()), "sd": spread}


def _compare(row: dict, baseline: dict) -> None:
    """Adds gain in % of the baseline's AUC, as the paper counts it, and p of the paired t-test over the seeds."""
    row["gain"] = 100 * (row["auc"]["mean"] / baseline["auc"]["mean"] - 1)
    row["paper_gain"] = (
        100 * (row["paper_auc"] / baseline["paper_auc"] - 1) if row["paper_auc"] and baseline["paper_auc"] else None
    )
    same = row is baseline or len(row["auc"]["values"]) < 2
    row["p"] = None if same else metrics.paired_t_test(row["auc"]["values"], baseline["auc"]["values"]).p


def markdown(result: dict[str, Any], command: str) -> str:
    """The page of a table."""
    lines = [f"# Table {result['table']}: {result['title']}", ""]
    for group in result["groups"]:
        lines += [f"## {group['name']}", ""] if group["name"] else []
        lines += _rows(group["rows"])
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
        f"![table {result['table']}](table{result['table']}.png)",
        "",
        f"Commit of the runs: {', '.join(result['commits'])}",
    ]
    return "\n".join(lines) + "\n"


def _rows(rows: list[dict]) -> list[str]:
    cold, bayes = rows[0]["n_cold"] > 0, rows[0]["bayes_auc"] is not None
    header = ["method", "AUC", "AUC gain", "p", "GAUC", "logloss", "parameters of the fusion module"]
    header += [f"AUC, {rows[0]['n_cold']:,} rows of cold items"] * cold + ["paper: AUC", "paper: gain"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for row in rows:
        cells = [row["label"], _mean(row["auc"]), _percent(row["gain"]) if row is not rows[0] else "-"]
        cells += [f"{row['p']:.2g}" if row["p"] is not None else "-", _mean(row["gauc"]), _mean(row["logloss"])]
        cells += [f"{row['fusion_parameters']:,}", *[_mean(row["auc_cold"])] * cold]
        cells += [f"{row['paper_auc']:.4f}" if row["paper_auc"] else "-"]
        cells += [_percent(row["paper_gain"]) if row["paper_gain"] and row is not rows[0] else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    if bayes:
        lines += ["", f"The true click probabilities score AUC {rows[0]['bayes_auc']:.4f} (Bayes)."]
    return lines


def _mean(summary: dict) -> str:
    return f"{summary['mean']:.4f}" + (f" ± {summary['sd']:.4f}" if np.isfinite(summary["sd"]) else "")


def _percent(value: float) -> str:
    return f"{value:+.3f} %"


def plot(result: dict[str, Any], path: Path) -> None:
    """A dot a seed and a bar a mean, group beside group, the paper's gain as a mark on the same scale."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = result["groups"]
    heights = [0.5 * len(group["rows"]) for group in groups]
    figure, axes = plt.subplots(len(groups), 1, figsize=(8, 1.2 + sum(heights)), squeeze=False, height_ratios=heights)
    for group, axis in zip(groups, axes[:, 0], strict=True):
        _plot_group(axis, group["rows"])
        axis.set_title(group["name"] or f"Table {result['table']}: {result['title']}", loc="left", fontsize=10)
    axes[-1, 0].set_xlabel(f"AUC gain over the baseline of the same seed, % (n = {result['seeds']} seeds)")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="upper right", fontsize=8, frameon=False, ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_group(axis, rows: list[dict]) -> None:
    baseline = np.array(rows[0]["auc"]["values"])
    for k, row in enumerate(rows[1:]):
        gains = 100 * (np.array(row["auc"]["values"]) / baseline - 1)
        axis.barh(k, gains.mean(), height=0.6, color="#9ecae1")
        axis.plot(
            gains, np.full(len(gains), k), "o", color="#08519c", markersize=4, label="one seed" if k == 0 else None
        )
        if row["paper_gain"]:
            axis.plot(row["paper_gain"], k, "D", color="#de2d26", markersize=6, label="paper" if k == 0 else None)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows) - 1), [row["label"] for row in rows[1:]])
    axis.set_ylim(len(rows) - 1.4, -0.6)
    axis.spines[["top", "right"]].set_visible(False)


def write(table: Table, root: Path, seeds: int, out: Path, command: str) -> str:
    """Writes table<N>.md, .json and .png to `out`; returns the page."""
    result = read(table, root, seeds)
    out.mkdir(parents=True, exist_ok=True)
    page = markdown(result, command)
    plot(result, out / f"table{table.number}.png")
    (out / f"table{table.number}.json").write_text(
        json.dumps(result | {"command": command}, indent=1), encoding="utf-8"
    )
    (out / f"table{table.number}.md").write_text(page, encoding="utf-8")
    return page
