"""Extraction from raw images and texts: what it encodes, what it survives, and what it says of bad input."""

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from em3_jax.__main__ import call
from em3_jax.data.format import open_dataset
from em3_jax.data.images import load_processor
from em3_jax.data.texts import Tokenized, load_tokenizer
from em3_jax.features import convert, extract
from tests import raw_items
from tests.conftest import ROOT, user_error

pytestmark = pytest.mark.filterwarnings("ignore:features .* will come from random weights")


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    return {"image": raw_items.write_swin(root / "swin"), "text": raw_items.write_bert(root / "bert")}


@pytest.fixture
def data(tmp_path) -> Path:
    raw_items.write_items(tmp_path)
    return raw_items.prepare(tmp_path, tmp_path / "data").root


def run(data, encoders, modality, **settings) -> dict:
    batch = {"image": {"batch_size": 4}, "text": {"batch_tokens": 64}}[modality]
    return extract.extract(data, modality=modality, encoder=encoders[modality], random_weights=0, **(batch | settings))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def image_vectors(encoders, paths: list[Path]) -> np.ndarray:
    """[n, D] mean tokens of images."""
    module, params, _ = convert.random_encoder(encoders["image"], 0)
    processor = load_processor(encoders["image"], default_size=raw_items.SIDE)
    pixels = np.stack([processor(Image.open(path)) for path in paths]).astype(np.float32)
    images = (pixels * processor.scale - np.float32(processor.mean)) / np.float32(processor.std)
    return jax.jit(module.apply)({"params": params}, images).mean


def text_outputs(encoders, texts: list[str]):
    """The encoder's output for texts of at most `raw_items.POSITIONS` tokens."""
    module, params, _ = convert.random_encoder(encoders["text"], 0)
    encoded = load_tokenizer(encoders["text"])(
        texts, truncation=True, max_length=raw_items.POSITIONS, padding="max_length", return_tensors="np"
    )
    return jax.jit(module.apply)({"params": params}, encoded["input_ids"], encoded["attention_mask"])


def test_images_become_the_encoders_means(data, encoders):
    manifest = run(data, encoders, "image", dtype="float32")
    found = open_dataset(data).features("image")
    some = [0, 1, 2, 23]
    expected = image_vectors(encoders, [data.parent / "photos" / f"i{k}.png" for k in some])
    np.testing.assert_allclose(found.tokens[some, 0], expected, atol=1e-5)
    assert found.mask[:, 0].tolist() == [k != raw_items.NO_IMAGE for k in range(raw_items.ITEMS)]
    assert not found.tokens[raw_items.NO_IMAGE].any()
    assert manifest["random_weights"] == 0 and manifest["weights_hash"] is None
    assert (data / "features/image/report.tsv").read_text().splitlines()[1:] == [f"i{raw_items.NO_IMAGE}\t\tno image"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "pooler"])
def test_each_text_field_becomes_a_token(data, encoders, pooling):
    run(data, encoders, "text", fields=("title", "tag"), pooling=pooling, dtype="float32")
    found = open_dataset(data).features("text")
    items = [k for k in range(raw_items.ITEMS) if k != raw_items.EMPTY_TITLE]
    titles = text_outputs(encoders, [raw_items.title(k) for k in items])
    np.testing.assert_allclose(found.tokens[items, 0], getattr(titles, pooling), atol=1e-5)
    tags = text_outputs(encoders, [f"tag{k % 3}" for k in range(raw_items.ITEMS)])
    np.testing.assert_allclose(found.tokens[:, 1], getattr(tags, pooling), atol=1e-5)
    assert not found.mask[raw_items.EMPTY_TITLE, 0] and found.mask[raw_items.EMPTY_TITLE, 1]


