"""Compile every Triton kernel ahead of time, for every target, without a GPU.

``python -m hrm_kernels.tuning.ahead_of_time`` compiles the ``triton_kernels.cases()`` of all op packages, and fails if
a kernel does not compile, exceeds a target's shared memory, spills, or has a matrix product without tensor cores.
It compares registers, shared memory, spills and tensor-core instructions with the committed table
(``tests/data/triton_resources.tsv``); ``--write`` writes that table. The numbers belong to the Triton version in the
table's first line; another version only checks the rules. The second line has a hash of each op package's
``triton_kernels.py``, so that a test detects an outdated table without compiling.
"""

import argparse
import fnmatch
import hashlib
import importlib
import inspect
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}

KIB = 1024
SHARED = {"80": 163 * KIB, "86": 99 * KIB, "89": 99 * KIB, "90": 227 * KIB, "100": 227 * KIB, "120": 99 * KIB} | {
    "gfx942": 64 * KIB
}
"""Shared memory that a program may use, in bytes, by target: compute capability (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability") or AMD architecture (LDS of a workgroup). The compiler does not check it."""

TARGETS = tuple(SHARED)
TABLE = Path(__file__).parents[2] / "tests" / "data" / "triton_resources.tsv"
OP_PACKAGES = Path(__file__).parents[1] / "ops"


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a dtype in Triton's signatures."""
    return _NAMES[dtype]


@dataclass(frozen=True)
class Case:
    """One kernel with one launch configuration.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: types of the arguments that are not constants, by name ("*bf16", "i32", "fp32"). Pointers and
            integers are compiled as divisible by 16, as in launches with aligned tensors of the published sizes.
        constants: values of the ``tl.constexpr`` arguments; arguments with a default are optional.
        num_warps, num_stages: of the launch.
        matrix: the kernel must use tensor cores.
        targets: the targets of this configuration (among ``TARGETS``).
        unaligned: integers and pointers that are not divisible by 16 in launches (for example S = 81).
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2
    matrix: bool = False
    targets: tuple[str, ...] = TARGETS
    unaligned: tuple[str, ...] = ()


class Key(NamedTuple):
    """A compiled configuration: the first columns of the table."""

    kernel: str
    arguments: str
    constants: str
    warps: int
    stages: int
    target: str


class Resources(NamedTuple):
    """The result of compiling: registers per thread, shared memory in bytes, instructions in the listing."""

    registers: int
    shared: int
    spills: int
    tensor_core: int


class Job(NamedTuple):
    case: Case
    key: Key


COLUMNS = (*Key._fields, *Resources._fields)

_SPILL = re.compile(r"\b(?:LDL|STL)\b|\bscratch_(?:load|store)")
# whole mnemonics only: HFMA2.MMA loads constants on sm_80
_TENSOR_CORE = re.compile(r"(?<![\w.])(?:[A-Z]G?MMA|UTC[A-Z]*MMA)\b|\bv_(?:mfma|smfmac|wmma)_")


def kernel_files() -> dict[str, tuple[Path, ...]]:
    """The files that cases follow from, by name: first the one that has ``cases()``, then others with its kernels.

    The name of a ``triton_kernels.py`` is that of its op package.
    """
    files: dict[str, tuple[Path, ...]] = {
        file.parent.name: (file,) for file in sorted(OP_PACKAGES.glob("*/triton_kernels.py"))
    }
    for kind in ("persistent", "eight_bit"):
        for file in sorted(OP_PACKAGES.glob(f"*/triton_{kind}.py")):
            files[f"{file.parent.name}_{kind}"] = (file,)
    block = OP_PACKAGES / "transformer_block"
    files["transformer_block_eight_bit"] += (block / "triton_kernels.py", block / "triton_persistent.py")
    return files


def collect(patterns: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """Yield the cases of files whose name matches a pattern, with the kernel's name ("swiglu.forward_kernel")."""
    for name, (file, *_) in kernel_files().items():
        if any(fnmatch.fnmatch(name, pattern.partition(".")[0]) for pattern in patterns):
            for case in importlib.import_module(f"hrm_kernels.ops.{file.parent.name}.{file.stem}").cases():
                yield f"{name}.{case.kernel.__name__}", case


def _source(case: Case, target: str) -> Any:
    """Return the compiler's input, specialised as in a launch."""
    from triton import knobs
    from triton.compiler import ASTSource

    constants = {p.name: p.default for p in case.kernel.params if p.has_default and p.name not in case.signature}
    constants |= case.constants
    signature, attributes = {}, {}
    for index, parameter in enumerate(case.kernel.params):
        name = parameter.name
        if name not in constants and name not in case.signature:
            raise ValueError(f"the case has neither a type nor a value for argument {name!r}")
        kind = signature[name] = "constexpr" if name in constants else case.signature[name]
        pointer = kind.startswith("*")
        specialized = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if (pointer or re.fullmatch(r"[iu](8|16|32|64)", kind)) and specialized and name not in case.unaligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
        if pointer and target.startswith("gfx") and knobs.amd.use_buffer_ops:  # as for tensors smaller than 2 GB
            attributes.setdefault((index,), []).append(["tt.pointer_range", 32])
    unknown = (case.signature.keys() | constants.keys()) - signature.keys()
    if unknown:
        raise ValueError(f"the kernel has no argument {', '.join(sorted(unknown))}")
    return ASTSource(case.kernel, signature, constants, attributes)


