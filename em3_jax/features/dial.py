"""How much of an encoder trains: one dial for all of them, as rules of what has which learning rate.

`none`, `head`, `last K`, `adapters` and `all` of config.model.encoder_trains become patterns like
those of config.optim.multipliers, before which they stand. So whatever asks these what is frozen
(gradients, batch statistics, the optimizer's state, logs) follows the dial.
"""

import re
from collections.abc import Iterable, Sequence

from em3_jax.core.errors import UserError
from em3_jax.models.encoders import Part

Rule = tuple[str, float]
"""(pattern of parameters' names, factor of the learning rate); 0 freezes."""

ADAPTERS = "adapters"
WHOLE = ("none", ADAPTERS, "all")
"""Of an encoder as a whole; the others are of some of its parts."""

_LAST = re.compile(r"last ([1-9]\d*)")


def rules(
    name: str, trains: str, parts: Sequence[Part], parameters: Iterable[str], multipliers: Sequence[Rule]
) -> tuple[Rule, ...]:
    """The rules of an encoder's parameters; of what trains, the factor is that of the first multiplier above 0, or 1.

    Args:
      name: of the feature set.
      trains: of config.model.encoder_trains.
      parts: of the encoder.
      parameters: their paths in the encoder.
      multipliers: of config.optim.

    Raises:
      UserError: `trains` is none of those known, or names more blocks than there are.
    """
    own = f"^encoders/{re.escape(name)}/"
    groups = _trained(name, trains, parts)
    if not groups and trains != "all":
        return ((own, 0.0),)
    names = [f"encoders/{name}/{path}" for path in parameters]
    above = [(pattern, factor) for pattern, factor in multipliers if factor]
    factors = [(f"(?={own})(?=.*(?:{pattern}))", factor) for pattern, factor in above]
    factors = [(pattern, factor) for pattern, factor in factors if any(re.search(pattern, one) for one in names)]
    lifted = (*factors, (own, 1.0))
    frozen = f"{own}(?!(?:{'|'.join(map(re.escape, groups))})(?:/|$))"
    if not groups or not any(re.search(frozen, one) for one in names):
        return lifted
    return ((frozen, 0.0), *lifted)


def _trained(name: str, trains: str, parts: Sequence[Part]) -> tuple[str, ...]:
    """The groups of parameters of the parts that `trains` names; () for all of them and for none."""
    if trains in WHOLE:
        return ()
    blocks = [k for k, part in enumerate(parts) if part.is_block]
    found = _LAST.fullmatch(trains)
    if not (trains == "head" or found) or (found and int(found[1]) > len(blocks)):
        last = f", last K with K from 1 to {len(blocks)}, its blocks" if blocks else ""
        raise UserError(f"config.model.encoder_trains.{name}='{trains}': give none, head{last}, adapters or all")
    first = blocks[-int(found[1])] if found else len(parts) - 1
    return tuple(group for part in parts[first:] for group in part.groups)


def first_trained(parts: Sequence[Part], trained: Iterable[str]) -> str:
    """The name of the first part of which something trains; "" where nothing does.

    Args:
      parts: of the encoder.
      trained: paths of the parameters that train.
    """
    groups = {path.split("/")[0] for path in trained}
    return next((part.name for part in parts if groups & set(part.groups)), "")
