"""The metrics of an evaluation: sums over rows and processes, their means, and how they are shown."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

from hrm.data.task import PuzzleTask
from hrm.inference.selection import rules_for
from hrm.inference.tables import html_table


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What :func:`hrm.inference.evaluate.evaluate` measures.

    Means are over the examples that have labels, and NaN if there are none. None: the evaluation does not measure it.

    Attributes:
        exact_accuracy: share of examples whose labelled tokens are all right, 0 to 1.
        accuracy: share of right tokens in an example, 0 to 1.
        lm_loss: token loss, in nats; None where examples halt early.
        q_halt_accuracy: halting accuracy: share of examples where the sign of ``q_halt`` says whether the answer is
            right, 0 to 1.
        steps: segments per example.
        early_exact_accuracy, early_steps: ``exact_accuracy`` and ``steps`` if each example halted at the first segment
            with ``q_halt > q_continue``; None where examples do halt early.
        count: number of examples with labels.
        puzzles_per_second: over all examples, with or without labels, and all processes.
        arc_pass: for each K the share of ARC test inputs whose output is among the K answers with the most votes, a
            mean over tasks; None unless a whole ARC test split was evaluated.
        selected: with several trajectories, ``exact_accuracy`` by the rule that chooses among their answers, and
            ``any`` for the share of examples where any of them is right; ``steps`` then counts all trajectories.
    """

    exact_accuracy: float
    accuracy: float
    lm_loss: float | None = None
    q_halt_accuracy: float
    steps: float
    early_exact_accuracy: float | None = None
    early_steps: float | None = None
    count: int
    puzzles_per_second: float
    arc_pass: dict[int, float] | None = None
    selected: dict[str, float] | None = None

    def as_dict(self) -> dict[str, float]:
        """The measured metrics by name, as they stand in ``metrics.json`` and logs: ``ARC/pass@K`` for ``arc_pass``."""
        several = ("arc_pass", "selected")
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name not in several}
        measured = {name: float(value) for name, value in values.items() if value is not None}
        measured |= {metric_of(rule): share for rule, share in (self.selected or {}).items()}
        return measured | {f"ARC/pass@{k}": share for k, share in (self.arc_pass or {}).items()}

    def json_values(self) -> dict[str, float | None]:
        """:meth:`as_dict` as JSON has it: None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in self.as_dict().items()}

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (description, name, formatted value) for a reader; ``-`` stands for NaN."""
        rows = []
        for name, value in self.as_dict().items():
            description, style = _SHOWN.get(name, (_described(name), "{:.2%}"))
            rows.append((description, name, "-" if math.isnan(value) else style.format(value)))
        return rows

    def __repr__(self) -> str:
        return f"Metrics({', '.join(f'{name}={value}' for _, name, value in self.table())})"

    def __str__(self) -> str:
        rows = self.table()
        width = max(len(description) for description, *_ in rows)
        return "\n".join(f"{description:<{width}}  {value:>9}" for description, _, value in rows)

    def _repr_html_(self) -> str:
        return html_table(self.table())


_SHOWN = {
    "exact_accuracy": ("exact accuracy", "{:.2%}"),
    "accuracy": ("token accuracy", "{:.2%}"),
    "lm_loss": ("token loss", "{:.4f}"),
    "q_halt_accuracy": ("halting accuracy", "{:.2%}"),
    "steps": ("segments", "{:.2f}"),
    "early_exact_accuracy": ("exact accuracy, halting by Q", "{:.2%}"),
    "early_steps": ("segments, halting by Q", "{:.2f}"),
    "count": ("puzzles with labels", "{:.0f}"),
    "puzzles_per_second": ("puzzles per second", "{:.1f}"),
}
"""For each metric its description and format; others are described by :func:`_described`."""

EARLY = ("exact_accuracy", "accuracy", "q_halt_accuracy", "steps")
"""The means of an evaluation where examples halt early."""
PUBLISHED = (*EARLY, "lm_loss", "early_exact_accuracy", "early_steps")
"""The means of the published evaluation."""


_BY_RULE = "exact_accuracy/"


def metric_of(rule: str) -> str:
    """The metric of a rule of selection, or of several in order: the exact accuracy of the answers that it chooses."""
    return _BY_RULE + rule


ANY_RIGHT = metric_of("any")
"""The share of examples where any trajectory is right: what a perfect choice would reach."""


def selection_names(task: PuzzleTask | None) -> tuple[str, ...]:
    """The metrics of an evaluation with several trajectories: of each rule of selection, and of a perfect choice."""
    return (*map(metric_of, rules_for(task)), ANY_RIGHT)


def _described(name: str) -> str:
    """The description of a metric of a rule of selection, or of ``ARC/pass@K``, which describes itself."""
    if name == ANY_RIGHT:
        return "exact accuracy, any of the answers"
    rule = name.removeprefix(_BY_RULE)
    return f"exact accuracy, chosen by {rule}" if rule != name else name


class MetricSums:
    """Sums over labelled examples, from which the means are computed.

    Args:
        names: the metrics that are measured: :data:`PUBLISHED`, or :data:`EARLY` and with several trajectories
            :func:`selection_names`; the same in all processes.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._sums: Counter[str] = Counter()

    def add(self, sums: Mapping[str, float]) -> None:
        """Add the sums of a batch: each metric's, and ``count``."""
        self._sums.update(sums)

    def add_other_processes(self, device: torch.device) -> None:
        """Add the sums of all processes, if there are several; each must call this."""
        if dist.is_initialized():
            names = ("count", *self._names)
            values = torch.tensor([self._sums[name] for name in names], dtype=torch.float64, device=device)
            dist.all_reduce(values)
            self._sums = Counter(dict(zip(names, values.tolist())))

    def metrics(self, puzzles_per_second: float, arc_pass: dict[int, float] | None = None) -> Metrics:
        """The means."""
        count = self._sums["count"]
        means = {name: self._sums[name] / count if count else math.nan for name in self._names}
        selected = {name.removeprefix(_BY_RULE): means.pop(name) for name in self._names if name.startswith(_BY_RULE)}
        return Metrics(
            **means,
            selected=selected or None,
            count=int(count),
            puzzles_per_second=puzzles_per_second,
            arc_pass=arc_pass,
        )
