"""The ``hrm`` command.

Each command is a function with typed arguments in a module of its own; this module registers all of them. They import
torch only when they run, so that ``hrm --help`` and wrong arguments are answered at once.
"""

import io
import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from hrm.cli import adapt, analyze, calibrate, data, doctor, eval, export, models, play, scale, solve, train
from hrm.cli.errors import flush_output, report


class _DataFirst(TyperGroup):
    """The commands in the order of their registration, but ``data`` before all others."""

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return sorted(self.commands, key=lambda name: name != "data")


app = typer.Typer(
    name="hrm",
    cls=_DataFirst,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",  # which wraps paragraphs
)


def _print_version(wanted: bool) -> None:
    if wanted:
        import hrm

        print(f"hrm {hrm.__version__}")
        raise typer.Exit()


@app.callback()
def hrm_command(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback with every error.")] = False,
) -> None:
    """Hierarchical reasoning models: build data, train, evaluate, solve puzzles.

    hrm COMMAND --help shows the options of a command. hrm --install-completion sets up completion in your shell.
    """


_BASICS, _MORE, _INFORMATION = "Train and solve", "Use a trained model further", "Information"

app.add_typer(data.app, name="data", rich_help_panel=_BASICS)
app.command(rich_help_panel=_BASICS)(train.train)
app.command("eval", rich_help_panel=_BASICS)(eval.evaluate)
app.command(rich_help_panel=_BASICS)(solve.solve)
app.command(rich_help_panel=_BASICS)(play.play)
app.command(rich_help_panel=_MORE)(calibrate.calibrate)
app.command(rich_help_panel=_MORE)(scale.scale)
app.command(rich_help_panel=_MORE)(adapt.adapt)
app.command(rich_help_panel=_MORE)(analyze.analyze)
app.command(rich_help_panel=_MORE)(export.export)
app.command(rich_help_panel=_INFORMATION)(models.models)
app.command(rich_help_panel=_INFORMATION)(doctor.doctor)


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # boards have characters that some terminals' encodings lack
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        code = app(arguments, prog_name="hrm", standalone_mode=False) or 0
        flush_output()
        sys.exit(code)
    except typer.Abort:  # Ctrl-C, in some versions of typer
        sys.exit(130)
    except Exception as error:
        if not report(error, arguments, debug):
            raise
        sys.exit(2)
