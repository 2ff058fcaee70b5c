"""The time of a launch, from its machine code, its tiles and what it moves.

A multiprocessor holds ``side`` blocks at a time. One block alone takes ``work``, the longest of its matrix
instructions, of its traffic with shared memory and of its share of the L2 cache, and twice the latency of memory, at
its start and at its end. Side by side they wait for each other's units but hide each other's latencies: ``side`` blocks
take ``max(side * work, work + 2 * latency)``. A launch takes that for each wave of blocks, or as long as its bytes
need from and to memory, whichever is longer, and the gap between two launches.

The model knows no bank conflicts, no instruction order and no clock that power lowers. It ranks ways to the same
result; its times are the least that can be expected of the code as compiled.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from hrm_kernels.tuning.model import cache as traffic
from hrm_kernels.tuning.model.cache import Cache, Matrix, Tiles
from hrm_kernels.tuning.model.gpu import Gpu
from hrm_kernels.tuning.model.launches import Launch
from hrm_kernels.tuning.model.machine_code import Code

GAP = 1e-6
"""Seconds from the end of a launch to the start of the next in a CUDA graph; not measured."""


class Work(NamedTuple):
    """What one tile of a launch does on one multiprocessor.

    Attributes:
        operations: of matrix instructions, of the tile as it is padded; those of 8 bits count half.
        port: bytes into and out of shared memory.
        cached: bytes from the L2 cache.
    """

    operations: float = 0.0
    port: float = 0.0
    cached: float = 0.0


class Prediction(NamedTuple):
    """What a launch is expected to do; times in seconds.

    Attributes:
        side: blocks of a multiprocessor.
        moved, moved_half: bytes from and to memory, through the whole cache and through the near half.
        cached: bytes from the L2 cache.
        of_chip: times of the matrix units, of shared memory and of the L2 cache, each alone.
        memory: time of the traffic with memory alone.
        seconds: of the launch.
        limit: what decides it.
    """

    side: int
    moved: int
    moved_half: int
    cached: float
    of_chip: dict[str, float]
    memory: float
    seconds: float
    limit: str


def matrix_of(tensor: torch.Tensor) -> Matrix:
    """The tensor as rows of its last dimension; views of one memory are the same matrix."""
    columns = tensor.shape[-1]
    name = str(tensor.untyped_storage()._cdata)
    return Matrix(name, tensor.numel() // columns, columns, tensor.element_size())


def _instruction(code: Code) -> tuple[int, int, int]:
    rows, columns, inner = re.fullmatch(r"\w+\.(?:SP\.)?(\d+)x(\d+)x(\d+)", code.matrix).groups()  # type: ignore[union-attr]
    return int(rows), int(columns), int(inner)


def _of_product(rows: int, columns: int, inner: int, code: Code, itemsize: int = 2) -> Work:
    """A tile: both operands are written to shared memory once.

    A matrix instruction of a warp group reads 64 rows of one side and its columns of the other; without warp groups
    (HMMA) each warp reads its 16 rows and its columns into registers.
    """
    written = (rows + columns) * inner * itemsize
    if code.matrix.startswith(("HGMMA", "QGMMA", "IGMMA")):
        m, n, _ = _instruction(code)
        read = (rows / m) * (columns / n) * (m + n) * inner * itemsize
    else:
        read = (rows / 32) * (columns / 32) * 64 * inner * itemsize
    return Work(2 * rows * columns * inner * itemsize / 2, written + read, written)


def _wave_times(tiles: int, side: int, work: float, gpu: Gpu) -> float:
    at_once = gpu.multiprocessors * side
    whole, rest = divmod(tiles, at_once)
    seconds = whole * max(side * work, work + 2 * gpu.latency)
    if rest:
        seconds += max(math.ceil(rest / gpu.multiprocessors) * work, work + 2 * gpu.latency)
    return seconds


Touch = Callable[[Cache], None]


def predict(launch: Launch, code: Code | None, caches: Sequence[Cache], gpu: Gpu) -> Prediction:
    """The prediction for the next launch; ``caches``, the whole and the half, keep what earlier ones left there."""
    side = 1
    if code is not None:
        side = gpu.blocks_per_multiprocessor(code.registers, code.shared, launch.num_warps)
    tiles, work, touch = _describe(launch, code, gpu.multiprocessors * side)
    moved = []
    for cache in caches:
        before = cache.moved
        touch(cache)
        moved.append(cache.moved - before)
    of_chip = {
        "matrix": tiles * work.operations / gpu.flops,
        "shared memory": tiles * work.port / (gpu.multiprocessors * gpu.port * gpu.clock),
        "L2": tiles * work.cached / gpu.cache_bandwidth,
    }
    memory = moved[0] / gpu.bandwidth
    alone = max(of_chip.values()) / tiles * gpu.multiprocessors  # one tile on one multiprocessor
    if code is None:
        inside = max(*of_chip.values(), 2 * gpu.latency)
    elif launch.programs < tiles:  # each program goes through several tiles, and copies for the next meanwhile
        inside = math.ceil(tiles / launch.programs) * alone + 2 * gpu.latency
    else:
        inside = _wave_times(tiles, side, alone, gpu)
    limit = max(of_chip, key=lambda name: of_chip[name]) if inside <= 1.1 * max(of_chip.values()) else "waves"
    if memory >= inside:
        limit = "memory"
    seconds = GAP + max(inside, memory)
    return Prediction(side, moved[0], moved[1], tiles * work.cached, of_chip, memory, seconds, limit)


def _describe(launch: Launch, code: Code | None, at_once: int) -> tuple[int, Work, Touch]:
    """Number of tiles, the work of one, and what the launch touches."""
    if code is None:
        return _library(launch)
    for describe, kernels in ((_product, PRODUCTS), (_attention, ATTENTION)):
        if launch.name in kernels:
            return describe(launch, code, at_once)
    return _pointwise(launch)


def _library(launch: Launch) -> tuple[int, Work, Touch]:
    """A product of the library: at the rate that its large products reach, N fastest, in tiles of 128 x 256."""
    x, w, out, added = (launch.arguments[name] for name in ("x", "w", "out", "added"))
    M, K, N = x.shape[0], x.shape[1], w.shape[1]
    operands, result = [matrix_of(x), matrix_of(w)], matrix_of(out)

    def touch(cache: Cache) -> None:
        if added is not None and matrix_of(added) != result:  # addmm copies what is added into the result first
            traffic.pointwise(cache, [matrix_of(added)], [result])
        if K <= N or K <= 4096:
            left, right = (Matrix(m.name, size, K, m.itemsize) for m, size in zip(operands, (M, N), strict=True))
            onto = None if added is None else result
            traffic.product(cache, left, [right], result, Tiles(128, 256, 64), 132, onto)
        else:  # a gradient of weights: all tiles at once, each through a part of the rows
            traffic.pointwise(cache, operands, [result])

    return 1, Work(M * N * K * x.element_size()), touch


PRODUCTS = {
    "linear_kernel": 1,
    "linear_residual_kernel": 1,
    "linear_swiglu_kernel": 2,
    "persistent_linear_kernel": 1,
    "persistent_residual_kernel": 1,
    "persistent_swiglu_kernel": 2,
}
"""Matrices side by side in a tile of the block's products."""


