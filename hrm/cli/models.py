"""``hrm models``: the models that come with the package."""

import json
from typing import TYPE_CHECKING

from hrm.cli.options import Json

if TYPE_CHECKING:
    from hrm.models import Accuracy

_ABOUT = (
    "Exact accuracy: every cell is right after all segments. Halting early: by the calibrated threshold, after so many "
    "segments on average. More segments: the same, but puzzles that have not halted go on. Attempts: up to so many at "
    "each puzzle, changed by symmetries; the task's check chooses (hrm solve --trajectories K --augment)."
)


def models(as_json: Json = False) -> None:
    """List the models that come with the package, with their accuracy on held-out puzzles.

    Solve a puzzle with one of them: hrm solve NAME PUZZLE.
    """
    from rich.console import Console
    from rich.table import Table

    from hrm.models import cards

    shipped = cards()
    if as_json:
        print(json.dumps([card.model_dump(mode="json") | {"bytes": card.size} for card in shipped]))
        return
    console = Console()
    for card in shipped:
        print(f"{card.name}: {card.puzzles}; {card.parameters:,} parameters, {card.size / 1e6:.2f} MB; {card.folder}")
        print(f'  hrm solve {card.name} "{card.example}" --trace')
        table = Table("held-out puzzles", "exact accuracy (95 %)", "halting early", "more segments", "attempts")
        for measured in card.accuracy:
            low, high = measured.interval(measured.exact_accuracy)
            table.add_row(
                f"{measured.count:,} {measured.puzzles}",
                f"{measured.exact_accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f})",
                f"{measured.early_exact_accuracy:.1%} by {measured.early_steps:.1f} of {measured.steps}",
                _longer(measured),
                _breadth(measured),
            )
        console.print(table)
        print()
    console.print(_ABOUT, highlight=False)


def _longer(measured: "Accuracy") -> str:
    """The accuracy with more segments than in training, if it was measured."""
    found = measured.longer
    return f"{found.exact_accuracy:.1%} by {found.segments}" if found else ""


def _breadth(measured: "Accuracy") -> str:
    """The accuracy with several trajectories, if it was measured."""
    found = measured.breadth
    return f"{found.exact_accuracy:.1%} of {found.trajectories}" if found else ""
