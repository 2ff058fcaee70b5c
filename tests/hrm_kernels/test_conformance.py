"""Every op on every backend against its specification: ``hrm_kernels/ops/<op>/spec.py``.

An error against the oracle in float64 is at most twice that of plain PyTorch in the same dtype, for results and
gradients, on memory that holds NaN before. What is special to one backend's kernels is in test_cpu*.py and
test_triton_*.py.
"""

import pytest
import torch
from conformance import (
    BFLOAT16_SETS,
    BLOCKS,
    GPU,
    INSTRUCTION_SETS,
    OPS,
    REGISTERED,
    SPECS,
    compare,
    computed,
    converted,
    dtypes,
    each,
    every,
    floating,
    leaves,
    library,
    make,
    public,
    results,
    runs_on,
    upstream,
)

import hrm_kernels as k
from hrm_kernels.ops.adam_atan2 import Step
from hrm_kernels.ops.rope_attention.heads import HEAD_DIMS, triton_cannot_attend
from hrm_kernels.spec import TINY, Sizes

pytestmark = pytest.mark.usefixtures("poisoned")
BY_INSTRUCTION_SET = (
    "add_rms_norm", "swiglu", "conv_swiglu", "conv_cycles", "linear", "rope_attention", "reasoning_module",
    "recurrent_segment", "adam_atan2",
)  # fmt: skip
"""Ops that between them run every kernel that is compiled for several instruction sets."""
EQUAL_WHEN_COMPILED = ("add_rms_norm", "swiglu", "conv_swiglu", "rope_attention", "stablemax_cross_entropy")
"""Ops that launch the same kernels under torch.compile."""
WITH_PRODUCTS = ("linear", "rope_attention", "token_mixing", *BLOCKS)
"""Ops whose kernels multiply in bfloat16 where the machine can."""


def all_calls(backend):
    """op x dtype x sizes that the backend serves, and for its kernels on a CPU x instruction set."""
    calls = []
    for op in SPECS:
        if backend not in runs_on(op):
            continue
        for dtype in dtypes(op, backend):
            for index, sizes in enumerate(SPECS[op].sizes):
                if backend == "triton" and not has_triton_kernels(op, dtype, sizes):
                    continue
                marks = [pytest.mark.slow] if backend == "triton" and is_long(op, dtype, sizes) else []
                name = f"{op}-{str(dtype).removeprefix('torch.')}-{index}"
                if backend != "cpu":
                    calls.append(pytest.param(op, dtype, sizes, id=name, marks=marks))
                    continue
                for instructions in INSTRUCTION_SETS if op in BY_INSTRUCTION_SET else [None]:
                    calls.append(pytest.param(op, dtype, sizes, instructions, id=f"{name}-{instructions}"))
                if dtype is torch.bfloat16 and op in WITH_PRODUCTS:
                    for instructions in BFLOAT16_SETS:
                        calls.append(pytest.param(op, dtype, sizes, instructions, id=f"{name}-{instructions}"))
    return calls


def has_triton_kernels(op, dtype, sizes):
    """Whether there are Triton kernels for the call; of what its interpreter repeats, it runs a part."""
    if op in (*BLOCKS, "rope_attention") and (sizes.d not in HEAD_DIMS or triton_cannot_attend(sizes.d, dtype)):
        return False
    if GPU == "cuda":
        return True
    if sizes.mixing and (sizes.S or 0) > 20:  # minutes; the kernels are those of token_mixing
        return False
    if op == "transformer_block":  # the same kernels as of reasoning_module
        return sizes in SPECS[op].sizes[:3]
    return not (op == "rope_attention" and sizes.scale != 1 or op == "recurrent_cycles" and sizes.S > 5)


def is_long(op, dtype, sizes):
    """Long in Triton's interpreter."""
    if op in ("reasoning_module", "recurrent_cycles") and dtype is torch.float16:  # the blocks of a float32 call
        return sizes not in SPECS[op].sizes[:3]
    if op == "conv_cycles" and dtype is torch.float16:
        return sizes != SPECS[op].sizes[0]
    many_channels = sizes.mixing and sizes.B * sizes.D > 1000  # mixing has a row for each channel
    one_by_one = op in ("conv_swiglu", "conv_cycles") and (sizes.S or 0) > 32  # positions
    many_elements = op == "swiglu" and sizes.tokens * sizes.I > 100_000
    return many_channels or one_by_one or many_elements or op == "rope_attention" and (sizes.S or 0) > 256


