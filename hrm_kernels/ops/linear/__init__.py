import torch
from torch import Tensor

from hrm_kernels.backends import Backend, Op, cpu_cannot_run, triton_cannot_run
from hrm_kernels.ops.linear import cpu_kernels, reference
from hrm_kernels.ops.linear.spec import SPEC


def _cpu_cannot_run(x: Tensor, weight: Tensor, *rest: object) -> str | None:
    if not weight.numel():
        return "its kernel is for matrices that are not empty"
    return cpu_cannot_run(x)


def _cuda_cannot_run(x: Tensor, *rest: object) -> str | None:
    return None if x.is_cuda else f"cuBLAS is for GPU tensors, not {x.device.type}"


_op = Op(
    SPEC,
    {
        "reference": Backend(reference.linear),
        # On a GPU the matrix products of all backends are PyTorch's.
        "triton": Backend(reference.linear, lambda x, *rest: triton_cannot_run(x)),
        "cuda": Backend(reference.linear, _cuda_cannot_run),
        "cpu": Backend(cpu_kernels.linear, _cpu_cannot_run),
    },
)


@_op.public
def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """``x @ weight.T + bias``, as :func:`torch.nn.functional.linear`.

    On the ``cpu`` backend the result of a row is the same to the bit at any place in x and for any number of rows.
    PyTorch's own products on a CPU do not promise that. Under ``torch.autocast`` it runs in autocast's dtype,
    as ``torch.nn.functional.linear`` does.

    Args:
        x: ``[..., in]``, float32, bfloat16 or float16.
        weight: ``[out, in]`` in the dtype of x.
        bias: ``[out]`` in the dtype of x, or None.

    Returns:
        ``[..., out]`` in the dtype of x; sums are float32.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: :func:`torch.nn.functional.linear`.
    """
    x, weight, bias = _op.under_autocast(x, weight, bias)
    if bias is None:
        SPEC.check(x, weight)
    else:
        SPEC.check(x, weight, bias)
    return _op(x, weight, bias)
