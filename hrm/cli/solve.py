"""``hrm solve``: solve puzzles and show how."""

import gzip
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer

from hrm.cli import app
from hrm.errors import InputError
from hrm.files import decode, require_file

if TYPE_CHECKING:
    from hrm.data.task import PuzzleTask
    from hrm.inference.solve import Solution

MOST = 128 << 20
"""Bytes of puzzles read at once, unpacked: three quarters of a million Sudokus with their answers."""


@app.command()
def solve(
    checkpoint: Annotated[str, typer.Argument(metavar="CKPT", help="Model folder, run, checkpoint or hub name.")],
    puzzle: Annotated[
        str,
        typer.Argument(
            metavar="PUZZLE|FILE|-",
            help="A puzzle in one line; a file (one puzzle a line, one board over several lines, or a CSV with a "
            "column 'question'); or - for standard input.",
        ),
    ],
    halt: Annotated[
        str,
        typer.Option(
            help="q (stop when q_halt > q_continue), fixed (run all segments), stable:K (stop when the answer has not "
            "changed for K segments), margin:X (when q_halt - q_continue > X) or calibrated (as hrm calibrate found)."
        ),
    ] = "q",
    max_steps: Annotated[int | None, typer.Option(help="The most segments; default: as in training.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show the board after every segment.")] = False,
    gif: Annotated[Path | None, typer.Option(help="Draw the way to the answer as an animated GIF.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the answer as a PNG.")] = None,
    identifier: Annotated[int, typer.Option(help="Row of the puzzle embedding (ARC).")] = 0,
    batch_size: Annotated[int, typer.Option(help="Puzzles solved side by side.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Solve PUZZLE and print the board, whether it is valid, and the segments used.

    Exit code 0: every answer is valid; 1: some answer is not; 2: some input was bad (the rest is solved all the same).
    """
    from hrm.data import task_of
    from hrm.inference.calibrate import halting_of
    from hrm.inference.draw import draw_answer, draw_trace, save_gif, save_png
    from hrm.inference.solve import solve as solve_puzzles
    from hrm.training.distributed import joined
    from hrm.weights import load, read_extra

    for picture in filter(None, (gif, png)):
        require_file(picture)
    source = read_source(puzzle)
    with joined(device) as world:
        model = load(checkpoint, world.device)
        task = task_of(model.config.vocab_size, model.config.seq_len, read_extra(checkpoint).get("task"))
        texts = split_puzzles(task, source)
        tokens, places, bad = _parse(task, texts)
        if (gif or png) and len(texts) != 1:
            raise InputError(f"--gif and --png draw one puzzle, {puzzle} has {len(texts)}; give the one to be drawn")
        solutions = solve_puzzles(
            model,
            task,
            tokens,
            max_steps=max_steps,
            halt=halting_of(checkpoint, halt),
            puzzle_identifiers=np.full(len(tokens), identifier),
            batch_size=batch_size,
        )
    for place, solution in zip(places, solutions):
        if len(texts) > 1:
            print(f"{place}:")
        _print_solution(task, solution, trace, model.config.learns_to_continue)
    for message in bad:
        print(f"hrm: {message}", file=sys.stderr)
    if len(texts) > 1:
        valid = sum(solution.valid for solution in solutions)
        print(f"{valid} of {len(solutions)} answers valid" + (f", {len(bad)} puzzles not read" if bad else ""))
    for solution in solutions:  # at most one where a picture is asked for
        if gif:
            save_gif(draw_trace(task, solution), gif)
        if png:
            save_png(draw_answer(task, solution), png)
    if bad:
        raise typer.Exit(2)
    raise typer.Exit(0 if all(solution.valid for solution in solutions) else 1)


@dataclass(frozen=True)
class Text:
    """Puzzles as written, and where: a file, a line of it, or nothing for the command line itself."""

    place: str
    text: str


def read_source(argument: str) -> Text:
    """The text that ``argument`` names: a file's, standard input's, or itself.

    Raises:
        InputError: the file cannot be read.
    """
    if argument == "-":
        return Text("standard input", _read("standard input", sys.stdin.buffer.read))
    if os.path.isdir(argument):
        raise InputError(f"{argument} is a folder, expected a puzzle or a file of puzzles")
    if not os.path.exists(argument):  # unlike Path.exists, it takes names too long for a file
        return Text("", argument)
    opener = gzip.open if argument.lower().endswith(".gz") else open
    try:
        with opener(argument, "rb") as file:
            return Text(argument, _read(argument, file.read))
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{argument} cannot be read ({error}); expected text, or CSV (.csv, .csv.gz)") from None


def _read(place: str, read: Callable[[int], bytes]) -> str:
    data = read(MOST + 1)
    if len(data) > MOST:
        raise InputError(f"{place} has more than {MOST >> 20} MB of text; split it, and solve the parts in turn")
    try:
        return decode(data)
    except UnicodeError as error:
        raise InputError(f"{place} cannot be read ({error}); expected text, or CSV (.csv, .csv.gz)") from None


def split_puzzles(task: "PuzzleTask", source: Text) -> list[Text]:
    """The single puzzles of ``source``: a CSV's, or a text's (:func:`hrm.data.puzzle_text.split_text`).

    Raises:
        InputError: there is none.
    """
    from hrm.data.puzzle_csv import has_header, is_csv, questions
    from hrm.data.puzzle_text import split_text

    if not source.place:
        return [source]
    split = questions if is_csv(source.place) or has_header(source.text) else partial(split_text, task)
    return [Text(place, text) for place, text in split(source.place, source.text)]


def _parse(task: "PuzzleTask", texts: list[Text]) -> tuple[np.ndarray, list[str], list[str]]:
    """Tokens ``[n, seq_len]`` and places of the good ones, messages of the bad ones."""
    tokens, places, bad = [], [], []
    for one in texts:
        try:
            tokens.append(task.parse(one.text))
            places.append(one.place)
        except InputError as error:
            if not one.place:
                shown = one.text if len(one.text) <= 40 else one.text[:37] + "..."
                raise InputError(f"{shown!r} is neither a file nor a puzzle: {error}") from None
            bad.append(f"{one.place}: {error}")
    return np.stack(tokens) if tokens else np.zeros((0, task.seq_len), np.uint8), places, bad


def _print_solution(task: "PuzzleTask", solution: "Solution", trace: bool, continues: bool) -> None:
    if trace:
        print("the puzzle")
        print(task.render(solution.inputs))
        for index, frame in enumerate(solution.frames):
            go_on = f" continue {frame.continue_value:.2f}," if continues else ""
            print(
                f"\nsegment {frame.step}: halt {frame.confidence:.2f},{go_on} "
                f"cells changed: {solution.changed(index).sum()}"
            )
            print(task.render(frame.tokens))
        print()
    else:
        print(task.render(solution.answer))
    segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
    verdict = "valid" if solution.valid else f"not valid: {solution.reason}"
    print(f"{verdict}; {segments}, confidence {solution.confidence:.2f}")
