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
    expected = chart.description(chart.panels(read(chart.RUN), chart.newest_amx()))
    assert "one segment, batch 1: plain PyTorch 1.00 x (166 ms), hrm_kernels (cpu) 1.82 x (92.5 ms)" in expected
    for theme in (chart.LIGHT, chart.DARK):
        svg = ElementTree.parse(chart.FOLDER / f"speed{theme.suffix}.svg")
        (described,) = svg.iter("{http://purl.org/dc/elements/1.1/}description")
        assert described.text == expected


def goals_file(folder, date, before=None, ours=0.02, isa="amx_bf16"):
    row = {"ours": {"times": [ours, ours, 2 * ours]}, "PyTorch bfloat16": {"times": [0.1, 0.1, 0.1]}}
    busy = {name: {"times": []} for name in row}
    samples = [
        ("segment 8 x 82", "bfloat16", row),
        ("segment 8 x 82", "float32", {}),
        ("segment 1 x 82", "bfloat16", busy),
    ]
    machine = {"cpu": {"model": "A Xeon", "isa": ["avx512f", isa]}, "threads": 4, "versions": {"torch": "2.13"}}
    machine |= {"date": date} | ({"before": before} if before else {})
    content = {"samples": [{"workload": name, "dtype": dtype, "rows": rows} for name, dtype, rows in samples]}
    (folder / date).mkdir()
    (folder / date / chart.GOALS).write_text(json.dumps(content | {"machine": machine}))


def test_the_chart_takes_the_newest_run_with_amx(tmp_path):
    assert chart.newest_amx(tmp_path) is None and len(chart.panels(read(chart.RUN), None)) == 1
    goals_file(tmp_path, "2026-12-24", before="before bfloat16 kernels")
    old = chart.amx_panel(chart.newest_amx(tmp_path))
    assert old.is_old and old.title == "A Xeon, 4 threads, bfloat16: old version, before bfloat16 kernels"
    assert "reported 2026-12-24, not measured since" in old.caption
    goals_file(tmp_path, "2026-12-01", ours=0.04)
    goals_file(tmp_path, "2026-12-02")
    goals_file(tmp_path, "2026-12-03", isa="avx512_bf16")  # no AMX
    panel = chart.amx_panel(chart.newest_amx(tmp_path))
    assert not panel.is_old and panel.title == "A Xeon, 4 threads, AMX, bfloat16"
    assert panel.groups == [
        ("one segment, batch 8", [chart.Bar("eager", 1.0, "100 ms"), chart.Bar("cpu", 5.0, "20.0 ms")])
    ]


def test_the_old_numbers_of_amx_are_called_old():
    """As long as no newer run is there, the picture says so; with a newer run it shows that one."""
    run = chart.newest_amx()
    if run["machine"].get("before") is None:
        return
    panel = chart.amx_panel(run)
    assert panel.is_old and "old version, before bfloat16 kernels" in panel.title
    assert {label: bars[1].shown for label, bars in panel.groups} == {
        "one segment, batch 1": "58.0 ms",
        "one segment, batch 8": "385 ms",
        "one segment, batch 32": "1.58 s",
        "training step, batch 2": "652 ms",
        "training step, batch 8": "1.30 s",
    }
    assert "old version" in (chart.FOLDER / "speed.svg").read_text()
