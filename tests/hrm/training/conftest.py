"""A tiny data set, and configurations to train on it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hrm.data.format import SetBuilder, write_dataset
from hrm.training.config import TrainConfig
from hrm.training.distributed import World

_TINY = {"L_layers": 1, "H_cycles": 2, "puzzle_emb_len": 2}
LAYERS = {
    "hrm": {"H_layers": 1, "L_layers": 1},
    "trm": _TINY,
    "eqr": _TINY,
    "urm": {"num_layers": 1, "H_cycles": 2},
}
CPU = World(0, 1, torch.device("cpu"))


def _split(rng: np.random.Generator, groups: int) -> dict[str, SetBuilder]:
    builder = SetBuilder()
    for _ in range(groups):
        for _ in range(2):
            for _ in range(int(rng.integers(1, 3))):
                inputs = rng.integers(1, 5, 9)
                builder.add_example(inputs, inputs % 4 + 1)
            builder.end_puzzle(int(rng.integers(1, 4)))
        builder.end_group()
    return {"all": builder}


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """24 groups of puzzles of 9 cells with ``label = input % 4 + 1``, and three puzzle identifiers."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("training") / "data"
    splits = {"train": _split(rng, 24), "test": _split(rng, 5)}
    write_dataset(folder, splits, vocab_size=5, seq_len=9, identifiers=["<blank>", "a", "b", "c"])
    return folder


@pytest.fixture
def configure(data, tmp_path):
    """A function that returns the configuration of a run of a tiny model in ``tmp_path / out``."""

    def make(out: str = "run", arch: dict | None = None, **changes) -> TrainConfig:
        sizes = {"hidden_size": 16, "num_heads": 2, "L_cycles": 1, "halt_max_steps": 3}
        sizes |= LAYERS[changes.get("family", "hrm")]
        values = {
            "data": data,
            "out": tmp_path / out,
            "epochs": 100,
            "global_batch_size": 8,
            "lr": 3e-3,
            "lr_warmup_steps": 3,
            "lr_min_ratio": 0.1,
            "puzzle_emb_lr": 1e-2,
            "log_every": 2,
            "device": "cpu",
            "arch": sizes | {"puzzle_emb_ndim": 16} | (arch or {}),
        }
        return TrainConfig.model_validate(values | changes)

    return make


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def cpu() -> World:
    return CPU
