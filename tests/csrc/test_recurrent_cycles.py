"""The persistent CUDA kernel: error against float64 at most twice that of plain PyTorch in bfloat16.

It runs on a CPU, under csrc/simt. With a GPU the same cases run on it.
"""

import functools
from pathlib import Path

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import backends, doctor
from hrm_kernels.nn import rope_tables
from hrm_kernels.ops.reasoning_module import cuda_kernels
from hrm_kernels.ops.rope_attention.heads import Heads

SOURCE = Path(__file__).parents[2] / "csrc" / "cuda" / "recurrent_cycles.cu"
pytestmark = pytest.mark.usefixtures("poisoned")
BF16 = torch.bfloat16


@pytest.fixture(params=["simt", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request):
    """The torch device of the kernel."""
    if request.param == "simt":
        request.getfixturevalue("cuda_on_cpu")
        return "cpu"
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    return "cuda"


def random(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module(dim, inner, columns, layers, seed):
    shapes = ((3 * columns, dim), (dim, columns), (2 * inner, dim), (dim, inner))
    return [
        k.BlockWeights(*(random(*s, seed=seed + 4 * i + j, scale=s[1] ** -0.5) for j, s in enumerate(shapes)))
        for i in range(layers)
    ]


def problem(batch=1, positions=17, dim=128, inner=128, head_dim=64, layers=1, rope=True, columns=None):
    """States, modules, tables and heads in float64 (tables float32)."""
    columns = columns or dim
    states = [random(batch, positions, dim, seed=seed) for seed in range(3)]
    modules = [module(dim, inner, columns, layers, seed) for seed in (100, 200)]
    tables = rope_tables(positions + 3, head_dim) if rope else (None, None)
    return states, modules, tables, columns // head_dim


def convert(value, device, dtype):
    """Convert tensors in nested lists; tables stay float32."""
    if isinstance(value, torch.Tensor):
        return value.to(device) if value.dtype == torch.float32 else value.to(device, dtype)
    if isinstance(value, k.BlockWeights):
        return k.BlockWeights(*(convert(item, device, dtype) for item in value))
    return [convert(item, device, dtype) for item in value] if isinstance(value, list | tuple) else value


def cycles(backend, given, device, dtype, H_cycles, L_cycles):
    states, modules, tables, heads = convert(given, device, dtype)
    with k.use_backend(backend):
        return k.recurrent_cycles(*states, *modules, *tables, heads, H_cycles, L_cycles)


def update(backend, given, device, dtype):
    states, modules, tables, heads = convert(given, device, dtype)
    with k.use_backend(backend):
        return k.reasoning_module(*states[:2], modules[0], *tables, heads)


def within(got, plain, want):
    """Apply the error bound of the design, relative to the largest element of the result."""
    assert got.dtype == BF16
    error, allowed = ((x.double() - want).abs().max().item() for x in (got, plain))
    assert error <= 2 * allowed + torch.finfo(BF16).eps * want.abs().max().item(), f"{error:.2e}, plain {allowed:.2e}"


def compare(call, device):
    got, plain, want = (call(*how) for how in (("cuda", device, BF16), ("reference", device, BF16),
                                               ("reference", device, torch.float64)))  # fmt: skip
    if isinstance(got, torch.Tensor):
        got, plain, want = (got,), (plain,), (want,)
    for result in zip(got, plain, want, strict=True):
        within(*result)


SHAPES = [
    {},
    {"positions": 1},
    {"batch": 3, "positions": 33, "layers": 2},
    {"positions": 82, "head_dim": 32},
    {"positions": 81, "head_dim": 128},
    {"positions": 97, "rope": False, "inner": 256},
    {"batch": 2, "positions": 128, "head_dim": 128},
    {"positions": 128, "head_dim": 32, "batch": 2},
    {"dim": 256, "inner": 384, "positions": 50},
    {"dim": 384, "inner": 128, "positions": 20, "head_dim": 128},
    {"dim": 128, "columns": 256, "positions": 20},
]


@pytest.mark.parametrize("shape", SHAPES)
def test_module(device, shape):
    given = problem(**shape)
    compare(lambda *how: update(how[0], given, *how[1:]), device)


@pytest.mark.parametrize(("H_cycles", "L_cycles"), [(1, 1), (1, 3), (2, 1), (2, 2), (3, 2)])
def test_cycles(device, H_cycles, L_cycles):
    given = problem(batch=2, layers=2)
    compare(lambda *how: cycles(how[0], given, *how[1:], H_cycles, L_cycles), device)


def test_published_sizes(device):
    given = problem(positions=82, dim=512, inner=1536)
    compare(lambda *how: update(how[0], given, *how[1:]), device)


def test_many_tokens_take_tall_tiles(device):
    """More than 96 tall tiles of the residual products, and more tiles in every phase than thread blocks."""
    given = problem(batch=18, positions=128)
    compare(lambda *how: update(how[0], given, *how[1:]), device)


@pytest.mark.slow
def test_as_many_tokens_as_it_serves(device):
    given = problem(batch=32, positions=128)
    compare(lambda *how: update(how[0], given, *how[1:]), device)


def test_triton_is_asked_first_about_many_tokens(cuda_on_cpu, monkeypatch):
    """The automatic choice of a backend on a GPU; an explicitly requested backend is used."""
    monkeypatch.setitem(backends.PREFERENCE, "cpu", backends.PREFERENCE["cuda"])
    for name in ("reasoning_module", "recurrent_cycles"):
        op = backends._ops[name]
        monkeypatch.setitem(op.backends, "triton", backends.Backend(lambda *arguments: "triton"))
        for batch, chosen in ((6, "cuda"), (7, "triton"), (32, "triton"), (33, "triton")):
            states, modules, tables, heads = convert(problem(batch, positions=82), "cpu", BF16)
            arguments = [*states[:2], modules[0], Heads(*tables, heads), 1e-5]
            if name == "recurrent_cycles":
                arguments = [*states, *modules, Heads(*tables, heads), 2, 2, 1e-5, None, None]
            assert op.select(*arguments) == (chosen, [])
            with k.use_backend("cuda"):
                assert op.select(*arguments) == ("cuda", [])


@pytest.mark.parametrize("multiprocessors", [1, 2, 7])
@pytest.mark.parametrize("order", [0, 1, 2, 3])
def test_any_order_on_any_device_gives_the_same_bits(cuda_on_cpu, multiprocessors, order):
    given = problem(batch=2, positions=40, layers=2, inner=256)
    cuda_on_cpu.configure(3, 0)
    want = cycles("cuda", given, "cpu", BF16, 2, 2)
    cuda_on_cpu.configure(multiprocessors, order)
    got = cycles("cuda", given, "cpu", BF16, 2, 2)
    assert all(torch.equal(a, b) and not a.isnan().any() for a, b in zip(got, want, strict=True))


def test_same_input_same_output(device):
    given = problem(batch=2, positions=40, layers=2)
    first, again = (cycles("cuda", given, device, BF16, 2, 2) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def guarded_cycles(simt, given, H_cycles, L_cycles):
    """Compute the new states with inputs, results and workspace at the end of accessible memory."""
    (z, injection, x), modules, tables, heads = convert(given, "cpu", BF16)
    module, guarded = simt.module, simt.guarded
    batch, positions, dim = z.shape
    sizes = (batch, positions, dim, heads, tables[0].shape[1], modules[0][0].down.shape[1])
    states = [guarded(state) for state in (z, injection, x)]
    results = [guarded(torch.full_like(z, float("nan"))) for _ in range(2)]
    workspace = guarded(torch.full((module.recurrent_cycles_workspace(*sizes),), 255, dtype=torch.uint8))
    weights = [[guarded(weight) for block in layers for weight in block] for layers in modules]
    tables = [guarded(table[:positions].contiguous()) for table in tables]
    module.recurrent_cycles(*states, *weights, *tables, heads, H_cycles, L_cycles, 1e-5, *results, workspace)
    assert all(torch.equal(a, b) for a, b in zip(states, (z, injection, x), strict=True)), "an input was written to"
    return results


@pytest.mark.parametrize(
    "shape", [{"positions": 1}, {"positions": 19, "batch": 2}, {"positions": 128, "head_dim": 128}]
)
def test_stays_in_its_tensors(cuda_on_cpu, shape):
    given = problem(**shape)
    results = guarded_cycles(cuda_on_cpu, given, 2, 2)
    want = cycles("cuda", given, "cpu", BF16, 2, 2)
    assert all(torch.equal(a, b) for a, b in zip(results, want, strict=True))


def test_views_are_copied_and_inputs_kept(device):
    (z, injection, _), modules, tables, heads = convert(problem(batch=2), device, BF16)
    with k.use_backend("cuda"):
        want = k.reasoning_module(z, injection, modules[0], *tables, heads)
        turned = z.transpose(0, 1).contiguous().transpose(0, 1)
        shifted = torch.zeros(z.numel() + 1, dtype=BF16, device=device)[1:].view(z.shape).copy_(injection)
        assert not turned.is_contiguous() and shifted.data_ptr() % 16
        assert torch.equal(k.reasoning_module(turned, shifted, modules[0], *tables, heads), want)
        assert torch.equal(shifted, injection)


def test_registration(device):
    states, modules, tables, heads = convert(problem(layers=2), device, BF16)
    weights = [[weight for block in layers for weight in block] for layers in modules]
    operator = torch.ops.hrm_kernels.cuda_recurrent_cycles.default
    torch.library.opcheck(operator, (*states, *weights, *tables, heads, 2, 2, 1e-5))


def test_compiles_without_graph_breaks(device):
    torch._dynamo.reset()
    states, modules, tables, heads = convert(problem(), device, BF16)

    def function(z_H, z_L, x):
        z_H, z_L = k.recurrent_cycles(z_H, z_L, x, *modules, *tables, heads, 2, 2)
        with torch.no_grad():
            return k.reasoning_module(z_H, z_L, modules[0], *tables, heads)

    with k.use_backend("cuda"):
        assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(*states), function(*states))


def reason(given, dtype=BF16, **options):
    states, modules, tables, heads = convert(given, "cpu", dtype)
    if options.get("grad"):
        modules[0][0].qkv.requires_grad_()
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable) as error:
        k.reasoning_module(*states[:2], modules[0], *tables, heads)
    return str(error.value)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ({}, {"dtype": torch.float32}, "are for bfloat16, not float32"),
        ({}, {"grad": True}, "compute no gradients"),
        ({"positions": 129}, {}, "128 positions at most"),
        ({"batch": 33, "positions": 128}, {}, f"1 to {cuda_kernels.MOST_TOKENS} tokens"),
        ({"head_dim": 16}, {}, "head_dim 32, 64 and 128"),
        ({"dim": 192}, {}, "multiples of 128"),
        ({"inner": 96}, {}, "multiples of 128"),
        ({"layers": 17}, {}, "16 blocks"),
    ],
)
def test_what_it_cannot_serve(cuda_on_cpu, shape, options, message):
    assert message in reason(problem(**shape), **options)


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ({"capability": 7}, "it needs compute capability 8.0 or newer"),
        ({"cooperative": 0}, "the device does not support cooperative launches"),
        ({"shared": 64 << 10}, "invalid argument"),  # the runtime's message about the attribute
        ({"resident": 0}, "no multiprocessor has enough shared memory and registers for a thread block"),
    ],
)
def test_devices_it_cannot_run_on(cuda_on_cpu, device, message):
    """The backend and the library refuse before a launch whose blocks would wait forever for others."""
    given = problem()
    cuda_on_cpu.configure(**device)
    assert f"the cuda kernels cannot run it: {message}" in reason(given)
    with pytest.raises(RuntimeError, match=message):
        guarded_cycles(cuda_on_cpu, given, 2, 2)


