"""The cpu backend: error against float64 at most twice plain PyTorch's, on every instruction set of the machine."""

import gc

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import native, packing, recycling
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
from hrm_kernels.ops.transformer_block.packing import pack
from hrm_kernels.optim import AdamATan2, SparseSignSGD

library = native.load("cpu")
pytestmark = [
    pytest.mark.skipif(library.reason is not None, reason=str(library.reason)),
    pytest.mark.usefixtures("poisoned"),
]
DTYPES = [torch.float32, torch.bfloat16]


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(count, dim, heads, head_dim, inner, dtype=torch.float64):
    wide = heads * head_dim
    shapes = ((3 * wide, dim), (dim, wide), (2 * inner, dim), (dim, inner))
    return [
        k.BlockWeights(*(random(*s, seed=10 * i + j, scale=s[1] ** -0.5).to(dtype) for j, s in enumerate(shapes)))
        for i in range(count)
    ]


def within(got, plain, want, dtype, name, epsilons=2):
    """The design's rule, relative to the size of the whole result."""
    assert got.dtype == plain.dtype and got.shape == plain.shape
    if not want.numel():
        return
    error, allowed = ((x.double() - want).abs().max().item() for x in (got, plain))
    bound = 2 * allowed + epsilons * torch.finfo(dtype).eps * want.abs().max().item()
    assert error <= bound, f"{name}: {error:.2e}, allowed {bound:.2e}"


def test_used_memory_is_poisoned_as_new_memory_is():
    recycling.empty(1000).zero_()
    assert recycling.empty(1000).isnan().all() and recycling.empty(500, 4, dtype=torch.bfloat16).isnan().all()


def test_swiglu_far_out(instruction_set):
    gate = torch.tensor([-1e4, -100.0, -80.0, 0.0, 80.0, 100.0, 1e4, float("nan")])
    with k.use_backend("cpu"):
        got = k.swiglu(torch.cat((gate, torch.ones(8))))
    want = torch.nn.functional.silu(gate.double())
    assert got[7].isnan() and torch.allclose(got[:7].double(), want[:7], rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("inputs, outputs", [(32, 2), (512, 2), (64, 11), (300, 700)])
def test_a_row_of_a_product_is_the_same_wherever_it_stands(inputs, outputs, dtype, instruction_set):
    """Which PyTorch's own do not promise: MKL gave rows of ``[2, 32] x [32, 2]`` different bits."""
    x, weight, bias = (
        random(150, inputs).to(dtype),
        random(outputs, inputs, seed=1).to(dtype),
        random(outputs).to(dtype),
    )
    threads = torch.get_num_threads()
    with k.use_backend("cpu"):
        want = k.linear(x, weight, bias)
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                for first, last in ((0, 1), (149, 150), (0, 2), (3, 9), (1, 49), (0, 97), (50, 150)):
                    assert torch.equal(k.linear(x[first:last], weight, bias), want[first:last])
                    assert torch.equal(k.linear(x[first:last].flip(0), weight, bias), want[first:last].flip(0))
                assert torch.equal(k.linear(x[:1].expand(70, -1), weight, bias), want[:1].expand(70, -1))
        finally:
            torch.set_num_threads(threads)


def test_blocks_of_unequal_sizes_are_left_to_the_reference():
    weights = [*layers(1, 64, 2, 32, 96, torch.float32), *layers(1, 64, 2, 32, 64, torch.float32)]
    z = torch.zeros(1, 3, 64)
    with k.use_backend("cpu"), pytest.raises(k.BackendUnavailable, match="equal sizes"):
        k.reasoning_module(z, z, weights, None, None, 2)


def test_rows_and_threads_do_not_matter():
    """Bit for bit: a row's result depends neither on the rest of the batch nor on the number of threads."""
    weights, tables = layers(2, 64, 2, 32, 96, torch.float32), rope_tables(19, 32)
    x, threads = random(5, 19, 64).float(), torch.get_num_threads()

    def run(x):
        inputs = [x.clone().requires_grad_(), *(w.clone().requires_grad_() for block in weights for w in block)]
        blocks = [k.BlockWeights(*inputs[i : i + 4]) for i in range(1, len(inputs), 4)]
        out = k.reasoning_module(inputs[0], x, blocks, *tables, 2)
        return [out, *torch.autograd.grad(out, inputs, random(*out.shape, seed=3).float()[: len(x)])]

    with k.use_backend("cpu"):
        try:
            torch.set_num_threads(1)
            one = run(x)
            torch.set_num_threads(3)
            three = run(x)
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(one, three))
        assert torch.equal(run(x[2:3])[0], one[0][2:3])


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_runs_and_threads_do_not_matter_to_conv_swiglu(dtype):
    """Bit for bit: 70 positions are three runs, and 600 channels two tiles."""
    gate_up, weight, bias = (random(*shape).to(dtype) for shape in ((3, 70, 1200), (600, 2), (600,)))
    threads = torch.get_num_threads()

    def run():
        inputs = [one.clone().requires_grad_() for one in (gate_up, weight, bias)]
        out = k.conv_swiglu(*inputs)
        return [out, *torch.autograd.grad(out, inputs, random(3, 70, 600, seed=3).to(dtype))]

    with k.use_backend("cpu"):
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(run())
        finally:
            torch.set_num_threads(threads)
        assert all(map(torch.equal, results[0] * 2, results[1] + results[2]))
        assert torch.equal(k.conv_swiglu(gate_up[1], weight, bias), results[0][0][1])
        assert torch.equal(k.conv_swiglu(gate_up[:, :37], weight, bias), results[0][0][:, :37])  # it is causal


