"""``hrm models``: the models that come with the package."""

import json
from typing import Annotated

import typer

from hrm.cli import app


@app.command()
def models(as_json: Annotated[bool, typer.Option("--json", help="Print the cards as JSON.")] = False) -> None:
    """List the models that come with the package, and what they reach on held-out puzzles: hrm solve NAME PUZZLE."""
    from rich.console import Console
    from rich.table import Table

    from hrm.models import cards

    found = cards()
    if as_json:
        print(json.dumps([card.model_dump(mode="json") | {"bytes": card.size} for card in found]))
        return
    table = Table("name", "held-out puzzles", "all right", "halting early", "segments")
    for card in found:
        for one in card.accuracy:
            early = (f"{one.early_exact_accuracy:.1%}", f"{one.early_steps:.2f} of {one.steps}")
            table.add_row(card.name, f"{one.count:,} {one.puzzles}", f"{one.exact_accuracy:.1%}", *early)
    Console().print(table)
    for card in found:
        print(f"{card.name}: {card.puzzles}; {card.parameters:,} parameters, {card.size / 1e6:.2f} MB; {card.folder}")
        print(f'  hrm solve {card.name} "{card.example}" --halt calibrated --trace')
