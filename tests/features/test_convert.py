"""Loading a checkpoint: names, prefixes, options, real weights, and one clear line about every bad folder."""

import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from em3_jax.features import convert
from tests.conftest import user_error

VOCABULARY, WIDTH, HIDDEN, POSITIONS, TYPES = 13, 8, 12, 10, 2
CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": HIDDEN,
    "max_position_embeddings": POSITIONS,
    "type_vocab_size": TYPES,
}
TOKEN_IDS = np.array([[2, 5, 7, 3], [2, 11, 3, 0]], np.int32)


def bert_tensors() -> dict[str, np.ndarray]:
    """A BERT checkpoint of one layer, by the names and shapes that published files have."""
    dense = {
        "encoder.layer.0.attention.self.query": (WIDTH, WIDTH),
        "encoder.layer.0.attention.self.key": (WIDTH, WIDTH),
        "encoder.layer.0.attention.self.value": (WIDTH, WIDTH),
        "encoder.layer.0.attention.output.dense": (WIDTH, WIDTH),
        "encoder.layer.0.intermediate.dense": (HIDDEN, WIDTH),
        "encoder.layer.0.output.dense": (WIDTH, HIDDEN),
        "pooler.dense": (WIDTH, WIDTH),
    }
    norms = ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output")
    shapes = {
        "embeddings.word_embeddings.weight": (VOCABULARY, WIDTH),
        "embeddings.position_embeddings.weight": (POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": (TYPES, WIDTH),
        **{f"{name}.weight": shape for name, shape in dense.items()},
        **{f"{name}.bias": shape[:1] for name, shape in dense.items()},
        **{f"{name}.LayerNorm.{leaf}": (WIDTH,) for name in norms for leaf in ("weight", "bias")},
    }
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def write(folder: Path, tensors: dict[str, np.ndarray], config: dict = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder


def assert_same(params, expected):
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(folder, params, tensors) of the small BERT."""
    tensors = bert_tensors()
    folder = write(tmp_path_factory.mktemp("bert"), tensors)
    return folder, convert.load_encoder(folder)[1], tensors


def test_every_tensor_is_used(checkpoint):
    folder, params, tensors = checkpoint
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == sum(tensor.size for tensor in tensors.values())
    assert {type(leaf) for leaf in jax.tree.leaves(params)} == {np.ndarray}
    name = "encoder.layer.0.intermediate.dense.weight"
    np.testing.assert_array_equal(params["layer0"]["mlp_in"]["kernel"], tensors[name].T)
    _, _, info = convert.load_encoder(folder)
    assert info == convert.EncoderInfo("bert", "text", WIDTH, CONFIG, ("model.safetensors",), ())


@pytest.mark.parametrize("prefix", ["bert.", "roberta."])
def test_prefix_old_norm_names_and_heads(checkpoint, prefix, tmp_path):
    _, expected, tensors = checkpoint
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    renamed = dict(tensors)
    for new, name in old.items():
        renamed = {key.replace(new, name): tensor for key, tensor in renamed.items()}
    renamed = {prefix + key: tensor for key, tensor in renamed.items()}
    ignored = {
        f"{prefix}embeddings.position_ids": np.arange(POSITIONS)[None],
        "cls.predictions.bias": np.zeros(VOCABULARY, np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.zeros(WIDTH, np.float32),
    }
    _, params, info = convert.load_encoder(write(tmp_path, renamed | ignored))
    assert_same(params, expected)
    assert info.ignored == tuple(sorted(ignored))


def test_pooler_is_what_the_file_has(checkpoint, tmp_path):
    tensors = {name: tensor for name, tensor in checkpoint[2].items() if not name.startswith("pooler")}
    module, params, _ = convert.load_encoder(write(tmp_path, tensors))
    output = jax.eval_shape(module.apply, {"params": params}, TOKEN_IDS)
    assert "pooler" not in params and output.pooler is None


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_files_give_float32(checkpoint, kind, tmp_path):
    dtype = jax.numpy.dtype(kind)
    folder = write(tmp_path, {name: tensor.astype(dtype) for name, tensor in checkpoint[2].items()})
    _, params, _ = convert.load_encoder(folder)
    assert_same(params, jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), checkpoint[1]))


def test_dtype_is_that_of_activations(checkpoint):
    module, params, _ = convert.load_encoder(checkpoint[0], dtype=jax.numpy.bfloat16)
    assert jax.eval_shape(module.apply, {"params": params}, TOKEN_IDS).mean.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}


def test_swin_heads_and_stored_index_tables_are_ignored(tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = transformers.SwinConfig(image_size=16, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=2)
    model = transformers.SwinForMaskedImageModeling(config)
    model.save_pretrained(tmp_path)
    _, expected, _ = convert.load_encoder(tmp_path)

    tensors = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    index = "swin.encoder.layers.0.blocks.0.attention.self.relative_position_index"
    folder = write(tmp_path / "old", tensors | {index: np.zeros((4, 4), np.int64)}, config.to_dict())
    _, params, info = convert.load_encoder(folder)
    assert_same(params, expected)
    assert info.ignored == ("decoder.0.bias", "decoder.0.weight", "swin.embeddings.mask_token", index)
    assert (info.modality, info.width) == ("image", 16)

    # The names that transformers 5 has in memory, as a state dict saved by hand has them.
    (tmp_path / "old" / "model.safetensors").unlink()
    assert any("q_proj" in name for name in model.state_dict())
    torch.save(model.state_dict(), tmp_path / "old" / "pytorch_model.bin")
    assert_same(convert.load_encoder(tmp_path / "old")[1], expected)


def test_weights_hash_is_that_of_the_files(checkpoint, tmp_path):
    folder, _, tensors = checkpoint
    content = (folder / "model.safetensors").read_bytes()
    assert convert.weights_hash(folder) == hashlib.sha256(content).hexdigest()
    first = next(iter(tensors))
    changed = write(tmp_path, tensors | {first: tensors[first] + 1})
    assert convert.weights_hash(changed) != convert.weights_hash(folder)


# ---- Bad folders -----------------------------------------------------------------------------------------------------


def test_folder_that_is_no_encoder(tmp_path):
    assert "config.json" in user_error(convert.load_encoder, tmp_path)
    assert "config.json" in user_error(convert.load_encoder, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert "model.safetensors" in user_error(convert.load_encoder, tmp_path)
    assert "model.safetensors" in user_error(convert.weights_hash, tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not JSON" in user_error(convert.load_encoder, tmp_path)


@pytest.mark.parametrize("model_type", ["levit", None, ["bert"]])
def test_unknown_model_type_names_the_known(model_type):
    message = user_error(convert.encoder_from_config, {**CONFIG, "model_type": model_type})
    assert all(name in message for name in ("bert", "roberta", "swin", repr(model_type)))


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None},
        {"hidden_size": 7},
        {"hidden_size": "8"},
        {"num_attention_heads": 0},
        {"num_hidden_layers": True},
        {"hidden_act": "mish"},
        {"layer_norm_eps": 0},
        {"position_embedding_type": "relative_key"},
        {"is_decoder": True},
    ],
)
def test_impossible_options_of_bert(change):
    (key,) = change
    assert key in user_error(convert.encoder_from_config, CONFIG | change)


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 15},
        {"depths": []},
        {"depths": [1, 1]},
        {"num_heads": 3},
        {"patch_size": [4, 4, 4]},
        {"window_size": -1},
        {"use_absolute_embeddings": 1},
    ],
)
def test_impossible_options_of_swin(change):
    config = {"model_type": "swin", "embed_dim": 16, "depths": [1], "num_heads": [2], "window_size": 4}
    convert.encoder_from_config(config)
    (key,) = change
    assert key in user_error(convert.encoder_from_config, config | change)


def test_missing_extra_and_misshapen_tensors_are_all_named(checkpoint, tmp_path):
    tensors = dict(checkpoint[2])
    del tensors["embeddings.LayerNorm.bias"]
    tensors["encoder.layer.1.output.dense.bias"] = np.zeros(WIDTH, np.float32)
    tensors["encoder.layer.0.output.dense.weight"] = np.zeros((HIDDEN, WIDTH), np.float32)
    tensors["pooler.dense.bias"] = np.zeros(WIDTH, np.int32)
    message = user_error(convert.load_encoder, write(tmp_path, tensors))
    assert "1 missing: embeddings.LayerNorm.bias" in message
    assert "1 left over: encoder.layer.1.output.dense.bias" in message
    assert f"encoder.layer.0.output.dense.weight [{HIDDEN}, {WIDTH}] instead of [{WIDTH}, {HIDDEN}]" in message
    assert "pooler.dense.bias I32 instead of floats" in message


def test_long_lists_are_cut(checkpoint, tmp_path):
    folder = write(tmp_path, checkpoint[2], CONFIG | {"num_hidden_layers": 40})
    message = user_error(convert.load_encoder, folder)
    assert f"{39 * 16} missing" in message and f"and {39 * 16 - 6} more" in message
    assert len(message) < 1000


def test_two_spellings_of_one_tensor(checkpoint, tmp_path):
    name = "pooler.dense.bias"
    tensors = checkpoint[2] | {f"bert.{name}": checkpoint[2][name]}
    assert f"bert.{name}" in user_error(convert.load_encoder, write(tmp_path, tensors))
