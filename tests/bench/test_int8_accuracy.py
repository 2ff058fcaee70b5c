import pytest

from bench.int8_accuracy import mcnemar


@pytest.mark.parametrize(
    ("plus", "minus", "p"),
    [(0, 0, 1.0), (7, 7, 1.0), (0, 5, 2 / 2**5), (5, 0, 2 / 2**5), (1, 5, 2 * (1 + 6) / 2**6)],
)
def test_the_p_value_of_mcnemar_counts_both_tails(plus, minus, p):
    assert mcnemar(plus, minus) == p
