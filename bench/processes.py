"""Run a program in a new process that imports bench and the packages from this clone."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment() -> dict[str, str]:
    """The current environment, with this clone first on the path of Python."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run the command in the clone's folder and capture its output."""
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)


def error_of(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a failed process wrote to standard error."""
    return done.stderr.strip().splitlines()[-1]
