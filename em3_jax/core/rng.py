"""Randomness as a pure function of (seed, name, step, index): nothing is carried, so nothing needs to be saved.

On the device `stream` gives the key of a named stream at a step. On the host the functions of `core.draws`, which are
here as well, answer pointwise. That module does without JAX, for those who only prepare data.
"""

import hashlib

import jax
import numpy as np

from em3_jax.core.draws import hash_words, numpy_key, permute, uniform_hash

__all__ = ["hash_words", "numpy_key", "permute", "stream", "uniform_hash"]


def stream(root_key: jax.Array, name: str, step: int | jax.Array) -> jax.Array:
    """Returns the PRNG key of stream `name` ("dropout", "negatives") at `step`.

    Args:
      root_key: the run's one key.
      name: name of the stream; its hash does not depend on the process.
      step: [] integer, python or traced.

    Returns:
      fold_in(fold_in(root_key, hash(name)), step).
    """
    name_hash = np.frombuffer(hashlib.blake2b(name.encode(), digest_size=4).digest(), "<u4")[0]
    return jax.random.fold_in(jax.random.fold_in(root_key, name_hash), step)
