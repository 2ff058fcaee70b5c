"""What arrives at the cuda library from Python: the right answer or one of Python's errors, never a crash."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_kernels import native

BF16 = torch.bfloat16
BATCH, POSITIONS, DIM, HEADS, INNER = 2, 5, 128, 2, 128
SIZES = (BATCH, POSITIONS, DIM, HEADS, DIM // HEADS, INNER)


def arguments(module, H_cycles=2, L_cycles=1):
    """Valid ones, as a list; weights and states small, so that any of them can stand for another."""
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
        ("H_layers", lambda layers: layers[:3], ValueError, r"H_layers has 3 tensors; pass four a block"),
        ("H_layers", lambda layers: 17 * layers, ValueError, "H_layers has 68 tensors; .* of 1 to 16 blocks"),
        ("L_layers", lambda layers: [*layers[:3], None], TypeError, "L_layers holds None; pass tensors alone"),
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
def test_errors_say_what_came_and_the_way_out(simt, name, change, error, message):
    simt.configure()
    given = arguments(simt.module)
    index = NAMES.index(name)
    given[index] = change(given[index])
    if name == "cos" and given[index] is not None:
        given[index + 1] = change(given[index + 1])
    with pytest.raises(error, match=message):
        simt.module.recurrent_cycles(*given)


def test_one_table_of_two(simt):
    given = arguments(simt.module)
    for name in ("cos", "sin"):
        given[NAMES.index(name)] = given[NAMES.index(name)][:4].contiguous()
    with pytest.raises(ValueError, match=r"cos has shape \[4, 64\]; pass \[>= S, d\] = \[>= 5, 64\]"):
        simt.module.recurrent_cycles(*given)


@st.composite
def tensors(draw):
    """Any rank, sizes (also zero), dtype, strides and offset; now and then no tensor at all."""
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
    """One to three arguments replaced by anything."""
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
            # few cycles where they are valid: the kernel would do them all
            call[index] = data.draw(numbers.filter(lambda n: not 4 < n <= 2**20))
    try:
        simt.module.recurrent_cycles(*call)
    except (TypeError, ValueError, RuntimeError, AttributeError, OverflowError) as error:
        assert str(error)


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
    try:
        simt.module.axpy(2.0, x, y)
    except (TypeError, ValueError, AttributeError) as error:
        assert str(error)


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
