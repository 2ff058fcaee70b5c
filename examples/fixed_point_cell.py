"""A recurrent cell of your own, iterated to a fixed point and trained with gradients through its last updates only.

The cell sees a ring of places: some are free, some of these are seeds. It has to mark every place that a flood from a
seed reaches through free places. Each update sees the two neighbours of a place, so a long flood needs many updates.
Run it: python examples/fixed_point_cell.py
"""

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels import fixed_point
from hrm_kernels.fixed_point import warm_up

SIZE, STEPS = 12, 16


class Cell(nn.Module):
    """One update ``z, x -> z`` of the state [B, channels, SIZE] from the input [B, 2, SIZE]: a gated convolution."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.mix = nn.Conv1d(channels + 2, 2 * channels, 3, padding=1, padding_mode="circular")

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        new, gate = self.mix(torch.cat((z, x), 1)).chunk(2, 1)
        return torch.lerp(z, torch.tanh(new), torch.sigmoid(gate))


def puzzles(count: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Random rings [count, 2, SIZE], free places and seeds, and the places [count, SIZE] that the flood reaches."""
    free = torch.rand(count, SIZE, generator=generator) < 0.8
    seeds = free & (torch.rand(count, SIZE, generator=generator) < 0.1)
    reached = seeds
    for _ in range(SIZE):
        reached = free & (reached | reached.roll(1, 1) | reached.roll(-1, 1))
    return torch.stack((free, seeds), 1).float(), reached.float()


if __name__ == "__main__":
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    cell, head = Cell(), nn.Conv1d(16, 1, 1)
    optimizer = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=5e-3)
    state = torch.zeros(64, 16, SIZE)
    for step in range(150):
        x, reached = puzzles(64, generator)
        updates = warm_up(step, over=100, last=6)  # gradients through 1, 2, ... 6 of the 16 updates
        z = fixed_point(cell, state, x, steps=STEPS, gradient=updates, recompute=True)
        loss = F.binary_cross_entropy_with_logits(head(z).squeeze(1), reached)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 49:
            print(f"step {step + 1}: gradients through {updates} updates, loss {loss.item():.4f}")
    x, reached = puzzles(64, generator)
    with torch.no_grad():
        marked = head(fixed_point(cell, state, x, steps=STEPS)).squeeze(1) > 0
    accuracy = (marked == reached.bool()).float().mean().item()
    print(f"accuracy: {accuracy:.1%}")
    assert accuracy > 0.95
