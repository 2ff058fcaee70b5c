"""Replacements for flash_attn and adam_atan2: their results, and that working originals stay."""

import importlib
import importlib.util
import inspect
import sys

import pytest
import torch

import hrm_kernels.optim
from hrm_kernels import shims

NAMES = ("flash_attn", "flash_attn_interface", "adam_atan2")


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] in NAMES]:
        monkeypatch.delitem(sys.modules, name)
    yield
    shims.uninstall()


@pytest.fixture
def missing(monkeypatch):
    """Simulate a machine without the originals."""
    original = importlib.import_module

    def without(name, *rest):
        if name in NAMES and name not in sys.modules:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return original(name, *rest)

    monkeypatch.setattr(shims, "import_module", without)


def test_the_published_imports_work(missing):
    assert shims.install() == {name: f"hrm_kernels: No module named {name!r}" for name in NAMES}
    from adam_atan2 import AdamATan2
    from flash_attn import flash_attn_func as second
    from flash_attn_interface import flash_attn_func as third

    assert second is shims.flash_attn_func and third is shims.flash_attn_3_func
    assert issubclass(AdamATan2, hrm_kernels.optim.AdamATan2)
    assert all(importlib.util.find_spec(name) for name in NAMES)
    assert shims.install() == {name: f"hrm_kernels: No module named {name!r}" for name in NAMES}
    assert sys.modules["flash_attn"].flash_attn_func is second
    shims.uninstall()
    assert not any(name in sys.modules for name in NAMES)


def test_a_working_original_is_not_shadowed(tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text("def flash_attn_func(): return 'original'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert shims.install()["flash_attn"] == "the original"
    assert sys.modules["flash_attn"].flash_attn_func() == "original"
    shims.uninstall()
    assert "flash_attn" in sys.modules


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("from . import inner\nraise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12"),
        ("from . import inner", "has no attribute 'flash_attn_func'"),
    ],
)
def test_a_broken_original_is_replaced(text, reason, tmp_path, monkeypatch):
    (tmp_path / "flash_attn").mkdir()
    (tmp_path / "flash_attn" / "__init__.py").write_text(text)
    (tmp_path / "flash_attn" / "inner.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert reason in shims.install()["flash_attn"]
    from flash_attn import flash_attn_func

    assert flash_attn_func is shims.flash_attn_func and "flash_attn.inner" not in sys.modules


def exact(q, k, v, scale=None, causal=False):
    """Attention in float64, with repeated key and value heads."""
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    scores = torch.einsum("bshd,bthd->bhst", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if causal:
        s, t = scores.shape[-2:]
        seen = torch.arange(t)[None] <= torch.arange(s)[:, None] + t - s
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("bhst,bthd->bshd", scores.softmax(-1).nan_to_num(0), v)


CASES = {
    "published": ({}, {}),
    "scale": ({"softmax_scale": 0.3}, {"scale": 0.3}),
    "causal": ({"causal": True}, {"causal": True}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("positions", "others", "heads"), [(7, 7, 4), (7, 7, 2), (3, 8, 4), (8, 3, 2)])
@pytest.mark.parametrize("function", [shims.flash_attn_func, shims.flash_attn_3_func])
def test_attention(function, positions, others, heads, case):
    torch.manual_seed(0)
    options, expected = CASES[case]
    q = torch.randn(2, positions, 4, 16, requires_grad=True)
    k, v = (torch.randn(2, others, heads, 16, requires_grad=True) for _ in range(2))
    got, want = function(q, k, v, **options), exact(q, k, v, **expected)
    assert got.dtype == torch.float32 and got.is_contiguous()
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
    weight = torch.linspace(-1, 2, got.numel(), dtype=torch.float64).view_as(want)
    gradients, expected_gradients = (torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (got, want))
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_signatures_are_the_originals():
    assert list(inspect.signature(shims.flash_attn_func).parameters) == [
        "q", "k", "v", "dropout_p", "softmax_scale", "causal", "window_size", "softcap", "alibi_slopes",
        "deterministic", "return_attn_probs",
    ]  # fmt: skip
    assert list(inspect.signature(shims.flash_attn_3_func).parameters) == [
        "q", "k", "v", "softmax_scale", "causal", "qv", "q_descale", "k_descale", "v_descale", "window_size",
        "attention_chunk", "softcap", "num_splits", "pack_gqa", "deterministic", "sm_margin",
    ]  # fmt: skip


Q = torch.zeros(1, 2, 2, 4)


@pytest.mark.parametrize(
    ("function", "options"),
    [
        (shims.flash_attn_func, {"dropout_p": 0.1}),
        (shims.flash_attn_func, {"window_size": (3, 0)}),
        (shims.flash_attn_func, {"alibi_slopes": torch.ones(2)}),
        (shims.flash_attn_func, {"return_attn_probs": True}),
        (shims.flash_attn_func, {"softcap": 3.0}),
        (shims.flash_attn_3_func, {"softcap": 3.0}),
        (shims.flash_attn_3_func, {"qv": Q}),
        (shims.flash_attn_3_func, {"attention_chunk": 4}),
    ],
)
def test_unsupported_arguments(function, options):
    name = next(iter(options))
    with pytest.raises(
        NotImplementedError, match=f"flash_attn_func: .* does not support {name}=.*leave it at its default"
    ):
        function(Q, Q, Q, **options)


def test_wrong_tensors():
    with pytest.raises(ValueError, match=r"q has shape \[2, 2, 4\], expected \[B, S, H, d\]"):
        shims.flash_attn_func(Q[0], Q, Q)
    with pytest.raises(ValueError, match="q has 2 heads and k 3, expected a divisor"):
        shims.flash_attn_func(Q, torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4))
    with pytest.raises(TypeError, match="v is torch.float16, expected torch.float32 as q"):
        shims.flash_attn_func(Q, Q, Q.half())


def test_the_optimiser_steps_like_adam_atan2():
    torch.manual_seed(0)
    a = torch.nn.Parameter(torch.randn(5))
    b = torch.nn.Parameter(a.detach().clone())
    optimizer = hrm_kernels.optim.AdamATan2([a], lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-2)
    published = shims.PublishedAdamATan2([b])
    for _ in range(3):
        a.grad = torch.randn(5)
        b.grad = a.grad.clone()
        optimizer.step()
        published.step()
    assert torch.equal(a, b)
