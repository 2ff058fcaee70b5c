"""``patch`` keeps, restores or correctly runs modules whose behaviour a small probe does not show."""

import copy
import math
import pickle
import random
import re
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import hrm_kernels
from hrm_kernels.casts import FrozenWeights

DIM, HEADS = 64, 2
ORIGINAL_CALLS = []  # an entry for each call of an original forward


class Attention(nn.Module):
    """Full attention with methods that subclasses override."""

    def __init__(self, **attributes):
        super().__init__()
        self.num_heads = HEADS
        self.qkv_proj, self.o_proj = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.__dict__.update(attributes)

    def qkv(self, x):
        rows, positions, _ = x.shape
        return self.qkv_proj(x).view(rows, positions, 3, HEADS, -1).permute(2, 0, 3, 1, 4)

    def scores(self, scores):
        return scores

    def forward(self, x):
        ORIGINAL_CALLS.append("attention")
        q, k, v = self.qkv(x)
        scores = self.scores(q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5)
        return self.o_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


def distances(scores):
    positions = torch.arange(scores.shape[-1])
    return positions[:, None] - positions


class Window(Attention):
    def scores(self, scores):
        window = min(self.window, self.config.window if hasattr(self, "config") else self.window)
        return scores.masked_fill(distances(scores).abs() >= window, float("-inf"))


class WindowIn16Bits(Window):
    def scores(self, scores):
        return super().scores(scores) if scores.dtype is torch.bfloat16 else scores


class SoftCap(Attention):
    def scores(self, scores):
        return self.softcap * torch.tanh(scores / self.softcap)


class Clip(Attention):
    def qkv(self, x):
        return super().qkv(x).clamp(-self.clip, self.clip)


class ALiBi(Attention):
    def scores(self, scores):
        return scores - 0.1 * (distances(scores).abs() - self.start).clamp(min=0)


class LongScale(Attention):
    def scores(self, scores):
        return scores * max(1, math.log(scores.shape[-1]) / math.log(self.trained))


class CausalBeyond(Attention):
    def scores(self, scores):
        if scores.shape[-1] <= self.block:
            return scores
        return scores.masked_fill(distances(scores) < 0, float("-inf"))


class OneInTraining(Attention):
    def scores(self, scores):
        return scores.clamp(max=1) if self.training else scores


class PaddingFromZeros(Attention):
    def forward(self, x):
        self_attention = Attention.scores
        padding = (x == 0).all(-1)[:, None, None]
        self.__class__.scores = lambda self, scores: scores.masked_fill(padding, -1e9)
        out = super().forward(x)
        self.__class__.scores = self_attention
        return out


class Dropout(Attention):
    def scores(self, scores):
        return F.dropout(scores, 1e-4, self.training)


class LayerDrop(Attention):
    def forward(self, x):
        return super().forward(x) if not self.training or random.random() > 1e-9 else x


class Counter(Attention):
    def forward(self, x):
        self.calls = self.calls + 1
        return super().forward(x)


class Cache(Attention):
    def forward(self, x):
        self.cache.append(len(self.cache))
        return super().forward(x)


class StoresScores(Attention):
    def scores(self, scores):
        self.seen = scores.detach()
        return scores


class Renormalised(Attention):
    def forward(self, x):
        self.o_proj.weight.data.clamp_(-0.2, 0.2)
        return super().forward(x)


class InPlace(Attention):
    def forward(self, x):
        if not torch.is_grad_enabled():
            x.mul_(2)
        return super().forward(x)


class SwiGLU(nn.Module):
    def __init__(self, linear=nn.Linear, **attributes):
        super().__init__()
        self.gate_up_proj, self.down_proj = linear(DIM, 192, bias=False), linear(96, DIM, bias=False)
        self.__dict__.update(attributes)

    def hidden(self, gate, up):
        return F.silu(gate) * up

    def forward(self, x):
        ORIGINAL_CALLS.append("swiglu")
        return self.down_proj(self.hidden(*self.gate_up_proj(x).chunk(2, -1)))


class Limited(SwiGLU):
    def hidden(self, gate, up):
        return F.silu(gate.clamp(max=self.limit)) * up.clamp(-self.limit, self.limit)


class Block(nn.Module):
    def __init__(self, norm, attention=Attention, mlp=SwiGLU, **attributes):
        super().__init__()
        self.self_attn, self.mlp, self.norm = attention(**attributes), mlp(**attributes), norm

    def forward(self, x):
        x = self.norm(x + self.self_attn(x))
        return self.norm(x + self.mlp(x))


