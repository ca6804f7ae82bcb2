"""Target attention over a history (EM3 eq. 7-8; Zhou et al., Deep Interest Network, 2018).

The [B, T] slots gather from the block of distinct items [S, D] and are multiplied once; nothing is projected per slot that
can be projected per candidate. Letters: B batch, T history, S distinct items, R distinct table rows, D width, K hidden width.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from em3_jax.core import exchange

WEIGHTS = "weights"
"""Name of an attention's weights among the intermediates, which nobody keeps who has not asked for them."""


def masked_softmax(score: jax.Array, mask: jax.Array) -> jax.Array:
    """[B, T] f32 weights over the valid positions (eq. 8); all zero where there is none."""
    score = jnp.where(mask, score.astype(jnp.promote_types(score.dtype, jnp.float32)), -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(score, axis=1, keepdims=True, initial=jnp.finfo(score.dtype).min))
    exponential = jnp.exp(score - top)  # exp(-inf) = 0 at masked positions
    total = exponential.sum(axis=1, keepdims=True)
    return exponential / jnp.where(total > 0, total, 1.0)


def entropy(weight: jax.Array) -> jax.Array:
    """[] mean entropy in nats of weights [B, T], over the rows that have a history."""
    row = -jnp.sum(weight * jnp.log(jnp.maximum(weight, 1e-30)), axis=1)
    some = weight.sum(axis=1) > 0
    return jnp.sum(row * some) / jnp.maximum(some.sum(), 1)


def entropies(name: str, weight: jax.Array, mask: jax.Array) -> dict[str, jax.Array]:
    """Mean entropy in nats of an attention's weights, and of uniform ones over the same slots.

    Where both stay alike, the attention has learnt nothing: what it reads is the mean of the history.

    Args:
      name: of the attention; the scalars are "<name>_entropy" and "<name>_entropy_uniform".
      weight, mask: [B, T] of the slots; rows without a valid slot do not count.
    """
    uniform = mask / jnp.maximum(mask.sum(axis=1, keepdims=True), 1)
    return {f"{name}_entropy": entropy(weight), f"{name}_entropy_uniform": entropy(uniform)}


class DotScore(nn.Module):
    """a(c, h) = <W_q c, W_k h> / sqrt(D). `__call__(target [B, D], slots [B, T, D])` -> [B, T]; `hidden` is not used."""

    hidden: int = 0

    @nn.compact
    def __call__(self, target: jax.Array, slots: jax.Array) -> jax.Array:
        width = target.shape[-1]
        # <W_q c, W_k h> = <W_k^T W_q c, h>: the key's projection moves to the candidate, so the slots need none.
        query = nn.Dense(width, use_bias=False, name="query")(target)
        query = nn.Dense(width, use_bias=False, name="key")(query)
        return jnp.einsum("bd,btd->bt", query, slots) / jnp.sqrt(width)


class MLPScore(nn.Module):
    """a(c, h) = w . relu(W [c, h, c - h, c * h] + b) as DIN has it. `__call__(target [B, D], slots [B, T, D])` -> [B, T].

    Attributes:
      hidden: K, width of the hidden layer.
    """

    hidden: int

    @nn.compact
    def __call__(self, target: jax.Array, slots: jax.Array) -> jax.Array:
        width = target.shape[-1]
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (4 * width, self.hidden))
        bias = self.param("bias", nn.initializers.zeros, (self.hidden,))
        out = self.param("out", nn.initializers.lecun_normal(), (self.hidden, 1))
        of_target, of_history, of_difference, of_product = jnp.split(kernel, 4)
        # For one candidate the layer is affine in h, with a matrix that depends on c alone:
        # h (W_h - W_d + diag(c) W_p) + c (W_c + W_d) + b. So c - h and c * h are never formed over the slots.
        matrix = of_history - of_difference + target[:, :, None] * of_product  # [B, D, K]
        offset = target @ (of_target + of_difference) + bias  # [B, K]
        hidden = nn.relu(jnp.einsum("btd,bdk->btk", slots, matrix) + offset[:, None])
        return jnp.einsum("btk,k->bt", hidden, out[:, 0])


class CosineScore(nn.Module):
    """a(c, h) = exp(s) cos(c, h), s learnt. `__call__(target [B, D], slots [B, T, D])` -> [B, T].

    A product of embeddings is quadratic in their size, and content starts small (`fusion.layers.join`):
    scores that start at 0.003 have a gradient to match. A cosine does not see the size.

    Attributes:
      hidden: not used.
      scale: exp(s) at first.
    """

    hidden: int = 0
    scale: float = 5.0

    @nn.compact
    def __call__(self, target: jax.Array, slots: jax.Array) -> jax.Array:
        log_scale = self.param("log_scale", nn.initializers.constant(jnp.log(self.scale)), ())
        length = lambda x: jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1)  # noqa: E731
        squared = length(target)[:, None] * length(slots)
        product = jnp.einsum("bd,btd->bt", target, slots, preferred_element_type=jnp.float32)
        return jnp.exp(log_scale.astype(jnp.float32)) * product * jax.lax.rsqrt(squared + 1e-12)


