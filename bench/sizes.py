"""Sizes of the published 27M model and of its inputs."""

from dataclasses import dataclass

from hrm_kernels.nn import swiglu_inner_size
from hrm_kernels.spec import Sizes

SHORT, LONG = 82, 901
"""Positions of a Sudoku, and of a maze or an ARC grid, each with one position for the puzzle embedding."""

SEGMENTS = 16
"""Segments of one answer in the published evaluation."""

EPS = 1e-5
"""Epsilon of every RMS norm."""


@dataclass(frozen=True)
class Size:
    """Size of an op's or a model's input; the defaults are those of the published model."""

    batch: int
    positions: int
    width: int = 512
    heads: int = 8
    inner: int = 1536
    layers: int = 4
    vocabulary: int = 11

    def of(self, op: str) -> Sizes:
        """The sizes of a sample call of ``op``."""
        inner = swiglu_inner_size(self.positions, 4.0) if op == "token_mixing" else self.inner
        return Sizes(
            B=self.batch,
            S=self.positions,
            D=self.width,
            H=self.heads,
            d=self.width // self.heads,
            I=inner,
            V=self.vocabulary,
            layers=self.layers,
        )

    @property
    def tokens(self) -> int:
        return self.batch * self.positions

    @property
    def block_weights(self) -> int:
        """Weights of one block, which is also its number of multiply-adds per token outside attention."""
        return 4 * self.width**2 + 3 * self.width * self.inner

    @property
    def block_operations(self) -> int:
        """Floating-point operations of one block forward: its matrix products and attention."""
        return self.tokens * (2 * self.block_weights + 4 * self.positions * self.width)

    @property
    def segment_passes(self) -> int:
        """Block passes of one segment: 2 cycles of 2 L updates and 1 H update."""
        return 6 * self.layers

    @property
    def training_passes(self) -> int:
        """Block passes of one training step: a segment, the Q target's segment, and two updates backward.

        A backward pass counts twice.
        """
        return 2 * self.segment_passes + 2 * 2 * self.layers
