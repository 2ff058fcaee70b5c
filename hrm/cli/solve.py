"""``hrm solve``: solve puzzles and show the answers."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hrm.cli.answer_file import AnswerFile, resumable
from hrm.cli.options import (
    Augment,
    BatchSize,
    Damping,
    Device,
    Halt,
    MaxSteps,
    Model,
    Noise,
    Seed,
    Select,
    StartNoise,
    TrajectoryCount,
)
from hrm.cli.processes import say_checkpoint
from hrm.cli.puzzle_input import read_puzzles, read_source
from hrm.cli.solve_output import Answers, Tally
from hrm.errors import InputError
from hrm.files import read_json, require_file
from hrm.inference.damping import AdaptiveDamping
from hrm.inference.selection import DEFAULT_ORDER, parse_order
from hrm.progress import Progress, progress_bar

if TYPE_CHECKING:
    from hrm.data.task import PuzzleTask


def solve(
    model: Model,
    puzzle: Annotated[
        str,
        typer.Argument(
            metavar="PUZZLE",
            help="A puzzle in one line; a file (one puzzle per line, a board over several lines, or a CSV file with a "
            "column 'question'); or - for standard input.",
        ),
    ],
    halt: Halt = "auto",
    max_steps: MaxSteps = None,
    trajectories: TrajectoryCount = 1,
    noise: Noise = None,
    start_noise: StartNoise = 0.0,
    augment: Augment = False,
    select: Select = DEFAULT_ORDER,
    seed: Seed = 0,
    damping: Damping = None,
    abstain: Annotated[
        bool, typer.Option("--abstain", help="Give no answer rather than one that the task's check does not verify.")
    ] = False,
    trace: Annotated[bool, typer.Option("--trace", help="Show the board after every segment.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per puzzle and line: answer, valid, segments, ...")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the answers to FILE.csv or FILE.jsonl instead of printing boards."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="With --out: go on where an earlier call with the same puzzles was stopped."),
    ] = False,
    gif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the board after every segment as an animated GIF.")
    ] = None,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw the answer as a PNG.")] = None,
    identifier: Annotated[int, typer.Option(min=0, metavar="N", help="Row of the puzzle embedding (ARC).")] = 0,
    batch_size: BatchSize = 64,
    device: Device = "auto",
) -> None:
    """Solve puzzles; print each board, whether it is valid, and the number of segments.

    Exit code 0: all answers are valid. 1: some answer is not valid, or there is none. 2: some input could not be read
    (the other puzzles are solved).
    """
    # Check everything that needs no torch first: importing it takes seconds.
    from hrm.inference.halting import check_halting
    from hrm.locate import locate, require_known

    _check_output("--gif", gif, puzzle, ".gif")
    _check_output("--png", png, puzzle, ".png")
    _check_output("--out", out, puzzle, ".csv", ".jsonl")
    if resume and out is None:
        raise InputError("--resume continues the file of --out; add --out FILE.csv or FILE.jsonl")
    require_known(model)
    check_halting(halt, model)
    parse_order(select)
    AdaptiveDamping.of(damping)
    settings = {
        "MODEL": str(locate(model).resolve()),
        "--halt": halt,
        "--max-steps": max_steps,
        "--trajectories": trajectories,
        "--noise": noise,
        "--start-noise": start_noise,
        "--augment": augment,
        "--select": select,
        "--seed": seed,
        "--damping": damping,
        "--abstain": abstain,
        "--trace": trace,
        "--identifier": identifier,
    }
    file = None if out is None else AnswerFile(out, resume, settings)
    source, one_only = read_source(puzzle), bool(gif or png)
    task = _known_task(model)
    puzzles = None if task is None else read_puzzles(task, source, one_only)

    import numpy as np

    from hrm import api
    from hrm.inference.engine import Trajectories
    from hrm.training.distributed import joined
    from hrm.weights import load

    with joined(device) as world:
        loaded = load(model, world.device)
        if task is None or puzzles is None:
            task = api.task_of_model(model, loaded)
            puzzles = read_puzzles(task, source, one_only)
        if file is not None:
            file.check(task, puzzles)
        tally, done = Tally(), 0 if file is None else len(file.records)
        for record in () if file is None else file.records:
            tally.add(record)
        least = max(1, batch_size // trajectories)
        parts = [puzzles] if file is None else file.parts(puzzles, least)
        readable = sum(one.tokens is not None for one in puzzles[done:])
        before, records = 0, []
        answers = Answers(task, [], [], loaded.config.learns_to_continue, trace)
        with resumable(file), progress_bar(readable > 1) as progress:
            for part in parts:
                tokens = [one.tokens for one in part if one.tokens is not None]
                solutions = api.solve(
                    loaded,
                    np.array(tokens, np.uint8).reshape(-1, task.seq_len),
                    task=task,
                    halt=halt,
                    max_steps=max_steps,
                    identifier=identifier,
                    batch_size=batch_size,
                    abstain=abstain,
                    trajectories=Trajectories(trajectories, noise, start_noise, augment, seed=seed, select=select),
                    damping=damping,
                    trace=trace or gif is not None,
                    progress=partial(_progress_of_part, progress, before, readable),
                )
                before += len(tokens)
                answers = Answers(task, part, solutions, loaded.config.learns_to_continue, trace)
                records = answers.records()
                for record in records:
                    tally.add(record)
                if file is not None:
                    file.add(records)
    if file is not None:
        records = file.finish()
    if as_json:
        print(*map(json.dumps, records), sep="\n")
    elif file is None:
        for board in answers.boards():
            print(board)
    for failure in tally.failures:
        print(f"hrm: {failure}", file=sys.stderr)
    if not as_json and (len(puzzles) > 1 or out is not None):
        print(tally)
    say_checkpoint(model)
    if one_only:
        _draw(answers, gif, png)
    raise typer.Exit(tally.exit_code)


def _progress_of_part(progress: Progress, before: int, total: int, description: str, done: int, _: int | None) -> None:
    progress(description, before + done, total)


def _check_output(option: str, path: Path | None, puzzle: str, *endings: str) -> None:
    """Refuse, before the work, a file that cannot be written, has the wrong ending, or holds the puzzles."""
    if path is None:
        return
    require_file(path)
    needed = len(endings) > 1  # else the option says what it is
    if path.suffix.lower() not in endings and (path.suffix or needed):
        raise InputError(f"{option} {path}: expected a name that ends with {' or '.join(endings)}")
    if os.path.isfile(puzzle) and path.exists() and path.samefile(puzzle):
        raise InputError(f"{option} {path} is the file with the puzzles; choose another name")


def _known_task(model: str) -> "PuzzleTask | None":
    """The task that a checkpoint's ``config.json`` names; None for checkpoints that must be loaded first."""
    from hrm.data import task_of
    from hrm.locate import locate

    file = locate(model) / "config.json"
    config = read_json(file) if file.is_file() else None
    if not isinstance(config, dict) or not isinstance(sizes := config.get("model"), dict):
        return None
    vocab_size, seq_len = sizes.get("vocab_size"), sizes.get("seq_len")
    if type(vocab_size) is not int or type(seq_len) is not int:
        return None
    return task_of(vocab_size, seq_len, config.get("task"))


def _draw(answers: Answers, gif: Path | None, png: Path | None) -> None:
    """Draw the only puzzle, if it could be read."""
    from hrm.inference.draw import draw_answer, draw_trace, save_gif, save_png

    for solution in answers.solutions:
        if gif:
            save_gif(draw_trace(answers.task, solution), gif)
        if png:
            save_png(draw_answer(answers.task, solution), png)
