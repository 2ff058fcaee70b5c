"""The optimisers on the triton backend: error against float64 at most twice that of the plain PyTorch steps."""

import copy
import pickle

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.ops.adam_atan2 import Step, triton_kernels
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
from hrm_kernels.ops.sparse_sign_sgd.reference import update_existing_rows
from hrm_kernels.optim import AdamATan2, SparseSignSGD

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])  # see design: traps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(3, 5), (0,), (40, 64), (), (triton_kernels.CHUNK,), (triton_kernels.CHUNK + 1,), (2, 3, 7), (0, 4)]


def tensors(dtype, seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(shape, generator=generator) * scale).to(DEVICE, dtype) for shape in SHAPES]


def train(dtype, backend, steps=4, scale=1.0, capturable=False, lr=0.05, start=torch.float32, **options):
    """``(parameters, optimizer)`` after some steps; tensors are those of dtype ``start``, whatever computes."""
    params = [torch.nn.Parameter(p.to(dtype)) for p in tensors(start, 0)]
    rate = torch.tensor(lr, device=DEVICE) if capturable else lr
    optimizer = AdamATan2(params, lr=rate, weight_decay=0.2, capturable=capturable, **options)
    with k.use_backend(backend):
        for step in range(steps):
            for p, g in zip(params, tensors(start, 1 + step, scale), strict=True):
                p.grad = g.to(dtype)
            if step == 2:
                params[2].grad = torch.zeros_like(params[2])
            optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e3])
@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_adam_atan2_against_float64(dtype, capturable, scale):
    if dtype is torch.float16 and scale != 1:
        pytest.skip("squares leave float16's range")
    arguments = {"capturable": capturable, "scale": scale, "start": dtype}
    exact, _ = train(torch.float64, "reference", **arguments)
    (plain, _), (ours, optimizer) = (train(dtype, backend, **arguments) for backend in ("reference", "triton"))
    for got, own, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == dtype
        if want.numel():
            error, allowed = ((x.double() - want).abs().max() for x in (got, own))
            epsilon = torch.finfo(dtype).eps * want.abs().max()
            assert error <= 2 * allowed + epsilon, f"{error:.2e} against {allowed:.2e}"
            assert optimizer.state[got]["step"] == 4


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.0)])
@pytest.mark.parametrize("capturable", [False, True])
def test_first_step_with_other_betas(betas, capturable):
    """At t = 1 sqrt(v) / sqrt(1 - b2) is |g|, however small 1 - b2 is."""
    params, _ = train(torch.float32, "triton", steps=1, betas=betas, capturable=capturable)
    exact, _ = train(torch.float64, "reference", steps=1, betas=betas, capturable=capturable)
    for got, want in zip(params, exact, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=2e-7, atol=2e-7)


def test_atan2_at_its_corners():
    """Gradients that are 0, infinite, NaN or of very different size from step to step."""
    values = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1e-20, 1e15, -3.0], device=DEVICE)
    after = []
    for backend in ("reference", "triton"):
        p = torch.nn.Parameter(torch.zeros(8, device=DEVICE))
        optimizer = AdamATan2([p], lr=1.0)
        with k.use_backend(backend):
            for g in (values, 1e-3 * values, values.flip(0)):
                p.grad = g.clone()
                optimizer.step()
        after.append(p.detach())
    torch.testing.assert_close(after[1], after[0], rtol=1e-6, atol=1e-6, equal_nan=True)


