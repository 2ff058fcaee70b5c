"""csrc/simt itself: probes are correct, and the harness detects their faults, in every order of threads."""

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
ORDERS = [0, 1, 2, 3, 4]


def probe(simt, name, fault=0, inputs=64, outputs=64, order=0, values=None):
    """Launch a probe with ``values`` (default: random bfloat16 numbers); returns ``(in, out, counter, error)``."""
    simt.configure(order=order)
    if values is None:
        values = torch.randn(inputs, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    values = simt.guarded(values)
    out = torch.full((outputs,), float("nan"))
    counter = torch.zeros(1, dtype=torch.int32)
    launch = getattr(simt.library, f"probe_{name}")
    launch.restype = ctypes.c_char_p
    error = launch(*(ctypes.c_void_p(t.data_ptr()) for t in (values, out, counter)), fault)
    return values, out, counter.item(), error and error.decode()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("missing_barrier", 64, lambda x: x.flip(0)),
        ("missing_wait", 256, lambda x: x),
        ("early_copy", 256, lambda x: x.flip(0)),
        ("overlapping_tiles", 64, lambda x: x),
        ("divergent_barrier", 64, lambda x: x),
        ("out_of_bounds", 64, lambda x: x),
        ("divergent_warp", 32, lambda x: x.sum().expand(32)),
        ("grid_barrier", 96, lambda x: x.roll(-32)),
        ("cluster_exchange", 256, lambda x: x.view(2, 2, 64).flip(1, 2).flatten()),
        ("cluster_without_ended", 256, lambda x: x),
    ],
)
def test_correct_kernels_give_correct_results(simt, name, size, expected, order):
    values, out, _, error = probe(simt, name, 0, size, 2 * size + 96, order)
    assert error is None
    torch.testing.assert_close(out[:size], expected(values), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "faults"), [("missing_barrier", [1]), ("missing_wait", [1, 2, 3])])
def test_early_reads_give_nan(simt, name, faults, order):
    for fault in faults:
        _, out, _, error = probe(simt, name, fault, 256, 256, order)
        assert error is None and out[:64].isnan().sum() >= 1


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("early_copy", 256, lambda x: x.flip(0)), ("overlapping_tiles", 64, lambda x: x)],
)
@pytest.mark.parametrize("order", ORDERS)
def test_early_and_missing_writes_give_wrong_results(simt, name, size, expected, order):
    values, out, _, error = probe(simt, name, 1, size, size, order)
    assert error is None and not torch.equal(out, expected(values))


@pytest.mark.parametrize("order", [0, 1])  # a random order may hide the fault
def test_a_missing_barrier_of_the_grid_shows(simt, order):
    _, out, _, error = probe(simt, "grid_barrier", 1, 96, 192, order)
    assert error is None and out[:96].isnan().any()


