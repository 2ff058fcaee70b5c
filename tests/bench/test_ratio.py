"""``bench.ratio`` judges the undisturbed turns only."""

from bench import ratio


def test_a_disturbed_comparison_is_not_judged():
    assert ratio.summary([1.0, 2.0, 3.0] * 3, 0) == "2.00 x eager (quarters 1.00, 3.00)"
    assert ratio.summary([1.0, 2.0, 3.0] * 3, 4).endswith("3.00); other work disturbed 4 of 13 turns")
    assert ratio.summary([11.8] * 8, 192) == (
        "not judged: other work disturbed 192 of 200 turns; run python -m bench.ratio again when the machine is quiet"
    )


def test_slower_means_slower_in_three_of_four_turns():
    assert ratio.is_slower([0.9, 0.8, 0.95, 0.97, 1.5])
    assert not ratio.is_slower([0.9, 0.8, 1.1, 1.2, 0.9])
