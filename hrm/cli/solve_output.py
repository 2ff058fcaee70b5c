"""The answers of ``hrm solve``: as text, as JSON, and in files."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hrm.files import written_beside

if TYPE_CHECKING:
    from hrm.cli.puzzle_input import PuzzleInput
    from hrm.data.task import PuzzleTask
    from hrm.inference.solve import Solution


@dataclass(frozen=True)
class Answers:
    """The puzzles of one call and their solutions.

    Attributes:
        task: formats and draws the boards.
        puzzles: the puzzles, and why some could not be read.
        solutions: one for each puzzle that could be read, in order.
        has_continue: whether the model has a Q value for continuing.
        trace: whether the answer after every segment is shown.
    """

    task: "PuzzleTask"
    puzzles: list["PuzzleInput"]
    solutions: list["Solution"]
    has_continue: bool
    trace: bool

    @property
    def failures(self) -> list["PuzzleInput"]:
        """The puzzles that could not be read."""
        return [puzzle for puzzle in self.puzzles if puzzle.error]

    @property
    def exit_code(self) -> int:
        """0: all answers are valid; 1: some are not, or missing; 2: some puzzles could not be read."""
        if self.failures:
            return 2
        return 0 if all(solution.valid for solution in self.solutions) else 1

    def records(self) -> list[dict[str, Any]]:
        """Each puzzle and its solution as ``--json`` prints them."""
        return [self._record(puzzle, solution) for puzzle, solution in self._pairs()]

    def save(self, path: Path) -> None:
        """Write the records, as the file's name says: as JSON lines, or as CSV without traces and trajectories."""
        records = self.records()
        with written_beside(path) as part, part.open("w", newline="", encoding="utf-8") as file:
            if path.suffix.lower() == ".jsonl":
                file.writelines(json.dumps(record) + "\n" for record in records)
            else:
                columns = [name for name in records[0] if name not in ("trace", "trajectories", "chosen")]
                writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
                writer.writerows(records)

    def boards(self) -> Iterator[str]:
        """Each board and its verdict; with its place if there are several puzzles."""
        for puzzle, solution in self._pairs():
            if solution is not None:
                place = f"{puzzle.text.place}:\n" if len(self.puzzles) > 1 else ""
                yield place + self._board(solution)

    def summary(self) -> str:
        """How many answers are valid, and how many puzzles have no answer or could not be read."""
        valid, failed = sum(solution.valid for solution in self.solutions), len(self.failures)
        silent = sum(not solution.answered for solution in self.solutions)
        without = f", {silent} without an answer" if silent else ""
        return f"{valid} of {len(self.solutions)} answers valid{without}" + (
            f", {failed} puzzles not read" if failed else ""
        )

    def _pairs(self) -> Iterator[tuple["PuzzleInput", "Solution | None"]]:
        solutions = iter(self.solutions)
        for puzzle in self.puzzles:
            yield puzzle, None if puzzle.tokens is None else next(solutions)

    def _record(self, puzzle: "PuzzleInput", solution: "Solution | None") -> dict[str, Any]:
        task = self.task
        record: dict[str, Any] = {
            "place": puzzle.text.place,
            "puzzle": puzzle.text.text if puzzle.tokens is None else task.format(puzzle.tokens),
            "answer": task.format(solution.answer) if solution and solution.answered else None,
            "valid": solution and solution.valid,
            "verified": solution and solution.verified,
            "reason": solution and solution.reason,
            "segments": solution and solution.steps,
            "confidence": solution and solution.confidence,
            "error": puzzle.error,
        }
        if solution is not None and solution.trajectories:
            record["trajectories"] = [
                {
                    "number": one.number,
                    "answer": task.format(one.tokens),
                    "verified": one.verified,
                    "segments": one.steps,
                    "confidence": one.confidence,
                    "residual": one.residual,
                }
                for one in solution.trajectories
            ]
            record["chosen"] = dict(solution.chosen)
        if self.trace and solution is not None:
            record["trace"] = [
                {
                    "segment": frame.step,
                    "answer": task.format(frame.tokens),
                    "halt": frame.confidence,
                    "continue": frame.continue_value if self.has_continue else None,
                    "changed": int(solution.changed(index).sum()),
                }
                for index, frame in enumerate(solution.frames)
            ]
        return record

    def _board(self, solution: "Solution") -> str:
        parts = [self.task.render(solution.board)]
        if self.trace and solution.steps:
            parts = [f"the puzzle\n{self.task.render(solution.inputs)}"]
            for index, frame in enumerate(solution.frames):
                q_continue = f" continue {frame.continue_value:.2f}," if self.has_continue else ""
                changed = solution.changed(index).sum()
                parts.append(
                    f"\nsegment {frame.step}: halt {frame.confidence:.2f},{q_continue} cells changed: {changed}\n"
                    f"{self.task.render(frame.tokens)}"
                )
            parts.append("")
        segments = "1 segment" if solution.steps == 1 else f"{solution.steps} segments"
        verdict = "valid" if solution.valid else f"not valid: {solution.reason}"
        if not solution.answered:
            verdict = f"no answer: {solution.reason}"
        parts.append(f"{verdict}; {segments}, confidence {solution.confidence:.2f}")
        if len(solution.trajectories) > 1:
            parts.append(self._choices(solution))
        return "\n".join(parts)

    def _choices(self, solution: "Solution") -> str:
        """What each rule of selection chooses, in one line."""
        valid = {one.number: "valid" if one.reason is None else "not valid" for one in solution.trajectories}
        chosen = (f"{rule} takes {number} ({valid[number]})" for rule, number in solution.chosen.items())
        return f"of {len(solution.trajectories)} trajectories: {'; '.join(chosen)}"