def test_all_blocks_that_fit_on_the_device_run(cuda_on_cpu):
    given = problem(batch=2, positions=40)
    want = cycles("cuda", given, "cpu", BF16, 2, 2)
    cuda_on_cpu.configure(multiprocessors=2, resident=2)
    assert all(map(torch.equal, cycles("cuda", given, "cpu", BF16, 2, 2), want))


def test_the_doctor_tests_the_backend(device, monkeypatch):
    assert doctor._test_backend("cuda") is None
    monkeypatch.setattr(cuda_kernels, "update", lambda z, *rest: (z, z))
    assert "reasoning_module differs from float64 by" in doctor._test_backend("cuda")


def test_an_empty_batch_uses_another_backend(cuda_on_cpu):
    states, modules, tables, heads = convert(problem(), "cpu", BF16)
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match=f"1 to {cuda_kernels.MOST_TOKENS} tokens"):
        k.reasoning_module(states[0][:0], states[1][:0], modules[0], *tables, heads)
    assert k.reasoning_module(states[0][:0], states[1][:0], modules[0], *tables, heads).shape == (0, 17, 128)


def test_blocks_of_unequal_sizes_use_another_backend(cuda_on_cpu):
    states, modules, tables, heads = convert(problem(), "cpu", BF16)
    wider = convert(problem(inner=256), "cpu", BF16)[1][0]
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="blocks of equal sizes"):
        k.reasoning_module(*states[:2], [*modules[0], *wider], *tables, heads)


