"""The chart and the table of results show the numbers of committed files, and README has the current table."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import chart, results_table
from bench.report import __main__ as report
from bench.report.runs import read
from bench.report.sections import section

ROOT = Path(__file__).parents[2]


def test_the_results_in_readme_are_those_of_the_files():
    assert section(ROOT / "README.md", results_table.SECTION) == results_table.results_table()


def test_every_published_recipe_and_shipped_model_is_in_the_table():
    table = results_table.results_table()
    for one in json.loads(results_table.PUBLISHED.read_text()):
        assert f"{one['model']} {100 * one['accuracy']:.1f} %" in table and f"`{one['recipe']}`" in table
        assert (ROOT / "hrm" / "training" / "recipes" / f"{one['recipe']}.yaml").is_file()
    for path in (ROOT / "hrm" / "models").glob("*/card.json"):
        card = json.loads(path.read_text())
        accuracy = card["accuracy"][0]
        assert (
            f"| {accuracy['puzzles']} | – | {100 * accuracy['exact_accuracy']:.1f} % of {accuracy['count']:,}" in table
        )
        assert f"`{card['name']}`, {card['parameters']:,} parameters" in table
    assert table.count("not yet run") == 4
    assert "| 314 µs | AMD EPYC, 2 threads | `sudoku4`" in table  # 0.100 s for 320 puzzles


def test_the_tables_on_the_site_are_those_of_their_run():
    shown = section(report.PAGE, report.SECTION)
    folder = ROOT / "bench" / "results" / "cpu-2026-11-27"
    pictures = [folder / name for name in ("ratios.png", "roofline.png", "cost.png", "memory.png")]
    assert shown == report.page_section(read(folder), folder, pictures, report.PAGE)


def test_the_chart_shows_what_was_measured():
    results = read(chart.RUN)
    bars = dict(chart.groups(results))
    assert list(bars) == [*chart.WORKLOADS.values(), *(f"solving {label}" for label in chart.SOLVED.values())]
    rows = {(row["workload"], row["candidate"]): row for row in results.rows}
    for workload, label in chart.WORKLOADS.items():
        assert [bar.candidate for bar in bars[label]] == ["eager", "cpu"]  # torch.compile was not measured
        assert [bar.ratio for bar in bars[label]] == [rows[workload, name]["times_eager"] for name in ("eager", "cpu")]
    assert bars["one segment, batch 1"][1].shown == "92.5 ms" and bars["solving 4 x 4 Sudoku"][1].shown == "327/s"
    assert all(group[0].ratio == pytest.approx(1) for group in bars.values())
    for part in ("AMD EPYC, 2 threads", "2026-11-27", "bench/results/cpu-2026-11-27/bench.json"):
        assert part in chart.caption(results)


def test_the_committed_chart_has_the_current_numbers():
    expected = chart.description(read(chart.RUN))
    assert "one segment, batch 1: eager PyTorch 166 ms (1.00 x), hrm_kernels (cpu) 92.5 ms (1.82 x)" in expected
    for theme in (chart.LIGHT, chart.DARK):
        svg = ElementTree.parse(chart.FOLDER / f"speed{theme.suffix}.svg")
        (described,) = svg.iter("{http://purl.org/dc/elements/1.1/}description")
        assert described.text == expected
