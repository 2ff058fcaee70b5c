"""AdamATan2 in a plain training loop: a network separates two spirals. Run it: python examples/adam_atan2.py"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from hrm_kernels.optim import AdamATan2

if __name__ == "__main__":
    torch.manual_seed(0)
    turn = torch.linspace(0.5, 2.5, 200) * math.pi
    spiral = torch.stack((turn.cos(), turn.sin()), 1) * turn[:, None] / 8
    points, labels = torch.cat((spiral, -spiral)), torch.arange(2).repeat_interleave(200)

    model = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = AdamATan2(model.parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.01, total_iters=20)
    for step in range(400):
        loss = F.cross_entropy(model(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            print(f"step {step + 1}: loss {loss.item():.4f}")
    accuracy = (model(points).argmax(1) == labels).float().mean().item()
    print(f"accuracy: {accuracy:.1%}")
    assert accuracy > 0.98
