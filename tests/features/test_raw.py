"""Raw content: encoders in the training step. Frozen they give what extraction gives, lifted they train; and what is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pytest

from configs import base, em3_movielens
from em3_jax import evaluate as evaluation
from em3_jax import tasks, train
from em3_jax.config import parse
from em3_jax.core import rng, trees
from em3_jax.core.types import State
from em3_jax.data.batches import BatchBuilder, Buckets
from em3_jax.data.format import open_dataset
from em3_jax.data.images import load_processor
from em3_jax.data.texts import load_tokenizer
from em3_jax.features import extract, raw_encoders
from em3_jax.tasks.ranking.task import ranking
from em3_jax.tasks.raw import WithEncoders
from em3_jax.training import checkpoint, experiment
from tests import raw_items
from tests.conftest import user_error
from tests.features import test_convert

pytestmark = [pytest.mark.filterwarnings("ignore:features .* random weights"), pytest.mark.quickly_compiled]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *raw_items.WORDS[:4], "tag", "##0", "##1", "##2"]
SWIN = {
    "model_type": "swin", "embed_dim": 8, "depths": [1], "num_heads": [2], "window_size": 2, "image_size": 8, "patch_size": 4
}  # fmt: skip
FRAMES = 2  # of item 2; the others have an image each, or none
SETTINGS = {
    "image": {"random_weights": 0, "frames": FRAMES, "pooling": "tokens", "batch_size": 8},
    "text": {"fields": ("title", "tag"), "normalize": True},
}
B, T, STEPS = 32, 6, 6


@pytest.fixture(scope="module", autouse=True)
def _fast_to_compile():
    """Compiling is most of the work here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class World(NamedTuple):
    """One set of items, prepared twice.

    Attributes:
      raw, encoded: datasets with the feature sets "image" and "text", made with --raw and without it.
      folders: modality -> encoder.
    """

    raw: Path
    encoded: Path
    folders: dict[str, str]


def make_features(data: Path, folders: dict[str, str], modality: str, **settings) -> dict:
    settings = SETTINGS[modality] | settings
    if modality == "image":
        settings["images"] = data.parent / "photos"
    return extract.extract(data, modality=modality, encoder=folders[modality], **settings)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    root = tmp_path_factory.mktemp("raw")
    raw_items.write_items(root)
    (root / "photos" / "i2.png").unlink()
    for k in range(FRAMES):
        raw_items.write_image(root / "photos" / "i2" / f"{k}.png", seed=100 + k)
    tensors = test_convert.bert_tensors()
    tensors["encoder.layer.0.output.dense.bias"][0] = -0.0  # equal to 0.0, and yet of other bits
    bert = test_convert.write(root / "bert", tensors)
    (bert / "vocab.txt").write_text("\n".join(VOCABULARY), encoding="utf-8")
    (root / "swin").mkdir()
    (root / "swin" / "config.json").write_text(json.dumps(SWIN))
    folders = {"image": str(root / "swin"), "text": str(bert)}
    raw, encoded = (raw_items.prepare(root, root / name).root for name in ("raw_data", "encoded_data"))
    with warnings.catch_warnings(action="ignore"):
        for modality in folders:
            make_features(raw, folders, modality, raw=True)
            make_features(encoded, folders, modality, dtype="float32")
    return World(raw, encoded, folders)


def make_config(root: Path, folders: dict[str, str] | None = None, **changes) -> dict:
    """A small config of the dataset `root`; raw where there are `folders`, else end to end."""
    config = base.ranking()
    if folders:
        config = base.raw(config, **folders)
    config.data.update(root=str(root), features=("image", "text"), batch_size=B, history_length=T)
    config.model.backbone_settings.update(hidden=(16,), attention_score="dot")
    config.model.fusion_settings.update(width=8, heads=2, ffn_width=16)
    config.model.cic.update(negatives=0, width=8)
    config.tables.width = 4
    config.eval.batch_size = 64
    for name, value in changes.items():
        section, key = name.split("__")
        config[section][key] = value
    return config.to_dict()


def build(config: dict) -> experiment.Experiment:
    return experiment.build(config)


def run(parts: experiment.Experiment, state, steps: int):
    """(state, scalars of the last step)."""
    for k in range(steps):
        state, aux = parts.program.train_step(state, parts.work.constants, parts.program.place(parts.work.source[k]))
    return state, aux


@pytest.fixture(scope="module")
def raw_parts(world) -> experiment.Experiment:
    return build(make_config(world.raw, world.folders))


@pytest.fixture(scope="module")
def fresh(raw_parts) -> State:
    """The state that `raw_parts` begins with, on the host."""
    return jax.device_get(raw_parts.program.init())


@pytest.fixture(scope="module")
def encoded_parts(world) -> experiment.Experiment:
    return build(make_config(world.encoded))


