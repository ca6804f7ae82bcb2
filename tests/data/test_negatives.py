"""Negatives for clicks alone: what is drawn, how often, and that nothing later decides it."""

import numpy as np
import pytest

from em3_jax.data.readers.negatives import draw_negatives
from tests.conftest import user_error

USERS, ITEMS, ROWS, COUNT = 12, 25, 400, 3


def clicks() -> dict[str, np.ndarray]:
    random = np.random.default_rng(5)
    popular = np.minimum(random.geometric(0.15, ROWS) - 1, ITEMS - 1)
    user = random.integers(0, USERS, ROWS)
    user[:60] = 0  # one who soon has nearly all that there is
    return {
        "user": user,
        "item": popular,
        "time": random.integers(0, 150, ROWS),
        "split": random.choice(3, ROWS, p=[0.7, 0.15, 0.15]),
    }


def drawn(log: dict[str, np.ndarray], by: str = "uniform", seed: int = 0) -> np.ndarray:
    return draw_negatives(**log, count=COUNT, by=by, seed=seed)


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_a_negative_was_there_and_its_user_had_not_clicked_it(by):
    log, fewer, clicked_later = clicks(), 0, 0
    found = drawn(log, by)
    for row in range(ROWS):
        visible = (log["split"] <= log["split"][row]) & (log["time"] <= log["time"][row])
        own = set(log["item"][visible & (log["user"] == log["user"][row])])
        free = set(log["item"][visible]) - own
        negatives = [item for item in found[row].tolist() if item >= 0]
        assert set(negatives) <= free and len(set(negatives)) == len(negatives)
        assert len(negatives) == min(COUNT, len(free))
        fewer += len(free) < COUNT
        everything = set(log["item"][log["user"] == log["user"][row]])
        clicked_later += len(set(negatives) & everything)
    assert fewer and clicked_later  # both happen here


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_nothing_later_decides_what_is_drawn(by):
    log = clicks()
    before = drawn(log, by)
    for late in (log["time"] >= 100, log["split"] == 2, log["split"] >= 1):
        changed = {name: column.copy() for name, column in log.items()}
        changed["item"][late] = ITEMS - 1 - changed["item"][late]
        changed["user"][late] = np.roll(changed["user"][late], 1)
        after = drawn(changed, by)
        np.testing.assert_array_equal(after[~late], before[~late])
        assert (after[late] != before[late]).any()


def test_the_seed_decides():
    log = clicks()
    np.testing.assert_array_equal(drawn(log), drawn(log))
    assert (drawn(log) != drawn(log, seed=1)).mean() > 0.5


def test_uniform_and_popularity_are_what_they_say():
    """One late user draws from items of which the k-th was clicked k + 1 times, less the one that he has."""
    times_clicked = np.arange(1, 9)
    item = np.concatenate([np.repeat(np.arange(8), times_clicked), np.full(4000, 7)])
    late = np.arange(len(item)) >= times_clicked.sum()
    user = np.where(late, 1 + np.arange(len(item)), 0)
    time = np.where(late, 10, np.arange(len(item)) % 5)
    for by, weight in (("uniform", np.ones(7)), ("popularity", times_clicked[:7])):
        found = draw_negatives(user, item, time, 0 * user, count=1, by=by, seed=0)[late, 0]
        observed, expected = np.bincount(found, minlength=8), 4000 * weight / weight.sum()
        assert observed[7] == 0
        chi_square = ((observed[:7] - expected) ** 2 / expected).sum()
        assert chi_square < 6 + 4 * np.sqrt(2 * 6)  # mean and 4 standard deviations at 6 degrees of freedom


def test_a_rule_that_is_none():
    assert "--negatives-by 'hard': choose uniform or popularity" in user_error(lambda: drawn(clicks(), "hard"))
