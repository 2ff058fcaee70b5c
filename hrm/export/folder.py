"""A folder with an exported model: the ONNX file, what a host must know, a host loop, and what was measured."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.export.onnx_file import OPSET, WeightFormat, require_packages, write_onnx
from hrm.export.segment import Segment, Unrolled, program_of
from hrm.files import folder_written_beside
from hrm.inference.segments import evaluating, require_positive, segments
from hrm.model import HRM
from hrm.play.catalogue import about_model

HOST = Path(__file__).with_name("host.py")
ABOUT_FILE, HOST_FILE = "model.json", "solve.py"
_CHECKED_TOGETHER = 64


@dataclass(frozen=True)
class Compared:
    """An exported model beside the original, on the same puzzles, every one through all segments.

    Attributes:
        puzzles: their number.
        source: where they come from.
        segments: of each puzzle.
        equal_tokens: share of all answers after all segments whose tokens are all equal.
        same_halting: share of puzzles that halt at the same segment by Q.
        q_difference: largest difference of a Q value.
        exact_accuracy, original_accuracy: share of right answers after the last segment; None without known answers.
    """

    puzzles: int
    source: str
    segments: int
    equal_tokens: float
    same_halting: float
    q_difference: float
    exact_accuracy: float | None
    original_accuracy: float | None

    def __str__(self) -> str:
        accuracy = ""
        if self.exact_accuracy is not None and self.original_accuracy is not None:
            accuracy = f"; exact accuracy {self.exact_accuracy:.1%}, the original's {self.original_accuracy:.1%}"
        return (
            f"{self.puzzles} {self.source}, {self.segments} segments each: {self.equal_tokens:.2%} of the answers are "
            f"equal, {self.same_halting:.1%} halt at the same segment, Q values differ by at most "
            f"{self.q_difference:.1e}{accuracy}"
        )


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Attributes:
        folder: with ``model.json``, the ONNX file and ``solve.py``.
        bytes: size of the ONNX file.
        compared: what was measured.
    """

    folder: Path
    bytes: int
    compared: Compared


@dataclass(frozen=True)
class Examples:
    """Puzzles to compare two models on.

    Attributes:
        inputs: ``[n, seq_len]`` tokens.
        labels: ``[n, seq_len]``, -100 where any token is right; None if the answers are not known.
        identifiers: ``[n]`` rows of the puzzle embedding.
        source: where they come from, in words.
    """

    inputs: np.ndarray
    labels: np.ndarray | None
    identifiers: np.ndarray
    source: str


def export_onnx(
    model: HRM,
    folder: Path | str,
    *,
    task: PuzzleTask | None = None,
    weights: WeightFormat = "float32",
    unroll: int | None = None,
    examples: Examples | None = None,
    name: str = "model",
    overwrite: bool = False,
) -> Exported:
    """Write ``model`` as ONNX into a new ``folder``, and compare it with the original in onnxruntime.

    The file has one segment (:class:`hrm.export.segment.Segment`), which ``solve.py`` in the folder repeats until a
    puzzle halts, or with ``unroll`` the first segments (:class:`hrm.export.segment.Unrolled`). ``solve.py`` needs NumPy
    and onnxruntime only.

    Args:
        model: computes in float32.
        folder: must be new or empty unless ``overwrite``.
        task: reads and writes puzzles; None for a host that works with token numbers.
        weights: how matrices are stored: ``"float32"``, ``"float16"`` (half the size) or ``"int8"`` (a quarter).
        unroll: number of segments in the file; None for one that is repeated.
        examples: puzzles for the comparison (default: generated ones for Sudoku and mazes, else random tokens).
        name: of the model, for ``model.json``.
        overwrite: replace an existing folder.

    Raises:
        InputError: a package is missing, the folder exists, an argument is impossible, or the model does not compute
            in float32.
    """
    require_packages()
    if weights not in get_args(WeightFormat):
        raise InputError(f"weights is {weights!r}, expected one of {', '.join(get_args(WeightFormat))}")
    require_positive(unroll=unroll)
    module = Segment(model) if unroll is None else Unrolled(model, unroll)
    file = "segment.onnx" if unroll is None else "segments.onnx"
    with folder_written_beside(folder, overwrite) as part:
        write_onnx(program_of(module), module.names, module.output_names, weights, part / file)
        about = about_model(model, task, name) | {
            "file": file, "opset": OPSET, "weights": weights, "segments": unroll or 0
        }  # fmt: skip
        _write(part, about)
        shutil.copyfile(HOST, part / HOST_FILE)
        compared = compare(model, part, examples or examples_of(model, task))
        _write(part, about | {"compared": asdict(compared)})
        size = (part / file).stat().st_size
    return Exported(Path(folder), size, compared)


