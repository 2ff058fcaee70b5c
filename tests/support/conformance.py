"""Calls of an op by its specification (``hrm_kernels/ops/<op>/spec.py``), and the comparison with its oracle."""

import copy
import re

import torch

import hrm_kernels as k
from hrm_kernels import backends, native
from hrm_kernels.spec import Random

GPU = "cuda" if torch.cuda.is_available() else "cpu"
SPECS = k.specs()
OPS = backends._ops
REGISTERED = [name for name, spec in SPECS.items() if spec.schema is not None]
STEPS = [name for name in SPECS if name not in REGISTERED]
POINTWISE = ("add_rms_norm", "swiglu", "rope_attention", "linear", "token_mixing")
BLOCKS = ("transformer_block", "reasoning_module", "recurrent_cycles", "recurrent_segment", "conv_cycles")
DTYPES = {
    "reference": (torch.float32, torch.bfloat16, torch.float16, torch.float64),
    "cpu": (torch.float32, torch.bfloat16),
    "triton": (torch.float32, torch.float16, *([torch.bfloat16] if GPU == "cuda" else [])),  # see design: traps
}
library = native.load("cpu")
INSTRUCTION_SETS = ["avx512", "avx2", "portable"]
BFLOAT16_SETS = ["amx", "avx512_bf16", "amx_emulated", "avx512_bf16_emulated"]
"""Instruction sets with bfloat16 products of their own; the emulated ones run on any machine."""


def runs_on(op):
    """The backends whose kernels this machine can run."""
    found = ["reference"]
    if "cpu" in OPS[op].backends and library.reason is None:
        found.append("cpu")
    if "triton" in OPS[op].backends and backends._TRITON_INSTALLED and op != "linear":  # its products are PyTorch's
        found.append("triton")
    return found


def dtypes(op, backend):
    return [torch.float32] if op in STEPS else DTYPES[backend]


def each(names, kernels_only=False):
    """op x backend."""
    return [(op, one) for op in names for one in runs_on(op) if not (kernels_only and one == "reference")]


def every(names):
    """op x backend x dtype."""
    return [(op, backend, dtype) for op, backend in each(names) for dtype in dtypes(op, backend)]


def make(op, sizes=None, seed=0):
    spec = SPECS[op]
    return spec.sample(sizes or spec.sizes[0], Random(seed))


def converted(value, dtype, device="cpu", of=torch.float64):
    """Arguments with their tensors of dtype ``of`` in another, each a new one."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.dtype is of else value.dtype, copy=True)
    if isinstance(value, list | tuple):
        parts = [converted(part, dtype, device, of) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return copy.copy(value)


def floating(value, dtype):
    """The tensors of a dtype among arguments."""
    if isinstance(value, torch.Tensor):
        return [value] if value.dtype is dtype else []
    return [one for part in value for one in floating(part, dtype)] if isinstance(value, list | tuple) else []


def leaves(op, arguments, dtype):
    """The tensors of a dtype among an op's arguments that get a gradient: all but the RoPE tables and the damping."""
    names = re.findall(r"(\w+)(?:=\w+)?[,)]", SPECS[op].schema.partition(" ->")[0])
    return [
        one
        for name, value in zip(names, arguments)
        if name not in ("cos", "sin", "damping")
        for one in floating(value, dtype)
    ]


def public(op):
    return {**vars(k), **{name: OPS[name] for name in STEPS}}.get(op) or function_of_argmax


def function_of_argmax(*arguments):
    from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

    return stablemax_cross_entropy_with_argmax(*arguments)


def upstream(out):
    """The same gradient for every backend and dtype, which every dtype holds."""
    values = torch.arange(out.numel(), device=out.device) % 13 - 6
    return (values.to(out.dtype) / 4).view(out.shape)


def results(function, op, arguments, dtype, gradients=True):
    """Results, then gradients of all tensors of ``dtype``, or what the op has changed."""
    spec = SPECS[op]
    if spec.changed is not None:
        function(*arguments)
        return spec.changed(*arguments)
    gradients = gradients and spec.differentiates
    inputs = [one.requires_grad_(gradients) for one in leaves(op, arguments, dtype)]
    out = function(*arguments)
    outputs = list(out) if isinstance(out, tuple) else [out]
    found = [one.detach() for one in outputs]
    if not gradients:
        return found
    return found + list(torch.autograd.grad(outputs[0], inputs, upstream(outputs[0])))


