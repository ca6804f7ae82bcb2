"""What a run has logged, as it lies in its folder: names that are read elsewhere, and the curve of a stream."""

import json
import os
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


class Curve:
    """stream.jsonl; lines from window number `start` on, which will be written again, are dropped."""

    def __init__(self, path: Path, start: int):
        kept = [line for line in read_curve(path) if line["window"] < start] if path.exists() else []
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(strict_json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self._path = path

    def write(self, record: dict) -> None:
        with open(self._path, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(record) + "\n")
