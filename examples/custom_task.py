"""A puzzle task of your own, trained and solved: sorting four digits. Run it: python examples/custom_task.py"""

import tempfile
from pathlib import Path

import numpy as np
import torch

import hrm
from hrm.data.format import SetBuilder, write_dataset
from hrm.data.task import Cell, PuzzleTask
from hrm.inference.solve import solve
from hrm.training.config import TrainConfig
from hrm.training.distributed import World
from hrm.training.trainer import train


class Sort(PuzzleTask):
    name = "sort"
    vocab_size, seq_len = 7, 4  # 0 pads, 1 to 6 are the digits

    @classmethod
    def from_shape(cls, vocab_size: int, seq_len: int) -> "Sort | None":
        return cls() if (vocab_size, seq_len) == (cls.vocab_size, cls.seq_len) else None

    def parse(self, text: str) -> np.ndarray:
        if len(text) != 4 or not set(text) <= set("123456"):
            raise hrm.InputError(f"{text!r} is no puzzle; expected four digits from 1 to 6")
        return np.array([int(digit) for digit in text], np.uint8)

    def format(self, tokens: np.ndarray) -> str:
        return "".join(map(str, tokens))

    render = format

    def check(self, inputs: np.ndarray, answer: np.ndarray) -> str | None:
        return None if (np.sort(inputs) == answer).all() else "it is not sorted"

    def cells(self, tokens: np.ndarray, inputs: np.ndarray) -> list[list[Cell]]:
        return [[Cell(str(token)) for token in tokens]]


if __name__ == "__main__":
    rng, sets = np.random.default_rng(0), {"train": SetBuilder(), "test": SetBuilder()}
    for split, count in (("train", 2000), ("test", 100)):
        inputs = rng.integers(1, 7, (count, 4))
        sets[split].add_puzzles(inputs, np.sort(inputs))
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data", Path(folder) / "run"
        write_dataset(data, {split: {"all": one} for split, one in sets.items()}, vocab_size=7, seq_len=4)
        arch = {"hidden_size": 64, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1.0, "halt_max_steps": 4}
        settings = {"epochs": 16, "global_batch_size": 64, "lr": 3e-3, "lr_warmup_steps": 20, "device": "cpu"}
        train(TrainConfig(data=data, out=out, arch=arch, **settings), World(0, 1, torch.device("cpu")))
        task = Sort()
        solutions = solve(hrm.load(out), task, inputs)
        for one in solutions[:3]:
            print(task.format(one.inputs), "->", task.format(one.answer), one.reason or "right")
        print(f"solved {sum(one.valid for one in solutions)} of {len(solutions)}")
        assert sum(one.valid for one in solutions) > 60
