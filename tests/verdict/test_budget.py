"""What a budget of time holds: the most that fits, the same wherever there are as many cores."""

import pytest

from em3_jax.verdict import budget
from em3_jax.verdict.ladder import FUSION, LADDER
from tests.conftest import user_error


@pytest.mark.parametrize("text, seconds", [("15min", 900), ("90s", 90), ("2h", 7200), ("0.5 h", 1800), ("3m", 180)])
def test_times(text, seconds):
    assert budget.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "15", "min", "-3min", "0s", "3 weeks", "nanmin", "infh"])
def test_what_is_no_time(text):
    assert "15min" in user_error(budget.seconds_of, text)


def test_more_budget_more_rows_and_seeds():
    plans = [budget.plan(1_000_000, LADDER, minutes * 60.0, 2) for minutes in (10, 20, 40, 80, 160, 320)]
    assert [plan.top for plan in plans] == sorted(plan.top for plan in plans)
    assert all(plan.seconds <= 60 * m for plan, m in zip(plans, (10, 20, 40, 80, 160, 320), strict=True))
    assert plans[0].top < plans[-1].top == 1.0
    assert budget.plan(1_000_000, LADDER, 3600.0, 2).top >= budget.plan(1_000_000, LADDER, 3600.0, 1).top
    assert plans[-1].shares == (0.2, 0.4, 1.0)


def test_all_rows_and_three_seeds_where_there_is_time():
    assert budget.plan(20_000, LADDER, 3600.0, 2)[:2] == (1.0, 3)


def test_too_small_a_budget_says_how_much_it_takes():
    said = user_error(budget.plan, 1_000_000, LADDER, 6.0, 2)
    need = int(said.split("takes about ")[1].split()[0])
    assert budget.plan(1_000_000, LADDER, 60.0 * need, 2).seconds <= 60 * need


def test_the_whole_ladder_costs_a_few_runs_of_em3():
    """By the nominal cost where the dearest rungs go on, on so many rows that starting a run is nothing."""
    rows, em3 = 1e9, next(rung.cost for rung in LADDER if rung.name == FUSION)
    of_one_run = budget.EXAMPLE * budget.EPOCHS * em3 * rows
    assert budget.estimate(rows, LADDER, 2, 1) / of_one_run < 6.5
    assert budget.estimate(rows, LADDER, 3, 1) / of_one_run < 7.8