def test_long_sums_round_as_sums_of_short_parts(instruction_set):
    """The rounding of one long sum grows with the root of its length: here to 11 units and more, relative to the whole.

    Gradients of weights are sums over 4096 channels and 1024 rows, the mixing's output one over 512.
    """
    B, S, T, D, inner = 128, 8, 512, 32, 32
    shapes = (B, S, D), (B, S, D), (2 * T, S), (S, T), (2 * inner, D), (D, inner)
    dout, *inputs = (
        random(*shape, seed=i, scale=shape[-1] ** -0.5 if i > 1 else 1).float() for i, shape in enumerate(shapes)
    )

    def run(backend, dtype):
        x, *weights = (one.to(dtype, copy=True).requires_grad_() for one in inputs)
        with k.use_backend(backend):
            out = k.transformer_block(x, k.MixingBlockWeights(*weights), None, None, 0)
        return [out.detach(), *torch.autograd.grad(out, [x, *weights], dout.to(dtype))]

    for got, want in zip(run("cpu", torch.float32), run("reference", torch.float64)):
        units = (got - want).norm() / want.norm() / 2**-24
        assert units <= 8, f"{units:.1f} units of rounding, relative to the whole"


def test_rows_and_threads_do_not_matter_to_conv_cycles():
    """Bit for bit, with tasks that end within the rows of the batch; the gradients neither."""
    weights = [
        k.ConvBlockWeights(*block, random(96, 2).float(), random(96).float())
        for block in layers(2, 64, 2, 32, 96, torch.float32)
    ]
    z, x, tables = random(5, 19, 64).float(), random(5, 19, 64, seed=1).float(), rope_tables(19, 32)
    threads, results = torch.get_num_threads(), []
    with k.use_backend("cpu"):
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                inputs = [one.clone().requires_grad_() for one in (z, x, *weights[0], *weights[1])]
                blocks = [k.ConvBlockWeights(*inputs[first : first + 6]) for first in (2, 8)]
                out = k.conv_cycles(*inputs[:2], blocks, *tables, 2, 2)
                results.append([out, *torch.autograd.grad(out, inputs, random(5, 19, 64, seed=2).float())])
        finally:
            torch.set_num_threads(threads)
        assert all(map(torch.equal, results[0] * 2, results[1] + results[2]))
        assert torch.equal(k.conv_cycles(z, x, weights, *tables, 2, 2), results[0][0])
        assert torch.equal(k.conv_cycles(z[2:3], x[2:3], weights, *tables, 2, 2), results[0][0][2:3])


def test_weights_are_packed_again_when_they_change():
    weights = [torch.nn.Parameter(w) for w in layers(1, 32, 2, 16, 32, torch.float32)[0]]
    pack(weights, 2)
    first = pack(weights, 2)  # (what comes a second time is kept)
    assert pack(weights, 2) is first
    with torch.no_grad():
        weights[2][3, 3] += 1
    second = pack(weights, 2)
    assert second is not first and not torch.equal(second.forward, first.forward)
    weights[1].data.mul_(2)  # has no version
    third = pack(weights, 2)
    assert third is not second
    weights[0].data = weights[0].data.clone()
    assert pack(weights, 2) is not third
    kept = len(packing._entries)
    del weights, first, second, third
    gc.collect()
    assert len(packing._entries) < kept, "packed weights go with the weights"


def test_stablemax_argmax_and_bad_labels():
    from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

    logits = random(7, 11).float()
    with k.use_backend("cpu"):
        _, argmax = stablemax_cross_entropy_with_argmax(logits, torch.zeros(7, dtype=torch.int64))
        assert torch.equal(argmax, logits.argmax(-1))
        for label in (11, -1):
            with pytest.raises(IndexError, match=f"a label is {label}, expected 0 to 10"):
                k.stablemax_cross_entropy(logits, torch.full((7,), label))


