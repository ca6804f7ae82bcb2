"""What a run has logged, as it lies in its folder: names that are read elsewhere, and the curve of a stream."""

import json
from pathlib import Path

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
