"""Every public name says what it takes and gives; the pages build; the guide's code runs."""

import importlib
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
MODULES = (
    "hrm",
    "hrm_kernels",
    "hrm_kernels.casts",
    "hrm_kernels.fixed_point",
    "hrm_kernels.nn",
    "hrm_kernels.optim",
    "hrm_kernels.sharded_embedding",
    "hrm_kernels.shims",
)
NAMES = [f"{module}.{name}" for module in MODULES for name in importlib.import_module(module).__all__]
OPS = [name for name in importlib.import_module("hrm_kernels").__all__ if hasattr(torch.ops.hrm_kernels, name)]


def find(path):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("path", NAMES)
def test_every_public_name_has_a_docstring(path):
    value = find(path)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        pytest.skip("a constant or an alias: its comment stands below it")
    text = inspect.getdoc(value)
    assert text and len(text.splitlines()[0]) > 20, f"{path} has no docstring of its own"
    if inspect.isclass(value) and issubclass(value, torch.nn.Module) and not issubclass(value, torch.nn.Linear):
        everything = text + (inspect.getdoc(value.forward) or "")
        assert "[" in everything, f"{path} does not give the shapes of its forward"
    if inspect.isfunction(value) and not path.startswith("hrm_kernels.nn."):  # (small ones, told in a line)
        for name in inspect.signature(value).parameters:
            assert re.search(rf"\b{name}\b", text), f"{path} does not say what {name} is"


@pytest.mark.parametrize("op", OPS)
def test_every_op_gives_shapes_and_errors(op):
    text = inspect.getdoc(find(f"hrm_kernels.{op}"))
    for part in ("Args:", "Returns:", "Raises:", "``[", "TypeError, ValueError", "Source:"):
        assert part in text, f"{op} lacks {part}"


def test_the_ops_are_what_is_tested():
    assert {"swiglu", "token_mixing", "recurrent_cycles", "stablemax_cross_entropy"} <= set(OPS)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pdoc") is None, reason="pdoc is not installed: pip install hrm[docs]")
def test_the_pages_build(tmp_path):
    subprocess.run([sys.executable, ROOT / "docs" / "api.py", tmp_path], check=True, capture_output=True, text=True)
    page = (tmp_path / "hrm.html").read_text()
    assert "TRMConfig" in page and "hierarchical" in page.lower()
    page = (tmp_path / "hrm_kernels.html").read_text()
    assert all(f'id="{op}"' in page for op in OPS)


def test_the_code_of_the_guides_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    guides = list((ROOT / "docs").glob("*.md"))
    assert guides
    for path in guides:
        names = {}
        for block in re.findall(r"```python\n(.*?)```", path.read_text(), re.S):
            exec(compile(block, str(path), "exec"), names)  # one after the other, as a reader would
