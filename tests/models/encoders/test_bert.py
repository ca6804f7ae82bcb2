"""BERT and RoBERTa against transformers' torch models, and the cases that need no reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.features import convert

TOLERANCE = 1e-4
SMALL = {
    "vocab_size": 101,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 20,
}


def torch_model(name, **config):
    """A torch model whose small parameters are random too: fresh biases are zero, which hides errors."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 10_000:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def texts(lengths, longest, vocab_size, padding_id=0):
    """(token ids, mask) of random texts, padded at the end."""
    mask = np.arange(longest) < np.asarray(lengths)[:, None]
    token_ids = np.random.default_rng(0).integers(5, vocab_size, mask.shape)
    return np.where(mask, token_ids, padding_id).astype(np.int32), mask


def assert_equal_outputs(model, apply, params, token_ids, mask, token_types=None):
    import torch

    as_torch = [
        None if x is None else torch.from_numpy(np.asarray(x, np.int64)) for x in (token_ids, mask, token_types)
    ]
    with torch.inference_mode():
        expected = model(as_torch[0], attention_mask=as_torch[1], token_type_ids=as_torch[2])
    tokens = expected.last_hidden_state.numpy()
    output = apply({"params": params}, token_ids, mask, token_types)
    print(f"tokens differ by at most {np.abs(output.tokens - tokens).max():.1e}")
    np.testing.assert_allclose(output.tokens, tokens, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(output.cls, output.tokens[:, 0])
    mean = np.stack([row[valid].mean(0) for row, valid in zip(tokens, mask, strict=True)])
    np.testing.assert_allclose(output.mean, mean, rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(output.mask, mask)
    np.testing.assert_allclose(output.pooler, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)


def test_bert_base_chinese_equals_torch(tmp_path):
    model = torch_model("Bert", vocab_size=21128)
    model.save_pretrained(tmp_path)
    module, params, info = convert.load_encoder(tmp_path)
    assert sum(x.size for x in jax.tree.leaves(params)) == model.num_parameters()
    assert (info.width, info.modality) == (768, "text")
    apply = jax.jit(module.apply)
    for lengths in ([64, 64], [64, 17]):
        assert_equal_outputs(model, apply, params, *texts(lengths, 64, 21128))


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_small_equals_torch(name, tmp_path):
    padding_id = {"Bert": 0, "Roberta": 1}[name]
    model = torch_model(name, **SMALL, type_vocab_size=3, layer_norm_eps=1e-3, pad_token_id=padding_id)
    model.save_pretrained(tmp_path)
    module, params, _ = convert.load_encoder(tmp_path)
    token_ids, mask = texts([18, 1, 7, 12], 18, 101, padding_id)
    token_types = np.random.default_rng(1).integers(0, 3, mask.shape)
    assert_equal_outputs(model, jax.jit(module.apply), params, token_ids, mask, token_types)


def test_roberta_numbers_positions_by_token_not_by_mask(tmp_path):
    model = torch_model("Roberta", **SMALL)
    model.save_pretrained(tmp_path)
    module, params, _ = convert.load_encoder(tmp_path)
    token_ids, mask = texts([9, 6], 9, 101, padding_id=1)
    token_ids[0, :3] = 1  # padding in front
    mask[0, :3] = False
    token_ids[0, 5] = 1  # a padding token that is not masked
    assert_equal_outputs(model, jax.jit(module.apply), params, token_ids, mask)


def test_gradients_equal_torch(tmp_path):
    model = torch_model("Bert", **SMALL)
    model.save_pretrained(tmp_path)
    module, params, _ = convert.load_encoder(tmp_path)
    import torch

    token_ids, mask = texts([10, 4], 10, 101)
    tokens = model(torch.from_numpy(token_ids.astype(np.int64)), attention_mask=torch.from_numpy(mask.astype(int)))
    torch.sin(tokens.last_hidden_state[:, 0]).sum().backward()
    gradients = jax.jit(jax.grad(lambda p: jnp.sin(module.apply({"params": p}, token_ids, mask).cls).sum()))(params)
    layer = model.encoder.layer[0]
    for ours, theirs in (
        (gradients["layer0"]["attention"]["value"]["kernel"], layer.attention.self.value.weight.grad.T),
        (gradients["layer0"]["mlp_norm"]["scale"], layer.output.LayerNorm.weight.grad),
        (gradients["position_embedding"]["embedding"], model.embeddings.position_embeddings.weight.grad),
    ):
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def small():
    """(module, variables with random weights, compiled apply)."""
    module = convert.encoder_from_config({"model_type": "bert", **SMALL}, pooler=False)
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32) + (leaf.ndim == 1), shapes)
    return module, variables, jax.jit(module.apply)


def test_padding_changes_nothing(small):
    _, variables, apply = small
    token_ids, mask = texts([6, 3], 6, 101)
    output = apply(variables, token_ids, mask)
    other = apply(variables, np.where(mask, token_ids, 77), mask)
    np.testing.assert_allclose(output.tokens[mask], other.tokens[mask], rtol=0, atol=1e-6)
    np.testing.assert_allclose(output.mean, other.mean, rtol=0, atol=1e-6)
    alone = apply(variables, token_ids[1:, :3])
    np.testing.assert_allclose(output.tokens[1, :3], alone.tokens[0], rtol=0, atol=1e-5)
    assert output.pooler is None


def test_empty_text_is_finite(small):
    module, variables, apply = small
    token_ids, mask = texts([6, 0], 6, 101)
    output = apply(variables, token_ids, mask)
    np.testing.assert_array_equal(output.mean[1], np.zeros(SMALL["hidden_size"]))
    gradients = jax.jit(jax.grad(lambda v: module.apply(v, token_ids, mask).mean.sum()))(variables)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((output, gradients)))


def test_bfloat16_activations_keep_float32_parameters(small):
    module, variables, apply = small
    token_ids, mask = texts([6, 3], 6, 101)
    half = module.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), token_ids, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    output, expected = jax.jit(half.apply)(variables, token_ids, mask), apply(variables, token_ids, mask)
    assert output.tokens.dtype == output.mean.dtype == jnp.bfloat16
    # bf16 keeps 8 bits, and the tokens have unit variance after the last norm.
    np.testing.assert_allclose(output.tokens.astype(np.float32), expected.tokens, rtol=0, atol=16 * 2**-8)


@pytest.mark.parametrize(("model_type", "longest"), [("bert", 20), ("roberta", 18)])
def test_too_long_texts_are_refused(model_type, longest):
    module = convert.encoder_from_config({"model_type": model_type, **SMALL})
    jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, longest), jnp.int32))
    with pytest.raises(UserError, match=f"positions for {longest}"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, longest + 1), jnp.int32))
