"""What encoders in the model read: random views of pictures, and the category of an item, on the devices and on the host."""

import jax
import numpy as np
import pytest

from configs import base, lemur
from em3_jax import tasks, train
from em3_jax.core import trees
from em3_jax.data.format import open_dataset
from em3_jax.features.in_model import Encoded
from em3_jax.features.prior import PRIOR, categories, prior
from em3_jax.tasks.raw import encoded
from em3_jax.training import checkpoint, embeddings, experiment
from tests import raw_items
from tests.conftest import user_error
from tests.tiny import write_tiny
from tests.training.test_sharding import on_meshes

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
CROP = {"crop": 12, "mirror": True}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return raw_items.write_pictures(tmp_path_factory.mktemp("pictures"))


def config_of(data, task: str = "ranking", **changes) -> dict:
    config = raw_items.small_ranking(data, image=str(data.parent / "resnet"))
    config.data.augment.update(CROP)
    config.model.encoder_prior = "tag"
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config.to_dict()


def tags(data) -> np.ndarray:
    """[I] the category of each item; their tags are tag0, tag1 and tag2, in this order."""
    column = open_dataset(data).item_table.column("id").to_pylist()
    return np.array([1 + int(name[1:]) % 3 for name in column])


@pytest.mark.parametrize("placement", ["device", "host"])
def test_encoders_are_given_the_category_and_nothing_else_sees_it(data, placement):
    parts = experiment.build(config_of(data, data__placement=placement))
    work, batch = parts.work, parts.work.source[0]
    assert [features.name for features in work.feature_sets] == ["image"]
    inputs = tasks.gathered(None, work.constants, batch)
    seen = []

    class Spy:
        trains = None

        def view(self, content, drawn):
            return content

        def encode(self, params, content, mask, given):
            seen.append((content, given))
            return Encoded(np.zeros((len(content), 1, 3), np.float32), mask[:, :1], {})

    found, _ = encoded({"image": Spy()}, {"encoders": {"image": {}}}, inputs)
    assert set(found.tokens) == set(found.tokens_mask) == {"image"}
    content, given = seen[0]
    np.testing.assert_array_equal(given.category, tags(data)[batch["item_id"]])
    assert given.category.dtype == np.int32 and len(content) == len(batch["item_id"])
    # An item without a picture is one without content, whatever its category.
    assert embeddings.has_content(parts).tolist() == [k != raw_items.NO_IMAGE for k in range(raw_items.ITEMS)]


def test_categories_that_training_never_shows_are_unknown(tmp_path):
    dataset = write_tiny(tmp_path).dataset
    found, column = prior(dataset, "category"), dataset.item_table.column("category").to_numpy()
    assert categories(dataset, "category") == 5  # of 6 ids, padding and unknown are one
    counts = dataset.counts["item"] + dataset.counts["item_history"]
    shown = {value for value, count in zip(column, counts, strict=True) if count}
    expected = [value - 1 if value in shown and value >= 2 else 0 for value in column]
    assert found.tokens[:, 0, 0].tolist() == expected and found.is_raw
    assert prior(dataset, "") is None and categories(dataset, "") == 0


def test_fields_that_cannot_be_a_category_are_refused(tmp_path, data):
    dataset = write_tiny(tmp_path).dataset
    assert "encoder_prior=categori" in (message := user_error(prior, dataset, "categori"))
    assert "did you mean 'category'?" in message
    assert "several values" in user_error(prior, dataset, "tags")
    assert "no such item field; known: category" in user_error(prior, dataset, "item")
    config = config_of(data)
    config["model"] |= {"content": "end_to_end", "encoders": {}}
    assert "encoder_prior" in user_error(experiment.build, config)


def of_lemur(data):
    config = lemur.get_config()
    config.model.encoder.update(width=8, heads=2, layers=1, mlp_width=8, output=8)
    config.model.encoders.update(image=str(data.parent / "resnet"), text="")
    return config


def of_pretraining(data):
    config = base.pretraining(base.raw(base.ranking(), image=str(data.parent / "resnet")))
    config.model.fusion_settings.update(width=8, heads=2, ffn_width=16, dropout=0.1)
    return config


@pytest.mark.parametrize("task", [of_lemur, of_pretraining])
def test_other_tasks_read_encoders_through_the_same_door(data, task):
    """With dial, chunks, categories and views; LEMUR's norms keep their running statistics, as its bank does its items."""
    config = task(data)
    config.data.update(root=str(data), features=("image",), batch_size=16, history_length=4)
    config.eval.batch_size = 16
    config.data.augment.update(CROP)
    config.model.update(encoder_prior="tag", encoder_chunk=5, encoder_trains={"image": "head"})
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    before = jax.device_get(state.params)["encoders"]["image"]
    for k in range(6):  # of LEMUR the first gradients are next to nothing, 1e-14 here
        batch = parts.program.place(parts.work.source[k])
        state, aux = parts.program.train_step(state, parts.work.constants, batch)
    after = trees.named_leaves(state.params["encoders"]["image"])
    moved = {name for name, leaf in trees.named_leaves(before).items() if (np.asarray(after[name]) != leaf).any()}
    assert np.isfinite(aux["loss"]) and {name.split("/")[0] for name in moved} <= {
        "stage1_block1_conv0",
        "stage1_block1_conv1",
    }
    leaves = {name.rpartition("/")[2] for name in moved}
    assert leaves == {"kernel", "scale", "bias"} | ({"mean", "var"} if task is of_pretraining else set())


def test_devices_have_the_same_views_and_chunks_of_their_own_items(data):
    """Norms do not train here, so that chunks change nothing."""
    config = config_of(data, optim__multipliers=(("/norm/", 0.0), ("^encoders/", 0.1)))
    config["model"]["encoder_chunk"] = 3
    results = on_meshes(config, "label", ((1, 1), (4, 1)))
    for name, value in results[0]["first"].items():
        if not name.endswith("_accuracy"):
            assert results[1]["first"][name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_a_run_with_random_views_resumes_to_the_same_bits(data, tmp_path):
    rows = len(open_dataset(data).split_rows("train"))

    def run_to(steps: int, name: str, **changes) -> int:
        changes |= {"train__epochs": steps * 32 / rows, "train__eval_every": 2, "train__patience": 0}
        return train.train(config_of(data, **changes), tmp_path / name)["step"]

    run_to(4, "whole"), run_to(2, "halves"), run_to(4, "without", data__augment={"crop": 12, "mirror": False})
    assert run_to(4, "halves") == 4
    template = jax.eval_shape(experiment.build(config_of(data)).program.init)
    whole, halves, without = (
        trees.named_leaves(checkpoint.Checkpoints(tmp_path / name).restore(template, 4)[0].params)
        for name in ("whole", "halves", "without")
    )
    for name, leaf in whole.items():
        np.testing.assert_array_equal(leaf, halves[name], err_msg=name)
    assert any((np.asarray(leaf) != np.asarray(without[name])).any() for name, leaf in whole.items())
    assert PRIOR not in "".join(whole)
