"""The tensors of a checkpoint folder: safetensors or PyTorch state dicts, whole or in shards, each read when asked for.

Neither PyTorch nor a general unpickler is used. A PyTorch file is a pickle that says which tensors there are, next to
their raw numbers: only what describes a tensor is let through, so a file can be wrong but cannot run code.
"""

import collections
import functools
import io
import json
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np
import safetensors

from em3_jax.core.errors import UserError

# In order of preference; an index lists the files of a checkpoint in shards.
WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


class Tensor(NamedTuple):
    """A tensor of a weight file.

    Attributes:
      name: as the file spells it.
      shape: as in the file.
      dtype: numpy's name for it where there is one ("float32", "bfloat16", ...), else the file's.
      read: gives the array; it may be a read-only view of the file.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of `folder`, sorted: one, or all shards."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder}: no weights; an encoder folder has one of {', '.join(WEIGHT_FILES)}")
    if found.suffix != ".json":
        return [found]
    shards = read_json(found).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise UserError(f"{found}: has no weight_map; copy the checkpoint again")
    names = sorted(set(map(str, shards.values())))
    for name in names:
        if Path(name).name != name or not (folder / name).is_file():
            raise UserError(f"{found}: lists {name!r}, which is not in the folder; copy all files of the checkpoint")
    return [folder / name for name in names]


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in `file`; anything else is a `UserError`."""
    return _read_json(file, dict, "an object")


def read_json_list(file: Path) -> list[Any]:
    """The JSON list in `file`; anything else is a `UserError`."""
    return _read_json(file, list, "a list")


def _read_json(file: Path, kind: type, wanted: str) -> Any:
    try:
        content = json.loads(file.read_text("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a folder with config.json and weights") from error
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({_one_line(error)}); copy the checkpoint again") from error
    if not isinstance(content, kind):
        raise UserError(f"{file}: holds a {type(content).__name__}, not {wanted}; copy the checkpoint again")
    return content


def read_tensors(files: list[Path]) -> list[Tensor]:
    """The tensors of all `files`, in the files' order; a file that is not plain tensors is a `UserError`."""
    tensors = []
    for file in files:
        try:
            tensors += _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)
        except Exception as error:  # A damaged or hostile file can provoke any of them.
            raise UserError(
                f"{file}: not a file of plain tensors ({_one_line(error)}); copy the checkpoint again, "
                "or save its state dict as safetensors"
            ) from error
    return tensors


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _read_safetensors(file: Path) -> list[Tensor]:
    dtypes = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}
    stream = safetensors.safe_open(file, framework="np")
    tensors = []
    for name in stream.keys():
        header = stream.get_slice(name)
        dtype = dtypes.get(header.get_dtype(), header.get_dtype())
        tensors.append(Tensor(name, tuple(header.get_shape()), dtype, functools.partial(stream.get_tensor, name)))
    return tensors


# ---- PyTorch files ---------------------------------------------------------------------------------------------------

_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


class _Storage(NamedTuple):
    """The flat array behind one or several tensors."""

    type: str
    key: str


class _Strided(NamedTuple):
    """A tensor as a strided view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _TensorUnpickler(pickle.Unpickler):
    """Unpickles descriptions of tensors (`_Strided`) in plain containers, and nothing else.

    A pickle acts only through what `find_class` hands it: the type of an ordered dict, storage types, which are strings
    here, and two functions that pass on what they are given, made anew for each use because a pickle may also set
    attributes on them.
    """

    def __init__(self, stream: BinaryIO):
        super().__init__(stream)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return lambda storage, offset, shape, strides, *_: _Strided(storage, offset, shape, strides)
            case "torch._utils", "_rebuild_parameter":
                return lambda tensor, *_: tensor
            case "torch", storage if storage in _DTYPES:
                return storage
        raise pickle.UnpicklingError(f"it contains {module}.{name}, which is not a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _, _, *view = pid
        if kind != "storage" or storage_type not in _DTYPES or any(view):
            raise pickle.UnpicklingError(f"it refers to {pid!r}, which is not a plain storage")
        return self.storages.setdefault(str(key), _Storage(storage_type, str(key)))


def _read_torch(file: Path) -> list[Tensor]:
    with file.open("rb") as stream:
        read = _read_zip if zipfile.is_zipfile(stream) else _read_legacy
        stream.seek(0)
        state, spans = read(stream)
        size = os.fstat(stream.fileno()).st_size
    if any(end > size for _, end in spans.values()):
        raise ValueError("it is cut off")
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, not a dict of tensors")
    return [_view(file, name, tensor, spans) for name, tensor in state.items()]


def _read_zip(stream: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """(state dict, span of bytes of each storage) of a file by PyTorch 1.6 or later."""
    with zipfile.ZipFile(stream) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
            raise ValueError("it is a compressed zip file")
        pickles = [name for name in entries if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"it is a zip file with {len(pickles)} data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        state = _TensorUnpickler(io.BytesIO(archive.read(pickles[0]))).load()

    spans = {}
    for name, entry in entries.items():
        if name.startswith(f"{root}data/"):
            stream.seek(entry.header_offset + 26)  # the two variable lengths of a zip entry's local header
            start = entry.header_offset + 30 + sum(struct.unpack("<HH", stream.read(4)))
            spans[name.removeprefix(f"{root}data/")] = (start, start + entry.file_size)
    return state, spans


def _read_legacy(stream: BinaryIO) -> tuple[Any, dict[str, tuple[int, int]]]:
    """The same of a file by an older PyTorch: five pickles, then each storage as a count and its numbers."""
    if _TensorUnpickler(stream).load() != 0x1950A86A20F9469CFC6C:
        raise ValueError("it is not a file by PyTorch")
    _TensorUnpickler(stream).load()  # version of the format
    if not _TensorUnpickler(stream).load()["little_endian"]:
        raise ValueError("its numbers are big-endian")
    unpickler = _TensorUnpickler(stream)
    state = unpickler.load()
    spans = {}
    for key in _TensorUnpickler(stream).load():
        (length,) = struct.unpack("<q", stream.read(8))
        start = stream.tell()
        spans[key] = (start, start + length * _DTYPES[unpickler.storages[key].type].itemsize)
        stream.seek(spans[key][1])
    return state, spans


def _view(file: Path, name: Any, tensor: Any, spans: dict[str, tuple[int, int]]) -> Tensor:
    """The tensor called `name`, whose every element has been found to lie within its storage."""
    if not isinstance(name, str) or not isinstance(tensor, _Strided) or not isinstance(tensor.storage, _Storage):
        raise ValueError(f"{name!r} is not a tensor")
    (kind, key), offset, shape, strides = tensor
    sizes = (offset, *shape, *strides)
    if any(type(size) is not int or size < 0 for size in sizes) or len(shape) != len(strides):
        raise ValueError(f"{name} has an impossible shape or stride")
    dtype = _DTYPES[kind]
    if key not in spans:
        raise ValueError(f"{name} has no numbers")
    start, end = spans[key]
    first = start + offset * dtype.itemsize
    last = first + (1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))) * dtype.itemsize
    empty = math.prod(shape) == 0
    if not empty and last > end:
        raise ValueError(f"{name} goes beyond its storage")

    def read() -> np.ndarray:
        if empty:
            return np.zeros(shape, dtype)
        flat = np.memmap(file, np.uint8, mode="r", offset=first, shape=(last - first,)).view(dtype)
        return np.lib.stride_tricks.as_strided(flat, shape, [stride * dtype.itemsize for stride in strides])

    return Tensor(name, tuple(shape), dtype.name, read)
