"""sharding: steps on any mesh are the steps on one device, and what is cut by rows stays where it is."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from configs import base, retrieval
from em3_jax import experiment, sharding
from em3_jax.data.batches import BatchBuilder, Buckets
from tests.conftest import ROOT, user_error
from tests.planted_pairs import planted_pairs

MESHES = ((1, 1), (8, 1), (1, 8), (2, 4), (4, 2))


def on_meshes(config: dict, key: str, meshes=MESHES) -> list[dict]:
    """What tests/on_meshes.py prints, on eight devices."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-m", "tests.on_meshes", json.dumps(config), json.dumps(meshes), key],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def check_equal(results: list[dict]) -> None:
    one = results[0]
    for other in results[1:]:
        for step in ("first", "second"):
            assert other[step].keys() == one[step].keys() and one[step]["loss"] > 0
            for name, value in one[step].items():
                assert other[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6), (step, name)


def ranking_config(root) -> dict:
    settings = base.ranking()
    settings.data.root, settings.data.features = str(root), ("image", "text")
    settings.data.history_length, settings.data.batch_size = 6, 32
    return settings.to_dict()


def test_steps_on_any_mesh_and_from_the_checkpoint_of_another_equal_those_on_one_device(planted):
    results = on_meshes(ranking_config(planted.root), "label")
    check_equal(results)
    tables = ["tables/embedding", "tables/slots/accumulator"]
    assert [result["by_rows"] for result in results] == [[], *[tables] * 4]
    assert [result["constants_by_rows"] for result in results] == [0, *[4] * 4]  # tokens and mask of two feature sets
    now, longer = results[-1]["largest_collective"]
    assert 0 < now == longer, "what the devices exchange grows with the tables"


def test_steps_of_retrieval_on_any_mesh_equal_those_on_one_device(tmp_path):
    settings = retrieval.get_config("freedom")
    settings.data.root, settings.data.batch_size = str(planted_pairs(tmp_path).root), 32
    settings.model.retrieval_settings.width = 8
    check_equal(on_meshes(settings.to_dict(), "positive", MESHES[:3]))


@pytest.mark.parametrize(
    "by_rows,words",
    [
        (("tables/.*", "tabels/.*"), "'tabels/.*' matches nothing"),
        (("step",), "step of shape [] does not divide"),
        (("(",), "is no regular expression"),
    ],
)
def test_patterns_that_cannot_be_meant_are_refused(planted, by_rows, words):
    config = ranking_config(planted.root)
    config["mesh"]["by_rows"] = by_rows
    message = user_error(lambda: experiment.build(config, lambda rows, size: 1))
    assert "config.mesh.by_rows" in message and words in message


def test_all_batch_keys_by_example_are_split_and_no_others(tiny):
    """Else an array of the examples would be copied to all devices, or a distinct block be cut."""
    builder = BatchBuilder(tiny.dataset, history_length=5, unknown_alpha=0.0, unknown_floor={})
    batch = builder(np.arange(29), buckets=Buckets(64, 128))
    by_example = {name for name, value in batch.items() if len(value) == 29}
    assert by_example | {"user", "positive", "negative"} == set(sharding.BY_EXAMPLE)  # data/pairs.py has the others
    shardings = sharding.batch_shardings(sharding.make_mesh(1, 1), batch)
    assert {name for name, s in shardings.items() if s.spec == PartitionSpec("data")} == by_example
