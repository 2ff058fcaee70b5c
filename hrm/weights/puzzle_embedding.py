"""A puzzle embedding for another number of puzzles, or for other puzzles, than it was trained on."""

from typing import Literal

import torch

from hrm.errors import InputError

PuzzleEmb = Literal["strict", "keep", "mean", "zero"]
"""What to do with such a puzzle embedding: refuse it; keep the rows by number (new rows are 0); fill all rows with the
mean of the old ones; set all rows to 0."""


def check_rows(stored: torch.Size, wanted: torch.Size, choice: PuzzleEmb) -> None:
    """Check that :func:`fill_rows` can make a ``wanted`` table of a ``stored`` one.

    Raises:
        InputError: the width differs, or the number of rows with ``choice`` "strict".
    """
    if stored == wanted:
        return
    if len(stored) != 2 or stored[1] != wanted[1]:
        raise InputError(
            f"the checkpoint's puzzle_emb is {list(stored)}, expected [rows, {wanted[1]}] (puzzle_emb_ndim)"
        )
    if choice == "strict":
        raise InputError(
            f"the checkpoint's puzzle_emb has {stored[0]} rows and the data {wanted[0]} puzzle identifiers; choose "
            "puzzle_emb=keep (the rows both have), puzzle_emb=mean (all rows the mean) or puzzle_emb=zero (all rows 0)"
        )


def fill_rows(table: torch.Tensor, stored: torch.Tensor, choice: PuzzleEmb) -> None:
    """Fill ``table`` from a stored one with another number of rows."""
    table.zero_()
    if choice == "keep":
        rows = min(len(stored), len(table))
        table[:rows] = stored[:rows]
    elif choice == "mean":
        table[:] = stored.float().mean(0)


def for_other_puzzles(stored: torch.Tensor, choice: PuzzleEmb) -> torch.Tensor:
    """The table for puzzles that it was not trained on.

    Raises:
        InputError: ``choice`` is "strict".
    """
    if choice == "strict":
        raise InputError(
            "the checkpoint's puzzle_emb was trained on other puzzle identifiers than those of the data (their names "
            "differ); choose puzzle_emb=mean (all rows the mean), puzzle_emb=zero (all rows 0) or puzzle_emb=keep "
            "(keep the rows by number)"
        )
    if choice == "keep":
        return stored
    return torch.zeros_like(stored) if choice == "zero" else stored.float().mean(0).expand_as(stored)
