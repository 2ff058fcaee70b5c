"""Counted weights, operations and bytes of a model of any configuration, in training and in use."""

from dataclasses import dataclass

from bench.sizes import Size
from hrm.config import HRMConfig
from hrm_kernels.nn import swiglu_inner_size


@dataclass(frozen=True)
class Model:
    """Counts for one configuration."""

    config: HRMConfig

    @property
    def size(self) -> Size:
        """One row through one block."""
        config = self.config
        inner = swiglu_inner_size(config.hidden_size, config.expansion)
        return Size(1, config.positions, config.hidden_size, config.num_heads, inner)

    @property
    def weights(self) -> int:
        """Number of parameters that AdamATan2 updates."""
        c = self.config
        learned = c.positions * c.hidden_size if c.pos_encodings == "learned" else 0
        blocks = (c.H_layers + c.L_layers) * self.size.block_weights
        return blocks + 2 * c.vocab_size * c.hidden_size + 2 * c.hidden_size + 2 + learned

    @property
    def segment_passes(self) -> int:
        """Block passes of one segment."""
        c = self.config
        return c.H_cycles * (c.L_cycles * c.L_layers + c.H_layers)

    @property
    def training_passes(self) -> int:
        """Block passes of one training step, with the Q target's segment; a backward pass counts twice."""
        segments = 2 if self.config.halt_max_steps > 1 else 1
        return segments * self.segment_passes + 2 * (self.config.H_layers + self.config.L_layers)

    @property
    def answer_passes(self) -> int:
        """Block passes of all segments of one answer."""
        return self.config.halt_max_steps * self.segment_passes

    def moved_bytes(self, fused: bool) -> float:
        """Memory traffic of one block forward in bfloat16, per position, without its weights.

        Fused: the matrix products write x, qkv, the attention output and its sum with x, gate * up and its sum once,
        and read them once. Otherwise also what the pointwise kernels in between read and write.
        """
        D, inner = self.size.width, self.size.inner
        elements = 14 * D + 2 * inner
        if not fused:
            # gate_up is written and read (4 I), and both norms read and write their input (4 D)
            elements += 4 * inner + 4 * D
        return 2 * elements

    def pass_bytes(self, rows: int, fused: bool) -> float:
        """Memory traffic of one block forward over ``rows`` rows, with its weights."""
        return rows * self.size.positions * self.moved_bytes(fused) + 2 * self.size.block_weights


def all_reduce_bytes(model: Model, gpus: int, rows: int) -> float:
    """What each GPU sends in a training step: a ring's share of the float32 gradients, and the puzzle embeddings."""
    if gpus == 1:
        return 0.0
    ring = 2 * (gpus - 1) / gpus * 4 * model.weights
    gathered = (gpus - 1) * rows * (4 * model.config.puzzle_emb_ndim + 8)  # gradients and identifiers of every row
    return ring + gathered


def training_memory(model: Model, rows: int) -> dict[str, float]:
    """Bytes that training with ``rows`` rows keeps on one GPU, by purpose."""
    config = model.config
    positions = rows * config.positions
    D, inner, layers = model.size.width, model.size.inner, config.H_layers + config.L_layers
    return {
        "weights, gradients, averages, bfloat16 copies": (16 + 2) * model.weights,
        # x, qkv, attention, first norm, gate_up, gate * up of the blocks that carry gradients; in bfloat16
        "kept for the backward pass": 2 * positions * layers * (6 * D + 3 * inner),
        "states of the carry": 2 * 2 * positions * D,
        "puzzle embedding": 4 * config.num_puzzle_identifiers * config.puzzle_emb_ndim,
    }