@pytest.mark.parametrize("order", [0, 1])
def test_a_missing_barrier_of_the_cluster_shows(simt, order):
    _, out, _, error = probe(simt, "cluster_exchange", 1, 256, 256, order)
    assert out.isnan().any() or "which has ended" in error


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", [0, 1])
def test_barriers_do_not_wait_for_ended_threads(simt, order, fault):
    values, out, _, error = probe(simt, "cluster_without_ended", fault, 256, 512, order)
    assert error is None
    got, want = (x.view(2, 2, 64)[:, :, 32:] for x in (out[256:], values))
    assert torch.equal(got, want.flip(1))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        (
            "divergent_barrier",
            1,
            "__syncthreads in line [0-9]+ while other threads of its block wait at the one in line",
        ),
        (
            "divergent_barrier",
            2,
            r"waits at __syncthreads in line [0-9]+ for ever; .* thread \([0-9]+, 0, 0\) has ended",
        ),
        ("divergent_warp", 1, r"waits at shfl.xor for ever; .* has ended"),
        ("divergent_warp", 2, "(ballot|shfl.xor) while other threads of its warp wait at (shfl.xor|ballot)"),
        ("out_of_bounds", 1, "access at byte 256 of 256 bytes of shared memory"),
        ("out_of_bounds", 2, "wrote outside its 256 bytes of shared memory"),
        ("out_of_bounds", 3, "access at byte 4096 of 256 bytes of shared memory"),
        ("out_of_bounds", 4, "cp.async at byte 256 of 256 bytes of shared memory"),
        ("out_of_bounds", 5, "cp.async at byte 4 of shared memory, not aligned to 16"),
        ("out_of_bounds", 6, "access to memory that is not there"),
        ("products", 1, "ldmatrix at byte 104 of shared memory, not aligned to 16"),
        ("grid_barrier", 2, "for ever"),
        ("grid_barrier", 3, "for ever"),
        ("cluster_exchange", 2, "of 256 bytes of shared memory of another block, which has ended"),
        ("cluster_exchange", 3, "mapa of block 1 of a cluster of 1"),
        ("cluster_exchange", 4, "barrier.cluster.arrive twice without a wait between"),
        ("cluster_exchange", 5, "barrier.cluster.wait without having arrived"),
        ("cluster_exchange", 6, "waits at barrier.cluster.arrive for ever; .* has ended"),
        ("cluster_exchange", 7, "mapa of block 2 of a cluster of 2"),
        ("cluster_exchange", 8, "access at byte [0-9]+ of 256 bytes of shared memory of another block$"),
    ],
)
def test_errors_name_kernel_block_and_thread(simt, name, fault, message, order):
    size = {"products": 512, "grid_barrier": 96, "cluster_exchange": 256}.get(name, 64)
    *_, error = probe(simt, name, fault, size, 256, order)
    assert error is not None and re.search(message, error)
    assert re.match(rf"hrm::probes::{name}, block \(\d, 0, 0\)", error)
    if "wrote outside" not in message:  # detected at the end of the block
        assert re.search(r"thread \(\d+, 0, 0\)", error)
    # the next launch works
    assert probe(simt, "missing_barrier")[3] is None


