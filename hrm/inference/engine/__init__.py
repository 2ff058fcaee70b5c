"""Continuous batching: a model solves many puzzles side by side, each for as many segments as it needs.

A puzzle takes a slot of a batch whose shape never changes. After each segment the rows that halt free their slots, and
waiting puzzles take them.

    interface     Engine: what callers use
    puzzles       reading and checking puzzles
    results       Frame and Result
    verification  checking answers by their task
    trajectories  several attempts at a puzzle: what makes them differ
    outcomes      from the answers of trajectories to a result
    jobs          a puzzle on its way to a result
    callbacks     futures whose callbacks run one after another
    queue         jobs that wait for a slot, and callers that wait for the queue
    streaming     solve and asolve: iterators over results
    scheduler     the worker thread: refill, run a segment, repeat
    processes     the end of the program, and forked children
    batch         slots of trajectories: refill and halting
    segment       one segment on the device, as a CUDA graph on a GPU
"""

from hrm.inference.engine.interface import Engine
from hrm.inference.engine.puzzles import Puzzle
from hrm.inference.engine.queue import EngineError
from hrm.inference.engine.results import Frame, ImpossiblePuzzle, Result, Trajectory
from hrm.inference.engine.trajectories import Trajectories

__all__ = ["Engine", "EngineError", "Frame", "ImpossiblePuzzle", "Puzzle", "Result", "Trajectories", "Trajectory"]