@pytest.mark.parametrize(("op", "dtype", "sizes"), all_calls("reference"))
def test_reference(op, dtype, sizes):
    compare(op, "reference", dtype, sizes, gradients=dtype is torch.float64)


@pytest.mark.parametrize(("op", "dtype", "sizes", "instruction_set"), all_calls("cpu"), indirect=["instruction_set"])
def test_cpu(op, dtype, sizes, instruction_set):
    got = compare(op, "cpu", dtype, sizes)
    if SPECS[op].differentiates:
        without = compare(op, "cpu", dtype, sizes, gradients=False)
        assert all(map(torch.equal, without, got)), "the same without gradients"


@pytest.mark.parametrize(("op", "dtype", "sizes"), all_calls("triton"))
def test_triton(op, dtype, sizes):
    got = compare(op, "triton", dtype, sizes)
    if op in BLOCKS and SPECS[op].differentiates:  # without gradients it runs other kernels
        compare(op, "triton", dtype, sizes, gradients=False)
    elif SPECS[op].differentiates and sizes is SPECS[op].sizes[0]:
        without = compare(op, "triton", dtype, sizes, gradients=False)
        assert all(map(torch.equal, without, got)), "the same without gradients"


def empty_sizes(op):
    """No rows and no positions, plain, damped, and with blocks of either kind."""
    kinds = {(sizes.mixing > 0, sizes.noise) for sizes in SPECS[op].sizes}
    for mixes, noise in sorted(kinds):
        for batch, positions in ((0, 5), (2, 0)):
            yield Sizes(batch, positions, I=8, layers=1, mixing=6 * mixes, noise=noise)


@pytest.mark.parametrize(("op", "backend"), each(REGISTERED))
def test_empty_batches(op, backend):
    for sizes in empty_sizes(op):
        compare(op, backend, torch.float32, sizes)
        compare(op, backend, torch.float32, sizes, gradients=False)


@pytest.mark.slow
@pytest.mark.parametrize(("op", "backend"), each(REGISTERED))
def test_empty_batches_compile(op, backend):
    device = GPU if backend == "triton" else "cpu"
    for sizes in empty_sizes(op):
        torch._dynamo.reset()
        compiled = torch.compile(public(op), fullgraph=True, backend="aot_eager")
        with k.use_backend(backend):
            got, want = (
                results(function, op, converted(make(op, sizes), torch.float32, device), torch.float32)
                for function in (compiled, public(op))
            )
        for one, eager in zip(got, want, strict=True):
            torch.testing.assert_close(one, eager, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("op", "backend", "dtype"), every(SPECS))
def test_same_input_same_bits(op, backend, dtype):
    first, again = (computed(op, make(op), dtype, backend) for _ in range(2))
    assert all(map(torch.equal, first, again))


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in runs_on("transformer_block"), reason=str(library.reason))
@pytest.mark.parametrize(("batch", "positions"), [(8, 82), (1, 901), (3, 97)])
def test_published_sizes(batch, positions):
    compare("transformer_block", "cpu", torch.float32, Sizes(batch, positions, 512, 8, 64, 1536))