# ---- the feature sets -------------------------------------------------------------------------------------------------


def test_raw_sets_hold_what_the_encoder_is_to_see(world):
    dataset = open_dataset(world.raw)
    image, text = dataset.features("image"), dataset.features("text")
    processor = load_processor(world.folders["image"], default_size=SWIN["image_size"])
    read = lambda path: processor(raw_items.Image.open(world.raw.parent / "photos" / path)).ravel()  # noqa: E731
    np.testing.assert_array_equal(image.tokens[2], [read("i2/0.png"), read("i2/1.png")])
    np.testing.assert_array_equal(image.tokens[3, 0], read("i3.png"))
    assert image.mask.tolist() == [[k != raw_items.NO_IMAGE, k == 2] for k in range(raw_items.ITEMS)]
    assert not image.tokens[~image.mask].any()
    assert image.manifest["raw"] == {"slots": FRAMES, "shape": [8, 8, 3]}

    tokenizer, length = load_tokenizer(world.folders["text"]), text.manifest["raw"]["length"]
    assert text.manifest["raw"] == {"slots": 2, "length": test_convert.POSITIONS, "padding_id": 0}
    texts = [(raw_items.title(k), f"tag{k % 3}") for k in range(raw_items.ITEMS)]
    for item, pair in enumerate(texts):
        for slot, words in enumerate(pair):
            ids = tokenizer(words, truncation=True, max_length=length)["input_ids"] if words.strip() else []
            mask = text.mask[item].reshape(2, length)[slot]
            assert mask.tolist() == [k < len(ids) for k in range(length)]
            assert text.tokens[item, :, 0].reshape(2, length)[slot, mask].tolist() == ids
    assert (image.tokens.dtype, text.tokens.dtype) == (np.uint8, np.int32)


def test_a_raw_set_tells_how_it_would_be_encoded(world):
    for name in ("image", "text"):
        raw, encoded = (open_dataset(root).features(name).manifest for root in (world.raw, world.encoded))
        same = set(encoded) - {"dtype", "shape", "hash"}
        assert {key: raw[key] for key in same} == {key: encoded[key] for key in same}
        assert set(raw) == set(encoded) | {"raw"}


def test_an_update_of_a_raw_set_makes_room_for_longer_texts(world, tmp_path):
    raw_items.write_items(tmp_path, items=4)
    data = raw_items.prepare(tmp_path, tmp_path / "data").root
    make_features(data, world.folders, "text", raw=True)
    assert open_dataset(data).features("text").manifest["raw"]["length"] == 6  # [CLS], 4 words, [SEP]
    raw_items.write_items(tmp_path)
    raw_items.prepare(tmp_path, data, overwrite=True)
    make_features(data, world.folders, "text", raw=True, update=True)
    updated, anew = (open_dataset(root).features("text") for root in (data, world.raw))
    np.testing.assert_array_equal(updated.tokens, anew.tokens)
    np.testing.assert_array_equal(updated.mask, anew.mask)
    assert updated.manifest["raw"] == anew.manifest["raw"]


def test_raw_features_have_no_dtype_of_ones_own_and_do_not_replace_others(world):
    message = user_error(lambda: make_features(world.raw, world.folders, "text", raw=True, dtype="float32"))
    assert "--dtype float32" in message and "--raw" in message
    message = user_error(lambda: make_features(world.encoded, world.folders, "text", raw=True))
    assert "modality name in use" in message and "dtype" in message


def test_integers_are_features_of_raw_sets_only(world, tmp_path):
    data = Path(shutil.copytree(world.raw, tmp_path / "data"))
    manifest = data / "features" / "text" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"raw"', '"rare"'))
    assert "int32, must be float16" in user_error(open_dataset(data).features, "text")


# ---- frozen -----------------------------------------------------------------------------------------------------------


def test_frozen_encoders_give_the_loss_and_the_scores_of_extracted_features(fresh, raw_parts, encoded_parts):
    encoded = encoded_parts.program.init()
    same = {name: fresh.params[name] for name in encoded.params}
    jax.tree.map(np.testing.assert_array_equal, same, encoded.params)
    (raw, raw_aux), (encoded, encoded_aux) = run(raw_parts, fresh, 1), run(encoded_parts, encoded, 1)
    assert raw_aux.keys() == encoded_aux.keys()
    for (
        name,
        value,
    ) in encoded_aux.items():  # the norm of the gradient among them, in which frozen encoders have no part
        np.testing.assert_allclose(raw_aux[name], value, rtol=2e-5, err_msg=name)
    # The same parameters for both: Adam makes much of the last bits of a gradient.
    raw = raw.replace(params=raw.params | encoded.params, tables=encoded.tables)
    batch = raw_parts.work.evaluation("valid")[0]
    logits = encoded_parts.program.predict(encoded, batch)
    assert np.std(logits) > 1e-2
    np.testing.assert_allclose(raw_parts.program.predict(raw, batch), logits, rtol=1e-5, atol=1e-6)


