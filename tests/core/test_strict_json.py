"""JSON that all readers take: no NaN and no infinity, and both come back as NaN where numbers stand."""

import json
import math

import numpy as np
import pytest

from em3_jax.core import strict_json
from em3_jax.report.plot import read
from em3_jax.training.curve import read_curve

VALUES = {"a": math.nan, "b": [math.inf, -math.inf, 1.5, None, "NaN"], "c": (np.float32(2), np.int64(3))}


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def strict(text: str):
    return json.loads(text, parse_constant=refuse)


def test_what_is_not_finite_is_null():
    assert strict(strict_json.dumps(VALUES)) == {"a": None, "b": [None, None, 1.5, None, "NaN"], "c": [2.0, 3]}


def test_a_report_comes_back_with_nan():
    slices = {"cold": {"n": 0, "auc": math.nan}, "all": {"n": 4, "auc": 0.5}}
    report = strict_json.loads_report(strict_json.dumps({"step": None, "slices": slices}))
    assert report["step"] is None and report["slices"]["all"] == {"n": 4, "auc": 0.5}
    assert math.isnan(report["slices"]["cold"]["auc"])


@pytest.mark.parametrize("missing", ["NaN", "null"])  # as older versions wrote it, and as it is written now
def test_curves_of_both_forms_are_read(tmp_path, missing):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 5, "valid/auc": {missing}}}\n{{"step": 6, "valid/auc": 0.5}}\n')
    assert read(path)["valid/auc"][6] == 0.5 and math.isnan(read(path)["valid/auc"][5])
    path.write_text(f'{{"window": 0, "warm items": {{"n": 0, "auc": {missing}}}}}\n')
    assert math.isnan(read_curve(path)[0]["warm items"]["auc"])
