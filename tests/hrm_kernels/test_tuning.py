"""The tuning tables: they select paths, all paths compute the same, and damaged tables raise clear errors."""

import json
import subprocess
import sys
from types import ModuleType

import pytest
import torch

from hrm_kernels import tuning
from hrm_kernels.nn import rope_tables
from hrm_kernels.tuning import CANDIDATES, TuningError
from hrm_kernels.tuning import table as tables

pytest.importorskip("triton")

from hrm_kernels.ops.rope_attention import gpu_kernels, library_kernels  # noqa: E402
from hrm_kernels.ops.rope_attention.heads import Heads  # noqa: E402
from hrm_kernels.ops.transformer_block import triton_block, triton_persistent  # noqa: E402
from hrm_kernels.ops.transformer_block import triton_kernels as fused  # noqa: E402
from hrm_kernels.tuning import __main__ as command  # noqa: E402

CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")
HERE = CUDA if torch.cuda.is_available() else CPU  # the device of Triton's kernels


@pytest.fixture
def device(monkeypatch, tmp_path):
    """Pretend that a GPU exists; returns the path of its table."""
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: "ACME Toaster (9000)")
    tables._of_device.cache_clear()
    yield tmp_path / "acme-toaster-9000.json"
    tables._of_device.cache_clear()


def test_the_defaults_are_for_devices_without_a_table(device):
    for where in (CUDA, CPU):
        assert tuning.choose(where, torch.float32, 10) == "library"
        assert [tuning.choose(where, torch.bfloat16, rows) for rows in (1, 1024, 1025)] == [
            "fused_small",
            "fused_small",
            "fused",
        ]


def test_a_table_decides_by_dtype_and_rows(device):
    tables.write(device, {"bfloat16": [(32, "whole_row"), (500, "fused"), (None, "library")]}, [], {"device": "x"})
    assert [tuning.choose(CUDA, torch.bfloat16, rows) for rows in (1, 32, 33, 500, 501, 10**9)] == [
        "whole_row",
        "whole_row",
        "fused",
        "fused",
        "library",
        "library",
    ]
    assert tuning.choose(CUDA, torch.float16, 1) == "fused_small"  # a dtype without limits
    assert tuning.choose(CPU, torch.bfloat16, 1) == "fused_small"
    tables.write(device, {"bfloat16": [(None, "library")]}, [], {})
    assert tuning.choose(CUDA, torch.bfloat16, 1) == "library"  # reads the new table
    assert [path.name for path in device.parent.iterdir()] == [device.name]


def test_a_table_decides_for_8_bits_by_format_and_rows(device):
    assert tuning.choose_eight_bit(CUDA, "fp8", 10) == tuning.default_eight_bit() == "fused"
    tables.write(device, {}, [], {"eight_bit": {"fp8": [(82, "off"), (None, "library")]}})
    assert [tuning.choose_eight_bit(CUDA, "fp8", rows) for rows in (82, 83)] == ["off", "library"]
    assert tuning.choose_eight_bit(CUDA, "int8", 82) == "fused"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Expecting value"),
        ('{"block": {}, "long_attention": {"bfloat16": "magic"}}', "unknown candidate 'magic'"),
        ('{"block": {}, "eight_bit": {"float16": []}}', "unknown format 'float16'"),
        ('{"block": {}, "eight_bit": {"fp8": [[null, "whole_row"]]}}', "unknown candidate 'whole_row'"),
        ('{"block"', "Expecting"),
        ("[]", "list indices"),
        ("{}", "no 'block'"),
        ('{"block": {"int8": []}}', "unknown dtype 'int8'"),
        ('{"block": {"float16": [[null, "magic"]]}}', "unknown candidate 'magic'"),
        ('{"block": {"float16": [[8, "fused"]]}}', "must be ascending, and only the last one null"),
        ('{"block": {"float16": [[8, "fused"], [8, "library"], [null, "fused"]]}}', "must be ascending"),
        ('{"block": {"float16": [["8", "fused"], [null, "fused"]]}}', "must be ascending"),
        ('{"block": {"float16": [[null]]}}', "not enough values"),
        ('{"block": 3}', "no attribute"),
        ('{"block": {}, "cuda": ["swiglu"]}', r"cuda is \['swiglu'\], expected a list of adam_atan2"),
        ('{"block": {}, "cuda": "rope_attention"}', "cuda is 'rope_attention', expected a list"),
        ('{"block": {}, "cuda": [[]]}', "expected a list"),
        ('{"block": {}, "cuda": null}', "cuda is None"),
    ],
)
def test_a_damaged_table_is_an_error_that_says_what_to_do(device, text, reason):
    device.write_text(text)
    with pytest.raises(TuningError, match=reason) as error:
        tuning.choose(CUDA, torch.float16, 1)
    assert str(device) in str(error.value) and "remove it to use the defaults" in str(error.value)
    assert "\n" not in str(error.value)


