"""``hrm solve``: solve puzzles and show how."""

import csv
import gzip
import json
import os
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hrm.cli import app
from hrm.errors import InputError
from hrm.files import decode, read_json, require_file, written_beside
from hrm.progress import progress_bar

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
    max_steps: Annotated[int | None, typer.Option(min=1, help="The most segments; default: as in training.")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="Show the board after every segment.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a line for each puzzle: answer, valid, segments, ...")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write the answers to FILE.csv or FILE.jsonl (as --json) and print no boards.")
    ] = None,
    gif: Annotated[Path | None, typer.Option(help="Draw the way to the answer as an animated GIF.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw the answer as a PNG.")] = None,
    identifier: Annotated[int, typer.Option(min=0, help="Row of the puzzle embedding (ARC).")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Puzzles solved side by side.")] = 64,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Solve PUZZLE and print the board, whether it is valid, and the segments used.

    Exit code 0: every answer is valid; 1: some answer is not; 2: some input was bad (the rest is solved all the same).
    """
    # What can be wrong is looked at first: importing torch takes seconds.
    from hrm.data import task_of
    from hrm.inference.halting import parse_halting
    from hrm.locate import require_known

    _check_output("--gif", gif, puzzle, ".gif")
    _check_output("--png", png, puzzle, ".png")
    _check_output("--out", out, puzzle, ".csv", ".jsonl")
    if halt != "calibrated":
        parse_halting(halt)
    require_known(checkpoint)
    source = read_source(puzzle)
    task = _known_task(checkpoint)
    given = None if task is None else read_puzzles(task, source, gif or png)

    from hrm.inference.calibrate import halting_of
    from hrm.inference.draw import draw_answer, draw_trace, save_gif, save_png
    from hrm.inference.solve import solve as solve_puzzles
    from hrm.training.distributed import joined
    from hrm.weights import load, read_extra

    with joined(device) as world:
        model = load(checkpoint, world.device)
        if task is None or given is None:
            task = task_of(model.config.vocab_size, model.config.seq_len, read_extra(checkpoint).get("task"))
            given = read_puzzles(task, source, gif or png)
        tokens = np.array([one.tokens for one in given if one.tokens is not None], np.uint8).reshape(-1, task.seq_len)
        with progress_bar(len(tokens) > 1) as progress:
            solutions = solve_puzzles(
                model,
                task,
                tokens,
                max_steps=max_steps,
                halt=halting_of(checkpoint, halt),
                puzzle_identifiers=np.full(len(tokens), identifier),
                batch_size=batch_size,
                progress=progress,
            )
    continues = model.config.learns_to_continue
    left = iter(solutions)
    solved = [(one, None if one.tokens is None else next(left)) for one in given]
    if out is not None:
        _save(out, [_record(task, one, solution, trace, continues) for one, solution in solved])
    for one, solution in solved:
        if as_json:
            print(json.dumps(_record(task, one, solution, trace, continues)))
        elif solution is not None and out is None:
            if len(given) > 1:
                print(f"{one.text.place}:")
            _print_solution(task, solution, trace, continues)
    for one in given:
        if one.error:
            print(f"hrm: {one.text.place}: {one.error}", file=sys.stderr)
    bad, valid = len(given) - len(solutions), sum(solution.valid for solution in solutions)
    if not as_json and (len(given) > 1 or out is not None):
        print(f"{valid} of {len(solutions)} answers valid" + (f", {bad} puzzles not read" if bad else ""))
    for solution in solutions:  # at most one where a picture is asked for
        if gif:
            save_gif(draw_trace(task, solution), gif)
        if png:
            save_png(draw_answer(task, solution), png)
    if bad:
        raise typer.Exit(2)
    raise typer.Exit(0 if valid == len(solutions) else 1)


def _check_output(option: str, path: Path | None, puzzle: str, *endings: str) -> None:
    """Refuse before the work a file that could not be written after it, would not be what its name says, or is read."""
    if path is None:
        return
    require_file(path)
    needed = len(endings) > 1  # (else the option says what it is)
    if path.suffix.lower() not in endings and (path.suffix or needed):
        raise InputError(f"{option} {path}: expected a name that ends with {' or '.join(endings)}")
    if os.path.isfile(puzzle) and path.exists() and path.samefile(puzzle):
        raise InputError(f"{option} {path} is the file with the puzzles; choose another name")


def _known_task(checkpoint: str) -> "PuzzleTask | None":
    """The task of a checkpoint whose ``config.json`` says it; of others it is known once they are loaded."""
    from hrm.data import task_of
    from hrm.locate import locate

    file = locate(checkpoint) / "config.json"
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, dict) or not isinstance(sizes := config.get("model"), dict):
        return None
    vocab_size, seq_len = sizes.get("vocab_size"), sizes.get("seq_len")
    if type(vocab_size) is not int or type(seq_len) is not int:
        return None
    return task_of(vocab_size, seq_len, config.get("task"))


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


@dataclass(frozen=True)
class Given:
    """A puzzle, ``[seq_len]`` uint8 tokens, or why it could not be read: one of the two is None."""

    text: Text
    tokens: np.ndarray | None
    error: str | None


def read_puzzles(task: "PuzzleTask", source: Text, picture: Path | None) -> list[Given]:
    """The puzzles of ``source``, the bad ones with what is wrong.

    Raises:
        InputError: there is none, the command line's own is bad, or there are several and one is to be drawn.
    """
    given = []
    for one in split_puzzles(task, source):
        try:
            given.append(Given(one, task.parse(one.text), None))
        except InputError as error:
            if not one.place:
                shown = one.text if len(one.text) <= 40 else one.text[:37] + "..."
                raise InputError(f"{shown!r} is neither a file nor a puzzle: {error}") from None
            given.append(Given(one, None, str(error)))
    if picture and len(given) != 1:
        what = f"{source.place} has {len(given)}"
        raise InputError(f"--gif and --png draw one puzzle, {what}; give the one to be drawn")
    return given


def _record(
    task: "PuzzleTask", given: Given, solution: "Solution | None", trace: bool, continues: bool
) -> dict[str, Any]:
    """What ``--json`` says of a puzzle."""
    record: dict[str, Any] = {
        "place": given.text.place,
        "puzzle": given.text.text if given.tokens is None else task.format(given.tokens),
        "answer": solution and task.format(solution.answer),
        "valid": solution and solution.valid,
        "reason": solution and solution.reason,
        "segments": solution and solution.steps,
        "confidence": solution and solution.confidence,
        "error": given.error,
    }
    if trace and solution is not None:
        record["trace"] = [
            {
                "segment": frame.step,
                "answer": task.format(frame.tokens),
                "halt": frame.confidence,
                "continue": frame.continue_value if continues else None,
                "changed": int(solution.changed(index).sum()),
            }
            for index, frame in enumerate(solution.frames)
        ]
    return record


def _save(path: Path, records: list[dict[str, Any]]) -> None:
    """Write ``records`` as a CSV (without traces) or a JSON object a line, as the name says."""
    with written_beside(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps(record) + "\n" for record in records)
        else:
            columns = [name for name in records[0] if name != "trace"]
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)


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
