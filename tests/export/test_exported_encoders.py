"""What a service looks up of items whose encoder is in the model, with adapters, a category and the centre of pictures."""

import jax
import numpy as np
import pytest

from em3_jax.export import items
from em3_jax.features.prior import PRIOR
from em3_jax.training import embeddings, experiment
from tests import raw_items

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_items_are_encoded_for_a_service_as_for_the_model(tmp_path, placement):
    data = raw_items.write_pictures(tmp_path)
    config = raw_items.small_ranking(data, image=str(tmp_path / "resnet"))
    config.data.placement = placement
    config.data.augment.update(crop=12, mirror=True)
    config.model.update(encoder_prior="tag", encoder_trains={"image": "adapters"}, encoder_chunk=5)
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    adapters = jax.tree.map(lambda leaf: leaf + 0.05, state.params["adapters"])
    state = state.replace(params=state.params | {"adapters": adapters})
    expected, has_content = embeddings.content_embeddings(parts, state)
    (tmp_path / "version").mkdir()
    done = items.encode_items(tmp_path / "version", parts, state, dtype="float32", batch_size=8, reusable=None)
    assert done.count == raw_items.ITEMS
    found = np.load(tmp_path / "version" / "looked_up.content.npy", mmap_mode="r")
    np.testing.assert_allclose(found[:-1][has_content], expected[has_content], rtol=0, atol=1e-5)
    assert np.std(expected[has_content], axis=0).max() > 1e-4
    # What is looked up again once the category of an item is another: it is part of what is hashed.
    beside = parts.work.content_sets[-1]
    assert beside.name == PRIOR
    every = np.arange(raw_items.ITEMS)
    before = items.digests(parts.work.content_sets, every)
    beside.tokens[3] += 1
    changed = (items.digests(parts.work.content_sets, every) != before).any(axis=1)
    assert changed.tolist() == [k == 3 for k in every]
