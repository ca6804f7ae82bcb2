"""Encoding a catalogue: the bits of the model, whatever the placement and the devices; what tells that content changed."""

import json
import os
import shutil
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from em3_jax.config import parse
from em3_jax.data.catalogue import CataloguePass
from em3_jax.data.checks import all_finite
from em3_jax.data.format import FeatureSet
from em3_jax.export import command as export
from em3_jax.export.items import digests
from em3_jax.serving import store
from em3_jax.training import checkpoint, experiment, rundir
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
from tests.conftest import ROOT, user_error
from tests.small_runs import small_config

PLAIN = export.Settings(platforms=("cpu",))
SIZE = 16  # items encoded at once


@pytest.fixture(scope="module")
def fresh(planted, tmp_path_factory):
    """placement -> folder of a run that holds the checkpoint of its first state."""

    def make(placement: str, **overrides):
        config = small_config(planted, data__features=("image", "text"), data__placement=placement, **overrides)
        config = config.to_dict()
        parts, run = experiment.build(config), tmp_path_factory.mktemp("runs") / placement
        rundir.claim(run, parse.parse(config), parts.work.dataset.meta["data_hash"], parts.feature_hashes)
        checkpoints = Checkpoints(run, parts.work.dataset.meta["data_hash"])
        checkpoints.save("best", parts.program.init(), {})
        checkpoints.wait()
        checkpoints.close()
        return run

    return make


@pytest.mark.parametrize("placement", ["device", "host"])
def test_vectors_are_those_that_the_run_computes_to_the_bit(fresh, tmp_path, placement):
    run = fresh(placement)
    export.export(run, tmp_path, PLAIN._replace(batch_size=SIZE))
    version = store.open_current(tmp_path)
    parts = Run.open(run).experiment
    assert bool(parts.work.constants) == (placement == "device")
    state, _ = Checkpoints(run).restore(parts.program.shapes)
    items = parts.work.dataset.num_items
    source = CataloguePass(np.arange(items), SIZE, () if parts.work.constants else tuple(parts.work.feature_sets))
    expected = np.concatenate([np.asarray(parts.program.embed(state, source[k])) for k in range(len(source))])[:items]
    np.testing.assert_array_equal(version["looked_up.content"][:-1], expected)


FOUR = """
import sys
import numpy as np
from em3_jax.export import command as export
from em3_jax.serving import store
from em3_jax.training import embeddings
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.run import Run
export.export(sys.argv[1], sys.argv[2], export.Settings(batch_size=int(sys.argv[3]), platforms=("cpu",)))
parts = Run.open(sys.argv[1]).experiment
assert parts.program.mesh.size == 4 and parts.work.shards.total == 4
vectors, _ = embeddings.content_embeddings(parts, Checkpoints(sys.argv[1]).restore(parts.program.shapes)[0])
np.testing.assert_allclose(store.open_current(sys.argv[2])["looked_up.content"][:-1], vectors, rtol=0, atol=1e-6)
"""


def test_devices_share_the_work(fresh, tmp_path):
    """Four devices, for which the rows and items of a training batch are named apart: the vectors are those of one device."""
    run, one, four = fresh("device", mesh__data=0), tmp_path / "one", tmp_path / "four"
    export.export(run, one, PLAIN._replace(batch_size=SIZE))
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", FOUR, str(run), str(four), str(SIZE)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, together = (store.open_current(folder)["looked_up.content"] for folder in (one, four))
    # Each device standardises its rows of the tables: tokens may differ in the last bit of an f16.
    np.testing.assert_allclose(together, alone, rtol=0, atol=3e-5)


def test_digests_tell_every_change_of_content_and_nothing_else():
    random = np.random.default_rng(0)
    image = FeatureSet("image", random.standard_normal((9, 4, 8)).astype(np.float16), random.random((9, 4)) > 0.3, {})
    text = FeatureSet("text", random.standard_normal((9, 2, 5)).astype(ml_dtypes.bfloat16), np.ones((9, 2), bool), {})
    before, every = digests([image, text], np.arange(9)), np.arange(9)
    assert before.shape == (9, 2) and len(np.unique(before, axis=0)) == 9
    for items in (every[2:5], every[[0, 3, 8]]):
        np.testing.assert_array_equal(digests([image, text], items), before[items])
    # One slot of a set is no longer contiguous; a mask or a last bit is enough.
    assert (digests([FeatureSet("i", image.tokens[:, :2], image.mask[:, :2], {}), text], every) != before).all()
    image.mask[3, 1] ^= True
    text.tokens.view(np.uint16)[6, 1, 4] ^= 1
    changed = (digests([image, text], every) != before).any(axis=1)
    assert np.flatnonzero(changed).tolist() == [3, 6]


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
def test_what_is_not_finite_is_seen_by_its_bits(dtype):
    array = np.random.default_rng(0).standard_normal((5, 3, 700)).astype(dtype)
    array[0, 0, 0], array[1, 0, 0] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min
    assert all_finite(array) and all_finite(array[:0]) and all_finite(array[:, 1:])
    for value in (np.inf, -np.inf, np.nan, -np.nan):
        bad = array.copy()
        bad[4, 2, -1] = value
        assert not all_finite(bad) and all_finite(bad[:, :2]) and all_finite(bad[:4])


def test_what_an_export_left_that_cannot_be_read_is_begun_afresh(fresh, tmp_path):
    run = fresh("device")
    (tmp_path / ".next").mkdir()
    (tmp_path / ".next" / "plan.json").write_text("{")
    assert export.export(run, tmp_path, PLAIN).encoded > 0
    shutil.copytree(store.open_current(tmp_path).folder, tmp_path / "versions" / "0000009")
    (tmp_path / "current").write_text("9x")
    assert "names no version" in user_error(store.open_current, tmp_path)
    assert export.export(run, tmp_path, PLAIN._replace(update=True)).version == "0000010"
    assert json.loads((tmp_path / "versions" / "0000010" / "manifest.json").read_text())["version"] == "0000010"
    assert "--checkpoint \u00b2: give best, newest" in user_error(
        export.export, run, tmp_path, PLAIN._replace(checkpoint="\u00b2")
    )


def test_a_checkpoint_that_training_replaces_while_it_is_listed_is_not_missed(fresh, monkeypatch):
    run, listed = fresh("host"), []
    metrics = checkpoint.ocp.CheckpointManager.metrics

    def replaced_the_first_time(manager, step):
        listed.append(step)
        if len(listed) == 1:
            raise FileNotFoundError(step)
        return metrics(manager, step)

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "metrics", replaced_the_first_time)
    assert Checkpoints(run).steps("best") == [0] and len(listed) == 2
