"""``patch``: which modules it replaces, why it keeps others, and that results stay the same."""

import copy
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import hrm_kernels
from hrm_kernels.integrations import probe
from hrm_kernels.nn import PostNormBlock, rope_tables


def load_foreign():
    """Import foreign.py, next to this file, under a name that the processes of a test find too."""
    spec = importlib.util.spec_from_file_location("foreign", Path(__file__).parent / "foreign.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["foreign"] = module
    spec.loader.exec_module(module)
    return module


foreign = load_foreign()
TOKENS = torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(5))
KINDS = {"two levels": {}, "one level": {"single": True}, "mixing": {"single": True, "mixing": True}}


def make(**options):
    torch.manual_seed(0)
    return foreign.Recursive(**options)


def results(model, dtype=torch.float32, device="cpu"):
    model.zero_grad()
    logits, q = model(TOKENS.to(device), dtype)
    (logits.float().square().mean() + q.float().sum()).backward()
    return [logits.detach(), q.detach(), *(p.grad.clone() for p in model.parameters())]


def assert_same(ours, theirs, tolerance=1e-5):
    for a, b in zip(ours, theirs, strict=True):
        scale = b.float().abs().max().clamp(min=1e-6)
        assert ((a.float() - b.float()).abs().max() / scale) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_model(kind):
    model = make(**KINDS[kind])
    want, state, names = results(model), copy.deepcopy(model.state_dict()), [n for n, _ in model.named_parameters()]
    report = hrm_kernels.patch(model)
    levels = ["L_level"] if KINDS[kind].get("single") else ["L_level", "H_level"]
    ops = "reasoning_module"
    assert report.replaced == dict.fromkeys(levels, ops) | dict.fromkeys(
        ("lm_head", "q_head"), "a cast of its weight that frozen_weights keeps"
    )
    assert report.kept == {}
    assert_same(results(model), want)
    assert [n for n, _ in model.named_parameters()] == names
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    model.load_state_dict(state)
    assert hrm_kernels.unpatch(model) == len(report.replaced)
    assert all("forward" not in module.__dict__ for module in model.modules())
    for a, b in zip(results(model), want, strict=True):
        assert torch.equal(a, b)
    assert hrm_kernels.unpatch(model) == 0


def test_the_ops_run(monkeypatch):
    model = make()
    hrm_kernels.patch(model)
    results(model)  # the first calls run the original forwards too
    for level in (model.L_level, model.H_level):
        for layer in level.layers:  # a replaced level does not call its layers
            monkeypatch.setattr(type(layer), "forward", None)
    assert results(model)


def test_in_bfloat16_with_float32_weights():
    """The error against float32 is at most twice that of the unpatched model."""
    model = make()
    exact, original = results(model), results(model, torch.bfloat16)
    hrm_kernels.patch(model)
    ours = results(model, torch.bfloat16)
    for got, theirs, want in zip(ours, original, exact, strict=True):
        error, allowed = ((x.float() - want).abs().max() for x in (got, theirs))
        assert error <= 2 * allowed + 2 * torch.finfo(torch.bfloat16).eps * want.abs().max()


@pytest.fixture
def one_trial(monkeypatch):
    """Triton's interpreter is slow."""
    monkeypatch.setattr(probe, "_TRIALS", probe._TRIALS[:1])


def test_on_the_triton_backend(one_trial):
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = make(dim=64, single=True).to(device)
    want = results(model, device=device)
    hrm_kernels.patch(model, backend="triton")
    assert_same(results(model, device=device), want, 1e-4)
    model.L_level.layers[0].self_attn.qkv_proj.weight.data  # noqa: B018  (weights are read at each call)
    with pytest.raises(hrm_kernels.BackendUnavailable, match="not float64"):
        model.double()
        model.L_level(*torch.zeros(2, 1, 7, 64, dtype=torch.float64, device=device), cos_sin=None)


def test_a_module_that_the_backend_cannot_serve_stays(one_trial):
    pytest.importorskip("triton")
    model = make(dim=32).to("cuda" if torch.cuda.is_available() else "cpu")  # heads of 16
    report = hrm_kernels.patch(model, backend="triton")
    reason = "reasoning_module cannot compute it: reasoning_module: backend 'triton' cannot serve this call"
    assert reason in report.kept["L_level"] and "head_dim 32, 64 and 128, not 16" in report.kept["L_level"]
    assert report.replaced["L_level.layers.0.mlp"] == "swiglu"


@hrm_kernels.use_backend("reference")  # the same sums in the same order, so only old weights could differ
def test_before_and_after_a_move():
    model = make()
    want = results(model)
    hrm_kernels.patch(model)
    model.to(torch.float64)
    assert_same(results(model, torch.float64), [x.double() for x in want])
    model.to(torch.float32)
    assert_same(results(model), want)
    with torch.no_grad():
        model.L_level.layers[0].mlp.down_proj.weight.mul_(2)
    hrm_kernels.unpatch(model)
    want = results(model)
    hrm_kernels.patch(model)
    assert_same(results(model), want)


