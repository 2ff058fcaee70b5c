"""The model of a GPU: caches, occupancy, machine code and recorded launches, each against what can be counted."""

import os
import subprocess
import sys

import pytest

from hrm_kernels.tuning.model import cache, machine_code, predict, table
from hrm_kernels.tuning.model.cache import Cache, Matrix, Tiles
from hrm_kernels.tuning.model.gpu import H200

pytest.importorskip("triton")

X, W, OUT = Matrix("x", 512, 256, 2), Matrix("w", 256, 256, 2), Matrix("out", 512, 256, 2)


def moved(capacity: int, n_fastest: bool) -> tuple[int, int]:
    held = Cache(capacity)
    cache.product(held, X, [W], OUT, Tiles(128, 128, 64, n_fastest), at_once=1)
    held.flush()
    return held.read, held.written


def test_a_product_reads_each_operand_once_through_a_cache_that_holds_all():
    for n_fastest in (False, True):
        assert moved(1 << 30, n_fastest) == (X.bytes + W.bytes, OUT.bytes)


def test_the_order_of_tiles_decides_what_a_small_cache_reads_again():
    rows = 128 * 256 * 2  # of x, for a row of tiles; w has two such parts
    # w and one part of x stay where tiles of a row follow each other; else each tile reads its part of x again
    assert moved(W.bytes + 3 * rows, True) == (X.bytes + W.bytes, OUT.bytes)
    assert moved(3 * rows, False) == (2 * X.bytes + W.bytes, OUT.bytes)
    # tiles side by side share what they need
    held = Cache(2 * rows)
    cache.product(held, X, [W], OUT, Tiles(128, 128, 64), at_once=8)
    assert held.read == X.bytes + W.bytes


def test_a_granule_at_the_edge_is_smaller():
    held = Cache(1 << 20)
    edge = Matrix("edge", 130, 70, 4)
    cache.pointwise(held, [edge], [])
    assert held.read == edge.bytes and held.written == 0


@pytest.mark.parametrize(
    ("registers", "shared", "warps", "blocks", "what"),
    [
        (98, 98304, 8, 2, "registers and shared memory"),
        (150, 98304, 8, 1, "registers"),
        (32, 0, 4, 16, "threads"),
        (16, 0, 1, 32, "blocks"),
        (64, 120000, 4, 1, "shared memory"),
    ],
)
def test_blocks_of_a_multiprocessor(registers, shared, warps, blocks, what):
    assert H200.blocks_per_multiprocessor(registers, shared, warps) == blocks, what


LISTING = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;                       /* 0x00000a00ff017b82 */
        /*0130*/              @!P1 LDGSTS.E.BYPASS.128 [R5+0x4000], desc[UR6][R8.64], P0 ;
        /*0140*/                   LDG.E.U16 R0, desc[UR6][R2.64] ;
        /*0150*/                   LDG.E.64 R2, desc[UR6][R2.64] ;
        /*0160*/                   HGMMA.64x16x16.F32.BF16 R24, R88, gdesc[UR8].tnspB, RZ ;
        /*0170*/                   HGMMA.64x16x16.F32.BF16 R24, R88, gdesc[UR8].tnspB, RZ ;
        /*0180*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR4], RZ, !UPT, gsb0 ;
        /*0190*/             @UP0  UTMALDG.2D [UR8], [UR4] ;
        /*01a0*/                   STG.E desc[UR6][R2.64], R4 ;
        /*01b0*/                   STL [R1], R4 ;
"""


def test_a_listing():
    code = machine_code.parse(LISTING, "REG:98 STACK:0 SHARED:0", 1024)
    assert code == machine_code.Code(98, 1024, 1, "HGMMA.64x128x16", "128:1 16:1 64:1", "32:1", 1)


def test_waves():
    latency = H200.latency
    # one block alone shows its latencies; two side by side hide them behind long work
    assert predict._wave_times(132, 2, 1e-5, H200) == pytest.approx(1e-5 + 2 * latency)
    assert predict._wave_times(264, 2, 1e-5, H200) == pytest.approx(2e-5)
    assert predict._wave_times(265, 2, 1e-5, H200) == pytest.approx(3e-5 + 2 * latency)


def test_the_committed_table_is_of_these_sources():
    from hrm_kernels.tuning.model.__main__ import sources

    written, rows = table.read()
    assert written == sources(), (
        f"{table.TABLE.name} is of other sources; with Triton 3.6.0: python -m hrm_kernels.tuning.model --write"
    )
    assert rows and not [row for row in rows if row.programs and row.side < 1]
    products = [row for row in rows if "linear_" in row.kernel and not row.part.startswith(table.ONE_PUZZLE)]
    for row in products:
        kind = "QGMMA" if row.part.startswith(table.FP8_PASS) else "HGMMA"
        assert row.instruction.startswith(f"{kind}.64x"), row
        assert row.loads.startswith("128:") or row.descriptors, "operands are loaded 16 bytes at a time"
    assert {row.part for row in products} >= {table.PASS + "fused", table.FP8_PASS + "fused"}
    assert table.fp8_step_seconds(rows) < table.step_seconds(rows)


@pytest.mark.slow
def test_recorded_launches_have_their_own_alignment():
    program = """
import torch
from hrm_kernels.ops.swiglu import triton_kernels as swiglu
from hrm_kernels.tuning.model.launches import recording
flat = torch.empty(2 * 64 + 4, dtype=torch.bfloat16, device="meta")
with recording() as launches:
    swiglu.forward(flat[:128].view(2, 64))
    swiglu.forward(flat[4:].view(2, 64))
    torch.addmm(flat[:4].view(2, 2), flat[:6].view(2, 3), flat[:6].view(3, 2))
print([(one.name, one.programs) for one in launches])
print([one.case.unaligned for one in launches[:2]])
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    launches, unaligned = done.stdout.splitlines()
    assert launches == "[('forward_kernel', 2), ('forward_kernel', 2), ('library product', 0)]"
    assert unaligned == "[(), ('gate_up',)]"