def _product(launch: Launch, code: Code, at_once: int) -> tuple[int, Work, Touch]:
    arguments, tensors, count = launch.arguments, launch.tensors, PRODUCTS[launch.name]
    N, K = arguments["N"], arguments["K"]
    columns = arguments["BLOCK_N"]  # of the result; a persistent program counts those of both matrices
    columns //= count if launch.name.startswith("persistent") else 1
    tiles = Tiles(arguments["BLOCK_M"], columns, arguments["BLOCK_K"])
    x, out, weight = tensors["x"], matrix_of(tensors["out"]), matrix_of(tensors["w"])
    residual = matrix_of(tensors["residual"]) if "residual" in tensors else None
    weights = [Matrix(f"{weight.name} {part}", N, K, weight.itemsize) for part in range(count)]

    def touch(cache: Cache) -> None:
        traffic.product(cache, matrix_of(x), weights, out, tiles, at_once, residual)

    work = _of_product(tiles.m, count * tiles.n, K, code, weight.itemsize)
    beside = tiles.m * tiles.n * 2 * (1 if residual is None else 2)
    number = math.ceil(x.shape[0] / tiles.m) * math.ceil(N / tiles.n)
    return number, Work(work.operations, work.port + 2 * beside, work.cached + beside), touch


ATTENTION = {"short_forward_kernel": 2, "short_backward_kernel": 5}
"""Products of ``S x S x d`` in a tile."""


def _attention(launch: Launch, code: Code, at_once: int) -> tuple[int, Work, Touch]:
    """A row and head: products of the padded size. Its tables come from the L1 cache, which earlier blocks filled."""
    arguments = launch.arguments
    positions, D = arguments["S"], arguments["D"]
    block = arguments.get("BLOCK_S") or arguments["BLOCK_N"]
    queries = arguments.get("BLOCK_M", block)
    padded = math.ceil(positions / queries) * queries
    products = ATTENTION[launch.name]
    gradients = launch.name == "short_backward_kernel"
    cached = 2.0 * positions * D * (8 if gradients else 4)
    tables = 2 * positions * D * 4 * (4 if gradients else 1)
    # each product reads both sides from shared memory, and writes one of them there first
    port = products * 3 * padded * D * 2.0 + tables
    work = Work(products * 2 * padded * block * D, port, cached)
    return launch.programs, work, _stream(launch)


def _pointwise(launch: Launch) -> tuple[int, Work, Touch]:
    size = sum(t.numel() * t.element_size() for t in launch.tensors.values())
    return launch.programs, Work(cached=size / launch.programs), _stream(launch)


_WRITTEN = {"out", "u", "rstd", "du", "dgate_up", "dqkv", "lse", "h", "scales"}
_READ = {"backward_kernel": {"u", "rstd"}, "normalize_kernel": {"u"}, "short_backward_kernel": {"lse"}}
"""Arguments that kernels write, and those of these names that some kernels read."""


def _stream(launch: Launch) -> Touch:
    read = _READ.get(launch.name, set())
    tensors = {name: t for name, t in launch.tensors.items() if t.numel()}
    reads = [matrix_of(t) for name, t in tensors.items() if name not in _WRITTEN or name in read]
    writes = [matrix_of(t) for name, t in tensors.items() if name in _WRITTEN and name not in read]
    return lambda cache: traffic.pointwise(cache, reads, writes)
