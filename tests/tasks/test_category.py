"""Encoders that learn categories before they see a click, and rankers that begin with them."""

import jax
import numpy as np
import pytest
from PIL import Image

from configs import base
from em3_jax import evaluate as evaluation
from em3_jax import train
from em3_jax.core import trees
from em3_jax.data import catalogue
from em3_jax.data.format import open_dataset
from em3_jax.export import vectors
from em3_jax.training import experiment
from em3_jax.training.run import Run
from tests import raw_items
from tests.conftest import user_error
from tests.features.test_raw import World, make_config, make_features
from tests.small_runs import small_config

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))  # of the pictures, by the item's tag
HELD_OUT = 0.3


@pytest.fixture(scope="module")
def coloured(tmp_path_factory) -> World:
    """Items whose tag is the colour of their picture; item `raw_items.NO_IMAGE` has none."""
    root = tmp_path_factory.mktemp("coloured")
    raw_items.write_items(root)
    for item in range(raw_items.ITEMS):
        path, random = root / "photos" / f"i{item}.png", np.random.default_rng(item)
        if path.exists():
            noise = random.integers(-30, 31, (16, 16, 3))
            Image.fromarray((np.array(COLOURS[item % 3]) + noise).astype(np.uint8)).save(path)
    folders = {"image": str(raw_items.write_swin(root / "swin"))}
    data = raw_items.prepare(root, root / "data").root
    make_features(data, folders, "image", raw=True, frames=1)
    return World(data, data, folders)


def config_of(world: World, **pretraining) -> dict:
    """Pretraining on the tags, through an encoder that trains."""
    config = base.ranking()
    config.update(make_config(world.raw, world.folders, data__features=("image",)))
    config = base.categories(config)
    config.pretraining.update({"category_field": "tag", "hold_out": HELD_OUT} | pretraining)
    config.data.batch_size, config.optim.learning_rate = 16, 3e-3
    config.train.epochs, config.train.eval_every, config.train.patience = 60.0, 30, 0
    return config.to_dict()


@pytest.fixture(scope="module")
def pretrained(coloured, tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "categories"
    train.train(config_of(coloured), directory)
    return directory


def test_an_encoder_learns_the_categories_of_items_that_it_has_not_seen(coloured, pretrained):
    parts = experiment.build(config_of(coloured))
    before, after = (parts.validate(state) for state in (parts.program.init(), Run.open(pretrained).state()))
    assert before.keys() == {"category_loss", "category_accuracy"}
    assert after["category_loss"] < 0.6 * before["category_loss"] and after["category_accuracy"] >= 0.8
    assert "no clicks to score" in user_error(evaluation.evaluate, pretrained, "test")


def test_a_ranking_run_begins_with_the_encoder_alone(coloured, pretrained, tmp_path):
    config = make_config(coloured.raw, coloured.folders, data__features=("image",))
    config["data"] |= {"history_length": 0, "order": "by_item", "items_per_batch": 8}
    config["model"] |= {"backbone": "deepctr", "content_parts": ("item",)}
    config["train"] |= {"init_from": str(pretrained), "init_parts": "encoders", "epochs": 0.5, "patience": 0}
    train.train(config, tmp_path / "run")
    leaves = [
        trees.named_leaves(jax.device_get(Run.open(one).state().params)) for one in (pretrained, tmp_path / "run")
    ]
    of_encoder = [name for name in leaves[0] if name.startswith("encoders/")]
    fresh = trees.named_leaves(experiment.build(config).program.init().params)
    assert of_encoder and any(np.abs(leaves[0][name] - fresh[name]).max() > 1e-3 for name in of_encoder)
    for name in of_encoder:  # frozen in the ranking run, as `base.raw` has it
        np.testing.assert_array_equal(leaves[0][name], leaves[1][name], err_msg=name)


def test_the_loss_is_the_cross_entropy_of_the_items_that_have_content_and_category(planted):
    """By hand, on vectors, of the classifier's scores."""
    config = base.categories(small_config(planted))
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    held_out = catalogue.hold_out(planted.num_items, 0.1)[1]
    batch = {"item_id": held_out.astype(np.int32), "item_mask": np.ones(len(held_out), bool)}
    embedding = np.asarray(parts.program.embed(state, batch), np.float64)
    of = jax.device_get(state.params["category"])
    scores = embedding @ of["kernel"] + of["bias"]
    label = np.asarray(planted.item_table.column("category").to_numpy())[held_out] - 1
    some = np.stack([planted.features(name).mask.any(axis=1) for name in ("image", "text")]).any(axis=0)[held_out]
    counted = np.flatnonzero(some & (label > 0))
    assert len(counted) > 5 and scores.shape[1] == label.max() + 1
    losses = [np.log(np.exp(scores[k, 1:]).sum()) - scores[k, label[k]] for k in counted]
    right = [1 + scores[k, 1:].argmax() == label[k] for k in counted]
    found = parts.validate(state)
    assert found["category_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["category_accuracy"] == pytest.approx(np.mean(right), abs=1e-6)


def test_vectors_of_such_a_run_are_a_feature_set(coloured, pretrained):
    vectors.export_vectors(pretrained, "of_categories")
    assert open_dataset(coloured.raw).features("of_categories").tokens.shape == (raw_items.ITEMS, 1, 8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"category_field": "colour"}, "config.pretraining.category_field=colour: "),
        ({"category_field": "tags"}, "an item has several values of it; "),
        ({"loss": "categories"}, "did you mean 'category'?"),
    ],
)
def test_a_field_that_is_no_category_is_one_line(planted, changes, message):
    config = base.categories(small_config(planted))
    config.pretraining.update(changes)
    said = user_error(experiment.build, config.to_dict())
    assert message in said and ("category" in said)


def test_what_contradicts_pretraining_on_categories_is_one_line(planted):
    config = base.categories(small_config(planted))
    config.model.encoder_prior = "category"
    assert "config.model.encoder_prior=category: encoders that read a category" in user_error(
        experiment.build, config.to_dict()
    )
    config = base.pretraining(small_config(planted))
    config.eval.metric = "category_accuracy"
    assert "not a metric of this run" in user_error(experiment.build, config.to_dict())
