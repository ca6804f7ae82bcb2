"""Pretrained encoders from a checkpoint folder in the Hugging Face layout, checked tensor by tensor.

A folder holds `config.json` and weights (`weights.py` reads them). The port is keyed to the names in the FILE, which
are not always those that transformers shows in memory. Every parameter is filled from exactly one tensor, and every
tensor is used or known to be of no use to an encoder; anything else is an error that lists the names.
"""

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.features.weights import Tensor, read_json, read_tensors, weight_files
from em3_jax.models.encoders import bert, swin

Encoder = bert.Bert | swin.Swin
Config = Mapping[str, Any]


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


# ---- From config.json to a module ------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
    "silu": nn.silu,
    "swish": nn.silu,
}


class _Kind(NamedTuple):
    """What the value of a config key has to be."""

    words: str
    holds: Callable[[Any], bool]


def _one_of(*choices: Any) -> _Kind:
    return _Kind(" or ".join(map(json.dumps, choices)), lambda v: any(type(v) is type(c) and v == c for c in choices))


_SIZE = _Kind("a positive integer", lambda v: type(v) is int and v > 0)
_ID = _Kind("an integer from 0", lambda v: type(v) is int and v >= 0)
_SIZES = _Kind("a list of positive integers", lambda v: isinstance(v, list | tuple) and all(map(_SIZE.holds, v)))
_SIDES = _Kind("a positive integer or two", lambda v: _SIZE.holds(v) or (_SIZES.holds(v) and len(v) == 2))
_NUMBER = _Kind("a positive number", lambda v: type(v) in (int, float) and 0 < v < math.inf)
_FLAG = _one_of(True, False)


def _value(config: Config, where: str | os.PathLike, key: str, kind: _Kind, default: Any = None) -> Any:
    """`config[key]`, checked. `default` is what transformers assumes where a config is silent; sizes have none."""
    value = config.get(key, default)
    if not kind.holds(value):
        raise UserError(f"{where}: {key} is {value!r}, supported is {kind.words}; mend it or take another checkpoint")
    return value


def _build_bert(config: Config, where: str | os.PathLike, pooler: bool, dtype: Any) -> bert.Bert:
    value = functools.partial(_value, config, where)
    value("position_embedding_type", _one_of("absolute"), "absolute")
    value("is_decoder", _one_of(False), False)
    width, heads = value("hidden_size", _SIZE), value("num_attention_heads", _SIZE)
    if width % heads:
        raise UserError(
            f"{where}: hidden_size {width} does not divide by num_attention_heads {heads}; mend one of them"
        )
    return bert.Bert(
        vocab_size=value("vocab_size", _SIZE),
        width=width,
        layers=value("num_hidden_layers", _SIZE),
        heads=heads,
        mlp_width=value("intermediate_size", _SIZE),
        max_positions=value("max_position_embeddings", _SIZE),
        token_types=value("type_vocab_size", _SIZE, 2),
        padding_id=value("pad_token_id", _ID, 1) if config["model_type"] == "roberta" else None,
        pooler=pooler,
        norm_eps=value("layer_norm_eps", _NUMBER, 1e-12),
        activation=_ACTIVATIONS[value("hidden_act", _one_of(*_ACTIVATIONS), "gelu")],
        dtype=dtype,
    )