@pytest.mark.parametrize("copies", [False, True])
def test_adam_atan2(copies, instruction_set):
    """Sizes that leave lanes over, an empty parameter, one without a gradient; bfloat16 copies written with them."""
    sizes = [(1,), (7, 3), (0,), (40_001,), (64, 8)]

    def run(dtype, backend):
        params = [torch.nn.Parameter(random(*s, seed=i).to(dtype)) for i, s in enumerate(sizes)]
        idle = torch.nn.Parameter(torch.ones(3, dtype=dtype))
        optimizer = AdamATan2([*params, idle], lr=0.1, weight_decay=0.3)
        if copies and dtype == torch.float32:
            optimizer.copies = {p: torch.zeros_like(p, dtype=torch.bfloat16) for p in params}
        versions = [p._version for p in params]
        with k.use_backend(backend):
            for step in range(3):
                for i, p in enumerate(params):
                    p.grad = random(*sizes[i], seed=50 * step + i, scale=10.0 ** (i - 2)).to(dtype)
                optimizer.step()
        assert torch.equal(idle, torch.ones_like(idle))
        assert all(p._version > v for p, v in zip(params, versions) if p.numel())
        for p, copy in optimizer.copies.items():
            assert torch.equal(copy, p.bfloat16())
        return [p.detach() for p in params] + [optimizer.state[p]["exp_avg"] for p in params if p.numel()]

    exact, plain, ours = run(torch.float64, "reference"), run(torch.float32, "reference"), run(torch.float32, "cpu")
    for index, (want, own, got) in enumerate(zip(exact, plain, ours)):
        within(got, own, want, torch.float32, f"parameter {index}", epsilons=4)


def test_atan2_at_its_ends(instruction_set):
    """Gradients of 0, of 1e-38, whose square is 0, of 3e38, whose square is infinite."""
    m = torch.tensor([0.0, -0.0, 1e-38, -1e-38, 3e38, -1.0, 1.0, 0.5])
    p = torch.nn.Parameter(torch.zeros(8))
    optimizer = AdamATan2([p], lr=1.0, betas=(0.0, 0.0))
    p.grad = m
    optimizer.state[p] = {"step": torch.zeros(()), "exp_avg": torch.zeros(8), "exp_avg_sq": torch.zeros(8)}
    with k.use_backend("cpu"):
        optimizer.step()
    want = -torch.atan2(m.double(), (m * m).double().sqrt())  # g² ends at 3e38 and at 1e-45 in float32
    torch.testing.assert_close(p.detach().double(), want, rtol=3e-7, atol=0)


def test_sparse_sign_sgd():
    table = k.nn.SparseEmbedding(10, 5).train()
    table.weights.copy_(random(10, 5))
    before = table.weights.clone()
    ids = torch.tensor([3, 1, 3, 7], dtype=torch.int32)
    table(ids)
    table.local_weights.grad = random(4, 5, seed=2).float()
    table.local_weights.grad[3] = 0
    gradients = torch.zeros(10, 5).index_add_(0, ids.long(), table.local_weights.grad)
    want = before.clone()
    for row in (1, 3, 7):
        want[row] = before[row] * (1 - 0.1 * 0.5) - 0.1 * gradients[row].sign()
    optimizer = SparseSignSGD([table], lr=0.1, weight_decay=0.5)
    with k.use_backend("cpu"):
        optimizer.step()
        torch.testing.assert_close(table.weights, want, rtol=1e-6, atol=1e-7)
        after = table.weights.clone()
        table.look_ups[-1] = table.look_ups[-1]._replace(ids=torch.tensor([3, 1, 10, 7]))
        with pytest.raises(IndexError, match="identifier is 10, expected 0 to 9"):
            optimizer.step()
    assert torch.equal(table.weights, after)


def test_sparse_sign_of_nan_is_zero():
    """As torch.sign has it, in the reference: the weight decays and moves no further."""
    weights, ids = random(4, 3).float(), torch.tensor([2, 0, 2])
    gradients = random(3, 3, seed=1).float()
    gradients[:, 1] = float("nan")
    finals = []
    for backend in ("reference", "cpu"):
        finals.append(weights.clone())
        with k.use_backend(backend):
            sparse_sign_sgd(finals[-1], ids, gradients, 0.1, 0.5)
    assert finals[0].isfinite().all()
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-6, atol=1e-7)


def test_sparse_gradients_of_another_dtype_are_left_to_the_reference():
    weights, ids, gradients = random(4, 3).float(), torch.tensor([2, 0, 2]), random(3, 3, seed=1).bfloat16()
    want, got = weights.clone(), weights.clone()
    with k.use_backend("reference"):
        sparse_sign_sgd(want, ids, gradients, 0.1, 0.5)
    with pytest.warns(UserWarning, match="runs on backend 'reference'; 'cpu' cannot serve it: the gradients are"):
        sparse_sign_sgd(got, ids, gradients, 0.1, 0.5)
    assert torch.equal(got, want) and not torch.equal(got, weights)
    message = "cpu.* cannot serve this call: the gradients are torch.bfloat16 and the weights torch.float32"
    with k.use_backend("cpu"), pytest.raises(k.BackendUnavailable, match=message):
        sparse_sign_sgd(got, ids, gradients, 0.1, 0.5)
