"""From puzzles to answers: trained models in :class:`hrm.Engine`, all segments as published, and halting by Q.

Models are those shipped in ``hrm/models``, or ``--model FOLDER``. The first segment is checked against float64 before
timing; ``score`` in the tables is the share of puzzles solved.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hrm
from bench import published
from bench.suite import Setup
from bench.workloads import Workload
from hrm.data import maze, sudoku
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.model import HRM

SEED = 2026  # of the puzzles; the shipped models have theirs from others


def workloads(setup: Setup) -> Iterator[Workload]:
    puzzles, slots = (4096, 1024) if setup.device == "cuda" else (96, 32)
    for folder in setup.models:
        yield solve(folder, puzzles, slots, setup)
        if setup.full:
            yield solve(folder, 16, 1, setup)


def solve(folder: Path, count: int, slots: int, setup: Setup) -> Workload:
    """``count`` puzzles, ``slots`` of them side by side."""
    model = _load(folder, setup.device)
    config = model.config
    task = Sudoku.from_shape(config.vocab_size, config.seq_len) or Maze.from_shape(config.vocab_size, config.seq_len)
    if task is None:
        pytest.exit(f"{folder}: this suite makes puzzles for Sudoku and mazes alone; leave the model out", 2)

    @functools.cache
    def puzzles() -> np.ndarray:
        rng = np.random.default_rng(SEED)
        if isinstance(task, Sudoku):
            return sudoku.generate(count, task.size, rng, extra_clues=task.size).inputs
        return maze.generate(count, task.size, rng).inputs

    def by_engine(halt: str) -> Callable[..., list[torch.Tensor]]:
        def run(model: HRM, given: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            with hrm.Engine(model, slots, config.halt_max_steps, halt=halt) as engine:
                return [torch.from_numpy(np.stack([result.tokens for result in engine.solve(given)]))]

        return run

    def score(results: list[torch.Tensor]) -> float:
        return float(task.solves(puzzles(), results[0].numpy()).mean())

    def arguments(device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        given = torch.from_numpy(puzzles()[:slots].astype(np.int64)).to(device)
        identifiers = torch.zeros(len(given), dtype=torch.int64, device=device)
        return model, puzzles(), {"inputs": given, "puzzle_identifiers": identifiers}

    return Workload(
        f"solve {count} of {folder.name}, {slots} slots",
        arguments,
        _first_segment,
        graph=False,
        compiled=False,
        kind="solve",
        size=(slots, config.positions),
        plain=_published_first_segment if config.family == "hrm" else None,
        widen=lambda a: (published.in_float64(a[0]), *a[1:]),
        # TRM computes no float64 of its own: tests/hrm/test_golden.py holds its values against the published ones
        checked=config.family == "hrm",
        ways={"all segments": by_engine("fixed"), "halting": by_engine("q")},
        puzzles=count,
        score=score,
    )


@functools.cache
def _load(folder: Path, device: str) -> HRM:
    return hrm.load(folder, device)


def _first_segment(model: HRM, puzzles: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    carry, outputs = model(model.initial_carry(first), first)
    return [outputs["logits"], outputs["q_halt_logits"], outputs["q_continue_logits"], carry.z_H, carry.z_L]


def _published_first_segment(model: HRM, puzzles: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    carry, outputs = published.forward(model, model.initial_carry(first), first)
    return [outputs["logits"], outputs["q_halt_logits"], outputs["q_continue_logits"], carry.z_H, carry.z_L]


def test_solve(record: Callable[[], None]) -> None:
    record()
