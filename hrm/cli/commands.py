"""Imports every subcommand, which registers itself on the app. Each keeps heavy imports inside its function."""

from hrm.cli import data  # noqa: F401
from hrm.cli import data_arc  # noqa: F401
from hrm.cli import doctor  # noqa: F401
from hrm.cli import eval  # noqa: F401
from hrm.cli import solve  # noqa: F401
from hrm.cli import train  # noqa: F401
