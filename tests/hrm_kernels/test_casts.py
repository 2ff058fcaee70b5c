"""Parameters in another dtype: one copy per change, with the parameter's gradient, for whoever holds its address."""

import copy
import gc
import io

import pytest
import torch
from torch import nn

from hrm_kernels import casts, use_backend
from hrm_kernels.casts import cast, keep_copy, refresh, written
from hrm_kernels.nn import Linear, PostNormBlock, ReasoningModule, rope_tables
from hrm_kernels.optim import AdamATan2

LOW = torch.bfloat16


DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parameter(*shape, device="cpu"):
    return nn.Parameter(torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(device))


def test_without_gradients_it_is_one_tensor_until_the_parameter_changes():
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


def test_gradients_reach_the_parameter_through_the_copys_memory():
    p, x = parameter(3, 4), torch.randn(2, 4)
    out = cast(p, LOW)
    with torch.no_grad():
        assert out.data_ptr() == cast(p, LOW).data_ptr()
    assert out.requires_grad
    nn.functional.linear(x.to(LOW), out).float().square().sum().backward()
    twin = nn.Parameter(p.detach().clone())
    nn.functional.linear(x.to(LOW), twin.to(LOW)).float().square().sum().backward()
    assert p.grad.dtype == torch.float32 and torch.equal(p.grad, twin.grad)
    frozen = parameter(3, 4).requires_grad_(False)
    assert not cast(frozen, LOW).requires_grad and cast(frozen, LOW) is cast(frozen, LOW)


def test_a_backward_after_the_copy_was_written_anew_is_an_error():
    p, x = parameter(3, 4), torch.randn(2, 4, requires_grad=True)
    loss = (nn.functional.linear(x.to(LOW), cast(p, LOW))).sum()
    with torch.no_grad():
        p.add_(1)
        cast(p, LOW)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_new_memory_and_new_shape_are_seen():
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


def test_inference_mode_leaves_a_copy_that_trains():
    p = parameter(3, 4)
    with torch.inference_mode():
        first = cast(p, LOW)
    assert not first.is_inference()
    (cast(p, LOW) * torch.ones(4, dtype=LOW).requires_grad_()).sum().backward()
    assert p.grad.eq(1).all()
    with torch.inference_mode():
        other = nn.Parameter(torch.ones(2))
        assert cast(other, LOW).dtype == LOW


def test_copies_go_with_the_parameter_and_are_no_state():
    layer = Linear(4, 3)
    layer(torch.randn(2, 4, dtype=LOW))
    before = len(casts._copies)
    twin = copy.deepcopy(layer)
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert len(casts._copies) == before
    assert layer.state_dict().keys() == twin.state_dict().keys() == loaded.state_dict().keys() == {"weight"}
    x = torch.randn(2, 4, dtype=LOW)
    with torch.no_grad():
        twin.weight.add_(1)
        assert torch.equal(layer(x), loaded(x)) and not torch.equal(layer(x), twin(x))
        layer.load_state_dict(twin.state_dict())
        assert torch.equal(layer(x), twin(x))
    del layer, twin, loaded
    gc.collect()
    assert len(casts._copies) < before


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


def test_a_captured_graph_reads_a_copy_only_where_its_replays_are_promised_fresh_ones(monkeypatch):
    p, unused = parameter(3), parameter(3)
    with torch.no_grad():
        copy = cast(p, LOW)
        monkeypatch.setattr(casts, "_is_captured", lambda weight: True)
        assert cast(p, LOW) is not copy
        with casts.graphs_read_copies():
            assert cast(p, LOW) is copy
            assert cast(unused, LOW) is not cast(unused, LOW)  # one made now would lie in the graph's memory
            p.mul_(2)
            casts.refresh([p])
            assert cast(p, LOW) is copy and torch.equal(copy, p.to(LOW))
        assert cast(p, LOW) is not copy


def test_written_believes_only_the_copy_in_use():
    p = parameter(3)
    with torch.no_grad():
        first = keep_copy(p, LOW)
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


def test_blocks_hand_on_the_same_tensors():
    block = PostNormBlock(64, 2, 1.0)
    with torch.no_grad():
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