@pytest.mark.parametrize("order", ORDERS)
def test_products(simt, order):
    """mma.sync and both forms of ldmatrix."""
    values, out, _, error = probe(simt, "products", 0, 512, 256, order)
    assert error is None
    a, b, c = values[:256].view(16, 16), values[256:384].view(8, 16), values[384:].view(16, 8)
    torch.testing.assert_close(out[:128].view(16, 8), a @ b.t() + 1, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[128:].view(16, 8), a @ c + 1, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_products_of_float16(simt, order):
    values, out, _, error = probe(simt, "float16_products", 0, 384, 128, order)
    assert error is None
    a, b = values[:256].half().float().view(16, 16), values[256:].half().float().view(8, 16)
    torch.testing.assert_close(out.view(16, 8), a @ b.t(), rtol=1e-5, atol=1e-5)
    _, wrong, _, error = probe(simt, "float16_products", 1, 384, 128, order)
    assert error is None and (wrong - out).abs().max() > 0.1


def test_numbers_of_float16(simt):
    """Rounding to even, subnormals, overflow and its limit, infinities and NaN, as in torch."""
    edges = [0, 1, 2047, 2049, 2051, 65504, 65519.9, 65520, 1e30, float("inf"), 2**-14, 2**-24, 2**-25, 1.1 * 2**-25]
    edges += [1.5 * 2**-24, 2.5 * 2**-24, 2**-14 - 2**-26, 1023.5 * 2**-24, 1e-30, float("nan")]
    random = 2.0 ** torch.empty(64 - 2 * len(edges)).uniform_(-26, 17, generator=torch.Generator().manual_seed(0))
    values = torch.cat((torch.tensor(edges), -torch.tensor(edges), random))
    values, out, _, error = probe(simt, "float16_numbers", 0, 64, 128, values=values)
    assert error is None
    want = values.half().float()
    torch.testing.assert_close(out, torch.cat((want, want.flip(0))), rtol=0, atol=0, equal_nan=True)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc")
def test_nvcc_compiles_the_probes(tmp_path):
    """The assembler accepts the cluster instructions, which no kernel uses yet."""
    flags = ["-std=c++17", "-O3", "-cubin", "-arch=sm_90a", "-Werror=all-warnings"]
    command = ["nvcc", *flags, "-I", ROOT / "csrc", ROOT / "tests" / "csrc" / "probes.cu", "-o", tmp_path / "cubin"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_warp_functions(simt, order):
    x, out, counter, error = probe(simt, "warp_functions", 0, 32, 192, order)
    assert error is None
    lane = torch.arange(32)
    broadcast, exchanged, down, reversed_, ballot, votes = out.view(6, 32)
    assert torch.equal(broadcast, x[5].expand(32))
    assert torch.equal(exchanged, x[lane ^ 3])
    assert torch.equal(down, x[torch.where(lane < 28, lane + 4, lane)])
    assert torch.equal(reversed_, x.flip(0))
    assert torch.equal(ballot, (x > 0).float())
    assert torch.equal(votes, torch.ones(32))
    assert counter == 64


CORRECT = {
    "missing_barrier": 64, "missing_wait": 256, "early_copy": 256, "overlapping_tiles": 64, "out_of_bounds": 64,
    "divergent_warp": 32, "grid_barrier": 96, "products": 512, "float16_products": 384, "float16_numbers": 64,
    "warp_functions": 32, "cluster_exchange": 256, "cluster_without_ended": 256, "flag": 64, "next_grid": 64,
    "last_block": 64, "second_copy": 64,
}  # fmt: skip


@pytest.mark.parametrize("name", CORRECT)
def test_correct_kernels_have_no_race(checked_probes, name):
    for order in ORDERS:
        assert probe(checked_probes, name, 0, CORRECT[name], 1024, order)[3] is None


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("missing_barrier", 1, "a (read|write) of byte [0-9]+ of shared memory, and a (read|write) by thread"),
        ("missing_wait", 1, "a read of byte [0-9]+ of shared memory, and an asynchronous copy that is under way"),
        ("missing_wait", 2, "an asynchronous copy that is under way"),
        ("missing_wait", 3, "an asynchronous copy that is under way"),
        ("early_copy", 1, "race: an? (asynchronous copy|read|write) of byte"),
        ("overlapping_tiles", 1, "a write of memory, and a write by thread"),
        ("grid_barrier", 1, "a (read|write) of memory, and a (read|write) by thread [0-9]+ of block"),
        ("cluster_exchange", 1, "a (read|write) of byte [0-9]+ of shared memory|a (read|write) of memory"),
        ("flag", 1, "of memory, and a (read|write|n atomic operation) by thread"),
        ("flag", 2, "of memory, and a (read|write) by thread"),
        ("last_block", 1, "a (read|write) of memory"),
        ("last_block", 2, "a (read|write) of memory"),
        ("last_block", 3, "a (read|write) of memory"),
        ("next_grid", 1, "of memory, and a (read|write) by thread"),
        ("products", 2, "race: "),
        ("warp_functions", 1, "an? (atomic operation|write|read) of memory"),
        ("second_copy", 1, "an asynchronous copy that is under way"),
    ],
)
def test_a_race_is_found_in_every_order(checked_probes, name, fault, message):
    for order in ORDERS:
        error = probe(checked_probes, name, fault, CORRECT[name], 1024, order)[3]
        assert error is not None and re.search(message, error), error
        assert re.match(rf"hrm::probes::{name}, block \(\d, 0, 0\), thread \(\d+, 0, 0\): race: ", error)


def test_without_the_check_a_lucky_order_hides_a_race(checked_probes):
    """The reason for it: a flag without release and acquire gives the right result in the order of this harness."""
    checked_probes.check_races(False)
    try:
        values, out, _, error = probe(checked_probes, "flag", 1, 64, 1024, 0)
    finally:
        checked_probes.check_races()
    assert error is None and torch.equal(out[:32], values[:32])
