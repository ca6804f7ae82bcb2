"""Swin against transformers' torch model, and the cases that model cannot run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.features import convert
from em3_jax.models.encoders import swin

TOLERANCE = 1e-4
SMALL = {"image_size": 32, "patch_size": 4, "embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "window_size": 4}


def torch_swin(**config):
    """A torch Swin whose small parameters are random too: fresh biases and bias tables are zero, which hides errors."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.SwinModel(transformers.SwinConfig(**config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 10_000:
                parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def ported(model, folder):
    model.save_pretrained(folder)
    module, params, _ = convert.load_encoder(folder)
    return module, params


def images(batch, rows, columns):
    return np.random.default_rng(0).standard_normal((batch, rows, columns, 3)).astype(np.float32)


def assert_equal_outputs(model, module, params, x):
    import torch

    with torch.inference_mode():
        expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
    output = jax.jit(module.apply)({"params": params}, x)
    worst = np.abs(output.tokens - expected.last_hidden_state.numpy()).max()
    print(f"tokens differ by at most {worst:.1e}")
    np.testing.assert_allclose(output.tokens, expected.last_hidden_state.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(output.mean, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
    np.testing.assert_array_equal(output.pooler, output.mean)
    assert output.cls is None
    assert output.mask.shape == output.tokens.shape[:2] and output.mask.all()


@pytest.mark.parametrize(
    ("config", "size"),
    [
        pytest.param({}, (32, 64), id="grid as narrow as the window"),
        pytest.param({}, (54, 77), id="pads patches, windows and merges"),
        pytest.param(
            {"window_size": 3, "depths": [1, 2, 1], "num_heads": [1, 2, 4]}, (50, 70), id="odd window and depth"
        ),
        pytest.param(
            {"use_absolute_embeddings": True, "image_size": [24, 40], "patch_size": 2, "window_size": 3},
            (24, 40),
            id="positions",
        ),
        pytest.param(
            {"qkv_bias": False, "mlp_ratio": 2.5, "hidden_act": "gelu_new", "layer_norm_eps": 1e-2},
            (48, 40),
            id="options",
        ),
    ],
)
def test_equals_torch(config, size, tmp_path):
    model = torch_swin(**(SMALL | config))
    module, params = ported(model, tmp_path)
    assert_equal_outputs(model, module, params, images(3, *size))


def test_swin_tiny_equals_torch(tmp_path):
    model = torch_swin()
    module, params = ported(model, tmp_path)
    assert sum(x.size for x in jax.tree.leaves(params)) == model.num_parameters()
    assert_equal_outputs(model, module, params, images(1, 224, 224))


def test_gradients_equal_torch(tmp_path):
    model = torch_swin(**SMALL)
    module, params = ported(model, tmp_path)
    import torch

    x = images(2, 40, 54)
    pooled = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output
    torch.sin(pooled).sum().backward()
    gradients = jax.jit(jax.grad(lambda p: jnp.sin(module.apply({"params": p}, x).mean).sum()))(params)

    blocks = model.encoder.layers[0].blocks
    expected = {
        "patch_embedding/kernel": model.embeddings.patch_embeddings.projection.weight.grad.permute(2, 3, 1, 0),
        "stage0_block1/attention/relative_position_bias": blocks[
            1
        ].attention.relative_position_bias.relative_position_bias_table.grad,
        "stage0_block0/mlp_in/kernel": blocks[0].mlp.fc1.weight.grad.T,
    }
    for path, gradient in expected.items():
        leaf = gradients
        for name in path.split("/"):
            leaf = leaf[name]
        np.testing.assert_allclose(leaf, gradient.numpy(), rtol=0, atol=TOLERANCE, err_msg=path)


def test_window_larger_than_grid_uses_middle_of_bias_table(tmp_path):
    """torch cannot run this; it must equal a model made for the small window, with the same bias at the same offset."""
    small_window, large_window = 4, 7
    model = torch_swin(**(SMALL | {"depths": [2], "num_heads": [2]}))
    module, params = ported(model, tmp_path)
    x = images(2, 16, 16)  # a grid of 4 x 4
    expected = jax.jit(module.apply)({"params": params}, x)

    def widen(table):
        side, margin = 2 * small_window - 1, large_window - small_window
        table = table.reshape(side, side, -1)
        padded = np.pad(table, ((margin, margin), (margin, margin), (0, 0)), constant_values=np.nan)
        return padded.reshape((2 * large_window - 1) ** 2, -1)

    for block in ("stage0_block0", "stage0_block1"):
        params[block]["attention"]["relative_position_bias"] = widen(
            params[block]["attention"]["relative_position_bias"]
        )
    output = jax.jit(module.clone(window=large_window).apply)({"params": params}, x)
    np.testing.assert_allclose(output.tokens, expected.tokens, rtol=0, atol=1e-5)


def test_bfloat16_activations_keep_float32_parameters():
    module = convert.encoder_from_config({"model_type": "swin", **SMALL})
    half = module.clone(dtype=jnp.bfloat16)
    x = images(2, 32, 32)
    shapes = jax.eval_shape(half.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.1 * rng.standard_normal(leaf.shape, np.float32) + (leaf.ndim == 1), shapes)
    output, expected = jax.jit(half.apply)(params, x), jax.jit(module.apply)(params, x)
    assert output.tokens.dtype == output.mean.dtype == jnp.bfloat16
    # bf16 keeps 8 bits, and the tokens have unit variance after the last norm.
    np.testing.assert_allclose(output.tokens.astype(np.float32), expected.tokens, rtol=0, atol=16 * 2**-8)


def test_absolute_positions_refuse_another_size():
    config = {"model_type": "swin", **SMALL, "use_absolute_embeddings": True}
    with pytest.raises(UserError, match="resize to 32 x 32"):
        jax.eval_shape(convert.encoder_from_config(config).init, jax.random.key(0), images(1, 40, 32))


@pytest.mark.parametrize(
    ("grid", "shifted", "expected"),
    [
        ((8, 8), True, (4, 2)),
        ((8, 8), False, (4, 0)),
        ((4, 9), True, (4, 0)),
        ((9, 3), True, (3, 0)),
        ((5, 9), True, (4, 2)),
    ],
)
def test_clamp_window(grid, shifted, expected):
    assert swin.clamp_window(*grid, window=4, shifted=shifted) == expected


def test_windows_round_trip():
    x = np.arange(2 * 6 * 9 * 5).reshape(2, 6, 9, 5)
    windows = swin.to_windows(x, 3)
    assert windows.shape == (2, 2 * 3, 3 * 3, 5)
    np.testing.assert_array_equal(windows[1, 4].reshape(3, 3, 5), x[1, 3:6, 3:6])
    np.testing.assert_array_equal(swin.from_windows(windows, 6, 9), x)
