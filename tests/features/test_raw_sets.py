"""`em3 raw`: token ids and pixels for encoders from scratch, and a run that trains on them."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs import lemur as lemur_config
from em3_jax import train
from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data.format import open_dataset
from em3_jax.data.readers.table import table
from em3_jax.data.texts import hashed_words
from em3_jax.export import vectors
from em3_jax.features import extract, raw
from em3_jax.features.convert import load_encoder
from em3_jax.tables import memory_bank
from em3_jax.training import checkpoint, experiment
from tests import raw_items
from tests.conftest import ROOT
from tests.features import test_convert

pytestmark = pytest.mark.quickly_compiled

WORDS = ("red", "green", "blue", "tall", "small", "old", "new", "quick")


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """Clicks on 24 items with titles and pictures; item 3 has no title, item 5 no picture, item 7 a damaged one."""
    folder, random = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    titles = [" ".join(random.choice(WORDS, 1 + k % 5)) for k in range(24)]
    titles[3] = ""
    (folder / "images").mkdir()
    for k in set(range(24)) - {5}:
        pixels = random.integers(0, 255, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"i{k}.png")
    (folder / "images" / "i7.png").write_bytes(b"no picture")
    items = {"item": [f"i{k}" for k in range(24)], "title": titles, "kind": [f"k{k % 3}" for k in range(24)]}
    pq.write_table(pa.table(items), folder / "items.parquet")
    log = {
        "user": [f"u{k}" for k in random.integers(0, 12, 600)],
        "item": [f"i{k}" for k in random.integers(0, 24, 600)],
        "time": list(range(600)),
        "label": random.integers(0, 2, 600).tolist(),
    }
    pq.write_table(pa.table(log), folder / "log.parquet")
    table(
        folder / "data",
        interactions=folder / "log.parquet",
        items=folder / "items.parquet",
        item_fields=("kind",),
        item_text=("title",),
    )
    raw.raw(folder / "data", text={"title": "3", "kind": "2"}, vocabulary=64, name="words")
    raw.raw(folder / "data", image_size=8, images=folder / "images", name="pixels")
    return folder


def test_texts_become_word_pieces_field_by_field(shop):
    features = open_dataset(shop / "data").features("words")
    manifest = features.manifest
    assert features.is_raw and manifest["raw"]["fields"] == {"title": 3, "kind": 2}
    assert features.tokens.shape == (24, 5, 1) and features.tokens.max() < manifest["raw"]["vocabulary"] <= 64
    titles = open_dataset(shop / "data").item_table.column("title").to_pylist()
    for item in range(24):
        count = min(len((titles[item] or "").split()), 3)
        np.testing.assert_array_equal(features.mask[item, :3], np.arange(3) < count)
    one_word = [k for k, title in enumerate(titles) if title and len(title.split()) == 1]
    ids = {titles[k]: int(features.tokens[k, 0, 0]) for k in one_word}
    assert all(int(features.tokens[k, 0, 0]) == ids[titles[k]] for k in one_word)
    assert not features.tokens[3, :3].any() and features.mask[3, 3]  # no title, but a kind


def test_a_set_made_again_keeps_its_tokenizer(shop):
    first = raw.raw(shop / "data", text={"title": "4"}, vocabulary=40, name="kept")
    again = raw.raw(shop / "data", text={"title": "4"}, vocabulary=12, name="kept", overwrite=True)
    assert again["tokenizer"] == first["tokenizer"] and again["hash"] == first["hash"]


def test_the_same_texts_give_the_same_tokenizer_in_every_process(tmp_path):
    """Titles full of ties between merges; whatever the hash seed, the number of threads and the order of the items."""
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghijäöé世界"), random.integers(2, 8))) for _ in range(300)]
    titles = [" ".join(random.choice(words, 5)) for _ in range(400)]
    log = {"user": ["u", "v"] * 20, "item": ["i0", "i1", "i2", "i3"] * 10, "label": [0, 1, 1, 0] * 10}
    pq.write_table(pa.table(log | {"time": list(range(40))}), tmp_path / "log.parquet")

    def made(name: str, order: np.ndarray, seed: str) -> tuple[str, np.ndarray]:
        items = {"item": [f"i{k}" for k in order], "title": [titles[k] for k in order]}
        pq.write_table(pa.table(items), tmp_path / "items.parquet")
        root = table(
            tmp_path / name,
            interactions=tmp_path / "log.parquet",
            items=tmp_path / "items.parquet",
            item_text=("title",),
        ).root
        command = [sys.executable, "-m", "em3_jax.raw", "--data", str(root), "--text", "title=20"]
        of_process = {"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": seed}
        options = ["--vocabulary", "300", "--name", "words"]
        subprocess.run(command + options, cwd=ROOT, env=os.environ | of_process, check=True)
        ids = open_dataset(root).item_table.column("id").to_pylist()
        features = open_dataset(root).features("words")
        place = [ids.index(f"i{k}") for k in range(len(titles))]
        return features.manifest["tokenizer"], np.asarray(features.tokens)[place].tobytes()

    order = np.arange(len(titles))
    first = made("one", order, "1")
    assert len(json.loads(first[0])["model"]["vocab"]) == 300
    assert made("two", order, "2") == first and made("three", order[::-1], "3") == first


def test_a_text_that_looks_like_a_piece_of_the_tokenizer_is_text(shop):
    """ "##" and "[PAD]" are written in some titles; they are punctuation there and no pieces."""
    tokenizer = raw._trained(["cab [pad] ##b c##b"] * 3, 40)
    assert tokenizer.encode("c##b").tokens == ["c", "#", "#", "b"]
    assert 0 not in tokenizer.encode("[PAD]").ids


def test_pictures_become_pixels_and_what_cannot_be_read_is_masked(shop):
    features = open_dataset(shop / "data").features("pixels")
    manifest = features.manifest
    assert features.tokens.shape == (24, 1, 8 * 8 * 3) and features.tokens.dtype == np.uint8
    assert np.flatnonzero(~features.mask[:, 0]).tolist() == [5, 7] and manifest["counts"]["unusable"] == 1
    expected = Image.open(shop / "images" / "i2.png").resize((8, 8), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(features.tokens[2, 0], np.asarray(expected).ravel())


@pytest.mark.parametrize(
    "options,message",
    [
        ({}, "give either --text"),
        ({"text": {"title": "3"}, "image_size": 8}, "give either --text"),
        ({"text": {"title": "many"}}, "--text title=many: give a number of tokens"),
        ({"text": {"name": "3"}}, "items have no field 'name'"),
        ({"image_size": 2}, "--image-size 2: give 4 to 1024"),
    ],
)
def test_mistakes(shop, options, message):
    with pytest.raises(UserError, match=message):
        raw.raw(shop / "data", name="other", **options)
    with pytest.raises(UserError, match=r"there already; choose another --name"):
        raw.raw(shop / "data", text={"title": "3"}, name="words")


def small(shop):
    config = lemur_config.get_config()
    config.data.root = str(shop / "data")
    config.data.features = ("words", "pixels")
    config.data.batch_size = 64
    config.data.history_length = 10
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    config.model.layout.update({"patch": 4})
    config.model.layout.lengths = {"title": 2}
    config.model.backbone_settings.hidden = (8,)
    config.train.epochs = 2.0
    config.train.eval_every = 7
    return config


def test_a_run_fills_its_bank_and_the_bank_is_the_feature_store(shop, tmp_path):
    """Also items without any text or picture; what is exported is the bank of the best checkpoint, bit for bit."""
    config = small(shop)
    train.train(config.to_dict(), tmp_path / "run")
    folder = vectors.export_vectors(tmp_path / "run", "bank")
    features = open_dataset(shop / "data").features("bank")
    parts = experiment.build(config.to_dict())
    state, _ = checkpoint.Checkpoints(tmp_path / "run").restore(parts.program.init())
    written = np.asarray(state.memory["written"])[:24] > memory_bank.NEVER
    assert written.all() and features.mask[:, 0].all() and json.loads((folder / "manifest.json").read_text())
    np.testing.assert_array_equal(features.tokens[:, 0], np.asarray(state.memory["vector"])[:24])
    assert len(np.unique(features.tokens[:, 0], axis=0)) == 24


@pytest.mark.parametrize(
    "key,value,message",
    [
        ("patch", 3, "patch=3 does not divide the pictures of 'pixels', 8 x 8"),
        ("lengths", {"titel": 2}, "no such text field; did you mean 'title'"),
        ("lengths", {"title": 0}, "lengths.title=0: give a whole number of 1 or more"),
    ],
)
def test_mistakes_in_the_layout(shop, key, value, message):
    config = small(shop).to_dict()
    config["model"]["layout"][key] = value
    with pytest.raises(UserError, match=message):
        experiment.build(config)


def test_queries_have_an_encoder_of_their_own_and_group_the_rows(shop, tmp_path):
    """Where the log has a context field `query`: its words are read, its rows are no negatives of each other, QAUC is by it."""
    log = pq.read_table(shop / "log.parquet")
    texts = [f"{WORDS[k % 8]} {WORDS[k % 5]}" for k in range(log.num_rows)]
    pq.write_table(log.append_column("query", pa.array(texts)), tmp_path / "log.parquet")
    dataset = table(
        tmp_path / "data",
        interactions=tmp_path / "log.parquet",
        items=shop / "items.parquet",
        item_text=("title",),
        context_fields=("query",),
    )
    raw.raw(tmp_path / "data", text={"title": "3"}, name="words")
    config = small(shop)
    config.data.root, config.data.features = str(tmp_path / "data"), ("words",)
    parts = experiment.build(config.to_dict())
    batch = parts.work.source[0]
    words = dataset.meta["vocabularies"]["context"]["query"]
    numbers = {word: hashed_words([word], 1, 8192)[0, 0] for word in WORDS}
    for group, tokens in zip(batch["group"], batch["query_tokens"], strict=True):
        expected = [numbers[word] for word in words[group - FIRST_KNOWN].split()]
        assert tokens.tolist() == expected + [0] * (10 - len(expected))
    state = parts.program.init()
    before = jax.tree.map(np.asarray, state.params["query_encoder"])
    state, _ = parts.program.train_step(state, parts.work.constants, parts.program.place(batch))
    assert any(
        (a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, state.params["query_encoder"])), strict=True)
    )
    report = parts.evaluate(state, "train")[0]["all"]
    assert 0 < report["qauc"] < 1 and report["qauc_queries"] + report["qauc_queries_left_out"] == len(set(texts))


def test_a_converted_checkpoint_reads_a_set_first_and_its_top_layer_alone_trains(tmp_path):
    """Its weights are where training starts; lower layers stay bit for bit."""
    raw_items.write_items(tmp_path)
    bert = test_convert.write(tmp_path / "bert", test_convert.bert_tensors())
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *raw_items.WORDS[:4], "tag", "##0", "##1", "##2"]
    (bert / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    root = raw_items.prepare(tmp_path, tmp_path / "data").root
    extract.extract(root, modality="text", encoder=str(bert), fields=("title",), raw=True)
    config = lemur_config.get_config()
    config.data.update(root=str(root), features=("text",), batch_size=32, history_length=6)
    config.model.encoder.update({"width": 8, "layers": 1, "heads": 2, "mlp_width": 8, "output": 6})
    config.model.encoders.text = str(bert)
    config.model.backbone_settings.hidden = (8,)
    layers = sorted(name for name in load_encoder(bert)[1] if name.startswith("layer"))
    config.optim.multipliers = ((f"^encoders/text/(?!{layers[-1]}/)", 0.0),)
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    before = jax.tree.map(np.array, state.params["encoders"]["text"])
    for name, leaf in trees.named_leaves(load_encoder(bert)[1]).items():
        np.testing.assert_array_equal(trees.named_leaves(before)[name], leaf, err_msg=name)
    for k in range(3):
        state, _ = parts.program.train_step(state, parts.work.constants, parts.program.place(parts.work.source[k]))
    after = trees.named_leaves(state.params["encoders"]["text"])
    moved = {
        name for name, leaf in trees.named_leaves(before).items() if np.asarray(after[name]).tobytes() != leaf.tobytes()
    }
    assert moved and all(name.startswith(f"{layers[-1]}/") for name in moved)
