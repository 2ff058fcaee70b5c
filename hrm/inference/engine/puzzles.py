"""Reading puzzles: any object that callers submit becomes a checked :class:`Puzzle`."""

import traceback
from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np
import torch

from hrm.config import ModelConfig
from hrm.errors import InputError
from hrm.inference.engine.results import Result, answer_dtype


class Puzzle(NamedTuple):
    """A puzzle with more than its tokens.

    Attributes:
        inputs: ``[seq_len]`` integers.
        identifier: row of the puzzle embedding; 0 is the blank one.
        seed: of its trajectories, with the engine's.
    """

    inputs: np.ndarray
    identifier: int = 0
    seed: int = 0


class PuzzleReader:
    """Reads and checks puzzles for a model.

    Args:
        config: the model's.
        is_solved: whether ``[seq_len]`` tokens are their own answer; None if no task can tell.
    """

    def __init__(self, config: ModelConfig, is_solved: Callable[[np.ndarray], bool] | None = None) -> None:
        self._config, self._is_solved = config, is_solved

    def read(self, puzzle: Any, identifier: int = 0) -> Puzzle:
        """``puzzle`` with int64 tokens.

        Args:
            puzzle: ``[seq_len]`` integers, or a :class:`Puzzle`.
            identifier: row of the puzzle embedding, unless ``puzzle`` is a :class:`Puzzle`.

        Raises:
            InputError: the puzzle cannot be read, or does not fit the model.
        """
        try:
            return self._checked(puzzle if isinstance(puzzle, Puzzle) else Puzzle(puzzle, identifier))
        except InputError:
            raise
        except Exception as error:  # a puzzle may be any object
            (reason,) = traceback.format_exception_only(type(error), error)[-1:]
            raise InputError(
                f"the puzzle cannot be read ({reason.strip()}); expected {self._config.seq_len} integers"
            ) from error

    def read_arrays(self, puzzles: Sequence[Any]) -> list[Puzzle] | None:
        """:meth:`read` for many integer arrays, with one check of all tokens; None if they need :meth:`read`."""
        shape = (self._config.seq_len,)
        if all(type(one) is np.ndarray and one.shape == shape and one.dtype.kind in "iu" for one in puzzles):
            tokens = np.array(puzzles, np.int64)
            if self._fits(tokens):
                return [Puzzle(row) for row in tokens]
        return None

    def result_of_solved(self, index: int, puzzle: Puzzle) -> Result | None:
        """The result of a puzzle that is its own answer; None for any other."""
        if self._is_solved is None or not self._is_solved(puzzle.inputs):
            return None
        return Result.solved(index, puzzle.inputs.astype(answer_dtype(self._config)))

    def _fits(self, tokens: np.ndarray) -> bool:
        """Whether all int64 ``tokens`` are in the vocabulary."""
        # as uint64, -1 is huge
        return bool(np.maximum.reduce(tokens.view(np.uint64), axis=None) < self._config.vocab_size)

    def _checked(self, puzzle: Puzzle) -> Puzzle:
        config = self._config
        inputs = np.asarray(puzzle.inputs)
        if inputs.shape != (config.seq_len,) or inputs.dtype.kind not in "iu":
            raise InputError(
                f"the puzzle is {inputs.dtype} of shape {list(inputs.shape)}, expected integers "
                f"[seq_len] = [{config.seq_len}]"
            )
        tokens = inputs.astype(np.int64)
        if not self._fits(tokens):
            least, most = int(inputs.min()), int(inputs.max())
            raise InputError(
                f"the puzzle holds token {least if least < 0 else most}, expected 0 to {config.vocab_size - 1} "
                f"(vocab_size {config.vocab_size})"
            )
        rows = config.num_puzzle_identifiers
        identifier = puzzle.identifier if config.puzzle_emb_ndim else 0
        if not isinstance(identifier, int | np.integer) or not 0 <= identifier < rows:
            raise InputError(
                f"puzzle identifier {identifier!r} is not among the model's {rows}; expected 0 to {rows - 1}"
            )
        if not isinstance(puzzle.seed, Integral) or not 0 <= puzzle.seed < 2**63:
            raise InputError(f"seed is {puzzle.seed!r}, expected an integer from 0 to 2**63 - 1")
        return Puzzle(tokens, int(identifier), int(puzzle.seed))


def require_several(puzzles: object) -> None:
    """
    Raises:
        InputError: ``puzzles`` is a single puzzle; its tokens would be read as puzzles.
    """
    if isinstance(puzzles, np.ndarray | torch.Tensor):
        if puzzles.ndim >= 2 or puzzles.ndim == 1 and puzzles.dtype == np.object_:
            return
        what = f"an array of shape {list(puzzles.shape)}"
    elif isinstance(puzzles, Puzzle | str | bytes):
        what = f"a {type(puzzles).__name__}"
    else:
        return
    raise InputError(f"puzzles is {what}, expected several, such as [n, seq_len]; give [puzzle] for a single one")
