"""From puzzles to answers: trained models in :class:`hrm.Engine`, all segments as published, and halting early.

Models are those shipped in ``hrm/models``, or ``--model FOLDER``. The first segment is checked against float64 before
timing. Beside the engine stands a loop over the same segments without one. Early is by Q, and by the threshold of
``hrm calibrate`` where the model has one; the tables have the share of puzzles solved, the mean segments and, on a CPU,
the share of the time that passed outside the model's calls beside the time.
"""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from hrm.inference.halting import CALIBRATION_FILE, parse_halting
from hrm.model import HRM
from hrm.trm import build

SEED = 2026  # of the puzzles; the shipped models have theirs from others


def workloads(setup: Setup) -> Iterator[Workload]:
    for folder in setup.models:
        if setup.device == "cuda":
            yield solve(folder, 4096, 1024, setup)
        else:  # more of the small boards: they are so quick that an engine's start and its last slots would show
            yield solve(folder, 32 * max(4, 160 // _load(folder, setup.device).config.seq_len), 32, setup)
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
        return maze.generate(count, task.size, rng, min_path=2).inputs

    def by_engine(halt: str) -> Callable[..., list[torch.Tensor]]:
        rule = parse_halting(halt, folder)

        def run(model: HRM, given: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            with _share_outside(model) as outside, hrm.Engine(model, slots, config.halt_max_steps, halt=rule) as engine:
                results = list(engine.solve(given))
            return [
                torch.from_numpy(np.stack([result.tokens for result in results])),
                torch.tensor([float(result.steps) for result in results]),
                outside,
            ]

        return run

    def by_loop(model: HRM, given: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The segments of "all segments" and nothing else: what the engine adds is the difference."""
        tokens = []
        with _share_outside(model) as outside:
            for rows in torch.from_numpy(given.astype(np.int64)).split(slots):
                batch = {
                    "inputs": rows.to(setup.device),
                    "puzzle_identifiers": first["puzzle_identifiers"][: len(rows)],
                }
                carry = model.initial_carry(batch)
                with torch.no_grad():
                    for _ in range(config.halt_max_steps):
                        carry, outputs = model(carry, batch)
                    tokens.append(outputs["logits"].argmax(-1).cpu())
        return [torch.cat(tokens), torch.full((len(given),), float(config.halt_max_steps)), outside]

    def score(results: list[torch.Tensor]) -> dict[str, float | None]:
        tokens, steps, outside = results
        return {
            "solved": float(task.solves(puzzles(), tokens.numpy()).mean()),
            "segments": float(steps.mean()),
            "outside": float(outside) if setup.device == "cpu" else None,  # a GPU goes on when the call has returned
        }

    ways = {"all segments": "fixed", "halting": "q"}
    if (folder / CALIBRATION_FILE).is_file():
        ways["calibrated"] = "calibrated"

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
        widen=lambda a: (_in_float64(a[0]), *a[1:]),
        ways={"all segments, no engine": by_loop} | {name: by_engine(halt) for name, halt in ways.items()},
        puzzles=count,
        score=score,
    )


@contextmanager
def _share_outside(model: HRM) -> Iterator[torch.Tensor]:
    """Of the time in here, the share that passes outside the model's calls; the same run says both."""
    share = torch.zeros(())
    started, inside = 0.0, 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(*_: Any) -> None:
        nonlocal inside
        inside += time.perf_counter() - started

    hooks = model.register_forward_pre_hook(begin), model.register_forward_hook(end)
    start = time.perf_counter()
    try:
        yield share
    finally:
        share.fill_(1 - inside / (time.perf_counter() - start))
        for hook in hooks:
            hook.remove()


@functools.cache
def _load(folder: Path, device: str) -> HRM:
    return hrm.load(folder, device)


def _in_float64(model: HRM) -> HRM:
    if model.config.family == "hrm":  # published.forward computes in the dtype of the parameters
        return published.in_float64(model)
    wide = build(model.config.model_copy(update={"forward_dtype": "float64"})).double()
    wide.load_state_dict(model.state_dict())
    return wide.to(next(model.parameters()).device).eval()


def _first_segment(model: HRM, puzzles: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    carry, outputs = model(model.initial_carry(first), first)
    return [outputs["logits"], outputs["q_halt_logits"], outputs["q_continue_logits"], carry.z_H, carry.z_L]


def _published_first_segment(model: HRM, puzzles: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    carry, outputs = published.forward(model, model.initial_carry(first), first)
    return [outputs["logits"], outputs["q_halt_logits"], outputs["q_continue_logits"], carry.z_H, carry.z_L]


def test_solve(record: Callable[[], None]) -> None:
    record()
