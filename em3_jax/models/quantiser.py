"""Residual quantisation: a vector as one code a level, each level coding what those before it left.

Letters: S items, L levels, K codes of a level, E or D width of the vectors.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.mlp import MLP


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


def _squared(difference: jax.Array) -> jax.Array:
    """[] mean over S of the squared length."""
    return jnp.mean(jnp.sum(difference**2, axis=-1))
