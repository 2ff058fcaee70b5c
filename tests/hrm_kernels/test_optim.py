"""Optimisers: their rule on awkward parameters, and their state; tests/hrm/test_golden.py has the published numbers."""

import copy

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import SparseEmbedding
from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
from hrm_kernels.optim import AdamATan2, SparseSignSGD


def parameters():
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 4), (0,), (5,), ()]
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def by_hand(p, gradients, lr, decay, beta1=0.9, beta2=0.95):
    m, v = torch.zeros_like(p), torch.zeros_like(p)
    for t, g in enumerate(gradients, 1):
        p = p * (1 - lr * decay)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1**t) * torch.atan2(m, (v / (1 - beta2**t)).sqrt())
    return p


@pytest.mark.parametrize("capturable", [False, True])
def test_adam_atan2_follows_the_rule(capturable):
    params, start = parameters(), parameters()
    gradients = [[torch.randn_like(p) for p in params] for _ in range(4)]
    gradients[2][0] = torch.zeros_like(params[0])
    optimizer = AdamATan2(params, lr=0.05, weight_decay=0.2, capturable=capturable)
    for step in gradients:
        for p, g in zip(params, step, strict=True):
            p.grad = g.clone()
        optimizer.step()
    for index, p in enumerate(params):
        want = by_hand(start[index].detach(), [step[index] for step in gradients], 0.05, 0.2)
        torch.testing.assert_close(p.detach(), want, rtol=1e-12, atol=1e-14)


def test_a_parameter_without_gradient_changes_nothing():
    params = parameters()
    before = params[2].detach().clone()
    optimizer = AdamATan2(params, lr=0.05, weight_decay=0.2)
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    assert torch.equal(params[2], before) and params[2] not in optimizer.state


