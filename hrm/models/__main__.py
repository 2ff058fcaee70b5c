"""``python -m hrm.models NAME RUN ...``: make a shipped model of a training run of the recipe ``NAME``.

The model has the averaged weights of the run. Its halting is calibrated, and its accuracy is measured on held-out
puzzles, as ``hrm eval`` does.
"""

import argparse
import datetime
import platform
from pathlib import Path
from typing import NamedTuple

import torch

import hrm
from hrm.data import task_of
from hrm.files import read_json, write_json
from hrm.inference.engine import Trajectories
from hrm.locate import locate
from hrm.models import CARD, Accuracy, Breadth, Card, Longer


class Puzzles(NamedTuple):
    """Held-out puzzles: a description, the command that generates them, and the data folder it wrote."""

    description: str
    command: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> "Puzzles":
        """Read ``DESCRIPTION=COMMAND=DIR``."""
        description, _, rest = text.partition("=")
        command, _, folder = rest.rpartition("=")
        return cls(description, command, folder)


def main() -> None:
    """Write the folder ``NAME`` beside this file."""
    parser = argparse.ArgumentParser(prog="python -m hrm.models", description=__doc__)
    parser.add_argument("name", help="name of the recipe, and of the model")
    parser.add_argument("run", type=Path, help="folder of the training run")
    parser.add_argument("puzzles", help="description of the puzzles it solves")
    parser.add_argument("--calibrate", required=True, metavar="COMMAND=DIR", help="puzzles to calibrate on")
    parser.add_argument(
        "--measure",
        required=True,
        action="append",
        type=Puzzles.parse,
        metavar="DESCRIPTION=COMMAND=DIR",
        help="puzzles to measure on; first those of its training",
    )
    parser.add_argument(
        "--trajectories",
        type=int,
        nargs=2,
        metavar=("K", "COUNT"),
        help="measure the first COUNT puzzles with up to K trajectories too",
    )
    parser.add_argument("--longer", type=int, metavar="N", help="measure with up to N segments too")
    arguments = parser.parse_args()
    model, target = hrm.load(arguments.run), Path(__file__).parent / arguments.name
    measured: list[Puzzles] = arguments.measure
    command, _, folder = arguments.calibrate.rpartition("=")
    calibration = hrm.calibrate(model, folder)
    dataset = hrm.open_dataset(measured[0].folder, "test")
    task = task_of(dataset.metadata.vocab_size, dataset.metadata.seq_len, dataset.metadata.task)
    hrm.save(model, target, overwrite=True, task=task.name)
    calibration.save(target, f"{command} (test)")
    for file in ("halting.md", "halting.png"):
        (target / file).unlink()
    card = Card(
        name=arguments.name,
        puzzles=arguments.puzzles,
        example=task.format(dataset.sets[0].inputs[0]),
        recipe=arguments.name,
        data=measured[0].command,
        training_steps=_training_steps(arguments.run),
        batch_size=read_json(arguments.run / "training.json")["global_batch_size"],
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        calibration=command,
        accuracy=tuple(_measure(target, puzzles, arguments.trajectories, arguments.longer) for puzzles in measured),
        made_with={
            "torch": torch.__version__,
            "device": f"cpu, {platform.machine()}",
            "date": datetime.date.today().isoformat(),
        },
    )
    write_json(target / CARD, card.model_dump(mode="json"))


def _training_steps(run: Path) -> int:
    """Steps of a run or a shipped model, and of the runs whose weights it started with."""
    if (run / CARD).is_file():
        return int(read_json(run / CARD)["training_steps"])
    before = read_json(run / "training.json").get("init")
    return int(locate(run).name.removeprefix("step_")) + (_training_steps(Path(before)) if before else 0)


def _measure(model: Path, puzzles: Puzzles, several: list[int] | None, segments: int | None) -> Accuracy:
    fixed = hrm.evaluate(model, puzzles.folder, device="cpu")
    early = hrm.evaluate(model, puzzles.folder, device="cpu", halt="calibrated")
    longer = breadth = None
    if segments is not None:
        more = hrm.evaluate(model, puzzles.folder, device="cpu", halt="calibrated", max_steps=segments)
        longer = Longer(segments=segments, exact_accuracy=more.exact_accuracy, steps=more.steps)
    if several is not None:
        how = Trajectories(several[0], augment=True)
        many = hrm.evaluate(
            model, puzzles.folder, device="cpu", halt="calibrated", trajectories=how, max_examples=several[1]
        )
        breadth = Breadth(
            trajectories=several[0], count=many.count, exact_accuracy=many.exact_accuracy, steps=many.steps
        )
    return Accuracy(
        puzzles=puzzles.description,
        data=puzzles.command,
        count=fixed.count,
        exact_accuracy=fixed.exact_accuracy,
        steps=int(fixed.steps),
        early_exact_accuracy=early.exact_accuracy,
        early_steps=early.steps,
        longer=longer,
        breadth=breadth,
    )


if __name__ == "__main__":
    main()
