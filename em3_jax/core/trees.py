"""Names, sizes and checks of parameter trees."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree) -> dict[str, jax.Array]:
    """{"dnn/Dense_0/kernel": leaf, ...} in tree order."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(_key(part) for part in path): leaf for path, leaf in paths}


def map_named(function: Callable, tree):
    """The tree of function(name, leaf) of every leaf."""
    return jax.tree.unflatten(jax.tree.structure(tree), [function(*pair) for pair in named_leaves(tree).items()])


def _key(part) -> str:
    return str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part))))


def num_bytes(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def non_finite(tree) -> list[str]:
    """Names of the floating leaves that hold NaN or infinity."""
    return [
        name
        for name, leaf in named_leaves(tree).items()
        if np.issubdtype(leaf.dtype, np.floating) and not jnp.isfinite(leaf).all()
    ]
