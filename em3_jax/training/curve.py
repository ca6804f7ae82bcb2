"""The curve of a run on a stream, as it lies in its folder."""

import json
from pathlib import Path

from em3_jax.core import strict_json

CURVE = "stream.jsonl"


def read_curve(path: Path) -> list[dict]:
    """The lines of a stream.jsonl; a half line at the end, of a killed run, is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(strict_json.undefined_as_nan(json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines
