import pytest
import torch

from bench.int8_accuracy import mcnemar
from hrm_kernels.ops.transformer_block.eight_bit import product


@pytest.mark.parametrize(
    ("plus", "minus", "p"),
    [(0, 0, 1.0), (7, 7, 1.0), (0, 5, 2 / 2**5), (5, 0, 2 / 2**5), (1, 5, 2 * (1 + 6) / 2**6)],
)
def test_the_p_value_of_mcnemar_counts_both_tails(plus, minus, p):
    assert mcnemar(plus, minus) == p


def test_products_in_e4m3_have_its_error_and_scales_of_rows_and_columns():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-6, 1, 1e6, 1, 0])[:, None]
    weight = torch.randn(7, 64, generator=torch.Generator().manual_seed(1)) * torch.logspace(-3, 3, 7)[:, None]
    want = x.double() @ weight.double().t()
    size = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1)
    error = (product(x, weight, "fp8") - want).abs() / size.clamp_min(1e-300)
    # 3 bits after the point: each factor is off by up to 1/16, and most errors cancel
    assert 1e-3 < error.max() < 2 / 16 and torch.equal(product(x, weight, "fp8")[4], torch.zeros(7))
