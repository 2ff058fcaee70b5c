"""Recurrent updates with gradients through the last of them: values, gradients, and what is kept in memory."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from hrm_kernels import fixed_point
from hrm_kernels.fixed_point import gradient_steps, warm_up


class Cell(nn.Module):
    def __init__(self, dim=8, contraction=0.5):
        super().__init__()
        self.hidden = nn.Linear(dim, dim, dtype=torch.float64)
        nn.init.orthogonal_(self.hidden.weight, contraction)

    def forward(self, z, x):
        return torch.tanh(self.hidden(z) + x)


def example(seed=0):
    torch.manual_seed(seed)
    return Cell(), torch.randn(3, 8, dtype=torch.float64), torch.randn(3, 8, dtype=torch.float64).requires_grad_()


def gradients(out, cell, x):
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), [*cell.parameters(), x])


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("gradient", "kept"), [("one_step", 1), ("last_cycle", 1), ("full", 7), (1, 1), (3, 3), (99, 7)]
)
def test_values_and_gradients(gradient, kept, recompute):
    cell, z, x = example()
    before = z.clone()
    got = fixed_point(cell, z, x, steps=7, gradient=gradient, recompute=recompute)
    want = z
    for step in range(7):
        with torch.set_grad_enabled(step >= 7 - kept):
            want = cell(want, x)
    assert torch.equal(got, want) and torch.equal(z, before)
    for a, b in zip(gradients(got, cell, x), gradients(want, cell, x), strict=True):
        assert torch.equal(a, b)


def test_more_steps_of_gradient_come_closer_to_the_implicit_gradient():
    cell, z, x = example()
    out = fixed_point(cell, z, x, steps=200, gradient="full")
    exact = gradients(out, cell, x)
    errors = []
    for k in (1, 2, 4, 8):
        got = gradients(fixed_point(cell, z, x, steps=200, gradient=k), cell, x)
        errors.append(max((a - b).abs().max().item() for a, b in zip(got, exact, strict=True)))
    assert all(later < 0.6 * before for before, later in zip(errors, errors[1:], strict=False)), errors


def test_two_levels_in_turn():
    torch.manual_seed(0)
    L, H = Cell(), Cell()
    x = torch.randn(3, 8, dtype=torch.float64)

    def update_L(state, x):
        return state[0], L(state[1], state[0] + x)

    def update_H(state, x):
        return H(state[0], state[1]), state[1]

    def run(gradient, **options):
        for cell in (L, H):
            cell.zero_grad()
        z = torch.zeros(2, 3, 8, dtype=torch.float64).unbind()
        z_H, z_L = fixed_point([update_L, update_L, update_H], z, x, steps=6, gradient=gradient, **options)
        z_H.sum().backward()
        return z_H.detach(), L.hidden.weight.grad, H.hidden.weight.grad

    def written_out(kept):
        for cell in (L, H):
            cell.zero_grad()
        z_H = z_L = torch.zeros(3, 8, dtype=torch.float64)
        for step in range(6):
            with torch.set_grad_enabled(step >= 6 - kept):
                if step % 3 == 2:
                    z_H = H(z_H, z_L)
                else:
                    z_L = L(z_L, z_H + x)
        z_H.sum().backward()
        return z_H.detach(), L.hidden.weight.grad, H.hidden.weight.grad

    for gradient, kept in (("one_step", 2), ("last_cycle", 3), (4, 4), ("full", 6)):
        for recompute in (False, True):
            for a, b in zip(run(gradient, recompute=recompute), written_out(kept), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_one_step_is_the_shortest_run_in_which_each_cell_occurs():
    def L(z):
        return z

    def H(z):
        return z

    assert gradient_steps([L], 5, "one_step") == 1
    assert gradient_steps([L, L, L, H], 8, "one_step") == 2
    assert gradient_steps([H, L, L], 6, "one_step") == 3
    assert gradient_steps([L, L, H], 4, "one_step") == 2  # ... L, L, H, L
    assert gradient_steps([L, L, H], 2, "one_step") == 1  # H has not had its turn
    assert gradient_steps([L, L, H], 2, "last_cycle") == 2


def saved_bytes(**options):
    cell, z, x = example()
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = fixed_point(cell, z, x, **options)
    return sum(kept.values()), out


def test_what_is_saved_does_not_grow_with_the_steps():
    for gradient in ("one_step", "last_cycle", 3):
        few, many = (saved_bytes(steps=steps, gradient=gradient)[0] for steps in (4, 64))
        assert few == many > 0
    state = 3 * 8 * 8
    assert saved_bytes(steps=64, gradient="full")[0] - saved_bytes(steps=4, gradient="full")[0] >= 60 * state


class Live(TorchDispatchMode):
    """Bytes of the tensors that are alive, of those made inside; and the most at any time."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.seen = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.seen:
                    self.seen.add(storage._cdata)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return out

    def gone(self, number, size):
        self.seen.discard(number)
        self.now -= size


def live_bytes(steps, recompute):
    """After the forward, and the most until the end of the backward."""
    torch.manual_seed(0)
    dim, rows = 16, 256

    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(dim, 16 * dim), nn.Linear(16 * dim, dim)

        def forward(self, z):
            return z + 0.01 * self.down(torch.tanh(self.up(z)))

    cell, z = Wide(), torch.randn(rows, dim)
    with Live() as live:
        out = fixed_point(cell, z, steps=steps, gradient="full", recompute=recompute)
        gc.collect()
        held = live.now
        live.peak = live.now
        out.sum().backward()
    return held, live.peak, 4 * rows * dim


