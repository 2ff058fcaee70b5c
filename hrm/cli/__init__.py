"""The ``hrm`` command: one module a subcommand, each a function with typed arguments (typer).

What the user can act on (a wrong option, ``InputError``, a file that cannot be read or written) becomes one line on
stderr and exit code 2; ``--debug`` shows the traceback instead.
"""

import errno
import io
import os
import sys
import traceback

import typer

from hrm.errors import InputError, printable
from hrm.files import discard

app = typer.Typer(
    name="hrm",
    help="Hierarchical reasoning models: build data, train, evaluate, solve. With --debug errors show a traceback.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # boards have characters that not every terminal's encoding has
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    from hrm.cli import commands  # noqa: F401  (registers the subcommands on app)

    try:
        code = app(arguments, prog_name="hrm", standalone_mode=False) or 0
        _flush()
        sys.exit(code)
    except typer.Abort:  # Ctrl-C, in some versions of typer
        sys.exit(130)
    except Exception as error:
        message = _one_line(error)
        if message is None:
            raise
        if message and debug:
            traceback.print_exc()
        elif message and _is_told_here(message):
            sys.stderr.write(f"hrm: {printable(message)}\n")  # in one piece: other processes may write as well
        sys.exit(2)


def _flush() -> None:
    """Write what has been printed, in whose place an error can still be told."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if error.errno == errno.EPIPE:  # its reader wants no more: typer's exit code for that
            sys.exit(1)
        raise OSError(error.errno, error.strerror, "standard output") from None


def _one_line(error: Exception) -> str | None:
    """What to tell the user; None of an error that is ours, and empty where typer has printed the help instead."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        path, reason = error.filename2 or error.filename, error.strerror or " ".join(str(error).split())
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file, where a folder is needed"
        return f"{path}: {reason}; choose another path, or make this one usable" if path else reason
    # A usage error. Its class is click's or typer's own, depending on the version of typer.
    if hasattr(error, "format_message"):
        message, context = " ".join(error.format_message().split()), getattr(error, "ctx", None)
        help_of = f"; see {context.command_path} --help" if context is not None and message else ""
        return message.removesuffix(".") + help_of
    return None


def _is_told_here(message: str) -> bool:
    """Whether this process is the one to tell ``message``: under torchrun the first that meets an error does."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    from hrm.training.distributed import is_first_to_say

    return is_first_to_say(message)
