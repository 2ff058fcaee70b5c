"""From puzzles to answers with trained models in :class:`hrm.Engine`: all segments as published, and halting early.

The models are those shipped in ``hrm/models``, or ``--model FOLDER``. The first segment is checked against float64
before timing. A loop over the same segments shows what the engine adds. Early halting is by Q, and by the threshold of
``hrm calibrate`` for models that have one. Besides the time, the tables show the share of puzzles solved, the mean
number of segments and, on a CPU, the share of time outside the model.
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
from bench.setup import Setup
from bench.workload import Workload
from hrm.data import maze, sudoku
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.families import build
from hrm.inference.halting import CALIBRATION_FILE, parse_halting
from hrm.model import HRM

SEED = 2026
"""Of the puzzles; the shipped models were trained on puzzles of other seeds."""


def workloads(setup: Setup) -> Iterator[Workload]:
    for folder in setup.models:
        if setup.device == "cuda":
            yield solve(folder, 4096, 1024, setup)
        else:  # more of the small boards: they are so fast that the engine's start and its last slots would show
            yield solve(folder, 32 * max(4, 160 // _load(folder, setup.device).config.seq_len), 32, setup)
        if setup.full:
            yield solve(folder, 16, 1, setup)


def solve(folder: Path, count: int, slots: int, setup: Setup) -> Workload:
    """Solve ``count`` puzzles, ``slots`` at a time."""
    model = _load(folder, setup.device)
    config = model.config
    task = Sudoku.from_shape(config.vocab_size, config.seq_len) or Maze.from_shape(config.vocab_size, config.seq_len)
    if task is None:
        pytest.exit(f"{folder}: this suite generates Sudokus and mazes only; leave the model out", 2)

    @functools.cache
    def puzzles() -> np.ndarray:
        rng = np.random.default_rng(SEED)
        if isinstance(task, Sudoku):
            return sudoku.generate(count, task.size, rng, sudoku.Difficulty(extra_clues=task.size)).inputs
        return maze.generate(count, task.size, rng, min_path=2).inputs

    def by_engine(halt: str) -> Callable[..., list[torch.Tensor]]:
        rule = parse_halting(halt, folder)

        def run(model: HRM, inputs: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            with _share_outside(model) as outside, hrm.Engine(model, slots, config.halt_max_steps, halt=rule) as engine:
                results = list(engine.solve(inputs))
            return [
                torch.from_numpy(np.stack([result.tokens for result in results])),
                torch.tensor([float(result.steps) for result in results]),
                outside,
            ]

        return run

    def by_loop(model: HRM, inputs: np.ndarray, first: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        """The same segments as "all segments", without an engine."""
        tokens = []
        with _share_outside(model) as outside:
            for rows in torch.from_numpy(inputs.astype(np.int64)).split(slots):
                batch = {
                    "inputs": rows.to(setup.device),
                    "puzzle_identifiers": first["puzzle_identifiers"][: len(rows)],
                }
                carry = model.initial_carry(batch)
                with torch.no_grad():
                    for _ in range(config.halt_max_steps):
                        carry, outputs = model(carry, batch)
                    tokens.append(outputs["logits"].argmax(-1).cpu())
        return [torch.cat(tokens), torch.full((len(inputs),), float(config.halt_max_steps)), outside]

    def score(results: list[torch.Tensor]) -> dict[str, float | None]:
        tokens, steps, outside = results
        return {
            "solved": float(task.solves(puzzles(), tokens.numpy()).mean()),
            "segments": float(steps.mean()),
            # on a GPU a call returns before its work is done
            "outside": float(outside) if setup.device == "cpu" else None,
        }

    rules = {"all segments": "fixed", "halting": "q"}
    if (folder / CALIBRATION_FILE).is_file():
        rules["calibrated"] = "calibrated"

    def arguments(device: str, dtype: torch.dtype, seed: int) -> tuple[Any, ...]:
        inputs = torch.from_numpy(puzzles()[:slots].astype(np.int64)).to(device)
        identifiers = torch.zeros(len(inputs), dtype=torch.int64, device=device)
        return model, puzzles(), {"inputs": inputs, "puzzle_identifiers": identifiers}

    return Workload(
        f"solve {count} of {folder.name}, {slots} slots",
        arguments,
        _first_segment,
        is_capturable=False,
        is_compiled=False,
        kind="solve",
        batch=slots,
        positions=config.positions,
        eager=_published_first_segment if config.family == "hrm" else None,
        to_float64=lambda values: (_in_float64(values[0]), *values[1:]),
        variants={"all segments, no engine": by_loop} | {name: by_engine(halt) for name, halt in rules.items()},
        puzzles=count,
        score=score,
    )


@contextmanager
def _share_outside(model: HRM) -> Iterator[torch.Tensor]:
    """Yield a tensor that is set, at the end, to the share of time spent outside the model's calls."""
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
