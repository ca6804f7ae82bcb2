"""benchmarks.peer_torch: the PyTorch step that ours is timed against is the same step."""

import jax
import numpy as np
import pytest
import torch

from benchmarks.peer_torch import peer_of, tensors
from benchmarks.ranking import Trainer, planted_config
from em3_jax import losses, rng


@pytest.mark.parametrize("distinct_items", [True, False])
def test_the_peer_takes_the_same_steps(planted, distinct_items):
    """Losses and gradient norms of four steps on a batch; each depends on all updates before."""
    config = planted_config(planted.root)
    config.data.batch_size, config.data.history_length = 24, 5
    config.model.fusion_settings.width, config.model.cic.negatives = 16, 8
    trainer = Trainer(config, distinct_items)

    def draw(valid: torch.Tensor, step: int):
        key = rng.stream(jax.random.key(config.seed), "negatives", np.int32(step))
        drawn, used = losses.in_batch_negatives(valid.numpy(), config.model.cic.negatives, key)
        return tensors(drawn), tensors(used)

    peer, batch = peer_of(trainer, config.to_dict(), draw), tensors(jax.device_get(trainer.batch))
    for step in range(4):
        ours, theirs = trainer(), peer(batch)
        for name, value in theirs.items():
            assert float(value) == pytest.approx(float(ours[name]), rel=1e-4), (step, name)
    table = np.asarray(trainer.state.tables["embedding"])
    np.testing.assert_allclose(peer.table, table, rtol=1e-3, atol=1e-5)
    assert np.abs(table).max() > 0.1
