"""Further planted labels: what follows a click, and what is said of some rows whether clicked or not.

    buy    of clicks alone           Bernoulli(sigmoid(BUY <t_u, z_i> + v_i + BUY_BIAS)),    v_i ~ N(0, VALUE^2)
    like   of a share OBSERVED       Bernoulli(sigmoid(LIKE <t_u, z_i reversed> + LIKE_BIAS))

`v_i` is an item's own and says nothing of clicks; "reversed" has the latent dimensions the other way round, so that a
like is another taste. About a fifth of the clicks are bought.
"""

import numpy as np

from em3_jax.data.format import NOT_PART
from em3_jax.data.readers.planted_world import World, random_of
from em3_jax.data.writer import DatasetWriter

BUY, VALUE, BUY_BIAS = 3.0, 0.75, -2.4
LIKE, OBSERVED, LIKE_BIAS = 3.0, 0.6, -0.5
RULES = {
    "buy": "buy ~ Bernoulli(probability) among clicks",
    "like": "like ~ Bernoulli(probability) of 60 % of the rows",
}
_CHUNK = 1 << 20


def write(writer: DatasetWriter, world: World, seed: int) -> None:
    """Writes the columns of both labels for the rows that are written.

    Args:
      world: of one taste a user, that does not drift.
      seed: of the data.
    """
    columns = {
        name: np.load(writer.path / "interactions" / f"{name}.npy", mmap_mode="r") for name in ("user", "item", "label")
    }
    rows = len(columns["label"])
    value = VALUE * random_of(seed, "labels").standard_normal(len(world.content), dtype=np.float32)
    made = {name: writer.column(f"interactions/label_{name}", rows, np.uint8) for name in RULES}
    for chunk, start in enumerate(range(0, rows, _CHUNK)):
        part, random = slice(start, start + _CHUNK), random_of(seed, "labels", 1 + chunk)
        user, item, click = (np.asarray(columns[name][part]) for name in ("user", "item", "label"))
        taste, content = world.taste[user], world.content[item]
        buy = BUY * np.sum(taste * content, axis=1) + value[item] + BUY_BIAS
        like = LIKE * np.sum(taste * content[:, ::-1], axis=1) + LIKE_BIAS
        drawn = random.random((3, len(user)), dtype=np.float32)
        made["buy"][part] = np.where(click == 1, drawn[0] < _sigmoid(buy), NOT_PART)
        made["like"][part] = np.where(drawn[1] < OBSERVED, drawn[2] < _sigmoid(like), NOT_PART)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    result: np.ndarray = 1 / (1 + np.exp(-x))
    return result