def rms(x, eps=1e-5):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def outside(x):
    return x / (x.square().mean(-1, keepdim=True).sqrt() + 1e-5)


def normalised(x):
    return F.normalize(x, dim=-1) * x.shape[-1] ** 0.5


def floored(x):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True).clamp(min=1e-5))


class LoRA(nn.Module):
    """An adapter that exposes the weight of the wrapped layer."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.a, self.b = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)
        self.in_features, self.out_features = base.in_features, base.out_features

    @property
    def weight(self):
        return self.base.weight

    def forward(self, x):
        return self.base(x) + self.b(self.a(x))


class Int8Linear(nn.Module):
    def __init__(self, fan_in, fan_out, bias=False):
        super().__init__()
        self.weight = nn.Parameter(torch.randint(-127, 128, (fan_out, fan_in), dtype=torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight.to(x.dtype) / 700).T


class TernaryLinear(nn.Linear):
    def forward(self, x):
        scale = self.weight.abs().mean()
        return F.linear(x, scale * (self.weight / scale).round().clamp(-1, 1))


class ClippedLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x).clamp(-100, 100)


class LoRALinear(nn.Linear):
    def __init__(self, *sizes, bias=False):
        super().__init__(*sizes, bias=bias)
        self.a, self.b = nn.Parameter(torch.randn(4, sizes[0])), nn.Parameter(torch.randn(sizes[1], 4))

    def forward(self, x):
        return super().forward(x) + x @ self.a.T @ self.b.T


DIFFERS, CHANGES_STATE = "it computes something else", "its forward changes "
KEPT = {  # by name: the module, and the reason in the report
    "window": (lambda: Window(window=8), f"{DIFFERS}.*33 positions.*; it has window=8"),
    "long window": (lambda: Window(window=200), f"{DIFFERS}.*300 positions"),
    "soft cap": (lambda: SoftCap(softcap=50.0), f"{DIFFERS}.*softcap=50"),
    "high soft cap": (lambda: SoftCap(softcap=1000.0), f"{DIFFERS}.*size 30, 17 positions"),
    "clipped q, k, v": (lambda: Clip(clip=20.0), f"{DIFFERS}.*size 30"),
    "clipped for float16": (lambda: Clip(clip=65504.0), f"{DIFFERS}.*size 1e.06"),
    "alibi": (lambda: ALiBi(start=0), DIFFERS),
    "alibi from afar": (lambda: ALiBi(start=128), f"{DIFFERS}.*300 positions"),
    "scale by length": (lambda: LongScale(trained=128), f"{DIFFERS}.*300 positions"),
    "causal beyond a block": (lambda: CausalBeyond(block=256), f"{DIFFERS}.*300 positions"),
    "one scale in training": (OneInTraining, f"{DIFFERS}.*training mode"),
    "padding from zeros": (PaddingFromZeros, f"{DIFFERS}.*17 positions, the last ones 0"),
    "rare dropout": (Dropout, "draws random numbers in training mode"),
    "layer drop": (LayerDrop, "draws random numbers in training mode"),
    "a counter": (lambda: Counter(calls=0), f"{CHANGES_STATE}calls"),
    "a cache": (lambda: Cache(cache=[]), f"{CHANGES_STATE}cache"),
    "scores kept": (StoresScores, f"{CHANGES_STATE}seen"),
    "weights written": (Renormalised, f"{CHANGES_STATE}a parameter"),
    "arguments written": (InPlace, "its forward writes into its arguments"),
    "a limit in the MLP": (lambda: Limited(limit=7.0), f"{DIFFERS}.*limit=7"),
    "eps outside the root": (lambda: Block(outside), f"{DIFFERS}.*states of size 0.01"),
    "no eps": (lambda: Block(normalised), f"{DIFFERS}.*states of size 0.01"),
    "eps as a floor": (lambda: Block(floored), f"{DIFFERS}.*states of size"),
    "a limit behind a norm": (lambda: Block(rms, mlp=Limited, limit=30.0), f"{DIFFERS}.*weights x 16"),
    "int8 weights": (
        lambda: SwiGLU(Int8Linear),
        "gate_up_proj is .*Int8Linear .*expected a layer with only a floating",
    ),
    "ternary weights": (lambda: SwiGLU(TernaryLinear), DIFFERS),
    "clipping layers": (lambda: SwiGLU(ClippedLinear), f"{DIFFERS}.*size (30|1e.03)"),
    "adapters": (lambda: SwiGLU(LoRALinear), r"gate_up_proj is .*LoRALinear \(with weight, bias, a, b\)"),
    "not copyable": (lambda: SwiGLU(lock=threading.Lock()), "it cannot be copied, so it cannot be compared .TypeError"),
}
RESTORED = {  # by name: the module, and the length of the first call that shows the difference
    "window": (lambda: Window(window=400), 450),
    "window in bfloat16": (lambda: WindowIn16Bits(window=8).bfloat16(), 40),
    "causal beyond a block": (lambda: CausalBeyond(block=512), 600),
    "scale by length": (lambda: LongScale(trained=512), 600),
    "alibi from afar": (lambda: ALiBi(start=400), 450),
    "inside a block": (lambda: Block(rms, attention=Window, window=400), 450),
}


def made(make):
    torch.manual_seed(0)
    module = make()
    return module, copy.deepcopy(module) if "lock" not in module.__dict__ else module


def results(module, x):
    """Everything that a caller sees: output, gradients, and the random numbers drawn afterwards."""
    torch.manual_seed(1)
    random.seed(1)
    module.zero_grad()
    x = x.clone().requires_grad_()
    out = module(x)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    (out.float().square().mean() + out.float().sum()).backward()
    return [
        out.detach(),
        x.grad,
        *(weight.grad.clone() for weight in weights),
        torch.rand(1),
        torch.tensor(random.random()),
    ]


def assert_same(actual, expected, tolerance=1e-5):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert (a - b).abs().max() <= tolerance * b.abs().max().clamp(min=1e-6)


def states(positions, dtype=torch.float32, rows=2):
    return torch.randn(rows, positions, DIM, generator=torch.Generator().manual_seed(5)).to(dtype)


@pytest.mark.parametrize("case", KEPT)
def test_the_probe_keeps_different_modules(case):
    make, reason = KEPT[case]
    module, before = made(make)
    report = hrm_kernels.patch(module)
    assert re.search(reason, report.kept[""]), report
    assert "" not in report.replaced
    if case != "not copyable":
        hrm_kernels.unpatch(module)  # the parts of a block
        x = states(12)
        with torch.no_grad():
            assert torch.equal(module(x.clone()), before(x.clone()))


@pytest.mark.parametrize("case", RESTORED)
def test_the_first_long_call_restores_the_original_forward(case):
    make, positions = RESTORED[case]
    module, before = made(make)
    assert hrm_kernels.patch(module).replaced
    dtype = next(module.parameters()).dtype
    if positions > 40:
        assert_same(results(module, states(7, dtype)), results(before, states(7, dtype)))
    with pytest.warns(UserWarning, match="the model .* uses its original forward from now on: it computes .* differs"):
        got = results(module, states(positions, dtype))
    for actual, expected in zip(got, results(before, states(positions, dtype)), strict=True):
        assert torch.equal(actual, expected)  # the original forward, run once
    assert hrm_kernels.unpatch(module) == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(results(module, states(7, dtype)), results(before, states(7, dtype)))


def test_the_name_in_the_warning():
    torch.manual_seed(0)
    model = nn.Sequential(Attention(), Window(window=400))
    assert hrm_kernels.patch(model).replaced == dict.fromkeys("01", "rope_attention")
    with pytest.warns(
        UserWarning, match=r"module '1' uses its original forward .*\[2, 450, 64\] torch.float32.*window=400"
    ):
        model(states(450))
    assert "an earlier call showed: it computes something else: output differs" in hrm_kernels.patch(model).kept["1"]
    assert hrm_kernels.unpatch(model) == 1
    assert hrm_kernels.patch(model).replaced == dict.fromkeys("01", "rope_attention")


@pytest.mark.parametrize("hidden", ["equal positions", "output weights at 0", "zeros"])
def test_a_first_call_whose_output_hides_the_difference(hidden):
    """Its output is the same with and without a window."""
    module, before = made(lambda: Window(window=400))
    if hidden == "output weights at 0":
        nn.init.zeros_(module.o_proj.weight)
    hrm_kernels.patch(module)
    x = {"equal positions": torch.ones(2, 450, DIM), "zeros": torch.zeros(2, 450, DIM)}.get(hidden, states(450))
    with torch.no_grad(), pytest.warns(UserWarning, match="uses its original forward"):
        module(x)
    module.load_state_dict(before.state_dict())
    assert_same(results(module, states(450)), results(before, states(450)))


def test_the_original_forward_runs_only_in_the_first_call_of_a_kind():
    module, _ = made(lambda: SwiGLU())
    hrm_kernels.patch(module)
    kinds = [(states(5), True), (states(5), False), (states(9), False), (states(5, rows=4), True), (states(5)[0], True)]
    for x, gradients in kinds:
        for first in (True, False):
            ORIGINAL_CALLS.clear()
            with torch.set_grad_enabled(gradients):
                module(x)
            assert bool(ORIGINAL_CALLS) == first
    for mode in (False, True):
        module.train(mode)
        ORIGINAL_CALLS.clear()
        module(states(5))
        assert bool(ORIGINAL_CALLS) != mode  # training mode was compared before
    ORIGINAL_CALLS.clear()
    with torch.inference_mode():
        module(states(5))
    module.bfloat16()(states(5, torch.bfloat16))
    assert len(ORIGINAL_CALLS) == 5  # a 16-bit call also runs in float32


def test_the_first_call_disturbs_nothing():
    """It changes no gradients, random numbers or buffers, and checkpointing saves the same tensors."""

    class WithBuffer(Attention):
        def __init__(self):
            super().__init__()
            self.register_buffer("steps", torch.zeros(3))

    module, before = made(WithBuffer)
    hrm_kernels.patch(module)
    version = module.steps._version
    first, second = results(module, states(9)), results(module, states(9))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)  # the ops compute the first call too
    assert_same(first, results(before, states(9)))
    assert not module.steps.any() and module.steps._version == version

    through = lambda x: checkpoint(module, x, use_reentrant=False)  # noqa: E731
    through.zero_grad, through.parameters = module.zero_grad, module.parameters
    assert_same(results(through, states(11)), results(before, states(11)))
    assert hrm_kernels.unpatch(module) == 1


def assert_computes_as(module, before, x, match=None):
    """``module`` and ``before`` compute the same on ``x``, with a warning that matches ``match``."""
    if match is None:
        assert_same([module(x)], [before(x)])
        return
    with pytest.warns(UserWarning, match=match):
        got = module(x)
    assert_same([got], [before(x)])


def test_hooks_added_after_patching():
    module, seen = made(SwiGLU)[0], []
    hrm_kernels.patch(module)
    module(states(5))
    hook = module.down_proj.register_forward_hook(lambda *_: seen.append("down"))
    module(states(5))
    assert seen == ["down"]
    hook.remove()
    hook = module.register_forward_hook(
        lambda *_: seen.append("outside")
    )  # the ops serve a module with hooks on itself
    ORIGINAL_CALLS.clear()
    module(states(5))
    assert seen == ["down", "outside"] and not ORIGINAL_CALLS
    hook.remove()
    hook = torch.nn.modules.module.register_module_forward_hook(lambda called, *_: seen.append(type(called).__name__))
    module(states(5))
    hook.remove()
    assert seen[2:] == ["Linear", "Linear", "SwiGLU"]
    ORIGINAL_CALLS.clear()
    module(states(5))
    assert not ORIGINAL_CALLS


CHANGES = {
    "adapter": lambda module: setattr(module, "qkv_proj", LoRA(module.qkv_proj)),
    "quantised": lambda module: setattr(module, "o_proj", Int8Linear(DIM, DIM)),
    "parametrised": lambda module: nn.utils.parametrizations.weight_norm(module.o_proj),
    "pruned": lambda module: prune.random_unstructured(module.o_proj, "weight", 0.5),
    "bias": lambda module: setattr(module, "o_proj", nn.Linear(DIM, DIM)),
    "attribute": lambda module: setattr(module, "window", 3),
    "configuration": lambda module: setattr(module.config, "window", 3),
    "attribute of its child": lambda module: module.o_proj.__dict__.update(forward=lambda x: x),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore:hrm_kernels.patch")
def test_a_module_that_changes_after_patching(change):
    module, _ = made(lambda: Window(window=10**9, config=SimpleNamespace(window=10**9)))
    assert hrm_kernels.patch(module).replaced
    module(states(5))
    torch.manual_seed(2)
    CHANGES[change](module)
    before = lambda x: type(module).forward(module, x)  # noqa: E731
    assert not torch.equal(before(states(5)), made(lambda: Window(window=10**9))[0](states(5)))
    for length in (5, 6, 5):
        assert_computes_as(module, before, states(length))


def test_attributes_that_change_with_each_call():
    module, before = made(lambda: SwiGLU(step=0))
    hrm_kernels.patch(module)
    with pytest.warns(UserWarning, match="its attributes change from call to call"):
        for step in range(12):
            module.step = step
            assert_computes_as(module, before, states(5))
    assert hrm_kernels.unpatch(module) == 0


def test_tied_weights_and_weights_loaded_later():
    module, before = made(lambda: nn.ModuleList([SwiGLU(), SwiGLU()]))
    for pair in (module, before):
        pair[1].gate_up_proj.weight = pair[0].gate_up_proj.weight
    assert hrm_kernels.patch(module).replaced == {"0": "swiglu", "1": "swiglu"}
    run = lambda pair: lambda x: pair[1](pair[0](x))  # noqa: E731
    run_patched, run_original = run(module), run(before)
    for pair, function in ((module, run_patched), (before, run_original)):
        function.zero_grad, function.parameters = pair.zero_grad, pair.parameters
    assert_same(results(run_patched, states(5)), results(run_original, states(5)))
    new = {name: torch.randn_like(value) for name, value in before.state_dict().items()}
    new["1.gate_up_proj.weight"] = new["0.gate_up_proj.weight"]
    for pair in (module, before):
        pair.load_state_dict(new, assign=True)
    assert_same([run_patched(states(5))], [run_original(states(5))])


class Options(SwiGLU):
    def forward(self, x, mask=None, scale=1.0, use_cache=False, *more, bias=None):
        out = super().forward(x) * scale
        out = out if mask is None else out * mask
        return sum(more, out if bias is None else out + bias)


def test_optional_arguments():
    module, before = made(Options)
    assert hrm_kernels.patch(module).replaced
    x, mask = states(3), torch.tensor([1.0, 0, 1])[:, None]
    module(x)
    calls = [((), {}), ((mask,), {}), ((None, 2.0), {}), ((None, 1.0, True), {}), ((None, 1.0, False, mask), {})]
    calls += [((), {"mask": mask}), ((), {"bias": mask}), ((), {"use_cache": True}), ((), {"scale": 3.0})]
    for arguments, named in calls:
        assert_same([module(x, *arguments, **named)], [before(x, *arguments, **named)])
    ORIGINAL_CALLS.clear()
    module(x, None, 1.0, use_cache=False)  # the default values
    assert not ORIGINAL_CALLS
    for wrong_call in (
        lambda module: module(),
        lambda module: module(x, x=x),
        lambda module: module(x, none=1),
        lambda module: module(x, scale=None),
    ):
        messages = []
        for called in (module, before):
            with pytest.raises(TypeError) as error:
                wrong_call(called)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


class Level(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Block(rms) for _ in range(2))

    def forward(self, x, injection=0.0):
        x = x + injection
        for layer in self.layers:
            x = layer(x)
        return x


def test_injections_of_other_kinds():
    module, before = made(Level)
    assert hrm_kernels.patch(module).replaced == {"": "reasoning_module"}
    x = states(5)
    for z, injection in [(x, x), (x, x[:1]), (x, x[0, 0]), (x[:1], x), (x, 0.0), (x, 2.0), (x, x[0].double())]:
        try:
            want = before(z, injection)
        except RuntimeError as error:
            with pytest.raises(RuntimeError, match=re.escape(str(error)[:40])):
                module(z, injection)
        else:
            assert_same([module(z, injection)], [want])
    assert_same([module(x)], [before(x)])
    assert hrm_kernels.unpatch(module) == 1


class Rotated(Attention):
    """RoPE with tables of any number of dimensions."""

    def qkv(self, x):
        q, k, v = super().qkv(x)
        if self.tables is not None:
            cos, sin = self.tables
            q, k = (x * cos + torch.cat((-x[..., 16:], x[..., :16]), -1) * sin for x in (q, k))
        return q, k, v

    def forward(self, x, cos=None, sin=None):
        tables, self.tables = self.tables, None if cos is None else (cos, sin)
        try:
            return super().forward(x)
        finally:
            self.tables = tables


def test_tables_that_the_op_does_not_take():
    module, before = made(lambda: Rotated(tables=None))
    assert hrm_kernels.patch(module).replaced == {"": "rope_attention"}
    cos, sin = hrm_kernels.nn.rope_tables(5, DIM // HEADS)
    wrong = (cos[:, :16], sin[:, :16]), (cos, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for tables in ((cos, sin), (cos[None], sin[None]), (cos.expand(2, 1, -1, -1), sin), (cos[:1], sin[:1])):
            assert_same([module(states(5), *tables)], [before(states(5), *tables)])
    for tables in wrong:
        for called in (module, before):
            with pytest.raises((RuntimeError, TypeError)):
                called(states(5), *tables)
    assert hrm_kernels.unpatch(module) == 1


def test_transforms_run_the_original_forward():
    module, before = made(SwiGLU)
    hrm_kernels.patch(module)
    x = states(5)
    loss = lambda called: lambda row: called(row).sum()  # noqa: E731
    gradients = [torch.func.vmap(torch.func.grad(loss(called)))(x) for called in (module, before)]
    assert_same(*[[gradient] for gradient in gradients])
    tangents = [torch.func.jvp(called, (x,), (x,))[1] for called in (module, before)]
    assert_same(*[[tangent] for tangent in tangents])
    weights = {name: torch.randn_like(weight) for name, weight in before.named_parameters()}
    assert_same(*[[torch.func.functional_call(called, weights, (x,))] for called in (module, before)])


def test_copies_and_pickles():
    module, before = made(SwiGLU)
    hrm_kernels.patch(module)
    module(states(5))
    copied = copy.deepcopy(module)
    with torch.no_grad():
        copied.down_proj.weight.mul_(2)
    ORIGINAL_CALLS.clear()
    assert_same([copied(states(5)), module(states(5))], [2 * before(states(5)), before(states(5))])
    assert (
        ORIGINAL_CALLS == ["swiglu"] * 4
    )  # compared twice again (on the call and on random states), and two of ``before``
    loaded = pickle.loads(pickle.dumps(module))
    assert_same([loaded(states(5))], [before(states(5))])
    assert hrm_kernels.patch(loaded).replaced == {"": "swiglu"}
    ORIGINAL_CALLS.clear()
    loaded(states(5)), loaded(states(5))
    assert ORIGINAL_CALLS == ["swiglu"] * 2


def test_torch_compile_compares_nothing():
    module, before = made(lambda: Window(window=400))
    hrm_kernels.patch(module)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    ORIGINAL_CALLS.clear()
    assert_same([compiled(states(20))], [before(states(20))])
    assert ORIGINAL_CALLS == ["attention"]
    before = copy.deepcopy(module)
    hrm_kernels.unpatch(before)
    for adapted in (module, before):
        adapted.qkv_proj = LoRA(adapted.qkv_proj)
        torch.manual_seed(0)
        nn.init.normal_(adapted.qkv_proj.b.weight)
        nn.init.ones_(adapted.qkv_proj.a.weight)
    assert_same([compiled(states(20))], [before(states(20))])


def test_the_first_call_adds_nothing_to_frozen_weights():
    module, _ = made(lambda: Block(rms))
    hrm_kernels.patch(module)
    weights = {id(weight) for weight in module.parameters()}
    with FrozenWeights() as frozen, torch.no_grad():
        module(states(5))
        held = [weight for used, *_ in frozen._packed.values() for weight in used]
    assert {id(weight) for weight in held} <= weights and not frozen._copies


@pytest.mark.parametrize("window", [10**9, 400])
def test_large_scores_in_bfloat16(window):
    """Rounding changes the output by its full size; a comparison in float32 still shows a difference."""
    module, before = made(lambda: Block(rms, attention=Window, window=window))
    module, x = module.bfloat16(), 16 * states(450, torch.bfloat16)
    with torch.no_grad():
        module.self_attn.qkv_proj.weight.mul_(4)
    assert hrm_kernels.patch(module).replaced == {"": "transformer_block"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module(x)
    messages = [str(warning.message) for warning in caught if "hrm_kernels.patch" in str(warning.message)]
    assert len(messages) == (window == 400), messages


def test_reduced_precision_of_products_is_no_difference():
    """Where TF32 or bfloat16 replace float32, both forwards round, each in a different order."""
    module, _ = made(lambda: Block(rms))
    torch.set_float32_matmul_precision("medium")
    try:
        hrm_kernels.patch(module)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            module(states(40))
    finally:
        torch.set_float32_matmul_precision("highest")
