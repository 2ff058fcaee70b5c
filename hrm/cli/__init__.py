"""The ``hrm`` command: one module a subcommand, each a function with typed arguments (typer).

``InputError`` becomes one line on stderr and exit code 2; ``--debug`` shows the traceback.
"""

import sys

import typer

from hrm.errors import InputError

app = typer.Typer(
    name="hrm",
    help="Hierarchical reasoning models: build data, train, evaluate, solve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    from hrm.cli import commands  # noqa: F401  (registers the subcommands on app)

    try:
        app(arguments, prog_name="hrm")
    except InputError as error:
        if debug:
            raise
        print(f"hrm: {error}", file=sys.stderr)
        sys.exit(2)
