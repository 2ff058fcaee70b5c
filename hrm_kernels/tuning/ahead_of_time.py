"""Compiling every Triton kernel ahead of time, for every target, without a GPU.

``python -m hrm_kernels.tuning.ahead_of_time`` compiles what the rooms' ``triton_kernels.cases()`` list, and fails where
a kernel doesn't compile, doesn't fit into a target's shared memory, spills, or does without tensor cores where a matrix
product is meant. It compares registers, shared memory, spills and tensor-core instructions with the committed table
(``tests/data/triton_resources.tsv``); ``--write`` writes that table. The numbers are those of one Triton version, named
in the table's first line: with another one only the rules are checked. The second line has a hash of each room's
``triton_kernels.py``, by which a test sees without compiling that the table is of these sources.
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
"""Shared memory a program may ask for, in bytes, by target: compute capability (CUDA C++ Programming Guide, "Technical
Specifications per Compute Capability") or AMD architecture (LDS of a workgroup). Compiling doesn't check it."""

TARGETS = tuple(SHARED)
TABLE = Path(__file__).parents[2] / "tests" / "data" / "triton_resources.tsv"
ROOMS = Path(__file__).parents[1] / "ops"


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as Triton's signatures write it."""
    return _NAMES[dtype]


@dataclass(frozen=True)
class Case:
    """One kernel with one launch configuration.

    Attributes:
        kernel: the ``triton.jit`` function.
        signature: types of the arguments that are no constants, by name ("*bf16", "i32", "fp32"). Pointers and integers
            are compiled as divisible by 16, as launches with aligned tensors of the published sizes are.
        constants: values of the ``tl.constexpr`` arguments; one that has a default may be left out.
        num_warps, num_stages: of the launch.
        matrix: the kernel is meant to use tensor cores.
        targets: those that launches use this configuration on (``TARGETS``).
        unaligned: integers and pointers that launches pass without being divisible by 16 (S = 81, say).
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
    """What was compiled: the first columns of the table."""

    kernel: str
    arguments: str
    constants: str
    warps: int
    stages: int
    target: str


class Resources(NamedTuple):
    """What came out: registers of a thread, shared memory in bytes, instructions in the listing."""

    registers: int
    shared: int
    spills: int
    tensor_core: int


class Job(NamedTuple):
    case: Case
    key: Key


COLUMNS = (*Key._fields, *Resources._fields)

_SPILL = re.compile(r"\b(?:LDL|STL)\b|\bscratch_(?:load|store)")
# mnemonics alone: HFMA2.MMA loads constants on sm_80
_TENSOR_CORE = re.compile(r"(?<![\w.])(?:[A-Z]G?MMA|UTC[A-Z]*MMA)\b|\bv_(?:mfma|smfmac|wmma)_")


def collect(patterns: Sequence[str]) -> Iterator[tuple[str, Case]]:
    """The rooms' cases, with the kernel's name ("swiglu.forward_kernel"); only rooms that a pattern may mean."""
    for file in sorted(ROOMS.glob("*/triton_kernels.py")):
        room = file.parent.name
        if not any(fnmatch.fnmatch(room, pattern.partition(".")[0]) for pattern in patterns):
            continue
        for case in importlib.import_module(f"hrm_kernels.ops.{room}.triton_kernels").cases():
            yield f"{room}.{case.kernel.__name__}", case


def _source(case: Case, target: str) -> Any:
    """The compiler's input, specialised as a launch would."""
    from triton import knobs
    from triton.compiler import ASTSource

    constants = {p.name: p.default for p in case.kernel.params if p.is_constexpr and p.has_default} | case.constants
    signature, attributes = {}, {}
    for index, parameter in enumerate(case.kernel.params):
        name = parameter.name
        if name not in constants and name not in case.signature:
            raise ValueError(f"the case gives neither a type nor a value for argument {name!r}")
        kind = signature[name] = "constexpr" if name in constants else case.signature[name]
        pointer = kind.startswith("*")
        specialized = not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        if (pointer or re.fullmatch(r"[iu](8|16|32|64)", kind)) and specialized and name not in case.unaligned:
            attributes[(index,)] = [["tt.divisibility", 16]]
        if pointer and target.startswith("gfx") and knobs.amd.use_buffer_ops:  # as for tensors below 2 GB
            attributes.setdefault((index,), []).append(["tt.pointer_range", 32])
    unknown = (case.signature.keys() | constants.keys()) - signature.keys()
    if unknown:
        raise ValueError(f"the kernel has no argument {', '.join(sorted(unknown))}")
    return ASTSource(case.kernel, signature, constants, attributes)


def compile_case(case: Case, target: str) -> Resources:
    """Compile for one of ``TARGETS`` and read the binary."""
    import triton
    from triton.backends.compiler import GPUTarget

    amd = target.startswith("gfx")
    compiled = triton.compile(
        _source(case, target),
        target=GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target), 32),
        options={"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True},
    )
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
        # Listing takes longer than compiling, and without a stack there is nowhere to spill to.
        listing = dump("-sass") if matrix or usage["STACK"] or usage["LOCAL"] else ""
    return Resources(usage["REG"], shared, len(_SPILL.findall(listing)), len(_TENSOR_CORE.findall(listing)))


