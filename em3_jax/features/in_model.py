"""Encoders that stand in the model: how they are run and trained, whatever they are and wherever they come from.

Letters: S items, M slots of an item, n tokens of each, E width.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from em3_jax.config.schema import OnClicks
from em3_jax.config.schema.ranking import Augment
from em3_jax.core import trees
from em3_jax.core.errors import UserError
from em3_jax.features import augment, dial
from em3_jax.features.chunks import in_chunks
from em3_jax.models.encoders import PLAIN, Given, Part

Pooled = tuple[jax.Array, jax.Array]
"""(tokens [B, n, E] f32, mask [B, n] bool) of B pictures or texts."""


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
    """The encoder of a raw feature set.

    Attributes:
      params: of the encoder, as they were loaded (numpy).
      encode: (params, pixels [S, M, H * W * 3] u8 or token ids [S, M * L, 1] i32, their mask, given) ->
        `Encoded` with N = M * n, the same tokens that extraction would store; of `given`, see
        `models.encoders.Given`, the category is [S], and so is the mask, of the items that count.
        Pixels may be those of `view` too; else their centre is cut out, if anything is.
      view: (pixels or token ids, `augment.Drawn`) -> the pixels' random views, for `encode`; ids as they are.
      trains: parameter's path -> whether it trains in training.
      rules: of the learning rate of its parameters, before those of config.optim.multipliers.
      rank: of the adapters beside its kernels; 0 = there are none.
    """

    params: dict
    encode: Callable[..., Encoded]
    view: Callable[[jax.Array, augment.Drawn], jax.Array]
    trains: Callable[[str], bool]
    rules: tuple[dial.Rule, ...]
    rank: int


class How(NamedTuple):
    """How encoders are run and trained, see config.model.encoder_*.

    Attributes:
      multipliers: of config.optim.
      trains: feature set -> how much of its encoder trains, see `dial.rules`.
      rank: of adapters.
      chunk: see `chunks.in_chunks`.
      devices: over which items are cut.
      augment: of config.data.
    """

    multipliers: Sequence[dial.Rule] = ()
    trains: Mapping[str, str] = {}
    rank: int = 0
    chunk: int = 0
    devices: int = 1
    augment: Augment = Augment()


PLAINLY = How()
"""All of them train as fast as the rest of the model, whole batches at once."""


def how(config: OnClicks, devices: int) -> How:
    """How a config has its encoders run, on so many devices."""
    model, data = config.model, config.data
    rank, chunk = model.encoder_rank, model.encoder_chunk
    return How(config.optim.multipliers, model.encoder_trains, rank, chunk, devices, data.augment)


def multipliers(encoders: Mapping[str, RawEncoder], own: Sequence[dial.Rule]) -> tuple[dial.Rule, ...]:
    """The rules of all encoders, and those of config.optim after them."""
    return (*(rule for encoder in encoders.values() for rule in encoder.rules), *own)


def of_images(
    name: str,
    params: dict,
    parts: Sequence[Part],
    function: Callable[[Any, jax.Array, Given], tuple[Pooled, Mapping[str, Any]]],
    shape: tuple[int, int, int],
    how: How,
) -> RawEncoder:
    """An encoder of pictures.

    Args:
      name: of the feature set.
      params, parts: of the encoder.
      function: (params, pixels [B, Y, X, 3] u8, given) -> (what it makes of them, running statistics found anew).
      shape: (H, W, 3) of the pictures.
      how: it is run and trained.

    Raises:
      UserError: `how` has what the encoder or the pictures do not.
    """
    crop = how.augment.crop
    if crop > min(shape[:2]):
        raise UserError(
            f"config.data.augment.crop={crop}: the pictures of '{name}' have {shape[0]} x {shape[1]} pixels; give "
            f"{min(shape[:2])} at most"
        )
    cropped = (crop or shape[0], crop or shape[1], shape[2])
    trained = _trained(name, params, parts, how)

    def view(content: jax.Array, drawn: augment.Drawn | None) -> jax.Array:
        pixels = augment.view(content.reshape(*content.shape[:2], *shape), how.augment, drawn)
        return pixels.reshape(*content.shape[:2], -1)

    def encode(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN) -> Encoded:
        if content.shape[-1] != math.prod(cropped):
            content = view(content, None)
        pixels, slots = content.reshape(-1, *cropped), content.shape[1]
        mask = mask.reshape(-1, 1)
        counted = mask[:, 0] if given.mask is None else mask[:, 0] & jnp.repeat(given.mask, slots)
        category = None if given.category is None else jnp.repeat(given.category, slots)

        def run(params, pixels, counted, category):
            return function(params, pixels, Given(counted, category, given.trains))

        chunked = in_chunks(run, how.chunk, how.devices, trained.first)
        (tokens, found), statistics = chunked(params, pixels, counted, category)
        found = (found & mask).reshape(len(content), -1)
        return Encoded(tokens.reshape(*found.shape, -1), found, statistics)

    return RawEncoder(params, encode, view, trained.is_trained, trained.rules, trained.rank)


def of_stored(
    name: str,
    params: dict,
    parts: Sequence[Part],
    function: Callable[[Any, jax.Array, Given], tuple[Pooled, Mapping[str, Any]]],
    shape: tuple[int, ...],
    how: How,
) -> RawEncoder:
    """An encoder that goes on where another one has stopped, whose tokens are stored.

    Args:
      name, params, parts, how: see `of_images`; nothing is random here.
      function: (params, stored tokens [S, *shape], given) -> what it makes of an item's, and statistics.
      shape: of an item's tokens as the function reads them.

    Raises:
      UserError: see `of_images`.
    """
    trained = _trained(name, params, parts, how)

    def encode(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN) -> Encoded:
        there = mask.any(axis=1)
        counted = there if given.mask is None else there & given.mask

        def run(params, tokens, counted, category):
            return function(params, tokens, Given(counted, category, given.trains))

        chunked = in_chunks(run, how.chunk, how.devices, trained.first)
        inputs = (content.reshape(-1, *shape), counted, given.category)
        (tokens, found), statistics = chunked(params, *inputs)
        # A token for each that is stored, or one of an item for all of them.
        found = found & (mask if found.shape == mask.shape else there[:, None])
        return Encoded(tokens, found, statistics)

    view = lambda content, drawn: content  # noqa: E731
    return RawEncoder(params, encode, view, trained.is_trained, trained.rules, trained.rank)


def of_texts(
    name: str,
    params: dict,
    parts: Sequence[Part],
    function: Callable[[Any, jax.Array, jax.Array], Pooled],
    length: int,
    padding_id: int,
    how: How,
) -> RawEncoder:
    """An encoder of texts.

    Args:
      name, params, parts, how: see `of_images`.
      function: (params, token ids [B, L] i32, mask [B, L] bool) -> what it makes of them.
      length: L.
      padding_id: stands where there is no token.
    """
    trained = _trained(name, params, parts, how)

    def run(params, token_ids, counted, mask):
        return function(params, token_ids, mask), {}

    def encode(params, content: jax.Array, mask: jax.Array, given: Given = PLAIN) -> Encoded:
        mask = mask.reshape(-1, length)  # [S * M, L]
        token_ids = jnp.where(mask, content.reshape(mask.shape), padding_id)
        chunked = in_chunks(run, how.chunk, how.devices, trained.first)
        (tokens, found), _ = chunked(params, token_ids, mask[:, 0], mask)
        found = found.reshape(len(content), -1)
        return Encoded(tokens.reshape(*found.shape, -1), found, {})

    view = lambda content, drawn: content  # noqa: E731
    return RawEncoder(params, encode, view, trained.is_trained, trained.rules, trained.rank)


class _Trained(NamedTuple):
    """What of an encoder trains: see `RawEncoder`; `first` is the name of the first part of which something does."""

    is_trained: Callable[[str], bool]
    rules: tuple[dial.Rule, ...]
    rank: int
    first: str


def _trained(name: str, params: dict, parts: Sequence[Part], how: How) -> _Trained:
    trains, paths = how.trains.get(name, ""), list(trees.named_leaves(params))
    rules = dial.rules(name, trains, parts, paths, how.multipliers) if trains else ()
    patterns = (*rules, *how.multipliers)
    is_trained = lambda path: trees.first_match(f"encoders/{name}/{path}", patterns) != 0  # noqa: E731
    is_adapted = trains == dial.ADAPTERS
    first = "" if is_adapted else dial.first_trained(parts, filter(is_trained, paths))
    return _Trained(is_trained, rules, how.rank if is_adapted else 0, first)
