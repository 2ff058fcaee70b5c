"""The arguments and options of the commands. Each has one name, one meaning and one help text everywhere."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class PuzzleEmb(str, Enum):
    """What to do with a puzzle embedding that was trained on other puzzles (:data:`hrm.weights.PuzzleEmb`)."""

    strict = "strict"
    keep = "keep"
    mean = "mean"
    zero = "zero"


def _shipped_models() -> list[str]:
    from hrm.models import names

    return names()


Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="The model: a shipped model's name (hrm models), a training run, a checkpoint, a model folder, or a "
        "hub name (owner/name).",
        autocompletion=_shipped_models,
    ),
]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="The data folder.")]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="The split of the data folder to use.")]
MaxExamples = Annotated[
    int | None, typer.Option("--max-examples", min=1, help="Use only the first N examples (default: all).", metavar="N")
]
MaxSteps = Annotated[
    int | None,
    typer.Option("--max-steps", min=1, metavar="N", help="Most segments per puzzle (default: as in training)."),
]
Halt = Annotated[
    str,
    typer.Option(
        "--halt",
        metavar="RULE",
        help="When a puzzle halts: fixed (after all segments), q (when q_halt > q_continue), margin:X (when "
        "q_halt - q_continue > X), stable:K (when K segments have not changed the answer), residual:EPS (when two "
        "segments have changed the states by less than EPS; residual:EPS:K for K segments), check (when the task "
        "accepts the answer), several with | (or) and &, such as q|residual:0.01; calibrated (by the threshold that "
        "hrm calibrate stored); or auto (calibrated if the model is, else q).",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, metavar="N", help="Puzzles (or trajectories) processed together.")
]
TrajectoryCount = Annotated[
    int,
    typer.Option("--trajectories", min=1, metavar="K", help="Attempts at each puzzle; --select chooses the answer."),
]
Noise = Annotated[
    float | None,
    typer.Option(
        "--noise",
        min=0,
        metavar="X",
        help="Standard deviation of noise on the states before each segment, in all trajectories but the first "
        "(default: 0.1, or 0 if something else makes them differ).",
    ),
]
StartNoise = Annotated[
    float,
    typer.Option(
        "--start-noise",
        min=0,
        metavar="X",
        help="Standard deviation of noise on the initial states, in all trajectories but the first.",
    ),
]
Augment = Annotated[
    bool,
    typer.Option("--augment", help="Change the puzzle by a symmetry in all trajectories but the first (Sudoku, maze)."),
]
Select = Annotated[
    str,
    typer.Option(
        "--select",
        metavar="RULES",
        help="Which answer of several trajectories is taken: check (the task accepts it), vote (most trajectories have "
        "it), q (highest q_halt), residual (the states change least), or several in order.",
    ),
]
Damping = Annotated[
    str | None,
    typer.Option(
        "--damping",
        metavar="DECAY[:PATIENCE]",
        help="Let a puzzle whose states no longer come closer to rest go only part of the way with each segment: DECAY "
        "times as far after each PATIENCE (default: 5) segments without progress, such as 0.9:5.",
    ),
]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of all random choices.")]
PuzzleEmbOption = Annotated[
    PuzzleEmb,
    typer.Option(
        "--puzzle-emb",
        metavar="CHOICE",
        help="If the puzzle embedding was trained on other puzzles than those of the data: strict (refuse), keep (keep "
        "the rows by number), mean (set all rows to their mean), or zero (set all rows to zero).",
    ),
]
Device = Annotated[str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Force = Annotated[bool, typer.Option("--force", help="Replace existing results in --out.")]
