"""Imports every subcommand, which registers itself on the app. Each keeps heavy imports inside its function."""

from hrm.cli import adapt  # noqa: F401
from hrm.cli import analyze  # noqa: F401
from hrm.cli import calibrate  # noqa: F401
from hrm.cli import data  # noqa: F401
from hrm.cli import data_arc  # noqa: F401
from hrm.cli import doctor  # noqa: F401
from hrm.cli import eval  # noqa: F401
from hrm.cli import models  # noqa: F401
from hrm.cli import solve  # noqa: F401
from hrm.cli import train  # noqa: F401