def _amd(assembly: str, shared: int) -> Resources:
    """``vgpr_count`` counts accumulation registers too."""
    (registers,) = re.findall(r"\.vgpr_count:\s+(\d+)", assembly)
    return Resources(int(registers), shared, len(_SPILL.findall(assembly)), len(_TENSOR_CORE.findall(assembly)))


def faults(case: Case, key: Key, found: Resources) -> list[str]:
    """The rules that a compiled case breaks."""
    broken = []
    if found.shared > SHARED[key.target]:
        broken.append(f"needs {found.shared} bytes of shared memory, the target has {SHARED[key.target]}")
    if found.spills:
        broken.append(f"spills: {found.spills} loads and stores of local memory")
    if case.matrix and not found.tensor_core:
        broken.append("is meant to use tensor cores and doesn't")
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
    """Numbers by value, so that a new configuration lands beside its neighbours."""
    numbers = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", key.constants)]
    return key.kernel, key.arguments, numbers, key.warps, key.stages, TARGETS.index(key.target)


def digest(*files: Path) -> str:
    """Of files' contents, for a table to say what it was made from."""
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


def _room(key: Key) -> str:
    return key.kernel.partition(".")[0]


def read_table(path: Path) -> tuple[str, dict[str, str], dict[Key, Resources]]:
    """The Triton version, the digests of the sources by room, and the rows of a table."""
    first, second, _, *lines = path.read_text().splitlines()
    table = {}
    for line in lines:
        kernel, arguments, constants, warps, stages, target, *numbers = line.split("\t")
        table[Key(kernel, arguments, constants, int(warps), int(stages), target)] = Resources(*map(int, numbers))
    return first.split()[-1], dict(part.split("=") for part in second.split()[2:]), table


def write_table(path: Path, version: str, sources: Mapping[str, str], table: Mapping[Key, Resources]) -> None:
    rooms = {_room(key) for key in table}
    lines = [
        f"# python -m hrm_kernels.tuning.ahead_of_time --write, with Triton {version}",
        " ".join(["# from", *(f"{room}={sources.get(room, '?')}" for room in sorted(rooms))]),
        "\t".join(COLUMNS),
    ]
    lines += [_line(key, table[key]) for key in sorted(table, key=_order)]
    path.write_text("\n".join(lines) + "\n")


def _line(key: Key, found: Resources) -> str:
    return "\t".join(map(str, (*key, *found)))


_jobs: list[Job] = []  # the worker processes are forked: kernels can't be pickled


def _compile_job(index: int) -> Resources | str:
    case, key = _jobs[index]
    try:
        return compile_case(case, key.target)
    except Exception as error:  # whatever the compiler throws is the answer for this case
        return f"doesn't compile: {type(error).__name__}: {error}".strip()


def _compile_all(processes: int) -> list[Resources | str]:
    fork = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(processes, fork) as pool:
        futures = [pool.submit(_compile_job, index) for index in range(len(_jobs))]
    # A crash of the compiler takes the pool along: what it left is compiled one by one, to find whose crash it was.
    return [
        _compile_alone(index) if isinstance(future.exception(), BrokenProcessPool) else future.result()
        for index, future in enumerate(futures)
    ]


def _compile_alone(index: int) -> Resources | str:
    with ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(_compile_job, index).result()
        except BrokenProcessPool:
            return "doesn't compile: the compiler crashed"


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m hrm_kernels.tuning.ahead_of_time", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table instead of comparing with it")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS, help="default: all")
    parser.add_argument("--kernels", nargs="+", default=["*"], help='names or patterns ("swiglu.*"); default: all')
    parser.add_argument("--dtypes", nargs="+", choices=_NAMES.values(), help="cases with such a pointer; default: all")
    parser.add_argument("--first", action="store_true", help="only the first case of each kernel")
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("--processes", type=int, default=min(8, cores), help="default: one per core, 8 at most")
    return parser.parse_args(arguments)


