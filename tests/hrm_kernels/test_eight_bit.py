"""Products in 8 bits: the kernels equal their definition in plain PyTorch, and errors keep the bound of the scales."""

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.rope_attention.heads import Heads
from hrm_kernels.ops.transformer_block import eight_bit
from hrm_kernels.ops.transformer_block.eight_bit import FORMATS, LEAST, Quantized, product, quantized

pytestmark = pytest.mark.usefixtures("poisoned")

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
STATE = torch.bfloat16 if torch.cuda.is_available() else torch.float16  # the interpreter's bfloat16 is wrong


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_scaled_to_the_range(name):
    dtype, largest = FORMATS[name]
    x = random(5, 33).float() * torch.tensor([1.0, 1e-6, 1e6, 0.0, LEAST / 64], device=DEVICE)[:, None]
    values, scales = quantized(x, name)
    assert values.dtype is dtype and scales.dtype is torch.float32
    sizes = values.float().abs().amax(1)
    assert sizes[:3].tolist() == [largest] * 3 and sizes[3] == 0 and sizes[4] <= largest / 16
    back = values.double() * scales.double()[:, None]
    # half a unit in the last place: of e4m3's 3 bits, or of integers; subnormals have a fixed step
    bound = (x.abs() * 2**-4).clamp(min=scales[:, None] * 2**-10) if name == "fp8" else scales[:, None] / 2
    assert ((back - x.double()).abs() <= bound * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", FORMATS)
def test_products_stay_within_the_rounding_of_their_operands(name):
    x, w = random(7, 1540, seed=1).float(), random(5, 1540, seed=2).float()  # too long for float32 to add integers
    left, right = (q.values.double() * q.scales.double()[:, None] for q in (quantized(x, name), quantized(w, name)))
    torch.testing.assert_close(product(x, w, name).double(), left @ right.t(), rtol=1e-5, atol=1e-4)
    step = 2**-4 if name == "fp8" else 2**-7
    allowed = 2.1 * step * (x.abs().amax(1)[:, None] * w.abs().amax(1)) * x.shape[1] ** 0.5
    assert ((product(x, w, name).double() - x.double() @ w.double().t()).abs() <= allowed).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", FORMATS)
def test_values_that_are_not_finite_stay_visible(name, value):
    x, w = random(2, 16, seed=1).float(), random(3, 16, seed=2).float()
    x[1, 5] = value
    out = product(x, w, name)
    assert out[0].isfinite().all() and not out[1].isfinite().any()


class TestKernels:
    eight = (
        pytest.importorskip("hrm_kernels.ops.transformer_block.triton_eight_bit")
        if k.backends._TRITON_INSTALLED
        else None
    )
    pytestmark = pytest.mark.skipif(eight is None, reason="no Triton")

    @pytest.mark.parametrize("name", FORMATS)
    def test_quantize(self, name):
        x = random(5, 200).to(STATE) * torch.tensor([1, 0.01, 100, 0, 1], device=DEVICE, dtype=STATE)[:, None]
        got, want = Quantized(*self.eight.quantize(x, None, 1e-5, name)), quantized(x, name)
        torch.testing.assert_close(got.scales, want.scales, rtol=1e-6, atol=0)
        assert torch.equal(got.values.float(), want.values.float())
        sums = x.float().square().sum(1, keepdim=True)
        normed = self.eight.quantize(x, sums, 1e-5, name)
        assert torch.equal(normed[0].view(torch.uint8), got.values.view(torch.uint8))
        rstd = (sums[:, 0] / 200 + 1e-5).rsqrt()
        torch.testing.assert_close(normed[1], want.scales * rstd, rtol=1e-5, atol=0)

    @pytest.mark.parametrize("name", FORMATS)
    def test_steps_that_write_eight_bits(self, name):
        """The norm and SwiGLU in plain PyTorch, then the definition: a value in 8 bits may round to its neighbour."""
        x, y, gate_up = (random(5, size, seed=size).to(STATE) for size in (72, 72, 144))
        out, *normed = self.eight.norm_quantize(x, y, 1e-5, name)
        with k.use_backend("reference"):
            cases = (
                (normed, k.add_rms_norm(x, y, 1e-5)),
                (self.eight.quantize_swiglu(gate_up, name), k.swiglu(gate_up)),
            )
        torch.testing.assert_close(out, cases[0][1], rtol=2e-3 if STATE is torch.float16 else 8e-3, atol=1e-6)
        for (values, scales), plain in cases:
            want = quantized(plain, name)
            torch.testing.assert_close(scales, want.scales, rtol=8e-3, atol=0)
            neighbours = {"rtol": 0.13, "atol": 2**-9} if name == "fp8" else {"rtol": 0, "atol": 1}
            torch.testing.assert_close(values.float(), want.values.float(), **neighbours)
            assert (values.float() != want.values.float()).float().mean() < 0.05

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_rows_that_are_not_finite(self, value):
        x = random(2, 16).to(STATE)
        x[1, 3] = value
        for name in FORMATS:
            _, scales = self.eight.quantize(x, None, 1e-5, name)
            assert scales[0].isfinite() and scales[1] == float("inf")

    @pytest.mark.parametrize("persists", [False, True])
    @pytest.mark.parametrize("name", FORMATS)
    def test_products(self, name, persists):
        """Each product with its epilogue against the exact product of the same 8-bit values."""
        rows, dim, inner = 130, 144, 80
        matrices = {"x": random(rows, dim, seed=1), "h": random(rows, inner, seed=2)}
        shapes = {"qkv": (3 * dim, dim), "o": (dim, dim), "gate_up": (2 * inner, dim), "down": (dim, inner)}
        matrices |= {key: random(*shape, seed=5 + i, scale=0.1) for i, (key, shape) in enumerate(shapes.items())}
        of = {key: quantized(value.to(STATE), name) for key, value in matrices.items()}
        exact = {key: q.values.double() * q.scales.double()[:, None] for key, q in of.items()}
        unit = torch.finfo(STATE).eps

        def close(got, want):
            torch.testing.assert_close(got.double(), want, rtol=unit, atol=unit / 4)

        close(self.eight.linear(*of["x"], *of["qkv"], STATE, persists), exact["x"] @ exact["qkv"].t())
        gate, up = (exact["x"] @ exact["gate_up"].t()).chunk(2, 1)
        close(self.eight.linear_swiglu(*of["x"], *of["gate_up"], STATE, persists), gate * gate.sigmoid() * up)
        residual = random(rows, dim, seed=4).to(STATE)
        u, sums = self.eight.linear_residual(*of["x"], *of["o"], residual, None, 1e-5, persists)
        close(u, residual.double() + exact["x"] @ exact["o"].t())
        torch.testing.assert_close(sums.double().sum(1), u.double().square().sum(1), rtol=1e-4, atol=1e-6)
        got, _ = self.eight.linear_residual(*of["h"], *of["down"], u, sums, 1e-5, persists)
        rstd = (u.double().square().mean(1, keepdim=True) + 1e-5).rsqrt()
        close(got, u.double() * rstd + exact["h"] @ exact["down"].t())


def call(backend, choice, dim=64, inner=64, heads=2, positions=9, batch=2, cycles=(1, 2), dtype=STATE, **options):
    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    layers = [
        k.BlockWeights(
            *(random(*shape, seed=9 * i + j, scale=shape[1] ** -0.5).to(dtype) for j, shape in enumerate(shapes))
        )
        for i in range(2)
    ]
    states = [random(batch, positions, dim, seed=50 + i).to(dtype) for i in range(3)]
    tables = rope_tables(positions, dim // heads, device=DEVICE)
    with k.use_backend(backend):
        return k.recurrent_cycles(*states, layers[:1], layers[1:], *tables, heads, *cycles, eight_bit=choice, **options)


def test_auto_is_fp8_where_the_device_has_it(monkeypatch):
    monkeypatch.setattr(eight_bit, "_capability", lambda index: ((8, 9), (8, 6))[index])
    assert eight_bit.format_for("auto", torch.device("cuda", 0)) == "fp8"
    assert eight_bit.format_for("auto", torch.device("cuda", 1)) == "int8"
    assert "FP8 needs compute capability 8.9, this GPU has 8.6" in eight_bit.fp8_is_missing(torch.device("cuda", 1))
    assert eight_bit.format_for("fp8", torch.device("cuda", 1)) == "fp8"


@pytest.mark.parametrize("choice", FORMATS)
def test_cycles_equal_those_of_the_definition(choice):
    """Both are as far from the result without 8 bits, and nearer to each other: states round at other places."""
    pytest.importorskip("triton")
    got, want, plain = call("triton", choice), call("reference", choice), call("reference", None, dtype=torch.float64)
    error, own = ((x[1].double() - plain[1]).norm() / plain[1].norm() for x in (got, want))
    assert 0.001 < own < 0.15 and error < 1.2 * own
    assert (got[1].double() - want[1].double()).norm() / plain[1].norm() < own


def test_every_path_of_a_module():
    pytest.importorskip("triton")
    from hrm_kernels.tuning.__main__ import measure_eight_bit

    for name in FORMATS:
        seconds = measure_eight_bit(torch.device(DEVICE), STATE, name, 17, lambda run: 1.0, (64, 64, 2, 1))
        assert set(seconds) >= {"fused", "persistent"}


def test_the_library_path(monkeypatch):
    """The interpreter's bfloat16 is wrong, so plain PyTorch stands in for _scaled_mm with float16 states."""
    pytest.importorskip("triton")
    from hrm_kernels.ops.transformer_block import triton_block
    from hrm_kernels.tuning.__main__ import module_pass

    def scaled_mm(values, weight, scales, w_scales, out_dtype):
        assert scales.shape == (values.shape[0], 1) and w_scales.shape == (1, weight.shape[1])
        return ((values.float() @ weight.float()) * scales * w_scales).to(out_dtype)

    if STATE is not torch.bfloat16:
        monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    x, weights, shared = module_pass(torch.device(DEVICE), STATE, 17, (64, 64, 2, 2))
    got = triton_block.infer_eight_bit_library(x, triton_block.quantized_weights(weights, "fp8"), shared, "fp8")
    want = x.view(1, 17, 64)
    for first in (0, 4):
        want = eight_bit.transformer_block(want, k.BlockWeights(*weights[first : first + 4]), shared.heads, 1e-5, "fp8")
    assert (got.double() - want.view(17, 64).double()).norm() < 0.05 * want.double().norm()


def test_slower_than_without_is_off(monkeypatch):
    pytest.importorskip("triton")
    from hrm_kernels.ops.transformer_block import triton_block

    monkeypatch.setattr(triton_block.tuning, "choose_eight_bit", lambda *problem: "off")
    for got, want in zip(call("triton", "fp8"), call("triton", None), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice": "fp4"}, "eight_bit is 'fp4', expected None or one of fp8, int8, auto"),
        ({"choice": True}, "eight_bit is True, expected None or one of"),
    ],
)
def test_bad_choices(options, message):
    with pytest.raises(ValueError, match=message):
        call("reference", **options)


def test_backends_without_it_say_so():
    with pytest.raises(k.BackendUnavailable, match="8-bit products gain little on a CPU"):
        call("cpu", "int8", dtype=torch.float32)
    if DEVICE == "cpu":
        with pytest.raises(k.BackendUnavailable, match="plain PyTorch computes 8-bit products slower"):
            call(None, "int8", dtype=torch.float32)


def test_pre_norm_blocks_have_none():
    weights = [torch.zeros(s) for s in ((96, 32), (32, 32), (64, 32), (32, 32), (4, 32))]
    with pytest.raises(ValueError, match="the blocks are pre-norm blocks; leave eight_bit out"):
        eight_bit.check("recurrent_cycles", "int8", [k.PreNormBlockWeights(*weights)])


def test_the_registered_op_takes_it():
    z = random(1, 3, 64).float()
    weights = [random(*shape, scale=0.1).float() for shape in ((192, 64), (64, 64), (128, 64), (64, 64))]
    with k.use_backend("reference"):
        plain = k.recurrent_cycles(
            z, z, z, [k.BlockWeights(*weights)], [k.BlockWeights(*weights)], None, None, 2, 1, 2, eight_bit="int8"
        )
        got = torch.ops.hrm_kernels.recurrent_cycles(
            z, z, z, weights, weights, None, None, 2, 1, 2, 1e-5, eight_bit="int8"
        )
    assert torch.equal(plain[1], got[1])


def test_mixing_along_positions_stays_as_it_is():
    x = random(2, 6, 32).float()
    weights = k.MixingBlockWeights(*(random(*s, scale=0.2).float() for s in ((16, 6), (6, 8), (64, 32), (32, 32))))
    heads = Heads(None, None, 0)
    got = eight_bit.transformer_block(x, weights, heads, 1e-5, "int8")
    with k.use_backend("reference"):
        mixed = k.token_mixing(x, weights.mix_gate_up, weights.mix_down)
        want = k.add_rms_norm(mixed, product(k.swiglu(product(mixed, weights.gate_up, "int8")), weights.down, "int8"))
    torch.testing.assert_close(got, want)
