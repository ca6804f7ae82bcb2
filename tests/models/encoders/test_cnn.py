"""Convolutional encoders against transformers' torch models, or torch's own operations on the same tensors."""

import json

import jax
import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.features import convert
from em3_jax.features.families import cnn

TOLERANCE = 1e-4
SIZES = ((32, 32), (45, 38), (1, 70))


def torch_model(model: str, config: str, **settings):
    """A torch model whose norms have statistics: fresh ones do nothing, which hides errors."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**settings)).eval()
    with torch.no_grad():
        for name, leaf in [*made.named_parameters(), *made.named_buffers()]:
            if "normalization" in name and leaf.ndim:
                leaf.copy_(0.5 + torch.rand(leaf.shape))
    return made


def images(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, rows, columns, 3)).astype(np.float32)


def check(folder, model) -> None:
    """The encoder of a folder gives what a torch model of images [B, C, Y, X] does."""
    import torch

    module, params, info = convert.load_encoder(folder)
    apply = jax.jit(module.apply)
    for size in SIZES:
        x = images(*size)
        with torch.inference_mode():
            expected = model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
        output = apply({"params": params}, x)
        tokens = expected.transpose(0, 2, 3, 1).reshape(2, -1, expected.shape[1])
        scale = max(np.abs(tokens).max(), 1.0)
        np.testing.assert_allclose(output.tokens / scale, tokens / scale, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(output.mean / scale, tokens.mean(axis=1) / scale, rtol=0, atol=TOLERANCE)
        assert output.cls is None and output.mask.all()
        assert np.abs(tokens).max() > 1e-3
    assert info.modality == "image" and info.width == expected.shape[1]


RESNETS = {
    "bottleneck": {},
    "basic": {"layer_type": "basic", "downsample_in_first_stage": True},
    "stride first": {"downsample_in_bottleneck": True, "hidden_act": "silu"},
}


@pytest.mark.parametrize("name", RESNETS)
def test_resnets_equal_torch(name, tmp_path):
    settings = {"embedding_size": 8, "hidden_sizes": [16, 24, 32], "depths": [1, 2, 1]} | RESNETS[name]
    model = torch_model("ResNetModel", "ResNetConfig", **settings)
    model.save_pretrained(tmp_path)
    check(tmp_path, lambda x: model(x).last_hidden_state)


def test_a_resnet_under_the_names_of_torchvision_is_the_same(tmp_path):
    """`conv1`, `bn1`, `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`."""
    import torch

    settings = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 1]}
    model = torch_model("ResNetModel", "ResNetConfig", **settings)
    parts = {"convolution": ("conv", "0"), "normalization": ("bn", "1")}

    def renamed(name: str) -> str:
        *path, part, leaf = name.split(".")
        kind, number = parts[part]
        if path[0] == "embedder":
            return f"{kind}1.{leaf}"
        _, _, stage, _, block, where, *which = path
        end = f"{kind}{int(which[0]) + 1}" if where == "layer" else f"downsample.{number}"
        return f"layer{int(stage) + 1}.{block}.{end}.{leaf}"

    state = {renamed(name): leaf for name, leaf in model.state_dict().items()}
    assert {"conv1.weight", "bn1.running_mean", "layer2.0.conv3.weight", "layer1.0.downsample.1.bias"} <= set(state)
    torch.save(state | {"fc.weight": torch.zeros(2, 24)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict(), default=str))
    check(tmp_path, lambda x: model(x).last_hidden_state)


@pytest.mark.parametrize(
    "settings",
    [{}, {"depth_multiplier": 0.35, "finegrained_output": False}, {"tf_padding": False, "depth_multiplier": 0.5}],
    ids=["whole", "narrow", "padding of torch"],
)
def test_mobilenets_equal_torch(settings, tmp_path):
    model = torch_model("MobileNetV2Model", "MobileNetV2Config", **settings)
    model.save_pretrained(tmp_path)
    check(tmp_path, lambda x: model(x).last_hidden_state)


def lite(state: dict, x):
    """EfficientNet-Lite's last map by torch's operations, block after block as the tensors are called."""
    import torch.nn.functional as F

    def conv(x, name, norm, stride=1, linear=False):
        kernel = state[f"{name}.weight"]
        size = kernel.shape[-1]
        total = [max((-(-length // stride) - 1) * stride + size - length, 0) for length in x.shape[2:]]
        rows, columns = ((one // 2, one - one // 2) for one in total)
        groups = kernel.shape[0] if "depthwise" in name else 1
        x = F.conv2d(F.pad(x, (*columns, *rows)), kernel, stride=stride, groups=groups)
        parts = [state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
        x = F.batch_norm(x, *parts, eps=1e-3)
        return x if linear else x.clamp(0, 6)

    x = conv(x, "_conv_stem", "_bn0", 2)
    starts = {1: 2, 3: 2, 5: 2, 11: 2}  # the first block of each stage that halves the map, in Lite0
    for i in range(16):
        block, before = f"_blocks.{i}", x
        if f"{block}._expand_conv.weight" in state:
            x = conv(x, f"{block}._expand_conv", f"{block}._bn0")
        x = conv(x, f"{block}._depthwise_conv", f"{block}._bn1", starts.get(i, 1))
        x = conv(x, f"{block}._project_conv", f"{block}._bn2", linear=True)
        x = x + before if x.shape == before.shape and i not in starts else x
    return conv(x, "_conv_head", "_bn1")


def test_efficientnet_lite_equals_torch(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    module = convert.encoder_from_config({"model_type": "efficientnet_lite", "variant": 0})
    shapes = jax.eval_shape(module.init, jax.random.key(0), images(32, 32))["params"]
    names = cnn.EFFICIENTNET_LITE.names
    state = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
        name = convert._rename("/".join(key.key for key in path), names)
        order = (3, 2, 0, 1) if len(leaf.shape) == 4 else (0,)
        shape = [leaf.shape[axis] for axis in order]
        scale = (2 / np.prod(shape[1:])) ** 0.5 if len(shape) == 4 else 1.0
        state[name] = scale * torch.randn(shape) if len(shape) == 4 else 0.5 + torch.rand(shape)
    torch.save(state | {"_fc.weight": torch.zeros(2, 1280)}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "efficientnet_lite", "variant": 0}))
    check(tmp_path, lambda x: lite(state, x))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "efficientnet_lite", "variant": 5}, "variant is 5, supported is 0, 1, 2, 3 or 4"),
        ({"model_type": "resnet", "depths": [1], "hidden_sizes": [8, 8]}, "do not fit"),
        ({"model_type": "mobilenet_v2", "output_stride": 8}, "output_stride is 8"),
        ({"model_type": "levit"}, "model_type 'levit' is not supported; take one of"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(config, words):
    with pytest.raises(UserError, match=words):
        convert.encoder_from_config(config)


def test_statistics_of_norms_have_no_gradient():
    module = convert.encoder_from_config({"model_type": "mobilenet_v2", "depth_multiplier": 0.35})
    params = jax.jit(module.init)(jax.random.key(0), images(16, 16))
    gradient = jax.jit(jax.grad(lambda params: module.apply(params, images(16, 16)).mean.sum()))(params)
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)}
    still = [name for name in leaves if name.endswith(("['mean']", "['var']"))]
    assert still and not any(np.any(leaves[name]) for name in still)
    assert np.any(leaves["['params']['stem']['norm']['scale']"])
