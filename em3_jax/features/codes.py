"""How an item's content becomes codes: vectors of its feature sets, codebooks fitted to them, codes by these.

A set's part of the vector is the mean of the item's standardised tokens, as models without a fusion
module read them, less the mean over items, and scaled so that each set weighs the same; zeros where
the item lacks it. Codebooks are fitted to all items with content, those among them that training
never shows, as feature tables and item graphs are taken as known: no click is read, and codes of new
items are no worse than others'. Of many items a sample is enough, as `POINTS` a code are.

Letters: I items, n some of them, L levels, K codes, E width of the vectors.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from em3_jax.core import rng
from em3_jax.core.errors import UserError
from em3_jax.data.format import Dataset, FeatureSet
from em3_jax.features import rq_vae
from em3_jax.features.kmeans import residual_kmeans
from em3_jax.features.placement import load_features
from em3_jax.features.tokens import standardise
from em3_jax.models.quantiser import residual_codes, sum_of_codes

KINDS = ("rq_kmeans", "rq_vae")
POINTS = 512
"""Items for each code of a level that codebooks are fitted to, at most."""
_BLOCK = 4096  # items at once: of another number, the last bit might differ


def load_sets(dataset: Dataset, names: tuple[str, ...]) -> list[FeatureSet]:
    """The feature sets that --features names, each with or without token slots; refuses raw ones.

    Raises:
      UserError: no such set or slot, one of another catalogue, raw content.
    """
    if not names:
        raise UserError("--features is missing: name the feature sets to code, e.g. image,text")
    try:
        sets = load_features(dataset, names)
    except UserError as error:
        raise UserError(str(error).replace("config.data.features", "--features")) from None
    for one in sets:
        if one.is_raw:
            raise UserError(
                f"--features: '{one.name}' is raw content, which an encoder has to read first; see `em3 extract`"
            )
    return sets


@dataclasses.dataclass(frozen=True)
class Coder:
    """Makes codes of content; its arrays are all there is to keep of it.

    Attributes:
      kind: one of `KINDS`, or "run".
      arrays: "codebooks" [L, K, D]; "mean/<set>" [E_m] and "scale/<set>" [] of each feature set; of
        an RQ-VAE, its network, see `rq_vae.to_arrays`.
    """

    kind: str
    arrays: dict[str, np.ndarray]

    @classmethod
    def fitted(cls, kind: str, sets: Sequence[FeatureSet], levels: int, size: int, seed: int) -> "Coder":
        """The coder whose codebooks are fitted to all items with content.

        Args:
          kind: one of `KINDS`.
          levels, size: L, K.
          seed: of all that is drawn; the same gives the same codes.

        Raises:
          UserError: fewer items have content than a level has codes.
        """
        some = np.flatnonzero(has_content(sets))
        if len(some) < size:
            raise UserError(
                f"--size {size}: of {len(sets[0].mask):,} items {len(some):,} have content; give at most as many"
            )
        most = POINTS * size
        if len(some) > most:
            drawn = rng.permute(np.arange(most), len(some), rng.numpy_key(seed, "points"))
            some = some[np.sort(drawn)]
        parts = [_means(one, some) for one in sets]
        arrays: dict[str, np.ndarray] = {}
        for one, part in zip(sets, parts, strict=True):
            there = one.mask[some].any(axis=1)
            mean = part[there].mean(axis=0) if there.any() else np.zeros(part.shape[1], np.float32)
            spread = np.sqrt(np.mean(np.sum((part[there] - mean) ** 2, axis=1))) if there.any() else 0.0
            arrays[f"mean/{one.name}"] = mean.astype(np.float32)
            arrays[f"scale/{one.name}"] = np.array(1 / spread if spread > 0 else 0.0, np.float32)
        vectors = _side_by_side(arrays, sets, some, parts)
        if kind == "rq_vae":
            params = rq_vae.train(vectors, levels, size, seed)
            arrays |= rq_vae.to_arrays(params) | {"codebooks": np.asarray(params["codebooks"])}
        else:
            arrays["codebooks"] = residual_kmeans(vectors, levels, size, seed)
        return cls(kind, arrays)

    def codes(self, sets: Sequence[FeatureSet], items: np.ndarray) -> np.ndarray:
        """[n, L] i32 of items [n]; what they are of one without content says nothing."""
        blocks = [self._codes(vectors) for vectors in self._vectors(sets, items)]
        levels = len(self.arrays["codebooks"])
        return np.concatenate(blocks) if blocks else np.zeros((0, levels), np.int32)

    def explained(self, sets: Sequence[FeatureSet], codes: np.ndarray, items: np.ndarray) -> float:
        """R2: the share of the variance of the vectors of items [n] that their codes [n, L] explain.

        NaN where there is no variance.
        """
        left = squares = 0.0
        sums: Any = 0.0
        for start, vectors in zip(range(0, len(items), _BLOCK), self._vectors(sets, items), strict=True):
            vectors = vectors.astype(np.float64)
            left += float(((vectors - self._decoded(codes[start : start + _BLOCK])) ** 2).sum())
            squares += float((vectors**2).sum())
            sums = sums + vectors.sum(axis=0)
        total = squares - float(np.sum(sums**2)) / max(len(items), 1)
        return 1 - left / total if total > 0 else float("nan")

    @functools.cached_property
    def _network(self) -> Any:
        """(module, its parameters) of an RQ-VAE."""
        levels, size, _ = self.arrays["codebooks"].shape
        inputs = sum(array.shape[0] for name, array in self.arrays.items() if name.startswith("mean/"))
        return rq_vae.network(inputs, levels, size), rq_vae.from_arrays(self.arrays)

    def _codes(self, vectors: np.ndarray) -> np.ndarray:
        padded = np.zeros((_BLOCK, vectors.shape[1]), np.float32)
        padded[: len(vectors)] = vectors
        latent = jnp.asarray(padded)
        if self.kind == "rq_vae":
            module, params = self._network
            latent = module.apply({"params": params}, latent, method="encode")
        return np.asarray(_residual_codes(latent, jnp.asarray(self.arrays["codebooks"])))[: len(vectors)]

    def _decoded(self, codes: np.ndarray) -> np.ndarray:
        summed = sum_of_codes(jnp.asarray(codes.astype(np.int32)), jnp.asarray(self.arrays["codebooks"]))
        if self.kind == "rq_vae":
            module, params = self._network
            summed = module.apply({"params": params}, summed, method="decode")
        return np.asarray(summed)

    def _vectors(self, sets: Sequence[FeatureSet], items: np.ndarray) -> Iterator[np.ndarray]:
        """[at most _BLOCK, E] f32 of items [n], one block after the other."""
        for start in range(0, len(items), _BLOCK):
            some = items[start : start + _BLOCK]
            yield _side_by_side(self.arrays, sets, some, [_means(one, some) for one in sets])


_residual_codes = jax.jit(residual_codes)


def has_content(sets: Sequence[FeatureSet]) -> np.ndarray:
    """[I] bool: the item has a token of one of the sets."""
    return np.any([one.mask.any(axis=1) for one in sets], axis=0)


def _means(features: FeatureSet, items: np.ndarray) -> np.ndarray:
    """[n, E_m] f32 the means of the standardised tokens of items [n]; zeros without any."""
    found = np.empty((len(items), features.tokens.shape[-1]), np.float32)
    for start in range(0, len(items), _BLOCK):
        some = items[start : start + _BLOCK]
        tokens, mask = features.of_items(some)
        room = _BLOCK - len(some)
        tokens = np.pad(np.asarray(tokens), ((0, room), (0, 0), (0, 0)))
        mask = np.pad(np.asarray(mask), ((0, room), (0, 0)))
        found[start : start + _BLOCK] = np.asarray(_mean(tokens, mask))[: len(some)]
    return found


@jax.jit
def _mean(tokens: jax.Array, mask: jax.Array) -> jax.Array:
    total = standardise(tokens, mask).astype(jnp.float32).sum(axis=1)
    return total / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)


def _side_by_side(
    arrays: dict[str, np.ndarray], sets: Sequence[FeatureSet], items: np.ndarray, parts: Sequence[np.ndarray]
) -> np.ndarray:
    """[n, E] f32: the sets' means `parts`, centred and scaled, zeros where an item lacks the set."""
    blocks = []
    for one, part in zip(sets, parts, strict=True):
        there = one.mask[items].any(axis=1)[:, None]
        blocks.append(np.where(there, (part - arrays[f"mean/{one.name}"]) * arrays[f"scale/{one.name}"], 0))
    return np.concatenate(blocks, axis=1).astype(np.float32)