class OnGpu:
    """A stand-in for a tensor on a GPU, with the only attribute that the choice of a backend reads."""

    device = CUDA


def test_cuda_is_unproven_until_the_table_says_otherwise(device):
    reasons = tables.cuda_is_unproven("adam_atan2"), tables.cuda_is_unproven("rope_attention")
    for passed_over in reasons:
        for first in (torch.ones(1), [torch.ones(1)]):
            assert passed_over(first, None) == (
                "not measured to be faster than triton here; python -m hrm_kernels.tuning compares them"
            )
        assert "not measured" in passed_over([OnGpu()])
    tables.write(device, {}, ["rope_attention"], {})
    assert "not measured" in reasons[0]([OnGpu()]) and reasons[1]([OnGpu()]) is None
    assert "not measured" in reasons[1](torch.ones(1))  # not on that GPU
    device.write_text('{"block": {}}')  # from a version without comparisons
    tables._of_device.cache_clear()
    assert "not measured" in reasons[1]([OnGpu()])
    device.write_text('{"block": {}, "cuda": 3}')
    tables._of_device.cache_clear()
    with pytest.raises(TuningError, match="cuda is 3"):
        reasons[1]([OnGpu()])


@pytest.mark.parametrize(
    ("faster", "automatic", "forward", "backward"),
    [
        ([], True, "triton", "triton"),
        (["rope_attention_backward"], True, "triton", "cuda"),
        (["rope_attention"], True, "cuda", "cuda"),
        (["rope_attention"], False, "triton", "triton"),  # triton was requested
    ],
)
def test_attention_of_blocks_follows_the_table(device, monkeypatch, faster, automatic, forward, backward):
    tables.write(device, {}, faster, {})
    monkeypatch.setattr(gpu_kernels.cuda_kernels, "unsupported", lambda qkv, heads: None)
    for kernels, name in ((gpu_kernels.cuda_kernels, "cuda"), (gpu_kernels.triton_kernels, "triton")):
        for way in ("forward", "backward"):
            monkeypatch.setattr(kernels, way, lambda *arguments, name=name: name)
    qkv = [OnGpu()]
    assert gpu_kernels.forward(qkv, None, True, automatic) == forward
    assert gpu_kernels.backward(None, qkv, None, None, None, automatic) == backward


def test_attention_of_blocks_on_what_cuda_cannot_run_is_triton(device, monkeypatch):
    tables.write(device, {}, ["rope_attention"], {})
    monkeypatch.setattr(gpu_kernels.cuda_kernels, "unsupported", lambda qkv, heads: "too long")
    monkeypatch.setattr(gpu_kernels.triton_kernels, "forward", lambda *arguments: "triton")
    assert gpu_kernels.forward([OnGpu()], None, True, True) == "triton"