def _write(folder: Path, about: dict[str, Any]) -> None:
    (folder / ABOUT_FILE).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def examples_of(model: HRM, task: PuzzleTask | None, count: int = 64) -> Examples:
    """Generated puzzles for Sudoku and mazes, else random tokens; the same at each call."""
    rng, config = np.random.default_rng(0), model.config
    identifiers = np.zeros(count, np.int64)
    if isinstance(task, Sudoku):
        from hrm.data.sudoku.generator import generate as generate_sudokus

        puzzles = generate_sudokus(count, task.size, rng)
        return Examples(puzzles.inputs, puzzles.labels, identifiers, "generated Sudokus")
    if isinstance(task, Maze):
        from hrm.data.maze.generator import generate as generate_mazes

        puzzles = generate_mazes(count, task.size, rng, min_path=2)
        return Examples(puzzles.inputs, puzzles.labels, identifiers, "generated mazes")
    tokens = rng.integers(1, config.vocab_size, (count, config.seq_len))
    return Examples(tokens, None, identifiers % config.num_puzzle_identifiers, "boards of random tokens")


def compare(model: HRM, folder: Path, examples: Examples) -> Compared:
    """Run the model and its export on the same puzzles, in float32 on the CPU."""
    from hrm.export.host import Model

    host = Model(folder)
    limit = host.about["segments"] or model.config.halt_max_steps
    equal, halting, differences, right, original_right = [], [], [0.0], [], []
    for part in _parts(examples):
        theirs = host.solve(part.inputs, "fixed", limit, part.identifiers)
        batch = {
            "inputs": torch.from_numpy(part.inputs.astype(np.int64)),
            "puzzle_identifiers": torch.from_numpy(part.identifiers),
        }
        device = next(model.parameters()).device
        with evaluating(model):
            ours = list(segments(model, {name: values.to(device) for name, values in batch.items()}, limit))
        halts = np.stack([one.halts.cpu().numpy() for one in ours])
        tokens = np.stack([one.tokens.cpu().numpy() for one in ours])
        for row, frames in enumerate(theirs):
            equal += [(frame.tokens == mine).all() for frame, mine in zip(frames, tokens[:, row])]
            stop = next((frame.step for frame in frames if frame.q_halt > frame.q_continue), limit)
            halting.append(stop == halts[:, row].argmax() + 1)
            for frame, mine in zip(frames, ours):
                pairs = ((frame.q_halt, "q_halt_logits"), (frame.q_continue, "q_continue_logits"))
                differences += [abs(q - float(mine.outputs[name][row])) for q, name in pairs]
            if part.labels is not None:
                known = part.labels[row] != -100
                right.append((frames[-1].tokens == part.labels[row])[known].all())
                original_right.append((tokens[-1, row] == part.labels[row])[known].all())
    return Compared(
        len(examples.inputs),
        examples.source,
        limit,
        float(np.mean(equal)),
        float(np.mean(halting)),
        max(differences),
        float(np.mean(right)) if right else None,
        float(np.mean(original_right)) if right else None,
    )


def _parts(examples: Examples) -> Iterator[Examples]:
    for start in range(0, len(examples.inputs), _CHECKED_TOGETHER):
        part = slice(start, start + _CHECKED_TOGETHER)
        labels = None if examples.labels is None else examples.labels[part]
        yield Examples(examples.inputs[part], labels, examples.identifiers[part], examples.source)
