"""Names, sizes and checks of parameter trees."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

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


def first_match(name: str, patterns: Sequence[tuple[str, float]], default: float = 1.0) -> float:
    """The number beside the first regular expression that is found in a leaf's name; `default` where none is."""
    return next((float(number) for pattern, number in patterns if re.search(pattern, name)), default)


def replaced(tree: Mapping[str, Any], some: Mapping[str, Any]) -> dict[str, Any]:
    """A tree of dicts with the leaves of `some`, which has a part of its branches, in the place of its own."""
    inner = lambda key: replaced(tree[key], some[key]) if isinstance(some[key], Mapping) else some[key]  # noqa: E731
    return dict(tree) | {key: inner(key) for key in some}


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
