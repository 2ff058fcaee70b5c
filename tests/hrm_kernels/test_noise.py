"""Counter-based noise, and the damped updates that use it."""

import math

import numpy as np
import pytest
import torch

import hrm_kernels as k
from hrm_kernels.damping import damp
from hrm_kernels.noise import INITIAL_H, _philox, truncated_noise

SEEDS = torch.tensor([3, -5, 2**62 + 7])


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_bits_are_those_of_philox_with_ten_rounds(counter, key, words):  # the known answers of Random123
    found = _philox([torch.tensor([word]) for word in counter], [torch.tensor([word]) for word in key])
    assert tuple(map(int, found)) == words


def by_hand(seed, step, position, feature, stream=0):
    """One number, with Python's integers."""
    lane, word, chunk = feature % 16, feature % 64 // 16, feature // 64
    counter = [16 * chunk + lane, position, step, stream]
    key = seed % 2**64 % 2**32, seed % 2**64 >> 32
    words = _philox(*([torch.tensor([one]) for one in numbers] for numbers in (counter, key)))
    u, v = (((int(one) >> 9) + 0.5) / 2**23 for one in words[word // 2 * 2 : word // 2 * 2 + 2])
    return math.sqrt(-2 * math.log(u)) * (math.sin if word % 2 else math.cos)(2 * math.pi * v)


def test_a_number_is_a_function_of_its_counters():
    numbers = k.noise(SEEDS, torch.tensor([0, 7, 2**32 - 1]), 5, 100, stream=2)
    assert numbers.shape == (3, 5, 100) and numbers.dtype is torch.float32
    for row, step, position, feature in ((0, 0, 0, 0), (1, 7, 4, 99), (2, 2**32 - 1, 3, 17), (2, 2**32 - 1, 1, 45)):
        want = by_hand(int(SEEDS[row]), step, position, feature, 2)
        assert numbers[row, position, feature].item() == pytest.approx(want, rel=2e-6, abs=1e-6)


def test_a_row_does_not_depend_on_its_neighbours_or_sizes():
    numbers = k.noise(SEEDS, torch.tensor([1, 2, 3]), 6, 80)
    assert torch.equal(k.noise(SEEDS[1:2], 2, 4, 70), numbers[1:2, :4, :70])


def test_noise_is_normal_and_independent():
    numbers = k.noise(torch.arange(8), 1, 40, 512).double()  # 163,840: the deviation of the mean is 0.0025
    assert abs(numbers.mean()) < 0.01 and abs(numbers.var() - 1) < 0.015
    assert abs((numbers**3).mean()) < 0.03 and abs((numbers**4).mean() - 3) < 0.1
    within = [(numbers.abs() < bound).double().mean().item() for bound in (0.5, 1, 2, 3)]
    np.testing.assert_allclose(within, [math.erf(bound / math.sqrt(2)) for bound in (0.5, 1, 2, 3)], atol=0.005)
    others = [
        k.noise(torch.arange(8) + 8, 1, 40, 512),
        k.noise(torch.arange(8), 2, 40, 512),
        k.noise(torch.arange(8), 1, 40, 512, stream=1),
        numbers.roll(1, 1),
        *(numbers.roll(shift, 2) for shift in (1, 16, 32, 64)),
    ]
    for other in others:
        assert abs((numbers * other).mean()) < 0.015
        assert abs((numbers**2 * other**2).mean() - 1) < 0.05, "not only uncorrelated"


def test_truncated_noise_has_the_distribution_of_truncated_normal():
    numbers = truncated_noise(torch.arange(8), 0, 40, 512, INITIAL_H).double()
    bound = 2 / 0.87962566103423978
    assert numbers.abs().max() <= bound and numbers.abs().max() > 0.999 * bound
    assert abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    reference = k.nn.truncated_normal_(torch.empty(20_000), 1).double()
    quantiles = torch.linspace(0.01, 0.99, 15, dtype=torch.float64)
    found = numbers.flatten()[:20_000].quantile(quantiles)
    torch.testing.assert_close(found, reference.quantile(quantiles), rtol=0, atol=0.05)


def module(damping, rows=slice(None), backend="reference"):
    """An update of three rows, or of some of them."""
    random = torch.Generator().manual_seed(0)
    z, injection = torch.randn(2, 3, 5, 64, generator=random)
    shapes = (192, 64), (64, 64), (64, 64), (64, 32)
    weights = k.BlockWeights(*(torch.randn(shape, generator=random) / shape[1] ** 0.5 for shape in shapes))
    with k.use_backend(backend):
        return k.reasoning_module(z[rows], injection[rows], [weights], None, None, 2, damping=damping), z[rows]


def test_damping_of_1_without_noise_is_the_plain_update():
    plain, z = module(None)
    assert torch.equal(module(k.Damping(1.0))[0], plain)
    torch.testing.assert_close(module(k.Damping(0.25))[0], z + 0.25 * (plain - z))
    each = torch.tensor([0.25, 0.5, 0.0])
    torch.testing.assert_close(module(k.Damping(each))[0], torch.lerp(z, plain, each[:, None, None]))


def test_the_noise_of_an_update_is_that_of_its_step():
    plain, z = module(k.Damping(0.5))
    steps = torch.tensor([4, 0, 9])
    noisy, _ = module(k.Damping(0.5, 0.1, SEEDS, steps, first_step=2))
    torch.testing.assert_close(noisy - plain, 0.1 * k.noise(SEEDS, steps + 2, 5, 64), rtol=0, atol=1e-6)


def test_damp_rounds_once():
    z, updated = torch.randn(2, 3, 4, 64).bfloat16()
    exact = 0.05 * z.double() + 0.95 * updated.double()
    error = (damp(z, updated, k.Damping(0.95)).double() - exact).abs()
    nearest = (exact.bfloat16().double() - exact).abs()
    assert (error <= nearest + 1e-6).all()


@pytest.mark.parametrize(
    ("damping", "message"),
    [
        (0.5, "damping is float, expected hrm_kernels.Damping"),
        (k.Damping(1.5), "damping.weight is 1.5, expected a number from 0 to 1"),
        (k.Damping(torch.ones(2)), r"expected float32 \[B\] = \[3\]"),
        (k.Damping(0.5, -1), "noise_scale is -1, expected a number >= 0"),
        (k.Damping(0.5, 0.1), "without seeds; pass seeds"),
        (k.Damping(0.5, 0.1, SEEDS.int()), "seeds is torch.int32, expected a tensor of int64"),
        (k.Damping(0.5, 0.1, SEEDS[:2]), r"seeds has shape \[2\], expected \[B\] = \[3\]"),
        (k.Damping(0.5, 0.1, SEEDS, SEEDS.float()), "steps is torch.float32, expected int64 or int32"),
        (k.Damping(0.5, 0.1, SEEDS, SEEDS[:1]), r"steps has shape \[1\], expected \[3\] as seeds"),
        (k.Damping(0.5, first_step=-1), "first_step is -1, expected an integer >= 0"),
    ],
)
def test_errors_name_what_came(damping, message):
    with pytest.raises((TypeError, ValueError), match=message):
        module(damping)


def test_the_cuda_kernels_say_that_they_do_not_damp():
    from hrm_kernels.backends import _ops

    for op in ("reasoning_module", "recurrent_cycles"):
        assert "cuda" in _ops[op].backends
    z = torch.zeros(1, 1, 64)
    heads = k.ops.rope_attention.heads.Heads(None, None, 2)
    assert "no damped updates" in _ops["reasoning_module"].backends["cuda"].unsupported(
        z, z, [], heads, 1e-5, False, k.Damping(0.5)
    )
    assert "no damped updates" in _ops["recurrent_cycles"].backends["cuda"].unsupported(
        z, z, z, [], [], heads, 1, 1, 1e-5, k.Damping(0.5), None
    )


def cycles(rows, mixing, dtype=torch.float32):
    """Arguments of ``recurrent_cycles`` with two rows or one of them, and a damping with noise."""
    random = torch.Generator().manual_seed(0)
    states = [torch.randn(2, 7, 72, generator=random).to(dtype)[rows] for _ in range(3)]
    shapes = ((12, 7), (7, 6), (64, 72), (72, 32)) if mixing else ((3 * 72, 72), (72, 72), (64, 72), (72, 32))
    matrices = [(torch.randn(shape, generator=random) / shape[1] ** 0.5).to(dtype) for shape in shapes]
    layers = [(k.MixingBlockWeights if mixing else k.BlockWeights)(*matrices)]
    damping = k.Damping(torch.tensor([0.5, 0.75])[rows], 0.1, SEEDS[:2][rows], torch.tensor([3, 0])[rows], 2)
    return *states, layers, layers, None, None, 0 if mixing else 2, 2, 2, 1e-5, damping


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_and_threads_do_not_matter_to_damped_updates(mixing, dtype):
    threads = torch.get_num_threads()

    def results(rows):
        *plain, damping = cycles(rows, mixing, dtype)
        return *k.recurrent_cycles(*plain, damping), *k.recurrent_segment(
            *plain, torch.tensor([1.0, 0.5])[rows], damping
        )

    with k.use_backend("cpu"):
        together, alone = results(slice(None)), results(slice(1, 2))
        *plain, damping = cycles(slice(1), mixing, dtype)
        whole = k.recurrent_segment(*plain, None, damping)
        try:
            torch.set_num_threads(3)
            again = results(slice(None))
        finally:
            torch.set_num_threads(threads)
    assert all(map(torch.equal, whole, [one[:1] for one in together[2:]]))  # a weight of 1 is none
    for one, row, other in zip(together, alone, again, strict=True):
        assert torch.equal(one, other) and torch.equal(one[1:], row)


@pytest.mark.parametrize("mixing", [pytest.param(False, marks=pytest.mark.slow), True])
def test_damped_updates_compile(mixing):
    arguments = cycles(slice(None), mixing)
    z, injection, _, layers, _, *heads, _, _, eps, damping = arguments

    def both(z, injection):
        return k.reasoning_module(z, injection, layers, *heads, eps, damping=damping), *k.recurrent_cycles(*arguments)

    with k.use_backend("cpu"):
        want = both(z, injection)
        torch._dynamo.reset()
        got = torch.compile(both, fullgraph=True, backend="aot_eager")(z, injection)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_second_order_gradients_of_a_damped_update():
    z, injection, _, layers, _, *heads, _, _, eps, damping = cycles(slice(None), mixing=True)
    found = []
    for backend in ("reference", "cpu"):
        one, other = (tensor.clone().requires_grad_() for tensor in (z, injection))
        with k.use_backend(backend):
            out = k.reasoning_module(one, other, layers, *heads, eps, damping=damping)
            first = torch.autograd.grad(out.square().sum(), (one, other), create_graph=True)
            found.append([*first, *torch.autograd.grad(sum(g.square().sum() for g in first), (one, other))])
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4 * want.abs().max().item())


def test_the_cpu_library_draws_the_same_numbers():
    for features in (1, 64, 200):
        numbers = k.noise(SEEDS, torch.tensor([0, 5, 2**32 - 1]), 3, features, stream=3)
        with k.use_backend("reference"):
            want = k.noise(SEEDS, torch.tensor([0, 5, 2**32 - 1]), 3, features, stream=3)
        torch.testing.assert_close(numbers, want, rtol=1e-6, atol=2e-6)
