"""Short attention in CUDA: error against float64 at most twice that of plain PyTorch in the same dtype.

It runs on a CPU, under csrc/simt. With a GPU the same cases run on it.
"""

import ctypes
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import backends
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.rope_attention import cuda_kernels
from hrm_kernels.ops.rope_attention.heads import Heads

pytestmark = pytest.mark.usefixtures("poisoned")
ROOT = Path(__file__).parents[2]
BF16, F16 = torch.bfloat16, torch.float16
POSITIONS = (1, 17, 81, 82, 97, 128)
# batch, positions, heads, head_dim: each size once; the slow cases cover every pair of sizes
FEW = [(2, 1, 2, 32), (2, 17, 2, 64), (1, 81, 1, 32), (1, 82, 1, 64), (1, 97, 1, 128), (1, 128, 1, 64)]
ALL = [(1, positions, 1, head_dim) for positions in POSITIONS for head_dim in cuda_kernels.HEAD_DIMS]


@pytest.fixture(params=["simt", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The torch device of the kernel."""
    if request.param == "simt":
        request.getfixturevalue("cuda_on_cpu")
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


def make(shape, dtype=BF16, rope=True, device="cpu"):
    """qkv, tables and dout; the angles of a pair's two elements differ, which the definition allows."""
    batch, positions, heads, head_dim = shape
    generator = torch.Generator().manual_seed(0)
    sizes = [(batch, positions, 3 * heads * head_dim), (batch, positions, heads * head_dim), (positions + 2, head_dim)]
    qkv, dout, angles = (torch.randn(size, generator=generator).to(device) for size in sizes)
    tables = ((3 * angles).cos(), (3 * angles).sin()) if rope else (None, None)
    return qkv.to(dtype), *tables, dout.to(dtype)


def run(qkv, cos, sin, dout, heads, backend="cuda"):
    qkv = qkv.detach().requires_grad_()
    with k.use_backend(backend):
        out = k.rope_attention(qkv, cos, sin, heads)
    return out.detach(), *torch.autograd.grad(out, qkv, dout.to(out.dtype))


def check(qkv, cos, sin, dout, heads):
    """Apply the error bound of the design to the result and the gradient."""
    double = (None, None) if cos is None else (cos.double(), sin.double())
    exact = run(qkv.double(), *double, dout, heads, "reference")
    plain, ours = (run(qkv, cos, sin, dout, heads, backend) for backend in ("reference", "cuda"))
    for got, torch_own, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == qkv.dtype and got.shape == want.shape
        error, allowed = ((x.double() - want).abs().max() for x in (got, torch_own))
        epsilon = torch.finfo(qkv.dtype).eps * want.abs().max().clamp(min=1)
        assert error <= 2 * allowed + epsilon, f"{error:.2e} against {allowed:.2e}"


def test_second_order_gradients_and_lazy_negation(device):
    """The reference computes second-order gradients; kernels resolve lazily negated tensors."""

    def penalty(qkv, cos, sin, backend):
        qkv = qkv.detach().requires_grad_()
        with k.use_backend(backend), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            out = k.rope_attention(qkv, cos, sin, 2)
            (gradient,) = torch.autograd.grad(out.float().sin().sum(), qkv, create_graph=True)
            return torch.autograd.grad(gradient.float().square().sum(), qkv)[0]

    qkv, cos, sin, dout = make((1, 17, 2, 64), F16, device=device)
    exact = penalty(qkv.double(), cos.double(), sin.double(), "reference")
    ours, plain = (penalty(qkv, cos, sin, backend) for backend in ("cuda", "reference"))
    error, allowed = ((gradient.double() - exact).abs().max() for gradient in (ours, plain))
    assert error <= 2 * allowed + torch.finfo(F16).eps * exact.abs().max()

    lazy = run(torch._neg_view(-qkv), cos, sin, torch._neg_view(-dout), 2)
    assert all(map(torch.equal, lazy, run(qkv, cos, sin, dout, 2)))


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize(("shape", "rope"), [(s, True) for s in FEW] + [(s, False) for s in FEW[1::2]])
def test_against_float64(device, shape, dtype, rope):
    check(*make(shape, dtype, rope, device), shape[2])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("shape", [*ALL, (3, 82, 8, 64)])
def test_all_sizes_against_float64(device, shape, dtype, rope):
    check(*make(shape, dtype, rope, device), shape[2])


@pytest.mark.slow
def test_every_number_of_positions(device):
    for positions in range(1, 129):
        check(*make((1, positions, 1, 32), F16, positions % 2 == 0, device), 1)


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_large_scores(device, dtype):
    """Nearly one-hot rows, whose sums of exponentials overflow without subtracting the maximum."""
    qkv, cos, sin, dout = make((1, 40, 1, 32), dtype, device=device)
    check(12 * qkv, cos, sin, dout, 1)
    check(-(12 * qkv).abs(), None, None, dout, 1)


@pytest.mark.parametrize("positions", [5, 40])
def test_very_negative_scores(device, positions):
    """q and k are opposed, so the scores of padding, where k is 0, exceed all real scores."""
    qkv, _, _, dout = make((1, positions, 1, 32), device=device)
    qkv[..., :32] = 20
    qkv[..., 32:64] = -20 + 0.01 * qkv[..., 32:64]
    check(qkv, None, None, dout, 1)


def test_published_tables(device):
    qkv, _, _, dout = make((1, 33, 2, 64), device=device)
    check(qkv, *rope_tables(40, 64, device=device), dout, 2)


def test_log_sum_exp(device):
    """The log-sum-exp is saved only if a gradient is needed; the result is the same."""
    qkv, cos, sin, _ = make((2, 19, 2, 32), F16, device=device)
    out, lse = cuda_kernels.forward(qkv, Heads(cos, sin, 2), True)
    q, key = (part.view(2, 19, 2, 32).double() for part in qkv.split(64, dim=-1)[:2])
    table = [t[:19, None].double() for t in (cos, sin)]
    q, key = (x * table[0] + torch.cat((-x[..., 16:], x[..., :16]), -1) * table[1] for x in (q, key))
    scores = torch.einsum("bmhd,bnhd->bhmn", q, key) / 32**0.5
    assert (lse.double() * torch.tensor(2.0).log() - scores.logsumexp(-1)).abs().max() < 5e-3  # q and k are rounded
    again, nothing = cuda_kernels.forward(qkv, Heads(cos, sin, 2), False)
    assert torch.equal(out, again) and nothing.numel() == 0
    with k.use_backend("cuda"), torch.no_grad():
        assert torch.equal(k.rope_attention(qkv.clone().requires_grad_(), cos, sin, 2), out)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_any_order_gives_the_same_bits(cuda_on_cpu, order):
    tensors_in = make((2, 40, 2, 64))
    cuda_on_cpu.configure(order=0)
    want = run(*tensors_in, 2)
    cuda_on_cpu.configure(order=order)
    assert all(torch.equal(a, b) and not a.isnan().any() for a, b in zip(run(*tensors_in, 2), want, strict=True))


def test_same_input_same_output(device):
    tensors_in = make((2, 33, 2, 64), F16, device=device)
    assert all(torch.equal(a, b) for a, b in zip(run(*tensors_in, 2), run(*tensors_in, 2), strict=True))


@pytest.mark.parametrize("shape", [(1, 1, 1, 32), (2, 19, 2, 64), (1, 128, 1, 128)])
def test_stays_in_its_tensors(cuda_on_cpu, shape):
    """Inputs and results end at the end of accessible memory."""
    batch, positions, heads, head_dim = shape
    qkv, cos, sin, dout = make(shape)
    want = run(qkv, cos, sin, dout, heads)
    module, guarded = cuda_on_cpu.module, cuda_on_cpu.guarded
    tables = [guarded(table[:positions].contiguous()) for table in (cos, sin)]
    inputs = [guarded(tensor) for tensor in (qkv, dout)]
    out, dqkv = (guarded(torch.full_like(tensor, float("nan"))) for tensor in (dout, qkv))
    lse = guarded(torch.full((batch, heads, positions), float("nan")))
    module.rope_attention_forward(inputs[0], *tables, heads, out, lse)
    module.rope_attention_backward(inputs[1], inputs[0], lse, *tables, heads, dqkv)
    assert all(torch.equal(a, b) for a, b in zip((out, dqkv), want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(inputs, (qkv, dout), strict=True)), "an input was written to"


def test_views_are_copied_and_inputs_kept(device):
    tensors_in = make((2, 18, 1, 32), F16, device=device)
    before = [tensor.clone() for tensor in tensors_in]
    want = run(*tensors_in, 1)
    qkv, cos, sin, dout = tensors_in
    turned = qkv.transpose(0, 1).contiguous().transpose(0, 1)
    shifted = torch.zeros(dout.numel() + 1, dtype=F16, device=device)[1:].view(dout.shape).copy_(dout)
    table = torch.zeros(cos.numel() + 1, device=device)[1:].view(cos.shape).copy_(cos)
    assert not turned.is_contiguous() and shifted.data_ptr() % 16 and table.data_ptr() % 8
    got = run(turned, table, sin.T.contiguous().T, shifted, 1)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(tensors_in, before, strict=True))


def test_registration(device):
    qkv, cos, sin, dout = make((1, 6, 1, 32), device=device)
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.cuda_rope_attention.default, (qkv, cos, sin, 1, True))
    torch.library.opcheck(ops.cuda_rope_attention.default, (qkv, None, None, 1, False))
    _, lse = ops.cuda_rope_attention(qkv, cos, sin, 1, True)
    torch.library.opcheck(ops.cuda_rope_attention_backward.default, (dout, qkv, lse, cos, sin, 1))


def test_compiles_without_graph_breaks(device):
    torch._dynamo.reset()
    qkv, cos, sin, dout = make((1, 9, 1, 32), device=device)
    qkv.requires_grad_()
    function = torch.compile(lambda x: k.rope_attention(2 * x, cos, sin, 1), fullgraph=True, backend="aot_eager")
    with k.use_backend("cuda"):
        out, want = function(qkv), k.rope_attention(2 * qkv, cos, sin, 1)
    assert torch.equal(out, want)
    got, want = (torch.autograd.grad(x, qkv, dout)[0] for x in (out, want))
    assert torch.equal(got, want)


def test_what_it_cannot_serve(cuda_on_cpu):
    qkv, cos, sin, _ = make((1, 4, 2, 32))
    for arguments, reason in [
        ((qkv.float(), None, None, 2), "for bfloat16 and float16, not float32"),
        ((qkv, None, None, 4), "head_dim 32, 64 and 128, not 16"),
        ((qkv.repeat(1, 40, 1), None, None, 2), "1 to 128 positions, not 1 of 160"),
        ((qkv[:0], None, None, 2), "1 to 128 positions, not 0 of 4"),
        ((qkv[:, :0], None, None, 2), "1 to 128 positions, not 1 of 0"),
        ((qkv, cos.double(), sin, 2), "float32 tables, and cos is torch.float64"),
        ((qkv, cos, sin.clone().requires_grad_(), 2), "no gradient for sin"),
    ]:
        with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match=reason):
            k.rope_attention(*arguments)


