"""AdamATan2, SparseSignSGD and the stablemax loss in CUDA, under csrc/simt; with a GPU the same cases run on it.

Error against float64 at most twice that of plain PyTorch; the loss to 1e-6 relative. At the end: kernels with a mistake
in them, which the same checks find.
"""

from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import backends, native
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.ops.adam_atan2 import Step, adam_atan2
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax
from hrm_kernels.optim import AdamATan2, SparseSignSGD
from hrm_kernels.tuning import __main__ as tuning

pytestmark = pytest.mark.usefixtures("poisoned")
ROOT = Path(__file__).parents[2]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ORDERS = [0, 1, 2]
CHUNK = 4096  # of csrc/cuda/adam_atan2.cu
SHAPES = [(3, 5), (0,), (CHUNK,), (), (CHUNK + 1,), (2, 3, 7), (0, 4), (2 * CHUNK + 6,), (1,)]


@pytest.fixture(params=["simt", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The torch device of the kernels."""
    if request.param == "simt":
        request.getfixturevalue("cuda_on_cpu")
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


def random(shape, device, dtype, seed, scale=1.0):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype).to(device)


# ---- AdamATan2


def train(device, dtype, backend, start, shapes=SHAPES, steps=4, capturable=False, copy=None, scale=1.0, **options):
    """``(parameters, optimizer)`` after some steps; parameters and gradients are of dtype ``start``, then ``dtype``."""
    params = [torch.nn.Parameter(random(s, device, start, 100 + i).to(dtype)) for i, s in enumerate(shapes)]
    rate = torch.tensor(0.05, device=device) if capturable else 0.05
    optimizer = AdamATan2(params, lr=rate, weight_decay=0.2, capturable=capturable, **options)
    if copy is not None:
        optimizer.copies |= {p: torch.empty_like(p, dtype=copy) for p in params[::2]}  # the others have no copies
    with k.use_backend(backend):
        for step in range(steps):
            for i, p in enumerate(params):
                p.grad = random(p.shape, device, start, 1000 * step + i, scale).to(dtype)
            if step == 2:
                params[0].grad = torch.zeros_like(params[0])
            optimizer.step()
    return params, optimizer


def check_adam(device, dtype, capturable, scale=1.0, **options):
    options |= {"capturable": capturable, "scale": scale, "start": dtype}
    exact, _ = train(device, torch.float64, "reference", **options)
    (plain, _), (ours, optimizer) = (train(device, dtype, backend, **options) for backend in ("reference", "cuda"))
    for got, own, want in zip(ours, plain, exact, strict=True):
        if want.numel():
            error, allowed = ((x.double() - want).abs().max() for x in (got, own))
            epsilon = torch.finfo(dtype).eps * want.abs().max()
            assert error <= 2 * allowed + epsilon, f"{error:.2e} against {allowed:.2e}"
            assert optimizer.state[got]["step"] == 4
        if got in optimizer.copies:
            copy = optimizer.copies[got]
            assert torch.equal(copy, got.detach().to(copy.dtype))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_atan2_against_float64(device, dtype, capturable, scale):
    if dtype is torch.float16 and scale != 1:
        pytest.skip("squares leave float16's range")
    check_adam(device, dtype, capturable, scale)


@pytest.mark.parametrize(
    ("dtype", "copy"),
    [
        (torch.float32, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.bfloat16),
    ],
)
def test_copies_are_written_with_the_parameters(device, dtype, copy):
    check_adam(device, dtype, False, copy=copy)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0), (0.999, 0.9999)])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("steps", [1, 50])
def test_other_betas_from_the_first_step_on(device, betas, capturable, steps):
    """At t = 1, sqrt(v) / sqrt(1 - b2) is |g| for any 1 - b2."""
    options = {"shapes": [(7,)], "steps": steps, "betas": betas, "capturable": capturable, "start": torch.float32}
    (got,), _ = train(device, torch.float32, "cuda", **options)
    (want,), _ = train(device, torch.float64, "reference", **options)
    torch.testing.assert_close(got.double(), want, rtol=steps * 1e-7 + 2e-7, atol=steps * 1e-7 + 2e-7)


def test_atan2_at_its_corners(device):
    """Gradients that are 0, infinite, NaN, or change size greatly between steps."""
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-20, 1e15, -3.0], device=device)
    after = []
    for backend in ("reference", "cuda"):
        p = torch.nn.Parameter(torch.zeros(8, device=device))
        optimizer = AdamATan2([p], lr=1.0)
        with k.use_backend(backend):
            for g in (values, 1e-3 * values, values.flip(0)):
                p.grad = g.clone()
                optimizer.step()
        after.append(p.detach())
    torch.testing.assert_close(after[1], after[0], rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("capturable", [False, True])
def test_more_parameters_than_a_launch_takes(device, capturable):
    """A launch takes 64 parameters, so 129 need three launches; each counts its steps."""
    shapes = [(1 + i % 5,) for i in range(129)]
    options = {"shapes": shapes, "capturable": capturable, "start": torch.float32}
    (ours, optimizer), (want, _) = (
        train(device, torch.float32, backend, **options) for backend in ("cuda", "reference")
    )
    for p, q in zip(ours, want, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        assert optimizer.state[p]["step"] == 4


def test_late_parameters_and_parameters_without_gradient(device):
    """A parameter without a gradient stays and has no state; one added later counts its own steps."""

    def steps(backend, capturable):
        a, b, c = (torch.nn.Parameter(random((n,), device, torch.float32, n)) for n in (5, 4097, 3))
        optimizer = AdamATan2([{"params": [a, b]}, {"params": [c], "lr": 0.2}], lr=0.05, capturable=capturable)
        with k.use_backend(backend):
            for step in range(3):
                for p in (a, c) if step == 0 else (a, b, c):
                    p.grad = torch.full_like(p, 0.5 - step)
                before = b.detach().clone()
                optimizer.step()
                assert step > 0 or (torch.equal(b, before) and b not in optimizer.state)
        assert [int(optimizer.state[p]["step"]) for p in (a, b, c)] == [3, 2, 3]
        return [p.detach() for p in (a, b, c)]

    for capturable in (False, True):
        for got, want in zip(steps("cuda", capturable), steps("reference", capturable), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_empty_parameters_alone_count_their_steps(device):
    p, rate = torch.empty(0, 3, device=device), torch.tensor(0.1, device=device)
    for count, lr, capturable in ((torch.zeros(()), 0.1, False), (torch.zeros((), device=device), rate, True)):
        with k.use_backend("cuda"):
            adam_atan2(Step([p], [p], [p], [p], [count], None, lr, (0.9, 0.95), 0.0, capturable, {}))
        assert count == 1


def test_addresses_that_no_vector_fits(device):
    """Gradients and averages that are not aligned to 16 bytes, as in buckets, or not contiguous."""

    def steps(backend):
        p = torch.nn.Parameter(random((CHUNK + 8,), device, torch.float32, 0))
        q = torch.nn.Parameter(random((6, 4), device, torch.float32, 1))
        optimizer = AdamATan2([p, q], lr=0.05)
        kept = []
        with k.use_backend(backend):
            for step in range(4):
                bucket = random((p.numel() + 8,), device, torch.float32, 2 + step)
                kept.append(bucket)
                p.grad, q.grad = bucket[step : step + p.numel()], random((4, 6), device, torch.float32, 9 + step).t()
                optimizer.step()
        return p.detach(), q.detach()

    for got, want in zip(steps("cuda"), steps("reference"), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capturable", [False, True])
def test_state_goes_from_one_backend_to_the_other(device, capturable):
    params, optimizer = train(device, torch.float32, "cuda", torch.float32, capturable=capturable)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    twin = AdamATan2(twins)
    twin.load_state_dict(deepcopy(optimizer.state_dict()))
    for p, q in zip(params, twins, strict=True):
        p.grad = q.grad = torch.full_like(p, 0.25)
    with k.use_backend("reference"):
        optimizer.step()
    with k.use_backend("cuda"):
        twin.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("capturable", [False, True])
def test_adam_gives_the_same_bits_in_any_order(cuda_on_cpu, capturable):
    results = []
    for order in (0, *ORDERS):
        cuda_on_cpu.configure(order=order)
        params, _ = train("cpu", torch.float32, "cuda", torch.float32, capturable=capturable, copy=torch.bfloat16)
        results.append(params)
    assert all(torch.equal(p, q) for other in results[1:] for p, q in zip(results[0], other, strict=True))


def check_adam_stays_in_its_tensors(simt, sizes=(1, 5, CHUNK, CHUNK + 3)):
    """Every tensor ends at the end of accessible memory."""
    for dtype, copy in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        for on_device in (False, True):
            lists = [[simt.guarded(random((n,), "cpu", dtype, seed)) for n in sizes] for seed in range(3)]
            squares = [simt.guarded(m.square()) for m in lists[2]]
            copies = [simt.guarded(torch.zeros(n, dtype=copy)) for n in sizes]
            counts = [simt.guarded(torch.full((1,), 4.0)) for _ in sizes]
            rate, arrived = (simt.guarded(torch.full((1,), 0.1)), simt.guarded(torch.zeros(1, dtype=torch.int32)))
            before = [g.clone() for g in lists[1]]
            native.load("cuda").module.adam_atan2(
                *lists, squares, copies, counts, 0.1, rate if on_device else None, 0.9, 0.95, 0.1,
                arrived if on_device else None,
            )  # fmt: skip
            assert all(torch.equal(g, b) for g, b in zip(lists[1], before, strict=True))
            assert all(torch.equal(c, p.to(copy)) for c, p in zip(copies, lists[0], strict=True))
            assert all(count == 5 for count in counts) and arrived == 0


def test_adam_stays_in_its_tensors(cuda_on_cpu):
    check_adam_stays_in_its_tensors(cuda_on_cpu)


def test_what_adam_cannot_serve(device):
    def reason(p, lr=0.1, capturable=False, count=None):
        count = torch.zeros((), device=device if capturable else "cpu") if count is None else count
        with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable) as error:
            adam_atan2(Step([p], [p], [p], [p], [count], None, lr, (0.9, 0.95), 0.0, capturable, {}))
        return str(error.value)

    assert "float32, bfloat16 and float16, not float64" in reason(torch.ones(4, dtype=torch.float64, device=device))
    assert "not contiguous" in reason(torch.ones(4, 3, device=device).t())
    if device == "cuda":
        p = torch.ones(4, device=device)
        assert "needs capturable=True" in reason(p, torch.tensor(0.1, device=device))
        assert "on the parameters' device" in reason(p, capturable=True, count=torch.zeros(()))
        assert "need capturable=True" in reason(p, count=torch.zeros((), device=device))


def test_old_values_can_not_be_differentiated_through(device):
    p = torch.nn.Parameter(torch.ones(4, device=device))
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    with k.use_backend("cuda"):
        AdamATan2([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_cpu_tensors_are_not_for_cuda():
    p = torch.nn.Parameter(torch.ones(4))
    p.grad = torch.ones_like(p)
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="for cuda tensors, not cpu"):
        AdamATan2([p]).step()


# ---- SparseSignSGD


def rows(device, N, D, E, dtype=torch.float32, ids_dtype=torch.int64):
    """Gradients are integers, so the signs of their sums are exact."""
    generator = torch.Generator().manual_seed(N)
    ids = torch.randint(0, E, (N,), generator=generator, dtype=ids_dtype)
    weights, grads = torch.randn(E, D, generator=generator), torch.randint(-4, 5, (N, D), generator=generator)
    return weights.to(device, dtype), ids.to(device), grads.to(device, dtype)


def check_sparse(device, N, D, E, dtype=torch.float32, ids_dtype=torch.int64, on_device=False):
    weights, ids, grads = rows(device, N, D, E, dtype, ids_dtype)
    want = weights.double()
    for own in ids.unique().tolist():
        total = grads[ids == own].double().sum(0)
        want[own] = want[own] * (1 - 0.03 * 0.5) - 0.03 * total.sign()
    before, rate = weights.clone(), torch.tensor(0.03, device=device) if on_device else 0.03
    with k.use_backend("cuda"):
        sparse_sign_sgd(weights, ids, grads, rate, 0.5)
    untouched = torch.ones(E, dtype=torch.bool, device=device)
    untouched[ids.long()] = False
    assert torch.equal(weights[untouched], before[untouched])
    torch.testing.assert_close(weights.double(), want, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 8)


@pytest.mark.parametrize(("ids_dtype", "on_device"), [(torch.int32, False), (torch.int64, True)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("N", "D", "E"), [(1, 1, 1), (7, 16, 3), (40, 130, 1), (33, 512, 1000), (0, 4, 3), (70, 600, 9)]
)
def test_sparse_sign_sgd(device, N, D, E, dtype, ids_dtype, on_device):
    check_sparse(device, N, D, E, dtype, ids_dtype, on_device)


def test_sparse_sums_as_exactly_as_pytorch(device):
    """Signs of sums of any numbers may differ only where the sum is 0 within rounding."""
    weights, ids, _ = rows(device, 300, 32, 5)
    grads = random((300, 32), device, torch.float32, 7)
    sums = torch.stack([grads[ids == own].double().sum(0) for own in range(5)])
    with k.use_backend("cuda"):
        after = weights.clone()
        sparse_sign_sgd(after, ids, grads, 1.0, 0.0)
    certain = sums.abs() > 1e-5
    assert certain.float().mean() > 0.99
    assert torch.equal((weights - after).round().sign()[certain], sums.sign().float()[certain])


def test_sparse_gives_the_same_bits_in_any_order(cuda_on_cpu):
    weights, ids, _ = rows("cpu", 40, 200, 3)
    grads, results = random((40, 200), "cpu", torch.float32, 0), []
    for order in (0, *ORDERS):
        cuda_on_cpu.configure(order=order)
        results.append(weights.clone())
        with k.use_backend("cuda"):
            sparse_sign_sgd(results[-1], ids, grads, 0.01, 0.1)
    assert all(torch.equal(results[0], other) for other in results[1:])


def check_sparse_stays_in_its_tensors(simt):
    for N, D in ((1, 1), (33, 70), (40, 513)):
        weights, ids, grads = (simt.guarded(t) for t in rows("cpu", N, D, 5))
        ids[0] = 4  # includes the last row
        want, before = weights.clone(), grads.clone()
        with k.use_backend("reference"):
            sparse_sign_sgd(want, ids, grads, 0.1, 0.1)
        with k.use_backend("cuda"):
            sparse_sign_sgd(weights, ids, grads, 0.1, 0.1)
        torch.testing.assert_close(weights, want, rtol=1e-6, atol=1e-6)
        assert torch.equal(grads, before)


def test_sparse_stays_in_its_tensors(cuda_on_cpu):
    check_sparse_stays_in_its_tensors(cuda_on_cpu)


def test_identifiers_that_are_no_row_are_passed_over(device):
    weights, grads = torch.ones(3, 4, device=device), torch.ones(5, 4, device=device)
    ids = torch.tensor([3, -1, 1, 2**40, -(2**40)], device=device)
    with k.use_backend("cuda"):
        sparse_sign_sgd(weights, ids, grads, 0.5, 0.0)
    assert weights[:, 0].tolist() == [1.0, 0.5, 1.0]


@pytest.mark.parametrize("on_device", [False, True])
def test_sparse_optimizer(device, on_device):
    table = SparseEmbedding(5, 2).train().to(device)
    table.weights.fill_(1.0)
    optimizer = SparseSignSGD([table], lr=torch.tensor(0.1, device=device) if on_device else 0.1, weight_decay=0.5)
    ids = torch.tensor([[2, 0, 2, 2], [9, 9, 9, 9]], device=device)[0]
    gradient = torch.tensor([[1.0, 0.0, 1.0, -2.0], [3.0, -1.0, -1.0, -1.0]], device=device).t()  # not contiguous
    with k.use_backend("cuda"):
        (table(ids) * gradient).sum().backward()
        optimizer.step()
    want = torch.tensor([[0.95, 1.05], [1.0, 1.0], [0.95, 0.85], [1.0, 1.0], [1.0, 1.0]], device=device)
    torch.testing.assert_close(table.weights, want)


def test_what_sparse_cannot_serve(device):
    weights, ids, grads = rows(device, 3, 4, 4)
    for arguments, reason in (
        ((weights.t(), ids, grads), "not contiguous"),
        ((weights, ids, grads.half()), "the gradients are torch.float16 and the weights torch.float32"),
        ((weights.double(), ids, grads.double()), "not float64"),
    ):
        with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match=reason):
            sparse_sign_sgd(*arguments, 0.1, 0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
def test_optimizers_in_a_cuda_graph_with_steps_outside_it_between_replays():
    def steps(graphed):
        p, rate = torch.nn.Parameter(torch.ones(3 * CHUNK, device="cuda")), torch.tensor(0.05, device="cuda")
        table = SparseEmbedding(9, 4).train().to("cuda")
        optimizers = AdamATan2([p], lr=rate, capturable=True), SparseSignSGD([table], lr=rate)
        inside, outside = torch.full_like(p, 0.5), torch.linspace(-1, 1, p.numel(), device="cuda")
        ids = torch.tensor([1, 2, 1, 7], device="cuda")

        def step(gradient):
            p.grad = gradient
            table(ids)
            table.local_weights.grad = torch.ones(4, 4, device="cuda")
            for optimizer in optimizers:
                optimizer.step()

        with k.use_backend("cuda"):
            step(outside)
            if graphed:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    step(inside)
            for _ in range(3):
                graph.replay() if graphed else step(inside)
                step(outside)
                rate.mul_(0.5)
        assert optimizers[0].state[p]["step"] == 7
        return p.detach(), table.weights

    for got, want in zip(steps(True), steps(False), strict=True):
        assert torch.equal(got, want)


# ---- stablemax_cross_entropy


def run(logits, labels, dloss, backend, ignore_index=-100):
    logits = logits.detach().clone().requires_grad_()
    with k.use_backend(backend):
        loss = k.stablemax_cross_entropy(logits, labels, ignore_index)
    return loss.detach(), torch.autograd.grad(loss, logits, dloss.to(loss.dtype))[0]


def check_loss(logits, labels, dloss, ignore_index=-100):
    want, want_gradient = run(logits.double(), labels, dloss, "reference", ignore_index)
    loss, gradient = run(logits, labels, dloss, "cuda", ignore_index)
    assert loss.dtype is torch.float32 and loss.shape == labels.shape
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape
    # cancellation limits float64 for a small loss and a label's small gradient: 1e-15 of the subtracted values
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-13)
    info = torch.finfo(logits.dtype)
    absolute = info.smallest_normal * info.eps if logits.dtype is torch.float16 else 1e-15
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=max(1e-6, info.eps), atol=absolute)


def tokens(device, shape, scale, dtype=torch.float32, label_dtype=torch.int64):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * scale).clamp(-6e4, 6e4)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=generator, dtype=label_dtype)
    labels[torch.rand(shape[:-1], generator=generator) < 0.2] = -100
    dloss = torch.randn(shape[:-1], generator=generator)
    return logits.to(device, dtype), labels.to(device), dloss.to(device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 3.0, 1e3, 3e4])
@pytest.mark.parametrize(
    "shape", [(3, 17, 6), (2, 40, 11), (129, 12), (7, 64), (5, 65), (11,), (5, 1), (3, 1024), (2, 1025), (2, 3001)]
)
def test_loss_against_float64(device, shape, scale, dtype):
    check_loss(*tokens(device, shape, scale, dtype))


@pytest.mark.parametrize("scale", [3.0, 3e4])
def test_loss_of_many_columns(device, scale):
    check_loss(*tokens(device, (2, 50000), scale))


def check_extreme_labels(device, V, size):
    """Losses near 0 are accurate, and so are sums of equal numbers, whose rounding errors add up.

    Here the reference is a float64 formula that doesn't cancel.
    """
    logits = torch.full((4, V), -size, device=device)
    logits[0, V // 2] = size
    logits[1] = size
    logits[1, V - 1] = -size
    logits[2] += torch.arange(V, device=device) % 7
    labels = torch.tensor([V // 2, V - 1, 0, V - 1], device=device)
    dloss = torch.tensor([1.0, -2.0, 3.0, 0.5], device=device)
    x = logits.double()
    s = torch.where(x < 0, 1 / (1 - x), 1 + x)
    own = s.gather(-1, labels[:, None])
    label = torch.arange(V, device=device) == labels[:, None]
    others = torch.where(label, 0, s).sum(-1, keepdim=True)
    slope = torch.where(x < 0, s * s, 1)
    total = others + own
    want_gradient = torch.where(label, -slope * others / (total * own), slope / total) * dloss[:, None]
    loss, gradient = run(logits, labels, dloss, "cuda")
    torch.testing.assert_close(loss.double(), torch.log1p(others / own)[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize("V", [6, 11, 12, 1000, 50000])
@pytest.mark.parametrize("size", [2.7, 1e3, 1e5])
def test_a_label_that_dominates_and_one_that_vanishes(device, V, size):
    check_extreme_labels(device, V, size)


def test_labels_of_32_bits_and_another_ignore_index(device):
    logits, labels, dloss = tokens(device, (9, 11), 2.0, label_dtype=torch.int32)
    check_loss(logits, labels, dloss)
    check_loss(logits, labels.clamp(min=0), dloss, ignore_index=0)


def test_ignored_tokens_have_loss_and_gradient_0_even_with_nan_logits(device):
    logits, labels, dloss = tokens(device, (4, 6), 1.0)
    labels[1], labels[2] = -100, 3
    logits[1] = float("nan")
    loss, gradient = run(logits, labels, dloss, "cuda")
    assert loss[1] == 0 and gradient[1].eq(0).all() and gradient[2].ne(0).all()


def test_a_label_that_is_no_column_gives_nan_and_reads_nothing(device):
    logits, _, dloss = tokens(device, (4, 6), 1.0)
    labels = torch.tensor([6, -1, 2, 2**40], device=device)
    loss, gradient = run(logits, labels, dloss, "cuda")
    assert loss.isnan().tolist() == gradient[:, 0].isnan().tolist() == [True, True, False, True]


def test_empty_batch_and_non_contiguous_inputs(device):
    check_loss(*tokens(device, (0, 11), 1.0))
    logits, labels, dloss = tokens(device, (11, 5, 8), 1.0)
    logits = logits.permute(1, 2, 0)
    labels = tokens(device, (8, 5, 11), 1.0)[1].t()
    before = logits.clone()
    check_loss(logits, labels, dloss[:5, :1].expand(5, 8))
    assert torch.equal(logits, before)


def check_argmax(device, V):
    logits, labels, _ = tokens(device, (40, V), 3.0)
    logits[4, V // 2] = 1e5
    logits[5, -1] = 1e5
    logits[6] = -1e5
    logits[7] = float("-inf")
    with k.use_backend("cuda"):
        loss, largest = stablemax_cross_entropy_with_argmax(logits, labels)
        alone = k.stablemax_cross_entropy(logits, labels)
    torch.testing.assert_close(loss, alone, rtol=0, atol=0, equal_nan=True)  # a row of only -inf has a NaN loss
    assert torch.equal(largest, logits.argmax(-1))


@pytest.mark.parametrize("V", [1, 6, 11, 1000, 5000])
def test_argmax_and_the_same_loss(device, V):
    check_argmax(device, V)


def check_first_of_equals(device, V):
    logits, labels = torch.ones(2, V, device=device), torch.zeros(2, device=device, dtype=torch.long)
    logits[1] = float("nan")  # no NaN is the largest, but argmax is a valid column
    with k.use_backend("cuda"):
        _, largest = stablemax_cross_entropy_with_argmax(logits, labels)
    assert largest.tolist() == [0, 0]


@pytest.mark.parametrize("V", [11, 1000, 5000])
def test_the_first_of_equal_logits(device, V):
    check_first_of_equals(device, V)


def test_the_loss_has_the_same_bits_in_any_order(cuda_on_cpu):
    for V in (11, 500, 3000):
        inputs, results = tokens("cpu", (5, V), 3.0), []
        for order in (0, *ORDERS):
            cuda_on_cpu.configure(order=order)
            results.append(run(*inputs, "cuda"))
        assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_the_loss_stays_in_its_tensors(cuda_on_cpu):
    module, guarded = cuda_on_cpu.module, cuda_on_cpu.guarded
    shapes = {(3, 11): torch.float32, (33, 1): torch.bfloat16, (2, 70): torch.float16, (2, 1100): torch.float32}
    for shape, dtype in shapes.items():
        logits, labels, dloss = (guarded(t) for t in tokens("cpu", shape, 2.0, dtype))
        labels[-1] = shape[-1]  # after the last logit
        loss, total, others = (guarded(torch.full_like(dloss, float("nan"))) for _ in range(3))
        argmax, dlogits = guarded(torch.full_like(labels, -7)), guarded(torch.full_like(logits, float("nan")))
        before = logits.clone()
        module.stablemax_forward(logits, labels, -100, loss, total, others, argmax)
        module.stablemax_backward(dloss, logits, labels, total, others, -100, dlogits)
        want = run(logits, labels, dloss, "cuda")
        assert torch.equal(loss[:-1], want[0][:-1]) and torch.equal(dlogits[:-1], want[1][:-1])
        assert loss[-1].isnan() and torch.equal(argmax, logits.argmax(-1)) and torch.equal(logits, before)


def test_float64_is_refused_with_the_reason(device):
    logits, labels, _ = tokens(device, (3, 6), 1.0, torch.float64)
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="stablemax_cross_entropy.*not float64"):
        k.stablemax_cross_entropy(logits, labels)


def test_compiles_without_graph_breaks(device):
    torch._dynamo.reset()
    logits, labels, dloss = tokens(device, (6, 11), 2.0)
    logits.requires_grad_()
    function = torch.compile(lambda x, y: k.stablemax_cross_entropy(2 * x, y), fullgraph=True, backend="aot_eager")
    with k.use_backend("cuda"):
        loss = function(logits, labels)
        want = k.stablemax_cross_entropy(2 * logits, labels)
    assert torch.equal(loss, want)
    assert torch.equal(*(torch.autograd.grad(x, logits, dloss)[0] for x in (loss, want)))


def test_launchers_are_registered(device):
    logits, labels, dloss = tokens(device, (3, 11), 1.0)
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.cuda_stablemax_forward.default, (logits, labels, -100))
    _, total, others, _ = ops.cuda_stablemax_forward(logits, labels, -100)
    torch.library.opcheck(ops.cuda_stablemax_backward.default, (dloss, logits, labels, total, others, -100))


# ---- the comparison with triton


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton's interpreter is for machines without a GPU")
def test_tuning_compares_both_once_they_agree(cuda_on_cpu, monkeypatch):
    """Small problems in Triton's interpreter, in float16, which it computes correctly."""
    pytest.importorskip("triton")
    for name, value in {
        "BATCH": 2,
        "POSITIONS": 5,
        "D": 64,
        "INNER": 64,
        "HEADS": 2,
        "LAYERS": 1,
        "PUZZLES": 3,
    }.items():
        monkeypatch.setattr(tuning, name, value)

    def clock(function):
        function()
        return 1.0 if backends.requested() == "cuda" else 2.0

    # without rope_attention: its backward loops over a range, which needs the interpreter setup of tests/hrm_kernels
    for op in ("stablemax_cross_entropy", "adam_atan2", "sparse_sign_sgd"):
        seconds = tuning.compare(op, torch.device("cpu"), torch.float16, clock)
        assert list(seconds.values()) == [{"triton": 2.0, "cuda": 1.0}] and tuning.cuda_leads(seconds)
    idle = SimpleNamespace(adam_atan2=lambda *arguments: None)
    monkeypatch.setattr(native, "load", lambda name: native.Native(idle, None))
    with pytest.raises(RuntimeError, match="adam_atan2, all matrices: cuda differs from triton by"):
        tuning.compare("adam_atan2", torch.device("cpu"), torch.float16, clock)


# ---- kernels with a mistake


ADAM, SPARSE, LOSS = "adam_atan2", "sparse_sign_sgd", "stablemax_cross_entropy"


def steps_on_device(simt):
    check_adam("cpu", torch.float32, True)


MISTAKES = {
    "a block counts before others have read": (ADAM, "== gridDim.x - 1", "== 0", steps_on_device),
    "no barrier": (ADAM, "  }\n  __syncthreads();\n  if (*last)", "  }\n  if (*last)", steps_on_device),
    "a row is stepped twice": (
        SPARSE,
        "m < n; m += 32",
        "m < n - 1; m += 32",
        lambda simt: check_sparse("cpu", 40, 130, 1),
    ),
    "columns behind the last": (
        SPARSE,
        "if (first + 32 * c >= D) continue;",
        "",
        check_sparse_stays_in_its_tensors,
    ),
    "no barrier of the shares": (LOSS, "    __syncthreads();\n", "", lambda simt: check_argmax("cpu", 5000)),
    "rows are mixed": (
        LOSS,
        "(kLanes < 32 ? kLanes : 32) / 2",
        "16",
        lambda simt: check_loss(*tokens("cpu", (40, 11), 3.0)),
    ),
}
MORE_MISTAKES = {
    "blocks stay counted": (ADAM, "if (threadIdx.x == 0) *s.arrived = 0;", "", steps_on_device),
    "chunks of the one before": (
        ADAM,
        "s.first[i + half] <= chunk",
        "s.first[i + half] < chunk",
        steps_on_device,
    ),
    "elements behind the last": (
        ADAM,
        "start + kChunk < numel ? start + kChunk : numel",
        "start + kChunk",
        check_adam_stays_in_its_tensors,
    ),
    "leaves the first gradient out": (
        SPARSE,
        "int64_t start = n;",
        "int64_t start = n + 1;",
        lambda simt: check_sparse("cpu", 33, 48, 1000),
    ),
    "lost digits stay lost": (
        LOSS,
        "rest += (value - (sum - part)) + (x - part);",
        "",
        lambda simt: check_extreme_labels("cpu", 50000, 2.7),
    ),
    "a gradient that cancels": (
        LOSS,
        "? -r * share",
        "? root * (root * inverse) - r",
        lambda simt: check_extreme_labels("cpu", 6, 1e5),
    ),
    "the last of equal logits": (
        LOSS,
        "other.column < column",
        "other.column > column",
        lambda simt: check_first_of_equals("cpu", 1000),
    ),
}


@pytest.mark.parametrize(
    "mistake", [*MISTAKES, *(pytest.param(mistake, marks=pytest.mark.slow) for mistake in MORE_MISTAKES)]
)
def test_a_mistake_is_found(broken, mistake):
    *change, check = (MISTAKES | MORE_MISTAKES)[mistake]
    simt = broken(*change)
    for order in (0, 1, 2, 3):
        simt.configure(order=order)
        try:
            check(simt)
        except (AssertionError, RuntimeError):
            return
    pytest.fail("the checks pass, in every order of threads")


def test_second_order_gradients_of_the_loss(device):
    def penalty(logits, backend):
        logits = logits.detach().requires_grad_()
        with k.use_backend(backend):
            loss = k.stablemax_cross_entropy(logits, torch.tensor([3, -100, 0], device=device)).sum()
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), logits)[0]

    logits = random((3, 11), device, torch.float32, 0)
    got, exact = penalty(logits, "cuda"), penalty(logits.double(), "reference")
    assert (got.double() - exact).abs().max() <= 1e-6 * exact.abs().max()
