"""Errors a user can act on."""


class InputError(ValueError):
    """Something the user gave does not fit: the message says what came, what was expected and the way out.

    The command line prints the message alone and exits with 2; a traceback comes only with ``--debug``.
    """