def test_a_copy_is_patched_and_independent():
    model = make()
    hrm_kernels.patch(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.L_level.layers[0].mlp.down_proj.weight.zero_()
    after = results(twin)[0]
    assert not torch.equal(after, results(model)[0])
    assert hrm_kernels.unpatch(twin) == 4
    assert_same([results(twin)[0]], [after])


@pytest.mark.parametrize(("kind", "backend"), [*((kind, None) for kind in KINDS), ("one level", "reference")])
def test_under_compile(kind, backend):
    model = make(**KINDS[kind])
    want = results(model)
    hrm_kernels.patch(model, backend)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    got = results(compiled)
    assert_same(got, want)
    with torch.compiler.set_stance("fail_on_recompile"):
        assert_same(results(compiled), want)


def test_modules_with_hooks_stay():
    model, seen = make(), []
    model.L_level.layers[1].mlp.register_forward_hook(lambda *_: seen.append("mlp"))
    model.lm_head.register_full_backward_hook(lambda *_: None)
    model.H_level.register_forward_pre_hook(lambda *_: seen.append("H"))
    want = results(model)
    called = len(seen)
    report = hrm_kernels.patch(model)
    assert "layers.1.mlp inside it has hooks" in report.kept["L_level"]
    assert "it has hooks" in report.kept["lm_head"] and "it has hooks" in report.kept["H_level"]
    assert "mlp inside it has hooks" in report.kept["L_level.layers.1"]
    assert report.replaced["L_level.layers.0"] == "transformer_block"
    assert report.replaced["L_level.layers.1.self_attn"] == "rope_attention"
    assert_same(results(model), want)
    assert len(seen) == 2 * called


@hrm_kernels.use_backend("reference")  # sums in the same order: doubled states multiply rounding
def test_other_code_has_replaced_a_forward():
    model = make()
    original = type(model.L_level.layers[0]).forward
    model.L_level.layers[0].forward = lambda **keywords: 2 * original(model.L_level.layers[0], **keywords)
    want = results(model)
    report = hrm_kernels.patch(model)
    assert "other code has replaced the forward of layers.0 inside it" in report.kept["L_level"]
    assert_same(results(model), want)
    hrm_kernels.unpatch(model)
    assert "forward" in model.L_level.layers[0].__dict__


def test_patched_twice():
    model = make()
    hrm_kernels.patch(model)
    report = hrm_kernels.patch(model)
    assert not report.replaced and "it is already patched" in report.kept["L_level"]


DIFFERENT = {
    "causal": ({"causal": True}, "self_attn", "it computes something else: output differs by"),
    "interleaved": (
        {"interleaved": True},
        "self_attn",
        "allowed 2e-05 .evaluation mode, with RoPE, states of size 1, 5 positions",
    ),
    "dropout": (
        {"dropout": 0.3},
        "self_attn",
        "its forward draws random numbers in training mode, as dropout does",
    ),
    "activation": ({"mlp": {"activation": F.gelu}}, "mlp", "it computes something else"),
    "eps": ({"eps": 1e-6, "says_eps": False}, "", "it computes something else: .* states of size 0.01"),
    "bias": (
        {"bias": True},
        "self_attn",
        r"qkv_proj has a bias, and the ops take none; create it with bias=False",
    ),
}


@pytest.mark.parametrize("case", DIFFERENT)
@hrm_kernels.use_backend("reference")  # sums in the same order: one case multiplies rounding to 1.3e-5 of a gradient
def test_modules_that_compute_something_else_stay(case):
    """Their names match an op; only a trial shows the difference."""
    import re

    options, place, reason = DIFFERENT[case]
    model = make(**options)
    torch.manual_seed(1)
    want = results(model)
    report = hrm_kernels.patch(model)
    name = "L_level.layers.0" + (f".{place}" if place else "")
    assert name in report.kept and re.search(reason, report.kept[name]), report
    assert "L_level" in report.kept and "L_level.layers.0" in report.kept
    assert name in str(report)
    torch.manual_seed(1)
    assert_same(results(model), want)


def test_eps_comes_from_the_module():
    model = make(eps=1e-3)
    want = results(model)
    assert "L_level" in hrm_kernels.patch(model).replaced
    assert_same(results(model), want)


def test_weights_at_zero_hide_nothing():
    """Zero weights of a new model would hide differences; the compared copy has random ones."""
    model = make(mlp={"activation": F.gelu})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    before = torch.random.get_rng_state()
    assert "it computes something else" in hrm_kernels.patch(model).kept["L_level"]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(not parameter.any() for parameter in model.parameters())


def test_calls_with_more_arguments_run_the_original_forward():
    class Masked(foreign.SwiGLU):
        def forward(self, x, mask=None):
            out = super().forward(x)
            return out if mask is None else out * mask

    torch.manual_seed(0)
    mlp = Masked(8, 6)
    x, mask = torch.randn(2, 3, 8), torch.tensor([1.0, 0, 1])[:, None]
    plain, masked = mlp(x), mlp(x, mask=mask)
    assert hrm_kernels.patch(mlp).replaced == {"": "swiglu"}
    assert_same([mlp(x), mlp(x, None), mlp(x, mask), mlp(x=x, mask=mask)], [plain, plain, masked, masked])


def test_autocast_runs_the_original_forward():
    model = make(linear=nn.Linear)
    with torch.autocast("cpu", torch.bfloat16):
        want = results(model)
    hrm_kernels.patch(model)
    with torch.autocast("cpu", torch.bfloat16):
        for a, b in zip(results(model), want, strict=True):
            assert torch.equal(a, b)


def test_plain_linear_layers():
    model = make(linear=nn.Linear)
    want = results(model)
    assert "L_level" in hrm_kernels.patch(model).replaced
    assert_same(results(model), want)
    with pytest.raises(RuntimeError, match="dtype"):  # as it was before
        model(TOKENS, torch.bfloat16)


class PostNorm(nn.Module):
    """A plain PyTorch block: RMSNorm modules, with or without weight."""

    def __init__(self, dim, heads, inner, affine):
        super().__init__()
        self.self_attn, self.mlp = (
            foreign.Attention(dim, heads, linear=nn.Linear),
            foreign.SwiGLU(dim, inner, nn.Linear),
        )
        self.norm1, self.norm2 = (nn.RMSNorm(dim, eps=1e-6, elementwise_affine=affine) for _ in range(2))

    def forward(self, x, cos_sin=None):
        x = self.norm1(x + self.self_attn(cos_sin, x))
        return self.norm2(x + self.mlp(x))


def test_plain_post_norm_blocks():
    torch.manual_seed(0)
    x, tables = torch.randn(2, 5, 32), rope_tables(5, 16)
    without, with_weight = PostNorm(32, 2, 48, False), PostNorm(32, 2, 48, True)
    wants = [block(x, cos_sin) for block in (without, with_weight) for cos_sin in (None, tables)]
    assert hrm_kernels.patch(without).replaced == {"": "transformer_block"}
    report = hrm_kernels.patch(with_weight)
    assert "norm1, norm2 have parameters; add_rms_norm has neither weight nor bias" in report.kept[""]
    assert report.replaced == {"self_attn": "rope_attention", "mlp": "swiglu"}
    assert_same([block(x, cos_sin) for block in (without, with_weight) for cos_sin in (None, tables)], wants)


def test_torch_encoder_layers():
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
    )
    report = hrm_kernels.patch(model)
    assert not report.replaced
    assert "nn.TransformerEncoderLayer has biases, LayerNorm with weight" in report.kept["layers.0"]
    assert "nn.MultiheadAttention has biases" in report.kept["layers.1.self_attn"]


