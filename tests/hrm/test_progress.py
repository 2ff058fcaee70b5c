"""What is seen of long work, on a terminal and without one."""

import re

import pytest

from hrm import progress as module
from hrm.progress import Lines, begun, progress_bar, silent


@pytest.fixture
def clock(monkeypatch):
    """``clock[0]`` is what time.monotonic says."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_lines_say_what_is_done_how_long_it_took_and_what_is_left(clock, capsys):
    lines = Lines()
    lines.write()  # nothing has begun
    tell = begun(lines, "evaluating", 5000)
    clock[0] += 5
    lines.write()
    tell(1000)
    clock[0] += 15
    lines.write()
    clock[0] += 80
    tell(4999)
    tell(5000)
    lines.write()  # it is done and said
    assert capsys.readouterr().err.splitlines() == [
        "evaluating: 0/5,000 after 0:00:05",
        "evaluating: 1,000/5,000 after 0:00:20, ETA 0:01:20",
        "evaluating: 5,000/5,000 in 0:01:40",
    ]


def test_each_kind_of_work_has_its_own_time_and_short_work_no_line(clock, capsys):
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


def test_without_a_terminal_lines_come_though_a_step_takes_long(capsys, monkeypatch):
    written = module.threading.Event()
    monkeypatch.setattr(module, "FIRST_LINE", 0.001)
    write = Lines.write
    monkeypatch.setattr(Lines, "write", lambda self: (write(self), self._written and written.set()))
    with progress_bar() as progress:
        progress("thinking", 1, 3)
        assert written.wait(60)  # while this step goes on
    assert capsys.readouterr().err.startswith("thinking: 1/3 after 0:00:0")


def test_a_bar_ends_at_its_total(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar() as progress:
        begun(progress, "evaluating", 500)(500)
        progress("reading [/b]x.csv", 1, 2)  # (which rich takes for markup)
    shown = re.sub("\x1b[^a-zA-Z]*[a-zA-Z]", "", capsys.readouterr().err)
    assert re.search(r"evaluating +━+ +500/500 ", shown) and re.search(r"reading \[/b\]x.csv +[━╸╺]+ +1/2 ", shown)


def test_what_is_not_to_be_shown_is_not(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with progress_bar(shown=False) as progress:
        assert progress is silent
        begun(progress, "evaluating", 500)(500)
    assert capsys.readouterr().err == ""
