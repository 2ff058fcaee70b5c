"""Rules of selection on constructed answers."""

import math

import numpy as np
import pytest

from hrm import InputError
from hrm.inference.selection import DEFAULT_ORDER, RULES, Candidate, choices, choose, parse_order

OFTEN, SURE, UNSURE, RIGHT = (np.full(4, token, np.uint8) for token in range(4))
CANDIDATES = [
    Candidate(OFTEN, -9.0, 0.5, False),
    Candidate(UNSURE, 0.0, 0.4, False),
    Candidate(OFTEN, -8.0, 0.6, False),
    Candidate(SURE, 5.0, math.nan, False),
    Candidate(RIGHT, -9.0, 0.3, True),
    Candidate(RIGHT, -7.0, 0.7, True),
]


@pytest.mark.parametrize(
    ("order", "number"),
    [
        ("check", 4),
        ("vote", 0),
        ("q", 3),
        ("residual", 4),
        ("check,q", 5),
        ("check,residual", 4),
        ("vote,q", 5),
        ("vote,residual", 4),
        ("check,vote,q", 5),
    ],
)
def test_the_first_rule_decides_then_the_next_then_the_earlier_answer(order, number):
    assert choose(parse_order(order), CANDIDATES) == number
    assert choices(parse_order(order), CANDIDATES) == {"check": 4, "vote": 0, "q": 3, "residual": 4} | {order: number}


def test_without_a_check_and_without_residuals():
    unknown = [one._replace(verified=None, residual=math.nan) for one in CANDIDATES]
    assert choose(["check"], unknown) == choose(["residual"], unknown) == 0
    assert choose(parse_order(DEFAULT_ORDER), unknown) == 5  # two votes, as the first answer has, and the higher q_halt
    assert choose(list(RULES), unknown[:1]) == 0


@pytest.mark.parametrize(
    ("select", "message"),
    [
        ("luck", "select is 'luck' with the unknown rule 'luck'; expected check, vote, q, residual"),
        ("", "with the unknown rule ''"),
        ("q,vote,q", "select is 'q,vote,q', and a rule in it occurs twice"),
    ],
)
def test_orders_that_are_refused(select, message):
    with pytest.raises(InputError, match=message):
        parse_order(select)