def test_raw_and_extracted_features_mix_and_the_host_gathers_both(world, tmp_path, fresh, encoded_parts):
    """Images raw, texts extracted, gathered on the host."""
    data = Path(shutil.copytree(world.raw, tmp_path / "data"))
    shutil.rmtree(data / "features" / "text")
    shutil.copytree(world.encoded / "features" / "text", data / "features" / "text")
    config = make_config(data, {"image": world.folders["image"], "text": ""}, data__placement="host")
    parts = build(config)
    batch = parts.work.evaluation("valid")[0]
    logits = encoded_parts.program.predict(fresh, encoded_parts.work.evaluation("valid")[0])
    state = fresh.replace(params=fresh.params | {"encoders": {"image": fresh.params["encoders"]["image"]}})
    assert trees.named_leaves(state).keys() == trees.named_leaves(jax.eval_shape(parts.program.init)).keys()
    assert batch["tokens"]["image"].dtype == np.uint8
    np.testing.assert_allclose(parts.program.predict(state, batch), logits, rtol=1e-5, atol=1e-6)


def bits(tree) -> dict[str, np.ndarray]:
    return {name: np.array(leaf).view(np.uint32) for name, leaf in trees.named_leaves(tree).items()}


def differing(one: dict, other: dict) -> set[str]:
    return {name for name in one if (one[name] != other[name]).any()}


def test_frozen_leaves_keep_their_bits_and_have_no_optimizer_state(world, fresh, raw_parts, encoded_parts):
    before = bits(fresh.params)
    loaded = raw_encoders.load(world.folders, raw_parts.work.feature_sets)
    assert not differing(bits({n: encoder.params for n, encoder in loaded.items()}), bits(fresh.params["encoders"]))
    leaves = jax.tree.leaves(jax.eval_shape(encoded_parts.program.init).opt_state)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(fresh.opt_state)) == sorted(leaf.shape for leaf in leaves)
    state, _ = run(raw_parts, fresh, 10)
    changed = differing(before, bits(state.params))
    trainable = {name for name in before if not name.startswith("encoders/")}
    assert len(before) - len(trainable) == len(jax.tree.leaves(fresh.params["encoders"])) > 30
    assert changed <= trainable
    assert all(name.endswith("key/bias") for name in trainable - changed)  # softmax ignores them


# ---- lifted -----------------------------------------------------------------------------------------------------------


def unused(name: str) -> bool:
    """Parameters that the loss does not depend on: BERT's pooler is not asked, and softmax ignores key biases."""
    return "pooler" in name or name.endswith("key/bias")


def test_lifted_encoders_train(world):
    frozen, lifted = (
        build(make_config(world.raw, {"text": world.folders["text"]}, data__features=("text",), **changes))
        for changes in ({}, {"optim__multipliers": (("^encoders/", 0.1),)})
    )
    before = bits(lifted.program.init().params["encoders"])
    state, _ = run(lifted, lifted.program.init(), 2)
    unchanged = set(before) - differing(before, bits(state.params["encoders"]))
    assert {name for name in before if "pooler" in name} <= unchanged <= {name for name in before if unused(name)}
    assert not differing(
        before, bits(lifted.program.init().params["encoders"])
    )  # donating a state leaves the loaded weights

    def flops(parts) -> float:
        step = parts.program.train_step
        lowered = step.jitted.lower(
            step.root, jax.eval_shape(parts.program.init), parts.work.constants, parts.work.source[0]
        )
        return lowered.cost_analysis()["flops"]

    assert flops(frozen) < 0.7 * flops(lifted)  # what is frozen is not differentiated


