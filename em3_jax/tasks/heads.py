"""The losses of further labels, beside that of the first. Letters: B examples, H further labels."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from em3_jax import losses
from em3_jax.config.schema.ranking import Heads
from em3_jax.core import amounts
from em3_jax.core.amounts import ORDINAL, Amount
from em3_jax.core.errors import UserError, nearest
from em3_jax.core.labels import LOG_KEPT, Labels
from em3_jax.core.types import Batch
from em3_jax.tasks import Intermediates, Logged, Params, ordinal

NOT_OBSERVED = -1.0
"""Of a further label, where the row is not part of it."""
LOG_VARIANCE = "log_variance"
AMOUNTS = "amounts"
THRESHOLDS = "thresholds"


@dataclasses.dataclass(frozen=True)
class FurtherLabels:
    """What is learnt besides.

    Attributes:
      labels: their names.
      weights: label -> its loss's weight, 1 where it is not named.
      learns_weights: whether each loss has a weight of its own that trains: of losses L_k and
        log-variances s_k, sum_k exp(-s_k) L_k + s_k / 2 (Kendall et al., CVPR 2018, eq. 10, of
        likelihoods; the first label's among them).
      entire_space: ESMM: the one further label is of clicked rows, as a conversion is, and its loss is
        that of a click and a conversion over all rows, P = sigmoid(first) sigmoid(further) (Ma et al.,
        SIGIR 2018, eq. 3 and 4).
      amounts: those of the labels that are amounts -> how they are learnt; the first one among them.
      first: the name of the first label, if that is an amount; "" = it is 0 or 1.
    """

    labels: tuple[str, ...]
    weights: Mapping[str, float]
    learns_weights: bool
    entire_space: bool
    amounts: Mapping[str, Amount] = dataclasses.field(default_factory=dict)
    first: str = ""

    def init(self) -> dict[str, Any]:
        """Parameters of the losses; {} without any.

        Shift and scale of amounts, and levels, are kept here and do not train; thresholds of levels do.
        """
        own: dict[str, Any] = {LOG_VARIANCE: jnp.zeros(1 + len(self.labels))} if self.learns_weights else {}
        if self.amounts:
            own[AMOUNTS] = {
                name: jnp.array(one.levels or (one.shift, one.scale), jnp.float32) for name, one in self.amounts.items()
            }
        if starts := {name: ordinal.init(one) for name, one in self.amounts.items() if one.levels}:
            own[THRESHOLDS] = starts
        return own

    @property
    def names(self) -> Labels:
        """Which they are."""
        further = {name: one for name, one in self.amounts.items() if name in self.labels}
        losses_of = {name: one.loss for name, one in further.items()}
        levels = {name: one.levels for name, one in further.items() if one.levels}
        first = self.amounts.get(self.first, Amount(""))
        return Labels(self.labels, losses_of, self.entire_space, levels, first.loss, first.levels)

    def first_score(self, params: Params, logit: jax.Array) -> jax.Array:
        """[B] the first label's logit, of an amount its score z; `params` of the task."""
        if not self.first:
            return logit
        return self.score(params["heads"], self.first, logit.astype(jnp.float32))

    def beside(self, params: Params, logit: jax.Array, out: Intermediates) -> jax.Array:
        """[B, 1 + H] logits of all labels, the first one's [B] before those in `out`; `params` of the task."""
        further = self.scores(params.get("heads", {}), out["further"])
        return jnp.concatenate([self.first_score(params, logit)[:, None], further], axis=1)

    def scores(self, params: Mapping[str, Any], further: jax.Array) -> jax.Array:
        """[B, H] f32 logits, and of amounts scores z, see `core.amounts`, of what the model's heads give, [B, H]."""
        further = further.astype(jnp.float32)
        for k, name in enumerate(self.labels):
            if name in self.amounts:
                further = further.at[:, k].set(self.score(params, name, further[:, k]))
        return further

    def score(self, params: Mapping[str, Any], name: str, head: jax.Array) -> jax.Array:
        """[B] f32 scores z of an amount of what its head gives, [B] f32; of levels the mean level."""
        kept = jax.lax.stop_gradient(params[AMOUNTS][name])
        if self.amounts[name].loss == ORDINAL:
            return ordinal.expected_level(head, kept, params[THRESHOLDS][name])
        shift, scale = kept
        return shift + scale * head

    def loss(
        self, params: Mapping[str, Any], first: jax.Array, logit: jax.Array, out: Intermediates, batch: Batch
    ) -> tuple[jax.Array, Logged]:
        """(loss [] of all labels, {"<label>_loss": []}).

        Args:
          params: of `init`.
          first: [] the loss of the first label, where that is no amount.
          logit: [B] its logit.
          out: with "further" [B, H].
          batch: of clicks, whose further labels are `NOT_OBSERVED` where a row is not part of them.
        """
        of_each, logged = [], {}
        if self.first:
            first = self.loss_of(params, self.first, logit, batch["label"], batch["weight"] >= 0, batch["weight"])
            logged["ranking_loss"] = first
        for k, name in enumerate(self.labels):
            label, further = batch["further"][:, k], out["further"][:, k]
            observed = label != NOT_OBSERVED
            if name in self.amounts:
                value = self.loss_of(params, name, further, label, observed, batch["weight"])
            elif self.entire_space:
                # What was not clicked is no conversion; a click whose conversion was not observed says nothing.
                both = jnp.where(observed, label, 0.0) * batch["label"]
                there = observed | (batch["label"] == 0)
                of_rows = logit - batch[LOG_KEPT] if LOG_KEPT in batch else logit  # as negatives were drawn
                value = _of_both(of_rows, further, both, jnp.where(there, batch["weight"], 0.0))
            else:
                value = losses.binary_cross_entropy(further, label, where=observed, weights=batch["weight"])
            logged[f"{name}_loss"] = value
            of_each.append(value * self.weights.get(name, 1.0))
        if not self.learns_weights:
            return first + sum(of_each), logged
        variance = params[LOG_VARIANCE]
        return jnp.sum(jnp.exp(-variance) * jnp.stack([first, *of_each]) + variance / 2), logged

    def loss_of(
        self,
        params: Mapping[str, Any],
        name: str,
        head: jax.Array,
        label: jax.Array,
        observed: jax.Array,
        weight: jax.Array,
    ) -> jax.Array:
        """[] the loss of an amount, see `loss_of_amount` and `ordinal.loss`; all others are [B]."""
        kept = jax.lax.stop_gradient(params[AMOUNTS][name])
        if self.amounts[name].loss == ORDINAL:
            return ordinal.loss(head, label, kept, params[THRESHOLDS][name], observed, weight)
        return loss_of_amount(self.amounts[name].loss, head, label, kept, observed, weight)


def further_labels(heads: Heads, amounts: Mapping[str, Amount], first: str = "") -> FurtherLabels | None:
    """What is learnt beside the first label; None where nothing is, and that is 0 or 1.

    Args:
      heads: config.model.heads.
      amounts: those of the labels that are amounts, as they begin.
      first: the name of the first label, if that is an amount.

    Raises:
      UserError: a setting is of another label, or contradicts the kind of heads.
    """
    where, labels = "config.model.heads", heads.labels
    if twice := [name for k, name in enumerate(labels) if name in labels[:k]]:
        raise UserError(f"{where}.labels: '{twice[0]}' is named twice; name it once")
    for setting, named in (("weights", heads.weights), ("losses", heads.losses)):
        for name in named:
            if name not in labels and (setting, name) != ("losses", first):
                hint = nearest(name, labels) if labels else f"name it in {where}.labels"
                raise UserError(f"{where}.{setting}.{name}: no such further label; {hint}")
    if heads.kind == "esmm" and labels and len(labels) != 1:
        raise UserError(
            f"{where}.kind=esmm: is of one further label, such as a conversion; {where}.labels has {len(labels)}"
        )
    if not labels and not first:
        return None
    is_esmm = heads.kind == "esmm" and bool(labels)
    return FurtherLabels(labels, heads.weights, heads.learn_weights, is_esmm, amounts, first)


def loss_of_amount(
    loss: str, head: jax.Array, amount: jax.Array, kept: jax.Array, observed: jax.Array, weight: jax.Array
) -> jax.Array:
    """[] the mean loss of an amount, in units in which it is about 1 at first.

    Args:
      loss: one of `core.amounts.LOSSES`.
      head, amount: [B] what the head gives, x; y.
      kept: [2] shift and scale.
      observed: [B] bool.
      weight: [B].
    """
    shift, scale = kept
    weight = jnp.where(observed, weight, 0.0)
    head = jnp.where(weight > 0, head.astype(jnp.float32), 0.0)
    amount = jnp.where(weight > 0, amount, 0.0)
    if loss == "tweedie":
        mean, power = amount * jnp.exp(-shift), amounts.POWER  # of units in which the mean is 1
        values = jnp.exp((2 - power) * head) / (2 - power) - mean * jnp.exp((1 - power) * head) / (1 - power)
    else:
        target = jnp.log1p(amount) if loss == "log" else amount
        values = jnp.square(head - (target - shift) / scale) / 2
    count = weight.sum()
    return jnp.where(count > 0, jnp.sum(weight * values) / jnp.where(count > 0, count, 1.0), 0.0)


def _of_both(first: jax.Array, further: jax.Array, both: jax.Array, weight: jax.Array) -> jax.Array:
    """[] the mean negative log-likelihood of both [B] 0/1, P = sigmoid(first) sigmoid(further), from logits.

    1 - P = sigmoid(-first) + sigmoid(first) sigmoid(-further), whose logarithm is not that of a difference.
    """
    first, further = first.astype(jnp.float32), further.astype(jnp.float32)
    yes = jax.nn.log_sigmoid(first) + jax.nn.log_sigmoid(further)
    no = jnp.logaddexp(jax.nn.log_sigmoid(-first), jax.nn.log_sigmoid(first) + jax.nn.log_sigmoid(-further))
    value = -(both * yes + (1 - both) * no)
    count = weight.sum()
    return jnp.where(count > 0, jnp.sum(weight * value) / jnp.where(count > 0, count, 1.0), 0.0)
