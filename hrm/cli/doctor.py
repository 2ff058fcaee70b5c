"""``hrm doctor``: what this machine has, which backends run on it, and why others do not."""

import typer

from hrm.cli.options import Json


def doctor(as_json: Json = False) -> None:
    """Show versions, devices, compilers and backends, and test them.

    Exit code 1: a self-test fails.
    """
    from hrm_kernels.doctor import main

    raise typer.Exit(main(["--json"] if as_json else []))
