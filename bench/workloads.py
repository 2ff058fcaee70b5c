"""What is measured: each op at the published model's sizes, with the fewest bytes and operations it needs.

The same problems at small, awkward sizes (:func:`small`) are what the sanitizer and the determinism check run.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import hrm_kernels as k
from hrm_kernels.nn import SparseEmbedding, rope_tables
from hrm_kernels.optim import AdamATan2, SparseSignSGD

D, HEADS, INNER, LAYERS, VOCABULARY = 512, 8, 1536, 4, 11
EPS = 1e-5


@dataclass(frozen=True)
class Workload:
    """One op at one size.

    Attributes:
        name: op, size and what is run of it.
        make: ``(device, dtype, seed) ->`` the op's arguments, fresh ones.
        op: takes them; the public function, or a wrapper.
        backward: time the op and its gradients (of every argument that requires one), else the op without gradients.
        bytes, operations: the fewest it must move through memory (2-byte elements; each input read once, each output
            written once, what the backward pass needs of the forward pass written and read once), and floating-point
            operations of its matrix products; 0 where there is none.
        graph: can be captured as a CUDA graph; else calls are timed with their launches.
        compiled: ``torch.compile`` of the reference is one of the candidates.
        checked: the result is compared with float64 before timing.
    """

    name: str
    make: Callable[[str, torch.dtype, int], tuple[Any, ...]]
    op: Callable[..., Any]
    backward: bool = False
    bytes: float = 0
    operations: float = 0
    graph: bool = True
    compiled: bool = True
    checked: bool = True

    def call(self, op: Callable[..., Any], arguments: tuple[Any, ...]) -> list[torch.Tensor]:
        """Results, then gradients, of ``op`` in place of the workload's own."""
        if not self.backward:
            with torch.no_grad():
                return tensors(op(*arguments))
        out = op(*arguments)
        leaves = [t for t in tensors(arguments) if t.requires_grad]
        return [out.detach(), *torch.autograd.grad(out, leaves, _output_gradient(out.shape, out.dtype, out.device))]


@functools.lru_cache(maxsize=8)  # made once, before the timing
def _output_gradient(shape: torch.Size, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Neither constant nor random: the same for every backend and dtype."""
    values = torch.arange(shape[-1], device=device) % 7 - 3
    return (values.to(dtype) / 4).expand(shape).contiguous()


def tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [t for part in value for t in tensors(part)] if isinstance(value, list | tuple) else []


def converted(value: Any, dtype: torch.dtype, of: torch.dtype) -> Any:
    """``value`` with its tensors of dtype ``of`` in ``dtype``, as leaves of their own."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(dtype).requires_grad_(value.requires_grad) if value.dtype == of else value
    if isinstance(value, k.BlockWeights):
        return k.BlockWeights(*(converted(w, dtype, of) for w in value))
    return type(value)(converted(part, dtype, of) for part in value) if isinstance(value, list | tuple) else value


class _Random:
    def __init__(self, device: str, dtype: torch.dtype, seed: int) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self.device, self.dtype = device, dtype

    def __call__(self, *shape: int, scale: float = 1.0, grad: bool = True) -> torch.Tensor:
        values = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32) * scale
        return values.to(self.dtype).requires_grad_(grad)

    def labels(self, rows: int, columns: int, below: int) -> torch.Tensor:
        labels = torch.randint(0, below, (rows, columns), generator=self.generator, device=self.device)
        labels[:, ::5] = -100
        return labels

    def block(self, D: int, inner: int) -> k.BlockWeights:
        shapes = ((3 * D, D), (D, D), (2 * inner, D), (D, inner))
        return k.BlockWeights(*(self(*shape, scale=shape[1] ** -0.5) for shape in shapes))


