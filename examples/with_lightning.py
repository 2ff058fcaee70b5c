"""The layers and AdamATan2 in Lightning (pip install lightning).

Run it: python examples/with_lightning.py [--processes 2]
"""

import argparse
import logging
import tempfile
import warnings

import torch
from torch import nn

from hrm_kernels import stablemax_cross_entropy
from hrm_kernels.nn import ReasoningModule, rope_tables
from hrm_kernels.optim import AdamATan2

try:
    import lightning
except ImportError:
    raise SystemExit("with_lightning.py needs Lightning: pip install lightning") from None


class Sorter(lightning.LightningModule):
    """Learns to sort eight digits."""

    def __init__(self, width=64):
        super().__init__()
        self.embed, self.head = nn.Embedding(10, width), nn.Linear(width, 10, bias=False)
        self.level = ReasoningModule(num_layers=1, hidden_size=width, num_heads=2)
        cos, sin = rope_tables(positions=8, head_dim=width // 2)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.losses = []

    def training_step(self, digits, index):
        x = self.embed(digits)
        for _ in range(2):
            x = self.level(x, x, self.cos, self.sin)
        loss = stablemax_cross_entropy(self.head(x), digits.sort(-1).values).mean()
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        return AdamATan2(self.parameters(), lr=3e-3, weight_decay=0.1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--processes", type=int, default=1)
    processes = parser.parse_args().processes
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    digits = torch.utils.data.DataLoader(torch.randint(10, (64 * 80 * processes, 8)), batch_size=64)
    model = Sorter()
    with tempfile.TemporaryDirectory() as folder:
        # With several processes Lightning starts this program once more for each, and gives each its part of the data.
        trainer = lightning.Trainer(
            max_epochs=1, accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto",
            precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1.0, default_root_dir=folder,
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, digits)
        file = trainer.strategy.broadcast(f"{folder}/last.ckpt")  # the file of process 0 for all
        trainer.save_checkpoint(file)
        again = Sorter.load_from_checkpoint(file, weights_only=True)
        trainer.strategy.barrier()  # before the folder is deleted
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    if trainer.is_global_zero:
        print(f"loss: {model.losses[0]:.3f}, after 40 steps {model.losses[-1]:.3f} ({trainer.world_size} processes)")
    assert model.losses[-1] < 0.7 * model.losses[0]
