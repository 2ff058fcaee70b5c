"""The best checkpoint of a run: the one whose evaluation has the best value of a metric."""

import math
from pathlib import Path
from typing import Any, Literal

from hrm.data.format import PuzzleDataset
from hrm.errors import InputError
from hrm.files import write_json
from hrm.inference.arc_voting import votes_on
from hrm.inference.metrics import Metrics
from hrm.locate import BEST_FILE, Best, checkpoint_path, read_best
from hrm.training.distributed import World

BestMetric = Literal[
    "exact_accuracy",
    "accuracy",
    "q_halt_accuracy",
    "early_exact_accuracy",
    "lm_loss",
    "ARC/pass@1",
    "ARC/pass@2",
    "ARC/pass@5",
    "ARC/pass@10",
    "ARC/pass@100",
    "ARC/pass@1000",
]
"""The metrics of :class:`hrm.inference.metrics.Metrics` that can choose a checkpoint."""
_LOWER_IS_BETTER = ("lm_loss",)


def check_measured(metric: BestMetric | None, test: PuzzleDataset | None, max_examples: int | None) -> None:
    """Refuse, before the training, a metric that its evaluations do not measure.

    Args:
        metric: the metric.
        test: the split that is evaluated; None if none is.
        max_examples: how many examples of it.

    Raises:
        InputError: the metric needs a whole ARC test split.
    """
    if metric is None or test is None or not metric.startswith("ARC/"):
        return
    is_whole = max_examples is None or max_examples >= test.num_examples
    if not is_whole or votes_on(test) is None:
        raise InputError(
            f"keep_best is {metric}, which only the evaluation of a whole ARC test split measures; set "
            f"{'keep_best=exact_accuracy' if is_whole else 'eval_max_examples=null'}"
        )


class BestCheckpoint:
    """Chooses the best checkpoint of a run, and writes down which one it is.

    The checkpoint of the step comes first, then ``best.json`` names it, and only then may the one before be removed: at
    every moment ``best.json`` names a checkpoint that exists.

    Args:
        metric: by which to choose; None chooses no checkpoint.
        run: the run's folder.
        world: its processes; all of them call the methods, the first decides and writes.

    Attributes:
        best: the best evaluation so far; None before the first one.
    """

    def __init__(self, metric: BestMetric | None, run: Path, world: World):
        self._metric, self._run, self._world = metric, run, world
        self.best: Best | None = None

    @property
    def path(self) -> Path | None:
        """The best checkpoint; None if there is none."""
        return checkpoint_path(self._run, self.best.step) if self.best else None

    @property
    def state(self) -> dict[str, Any] | None:
        """The JSON values that a checkpoint keeps."""
        return self.best._asdict() if self.best else None

    def load(self, saved: dict[str, Any] | None, step: int) -> None:
        """Continue a run after ``step``, where ``saved`` is the :attr:`state` in its checkpoint.

        ``best.json`` may be newer: the last evaluation of a run that ended can come after its last checkpoint.
        """
        written = _readable(self._run) if self._world.is_main else None
        candidates = [Best(**saved)] if saved else []
        candidates += [written] if written else []
        for one in sorted(candidates):
            exists = one.step <= step and checkpoint_path(self._run, one.step).is_dir()
            if exists and one.metric == self._metric and self._is_better(one.value):
                self.best = one

    def note(self, step: int, metrics: Metrics) -> bool:
        """Take note of the evaluation after ``step``. Returns whether it is the best so far, in every process.

        An accuracy of 0 is not: such a checkpoint has learned less than any later one. Of equal values the first is.

        Raises:
            InputError: the evaluation does not measure the metric.
        """
        if self._metric is None:
            return False
        value = metrics.as_dict().get(self._metric) if self._world.is_main else math.nan
        if value is None:
            raise InputError(f"the evaluation measures no {self._metric}; set keep_best to one of its metrics, or null")
        is_better = bool(self._world.highest(int(self._is_better(value))))
        if is_better:
            self.best = Best(step, self._metric, value)
        return is_better

    def write(self) -> None:
        """Write ``best.json``, or remove that of another metric."""
        if not self._world.is_main:
            return
        if self.best is None:
            (self._run / BEST_FILE).unlink(missing_ok=True)
        elif self.best != _readable(self._run):
            write_json(self._run / BEST_FILE, self.best._asdict())

    def _is_better(self, value: float) -> bool:
        if self._metric in _LOWER_IS_BETTER:
            return math.isfinite(value) and (self.best is None or value < self.best.value)
        return value > (self.best.value if self.best else 0)


def _readable(run: Path) -> Best | None:
    try:
        return read_best(run)
    except InputError:  # damaged: it is written again
        return None
