"""The answers of ``hrm solve``: as text, as JSON, and in files."""

import csv
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.files import written_beside

if TYPE_CHECKING:
    from hrm.cli.puzzle_input import PuzzleInput
    from hrm.data.task import PuzzleTask
    from hrm.inference.solve import Solution


def record(
    task: "PuzzleTask", puzzle: "PuzzleInput", solution: "Solution | None", trace: bool, has_continue: bool
) -> dict[str, Any]:
    """A puzzle and its solution as ``--json`` prints them.

    Args:
        task: formats boards.
        puzzle: the puzzle, or why it could not be read.
        solution: None if the puzzle could not be read.
        trace: include the answer after every segment.
        has_continue: the model has a Q value for continuing.
    """
    values: dict[str, Any] = {
        "place": puzzle.text.place,
        "puzzle": puzzle.text.text if puzzle.tokens is None else task.format(puzzle.tokens),
        "answer": solution and task.format(solution.answer),
        "valid": solution and solution.valid,
        "reason": solution and solution.reason,
        "segments": solution and solution.steps,
        "confidence": solution and solution.confidence,
        "error": puzzle.error,
    }
    if trace and solution is not None:
        values["trace"] = [
            {
                "segment": frame.step,
                "answer": task.format(frame.tokens),
                "halt": frame.confidence,
                "continue": frame.continue_value if has_continue else None,
                "changed": int(solution.changed(index).sum()),
            }
            for index, frame in enumerate(solution.frames)
        ]
    return values


def save_records(path: Path, records: list[dict[str, Any]]) -> None:
    """Write ``records`` as CSV (without traces) or as one JSON object per line, depending on the file's name."""
    with written_beside(path) as part, part.open("w", newline="", encoding="utf-8") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps(values) + "\n" for values in records)
        else:
            columns = [name for name in records[0] if name != "trace"]
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(records)


def show(task: "PuzzleTask", solution: "Solution", trace: bool, has_continue: bool) -> str:
    """The board, or all boards from the puzzle on if ``trace``, and the verdict."""
    parts = [task.render(solution.answer)]
    if trace:
        parts = [f"the puzzle\n{task.render(solution.inputs)}"]
        for index, frame in enumerate(solution.frames):
            going_on = f" continue {frame.continue_value:.2f}," if has_continue else ""
            changed = solution.changed(index).sum()
            parts.append(f"\nsegment {frame.step}: halt {frame.confidence:.2f},{going_on} cells changed: {changed}")
            parts.append(task.render(frame.tokens))
        parts.append("")
    segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
    verdict = "valid" if solution.valid else f"not valid: {solution.reason}"
    return "\n".join([*parts, f"{verdict}; {segments}, confidence {solution.confidence:.2f}"])
