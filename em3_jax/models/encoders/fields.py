"""The encoder that LEMUR trains from scratch: text fields, picture patches and ready vectors as one sequence.

Letters: B items, L text tokens, M pictures of an item, P patches of each, N tokens in all, E width of ready tokens, D width.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple, assert_never

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.models.encoders.bert import Embed, Layer


class TextLayout(NamedTuple):
    """Token ids of several text fields side by side, as `em3_jax.raw` writes them.

    Attributes:
      fields: (name, tokens) of each, in their order.
      keep: how many of each are read, from the first on.
      vocabulary: ids are below it.
    """

    fields: tuple[tuple[str, int], ...]
    keep: tuple[int, ...]
    vocabulary: int


class ImageLayout(NamedTuple):
    """Pictures [B, M, height * width * 3] u8, cut into patches of `patch` x `patch`, which divides both."""

    height: int
    width: int
    patch: int


class VectorLayout(NamedTuple):
    """Ready tokens [B, N, E]."""


class EncoderSettings(NamedTuple):
    """Sizes of the encoder.

    Attributes:
      width: D of the transformer; layers, heads, mlp_width: of it.
      output: width of the representation.
      means: whether it reads, beside the class token, the mean of each feature set's tokens as they come in.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    output: int
    means: bool = False


# With 0.02, which suits the widths of BERT, all class tokens come out alike at 64, and no loss finds a way out of that.
_dense_init = nn.initializers.lecun_normal()
_word_init = nn.initializers.normal(0.1)
_place_init = nn.initializers.normal(0.05)


READ = "read"
"""Name among the intermediates: [1 + M, B, N] bool, the tokens that are there, of none of the M feature sets and of each."""


def _means(x: jax.Array, mask: jax.Array, sets: list[int]) -> list[jax.Array]:
    """Of each feature set [B, D]: the mean of its valid tokens, zeros without any.

    Args:
      x, mask: [B, N, D], [B, N] bool.
      sets: number of the set of each of the N tokens; -1 = of none.
    """
    means = []
    for number in range(max(sets) + 1):
        own = mask & (np.array(sets) == number)
        total = jnp.einsum("bn,bnd->bd", own.astype(x.dtype), x)
        means.append(total / jnp.maximum(own.sum(axis=1, keepdims=True), 1))
    return means


class FieldEncoder(nn.Module):
    """One representation [B, output] of an item: the state of its class token and, with `means`, each feature set's mean token.

    A class token alone can lose what no click has asked for: clicks depend on products of a candidate and a history that the same
    encoder has made, and where neither shows a direction, neither gets a gradient along it. Means keep a way to all content.

    Every token is the sum of what it is, its position and the type of its field; a separator opens each field after the first one
    of a text. Post-norm transformer as BERT's, without dropout. An item without any content gets the representation of that.

    Attributes:
      settings: sizes.
      layouts: feature set -> layout of its tokens.
    """

    settings: EncoderSettings
    layouts: tuple[tuple[str, TextLayout | ImageLayout | VectorLayout], ...]

    @nn.compact
    def __call__(self, tokens: Mapping[str, jax.Array], mask: Mapping[str, jax.Array]) -> jax.Array:
        """[B, output].

        Args:
          tokens: feature set -> [B, L, 1] i32 ids, [B, M, H * W * 3] u8 pixels, or [B, N, E] float.
          mask: feature set -> [B, L], [B, M] or [B, N] bool.
        """
        s, batch = self.settings, len(next(iter(tokens.values())))
        # At zero, the class token is at first the mean of what it attends to and nothing that all items share.
        cls = self.param("cls", nn.initializers.zeros, (s.width,))
        states, masks, sets = [jnp.broadcast_to(cls, (batch, 1, s.width))], [jnp.ones((batch, 1), bool)], [-1]
        for number, (name, layout) in enumerate(self.layouts):
            match layout:
                case TextLayout():
                    parts = self._text(name, layout, tokens[name], mask[name])
                case ImageLayout():
                    parts = self._image(name, layout, tokens[name], mask[name])
                case VectorLayout():
                    parts = self._vectors(name, tokens[name], mask[name])
                case _:
                    assert_never(layout)
            for state, valid in parts:
                states.append(state)
                masks.append(valid)
                sets += [number] * state.shape[1]
        x, readable = jnp.concatenate(states, axis=1), jnp.concatenate(masks, axis=1)  # [B, N, D], [B, N]
        if self.is_mutable_collection("intermediates"):
            own = [jnp.array(sets) == number for number in range(-1, len(self.layouts))]
            self.sow("intermediates", READ, readable & jnp.stack(own)[:, None])
        x = nn.LayerNorm(name="embedding_norm")(x.reshape(-1, s.width))
        means = _means(x.reshape(*readable.shape, -1), readable, sets) if s.means else []
        for k in range(s.layers):
            # Of the last layer the class token is read, and nothing else is computed.
            last = k == s.layers - 1
            layer = Layer(s.heads, s.mlp_width, 1e-6, nn.gelu, x.dtype, _dense_init, last, name=f"layer{k}")
            x = layer(x, readable)
        return nn.Dense(s.output, name="output")(jnp.concatenate([x, *means], axis=1))

    def _placed(self, name: str, x: jax.Array) -> jax.Array:
        """Tokens [B, N, D] of a field with their positions and the field's type."""
        position = self.param(f"{name}_position", _place_init, x.shape[1:])
        return x + position + self.param(f"{name}_type", _place_init, x.shape[-1:])

    def _text(
        self, name: str, layout: TextLayout, tokens: jax.Array, mask: jax.Array
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        words = Embed(layout.vocabulary, self.settings.width, embedding_init=_word_init, name=f"{name}_words")
        separator = self.param(f"{name}_separator", _place_init, (self.settings.width,))
        start = 0
        for number, ((field, length), keep) in enumerate(zip(layout.fields, layout.keep, strict=True)):
            x = words(tokens[:, start : start + keep, 0])
            valid = mask[:, start : start + keep]
            if number:
                x = jnp.concatenate([jnp.broadcast_to(separator, (len(x), 1, x.shape[-1])).astype(x.dtype), x], axis=1)
                valid = jnp.concatenate([valid.any(axis=1, keepdims=True), valid], axis=1)
            yield self._placed(f"{name}_{field}", x), valid
            start += length

    def _image(
        self, name: str, layout: ImageLayout, tokens: jax.Array, mask: jax.Array
    ) -> Iterator[tuple[jax.Array, jax.Array]]:
        height, width, patch = layout
        batch, pictures, _ = tokens.shape
        x = (
            tokens.astype(jnp.float32).reshape(batch * pictures, height // patch, patch, width // patch, patch, 3)
            / 127.5
            - 1
        )
        x = x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, -1, patch * patch * 3)  # [B, M * P, ...]
        x = nn.Dense(self.settings.width, kernel_init=_dense_init, name=f"{name}_patch")(x)
        yield self._placed(name, x), jnp.repeat(mask, x.shape[1] // pictures, axis=1)

    def _vectors(self, name: str, tokens: jax.Array, mask: jax.Array) -> Iterator[tuple[jax.Array, jax.Array]]:
        x = nn.Dense(self.settings.width, kernel_init=_dense_init, name=f"{name}_in")(tokens.astype(jnp.float32))
        yield self._placed(name, x), mask
