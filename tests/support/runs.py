"""What a training run wrote, in a form to compare."""

import csv
import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def rows(path: Path, skip: tuple[str, ...] = ("seconds", "puzzles_per_second")) -> list[dict[str, str]]:
    """The rows of a CSV log without its times."""
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in skip} for row in csv.DictReader(file)]


def contents(checkpoint: Path) -> dict[str, object]:
    """Everything in a checkpoint except times."""
    values: dict[str, object] = {}
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            values |= {f"{path.name}/{name}": tensor for name, tensor in load_file(path).items()}
    state = json.loads((checkpoint / "state.json").read_text())
    return values | {k: v for k, v in state.items() if k not in ("files", "crc32", "seconds", "row_seconds")}


def assert_same(a: dict[str, object], b: dict[str, object]) -> None:
    """Two :func:`contents` are equal to the bit."""
    assert a.keys() == b.keys()
    for name, value in a.items():
        other = b[name]
        same = torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
        assert same, name
