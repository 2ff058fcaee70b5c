"""Drop-in layers: names, initialisation, values."""

import pytest
import torch
import torch.nn.functional as F

import hrm_kernels as k
from hrm_kernels import nn


def test_truncated_normal_has_the_nominal_deviation():
    torch.manual_seed(0)
    values = nn.truncated_normal_(torch.empty(1_000_000), 0.5)
    assert abs(values.std().item() - 0.5) < 2e-3
    assert values.abs().max() <= 2 * 0.5 / 0.8796 + 1e-4
    assert nn.truncated_normal_(torch.ones(3), 0).eq(0).all()


def test_swiglu_inner_size():
    assert [nn.swiglu_inner_size(512, 4), nn.swiglu_inner_size(128, 1), nn.swiglu_inner_size(384, 4)] == [
        1536,
        256,
        1024,
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.RoPEAttention(64, 0), "^RoPEAttention: num_heads is 0, expected an integer >= 1$"),
        (lambda: nn.RoPEAttention(0, 8), "^RoPEAttention: hidden_size is 0, expected an integer >= 1$"),
        (lambda: nn.RoPEAttention(64, True), "^RoPEAttention: num_heads is True, expected an integer >= 1$"),
        (lambda: nn.SwiGLU(64, 0), "^SwiGLU: expansion is 0, expected more, for an inner size above 0"),
        (lambda: nn.SwiGLU(0), "^SwiGLU: hidden_size is 0, expected an integer >= 1$"),
        (lambda: nn.ConvSwiGLU(64, 0), "^ConvSwiGLU: expansion is 0, expected more, for an inner size above 0"),
        (lambda: nn.URMBlock(64, 3), "^RoPEAttention: hidden_size is 64, not a multiple of num_heads 3$"),
    ],
)
def test_sizes_that_make_no_layer(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_block_has_published_names_and_computes_the_op():
    torch.manual_seed(0)
    block = nn.PostNormBlock(64, 2)
    assert [name for name, _ in block.named_parameters()] == [
        "self_attn.qkv_proj.weight",
        "self_attn.o_proj.weight",
        "mlp.gate_up_proj.weight",
        "mlp.down_proj.weight",
    ]
    x, tables = torch.randn(2, 5, 64), nn.rope_tables(5, 32)
    with k.use_backend("reference"):  # the others' blocks sum in another order than their parts
        by_parts = k.add_rms_norm(x, block.self_attn(x, *tables))
        by_parts = k.add_rms_norm(by_parts, block.mlp(by_parts))
        torch.testing.assert_close(block(x, *tables), by_parts, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_urm_block_has_published_names_and_convolves_over_positions(dtype):
    torch.manual_seed(0)
    block = nn.URMBlock(64, 2, expansion=1.0)
    assert {name: list(one.shape) for name, one in block.state_dict().items()} == {
        "self_attn.qkv_proj.weight": [192, 64],
        "self_attn.o_proj.weight": [64, 64],
        "mlp.gate_up_proj.weight": [512, 64],
        "mlp.dwconv.weight": [256, 1, 2],
        "mlp.dwconv.bias": [256],
        "mlp.down_proj.weight": [64, 256],
    }
    x, tables = torch.randn(2, 5, 64).to(dtype), nn.rope_tables(5, 32)
    with k.use_backend("reference"):
        middle = k.add_rms_norm(x, block.self_attn(x, *tables))
        gate, up = block.mlp.gate_up_proj(middle).chunk(2, -1)
        y = (F.silu(gate) * up).transpose(1, 2)
        conv = F.conv1d(
            y, block.mlp.dwconv.weight.to(dtype), block.mlp.dwconv.bias.to(dtype), padding=1, groups=y.shape[1]
        )
        inside = F.silu(conv[..., : x.shape[1]].transpose(1, 2))
        want = k.add_rms_norm(middle, block.mlp.down_proj(inside))
        got = block(x, *tables)
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)
    with k.use_backend("reference"):  # one update of a state of 0
        cycle = k.conv_cycles(torch.zeros_like(x), x, [block.weights(dtype)], *tables, 2, cycles=1)
    assert torch.equal(cycle, got)
    got.sum().backward()
    assert all(one.grad.dtype == torch.float32 and one.grad.abs().sum() > 0 for one in block.parameters())


def test_module_casts_float32_parameters_and_trains_them():
    torch.manual_seed(0)
    module = nn.ReasoningModule(2, 64, 2)
    z, injection = torch.randn(2, 2, 5, 64).bfloat16()
    out = module(z, injection, *nn.rope_tables(5, 32))
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in module.parameters())


def test_sparse_embedding_keeps_rows_only_where_they_are_trained():
    table = nn.SparseEmbedding(5, 3)
    table.weights.copy_(torch.arange(15.0).view(5, 3))
    ids = torch.tensor([4, 1, 4])
    rows = table.train()(ids)
    assert torch.equal(rows, table.weights[ids]) and rows.requires_grad and rows is table.local_weights
    table.forget()
    assert not table.eval()(ids).requires_grad and table.local_weights is None
    assert list(table.state_dict()) == ["weights"] and not list(table.parameters())
