"""The answers of ``hrm solve``: as text and as JSON."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hrm.cli.answer_file import text_of

if TYPE_CHECKING:
    from hrm.cli.puzzle_input import PuzzleInput
    from hrm.data.task import PuzzleTask
    from hrm.inference.solve import Solution


@dataclass
class Tally:
    """How many answers are valid, over all parts of a call.

    Attributes:
        solved, valid: puzzles that could be read, and those whose answer is valid.
        silent: puzzles without an answer.
        failures: a line for each puzzle that could not be read.
    """

    solved: int = 0
    valid: int = 0
    silent: int = 0
    failures: list[str] = field(default_factory=list)

    def add(self, record: dict[str, Any]) -> None:
        """Count a record of :meth:`Answers.records`."""
        if record["error"]:
            self.failures.append(f"{record['place']}: {record['error']}")
            return
        self.solved += 1
        self.valid += bool(record["valid"])
        self.silent += record["answer"] is None

    @property
    def exit_code(self) -> int:
        """0: all answers are valid; 1: some are not, or missing; 2: some puzzles could not be read."""
        if self.failures:
            return 2
        return 0 if self.valid == self.solved else 1

    def __str__(self) -> str:
        without = f", {self.silent} without an answer" if self.silent else ""
        failed = f", {len(self.failures)} puzzles not read" if self.failures else ""
        return f"{self.valid} of {self.solved} answers valid{without}{failed}"


@dataclass(frozen=True)
class Answers:
    """Puzzles and their solutions.

    Attributes:
        task: formats and draws the boards.
        puzzles: the puzzles, and why some could not be read.
        solutions: one for each puzzle that could be read, in order.
        has_continue: whether the model has a Q value for continuing.
        trace: whether the answer after every segment is shown.
    """

    task: "PuzzleTask"
    puzzles: Sequence["PuzzleInput"]
    solutions: list["Solution"]
    has_continue: bool
    trace: bool

    def records(self) -> list[dict[str, Any]]:
        """Each puzzle and its solution as ``--json`` prints them."""
        return [self._record(puzzle, solution) for puzzle, solution in self._pairs()]

    def boards(self) -> Iterator[str]:
        """Each board and its verdict; with its place if there are several puzzles."""
        for puzzle, solution in self._pairs():
            if solution is not None:
                place = f"{puzzle.text.place}:\n" if len(self.puzzles) > 1 else ""
                yield place + self._board(solution)

    def _pairs(self) -> Iterator[tuple["PuzzleInput", "Solution | None"]]:
        solutions = iter(self.solutions)
        for puzzle in self.puzzles:
            yield puzzle, None if puzzle.tokens is None else next(solutions)

    def _record(self, puzzle: "PuzzleInput", solution: "Solution | None") -> dict[str, Any]:
        task = self.task
        record: dict[str, Any] = {
            "place": puzzle.text.place,
            "puzzle": text_of(task, puzzle),
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