def test_cpu_tensors_are_not_for_cuda():
    states, modules, tables, heads = convert(problem(), "cpu", BF16)
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="for cuda tensors, not cpu"):
        k.reasoning_module(*states[:2], modules[0], *tables, heads)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_replays_in_a_cuda_graph():
    states, modules, tables, heads = convert(problem(layers=2), "cuda", BF16)
    with k.use_backend("cuda"):
        want = k.recurrent_cycles(*states, *modules, *tables, heads, 2, 2)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            got = k.recurrent_cycles(*states, *modules, *tables, heads, 2, 2)
        for _ in range(3):
            graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# ---- kernels with a mistake


def without(line, before="", after=""):
    """Remove one line of the source, identified by its neighbours."""
    return before + line + after, before + after


GRID, BLOCK, COMMIT = "    grid.barrier();\n", "__syncthreads();", "ptx::copy_async_commit();\n"
WAIT, WAIT_ALL = "ptx::copy_async_wait<kStages - 2>();", "ptx::copy_async_wait<0>();\n"
# A text of recurrent_cycles.cu, and its replacement.
MISTAKES = {
    "no barrier of the grid after the start": without("  grid.barrier();\n", after="  for (int layer"),
    "no barrier of the grid after qkv": without(GRID, "compute_qkv<kHead>(p, qkv, sums, parts);\n"),
    "no barrier of the grid after attention": without(GRID, "prefetch_residual(o);\n"),
    "no barrier of the grid after o": without(GRID, "Tall::prefetch(gate_up, p.rows);\n"),
    "no barrier of the grid after gate_up": without(GRID, "prefetch_residual(down);\n"),
    "no barrier of the grid after down": without(GRID, "    }\n"),
    "a block arrives before all of its threads": without(BLOCK, "void barrier() {\n    "),
    "threads do not wait for the polling thread": without(BLOCK, " {}\n    }\n    ", "\n  }\n};"),
    "all barriers of the grid are the first": ("expected += gridDim.x", "expected = kFirstCount + gridDim.x"),
    "product: no wait": without(WAIT),
    "product: a wait too short": (WAIT, WAIT.replace("2", "1")),
    "product: no barrier of a slice": without(BLOCK, after="  // the slice has arrived"),
    "product: no group of the first slices": without(COMMIT, "        }\n        ", "      }\n      for (int i"),
    "product: no group of a slice": without(COMMIT, "        }\n        ", "        const unsigned char* a"),
    "product: sums too early": without(BLOCK, after="  // all threads have read the stages"),
    "product: no barrier of the sums": without(BLOCK, after="\n      epilogue("),
    "product: copies onto the sums": without(BLOCK, after="  // all threads have read the sums"),
    "product: slices behind the last at first": ("        if (step < steps) {", "        if (true) {"),
    "product: slices behind the last": ("if (step + kStages - 1 < steps) {", "if (true) {"),
    "product: only the first tile has weights": (
        "if (item != static_cast<int>(blockIdx.x)) load_weights",
        "if (false) load_weights",
    ),
    "prefetch: tiles behind the last": (">= row_tiles * product.tiles) return;", "< 0) return;"),
    "prefetch: slices behind the last": (" && step < product.K / kSlice; ++step) {", "; ++step) {"),
    "prefetch: one slice of two": ("step < kStages - 1 && step < product.K", "step < kStages - 2 && step < product.K"),
    "prefetch: none of the first qkv": without(
        "  Tall::prefetch(qkv, p.rows);\n", "Product qkv = qkv_of(blocks[0]);\n"
    ),
    "prefetch: none of the next qkv": without("      Tall::prefetch(qkv, p.rows);\n"),
    "prefetch: none of o": without("prefetch_residual(o);"),
    "prefetch: none of gate_up": without("Tall::prefetch(gate_up, p.rows);"),
    "prefetch: none of down": without("prefetch_residual(down);"),
    "prefetch: tall tiles for small ones": (
        "      Small::prefetch(product, p.rows);",
        "Tall::prefetch(product, p.rows);",
    ),
    "attention: no group": without("      " + COMMIT, after="      " + WAIT_ALL),
    "attention: no wait": without("      " + WAIT_ALL),
    "attention: no barrier": without(BLOCK, "      " + WAIT_ALL + "      "),
    "attention: shares too early": without(BLOCK, after="  // all threads have read keys and values"),
    "attention: no barrier of the shares": without(
        BLOCK, "        }\n      }\n      ", "\n#pragma unroll 1\n      for (int i"
    ),
    "attention: copies onto the shares": without(BLOCK, after="  // all threads have read the partial results"),
}
QUICK = ("no barrier of the grid after gate_up", "product: copies onto the sums", "prefetch: tiles behind the last")