def test_cpu_tensors_are_not_for_cuda():
    qkv, cos, sin, _ = make((1, 4, 2, 32))
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="for cuda tensors, not cpu"):
        k.rope_attention(qkv, cos, sin, 2)


def test_triton_is_asked_first(cuda_on_cpu, monkeypatch):
    """Triton is preferred until a measurement says otherwise, without a warning."""
    monkeypatch.setitem(backends.PREFERENCE, "cpu", backends.PREFERENCE["cuda"])
    qkv, cos, sin, _ = make((1, 4, 2, 32), F16)
    op = backends._ops["rope_attention"]
    monkeypatch.setitem(op.backends, "triton", backends.Backend(lambda *arguments: "triton"))
    assert op.select(qkv, Heads(cos, sin, 2)) == ("triton", [])
    monkeypatch.setitem(op.backends, "triton", backends.Backend(lambda *arguments: "triton", lambda *arguments: "no"))
    assert op.select(qkv, Heads(cos, sin, 2)) == ("cuda", ["'triton' cannot serve it: no"])


def without(barrier):
    return f"__syncthreads();  // {barrier}", f"// {barrier}"


# Faults that the tests above must detect: a text of rope_attention.cu and its replacement.
FAULTS = {
    "forward: no barrier": without("k and v are complete"),
    "forward: no wait": (
        "ptx::copy_async_wait<0>();\n  __syncthreads();  // k and v are complete",
        "__syncthreads();",
    ),
    "forward: keys beyond S": ("% 2 < S ? value * log2_scale", "% 2 < S + 1 ? value * log2_scale"),
    "forward: words not exchanged": ("bit <= 2; bit *= 2", "bit <= 1; bit *= 2"),
    "both: k is not rotated": ("      rotate(k, c, r, cos, sin);\n", ""),
    "both: overlapping rows": ("/ 32 * 16;", "/ 32 * 15;"),
    "backward: no barrier for k": without("k is complete"),
    "backward: no barrier for v": without("v and dout are complete"),
    "backward: no wait": (
        "ptx::copy_async_wait<0>();\n  __syncthreads();  // v and dout are complete",
        "__syncthreads();",
    ),
    "backward: q too early": without("all threads have read v"),
    "backward: probabilities too early": without("all threads have read k"),
    "backward: no barrier for probabilities": without("the probabilities are complete"),
    "backward: gradients too early": without("all threads have read the probabilities"),
    "backward: no barrier for gradients": without("the gradients of scores are complete"),
    "backward: rotated forwards": ("b.x * sin[1].x, low[1]", "b.x * -sin[1].x, low[1]"),
    "backward: exchange too small": ("backward && row < kScoreBytes ? kScoreBytes : row", "row"),
}
QUICK = ("forward: no wait", "backward: q too early")


