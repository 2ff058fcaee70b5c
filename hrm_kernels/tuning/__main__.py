"""``python -m hrm_kernels.tuning``: measure this machine's GPU, or its CPU, and write its table.

A GPU's table goes next to the shipped ones. A CPU's goes into the user's cache folder: it holds for this machine, its
versions and its number of threads only.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

import torch
from torch import Tensor

from hrm_kernels.backends import BackendUnavailable, requested, use_backend
from hrm_kernels.tuning import cpu_command
from hrm_kernels.tuning.table import COMPARED, DTYPES, best, path_of, write

ROWS = (16, 32, 82, 164, 328, 656, 1312, 2624, 5248, 10496, 20992, 41984)
"""Tokens per pass: a few, then one puzzle of S = 82, doubled each time."""

D, INNER, HEADS, LAYERS = 512, 1536, 8, 4  # the published module

LONG = 901  # positions of a maze of 30 x 30

BATCH, POSITIONS, VOCABULARY, PUZZLES = 384, 82, 11, 1000  # a training step on Sudoku, as in the benchmarks

LEAD = 1.03
"""``cuda`` replaces ``triton`` if that takes more than this factor longer: above the noise of timings."""

Timer = Callable[[Callable[[], Any]], float]
Call = Callable[[], Sequence[Tensor]]


def replay_seconds(function: Callable[[], Any]) -> float:
    """Median time of a call inside a CUDA graph, as passes run: without launch overhead."""
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(function, rep=50, return_mode="median") / 1e3


def module_pass(device: torch.device, dtype: torch.dtype, rows: int, sizes: Sequence[int]) -> tuple[Any, ...]:
    """The arguments of a pass of the module over ``rows`` tokens: x, weights and what its blocks share."""
    from hrm_kernels.nn import rope_tables
    from hrm_kernels.ops.rope_attention.heads import Heads
    from hrm_kernels.ops.transformer_block import triton_block

    dim, inner, heads, layers = sizes
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(dtype)

    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    weights = [random(*shape) * shape[1] ** -0.5 for _ in range(layers) for shape in shapes]
    positions = 82 if rows % 82 == 0 else rows
    tables = rope_tables(positions, dim // heads, device=device)
    shared = triton_block.Shared(rows // positions, Heads(*tables, heads), 1e-5)
    return random(rows, dim), weights, shared


def measure(
    device: torch.device, dtype: torch.dtype, rows: int, timer: Timer, sizes: Sequence[int] = (D, INNER, HEADS, LAYERS)
) -> dict[str, float]:
    """Measure the seconds of each candidate for a pass of the module over ``rows`` tokens.

    Raises:
        RuntimeError: the results of two candidates differ.
    """
    from hrm_kernels.ops.transformer_block import triton_block
    from hrm_kernels.ops.transformer_block.triton_kernels import fits_a_row
    from hrm_kernels.ops.transformer_block.triton_persistent import cannot_run

    x, weights, shared = module_pass(device, dtype, rows, sizes)
    seconds: dict[str, float] = {}
    with torch.no_grad():
        want = triton_block.infer_library(x, weights, shared)
        for name, path in triton_block.PATHS.items():
            if name.startswith("fused") and dtype is torch.float32:  # without tensor cores there is only one tile size
                continue
            if name == "whole_row" and not fits_a_row(x):
                continue
            if name == "persistent" and cannot_run(x, sizes[1]) is not None:
                continue
            error = (path(x, weights, shared) - want).abs().max().item()
            if not error < 0.25:  # of values around 1, after a few layers in a narrow dtype
                raise RuntimeError(f"{name} differs from library by {error:.2g} at {rows} rows in {dtype}")
            seconds[name] = timer(lambda: path(x, weights, shared))
    return seconds


def measure_eight_bit(
    device: torch.device,
    dtype: torch.dtype,
    name: str,
    rows: int,
    timer: Timer,
    sizes: Sequence[int] = (D, INNER, HEADS, LAYERS),
) -> dict[str, float]:
    """Measure the seconds of each candidate in a format of 8 bits, as :func:`measure`; weights are converted before.

    Raises:
        RuntimeError: a result is further from that without 8 bits than their rounding explains.
    """
    from hrm_kernels.ops.transformer_block import triton_block

    x, weights, shared = module_pass(device, dtype, rows, sizes)
    seconds: dict[str, float] = {}
    with torch.no_grad():
        want = triton_block.infer_library(x, weights, shared).float()
        quantized = triton_block.quantized_weights(weights, name)
        for path in triton_block.eight_bit_paths(x, sizes[1], name):
            run = functools.partial(triton_block.EIGHT_BIT_PATHS[path], x, quantized, shared, name)
            error = ((run().float() - want).norm() / want.norm()).item()
            if not error < 0.25:  # plain PyTorch: 0.07 in e4m3, 0.02 in int8
                raise RuntimeError(f"{path} in {name} differs from library by {error:.2g} of its size at {rows} rows")
            seconds[path] = timer(run)
    return seconds


def measure_all_eight_bit(
    device: torch.device, without: Mapping[int, Mapping[str, float]], timer: Timer
) -> dict[str, dict[int, dict[str, float]]]:
    """Seconds by format and rows of bfloat16 passes; "off" is the fastest candidate ``without`` 8 bits."""
    from hrm_kernels.ops.transformer_block.eight_bit import FORMATS, fp8_is_missing

    seconds: dict[str, dict[int, dict[str, float]]] = {}
    for name in FORMATS:
        reason = fp8_is_missing(device) if name == "fp8" else None
        if reason is not None:
            print(f"{name}: not measured; {reason}", flush=True)
            continue
        seconds[name] = {}
        for rows, others in without.items():
            times = measure_eight_bit(device, torch.bfloat16, name, rows, timer)
            seconds[name][rows] = {"off": min(others.values()), **times}
            shown = ", ".join(f"{candidate} {1e6 * time:.1f} µs" for candidate, time in seconds[name][rows].items())
            print(f"{name}, {rows} rows: {shown}", flush=True)
    return seconds


def problems(op: str, device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, Callable[[], Call]]]:
    """Problems that time one op of :data:`COMPARED`: names, and functions that return a call with new, equal tensors.

    Calls return everything that they compute or change. Tensors have ``dtype``; those of optimisers are float32, with
    copies in ``dtype``.
    """
    from hrm_kernels.nn import rope_tables
    from hrm_kernels.ops.adam_atan2 import Step, adam_atan2
    from hrm_kernels.ops.rope_attention import cuda_kernels, rope_attention, triton_kernels
    from hrm_kernels.ops.rope_attention.heads import Heads
    from hrm_kernels.ops.sparse_sign_sgd import sparse_sign_sgd
    from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy

    def random(*shape: int, seed: int = 0) -> Tensor:
        return torch.randn(
            shape, generator=torch.Generator(device).manual_seed(seed), dtype=torch.float32, device=device
        )

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=torch.Generator(device).manual_seed(0), device=device)

    def attention(rows: int, backward: bool) -> Call:
        qkv = random(rows, POSITIONS, 3 * D).to(dtype).requires_grad_(backward)
        tables = rope_tables(POSITIONS, D // HEADS, device=device)
        gradient = random(rows, POSITIONS, D, seed=1).to(dtype)

        def call() -> Sequence[Tensor]:
            out = rope_attention(qkv, *tables, HEADS)
            return [out, *torch.autograd.grad(out, qkv, gradient)] if backward else [out]

        return call

    def attention_backward() -> Call:
        heads = Heads(*rope_tables(POSITIONS, D // HEADS, device=device), HEADS)
        qkv, gradient = random(BATCH, POSITIONS, 3 * D).to(dtype), random(BATCH, POSITIONS, D, seed=1).to(dtype)
        reason = cuda_kernels.unsupported(qkv, heads)
        if reason is not None:
            raise BackendUnavailable(f"{op}: backend 'cuda' cannot serve this call: {reason}")
        out, lse = triton_kernels.forward(qkv, heads, True)

        def call() -> Sequence[Tensor]:
            if requested() == "cuda":
                return [cuda_kernels.backward(gradient, qkv, lse, heads)]
            return [triton_kernels.backward(gradient, qkv, lse, out, heads)]

        return call

    def loss() -> Call:
        logits = (3 * random(BATCH, POSITIONS - 1, VOCABULARY)).to(dtype).requires_grad_()
        labels, weights = integers(VOCABULARY, BATCH, POSITIONS - 1), random(BATCH, POSITIONS - 1, seed=1)

        def call() -> Sequence[Tensor]:
            out = stablemax_cross_entropy(logits, labels)
            return [out, *torch.autograd.grad(out, logits, weights)]

        return call

    def adam() -> Call:
        shapes = ((3 * D, D), (D, D), (2 * INNER, D), (D, INNER)) * (2 * LAYERS)
        params, grads, means = ([random(*shape, seed=seed) for shape in shapes] for seed in range(3))
        squares, copies = [mean.square() for mean in means], [p.to(dtype) for p in params]
        counts = [torch.ones((), dtype=torch.float32, device=device) for _ in shapes]
        tables: dict = {}

        def call() -> Sequence[Tensor]:
            adam_atan2(Step(params, grads, means, squares, counts, copies, 1e-4, (0.9, 0.95), 0.1, True, tables))
            return [*params, *means, *squares, *copies, *counts]

        return call

    def sparse() -> Call:
        weights, grads, ids = random(PUZZLES, D), random(BATCH, D, seed=1), integers(PUZZLES, BATCH)

        def call() -> Sequence[Tensor]:
            sparse_sign_sgd(weights, ids, grads, 1e-2, 0.1)
            return [weights]

        return call

    if op == "rope_attention":
        yield f"{BATCH} rows", functools.partial(attention, BATCH, False)
        yield f"{BATCH} rows and backward", functools.partial(attention, BATCH, True)
        yield "1 row", functools.partial(attention, 1, False)
    elif op == "rope_attention_backward":
        yield f"{BATCH} rows", attention_backward
    elif op == "stablemax_cross_entropy":
        yield f"{BATCH} rows and backward", loss
    elif op == "adam_atan2":
        yield "all matrices", adam
    else:
        yield f"{BATCH} rows", sparse


def measure_long_attention(device: torch.device, dtype: torch.dtype, timer: Timer, rows: int = 32) -> dict[str, float]:
    """Measure the seconds of each of :data:`ATTENTION` for ``rows`` of 901 positions, a maze, without gradients.

    Raises:
        RuntimeError: the results of two differ.
    """
    from hrm_kernels.nn import rope_tables
    from hrm_kernels.ops.rope_attention import library_kernels, triton_kernels
    from hrm_kernels.ops.rope_attention.heads import Heads

    generator = torch.Generator(device).manual_seed(0)
    qkv = torch.randn(rows, LONG, 3 * D, generator=generator, dtype=torch.float32, device=device).to(dtype)
    heads = Heads(*rope_tables(LONG, D // HEADS, device=device), HEADS)
    want = triton_kernels.forward(qkv, heads, False)[0]
    seconds = {"triton": timer(lambda: triton_kernels.forward(qkv, heads, False))}
    for name in library_kernels.LIBRARIES:
        reason = library_kernels.unsupported(name, qkv)
        if reason is not None:
            print(f"long attention, {name}: not measured; {reason}", flush=True)
            continue
        error = (library_kernels.forward(name, qkv, heads) - want).abs().max().item()
        if not error <= 0.02 * want.abs().max().item():
            raise RuntimeError(f"long attention: {name} differs from triton by {error:.2g}")
        seconds[name] = timer(functools.partial(library_kernels.forward, name, qkv, heads))
    shown = ", ".join(f"{name} {1e6 * time:.1f} µs" for name, time in seconds.items())
    print(f"long attention, {rows} rows: {shown}", flush=True)
    return seconds


def compare(op: str, device: torch.device, dtype: torch.dtype, timer: Timer) -> dict[str, dict[str, float]]:
    """Measure the seconds of ``triton`` and ``cuda`` in each problem of the op.

    Raises:
        BackendUnavailable: one of them cannot run the op here.
        RuntimeError: their results differ.
    """
    seconds: dict[str, dict[str, float]] = {}
    for problem, make in problems(op, device, dtype):
        results, seconds[problem] = {}, {}
        for backend in ("cuda", "triton"):
            call = make()
            with use_backend(backend):
                results[backend] = [result.detach().clone() for result in call()]
                seconds[problem][backend] = timer(call)
        for want, got in zip(results["triton"], results["cuda"], strict=True):
            error, largest = (want.float() - got.float()).abs().max().item(), want.float().abs().max().item()
            if not error <= 0.02 * largest:  # 2 to 5 units in the last place of a narrow dtype
                raise RuntimeError(f"{op}, {problem}: cuda differs from triton by {error:.2g}, of {largest:.2g}")
    return seconds


def cuda_leads(seconds: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether ``cuda`` is faster by more than :data:`LEAD` in every problem."""
    return all(LEAD * times["cuda"] < times["triton"] for times in seconds.values())


