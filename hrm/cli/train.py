"""``hrm train``: train a recipe."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hrm.cli.processes import is_main
from hrm.files import discard
from hrm.training.recipes import recipes

if TYPE_CHECKING:
    from hrm.training.seeds import SeedRuns
    from hrm.training.trainer import Result


def train(
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            autocompletion=recipes,
            help=f"A recipe's name ({', '.join(recipes())}), or the path of a YAML file of settings.",
        ),
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Other settings, such as lr=1e-4 arch.H_cycles=3 ema=true."),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The data folder, with a train and a test split.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run's folder, new or empty (default: runs/RECIPE).")
    ] = None,
    init: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Start with the weights of another model of the same size.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out from its newest checkpoint.")
    ] = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Rows per step, all processes together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, metavar="N", help="Seed of all random choices.")] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="Train N runs, with --seed and the numbers after it, in a folder of --out each."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = None,
) -> None:
    """Train a model: hrm train demo --data demo/data --out demo/run lr=1e-3

    Several GPUs: torchrun --nproc-per-node 8 -m hrm train ...

    With --seeds, a table of all runs with mean and spread ends the output. Exit code 1: one of them failed.

    Exit code 130: the run was stopped by Ctrl-C, SIGTERM, a closed terminal or a closed standard output; its state is
    saved, and --resume continues it.
    """
    from hrm import api

    options = {"--data": data, "--out": out, "--init": init, "--batch-size": batch_size, "--seed": seed}
    options |= {"--seeds": seeds, "--device": device}
    overrides = overrides or []
    several: dict[str, Any] = {} if seeds is None else {"seeds": seeds}
    result: Result | SeedRuns = api.train(
        recipe,
        *overrides,
        data=data,
        out=out,
        init=init,
        resume=resume,
        batch_size=batch_size,
        seed=seed,
        **several,
        device=device,
    )
    interrupted = result.is_interrupted
    if is_main():
        lines = [str(result)]
        if interrupted:
            typed = [text for name, value in options.items() if value is not None for text in (name, str(value))]
            typed += [*(text for text in overrides if not text.startswith("resume=")), "--resume"]
            lines.append(f"to continue: {shlex.join(['hrm', 'train', recipe, *typed])}")
        try:
            print(*lines, sep="\n", flush=True)
        except OSError:  # as after a closed terminal
            discard(sys.stdout)
    if interrupted:
        raise typer.Exit(130)
    if result.failed:
        raise typer.Exit(1)