def test_every_barrier_wait_and_group_is_left_out_once():
    for what in ("grid.barrier();", BLOCK, "ptx::copy_async_wait<", COMMIT):
        missing = sum(old.count(what) - new.count(what) for old, new in MISTAKES.values())
        assert missing == SOURCE.read_text().count(what), what


@functools.cache
def small_cycles():
    """Two passes of two blocks of the model: several tiles per phase, products of one slice and of four."""
    given = problem(positions=50, layers=2, inner=512)
    return given, [cycles("reference", given, "cpu", dtype, 2, 1) for dtype in (BF16, torch.float64)]


def check_on_any_device(simt):
    """Check thread blocks with several tiles each, or with none in some phases, in several orders of threads."""
    given, references = small_cycles()
    for multiprocessors, order in ((2, 0), (2, 1), (20, 0), (2, 2), (2, 3)):
        simt.configure(multiprocessors, order)
        for result in zip(guarded_cycles(simt, given, 2, 1), *references, strict=True):
            within(*result)


def test_the_kernel_without_a_mistake_passes(cuda_on_cpu):
    check_on_any_device(cuda_on_cpu)


@pytest.mark.parametrize("mistake", [pytest.param(m, marks=() if m in QUICK else pytest.mark.slow) for m in MISTAKES])
def test_a_mistake_is_found(broken, mistake):
    simt = broken("recurrent_cycles", *MISTAKES[mistake])
    with pytest.raises((AssertionError, RuntimeError)):
        check_on_any_device(simt)


