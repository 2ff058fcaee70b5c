"""Any arguments from Python give the right result of the cpu library or a Python error, never a crash."""

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hrm_kernels import native
from hrm_kernels.noise import plain_noise
from hrm_kernels.ops.transformer_block.cpu_block import saved_size
from hrm_kernels.recycling import empty

library = native.load("cpu")
pytestmark = pytest.mark.skipif(library.reason is not None, reason=str(library.reason))
BATCH, POSITIONS, DIM, HEADS, HEAD_DIM, INNER = 2, 5, 24, 2, 16, 40
EXPORTED = re.findall(r"TYPED_FUNC\((\w+),", (Path(__file__).parents[2] / "csrc" / "ffi" / "cpu.cpp").read_text())
WITHOUT_TENSORS = [
    "interface", "use_instruction_set", "instruction_set", "bfloat16_instruction_set", "amx", "panel_width",
    "tile_rows", "element_bytes",
]  # fmt: skip
FUNCTIONS = [function for function in EXPORTED if function not in WITHOUT_TENSORS]
COUNTS = (HEADS, HEAD_DIM, INNER)
BLOCKS = (
    "infer_blocks", "recurrent_segment", "conv_cycles", "conv_cycles_forward", "conv_cycles_backward",
    "blocks_forward", "blocks_backward",
)  # fmt: skip


def block_weights(dtype):
    generator, wide = torch.Generator().manual_seed(7), HEADS * HEAD_DIM
    shapes = [(3 * wide, DIM), (DIM, wide), (2 * INNER, DIM), (DIM, INNER)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def conv_weights(dtype):
    """Matrices of the usual scale: float32 cannot give the gradients of two updates with larger ones."""
    generator = torch.Generator().manual_seed(8)
    conv, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in [(INNER, 2), (INNER,)])
    return [*(weight * weight.shape[1] ** -0.5 for weight in block_weights(dtype)), conv, bias]


