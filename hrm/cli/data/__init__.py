"""``hrm data``: build data folders."""

import typer

from hrm.cli.data import arc, maze, sudoku

app = typer.Typer(help="Build a data folder in the published format.", no_args_is_help=True)
app.command()(sudoku.sudoku)
app.command()(maze.maze)
app.command()(arc.arc)
