"""Encoders at work: a checkpoint, its image processor or tokenizer, and one function from their output to content tokens.

Extraction runs that function over all items once; the training step, where features are raw, over the items of the batch.
"""

import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core.errors import UserError
from em3_jax.core.maxima import largest
from em3_jax.data.content import Content, digest
from em3_jax.data.images import ImageBatches, Processor, Square, arithmetic, file_digest, load_processor
from em3_jax.data.texts import TextBatches, Tokenized, load_tokenizer
from em3_jax.features import convert, lower, sentences
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
    folder: Path,
    content: Content,
    settings: Settings,
    *,
    image_size: int | None,
    batch_size: int,
    below: str = "",
    dtype: str = "float16",
) -> Encoder:
    """The image encoder of a checkpoint folder, and the images of `content` to encode, `batch_size` at once.

    Args:
      below: name of a part: what it reads is what is made, see `lower`; "" = the encoder's result.
      dtype: of the numbers of these maps.

    Raises:
      UserError: see `convert.load_encoder`, `images.load_processor` and `lower.check`; or the encoder is one for texts.
    """
    module, params, info = load(folder, "image", settings)
    default_size = info.config.get("image_size", 224) if settings.random_weights is not None else None
    processor = load_processor(folder, image_size, default_size)
    encode = _image_function(module, processor.settings, settings)

    source, digests = _image_files(content, processor, batch_size)
    shape, facts = processor.shape(), _facts(folder, info, settings, processor.settings)
    jax.eval_shape(encode, params, source(np.arange(1))[0]["inputs"][0])  # refuses an unknown pooling
    raw: dict[str, Any] = {"shape": list(shape)}
    if below:
        lower.check(module, below, folder)
        encode = lower.lower(module, below, normalised(processor.settings), dtype)
        images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
        raw = {"shape": list(lower.shape_of(module, below, params, images)), "numbers": dtype}
        facts |= {"below": below}
    tokens = jax.eval_shape(encode, params, source(np.arange(1))[0]["inputs"][0])[0]
    return Encoder(
        params, encode, source, digests, tokens.shape[1:], raw, facts, {},
        lambda batches: f"images of {shape[0]} x {shape[1]} in {len(batches):,} batches of {batch_size}",
    )  # fmt: skip


def _image_files(
    content: Content, processor: Processor | Square, batch_size: int
) -> tuple[Callable[[np.ndarray], ImageBatches], Callable[[np.ndarray], np.ndarray]]:
    """(`source`, `digests`) of an `Encoder` of image files."""

    def source(values: np.ndarray) -> ImageBatches:
        return ImageBatches(content.values, values, batch_size, processor)

    def digests(values: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack([*pool.map(lambda value: file_digest(content.values[value]), values)])

    return source, digests


def pixels_alone(content: Content, side: int, batch_size: int) -> Encoder:
    """No encoder at all: the images of `content` as pixels of side x side, `batch_size` at once."""
    source, digests = _image_files(content, Square(side), batch_size)
    facts = {"preprocessing": {"size": {"height": side, "width": side}, "resample": 3}}
    return unencoded(
        Encoder(
            None, lambda *_: (jnp.zeros(()), jnp.zeros(())), source, digests, (1, 1),
            {"shape": [side, side, 3]}, facts, {},
            lambda batches: f"images of {side} x {side} in {len(batches):,} batches of {batch_size}",
        )
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
    module, params, info = load(folder, "text", settings)
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

    encode = text_function(module, settings)

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


def normalised(preprocessing: dict) -> Callable[[jax.Array], jax.Array]:
    """Pixels [..., 3] u8 -> images as the encoder expects them, f32: here, so that a quarter of the bytes travels."""
    scale, mean, std = arithmetic(preprocessing)
    center, spread = np.array(mean, np.float32), np.array(std, np.float32)
    return lambda pixels: (pixels.astype(jnp.float32) * scale - center) / spread


def _image_function(module: Any, preprocessing: dict, settings: Settings) -> Callable:
    """(params, pixels [B, H, W, 3] u8) -> (tokens [B, n, D] f32, mask [B, n] bool)."""
    function = image_in_training(module, normalised(preprocessing), settings)

    def whole(params, pixels: jax.Array):
        return function(params, pixels, PLAIN)[0]

    def by_few(params, pixels: jax.Array):
        parts = jax.lax.map(lambda few: whole(params, few), pixels.reshape(-1, FEW, *pixels.shape[1:]))
        return jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), parts)

    def encode(params, pixels: jax.Array):
        cpu = by_few if isinstance(module, InvertedResiduals) and len(pixels) % FEW == 0 else whole
        return jax.lax.platform_dependent(params, pixels, cpu=cpu, default=whole)

    return encode


def image_in_training(module: Any, normalised: Callable[[jax.Array], jax.Array], settings: Settings) -> Callable:
    """(params, what is stored [B, ...], given) -> ((tokens [B, n, D] f32, mask [B, n] bool), statistics)."""

    def encode(params, stored: jax.Array, given: Given):
        found, changed = module.apply({"params": params}, normalised(stored), given, mutable=[STATISTICS])
        return _pool(found, settings, POOLINGS), changed.get(STATISTICS, {})

    return encode


def text_function(module: Any, settings: Settings) -> Callable:
    """(params, token ids [B, L] i32, mask [B, L] bool) -> (tokens [B, n, D] f32, mask [B, n] bool)."""
    return lambda params, token_ids, mask: _pool(
        module.apply({"params": params}, token_ids, mask), settings, TEXT_POOLINGS
    )


def load(folder: Path, modality: str, settings: Settings) -> tuple[Any, dict, convert.EncoderInfo]:
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
        found = largest(tokens, 1, mask[..., None])
        return jnp.where(mask.any(axis=1, keepdims=True), found, 0.0)
    count = jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    weight = {
        "mean_sqrt_len_tokens": mask / jnp.sqrt(count),
        "weightedmean": mask * place / jnp.maximum((mask * place).sum(axis=1, keepdims=True), 1),
        "lasttoken": mask & (place == (mask * place).max(axis=1, keepdims=True)),
    }[pooling]
    return jnp.einsum("bn,bnd->bd", weight.astype(jnp.float32), tokens, precision=jax.lax.Precision.HIGHEST)
