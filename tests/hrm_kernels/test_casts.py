"""Parameters in another dtype, or packed: every write is seen, copies are kept only where somebody vouches for them."""

import concurrent.futures
import copy
import gc
import io

import pytest
import torch
from torch import nn

from hrm_kernels import BlockWeights, casts, frozen_weights, packing, recycling, transformer_block, use_backend
from hrm_kernels.casts import FrozenWeights, cast, refresh, written
from hrm_kernels.nn import Linear, MixingBlock, PostNormBlock, ReasoningModule, RoPEAttention, SwiGLU, rope_tables
from hrm_kernels.optim import AdamATan2

LOW = torch.bfloat16


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parameter(*shape, device="cpu"):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device))


@pytest.fixture
def frozen():
    with frozen_weights():
        yield


def test_views_of_parameters_are_packed_once_until_they_change(frozen):
    """As the ``[I, 2]`` weight of a Conv1d."""
    p, packs = parameter(6, 1, 2), []

    def packed(weight):
        return packing.packed([weight], "views", lambda weights: packs.append(1) or weights[0].clone())

    with torch.no_grad():
        first = packed(p.squeeze(1))
        assert casts.active().knows([p.squeeze(1)]) and packed(p.squeeze(1)) is first and len(packs) == 1
        p.mul_(2)
        assert torch.equal(packed(p.squeeze(1)), p.squeeze(1)) and len(packs) == 2
        assert not casts.active().knows([p.squeeze(1).clone()])


def test_without_gradients_it_is_one_tensor_until_the_parameter_changes(frozen):
    p = parameter(3, 4)
    with torch.no_grad():
        first, address = cast(p, LOW), cast(p, LOW).data_ptr()
        assert first is cast(p, LOW) and torch.equal(first, p.to(LOW)) and not first.requires_grad
        version = first._version
        p.mul_(3)
        assert cast(p, LOW) is first and torch.equal(first, p.to(LOW))
        assert first.data_ptr() == address and first._version > version
        assert cast(p, LOW)._version == first._version  # written once
        half = cast(p, torch.float16)
        assert half.dtype == torch.float16 and cast(p, LOW) is first  # one for each dtype
    assert cast(p, torch.float32) is p


def test_gradients_reach_the_parameter_through_the_copys_memory(frozen):
    p, x = parameter(3, 4), torch.randn(2, 4)
    out = cast(p, LOW)
    with torch.no_grad():
        assert out.data_ptr() == cast(p, LOW).data_ptr()
    assert out.requires_grad
    nn.functional.linear(x.to(LOW), out).float().square().sum().backward()
    twin = nn.Parameter(p.detach().clone())
    nn.functional.linear(x.to(LOW), twin.to(LOW)).float().square().sum().backward()
    assert p.grad.dtype == torch.float32 and torch.equal(p.grad, twin.grad)
    untrained = parameter(3, 4).requires_grad_(False)
    assert not cast(untrained, LOW).requires_grad and cast(untrained, LOW) is cast(untrained, LOW)


def test_a_backward_after_the_copy_was_written_anew_is_an_error(frozen):
    p, x = parameter(3, 4), torch.randn(2, 4, requires_grad=True)
    loss = (nn.functional.linear(x.to(LOW), cast(p, LOW))).sum()
    with torch.no_grad():
        p.add_(1)
        cast(p, LOW)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_new_memory_and_new_shape_are_seen(frozen):
    p = parameter(3, 4)
    with torch.no_grad():
        first = cast(p, LOW)
        p.data = torch.ones(3, 4)
        assert cast(p, LOW) is first and first.eq(1).all()
        p.data = torch.full((2, 2), 5.0)
        assert cast(p, LOW).shape == (2, 2) and cast(p, LOW).eq(5).all() and first.eq(1).all()
        p.data.fill_(7)  # not seen, as said; and the way out
        torch.autograd.graph.increment_version(p)
        assert cast(p, LOW).eq(7).all()


def test_inference_mode_leaves_a_copy_that_trains(frozen):
    p = parameter(3, 4)
    with torch.inference_mode():
        first = cast(p, LOW)
    assert not first.is_inference()
    (cast(p, LOW) * torch.ones(4, dtype=LOW).requires_grad_()).sum().backward()
    assert p.grad.eq(1).all()
    with torch.inference_mode():
        other = nn.Parameter(torch.ones(2))
        assert cast(other, LOW).dtype == LOW


