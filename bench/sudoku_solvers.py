"""9 x 9 Sudokus per second: the shipped model sudoku9, the same model in plain PyTorch, and a classical solver.

``python -m bench.sudoku_solvers NAME=DATA ... --tdoku FOLDER`` times all of them on the test splits of data folders
(``hrm/models/sudoku9/card.json`` has the commands that make those of its accuracies). The classical solver is Tdoku,
https://github.com/t-dillon/tdoku, compiled from a clone in FOLDER with ``-O3 -march=native``. Everything runs on one
thread, the candidates take turns, and the CPU time of the fastest turn counts, because other processes take time from
the slower ones.

Before anything is timed, the first segment in plain PyTorch is compared with the model's, and every answer of Tdoku
with the solution. The share of puzzles that each candidate solves stands beside its speed.
"""

import argparse
import ctypes
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import hrm
from bench import published
from hrm.data.format import PuzzleDataset, open_dataset
from hrm.eqr import EqR
from hrm.inference.halting import parse_halting
from hrm_kernels.tuning.cpu import processor

MODEL, SLOTS = "sudoku9", 32
Solver = Callable[[], np.ndarray]
"""Solves all puzzles and returns their answers, ``[n, 81]`` tokens."""


def by_engine(model: EqR, inputs: np.ndarray, halt: str) -> Solver:
    """The engine, with a rule for halting."""
    rule = parse_halting(halt, MODEL)

    def solve() -> np.ndarray:
        with hrm.Engine(model, min(SLOTS, len(inputs)), model.config.halt_max_steps, halt=rule) as engine:
            return np.stack([result.tokens for result in engine.solve(inputs)])

    return solve


def plain_segment(
    model: EqR, z_H: torch.Tensor, z_L: torch.Tensor, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A segment of the model in plain PyTorch: the states and the logits."""
    keep, sigma = 1 - model.config.lambda_, model.config.noise_scale

    def update(level: object, z: torch.Tensor, *others: object) -> torch.Tensor:
        new = keep * z + (1 - keep) * published.module(level, z, *others)  # type: ignore[arg-type]
        return new + sigma * torch.randn_like(z) if sigma else new

    return published.segment(model, z_H, z_L, x, update)[:3]


def in_plain_pytorch(model: EqR, inputs: np.ndarray) -> Solver:
    """All segments for every puzzle, as the published code evaluates."""
    puzzles = torch.from_numpy(inputs.astype(np.int64))

    def solve() -> np.ndarray:
        answers = []
        with torch.inference_mode():
            for rows in puzzles.split(SLOTS):
                x = published.embed(model, {"inputs": rows})
                z_H, z_L = (torch.nn.init.trunc_normal_(torch.empty_like(x), a=-2, b=2) for _ in range(2))
                for _ in range(model.config.halt_max_steps):
                    z_H, z_L, logits = plain_segment(model, z_H, z_L, x)
                answers.append(logits.argmax(-1))
        return torch.cat(answers).numpy()

    return solve


def check_plain_pytorch(model: EqR, inputs: np.ndarray) -> None:
    """One segment without noise gives the model's logits, as far as float32 can tell."""
    quiet = EqR(model.config.model_copy(update={"noise_scale": 0.0}))
    quiet.load_state_dict(model.state_dict())
    quiet.eval()
    rows = torch.from_numpy(inputs[:SLOTS].astype(np.int64))
    batch = {"inputs": rows, "labels": rows, "puzzle_identifiers": torch.zeros(len(rows), dtype=torch.int64)}
    with torch.inference_mode():
        _, outputs = quiet(quiet.initial_carry(batch), batch)
        states = quiet.inner.initial_states(torch.zeros(len(rows), dtype=torch.int64))
        logits = plain_segment(quiet, *states, published.embed(quiet, batch))[2]
    error = ((logits - outputs["logits"]).norm() / outputs["logits"].norm()).item()
    assert error < 1e-4, f"plain PyTorch is off by {error:.1e} from the model"


def by_tdoku(library: Path, inputs: np.ndarray) -> Solver:
    """Tdoku, called for one puzzle after the other; the loop of Python is part of the time."""
    function = ctypes.CDLL(str(library)).TdokuSolverDpllTriadSimd
    function.restype = ctypes.c_size_t
    size = ctypes.POINTER(ctypes.c_size_t)
    function.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_char_p, size]
    texts = [bytes(ord(".") if token == 1 else ord("0") + token - 1 for token in row) for row in inputs.tolist()]
    answer, guesses = ctypes.create_string_buffer(82), ctypes.c_size_t()

    def solve() -> np.ndarray:
        answers = []
        for text in texts:
            function(text, 1, 0, answer, ctypes.byref(guesses))
            answers.append(answer.raw[:81])
        return np.frombuffer(b"".join(answers), np.uint8).reshape(-1, 81) - (ord("0") - 1)

    return solve


