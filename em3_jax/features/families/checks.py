"""What a value of a checkpoint's config.json has to be, said in words where it is not."""

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from em3_jax.core.errors import UserError

Config = Mapping[str, Any]
Where = str | os.PathLike


class Kind(NamedTuple):
    """What the value of a config key has to be."""

    words: str
    holds: Callable[[Any], bool]


def one_of(*choices: Any) -> Kind:
    return Kind(" or ".join(map(json.dumps, choices)), lambda v: any(type(v) is type(c) and v == c for c in choices))


SIZE = Kind("a positive integer", lambda v: type(v) is int and v > 0)
ID = Kind("an integer from 0", lambda v: type(v) is int and v >= 0)
SIZES = Kind("a list of positive integers", lambda v: isinstance(v, list | tuple) and all(map(SIZE.holds, v)))
SIDES = Kind("a positive integer or two", lambda v: SIZE.holds(v) or (SIZES.holds(v) and len(v) == 2))
NUMBER = Kind("a positive number", lambda v: type(v) in (int, float) and 0 < v < math.inf)
FLAG = one_of(True, False)

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(nn.gelu, approximate=False),
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
    "relu": nn.relu,
    "relu6": nn.relu6,
    "silu": nn.silu,
    "swish": nn.silu,
}


def value(config: Config, where: Where, key: str, kind: Kind, default: Any = None) -> Any:
    """`config[key]`, checked. `default` is what transformers assumes where a config is silent; sizes often have none."""
    found = config.get(key, default)
    if not kind.holds(found):
        raise UserError(f"{where}: {key} is {found!r}, supported is {kind.words}; mend it or take another checkpoint")
    return found


def activation(config: Config, where: Where, default: str) -> Callable[[jax.Array], jax.Array]:
    """The function that "hidden_act" names."""
    return ACTIVATIONS[value(config, where, "hidden_act", one_of(*ACTIVATIONS), default)]


def sides(found: int | list[int]) -> tuple[int, int]:
    """(rows, columns) of a size that is one number or two."""
    rows, columns = (found, found) if isinstance(found, int) else found
    return rows, columns


def check_heads(width: int, heads: int, where: Where) -> None:
    """Refuses a width that attention heads cannot share."""
    if width % heads:
        raise UserError(
            f"{where}: hidden_size {width} does not divide by num_attention_heads {heads}; mend one of them"
        )
