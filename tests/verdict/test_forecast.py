"""Learning curves: straight ones are drawn on, the further the flatter; where two meet."""

import numpy as np
import pytest

from em3_jax.verdict.forecast import DAMPING, Point, crossing, forecast

SHARES = (0.25, 0.5, 1.0)


def curve(values, noise=0.0, seed=0, rows=0.0):
    """A curve of these gains, with the rows' part common to all points."""
    random = np.random.default_rng(seed)
    common = rows * random.standard_normal(2000)
    return [
        Point(share, value, value + common + noise * random.standard_normal(2000))
        for share, value in zip(SHARES, values, strict=True)
    ]


def test_a_straight_line_goes_on_and_flattens():
    found = forecast(curve([0.01, 0.02, 0.03]), 4.0)
    assert found.by_doubling == pytest.approx(0.01)
    assert found.value == pytest.approx(0.03 + 0.01 * (DAMPING + DAMPING**2))
    assert found.low < found.value < found.high
    assert forecast(curve([0.02, 0.02, 0.02]), 4.0).value == pytest.approx(0.02)


def test_the_interval_has_rows_seeds_and_the_guess():
    flat = [0.02] * 3
    width = lambda found: found.high - found.low  # noqa: E731
    only_rows = width(forecast(curve(flat, rows=0.001), 4.0))
    assert only_rows == pytest.approx(2 * 1.96 * 0.001, rel=0.1), "the rows are the same at every point"
    assert width(forecast(curve(flat, rows=0.001, noise=0.001), 4.0)) > 1.5 * only_rows
    assert width(forecast(curve([0.0, 0.02, 0.04], rows=0.001), 4.0)) > 3 * only_rows


def test_curves_that_bend_are_covered():
    """Gains of power laws in the rows, which a line does not fit: the gain at 4 x the rows is within the interval."""
    inside, random = 0, np.random.default_rng(1)
    for _ in range(200):
        limit, scale, power = random.uniform(0, 0.05), random.uniform(-0.04, 0.04), random.uniform(0.1, 0.7)
        true = lambda times, a=limit, s=scale, p=power: a + s * times**-p  # noqa: E731
        seen = [true(share) + 0.002 * random.standard_normal() for share in SHARES]
        found = forecast(curve(seen, noise=0.002, seed=int(random.integers(1 << 30))), 4.0)
        inside += found.low <= true(4.0) <= found.high
    assert inside >= 180


def test_where_two_curves_meet():
    slow, fast = curve([0.030, 0.031, 0.032]), curve([0.010, 0.018, 0.026])
    times = crossing(fast, slow)
    assert times is not None and 1.5 < times < 4
    gained = DAMPING * (1 - DAMPING ** np.log2(times)) / (1 - DAMPING)
    assert gained * (0.008 - 0.001) == pytest.approx(0.006, abs=2e-4)
    assert crossing(slow, fast) is None, "it is above already"
    assert crossing(curve([0.01, 0.01, 0.01]), slow) is None, "it does not catch up"
    assert crossing(curve([0.0, 0.0005, 0.002]), curve([0.5, 0.5, 0.5])) is None, "that would be too far to say"
