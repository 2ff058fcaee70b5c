"""Whether a model fits a data set, a task or puzzles: every entry point checks here, before it computes anything."""

import numpy as np

from hrm.data.fingerprint import names_fingerprint
from hrm.data.format import PuzzleDataset
from hrm.data.task import PuzzleTask
from hrm.errors import InputError
from hrm.model import HRM


def check_fits(model: HRM, dataset: PuzzleDataset, known: bool = True) -> None:
    """Check that ``model`` can run on ``dataset``.

    Args:
        model: any model.
        dataset: any split.
        known: also require the puzzle identifiers to be those the model was trained on.

    Raises:
        InputError: sequence length, vocabulary or puzzle identifiers differ; the message has both numbers.
    """
    config, metadata = model.config, dataset.metadata
    for name in ("seq_len", "vocab_size"):
        actual, expected = getattr(metadata, name), getattr(config, name)
        if actual != expected:
            raise InputError(
                f"{dataset.folder} has {name} {actual} and the checkpoint {expected}: they are of different tasks; "
                "evaluate on data of the task the model was trained on"
            )
    actual, expected = metadata.num_puzzle_identifiers, config.num_puzzle_identifiers
    if config.puzzle_emb_ndim and actual != expected:
        raise InputError(
            f"{dataset.folder} has {actual} puzzle identifiers and the checkpoint's puzzle_emb {expected} rows; load "
            "it with --puzzle-emb keep (the rows both have), mean (all rows the mean) or zero (all rows 0), "
            "or evaluate on the data folder it was trained with"
        )
    if known and config.puzzle_emb_ndim and model.identifiers is not None:
        names = names_fingerprint(dataset)
        if names not in (None, model.identifiers):
            raise InputError(
                f"{dataset.folder} names other puzzle identifiers (identifiers.json) than the checkpoint was trained "
                "with, so the rows of its puzzle_emb belong to other puzzles; evaluate on the data folder it was "
                "trained with, or load it with --puzzle-emb mean (all rows the mean), zero (all rows 0) or keep "
                "(match the rows by number anyway)"
            )


def check_puzzles_fit(model: HRM, task: PuzzleTask, puzzles: np.ndarray, identifiers: np.ndarray) -> None:
    """Check that ``model`` can solve ``puzzles`` of ``task``.

    Args:
        model: any model.
        task: the task that checks the answers.
        puzzles: ``[n, seq_len]`` integers, the input tokens.
        identifiers: ``[n]`` integers, the rows of the puzzle embedding.

    Raises:
        InputError: task, shapes, tokens or identifiers don't fit; the message has both values.
    """
    config = model.config
    if (task.vocab_size, task.seq_len) != (config.vocab_size, config.seq_len):
        raise InputError(
            f"the task {task.name} has vocab_size {task.vocab_size} and seq_len {task.seq_len}, the model "
            f"{config.vocab_size} and {config.seq_len}; take a model trained on this task"
        )
    if puzzles.shape[1] != config.seq_len:
        raise InputError(
            f"puzzles is {puzzles.dtype} of shape {list(puzzles.shape)}, expected integers "
            f"[n, seq_len] = [n, {config.seq_len}]"
        )
    if (token := _outside(puzzles, config.vocab_size)) is not None:
        raise InputError(
            f"a puzzle holds token {token}, expected 0 to {config.vocab_size - 1} (vocab_size {config.vocab_size})"
        )
    if identifiers.shape != puzzles.shape[:1]:
        raise InputError(
            f"puzzle_identifiers has shape {list(identifiers.shape)}, expected one for each of {len(puzzles)} puzzles"
        )
    rows = config.num_puzzle_identifiers
    if config.puzzle_emb_ndim and (identifier := _outside(identifiers, rows)) is not None:
        raise InputError(f"puzzle identifier {identifier} is not among the model's {rows}; expected 0 to {rows - 1}")


def _outside(values: np.ndarray, end: int) -> int | None:
    """The smallest value if it is negative, else the largest if it is ``end`` or more, else None."""
    if not values.size:
        return None
    low, high = int(values.min()), int(values.max())
    return low if low < 0 else high if high >= end else None
