"""MobileNetV3 and VGG against torch modules under torchvision's names."""

import json

import jax
import numpy as np
import pytest

from em3_jax.core.errors import UserError
from em3_jax.features import convert
from tests.models.encoders import test_cnn

torch = pytest.importorskip("torch")
nn = torch.nn


def conv_norm(before: int, after: int, size: int, stride: int, activation=None, groups: int = 1):
    """torchvision's Conv2dNormActivation: parts 0, 1 and, with an activation, 2."""
    conv = nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False)
    parts = [conv, nn.BatchNorm2d(after, eps=1e-3)]
    return nn.Sequential(*parts, *([] if activation is None else [activation()]))


class SqueezeExcitation(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, hidden, 1), nn.Conv2d(hidden, width, 1)

    def forward(self, x):
        scale = self.fc1(nn.functional.adaptive_avg_pool2d(x, 1)).relu()
        return x * nn.functional.hardsigmoid(self.fc2(scale))


class InvertedResidual(nn.Module):
    def __init__(self, before, size, between, after, squeezed, activation, stride):
        super().__init__()
        parts = [] if between == before else [conv_norm(before, between, 1, 1, activation)]
        parts.append(conv_norm(between, between, size, stride, activation, groups=between))
        parts += [SqueezeExcitation(between, squeezed)] if squeezed else []
        self.block = nn.Sequential(*parts, conv_norm(between, after, 1, 1))
        self.adds = stride == 1 and before == after

    def forward(self, x):
        return self.block(x) + x if self.adds else self.block(x)


RE, HS = nn.ReLU, nn.Hardswish
# Channels before, size, between, after, squeezed, activation, stride. Written out, so that nothing
# is rounded here.
LARGE = (
    (16, 3, 16, 16, 0, RE, 1), (16, 3, 64, 24, 0, RE, 2), (24, 3, 72, 24, 0, RE, 1),
    (24, 5, 72, 40, 24, RE, 2), (40, 5, 120, 40, 32, RE, 1), (40, 5, 120, 40, 32, RE, 1),
    (40, 3, 240, 80, 0, HS, 2), (80, 3, 200, 80, 0, HS, 1), (80, 3, 184, 80, 0, HS, 1),
    (80, 3, 184, 80, 0, HS, 1), (80, 3, 480, 112, 120, HS, 1), (112, 3, 672, 112, 168, HS, 1),
    (112, 5, 672, 160, 168, HS, 2), (160, 5, 960, 160, 240, HS, 1), (160, 5, 960, 160, 240, HS, 1),
)  # fmt: skip
SMALL = (
    (16, 3, 16, 16, 8, RE, 2), (16, 3, 72, 24, 0, RE, 2), (24, 3, 88, 24, 0, RE, 1),
    (24, 5, 96, 40, 24, HS, 2), (40, 5, 240, 40, 64, HS, 1), (40, 5, 240, 40, 64, HS, 1),
    (40, 5, 120, 48, 32, HS, 1), (48, 5, 144, 48, 40, HS, 1), (48, 5, 288, 96, 72, HS, 2),
    (96, 5, 576, 96, 144, HS, 1), (96, 5, 576, 96, 144, HS, 1),
)  # fmt: skip
HALF = (
    (8, 3, 8, 8, 8, RE, 2), (8, 3, 40, 16, 0, RE, 2), (16, 3, 48, 16, 0, RE, 1),
    (16, 5, 48, 24, 16, HS, 2), (24, 5, 120, 24, 32, HS, 1), (24, 5, 120, 24, 32, HS, 1),
    (24, 5, 64, 24, 16, HS, 1), (24, 5, 72, 24, 24, HS, 1), (24, 5, 144, 48, 40, HS, 2),
    (48, 5, 288, 48, 72, HS, 1), (48, 5, 288, 48, 72, HS, 1),
)  # fmt: skip


class MobileNetV3(nn.Module):
    def __init__(self, stem, blocks, head):
        super().__init__()
        parts = [conv_norm(3, stem, 3, 2, HS), *(InvertedResidual(*block) for block in blocks)]
        self.features = nn.Sequential(*parts, conv_norm(blocks[-1][3], head, 1, 1, HS))
        tail = [nn.Linear(head, 4), nn.Hardswish(), nn.Dropout(), nn.Linear(4, 2)]
        self.classifier = nn.Sequential(*tail)

    def forward(self, x):
        return self.features(x)


def saved(model, config: dict, folder):
    """The model, whose norms have statistics, with a folder that holds its weights."""
    torch.manual_seed(0)
    with torch.no_grad():
        for norm in (one for one in model.modules() if isinstance(one, nn.BatchNorm2d)):
            for leaf in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                leaf.copy_(0.5 + torch.rand(leaf.shape))
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps(config))
    return model.eval()


@pytest.mark.parametrize(
    ("stem", "blocks", "head", "config"),
    [
        (16, LARGE, 960, {"variant": "large"}),
        (16, SMALL, 576, {"variant": "small"}),
        (8, HALF, 288, {"variant": "small", "width_mult": 0.5}),
    ],
    ids=["large", "small", "small of half the width"],
)
def test_mobilenet_v3_equals_torch(stem, blocks, head, config, tmp_path):
    torch.manual_seed(0)
    model = MobileNetV3(stem, blocks, head)
    assert {"features.0.0.weight", "features.1.block.0.1.running_mean"} <= set(model.state_dict())
    saved(model, {"model_type": "mobilenet_v3"} | config, tmp_path)
    test_cnn.check(tmp_path, model)


