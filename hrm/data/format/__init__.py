"""The published data format on disk.

``<folder>/{train,test}/dataset.json`` describes a split. Each of its sets has five files,
``<set>__{inputs,labels,puzzle_indices,group_indices,puzzle_identifiers}.npy``. ``<folder>/identifiers.json`` names the
puzzle identifiers. A *group* holds *puzzles* (an original and its augmentations), a puzzle holds *examples* (an input
and a label sequence).
"""

from hrm.data.format.dataset import PuzzleDataset, PuzzleSet
from hrm.data.format.metadata import IGNORE_LABEL, Metadata
from hrm.data.format.reading import open_dataset
from hrm.data.format.writing import SetBuilder, write_dataset

__all__ = [
    "IGNORE_LABEL",
    "Metadata",
    "PuzzleDataset",
    "PuzzleSet",
    "SetBuilder",
    "open_dataset",
    "write_dataset",
]
