"""benchmarks.scale: what it reads from programs, and one row of the grid."""

from pathlib import Path

import pytest

from benchmarks.scale import point as point_
from benchmarks.scale.collectives import Collective, bytes_by_kind, collectives

PROGRAM = """
  %a = f32[16,8]{1,0} all-reduce(f32[16,8]{1,0} %x), channel_id=1, replica_groups={{0,1}}, to_apply=%add
  %b = (bf16[4,2]{1,0}, s32[3]{0}) all-reduce(%y, %z), channel_id=2
  %c = (f32[2]{0}, f32[8]{0}) all-gather-start(f32[2]{0} %v), dimensions={0}
  %d = f32[8]{0} all-gather-done(%c)
  %e = pred[] all-reduce(pred[] %w)
  %f = f32[100]{0} fusion(%a), kind=kLoop, calls=%all-reduce.1
"""


def test_bytes_and_elements_of_collectives_are_read_from_the_text():
    assert collectives(PROGRAM) == [
        Collective("all-reduce", 128, 512),
        Collective("all-reduce", 8, 16 + 12),
        Collective("all-gather", 8, 32),
        Collective("all-reduce", 1, 1),
    ]
    assert bytes_by_kind(PROGRAM) == {"all-reduce": 541, "all-gather": 32}


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