def build(case: Case, target: str) -> Any:
    """Compile for one of ``TARGETS``, and return Triton's compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget

    return triton.compile(
        _source(case, target),
        target=GPUTarget("hip", target, 64) if target.startswith("gfx") else GPUTarget("cuda", int(target), 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True},
    )


def compile_case(case: Case, target: str) -> Resources:
    """Compile for one of ``TARGETS`` and read the resources from the binary."""
    compiled, amd = build(case, target), target.startswith("gfx")
    shared = compiled.metadata.shared
    return _amd(compiled.asm["amdgcn"], shared) if amd else _nvidia(compiled.asm["cubin"], shared, case.matrix)


def _nvidia(cubin: bytes, shared: int, matrix: bool) -> Resources:
    from triton import knobs

    def dump(option: str) -> str:
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", dump("-res-usage"))}
        # Listing takes longer than compiling, and a kernel without a stack cannot spill.
        listing = dump("-sass") if matrix or usage["STACK"] or usage["LOCAL"] else ""
    return Resources(usage["REG"], shared, len(_SPILL.findall(listing)), len(_TENSOR_CORE.findall(listing)))


def _amd(assembly: str, shared: int) -> Resources:
    """Read the resources of AMD assembly; ``vgpr_count`` includes accumulation registers."""
    (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", assembly)
    return Resources(int(registers), shared, len(_SPILL.findall(assembly)), len(_TENSOR_CORE.findall(assembly)))


def faults(case: Case, key: Key, resources: Resources) -> list[str]:
    """Return the rules that a compiled case breaks."""
    broken = []
    if resources.shared > SHARED[key.target]:
        broken.append(f"needs {resources.shared} bytes of shared memory, the target has {SHARED[key.target]}")
    if resources.spills:
        broken.append(f"spills: {resources.spills} loads and stores of local memory")
    if case.matrix and not resources.tensor_core:
        broken.append("does not use tensor cores, although it must")
    if case.num_warps * (64 if key.target.startswith("gfx") else 32) > 1024:
        broken.append(f"has more than 1024 threads: {case.num_warps} warps")
    return broken


def _key(kernel: str, case: Case, target: str) -> Key:
    types = (
        case.signature[name] + ("~" if name in case.unaligned else "")
        for name in case.kernel.arg_names
        if name in case.signature
    )
    constants = (f"{name}={case.constants[name]}" for name in case.kernel.arg_names if name in case.constants)
    return Key(kernel, " ".join(types), " ".join(constants), case.num_warps, case.num_stages, target)


def _order(key: Key) -> tuple[Any, ...]:
    """Sort key with numbers by value, so that similar configurations are adjacent."""
    numbers = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key.constants)]
    return key.kernel, key.arguments, numbers, key.warps, key.stages, TARGETS.index(key.target)


def digest(*files: Path) -> str:
    """Hash the contents of files, to detect outdated tables."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _op(key: Key) -> str:
    return key.kernel.partition(".")[0]


def read_table(path: Path) -> tuple[str, dict[str, str], dict[Key, Resources]]:
    """Return the Triton version, the digests of the sources by op package, and the rows of a table."""
    first, second, _, *lines = path.read_text().splitlines()
    table = {}
    for line in lines:
        kernel, arguments, constants, warps, stages, target, *numbers = line.split("\t")
        table[Key(kernel, arguments, constants, int(warps), int(stages), target)] = Resources(*map(int, numbers))
    return first.split()[-1], dict(part.split("=") for part in second.split()[2:]), table


def write_table(path: Path, version: str, sources: Mapping[str, str], table: Mapping[Key, Resources]) -> None:
    ops = {_op(key) for key in table}
    lines = [
        f"# python -m hrm_kernels.tuning.ahead_of_time --write, with Triton {version}",
        " ".join(["# from", *(f"{op}={sources.get(op, '?')}" for op in sorted(ops))]),
        "\t".join(COLUMNS),
    ]
    lines += [_line(key, table[key]) for key in sorted(table, key=_order)]
    path.write_text("\n".join(lines) + "\n")


def _line(key: Key, resources: Resources) -> str:
    return "\t".join(map(str, (*key, *resources)))


_jobs: list[Job] = []  # worker processes are forked, because kernels cannot be pickled


def _compile_job(index: int) -> Resources | str:
    case, key = _jobs[index]
    try:
        return compile_case(case, key.target)
    except Exception as error:  # any error of the compiler is the result of this case
        return f"does not compile: {type(error).__name__}: {error}".strip()


def _compile_all(processes: int) -> list[Resources | str]:
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, fork) as pool:
        futures = [pool.submit(_compile_job, index) for index in range(len(_jobs))]
    # A crash of the compiler breaks the pool. Compile the remaining cases one by one, to find the one that crashes.
    return [
        _compile_alone(index) if isinstance(future.exception(), BrokenProcessPool) else future.result()
        for index, future in enumerate(futures)
    ]


