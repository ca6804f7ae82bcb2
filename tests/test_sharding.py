"""sharding: a step on four devices is the step on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base, retrieval
from em3_jax import sharding
from em3_jax.data.batches import BatchBuilder, Buckets
from tests.planted_pairs import planted_pairs

ROOT = Path(__file__).parent.parent

# One step on meshes of 1 and 4 devices, from the same state. Prints the scalars of the step and the norms of the new state.
PROGRAM = """
import json, sys
import jax, numpy as np
from em3_jax import experiment, sharding, trees
from em3_jax.data.pipeline import batches

results, state = [], None
for devices in (1, 4):
    config = json.loads(sys.argv[1])
    config["mesh"]["data"] = devices
    parts = experiment.build(config, lambda rows, size: 1)
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(parts.init)
    # Of the size that training has: large parameters would make rounding visible. None negative, as optimizer slots are.
    state = jax.tree.map(lambda leaf: np.abs(random.normal(0.0, 0.1, leaf.shape)).astype(leaf.dtype), shapes)
    state = jax.device_put(state, sharding.replicated(parts.mesh))
    shardings = sharding.batch_shardings(parts.mesh, parts.source[0])
    batch = next(iter(batches(parts.source, device=shardings)))
    assert len(batch[sys.argv[2]].sharding.device_set) == devices
    state, aux = parts.train_step(state, parts.constants, batch)
    assert all(len(leaf.sharding.device_set) == devices for leaf in jax.tree.leaves(state))
    norms = {name: float(np.linalg.norm(leaf)) for name, leaf in trees.named_leaves(state).items()}
    results.append({name: float(value) for name, value in aux.items()} | norms)
print(json.dumps(results))
"""


def check_steps(config: dict, key: str) -> None:
    """The step of a config on one and on four devices; `key` is an array of the batch that is split."""
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(config), key],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, four = json.loads(done.stdout.splitlines()[-1])
    assert one.keys() == four.keys() and one["loss"] > 0
    for name, value in one.items():
        assert four[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_a_step_on_four_devices_equals_the_step_on_one(planted):
    settings = base.ranking()
    settings.data.root, settings.data.features = str(planted.root), ("image", "text")
    settings.data.history_length, settings.data.batch_size = 6, 32
    check_steps(settings.to_dict(), "label")


def test_a_step_of_retrieval_on_four_devices_equals_the_step_on_one(tmp_path):
    settings = retrieval.get_config("freedom")
    settings.data.root, settings.data.batch_size = str(planted_pairs(tmp_path).root), 32
    settings.model.retrieval_settings.width = 8
    check_steps(settings.to_dict(), "positive")


def test_all_batch_keys_by_example_are_split_and_no_others(tiny):
    """Else an array of the examples would be copied to all devices, or a distinct block be cut."""
    builder = BatchBuilder(tiny.dataset, history_length=5, unknown_alpha=0.0, unknown_floor={})
    batch = builder(np.arange(29), buckets=Buckets(64, 128))
    by_example = {name for name, value in batch.items() if len(value) == 29}
    assert by_example | {"user", "positive", "negative"} == set(sharding.BY_EXAMPLE)  # data/pairs.py has the others
    shardings = sharding.batch_shardings(sharding.make_mesh(1, 1), batch)
    assert {name for name, s in shardings.items() if s.spec == PartitionSpec("data")} == by_example
