"""What is measured: each op at the published model's sizes, with the fewest bytes and operations it needs.

:func:`published` is what a GPU run times in one go; the suites (``bench_*.py``) choose sizes for the machine at hand.

The same problems at small, awkward sizes (:func:`small`) are what the sanitizer and the determinism check run.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

import hrm_kernels as k
from hrm_kernels.casts import FrozenWeights
from hrm_kernels.nn import SparseEmbedding, rope_tables, swiglu_inner_size
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
        own: every candidate gets arguments of its own (a step changes them).
        kind, size: what it is of (an op's name), rows and positions; for tables and plots.
        plain: plain PyTorch in place of ``op``; None is ``op`` on the reference backend.
        widen: the arguments in float64, which ``plain`` takes too; None converts the tensors among them.
        compiling: ``plain`` with what it gets for compiling a function in it; None compiles ``plain`` itself.
        ways: more than one way to run it, by name, each on every backend; then ``op`` is what values are checked by.
        puzzles: solved by one call.
        score: of a call's results, the share that is right (``solved``), the mean ``segments`` it took, and where it is
            known the share of the time that passed ``outside`` the model's calls.
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
    own: bool = False
    kind: str = ""
    size: tuple[int, int] = (0, 0)
    plain: Callable[..., Any] | None = None
    widen: Callable[[tuple[Any, ...]], tuple[Any, ...]] | None = None
    compiling: Callable[[Callable[..., Any]], Callable[..., Any]] | None = None
    ways: Mapping[str, Callable[..., Any]] | None = None
    puzzles: int = 0
    score: Callable[[list[torch.Tensor]], dict[str, float | None]] | None = None

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
    if op == "token_mixing":
        wide = swiglu_inner_size(S, 4.0)
        return random(B, S, D), random(2 * wide, S, scale=S**-0.5), random(S, wide, scale=wide**-0.5), EPS
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
    "token_mixing",
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
                device: str,
                dtype: torch.dtype,
                seed: int,
                op: str = op,
                B: int = B,
                S: int = S,
                dim: int = dim,
                heads: int = heads,
            ) -> tuple[Any, ...]:
                return arguments_of(op, device, dtype, seed, B, S, dim, heads, 3 * dim, 2, 13)

            yield Workload(f"{op} {B} x {S} x {dim}, {heads} heads", make, getattr(k, op), op != "recurrent_cycles")
    if dtype is torch.float32:
        yield Workload(
            "AdamATan2", lambda device, dtype, seed: _adam(device, seed, [(64, 96), (7,), (0,), (1,)]), _step
        )
        yield Workload("SparseSignSGD", lambda device, dtype, seed: _sparse(device, seed, 33, 10, 96), _step)


def _adam(device: str, seed: int, shapes: Sequence[tuple[int, ...]]) -> tuple[Any, ...]:
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
    assert embedding.local_weights is not None
    embedding.local_weights.grad = random(rows, D, grad=False)
    return SparseSignSGD([embedding], lr=1e-2), [embedding.weights]


def _step(optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor]) -> list[torch.Tensor]:
    optimizer.step()
    return parameters


MULTIPLY_ADDS = 4 * D * D + 3 * D * INNER
"""Of a block's matrices, per token; also their number of elements."""

SEGMENTS = 16
"""Of an answer of the published model, each of six passes of a module: 2 cycles of 2 L updates and 1 H update."""

TRAINING_PASSES = 64
"""Of a training step of the published model: 24 forward, 24 for the Q target, 8 backward that count twice."""


def block_operations(tokens: float, S: int) -> float:
    """Floating-point operations of one block forward: its matrices, and attention over ``S`` positions."""
    return tokens * (2 * MULTIPLY_ADDS + 4 * S * D)


def fewest(op: str, B: int, S: int, backward: bool, layers: int = LAYERS, itemsize: int = 2) -> tuple[float, float]:
    """Bytes and operations of a public function at the published width, as in :class:`Workload`."""
    tokens = B * S
    if op == "add_rms_norm":
        return (7 if backward else 3) * D * itemsize * tokens, 0
    if op == "swiglu":
        return (8 if backward else 3) * INNER * itemsize * tokens, 0
    if op == "rope_attention":
        return (12 if backward else 4) * D * itemsize * tokens, (14 if backward else 4) * S * D * tokens
    if op == "token_mixing":  # of the weights each element once, and with backward twice and its gradient
        weights, passes = 3 * S * swiglu_inner_size(S, 4.0), 3 if backward else 1
        return ((5 if backward else 2) * D * tokens + passes * weights) * itemsize, passes * 2 * weights * B * D
    if op == "stablemax_cross_entropy":
        logits, label, loss, sums = VOCABULARY * itemsize, 8, 4, 8
        forward = logits + label + loss
        # backward: what forward saved is written and read; logits, label and dloss are read, dlogits written
        return (2 * forward + logits + 2 * sums if backward else forward) * tokens, 0
    blocks, passes, states = {  # states read and written; of 2 x 2 cycles 3 L updates and 1 H update have no gradient
        "transformer_block": (1, 1, 2),
        "reasoning_module": (layers, layers, 3),
        "recurrent_cycles": (2 * layers, 4 * layers, 5),
    }[op]
    # with backward: weights are read twice and their gradients written; states and their gradients
    moved = (3 if backward else 1) * blocks * MULTIPLY_ADDS + (2 if backward else 1) * states * tokens * D
    return moved * itemsize, (3 if backward else 1) * passes * block_operations(tokens, S)


