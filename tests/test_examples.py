"""The examples run, and reach what they assert themselves."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "adam_atan2": "points right",
    "custom_task": "of 100",
    "fixed_point_cell": "places right",
    "patch_a_model": "level: reasoning_module",
}


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_example(name):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert SAYS[name] in done.stdout + done.stderr


def test_a_task_takes_less_than_60_lines():
    assert len((EXAMPLES / "custom_task.py").read_text().splitlines()) < 60