def compare_all(device: torch.device, timer: Timer) -> tuple[list[str], dict[str, dict[str, dict[str, float]]]]:
    """Compare all ops of :data:`COMPARED` in bfloat16. Returns the ops that ``cuda`` leads, and the seconds of all."""
    led, seconds = [], {}
    for op in COMPARED:
        try:
            seconds[op] = compare(op, device, torch.bfloat16, timer)
        except BackendUnavailable as reason:
            print(f"{op}: not compared; {reason}", flush=True)
            continue
        for problem, times in seconds[op].items():
            shown = ", ".join(f"{backend} {1e6 * time:.1f} µs" for backend, time in times.items())
            print(f"{op}, {problem}: {shown}", flush=True)
        if cuda_leads(seconds[op]):
            led.append(op)
    return led, seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns 0, or 2 if it cannot measure or write."""
    parser = argparse.ArgumentParser("python -m hrm_kernels.tuning", description=__doc__)
    parser.add_argument("--device", default="cuda", help="cpu, or for example cuda:1; default: the current GPU")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="of a GPU; default: all")
    parser.add_argument("--shipped", action="store_true", help="cpu: write into the tables of the package instead")
    options = parser.parse_args(arguments)
    if options.device == "cpu":
        return cpu_command.main(options.shipped)
    if not torch.cuda.is_available():
        print("tuning: there is no GPU that torch can use; run it on the machine to be tuned", file=sys.stderr)
        return 2
    import triton

    device = torch.device(options.device)
    with torch.cuda.device(device):
        name = torch.cuda.get_device_name()
        table, seconds = {}, {}
        for dtype_name in options.dtypes:
            dtype = DTYPES[dtype_name]
            measured = {rows: measure(device, dtype, rows, replay_seconds) for rows in ROWS}
            for rows, times in measured.items():
                shown = ", ".join(f"{candidate} {1e6 * time:.1f} µs" for candidate, time in times.items())
                print(f"{dtype_name}, {rows} rows: {shown}", flush=True)
            table[dtype_name], seconds[dtype_name] = best(measured), measured
        eight_bit, attention = {}, {}
        if "bfloat16" in seconds:
            attention = measure_long_attention(device, torch.bfloat16, replay_seconds)
            eight_bit = measure_all_eight_bit(device, seconds["bfloat16"], replay_seconds)
        led, compared = compare_all(device, replay_seconds)
    about = {"device": name, "torch": torch.__version__, "triton": triton.__version__, "seconds": seconds}
    about |= {"compared": compared, "eight_bit_seconds": eight_bit}
    if attention:
        about["long_attention"] = {"bfloat16": min(attention, key=lambda name: attention[name])}
        about["long_attention_seconds"] = attention
    about["eight_bit"] = {name: best(times) for name, times in eight_bit.items()}
    about["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = path_of(name)
    try:
        write(path, table, led, about)
    except OSError as error:
        print(f"tuning: cannot write {path} ({error.strerror or error}); install with pip install -e", file=sys.stderr)
        return 2
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