ORDERING = [
    name for name, (old, new) in MISTAKES.items()
    if any(old.count(what) > new.count(what) for what in ("barrier", "__syncthreads", "copy_async"))
]  # fmt: skip


def _barrier():
    """The count of arrivals from its start to its comparison."""
    text, last = SOURCE.read_text(), "- expected) < 0) {}"
    first = text.index("constexpr unsigned kFirstCount = ~0u;")
    return text[first : text.index(last) + len(last)]


def _counts_across_the_wrap():
    """It starts, and goes on, so that the first barrier's first arrival is the last count before 2^32."""
    step, changed = "0x01010101u", _barrier()
    for old, new in (
        ("= ~0u", "= 0xfefefefeu"),
        ("expected += gridDim.x", f"expected += {step} * gridDim.x"),
        ("add_release(arrived, 1)", f"add_release(arrived, {step})"),
    ):
        assert changed.count(old) == 1
        changed = changed.replace(old, new)
    return changed


def race_of(simt, orders=(0, 1, 2, 3, 4)):
    """The first race that is found in a pass of one block of the model; None without one.

    On three multiprocessors each thread block has two tiles of attention, and reads what others have computed.
    """
    given = problem(batch=3, positions=17, layers=1, inner=256)
    for order in orders:
        simt.configure(3, order)
        try:
            guarded_cycles(simt, given, 1, 2)
        except RuntimeError as error:
            assert "race: " in str(error), error
            return str(error)
    return None


@pytest.mark.slow
def test_the_cycles_have_no_race(broken):
    check_on_any_device(broken("recurrent_cycles", None, None, races=True))


@pytest.mark.slow
def test_a_comparison_of_counts_that_does_not_wrap_is_found(broken):
    wraps, by_difference = _counts_across_the_wrap(), "static_cast<int>(ptx::load_acquire(arrived) - expected) < 0"
    assert race_of(broken("recurrent_cycles", _barrier(), wraps, races=True)) is None
    assert wraps.count(by_difference) == 1
    plain = wraps.replace(by_difference, "ptx::load_acquire(arrived) < expected")
    assert race_of(broken("recurrent_cycles", _barrier(), plain, races=True), [0]) is not None


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ORDERING)
def test_a_missing_barrier_wait_or_group_of_the_cycles_is_a_race(broken, mistake):
    """In some order: where a block runs far ahead, its arrival orders what the missing barrier should have."""
    assert race_of(broken("recurrent_cycles", *MISTAKES[mistake], races=True)) is not None
