"""Training an RQ-VAE on items' content, without clicks.

Letters: n vectors, E their width, L levels, K codes of a level.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from em3_jax.core import rng, trees
from em3_jax.features.kmeans import residual_kmeans
from em3_jax.models.quantiser import RqVae, residual_codes

WIDTH, HIDDEN = 32, (128,)
STEPS, WARM, BATCH = 3000, 1000, 512
RATE = 1e-3
REVIVE = 200
"""Steps after each of which codes that no vector has get the place of one that some vector needs."""


def network(inputs: int, levels: int, size: int) -> RqVae:
    """The RQ-VAE of that many inputs, levels and codes."""
    return RqVae(inputs, HIDDEN, WIDTH, levels, size)


def train(vectors: np.ndarray, levels: int, size: int, seed: int) -> dict[str, Any]:
    """The parameters of `network` for vectors [n, E] f32.

    First encoder and decoder learn alone. Then k-means of the latent vectors begins the codebooks, as
    in TIGER, for codes that no vector is near never learn; and all train together. Codes that fall
    out of use later are placed anew.

    Args:
      levels, size: L, K.
      seed: of parameters and batches.
    """
    model, data = network(vectors.shape[1], levels, size), jnp.asarray(vectors)
    root = jax.random.key(seed)
    params = model.init(rng.stream(root, "rq_vae", 0), data[:1])["params"]
    optimizer = optax.adam(RATE)

    def steps(params: dict[str, Any], state: optax.OptState, first: int, number: int, with_codes: bool):
        def one(carry: tuple, step: jax.Array) -> tuple[tuple, None]:
            params, state = carry
            some = jax.random.randint(rng.stream(root, "batch", step), (min(BATCH, len(data)),), 0, len(data))
            loss = lambda params: model.apply({"params": params}, data[some])[0 if with_codes else 1]  # noqa: E731
            update, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, update), state), None

        return jax.lax.scan(one, (params, state), first + jnp.arange(number))[0]

    run = jax.jit(steps, static_argnums=(3, 4))
    params, state = run(params, optimizer.init(params), 0, WARM, False)
    latent = np.asarray(_latent(model, params, data))
    params = params | {"codebooks": jnp.asarray(residual_kmeans(latent, levels, size, seed))}
    for first in range(WARM, WARM + STEPS, REVIVE):
        params, state = run(params, state, first, REVIVE, True)
        params = params | {"codebooks": _revived(_latent(model, params, data), params["codebooks"])}
    return params


def _latent(model: RqVae, params: dict[str, Any], data: jax.Array) -> jax.Array:
    result: Any = model.apply({"params": params}, data, method="encode")
    return result


def _revived(latent: jax.Array, codebooks: jax.Array) -> jax.Array:
    """Codebooks [L, K, D] whose unused codes lie where the vectors are that their level serves worst."""
    residual, revived = np.asarray(latent), np.array(codebooks)
    codes = np.asarray(residual_codes(latent, codebooks))
    for level, codebook in enumerate(revived):
        left = residual - codebook[codes[:, level]]
        dead = np.flatnonzero(np.bincount(codes[:, level], minlength=len(codebook)) == 0)
        far = np.argsort(-(left**2).sum(axis=1), kind="stable")[: len(dead)]
        codebook[dead[: len(far)]] = residual[far]
        residual = left
    return jnp.asarray(revived)


def to_arrays(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Name -> array of the parameters but the codebooks, as a file keeps them."""
    return {
        f"network/{name}": np.asarray(leaf) for name, leaf in trees.named_leaves(params).items() if name != "codebooks"
    }


def from_arrays(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of what `to_arrays` gives, with "codebooks"."""
    params: dict = {"codebooks": arrays["codebooks"]}
    for name, array in arrays.items():
        *folders, leaf = name.split("/")
        if folders[:1] == ["network"]:
            place = params
            for folder in folders[1:]:
                place = place.setdefault(folder, {})
            place[leaf] = array
    return params
