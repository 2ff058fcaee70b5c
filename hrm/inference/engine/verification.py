"""Checking answers by their task, so that a caller can rely on them."""

from dataclasses import dataclass, replace

from hrm.config import ModelConfig
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.engine.puzzles import Puzzle
from hrm.inference.engine.results import ImpossiblePuzzle, Result


@dataclass(frozen=True)
class Verifier:
    """Checks puzzles and answers.

    Attributes:
        task: has the check.
        abstain: return no answer rather than one that is not verified.

    Raises:
        InputError: the task cannot verify answers, and ``abstain`` is set.
    """

    task: PuzzleTask
    abstain: bool = False

    def __post_init__(self) -> None:
        if self.abstain and not self.task.verifies:
            raise InputError(
                f"abstain needs a task that verifies answers, and the check of {self.task.name} sees only their form; "
                "leave abstain out"
            )

    def require_fit(self, config: ModelConfig) -> None:
        """
        Raises:
            InputError: the task's boards are not the model's.
        """
        task = self.task
        if (task.vocab_size, task.seq_len) != (config.vocab_size, config.seq_len):
            raise InputError(
                f"the task {task.name} has vocab_size {task.vocab_size} and seq_len {task.seq_len}, the model "
                f"{config.vocab_size} and {config.seq_len}; take a model trained on this task"
            )

    def judged(self, puzzle: Puzzle, result: Result) -> Result:
        """``result`` with ``verified`` and ``reason``; without its answer if it is wrong and the engine abstains.

        Raises:
            ImpossiblePuzzle: the answer is wrong, and the puzzle has no solution.
        """
        reason = self.task.check(puzzle.inputs, result.tokens)
        if reason is None:
            return replace(result, verified=True if self.task.verifies else None)
        # only now: it takes longer than a check, and a puzzle with a right answer is possible
        if impossible := self.task.impossible(puzzle.inputs):
            raise ImpossiblePuzzle(impossible)
        tokens = result.tokens[:0] if self.abstain else result.tokens
        return replace(result, tokens=tokens, reason=reason, verified=False)