@pytest.fixture
def libraries(monkeypatch):
    """Stand-ins for flash-attn 3 and cuDNN with their interfaces: plain PyTorch on a CPU. Returns who was called."""
    called = []

    def flash_attn_func(q, k, v):
        called.append("flash-attn 3")
        out = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return out.transpose(1, 2).contiguous(), torch.zeros(0)

    def cudnn(q, k, v):
        called.append("cuDNN")
        return flash_attn_func(q, k, v)[0]

    module = ModuleType("flash_attn_interface")
    module.flash_attn_func = flash_attn_func
    monkeypatch.setitem(sys.modules, "flash_attn_interface", module)
    monkeypatch.setitem(library_kernels.LIBRARIES, "cuDNN", cudnn)
    monkeypatch.setattr(library_kernels, "unsupported", lambda name, qkv: None)
    return called


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize("name", ["flash-attn 3", "cuDNN"])
def test_long_attention_of_a_library_is_ours(libraries, name, rope, monkeypatch):
    """With a stand-in: that the layouts fit, not that the library does."""
    qkv = torch.randn(2, 40, 3 * 64, generator=torch.Generator().manual_seed(0)).to(HERE, torch.float16)
    cos, sin = rope_tables(40, 32, device=HERE) if rope else (None, None)
    monkeypatch.setattr(library_kernels.table, "choose_long_attention", lambda *problem: name)
    got, lse = gpu_kernels.forward(qkv, Heads(cos, sin, 2), False, True)
    assert libraries[0] == name and lse.numel() == 0
    want, _ = gpu_kernels.forward(qkv, Heads(cos, sin, 2), False, False)
    torch.testing.assert_close(got, want, rtol=2e-3, atol=2e-3)
    libraries.clear()
    gpu_kernels.forward(qkv, Heads(cos, sin, 2), True, True)  # a backward follows
    assert not libraries


def test_the_table_names_a_library(device):
    assert tables.choose_long_attention(CUDA, torch.bfloat16) == "triton"
    tables.write(device, {}, [], {"long_attention": {"bfloat16": "cuDNN"}})
    assert tables.choose_long_attention(CUDA, torch.bfloat16) == "cuDNN"
    assert tables.choose_long_attention(CUDA, torch.float16) == "triton"


def test_why_a_library_cannot_attend(monkeypatch):
    def reason(name, *shape, dtype=torch.bfloat16, device="meta"):
        return library_kernels.unsupported(name, torch.empty(shape, dtype=dtype, device=device))

    assert reason("cuDNN", 1, 901, 96, dtype=torch.float32) == "cuDNN is for bfloat16 and float16, not float32"
    assert reason("cuDNN", 1, 128, 96) == "cuDNN is for rows of more than 128 positions here, not 128"
    assert reason("cuDNN", 1, 901, 96) == "cuDNN is for NVIDIA GPUs"
    monkeypatch.setitem(sys.modules, "flash_attn_interface", None)
    assert library_kernels._missing("flash-attn 3").startswith("flash_attn_interface cannot be imported (")
    shim = ModuleType("flash_attn_interface")
    shim.__hrm_kernels__ = "no original"
    monkeypatch.setitem(sys.modules, "flash_attn_interface", shim)
    assert library_kernels._missing("flash-attn 3") == "flash_attn_interface is hrm_kernels.shims'"


def test_an_op_without_comparison():
    with pytest.raises(ValueError, match="got op 'swiglu', expected one of adam_atan2, "):
        tables.cuda_is_unproven("swiglu")


def test_the_shipped_tables_are_valid():
    for path in tables.FOLDER.glob("*.json"):
        assert tables.read(path).block and tables.path_of(json.loads(path.read_text())["device"]) == path


def test_the_fastest_of_each_number_of_rows():
    seconds = {
        64: {"fused": 3.0, "fused_small": 1.0},
        16: {"fused": 3.0, "whole_row": 2.0},
        128: {"fused": 3.0, "fused_small": 1.0},
        256: {"fused": 1.0, "library": 2.0},
        512: {"fused": 1.5, "library": 1.0},
    }
    assert tables.best(seconds) == [(16, "whole_row"), (128, "fused_small"), (256, "fused"), (None, "library")]
    assert tables.best({1: {"fused": 1.0}}) == [(None, "fused")]


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize(
    "rows", [pytest.param(1, marks=pytest.mark.slow), 17, pytest.param(32, marks=pytest.mark.slow)]
)
def test_all_paths_compute_the_same(rows):
    dim, inner = 288, 160  # no tile divides a row
    g = torch.Generator().manual_seed(0)
    shapes = ((3 * dim, dim), (dim, dim), (2 * inner, dim), (dim, inner))
    exact = [
        (torch.randn(shape, generator=g).double() * shape[1] ** -0.5).to(HERE) for _ in range(2) for shape in shapes
    ]
    x = torch.randn(rows, dim, generator=g).to(HERE)
    shared = triton_block.Shared(1, Heads(*rope_tables(rows, 32, device=HERE), 9), 1e-5)
    assert fused.fits_a_row(x.half()) and list(triton_block.PATHS) == list(CANDIDATES)
    with torch.no_grad():
        want = triton_block.infer_library(x, [w.float() for w in exact], shared)
        for name, path in triton_block.PATHS.items():
            got = path(x.half(), [w.half() for w in exact], shared).float()
            torch.testing.assert_close(got, want, rtol=2e-2, atol=1e-2, msg=lambda m: f"{name}: {m}")


