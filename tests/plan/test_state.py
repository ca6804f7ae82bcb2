"""What a device of a large mesh holds of the state: a part of the tables, in whatever form they lie, and hardly more."""

import json
import subprocess
import sys

import pytest

from em3_jax.plan import targets
from tests.conftest import ROOT

ROWS, DEVICES = 100_000_000, 64
STATE = """
import json, sys
from pathlib import Path
from em3_jax.plan import targets
target = targets.parse("v5e:8x8")
targets.prepare(target)
import jax, numpy as np
from em3_jax.plan import report, sizes
from em3_jax.training import experiment
from tests import step_contracts
with targets.quietly():
    config = step_contracts.config_of("ids", Path(sys.argv[1]))
    config.data.root, config.tables.width, config.tables.optimizer = sys.argv[1], int(sys.argv[3]), sys.argv[4]
    parts = experiment.build(config.to_dict(), targets.devices(target))
    tables = sizes.resized(parts, int(sys.argv[2])).state.tables
whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tables, is_leaf=lambda leaf: hasattr(leaf, "form")))
print(json.dumps([parts.program.mesh.size, whole, report._per_device(tables)]))
"""


@pytest.mark.parametrize("width,optimizer", [(16, "rowwise_adagrad"), (16, "lazy_adam"), (64, "rowwise_adagrad")])
def test_a_device_of_64_holds_a_64th_of_the_tables_and_their_accumulators(planted, width, optimizer):
    """Of packed rows on a described v5e 8x8, to 1 %; the numbers that fill lines count on the device alone."""
    targets.find_compilers()
    if not targets.is_installed("tpu"):
        pytest.skip("the compiler for v5e is not installed: make .venv/installed-test")
    command = [sys.executable, "-c", STATE, str(planted.root), str(ROWS), str(width), optimizer]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    devices, whole, part = json.loads(done.stdout.splitlines()[-1])
    slots = {"rowwise_adagrad": 1, "lazy_adam": 2 * width + 1}[optimizer]
    assert devices == DEVICES and whole == pytest.approx(ROWS * (width + slots) * 4, rel=0.001)
    assert part <= 1.01 * whole / DEVICES