def test_gradients_of_the_encoders_are_those_of_the_loss(world, fresh, raw_parts):
    """Along the gradient itself the loss changes by its square: a central difference; and items without content are there."""
    dataset = open_dataset(world.raw)
    sets, config = raw_parts.work.feature_sets, parse.parse(make_config(world.raw, world.folders))
    encoders = raw_encoders.load(world.folders, sets)
    task = WithEncoders(ranking(dataset.fields, config.model), encoders)
    builder = BatchBuilder(dataset, history_length=T, unknown_alpha=0.0, unknown_floor={}, host_features=tuple(sets))
    batch = builder(np.arange(B), buckets=Buckets(64, 64), key=rng.numpy_key(0, "unknown", 0))
    assert {raw_items.NO_IMAGE, raw_items.EMPTY_TITLE} <= set(batch["item_id"])
    rows = np.random.default_rng(0).normal(size=(len(batch["row_id"]), 4)).astype(np.float32)
    inputs, params = tasks.gathered(rows, {}, batch), fresh.params
    loaded = {name: encoder.params for name, encoder in encoders.items()}
    loss = lambda encoders: task.loss(params | {"encoders": encoders}, inputs, jax.random.key(0), 0)[0]  # noqa: E731
    run_both = jax.jit(jax.value_and_grad(loss))
    _, gradient = run_both(loaded)
    for name, leaf in trees.named_leaves(gradient).items():
        assert np.isfinite(leaf).all(), name
        assert np.any(leaf) or unused(name), name
    for name in loaded:
        square = sum(float(np.sum(leaf * leaf)) for leaf in jax.tree.leaves(gradient[name]))
        size = 1e-2 / square**0.5
        ahead, behind = (
            run_both(loaded | {name: jax.tree.map(lambda p, g, h=h: p + h * g, loaded[name], gradient[name])})[0]
            for h in (size, -size)
        )
        assert (ahead - behind) / (2 * size) == pytest.approx(square, rel=0.02), name


# ---- what is refused --------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_in_a_line(world, tmp_path):
    bert, swin = world.folders["text"], world.folders["image"]
    other = test_convert.bert_tensors()
    other["pooler.dense.bias"] += 1
    cases = [
        (world.raw, "raw", {"text": bert}, ("encoders.image: missing", "'image' is raw", "swin")),
        (world.raw, "raw", {"text": bert, "image": ""}, ("encoders.image: missing",)),
        (world.raw, "raw", {"text": "", "image": ""}, ("config.model.encoders:", "content is raw")),
        (world.raw, "end_to_end", {}, ("encoders.image: missing", "content=raw", "--raw")),
        (world.raw, "end_to_end", {"text": bert}, ("encoders.text", "'end_to_end' runs no encoder")),
        (world.encoded, "raw", {"text": bert}, ("encoders.text", "no raw set", "--raw")),
        (world.raw, "raw", {"text": bert, "image": swin, "audio": bert}, ("encoders.audio", "no raw set")),
        (world.raw, "raw", {"text": str(tmp_path / "no"), "image": swin}, ("encoders.text", "no such folder", "bert")),
        (world.raw, "raw", {"text": swin, "image": swin}, ("no weights",)),
        (
            world.raw,
            "raw",
            {"text": str(test_convert.write(tmp_path / "other", other)), "image": swin},
            ("encoders.text", "the weights in", "not those for which 'text' was made"),
        ),
    ]
    for root, content, folders, words in cases:
        config = make_config(root, folders)
        config["model"]["content"] = content
        message = user_error(build, config)
        assert all(word in message for word in words), message


def test_ids_alone_need_no_encoder(world):
    config = make_config(world.raw, world.folders, optim__multipliers=())
    config["model"]["content"] = "none"
    config["model"]["encoders"] = {"text": "nowhere"}
    assert "encoders" not in jax.eval_shape(build(config).program.init).params


# ---- a whole run ------------------------------------------------------------------------------------------------------


def test_a_run_resumes_to_the_same_bits_and_is_evaluated(world, raw_parts, tmp_path):
    rows = len(open_dataset(world.raw).split_rows("train"))
    folders = {name: str(shutil.copytree(folder, tmp_path / name)) for name, folder in world.folders.items()}

    def run_to(steps: int, directory: Path, folders: dict[str, str]) -> int:
        changes = {"train__epochs": steps * B / rows, "train__eval_every": STEPS // 2, "train__patience": 0}
        return train.train(make_config(world.raw, folders, **changes), directory)["step"]

    run_to(STEPS, tmp_path / "whole", folders)
    run_to(STEPS // 2, tmp_path / "halves", folders)
    assert run_to(STEPS, tmp_path / "halves", world.folders) == STEPS  # encoders may lie elsewhere by now
    template = jax.eval_shape(raw_parts.program.init)
    whole, halves = (
        bits(checkpoint.Checkpoints(tmp_path / name).restore(template, STEPS)[0].params) for name in ("whole", "halves")
    )
    assert not differing(whole, halves)
    assert np.isfinite(evaluation.evaluate(tmp_path / "whole", "test")["slices"]["all"]["auc"])
    shutil.move(folders["text"], tmp_path / "elsewhere")
    message = user_error(evaluation.evaluate, tmp_path / "whole", "test")
    assert "config.model.encoders.text" in message and "no such folder" in message


def test_the_shipped_variant_takes_its_encoders_from_the_command_line():
    config = em3_movielens.get_config("raw")
    assert set(config.model.encoders) == {"image", "text"} and not any(config.model.encoders.values())
    config.model.encoders.text = "folder"
    assert config.to_dict()["model"]["content"] == "raw"
    assert config.optim.multipliers == (("^encoders/", 0.0), *em3_movielens.get_config().optim.multipliers)
