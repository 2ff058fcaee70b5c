"""The cpu backend's ops on tensors of any rank, size (also zero), dtype and layout: the reference's answer or an error.

tests/csrc/test_cpu_boundary.py asks the library itself.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hrm_kernels as k
from hrm_kernels import backends, native
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops import stablemax_cross_entropy
from hrm_kernels.ops.adam_atan2 import Step, adam_atan2
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd

pytestmark = [
    pytest.mark.skipif(native.load("cpu").reason is not None, reason=str(native.load("cpu").reason)),
    pytest.mark.usefixtures("poisoned"),
]
OPS = ["add_rms_norm", "swiglu", "conv_swiglu", "linear", "rope_attention", "token_mixing", "transformer_block"]
OPS += ["reasoning_module", "conv_cycles"]
OPS += ["recurrent_cycles", "recurrent_segment", "stablemax_cross_entropy", "stablemax_cross_entropy_with_argmax"]
OPS += ["adam_atan2", "sparse_sign_sgd"]
LAYOUTS = st.sampled_from(["plain", "transposed", "strided", "shifted", "expanded"])
MISFITS = [
    lambda x: x.unsqueeze(0),
    lambda x: x[0] if len(x) else x.flatten(),
    lambda x: x[..., 1:],
    lambda x: torch.cat((x, x)),
    torch.Tensor.double,
    torch.Tensor.half,
    torch.Tensor.int,
]


def test_the_table_is_covered():
    assert {name for name, op in backends._ops.items() if "cpu" in op.backends} == set(OPS)


def laid_out(values, layout):
    """The values in another order in memory; "expanded" repeats the first of them."""
    if layout == "transposed" and values.ndim > 1:
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack((values, values), -1)[..., 0]
    if layout == "shifted":
        return torch.cat((values.new_zeros(1), values.flatten()))[1:].view(values.shape)
    if layout == "expanded" and len(values):
        return values[:1].expand(values.shape)
    return values


@st.composite
def calls(draw, op):
    """``function(*tensors)``, which returns what the op computes or changes, and valid tensors for it."""
    dtype = torch.float32 if "atan2" in op or "sign" in op else draw(st.sampled_from([torch.float32, torch.bfloat16]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))

    def size(least=0, most=4):
        return draw(st.integers(least, most))

    def tensor(*shape):
        scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
        return laid_out((scale * torch.randn(shape, generator=generator)).to(dtype), draw(LAYOUTS))

    def labels(count, *shape):
        values = torch.randint(
            0, count, shape, generator=generator, dtype=draw(st.sampled_from([torch.int32, torch.int64]))
        )
        return laid_out(values, draw(LAYOUTS))

    leading, width = draw(st.lists(st.integers(0, 4), max_size=3)), size(2, 40)
    if op == "add_rms_norm":
        return k.add_rms_norm, [tensor(*leading, width), tensor(*leading, width)]
    if op == "swiglu":
        return k.swiglu, [tensor(*leading, 2 * width)]
    if op == "conv_swiglu":
        return k.conv_swiglu, [tensor(*leading, size(), 2 * width), tensor(width, 2), tensor(width)]
    if op == "linear":
        outputs, given = size(1, 40), [tensor(*leading, width)]
        return k.linear, [*given, tensor(outputs, width), *([tensor(outputs)] if draw(st.booleans()) else [])]
    if op.startswith("stablemax"):
        leading = leading or [1]
        return getattr(stablemax_cross_entropy, op), [tensor(*leading, width), labels(width, *leading)]
    if op == "adam_atan2":
        steps, lr, decay = size(), draw(st.sampled_from([0.0, 0.1])), draw(st.sampled_from([0.0, 0.3]))

        def adam(p, g, m, v):
            p, m, v, count = p.clone(), m.clone(), v.square(), torch.tensor(float(steps))
            adam_atan2(Step([p], [g], [m], [v], [count], None, lr, (0.9, 0.95), decay, False, {}))
            assert count == steps + 1
            return p, m, v

        contiguous = [tensor(*leading, width).contiguous() for _ in range(3)]
        return adam, [contiguous[0], tensor(*leading, width), *contiguous[1:]]
    if op == "sparse_sign_sgd":
        rows, count = size(1), size()

        def sign(table, ids, g):
            table = table.clone()
            sparse_sign_sgd(table, ids, g.mul(4).round(), 0.1, 0.2)  # sums are exact, so signs are too
            return table

        return sign, [tensor(rows, width).contiguous(), labels(rows, count), tensor(count, width)]
    batch, positions, heads, half = size(), size(1, 6), size(1, 3), size(1, 8)
    if op == "token_mixing":
        inner = size(1, 9)
        return k.token_mixing, [tensor(batch, positions, width), tensor(2 * inner, positions), tensor(positions, inner)]
    head_dim = 2 * half
    tables = rope_tables(positions + size(), head_dim) if draw(st.booleans()) else (None, None)
    if op == "rope_attention":
        qkv = tensor(batch, positions, 3 * heads * head_dim)
        return lambda qkv: k.rope_attention(qkv, *tables, heads), [qkv]
    inner, recompute = size(1, 20), draw(st.booleans())
    states = [tensor(batch, positions, width) for _ in range(3)]
    shapes = [(3 * heads * head_dim, width), (width, heads * head_dim), (2 * inner, width), (width, inner)]
    weights = [tensor(*shape) for shape in shapes]
    if op == "conv_cycles":
        cycles, convolution = size(1, 3), [tensor(inner, 2), tensor(inner)]
        return (
            lambda z, x, *weights: k.conv_cycles(z, x, [k.ConvBlockWeights(*weights)], *tables, heads, cycles),
            [*states[:2], *weights, *convolution],
        )
    if op == "transformer_block":
        return (
            lambda x, *weights: k.transformer_block(x, k.BlockWeights(*weights), *tables, heads, recompute=recompute),
            [states[0], *weights],
        )
    if op == "reasoning_module":
        return (
            lambda z, x, *weights: k.reasoning_module(
                z, x, [k.BlockWeights(*weights)], *tables, heads, recompute=recompute
            ),
            [*states[:2], *weights],
        )
    cycles = size(1, 3), size(1, 3)

    def recurrent(H, L, x, *weights):
        return getattr(k, op)(H, L, x, *[[k.BlockWeights(*weights)]] * 2, *tables, heads, *cycles)

    return recurrent, [*states, *weights]


def results(backend, function, tensors):
    """Outputs, and the gradients of all tensors that have one."""
    own = [x.detach().requires_grad_(x.is_floating_point()) for x in tensors]
    with k.use_backend(backend), torch.set_grad_enabled(function.__name__ not in ("adam", "sign")):
        out = function(*own)
        out = [out] if isinstance(out, torch.Tensor) else list(out)
        if not out[0].requires_grad:
            return out
        upstream = torch.randn(out[0].shape, generator=torch.Generator().manual_seed(1)).to(out[0].dtype)
        return [*out, *torch.autograd.grad(out[0], [x for x in own if x.requires_grad], upstream)]


def wide(tensors):
    return [x.double() if x.is_floating_point() else x for x in tensors]


@pytest.mark.parametrize("op", OPS)
@settings(deadline=None, max_examples=40, derandomize=True)
@given(data=st.data())
def test_any_tensors(op, data):
    function, tensors = data.draw(calls(op))
    valid = data.draw(st.booleans())
    if not valid:
        index = data.draw(st.integers(0, len(tensors) - 1))
        tensors[index] = data.draw(st.sampled_from(MISFITS))(tensors[index])
    dtype = tensors[0].dtype
    try:
        ours = results("cpu", function, tensors)
    except (TypeError, ValueError, IndexError, k.BackendUnavailable) as error:
        assert not valid and str(error)
        return
    exact, plain = results("reference", function, wide(tensors)), results("reference", function, tensors)
    for got, own, want in zip(ours, plain, exact, strict=True):
        assert got.dtype == own.dtype and got.shape == want.shape
        if want.numel():
            error, allowed = ((x.double() - want).abs().max().item() for x in (got, own))
            bound = 2 * allowed + 16 * torch.finfo(dtype).eps * max(1.0, want.abs().max().item())
            assert error <= bound, f"{error:.2e}, allowed {bound:.2e}"
