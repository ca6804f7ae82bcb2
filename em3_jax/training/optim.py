"""The optimizer of the dense parameters, from a config: optax. Those of the tables are in `tables.id_table`."""

import re

import jax
import jax.numpy as jnp
import optax

from em3_jax.config import registry
from em3_jax.core import trees
from em3_jax.core.errors import UserError


def dense_optimizer(
    params,
    *,
    optimizer: str = "adam",
    learning_rate: float,
    warmup_steps: int,
    decay_steps: int,
    weight_decay: float,
    l2: float,
    clip_norm: float,
    multipliers: tuple[tuple[str, float], ...],
) -> optax.GradientTransformation:
    """AdamW behind gradient clipping: linear warm-up, then constant, or cosine down to zero over `decay_steps`.

    Args:
      params: parameter tree (names and shapes only).
      optimizer: what stands in the place of Adam, see `registry.optimizer`.
      weight_decay: decoupled; on matrices, not on biases, norms or embeddings of one axis, and not
        on what has never had a gradient, such as the kernel beside a LoRA adapter, which keeps its
        bits.
      l2: weight of the penalty 0.5 l2 |p|^2 on each leaf p that trains; its gradient is clipped with
        the loss's. A leaf without a gradient, such as the kernel beside a LoRA adapter or the scale
        of an amount, stays as it is.
      clip_norm: bound of the global gradient norm of the leaves that train; 0 = none.
      multipliers: (regex on the parameter's name, factor) pairs, first match wins; factor 0 freezes, and a frozen leaf has
        no optimizer state. A pattern that matches nothing is an error.
    """
    schedule = optax.constant_schedule(learning_rate)
    if decay_steps:
        schedule = optax.cosine_decay_schedule(learning_rate, decay_steps)
    if warmup_steps:
        warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
        schedule = optax.join_schedules([warmup, schedule], [warmup_steps])
    factors, scale = _factors(params, multipliers), registry.optimizer(optimizer)

    def decoupled(factor: float) -> optax.GradientTransformation:
        if factor == 0:
            return optax.set_to_zero()
        decay = optax.add_decayed_weights(weight_decay, mask=_is_matrix)
        return optax.chain(  # of Adam AdamW, whose state it has
            scale(),
            _where_it_moves(decay) if weight_decay else decay,
            optax.scale_by_learning_rate(lambda step: factor * schedule(step)),
        )

    update = optax.multi_transform(
        {str(f): decoupled(f) for f in set(jax.tree.leaves(factors))}, jax.tree.map(str, factors)
    )
    trains = jax.tree.map(bool, factors)
    before = [optax.masked(_where_it_moves(optax.add_decayed_weights(l2)), trains)] if l2 else []
    if clip_norm:
        before.append(optax.masked(optax.clip_by_global_norm(clip_norm), trains))  # frozen leaves have no say
    return optax.chain(*before, update) if before else update


def _is_matrix(tree):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, tree)


def _where_it_moves(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """`transform` on leaves whose update is not zero: a gradient, or of Adam's those that ever had one."""

    def update(updates, state, params):
        changed, state = transform.update(updates, state, params)
        keep = lambda old, new: jnp.where(jnp.any(old != 0), new, old)  # noqa: E731
        return jax.tree.map(keep, updates, changed), state

    return optax.GradientTransformation(transform.init, update)


def frozen(params, multipliers: tuple[tuple[str, float], ...]) -> dict[str, bool]:
    """Parameter name -> whether its factor is 0."""
    factors = trees.named_leaves(_factors(params, multipliers))
    return {name: bool(factor == 0) for name, factor in factors.items()}


def _factors(params, multipliers: tuple[tuple[str, float], ...]):
    """Tree of learning-rate factors, by the first pattern that matches a leaf's name."""
    names = list(trees.named_leaves(params))
    for pattern, _ in multipliers:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"config.optim.multipliers: pattern '{pattern}' matches no parameter; one is '{names[0]}'")
    return trees.map_named(lambda name, _: trees.first_match(name, multipliers), params)
