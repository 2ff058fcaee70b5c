"""The options of ``hrm data sudoku``, ``hrm data maze`` and ``hrm data arc``."""

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="The new data folder.")]
Csv = Annotated[
    Path | None,
    typer.Option(
        "--csv",
        metavar="PATH",
        help="Read puzzles from a folder with train.csv and test.csv (or .csv.gz), or from one such file, of which "
        "--test random puzzles are held out.",
    ),
]
Train = Annotated[
    int | None,
    typer.Option(
        "--train",
        min=1,
        metavar="N",
        help="Training puzzles: how many to generate (default: 1000), or to draw from the files (default: all).",
    ),
]
Test = Annotated[
    int | None,
    typer.Option(
        "--test",
        min=1,
        metavar="N",
        help="Test puzzles: how many to generate (default: 200), or to draw from the files (default: all).",
    ),
]
SkipBad = Annotated[bool, typer.Option("--skip-bad", help="Leave out malformed rows and count them.")]
Force = Annotated[bool, typer.Option("--force", help="Replace the data folder if it exists.")]