class MeanScore(nn.Module):
    """a(c, h) = 0, so that u_A is the mean of the history: what attention has to beat."""

    hidden: int = 0

    @nn.compact
    def __call__(self, target: jax.Array, slots: jax.Array) -> jax.Array:
        return jnp.zeros(slots.shape[:2], jnp.float32)


def gather_slots(
    items: jax.Array,
    history: jax.Array,
    events: jax.Array | None = None,
    event_position: jax.Array | None = None,
    event_values: jax.Array | None = None,
) -> jax.Array:
    """[B, T, D] the history's items, with what is known of each event added.

    Args:
      items: [S, D] embeddings of the distinct items.
      history: [B, T] i32 positions in `items`.
      events: [R, D] table rows with the embeddings of event fields.
      event_position: [B, T, C] i32 positions in `events`.
      event_values: [B, T, D] what is known of the events besides.
    """
    slots = exchange.rows(items, history)
    if events is not None:
        assert event_position is not None  # the fields of events come with their rows
        for k in range(event_position.shape[-1]):
            slots = slots + exchange.rows(events, event_position[..., k])
    return slots if event_values is None else slots + event_values


def event_sum(
    events: jax.Array | None, event_position: jax.Array | None, event_values: jax.Array | None
) -> jax.Array | None:
    """[B, T, W] all that is known of each event, see `gather_slots`; None where nothing is."""
    if events is None:
        return event_values
    assert event_position is not None  # the fields of events come with their rows
    found = jnp.asarray(sum(exchange.rows(events, event_position[..., k]) for k in range(event_position.shape[-1])))
    return found if event_values is None else found + event_values


class TargetAttention(nn.Module):
    """The user's interest in a candidate: u_A = sum_i w_i h_i with w = softmax(a(c_A, h_i)) (eq. 7-8).

    What is known of the events (a rating, say) may have its part in two ways. Embeddings of the
    items' width D are added to the slots, as DIN has it. Or, with `events_weigh`, they weigh: with
    e_i [W] the sum of an event's field embeddings, standardised, since tables start small,

        w = softmax(a(c_A, h_i) + <W_e c_A + b, e_i>),    u_A = sum_i w_i (1 + <v, e_i>) h_i.

    Softmax weights are positive; the factor, 1 at first, lets what a user disliked count against.

    Attributes:
      score: hidden width -> module a, (target [B, D], slots [B, T, D]) -> [B, T].
      hidden: of the score.
      events_weigh: see above.
      softmax: whether w is a softmax; else w_i is the score itself, so that how much a user cares
        for what is like the candidate is not lost (Zhou et al. 2018, section 4.3). Of scores to
        which events are added alone.
    """

    score: Callable
    hidden: int
    events_weigh: bool = False
    softmax: bool = True

    @nn.compact
    def __call__(
        self,
        items: jax.Array,
        candidate: jax.Array,
        history: jax.Array,
        mask: jax.Array,
        events: jax.Array | None = None,
        event_position: jax.Array | None = None,
        event_values: jax.Array | None = None,
        target: jax.Array | None = None,
        similarity: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """(interest [B, D], weights [B, T]); an empty history gives zeros.

        Args:
          items: [S, D] embeddings of the distinct items.
          candidate: [B] i32 position of the candidate in `items`.
          history, mask: [B, T] i32 positions of the history in `items`; bool.
          events, event_position, event_values: what is known of each event, see `gather_slots`; W wide where they weigh.
          target: [B, D] what asks in the place of c_A, the candidate's own.
          similarity: [B, T] f32 how near each slot's content is to the candidate's; a learnt multiple of it, 1 at first,
            is added to the score.
        """
        is_plain = not self.events_weigh or (events is None and event_values is None)
        # Slots first: the order of the program decides how XLA fuses it, and so its last bits.
        slots = gather_slots(items, history, *(events, event_position, event_values) if is_plain else ())
        target = exchange.rows(items, candidate) if target is None else target
        score = self.score(self.hidden)
        nearness: jax.Array | float = 0.0
        if similarity is not None:
            nearness = similarity * self.param("similarity_weight", nn.initializers.ones, ())
        if is_plain:
            own = score(target, slots)
            own = own if similarity is None else own + nearness
            if not self.softmax:
                own = own + self.param("score_bias", nn.initializers.zeros, ())  # a softmax would not see it
            weight = masked_softmax(own, mask) if self.softmax else jnp.where(mask, own, 0.0)
            self.sow("intermediates", WEIGHTS, weight)
            return jnp.einsum("bt,btd->bd", weight.astype(slots.dtype), slots), weight
        event = event_sum(events, event_position, event_values)
        assert event is not None  # or it is plain
        width = event.shape[-1]
        event = nn.LayerNorm(use_bias=False, use_scale=False, name="event_norm")(event)  # [B, T, W]
        of_event = jnp.einsum("bw,btw->bt", nn.Dense(width, name="event_query")(target), event)
        of_event = of_event if similarity is None else of_event + nearness
        weight = masked_softmax(score(target, slots) + of_event, mask)
        self.sow("intermediates", WEIGHTS, weight)
        factor = 1 + event @ self.param("event_factor", nn.initializers.zeros, (width,))
        return jnp.einsum("bt,btd->bd", weight.astype(slots.dtype) * factor, slots), weight
