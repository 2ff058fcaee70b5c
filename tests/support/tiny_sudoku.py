"""A tiny model, and 4 x 4 Sudokus of which it solves some."""

import numpy as np
import torch

from hrm import HRM, HRMConfig
from hrm.data import sudoku
from hrm.data.format import SetBuilder, write_dataset
from hrm.inference.solve import solve

STEPS = 4


def tiny(seq_len=16):
    """An untrained model whose puzzles halt at different segments."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_heads": 2, "H_layers": 1, "L_layers": 1, "expansion": 1, "halt_max_steps": STEPS}
    model = HRM(
        HRMConfig(
            seq_len=seq_len,
            vocab_size=6,
            num_puzzle_identifiers=3,
            puzzle_emb_ndim=32,
            forward_dtype="float32",
            **sizes,
        )
    )
    with torch.no_grad():
        model.inner.q_head.weight.normal_()
        model.inner.q_head.bias.copy_(torch.tensor([0.0, 1.0]))
        model.inner.puzzle_emb.weights.normal_()
    return model.eval()


def write_data(folder):
    """Puzzles whose labels are the tiny model's answers after some segment, or the solution."""
    puzzles = sudoku.generate(20, 4, np.random.default_rng(0))
    solutions = solve(tiny(), sudoku.Sudoku(4), puzzles.inputs, halt="fixed", puzzle_identifiers=np.arange(20) % 3)
    splits = {}
    for split in ("train", "test"):
        splits[split] = {"all": SetBuilder()}
        for index, one in enumerate(solutions):
            labels = one.frames[index % STEPS].tokens if index % 5 else puzzles.labels[index]
            splits[split]["all"].add_example(one.inputs, labels)
            splits[split]["all"].end_puzzle(index % 3)
            splits[split]["all"].end_group()
    write_dataset(folder, splits, vocab_size=6, seq_len=16, identifiers=list("abc"), task="sudoku")
