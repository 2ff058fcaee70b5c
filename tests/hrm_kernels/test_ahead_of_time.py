"""The ahead-of-time gate passes on this tree and reports every kind of fault."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hrm_kernels.tuning.ahead_of_time import TABLE, TARGETS, digest, kernel_files, read_table

triton = pytest.importorskip("triton")
HERE = Path(__file__).parent
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"
}  # the interpreter compiles nothing
GATE = "hrm_kernels.tuning.ahead_of_time"

RUN_TOYS = """
import contextlib, io, json, sys
from pathlib import Path
import toy_kernels
from hrm_kernels.tuning import ahead_of_time

def run(group, *arguments):
    cases = lambda patterns: ((f"toy.{case.kernel.__name__}", case) for case in getattr(toy_kernels, group)())
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = ahead_of_time.main(arguments, cases, Path(sys.argv[1]))
    return code, out.getvalue()

for group, *arguments in json.loads(sys.argv[2]):
    print(json.dumps(run(group, *arguments)))
"""


def toys(table, *runs):
    """Run the gate on groups of toy_kernels.py in one process; returns exit codes and outputs."""
    command = [sys.executable, "-c", RUN_TOYS, str(table), json.dumps(runs)]
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    done = subprocess.run(command, env=ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def gate(*arguments):
    done = subprocess.run([sys.executable, "-m", GATE, *arguments], env=ENVIRONMENT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_first_case_of_each_kernel():
    """Of products in 8 bits only one: they are the kernels of other products, and the slow test compiles all."""
    names = [f"{name}.*" for name in kernel_files() if not name.endswith("eight_bit")]
    names += [f"*_eight_bit.{kernel}" for kernel in ("quantize_kernel", "norm_quantize_kernel", "linear_kernel")]
    code, output = gate("--first", "--targets", "80", "90", "120", "gfx942", "--kernels", *names)
    assert code == 0, output


@pytest.mark.slow
def test_every_case_on_every_target():
    code, output = gate()
    assert code == 0, output


def test_the_gate_reports_every_kind_of_fault(tmp_path):
    targets = ("--targets", "80", "90", "gfx942")
    spills, shared, cores, compiling, threads = toys(
        tmp_path / "table.tsv",
        ("spills", "--write", "--targets", "80"),
        ("too_much_shared", "--write", *targets),
        ("no_tensor_cores", "--write", *targets),
        ("not_compiling", "--write", "--targets", "80"),
        ("too_many_threads", "--write"),
    )
    assert {code for code, _ in (spills, shared, cores, compiling, threads)} == {1}
    assert "toy.many_values (*fp32 *fp32; BLOCK=32768; 4 warps, 2 stages) on 80: spills: " in spills[1]
    for target, has in ("80", 166912), ("90", 232448), ("gfx942", 65536):
        needs = 131072 if target == "gfx942" else 262144  # both operands of 128 KB; AMD keeps one in registers
        if triton.__version__ == "3.6.0":
            assert f"on {target}: needs {needs} bytes of shared memory, the target has {has}" in shared[1]
        assert f" bytes of shared memory, the target has {has}" in shared[1]
    assert "on gfx942: spills: " in shared[1]
    for target in "80", "90":  # AMD's matrix units take float32
        assert f"on {target}: does not use tensor cores, although it must" in cores[1]
    assert "gfx942" not in cores[1]
    assert "does not compile" in compiling[1] and "power of 2" in compiling[1]
    assert "has more than 1024 threads: 32 warps" in threads[1]


@pytest.mark.slow
def test_the_table_is_compared(tmp_path):
    path = tmp_path / "table.tsv"
    (code, output), again = toys(path, ("fine", "--write"), ("fine",))
    assert code == 0 and "wrote 5 rows" in output and again[0] == 0, (output, again)
    version, sources, table = read_table(path)
    assert sources == {"toy": digest(HERE / "toy_kernels.py")}
    rows = {(key.kernel, key.arguments, key.target): resources for key, resources in table.items()}
    assert version == triton.__version__
    assert all(row.tensor_core and not row.spills for key, row in table.items() if key.kernel == "toy.product")
    aligned, unaligned = rows["toy.copy", "*bf16 *bf16 i32", "80"], rows["toy.copy", "*bf16~ *bf16 i32~", "80"]
    assert aligned != unaligned and not aligned.tensor_core  # different code: loads of 16 bytes and of 2

    lines = path.read_text().splitlines()
    changed = [line for line in lines if "toy.copy" in line and "\t80\t" in line][0]
    fields = changed.split("\t")
    fields[6] = "255"
    path.write_text("\n".join(lines).replace(changed, "\t".join(fields)) + "\n")
    (code, output), (other, _), _, rewritten = toys(
        path, ("fine",), ("fine", "--kernels", "toy.product"), ("fine", "--write", "--targets", "80"), ("fine",)
    )
    assert code == 1 and "-" + "\t".join(fields) in output and "+" + changed in output and "toy.product" not in output
    assert other == 0, "the requested part of the table is unchanged"
    assert rewritten[0] == 0 and path.read_text().splitlines() == lines

    path.write_text(
        "\n".join(lines).replace(sources["toy"], "old") + "\n"
    )  # stays until the whole op package is compiled again
    toys(path, ("fine", "--write", "--targets", "80"))
    assert read_table(path)[1] == {"toy": "old"}
    toys(path, ("fine", "--write"))
    assert path.read_text().splitlines() == lines

    path.write_text("\n".join(lines[:-1]) + "\n")  # a missing row is reported, whether its case was compiled or not
    (code, output), (partial, partial_output) = toys(path, ("fine",), ("fine", "--targets", "80"))
    assert code == 1 and "+" + lines[-1] in output
    assert partial == 1 and "toy.product: 1 of its cases are not in the table" in partial_output

    path.write_text("\n".join(lines).replace(triton.__version__, "3.5.0").replace(changed, "\t".join(fields)) + "\n")
    ((code, output),) = toys(path, ("fine",))
    assert code == 0 and "only the rules were checked" in output


def test_the_committed_table_matches_the_sources():
    version, sources, _ = read_table(TABLE)
    files = kernel_files()
    assert sources.keys() == files.keys()
    changed = " ".join(f"'{op}.*'" for op, paths in files.items() if digest(*paths) != sources[op])
    assert not changed, (
        f"changed since {TABLE.name} was written, so their spills are unknown: {changed}; with Triton {version}: "
        f"python -m {GATE} --write --kernels {changed}"
    )


def test_the_committed_table_follows_the_rules():
    version, _, table = read_table(TABLE)
    assert version == "3.6.0" and table
    assert not [key for key, row in table.items() if row.spills]
    assert {key.target for key in table} == set(TARGETS)


def test_interpreter_is_refused():
    command = [sys.executable, "-m", GATE, "--first"]
    done = subprocess.run(command, env=ENVIRONMENT | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 2 and "unset it" in done.stderr


def test_a_compiler_crash_affects_one_case(tmp_path):
    program = """
import os, sys
from pathlib import Path
from hrm_kernels.tuning import ahead_of_time
import toy_kernels
compile_case = ahead_of_time.compile_case
ahead_of_time.compile_case = lambda case, target: os.abort() if target == "90" else compile_case(case, target)
case = toy_kernels.Case(toy_kernels.copy, {"x": "*fp32", "y": "*fp32", "n": "i32"}, {"BLOCK": 64})
arguments = ["--write", "--targets", "80", "90"]
sys.exit(ahead_of_time.main(arguments, lambda patterns: [("toy.copy", case)], Path(sys.argv[1])))
"""
    path = os.pathsep.join([str(HERE), str(HERE.parents[1])])
    command = [sys.executable, "-c", program, str(tmp_path / "table.tsv")]
    done = subprocess.run(command, env=ENVIRONMENT | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 1 and "on 90: does not compile: the compiler crashed" in done.stdout, done.stderr
    assert "on 80" not in done.stdout and "wrote 1 rows" in done.stdout
