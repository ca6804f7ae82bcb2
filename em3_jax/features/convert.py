"""Pretrained encoders from a checkpoint folder in the Hugging Face layout, checked tensor by tensor.

A folder holds `config.json` and weights (`weights.py` reads them). The port is keyed to the names in the FILE, which
are not always those that transformers shows in memory. Every parameter is filled from exactly one tensor, and every
tensor is used or known to be of no use to an encoder; anything else is an error that lists the names.
"""

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.features.families import FAMILIES
from em3_jax.features.families.family import Config, Encoder, Family, Renaming
from em3_jax.features.weights import Tensor, read_json, read_tensors, weight_files


@dataclasses.dataclass(frozen=True)
class EncoderInfo:
    """What a feature manifest and a config need to know about a loaded encoder.

    Attributes:
      model_type: "swin", "bert" or "roberta".
      modality: "image" or "text".
      width: D of the encoder's output.
      config: config.json as it stands.
      files: names of the weight files, in the order in which `weights_hash` reads them.
      ignored: tensors of the files that no encoder needs (heads, stored index tables), sorted.
    """

    model_type: str
    modality: str
    width: int
    config: Config
    files: tuple[str, ...]
    ignored: tuple[str, ...]


def load_encoder(folder: str | os.PathLike, dtype: Any = jnp.float32) -> tuple[Encoder, dict, EncoderInfo]:
    """(module, params, info) of a checkpoint; `module.apply({"params": params}, ...)` runs it.

    `params` are nested dicts of float32 numpy arrays.

    Args:
      folder: holds config.json and weights (see `weights.WEIGHT_FILES`).
      dtype: of the module's activations.

    Raises:
      UserError: the folder is no encoder, its type or an option is not supported, a file cannot be read as plain
        tensors, or tensors are missing, left over or of another shape than config.json says.
    """
    folder = Path(folder)
    where = folder / "config.json"
    config = read_json(where)
    family = _family(config, where)
    files = weight_files(folder)
    tensors = _by_canonical_name(read_tensors(files), family, folder)

    module = encoder_from_config(config, pooler="pooler.dense.weight" in tensors, dtype=dtype, where=where)
    output, variables = jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), family.example(module, config))
    )
    params, ignored = _fill(variables["params"], tensors, family, folder)
    names = tuple(file.name for file in files)
    return (
        module,
        params,
        EncoderInfo(config["model_type"], family.modality, output.mean.shape[-1], config, names, ignored),
    )


def random_encoder(folder: str | os.PathLike, seed: int, dtype: Any = jnp.float32) -> tuple[Encoder, dict, EncoderInfo]:
    """The same as `load_encoder` for a folder without weights: fresh ones, a function of `seed`."""
    where = Path(folder) / "config.json"
    config = read_json(where)
    family = _family(config, where)
    module = encoder_from_config(config, dtype=dtype, where=where)
    init = jax.jit(lambda key: module.init_with_output(key, family.example(module, config)))
    output, variables = init(jax.random.key(seed))
    info = EncoderInfo(config["model_type"], family.modality, output.mean.shape[-1], config, (), ())
    return module, jax.device_get(variables["params"]), info


def encoder_from_config(
    config: Config, pooler: bool = True, dtype: Any = jnp.float32, where: str | os.PathLike = "config"
) -> Encoder:
    """The module that a config.json describes.

    Args:
      config: content of config.json. Sizes must be there; an option that is missing is what transformers assumes.
      pooler: whether a text encoder has a pooler; configs do not say.
      dtype: of the activations.
      where: names the config in errors.

    Raises:
      UserError: the model type or an option is not supported, or a size is missing or impossible.
    """
    return _family(config, where).build(config, where, pooler=pooler, dtype=dtype)


def weights_hash(folder: str | os.PathLike) -> str:
    """Hex sha256 over the weight files of `folder` in order of name; of a single file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in weight_files(Path(folder)):
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _family(config: Config, where: str | os.PathLike) -> Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise UserError(f"{where}: model_type {model_type!r} is not supported; take one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def _rename(name: str, pairs: Iterable[Renaming]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


def _by_canonical_name(tensors: Iterable[Tensor], family: Family, where: Path) -> dict[str, Tensor]:
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        name = _rename(tensor.name, family.aliases)
        if name in by_name:
            raise UserError(f"{where}: {by_name[name].name} and {tensor.name} are the same tensor; remove one of them")
        by_name[name] = tensor
    return by_name


def _fill(shapes: dict, tensors: dict[str, Tensor], family: Family, where: Path) -> tuple[dict, tuple[str, ...]]:
    """(params, names of the tensors left aside); `shapes` are the parameters as shapes, `tensors` by canonical name."""
    found, missing, misfits = {}, [], []
    left = dict(tensors)
    for path, wanted in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        name = _rename(path, family.names)
        tensor = left.pop(name, None)
        # The axes of the file's tensor, in the order of the parameter: Dense [in, out] <- [out, in], Conv HWIO <- OIHW.
        axes = {2: (1, 0), 4: (2, 3, 1, 0)}[wanted.ndim] if path.endswith("/kernel") else tuple(range(wanted.ndim))
        tensor = tensor and _without_first_ones(tensor, wanted.ndim)
        if tensor is None:
            missing.append(name)
        elif len(tensor.shape) != wanted.ndim or tuple(tensor.shape[axis] for axis in axes) != wanted.shape:
            shape = [wanted.shape[axes.index(axis)] for axis in range(wanted.ndim)]
            misfits.append(f"{tensor.name} {list(tensor.shape)} instead of {shape}")
        elif tensor.dtype not in ("float32", "float16", "bfloat16", "float64"):
            misfits.append(f"{tensor.name} {tensor.dtype} instead of floats")
        else:
            found[path] = (tensor, axes)
    extra = [tensor.name for name, tensor in left.items() if not re.fullmatch(family.ignorable, name)]
    problems = {"missing": missing, "left over": extra, "wrong": misfits}
    if missing or extra or misfits:
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in problems.items() if names)
        raise UserError(f"{where}: config.json and weights do not fit ({listed}); take both from the same checkpoint")

    # One copy, which also lets go of the file.
    params = {path: np.array(t.read().transpose(axes), np.float32, order="C") for path, (t, axes) in found.items()}
    return flax.traverse_util.unflatten_dict(params, sep="/"), tuple(sorted(tensor.name for tensor in left.values()))


def _without_first_ones(tensor: Tensor, ndim: int) -> Tensor:
    """A tensor of more axes than `ndim` without those of length 1 that come first, which some families write."""
    more = max(len(tensor.shape) - ndim, 0)
    if not more or any(size != 1 for size in tensor.shape[:more]):
        return tensor
    shape = tensor.shape[more:]
    return tensor._replace(shape=shape, read=lambda: tensor.read().reshape(shape))


def _some(names: list[str], limit: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