def test_modules_refused_by_their_structure():
    grouped = foreign.Attention(8, 2)
    grouped.qkv_proj = foreign.CastedLinear(8, 16)
    assert "2 query heads share 1 key and value heads (grouped-query attention)" in hrm_kernels.patch(grouped).kept[""]
    unknown = foreign.Attention(8, 2)
    del unknown.num_heads
    assert "it does not say how many heads it has" in hrm_kernels.patch(unknown).kept[""]
    assert "meta device" in hrm_kernels.patch(foreign.SwiGLU(8, 6).to("meta")).kept[""]
    broken = foreign.SwiGLU(8, 6)
    broken.activation = None
    assert "its forward failed (TypeError: 'NoneType'" in hrm_kernels.patch(broken).kept[""]
    parametrized = foreign.SwiGLU(8, 6)
    nn.utils.parametrizations.weight_norm(parametrized.down_proj)
    assert "(with parametrizations), expected a layer with only" in hrm_kernels.patch(parametrized).kept[""]
    ours = nn.Sequential(PostNormBlock(64, 2, 1.0))
    assert hrm_kernels.patch(ours).kept == {"0": "it already uses the ops"}
    assert str(hrm_kernels.patch(nn.Linear(2, 2))) == "no module of this model resembles an op"


def test_wrong_arguments():
    with pytest.raises(TypeError, match="patch: model: got dict, expected a torch.nn.Module"):
        hrm_kernels.patch({})
    with pytest.raises(ValueError, match="patch: got backend 'metal', expected one of"):
        hrm_kernels.patch(make(), backend="metal")


def _worker(rank, address, out):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    load_foreign()
    for patched in (False, True):
        model = make()
        model = nn.parallel.DistributedDataParallel(model) if not patched else model
        if patched:
            hrm_kernels.patch(model)
            model = nn.parallel.DistributedDataParallel(model)
        rows = TOKENS[:2].chunk(2)[rank]
        logits, q = model(rows)
        (logits.square().mean() + q.sum()).backward()
        grads = [parameter.grad for parameter in model.parameters()]
        if rank == 0:
            torch.save(grads, f"{out}-{patched}")
    dist.destroy_process_group()


def test_distributed_data_parallel(tmp_path):
    mp.spawn(_worker, (tmp_path / "rendezvous", tmp_path / "gradients"), nprocs=2)
    want, got = (torch.load(f"{tmp_path / 'gradients'}-{patched}") for patched in (False, True))
    assert_same(got, want)
