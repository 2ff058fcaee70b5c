"""Errors of the command line: one line on stderr and exit code 2 if the user can act on them."""

import errno
import os
import sys
import traceback
from collections.abc import Sequence

from hrm.cli.old_spellings import new_spelling
from hrm.errors import InputError, printable
from hrm.files import discard


def report(error: Exception, arguments: Sequence[str], debug: bool) -> bool:
    """Print ``error`` in one line on stderr, or its traceback if ``debug``.

    Args:
        error: what a command raised.
        arguments: of the command line.
        debug: print a traceback instead.

    Returns:
        Whether the user can act on the error (a wrong option, :class:`InputError`, a file that cannot be read or
        written). Nothing is printed of other errors.
    """
    message = _one_line(error, arguments)
    if message is None:
        return False
    if message and debug:
        traceback.print_exception(error)
    elif message and _is_first_to_report(message):
        sys.stderr.write(f"hrm: {printable(message)}\n")  # one write: other processes may write as well
    return True


def flush_output() -> None:
    """Flush stdout while an error can still be reported."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        discard(sys.stdout)
        if error.errno == errno.EPIPE:  # the reader has closed the pipe: typer exits with 1 as well
            sys.exit(1)
        raise OSError(error.errno, error.strerror, "standard output") from None


def _one_line(error: Exception, arguments: Sequence[str]) -> str | None:
    """The message for the user; None for a bug; empty if typer has printed the help instead."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, OSError) and error.errno != errno.EPIPE:
        path, reason = error.filename2 or error.filename, error.strerror or " ".join(str(error).split())
        if isinstance(error, FileExistsError | NotADirectoryError):
            reason = "a file, where a folder is needed"
        return f"{path}: {reason}; choose another path, or make this one usable" if path else reason
    if hasattr(error, "format_message"):  # a usage error, of click's class or typer's, depending on typer's version
        new = new_spelling(arguments)
        if new is not None:
            return f"this is the spelling of an earlier version; type: {new}"
        message, context = " ".join(error.format_message().split()), getattr(error, "ctx", None)
        see_help = f"; see {context.command_path} --help" if context is not None and message else ""
        return message.removesuffix(".") + see_help
    return None


def _is_first_to_report(message: str) -> bool:
    """Whether this process reports ``message``: under torchrun, the first process that meets the error does."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return True
    from hrm.training.distributed import is_first_to_say

    return is_first_to_say(message)