def test_all_tokens_can_be_kept(data, encoders):
    manifest = run(data, encoders, "text", fields=("title", "tag"), pooling="tokens", dtype="float32", max_length=7)
    found = open_dataset(data).features("text")
    tokenizer = load_tokenizer(encoders["text"])
    lengths = [len(tokenizer(raw_items.title(k))["input_ids"]) for k in range(raw_items.ITEMS)]
    lengths[raw_items.EMPTY_TITLE] = 0
    tags = len(tokenizer("tag0")["input_ids"])
    expected = [[k < min(n, 7) for k in range(7)] + [k < tags for k in range(7)] for n in lengths]
    assert found.mask.tolist() == expected
    distinct = {raw_items.title(k): n for k, n in enumerate(lengths)}
    assert manifest["counts"]["truncated"] == sum(n > 7 for n in distinct.values()) > 0
    expected = text_outputs(encoders, [raw_items.title(3)]).tokens[0, : lengths[3]]
    np.testing.assert_allclose(found.tokens[3, : lengths[3]], expected, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [("float16", 2**-11), ("bfloat16", 2**-8)])
def test_storage_rounds_once(data, encoders, dtype, bound):
    run(data, encoders, "text", dtype="float32", name="exact", normalize=True)
    run(data, encoders, "text", dtype=dtype, name="rounded", normalize=True)
    exact, rounded = (open_dataset(data).features(name).tokens.astype(np.float32) for name in ("exact", "rounded"))
    assert 0 < np.abs(rounded - exact).max() <= bound
    norms = np.linalg.norm(exact, axis=-1)
    np.testing.assert_allclose(norms[exact.any(axis=-1)], 1.0, atol=1e-6)


def test_frames_of_a_folder_become_tokens(data, encoders, tmp_path):
    for k in range(5):
        raw_items.write_image(tmp_path / "frames" / "i2" / f"{k}.png", seed=100 + k)
    raw_items.write_image(tmp_path / "frames" / "i3.jpg", seed=7)
    run(data, encoders, "image", images=tmp_path / "frames", frames=2, dtype="float32")
    found = open_dataset(data).features("image")
    assert found.tokens.shape[1] == 2
    assert found.mask.tolist() == [[k in (2, 3), k == 2] for k in range(raw_items.ITEMS)]
    expected = image_vectors(encoders, [tmp_path / "frames" / "i2" / f"{k}.png" for k in (1, 3)])
    np.testing.assert_allclose(found.tokens[2], expected, atol=1e-5)


def test_equal_texts_are_encoded_once(data, encoders, monkeypatch):
    encoded, pad = [], Tokenized.pad

    def counting(self, texts, *rest):
        encoded.extend(texts)
        return pad(self, texts, *rest)

    monkeypatch.setattr(Tokenized, "pad", counting)
    run(data, encoders, "text", fields=("tag",))
    assert len(encoded) == 3 and open_dataset(data).features("text").mask.all()


# The kill comes from within, so that it hits the moment that is meant.
KILLED = """
import os, signal, sys
from em3_jax import cli
from em3_jax.data import features
from em3_jax.features import extract
features.COMMIT_SECONDS = 0.0
moment, after = sys.argv[1], int(sys.argv[2])
owner, name = {"write": (features.FeatureWriter, "write"), "journal": (features.os, "fsync"),
               "publish": (features, "publish_set")}[moment]
whole, calls = getattr(owner, name), []
def killing(*arguments, **settings):
    calls.append(1)
    if len(calls) > after:
        os.kill(os.getpid(), signal.SIGKILL)
    return whole(*arguments, **settings)
setattr(owner, name, killing)
cli.run(lambda: extract.main(sys.argv[3:]))
"""


@pytest.mark.parametrize(
    ("modality", "moments", "settings"),
    [
        ("image", [("write", 1), ("publish", 0)], {"batch_size": 4}),
        ("text", [("journal", 2)], {"batch_tokens": 64, "fields": ("title", "tag")}),
    ],
)
def test_killed_at_any_moment_and_run_again_gives_the_same_bytes(data, encoders, modality, moments, settings):
    run(data, encoders, modality, name="whole", **settings)
    whole, killed = data / "features" / "whole", data / "features" / "killed"
    options = {"data": data, "modality": modality, "encoder": encoders[modality], "random-weights": 0, "name": "killed"}
    options |= {key.replace("_", "-"): ",".join(v) if isinstance(v, tuple) else v for key, v in settings.items()}
    arguments = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    for moment, after in moments:
        command = [sys.executable, "-W", "ignore", "-c", KILLED, moment, str(after), *arguments]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert process.returncode == -signal.SIGKILL, process.stderr
        assert not killed.exists()
    run(data, encoders, modality, name="killed", **settings)
    assert files(killed) == files(whole)
    assert not list(killed.parent.glob(".*"))