def arguments_of(
    op: str,
    device: str,
    dtype: torch.dtype,
    seed: int,
    B: int,
    S: int,
    D: int,
    heads: int,
    inner: int,
    layers: int,
    V: int,
) -> tuple[Any, ...]:
    """Random arguments of a public function."""
    random = _Random(device, dtype, seed)
    cos, sin = rope_tables(S, D // heads, device=device)
    if op == "add_rms_norm":
        return random(B, S, D), random(B, S, D), EPS
    if op == "swiglu":
        return (random(B, S, 2 * inner),)
    if op == "rope_attention":
        return random(B, S, 3 * D), cos, sin, heads
    if op == "transformer_block":
        return random(B, S, D), random.block(D, inner), cos, sin, heads, EPS
    if op == "stablemax_cross_entropy":
        return random(B, S, V, scale=3), random.labels(B, S, V), -100
    blocks = [random.block(D, inner) for _ in range(layers)]
    if op == "reasoning_module":
        return random(B, S, D), random(B, S, D), blocks, cos, sin, heads, EPS
    others = [random.block(D, inner) for _ in range(layers)]
    return random(B, S, D), random(B, S, D), random(B, S, D), blocks, others, cos, sin, heads, 2, 2, EPS


OPS = (
    "add_rms_norm",
    "swiglu",
    "rope_attention",
    "stablemax_cross_entropy",
    "transformer_block",
    "reasoning_module",
    "recurrent_cycles",
)


def small(device: str, dtype: torch.dtype, quick: bool = False) -> Iterator[Workload]:
    """Every op, forward and backward, at awkward sizes; then the optimisers."""
    sizes = [(2, 17, 128, 2), (1, 82, 128, 4), (3, 129, 256, 2)]
    if not quick:
        sizes += [(1, 1, 64, 2), (2, 81, 384, 6), (1, 128, 512, 8), (1, 901, 128, 2)]
    for B, S, dim, heads in sizes:
        for op in OPS:

            def make(
                device: str, dtype: torch.dtype, seed: int, op=op, B=B, S=S, dim=dim, heads=heads
            ) -> tuple[Any, ...]:
                return arguments_of(op, device, dtype, seed, B, S, dim, heads, 3 * dim, 2, 13)

            yield Workload(f"{op} {B} x {S} x {dim}, {heads} heads", make, getattr(k, op), op != "recurrent_cycles")
    if dtype is torch.float32:
        yield Workload(
            "AdamATan2", lambda device, dtype, seed: _adam(device, seed, [(64, 96), (7,), (0,), (1,)]), _step
        )
        yield Workload("SparseSignSGD", lambda device, dtype, seed: _sparse(device, seed, 33, 10, 96), _step)


def _adam(device: str, seed: int, shapes: list[tuple[int, ...]]) -> tuple[Any, ...]:
    random = _Random(device, torch.float32, seed)
    parameters = [torch.nn.Parameter(random(*shape, grad=False)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = random(*parameter.shape, grad=False)
    return AdamATan2(parameters, lr=1e-3, weight_decay=0.1, capturable=device != "cpu"), parameters


def _sparse(device: str, seed: int, rows: int, table: int, D: int) -> tuple[Any, ...]:
    """More rows than a third of the table: identifiers repeat."""
    random = _Random(device, torch.float32, seed)
    embedding = SparseEmbedding(table, D).to(device).train()
    ids = torch.randint(0, table, (rows,), generator=random.generator, device=device)
    embedding(ids)
    embedding.local_weights.grad = random(rows, D, grad=False)
    return SparseSignSGD([embedding], lr=1e-2), [embedding.weights]


def _step(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    optimizer.step()
    return parameters


def published(tiny: bool = False, long: bool = True) -> Iterator[Workload]:
    """The timings: S = 82, batch 384 (Sudoku) unless the name says otherwise. ``tiny``: sizes to try it on a CPU."""
    B, S = (2, 5) if tiny else (384, 82)
    tokens = B * S
    multiply_adds = 4 * D * D + 3 * D * INNER  # of a block's matrices, per token

    def at(op: str, B: int, S: int, layers: int = LAYERS) -> Callable[[str, torch.dtype, int], tuple[Any, ...]]:
        return lambda device, dtype, seed: arguments_of(
            op, device, dtype, seed, B, S, D, HEADS, INNER, layers, VOCABULARY
        )

    def block(tokens: int, S: int) -> float:
        return tokens * (2 * multiply_adds + 4 * S * D)

    norm, gated, attention = k.add_rms_norm, k.swiglu, k.rope_attention
    yield Workload("add_rms_norm", at("add_rms_norm", B, S), norm, bytes=3 * D * 2 * tokens)
    yield Workload("add_rms_norm + backward", at("add_rms_norm", B, S), norm, True, bytes=7 * D * 2 * tokens)
    yield Workload("swiglu", at("swiglu", B, S), gated, bytes=3 * INNER * 2 * tokens)
    yield Workload("swiglu + backward", at("swiglu", B, S), gated, True, bytes=8 * INNER * 2 * tokens)
    size = {"bytes": 4 * D * 2 * tokens, "operations": 4 * S * D * tokens}
    yield Workload("rope_attention", at("rope_attention", B, S), attention, **size)
    size = {"bytes": 12 * D * 2 * tokens, "operations": 14 * S * D * tokens}
    yield Workload("rope_attention + backward", at("rope_attention", B, S), attention, True, **size)
    if long:
        rows, length = (1, 130) if tiny else (32, 901)
        inputs, total = at("rope_attention", rows, length), rows * length
        size = {"bytes": 4 * D * 2 * total, "operations": 4 * length * D * total}
        yield Workload("rope_attention S=901", inputs, attention, **size)
        size = {"bytes": 12 * D * 2 * total, "operations": 14 * length * D * total}
        yield Workload("rope_attention S=901 + backward", inputs, attention, True, **size)
    yield Workload("transformer_block", at("transformer_block", B, S), k.transformer_block, operations=block(tokens, S))
    yield Workload(
        "transformer_block + backward",
        at("transformer_block", B, S),
        k.transformer_block,
        True,
        0,
        3 * block(tokens, S),
    )
    yield Workload(
        "transformer_block batch 1",
        at("transformer_block", 1, S),
        k.transformer_block,
        operations=block(S, S),
        compiled=False,
    )
    options = {"compiled": False}
    layers = 1 if tiny else LAYERS
    yield Workload(
        "reasoning_module",
        at("reasoning_module", B, S, layers),
        k.reasoning_module,
        operations=layers * block(tokens, S),
        **options,
    )
    options = {"compiled": False, "graph": False}  # 2 x 2 cycles: 3 L updates and 1 H update have no gradient
    cycles = at("recurrent_cycles", B, S, layers)
    yield Workload("recurrent_cycles", cycles, k.recurrent_cycles, operations=4 * layers * block(tokens, S), **options)
    cycles = at("recurrent_cycles", 1, S, layers)
    yield Workload(
        "recurrent_cycles batch 1", cycles, k.recurrent_cycles, operations=4 * layers * block(S, S), **options
    )
    inputs, columns = at("stablemax_cross_entropy", B, S), VOCABULARY * 2 + 8 + 4  # logits, label, loss
    options = {"compiled": False}  # the reference computes in float64
    yield Workload("stablemax_cross_entropy", inputs, k.stablemax_cross_entropy, bytes=columns * tokens, **options)
    yield Workload(
        "stablemax_cross_entropy + backward",
        inputs,
        k.stablemax_cross_entropy,
        True,
        bytes=(2 * columns + VOCABULARY * 2 + 2 * 8) * tokens,  # total and others saved; logits, label, dloss; dlogits
        **options,
    )
    matrices = [(3 * D, D), (D, D), (2 * INNER, D), (D, INNER)] * (2 if tiny else 8)
    count = sum(rows * columns for rows, columns in matrices)
    options = {
        "compiled": False,
        "checked": False,
    }  # (float32 and in place: tests/hrm_kernels/test_optim.py checks them)
    yield Workload(
        "AdamATan2", lambda device, dtype, seed: _adam(device, seed, matrices), _step, bytes=28 * count, **options
    )
    yield Workload(
        "SparseSignSGD",
        lambda device, dtype, seed: _sparse(device, seed, B, 1000, D),
        _step,
        bytes=12 * B * D,
        **options,
    )
    options = {"compiled": False, "graph": False, "checked": False}
    operations = (
        0 if tiny else 64 * block(tokens, S)
    )  # 24 block passes, 24 for the Q target, 8 backward that count twice
    yield Workload(
        "training step",
        lambda device, dtype, seed: _trainer(device, dtype, B, S, layers),
        _train,
        False,
        0,
        operations,
        **options,
    )


def _trainer(device: str, dtype: torch.dtype, B: int, S: int, layers: int) -> tuple[Any, ...]:
    """The published Sudoku model (hrm needs pydantic), its optimisers, a batch and a carry."""
    from hrm.config import HRMConfig
    from hrm.model import HRM

    torch.manual_seed(0)
    names = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
    config = HRMConfig(
        seq_len=S - 1,
        vocab_size=VOCABULARY,
        num_puzzle_identifiers=1000,
        puzzle_emb_ndim=D,
        H_layers=layers,
        L_layers=layers,
        forward_dtype=names[dtype],
    )
    model = HRM(config).to(device).train()
    batch = {
        "inputs": torch.randint(0, VOCABULARY, (B, S - 1), device=device),
        "labels": torch.randint(0, VOCABULARY, (B, S - 1), device=device),
        "puzzle_identifiers": torch.randint(0, 1000, (B,), device=device),
    }
    dense = AdamATan2(model.parameters(), lr=1e-4, weight_decay=0.1, capturable=device != "cpu")
    state = {"carry": model.initial_carry(batch), "batch": batch}
    return model, [dense, SparseSignSGD([model.puzzle_emb], lr=1e-4)], state


def _train(model: Any, optimizers: list[torch.optim.Optimizer], state: dict[str, Any]) -> torch.Tensor:
    """One step as hrm.training does it, without reading metrics."""
    from hrm.losses import act_loss

    with torch.enable_grad():
        state["carry"], outputs = model(state["carry"], state["batch"])
        loss, _ = act_loss(state["carry"], outputs)
        (loss / len(state["batch"]["inputs"])).backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss.detach()