@torch.no_grad()
def _in_place(layer, optimizer):
    for p in layer.parameters():
        p.mul_(0.5)


def _through_data(layer, optimizer):
    for p in layer.parameters():
        p.data.mul_(0.5)


def _one_element(layer, optimizer):
    next(layer.parameters()).data[3, 5] += 50


def _signs(layer, optimizer):
    next(layer.parameters()).data.neg_()


def _numpy(layer, optimizer):
    for p in layer.parameters():
        p.detach().numpy()[:] *= 0.5


def _dlpack(layer, optimizer):
    for p in layer.parameters():
        torch.from_dlpack(p.detach()).mul_(0.5)


def _storage(layer, optimizer):
    for p in layer.parameters():
        p.untyped_storage().copy_(torch.randn_like(p).untyped_storage())


def _exchange(layer, optimizer):  # as averages of weights are put in for an evaluation
    for p in layer.parameters():
        p.data, _ = torch.full_like(p, 0.1) + p.data, p.data


def _flat(layer, optimizer):  # parameters as views of one tensor, which is written
    params = list(layer.parameters())
    flat = torch.cat([p.detach().reshape(-1) for p in params])
    for p, part in zip(params, flat.split([p.numel() for p in params])):
        p.data = part.view_as(p)
    layer(layer.example)
    flat.mul_(0.5)


def _swap(layer, optimizer):
    for p in layer.parameters():
        torch.utils.swap_tensors(p, nn.Parameter(p.detach() * 0.5))


def _load(layer, optimizer):
    layer.load_state_dict({name: p * 0.5 for name, p in layer.state_dict().items()}, assign=True)


def _step(layer, optimizer):
    for p in layer.parameters():
        p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(1))
    optimizer.step()


WRITES = [
    _in_place, _through_data, _one_element, _signs, _numpy, _dlpack, _storage, _exchange, _flat, _swap, _load, _step
]  # fmt: skip
LAYERS = {
    "linear": lambda: Linear(64, 96),
    "swiglu": lambda: SwiGLU(64, 1.0),
    "attention": lambda: RoPEAttention(64, 2),
    "block": lambda: PostNormBlock(64, 2, 1.0),
    "module": lambda: ReasoningModule(2, 64, 2, 1.0),
    "mixing": lambda: MixingBlock(7, 64, 1.0),
}


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_way_of_writing_a_parameter_is_seen(kind, write, dtype):
    torch.manual_seed(0)
    layer, x = LAYERS[kind](), torch.randn(2, 7, 64).to(dtype)
    inputs = (x, x) if kind == "module" else (x,)
    layer.example = x
    forward = layer.forward
    layer.forward = lambda x: forward(*inputs)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True)
    for _ in range(2):
        before = layer(x).detach()
    write(layer, optimizer)
    after = layer(x)
    torch.manual_seed(1)
    fresh = LAYERS[kind]()
    fresh.load_state_dict(layer.state_dict())
    assert torch.equal(after, fresh(*inputs)) and not torch.equal(after, before)


@pytest.mark.parametrize("dtype", [torch.float32, LOW])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW, torch.optim.Adagrad])
def test_fused_optimisers_train_what_is_frozen_too(optimizer, dtype):
    """They raise no version; their steps are counted."""
    torch.manual_seed(0)
    module, z = ReasoningModule(1, 64, 2, 1.0), torch.randn(2, 9, 64).to(dtype)
    steps = optimizer(module.parameters(), lr=1e-2, fused=True)
    with frozen_weights():
        for _ in range(3):
            steps.zero_grad()
            module(z, z).float().square().mean().backward()
            before = module(z, z)
            steps.step()
            fresh = ReasoningModule(1, 64, 2, 1.0)
            fresh.load_state_dict(module.state_dict())
            assert torch.equal(module(z, z), fresh(z, z)) and not torch.equal(module(z, z), before)


def test_what_is_frozen_ends_with_the_context_and_belongs_to_the_thread():
    layer, x = Linear(8, 8), torch.randn(2, 8)
    with frozen_weights():
        with frozen_weights():
            before = layer(x)
        layer.weight.data.mul_(2)
        assert torch.equal(layer(x), before)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            assert not torch.equal(pool.submit(layer, x).result(), before)
    assert not torch.equal(layer(x), before)
    frozen = FrozenWeights()
    for _ in range(2):
        with frozen, torch.no_grad():
            copy = cast(layer.weight, LOW)
            assert cast(layer.weight, LOW) is copy
    assert torch.equal(copy, layer.weight.to(LOW))
    with torch.no_grad():
        assert cast(layer.weight, LOW) is not copy
        layer.weight.zero_()
    frozen.refresh()
    assert copy.eq(0).all()


