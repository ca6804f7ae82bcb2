"""What `em3 reproduce` has measured, as a table of docs/results/ that a page shows, see `reproduce.results`."""

import datetime
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from em3_jax.core import strict_json
from em3_jax.core.errors import UserError
from reproduce.retrieval_report import CHOICE
from reproduce.retrieval_report import settings_of as chosen_settings

AUC, GAIN, INTERVAL, P = {"form": ".4f"}, {"form": "+.2f", "unit": " %"}, {"form": "+.4f"}, {"form": ".2g"}


def check(path: Path) -> None:
    """Refuses a file that no page can name, before the first run."""
    if path.suffix != ".json" or not path.absolute().parent.is_dir():
        raise UserError(f"--keep {path}: must be a .json file in a folder that is there, as docs/results/NAME.json")


def write(path: Path, reports: Sequence[Path], config: str) -> None:
    """Writes the table of what reports have, to be marked on a page.

    Args:
      path: the file.
      reports: .json files that the reports have written, of tables with groups of rows, or that of table 10 alone.
      config: config file.
    """
    results = [json.loads(report.read_text("utf-8")) for report in reports]
    of_retrieval = "datasets" in results[0]
    columns, rows = _of_datasets(results[0]) if of_retrieval else _of_groups(results)
    commits = sorted({commit for result in results for commit in result["commits"]})
    source: dict[str, Any] = {
        "command": results[0]["command"],
        "config": config,
        "seeds": list(range(results[0]["seeds"])),
    }
    source["commit"] = commits[0] if len(commits) == 1 and commits[0] != "None" else None
    if len(commits) > 1:
        source["note"] = f"runs of several commits: {', '.join(commit[:7] for commit in commits)}"
    timed = any(column["key"] == "milliseconds" for column in columns)
    source |= {"machine": _machine() if timed else None, "date": datetime.date.today().isoformat()}
    table = {"title": "; ".join(result["title"] for result in results), "sources": [source]}
    path.write_text(strict_json.dumps(table | {"columns": columns, "rows": rows}, indent=1) + "\n", "utf-8")


def _machine() -> str:
    """The device that runs were timed on, and how many cores it has beside it."""
    import jax

    return f"{jax.devices()[0].device_kind}, {os.cpu_count()} cores"


def _of_groups(results: Sequence[Mapping[str, Any]]) -> tuple[list[dict], list[dict]]:
    """(columns, rows) of tables of the paper, LEMUR's, or that with pictures; a baseline that several share is there once."""
    every = [row for result in results for group in result["groups"] for row in group["rows"]]
    metric = results[0]["metric"]
    columns = [{"key": "table", "name": "table"}] * (len(results) > 1)
    columns += [{"key": "method", "name": "method"}, {"key": "auc", "name": "AUC", **AUC}]
    columns += [{"key": "gauc", "name": "GAUC", **AUC}] * (metric == "gauc")
    columns += [
        {"key": "rows", "name": f"± rows of {metric.upper()}", **AUC},
        {"key": "gain", "name": "gain", **GAIN},
        {"key": "difference", "name": "difference, 95 %", **INTERVAL},
        {"key": "p", "name": "p", **P},
    ]
    columns += [{"key": "auc_cold", "name": "AUC on cold items", **AUC}] * bool(every[0]["n_cold"])
    columns += [{"key": "paper_gain", "name": "paper: gain", **GAIN}] * any(row["paper_gain"] for row in every)
    if every[0]["cost"]:
        columns += [
            {"key": "gigaflops", "name": "GFLOP a step", "form": ".2f"},
            {"key": "milliseconds", "name": "ms a step", "form": ".0f"},
            {"key": "temporary_megabytes", "name": "MB", "form": ".0f"},
        ]
    return columns, list(_rows(results, metric))


def _rows(results: Sequence[Mapping[str, Any]], metric: str) -> Iterator[dict[str, Any]]:
    seen = []
    for result in results:
        for group in result["groups"]:
            for number, row in enumerate(group["rows"]):
                if number == 0 and (row["run"], row[metric]) in seen:
                    continue
                seen.append((row["run"], row[metric]))
                measured = row[metric]
                yield {
                    "table": "" if number == 0 else result["table"],
                    "method": row["label"],
                    "n": row["n"],
                    **{name: _mean(row[name]) for name in ("auc", "gauc", "auc_cold")},
                    "rows": measured["se"],
                    "gain": row["gain"] if number else None,
                    "difference": _interval(measured),
                    "p": measured.get("p"),
                    "paper_gain": row["paper_gain"] if number else None,
                    **(row["cost"] or {}),
                }


def _of_datasets(result: Mapping[str, Any]) -> tuple[list[dict], list[dict]]:
    """(columns, rows) of table 10."""
    datasets = result["datasets"]
    columns = [{"key": "dataset", "name": "dataset"}] * (len(datasets) > 1)
    columns += [
        {"key": "model", "name": "model"},
        {"key": "chosen", "name": "chosen on validation"},
        {"key": "recall", "name": "Recall@20", **AUC},
        {"key": "ndcg", "name": "NDCG@20", **AUC},
        {"key": "users", "name": "± users", **AUC},
        {"key": "gain", "name": "gain", **GAIN},
        {"key": "difference", "name": "difference, 95 %", **INTERVAL},
        {"key": "p", "name": "p", **P},
    ]
    rows = [
        {
            "dataset": dataset["name"],
            "model": row["label"],
            "chosen": chosen_settings(row["chosen"]),
            "n": row["n"],
            "recall": _mean(row["test"][CHOICE]),
            "ndcg": _mean(row["test"]["ndcg@20"]),
            "users": row["test"][CHOICE]["se"],
            "gain": row["gain"],
            "difference": _interval(row["test"][CHOICE]),
            "p": row["test"][CHOICE].get("p"),
        }
        for dataset in datasets
        for row in dataset["rows"]
    ]
    return columns, rows


def _mean(measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """The mean, its standard deviation and the values, one a seed; None where nothing was measured."""
    return None if measured["mean"] is None else {name: measured[name] for name in ("mean", "sd", "values")}


def _interval(measured: Mapping[str, Any]) -> dict[str, float] | None:
    if measured.get("low") is None:
        return None
    return {name: measured[name] for name in ("difference", "low", "high")}