def arguments(function, batch=BATCH, positions=POSITIONS, dtype=torch.float32, recompute=False):
    """Valid arguments, as a list; outputs are filled with NaN."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape, dtype=dtype):
        return torch.randn(shape, generator=generator).to(dtype)

    def unwritten(*shape, dtype=dtype):
        return torch.full(shape, float("nan"), dtype=dtype)

    float32, rows, wide = torch.float32, batch * positions, HEADS * HEAD_DIM
    seeds, steps = torch.arange(batch) * 2**40 - 3, torch.arange(batch) + 7
    if function.startswith("damped_"):
        *plain, threads = arguments(function.removeprefix("damped_"), batch, positions, dtype, recompute)
        return [*plain, random(batch, dtype=float32).sigmoid(), 0.125, seeds, steps, threads]
    if function == "noise":
        return [seeds, steps, 2, unwritten(batch, positions, DIM, dtype=float32), 2]
    if function == "axpy":
        return [0.5, random(rows, DIM, dtype=float32), random(rows, DIM, dtype=float32)]
    if function == "sparse_sign_sgd":
        ids = torch.arange(rows) % 4
        return [random(5, DIM, dtype=float32), ids, random(rows, DIM, dtype=float32), 0.1, 0.2]
    if function == "adam_atan2":
        params, gradients, means, squares = (
            [random(rows, DIM, dtype=float32), random(positions, dtype=float32)] for _ in range(4)
        )
        copies = [unwritten(*p.shape, dtype=torch.bfloat16) for p in params]
        decays = [torch.tensor(decay, dtype=torch.float64) for decay in ([0.1, 0.19], [0.05, 0.0975])]
        return [params, gradients, means, [v.square() for v in squares], copies, *decays, 0.1, 0.9, 0.95, 0.1, 2]
    if function.startswith("add_rms_norm"):
        x, y, rstd = random(rows, DIM), random(rows, DIM), random(rows, dtype=float32).abs()
        if function == "add_rms_norm_forward":
            return [x, y, 1e-5, unwritten(rows, DIM), unwritten(rows, dtype=float32), 2]
        return [random(rows, DIM), x, y, rstd, unwritten(rows, DIM), 2]
    if function == "swiglu_forward":
        return [random(rows, 2 * DIM), unwritten(rows, DIM), 2]
    if function == "swiglu_backward":
        return [random(rows, DIM), random(rows, 2 * DIM), unwritten(rows, 2 * DIM), 2]
    if function.startswith("conv_swiglu"):
        given = [random(batch, positions, 2 * DIM), random(DIM, 2), random(DIM)]
        if function == "conv_swiglu_forward":
            return [*given, unwritten(batch, positions, DIM), 2]
        return [random(batch, positions, DIM), *given, *(unwritten(*one.shape) for one in given), 2]
    if function.startswith("stablemax"):
        logits, labels, dloss = random(rows, DIM), torch.arange(rows) % DIM, random(rows, dtype=float32)
        labels[:1] = -100
        if function == "stablemax_forward":
            loss, others = unwritten(rows, dtype=float32), unwritten(rows, dtype=torch.float64)
            return [logits, labels, -100, loss, others, torch.full((rows,), -7), 2]
        return [dloss, logits, labels, -100, random(rows, dtype=torch.float64).abs(), unwritten(rows, DIM), 2]
    if function.startswith("token"):
        x, up, down = random(batch, positions, DIM), random(2 * INNER, positions), random(positions, INNER)
        results = [unwritten(*like.shape) for like in (x, up, down)]
        if function == "token_mixing_forward":
            return [x, up, down, 1e-5, results[0], 2]
        return [random(batch, positions, DIM), x, up, down, 1e-5, *results, 2]
    tables = [random(positions + 1, HEAD_DIM, dtype=float32) for _ in range(2)]
    if function.startswith("rope"):
        qkv, out, lse = random(batch, positions, 3 * wide), random(batch, positions, wide), (batch, HEADS, positions)
        if function == "rope_attention_forward":
            return [qkv, *tables, unwritten(*out.shape), unwritten(*lse, dtype=float32), HEADS, 2]
        return [random(*out.shape), qkv, out, random(*lse, dtype=float32), *tables, unwritten(*qkv.shape), HEADS, 2]
    if function == "packed_size":
        return [DIM, *COUNTS, dtype is torch.bfloat16]
    if function == "conv_packed_size":
        return [DIM, *COUNTS, dtype is torch.bfloat16]
    if function == "mixing_packed_size":
        return [positions, DIM, HEAD_DIM, INNER, dtype is torch.bfloat16]
    weights = block_weights(dtype)
    if function == "checksum":
        return [weights, 2]
    if function == "linear_packed_size":
        return [INNER, DIM, dtype is torch.bfloat16]
    if function == "linear_unpacked":
        return [random(rows, DIM), weights[2], random(2 * INNER), unwritten(rows, 2 * INNER), 2]
    if function in ("pack_linear", "linear"):
        weight = weights[2]
        packed = empty(library.module.linear_packed_size(2 * INNER, DIM, dtype is torch.bfloat16)).fill_(float("nan"))
        if function == "pack_linear":
            return [weight, packed, 2]
        library.module.pack_linear(weight, packed, 1)
        return [random(rows, DIM), packed, random(2 * INNER), unwritten(rows, 2 * INNER), 2]
    if function == "pack_conv_blocks" or function.startswith("conv_cycles"):
        size = library.module.conv_packed_size(DIM, *COUNTS, dtype is torch.bfloat16)
        packed = [empty(size).fill_(float("nan")) for _ in range(2)]
        if function == "pack_conv_blocks":
            return [conv_weights(dtype), HEADS, False, packed[0], 2]
        for direction in (False, True):
            library.module.pack_conv_blocks(conv_weights(dtype), HEADS, direction, packed[direction], 1)
        x, y, z = (random(batch, positions, DIM) for _ in range(3))
        out, out2 = (unwritten(batch, positions, DIM) for _ in range(2))
        rest = [*COUNTS, 2, 1e-5, 2]
        if function == "conv_cycles":
            return [x, y, packed[0], 1, *tables, out, *rest]
        saved = empty(2 * saved_size(x, weights, HEADS, False)).fill_(0)
        forward = [x, y, packed[0], 1, *tables, out, saved, *rest]
        if function == "conv_cycles_forward":
            return forward
        library.module.conv_cycles_forward(*forward)
        gradients = [unwritten(*weight.shape) for weight in conv_weights(dtype)]
        return [z, *packed, 1, *tables, saved, out, out2, gradients, *rest]
    size = library.module.packed_size(DIM, *COUNTS, dtype is torch.bfloat16)
    packed = [empty(size).fill_(float("nan")) for _ in range(2)]
    if function == "pack_blocks":
        return [weights, HEADS, False, packed[0], 2]
    for direction in (False, True):
        library.module.pack_blocks(weights, HEADS, direction, packed[direction], 1)
    x, y, z = (random(batch, positions, DIM) for _ in range(3))
    out, out2 = (unwritten(batch, positions, DIM) for _ in range(2))
    if function == "infer_blocks":
        return [x, y, packed[0], 1, *tables, out, *COUNTS, 1e-5, 2]
    if function == "recurrent_segment":
        damping = [random(batch, dtype=float32).sigmoid(), 0.125, seeds, steps]
        scales = [random(3, DIM, dtype=float32).sigmoid() for _ in range(2)]
        moved = [unwritten(batch, 2, dtype=float32), random(batch, dtype=float32).sigmoid()]
        rest = [*moved, *COUNTS, 2, 1, 1e-5, *damping, *scales, 2]
        return [x, y, z, packed[0], 1, packed[0], 1, *tables, out, out2, *rest]
    saved = empty(saved_size(x, weights, HEADS, recompute)).fill_(0)
    forward = [x, y, packed[0], 1, *tables, out, recompute, saved, *COUNTS, 1e-5, 2]
    if function == "blocks_forward":
        return forward
    assert function == "blocks_backward", f"{function} has no arguments here"
    library.module.blocks_forward(*forward)
    gradients = [unwritten(*weight.shape) for weight in weights]
    return [z, *packed, 1, *tables, recompute, saved, out, gradients, *COUNTS, 1e-5, 2]


# ---- the mathematics, in float64


def wide(value):
    if isinstance(value, list):
        return [wide(item) for item in value]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def gradients(function, inputs, dout):
    inputs = [x.clone().requires_grad_() for x in inputs]
    return torch.autograd.grad(function(*inputs), inputs, dout)


def norm(u, eps):
    return u / (u.square().mean(-1, keepdim=True) + eps).sqrt()


def swiglu(gate_up):
    gate, up = gate_up.chunk(2, -1)
    return gate * gate.sigmoid() * up


def split(x, heads):
    """[B, S, H d] -> [B, H, S, d]"""
    return x.unflatten(-1, (heads, x.shape[-1] // heads)).transpose(1, 2)


def heads_of(qkv, cos, sin, heads):
    """q, k, v [B, H, S, d] after RoPE."""
    q, key, v = (split(part, heads) for part in qkv.chunk(3, -1))
    if cos is None:
        return q, key, v
    cos, sin = cos[: q.shape[2]], sin[: q.shape[2]]
    q, key = (x * cos + torch.cat((-x.chunk(2, -1)[1], x.chunk(2, -1)[0]), -1) * sin for x in (q, key))
    return q, key, v


def conv_swiglu(gate_up, weight, bias):
    y = swiglu(gate_up)
    before = torch.cat((torch.zeros_like(y[:, :1]), y[:, :-1]), 1)
    return torch.nn.functional.silu(before * weight[:, 0] + y * weight[:, 1] + bias)


def attention(qkv, cos, sin, heads):
    q, key, v = heads_of(qkv, cos, sin, heads)
    scores = q @ key.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), scores.logsumexp(-1)


def attention_gradient(dout, qkv, out, lse, cos, sin, heads):
    """The formula of flash attention, valid also if out and the log-sum-exp belong to another qkv."""

    def function(qkv):
        q, key, v = heads_of(qkv, cos, sin, heads)
        scores = q @ key.mT / q.shape[-1] ** 0.5
        p = (scores - lse.unsqueeze(-1)).exp().detach()
        d, o = split(dout, heads), split(out, heads)
        dscores = p * (d @ v.detach().mT - (d * o).sum(-1, keepdim=True))
        return (scores * dscores).sum() + (p @ v * d).sum()

    return gradients(function, [qkv], torch.ones((), dtype=torch.float64))[0]


def block(x, weights, cos, sin, eps, inside=swiglu):
    qkv, o, gate_up, down = weights
    x = norm(x + attention(x @ qkv.T, cos, sin, HEADS)[0] @ o.T, eps)
    return norm(x + inside(x @ gate_up.T) @ down.T, eps)


def numbers_of(seeds, steps, shape, stream=0):
    """The noise; steps and stream count modulo 2^32."""
    if not math.prod(shape):
        return torch.zeros(shape, dtype=torch.float64)
    return plain_noise(seeds, steps & 0xFFFFFFFF, *shape[1:], stream & 0xFFFFFFFF).double()


def damped(number, z, new, weights, scale, seeds, steps):
    """The state after an update of ``z`` to ``new``, the one with this number."""
    weights = weights.view(-1, 1, 1)
    return (1 - weights) * z + weights * new + scale * numbers_of(seeds, steps + number, z.shape)


def pre_norm_block(z, injection, weights, cos, sin, eps, scales):
    (qkv, o, gate_up, down), (keep, start, inject) = weights, scales
    x = start * z + inject * injection
    x = keep * x + attention(norm(x, eps) @ qkv.T, cos, sin, HEADS)[0] @ o.T
    return keep * x + swiglu(norm(x, eps) @ gate_up.T) @ down.T


def after_cycles(H, L, x, cos, sin, H_cycles, L_cycles, eps, weights, damping=None, scales=None, complete=False):
    """All updates but the last one of each state, or all."""
    number = 0

    def update(z, injection, state):
        nonlocal number
        if scales:
            new = pre_norm_block(z, injection, weights, cos, sin, eps, scales[state])
        else:
            new = block(z + injection, weights, cos, sin, eps)
        new = damped(number, z, new, *damping) if damping else new
        number += 1
        return new

    for h in range(H_cycles):
        last = h == H_cycles - 1 and not complete
        for _ in range(L_cycles - last):
            L = update(L, H + x, 1)
        H = H if last else update(H, L, 0)
    return H, L


def after_segment(starts, x, moved, *arguments):
    """Both states at the end of a segment, and the change of their rows."""
    ends = after_cycles(*starts, x, *arguments, complete=True)
    share = 1 if moved is None else moved.view(-1, 1, 1)
    new = [start + share * (end - start) for start, end in zip(starts, ends)]
    changes = [end - start for start, end in zip(starts, ends)]
    squares = [sum(one.square().sum((1, 2)) for one in parts) for parts in (changes, new)]
    return *new, torch.stack(squares, 1)


def mixed(x, gate_up, down, eps):
    across = x.transpose(1, 2)
    return norm(across + swiglu(across @ gate_up.T) @ down.T, eps).transpose(1, 2)


def stablemax(logits, labels, ignore_index):
    """Loss, and the sum of s over all columns but the label."""
    s = torch.where(logits < 0, 1 / (1 - logits), logits + 1)
    valid = labels != ignore_index
    of_label = s.gather(1, torch.where(valid, labels, 0)[:, None])[:, 0]
    others = torch.where(valid, s.sum(1) - of_label, s.sum(1))
    return torch.where(valid, ((others + of_label) / of_label).log(), 0), others


def after_conv_cycles(z, x, weights, cos, sin, cycles, eps):
    *matrices, conv, bias = weights
    for _ in range(cycles):
        z = block(z + x, matrices, cos, sin, eps, lambda gate_up: conv_swiglu(gate_up, conv, bias))
    return z


def answers(function, call):
    """The results of a function on arguments ``call``, by the index of the argument that receives them."""

    def packed():
        return wide(block_weights(call[0].dtype))

    match function, wide(call):
        case "axpy", [a, x, y]:
            return {2: y + a * x}
        case "sparse_sign_sgd", [table, ids, grads, lr, decay]:
            sums = torch.zeros_like(table).index_add_(0, ids, grads)
            occurs = torch.zeros(len(table), 1, dtype=torch.bool).index_fill_(0, ids, True)
            return {0: torch.where(occurs, table * (1 - lr * decay) - lr * sums.sign(), table)}
        case "adam_atan2", [params, grads, means, squares, copies, decay1, decay2, lr, beta1, beta2, decay, _]:
            means = [m + (1 - beta1) * (g - m) for m, g in zip(means, grads)]
            squares = [beta2 * v + (1 - beta2) * g.square() for v, g in zip(squares, grads)]
            params = [
                p * (1 - lr * decay) - lr / d1 * torch.atan2(m, (v / d2).sqrt())
                for p, m, v, d1, d2 in zip(params, means, squares, decay1, decay2)
            ]
            return {0: params, 2: means, 3: squares, 4: params if copies else []}
        case "add_rms_norm_forward", [x, y, eps, *_]:
            return {3: norm(x + y, eps), 4: ((x + y).square().mean(-1) + eps).rsqrt()}
        case "add_rms_norm_backward", [dout, x, y, rstd, *_]:
            r, u = rstd[:, None], x + y
            return {4: r * dout - r**3 * u * (dout * u).mean(-1, keepdim=True)}
        case "swiglu_forward", [gate_up, *_]:
            return {1: swiglu(gate_up)}
        case "swiglu_backward", [dout, gate_up, *_]:
            return {2: gradients(swiglu, [gate_up], dout)[0]}
        case "conv_swiglu_forward", [gate_up, weight, bias, *_]:
            return {3: conv_swiglu(gate_up, weight, bias)}
        case "conv_swiglu_backward", [dout, *given, _, _, _, _]:
            results = gradients(conv_swiglu, given, dout)
            return dict(zip((4, 5, 6), results)) if dout.numel() else {}  # without positions nothing is written
        case "stablemax_forward", [logits, labels, ignore_index, _, _, argmax, _]:
            loss, others = stablemax(logits, labels, ignore_index)
            return {3: loss, 4: others} | ({} if argmax is None else {5: logits.argmax(-1)})
        case "stablemax_backward", [dloss, logits, labels, ignore_index, others, *_]:
            dloss, labels = torch.where(labels == ignore_index, 0, dloss), labels.clamp(min=0)
            s = torch.where(logits < 0, 1 / (1 - logits), logits + 1)
            of_label = s.gather(1, labels[:, None])
            total, others = others[:, None] + of_label, others[:, None]
            slope = (1 / total).expand(s.shape).scatter(1, labels[:, None], -others / (total * of_label))
            return {5: dloss[:, None] * slope * torch.where(logits < 0, s.square(), 1)}
        case "linear", [x, _, bias, _, _]:
            return {3: x @ packed()[2].T + (0 if bias is None else bias)}
        case "linear_unpacked", [x, weight, bias, _, _]:
            return {3: x @ weight.T + (0 if bias is None else bias)}
        case "token_mixing_forward", [x, gate_up, down, eps, *_]:
            return {4: mixed(x, gate_up, down, eps)}
        case "token_mixing_backward", [dout, x, gate_up, down, eps, *_]:
            results = gradients(lambda *inputs: mixed(*inputs, eps), [x, gate_up, down], dout)
            return dict(zip((5, 6, 7), results)) if len(x) else {}  # without rows nothing is written
        case "rope_attention_forward", [qkv, cos, sin, _, _, heads, _]:
            return dict(zip((3, 4), attention(qkv, cos, sin, heads)))
        case "rope_attention_backward", [dout, qkv, out, lse, cos, sin, _, heads, _]:
            return {6: attention_gradient(dout, qkv, out, lse, cos, sin, heads)}
        case (("infer_blocks" | "blocks_forward"), [x, injection, _, _, cos, sin, *_, eps, _]):
            return {6: block(x if injection is None else x + injection, packed(), cos, sin, eps)}
        case "recurrent_segment", given:
            (H, L, x), (cos, sin, _, _, change, moved) = given[:3], given[7:13]
            *counts, w, n, s, t, of_H, of_L, _ = given[16:]
            how = packed(), None if w is None else (w, n, s, t), None if of_H is None else (of_H, of_L)
            if change is None:  # without the last update of each state
                return dict(zip((9, 10), after_cycles(H, L, x, cos, sin, *counts, *how)))
            if not x.numel():
                return {11: change}  # nothing is written
            return dict(zip((9, 10, 11), after_segment((H, L), x, moved, cos, sin, *counts, *how)))
        case (
            ("damped_infer_blocks" | "damped_blocks_forward"),
            [x, injection, _, _, cos, sin, *_, eps, w, n, s, t, _],
        ):
            return {6: damped(0, x, block(x + injection, packed(), cos, sin, eps), w, n, s, t)}
        case "noise", [seeds, steps, stream, out, _]:
            return {3: numbers_of(seeds, steps, out.shape, stream)}
        case (("conv_cycles" | "conv_cycles_forward"), [z, x, _, _, cos, sin, *_, cycles, eps, _]):
            return {6: after_conv_cycles(z, x, wide(conv_weights(call[0].dtype)), cos, sin, cycles, eps)}
        case "conv_cycles_backward", [dout, _, _, _, cos, sin, _, _, _, wanted, _, _, _, cycles, eps, _]:
            forward = arguments("conv_cycles_forward", *dout.shape[:2], call[0].dtype)
            if not dout.numel():
                return {}
            dz, dx, *dweights = gradients(
                lambda z, x, *weights: after_conv_cycles(z, x, weights, cos, sin, cycles, eps),
                [*wide(forward[:2]), *wide(conv_weights(call[0].dtype))],
                dout,
            )
            dweights = [gradient if want is not None else None for gradient, want in zip(dweights, wanted)]
            return {7: dz, 8: dx if call[8] is not None else None, 9: dweights}
        case "blocks_backward", [dout, _, _, _, cos, sin, _, _, _, wanted, _, _, _, eps, _]:
            forward = arguments("blocks_forward", *dout.shape[:2], call[0].dtype)
            x = wide(forward[0]) + wide(forward[1])
            if not x.numel():
                return {}
            dx, *dweights = gradients(lambda x, *weights: block(x, weights, cos, sin, eps), [x, *packed()], dout)
            return {8: dx, 9: [gradient if want is not None else None for gradient, want in zip(dweights, wanted)]}


def elements(packed, weight):
    """The elements of packed weights, as float32."""
    bfloat16 = library.module.element_bytes(weight.dtype is torch.bfloat16) == 2
    return packed.view(torch.bfloat16).float() if bfloat16 else packed


def check_values(function, call, before, result):
    """Check the results of an accepted call."""
    least = 0 if function in ("axpy", "adam_atan2", "sparse_sign_sgd") else 1e-12
    if any(isinstance(number, float) and not least <= number < 1 for number in call):
        return  # not a rate, decay or eps of any model
    counts = [number for number in call if type(number) is int]
    if function in ("packed_size", "conv_packed_size"):
        dim, heads, head_dim, inner, bfloat16 = call
        count = 4 * dim * heads * head_dim + 3 * dim * inner
        assert result * 4 >= count * library.module.element_bytes(bfloat16)
    elif function == "mixing_packed_size":
        positions, dim, width, inner, bfloat16 = call
        count = 3 * positions * width + 3 * dim * inner
        assert result * 4 >= count * library.module.element_bytes(bfloat16)
    elif function == "linear_packed_size":
        assert result * 4 >= call[0] * call[1] * library.module.element_bytes(call[2])
    elif function == "checksum":
        weights = [weight.clone(memory_format=torch.contiguous_format) for weight in call[0]]
        assert result == library.module.checksum(weights, 1)
        for weight in weights:
            if weight.numel():
                weight.flatten()[:1].view(torch.uint8)[0] ^= 1
                assert result != library.module.checksum(weights, 1)
    elif function == "pack_linear":
        packed, values = elements(call[1], call[0]), call[0].float().flatten()
        assert torch.equal(packed[packed != 0].sort()[0], values[values != 0].sort()[0])
    elif function == "linear" and (call[0].shape[1], call[3].shape[1]) != (DIM, 2 * INNER):
        return  # the weight was packed for other sizes
    elif function == "pack_conv_blocks":
        (*_, conv, bias), packed = call[0], call[3]
        width = library.module.panel_width(bias.dtype is torch.bfloat16)
        taps = packed[-3 * -(-len(bias) // width) * width :].view(-1, 3, width).transpose(0, 1).flatten(1)
        # last the convolution, in float32 whatever the dtype
        assert torch.equal(taps[:, : len(bias)], torch.stack((conv[:, 0], conv[:, 1], bias)).float())
        assert not taps[:, len(bias) :].any()
    elif function == "pack_blocks":
        packed = elements(call[3], call[0][0])
        values = torch.cat([weight.float().flatten() for weight in call[0]])  # zeros fill panels
        assert torch.equal(packed[packed != 0].sort()[0], values[values != 0].sort()[0])
    elif function.removeprefix("damped_") in BLOCKS and not all(count in counts for count in COUNTS):
        return  # the weights were packed for other sizes
    else:
        if function == "blocks_backward":  # with the saved values of a forward with the same arguments
            forward = arguments("blocks_forward", *call[0].shape[:2], call[0].dtype)
            forward[4:6], forward[7:9], forward[-2] = call[4:6], call[6:8], call[-2]
            library.module.blocks_forward(*forward)
            library.module.blocks_backward(*call)
        if function == "conv_cycles_backward":
            forward = arguments("conv_cycles_forward", *call[0].shape[:2], call[0].dtype)
            forward[4:6], forward[7], forward[-3:-1] = call[4:6], call[6], call[-3:-1]
            library.module.conv_cycles_forward(*forward)
            library.module.conv_cycles_backward(*call)
        for index, want in answers(function, before).items():
            lists = isinstance(want, list)
            for got, expected in zip(call[index] if lists else [call[index]], want if lists else [want], strict=True):
                if expected is not None:
                    close(got, expected)


def close(got, want):
    if not got.is_floating_point():
        assert torch.equal(got, want)
        return
    allowed = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float64: 1e-12}[got.dtype]
    scale = max(
        [1.0, *want.nan_to_num(0, 0, 0).abs().flatten().tolist()]
    )  # at least 1, the size of the terms, which may cancel
    torch.testing.assert_close(got.double(), want, rtol=0, atol=allowed * scale, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_valid_arguments(function, dtype):
    call = arguments(function, dtype=dtype)
    before = copy.deepcopy(call)
    check_values(function, call, before, getattr(library.module, function)(*call))


@pytest.mark.parametrize("function", WITHOUT_TENSORS)
def test_functions_without_tensors(function):
    for values in ([torch.zeros(1)], [None], ["avx3"], ["avx2", 1]):
        with pytest.raises((TypeError, ValueError), match="."):
            getattr(library.module, function)(*values)


def misaligned(tensor):
    """The same values at an address that is not a multiple of the element size."""
    memory = np.zeros(tensor.numel() * tensor.element_size() + 1, np.uint8)
    shifted = np.frombuffer(memory.data, {torch.bfloat16: np.int16}.get(tensor.dtype) or tensor.numpy().dtype, offset=1)
    return torch.from_numpy(shifted).view(tensor.dtype).view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", [function for function in FUNCTIONS if not function.endswith("packed_size")])
def test_misaligned_tensors_are_refused(function, dtype):
    """Tries each tensor argument."""
    for index, valid in enumerate(arguments(function, dtype=dtype)):
        call = arguments(function, dtype=dtype)
        if isinstance(valid, list):
            call[index] = [*valid[:-1], misaligned(valid[-1])]
        elif isinstance(valid, torch.Tensor):
            call[index] = misaligned(valid)
        else:
            continue
        with pytest.raises(ValueError, match=rf"{function}: .* not a multiple of (2|4|8|64); pass .*clone"):
            getattr(library.module, function)(*call)


@pytest.mark.parametrize(
    ("function", "index", "value", "message"),
    [
        # numbers whose products overflow to the actual size, or to 0
        ("infer_blocks", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("recurrent_segment", 4, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("blocks_forward", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("blocks_backward", 3, 1 + 2**55, "layers is 36028797018963969; pass 1 to 1024"),
        ("infer_blocks", 7, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("infer_blocks", 9, 2**62, "inner is 4611686018427387904; pass 1 to 1048576"),
        ("rope_attention_forward", 5, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("rope_attention_backward", 7, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        ("pack_blocks", 1, 2**62, "num_heads is 4611686018427387904; pass 1 to 1048576"),
        # more than memory or time allows
        ("recurrent_segment", 16, 2**40, "H_cycles is 1099511627776; pass 1 to 1048576"),
        ("recurrent_segment", 17, 2**20, r"H_cycles \* L_cycles is 2097152; pass 1 to 1048576"),
        ("conv_cycles", 10, 2**40, "cycles is 1099511627776; pass 1 to 1048576"),
        ("pack_blocks", 4, 2**31 - 1, "threads is 2147483647; pass 1 to 4096"),
        ("infer_blocks", 11, 2**32 + 1, "threads is 4294967297; pass 1 to 4096"),
    ],
)
def test_numbers_beyond_any_model(function, index, value, message):
    call = arguments(function)
    call[index] = value
    with pytest.raises(ValueError, match=f"{function}: {message}"):
        getattr(library.module, function)(*call)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.zeros(BATCH, POSITIONS + 8, DIM), "out has shape"),
        (4, torch.zeros(POSITIONS, HEAD_DIM), "blocks that mix positions have no cos; pass None"),
        (5, torch.zeros(POSITIONS, HEAD_DIM), "blocks that mix positions have no sin; pass None"),
        (8, 0, "the inner size of the mixing is 0; pass 1 to 1048576"),
        (8, 2**62, "the inner size of the mixing is 4611686018427387904; pass 1 to 1048576"),
        (8, HEAD_DIM + 16, "packed has shape"),
    ],
)
def test_arguments_of_mixing_blocks(index, value, message):
    """num_heads 0: a wrong size never reaches the kernels, and the right ones compute the block."""
    shapes = [(2 * HEAD_DIM, POSITIONS), (POSITIONS, HEAD_DIM), (2 * INNER, DIM), (DIM, INNER)]
    weights = [torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i, shape in enumerate(shapes)]
    packed = empty(library.module.mixing_packed_size(POSITIONS, DIM, HEAD_DIM, INNER, False))
    library.module.pack_blocks(weights, 0, False, packed, 1)
    with pytest.raises(ValueError, match=r"pack_blocks: a weight has shape"):
        library.module.pack_blocks([*weights[:2], weights[3], weights[3]], 0, False, packed, 1)
    x, out = torch.randn(BATCH, POSITIONS, DIM), torch.full((BATCH, POSITIONS, DIM), float("nan"))
    call = [x, None, packed, 1, None, None, out, 0, HEAD_DIM, INNER, 1e-5, 2]
    library.module.infer_blocks(*call)
    first, second, gate_up, down = wide(weights)
    middle = mixed(x.double(), first, second, 1e-5)
    close(out, norm(middle + swiglu(middle @ gate_up.T) @ down.T, 1e-5))
    call[index] = value
    with pytest.raises(ValueError, match=f"infer_blocks: {message}"):
        library.module.infer_blocks(*call)


def test_sizes_beyond_any_model():
    with pytest.raises(ValueError, match=r"packed_size: num_heads \* head_dim is 1073741824; pass 1 to 1048576"):
        library.module.packed_size(DIM, 2**15, 2**15, INNER, False)


@st.composite
def tensors(draw, like):
    """Tensors of any rank, sizes (also zero), dtype, strides and offset; often those and the values of ``like``."""
    shape = list(like.shape)
    if draw(st.booleans()):
        shape = draw(
            st.lists(st.sampled_from([0, 1, 2, 3, *like.shape]), max_size=4).filter(lambda s: math.prod(s) < 1 << 20)
        )
    dtypes = [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.uint8, torch.complex64]
    dtype = draw(st.sampled_from([like.dtype, like.dtype, *dtypes]))
    how = draw(st.sampled_from(["plain", "transposed", "expanded", "strided", "shifted"]))
    generator = torch.Generator().manual_seed(math.prod(shape))
    tensor = torch.empty(math.prod(shape) + 1, dtype=dtype)[how == "shifted" :][: math.prod(shape)].view(shape)
    same = tensor.shape == like.shape and dtype == like.dtype
    tensor.copy_(like if same else torch.randn(shape, generator=generator).mul(2).abs())
    if how == "transposed" and tensor.ndim > 1:
        return tensor.transpose(0, -1)
    if how == "expanded" and tensor.ndim and tensor.shape[0]:
        return tensor[:1].expand(tensor.shape)
    return tensor[..., ::2] if how == "strided" and tensor.ndim else tensor


# numbers between 4 and 2**20 may be valid and slow
numbers = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-1, 4)).filter(lambda n: not 4 < n <= 2**20)
sizes = st.fixed_dictionaries(
    {
        "batch": st.integers(0, 3),
        "positions": st.integers(0, 6),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16]),
        "recompute": st.booleans(),
    }
)


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_arguments(function, data):
    """Up to three arguments of a call of any size are replaced by anything."""
    call = arguments(function, **data.draw(sizes))
    for index in data.draw(st.lists(st.integers(0, len(call) - 1), max_size=3, unique=True)):
        valid = call[index]
        if isinstance(valid, list):
            at = data.draw(st.integers(0, len(valid) - 1))
            call[index] = [*valid[:at], data.draw(st.none() | tensors(valid[at])), *valid[at + 1 :]]
        elif isinstance(valid, torch.Tensor):
            call[index] = data.draw(st.one_of(tensors(valid), st.sampled_from([None, 0, "text", []])))
        elif isinstance(valid, float):
            call[index] = data.draw(st.floats() | st.floats(0, 0.875))
        else:
            call[index] = data.draw(numbers)
    before = [value.clone() if isinstance(value, torch.Tensor) else copy.copy(value) for value in call]
    before = [[x if x is None else x.clone() for x in v] if isinstance(v, list) else v for v in before]
    try:
        result = getattr(library.module, function)(*call)
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        assert str(error)
    else:
        check_values(function, call, before, result)
