"""What a run has logged, as it lies in its folder: names that are read elsewhere, and the curve of a stream."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from em3_jax.core import strict_json

CURVE = "stream.jsonl"
NEW_ROWS = "data/new_rows"
"""Logged once a growth of the dataset, at the step before the first of them; the best is sought anew from there."""


def read_curve(path: Path) -> list[dict]:
    """The lines of a stream.jsonl; a half line at the end, of a killed run, is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(strict_json.undefined_as_nan(json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines


def mean(lines: Sequence[Mapping[str, Any]], slice_name: str, metric: str) -> float:
    """The metric over windows, weighted by their rows; windows where it is undefined are left out."""
    pairs = [(line[slice_name][metric], line[slice_name]["n"]) for line in lines]
    pairs = [(value, n) for value, n in pairs if value == value]
    return sum(value * n for value, n in pairs) / sum(n for _, n in pairs) if pairs else float("nan")


def last_quarter(lines: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The windows at the end, one at least."""
    return lines[-max(len(lines) // 4, 1) :]
