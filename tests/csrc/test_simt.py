"""csrc/simt itself: the probes are right as they are; with a fault the harness sees it, in every order of threads."""

import ctypes
import re

import pytest
import torch

ORDERS = [0, 1, 2, 3, 4]


def probe(simt, name, fault=0, inputs=64, outputs=64, order=0):
    """``(in, out, counter, error)`` of a launch of a probe with random numbers that bfloat16 can hold."""
    simt.configure(order=order)
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
    ],
)
def test_right_kernels_are_right(simt, name, size, expected, order):
    values, out, _, error = probe(simt, name, 0, size, size + 96, order)
    assert error is None
    torch.testing.assert_close(out[:size], expected(values), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("name", "faults"), [("missing_barrier", [1]), ("missing_wait", [1, 2, 3])])
def test_what_is_read_too_early_is_nan(simt, name, faults, order):
    for fault in faults:
        _, out, _, error = probe(simt, name, fault, 256, 256, order)
        assert error is None and out[:64].isnan().sum() >= 1


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [("early_copy", 256, lambda x: x.flip(0)), ("overlapping_tiles", 64, lambda x: x)],
)
@pytest.mark.parametrize("order", ORDERS)
def test_what_is_overwritten_too_early_or_by_nobody_is_wrong(simt, name, size, expected, order):
    values, out, _, error = probe(simt, name, 1, size, size, order)
    assert error is None and not torch.equal(out, expected(values))


@pytest.mark.parametrize("order", [0, 1])  # a random order may happen to be the right one
def test_a_missing_barrier_of_the_grid_shows(simt, order):
    _, out, _, error = probe(simt, "grid_barrier", 1, 96, 192, order)
    assert error is None and out[:96].isnan().any()


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
    ],
)
def test_errors_name_kernel_block_and_thread(simt, name, fault, message, order):
    size = {"products": 512, "grid_barrier": 96}.get(name, 64)
    *_, error = probe(simt, name, fault, size, 256, order)
    assert error is not None and re.search(message, error)
    assert re.match(rf"hrm::probes::{name}, block \(\d, 0, 0\)", error)
    if "wrote outside" not in message:  # found when the block has ended
        assert re.search(r"thread \(\d+, 0, 0\)", error)
    # the next launch is as good as ever
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
def test_warp_functions(simt, order):
    x, out, counter, error = probe(simt, "warp_functions", 0, 32, 192, order)
    assert error is None
    lane = torch.arange(32)
    broadcast, exchanged, down, turned, ballot, votes = out.view(6, 32)
    assert torch.equal(broadcast, x[5].expand(32))
    assert torch.equal(exchanged, x[lane ^ 3])
    assert torch.equal(down, x[torch.where(lane < 28, lane + 4, lane)])
    assert torch.equal(turned, x.flip(0))
    assert torch.equal(ballot, (x > 0).float())
    assert torch.equal(votes, torch.ones(32))
    assert counter == 64
