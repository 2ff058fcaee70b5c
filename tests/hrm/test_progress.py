"""Progress of long work, on a terminal and without one."""

import re

import pytest

from hrm import progress as module
from hrm.progress import Lines, begun, progress_bar, silent


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is the result of time.monotonic."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_have_the_work_done_its_time_and_the_remaining_time(clock, capsys):
    lines = Lines()
    lines.write()  # nothing has started
    report = begun(lines, "evaluating", 5000)
    clock[0] += 5
    lines.write()
    report(1000)
    clock[0] += 15
    lines.write()
    clock[0] += 80
    report(4999)
    report(5000)
    lines.write()  # finished and reported
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 0/5,000 after 0:00:05",
        "evaluating: 1,000/5,000 after 0:00:20, ETA 0:01:20",
        "evaluating: 5,000/5,000 in 0:01:40",
    ]


def test_each_description_has_its_own_time_and_short_work_has_no_line(clock, capsys):
    lines = Lines()
    begun(lines, "short", 2)(2)
    clock[0] += 30
    short = begun(lines, "short too", 2)
    clock[0] += 4.9
    short(1)
    lines.write()
    short(2)
    reading = begun(lines, "reading x.csv", None)
    clock[0] += 10
    reading(70_000)
    lines.write()
    assert capsys.readouterr().err == "reading x.csv: 70,000 after 0:00:10\n"


def test_pauses_between_lines_grow(clock, capsys, monkeypatch):
    lines, pauses = Lines(), []

    def wait(pause):
        pauses.append(pause)
        clock[0] += pause
        return len(pauses) > 6

    monkeypatch.setattr(lines.ended, "wait", wait)
    begun(lines, "evaluating", 10)
    lines.run()
    assert pauses == [5, 10, 20, 40, 60, 60, 60]
    assert capsys.readouterr().err.count("evaluating: 0/10 after ") == 6


def test_a_line_is_written_during_a_long_step(capsys, monkeypatch):
    written = module.threading.Event()
    monkeypatch.setattr(module, "FIRST_LINE", 0.001)
    write = Lines.write
    monkeypatch.setattr(Lines, "write", lambda self: (write(self), self._written and written.set()))
    with progress_bar() as progress:
        progress("solving", 1, 3)
        assert written.wait(60)  # during this step
    assert capsys.readouterr().err.startswith("solving: 1/3 after 0:00:0")


def test_a_bar_ends_at_its_total(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar() as progress:
        begun(progress, "evaluating", 500)(500)
        progress("reading [/b]x.csv", 1, 2)  # which rich reads as markup
    shown = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"evaluating +━+ +500/500 ", shown) and re.search(r"reading \[/b\]x.csv +[━╸╺]+ +1/2 ", shown)


def test_progress_that_is_not_shown(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(shown=False) as progress:
        assert progress is silent
        begun(progress, "evaluating", 500)(500)
    assert capsys.readouterr().err == ""
