"""Writing a data folder, and reporting what it holds and what was left out."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hrm.errors import printable

if TYPE_CHECKING:
    from hrm.data.csv_task import CsvTask
    from hrm.data.format import SetBuilder
    from hrm.data.puzzle_csv import BadRows

DATA_FOLDER = (
    "data folder",
    ("identifiers.json", "test_puzzles.json", "*/dataset.json", "*/*__*.npy", "**/.DS_Store"),  # (macOS adds those)
)
"""What ``--force`` replaces, for :func:`hrm.files.require_new`."""


def finish(out: Path, task: "CsvTask", sets: "dict[str, SetBuilder]", bad: "BadRows", force: bool) -> None:
    """Write the folder; print its contents, the malformed rows, and the number of puzzles that both splits have."""
    import numpy as np

    from hrm.data.format import write_dataset
    from hrm.data.puzzles import row_keys

    write_dataset(
        out,
        {split: {"all": builder} for split, builder in sets.items()},
        vocab_size=task.vocab_size,
        seq_len=task.seq_len,
        overwrite=force,
        task=task.name,
    )
    if bad.count:
        warn(f"{bad.count} malformed rows left out", bad.reasons, bad.count)
    train, test = (np.unique(row_keys(sets[split].arrays(task.seq_len)["inputs"])) for split in ("train", "test"))
    shared = np.intersect1d(train, test)
    if len(shared):
        print(f"hrm: {len(shared)} test puzzles are also training puzzles", file=sys.stderr)
    counts = ", ".join(
        f"{split} {builder.num_examples} puzzles in {len(builder.group_indices) - 1} groups"
        for split, builder in sets.items()
    )
    print(f"{out}: {task.name} {task.size} x {task.size}, {counts}")


def warn(title: str, lines: Sequence[str], count: int) -> None:
    """Print a list of ``count`` entries, of which ``lines`` are the first ones, on stderr."""
    print(f"hrm: {title}:", *map(printable, lines), sep="\n  ", file=sys.stderr)
    if count > len(lines):
        print(f"  and {count - len(lines)} more", file=sys.stderr)