def test_weights_made_in_each_call_do_not_pile_up():
    block, x = PostNormBlock(64, 2, 1.0), torch.randn(1, 3, 64)
    before = len(packing._entries)
    with FrozenWeights() as frozen, torch.no_grad():
        for scale in range(1, 4):
            weights = [scale * weight for weight in block.weights(torch.float32)]
            transformer_block(x, BlockWeights(*weights), None, None, 2)
        del weights
        block(x)
        assert len(frozen._packed) == 1
    del block, frozen
    gc.collect()
    assert len(packing._entries) <= before


def test_copies_are_no_state():
    layer = Linear(4, 3)
    with frozen_weights():
        layer(torch.randn(2, 4, dtype=LOW))
        twin = copy.deepcopy(layer)
        buffer = io.BytesIO()
        torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert layer.state_dict().keys() == twin.state_dict().keys() == loaded.state_dict().keys() == {"weight"}
    x = torch.randn(2, 4, dtype=LOW)
    with torch.no_grad():
        twin.weight.add_(1)
        assert torch.equal(layer(x), loaded(x)) and not torch.equal(layer(x), twin(x))
        layer.load_state_dict(twin.state_dict())
        assert torch.equal(layer(x), twin(x))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("capturable", [False, True])
def test_the_optimiser_writes_the_copies(backend, capturable):
    low = torch.float16  # (the interpreter's casts to bfloat16 truncate)
    params = [parameter(*shape, device=DEVICE) for shape in ((40, 30), (7,), (0,))]
    optimizer = AdamATan2(params, lr=0.1, weight_decay=0.1, capturable=capturable)
    optimizer.keep_copies(low)
    with torch.no_grad(), use_backend(backend):
        held = [cast(p, low) for p in params]
        for _ in range(2):
            for p in params[:2]:
                p.grad = torch.ones_like(p)
            versions = [p._version for p in params]
            optimizer.step()
            assert all(p._version > version for p, version in zip(params[:2], versions[:2], strict=True))
            after = [copy._version for copy in held]
            assert all(cast(p, low) is copy and torch.equal(copy, p.to(low)) for p, copy in zip(params, held))
            assert after == [copy._version for copy in held]  # nobody wrote them a second time
        params[0].zero_()  # and a change by another hand is seen as ever
        assert cast(params[0], low) is held[0] and held[0].eq(0).all()


def test_copies_serve_as_long_as_their_optimiser():
    p, other = parameter(3), parameter(3)
    optimizer = AdamATan2([p])
    optimizer.keep_copies(LOW)
    with torch.no_grad():
        held = cast(p, LOW)
        assert cast(p, LOW) is held
        torch.utils.swap_tensors(p, other)
        assert torch.equal(cast(p, LOW), p.to(LOW))
        p.grad = torch.ones(3)
        torch.optim.SGD([p], lr=1.0, fused=True).step()  # which raises no version
        assert torch.equal(cast(p, LOW), p.to(LOW))
        optimizer.copies.clear()
        assert cast(p, LOW) is not cast(p, LOW)
        optimizer.keep_copies(LOW)
        assert cast(p, LOW) is cast(p, LOW)
        del optimizer
        gc.collect()
        assert cast(p, LOW) is not cast(p, LOW) and id(p) not in casts._kept


def test_a_captured_graph_reads_only_copies_that_were_there_before(monkeypatch):
    p, kept = parameter(3), parameter(3)
    optimizer = AdamATan2([kept])
    optimizer.keep_copies(LOW)
    with torch.no_grad():
        monkeypatch.setattr(casts, "_is_captured", lambda weight: True)
        assert cast(p, LOW) is not cast(p, LOW)
        assert cast(kept, LOW) is cast(kept, LOW)
        with FrozenWeights() as frozen:
            assert cast(p, LOW) is not cast(p, LOW)  # one made now would lie in the graph's memory
            monkeypatch.setattr(casts, "_is_captured", lambda weight: False)
            copy = cast(p, LOW)
            monkeypatch.setattr(casts, "_is_captured", lambda weight: True)
            assert cast(p, LOW) is copy
            p.mul_(2)
            frozen.refresh()
            assert cast(p, LOW) is copy and torch.equal(copy, p.to(LOW))
        assert cast(p, LOW) is not copy