def test_recomputation_keeps_memory_flat():
    held_few, peak_few, state = live_bytes(4, True)
    held_many, peak_many, _ = live_bytes(64, True)
    assert held_few == held_many <= 3 * state
    # from 4 to 64 updates there are 4 more halvings, which hold a state each
    assert peak_many - peak_few <= 4 * state
    plain_held, plain_peak, _ = live_bytes(64, False)
    assert plain_held > 10 * held_many and plain_peak > 5 * peak_many


@pytest.mark.parametrize("steps", [1, 2, 7, 16, 64])
def test_what_recomputation_costs(steps):
    cell, z, x = example()
    calls = 0

    def counted(z, x):
        nonlocal calls
        calls += 1
        return cell(z, x)

    fixed_point(counted, z, x, steps=steps, gradient="full", recompute=True).sum().backward()
    halvings = (steps - 1).bit_length()
    assert calls <= steps * (2 + halvings / 2), f"{calls} calls for {steps} updates"


def test_random_numbers_are_drawn_the_same_again():
    _, z, _ = example()
    weight = torch.ones(8, dtype=torch.float64, requires_grad=True)

    def noisy(z):
        return nn.functional.dropout(z * weight, 0.5)

    grads = []
    for recompute in (False, True):
        torch.manual_seed(3)
        out = fixed_point(noisy, z, steps=6, gradient="full", recompute=recompute)
        grads.append(torch.autograd.grad(out.sum(), weight)[0])
    assert torch.equal(*grads) and grads[0].abs().sum() > 0


def test_state_that_asks_for_gradients():
    cell, z, x = example()
    z.requires_grad_()
    assert torch.autograd.grad(fixed_point(cell, z, x, steps=3, gradient="full").sum(), z)[0].abs().sum() > 0
    assert torch.autograd.grad(fixed_point(cell, z, x, steps=3).sum(), z, allow_unused=True)[0] is None


@pytest.mark.parametrize("recompute", [False, True])
def test_compiles_in_one_graph(recompute):
    torch._dynamo.reset()
    cell, z, x = example()
    compiled = torch.compile(
        lambda z, x: fixed_point(cell, z, x, steps=4, gradient=2, recompute=recompute),
        fullgraph=True,
        backend="aot_eager",
    )
    want = fixed_point(cell, z, x, steps=4, gradient=2)
    got = compiled(z, x)
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients(got, cell, x), gradients(want, cell, x), strict=True):
        torch.testing.assert_close(a, b)


def test_two_cells_made_under_compilation():
    cell, z, x = example()

    def two_levels(z, x):
        def half(z, x):
            return cell(z, x / 2)

        def whole(z, x):
            return cell(z, x)

        return fixed_point([half, half, whole], z, x, steps=6)

    torch._dynamo.reset()
    got, want = torch.compile(two_levels, fullgraph=True, backend="aot_eager")(z, x), two_levels(z, x)
    torch.testing.assert_close(got, want)
    for a, b in zip(gradients(got, cell, x), gradients(want, cell, x), strict=True):
        torch.testing.assert_close(a, b)


def test_warm_up():
    assert [warm_up(step, 8, 4) for step in range(10)] == [1, 1, 2, 2, 3, 3, 4, 4, 4, 4]
    assert [warm_up(step, 4, 2, first=5) for step in (0, 1, 2, 3, 4)] == [5, 4, 3, 2, 2]
    assert warm_up(0, 0, 3) == 3
    with pytest.raises(ValueError, match="warm_up: last is 0, expected an integer >= 1"):
        warm_up(0, 8, 0)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps is 0, expected an integer >= 1"),
        ({"steps": 3, "gradient": 0}, ValueError, "gradient is 0, expected 'one_step', 'last_cycle', 'full' or an int"),
        ({"steps": 3, "gradient": "two_step"}, ValueError, "gradient is 'two_step'"),
        ({"steps": 3, "gradient": True}, ValueError, "gradient is True"),
    ],
)
def test_impossible_options(options, error, message):
    cell, z, x = example()
    with pytest.raises(error, match=f"fixed_point: {message}"):
        fixed_point(cell, z, x, **options)


def test_wrong_cells_and_states():
    cell, z, x = example()
    with pytest.raises(TypeError, match="state is list, expected a tensor or a tuple of tensors"):
        fixed_point(cell, [z], x, steps=1)
    with pytest.raises(TypeError, match="the cell returned tuple, expected a tensor as state is"):
        fixed_point(lambda z: (z, z), z, steps=1)
    with pytest.raises(TypeError, match="the cell returned Tensor, expected a tuple of 2 tensors as state is"):
        fixed_point(lambda z: z[0], (z, z), steps=1)
    with pytest.raises(TypeError, match="cell is not a function"):
        fixed_point([], z, steps=1)
    with pytest.raises(TypeError, match="cell is not a function"):
        fixed_point(5, torch.zeros(2), steps=2)
    with pytest.raises(TypeError, match="state is an empty tuple, expected a tensor"):
        fixed_point(lambda state: state, (), steps=2)