def test_a_pass_takes_the_path_of_the_table(monkeypatch):
    taken = []
    for name in CANDIDATES:
        monkeypatch.setitem(triton_block.PATHS, name, lambda x, *rest, name=name: taken.append(name) or x)
    monkeypatch.setattr(tuning, "choose", lambda device, dtype, rows: "whole_row" if rows < 100 else "library")
    shared = triton_block.Shared(1, Heads(None, None, 1), 1e-5)
    for rows, dim, dtype in (
        (8, 512, torch.float16),
        (40, 512, torch.float16),
        (8, 64, torch.float16),
        (100, 512, torch.float16),
    ):
        triton_block.infer(torch.zeros(rows, dim, dtype=dtype), [], shared)
    assert taken == ["whole_row", "fused_small", "fused_small", "library"]  # too many rows, or too narrow ones


def test_large_tiles_are_for_what_tensor_descriptors_can_read():
    assert triton_persistent.cannot_run(torch.zeros(1, 64).half(), 96) is None
    assert "for bfloat16 and float16, not float32" in triton_persistent.cannot_run(torch.zeros(1, 64), 96)
    for dim, inner in ((60, 96), (64, 97)):
        assert "multiple of 16 bytes" in triton_persistent.cannot_run(torch.zeros(1, dim).half(), inner)


def test_measuring_runs_every_candidate_once_they_agree(monkeypatch):
    def run(function):
        function()
        return 1.0

    sizes = (288, 64, 9, 1)
    assert set(command.measure(HERE, torch.float16, 16, run, sizes)) == set(CANDIDATES)
    assert set(command.measure(HERE, torch.float16, 41, run, sizes)) == set(CANDIDATES) - {"whole_row"}
    assert set(command.measure(HERE, torch.float32, 16, run, sizes)) == {"library"}
    monkeypatch.setitem(triton_block.PATHS, "fused", lambda x, weights, shared: x + 9)
    with pytest.raises(RuntimeError, match="fused differs from library"):
        command.measure(HERE, torch.float16, 16, run, sizes)


def test_cuda_leads_where_it_is_faster_in_every_problem_by_more_than_timings_differ():
    assert command.cuda_leads({"a": {"triton": 1.04, "cuda": 1.0}, "b": {"triton": 3.0, "cuda": 2.0}})
    assert not command.cuda_leads({"a": {"triton": 1.02, "cuda": 1.0}, "b": {"triton": 3.0, "cuda": 2.0}})
    assert not command.cuda_leads({"a": {"triton": 1.0, "cuda": 2.0}, "b": {"triton": 9.0, "cuda": 2.0}})


def test_ops_that_cannot_run_are_not_compared(monkeypatch, capsys):
    """The cuda backend does not serve CPU tensors."""
    for name in ("BATCH", "POSITIONS", "PUZZLES", "LAYERS"):
        monkeypatch.setattr(command, name, 2)
    led, seconds = command.compare_all(CPU, lambda function: 1.0)
    assert (led, seconds) == ([], {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == list(tables.COMPARED)
    assert all("not compared; " in line and "are for cuda tensors, not cpu" in line for line in lines)


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_the_command_fails():
    done = subprocess.run([sys.executable, "-m", "hrm_kernels.tuning"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "tuning: there is no GPU that torch can use; run it on the machine to be tuned\n"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_command_on_a_gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    monkeypatch.setattr(command, "ROWS", (16, 328))
    assert command.main([]) == 0
    (written,) = tmp_path.glob("*.json")
    assert set(tables.read(written).block) == {"float32", "bfloat16", "float16"}
    assert "int8" in tables.read(written).eight_bit
    tables._of_device.cache_clear()
