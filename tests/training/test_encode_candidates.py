"""Where nothing reads the content of histories, a step encodes the candidates alone, and is the same step."""

import jax
import numpy as np
import pytest

from em3_jax.core import trees
from em3_jax.tasks.ranking import setup
from em3_jax.training import experiment
from tests import raw_items
from tests.training.test_sharding import check_equal, on_meshes

pytestmark = [
    pytest.mark.filterwarnings("ignore:features .* random weights"),
    pytest.mark.quickly_compiled,
    pytest.mark.seconds(90),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return raw_items.write_pictures(tmp_path_factory.mktemp("pictures"))


def config_of(data, parts: tuple[str, ...] = ("item",), placement: str = "host") -> dict:
    """A net that trains, its norms in evaluation form, for their statistics are those of what is encoded."""
    config = raw_items.small_ranking(data, image=str(data.parent / "resnet"))
    config.model.content_parts, config.model.cic.weight = parts, 0.0
    config.data.history_length, config.data.placement = 3, placement
    config.optim.multipliers = (("/norm/", 0.0), ("^encoders/", 0.3))
    config.model.backbone_settings.dropout = config.model.fusion_settings.dropout = 0.0
    return config.to_dict()


def after_steps(config: dict) -> tuple[dict, np.ndarray, int]:
    """(dense parameters by name after 2 steps, logits of a validation batch, pictures of the first batch)."""
    parts = experiment.build(config)
    state, first = parts.program.init(), parts.work.source[0]
    for k in range(2):
        batch = parts.program.place(parts.work.source[k])
        state, _ = parts.program.train_step(state, parts.work.constants, batch)
    logits = parts.program.predict(state, parts.program.place(parts.work.evaluation("valid")[0]))
    encoded = first["encode_mask" if "encode_mask" in first else "item_mask"]
    return jax.device_get(trees.named_leaves(state.params)), np.asarray(logits), int(encoded.sum())


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_step_is_that_of_encoding_all_of_a_batch(data, placement, monkeypatch):
    some, logits, fewer = after_steps(config_of(data, placement=placement))
    monkeypatch.setattr(setup, "_reads_history", lambda *_: True)
    every, expected, more = after_steps(config_of(data, placement=placement))
    assert fewer < more
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    for name, leaf in every.items():
        np.testing.assert_allclose(some[name], leaf, atol=2e-5, err_msg=name)


def test_content_of_histories_is_encoded_where_it_is_read(data):
    parts = experiment.build(config_of(data, ("item", "user")))
    assert "encode_position" not in parts.work.source[0]


@pytest.mark.parametrize("placement", ["host", "device"])
def test_several_devices_encode_candidates_alone_too(data, placement):
    check_equal(on_meshes(config_of(data, placement=placement), "label", [(1, 1), (4, 1)]))
