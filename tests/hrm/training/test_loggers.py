"""The CSV log, the optional loggers and the progress on the terminal."""

import builtins

import pytest

from hrm.errors import InputError
from hrm.training.loggers import CsvLog, Loggers
from hrm.training.reporter import Reporter


def test_csv_grows_by_rows_and_columns(tmp_path):
    log = CsvLog(tmp_path / "a.csv")
    log.append({"step": 1, "loss": 0.5})
    log.append({"step": 2, "loss": None})
    log.append({"step": 3, "loss": 0.25, "exact": 1})
    log.append({"step": 4, "loss": 0.125})
    assert (tmp_path / "a.csv").read_text().split() == ["step,loss,exact", "1,0.5,", "2,,", "3,0.25,1", "4,0.125,"]
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]


def test_opening_the_csv_of_a_resumed_run_drops_later_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n4,0.1\n5")  # the last row was cut short
    log = CsvLog(path, last_step=2)
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,0.25"]
    log.append({"step": 3, "loss": 8.0})
    assert path.read_text().split() == ["step,loss", "1,0.5", "2,0.25", "3,8.0"]


def test_csv_that_a_spreadsheet_saved_keeps_its_rows(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("step,loss\n1,0.5\n2,0.25\n", "utf-8-sig")
    log = CsvLog(path, last_step=2)
    assert log.step == 2
    log.append({"step": 3, "exact": 1})
    assert path.read_text().split() == ["step,loss,exact", "1,0.5,", "2,0.25,", "3,,1"]


def test_a_resumed_run_writes_one_row_per_step(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n4,0.5\n6,0.25\n6,0.25\n")
    loggers = Loggers(tmp_path, "csv", {}, 6)
    assert path.read_text().split() == ["step,loss", "4,0.5", "6,0.25"]
    for step in (6, 8, 8, 9):
        loggers.log("train", {"step": step, "loss": 0.125})
    assert path.read_text().split() == ["step,loss", "4,0.5", "6,0.25", "8,0.125", "9,0.125"]


def test_tensorboard_receives_the_numbers(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    loggers = Loggers(tmp_path, "tensorboard", {}, 0)
    loggers.log("train", {"step": 3, "loss": 0.5, "accuracy": None})
    loggers.log("eval", {"step": 4, "accuracy": 0.25})
    loggers.close()
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/accuracy"}
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(3, 0.5)]


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_logger_package_is_named(tmp_path, monkeypatch, kind):
    real = builtins.__import__

    def without(name, *arguments, **keywords):
        if name.split(".")[0] in ("tensorboard", "wandb") or name == "torch.utils.tensorboard":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(
        InputError,
        match=rf"logger={kind} needs a package that is not installed; run pip install -e '.\[train\]' in the clone",
    ):
        Loggers(tmp_path, kind, {}, 0)


def test_the_reporter_writes_lines_into_a_file(capsys, monkeypatch):
    monkeypatch.setattr("hrm.training.reporter.time.monotonic", lambda: 100.0)
    row = {"step": 10, "loss": 1.5, "exact_accuracy": 0.25, "steps": None, "puzzles_per_second": 120.0}
    reporter = Reporter(quiet=False)
    reporter.begin(total=20, done=0)
    reporter.show(row)
    reporter.show(row | {"step": 11})  # too soon after the row before
    reporter.show(row | {"step": 20}, last=True)
    reporter.close()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("step 10/20  loss 1.5000 exact 25.0% steps - 120 puzzles/s ETA 0:00:00")
    assert lines[1].startswith("step 20/20")
    quiet = Reporter(quiet=True)
    quiet.begin(total=20, done=0)
    quiet.show(row, last=True)
    quiet.say("nothing")
    quiet.close()
    assert capsys.readouterr().out == ""
