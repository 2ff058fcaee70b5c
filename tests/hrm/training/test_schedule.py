"""Learning rates and numbers of steps."""

import pytest

from hrm.training.schedule import learning_rate, total_steps


def test_warm_up_is_linear_from_zero():
    rates = [learning_rate(step, 1e-4, 2000, 10_000, 1.0) for step in (0, 1, 500, 1999, 2000, 7000, 10_000)]
    assert rates == pytest.approx([0, 5e-8, 2.5e-5, 9.995e-5, 1e-4, 1e-4, 1e-4], rel=1e-12)


def test_cosine_falls_to_the_ratio_and_stays():
    # half a cosine from step 100 to 300: at 1/4, 1/2 and 3/4 of it (1 + cos)/2 is 0.853553, 0.5, 0.146447
    rates = [learning_rate(step, 2.0, 100, 300, 0.1) for step in (100, 150, 200, 250, 300, 400)]
    assert rates == pytest.approx([2.0, 1.7363961, 1.1, 0.4636039, 0.2, 0.2], rel=1e-7)


def test_no_warm_up_and_a_run_shorter_than_the_warm_up():
    assert learning_rate(1, 3.0, 0, 1, 1.0) == 3.0
    assert learning_rate(5, 3.0, 10, 5, 0.5) == 1.5
    assert learning_rate(10, 3.0, 10, 5, 0.5) == 3.0  # no steps left for the cosine


def test_total_steps_of_the_published_recipes():
    assert total_steps(20_000, 1000, 1.0, 768) == 26_041
    assert total_steps(20_000, 1000, 1.0, 384) == 52_083
    assert total_steps(100_000, 960, 3.5, 768) == 437_500
    assert total_steps(1, 3, 1.0, 768) == 1
