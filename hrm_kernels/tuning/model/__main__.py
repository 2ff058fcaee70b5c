"""Predict the launches of a block on an H200, without a GPU: ``python -m hrm_kernels.tuning.model``.

It records what each pass launches, compiles these kernels for sm_90 with the alignments of the launch, and prints what
the machine code, the caches and the units of the GPU let expect (:mod:`hrm_kernels.tuning.model.predict`).
``--write`` writes the committed table (``tests/data/h200_model.tsv``), which ``python -m bench.plan`` reads.
"""

import argparse
import fnmatch
import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch

from hrm_kernels.tuning.ahead_of_time import OP_PACKAGES, digest
from hrm_kernels.tuning.model import machine_code, table
from hrm_kernels.tuning.model.cache import Cache
from hrm_kernels.tuning.model.gpu import H200
from hrm_kernels.tuning.model.launches import Launch, recording
from hrm_kernels.tuning.model.predict import predict
from hrm_kernels.tuning.model.table import TABLE, Row

BATCH, POSITIONS, D, INNER, HEADS = 384, 82, 512, 1536, 8  # Sudoku, and the published block


def _tensor(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def passes() -> Iterator[tuple[str, Callable[[], object]]]:
    """The passes to predict, by name: one block each, on a batch of Sudoku or on one puzzle."""
    from hrm_kernels.ops.rope_attention.heads import Heads
    from hrm_kernels.ops.transformer_block import triton_block
    from hrm_kernels.ops.transformer_block.eight_bit import Quantized

    cos, sin = (_tensor(POSITIONS, D // HEADS, dtype=torch.float32) for _ in range(2))
    shared, of_one = (triton_block.Shared(batch, Heads(cos, sin, HEADS), 1e-5) for batch in (BATCH, 1))
    shapes = ((3 * D, D), (D, D), (2 * INNER, D), (D, INNER))
    weights = [_tensor(*shape) for shape in shapes]
    x, one = _tensor(BATCH * POSITIONS, D), _tensor(POSITIONS, D)
    saved: list[torch.Tensor] = []
    for name in ("library", "fused", "persistent"):
        yield table.PASS + name, functools.partial(triton_block.PATHS[name], x, weights, shared)
    for name in ("library", "fused_small"):
        yield table.ONE_PUZZLE + name, functools.partial(triton_block.PATHS[name], one, weights, of_one)
    yield table.FP8_WEIGHTS, lambda: triton_block.quantized_weights(weights, "fp8")
    values = [_tensor(*shape, dtype=torch.float8_e4m3fn) for shape in shapes]
    quantized = [Quantized(value, _tensor(value.shape[0], dtype=torch.float32)) for value in values]
    for name, path in triton_block.EIGHT_BIT_PATHS.items():
        yield table.FP8_PASS + name, functools.partial(path, x, quantized, shared, "fp8")
    yield "forward", lambda: saved.extend(triton_block.forward_block(x, weights, shared)[1])
    yield "backward", lambda: triton_block.backward_block(_tensor(*x.shape), saved, weights, shared)


def _programs(device: torch.device) -> int:
    return H200.multiprocessors


def rows(names: Sequence[str]) -> Iterator[Row]:
    """A row per launch of each pass: of its second run, whose caches hold what the first has left there."""
    from hrm_kernels.ops.transformer_block import triton_persistent

    codes: dict[str, machine_code.Code] = {}

    def code_of(launch: Launch) -> machine_code.Code | None:
        if launch.kernel is None:
            return None
        key = repr((launch.name, launch.case))
        if key not in codes:
            codes[key] = machine_code.read(launch.case)
        return codes[key]

    for name, run in passes():
        with recording() as launches, mock.patch.object(triton_persistent, "_programs", _programs):
            run()
        if not any(fnmatch.fnmatch(name, pattern) for pattern in names):
            continue
        caches = [Cache(H200.cache), Cache(H200.half)]
        for launch in launches:
            predict(launch, code_of(launch), caches, H200)
        for launch in launches:
            code = code_of(launch)
            yield Row.of(name, launch, code, predict(launch, code, caches, H200))


def sources() -> dict[str, str]:
    """Digests of what the predictions follow from: the kernels and launches of the ops, by op, and this package."""
    ops = ("add_rms_norm", "rope_attention", "swiglu", "transformer_block")
    files = {op: [OP_PACKAGES / op / "triton_kernels.py"] for op in ops}
    files["transformer_block"] += [
        OP_PACKAGES / "transformer_block" / name
        for name in ("triton_block.py", "triton_persistent.py", "triton_eight_bit.py")
    ]
    files["model"] = sorted(Path(__file__).parent.glob("*.py"))
    return {name: digest(*paths) for name, paths in files.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python -m hrm_kernels.tuning.model", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help=f"write {TABLE.name}")
    parser.add_argument("--passes", nargs="+", default=["*"], help="names or patterns; default: all")
    options = parser.parse_args(arguments)
    if options.write and options.passes != ["*"]:
        parser.error("--write writes the table of all passes; leave --passes out")
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("model: TRITON_INTERPRET=1 is set, so Triton compiles nothing; unset it", file=sys.stderr)
        return 2
    import triton

    predicted = list(rows(options.passes))
    print(table.show(predicted))
    if options.write:
        table.write(TABLE, predicted, triton.__version__, sources())
    return 0


if __name__ == "__main__":
    sys.exit(main())