def test_it_goes_on_after_the_batches_that_are_written(data, encoders, monkeypatch):
    monkeypatch.setattr(extract.FeatureWriter, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(data, encoders, "image")
    monkeypatch.undo()
    monkeypatch.setattr(extract.FeatureWriter, "write", None)  # nothing is left to write
    assert run(data, encoders, "image")["counts"]["items_with_content"] == raw_items.ITEMS - 1


def test_an_update_encodes_what_is_new_or_changed(data, encoders, tmp_path, monkeypatch):
    run(data, encoders, "image", dtype="float32")
    run(data, encoders, "text", dtype="float32", fields=("title", "tag"))
    raw_items.write_items(tmp_path, items=raw_items.ITEMS + 3, first=-2)  # two before, one behind: rows move
    raw_items.write_image(tmp_path / "photos" / "i4.png", seed=1000)
    raw_items.prepare(tmp_path, data, overwrite=True)
    assert "--update" in user_error(lambda: run(data, encoders, "image", dtype="float32"))

    encoded, write = {"image": set(), "text": set()}, extract.FeatureWriter.write

    def recording(self, units, *rest):
        encoded[self._final.name] |= set(units // self._slots[1])
        write(self, units, *rest)

    monkeypatch.setattr(extract.FeatureWriter, "write", recording)
    run(data, encoders, "image", dtype="float32", update=True)
    run(data, encoders, "text", dtype="float32", fields=("title", "tag"), update=True)
    new = {0, 1, raw_items.ITEMS + 2}
    assert encoded == {"image": new | {4 + 2}, "text": new}
    monkeypatch.undo()
    for modality, fields in (("image", ()), ("text", ("title", "tag"))):
        run(data, encoders, modality, dtype="float32", name=f"{modality}_anew", fields=fields)
        updated, anew = (open_dataset(data).features(name) for name in (modality, f"{modality}_anew"))
        np.testing.assert_array_equal(updated.mask, anew.mask)
        np.testing.assert_allclose(updated.tokens, anew.tokens, atol=1e-6)  # other batches, other rounding
        contents = [
            (data / "features" / name / "content.parquet").read_bytes() for name in (modality, f"{modality}_anew")
        ]
        assert contents[0] == contents[1]


def test_an_update_finds_images_that_have_come_or_gone(data, encoders, tmp_path):
    (tmp_path / "photos" / "i1.png").rename(tmp_path / "aside.png")
    run(data, encoders, "image")
    assert not open_dataset(data).features("image").mask[1]
    (tmp_path / "aside.png").rename(tmp_path / "photos" / "i1.png")
    (tmp_path / "photos" / "i2.png").unlink()
    manifest = run(data, encoders, "image", update=True)
    mask = open_dataset(data).features("image").mask
    assert mask[1] and not mask[2] and manifest["counts"]["unusable"] == 1
    assert "i2.png\tfile missing" in (data / "features/image/report.tsv").read_text()


def test_bad_images_are_masked_and_reported(data, encoders, tmp_path, capsys):
    photos = tmp_path / "photos"
    (photos / "i0.png").write_text("a text")
    (photos / "i1.png").write_bytes((photos / "i1.png").read_bytes()[:300])
    (photos / "i2.png").unlink()
    Image.new("RGB", (1, 1)).save(photos / "i3.png")
    manifest = run(data, encoders, "image")
    mask = open_dataset(data).features("image").mask[:, 0]
    assert np.flatnonzero(~mask).tolist() == [0, 1, 2, raw_items.NO_IMAGE]
    assert manifest["counts"]["unusable"] == 3
    report = (data / "features/image/report.tsv").read_text().splitlines()
    assert [line.split("\t")[0] for line in report] == ["item", "i0", "i1", "i2", f"i{raw_items.NO_IMAGE}"]
    assert [line.split("\t")[2].split(" (")[0] for line in report[1:4]] == [
        "not an image",
        "damaged image",
        "file missing",
    ]
    message = user_error(lambda: run(data, encoders, "image", name="strict", strict=True))
    assert "i0.png: not an image" in message
    assert not (data / "features" / "strict").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modality": "audio"}, ("--modality audio", "image, text")),
        ({"dtype": "float8"}, ("--dtype float8", "bfloat16")),
        ({"precision": "float16"}, ("--precision", "bfloat16")),
        ({"pooling": "median"}, ("--pooling median", "mean, cls, pooler, tokens, max")),
        ({"max_length": 13}, ("--max-length 13", "12")),
        ({"batch_tokens": 0}, ("--batch-tokens 0",)),
        ({"fields": ("titel",)}, ("'titel'", "title")),
        ({"name": "my text"}, ("'my text'", "letters")),
        ({"encoder": "nowhere/at/all"}, ("nowhere/at/all: no such folder",)),
        ({"encoder": ROOT / "tests"}, ("config.json",)),
        ({"random_weights": None}, ("no weights",)),
        ({"modality": "image"}, ("bert is an encoder for texts",)),
        ({"data": "nowhere"}, ("nowhere: no such dataset",)),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(data, encoders, settings, words):
    settings = {"data": data, "modality": "text", "encoder": encoders["text"], "random_weights": 0} | settings
    message = user_error(lambda: extract.extract(settings.pop("data"), **settings))
    assert all(word in message for word in words), message
    assert not list((data / "features").iterdir())


def test_swin_has_no_class_token(data, encoders):
    assert "mean, pooler, tokens" in user_error(lambda: run(data, encoders, "image", pooling="cls"))


def test_an_unknown_model_type_names_the_known(data, encoders, tmp_path):
    shutil.copytree(encoders["text"], tmp_path / "other")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    message = user_error(lambda: run(data, {"text": tmp_path / "other"}, "text"))
    assert all(word in message for word in ("'gpt2'", "bert", "roberta", "swin"))


def test_a_tokenizer_of_another_checkpoint(data, encoders, tmp_path):
    shutil.copytree(encoders["text"], tmp_path / "other")
    with (tmp_path / "other" / "vocab.txt").open("a") as file:
        file.write("\n" + "\n".join(["car", "red1", "tags"]))
    (tmp_path / "items.csv").write_text((tmp_path / "items.csv").read_text("utf-8").replace("red", "tags"), "utf-8")
    raw_items.prepare(tmp_path, data, overwrite=True)
    assert "same checkpoint" in user_error(lambda: run(data, {"text": tmp_path / "other"}, "text"))


def test_a_hub_name_without_a_network(monkeypatch):
    import huggingface_hub

    def offline(*_, **__):
        raise huggingface_hub.errors.LocalEntryNotFoundError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    message = user_error(extract.encoder_folder, "microsoft/swin-tiny")
    assert "microsoft/swin-tiny" in message and "no network" in message and "local folder" in message


def test_a_name_in_use(data, encoders, capsys):
    run(data, encoders, "text")
    before = files(data / "features" / "text")
    run(data, encoders, "text")
    assert "complete already" in capsys.readouterr().out
    message = user_error(lambda: run(data, encoders, "text", pooling="cls"))
    assert "modality name in use" in message and "pooling" in message and "--overwrite" in message
    assert files(data / "features" / "text") == before
    assert run(data, encoders, "text", pooling="cls", overwrite=True)["pooling"] == "cls"


def test_the_command(data, encoders, capsys):
    for arguments, code in (
        (["--modality", "text", "--encoder", encoders["text"], "--random-weights", "0"], 0),
        (["--modality", "text", "--encoder", encoders["text"], "--random-weights", "0", "--pooling", "cls"], 2),
        (["--modality", "text"], 2),
        (["--modality", "text", "--array", "x.npy", "--encoder", encoders["text"]], 2),
    ):
        with pytest.raises(SystemExit) as ended:
            call("extract", ["--data", str(data), *map(str, arguments)])
        assert ended.value.code == code
    said = capsys.readouterr().out
    assert f"{raw_items.ITEMS - 1} of {raw_items.ITEMS} items" in said


# ---- ready arrays -----------------------------------------------------------------------------------------------------


def write_array(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


@pytest.mark.parametrize("shape", [(5,), (3, 5)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_ready_array_becomes_a_modality(data, tmp_path, shape, dtype):
    array = np.random.default_rng(0).normal(size=(raw_items.ITEMS, *shape)).astype(dtype)
    array[4] = 0
    extract.from_array(data, modality="audio", array=write_array(tmp_path / "audio_feat.npy", array))
    found = open_dataset(data).features("audio")
    np.testing.assert_array_equal(found.tokens, array.reshape(raw_items.ITEMS, -1, 5).astype(found.tokens.dtype))
    assert found.mask.all(axis=1).tolist() == [k != 4 for k in range(raw_items.ITEMS)]
    assert "audio_feat.npy" in found.manifest["encoder"]
    again = user_error(lambda: extract.from_array(data, modality="audio", array=tmp_path / "audio_feat.npy"))
    assert "modality name in use" in again


@pytest.mark.parametrize("suffix", ["npy", "txt"])
def test_rows_in_another_order(data, tmp_path, suffix):
    order = np.random.default_rng(0).permutation(raw_items.ITEMS)[:-4]
    names = [f"i{k}" for k in order] + ["of no item"]
    array = np.concatenate([order, [99]])[:, None].astype(np.float32) + 1
    ids = tmp_path / f"ids.{suffix}"
    np.save(ids, names) if suffix == "npy" else ids.write_text("\n".join(names) + "\n")
    extract.from_array(data, modality="audio", array=write_array(tmp_path / "a.npy", array), ids=ids)
    found = open_dataset(data).features("audio")
    expected = np.where(np.isin(np.arange(raw_items.ITEMS), order), np.arange(raw_items.ITEMS) + 1, 0)
    assert found.tokens[:, 0, 0].tolist() == expected.tolist() and (found.mask[:, 0] == (expected > 0)).all()


def test_a_mask_of_ones_own(data, tmp_path):
    mask = np.random.default_rng(0).random((raw_items.ITEMS, 2)) < 0.5
    array = write_array(tmp_path / "a.npy", np.ones((raw_items.ITEMS, 2, 3), np.float32))
    extract.from_array(data, modality="audio", array=array, mask=write_array(tmp_path / "m.npy", mask))
    np.testing.assert_array_equal(open_dataset(data).features("audio").mask, mask)


@pytest.mark.parametrize(
    ("array", "ids", "words"),
    [
        (np.ones((3, 2), np.float32), None, "3 rows"),
        (np.ones((raw_items.ITEMS, 2), np.int64), None, "float16 or float32"),
        (np.ones(raw_items.ITEMS, np.float32), None, "[items, D]"),
        (np.full((raw_items.ITEMS, 2), np.nan, np.float32), None, "NaN"),
        (np.array([{}] * raw_items.ITEMS), None, "not a readable .npy"),
        (np.ones((2, 2), np.float32), ["i1", "i1"], "'i1' occurs twice"),
        (np.ones((2, 2), np.float32), ["1", "2"], "no id of the dataset's items"),
        (np.ones((2, 2), np.float32), ["i1"], "2 rows"),
    ],
)
def test_arrays_that_do_not_fit(data, tmp_path, array, ids, words):
    path = write_array(tmp_path / "a.npy", array)
    if ids:
        (tmp_path / "ids.txt").write_text("\n".join(ids))
    message = user_error(
        lambda: extract.from_array(data, modality="audio", array=path, ids=tmp_path / "ids.txt" if ids else None)
    )
    assert words in message, message
