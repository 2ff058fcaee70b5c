import torch

from hrm_kernels.backends import Backend, Op
from hrm_kernels.checks import check_shape, check_tensor
from hrm_kernels.ops.stablemax_cross_entropy import reference

_op = Op(
    "stablemax_cross_entropy",
    "(Tensor logits, Tensor labels, int ignore_index) -> Tensor",
    {"reference": Backend(reference.stablemax_cross_entropy)},
)


def stablemax_cross_entropy(logits: torch.Tensor, labels: torch.Tensor, ignore_index: int = -100) -> torch.Tensor:
    """Cross entropy with stablemax in place of softmax: ``-log(s(x_label) / sum(s(x)))`` for each token.

    ``s(x) = x + 1`` for ``x >= 0`` and ``1 / (1 - x + 1e-30)`` below: it grows linearly, so logits can't overflow.

    Args:
        logits: ``[..., V]``, float32, bfloat16 or float16.
        labels: ``[...]`` int32 or int64, below V, or ``ignore_index``. Values are not checked (that would wait for
            the GPU).
        ignore_index: tokens with this label have loss and gradient 0.

    Returns:
        ``[...]`` float32 (float64 for float64 logits), as exact as float64 to 1e-6 relative.

    Raises:
        TypeError, ValueError: a dtype, device or shape does not fit.

    Source: arXiv 2501.04697, section 5; used by HRM (arXiv 2506.21734), section 2.
    """
    op = "stablemax_cross_entropy"
    check_tensor(op, "logits", logits)
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{op}: logits has shape {list(logits.shape)}, expected [..., V] with V >= 1")
    if not isinstance(labels, torch.Tensor) or labels.dtype not in (torch.int32, torch.int64):
        came = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"{op}: labels is {came}, expected an int32 or int64 tensor; convert it with .long()")
    check_shape(op, "labels", labels, tuple(logits.shape[:-1]), "the shape of logits without V")
    if labels.device != logits.device:
        raise ValueError(f"{op}: labels is on {labels.device}, expected {logits.device} as logits; move one of them")
    return _op(logits, labels, ignore_index)