def compiled(sources: Path, folder: Path) -> Path:
    """Tdoku as a shared library.

    Args:
        sources: a clone of its repository.
        folder: for the library.
    """
    library = folder / "libtdoku.so"
    files = [sources / "src" / name for name in ("solver_dpll_triad_simd.cc", "util.cc")]
    options = ["-std=c++17", "-O3", "-march=native", "-DNDEBUG", "-fPIC", "-shared"]
    subprocess.run(["c++", *options, f"-I{sources / 'include'}", *map(str, files), "-o", str(library)], check=True)
    return library


def solvers(model: EqR, inputs: np.ndarray, library: Path | None) -> dict[str, Solver]:
    """The candidates by name."""
    found = {
        "`sudoku9`, engine, calibrated halting": by_engine(model, inputs, "calibrated"),
        "`sudoku9`, engine, all 16 segments": by_engine(model, inputs, "fixed"),
        "`sudoku9`, plain PyTorch, all 16 segments": in_plain_pytorch(model, inputs),
    }
    return found if library is None else found | {"Tdoku": by_tdoku(library, inputs)}


def rows_of(name: str, dataset: PuzzleDataset, model: EqR, library: Path | None, count: int, turns: int) -> list[str]:
    """The table's rows of one data set."""
    one = dataset.sets[0]
    inputs, labels = np.asarray(one.inputs[:count]), np.asarray(one.labels[:count])
    check_plain_pytorch(model, inputs)
    candidates = solvers(model, inputs, library)
    solved = {who: (solve() == labels).all(1).mean() for who, solve in candidates.items()}
    assert solved.get("Tdoku", 1) == 1, f"Tdoku solves {solved['Tdoku']:.1%} of the puzzles of {name}"
    fastest = dict.fromkeys(candidates, float("inf"))
    for _ in range(turns):
        for who, solve in candidates.items():
            began = time.process_time()
            solve()
            fastest[who] = min(fastest[who], time.process_time() - began)
    return [
        f"| {name} | {who} | {len(inputs) / fastest[who]:,.0f} | {solved[who]:.1%} |".replace("%", " %")
        for who in candidates
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", nargs="+", metavar="NAME=DATA", help="data folders, whose test splits are solved")
    parser.add_argument("--tdoku", type=Path, metavar="FOLDER", help="a clone of Tdoku's repository, to compile")
    parser.add_argument("--count", type=int, default=256, help="puzzles of each data folder, the first ones")
    parser.add_argument("--turns", type=int, default=3, help="how often each candidate solves them")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="also write tables.md there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = hrm.load(MODEL, device="cpu").eval()
    assert isinstance(model, EqR)
    lines = [
        f"{options.count} puzzles of each set, one thread of {processor()}, torch {torch.__version__}. Solved: by one",
        "trajectory of the model.\n",
        "| puzzles | solver | puzzles per second | solved |",
        "| --- | --- | --- | --- |",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(options.tdoku, Path(folder)) if options.tdoku else None
        for name, path in (data.split("=", 1) for data in options.data):
            rows = rows_of(name, open_dataset(path, "test"), model, library, options.count, options.turns)
            print("\n".join(rows), flush=True)
            lines += rows
    if options.write is not None:
        options.write.mkdir(parents=True, exist_ok=True)
        (options.write / "tables.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