def test_written_believes_only_the_copy_in_use():
    p = parameter(3)
    optimizer = AdamATan2([p])
    optimizer.keep_copies(LOW)
    with torch.no_grad():
        first = cast(p, LOW)
        p.add_(1)
        written([p], {p: torch.zeros(3, dtype=LOW)})
        assert torch.equal(cast(p, LOW), p.to(LOW))
        p.add_(1)
        refresh([p, parameter(2)])
        assert torch.equal(first, p.to(LOW))


def test_tensors_that_are_no_parameters_are_converted():
    t = torch.randn(3, requires_grad=True)
    assert cast(t, LOW) is not cast(t, LOW) and cast(t, LOW).requires_grad
    assert cast(nn.Parameter(torch.empty(3, device="meta")), LOW).is_meta
    layer, x = Linear(4, 3), torch.randn(5, 2, 4, dtype=LOW)
    gradients = torch.func.vmap(
        torch.func.grad(lambda w, x: torch.func.functional_call(layer, w, (x,)).float().square().sum()), (None, 0)
    )(dict(layer.named_parameters()), x)["weight"]
    for one, gradient in zip(x, gradients, strict=True):
        layer.weight.grad = None
        layer(one).float().square().sum().backward()
        torch.testing.assert_close(gradient, layer.weight.grad, rtol=1e-2, atol=1e-2)


def test_gradients_of_copies_are_right_in_every_mode():
    """Plain backwards convert on used memory; under create_graph, vmap and make_fx it must be PyTorch's conversion."""
    p = parameter(300)
    optimizer = AdamATan2([p])
    optimizer.keep_copies(LOW)
    want = torch.autograd.grad((p.to(LOW).float() ** 3).sum(), p)[0]
    got = torch.autograd.grad((cast(p, LOW).float() ** 3).sum(), p)[0]
    assert got.dtype is torch.float32 and torch.equal(got, want)
    (first,) = torch.autograd.grad((cast(p, LOW).float() ** 3).sum(), p, create_graph=True)
    assert torch.equal(first, want) and first.requires_grad
    (second,) = torch.autograd.grad(first.sum(), p)
    torch.testing.assert_close(second, 6 * p.detach(), rtol=2e-2, atol=2e-2)
    rows = torch.eye(300, dtype=LOW)[:4]
    (batched,) = torch.autograd.grad(cast(p, LOW), p, rows, is_grads_batched=True)
    assert torch.equal(batched, rows.float())
    (expanded,) = torch.autograd.grad(cast(p, LOW).sum(), p)  # not contiguous
    assert torch.equal(expanded, torch.ones_like(p))


def test_large_gradients_of_copies_use_memory_again():
    p = parameter(1 << 16)
    optimizer = AdamATan2([p])
    optimizer.keep_copies(LOW)
    for _ in range(3):
        (gradient,) = torch.autograd.grad((cast(p, LOW) ** 2).sum(), p)
        address = gradient.data_ptr()
        assert address not in recycling._free
        del gradient
        assert address in recycling._free


def test_blocks_hand_on_the_same_tensors():
    block = PostNormBlock(64, 2, 1.0)
    with torch.no_grad(), frozen_weights():
        first, second = block.weights(LOW), block.weights(LOW)
        assert all(a is b for a, b in zip(first, second, strict=True))


@pytest.mark.slow
def test_it_compiles_without_a_break():
    module = ReasoningModule(1, 64, 2, 1.0)
    z, tables = torch.randn(2, 2, 5, 64).to(LOW), rope_tables(5, 32)
    with use_backend("reference"):
        want = module(*z, *tables)
        want.float().sum().backward()
        gradients = [p.grad.clone() for p in module.parameters()]
        module.zero_grad()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        got = compiled(*z, *tables)
        got.float().sum().backward()
        assert torch.equal(got, want)
        for p, gradient in zip(module.parameters(), gradients, strict=True):
            torch.testing.assert_close(p.grad, gradient, rtol=1e-2, atol=1e-3)
        with torch.no_grad():
            for p in module.parameters():
                p.mul_(0.5)
            torch.testing.assert_close(compiled(*z, *tables), module(*z, *tables))