class Problem(ctypes.Structure):
    """hrm_rope_attention in csrc/cuda/kernels.h."""

    _fields_ = [(name, ctypes.c_int32) for name in ("batch", "positions", "heads", "head_dim", "dtype")] + [
        (name, ctypes.c_void_p) for name in ("qkv", "cos", "sin", "out", "lse", "dout", "dqkv")
    ]


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    """Compile a changed rope_attention.cu as csrc/simt does, with one kernel per direction; returns its library."""
    folder, csrc = tmp_path_factory.mktemp("broken"), ROOT / "csrc"
    command = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    flags = [
        "-std=c++17",
        "-O1",
        "-fPIC",
        "-DHRM_SIMT",
        f"-I{csrc / 'simt' / 'include'}",
        f"-I{csrc}",
        "-Wno-unknown-pragmas",
    ]

    def call(*arguments):
        result = subprocess.run([command, *flags, *arguments], capture_output=True, text=True)
        assert result.returncode == 0, result.stderr

    def compiled(source):
        changed, library = folder / "changed.cu", folder / f"{time.monotonic_ns()}.so"
        harness = [folder / "simt.o", folder / "race.o"]
        for file in harness:
            if not file.exists():
                call("-c", csrc / "simt" / f"{file.stem}.cpp", "-o", file)
        for others in ("<Number, 32>", "<Number, 128>"):
            source = source.replace(others, "<Number, 64>")
        changed.write_text(source.replace("kernel_for<Float16>", "kernel_for<BFloat16>"))
        call("-shared", *harness, "-xc++", changed, "-o", library, "-ldl")
        return ctypes.CDLL(str(library))

    return compiled


