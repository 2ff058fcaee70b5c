"""Compare registers, static shared memory and spills of each kernel for each target with a committed table.

``python tests/csrc/test_resources.py`` writes the table after an intended change, with a hash of the sources, so that a
test detects an outdated table without compiling.
"""

import concurrent.futures
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from hrm_kernels.tuning.ahead_of_time import digest

ROOT = Path(__file__).parents[2]
CUDA = ROOT / "csrc" / "cuda"
TABLE = ROOT / "tests" / "data" / "cuda_resources.tsv"
TARGETS = ["80", "86", "89", "90a", "100a", "120"]
COLUMNS = "kernel\ttarget\tregisters\tshared\tspills"


def release():
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def compiled(source, target):
    """Compile a file; returns the table's rows of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["nvcc", "-std=c++17", "-O3", "-cubin", "-Werror=all-warnings", "-Xptxas=-v", f"-arch=sm_{target}"]
        result = subprocess.run(
            [*command, "-I", ROOT / "csrc", source, "-o", Path(folder, "cubin")], capture_output=True, text=True
        )
    assert result.returncode == 0, result.stderr
    names = re.findall(r"Compiling entry function '(\S+)'", result.stderr)
    demangled = subprocess.run(["c++filt", *names], capture_output=True, text=True, check=True).stdout.splitlines()
    rows = []
    for name, text in zip(demangled, result.stderr.split("Compiling entry function")[1:], strict=True):
        spills = sum(int(size) for size in re.findall(r"(\d+) bytes spill", text))
        shared = re.search(r"(\d+) bytes smem", text)
        kernel = re.sub(r"^void |\(int\)|\([^()]*\)$|hrm::", "", name)
        registers = re.search(r"Used (\d+) registers", text)[1]
        rows.append(f"{kernel}\t{target}\t{registers}\t{shared[1] if shared else 0}\t{spills}")
    return rows


def sources():
    """``# from`` and a hash of all sources that nvcc reads."""
    return f"# from {digest(*sorted(path for path in CUDA.iterdir() if path.suffix in ('.cu', '.cuh', '.h')))}"


def every():
    jobs = [(source, target) for source in sorted(CUDA.glob("*.cu")) for target in TARGETS]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [row for rows in pool.map(lambda job: compiled(*job), jobs) for row in sorted(rows)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_resources():
    made, _, header, *rows = TABLE.read_text().splitlines()
    now = every()
    assert header == COLUMNS
    assert not [row for row in now if not row.endswith("\t0")], "spills"
    if made.endswith(f"nvcc {release()}"):
        assert now == rows, "resources have changed; if this is intended, write the table again"
    else:  # other compiler versions give other numbers for the same kernels
        assert [row.split("\t")[:2] for row in now] == [row.split("\t")[:2] for row in rows]


def test_the_table_matches_the_sources():
    assert TABLE.read_text().splitlines()[1] == sources(), (
        "csrc/cuda has changed since tests/data/cuda_resources.tsv was written, so spills are unknown; "
        "with nvcc on the path: python tests/csrc/test_resources.py"
    )


def test_table_covers_every_kernel_and_target_without_spills():
    rows = [row.split("\t") for row in TABLE.read_text().splitlines()[3:]]
    text = "".join(path.read_text() for path in CUDA.glob("*.cu"))
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\(", text))
    for kernel in kernels:
        targets = {row[1] for row in rows if re.search(rf"\b{kernel}\b", row[0])}
        assert targets == set(TARGETS), kernel
    assert all(row[4] == "0" for row in rows)


if __name__ == "__main__":
    lines = [f"# python tests/csrc/test_resources.py, with nvcc {release()}", sources(), COLUMNS, *every()]
    TABLE.with_suffix(".new").write_text("\n".join(lines) + "\n")
    TABLE.with_suffix(".new").replace(TABLE)