def of_op(
    op: str,
    B: int,
    S: int,
    backward: bool = False,
    name: str | None = None,
    layers: int = LAYERS,
    itemsize: int = 2,
    **options: Any,
) -> Workload:
    """A public function at the published width, on ``B`` rows of ``S`` positions."""
    moved, operations = fewest(op, B, S, backward, layers, itemsize)
    return Workload(
        name or f"{op} {B} x {S}{' + backward' if backward else ''}",
        lambda device, dtype, seed: arguments_of(op, device, dtype, seed, B, S, D, HEADS, INNER, layers, VOCABULARY),
        getattr(k, op),
        backward,
        moved,
        operations,
        kind=op,
        size=(B, S),
        **options,
    )


def adam_atan2(blocks: int = 8, **options: Any) -> Workload:
    """A step of AdamATan2 on the matrices of as many blocks."""
    matrices = [(3 * D, D), (D, D), (2 * INNER, D), (D, INNER)] * blocks
    return Workload(
        "AdamATan2",
        lambda device, dtype, seed: _adam(device, seed, matrices),
        _step,
        bytes=28 * blocks * MULTIPLY_ADDS,  # float32: parameter, gradient and two averages read, all but one written
        compiled=False,
        checked=False,  # float32 and in place: tests/hrm_kernels/test_optim.py checks it
        kind="AdamATan2",
        **options,
    )


def sparse_sign_sgd(B: int, table: int = 1000, **options: Any) -> Workload:
    """A step of SparseSignSGD on ``B`` rows of a puzzle embedding."""
    return Workload(
        "SparseSignSGD",
        lambda device, dtype, seed: _sparse(device, seed, B, table, D),
        _step,
        bytes=12 * B * D,
        compiled=False,
        checked=False,  # as above
        kind="SparseSignSGD",
        size=(B, 0),
        **options,
    )


def published(tiny: bool = False, long: bool = True) -> Iterator[Workload]:
    """The timings: S = 82, batch 384 (Sudoku) unless the name says otherwise. ``tiny``: sizes to try it on a CPU."""
    B, S = (2, 5) if tiny else (384, 82)
    layers = 1 if tiny else LAYERS

    def both(op: str, B: int, S: int, name: str, **options: Any) -> Iterator[Workload]:
        yield of_op(op, B, S, name=name, **options)
        yield of_op(op, B, S, True, f"{name} + backward", **options)

    for op in ("add_rms_norm", "swiglu", "rope_attention"):
        yield from both(op, B, S, op)
    if long:
        yield from both("rope_attention", *((1, 130) if tiny else (32, 901)), "rope_attention S=901")
    yield from both("transformer_block", B, S, "transformer_block")
    yield of_op("transformer_block", 1, S, name="transformer_block batch 1", compiled=False)
    for rows, name in ((B, "reasoning_module"), (1, "reasoning_module batch 1")):
        yield of_op("reasoning_module", rows, S, name=name, layers=layers, compiled=False)
    for rows, name in ((B, "recurrent_cycles"), (1, "recurrent_cycles batch 1")):
        yield of_op("recurrent_cycles", rows, S, name=name, layers=layers, compiled=False, graph=False)
    # (not compiled: the reference computes in float64)
    yield from both("stablemax_cross_entropy", B, S, "stablemax_cross_entropy", compiled=False)
    yield Workload(
        "Sudoku answer",
        lambda device, dtype, seed: thinker(device, dtype, 1, S, layers),
        think,
        operations=SEGMENTS * 6 * layers * block_operations(S, S),
        compiled=False,
        plain=think_as_published,
        widen=in_float64,
        ways={"all segments": answer},
    )
    yield adam_atan2(2 if tiny else 8)
    yield sparse_sign_sgd(B)
    for name, step in (("training step", train), ("training step, one graph", train_in_one_graph)):
        yield Workload(
            name,
            lambda device, dtype, seed: trainer(device, dtype, B, S, layers),
            step,
            # 24 block passes, 24 for the Q target, 8 backward that count twice
            operations=TRAINING_PASSES * layers // LAYERS * block_operations(B * S, S),
            graph=False,
            compiled=False,
            checked=False,
            own=True,
        )


