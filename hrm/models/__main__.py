"""``python -m hrm.models NAME RUN ...``: a model to ship, from a training run of the recipe ``NAME``.

It keeps the averaged weights, calibrates its halting, and measures it on held-out puzzles as ``hrm eval`` does.
"""

import argparse
import datetime
import platform
from pathlib import Path

import torch

import hrm
from hrm.data import task_of
from hrm.data.format import open_dataset
from hrm.files import read_json, write_json
from hrm.inference.calibrate import calibrate
from hrm.inference.evaluate import evaluate
from hrm.inference.halting import parse_halting
from hrm.locate import locate
from hrm.models import CARD, Accuracy, Card


def main() -> None:
    """Write the folder ``NAME`` beside this file."""
    parser = argparse.ArgumentParser(prog="python -m hrm.models", description=__doc__)
    parser.add_argument("name", help="the recipe's name, and the model's")
    parser.add_argument("run", type=Path, help="its training run")
    parser.add_argument("puzzles", help="what it solves, in words")
    parser.add_argument("--calibrate", required=True, metavar="COMMAND=DIR", help="puzzles to calibrate on")
    parser.add_argument(
        "--measure",
        required=True,
        action="append",
        metavar="WORDS=COMMAND=DIR",
        help="puzzles to measure on: in words, how made, and where; the first time those of its training",
    )
    given = parser.parse_args()
    model, target = hrm.load(given.run), Path(__file__).parent / given.name
    command, _, folder = given.calibrate.rpartition("=")
    halting = calibrate(model, open_dataset(folder, "test"))
    measured = [one.partition("=") for one in given.measure]
    dataset = open_dataset(measured[0][2].rpartition("=")[2], "test")
    task = task_of(dataset.metadata.vocab_size, dataset.metadata.seq_len, dataset.metadata.task)
    hrm.save(model, target, overwrite=True, task=task.name)
    halting.save(target, f"{command} (test)")
    for picture in ("halting.md", "halting.png"):
        (target / picture).unlink()
    card = Card(
        name=given.name,
        puzzles=given.puzzles,
        example=task.format(dataset.sets[0].inputs[0]),
        recipe=given.name,
        data=measured[0][2].rpartition("=")[0],
        training_steps=_steps(given.run),
        batch_size=read_json(given.run / "training.json")["global_batch_size"],
        parameters=sum(one.numel() for one in model.parameters()),
        calibration=command,
        accuracy=tuple(_measured(model, target, words, how) for words, _, how in measured),
        made_with={
            "torch": torch.__version__,
            "device": f"cpu, {platform.machine()}",
            "date": datetime.date.today().isoformat(),
        },
    )
    write_json(target / CARD, card.model_dump(mode="json"))


def _steps(run: Path) -> int:
    """Steps of a run or a shipped model, and of those that it began with."""
    if (run / CARD).is_file():
        return int(read_json(run / CARD)["training_steps"])
    before = read_json(run / "training.json").get("init")
    return int(locate(run).name.removeprefix("step_")) + (_steps(Path(before)) if before else 0)


def _measured(model: hrm.HRM, folder: Path, words: str, how: str) -> Accuracy:
    command, _, data = how.rpartition("=")
    dataset = open_dataset(data, "test")
    fixed = evaluate(model, dataset, batch_size=256)
    early = evaluate(model, dataset, batch_size=64, halt=parse_halting("calibrated", folder))
    return Accuracy(
        puzzles=words,
        data=command,
        count=fixed.count,
        exact_accuracy=fixed.exact_accuracy,
        steps=int(fixed.steps),
        early_exact_accuracy=early.exact_accuracy,
        early_steps=early.steps,
    )


if __name__ == "__main__":
    main()
