"""What planted users are interested in: one taste; or what is nearest to their past items.

**taste.** The click of user u on item i depends on <t_u, z_i>. Histories are drawn with P(i | u) ~ exp(CHOICE <t_u, z_i>),
so their mean is all that they say of t_u (it is the sufficient statistic of that distribution): weights of a target
attention have nothing to gain over uniform ones.

**nearest.** A user has INTERESTS unit tastes; each choice and each impression is drawn by one of them. The click depends on
the past item that is nearest to the candidate, by the attention of EM3's eq. 7-8 over latent vectors:

    w_j = softmax_j(SHARPNESS <z_i, z_j>)      over the user's last WINDOW events j, strictly earlier
    s_i = sum_j w_j <z_i, z_j>
    click ~ Bernoulli(sigmoid(SLOPE (s_i - MIDDLE) + q_i + offset of the slot))

so the true weights are known (`true_weights`), and a mean over the history averages interests that have nothing to do with
the candidate. A user without events clicks as if s_i were MIDDLE.

Letters: I items, n rows, T history, k latent dimensions.
"""

from typing import NamedTuple

import numpy as np
from tqdm import tqdm


class Interest(NamedTuple):
    """How tastes make choices and impressions; the constants of the two kinds of world.

    Attributes:
      tastes: of a user.
      exposure, choice: how much impressions, and events before the log, follow a taste.
    """

    tastes: int
    exposure: float
    choice: float


INTERESTS = {"taste": Interest(1, 0.5, 5.0), "nearest": Interest(4, 2.0, 12.0)}
WINDOW = 50  # the configs' T, so that a model sees every event that the click depends on
SHARPNESS, SLOPE, MIDDLE = 20.0, 10.0, 0.8


def true_weights(cosine: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """[n, T] f64 the weights w; zeros where there is no history.

    Args:
      cosine: [n, T] <z_i, z_j> of the candidate and each slot.
      mask: [n, T] bool, which slots are valid.
    """
    score = np.where(mask, SHARPNESS * cosine.astype(np.float64), -np.inf)
    top = score.max(axis=1, initial=np.finfo(np.float64).min, keepdims=True)
    weight = np.exp(score - top)
    return weight / np.maximum(weight.sum(axis=1, keepdims=True), 1e-300)


def nearest_clicks(
    content: np.ndarray,
    rows: dict[str, np.ndarray],
    choices: tuple[np.ndarray, np.ndarray, np.ndarray],
    offset: np.ndarray,
    draw: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(probability [n] f32, label [n] bool), in order of time, since a click is an event of later rows.

    Args:
      content: [I, k] f32 latent vectors, unit length.
      rows: "user", "item", "time", each [n]; in order of time.
      choices: (user, item, time) of the events before the log, each [E].
      offset: [n] f32 of the log-odds, all but the interest.
      draw: [n] f32 uniform in [0, 1): a click where it is below the probability.
    """
    users = 1 + max(int(rows["user"].max()), int(choices[0].max(initial=0)))
    past = _past_items(users, *choices)
    waiting: list[list[tuple[int, int]]] = [[] for _ in range(users)]  # clicks of the present second
    probability, label = np.empty(len(draw), np.float32), np.empty(len(draw), bool)
    columns = (rows[name].tolist() for name in ("user", "item", "time"))
    progress = tqdm(zip(*columns, strict=True), desc="clicks", total=len(draw), unit="row", disable=None)
    for row, (user, item, time) in enumerate(progress):
        history = past[user]
        while waiting[user] and waiting[user][0][0] < time:
            history.append(waiting[user].pop(0)[1])
        logit = float(offset[row])
        if history:
            cosine = content[history[-WINDOW:]] @ content[item]
            weight = np.exp(SHARPNESS * (cosine - cosine.max()))
            logit += SLOPE * (float(weight @ cosine) / float(weight.sum()) - MIDDLE)
        probability[row] = 1 / (1 + np.exp(-logit))
        label[row] = draw[row] < probability[row]
        if label[row]:
            waiting[user].append((time, item))
    return probability, label


def _past_items(users: int, user: np.ndarray, item: np.ndarray, time: np.ndarray) -> list[list[int]]:
    """The items of each user's events, oldest first; equal times keep their order."""
    past: list[list[int]] = [[] for _ in range(users)]
    for k in np.argsort(time, kind="stable").tolist():
        past[int(user[k])].append(int(item[k]))
    return past
