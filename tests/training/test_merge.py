"""Folding the adapters of a run back: the merged run scores the same, and whatever goes wrong leaves no run."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import publish
from em3_jax.training import experiment, merge, rundir
from em3_jax.training.checkpoint import Checkpoints
from em3_jax.training.warm_start import warm_start
from tests.conftest import ROOT, user_error
from tests.small_runs import small_config
from tests.training.test_lora_phases import first, phase_two  # noqa: F401

pytestmark = pytest.mark.quickly_compiled


def leaves(directory) -> dict[str, np.ndarray]:
    saved = Checkpoints(directory).read(jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    return {name: np.asarray(leaf) for name, leaf in saved.items()}


@pytest.fixture(scope="module")
def second(planted, first, tmp_path_factory) -> Path:  # noqa: F811
    """A run of the second phase, long and fast enough for its adapters to matter, that freezes one thing besides."""
    directory = tmp_path_factory.mktemp("merge") / "second"
    config = phase_two(planted, first)
    config.optim.learning_rate = 0.03
    config.optim.multipliers = (*config.optim.multipliers, ("/lora_a$|^cic/", 0.0))
    train.train(config.to_dict(), directory)
    return directory


@pytest.fixture(scope="module")
def merged(second, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "new" / "run"
    saved = leaves(second)
    adapters = sum(name.endswith("/lora_a") for name in saved if name.startswith("params/"))
    assert merge.merge(second, out) == {"step": int(saved["step"]), "adapters": adapters}
    return out


def test_the_merged_run_evaluates_to_the_same_scores(second, merged):
    reports = [evaluation.evaluate(directory, "test") for directory in (second, merged)]
    assert reports[0]["step"] == reports[1]["step"]
    logits = [np.load(directory / "eval_test_logits.npy") for directory in (second, merged)]
    np.testing.assert_allclose(logits[1], logits[0], rtol=0, atol=1e-6)
    for name, values in reports[0]["slices"].items():
        assert reports[1]["slices"][name] == pytest.approx(values, abs=1e-6, nan_ok=True)


def test_the_adapters_did_matter(planted, second, merged):
    saved = leaves(second)
    trained = [leaf for name, leaf in saved.items() if name.startswith("params/") and name.endswith("/lora_b")]
    assert trained and all(np.abs(leaf).max() > 1e-3 for leaf in trained)
    # Without them the scores would be others: the kernels alone, in the merged run's model.
    parts = experiment.build(rundir.read(merged)["config"])
    state, _ = Checkpoints(merged).restore(jax.eval_shape(parts.program.init))
    with_kernels = jax.tree_util.tree_map_with_path(
        lambda path, leaf: saved["params/" + "/".join(key.key for key in path)], state.params
    )
    batch = parts.work.evaluation("test")[0]
    difference = parts.program.predict(state, batch) - parts.program.predict(state.replace(params=with_kernels), batch)
    assert np.abs(difference).max() > 1e-3


def test_what_the_merged_run_is(planted, second, merged):
    old, new = rundir.read(second), rundir.read(merged)
    assert new["config"]["model"]["fusion_settings"]["lora"] == {"rank": 0, "stop_gradient": "output"}
    assert new["config"]["train"]["init_from"] == ""
    assert new["config"]["optim"]["multipliers"] == [["^model/fusion/", 0.0], ["/lora_a$|^cic/", 0.0]]
    assert new["merged_from"] == {"workdir": str(second), "step": int(leaves(second)["step"])}
    assert (old["data_hash"], old["commit"]) == (new["data_hash"], new["commit"])
    names = set(leaves(merged))
    assert not any("lora" in name for name in names)
    assert {name for name in leaves(second) if "lora" not in name} == names
    assert [path.name for path in merged.parent.iterdir()] == ["run"]


def test_others_start_from_it_and_training_in_it_would_go_on(planted, merged):
    config = small_config(planted, data__history_length=16)
    config.train.init_from = str(merged)
    parts = experiment.build(config.to_dict())
    state = warm_start(parts.program.init(), merged, parts.work.dataset.meta["data_hash"])
    saved = leaves(merged)
    kernel = state.params["model"]["fusion"]["join"]["kernel"]
    np.testing.assert_array_equal(kernel, saved["params/model/fusion/join/kernel"])
    parts = experiment.build(rundir.read(merged)["config"])
    state, notes = Checkpoints(merged).restore_latest(parts.program.init())
    assert int(state.step) == notes["best_step"] == int(saved["step"]) and 0 < notes["best_value"] < 1


def test_a_link_is_written_through(second, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    merge.merge(second, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and sorted(os.listdir(tmp_path)) == ["disk", "out"]
    assert sorted(os.listdir(tmp_path / "disk")) == ["checkpoints", "rows", "run.json", "vocabulary"]


def test_what_cannot_be_merged(first, second, merged, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert "run.json" in user_error(merge.merge, tmp_path / "nowhere", out)
    assert "no adapters" in user_error(merge.merge, first, out)
    assert "exists already as a run" in user_error(merge.merge, second, merged)
    assert "exists already as a run" in user_error(merge.merge, second, second)
    (tmp_path / "untrained").mkdir()
    shutil.copy(second / "run.json", tmp_path / "untrained")
    assert "no checkpoint" in user_error(merge.merge, tmp_path / "untrained", out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    assert "not an empty folder" in user_error(merge.merge, second, tmp_path / "other")
    assert "cannot be written" in user_error(merge.merge, second, tmp_path / "other" / "notes.txt" / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "untrained"]


@pytest.mark.parametrize("failing", ["save", "close", "write"])
def test_an_interrupted_merge_leaves_no_run(second, tmp_path, monkeypatch, failing):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    target = {"save": (Checkpoints, "save"), "close": (Checkpoints, "wait"), "write": (publish, "replace")}[failing]
    monkeypatch.setattr(*target, stop)
    with pytest.raises(KeyboardInterrupt):
        merge.merge(second, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_killed_merge_leaves_nothing_that_evaluation_takes(second, tmp_path):
    program = (
        "import os, pathlib; from em3_jax.training import merge; pathlib.Path.write_text = lambda *a, **k: os._exit(9);"
        f"merge.merge({str(second)!r}, {str(tmp_path / 'out')!r})"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 9
    (left,) = tmp_path.glob(".out.tmp-*")
    assert {path.name for path in tmp_path.iterdir()} <= {left.name, ".out.lock"}
    assert left.name.startswith(".out.tmp-") and (left / "checkpoints" / "best").is_dir()
    for folder in (left, tmp_path / "out"):
        assert "run.json: file missing" in user_error(evaluation.evaluate, folder, "test")


def test_the_command(second, tmp_path):
    command = [sys.executable, "-m", "em3_jax.merge", f"--workdir={second}", f"--out={tmp_path / 'out'}"]
    runs = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False) for _ in range(2)]
    assert runs[0].returncode == 0 and "adapters folded in" in runs[0].stdout
    assert runs[1].returncode == 2 and len(runs[1].stderr.strip().splitlines()) == 1
