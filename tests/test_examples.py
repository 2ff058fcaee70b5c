"""The examples run, reach the accuracy that they assert, and need public names only."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import hrm

EXAMPLES = Path(__file__).parent.parent / "examples"
PRINTS = {
    "adam_atan2": "accuracy: ",
    "custom_task": "of 100",
    "fixed_point_cell": "accuracy: ",
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
    assert PRINTS[name] in done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_public_names_are_enough(path):
    text = path.read_text()
    assert set(re.findall(r"^(?:from|import) (hrm\b\S*)", text, re.M)) <= {"hrm"}
    assert set(re.findall(r"\bhrm\.(\w+)", text)) <= set(hrm.__all__)
    assert set(re.findall(r"^from (hrm_kernels\S*) import", text, re.M)) <= {
        "hrm_kernels",
        "hrm_kernels.fixed_point",
        "hrm_kernels.nn",
        "hrm_kernels.optim",
    }


def test_a_task_takes_less_than_60_lines():
    assert len((EXAMPLES / "custom_task.py").read_text().splitlines()) < 60
