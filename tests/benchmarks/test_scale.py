"""benchmarks.scale: one row of the grid."""

from pathlib import Path

import pytest

from benchmarks.scale import point as point_


def test_a_point_is_measured_or_says_why_not(planted, monkeypatch):
    peaks = {"matmul_f32": 1e11, "copy": 1e10}
    small = point_.Point(batch=32, history=4, width=16, rows=5000)
    row = point_.measure(Path(planted.root), small, peaks, seconds=0.01)
    assert row["examples_per_second"] > 0 and 0 <= row["input_wait"] <= 1 and row["exchanged_bytes"] == {}
    assert row["share_of_matrix_peak"] == pytest.approx(row["flops"] / row["step_seconds"] / 1e11)
    by_shape = point_.measure(Path(planted.root), small._replace(rows=point_.BY_SHAPE), peaks, seconds=0.01)
    assert by_shape["argument_bytes"] > point_.BY_SHAPE * 17 * 4 and by_shape["skipped"] == "by shape only"
    assert by_shape["flops"] == row["flops"]
    monkeypatch.setattr(point_, "memory_limit", lambda: 1000)
    assert "GB of" in point_.measure(Path(planted.root), small, peaks, seconds=0.01)["skipped"]