def main(
    arguments: Sequence[str] | None = None,
    cases: Callable[[Sequence[str]], Iterable[tuple[str, Case]]] = collect,
    table_path: Path = TABLE,
) -> int:
    """The command. Returns 0 when every rule holds and the table is as before, else 1 with a line per difference."""
    import triton

    options = _parse(arguments)
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("ahead_of_time: TRITON_INTERPRET=1 is set, with which Triton compiles nothing; unset it", file=sys.stderr)
        return 2

    started = time.perf_counter()
    every: dict[Key, Job] = {}
    first: dict[tuple[str, str], Case] = {}  # by kernel and target
    digests: dict[str, str] = {}  # of the sources, by room
    for name, case in cases(options.kernels):
        digests[name.partition(".")[0]] = digest(Path(inspect.getfile(case.kernel.fn)))
        for target in case.targets:
            first.setdefault((name, target), case)
            key = _key(name, case, target)
            every[key] = Job(case, key)

    def named(key: Key) -> bool:
        return any(fnmatch.fnmatch(key.kernel, pattern) for pattern in options.kernels)

    def asked(key: Key) -> bool:
        pointers = {kind.lstrip("*").rstrip("~") for kind in key.arguments.split(" ") if kind.startswith("*")}
        return (
            named(key)
            and key.target in options.targets
            and (options.dtypes is None or not pointers.isdisjoint(options.dtypes))
            and (not options.first or (key in every and every[key].case is first[key.kernel, key.target]))
        )

    _jobs[:] = [job for key, job in every.items() if asked(key)]
    results = dict(zip((job.key for job in _jobs), _compile_all(options.processes)))
    compiled = {key: found for key, found in results.items() if isinstance(found, Resources)}

    broken = [f"{_name(key)}: {found}" for key, found in results.items() if isinstance(found, str)]
    for key, found in compiled.items():
        broken += [f"{_name(key)}: {fault}" for fault in faults(every[key].case, key, found)]
    print(f"{len(results)} compiled with Triton {triton.__version__} in {time.perf_counter() - started:.0f} s")
    for line in broken:
        print(line)

    version, sources, table = read_table(table_path) if table_path.exists() else (triton.__version__, {}, {})
    if options.write:
        kept = {key: found for key, found in table.items() if not asked(key) and (key in every or not named(key))}
        if kept and version != triton.__version__:
            print(f"{table_path.name} is of Triton {version}: write it with that one, or all of it", file=sys.stderr)
            return 2
        partly = {_room(key) for key in every if not asked(key)}  # these keep the digest of their other rows
        sources |= {room: value for room, value in digests.items() if room not in partly}
        write_table(table_path, triton.__version__, sources, kept | compiled)
        print(f"wrote {len(kept | compiled)} rows to {table_path}")
        return 1 if broken else 0
    if version != triton.__version__:
        print(f"{table_path.name} is of Triton {version}: only the rules were checked")
        return 1 if broken else 0
    before = {key: found for key, found in table.items() if named(key)}
    # what this run didn't compile is taken as it was, but has to be there
    lines = _differences(before, {key: compiled.get(key, table.get(key)) for key in every if named(key)})
    if lines:
        print(f"{table_path.name} differs; if that is meant: python -m hrm_kernels.tuning.ahead_of_time --write")
        print("\n".join([" " + "\t".join(COLUMNS), *lines]))
    return 1 if broken or lines else 0


def _differences(before: Mapping[Key, Resources], now: Mapping[Key, Resources | None]) -> list[str]:
    lines, absent = [], Counter[str]()
    for key in sorted(before.keys() | now.keys(), key=_order):
        old, new = before.get(key), now.get(key)
        if old is None and new is None:
            absent[key.kernel] += 1
        elif old != new:
            lines += [sign + _line(key, found) for sign, found in (("-", old), ("+", new)) if found is not None]
    return lines + [f"+{kernel}: {count} of its cases are not in the table" for kernel, count in absent.items()]


def _name(key: Key) -> str:
    return f"{key.kernel} ({key.arguments}; {key.constants}; {key.warps} warps, {key.stages} stages) on {key.target}"


if __name__ == "__main__":
    sys.exit(main())
