"""``hrm models``: the models that come with the package."""

import json
from typing import TYPE_CHECKING

from hrm.cli.options import Json

if TYPE_CHECKING:
    from hrm.models import Accuracy


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
    with_breadth = any(measured.breadth for card in shipped for measured in card.accuracy)
    table = Table("model", "held-out puzzles", "exact accuracy (95 %)", "halting early", "segments")
    if with_breadth:
        table.add_column("several trajectories")
    for card in shipped:
        for measured in card.accuracy:
            low, high = measured.interval(measured.exact_accuracy)
            table.add_row(
                card.name,
                f"{measured.count:,} {measured.puzzles}",
                f"{measured.exact_accuracy:.1%} ({100 * low:.1f} to {100 * high:.1f})",
                f"{measured.early_exact_accuracy:.1%}",
                f"{measured.early_steps:.2f} of {measured.steps}",
                *([_breadth(measured)] if with_breadth else []),
            )
    Console().print(table)
    for card in shipped:
        print(f"{card.name}: {card.puzzles}; {card.parameters:,} parameters, {card.size / 1e6:.2f} MB; {card.folder}")
        print(f'  hrm solve {card.name} "{card.example}" --trace')


def _breadth(measured: "Accuracy") -> str:
    """The accuracy with several trajectories, if it was measured."""
    found = measured.breadth
    return f"{found.exact_accuracy:.1%} of {found.trajectories}" if found else ""
