"""``hrm train``: train a recipe."""

import shlex
import sys
from typing import Annotated

import typer

from hrm.cli import app
from hrm.files import discard
from hrm.training.recipes import recipes


@app.command()
def train(
    recipe: Annotated[
        str,
        typer.Argument(
            help=f"A recipe's name ({', '.join(recipes())}), or the path of a YAML file with the same keys."
        ),
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="data=DIR and other settings: lr=1e-4 arch.H_cycles=3 resume=true ...")
    ] = None,
) -> None:
    """Train a model: hrm train demo data=data/sudoku-4x4 out=runs/demo (several GPUs: torchrun ... -m hrm train ...).

    Exit code 130 after Ctrl-C, SIGTERM, a closed terminal or a closed standard output, when the state has been saved.
    """
    from hrm.training.config import load_config
    from hrm.training.distributed import joined
    from hrm.training.trainer import train as run

    config = load_config(recipe, overrides or [])
    if config.threads:
        import torch

        torch.set_num_threads(config.threads)
    with joined(config.device) as world:
        result = run(config, world)
        if world.is_main:
            how = {"solved": "training puzzles solved", "limit": "limit reached"}.get(result.reason, result.reason)
            again = [] if any(one.startswith("resume=") for one in overrides or []) else ["resume=true"]
            lines = [f"{how} at step {result.step}; checkpoint {result.checkpoint}"]
            if result.reason == "interrupted":
                lines.append(f"to go on: hrm train {shlex.join([recipe, *(overrides or []), *again])}")
            try:
                print(*lines, sep="\n", flush=True)
            except OSError:  # as after a closed terminal
                discard(sys.stdout)
    if result.reason == "interrupted":
        raise typer.Exit(130)
