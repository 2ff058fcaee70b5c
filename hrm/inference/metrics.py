"""The metrics of an evaluation: sums over rows and processes, their means, and how they are shown."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
import torch.distributed as dist

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

    def as_dict(self) -> dict[str, float]:
        """The measured metrics by name, as they stand in ``metrics.json`` and logs: ``ARC/pass@K`` for ``arc_pass``."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "arc_pass"}
        measured = {name: float(value) for name, value in values.items() if value is not None}
        return measured | {f"ARC/pass@{k}": share for k, share in (self.arc_pass or {}).items()}

    def json_values(self) -> dict[str, float | None]:
        """:meth:`as_dict` as JSON has it: None for NaN."""
        return {name: None if math.isnan(value) else value for name, value in self.as_dict().items()}

    def table(self) -> list[tuple[str, str, str]]:
        """Rows (description, name, formatted value) for a reader; ``-`` stands for NaN."""
        rows = []
        for name, value in self.as_dict().items():
            description, style = _SHOWN.get(name, (name, "{:.2%}"))
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
"""For each metric its description and format; ``ARC/pass@K`` describes itself."""

EARLY = ("exact_accuracy", "accuracy", "q_halt_accuracy", "steps")
"""The means of an evaluation where examples halt early."""
PUBLISHED = (*EARLY, "lm_loss", "early_exact_accuracy", "early_steps")
"""The means of the published evaluation."""


class MetricSums:
    """Sums over labelled examples, from which the means are computed.

    Args:
        names: the metrics that are measured: :data:`PUBLISHED` or :data:`EARLY`, the same in all processes.
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
        return Metrics(**means, count=int(count), puzzles_per_second=puzzles_per_second, arc_pass=arc_pass)
