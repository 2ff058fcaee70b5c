"""Any arguments from Python give the right result of the cuda library or a Python error, never a crash."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_kernels import native
from hrm_kernels.ops.adam_atan2 import Step
from hrm_kernels.ops.adam_atan2 import reference as adam
from hrm_kernels.ops.recurrent_cycles import reference as cycles
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.rope_attention.reference import rope_attention
from hrm_kernels.ops.sparse_sign_sgd import reference as sparse
from hrm_kernels.ops.stablemax_cross_entropy.reference import stablemax_cross_entropy, with_argmax

BF16 = torch.bfloat16
BATCH, POSITIONS, DIM, HEADS, INNER = 2, 5, 128, 2, 128
SIZES = (BATCH, POSITIONS, DIM, HEADS, DIM // HEADS, INNER)


def arguments(module, H_cycles=2, L_cycles=1):
    """Valid arguments, as a list; weights and states are small, so that one can replace another."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).mul(0.1).to(BF16)

    states = [random(BATCH, POSITIONS, DIM) for _ in range(3)]
    shapes = ((3 * DIM, DIM), (DIM, DIM), (2 * INNER, DIM), (DIM, INNER))
    layers = [[random(*shape) for shape in shapes] for _ in range(2)]
    tables = [torch.rand(POSITIONS, DIM // HEADS, generator=generator) for _ in range(2)]
    results = [torch.full((BATCH, POSITIONS, DIM), float("nan"), dtype=BF16) for _ in range(2)]
    workspace = torch.empty(module.recurrent_cycles_workspace(*SIZES), dtype=torch.uint8)
    return [*states, *layers, *tables, HEADS, H_cycles, L_cycles, 1e-5, *results, workspace]


def to(value, dtype):
    """Copy tensors, also in lists; convert floating ones to ``dtype`` unless it is None."""
    if isinstance(value, list):
        return [to(item, dtype) for item in value]
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().clone().to(dtype if dtype and value.is_floating_point() else value.dtype)


def gradient(function, x, dout):
    x.requires_grad_()
    return torch.autograd.grad(function(x), x, dout)[0]


def answers(function, call):
    """The reference's results of an accepted call, by the index of the argument that receives them."""
    match function, call:
        case "recurrent_cycles", [z_H, z_L, x, H, L, cos, sin, heads, H_cycles, L_cycles, eps, *_]:
            H, L = ([layers[i : i + 4] for i in range(0, len(layers), 4)] for layers in (H, L))
            z_H, z_L = cycles.recurrent_cycles(z_H, z_L, x, H, L, Heads(cos, sin, heads), H_cycles, L_cycles, eps)
            # a state without an update is not written
            return ({11: z_H} if H_cycles > 1 else {}) | ({12: z_L} if L_cycles and H_cycles * L_cycles > 1 else {})
        case "adam_atan2", [params, grads, means, squares, copies, counts, lr, device_lr, beta1, beta2, decay, _]:
            if params:
                lr, counts = lr if device_lr is None else device_lr.reshape(()), [c.reshape(()) for c in counts]
                rest = (copies or None, lr, (beta1, beta2), decay, True, {})
                adam.adam_atan2(Step(params, grads, means, squares, counts, *rest))
            return {0: params, 2: means, 3: squares, 4: copies}
        case "sparse_sign_sgd", [weights, ids, grads, lr, device_lr, decay]:
            rows = (ids >= 0) & (ids < len(weights))  # the kernel skips others
            lr = lr if device_lr is None else device_lr.reshape(())
            sparse.sparse_sign_sgd(weights, ids[rows].long(), grads[rows], lr, decay)
            return {0: weights}
        case "stablemax_forward", [logits, labels, ignore_index, *_]:
            return dict(zip((3, 6), with_argmax(logits, labels, ignore_index)))
        case "stablemax_backward", [dloss, logits, labels, _, _, ignore_index, _]:
            return {6: gradient(lambda x: stablemax_cross_entropy(x, labels, ignore_index), logits, dloss)}
        case "rope_attention_forward", [qkv, cos, sin, heads, *_]:
            return {4: rope_attention(qkv, Heads(cos, sin, heads))}
        case "rope_attention_backward", [dout, qkv, _, cos, sin, heads, _]:
            return {6: gradient(lambda qkv: rope_attention(qkv, Heads(cos, sin, heads)), qkv, dout)}


def run(module, function, call, kept=()):
    """Call a function and check its result: its error is at most twice that of the reference in the same dtypes.

    kept: results of a forward that this call needs, by index; if one is replaced, no result is right.
    Returns whether the call was accepted.
    """
    before = to(call, None)
    try:
        getattr(module, function)(*call)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        assert str(error)
        return False
    least = 0 if function in ("adam_atan2", "sparse_sign_sgd") else 1e-12  # eps
    if any(isinstance(number, float) and not least <= number < 1 for number in call):
        return True  # not a rate, decay or eps of any model
    if any(call[index] is not tensor for index, tensor in kept):
        return True
    if function.startswith("stablemax"):
        logits, labels, ignore_index = call[:3] if function == "stablemax_forward" else [*call[1:3], call[5]]
        if ((labels != ignore_index) & ((labels < 0) | (labels >= logits.shape[-1]))).any():
            return True  # the op refuses such labels
    exact, plain = (answers(function, to(before, dtype)) for dtype in (torch.float64, None))
    for index, want in exact.items():
        lists = [value if isinstance(value, list) else [value] for value in (call[index], plain[index], want)]
        for got, same_dtype, expected in zip(*lists, strict=True):
            if expected.numel():
                error, allowed = ((x.double() - expected).abs().max() for x in (got, same_dtype))
                epsilon = torch.finfo(got.dtype).eps if got.is_floating_point() else 0
                assert error <= 2 * allowed + 8 * epsilon * max(1, expected.abs().max()), (
                    f"{function}, argument {index}"
                )
    return True


NAMES = "z_H z_L x H_layers L_layers cos sin num_heads H_cycles L_cycles eps new_z_H new_z_L workspace".split()


@pytest.mark.parametrize(
    ("name", "change", "error", "message"),
    [
        ("z_H", lambda t: t.float(), TypeError, "z_H is float32; pass bfloat16"),
        ("z_H", lambda t: t[0], ValueError, r"z_H has shape \[5, 128\]; pass \[B, S, D\]"),
        ("z_L", lambda t: t[:1], ValueError, r"z_L has shape \[1, 5, 128\] and z_H \[2, 5, 128\]; pass equal shapes"),
        ("x", lambda t: t.transpose(0, 1), ValueError, r"x of shape \[5, 2, 128\] is not contiguous; pass x.contig"),
        ("z_H", lambda t: t[:, :0], ValueError, "a size is 0; pass sizes from 1"),
        ("z_H", lambda t: t.flatten()[1:].new_zeros(t.numel() + 1)[1:].view(t.shape), ValueError, "aligned to 16 byte"),
        ("H_layers", lambda layers: layers[:3], ValueError, r"H_layers has 3 tensors; pass four for each block"),
        ("H_layers", lambda layers: 17 * layers, ValueError, "H_layers has 68 tensors; .* for 1 to 16 blocks"),
        ("L_layers", lambda layers: [*layers[:3], None], TypeError, "L_layers contains None; pass only tensors"),
        ("z_H", lambda t: t.to(torch.complex64), TypeError, "z_H is of DLPack type code 5 with 64 bits; pass bfloat16"),
        ("L_layers", lambda layers: [], ValueError, "L_layers has 0 tensors"),
        (
            "L_layers",
            lambda layers: [*layers[:3], layers[3].t()],
            ValueError,
            r"L_layers\[0\].down .* is not contiguous",
        ),
        ("L_layers", lambda layers: [layers[1], *layers[1:]], ValueError, r"L_layers\[0\].qkv has shape \[128, 128\]"),
        ("H_layers", lambda layers: [layers[1][:127], *layers[1:]], ValueError, "the first block has qkv"),
        ("cos", lambda table: None, TypeError, "one of cos and sin is None"),
        ("cos", lambda table: table.double(), TypeError, "cos is float64; pass float32"),
        ("sin", lambda table: table[:4], ValueError, r"sin has shape \[4, 64\] and cos \[5, 64\]"),
        ("num_heads", lambda heads: 0, ValueError, "num_heads 0"),
        ("num_heads", lambda heads: 3, ValueError, "num_heads 3"),
        ("num_heads", lambda heads: 8, RuntimeError, "head_dim 32, 64 and 128"),
        ("H_cycles", lambda cycles: 0, ValueError, "H_cycles is 0"),
        ("L_cycles", lambda cycles: -1, ValueError, "L_cycles -1"),
        ("L_cycles", lambda cycles: 2**40, ValueError, "L_cycles 1099511627776"),
        ("new_z_L", lambda t: t.half(), TypeError, "new_z_L is float16; pass bfloat16"),
        ("workspace", lambda t: t[:-1], ValueError, "workspace has .* bytes; pass recurrent_cycles_workspace"),
        ("workspace", lambda t: t.to(torch.int8), TypeError, "workspace is int8; pass uint8"),
        ("eps", lambda eps: "small", TypeError, "argument #10"),
        ("z_H", lambda t: None, TypeError, "argument #0"),
    ],
)
def test_errors_say_what_was_passed_and_what_to_pass(simt, name, change, error, message):
    simt.configure()
    call = arguments(simt.module)
    index = NAMES.index(name)
    call[index] = change(call[index])
    if name == "cos" and call[index] is not None:
        call[index + 1] = change(call[index + 1])
    with pytest.raises(error, match=message):
        simt.module.recurrent_cycles(*call)


def test_one_table_of_two(simt):
    call = arguments(simt.module)
    for name in ("cos", "sin"):
        call[NAMES.index(name)] = call[NAMES.index(name)][:4].contiguous()
    with pytest.raises(ValueError, match=r"cos has shape \[4, 64\]; pass \[>= S, d\] = \[>= 5, 64\]"):
        simt.module.recurrent_cycles(*call)


@st.composite
def tensors(draw):
    """Tensors of any rank, sizes (also zero), dtype, strides and offset; sometimes other values."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.sampled_from([None, 0, 1.5, "text", [], (), torch.zeros(())]))
    choices = [0, 1, 2, 3, 5, 32, 64, 127, 128, 256, 384]
    shape = draw(st.lists(st.sampled_from(choices), max_size=3))
    dtypes = [BF16, torch.float32, torch.float16, torch.float64, torch.uint8, torch.int64, torch.bool, torch.complex64]
    tensor = torch.zeros(shape, dtype=draw(st.sampled_from(dtypes)))
    how = draw(st.sampled_from(["plain", "transposed", "expanded", "strided", "shifted"]))
    if how == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if how == "expanded" and tensor.ndim and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    if how == "strided" and tensor.ndim:
        return tensor[..., ::2]
    if how == "shifted":
        return torch.zeros(tensor.numel() + 1, dtype=tensor.dtype)[1:].view(tensor.shape)
    return tensor


numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([-1, 0, 1, 2, 3, 4, 8]))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_arguments(simt, data):
    """One to three arguments are replaced by anything."""
    simt.configure(2)
    call = arguments(simt.module)
    for index in data.draw(st.lists(st.integers(0, len(call) - 1), min_size=1, max_size=3, unique=True)):
        if isinstance(call[index], list):
            call[index] = list(call[index])
            if data.draw(st.booleans()):
                call[index][data.draw(st.integers(0, 3))] = data.draw(tensors())
            else:
                call[index] = data.draw(st.lists(tensors(), max_size=9))
        elif isinstance(call[index], torch.Tensor):
            call[index] = data.draw(tensors())
        elif isinstance(call[index], float):
            call[index] = data.draw(st.floats(width=32))
        else:
            # only few cycles, because the kernel would compute them all
            call[index] = data.draw(numbers.filter(lambda n: not 4 < n <= 2**20))
    run(simt.module, "recurrent_cycles", call)


@pytest.mark.parametrize(
    "function",
    ["adam_atan2", "sparse_sign_sgd", "stablemax_forward", "stablemax_backward", "recurrent_cycles"]
    + ["rope_attention_forward", "rope_attention_backward"],
)
def test_valid_arguments(simt, function):
    simt.configure(2)
    if function == "recurrent_cycles":
        call, kept = arguments(simt.module), ()
    else:
        make = attention_arguments if function.startswith("rope") else optimizer_and_loss_arguments
        call, kept = make(simt.module, function)
    assert run(simt.module, function, call, kept)


def optimizer_and_loss_arguments(module, function):
    """Valid arguments, as a list, and those that a forward computed, with their index."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    if function == "adam_atan2":
        lists = [[random(5, 32), random(64)] for _ in range(3)]
        squares, copies = [m.square() for m in lists[2]], [p.to(BF16) for p in lists[0]]
        counts, arrived = [torch.ones(()), torch.ones(1)], torch.zeros(1, dtype=torch.int32)
        return [*lists, squares, copies, counts, 0.1, torch.tensor(0.1), 0.9, 0.95, 0.1, arrived], ()
    if function == "sparse_sign_sgd":
        return [random(5, 32), torch.tensor([1, 4, 1]), random(3, 32), 0.1, torch.tensor(0.1), 0.1], ()
    logits, labels = random(2, 3, 32), torch.tensor([[1, 2, -100], [31, 0, 0]])
    floats = [random(2, 3).abs() + 1 for _ in range(3)]
    forward = [logits, labels, -100, *floats, torch.zeros(2, 3, dtype=torch.long)]
    if function == "stablemax_forward":
        return forward, ()
    module.stablemax_forward(*forward)
    call = [random(2, 3), logits, labels, *floats[1:], -100, torch.zeros(2, 3, 32)]
    return call, [(index, call[index]) for index in (1, 2, 3, 4)]


OPTIMIZERS_AND_LOSS = ["adam_atan2", "sparse_sign_sgd", "stablemax_forward", "stablemax_backward"]


@pytest.mark.parametrize(
    ("function", "index", "change", "error", "message"),
    [
        ("adam_atan2", 0, lambda p: [p[0].double(), p[1]], TypeError, r"params\[0\] is float64; pass float32, "),
        ("adam_atan2", 0, lambda p: [p[0], p[1].half()], TypeError, r"params\[1\] is float16; pass float32"),
        ("adam_atan2", 1, lambda g: g[:1], ValueError, "grads has 1 tensors and params 2; pass equally many of each"),
        ("adam_atan2", 1, lambda g: [g[0], None], TypeError, "grads contains None; pass only tensors"),
        ("adam_atan2", 1, lambda g: [g[0].t(), g[1]], ValueError, r"grads\[0\] of shape \[32, 5\] is not contiguous"),
        ("adam_atan2", 2, lambda m: [m[0][:4], m[1]], ValueError, r"exp_avgs\[0\] has shape \[4, 32\] and its param"),
        ("adam_atan2", 4, lambda c: c[:1], ValueError, "copies has 1 tensors and params 2"),
        ("adam_atan2", 5, lambda n: [n[0], n[1].double()], TypeError, r"counts\[1\] is float64; pass float32"),
        ("adam_atan2", 5, lambda n: [n[0], torch.ones(2)], ValueError, r"counts\[1\] has shape \[2\]; pass a scalar"),
        ("adam_atan2", 7, lambda lr: lr.double(), TypeError, "lr is float64; pass float32"),
        ("adam_atan2", 8, lambda beta: 1.0, ValueError, "beta1 is 1; pass a number from 0 to below 1"),
        ("adam_atan2", 9, lambda beta: float("nan"), ValueError, "beta2 is -?nan; pass a number"),
        ("adam_atan2", 11, lambda arrived: None, TypeError, "lr is on the device, but the counts are on the CPU"),
        ("adam_atan2", 11, lambda arrived: arrived.repeat(2), ValueError, r"arrived has shape \[2\]; pass one zero"),
        ("sparse_sign_sgd", 0, lambda w: w[0], ValueError, r"weights has shape \[32\]; pass \[E, D\]"),
        ("sparse_sign_sgd", 1, lambda ids: ids.short(), TypeError, "ids is int16; pass int32 or int64"),
        ("sparse_sign_sgd", 1, lambda ids: ids[None], ValueError, r"ids has shape \[1, 3\]; pass \[N\] = \[3\]"),
        ("sparse_sign_sgd", 2, lambda g: g[:2], ValueError, r"grads has shape \[2, 32\]; pass \[N, D\] = \[3, 32\]"),
        ("sparse_sign_sgd", 2, lambda g: g.half(), TypeError, "grads is float16; pass float32"),
        ("stablemax_forward", 0, lambda x: x[..., :0], ValueError, r"logits has shape \[2, 3, 0\]; pass "),
        ("stablemax_forward", 1, lambda y: y.t(), ValueError, r"labels of shape \[3, 2\] is not contiguous"),
        ("stablemax_forward", 1, lambda y: y[:1], ValueError, r"labels has shape \[1, 3\] and logits \[2, 3, 32\]"),
        ("stablemax_forward", 1, lambda y: y.float(), TypeError, "labels is float32; pass int32 or int64"),
        ("stablemax_forward", 3, lambda loss: loss[:1], ValueError, r"loss has shape \[1, 3\] and labels \[2, 3\]"),
        ("stablemax_forward", 6, lambda a: a.int(), TypeError, "argmax is int32; pass int64"),
        ("stablemax_backward", 0, lambda d: d.half(), TypeError, "dloss is float16; pass float32"),
        ("stablemax_backward", 6, lambda dx: dx.half(), TypeError, "dlogits is float16; pass float32"),
        ("stablemax_backward", 6, lambda dx: dx[..., 1:].contiguous(), ValueError, r"dlogits has shape \[2, 3, 31\]"),
    ],
)
def test_errors_of_optimizers_and_loss(simt, function, index, change, error, message):
    call, _ = optimizer_and_loss_arguments(simt.module, function)
    call[index] = change(call[index])
    with pytest.raises(error, match=message):
        getattr(simt.module, function)(*call)


@pytest.mark.parametrize("function", OPTIMIZERS_AND_LOSS)
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_arguments_of_optimizers_and_loss(simt, function, data):
    """Up to three arguments are replaced by anything."""
    simt.configure(2)
    call, kept = optimizer_and_loss_arguments(simt.module, function)
    for index in data.draw(st.lists(st.integers(0, len(call) - 1), max_size=3, unique=True)):
        if isinstance(call[index], list):
            call[index] = [*call[index][:1], data.draw(tensors())]
        elif isinstance(call[index], torch.Tensor):
            call[index] = data.draw(tensors())
        elif isinstance(call[index], float):
            call[index] = data.draw(st.floats())
        else:
            call[index] = data.draw(numbers)
    run(simt.module, function, call, kept)


def attention_arguments(module, function):
    """Valid arguments, as a list, and those that a forward computed or received, with their index."""
    generator = torch.Generator().manual_seed(0)
    qkv, out = (torch.randn(2, 5, width, generator=generator).to(BF16) for width in (192, 64))
    tables, lse = [torch.rand(6, 32, generator=generator) for _ in range(2)], torch.rand(2, 2, 5, generator=generator)
    forward = [qkv, *tables, 2, out, lse]
    if function == "rope_attention_forward":
        return forward, ()
    module.rope_attention_forward(*forward)
    call = [torch.randn(2, 5, 64, generator=generator).to(BF16), qkv, lse, *tables, 2, torch.empty_like(qkv)]
    return call, [(index, call[index]) for index in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("function", "index", "change", "error", "message"),
    [
        (
            "rope_attention_forward",
            0,
            lambda t: t[0],
            ValueError,
            r"qkv has shape \[5, 192\] with num_heads 2; pass \[B,",
        ),
        ("rope_attention_forward", 0, lambda t: t.float(), TypeError, "qkv is float32; pass bfloat16 or float16"),
        ("rope_attention_forward", 0, lambda t: t.double(), TypeError, "qkv is float64; pass float32, bfloat16 or"),
        ("rope_attention_forward", 0, lambda t: t.transpose(0, 1), ValueError, r"qkv of shape .* is not contiguous"),
        ("rope_attention_forward", 0, lambda t: t[:0], ValueError, "qkv has B = 0 and S = 5 with num_heads 2; pass 1"),
        (
            "rope_attention_forward",
            0,
            lambda t: t.repeat(1, 26, 1),
            ValueError,
            "S = 130 with num_heads 2; pass 1 to 128",
        ),
        ("rope_attention_forward", 0, lambda t: t.expand(2**31, 2, 5, 192)[:, 0], ValueError, "B H from 1 to 2"),
        ("rope_attention_forward", 1, lambda t: None, TypeError, "one of cos and sin is None"),
        ("rope_attention_forward", 2, lambda t: t[:5], ValueError, r"sin has shape \[5, 32\] and cos \[6, 32\]"),
        ("rope_attention_forward", 3, lambda heads: 0, ValueError, "num_heads 0"),
        ("rope_attention_forward", 3, lambda heads: 4, ValueError, "d = 16; pass heads of 32, 64 or 128"),
        ("rope_attention_forward", 3, lambda heads: 2**62, ValueError, "num_heads 4611686018427387904"),
        ("rope_attention_forward", 4, lambda t: t.half(), TypeError, "out is float16; pass bfloat16"),
        (
            "rope_attention_forward",
            4,
            lambda t: t[:1],
            ValueError,
            r"out has shape \[1, 5, 64\]; pass \[B, S, H d\] = \[",
        ),
        (
            "rope_attention_forward",
            5,
            lambda t: t[..., :4].clone(),
            ValueError,
            r"lse has shape \[2, 2, 4\]; pass \[B, H",
        ),
        (
            "rope_attention_backward",
            0,
            lambda t: t[..., :32].clone(),
            ValueError,
            r"dout has shape \[2, 5, 32\]; pass \[",
        ),
        ("rope_attention_backward", 2, lambda t: t.double(), TypeError, "lse is float64; pass float32"),
        ("rope_attention_backward", 2, lambda t: None, TypeError, "argument #2"),
        (
            "rope_attention_backward",
            6,
            lambda t: t[:1],
            ValueError,
            r"dqkv has shape \[1, 5, 192\] and qkv \[2, 5, 192\]",
        ),
    ],
)
def test_errors_of_attention(simt, function, index, change, error, message):
    call, _ = attention_arguments(simt.module, function)
    call[index] = change(call[index])
    with pytest.raises(error, match=message):
        getattr(simt.module, function)(*call)


def test_short_tables_of_attention(simt):
    call, _ = attention_arguments(simt.module, "rope_attention_forward")
    call[1:3] = [table[:4].contiguous() for table in call[1:3]]
    with pytest.raises(ValueError, match=r"cos has shape \[4, 32\]; pass \[>= S, d\] = \[>= 5, 32\]"):
        simt.module.rope_attention_forward(*call)


@pytest.mark.parametrize("function", ["rope_attention_forward", "rope_attention_backward"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_arguments_of_attention(simt, function, data):
    """Up to three arguments are replaced by anything."""
    simt.configure(2)
    call, kept = attention_arguments(simt.module, function)
    for index in data.draw(st.lists(st.integers(0, len(call) - 1), max_size=3, unique=True)):
        call[index] = data.draw(tensors() if isinstance(call[index], torch.Tensor) else numbers)
    run(simt.module, function, call, kept)


@settings(max_examples=50, deadline=None)
@given(sizes=st.lists(numbers, min_size=6, max_size=6))
def test_any_sizes(simt, sizes):
    try:
        assert simt.module.recurrent_cycles_workspace(*sizes) > 0
    except (ValueError, OverflowError) as error:
        assert str(error)
    try:
        assert isinstance(simt.module.recurrent_cycles_reason(0, *sizes[1:], 1), str)
    except (ValueError, OverflowError) as error:
        assert str(error)


@settings(max_examples=50, deadline=None)
@given(x=tensors(), y=tensors())
def test_axpy_of_anything(simt, x, y):
    before = to(y, None)
    try:
        simt.module.axpy(2.0, x, y)
    except (TypeError, ValueError, AttributeError) as error:
        assert str(error)
    else:
        assert torch.equal(y, 2 * x + before)


@pytest.mark.parametrize("shape", [(1000,), (), (3, 7), (0,)])
def test_axpy(simt, shape):
    x, y = torch.arange(1000.0)[: math.prod(shape)].view(shape), torch.ones(shape)
    simt.module.axpy(2.0, x, y)
    assert torch.equal(y, 2 * x + 1)  # exact: integers below 2**24


@pytest.mark.skipif(not native.library("cuda").exists(), reason="no cuda library")
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_the_cuda_library_takes_no_cpu_tensors(data):
    module, reason = native.load("cuda")
    assert reason is None
    call = arguments(module)
    for index in data.draw(st.lists(st.integers(0, 2), max_size=2)):
        call[index] = data.draw(tensors())
    with pytest.raises((TypeError, ValueError, AttributeError)):
        module.recurrent_cycles(*call)
