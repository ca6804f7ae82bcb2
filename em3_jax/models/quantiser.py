"""Residual quantisation: a vector as one code a level, each level coding what those before it left.

Letters: S items, L levels, K codes of a level, E or D width of the vectors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import gather
from em3_jax.models.mlp import MLP

DECAY = 0.9
"""Of the running means by which codebooks follow their vectors, a step."""
LEAST = 0.1
"""Of the share that a code would have if all had the same: one with less begins anew."""


def nearest(vectors: jax.Array, codebook: jax.Array) -> jax.Array:
    """[S] i32: the row of `codebook` [K, E] nearest to each of `vectors` [S, E]; of equals the first."""
    vectors, codebook = vectors.astype(jnp.float32), codebook.astype(jnp.float32)
    product = jnp.matmul(vectors, codebook.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.argmax(2 * product - jnp.sum(codebook**2, axis=-1), axis=-1).astype(jnp.int32)


def residual_codes(vectors: jax.Array, codebooks: jax.Array) -> jax.Array:
    """[S, L] i32: k_l = argmin_k |r_l - c_l[k]|, r_1 = x, r_{l+1} = r_l - c_l[k_l] (Lee et al. 2022, eq. 2).

    Args:
      vectors: [S, E], x.
      codebooks: [L, K, E], c.
    """
    residual, codes = vectors.astype(jnp.float32), []
    for codebook in codebooks:
        codes.append(nearest(residual, codebook))
        residual = residual - codebook[codes[-1]]
    return jnp.stack(codes, axis=-1)


def sum_of_codes(codes: jax.Array, codebooks: jax.Array) -> jax.Array:
    """[S, E] sum_l c_l[k_l]: what codes [S, L] stand for."""
    levels = [codebook[codes[:, level]] for level, codebook in enumerate(codebooks)]
    return jnp.sum(jnp.stack(levels), axis=0)


class Quantised(NamedTuple):
    """What a `ResidualQuantiser` makes of vectors [S, D].

    Attributes:
      vectors: [S, D] sums of the chosen codes' vectors; their gradient is that of the vectors that were
        quantised, as if nothing stood between (straight through).
      codes: [S, L] i32.
      errors: [S] f32 |x - sum_l c_l|^2, whose gradient draws the vectors to their codes.
      moved: the quantiser's parameters after this step: codebooks that follow their vectors.
    """

    vectors: jax.Array
    codes: jax.Array
    errors: jax.Array
    moved: dict[str, jax.Array]


class ResidualQuantiser(nn.Module):
    """Codes of vectors that train: the codebooks follow what the click makes of the vectors.

    Each code's vector is the running mean of the residuals that are nearest to it (van den Oord et al.,
    Neural Discrete Representation Learning, 2017, appendix A.1; by level, as Lee et al. 2022 have it),
    so its size is never another than theirs. A gradient of the click at the codebooks themselves was
    tried and moves all levels at once in the direction that all items share, until one code has them all.
    Codebooks begin as residuals of items of the first batch, and so does a code anew that next to no
    item has, as the residual that its level serves worst.

    Attributes:
      levels, size: L, K.
    """

    levels: int
    size: int

    @nn.compact
    def __call__(self, x: jax.Array, counts: jax.Array) -> Quantised:
        """Codes of x [S, D].

        Args:
          counts: [S] bool: codebooks follow this vector: it is of an item with content, and there once.
        """
        fixed = jax.lax.stop_gradient(x).astype(jnp.float32)
        codebooks = self.param("codebooks", lambda key: self._first(key, fixed, counts))
        share = self.param("share", lambda key: jnp.full((self.levels, self.size), 1 / self.size))
        codebooks, share = jax.lax.stop_gradient((codebooks, share))
        residual, codes, moved = fixed, [], []
        for level in range(self.levels):
            codes.append(nearest(residual, codebooks[level]))
            left = residual - gather.rows(codebooks[level], codes[-1])
            moved.append(self._moved(codebooks[level], share[level], codes[-1], residual, left, counts))
            residual = left
        total = fixed - residual
        straight = total.astype(x.dtype) + (x - jax.lax.stop_gradient(x))
        errors = _lengths(x.astype(jnp.float32) - total)
        of_levels = {"codebooks": jnp.stack([one for one, _ in moved]), "share": jnp.stack([one for _, one in moved])}
        return Quantised(straight, jnp.stack(codes, axis=-1), errors, of_levels)

    def _first(self, key: jax.Array, x: jax.Array, counts: jax.Array) -> jax.Array:
        """[L, K, D] f32: each level's codes are what the levels before leave of K items drawn at random."""
        residual, codebooks = x, []
        weight = jnp.where(counts, 1.0, 1e-6)  # of others, where there are not as many
        for level in range(self.levels):
            drawn = jax.random.choice(
                jax.random.fold_in(key, level),
                len(x),
                (self.size,),
                replace=len(x) < self.size,
                p=weight / weight.sum(),
            )
            codebooks.append(residual[drawn])
            residual = residual - codebooks[-1][nearest(residual, codebooks[-1])]
        return jnp.stack(codebooks)

    def _moved(
        self,
        codebook: jax.Array,
        share: jax.Array,
        codes: jax.Array,
        residual: jax.Array,
        left: jax.Array,
        counts: jax.Array,
    ) -> tuple[jax.Array, jax.Array]:
        """(codebook [K, D], running share [K] of the vectors that each code has) of a level after a batch.

        Args:
          codebook, share: before.
          codes: [S].
          residual, left: [S, D] before and after the level.
        """
        weight = counts.astype(jnp.float32)[:, None]
        sums = gather.sums(jnp.concatenate([weight * residual, weight], axis=1), codes, self.size)  # [K, D + 1]
        number = sums[:, -1]
        now = number / jnp.maximum(number.sum(), 1)
        share = DECAY * share + (1 - DECAY) * now
        mean = sums[:, :-1] / jnp.maximum(number, 1)[:, None]
        rate = (1 - DECAY) * now / jnp.maximum(share, 1e-12)
        codebook = codebook + rate[:, None] * (mean - codebook)
        error, place = jax.lax.top_k(jnp.where(counts, _lengths(left), -1.0), min(self.size, len(left)))
        rank = jnp.clip(jnp.cumsum(share < LEAST / self.size) - 1, 0, len(place) - 1)  # among those that begin anew
        anew = (share < LEAST / self.size) & (error[rank] > 0)
        codebook = jnp.where(anew[:, None], residual[place[rank]], codebook)
        return codebook, jnp.where(anew, 1 / self.size, share)


