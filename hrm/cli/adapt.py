"""``hrm adapt``: fit a trained model to new tasks."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import Data, Device, Force, Model, Seed
from hrm.cli.processes import say_checkpoint
from hrm.progress import progress_bar


class Init(str, Enum):
    """What the new puzzle embeddings start from."""

    mean = "mean"
    zero = "zero"


def adapt(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option(metavar="DIR", help="The folder of the adapted model.")],
    steps: Annotated[int, typer.Option(min=1, metavar="N", help="Optimisation steps.")] = 2000,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Demonstrations per step.")] = 32,
    lr: Annotated[float, typer.Option(metavar="X", help="Learning rate.")] = 0.01,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Weight decay.")] = 0.1,
    init: Annotated[
        Init, typer.Option(help="Start from the mean of the trained embeddings, or from zero.")
    ] = Init.mean,
    seed: Seed = 0,
    force: Force = False,
    device: Device = "auto",
) -> None:
    """Fit new puzzle embeddings to unseen tasks, such as those of ARC.

    The demonstrations are the train split of the data folder (hrm data arc). All other weights stay as they are.
    Evaluate the adapted model with hrm eval.
    """
    from hrm import api

    with progress_bar() as progress:
        done = api.adapt(
            model,
            data,
            out=out,
            steps=steps,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            init=init.value,
            seed=seed,
            force=force,
            device=device,
            progress=progress,
        )
    say_checkpoint(model)
    print(f"token loss {done.loss_before:.4f} -> {done.loss_after:.4f} in {done.steps} steps; {out}")