def _compile_alone(index: int) -> Resources | str:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(_compile_job, index).result()
        except BrokenProcessPool:
            return "does not compile: the compiler crashed"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m hrm_kernels.tuning.ahead_of_time", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="default: all")
    parser.add_argument("--kernels", nargs="+", default=["*"], help='names or patterns ("swiglu.*"); default: all')
    parser.add_argument(
        "--dtypes", nargs="+", choices=_NAMES.values(), help="only cases with a pointer to one of these; default: all"
    )
    parser.add_argument("--first", action="store_true", help="only the first case of each kernel")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=min(8, cores), help="default: one per core, 8 at most")
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None,
    cases: Callable[[Sequence[str]], Iterable[tuple[str, Case]]] = collect,
    table_path: Path = TABLE,
) -> int:
    """Run the command. Returns 0 if every rule holds and the table is unchanged, else 1, with a line per difference."""
    import triton

    options = _parse(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("ahead_of_time: TRITON_INTERPRET=1 is set, so Triton compiles nothing; unset it", file=sys.stderr)
        return 2

    started = time.perf_counter()
    jobs: dict[Key, Job] = {}
    first: dict[tuple[str, str], Case] = {}  # by kernel and target
    digests: dict[str, str] = {}  # of the sources, by op package
    files = kernel_files()
    for name, case in cases(options.kernels):
        op = name.partition(".")[0]
        digests[op] = digest(*files.get(op, (Path(inspect.getfile(case.kernel.fn)),)))
        for target in case.targets:
            first.setdefault((name, target), case)
            key = _key(name, case, target)
            jobs[key] = Job(case, key)

    def is_named(key: Key) -> bool:
        return any(fnmatch.fnmatch(key.kernel, pattern) for pattern in options.kernels)

    def is_selected(key: Key) -> bool:
        pointers = {kind.lstrip("*").rstrip("~") for kind in key.arguments.split(" ") if kind.startswith("*")}
        return (
            is_named(key)
            and key.target in options.targets
            and (options.dtypes is None or not pointers.isdisjoint(options.dtypes))
            and (not options.first or (key in jobs and jobs[key].case is first[key.kernel, key.target]))
        )

    _jobs[:] = [job for key, job in jobs.items() if is_selected(key)]
    results = dict(zip((job.key for job in _jobs), _compile_all(options.processes)))
    compiled = {key: result for key, result in results.items() if isinstance(result, Resources)}

    broken = [f"{_name(key)}: {result}" for key, result in results.items() if isinstance(result, str)]
    for key, resources in compiled.items():
        broken += [f"{_name(key)}: {fault}" for fault in faults(jobs[key].case, key, resources)]
    print(f"{len(results)} compiled with Triton {triton.__version__} in {time.perf_counter() - started:.0f} s")
    for line in broken:
        print(line)

    version, sources, table = read_table(table_path) if table_path.exists() else (triton.__version__, {}, {})
    if options.write:
        kept = {key: row for key, row in table.items() if not is_selected(key) and (key in jobs or not is_named(key))}
        if kept and version != triton.__version__:
            print(
                f"{table_path.name} is from Triton {version}: use that version, or write the whole table",
                file=sys.stderr,
            )
            return 2
        partial = {_op(key) for key in jobs if not is_selected(key)}  # these keep the digest of their old rows
        sources |= {op: value for op, value in digests.items() if op not in partial}
        write_table(table_path, triton.__version__, sources, kept | compiled)
        print(f"wrote {len(kept | compiled)} rows to {table_path}")
        return 1 if broken else 0
    if version != triton.__version__:
        print(f"{table_path.name} is from Triton {version}: only the rules were checked")
        return 1 if broken else 0
    before = {key: row for key, row in table.items() if is_named(key)}
    # rows that this run did not compile count as unchanged, but must exist
    lines = _differences(before, {key: compiled.get(key, table.get(key)) for key in jobs if is_named(key)})
    if lines:
        print(f"{table_path.name} differs; if this is intended: python -m hrm_kernels.tuning.ahead_of_time --write")
        print("\n".join([" " + "\t".join(COLUMNS), *lines]))
    return 1 if broken or lines else 0


def _differences(before: Mapping[Key, Resources], now: Mapping[Key, Resources | None]) -> list[str]:
    lines, missing = [], Counter[str]()
    for key in sorted(before.keys() | now.keys(), key=_order):
        old, new = before.get(key), now.get(key)
        if old is None and new is None:
            missing[key.kernel] += 1
        elif old != new:
            lines += [sign + _line(key, row) for sign, row in (("-", old), ("+", new)) if row is not None]
    return lines + [f"+{kernel}: {count} of its cases are not in the table" for kernel, count in missing.items()]


def _name(key: Key) -> str:
    return f"{key.kernel} ({key.arguments}; {key.constants}; {key.warps} warps, {key.stages} stages) on {key.target}"


if __name__ == "__main__":
    sys.exit(main())