def _build_swin(config: Config, where: str | os.PathLike, pooler: bool, dtype: Any) -> swin.Swin:
    del pooler  # Swin pools by the mean, without parameters.
    value = functools.partial(_value, config, where)
    width, depths, heads = value("embed_dim", _SIZE), value("depths", _SIZES), value("num_heads", _SIZES)
    if not depths or len(depths) != len(heads) or any(width * 2**i % h for i, h in enumerate(heads)):
        raise UserError(
            f"{where}: embed_dim {width}, depths {depths} and num_heads {heads} do not fit; mend one of them"
        )
    patch, image = _sides(value("patch_size", _SIDES, 4)), _sides(value("image_size", _SIDES, 224))
    absolute = value("use_absolute_embeddings", _FLAG, False)
    return swin.Swin(
        width=width,
        depths=tuple(depths),
        heads=tuple(heads),
        window=value("window_size", _SIZE),
        patch=patch,
        mlp_ratio=value("mlp_ratio", _NUMBER, 4.0),
        qkv_bias=value("qkv_bias", _FLAG, True),
        position_grid=(image[0] // patch[0], image[1] // patch[1]) if absolute else None,
        norm_eps=value("layer_norm_eps", _NUMBER, 1e-5),
        activation=_ACTIVATIONS[value("hidden_act", _one_of(*_ACTIVATIONS), "gelu")],
        dtype=dtype,
    )


def _sides(value: int | list[int]) -> tuple[int, int]:
    rows, columns = (value, value) if isinstance(value, int) else value
    return rows, columns


def _text_example(module: bert.Bert, config: Config) -> jax.Array:
    del module, config
    return jnp.zeros((1, 1), jnp.int32)


def _image_example(module: swin.Swin, config: Config) -> jax.Array:
    rows, columns = module.position_grid or (1, 1)
    channels = _value(config, "config.json", "num_channels", _SIZE, 3)
    return jnp.zeros((1, rows * module.patch[0], columns * module.patch[1], channels))


# ---- From parameters to tensors of the file --------------------------------------------------------------------------


class _Family(NamedTuple):
    """How the checkpoints of an architecture are written.

    Attributes:
      modality: "image" or "text".
      build: config -> module.
      example: (module, config) -> an input for `init`.
      names: (pattern, replacement) pairs; they turn the path of a parameter into its name in a file.
      aliases: the same; they turn other spellings of a name into that one.
      ignorable: matches the names of tensors that no encoder needs.
    """

    modality: str
    build: Callable[..., Encoder]
    example: Callable[[Any, Config], jax.Array]
    names: tuple[tuple[str, str], ...]
    aliases: tuple[tuple[str, str], ...]
    ignorable: str


_LEAVES = ((r"/(kernel|scale|embedding)$", ".weight"), (r"/bias$", ".bias"))
_OLD_NAMES = (
    (r"^(swin|bert|roberta)\.", ""),
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
)

_BERT = _Family(
    modality="text",
    build=_build_bert,
    example=_text_example,
    names=(
        (r"^(word|token_type|position)_embedding/", r"embeddings.\1_embeddings/"),
        (r"^embedding_norm/", "embeddings.LayerNorm/"),
        (r"^layer(\d+)/", r"encoder.layer.\1."),
        (r"attention/out/", "attention.output.dense/"),
        (r"attention/", "attention.self."),
        (r"attention_norm/", "attention.output.LayerNorm/"),
        (r"mlp_in/", "intermediate.dense/"),
        (r"mlp_out/", "output.dense/"),
        (r"mlp_norm/", "output.LayerNorm/"),
        (r"^pooler/", "pooler.dense/"),
        *_LEAVES,
    ),
    aliases=_OLD_NAMES,
    ignorable=r"embeddings\.(position_ids|token_type_ids)|(cls|classifier|qa_outputs|lm_head)\..*",
)

_SWIN = _Family(
    modality="image",
    build=_build_swin,
    example=_image_example,
    names=(
        (r"^patch_embedding/", "embeddings.patch_embeddings.projection/"),
        (r"^patch_norm/", "embeddings.norm/"),
        (r"^position_embedding$", "embeddings.position_embeddings"),
        (r"^stage(\d+)_block(\d+)/", r"encoder.layers.\1.blocks.\2."),
        (r"^merge(\d+)/", r"encoder.layers.\1.downsample."),
        (r"^norm/", "layernorm/"),
        (r"attention/relative_position_bias$", "attention.self.relative_position_bias_table"),
        (r"attention/out/", "attention.output.dense/"),
        (r"attention/", "attention.self."),
        (r"attention_norm/", "layernorm_before/"),
        (r"mlp_in/", "intermediate.dense/"),
        (r"mlp_out/", "output.dense/"),
        (r"mlp_norm/", "layernorm_after/"),
        *_LEAVES,
    ),
    aliases=(
        *_OLD_NAMES,
        # transformers 5 renames in memory; a state dict that was saved by hand has its names.
        (r"attention\.q_proj\.", "attention.self.query."),
        (r"attention\.k_proj\.", "attention.self.key."),
        (r"attention\.v_proj\.", "attention.self.value."),
        (r"attention\.o_proj\.", "attention.output.dense."),
        (r"attention\.relative_position_bias\.", "attention.self."),
        (r"mlp\.fc1\.", "intermediate.dense."),
        (r"mlp\.fc2\.", "output.dense."),
    ),
    ignorable=r".*relative_position_index|embeddings\.mask_token|(classifier|decoder|hidden_states_norms)\..*",
)

_FAMILIES = {"bert": _BERT, "roberta": _BERT, "swin": _SWIN}


def _family(config: Config, where: str | os.PathLike) -> _Family:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _FAMILIES:
        raise UserError(f"{where}: model_type {model_type!r} is not supported; take one of {', '.join(_FAMILIES)}")
    return _FAMILIES[model_type]


def _rename(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return name


def _by_canonical_name(tensors: Iterable[Tensor], family: _Family, where: Path) -> dict[str, Tensor]:
    by_name: dict[str, Tensor] = {}
    for tensor in tensors:
        name = _rename(tensor.name, family.aliases)
        if name in by_name:
            raise UserError(f"{where}: {by_name[name].name} and {tensor.name} are the same tensor; remove one of them")
        by_name[name] = tensor
    return by_name


def _fill(shapes: dict, tensors: dict[str, Tensor], family: _Family, where: Path) -> tuple[dict, tuple[str, ...]]:
    """(params, names of the tensors left aside); `shapes` are the parameters as shapes, `tensors` by canonical name."""
    found, missing, misfits = {}, [], []
    left = dict(tensors)
    for path, wanted in flax.traverse_util.flatten_dict(shapes, sep="/").items():
        name = _rename(path, family.names)
        tensor = left.pop(name, None)
        # The axes of the file's tensor, in the order of the parameter: Dense [in, out] <- [out, in], Conv HWIO <- OIHW.
        axes = {2: (1, 0), 4: (2, 3, 1, 0)}[wanted.ndim] if path.endswith("/kernel") else tuple(range(wanted.ndim))
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


def _some(names: list[str], limit: int = 6) -> str:
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