class Vgg(nn.Module):
    """torchvision's vgg without batch norm, `depths` convolutions a stage."""

    def __init__(self, depths, widths, fc6):
        super().__init__()
        parts, before = [], 3
        for depth, width in zip(depths, widths, strict=True):
            for _ in range(depth):
                parts += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
            parts.append(nn.MaxPool2d(2, 2))
        self.features, self.avgpool = nn.Sequential(*parts), nn.AdaptiveAvgPool2d((7, 7))
        tail = [nn.Linear(before * 49, fc6), nn.ReLU(True), nn.Dropout(), nn.Linear(fc6, 8)]
        self.classifier = nn.Sequential(*tail, nn.ReLU(True), nn.Dropout(), nn.Linear(8, 2))

    def forward(self, x):
        return self.features(x)

    def fc6(self, x):
        return self.classifier[:2](self.avgpool(self.features(x)).flatten(1))


SIZES = {"depths": [1, 2, 1], "hidden_sizes": [8, 12, 16], "intermediate_size": 20}
VGG = {"model_type": "vgg"} | SIZES


@pytest.fixture(scope="module")
def vgg(tmp_path_factory):
    """(model, its folder)."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vgg")
    return saved(Vgg(VGG["depths"], VGG["hidden_sizes"], 20), VGG, folder), folder


# Last maps of 7 x 7, whose mean is itself, of 4 x 4, which is spread out, and of 9 x 11.
@pytest.mark.parametrize("size", [(56, 56), (32, 39), (72, 90)], ids=str)
def test_vgg_and_fc6_equal_torch(vgg, size):
    model, folder = vgg
    module, params, info = convert.load_encoder(folder)
    x = test_cnn.images(*size)
    pictures = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
    with torch.inference_mode():
        last, fc6 = model(pictures).numpy(), model.fc6(pictures).numpy()
    found = jax.jit(module.apply)({"params": params}, x)
    tokens = last.transpose(0, 2, 3, 1).reshape(2, -1, 16)
    np.testing.assert_allclose(found.tokens, tokens, rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.mean, tokens.mean(axis=1), rtol=0, atol=1e-4)
    np.testing.assert_allclose(found.pooler, fc6, rtol=0, atol=1e-4)
    assert found.cls is None and found.mask.all() and (fc6 > 0.01).any()
    assert info.width == 16 and "classifier.6.weight" in info.ignored


def test_vgg_without_its_classifier_has_no_fc6(vgg, tmp_path):
    state = vgg[0].state_dict()
    state = {name: leaf for name, leaf in state.items() if name.startswith("features.")}
    torch.save(state, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(VGG))
    module, params, _ = convert.load_encoder(tmp_path)
    found = module.apply({"params": params}, test_cnn.images(16, 16))
    np.testing.assert_array_equal(found.pooler, found.mean)


def test_vgg16_has_the_sizes_of_vgg16():
    module = convert.encoder_from_config({"model_type": "vgg"})
    shapes = jax.eval_shape(module.init, jax.random.key(0), np.zeros((1, 224, 224, 3), np.float32))
    # 138,357,544 in all, but for the last two layers, 4096 x 4096 and 4096 x 1000 with biases.
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 138_357_544 - (4096 * 4096 + 4096) - (4096 * 1000 + 1000)


def test_a_picture_that_vgg_halves_away_is_refused(vgg):
    module, params, _ = convert.load_encoder(vgg[1])
    words = "pictures of 7 x 90: this VGG halves them 3 times; give 8 x 8"
    with pytest.raises(UserError, match=words):
        module.apply({"params": params}, test_cnn.images(7, 90))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "mobilenet_v3"}, 'variant is None, supported is "large" or "small"'),
        ({"model_type": "mobilenet_v3", "variant": "tiny"}, "variant is 'tiny'"),
        ({"model_type": "mobilenet_v3", "variant": "small", "width_mult": 0}, "width_mult is 0"),
        ({"model_type": "mobilenet_v4"}, "model_type 'mobilenet_v4' is not supported; take one of"),
        ({"model_type": "densenet"}, "model_type 'densenet' is not supported; take one of"),
        ({"model_type": "vgg", "batch_norm": True}, "batch_norm is True"),
        ({"model_type": "vgg", "depths": [1, 2]}, "do not fit"),
    ],
)
def test_configs_that_cannot_be_meant_are_refused(config, words):
    with pytest.raises(UserError, match=words) as refused:
        convert.encoder_from_config(config)
    assert "\n" not in str(refused.value)


def test_an_unknown_model_type_is_told_every_known_one():
    with pytest.raises(UserError) as refused:
        convert.encoder_from_config({"model_type": "levit"})
    known = str(refused.value).split("take one of ")[1].split(", ")
    assert known == list(convert.FAMILIES)
    assert {"vgg", "mobilenet_v3", "resnet", "bert"} <= set(known)
