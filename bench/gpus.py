"""GPUs by their public data sheets, and the rates that programs reach on them."""

from dataclasses import dataclass

REACHED = {"arithmetic": 790 / 989, "memory": 4.3 / 4.8}
"""Shares of the data sheet's rates that large products and copies reach on an H200."""


@dataclass(frozen=True)
class Gpu:
    """A GPU by its public data sheet.

    Attributes:
        flops: dense bfloat16 operations per second, with float32 sums.
        bandwidth: bytes per second of its memory.
        memory: bytes.
        link: bytes per second to the other GPUs of its machine, in one direction.
    """

    flops: float
    bandwidth: float
    memory: float
    link: float

    def rates(self, reached: bool) -> tuple[float, float]:
        """Operations and bytes per second: of the data sheet, or the shares of them that programs reach."""
        if not reached:
            return self.flops, self.bandwidth
        return self.flops * REACHED["arithmetic"], self.bandwidth * REACHED["memory"]


GPUS = {
    "H100": Gpu(989e12, 3.35e12, 80e9, 450e9),  # NVIDIA H100 data sheet, SXM; NVLink 900 GB/s in both directions
    "H200": Gpu(989e12, 4.8e12, 141e9, 450e9),  # NVIDIA H200 data sheet, SXM
    "B200": Gpu(2250e12, 8e12, 180e9, 900e9),  # NVIDIA HGX B200 data sheet: 36 PFLOP/s sparse for 8; NVLink 1.8 TB/s
    "A100": Gpu(312e12, 2.039e12, 80e9, 300e9),  # NVIDIA A100 data sheet, SXM, 80 GB; NVLink 600 GB/s
    "4090": Gpu(165.2e12, 1.008e12, 24e9, 32e9),  # NVIDIA Ada architecture paper; PCIe 4.0 x 16
}
PER_MACHINE, NETWORK = 8, 50e9  # between machines each GPU has 400 Gbit/s, as in NVIDIA's DGX H100
