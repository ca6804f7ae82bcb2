"""checkpoint: what earlier versions have saved is restored."""

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.types import State
from em3_jax.training.checkpoint import Checkpoints


def state_of(slots: dict, step: int) -> State:
    tables = {"embedding": jnp.ones((4, 2)), "slots": slots}
    return State(jnp.int32(step), {"x": jnp.ones(3)}, {}, tables, {})


def test_a_lazy_adam_without_counts_is_given_those_it_was_corrected_by(tmp_path):
    variance = jnp.zeros((4, 2)).at[2].set(0.5)
    moments = {"mean": variance, "variance": variance}
    saved = Checkpoints(tmp_path)
    for kind in ("latest", "best"):
        saved.save(kind, state_of(moments, 30), {"best_step": 30})
    saved.close()
    template = state_of(moments | {"count": jnp.zeros(4)}, 0)
    checkpoints = Checkpoints(tmp_path)
    whole = checkpoints.read(template.step.sharding)
    for restored, notes in (checkpoints.restore_latest(template), checkpoints.restore(template)):
        assert int(restored.step) == 30 and notes["best_step"] == 30
        assert restored.tables["slots"].keys() == {"mean", "variance", "count"}
        np.testing.assert_array_equal(restored.tables["slots"]["count"], [0, 0, 30, 0])
        np.testing.assert_array_equal(restored.tables["slots"]["variance"], variance)
    np.testing.assert_array_equal(whole["tables/slots/count"], [0, 0, 30, 0])
    checkpoints.close()


def test_another_process_that_is_gone_is_not_the_fault_of_the_disk(tmp_path, monkeypatch):
    """It is raised as it is, for whoever tells the loss of a process from what is wrong here."""
    checkpoints = Checkpoints(tmp_path)
    gone = RuntimeError("Gloo AllGather failed: Connection reset by peer")
    assert "free space" in str(checkpoints._not_saved("latest", 3, gone))
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert checkpoints._not_saved("latest", 3, gone) is gone
    assert "free space" in str(checkpoints._not_saved("latest", 3, OSError("no space left on device")))
    checkpoints.close()
