"""Several labels on one model: towers on what they share.

Letters: B batch, H further labels, K experts, D width of the input, E of an expert's output.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.models.mlp import MLP

KINDS = ("shared_bottom", "mmoe", "ple", "esmm")


class Heads(NamedTuple):
    """How labels share a model.

    Attributes:
      labels: the further ones, a head each beside that of the first label.
      kind: "shared_bottom": one DNN, a tower a label on its end (Caruana 1997); "mmoe": experts, of
        which a gate a label makes a mixture (Ma et al., KDD 2018, eq. 5 to 7); "ple": experts of all
        and of each label, which alone reads its own (Tang et al., RecSys 2020, one level, eq. 1 to 4);
        "esmm": a DNN a label on the same embeddings (Ma et al., SIGIR 2018), see `tasks.heads`.
      experts: K, of all labels together.
      own_experts: of each label besides, in "ple".
      hidden: widths of a label's tower.
    """

    labels: tuple[str, ...]
    kind: str
    experts: int
    own_experts: int
    hidden: tuple[int, ...]


def top(settings: Any, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The DNN at the end of a backbone, called within it: the logit of the first label, and of the further ones.

    Args:
      settings: `backbones.BackboneSettings`.
      x: [B, D].

    Returns:
      (logit [B], {"further": [B, H]}; without further labels {}).
    """
    heads, dropout = settings.heads, settings.dropout
    if heads is None:
        return MLP(settings.hidden, 1, dropout, name="dnn")(x, train=train)[:, 0], {}
    names = ("first", *heads.labels)
    if heads.kind == "esmm":
        return _parted([MLP(settings.hidden, 1, dropout, name=f"dnn_{name}")(x, train=train) for name in names])
    shared = _shared(settings, x, names, train)
    towers = [MLP(heads.hidden, 1, dropout, name=f"tower_{name}") for name in names]
    return _parted([tower(read, train=train) for tower, read in zip(towers, shared, strict=True)])


def _shared(settings: Any, x: jax.Array, names: tuple[str, ...], train: bool) -> list[jax.Array]:
    """What each label's tower reads, [B, E]."""
    heads = settings.heads

    def expert(name: str) -> jax.Array:
        made = MLP(settings.hidden[:-1], settings.hidden[-1], settings.dropout, name=name)
        return nn.relu(made(x, train=train))

    if heads.kind == "shared_bottom":
        return [expert("dnn")] * len(names)
    common = [expert(f"expert_{k}") for k in range(heads.experts)]
    result = []
    for name in names:
        own = heads.own_experts if heads.kind == "ple" else 0
        experts = common + [expert(f"expert_{name}_{k}") for k in range(own)]
        gate = nn.softmax(nn.Dense(len(experts), use_bias=False, name=f"gate_{name}")(x))
        result.append(jnp.einsum("bk,kbe->be", gate, jnp.stack(experts)))
    return result


def _parted(logits: list[jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of logits [B, 1] a label."""
    return logits[0][:, 0], {"further": jnp.concatenate(logits[1:], axis=1)}


def added(shared: jax.Array, logit: jax.Array, further: dict[str, jax.Array]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logits of `top` with what a backbone adds to each of them, [B]."""
    return shared + logit, {name: shared[:, None] + value for name, value in further.items()}
