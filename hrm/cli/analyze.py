"""``hrm analyze``: report how a model solves puzzles."""

from pathlib import Path
from typing import Annotated

import typer

from hrm.cli.options import Data, Device, Force, MaxExamples, MaxSteps, Model, PuzzleEmb, PuzzleEmbOption, Seed, Split
from hrm.cli.processes import say_checkpoint
from hrm.progress import progress_bar


def analyze(
    model: Model,
    data: Data,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="The folder for report.html, analysis.json, pictures and boards.")
    ],
    split: Split = "test",
    puzzles: Annotated[
        int, typer.Option(min=1, metavar="N", help="Number of puzzles whose hidden states are analysed.")
    ] = 100,
    boards: Annotated[int, typer.Option(min=1, metavar="N", help="Number of puzzles shown as animated boards.")] = 6,
    baseline_steps: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="N",
            help="Training steps of the recurrent and of the feed-forward baseline; 0 leaves them out.",
        ),
    ] = 300,
    max_steps: MaxSteps = None,
    max_examples: MaxExamples = 1000,
    seed: Seed = 0,
    force: Force = False,
    puzzle_emb: PuzzleEmbOption = PuzzleEmb.strict,
    device: Device = "auto",
) -> None:
    """Report how a model solves puzzles, as one HTML page.

    The page shows accuracy and halting by segment, halting against difficulty, forward residuals (beside those of two
    baselines of the same size), participation ratios, trajectories of the hidden states, and animated boards.
    """
    from hrm import api

    with progress_bar() as progress:
        analysis = api.analyze(
            model,
            data,
            out=out,
            split=split,
            puzzles=puzzles,
            boards=boards,
            baseline_steps=baseline_steps,
            max_steps=max_steps,
            max_examples=max_examples,
            seed=seed,
            force=force,
            puzzle_emb=puzzle_emb.value,
            device=device,
            progress=progress,
        )
    say_checkpoint(model)
    answers = analysis.answers
    print(
        f"{len(answers.inputs)} puzzles: {answers.right[-1].mean():.2%} solved after {answers.steps} segments, "
        f"{answers.right_when_halting.mean():.2%} when halting by Q after {answers.halting_steps.mean():.2f}"
    )
    for trained in (True, False):
        high, low = (analysis.participation(trained, level) for level in ("H", "L"))  # type: ignore[arg-type]
        print(f"participation ratio, {'trained' if trained else 'untrained'}: z_H {high:.2f}, z_L {low:.2f}")
    print(f"{out / 'report.html'}")
