"""A transformer block in OpenVINO, the CPU engine of Intel: ``pip install openvino``.

It is converted from plain PyTorch and compiled for the number of threads of torch, with its weights packed. In bfloat16
OpenVINO chooses the dtype of its products: on a CPU without bfloat16 it computes in float32. Inputs and results are
float32 inside, so conversions of bfloat16 are part of the time.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from hrm_kernels import BlockWeights
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import reference

_compiled = WeakTensorKeyDictionary()  # by the first matrix of the block


def transformer_block(x: torch.Tensor, weights: BlockWeights, *options: Any) -> torch.Tensor:
    """The block; it is compiled at the first call with these weights."""
    key = weights[0]
    if key not in _compiled:
        _compiled[key] = _compile(x, weights, *options)
    return _compiled[key](x)


class _Block(torch.nn.Module):
    def __init__(self, weights: BlockWeights, heads: Heads, eps: float) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(weight.detach().float() for weight in weights)
        self.heads, self.eps = heads, eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return reference.transformer_block(x, BlockWeights(*self.weights), self.heads, self.eps)


def _compile(
    x: torch.Tensor,
    weights: BlockWeights,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    num_heads: int,
    eps: float,
    *_: Any,
) -> Callable[[torch.Tensor], torch.Tensor]:
    import openvino

    block = _Block(weights, Heads(cos, sin, num_heads), eps).eval()
    with torch.no_grad():
        model = openvino.convert_model(block, example_input=x.detach().float())
    precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[x.dtype]
    options = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()

    def run(x: torch.Tensor) -> torch.Tensor:
        # both sides share memory; the result is copied, since the next call overwrites it
        result = request.infer([x.detach().float().numpy()], share_inputs=True, share_outputs=True)[0]
        return torch.from_numpy(result).to(x.dtype, copy=True)

    return run
