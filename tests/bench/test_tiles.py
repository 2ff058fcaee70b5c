"""The kernels of the bfloat16 and int8 ceilings contain their instruction, and run only where the CPU has it."""

import shutil
import subprocess

import pytest

from bench import ceilings, fma, tiles
from bench.costs import segment_cost
from bench.sizes import SHORT, Size
from hrm_kernels.spec import Cost

UNITS = (tiles.BFLOAT16, tiles.INT8, tiles.VECTORS)


@pytest.mark.skipif(shutil.which("objdump") is None or fma.compiler() is None, reason="needs a compiler and objdump")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.what)
def test_the_compiled_kernel_has_its_instruction(unit, tmp_path):
    try:
        library = unit.build(tmp_path)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this compiler does not know {unit.flags}: {error.stderr[:200]}")
    code = subprocess.run(["objdump", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    functions = dict(part.split(">:\n", 1) for part in code.split("\n\n") if ">:\n" in part)
    bodies = {name.split("<")[-1]: body.count(unit.instruction) for name, body in functions.items()}
    if unit.is_amx:
        # 2 x 2 accumulators: four products, and from memory four loads of tiles
        assert bodies["tiles_in_registers"] == bodies["tiles_from_memory"] == 4
        body = next(body for name, body in functions.items() if name.endswith("<tiles_from_memory"))
        assert body.count("tileloadd") == 4 and body.count("tilestored") == 4 and body.count("ldtilecfg") == 1
    else:
        assert bodies["dot_products"] == 12


def test_without_the_instruction_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(tiles, "_cpu_flags", lambda: frozenset({"avx2"}))
    for unit in UNITS:
        assert tiles.Unit.absent_reason.__wrapped__(unit) == f"this machine has no {unit.what}"


def test_without_the_permission_of_the_kernel_the_reason_is_said(monkeypatch):
    class Library:
        def tiles_allowed(self):
            return 0

    monkeypatch.setattr(tiles, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(tiles.Unit, "_library", lambda self: Library())
    monkeypatch.setattr(fma, "compiler", lambda: "c++")
    assert tiles.Unit.absent_reason.__wrapped__(tiles.BFLOAT16).startswith("the kernel does not let this process")


def test_ceilings_are_measured_or_explained():
    assert len(tiles.absent()) + sum(unit.absent_reason() is None for unit, _ in tiles._wanted().values()) == 7
    if all(unit.absent_reason() for unit in UNITS):
        assert tiles.ceilings(1) == {}


def test_bfloat16_has_a_ceiling_of_its_own():
    measured = {"matmul_flops_per_s": 1e9, "fma_flops_per_s": 2e9, "amx_bfloat16_registers_flops_per_s": 8e9}
    measured["copy_bytes_per_s"] = 1e9
    assert ceilings.floor(Cost(0, 8e9), measured) == (4.0, "arithmetic")
    assert ceilings.floor(Cost(0, 8e9), measured, "bfloat16") == (1.0, "arithmetic")


def test_pieces_add_up_to_the_operations():
    done = []

    def run(iterations):
        done.append(7.0 * iterations)
        return done[-1]

    assert fma.in_pieces(lambda: run, 700.0, pieces=10)() == []
    assert sum(done[1:]) == 700.0 and len(done) == 11  # the first is a single iteration, to count


@pytest.mark.parametrize("batch", [1, 8, 32])
def test_streamed_products_add_up_to_a_segment(monkeypatch, batch):
    done = []

    def from_memory(unit, rows, panels):
        assert rows == min(82 * batch, 672) and 150 < panels <= tiles.WEIGHTS

        def run(iterations):
            done.append(2.0 * (rows + -rows % 32) * 512 * 32 * panels * iterations)
            return done[-1]

        return run

    monkeypatch.setattr(tiles, "_from_memory", from_memory)
    operations = segment_cost(Size(batch, SHORT), 2).operations
    tiles.products(operations, 82 * batch)()
    assert sum(done[1:]) == pytest.approx(operations, rel=0.01)
