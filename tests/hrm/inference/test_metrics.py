import math
from xml.etree import ElementTree

import pytest
import torch

from hrm.inference.metrics import EARLY, PUBLISHED, Metrics, MetricSums

FIXED = Metrics(
    exact_accuracy=0.5, accuracy=0.75, lm_loss=1.25, q_halt_accuracy=1.0, steps=4.0, early_exact_accuracy=0.25,
    early_steps=2.5, count=12, puzzles_per_second=99.5, arc_pass={1: 0.5, 2: 1.0},
)  # fmt: skip
EARLY_HALTING = Metrics(
    exact_accuracy=0.5, accuracy=0.75, q_halt_accuracy=1.0, steps=2.0, count=3, puzzles_per_second=7
)


def test_the_dictionary_has_the_published_names_in_order():
    assert list(FIXED.as_dict().items()) == [
        ("exact_accuracy", 0.5),
        ("accuracy", 0.75),
        ("lm_loss", 1.25),
        ("q_halt_accuracy", 1.0),
        ("steps", 4.0),
        ("early_exact_accuracy", 0.25),
        ("early_steps", 2.5),
        ("count", 12.0),
        ("puzzles_per_second", 99.5),
        ("ARC/pass@1", 0.5),
        ("ARC/pass@2", 1.0),
    ]
    assert all(type(value) is float for value in FIXED.as_dict().values())


def test_the_dictionary_leaves_out_what_was_not_measured():
    assert list(EARLY_HALTING.as_dict()) == [
        "exact_accuracy", "accuracy", "q_halt_accuracy", "steps", "count", "puzzles_per_second",
    ]  # fmt: skip


def test_text():
    assert repr(EARLY_HALTING) == (
        "Metrics(exact_accuracy=50.00%, accuracy=75.00%, q_halt_accuracy=100.00%, steps=2.00, count=3, "
        "puzzles_per_second=7.0)"
    )
    assert str(EARLY_HALTING).splitlines() == [
        "exact accuracy          50.00%",
        "token accuracy          75.00%",
        "halting accuracy       100.00%",
        "segments                  2.00",
        "puzzles with labels          3",
        "puzzles per second         7.0",
    ]


def test_html():
    table = ElementTree.fromstring(FIXED._repr_html_())
    rows = [["".join(cell.itertext()) for cell in row] for row in table]
    assert len(rows) == 11
    assert rows[0] == ["exact accuracy", "exact_accuracy", "50.00%"]
    assert rows[-1] == ["ARC/pass@2", "ARC/pass@2", "100.00%"]


@pytest.mark.parametrize("names", [EARLY, PUBLISHED])
def test_sums_become_means(names):
    sums = MetricSums(names)
    sums.add({"count": 1.0, **{name: float(index) for index, name in enumerate(names)}, "q_halt_loss": 5.0})
    sums.add({"count": 3.0, **dict.fromkeys(names, 2.0)})
    sums.add_other_processes(torch.device("cpu"))  # there is one process
    metrics = sums.metrics(10.0, {1: 0.5})
    assert [getattr(metrics, name) for name in names] == [(index + 2) / 4 for index in range(len(names))]
    assert (metrics.count, metrics.puzzles_per_second, metrics.arc_pass) == (4, 10.0, {1: 0.5})
    assert (metrics.lm_loss is None) == (names is EARLY)


def test_without_labels_the_means_are_nan():
    metrics = MetricSums(PUBLISHED).metrics(10.0)
    assert metrics.count == 0 and all(math.isnan(getattr(metrics, name)) for name in PUBLISHED)
    assert ("exact accuracy", "exact_accuracy", "-") in metrics.table()
