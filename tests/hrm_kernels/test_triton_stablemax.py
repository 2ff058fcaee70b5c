"""stablemax_cross_entropy on the triton backend: each loss and gradient to 1e-6 relative of float64."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.ops.stablemax_cross_entropy import stablemax_cross_entropy_with_argmax

pytest.importorskip("triton")
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if torch.cuda.is_available() else [])  # see design: traps
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytestmark = pytest.mark.usefixtures("poisoned")


def run(logits, labels, dloss, backend, ignore_index=-100):
    logits = logits.detach().clone().requires_grad_()
    with k.use_backend(backend):
        loss = k.stablemax_cross_entropy(logits, labels, ignore_index)
    return loss.detach(), torch.autograd.grad(loss, logits, dloss.to(loss.dtype))[0]


def check(logits, labels, dloss, ignore_index=-100):
    want, want_gradient = run(logits.double(), labels, dloss, "reference", ignore_index)
    loss, gradient = run(logits, labels, dloss, "triton", ignore_index)
    assert loss.dtype is torch.float32 and loss.shape == labels.shape
    assert gradient.dtype == logits.dtype and gradient.shape == logits.shape
    # float64 loses a small loss and a label's small gradient to cancellation: 1e-15 of what it subtracts
    torch.testing.assert_close(loss.double(), want, rtol=1e-6, atol=1e-13)
    info = torch.finfo(logits.dtype)
    absolute = {torch.float32: 1e-15, torch.float16: info.smallest_normal * info.eps}.get(logits.dtype, 1e-15)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=max(1e-6, info.eps), atol=absolute)


def inputs(shape, scale, dtype=torch.float32, label_dtype=torch.int64):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape, generator=generator) * scale).clamp(-6e4, 6e4)
    labels = torch.randint(0, shape[-1], shape[:-1], generator=generator, dtype=label_dtype)
    labels[torch.rand(shape[:-1], generator=generator) < 0.2] = -100
    dloss = torch.randn(shape[:-1], generator=generator)
    return logits.to(DEVICE, dtype), labels.to(DEVICE), dloss.to(DEVICE)


@pytest.mark.parametrize("V", [6, 11, 12, 1000, 50000])
@pytest.mark.parametrize("size", [1.0, 1e3, 1e5])
def test_a_label_that_dominates_and_one_that_vanishes(V, size):
    """Losses near 0 keep their digits: here the reference is a float64 formula that doesn't cancel."""
    logits = torch.full((4, V), -size, device=DEVICE)
    logits[0, V // 2] = size
    logits[1] = size
    logits[1, V - 1] = -size
    logits[2] += torch.arange(V, device=DEVICE) % 7
    labels = torch.tensor([V // 2, V - 1, 0, V - 1], device=DEVICE)
    dloss = torch.tensor([1.0, -2.0, 3.0, 0.5], device=DEVICE)
    x = logits.double()
    s = torch.where(x < 0, 1 / (1 - x), 1 + x)
    own = s.gather(-1, labels[:, None])
    label = torch.arange(V, device=DEVICE) == labels[:, None]
    others = torch.where(label, 0, s).sum(-1, keepdim=True)
    slope = torch.where(x < 0, s * s, 1)
    total = others + own
    want_gradient = torch.where(label, -slope * others / (total * own), slope / total) * dloss[:, None]
    loss, gradient = run(logits, labels, dloss, "triton")
    torch.testing.assert_close(loss.double(), torch.log1p(others / own)[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=1e-6, atol=0)


def test_labels_of_32_bits_and_another_ignore_index():
    logits, labels, dloss = inputs((9, 11), 2.0, label_dtype=torch.int32)
    check(logits, labels, dloss)
    check(logits, labels.clamp(min=0), dloss, ignore_index=0)


def test_ignored_tokens_have_loss_and_gradient_0_even_with_nan_logits():
    logits, labels, dloss = inputs((4, 6), 1.0)
    labels[1], labels[2] = -100, 3
    logits[1] = float("nan")
    loss, gradient = run(logits, labels, dloss, "triton")
    assert loss[1] == 0 and gradient[1].eq(0).all() and gradient[2].ne(0).all()


def test_a_label_that_is_no_column_gives_nan_and_reads_nothing():
    logits, _, dloss = inputs((3, 6), 1.0)
    loss, _ = run(logits, torch.tensor([6, -1, 2], device=DEVICE), dloss, "triton")
    assert loss.isnan().tolist() == [True, True, False]


def test_empty_batch_and_non_contiguous_inputs():
    check(*inputs((0, 11), 1.0))
    logits, labels, dloss = inputs((11, 5, 8), 1.0)
    logits = logits.permute(1, 2, 0)
    labels = inputs((8, 5, 11), 1.0)[1].t()
    before = logits.clone()
    check(logits, labels, dloss[:5, :1].expand(5, 8))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("V", [1, 6, 11, 1000, 5000])
def test_argmax_and_the_same_loss(V):
    logits, labels, _ = inputs((40, V), 3.0)
    logits[4, V // 2] = 1e5
    with k.use_backend("triton"):
        loss, largest = stablemax_cross_entropy_with_argmax(logits, labels)
        alone = k.stablemax_cross_entropy(logits, labels)
    assert torch.equal(loss, alone) and torch.equal(largest, logits.argmax(-1))
    want, argmax = stablemax_cross_entropy_with_argmax(logits, labels)
    assert torch.equal(largest, argmax)
    torch.testing.assert_close(loss, want, rtol=1e-6, atol=1e-13)


def test_the_first_of_equal_logits():
    with k.use_backend("triton"):
        _, largest = stablemax_cross_entropy_with_argmax(
            torch.ones(2, 5000, device=DEVICE), torch.zeros(2, device=DEVICE).long()
        )
    assert largest.tolist() == [0, 0]


def test_compiles_without_graph_breaks():
    torch._dynamo.reset()
    logits, labels, dloss = inputs((6, 11), 2.0)
    logits.requires_grad_()
    function = torch.compile(lambda x, y: k.stablemax_cross_entropy(2 * x, y), fullgraph=True, backend="aot_eager")
    both = torch.compile(lambda x, y: stablemax_cross_entropy_with_argmax(x, y), fullgraph=True, backend="aot_eager")
    with k.use_backend("triton"):
        loss = function(logits, labels)
        want = k.stablemax_cross_entropy(2 * logits, labels)
        assert torch.equal(both(logits, labels)[1], logits.argmax(-1))
    assert torch.equal(loss, want)
    assert torch.equal(*(torch.autograd.grad(x, logits, dloss)[0] for x in (loss, want)))


def test_launchers_are_registered(monkeypatch):
    monkeypatch.undo()  # opcheck compares twice, and what is unused may differ
    logits, labels, dloss = inputs((3, 11), 1.0)
    ops = torch.ops.hrm_kernels
    torch.library.opcheck(ops.triton_stablemax_cross_entropy.default, (logits, labels, -100, True))
    torch.library.opcheck(ops.triton_stablemax_cross_entropy.default, (logits, labels, -100, False))
    _, total, others, _ = ops.triton_stablemax_cross_entropy(logits, labels, -100, False)
    torch.library.opcheck(
        ops.triton_stablemax_cross_entropy_backward.default, (dloss, logits, labels, total, others, -100)
    )
