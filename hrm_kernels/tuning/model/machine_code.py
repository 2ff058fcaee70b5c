"""What the machine code of a kernel says: registers, shared memory, matrix instruction, widths of loads and stores."""

import re
import subprocess
import tempfile
from collections import Counter
from typing import NamedTuple

from hrm_kernels.tuning.ahead_of_time import Case, build

# an instruction of a listing, after the comment with its address and perhaps a predicate
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.MULTILINE)
_MATRIX = re.compile(r"[A-Z]G?MMA\.(?:\d+x(\d+)x\d+|\d+)")


class Code(NamedTuple):
    """One compiled kernel.

    Attributes:
        registers: per thread.
        shared: bytes of a block.
        spills: loads and stores of local memory.
        matrix: the matrix instruction that computes most columns, with its shape, "HGMMA.64x128x16"; empty without.
        loads, stores: bits that one thread moves from and to global memory in an instruction, by how many
            instructions of the listing, most first: "128:80 32:1".
        descriptors: copies of whole tiles through tensor descriptors.
    """

    registers: int
    shared: int
    spills: int
    matrix: str
    loads: str
    stores: str
    descriptors: int


def _width(instruction: str) -> int:
    """Bits: LDG.E.128 -> 128, LDG.E.U16 -> 16, LDG.E -> 32."""
    widths = [
        int(part.lstrip("US")) for part in instruction.split(".")[1:] if re.fullmatch(r"[US]?(8|16|64|128)", part)
    ]
    return widths[0] if widths else 32


def _widths(instructions: list[str], names: tuple[str, ...]) -> str:
    counts = Counter(_width(one) for one in instructions if one.partition(".")[0] in names)
    return " ".join(f"{width}:{count}" for width, count in counts.most_common())


def parse(listing: str, usage: str, shared: int) -> Code:
    """The facts in a listing and a resource report of ``cuobjdump``."""
    found = {name: int(value) for name, value in re.findall(r"\b(REG):(\d+)", usage)}
    instructions = _INSTRUCTION.findall(listing)
    matrix: Counter[str] = Counter()
    for one in instructions:
        if match := _MATRIX.match(one):
            matrix[match[0]] += int(match[1] or 8)  # HMMA.16816 computes 8 columns
    return Code(
        registers=found["REG"],
        shared=shared,
        spills=sum(one.startswith(("LDL", "STL")) for one in instructions),
        matrix=matrix.most_common(1)[0][0] if matrix else "",
        loads=_widths(instructions, ("LDG", "LDGSTS")),
        stores=_widths(instructions, ("STG",)),
        descriptors=sum(one.startswith(("UTMALDG", "UTMASTG")) for one in instructions),
    )


def read(case: Case, target: str = "90") -> Code:
    """Compile a case for an NVIDIA target and read its machine code."""
    from triton import knobs

    compiled = build(case, target)

    def dump(option: str) -> str:
        command = [knobs.nvidia.cuobjdump.path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        return parse(dump("-sass"), dump("-res-usage"), compiled.metadata.shared)
