"""Encoders at work: a checkpoint, its image processor or tokenizer, and one function from their output to content tokens.

Extraction runs that function over all items once; the training step, where features are raw, over the items of the batch.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.data.content import Content, digest
from em3_jax.data.format import FeatureSet
from em3_jax.data.images import ImageBatches, arithmetic, file_digest, load_processor
from em3_jax.data.texts import TextBatches, Tokenized, load_tokenizer
from em3_jax.features import convert, known, sentences
from em3_jax.models.encoders import PLAIN, STATISTICS, EncoderOutput, Given
from em3_jax.models.encoders.cnn import InvertedResiduals

POOLINGS = ("mean", "cls", "pooler", "tokens")
FEW = 2
"""Images of a net of inverted residuals that a CPU encodes at once: what lies between its layers stays in the cache."""
TEXT_POOLINGS = (*POOLINGS, "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")


class Encoder(NamedTuple):
    """An encoder and what it is to encode. Letters: V distinct images or texts, B batch, n tokens of each, D width.

    Attributes:
      params: of the encoder; None where raw content is stored, see `unencoded`.
      encode: (params, *inputs) -> (tokens [B, n, D] f32, mask [B, n] bool); inputs are those of the source's batches.
      source: [b] which of the V -> the batches in which they are encoded.
      digests: [b] which of the V -> [b, 16] u8, the identity of their content, zeros where it cannot be read.
      unit: (n, D) that is kept of each.
      raw: JSON values for the manifest of a raw feature set: the shape of its inputs.
      facts: JSON values for the manifest: which encoder with which weights, and the preprocessing.
      counts: the same, what was counted on the way.
      summary: a source -> a line that says what will be encoded.
      declared: JSON values for the manifest: how the checkpoint itself asks to be used; {} = it does not.
    """

    params: dict | None
    encode: Callable[..., tuple[jax.Array, jax.Array]]
    source: Callable[[np.ndarray], ImageBatches | TextBatches]
    digests: Callable[[np.ndarray], np.ndarray]
    unit: tuple[int, int]
    raw: dict
    facts: dict
    counts: dict
    summary: Callable[[ImageBatches | TextBatches], str]
    declared: Mapping[str, Any] = {}


class Settings(NamedTuple):
    """How to run an encoder.

    Attributes:
      pooling: one of `POOLINGS`, of texts `TEXT_POOLINGS`; "tokens" keeps them all.
      normalize: scale each token to length 1.
      precision: of the activations, "float32" or "bfloat16".
      random_weights: seed of fresh weights, None to read the checkpoint's.
    """

    pooling: str
    normalize: bool
    precision: str
    random_weights: int | None


def image_encoder(
    folder: Path, content: Content, settings: Settings, *, image_size: int | None, batch_size: int
) -> Encoder:
    """The image encoder of a checkpoint folder, and the images of `content` to encode, `batch_size` at once.

    Raises:
      UserError: see `convert.load_encoder` and `images.load_processor`; or the encoder is one for texts.
    """
    module, params, info = _load(folder, "image", settings)
    default_size = info.config.get("image_size", 224) if settings.random_weights is not None else None
    processor = load_processor(folder, image_size, default_size)
    encode = _image_function(module, processor.settings, settings)

    def source(values: np.ndarray) -> ImageBatches:
        return ImageBatches(content.values, values, batch_size, processor)

    def digests(values: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack([*pool.map(lambda value: file_digest(content.values[value]), values)])

    tokens = jax.eval_shape(encode, params, source(np.arange(1))[0]["inputs"][0])[0]
    shape = processor.shape()
    return Encoder(
        params, encode, source, digests, tokens.shape[1:], {"shape": list(shape)},
        _facts(folder, info, settings, processor.settings), {},
        lambda batches: f"images of {shape[0]} x {shape[1]} in {len(batches):,} batches of {batch_size}",
    )  # fmt: skip


def text_encoder(
    use: sentences.Use, content: Content, settings: Settings, *, batch_tokens: int, multiple: int
) -> Encoder:
    """The text encoder of a checkpoint folder, used as `use` says, and the texts of `content` to encode, about
    `batch_tokens` tokens at once in a `multiple` of rows.

    Raises:
      UserError: see `convert.load_encoder` and `texts.load_tokenizer`; or the encoder is one for images.
    """
    folder = use.folder
    module, params, info = _load(folder, "text", settings)
    tokenizer = load_tokenizer(folder)
    longest = min(module.max_length, tokenizer.model_max_length)
    asked = use.max_length if use.max_length is not None else longest
    asked = min(asked, longest) if use.may_be_longer else asked
    if not 3 <= asked <= longest:
        raise UserError(f"--max-length {asked}: must be from 3 to {longest}, what this encoder can take")
    longest = asked
    tokenized = Tokenized(tokenizer, list(map(use.text, content.values)), longest)
    if tokenized.largest_id() >= module.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer gives id {tokenized.largest_id()}, but the encoder knows {module.vocab_size}; take both "
            "from the same checkpoint"
        )
    padding_id = tokenizer.pad_token_id or 0 if module.padding_id is None else module.padding_id

    encode = _text_function(module, settings)

    def source(values: np.ndarray) -> TextBatches:
        return TextBatches(
            tokenized, content.values, values,
            batch_tokens=batch_tokens, longest=longest, padding_id=padding_id, multiple=multiple,
        )  # fmt: skip

    def summary(batches: ImageBatches | TextBatches) -> str:
        assert isinstance(batches, TextBatches)  # of `source`
        lengths = ", ".join(map(str, batches.lengths))
        return (
            f"texts padded to {lengths} tokens in {len(batches):,} batches, {batches.padding():.0%} of it padding; "
            f"{tokenized.truncated:,} cut at {longest}"
        )

    jax.eval_shape(encode, params, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))  # refuses an unknown pooling
    length = int(tokenized.length.max(initial=1))
    return Encoder(
        params, encode, source,
        lambda values: np.stack([digest(content.values[value].encode()) for value in values]),
        (length if settings.pooling == "tokens" else 1, info.width),
        {"length": length, "padding_id": padding_id},
        _facts(folder, info, settings, {"max_length": longest} | use.preprocessing()),
        {"truncated": tokenized.truncated}, summary, use.declared,
    )  # fmt: skip


def unencoded(made: Encoder) -> Encoder:
    """`made` with the identity in place of its encoder: tokens are pixels [B, 1, H * W * 3] u8, or ids [B, L, 1] i32."""

    def encode(params: None, inputs: np.ndarray, mask: np.ndarray | None = None):
        mask = np.ones((len(inputs), 1), bool) if mask is None else mask
        return inputs.reshape(*mask.shape, -1), mask

    unit = (made.raw["length"], 1) if "length" in made.raw else (1, math.prod(made.raw["shape"]))
    return made._replace(params=None, encode=encode, unit=unit)


class Encoded(NamedTuple):
    """What an encoder makes of raw content.

    Attributes:
      tokens: [S, N, E] f32.
      mask: [S, N] bool.
      statistics: running statistics found anew, in the place of parameters of the same path; {} without.
    """

    tokens: jax.Array
    mask: jax.Array
    statistics: Mapping[str, Any]


class RawEncoder(NamedTuple):
    """The encoder of a raw feature set. Letters: S items, M slots of an item, n tokens of each, E width.

    Attributes:
      params: of the encoder, as they were loaded (numpy).
      encode: (params, pixels [S, M, H * W * 3] u8 or token ids [S, M * L, 1] i32, their mask, given) ->
        `Encoded` with N = M * n, the same tokens that extraction would store; of `given`, see
        `models.encoders.Given`, the category is [S], and the mask is not read.
      trains: parameter's path -> whether it trains in training.
    """

    params: dict
    encode: Callable[..., Encoded]
    trains: Callable[[str], bool]


def raw_encoders(
    folders: Mapping[str, str], feature_sets: Iterable[FeatureSet], multipliers: Sequence[tuple[str, float]] = ()
) -> dict[str, RawEncoder]:
    """Name -> encoder of the raw ones of the `feature_sets`, from their `folders`.

    Args:
      multipliers: of the learning rate, see `training.optim`; those of 0 freeze.

    Raises:
      UserError: a raw set has no folder, a folder no raw set, or it does not hold the encoder the set was made for.
    """
    raw = {features.name: features.manifest for features in feature_sets if features.is_raw}
    for name, manifest in raw.items():
        if name not in folders:
            raise UserError(
                f"config.model.encoders.{name}: missing, but feature set '{name}' is raw; give the folder of "
                f"{manifest['encoder']} and set config.model.content=raw, or use features made without --raw"
            )
    for name in folders:
        if name not in raw:
            raise UserError(
                f"config.model.encoders.{name}: config.data.features has no raw set of that name; leave it out, or make one "
                "with `em3 extract --raw`"
            )
    return {
        name: _raw_encoder(name, known.place_of(folders[name]), manifest, multipliers) for name, manifest in raw.items()
    }


def _raw_encoder(name: str, folder: Path, manifest: dict, multipliers: Sequence[tuple[str, float]]) -> RawEncoder:
    if not folder.is_dir():
        raise UserError(
            f"config.model.encoders.{name}: {folder}: no such folder; put {manifest['encoder']} there, or set its folder"
        )
    folder = sentences.transformer_folder(folder)
    settings = Settings(**{key: manifest[key] for key in Settings._fields})
    if settings.random_weights is None and convert.weights_hash(folder) != manifest["weights_hash"]:
        raise UserError(
            f"config.model.encoders.{name}: the weights in {folder} are not those for which '{name}' was made (hash "
            f"{manifest['weights_hash'][:12]}); give the folder of {manifest['encoder']}, or make '{name}' again with this one"
        )
    module, params, _ = _load(folder, manifest["kind"], settings)
    facts = manifest["raw"]
    if manifest["kind"] == "image":
        function, shape = _image_in_training(module, manifest["preprocessing"], settings), tuple(facts["shape"])
    else:
        function, shape = _text_function(module, settings), (facts["length"],)

    def encode(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN) -> Encoded:
        inputs = content.reshape(-1, *shape)  # [S * M, H, W, 3] or [S * M, L]
        mask = mask.reshape(len(inputs), -1)  # [S * M, 1] or [S * M, L]
        statistics: Mapping[str, Any] = {}
        if manifest["kind"] == "image":
            category = given.category
            if category is not None:
                category = jnp.repeat(category, len(inputs) // len(content))
            (tokens, found), statistics = function(params, inputs, Given(mask[:, 0], category, given.trains))
            found &= mask
        else:
            tokens, found = function(params, jnp.where(mask, inputs, facts["padding_id"]), mask)
        tokens = tokens.reshape(len(content), -1, tokens.shape[-1])
        return Encoded(tokens, found.reshape(len(content), -1), statistics)

    def trains(path: str) -> bool:
        return trees.first_match(f"encoders/{name}/{path}", multipliers) != 0

    return RawEncoder(params, encode, trains)


def _image_function(module: Any, preprocessing: dict, settings: Settings) -> Callable:
    """(params, pixels [B, H, W, 3] u8) -> (tokens [B, n, D] f32, mask [B, n] bool)."""
    function = _image_in_training(module, preprocessing, settings)

    def whole(params, pixels: jax.Array):
        return function(params, pixels, PLAIN)[0]

    def by_few(params, pixels: jax.Array):
        parts = jax.lax.map(lambda few: whole(params, few), pixels.reshape(-1, FEW, *pixels.shape[1:]))
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), parts)

    def encode(params, pixels: jax.Array):
        cpu = by_few if isinstance(module, InvertedResiduals) and len(pixels) % FEW == 0 else whole
        return jax.lax.platform_dependent(params, pixels, cpu=cpu, default=whole)

    return encode


def _image_in_training(module: Any, preprocessing: dict, settings: Settings) -> Callable:
    """(params, pixels [B, H, W, 3] u8, given) -> ((tokens [B, n, D] f32, mask [B, n] bool), statistics)."""
    scale, mean, std = arithmetic(preprocessing)
    center, spread = np.array(mean, np.float32), np.array(std, np.float32)

    def encode(params, pixels: jax.Array, given: Given):
        # Here, so that a quarter of the bytes travels.
        images = (pixels.astype(jnp.float32) * scale - center) / spread
        found, changed = module.apply({"params": params}, images, given, mutable=[STATISTICS])
        return _pool(found, settings, POOLINGS), changed.get(STATISTICS, {})

    return encode


def _text_function(module: Any, settings: Settings) -> Callable:
    """(params, token ids [B, L] i32, mask [B, L] bool) -> (tokens [B, n, D] f32, mask [B, n] bool)."""
    return lambda params, token_ids, mask: _pool(
        module.apply({"params": params}, token_ids, mask), settings, TEXT_POOLINGS
    )


def _load(folder: Path, modality: str, settings: Settings) -> tuple[Any, dict, convert.EncoderInfo]:
    dtype = jnp.dtype(settings.precision)
    if settings.random_weights is None:
        module, params, info = convert.load_encoder(folder, dtype)
    else:
        module, params, info = convert.random_encoder(folder, settings.random_weights, dtype)
    if info.modality != modality:
        raise UserError(f"{folder}: {info.model_type} is an encoder for {info.modality}s; give one for {modality}s")
    return module, params, info


def _facts(folder: Path, info: convert.EncoderInfo, settings: Settings, preprocessing: dict) -> dict:
    is_random = settings.random_weights is not None
    return {
        "model_type": info.model_type,
        "weights_hash": None if is_random else convert.weights_hash(folder),
        "random_weights": settings.random_weights,
        "preprocessing": preprocessing,
        "pooling": settings.pooling,
        "normalize": settings.normalize,
        "precision": settings.precision,
    }


def _pool(output: EncoderOutput, settings: Settings, choices: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    have = [name for name in choices if getattr(output, name, True) is not None]
    if settings.pooling not in have:
        raise UserError(f"--pooling {settings.pooling}: this encoder has {', '.join(have)}; choose one of them")
    tokens, mask = output.tokens, output.mask
    if settings.pooling != "tokens":
        pooled = getattr(output, settings.pooling, None)
        pooled = _pooled(settings.pooling, tokens.astype(jnp.float32), mask) if pooled is None else pooled
        tokens, mask = pooled[:, None], mask.any(axis=1, keepdims=True)
    tokens = tokens.astype(jnp.float32)
    if settings.normalize:
        square = jnp.sum(tokens * tokens, axis=-1, keepdims=True)
        tokens /= jnp.sqrt(jnp.maximum(square, 1e-24))  # norm() has no gradient at zero, where nothing is valid
    return tokens, mask


def _pooled(pooling: str, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, D] of tokens [B, N, D] where mask [B, N], as sentence-transformers defines it; zeros where nothing is valid.

    "max": the largest of each dimension; "mean_sqrt_len_tokens": sum over sqrt(n); "weightedmean": weights 1, 2, ... n;
    "lasttoken": the last one.
    """
    place = jnp.arange(1, mask.shape[1] + 1)
    if pooling == "max":
        largest = jnp.max(tokens, axis=1, where=mask[..., None], initial=-jnp.inf)
        return jnp.where(mask.any(axis=1, keepdims=True), largest, 0.0)
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    weight = {
        "mean_sqrt_len_tokens": mask / jnp.sqrt(count),
        "weightedmean": mask * place / jnp.maximum((mask * place).sum(axis=1, keepdims=True), 1),
        "lasttoken": mask & (place == (mask * place).max(axis=1, keepdims=True)),
    }[pooling]
    return jnp.einsum("bn,bnd->bd", weight.astype(jnp.float32), tokens, precision=jax.lax.Precision.HIGHEST)
