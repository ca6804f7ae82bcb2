"""Weight files: every layout gives the same tensors, and a bad or hostile file gives one line and runs nothing."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from em3_jax.features import weights
from tests.conftest import user_error


def read(folder: Path) -> dict[str, np.ndarray]:
    tensors = weights.read_tensors(weights.weight_files(folder))
    arrays = {tensor.name: np.array(tensor.read()) for tensor in tensors}
    for tensor in tensors:
        assert (tensor.shape, tensor.dtype) == (arrays[tensor.name].shape, arrays[tensor.name].dtype.name)
    return arrays


def expected_arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "a": rng.standard_normal((3, 4)).astype(np.float32),
        "b.half": rng.standard_normal(5).astype(np.float16),
        "b.brain": rng.standard_normal((2, 1, 3)).astype(jnp.bfloat16),
        "ids": np.arange(6).reshape(1, 6),
    }


def assert_same(arrays, expected):
    assert set(arrays) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array, strict=True)


def shards_of(tensors: dict, folder: Path, pattern: str, save) -> None:
    """Writes one shard per tensor, and the index."""
    files = {name: pattern.format(i + 1, len(tensors)) for i, name in enumerate(tensors)}
    for name, file in files.items():
        save({name: tensors[name]}, folder / file)
    index = {"metadata": {"total_size": 0}, "weight_map": files}
    (folder / (pattern.split("-")[0] + Path(pattern).suffix + ".index.json")).write_text(json.dumps(index))


def test_safetensors(tmp_path):
    safetensors.numpy.save_file(expected_arrays(), tmp_path / "model.safetensors")
    assert_same(read(tmp_path), expected_arrays())


def test_safetensors_in_shards(tmp_path):
    shards_of(expected_arrays(), tmp_path, "model-{:05d}-of-{:05d}.safetensors", safetensors.numpy.save_file)
    assert len(weights.weight_files(tmp_path)) == 4
    assert_same(read(tmp_path), expected_arrays())


def as_torch(array: np.ndarray):
    torch = pytest.importorskip("torch")
    if array.dtype == jnp.bfloat16:  # which torch does not take from numpy
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before PyTorch 1.6"])
def test_torch(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    state = {name: as_torch(array) for name, array in expected_arrays().items()}
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    views = {"column": base[:, 2], "transposed": base.T, "part": base[1:3, ::2], "scalar": base[3, 3], "none": base[:0]}
    state |= views | {"parameter": torch.nn.Parameter(base[0].clone())}
    torch.save(state, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    expected = {name: view.numpy() for name, view in views.items()} | {"parameter": base[0].numpy()}
    assert_same(read(tmp_path), expected_arrays() | expected)


def test_torch_module_state_in_shards(tmp_path):
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    state = model.state_dict()  # an OrderedDict with a `_metadata` attribute
    torch.save(state, tmp_path / "pytorch_model.bin")
    expected = {name: tensor.numpy() for name, tensor in state.items()}
    assert_same(read(tmp_path), expected)
    (tmp_path / "pytorch_model.bin").unlink()
    shards_of(state, tmp_path, "pytorch_model-{:05d}-of-{:05d}.bin", torch.save)
    assert_same(read(tmp_path), expected)


@pytest.mark.parametrize("shard", ["gone.safetensors", "../model.safetensors", "/etc/hostname", 7])
def test_index_that_lists_what_is_not_there(shard, tmp_path):
    (tmp_path.parent / "model.safetensors").touch()
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert repr(str(shard)) in user_error(weights.weight_files, tmp_path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}, []])
def test_index_without_a_map(index, tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model.safetensors.index.json" in user_error(weights.weight_files, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x80\x02.", b"PK\x05\x06" + bytes(18)])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_file(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    assert name in user_error(read, tmp_path)


@pytest.mark.parametrize("zipped", [True, False])
def test_file_that_is_cut_off(zipped, tmp_path):
    torch = pytest.importorskip("torch")
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[:-2000])
    assert "pytorch_model.bin" in user_error(read, tmp_path)


# ---- Hostile pickles: each would leave a file behind if any of it ran ------------------------------------------------


class _Runs:
    """Unpickles into a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class _Storage:
    """Pickled as PyTorch pickles a reference to a storage."""

    def __init__(self, key="0"):
        self.key = key