def thinker(device: str, dtype: torch.dtype, B: int, S: int, layers: int = LAYERS) -> tuple[Any, ...]:
    """The published Sudoku model for evaluation, a carry with every row halted, and a batch."""
    model, _, state = trainer(device, dtype, B, S, layers)
    torch.nn.init.trunc_normal_(model.inner.q_head.weight, std=D**-0.5)  # (training starts from 0)
    return model.eval(), state["carry"], state["batch"]


def think(model: Any, carry: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A segment: logits, Q values, states."""
    return _thoughts(*model(carry, batch))


_frozen: "WeakKeyDictionary[Any, FrozenWeights]" = WeakKeyDictionary()  # by model, as an engine has them


def answer(model: Any, carry: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """All segments of a puzzle, as published: what a CUDA graph of it replays is an engine's work on the device."""
    with _frozen.setdefault(model, FrozenWeights()):
        for _ in range(SEGMENTS):
            carry, outputs = model(carry, batch)
    return _thoughts(carry, outputs)


def think_as_published(model: Any, carry: Any, batch: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    """A segment in plain PyTorch."""
    from bench import published

    return _thoughts(*published.forward(model, carry, batch))


def in_float64(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """What :func:`thinker` makes, for :func:`think_as_published` in float64."""
    from bench import published

    model, carry, batch = arguments
    return published.in_float64(model), published.carry_in_float64(carry), batch


def _thoughts(carry: Any, outputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    q = torch.cat((outputs["q_halt_logits"], outputs["q_continue_logits"]))
    return [outputs["logits"], q, carry.z_H, carry.z_L]


def trainer(device: str, dtype: torch.dtype, B: int, S: int, layers: int) -> tuple[Any, ...]:
    """The published Sudoku model (hrm needs pydantic), its optimisers, a batch and a carry."""
    from hrm.config import HRMConfig
    from hrm.model import HRM

    torch.manual_seed(0)
    config = HRMConfig.parse(
        {
            "seq_len": S - 1,
            "vocab_size": VOCABULARY,
            "num_puzzle_identifiers": 1000,
            "puzzle_emb_ndim": D,
            "H_layers": layers,
            "L_layers": layers,
            "forward_dtype": str(dtype).removeprefix("torch."),
        }
    )
    model = HRM(config).to(device).train()
    batch = {
        "inputs": torch.randint(0, VOCABULARY, (B, S - 1), device=device),
        "labels": torch.randint(0, VOCABULARY, (B, S - 1), device=device),
        "puzzle_identifiers": torch.randint(0, 1000, (B,), device=device),
    }
    dense = AdamATan2(model.parameters(), lr=1e-4, weight_decay=0.1, capturable=device != "cpu")
    dense.keep_copies(dtype)
    state = {"carry": model.initial_carry(batch), "batch": batch}
    assert model.puzzle_emb is not None
    return model, [dense, SparseSignSGD([model.puzzle_emb], lr=1e-4)], state


def train(
    model: Any,
    optimizers: list[torch.optim.Optimizer],
    state: dict[str, Any],
    forward: Callable[..., Any] | None = None,
) -> list[torch.Tensor]:
    """Take a step of the trainer, without its metrics; return the loss and the gradients that the step used.

    ``forward`` takes the place of the model's.
    """
    from hrm.losses import act_loss
    from hrm.training.step import Update, train_step

    def compute_loss() -> tuple[torch.Tensor, Any]:
        carry, outputs = (forward or type(model).__call__)(model, state["carry"], state["batch"])
        return act_loss(carry, outputs)[0], carry

    with torch.enable_grad():
        loss, state["carry"] = train_step(compute_loss, Update(optimizers, len(state["batch"]["inputs"])))
    return [loss, *(p.grad for p in model.parameters() if p.grad is not None)]


def train_in_one_graph(model: Any, optimizers: list[torch.optim.Optimizer], state: dict[str, Any]) -> torch.Tensor:
    """The same step as one CUDA graph, as hrm.training replays it; on a CPU as ever."""
    from hrm.step_graph import CudaCapture, StepGraph

    carry, device = state["carry"], state["batch"]["inputs"].device
    if device.type == "cpu":
        return train(model, optimizers, state)[0]
    if "graph" not in state:
        state["loss"] = torch.zeros((), device=device)

        def step(batch: dict[str, torch.Tensor]) -> None:
            mine = {"carry": carry, "batch": batch}
            state["loss"].copy_(train(model, optimizers, mine)[0])
            for name in ("z_H", "z_L", "steps", "halted"):
                getattr(carry, name).copy_(getattr(mine["carry"], name))
            for name, values in carry.current_data.items():
                values.copy_(mine["carry"].current_data[name])

        state["graph"] = StepGraph(step, CudaCapture(device, "pytest bench -k 'not train'"), device)
    state["graph"](state["batch"])
    return state["loss"].clone()
