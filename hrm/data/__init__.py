"""Puzzle data: the tasks by name, and data folders."""

from typing import TypeVar

from hrm.data.arc import Arc
from hrm.data.maze import Maze
from hrm.data.sudoku import Sudoku
from hrm.data.task import PuzzleTask
from hrm.errors import InputError

TASKS: dict[str, type[PuzzleTask]] = {task.name: task for task in (Sudoku, Maze, Arc)}
"""The puzzle tasks by name."""

Task = TypeVar("Task", bound=PuzzleTask)


def register_task(task_type: type[Task]) -> type[Task]:
    """Add a task of your own, so that :func:`task_of` finds it by name and by shape. Usable as a decorator.

    ::

        @hrm.register_task
        class Sort(hrm.PuzzleTask):
            name = "sort"

    A class defined again, as in a notebook cell that runs twice, replaces the one before.

    Returns:
        ``task_type``.

    Raises:
        InputError: the class is not a PuzzleTask, has no name, lacks a method, or another task has its name.
    """
    if not (isinstance(task_type, type) and issubclass(task_type, PuzzleTask)):
        raise InputError(f"register_task: got {task_type!r}, expected a subclass of PuzzleTask")
    missing = sorted(task_type.__abstractmethods__)
    name = getattr(task_type, "name", None)
    if missing or not isinstance(name, str) or not name:
        lacks = ", ".join([*missing, *([] if isinstance(name, str) and name else ["name"])])
        raise InputError(f"register_task: {task_type.__qualname__} does not define {lacks}")
    known = TASKS.get(name, task_type)
    if (known.__module__, known.__qualname__) != (task_type.__module__, task_type.__qualname__):
        raise InputError(f"register_task: the name '{name}' belongs to {known.__qualname__} already; choose another")
    TASKS[name] = task_type
    return task_type


def task_of(vocab_size: int, seq_len: int, name: str | None = None) -> PuzzleTask:
    """The task of this shape: the task called ``name`` (our data folders name it), or the first task that fits.

    Raises:
        InputError: the name is unknown, or no task has this shape.
    """
    if name is not None and name not in TASKS:
        raise InputError(
            f"task '{name}' is not known; expected one of {', '.join(TASKS)} (register_task adds a task of your own)"
        )
    candidates = TASKS if name is None else {name: TASKS[name]}
    for task_type in candidates.values():
        task = task_type.from_shape(vocab_size, seq_len)
        if task is not None:
            return task
    shapes = "; ".join(f"{task_type.shapes} ({known})" for known, task_type in candidates.items() if task_type.shapes)
    raise InputError(
        f"no {name or 'known'} task has vocabulary {vocab_size} with {seq_len} tokens"
        + (f"; expected {shapes}" if shapes else "")
    )
