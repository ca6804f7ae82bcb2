"""Further planted labels: what follows a click, and what is said of some rows whether clicked or not.

    buy    of clicks alone           Bernoulli(sigmoid(BUY <t_u, z_i> + v_i + BUY_BIAS)),    v_i ~ N(0, VALUE^2)
    like   of a share OBSERVED       Bernoulli(sigmoid(LIKE <t_u, z_i reversed> + LIKE_BIAS))
    dwell  of clicks alone, seconds  Gamma(SHAPE) of mean exp(DWELL <t_u, z_i> + l_i + DWELL_BIAS),   l_i ~ N(0, LENGTH^2)

`v_i`, and `l_i`, an item's length, are its own and say nothing of clicks; "reversed" has the latent dimensions the other way
round, so that a like is another taste. About a fifth of the clicks are bought.
"""

import numpy as np

from em3_jax.core import npy
from em3_jax.data.format import NOT_PART
from em3_jax.data.readers.planted_world import World, random_of
from em3_jax.data.writer import DatasetWriter

BUY, VALUE, BUY_BIAS = 3.0, 0.75, -2.4
LIKE, OBSERVED, LIKE_BIAS = 3.0, 0.6, -0.5
RULES = {
    "buy": "buy ~ Bernoulli(probability) among clicks",
    "like": "like ~ Bernoulli(probability) of 60 % of the rows",
}
DWELL, LENGTH, DWELL_BIAS, SHAPE = 1.5, 0.5, 3.0, 1.5
AMOUNTS = {"dwell": "seconds of a click ~ Gamma, longer of what a user likes and of long items"}
_CHUNK = 1 << 20


def described(labels: bool, amounts: bool) -> dict[str, dict[str, str]]:
    """What dataset.json says of them."""
    return ({"labels": RULES} if labels else {}) | ({"amounts": AMOUNTS} if amounts else {})


def write(writer: DatasetWriter, world: World, seed: int, labels: bool, amounts: bool) -> None:
    """Writes the columns of further labels for the rows that are written.

    Args:
      world: of one taste a user, that does not drift.
      seed: of the data.
      labels: whether to write buy and like.
      amounts: whether to write dwell.
    """
    if not (labels or amounts):
        return
    columns = {
        name: npy.load(writer.path / "interactions" / f"{name}.npy", mmap_mode="r")
        for name in ("user", "item", "label")
    }
    rows, normal = len(columns["label"]), lambda name: random_of(seed, name).standard_normal(len(world.content), "f4")
    value, length = VALUE * normal("labels"), LENGTH * normal("amounts")
    made = {name: writer.column(f"interactions/label_{name}", rows, np.uint8) for name in RULES if labels}
    made |= {name: writer.column(f"interactions/amount_{name}", rows, np.float32) for name in AMOUNTS if amounts}
    for chunk, start in enumerate(range(0, rows, _CHUNK)):
        part = slice(start, start + _CHUNK)
        user, item, click = (np.asarray(columns[name][part]) for name in ("user", "item", "label"))
        taste, content = world.taste[user], world.content[item]
        if labels:
            random = random_of(seed, "labels", 1 + chunk)
            buy = BUY * np.sum(taste * content, axis=1) + value[item] + BUY_BIAS
            like = LIKE * np.sum(taste * content[:, ::-1], axis=1) + LIKE_BIAS
            drawn = random.random((3, len(user)), dtype=np.float32)
            made["buy"][part] = np.where(click == 1, drawn[0] < _sigmoid(buy), NOT_PART)
            made["like"][part] = np.where(drawn[1] < OBSERVED, drawn[2] < _sigmoid(like), NOT_PART)
        if amounts:
            mean = np.exp(DWELL * np.sum(taste * content, axis=1) + length[item] + DWELL_BIAS)
            seconds = random_of(seed, "amounts", 1 + chunk).gamma(SHAPE, mean / SHAPE)
            made["dwell"][part] = np.where(click == 1, seconds, np.nan)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-x))
    return result
