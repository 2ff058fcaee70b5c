"""Checking answers by their task, so that a caller can rely on them."""

from dataclasses import dataclass

import numpy as np

from hrm.config import ModelConfig
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.inference.engine.results import ImpossiblePuzzle


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

    def reason(self, inputs: np.ndarray, tokens: np.ndarray) -> str | None:
        """Why ``tokens`` do not answer ``inputs``, ``[seq_len]`` each; None if they do."""
        return self.task.check(inputs, tokens)

    def verdict(self, reason: str | None) -> bool | None:
        """Whether an answer with this :meth:`reason` is right; None if the task cannot tell."""
        return False if reason is not None else True if self.task.verifies else None

    def require_possible(self, inputs: np.ndarray) -> None:
        """Takes longer than a check, so call it after a wrong answer: a puzzle with a right one is possible.

        Raises:
            ImpossiblePuzzle: ``inputs``, ``[seq_len]``, have no solution, and the task can see that.
        """
        if impossible := self.task.impossible(inputs):
            raise ImpossiblePuzzle(impossible)
