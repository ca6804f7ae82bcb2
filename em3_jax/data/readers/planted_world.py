"""The items and users of a planted world, and how items are drawn for them; the module `synthetic` says what of.

Letters: I items, U users, M tastes of a user, k latent dimensions.
"""

import dataclasses

import numpy as np

from em3_jax.core.fields import FIRST_KNOWN
from em3_jax.data.readers.planted_interest import INTERESTS, Interest

QUALITY = 0.75
TAIL, ACTIVITY = 0.7, 0.8
CARDS = 16  # mean copies of an item or user in its deck
_STREAMS = (
    "world",
    "items",
    "users",
    "image",
    "text",
    "rows",
    "choices",
    "arrivals",
    "words",
    "pictures",
    "unrelated",
    "labels",
    "shop",
    "amounts",
)


@dataclasses.dataclass(frozen=True)
class World:
    """The items and users; letters: I items, U users, k latent dimensions.

    Attributes:
      content: [I, k] f32, unit length; quality: [I] f32; cold: [I] bool.
      taste: [U M, k] f32, unit length, the M tastes of a user side by side; new: [U] bool.
      interest: how tastes make choices and impressions.
      arrival: [I] i64, the first row that may show the item.
      item_deck, user_deck: i32, each item (user) as often as it is popular (active), so that a draw is one look-up.
    """

    content: np.ndarray
    quality: np.ndarray
    cold: np.ndarray
    taste: np.ndarray
    new: np.ndarray
    arrival: np.ndarray
    item_deck: np.ndarray
    user_deck: np.ndarray
    interest: Interest = INTERESTS["taste"]

    def taste_of(self, random: np.random.Generator, user: np.ndarray) -> np.ndarray:
        """[n] int which row of `taste` moves each of the users [n] now."""
        several = self.interest.tastes
        return user if several == 1 else user * several + random.integers(several, size=len(user))


def random_of(seed: int, stream: str, chunk: int = 0) -> np.random.Generator:
    """A generator of its own for each stream and chunk, so that no part's numbers depend on another part's size."""
    return np.random.default_rng([seed, _STREAMS.index(stream), chunk])


def make_world(
    seed: int, users: int, items: int, latent: int, cold_share: float, new_users: float, interest: str = "taste"
) -> World:
    random, kind = random_of(seed, "world"), INTERESTS[interest]
    return World(
        content=directions(random, items, latent),
        quality=QUALITY * random.standard_normal(items, dtype=np.float32),
        cold=random.permutation(items) < round(cold_share * items),
        taste=directions(random, users * kind.tastes, latent),
        new=random.permutation(users) < round(new_users * users),
        arrival=np.zeros(items, np.int64),
        item_deck=_deck((random.permutation(items) + 10.0) ** -TAIL),
        user_deck=_deck(random.lognormal(sigma=ACTIVITY, size=users)),
        interest=kind,
    )


def directions(random: np.random.Generator, count: int, width: int) -> np.ndarray:
    """[count, width] f32, uniform on the unit sphere."""
    vectors = random.standard_normal((count, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def nearest_to(
    random: np.random.Generator, vectors: np.ndarray, directions: np.ndarray, noise: float, count: int
) -> np.ndarray:
    """[n, count] i32 field ids of the `count` directions with the largest noisy inner product, largest first."""
    score = vectors @ directions.T
    score += noise * random.standard_normal(score.shape, dtype=np.float32)
    return (np.argsort(-score, axis=1)[:, :count] + FIRST_KNOWN).astype(np.int32)


def _deck(weights: np.ndarray) -> np.ndarray:
    """i32: each index in proportion to its weight, CARDS times on average, at least once."""
    copies = np.maximum(1, np.rint(weights * (CARDS / weights.mean()))).astype(np.int64)
    return np.repeat(np.arange(len(weights), dtype=np.int32), copies)


def affinity_of(world: World, which: np.ndarray, item: np.ndarray, share: np.ndarray | None = None) -> np.ndarray:
    """[n] f32: <taste, content> of the tastes `which` [n], at the share [n] of the way of a drift."""
    taste, content = np.take(world.taste, which, axis=0), np.take(world.content, item, axis=0)  # much faster than [...]
    if share is not None:
        half, angle = (world.taste.shape[1] + 1) // 2, (share * np.pi / 2).astype(np.float32)[:, None]
        taste[:, :half] *= np.sqrt(np.float32(2)) * np.cos(angle)
        taste[:, half:] *= np.sqrt(np.float32(2)) * np.sin(angle)
    return np.einsum("nk,nk->n", taste, content)


def draw_by_taste(
    random: np.random.Generator,
    world: World,
    which: np.ndarray,
    deck: np.ndarray,
    beta: float,
    rows: np.ndarray | None = None,
    share: np.ndarray | None = None,
) -> np.ndarray:
    """[n] i32 items for the tastes `which` [n], drawn with P(i | u) ~ (share of the deck) exp(beta <taste, content>).

    By rejection, which is exact: draw from the deck, accept with probability exp(beta (<taste, content> - largest)), and never
    what arrives after row number `rows` [n].
    """
    item = np.empty(len(which), np.int32)
    pending = np.arange(len(which))
    while len(pending):
        candidate = deck[random.integers(len(deck), size=len(pending))]
        affinity = affinity_of(world, which[pending], candidate, None if share is None else share[pending])
        most = 1 if share is None else np.sqrt(2)
        accepted = random.random(len(pending), dtype=np.float32) < np.exp(beta * (affinity - most))
        accepted &= world.arrival[candidate] <= (0 if rows is None else rows[pending])
        item[pending[accepted]] = candidate[accepted]
        pending = pending[~accepted]
    return item
