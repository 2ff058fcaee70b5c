"""What arrives at the cpu library from Python: the right answer or one of Python's errors, never a crash."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_kernels import native
from hrm_kernels.ops.transformer_block.cpu_block import _saved_size
from hrm_kernels.recycling import empty

library = native.load("cpu")
pytestmark = pytest.mark.skipif(library.reason is not None, reason=str(library.reason))
BATCH, POSITIONS, DIM, HEADS, HEAD_DIM, INNER = 2, 5, 24, 2, 16, 40
FUNCTIONS = ["pack_blocks", "infer_blocks", "recurrent_cycles", "blocks_forward", "blocks_backward"]
FUNCTIONS += ["rope_attention_forward", "rope_attention_backward", "token_mixing_forward", "token_mixing_backward"]
COUNTS = (HEADS, HEAD_DIM, INNER)


def arguments(function):
    """Valid ones, as a list."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    wide = HEADS * HEAD_DIM
    weights = [random(3 * wide, DIM), random(DIM, wide), random(2 * INNER, DIM), random(DIM, INNER)]
    size = library.module.packed_size(DIM, *COUNTS)
    packed = [empty(size).fill_(float("nan")) for _ in range(2)]
    if function == "pack_blocks":
        return [weights, HEADS, False, packed[0], 2]
    for direction in (False, True):
        library.module.pack_blocks(weights, HEADS, direction, packed[direction], 1)
    tables = [random(POSITIONS + 1, HEAD_DIM) for _ in range(2)]
    if function.startswith("rope"):
        qkv, out, lse = (
            random(BATCH, POSITIONS, 3 * wide),
            random(BATCH, POSITIONS, wide),
            random(BATCH, HEADS, POSITIONS),
        )
        if function == "rope_attention_forward":
            return [qkv, *tables, out, lse, HEADS, 2]
        return [out.clone(), qkv, out, lse, *tables, torch.empty_like(qkv), HEADS, 2]
    x, y, z, out, out2 = (random(BATCH, POSITIONS, DIM) for _ in range(5))
    if function.startswith("token"):
        up, down = random(2 * INNER, POSITIONS), random(POSITIONS, INNER)
        if function == "token_mixing_forward":
            return [x, up, down, 1e-5, out, 2]
        return [x, y, up, down, 1e-5, out, torch.empty_like(up), torch.empty_like(down), 2]
    if function == "infer_blocks":
        return [x, y, packed[0], 1, *tables, out, *COUNTS, 1e-5, 2]
    if function == "recurrent_cycles":
        return [x, y, z, packed[0], 1, packed[0], 1, *tables, out, out2, *COUNTS, 2, 1, 1e-5, 2]
    saved = empty(_saved_size(x, weights, HEADS, False)).fill_(0)
    forward = [x, y, packed[0], 1, *tables, out, False, saved, *COUNTS, 1e-5, 2]
    if function == "blocks_forward":
        return forward
    library.module.blocks_forward(*forward)
    gradients = [torch.empty_like(weight) for weight in weights]
    return [x, *packed, 1, *tables, False, saved, out, gradients, *COUNTS, 1e-5, 2]


@pytest.mark.parametrize(
    ("function", "index", "value", "message"),
    [
        # numbers whose products wrap around: to the size that is there, or to 0
        ("infer_blocks", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("recurrent_cycles", 4, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("blocks_forward", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("blocks_backward", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("infer_blocks", 7, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("infer_blocks", 9, 2**62, "inner is 4611686018427387904; pass 1 to 1048576"),
        ("rope_attention_forward", 5, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("rope_attention_backward", 7, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("pack_blocks", 1, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        # more than there is memory or time for
        ("recurrent_cycles", 14, 2**40, "H_cycles is 1099511627776; pass 1 to 1048576"),
        ("recurrent_cycles", 15, 2**20, r"H_cycles \* L_cycles is 2097152; pass 1 to 1048576"),
        ("pack_blocks", 4, 2**31 - 1, "threads is 2147483647; pass 1 to 4096"),
        ("infer_blocks", 11, 2**32 + 1, "threads is 4294967297; pass 1 to 4096"),
    ],
)
def test_numbers_beyond_any_model(function, index, value, message):
    call = arguments(function)
    call[index] = value
    with pytest.raises(ValueError, match=f"{function}: {message}"):
        getattr(library.module, function)(*call)


def test_sizes_beyond_any_model():
    with pytest.raises(ValueError, match=r"packed_size: num_heads \* head_dim is 1073741824; pass 1 to 1048576"):
        library.module.packed_size(DIM, 2**15, 2**15, INNER)


@st.composite
def tensors(draw, like):
    """Any rank, sizes (also zero), dtype, strides and offset, often one or two of ``like``'s own."""
    shape = list(like.shape)
    if draw(st.booleans()):
        shape = draw(
            st.lists(st.sampled_from([0, 1, 2, 3, *like.shape]), max_size=4).filter(lambda s: math.prod(s) < 1 << 20)
        )
    dtypes = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.complex64]
    dtype = draw(st.sampled_from([like.dtype, like.dtype, *dtypes]))
    how = draw(st.sampled_from(["plain", "transposed", "expanded", "strided", "shifted"]))
    if how == "shifted":
        return torch.zeros(torch.Size(shape).numel() + 1, dtype=dtype)[1:].view(shape)
    tensor = torch.zeros(shape, dtype=dtype)
    if how == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if how == "expanded" and tensor.ndim and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    return tensor[..., ::2] if how == "strided" and tensor.ndim else tensor


# between 4 and 2**20 they may be valid, and then take long
numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-1, 4)).filter(lambda n: not 4 < n <= 2**20)


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_arguments(function, data):
    """None to three arguments replaced by anything."""
    call = arguments(function)
    for index in data.draw(st.lists(st.integers(0, len(call) - 1), max_size=3, unique=True)):
        valid = call[index]
        if isinstance(valid, list):
            at = data.draw(st.integers(0, len(valid) - 1))
            call[index] = [*valid[:at], data.draw(st.none() | tensors(valid[at])), *valid[at + 1 :]]
        elif isinstance(valid, torch.Tensor):
            call[index] = data.draw(st.one_of(tensors(valid), st.sampled_from([None, 0, "text", []])))
        elif isinstance(valid, float):
            call[index] = data.draw(st.floats())
        else:
            call[index] = data.draw(numbers)
    try:
        getattr(library.module, function)(*call)
    except (TypeError, ValueError, OverflowError) as error:
        assert str(error)
