"""Frozen encoders at work: a checkpoint, its image processor or tokenizer, and one jitted function to content tokens."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax import convert
from em3_jax.data.content import Content, digest
from em3_jax.data.images import ImageBatches, file_digest, load_processor
from em3_jax.data.texts import TextBatches, Tokenized, load_tokenizer
from em3_jax.models.encoders import EncoderOutput
from em3_jax.types import UserError

POOLINGS = ("mean", "cls", "pooler", "tokens")


class Encoder(NamedTuple):
    """An encoder and what it is to encode. Letters: V distinct images or texts, B batch, n tokens of each, D width.

    Attributes:
      params: of the encoder.
      encode: (params, *inputs) -> (tokens [B, n, D] f32, mask [B, n] bool); inputs are those of the source's batches.
      source: [b] which of the V -> the batches in which they are encoded.
      digests: [b] which of the V -> [b, 16] u8, the identity of their content, zeros where it cannot be read.
      unit: (n, D) that is kept of each.
      facts: JSON values for the manifest: which encoder with which weights, and the preprocessing.
      counts: the same, what was counted on the way.
      summary: a source -> a line that says what will be encoded.
    """

    params: dict
    encode: Callable[..., tuple[jax.Array, jax.Array]]
    source: Callable[[np.ndarray], ImageBatches | TextBatches]
    digests: Callable[[np.ndarray], np.ndarray]
    unit: tuple[int, int]
    facts: dict
    counts: dict
    summary: Callable[[ImageBatches | TextBatches], str]


class Settings(NamedTuple):
    """How to run an encoder.

    Attributes:
      pooling: one of `POOLINGS`; "tokens" keeps them all.
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
    mean, std = jnp.array(processor.mean, jnp.float32), jnp.array(processor.std, jnp.float32)

    def encode(params, pixels: jax.Array):
        """Pixels [B, H, W, 3] u8: rescaled and normalised here, so that a quarter of the bytes travels."""
        images = (pixels.astype(jnp.float32) * processor.scale - mean) / std
        return _pool(module.apply({"params": params}, images), settings)

    def source(values: np.ndarray) -> ImageBatches:
        return ImageBatches(content.values, values, batch_size, processor)

    def digests(values: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor() as pool:
            return np.stack([*pool.map(lambda value: file_digest(content.values[value]), values)])

    tokens = jax.eval_shape(encode, params, source(np.arange(1))[0]["inputs"][0])[0]
    rows, columns = processor.shape()[:2]
    return Encoder(
        params, encode, source, digests, tokens.shape[1:], _facts(folder, info, settings, processor.settings), {},
        lambda batches: f"images of {rows} x {columns} in {len(batches):,} batches of {batch_size}",
    )  # fmt: skip


def text_encoder(
    folder: Path, content: Content, settings: Settings, *, max_length: int | None, batch_tokens: int, multiple: int
) -> Encoder:
    """The text encoder of a checkpoint folder, and the texts of `content` to encode, about `batch_tokens` tokens at once in
    a `multiple` of rows.

    Raises:
      UserError: see `convert.load_encoder` and `texts.load_tokenizer`; or the encoder is one for images.
    """
    module, params, info = _load(folder, "text", settings)
    tokenizer = load_tokenizer(folder)
    longest = min(module.max_length, tokenizer.model_max_length)
    if max_length is not None and not 3 <= max_length <= longest:
        raise UserError(f"--max-length {max_length}: must be from 3 to {longest}, what this encoder can take")
    longest = max_length or longest
    tokenized = Tokenized(tokenizer, content.values, longest)
    if tokenized.largest_id() >= module.vocab_size:
        raise UserError(
            f"{folder}: the tokenizer gives id {tokenized.largest_id()}, but the encoder knows {module.vocab_size}; take both "
            "from the same checkpoint"
        )
    padding_id = tokenizer.pad_token_id or 0 if module.padding_id is None else module.padding_id

    def encode(params, token_ids: jax.Array, mask: jax.Array):
        """Token ids [B, L] i32, mask [B, L] bool."""
        return _pool(module.apply({"params": params}, token_ids, mask), settings)

    def source(values: np.ndarray) -> TextBatches:
        return TextBatches(
            tokenized, content.values, values,
            batch_tokens=batch_tokens, longest=longest, padding_id=padding_id, multiple=multiple,
        )  # fmt: skip

    def summary(batches: TextBatches) -> str:
        lengths = ", ".join(map(str, batches.lengths))
        return (
            f"texts padded to {lengths} tokens in {len(batches):,} batches, {batches.padding():.0%} of it padding; "
            f"{tokenized.truncated:,} cut at {longest}"
        )

    jax.eval_shape(encode, params, np.zeros((1, 1), np.int32), np.ones((1, 1), bool))  # refuses an unknown pooling
    kept = int(tokenized.length.max(initial=1)) if settings.pooling == "tokens" else 1
    return Encoder(
        params, encode, source,
        lambda values: np.stack([digest(content.values[value].encode()) for value in values]),
        (kept, info.width), _facts(folder, info, settings, {"max_length": longest}),
        {"truncated": tokenized.truncated}, summary,
    )  # fmt: skip


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


def _pool(output: EncoderOutput, settings: Settings) -> tuple[jax.Array, jax.Array]:
    have = [name for name in POOLINGS if getattr(output, name) is not None]
    if settings.pooling not in have:
        raise UserError(f"--pooling {settings.pooling}: this encoder has {', '.join(have)}; choose one of them")
    tokens, mask = output.tokens, output.mask
    if settings.pooling != "tokens":
        tokens, mask = getattr(output, settings.pooling)[:, None], mask.any(axis=1, keepdims=True)
    tokens = tokens.astype(jnp.float32)
    if settings.normalize:
        tokens /= jnp.maximum(jnp.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
    return tokens, mask
