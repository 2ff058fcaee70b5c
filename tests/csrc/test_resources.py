"""What nvcc makes of each kernel for each target: registers, static shared memory, spills, held to a committed table.

``python tests/csrc/test_resources.py`` writes the table, after a change that is meant.
"""

import concurrent.futures
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "tests" / "data" / "cuda_resources.tsv"
TARGETS = ["80", "86", "89", "90a", "100a", "120"]
COLUMNS = "kernel\ttarget\tregisters\tshared\tspills"


def release():
    text = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    return re.search(r"V([\d.]+)", text)[1]


def compiled(source, target):
    """Rows of the table for the kernels of a file."""
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


def every():
    jobs = [(source, target) for source in sorted((ROOT / "csrc" / "cuda").glob("*.cu")) for target in TARGETS]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return [row for rows in pool.map(lambda job: compiled(*job), jobs) for row in sorted(rows)]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_resources():
    made, header, *rows = TABLE.read_text().splitlines()
    now = every()
    assert header == COLUMNS
    assert not [row for row in now if not row.endswith("\t0")], "spills"
    if made.endswith(f"nvcc {release()}"):
        assert now == rows, "resources have changed; if that is meant, write the table again"
    else:  # another compiler has other numbers for the same kernels
        assert [row.split("\t")[:2] for row in now] == [row.split("\t")[:2] for row in rows]


def test_table_covers_every_kernel_and_target_without_spills():
    rows = [row.split("\t") for row in TABLE.read_text().splitlines()[2:]]
    sources = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    kernels = set(re.findall(r"__global__ void (?:__launch_bounds__\([^)]*\) )?(\w+)\(", sources))
    for kernel in kernels:
        targets = {row[1] for row in rows if re.search(rf"\b{kernel}\b", row[0])}
        assert targets == set(TARGETS), kernel
    assert all(row[4] == "0" for row in rows)


if __name__ == "__main__":
    lines = [f"# python tests/csrc/test_resources.py, with nvcc {release()}", COLUMNS, *every()]
    TABLE.with_suffix(".new").write_text("\n".join(lines) + "\n")
    TABLE.with_suffix(".new").replace(TABLE)
