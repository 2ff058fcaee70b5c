"""Mazes of n x n cells with the shortest path from S to G.

The characters ``# SGo`` (wall, free, start, goal, path) are the tokens 1 to 5, and 0 pads, as in HRM
(https://arxiv.org/abs/2506.21734) and its data set maze-30x30-hard-1k.
"""

from hrm.data.maze.dataset import build_set
from hrm.data.maze.generator import LOOPS, generate
from hrm.data.maze.paths import flood
from hrm.data.maze.puzzle import Maze

__all__ = ["LOOPS", "Maze", "build_set", "flood", "generate"]
