"""Which module imports which: layers (``[tool.importlinter]`` in pyproject.toml), kernels, import circles, csrc.

Every import statement counts: inside a function and under TYPE_CHECKING, too. Nothing is imported here; the sources are
parsed.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hrm", "hrm_kernels", "bench")

KERNELS = re.compile(r"hrm_kernels\.ops\.(?P<op>\w+)\.(\w+_kernels|(triton|cuda|cpu)_\w+)")

PARTS = {
    "conv_cycles": {"rope_attention", "transformer_block"},
    "token_mixing": {"add_rms_norm", "swiglu"},
    "transformer_block": {"add_rms_norm", "rope_attention", "swiglu", "token_mixing"},
    "reasoning_module": {"add_rms_norm", "transformer_block"},
    "recurrent_cycles": {"reasoning_module", "rope_attention", "transformer_block"},
    "recurrent_segment": {"reasoning_module", "recurrent_cycles", "rope_attention", "transformer_block"},
}
"""The ops whose kernels an op may call: one launch sequence serves the whole op, without a dispatch for each part."""

Imports = Mapping[str, set[str]]


def imports_of(*packages: str) -> dict[str, set[str]]:
    """The modules that each module imports, itself left out."""
    graph = grimp.build_graph(*packages, cache_dir=None)
    return {module: graph.find_modules_directly_imported_by(module) - {module} for module in graph.modules}


def circle(imports: Imports) -> list[str] | None:
    """The modules of an import circle, the first one again at the end; None if there is none."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return None


def misplaced_kernel_imports(imports: Imports) -> list[str]:
    """Imports of kernels by hrm, or by an op of which the kernels' op is not a part."""
    wrong = []
    for importer, imported in imports.items():
        for kernels in filter(None, map(KERNELS.fullmatch, imported)):
            package, _, rest = importer.partition(".ops.")
            op = rest.partition(".")[0]
            if package.startswith("hrm.") or (op and kernels["op"] not in {op, *PARTS.get(op, ())}):
                wrong.append(f"{importer} -> {kernels[0]}")
    return sorted(wrong)


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Check the contracts in ``folder``'s pyproject.toml, in a process of its own: it puts its folder into sys.path."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


@pytest.fixture
def imports(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return imports_of(*PACKAGES)


def test_the_layers_hold():
    result = lint_imports(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


def test_there_is_no_import_circle(imports):
    assert circle(imports) is None


def test_kernels_are_imported_only_by_their_op_and_by_ops_composed_of_it(imports):
    assert misplaced_kernel_imports(imports) == []


def test_nothing_imports_the_tests():
    support = [path.stem for path in (ROOT / "tests" / "support").glob("*.py")]
    tests = re.compile(rf"^\s*(?:from|import)\s+(?:tests|{'|'.join(support)})\b", re.MULTILINE)
    assert tests.search("def late():\n    from tests.conftest import poisoned") and tests.search("import parity\n")
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert len(sources) > 100
    assert [path.relative_to(ROOT).as_posix() for path in sources if tests.search(path.read_text())] == []


def test_only_ffi_knows_python():
    python = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|Python\.h|pybind11|nanobind|tvm|dlpack|ffi)\b.*')
    sources = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in (".h", ".cpp", ".cu", ".cuh")]
    assert len(sources) > 20
    found = {path.relative_to(ROOT).as_posix(): python.findall(path.read_text()) for path in sources}
    assert [name for name, includes in found.items() if includes and not name.startswith("csrc/ffi/")] == []
    assert found["csrc/ffi/checks.h"]  # the pattern finds what is there


PLANTS = {
    "imports": {
        "hrm_kernels/backends.py": ("import hrm.config", "hrm_kernels.backends -> hrm.config"),
        "hrm/model.py": ("from bench import conftest", "hrm.model -> bench.conftest"),
        "hrm/data/task.py": ("from hrm.model import HRM", "hrm.data.task -> hrm.model"),
        "hrm/inference/solve.py": (
            "def late():\n    import hrm.training.trainer",
            "hrm.inference.solve -> hrm.training.trainer",
        ),
        "hrm/errors.py": ("import hrm.files", "hrm.errors -> hrm.files"),
    },
    "module": {"hrm/planted.py": ("", "- hrm.planted")},
}
"""By kind: of a file, the lines to add and the words of the report."""


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_violations_of_the_layers_are_found(kind, tmp_path):
    for package in PACKAGES:
        for source in (ROOT / package).rglob("*.py"):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, (lines, _) in PLANTS[kind].items():
        with open(tmp_path / file, "a") as planted:
            planted.write(f"\n{lines}\n")
    result = lint_imports(tmp_path)
    assert result.returncode == 1
    assert [words for _, words in PLANTS[kind].values() if words not in result.stdout] == [], result.stdout


@pytest.mark.parametrize(
    "line",
    [
        "from planted_circle import first",
        "def late():\n    from planted_circle.first import name",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import planted_circle.first",
    ],
    ids=["at the top", "in a function", "for types"],
)
def test_a_planted_circle_is_found(line, tmp_path, monkeypatch):
    folder = tmp_path / "planted_circle"
    folder.mkdir()
    for name, text in {
        "__init__": "",
        "first": "from planted_circle import second",
        "second": "from planted_circle.third import x",
    }.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    (folder / "third.py").write_text("")
    assert circle(imports_of("planted_circle")) is None
    (folder / "third.py").write_text(line)
    found = circle(imports_of("planted_circle"))
    assert found and found[0] == found[-1]
    assert set(found) == {f"planted_circle.{name}" for name in ("first", "second", "third")}


def test_planted_imports_of_kernels_are_found():
    ops = "hrm_kernels.ops"
    allowed = {
        f"{ops}.swiglu": {f"{ops}.swiglu.triton_kernels"},
        f"{ops}.transformer_block.triton_block": {f"{ops}.swiglu.triton_kernels", f"{ops}.linear"},
        "hrm_kernels.tuning.__main__": {f"{ops}.transformer_block.triton_block"},
        "bench.turns": {f"{ops}.swiglu.cpu_kernels"},
        "hrm.model": {ops, f"{ops}.reasoning_module.first_position"},
    }
    assert misplaced_kernel_imports(allowed) == []
    planted = {
        "hrm.model": {f"{ops}.swiglu.triton_kernels"},
        "hrm.inference.engine.batch": {f"{ops}.transformer_block.cpu_block"},
        f"{ops}.swiglu.reference": {f"{ops}.transformer_block.triton_block"},
        f"{ops}.linear": {f"{ops}.swiglu.cuda_products"},
    }
    assert misplaced_kernel_imports(planted) == sorted(
        f"{importer} -> {kernels}" for importer, imported in planted.items() for kernels in imported
    )