def transposed(value):
    """The same values in another order in memory."""
    if isinstance(value, torch.Tensor):
        return value.transpose(0, -1).contiguous().transpose(0, -1) if value.ndim > 1 else value
    if isinstance(value, list | tuple):
        parts = [transposed(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@pytest.mark.parametrize(("op", "backend"), each(REGISTERED))
def test_non_contiguous_arguments(op, backend):
    def run(lay_out):
        device = GPU if backend == "triton" else "cpu"
        arguments = lay_out(converted(make(op), torch.float32, device))
        inputs = [one.requires_grad_(SPECS[op].differentiates) for one in leaves(op, arguments, torch.float32)]
        with k.use_backend(backend):
            out = public(op)(*arguments)
        outputs = list(out) if isinstance(out, tuple) else [out]
        if not SPECS[op].differentiates:
            return outputs
        gradient = lay_out(upstream(outputs[0]))
        return [*(one.detach() for one in outputs), *torch.autograd.grad(outputs[0], inputs, gradient)]

    for strided, plain in zip(run(transposed), run(lambda arguments: arguments), strict=True):
        if backend == "reference" or op in BLOCKS or op == "linear":  # products sum in an order of their own
            torch.testing.assert_close(strided, plain, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(strided, plain)


@pytest.mark.parametrize("op", [op for op in REGISTERED if SPECS[op].differentiates])
def test_gradients_by_finite_differences(op):
    arguments = make(op, TINY)
    inputs = [one.requires_grad_() for one in leaves(op, arguments, torch.float64)]
    copies = [one.detach().clone() for one in inputs]

    def first(*_):
        out = public(op)(*arguments)
        return out[0] if isinstance(out, tuple) else out

    assert torch.autograd.gradcheck(first, inputs, atol=1e-7)
    assert all(map(torch.equal, inputs, copies))


def flat(arguments):
    """The form of the registered op: weights in one flat list."""
    return tuple(floating(one, torch.float32) if isinstance(one, list | tuple) else one for one in arguments)


@pytest.mark.parametrize("op", REGISTERED)
def test_registration(op):
    arguments = converted(make(op, TINY), torch.float32)
    if SPECS[op].differentiates:
        for one in leaves(op, arguments, torch.float32):
            one.requires_grad_()
    torch.library.opcheck(getattr(torch.ops.hrm_kernels, op).default, flat(arguments))
    got, want = getattr(torch.ops.hrm_kernels, op)(*flat(arguments)), public(op)(*arguments)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(("op", "backend"), each(REGISTERED))
def test_compiles_in_one_graph_once(op, backend):
    torch._dynamo.reset()
    compiled = torch.compile(public(op), fullgraph=True, backend="aot_eager")
    device = GPU if backend == "triton" else "cpu"
    with k.use_backend(backend):
        want, got, again = (
            results(function, op, converted(make(op), torch.float32, device), torch.float32)
            for function in (public(op), compiled, compiled)
        )
        with torch.compiler.set_stance("fail_on_recompile"):
            last = results(compiled, op, converted(make(op), torch.float32, device), torch.float32)
    for one, twice, thrice, eager in zip(got, again, last, want, strict=True):
        torch.testing.assert_close(one, eager, rtol=1e-5, atol=1e-6 * eager.abs().max().clamp(min=1).item())
        assert torch.equal(one, twice) and torch.equal(one, thrice)
        if backend != "reference" and op in EQUAL_WHEN_COMPILED:
            assert torch.equal(one, eager)


@pytest.mark.parametrize(("op", "backend"), each(SPECS, kernels_only=True))
def test_kernels_refuse_float64_with_the_reason(op, backend):
    arguments = converted(make(op), torch.float64, GPU if backend == "triton" else "cpu")
    with k.use_backend(backend), pytest.raises(k.BackendUnavailable, match=f"^{op}: backend '{backend}'.*not float64"):
        public(op)(*arguments)


@pytest.mark.parametrize("op", [op for op in REGISTERED if op != "stablemax_cross_entropy_with_argmax"])
def test_explain_takes_what_the_function_takes(op, capsys):
    chosen = k.explain(op, *converted(make(op), torch.float32))
    assert chosen == ("cpu" if library.reason is None else "reference")
    assert f"{op} on cpu tensors of torch.float32: {chosen}\n" in capsys.readouterr().out


MISFITS = {
    "a number": lambda x: 1.0,
    "integers": lambda x: x.int(),
    "another dtype": lambda x: x.double(),
    "one dimension more": lambda x: x.unsqueeze(0),
    "one dimension less": lambda x: x[0],
    "one column less": lambda x: x[..., 1:],
    "twice as many rows": lambda x: torch.cat((x, x)),
}


def replaced(value, tensor, by):
    if value is tensor:
        return by
    if isinstance(value, list | tuple):
        parts = [replaced(part, tensor, by) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("op", REGISTERED)
def test_misfits(op, misfit):
    """A tensor that does not fit the others raises an error that names the op, or is as good as another."""
    arguments = converted(make(op, TINY), torch.float32)
    refused = 0
    for tensor in floating(arguments, torch.float32):
        wrong = replaced(arguments, tensor, MISFITS[misfit](tensor))
        try:
            out = public(op)(*wrong)
        except (TypeError, ValueError) as error:
            assert str(error).startswith(f"{op}: "), str(error)
            refused += 1
        else:  # other leading dimensions, rows of a table that are not read, more or fewer columns
            alone = len(floating(arguments, torch.float32)) == 1 or any(tensor is one for one in arguments)
            assert alone and (out[0] if isinstance(out, tuple) else out).numel()
    if misfit in ("a number", "integers"):
        assert refused == len(floating(arguments, torch.float32))
    assert refused or len(leaves(op, arguments, torch.float32)) == 1


AUTOCAST = [op for op in REGISTERED if SPECS[op].autocast == "lower" and SPECS[op].differentiates]
NARROW = {"reference": torch.bfloat16, "cpu": torch.bfloat16, "triton": torch.float16}


def under_autocast(op, arguments, dtype, backend, autocast=None, backward_inside=False):
    arguments = converted(arguments, dtype)
    inputs = [one.requires_grad_() for one in leaves(op, arguments, dtype)]
    with k.use_backend(backend), torch.autocast("cpu", autocast, enabled=autocast is not None):
        out = public(op)(*arguments)
        if backward_inside:
            out.double().sin().sum().backward()
    if not backward_inside:
        out.double().sin().sum().backward()
    assert all(one.grad.dtype == dtype for one in inputs)
    return [out.detach(), *(one.grad for one in inputs)]


@pytest.mark.skipif(GPU == "cuda", reason="Triton's kernels run on the GPU")
@pytest.mark.parametrize("backward_inside", [False, True])
@pytest.mark.parametrize(("op", "backend"), each(AUTOCAST))
def test_products_and_attention_run_in_the_dtype_of_autocast(op, backend, backward_inside):
    arguments, dtype = make(op), NARROW[backend]

    def errors(got):
        return [((a.double() - b).abs().max() / b.abs().max()).item() for a, b in zip(got, wanted, strict=True)]

    wanted = under_autocast(op, arguments, torch.float64, "reference")
    got = under_autocast(op, arguments, torch.float32, backend, dtype, backward_inside)
    plain = under_autocast(op, arguments, dtype, "reference")
    assert got[0].dtype == dtype
    for own, theirs in zip(errors(got), errors(plain), strict=True):
        assert own <= 2 * theirs + torch.finfo(dtype).eps / 4
    assert torch.equal(got[0], under_autocast(op, arguments, dtype, backend)[0])  # nothing else differs


@pytest.mark.parametrize("op", AUTOCAST)
def test_compiles_under_autocast(op):
    torch._dynamo.reset()

    def run(function):
        arguments = converted(make(op), torch.float32)
        inputs = [one.requires_grad_() for one in leaves(op, arguments, torch.float32)]
        with torch.autocast("cpu", torch.bfloat16):
            out = function(*arguments)
        return [out.detach(), *torch.autograd.grad(out.double().sin().sum(), inputs)]

    got = run(torch.compile(public(op), fullgraph=True, backend="aot_eager"))
    assert all(map(torch.equal, got, run(public(op))))


def test_specifications_say_what_the_ops_are():
    for name, spec in SPECS.items():
        assert spec.name == name and OPS[name].spec is spec
        cost, both = (spec.cost(spec.sizes[0], 2, backward) for backward in (False, True))
        assert 0 < cost.bytes <= both.bytes and cost.operations <= both.operations
        assert isinstance(make(name)[0], torch.Tensor | Step)
        if spec.schema is not None:
            assert str(getattr(torch.ops.hrm_kernels, name).default._schema).endswith(spec.schema)
