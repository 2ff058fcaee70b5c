"""rope_attention on the triton backend: error against float64 at most twice that of plain PyTorch."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import rope_tables

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("poisoned")
CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if CUDA else [])  # see design: traps of the interpreter
# batch, positions, heads, head_dim; the interpreter is slow, so long sequences have one head
LONG = [(1, 900, 1, 32)] + ([(2, 901, 8, 64), (2, 916, 4, 128), (384, 82, 8, 64)] if CUDA else [])


def make(shape, dtype=torch.float32, rope=True):
    """qkv, tables and dout; the angles of a pair's two elements differ, which the definition allows."""
    batch, positions, heads, head_dim = shape
    torch.manual_seed(0)
    qkv = torch.randn(batch, positions, 3 * heads * head_dim, device=DEVICE).to(dtype)
    dout = torch.randn(batch, positions, heads * head_dim, device=DEVICE).to(dtype)
    if not rope:
        return qkv, None, None, dout
    angles = 3 * torch.randn(positions + 2, head_dim, device=DEVICE)
    return qkv, angles.cos(), angles.sin(), dout


def run(qkv, cos, sin, dout, heads, backend):
    qkv = qkv.detach().requires_grad_()
    with k.use_backend(backend):
        out = k.rope_attention(qkv, cos, sin, heads)
    return out.detach(), *torch.autograd.grad(out, qkv, dout.to(out.dtype))


def check(qkv, cos, sin, dout, heads):
    double = (None, None) if cos is None else (cos.double(), sin.double())
    exact = run(qkv.double(), *double, dout, heads, "reference")
    plain, ours = (run(qkv, cos, sin, dout, heads, backend) for backend in ("reference", "triton"))
    for got, torch_own, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == qkv.dtype and got.shape == want.shape
        if want.numel():
            error, allowed = ((x.double() - want).abs().max() for x in (got, torch_own))
            epsilon = torch.finfo(qkv.dtype).eps * want.abs().max().clamp(min=1)
            assert error <= 2 * allowed + epsilon, f"{error:.2e} against {allowed:.2e}"


@pytest.mark.parametrize("target", ["80", "100", "120"])
def test_the_plans_of_other_targets(target, monkeypatch):
    """Of D = 64 and S from 65, at the limit of registers: other blocks of queries, or (120) the long backward."""
    from hrm_kernels.ops.rope_attention import triton_kernels

    monkeypatch.setattr(triton_kernels, "_target", lambda qkv: target)
    arguments = make((1, 82, 1, 64), torch.float16)
    assert triton_kernels.is_short(arguments[0], 1) == (target != "120")
    check(*arguments, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [(s, d) for s in LONG for d in DTYPES if (CUDA or d is torch.float16) and (s[3], d) != (128, torch.float32)],
)
def test_long_against_float64(shape, dtype):
    check(*make(shape, dtype), shape[2])


@pytest.mark.parametrize("positions", [20, 40])
def test_large_scores(positions):
    """Nearly one-hot rows: sums of exponentials that would overflow without their maximum."""
    qkv, cos, sin, dout = make((1, positions, 1, 32))
    check(12 * qkv, cos, sin, dout, 1)
    check(-(12 * qkv).abs(), None, None, dout, 1)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # rows beyond S, which are not written
@pytest.mark.parametrize("positions", [5, 40])
def test_very_negative_scores(positions):
    """q and k opposed: beyond S, where k is 0, the scores are higher than any real one."""
    qkv, _, _, dout = make((1, positions, 1, 32))
    qkv[..., :32] = 20
    qkv[..., 32:64] = -20 + 0.01 * qkv[..., 32:64]
    check(qkv, None, None, dout, 1)


def test_published_tables():
    qkv, _, _, dout = make((1, 33, 2, 64))
    check(qkv, *rope_tables(40, 64, device=DEVICE), dout, 2)


@pytest.mark.parametrize("positions", [18, 40])
def test_non_contiguous_inputs_and_inputs_stay(positions):
    qkv, cos, sin, dout = make((2, positions, 1, 32))
    qkv, cos, sin = qkv.transpose(0, 1).contiguous().transpose(0, 1), cos.T.contiguous().T, sin.T.contiguous().T
    dout = dout.transpose(1, 2).contiguous().transpose(1, 2)
    before = [x.clone() for x in (qkv, cos, sin, dout)]
    check(qkv, cos, sin, dout, 1)
    assert all(torch.equal(x, y) for x, y in zip(before, (qkv, cos, sin, dout), strict=True))


@pytest.mark.parametrize("positions", [40, 130])
def test_same_input_same_output(positions):
    inputs = make((2, positions, 1, 32), torch.float16)
    first, second = run(*inputs, 1, "triton"), run(*inputs, 1, "triton")
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize("positions", [20, 40])
def test_without_gradients_the_same(positions):
    qkv, cos, sin, dout = make((1, positions, 1, 32))
    with k.use_backend("triton"), torch.no_grad():
        out = k.rope_attention(qkv.clone().requires_grad_(), cos, sin, 1)
    assert torch.equal(out, run(qkv, cos, sin, dout, 1, "triton")[0])


def test_reasons():
    qkv, cos, sin, _ = make((1, 4, 2, 32))
    for arguments, reason in [
        ((qkv, None, None, 4), "head_dim 32, 64 and 128, not 16"),
        ((qkv.repeat(1, 1, 2), None, None, 1), "no float32 kernels for head_dim 128"),
        ((qkv.double(), None, None, 2), "not float64"),
        ((qkv, cos.double(), sin, 2), "float32 tables, and cos is torch.float64"),
        ((qkv, cos, sin.clone().requires_grad_(), 2), "no gradient for sin"),
    ]:
        with k.use_backend("triton"), pytest.raises(k.BackendUnavailable, match=reason):
            k.rope_attention(*arguments)


# in float32 the long kernels serve 40 positions
@pytest.mark.parametrize(("positions", "rope"), [(9, True), (9, False), (40, True)])
def test_compiles_without_graph_breaks(positions, rope):
    torch._dynamo.reset()
    qkv, cos, sin, dout = make((1, positions, 1, 32), rope=rope)
    qkv.requires_grad_()
    function = torch.compile(lambda x: k.rope_attention(2 * x, cos, sin, 1), fullgraph=True, backend="aot_eager")
    with k.use_backend("triton"):
        out, want = function(qkv), k.rope_attention(2 * qkv, cos, sin, 1)
    torch.testing.assert_close(out, want, rtol=0, atol=0)
    gradients = [torch.autograd.grad(x, qkv, dout)[0] for x in (out, want)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


def test_launchers_are_registered():
    qkv, cos, sin, dout = make((1, 6, 1, 32))
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.triton_rope_attention.default, (qkv, cos, sin, 1, True))
    torch.library.opcheck(ops.triton_rope_attention.default, (qkv, None, None, 1, False))
    _, lse = ops.triton_rope_attention(qkv, cos, sin, 1, True)
    torch.library.opcheck(ops.triton_rope_attention_backward.default, (dout, qkv, lse, None, cos, sin, 1))
