"""One optimisation step, against the same written out."""

import pytest
import torch

from hrm.training.distributed import FlatGradients
from hrm.training.step import Update, train_step


@pytest.mark.parametrize("flat", [False, True])
def test_a_train_step_is_clear_forward_backward_update(flat):
    """Two steps: gradients of the first do not reach the second, and ``watch`` sees the weights before the update."""
    torch.manual_seed(0)
    x, weight = torch.randn(4, 3), torch.nn.Parameter(torch.randn(3))
    expected, seen = weight.detach().clone(), []
    optimizer = torch.optim.SGD([weight], lr=0.1)
    gradients = FlatGradients([weight]) if flat else None

    def compute_loss():
        rows = (x @ weight).square()
        return rows.sum(), rows.detach()

    def watch(loss):
        seen.append((loss, weight.detach().clone(), weight.grad.clone()))

    update = Update([optimizer], 4, gradients, watch)
    for _ in range(2):
        loss, rows = train_step(compute_loss, update)
        gradient = 2 * (x @ expected) @ x / 4
        watched, before, grad = seen[-1]
        assert not loss.requires_grad and loss == watched == rows.sum()
        assert torch.equal(before, expected)
        torch.testing.assert_close(grad, gradient)
        torch.testing.assert_close(weight.detach(), expected - 0.1 * grad)
        expected = weight.detach().clone()
    assert len(seen) == 2