def test_every_angle():
    """m and sqrt(v) far apart: small gradients, a large one, then some of alternating signs."""
    after = {}
    start = torch.linspace(-8, 8, 501).exp().to(DEVICE)
    for dtype, backend in ((torch.float64, "reference"), (torch.float32, "triton")):
        p = torch.nn.Parameter(torch.zeros(501, device=DEVICE, dtype=dtype))
        optimizer = AdamATan2([p], lr=1.0, betas=(0.5, 0.99))
        angles = []
        with k.use_backend(backend):
            for step in range(36):
                before = p.detach().clone()
                size = {24: 1.0}.get(step, 1e-3)
                p.grad = (start * size * (-1) ** (step // 4)).to(dtype)
                optimizer.step()
                angles.append((before - p.detach()) * (1 - 0.5 ** (step + 1)))
        after[dtype] = torch.stack(angles).double()
    assert after[torch.float64].abs().max() > 1.1 and after[torch.float64].abs().min() < 0.1
    torch.testing.assert_close(after[torch.float32], after[torch.float64], rtol=2e-6, atol=2e-6)


def test_several_dtypes_groups_and_late_parameters():
    """A parameter without a gradient stays and has no state; one that comes later counts its own steps."""

    def steps(backend):
        a, b, c = (torch.nn.Parameter(p) for p in tensors(torch.float32, 0)[2:5])
        h = torch.nn.Parameter(tensors(torch.float16, 0)[2])
        optimizer = AdamATan2([{"params": [a, b]}, {"params": [c, h], "lr": 0.2}], lr=0.05, weight_decay=0.1)
        with k.use_backend(backend):
            for step in range(3):
                for p in (a, c, h) if step == 0 else (a, b, c, h):
                    p.grad = torch.full_like(p, 0.5 - step)
                before = b.detach().clone()
                optimizer.step()
                assert step > 0 or (torch.equal(b, before) and b not in optimizer.state)
        assert [int(optimizer.state[p]["step"]) for p in (a, b, c, h)] == [3, 2, 3, 3]
        return [p.detach() for p in (a, b, c, h)]

    for got, want in zip(steps("triton"), steps("reference"), strict=True):
        half = got.dtype is torch.float16  # of which the reference rounds every intermediate result
        torch.testing.assert_close(got, want, rtol=0, atol=4e-3 if half else 1e-6)


def test_many_parameters_take_a_wider_table():
    def steps(backend):
        params = [torch.nn.Parameter(torch.full((1 + i % 5,), float(i), device=DEVICE)) for i in range(70)]
        optimizer = AdamATan2(params, lr=0.5, capturable=True)
        for p in params:
            p.grad = p.detach() - 30
        with k.use_backend(backend):
            optimizer.step()
        return torch.cat([p.detach() for p in params])

    torch.testing.assert_close(steps("triton"), steps("reference"), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_copies_are_written_with_the_parameters(backend):
    a, b = (torch.nn.Parameter(p) for p in tensors(torch.float32, 0)[4:6])
    half = torch.float16 if DEVICE == "cpu" else torch.bfloat16
    optimizer = AdamATan2([a, b], lr=0.05)
    optimizer.copies[b] = torch.empty_like(b, dtype=half)
    for _ in range(2):
        a.grad, b.grad = torch.ones_like(a), torch.randn_like(b)
        with k.use_backend(backend):
            optimizer.step()
        assert torch.equal(optimizer.copies[b], b.detach().to(half))
    assert "copies" not in optimizer.state_dict()


def test_the_table_follows_addresses_and_unaligned_ones():
    """Gradients elsewhere in each step, some beginning in the middle of 16 bytes; and a parameter that moves."""

    def steps(backend):
        p = torch.nn.Parameter(tensors(torch.float32, 0)[5])
        optimizer = AdamATan2([p], lr=0.05)
        kept = []
        with k.use_backend(backend):
            for step in range(4):
                bucket = torch.randn(p.numel() + 8, generator=torch.Generator().manual_seed(step)).to(DEVICE)
                kept.append(bucket)
                p.grad = bucket[step : step + p.numel()]
                if step == 2:
                    kept.append(p.data)
                    p.data = p.data.clone()
                optimizer.step()
        if backend == "triton":
            assert len(optimizer._tables) == 1
        return p.detach()

    torch.testing.assert_close(steps("triton"), steps("reference"), rtol=1e-6, atol=1e-6)


def test_gradients_that_are_not_contiguous():
    p = torch.nn.Parameter(torch.ones(6, 4, device=DEVICE))
    p.grad = torch.randn(4, 6, device=DEVICE).t()
    before = p.grad.clone()
    want = 1 - 0.1 / 0.1 * torch.tensor(0.1).atan().item() * before.sign()  # the average of one is a tenth of it
    with k.use_backend("triton"):
        AdamATan2([p], lr=0.1).step()
    torch.testing.assert_close(p.detach(), want)
    assert torch.equal(p.grad, before)


@pytest.mark.parametrize("capturable", [False, True])
def test_state_goes_from_one_backend_to_the_other(capturable):
    params, optimizer = train(torch.float32, "triton", capturable=capturable)
    twins = [torch.nn.Parameter(p.detach().clone()) for p in params]
    twin = AdamATan2(twins)
    twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for p, q in zip(params, twins, strict=True):
        p.grad = q.grad = torch.full_like(p, 0.25)
    with k.use_backend("triton"):
        optimizer.step()
    with k.use_backend("reference"):
        twin.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_pickled_optimizers_go_on():
    params, optimizer = train(torch.float32, "triton")
    again = pickle.loads(pickle.dumps(optimizer))
    p, q = params[2], again.param_groups[0]["params"][2]
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(p)
    with k.use_backend("triton"):
        optimizer.step()
        again.step()
    assert torch.equal(p, q)


def test_same_gradients_same_parameters():
    (first, _), (again, _) = (train(torch.float32, "triton") for _ in range(2))
    assert all(torch.equal(p, q) for p, q in zip(first, again, strict=True))


def test_old_values_can_not_be_differentiated_through():
    p = torch.nn.Parameter(torch.ones(4, device=DEVICE))
    loss = (p * p).sum()
    p.grad = torch.ones_like(p)
    with k.use_backend("triton"):
        AdamATan2([p]).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_float64_and_strange_strides_are_refused_with_the_reason():
    p = torch.nn.Parameter(torch.ones(4, dtype=torch.float64, device=DEVICE))
    q = torch.nn.Parameter(torch.ones(4, 3, device=DEVICE).t())
    p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
    with k.use_backend("triton"):
        with pytest.raises(k.BackendUnavailable, match="adam_atan2.*not float64"):
            AdamATan2([p]).step()
        with pytest.raises(k.BackendUnavailable, match="adam_atan2.*not contiguous"):
            AdamATan2([q]).step()
        with pytest.raises(k.BackendUnavailable, match="sparse_sign_sgd.*not contiguous"):
            sparse_sign_sgd(q.detach(), torch.zeros(1, dtype=torch.int64, device=DEVICE), q.grad[:1], 0.1, 0.1)


def test_explain_takes_lists(capsys):
    p = [torch.ones(4, device=DEVICE)]
    chosen = k.explain("adam_atan2", Step(p, p, p, p, [torch.zeros(())], None, 0.1, (0.9, 0.95), 0.0, False, {}))
    assert chosen in (("cpu", "reference") if DEVICE == "cpu" else ("cuda", "triton"))
    assert "adam_atan2 on" in capsys.readouterr().out


def rows(N, D, E, dtype=torch.float32, ids_dtype=torch.int64):
    generator = torch.Generator().manual_seed(N)
    ids = torch.randint(0, E, (N,), generator=generator, dtype=ids_dtype)
    weights, grads = torch.randn(E, D, generator=generator), torch.randint(-4, 5, (N, D), generator=generator)
    return weights.to(DEVICE, dtype), ids.to(DEVICE), grads.to(DEVICE, dtype)  # sums of integers: signs are exact


@pytest.mark.parametrize(("ids_dtype", "on_device"), [(torch.int32, False), (torch.int64, True)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("N", "D", "E"), [(1, 1, 1), (7, 16, 3), (40, 130, 1), (33, 48, 1000), (0, 4, 3)])
def test_sparse_sign_sgd(N, D, E, dtype, ids_dtype, on_device):
    weights, ids, grads = rows(N, D, E, dtype, ids_dtype)
    want = weights.double()
    for own in ids.unique().tolist():
        total = grads[ids == own].double().sum(0)
        want[own] = want[own] * (1 - 0.03 * 0.5) - 0.03 * total.sign()
    before, rate = weights.clone(), torch.tensor(0.03, device=DEVICE) if on_device else 0.03
    with k.use_backend("triton"):
        sparse_sign_sgd(weights, ids, grads, rate, 0.5)
    untouched = torch.ones(E, dtype=torch.bool, device=DEVICE)
    untouched[ids.long()] = False
    assert torch.equal(weights[untouched], before[untouched])
    torch.testing.assert_close(weights.double(), want, rtol=torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps / 8)


def test_more_identifiers_than_are_looked_at_together():
    test_sparse_sign_sgd(260, 2, 3, torch.float32, torch.int64, False)


@pytest.mark.parametrize("ids", [[3, -1, 1, 2**40, -(2**40), 1], [2**31, -1, 3, -7, 9, 3]])
def test_identifiers_that_are_not_rows_are_skipped(ids):
    """Where an error would wait for a GPU. Memory around the table stays as it is."""
    memory = torch.ones(9, 4, device=DEVICE)
    before, grads, ids = memory.clone(), torch.ones(6, 4, device=DEVICE), torch.tensor(ids, device=DEVICE)
    with k.use_backend("triton"):
        sparse_sign_sgd(memory[3:6], ids, grads, 0.5, 0.0)
    before[4] -= 0.5 * (ids == 1).any()
    assert torch.equal(memory, before)
    twin = torch.ones(3, 4, device=DEVICE)
    update_existing_rows(twin, ids, grads, 0.5, 0.0)  # the reference on a GPU
    assert torch.equal(twin, memory[3:6])


def test_sparse_sign_sgd_is_the_same_each_time():
    weights, ids, _ = rows(40, 24, 3)
    grads, results = torch.randn(40, 24, device=DEVICE), []
    for _ in range(2):
        results.append(weights.clone())
        with k.use_backend("triton"):
            sparse_sign_sgd(results[-1], ids, grads, 0.01, 0.1)
    assert torch.equal(*results)


@pytest.mark.parametrize("rate", [0.1, torch.tensor(0.1)])
def test_sparse_optimizer(rate):
    table = SparseEmbedding(5, 2).train().to(DEVICE)
    table.weights.fill_(1.0)
    optimizer = SparseSignSGD([table], lr=rate, weight_decay=0.5)
    ids = torch.tensor([[2, 0, 2, 2], [9, 9, 9, 9]], device=DEVICE)[0]
    gradient = torch.tensor([[1.0, 0.0, 1.0, -2.0], [3.0, -1.0, -1.0, -1.0]], device=DEVICE).t()  # not contiguous
    with k.use_backend("triton"):
        (table(ids) * gradient).sum().backward()
        optimizer.step()
    want = torch.tensor([[0.95, 1.05], [1.0, 1.0], [0.95, 0.85], [1.0, 1.0], [1.0, 1.0]], device=DEVICE)
    torch.testing.assert_close(table.weights, want)


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="CUDA graphs need a GPU")
def test_in_a_cuda_graph_with_steps_outside_it_between_replays():
    def steps(graphed):
        p, rate = torch.nn.Parameter(torch.ones(3000, device=DEVICE)), torch.tensor(0.05, device=DEVICE)
        table = SparseEmbedding(9, 4).train().to(DEVICE)
        optimizers = AdamATan2([p], lr=rate, capturable=True), SparseSignSGD([table], lr=rate)
        inside, outside = torch.full_like(p, 0.5), torch.linspace(-1, 1, 3000, device=DEVICE)
        ids = torch.tensor([1, 2, 1, 7], device=DEVICE)

        def step(gradient):
            p.grad = gradient
            table(ids)
            table.local_weights.grad = torch.ones(4, 4, device=DEVICE)
            for optimizer in optimizers:
                optimizer.step()

        step(outside)
        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                step(inside)
        for _ in range(3):
            graph.replay() if graphed else step(inside)
            step(outside)
            rate.mul_(0.5)
        return p.detach(), table.weights

    for got, want in zip(steps(True), steps(False), strict=True):
        assert torch.equal(got, want)
