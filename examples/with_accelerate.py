"""The layers and AdamATan2 in Accelerate (pip install accelerate).

Run it: python examples/with_accelerate.py, or in two processes: torchrun --nproc-per-node 2 examples/with_accelerate.py
"""

import tempfile

import torch
from torch import nn

from hrm_kernels import stablemax_cross_entropy
from hrm_kernels.nn import ReasoningModule, rope_tables
from hrm_kernels.optim import AdamATan2

try:
    from accelerate import Accelerator
    from accelerate.utils import broadcast_object_list
except ImportError:
    raise SystemExit("with_accelerate.py needs Accelerate: pip install accelerate") from None


class Sorter(nn.Module):
    """Learns to sort eight digits."""

    def __init__(self, width=64):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 10, bias=False)
        self.level = ReasoningModule(num_layers=1, hidden_size=width, num_heads=2)
        cos, sin = rope_tables(positions=8, head_dim=width // 2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, digits):
        x = self.embed(digits)
        for _ in range(2):
            x = self.level(x, x, self.cos, self.sin)
        return self.head(x)


if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16", gradient_accumulation_steps=2)
    model = Sorter()
    model, optimizer, batches = accelerator.prepare(
        model,
        AdamATan2(model.parameters(), lr=3e-3, weight_decay=0.1),
        torch.utils.data.DataLoader(torch.randint(10, (64 * 80 * accelerator.num_processes, 8)), batch_size=64),
    )
    losses = []
    for digits in batches:
        with accelerator.accumulate(model):
            loss = stablemax_cross_entropy(model(digits), digits.sort(-1).values).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    with tempfile.TemporaryDirectory() as folder:
        (shared,) = broadcast_object_list([folder])  # the folder of process 0 for all
        accelerator.save_state(shared)
        saved = [parameter.detach().clone() for parameter in model.parameters()]
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        accelerator.wait_for_everyone()
        accelerator.load_state(shared)
        accelerator.wait_for_everyone()  # before the folder is deleted
    assert all(torch.equal(a, b) for a, b in zip(saved, model.parameters()))
    accelerator.print(f"loss: {losses[0]:.3f}, after 40 steps {losses[-1]:.3f} ({accelerator.num_processes} processes)")
    assert losses[-1] < 0.7 * losses[0]
    accelerator.end_training()
