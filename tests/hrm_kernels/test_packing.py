"""Packed weights that cannot be trusted to be as they were."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import native
from hrm_kernels.casts import FrozenWeights
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
        pack(weights, 2)
        first = pack(weights, 2)  # (what comes a second time is kept)
        assert pack(weights, 2) is first
    with FrozenWeights():
        assert pack(weights, 2) is first and pack(weights, 2) is first


def test_a_checksum_differs_for_every_single_change():
    """Of one bit anywhere; and of pairs that weaker sums let cancel."""
    checksum = library.module.checksum
    for count in (1, 7, 64, 20_000):  # below a register, and more than a task's piece
        x = torch.randn(count, generator=torch.Generator().manual_seed(0))
        want = checksum([x], 1)
        assert want == checksum([x.clone()], 2)
        bits = x.view(torch.int32)
        for position in {0, count // 2, count - 1}:
            for bit in (0, 9, 31):
                flip = (1 << bit) - (1 << 32) * (bit == 31)
                bits[position] ^= flip
                assert checksum([x], 1) != want
                bits[position] ^= flip
        assert checksum([x], 1) == want
        assert count == 1 or len({want, checksum([x.flip(0)], 1), checksum([-x], 1), checksum([x[:-1]], 1)}) == 4
    assert checksum([x[:10], x[10:]], 1) != checksum([x[:11], x[11:]], 1)
