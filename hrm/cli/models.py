"""``hrm models``: the models that come with the package."""

import json

from hrm.cli.options import Json


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
    table = Table("model", "held-out puzzles", "exact accuracy", "halting early", "segments")
    for card in shipped:
        for measured in card.accuracy:
            table.add_row(
                card.name,
                f"{measured.count:,} {measured.puzzles}",
                f"{measured.exact_accuracy:.1%}",
                f"{measured.early_exact_accuracy:.1%}",
                f"{measured.early_steps:.2f} of {measured.steps}",
            )
    Console().print(table)
    for card in shipped:
        print(f"{card.name}: {card.puzzles}; {card.parameters:,} parameters, {card.size / 1e6:.2f} MB; {card.folder}")
        print(f'  hrm solve {card.name} "{card.example}" --halt calibrated --trace')