def usage(codes: jax.Array, counts: jax.Array, size: int) -> dict[str, jax.Array]:
    """{"code_usage": share of codes that some item has, "code_perplexity": exp of their entropy}, means over levels.

    Args:
      codes: [S, L] i32.
      counts: [S] bool: only these items count.
      size: K.
    """
    place = codes + size * jnp.arange(codes.shape[1])
    weight = jnp.broadcast_to(counts.astype(jnp.float32)[:, None], codes.shape)
    number = gather.sums(weight[..., None], place, size * codes.shape[1]).reshape(-1, size)
    share = number / jnp.maximum(number.sum(axis=1, keepdims=True), 1)
    entropy = -jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1.0)), 0.0), axis=1)
    return {"code_usage": jnp.mean(number > 0), "code_perplexity": jnp.mean(jnp.exp(entropy))}


class RqVae(nn.Module):
    """RQ-VAE (Lee et al., Autoregressive Image Generation using Residual Quantization, CVPR 2022).

    Codes of items' content as TIGER makes them (Rajput et al., Recommender Systems with Generative
    Retrieval, NeurIPS 2023): an encoder, a residual quantiser with straight-through gradients, a decoder.

    Attributes:
      inputs: E, width of what is coded.
      hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
      width: D of the codebooks.
      levels, size: L, K.
      commitment: beta, the weight of |r - sg(c)|^2 beside |sg(r) - c|^2.
    """

    inputs: int
    hidden: Sequence[int]
    width: int
    levels: int
    size: int
    commitment: float = 0.25

    def setup(self) -> None:
        self.encoder = MLP(tuple(self.hidden), self.width)
        self.decoder = MLP(tuple(reversed(self.hidden)), self.inputs)
        shape = (self.levels, self.size, self.width)
        self.codebooks = self.param("codebooks", nn.initializers.normal(0.1), shape)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """(loss of the codes [], loss of the latent vectors as they are []): of x [S, E], means over S."""
        latent = self.encode(x)
        residual, quantised, loss = latent, jnp.zeros_like(latent), jnp.float32(0)
        for codebook in self.codebooks:
            chosen = codebook[nearest(jax.lax.stop_gradient(residual), codebook)]
            loss += _squared(jax.lax.stop_gradient(residual) - chosen)
            loss += self.commitment * _squared(residual - jax.lax.stop_gradient(chosen))
            residual = residual - jax.lax.stop_gradient(chosen)
            quantised += chosen
        straight = latent + jax.lax.stop_gradient(quantised - latent)
        return loss + _squared(x - self.decode(straight)), _squared(x - self.decode(latent))

    def encode(self, x: jax.Array) -> jax.Array:
        """[S, D] latent vectors of x [S, E]."""
        return self.encoder(x, train=False)

    def decode(self, latent: jax.Array) -> jax.Array:
        """[S, E] of latent vectors [S, D]."""
        return self.decoder(latent, train=False)


def _lengths(difference: jax.Array) -> jax.Array:
    """[S] f32 squared lengths of [S, D]."""
    return jnp.sum(difference.astype(jnp.float32) ** 2, axis=-1)


def _squared(difference: jax.Array) -> jax.Array:
    """[] mean over S of the squared length."""
    return jnp.mean(_lengths(difference))