def exact(op, arguments, gradients=True):
    """By the oracle, in float64 (which returns what an in-place op changes)."""
    spec = SPECS[op]
    arguments = converted(arguments, torch.float64)
    if spec.changed is not None:
        return spec.oracle(*arguments)
    return results(spec.oracle, op, arguments, torch.float64, gradients)


def computed(op, arguments, dtype, backend, gradients=True):
    device = GPU if backend == "triton" else "cpu"
    arguments = converted(arguments, dtype, device)
    before = converted(arguments, None, device, of=None)
    with k.use_backend(backend):
        found = results(public(op), op, arguments, dtype, gradients)
    if SPECS[op].changed is None:
        for now, then in zip(floating(arguments, dtype), floating(before, dtype), strict=True):
            assert torch.equal(now, then), "an input was written to"
    return [one.cpu() for one in found]


def slack(op, backend, dtype, sizes, want):
    """What an error may be beyond twice that of plain PyTorch."""
    eps, largest = torch.finfo(dtype).eps, want.abs().max().item()
    if op == "add_rms_norm" and sizes.D == 1:  # whose gradient is 0, but for eps: the terms of a sum cancel
        largest = max(1, largest)
    if backend == "triton":
        return eps * max(1, largest) if op in ("add_rms_norm", "swiglu", "rope_attention") else 2 * eps * largest
    factor = 8 if op in BLOCKS else 4 if op in ("rope_attention", *STEPS) else 2
    return factor * eps * largest


def roundings(op, sizes):
    """Of the dtype, relative to the whole result, that a result may be off by on a CPU."""
    if op == "rope_attention":
        return 8 if sizes.S < 300 and sizes.scale == 1 else 16
    if op == "linear" and sizes.D > 1000:  # of a sum of so many terms
        return 16
    return {
        "transformer_block": 16, "reasoning_module": 24, "recurrent_cycles": 48, "recurrent_segment": 48,
        "conv_cycles": 24,
    }.get(op, 4)  # fmt: skip


def compare(op, backend, dtype, sizes, gradients=True):
    """Hold a call against the oracle; gives its results."""
    arguments = converted(converted(make(op, sizes), dtype), torch.float64, of=dtype)  # what every backend gets
    wanted = exact(op, arguments, gradients)
    plain = computed(op, arguments, dtype, "reference", gradients)
    got = plain if backend == "reference" else computed(op, arguments, dtype, backend, gradients)
    if op.startswith("stablemax"):
        compare_losses(backend, dtype, got, wanted)
        return got
    for index, (ours, own, want) in enumerate(zip(got, plain, wanted, strict=True)):
        assert ours.dtype == own.dtype and ours.shape == want.shape
        if not want.numel():
            continue
        error, allowed = ((one.double() - want).abs().max().item() for one in (ours, own))
        bounds = [2 * allowed + slack(op, backend, dtype, sizes, want)]
        if dtype is torch.float64:
            bounds.append(1e-11 * want.abs().max().clamp(min=1e-3).item())
        elif backend != "triton" and not gradients:
            bounds.append(roundings(op, sizes) * torch.finfo(dtype).eps * want.abs().max().clamp(min=1e-3).item())
        assert error <= min(bounds), f"result {index}: {error:.2e}, allowed {min(bounds):.2e}"
    return got


def compare_losses(backend, dtype, got, wanted):
    """Each loss to 1e-6 relative in every dtype, each gradient as exact as its dtype."""
    info = torch.finfo(dtype)
    absolute = {"reference": 1e-7, "cpu": 1e-12, "triton": 1e-13}[backend]
    assert got[0].dtype is torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got[0].double(), wanted[0], rtol=1e-6, atol=absolute)
    for ours, want in zip(got[1:], wanted[1:], strict=True):
        if not ours.is_floating_point():  # the argmax
            assert torch.equal(ours, want)
            continue
        assert ours.dtype == dtype
        relative = 2 * info.eps if backend == "cpu" else max(1e-6, info.eps)
        least = 1e-30 if backend == "cpu" else 1e-15
        if dtype is torch.float16:
            least = info.smallest_normal * info.eps
        torch.testing.assert_close(
            ours.double(), want, rtol=relative, atol=max(least, 1e-12 * (backend == "reference"))
        )
