"""Vision transformers against transformers' torch models, at the size of their positions and at others."""

import jax
import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.features import convert
from em3_jax.models.encoders import vit

TOLERANCE = 1e-4
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 7}
MLP = {"intermediate_size": 24}

FAMILIES = {
    "vit": ("ViTModel", "ViTConfig", SMALL | MLP),
    "vit without biases": ("ViTModel", "ViTConfig", SMALL | MLP | {"qkv_bias": False, "hidden_act": "relu"}),
    "dinov2": ("Dinov2Model", "Dinov2Config", SMALL),
    "dinov2 gated": ("Dinov2Model", "Dinov2Config", SMALL | {"use_swiglu_ffn": True, "mlp_ratio": 3}),
    "dinov2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", SMALL),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", SMALL | MLP),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig", SMALL | MLP),
    "siglip without head": ("SiglipVisionModel", "SiglipVisionConfig", SMALL | MLP | {"vision_use_head": False}),
}
BOTH_TOWERS = {"clip": ("CLIPModel", "CLIPConfig"), "siglip": ("SiglipModel", "SiglipConfig")}
TEXT = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "vocab_size": 9}


def torch_model(model: str, config: str, settings: dict):
    """A torch model whose parameters are all random: fresh biases and scales would hide errors."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return made


def images(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((3, rows, columns, 3)).astype(np.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_torch_at_three_resolutions(name, tmp_path):
    import torch

    model = torch_model(*FAMILIES[name])
    model.save_pretrained(tmp_path)
    module, params, info = convert.load_encoder(tmp_path)
    for size in ((28, 28), (42, 35), (14, 33)):
        x = images(*size)
        options = {} if "dinov2" in name else {"interpolate_pos_encoding": True}
        with torch.inference_mode():
            expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), **options)
        output = module.apply({"params": params}, x)
        states = expected.last_hidden_state.numpy()
        np.testing.assert_allclose(output.tokens, states, rtol=0, atol=TOLERANCE)
        if expected.pooler_output is None:
            assert output.pooler is None
        else:
            np.testing.assert_allclose(output.pooler, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
        patches = (size[0] // 7) * (size[1] // 7)
        np.testing.assert_allclose(output.mean, states[:, -patches:].mean(axis=1), rtol=0, atol=TOLERANCE)
        if "siglip" in name:
            assert output.cls is None
        else:
            np.testing.assert_array_equal(output.cls, output.tokens[:, 0])
    assert info.modality == "image" and info.width == 16


@pytest.mark.parametrize("name", BOTH_TOWERS)
def test_the_vision_tower_of_a_model_of_two_is_read(name, tmp_path):
    import torch

    settings = {"vision_config": SMALL | MLP, "text_config": TEXT}
    model = torch_model(*BOTH_TOWERS[name], settings)
    model.save_pretrained(tmp_path)
    module, params, info = convert.load_encoder(tmp_path)
    x = images(28, 28)
    with torch.inference_mode():
        expected = model.vision_model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).pooler_output
    output = module.apply({"params": params}, x)
    np.testing.assert_allclose(output.pooler, expected.numpy(), rtol=0, atol=TOLERANCE)
    assert any(left.startswith("text_model.") for left in info.ignored)


@pytest.mark.parametrize("sizes", [(37, 16), (16, 37), (5, 1), (3, 3)])
def test_bicubic_weights_are_those_of_torch(sizes):
    torch = pytest.importorskip("torch")
    size, wanted = sizes
    x = np.random.default_rng(0).standard_normal((1, 1, size, 1)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(x), (wanted, 1), mode="bicubic", align_corners=False)
    np.testing.assert_allclose(vit.bicubic(size, wanted) @ x[0, 0, :, 0], expected[0, 0, :, 0], atol=1e-5)


def test_bf16_activations_stay_close(tmp_path):
    torch_model(*FAMILIES["dinov2"]).save_pretrained(tmp_path)
    outputs = []
    for dtype in ("float32", "bfloat16"):
        module, params, _ = convert.load_encoder(tmp_path, dtype=jax.numpy.dtype(dtype))
        outputs.append(module.apply({"params": params}, images(28, 28)))
    assert outputs[1].mean.dtype == jax.numpy.bfloat16
    np.testing.assert_allclose(outputs[1].mean.astype(np.float32), outputs[0].mean, atol=0.1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_attention_heads": 3}, "does not divide by num_attention_heads 3"),
        ({"image_size": 5}, "holds no patch"),
        ({"apply_layernorm": False}, "apply_layernorm is False"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(change, words):
    with pytest.raises(UserError, match=words):
        convert.encoder_from_config(SMALL | {"model_type": "dinov2"} | change)


def test_a_tower_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="has no vision_config"):
        convert.encoder_from_config({"model_type": "clip"})