class _Pickler(pickle._Pickler):  # the pickler in Python, because it lets a global be written by name
    def persistent_id(self, obj):
        return ("storage", _Global("torch", "FloatStorage"), obj.key, "cpu", 4) if isinstance(obj, _Storage) else None

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, _Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        else:
            super().save(obj, save_persistent_id)


class _Global:
    """Pickled as the name of a global that need not exist."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self):
        raise NotImplementedError


def tensor(offset=0, shape=(2, 2), strides=(2, 1), storage=None):
    arguments = (storage or _Storage(), offset, shape, strides, False, None)
    return _Runs(_Global("torch._utils", "_rebuild_tensor_v2"), *arguments)


def write_torch(file: Path, state, compression=zipfile.ZIP_STORED, byteorder=b"little") -> None:
    stream = io.BytesIO()
    _Pickler(stream, protocol=2).dump(state)
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr("archive/data.pkl", stream.getvalue())
        archive.writestr("archive/byteorder", byteorder)
        archive.writestr("archive/data/0", np.arange(4, dtype=np.float32).tobytes())


def test_hand_made_file_is_read(tmp_path):
    write_torch(tmp_path / "pytorch_model.bin", {"a": tensor()})
    assert_same(read(tmp_path), {"a": np.arange(4, dtype=np.float32).reshape(2, 2)})


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_object_that_is_no_tensor_does_not_run(nested, legacy, tmp_path):
    sentinel, file = tmp_path / "ran", tmp_path / "pytorch_model.bin"
    attack = _Runs(os.mkdir, str(sentinel))
    state = {"a": tensor(), "b": [attack]} if nested else attack
    if legacy:
        with file.open("wb") as stream:
            for content in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, state, ["0"]):
                _Pickler(stream, protocol=2).dump(content)
    else:
        write_torch(file, state)
    message = user_error(read, tmp_path)
    assert f"{os.mkdir.__module__}.mkdir" in message
    assert not sentinel.exists()


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("collections", "OrderedDict.__init__"),
        ("em3_jax.features.weights", "read_json"),
        ("torch", "load"),
        ("torch.storage", "_load_from_bytes"),
        ("numpy", "load"),
    ],
)
def test_other_globals_are_refused(module, name, tmp_path):
    write_torch(tmp_path / "pytorch_model.bin", {"a": _Runs(_Global(module, name), "1")})
    assert f"{module}.{name}" in user_error(read, tmp_path)


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ([tensor()], "a list, not a dict"),
        ({"a": 1}, "'a' is not a tensor"),
        ({"state_dict": {"a": tensor()}}, "'state_dict' is not a tensor"),
        ({1: tensor()}, "1 is not a tensor"),
        ({"a": _Global("torch", "FloatStorage")}, "'a' is not a tensor"),
        ({"a": tensor(storage="0")}, "'a' is not a tensor"),
        ({"a": tensor(storage=_Storage("1"))}, "a has no numbers"),
        ({"a": tensor(offset=1)}, "beyond its storage"),
        ({"a": tensor(strides=(4, 1))}, "beyond its storage"),
        ({"a": tensor(offset=-1)}, "impossible"),
        ({"a": tensor(strides=(2, -1))}, "impossible"),
        ({"a": tensor(shape=(2, 2, 1))}, "impossible"),
        ({"a": tensor(shape=("2", 2))}, "impossible"),
    ],
)
def test_impossible_tensors(state, complaint, tmp_path):
    write_torch(tmp_path / "pytorch_model.bin", state)
    assert complaint in user_error(read, tmp_path)


def test_zip_that_is_compressed_or_big_endian(tmp_path):
    write_torch(tmp_path / "pytorch_model.bin", {"a": tensor()}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in user_error(read, tmp_path)
    write_torch(tmp_path / "pytorch_model.bin", {"a": tensor()}, byteorder=b"big")
    assert "big-endian" in user_error(read, tmp_path)
