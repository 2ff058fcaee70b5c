"""The parts of a GPU that limit a kernel, and how many blocks of a kernel a multiprocessor holds."""

from dataclasses import dataclass

KIB = 1024
_REGISTER_UNIT = 256
"""Registers are given to warps in units of this size (CUDA's occupancy calculator, compute capability 9.0)."""

_RESERVED_SHARED = KIB
"""Bytes of shared memory that the system takes of each block (CUDA C++ Programming Guide, compute capability 9.0)."""


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        multiprocessors: their number.
        clock: cycles per second at which the data sheet's rates hold.
        flops: bfloat16 operations per second that large matrix products reach.
        bandwidth: bytes per second that a copy reaches, read plus written.
        cache_bandwidth: bytes per second from the L2 cache to all multiprocessors.
        cache: bytes of the L2 cache.
        half: bytes of it that are near to a multiprocessor; lines of the other half may be kept twice.
        registers, shared, threads, blocks: most of a multiprocessor.
        port: bytes per cycle that a multiprocessor's shared memory reads or writes.
        latency: seconds from a block's start to the first data from memory, and again from its last product to
            the end of its stores.
    """

    multiprocessors: int
    clock: float
    flops: float
    bandwidth: float
    cache_bandwidth: float
    cache: int
    half: int
    registers: int
    shared: int
    threads: int
    blocks: int
    port: int
    latency: float

    def blocks_per_multiprocessor(self, registers: int, shared: int, warps: int) -> int:
        """How many blocks run side by side: registers per thread, bytes of shared memory, warps of a block."""
        of_warp = -(-32 * registers // _REGISTER_UNIT) * _REGISTER_UNIT
        return min(
            self.registers // (of_warp * warps),
            self.shared // (shared + _RESERVED_SHARED),
            self.threads // (32 * warps),
            self.blocks,
        )


H200 = Gpu(
    multiprocessors=132,
    clock=989e12 / (132 * 4096),  # 4096 dense bfloat16 operations per cycle
    flops=788e12,  # measured: a product of 8192 x 8192 x 8192 random numbers
    bandwidth=4.3e12,  # measured: a copy of 8.6 GB
    # Not measured: what that product draws if its tiles are 128 x 256 in clusters of two, which share half of it:
    # 128 operations to a byte. The cache may be faster.
    cache_bandwidth=788e12 / 128,
    cache=60_000_000,  # what PyTorch reports
    half=25_000_000,
    registers=65536,
    shared=228 * KIB,
    threads=2048,
    blocks=32,
    port=128,
    latency=0.6e-6,  # not measured: 0.5 us are about a load from memory on an H100
)
