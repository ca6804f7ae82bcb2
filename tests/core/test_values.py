"""The canonical form of values: what is the same in any file or language has one text."""

import datetime
import decimal
import json
import uuid

import numpy as np
import pytest

from em3_jax.core.values import canonical

SAME = {
    "5": [5, 5.0, "5", "5.0", "5.00", "+5.0", np.int8(5), np.float32(5), decimal.Decimal("5.00")],
    "-3": [-3, -3.0, "-3.0", np.int64(-3)],
    "0": [0, 0.0, -0.0, "0", "0.0", "-0.0", decimal.Decimal("-0.0")],
    "4.5": [4.5, "4.5", np.float32(4.5), decimal.Decimal("4.50")],
    "0.1": [0.1, np.float32(0.1), np.float16(0.1)],
    "true": [True, "true", "True", "TRUE", np.bool_(True)],
    "false": [False, "false", "False", "FALSE", np.bool_(False)],
    "9007199254740993": [9007199254740993, "9007199254740993.0", decimal.Decimal(9007199254740993)],
    "café": ["café", "café".encode()],
    "2026-01-02": [datetime.date(2026, 1, 2), "2026-01-02"],
    "0fffffff-ffff-ffff-ffff-ffffffffffff": [bytes([15]) + b"\xff" * 15, uuid.UUID(int=2**124 - 1)],
    "ff": [b"\xff"],
    "00000000-0000-0000-0000-000000000001": [bytes(15) + b"\1"],
    "sixteen letters!": [b"sixteen letters!"],
}
NAMES = ["007", "1.10", "1.1", "1e3", "00.0", " 5", "5.0.0", "tRUE", "nan", "NA", "null", "5.", ".0"]


@pytest.mark.parametrize(("form", "value"), [(form, v) for form, vs in SAME.items() for v in vs])
def test_the_same_value_has_one_form(form, value):
    assert canonical(value) == form
    assert canonical(form) == form, "a form is its own"


def test_names_that_look_like_numbers_stay_apart():
    assert [canonical(name) for name in NAMES] == NAMES


@pytest.mark.parametrize("value", [None, "", b"", float("nan"), np.float32("nan"), decimal.Decimal("nan")])
def test_nothing_has_no_form(value):
    assert canonical(value) is None


def test_a_number_that_python_does_not_write_has_a_form_too():
    huge = 10**5000  # more digits than `str` takes
    assert (
        canonical(huge) != canonical(huge + 1) and canonical(huge) == canonical(decimal.Decimal("1e5000")) is not None
    )
    assert canonical(10**400) == "1" + "0" * 400


def test_json_keeps_the_form():
    for value in (5, 5.0, 4.5, True, "x", 10**20):
        assert canonical(json.loads(json.dumps(value))) == canonical(value)
