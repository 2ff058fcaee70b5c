"""Packed weights that cannot be trusted to be as they were."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import native
from hrm_kernels.ops.transformer_block.packing import pack

library = native.load("cpu")
pytestmark = pytest.mark.skipif(library.reason is not None, reason=str(library.reason))


def block(strided: bool) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (96, 32), (32, 32), (96, 32), (32, 48)
    if strided:
        return [torch.randn(columns, rows, generator=generator).t() * 0.1 for rows, columns in shapes]
    return [torch.randn(shape, generator=generator) * 0.1 for shape in shapes]


def one_element(weight: torch.Tensor) -> None:
    weight[3, 5] += 50  # of which a sample knows nothing


def all_elements(weight: torch.Tensor) -> None:
    weight.data.mul_(3)  # which no version counts


@pytest.mark.parametrize("change", [one_element, all_elements])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("inference", [False, True])
def test_a_change_is_seen_in_strided_weights_and_in_inference_mode(change, strided, inference):
    with torch.inference_mode(inference):
        weights = block(strided)
        x = torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(1))

        def run(backend: str) -> torch.Tensor:
            with k.use_backend(backend), torch.no_grad():
                return k.transformer_block(x, k.BlockWeights(*weights), None, None, 2)

        before = run("cpu")
        change(weights[1])
        after = run("cpu")
        torch.testing.assert_close(after, run("reference"), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(after, before)


def test_parameters_are_packed_once():
    weights = [torch.nn.Parameter(weight) for weight in block(strided=False)]
    with torch.inference_mode():
        assert pack(weights, 2) is pack(weights, 2)