@pytest.mark.parametrize("fault", [pytest.param(f, marks=() if f in QUICK else pytest.mark.slow) for f in FAULTS])
def test_faults_are_detected(cuda_on_cpu, compiler, fault):
    """A kernel without one barrier or wait gives an error or other results in some order of threads."""
    source = (ROOT / "csrc" / "cuda" / "rope_attention.cu").read_text()
    before, after = FAULTS[fault]
    assert before in source
    library = compiler(source.replace(before, after))
    functions = [library.hrm_cuda_rope_attention_forward, library.hrm_cuda_rope_attention_backward]
    for function in functions:
        function.restype = ctypes.c_char_p

    positions, head_dim = 41, 64
    qkv, cos, sin, dout = make((1, positions, 1, head_dim))
    want = run(qkv, cos, sin, dout, 1)
    _, lse = cuda_kernels.forward(qkv, Heads(cos, sin, 1), True)
    detected = []
    for order in range(4):
        type(cuda_on_cpu)(library, None).configure(1, order)
        got = [torch.full_like(tensor, float("nan")) for tensor in (dout, qkv)]
        tensors = (qkv, cos, sin, got[0], lse.clone(), dout, got[1])
        problem = Problem(1, positions, 1, head_dim, 1, *(tensor.data_ptr() for tensor in tensors))
        errors = []
        for function in functions:
            tensors[4].copy_(lse)  # faults of the forward must not reach the backward
            errors.append(function(ctypes.byref(problem), None))
        wrong = [error is not None or not torch.equal(a, b) for error, a, b in zip(errors, got, want, strict=True)]
        part = fault.partition(":")[0]
        detected.append(wrong[0] if part == "forward" else wrong[1] if part == "backward" else all(wrong))
        assert part != "backward" or not wrong[0]
    assert any(detected), detected
