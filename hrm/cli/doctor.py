"""``hrm doctor``: what this machine has, which backends run on it, and why others don't."""

from typing import Annotated

import typer

from hrm.cli import app


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False) -> None:
    """Show versions, devices, compilers, backends and why others are missing; exit 1 where a self-test fails."""
    from hrm_kernels.doctor import main

    raise typer.Exit(main(["--json"] if as_json else []))
