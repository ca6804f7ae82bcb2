"""JSON that every reader of JSON takes: what is not a finite number is null, as the standard has no NaN.

Python writes a bare `NaN`, which browsers, jq, DuckDB and most languages refuse. All JSON of this
project is written by `dumps`; a number that is null in one of its own files is read as NaN.
"""

import json
import math
from typing import Any

import numpy as np


def dumps(value: Any, **options: Any) -> str:
    """`json.dumps` of `value`, with null for NaN and infinity and plain numbers for numpy's."""
    return json.dumps(finite(value), allow_nan=False, **options)


def finite(value: Any) -> Any:
    """JSON values with None in place of NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def undefined_as_nan(value: Any) -> Any:
    """JSON values in which every null is a number that is not defined: NaN in its place."""
    if isinstance(value, dict):
        return {key: undefined_as_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [undefined_as_nan(one) for one in value]
    return math.nan if value is None else value


def loads_report(text: str) -> dict[str, Any]:
    """The report of an evaluation (`eval_<split>.json`); metrics that are not defined are NaN."""
    report = json.loads(text)
    return report | {"slices": undefined_as_nan(report["slices"])}