@pytest.mark.parametrize("capturable", [False, True])
def test_float16_parameters_step_as_far_as_float32_ones(capturable):
    """The square of a gradient of 1e-5 is 0 in float16; the state, saved and loaded too, is float32."""
    start, scales = torch.linspace(-1, 1, 64), torch.logspace(-5, 1, 64)
    wide, low = (torch.nn.Parameter(start.to(dtype)) for dtype in (torch.float32, torch.float16))
    optimizers = [AdamATan2([p], lr=0.05, weight_decay=0.1, capturable=capturable) for p in (wide, low)]
    optimizers[1].copies[low] = torch.zeros(64, dtype=torch.bfloat16)
    for step in range(6):
        for p in (wide, low):
            p.grad = (scales * (1 + 0.3 * torch.sin(torch.arange(64) + step))).to(p.dtype)
        if step == 3:
            saved = optimizers[1].state_dict()
            optimizers[1] = AdamATan2([low], lr=0.05, weight_decay=0.1, capturable=capturable)
            optimizers[1].copies[low] = torch.zeros(64, dtype=torch.bfloat16)
            optimizers[1].load_state_dict(saved)
        for optimizer in optimizers:
            optimizer.step()
        assert {optimizers[1].state[low][name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
        assert torch.equal(optimizers[1].copies[low], low.detach().bfloat16())
    torch.testing.assert_close(low.detach().float(), wide.detach(), rtol=0, atol=3e-3)


def test_a_parameter_with_zero_gradient_only_decays():
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.zeros(3)
    AdamATan2([p], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(p.detach(), torch.full((3,), 0.95))


@pytest.mark.parametrize("capturable", [False, True])
def test_adam_atan2_state_round_trip(capturable):
    params, twins = parameters(), parameters()
    optimizer = AdamATan2(params, lr=0.05, weight_decay=0.2, capturable=capturable)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    twin = AdamATan2(twins, lr=1.0)
    twin.load_state_dict(state)
    for p, q in zip(params, twins, strict=True):
        q.data.copy_(p)
        p.grad, q.grad = torch.full_like(p, 0.5), torch.full_like(q, 0.5)
    optimizer.step()
    twin.step()
    assert all(torch.equal(p, q) for p, q in zip(params, twins, strict=True))


def test_learning_rate_can_be_a_tensor():
    params, twins = parameters(), parameters()
    for optimizer in (
        AdamATan2(params, lr=0.05),
        AdamATan2(twins, lr=torch.tensor(0.05, dtype=torch.float64), capturable=True),
    ):
        for p in optimizer.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        optimizer.step()
    for p, q in zip(params, twins, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=0)


def test_adam_atan2_rejects_what_it_cannot_do():
    with pytest.raises(ValueError, match="lr is -1, expected a number >= 0"):
        AdamATan2(parameters(), lr=-1)
    with pytest.raises(ValueError, match="betas is"):
        AdamATan2(parameters(), betas=(0.9, 1.0))
    for betas in ((0.9,), (0.9, 0.95, 0.99), 0.9):
        with pytest.raises(ValueError, match=r"betas is .*0.9.*, expected two numbers in \[0, 1\)"):
            AdamATan2(parameters(), betas=betas)


def look_up(table, ids, gradient):
    (table(torch.tensor(ids)) * torch.tensor(gradient)).sum().backward()


def test_sparse_sign_sgd_sums_repeated_rows_and_decays_each_once():
    table = SparseEmbedding(4, 2).train()
    table.weights.fill_(1.0)
    optimizer = SparseSignSGD([table], lr=0.1, weight_decay=0.5)
    look_up(table, [2, 0, 2, 2], [[1.0, 3.0], [0.0, -1.0], [1.0, -1.0], [-2.0, -1.0]])
    optimizer.step()
    want = torch.tensor([[0.95, 1.05], [1.0, 1.0], [0.95, 0.85], [1.0, 1.0]])
    torch.testing.assert_close(table.weights, want)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("wrong", [3, -1])
def test_on_a_cpu_an_identifier_that_is_not_a_row_is_an_error(backend, wrong):
    weights = torch.ones(3, 4)
    with k.use_backend(backend), pytest.raises(IndexError, match=f"identifier is {wrong}, expected 0 to 2; nothing"):
        sparse_sign_sgd(weights, torch.tensor([1, wrong]), torch.ones(2, 4), 0.5, 0.0)
    assert weights.eq(1).all()


@pytest.mark.parametrize(
    ("ids", "grads", "error", "message"),
    [
        (torch.zeros(3), (3, 4), TypeError, "ids is torch.float32, expected an int32 or int64 tensor"),
        (
            torch.zeros(2, dtype=torch.long),
            (3, 4),
            ValueError,
            r"grads has shape \[3, 4\], expected \[N, D\] = \[2, 4\]",
        ),
        (
            torch.zeros(3, dtype=torch.long),
            (3, 5),
            ValueError,
            r"grads has shape \[3, 5\], expected \[N, D\] = \[3, 4\]",
        ),
        (torch.zeros(1, 3, dtype=torch.long), (3, 4), ValueError, r"ids has shape \[1, 3\], expected \[N\] = \[any\]"),
        (
            torch.zeros(3, dtype=torch.long, device="meta"),
            (3, 4),
            ValueError,
            "ids is on meta, expected cpu as weights",
        ),
    ],
)
def test_sparse_sign_sgd_checks_its_arguments(ids, grads, error, message):
    with pytest.raises(error, match=f"^sparse_sign_sgd: {message}"):
        sparse_sign_sgd(torch.ones(3, 4), ids, torch.ones(grads), 0.5, 0.0)


def test_sparse_sign_sgd_steps_once_for_each_look_up():
    table = SparseEmbedding(4, 2).train()
    optimizer = SparseSignSGD([table], lr=0.1, weight_decay=0.0)
    look_up(table, [1], [[1.0, 1.0]])
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(table.weights[1], torch.tensor([-0.1, -0.1]))


def test_sparse_sign_sgd_state_round_trip_and_types():
    table = SparseEmbedding(4, 2)
    twin = SparseSignSGD([table], lr=1.0)
    twin.load_state_dict(SparseSignSGD([table], lr=0.3, weight_decay=0.7).state_dict())
    assert twin.param_groups[0]["lr"] == 0.3 and twin.param_groups[0]["weight_decay"] == 0.7
    with pytest.raises(TypeError, match="got Embedding, expected hrm_kernels.nn.SparseEmbedding"):
        SparseSignSGD([torch.nn.Embedding(2, 2)])
