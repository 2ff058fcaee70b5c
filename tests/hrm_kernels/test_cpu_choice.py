"""The automatic choice between the cpu backend and plain PyTorch, by measured tables."""

import json
import time
import warnings
from dataclasses import replace

import pytest
import torch

import hrm_kernels as k
from hrm_kernels import backends, instruction_sets, native
from hrm_kernels.backends import independent_rows, keep_backend
from hrm_kernels.spec import Sizes
from hrm_kernels.tuning import TuningError, cpu, cpu_command, cpu_measure
from hrm_kernels.tuning.cpu import Machine, Table, Times

pytestmark = pytest.mark.skipif(k.available_backends()["cpu"] is not None, reason="there is no CPU library")

WIDTH, WEIGHT = 128, torch.randn(128, 128)
AVX2 = Machine({"float32": "avx2", "bfloat16": "avx2"}, {"float32": "avx2", "bfloat16": "avx2"}, "Toaster", "9", "9", 2)
AMX = replace(AVX2, pytorch={"float32": "avx512", "bfloat16": "amx"}, processor="Big toaster")
AMX = replace(AMX, library={"float32": "avx512", "bfloat16": "avx512"})


def linear_times(slow_from: int, direction: str = "forward", dtype: str = "float32") -> tuple[Times, ...]:
    """PyTorch is 1.5 x faster from ``slow_from`` rows on."""
    rows = (1, 4, 16, 64)
    return tuple(Times("linear", dtype, direction, WIDTH, n, 15.0 if n >= slow_from else 5.0, 10.0) for n in rows)


def chosen(rows: int, width: int = WIDTH, dtype: torch.dtype = torch.float32, capsys=None) -> str:
    return k.explain("linear", torch.zeros(rows, width, dtype=dtype), torch.zeros(width, width, dtype=dtype))


@pytest.fixture(autouse=True)
def _tables_are_read_again():
    """Later tests see the tables of this machine."""
    yield
    cpu.forget()


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """No tables but those that the test writes: shipped ones into ``folder``, this machine's in ``user_path()``."""
    monkeypatch.setattr(cpu, "FOLDER", tmp_path / "cpus")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cpu.forget()
    return tmp_path / "cpus"


@pytest.fixture
def on_avx2(monkeypatch):
    pretend(monkeypatch, library="avx2", pytorch="avx2")


def pretend(monkeypatch, library: str, pytorch: str) -> None:
    """The instruction sets of both dtypes."""
    monkeypatch.setattr(instruction_sets, "of_library", lambda dtype: library)
    monkeypatch.setattr(instruction_sets, "of_pytorch", lambda dtype: pytorch)
    cpu.forget()


def test_the_choice_changes_between_two_measurements(folder, on_avx2):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is not a failure
        assert [chosen(rows) for rows in (0, 1, 4, 7, 8)] == ["cpu"] * 5  # 8 is in the middle of 4 and 16
        assert [chosen(rows) for rows in (9, 16, 64, 1000)] == ["reference"] * 4


@pytest.mark.parametrize("emulated", ["amx_emulated", "avx512_bf16_emulated"])
def test_no_table_decides_for_emulated_instructions(folder, monkeypatch, emulated):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(1)))
    pretend(monkeypatch, library=emulated, pytorch="avx2")
    assert chosen(64) == "cpu"
    assert chosen(64, dtype=torch.bfloat16) == "cpu"


def test_a_call_runs_on_the_backend_that_explain_names(folder, on_avx2, monkeypatch):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(16)))
    from hrm_kernels.ops.linear import _op

    ran = []
    for name in ("cpu", "reference"):
        run = _op.backends[name].run
        monkeypatch.setitem(
            _op.backends, name, replace(_op.backends[name], run=lambda *a, n=name, run=run: ran.append(n) or run(*a))
        )
    for rows in (8, 9):
        k.linear(torch.randn(rows, WIDTH), WEIGHT)
    with k.use_backend("cpu"):
        k.linear(torch.randn(9, WIDTH), WEIGHT)
    assert ran == ["cpu", "reference", "cpu"]


def test_explain_shows_the_measurement(folder, on_avx2, capsys):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(16)))
    chosen(20)
    assert (
        "cpu        can serve it too, after reference: PyTorch is 1.5 x faster here for float32 and 16 rows; "
        "measured 2026-11-29 on Toaster\n" in capsys.readouterr().out
    )
    chosen(8)
    assert "reference  can serve it too, after cpu\n" in capsys.readouterr().out
    with k.use_backend("cpu"):
        assert chosen(20) == "cpu"
    assert "cpu        requested by use_backend" in capsys.readouterr().out


def test_sizes_far_from_all_measurements_stay_on_the_cpu_backend(folder, on_avx2):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(1)))
    assert [chosen(64, width) for width in (63, 64, 128, 256, 257)] == ["cpu", *["reference"] * 3, "cpu"]


def test_the_nearest_width_decides(folder, on_avx2):
    wide = tuple(one._replace(width=256, cpu=1.0) for one in linear_times(1))
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", (*linear_times(1), *wide)))
    assert [chosen(64, width) for width in (64, 181, 182, 512, 513)] == ["reference", "reference", "cpu", "cpu", "cpu"]


def test_a_lead_within_the_noise_does_not_count(folder, on_avx2):
    times = (Times("linear", "float32", "forward", WIDTH, 8, 10.2, 10.0),)
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", times))
    assert chosen(8) == "cpu"


def test_calls_with_gradients_have_times_of_their_own(folder, on_avx2):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(1, "gradients")))
    x, weight = torch.zeros(8, WIDTH), torch.zeros(WIDTH, WIDTH, requires_grad=True)
    assert k.explain("linear", x, weight) == "reference" and chosen(8) == "cpu"
    with torch.no_grad():
        assert k.explain("linear", x, weight) == "cpu"
        # what autograd calls again, with gradients, runs on the backend of the first call
        assert keep_backend(lambda: k.explain("linear", x, weight))() == "reference"


def test_rows_stay_independent_where_that_is_asked_for(folder, on_avx2, capsys):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(1)))
    with independent_rows():
        assert chosen(64) == "cpu"
        assert keep_backend(lambda: chosen(64))() == "cpu"
    assert chosen(64) == "reference"


def compiled_linear(rows_of_calls, **options) -> list[bool]:
    """Compile ``linear`` and call it with these numbers of rows: whether each compiled graph runs the cpu backend."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph.code)
        return graph.forward

    compiled = torch.compile(lambda x, weight: k.linear(x, weight), backend=backend, fullgraph=True, **options)
    for rows in rows_of_calls:
        x = torch.randn(rows, WIDTH)
        torch.testing.assert_close(compiled(x, WEIGHT), x @ WEIGHT.T, rtol=1e-4, atol=1e-4)
    return ["cpu_linear" in code for code in graphs]


def test_compiled_code_takes_the_measured_backend(folder, on_avx2):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(16)))
    assert compiled_linear((4, 40)) == [True, False]


def test_compiled_code_for_any_number_of_rows(folder, on_avx2):
    cpu.write(folder / "avx2.json", Table(AVX2, "2026-11-29", linear_times(16)))
    # one graph for each side of the crossover
    assert sorted(compiled_linear((4, 5, 8, 40, 50, 9), dynamic=True)) == [False, True]


@pytest.mark.parametrize(
    ("library", "pytorch", "backend"),
    [
        ("avx512", "amx", "reference"),  # as measured
        ("avx2", "avx512_bf16", "reference"),  # PyTorch is as far ahead
        ("avx2", "avx2", "cpu"),
        ("amx", "amx", "cpu"),  # no table; as where both use the same instructions
        ("avx512_bf16", "avx512_bf16", "cpu"),
        ("portable", "avx2", "cpu"),
    ],
)
def test_the_nearest_instruction_set_decides(folder, monkeypatch, library, pytorch, backend):
    for machine, slow in ((AVX2, 10**6), (AMX, 1)):
        cpu.write(cpu.shipped_path(machine), Table(machine, "2026-11-29", linear_times(slow, dtype="bfloat16")))
    assert sorted(path.name for path in folder.iterdir()) == ["avx2.json", "avx512-pytorch-amx.json"]
    pretend(monkeypatch, library, pytorch)
    assert chosen(64, dtype=torch.bfloat16) == backend


@pytest.mark.parametrize(
    ("library", "pytorch"),
    [("portable", "portable"), ("avx2", "avx2"), ("avx512", "avx512"), ("avx512", "avx512_bf16"), ("amx", "amx")],
)
def test_a_table_of_a_machine_where_pytorch_is_further_ahead_says_nothing(folder, monkeypatch, library, pytorch):
    cpu.write(cpu.shipped_path(AMX), Table(AMX, "2026-11-29", linear_times(1, dtype="bfloat16")))
    pretend(monkeypatch, library, pytorch)
    assert chosen(64, dtype=torch.bfloat16) == "cpu"


@pytest.mark.parametrize("op", ["linear", "swiglu"])
def test_the_shipped_tables_choose_the_library_where_it_has_pytorchs_instructions(monkeypatch, tmp_path, op):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pretend(monkeypatch, "avx2", "avx2")
    arguments = [torch.zeros(656, 512, dtype=torch.bfloat16), torch.zeros(512, 512, dtype=torch.bfloat16)]
    assert k.explain(op, *arguments[: 2 if op == "linear" else 1]) == "cpu"


def test_an_op_without_times_in_the_nearest_table_takes_the_next_one(folder, monkeypatch):
    times = linear_times(1, dtype="bfloat16")
    ahead = {"float32": "avx512", "bfloat16": "avx512_bf16"}
    other = replace(AMX, library={"float32": "avx2", "bfloat16": "avx2"}, pytorch=ahead)
    cpu.write(folder / "a.json", Table(other, "2026-11-29", times))
    cpu.write(folder / "b.json", Table(AMX, "2026-11-29", tuple(one._replace(op="swiglu", cpu=1.0) for one in times)))
    pretend(monkeypatch, "avx512", "amx")
    assert chosen(64, dtype=torch.bfloat16) == "reference"
    assert k.explain("swiglu", torch.zeros(64, WIDTH, dtype=torch.bfloat16)) == "cpu"


def test_this_machines_table_comes_first(folder):
    here = Machine.here()
    cpu.write(folder / "a.json", Table(here, "2026-11-29", linear_times(10**6)))
    assert chosen(64) == "cpu"
    cpu.write(cpu.user_path(), Table(here, "2026-11-30", linear_times(1)))
    assert chosen(64) == "reference"


@pytest.mark.parametrize(
    "change",
    [
        {"processor": "Toaster"},
        {"torch": "1.0"},
        {"hrm": "0.0"},
        {"threads": 99},
        {"library": {"float32": "amx", "bfloat16": "amx"}},
        {"pytorch": {"float32": "amx", "bfloat16": "amx"}},
    ],
)
def test_a_table_of_another_machine_is_ignored_without_a_warning(folder, change):
    cpu.write(cpu.user_path(), Table(replace(Machine.here(), **change), "2026-11-29", linear_times(1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen(64) == "cpu"
    table, ignored = cpu.user_table()
    assert table is None and not ignored.is_damaged
    assert next(iter(change)) in ignored.text and "measure again with" in ignored.text


def damage(content: dict, **changes) -> str:
    return json.dumps(content | changes)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: "", "Expecting value"),
        (lambda c: "[]", "list indices"),
        (lambda c: "{}", "no 'format'"),
        (lambda c: damage(c, format=0), "format is 0, expected 1"),
        (lambda c: damage(c, times=3), "not iterable"),
        (lambda c: damage(c, date=3), "got 3, expected a text"),
        (lambda c: damage(c, machine={}), "missing"),
        (lambda c: damage(c, machine=c["machine"] | {"library": {"float32": "mmx"}}), "library is .*mmx.*expected one"),
        (lambda c: damage(c, times=[["linear", "float32"]]), "missing"),
        (lambda c: damage(c, times=[["gelu", *c["times"][0][1:]]]), "unknown op 'gelu'"),
        (lambda c: damage(c, times=[["linear", "int8", *c["times"][0][2:]]]), "unknown dtype 'int8'"),
        (lambda c: damage(c, times=[["linear", "float32", "up", 1, 1, 1, 1]]), "direction is 'up'"),
        (lambda c: damage(c, times=[["linear", "float32", "forward", 0, 1, 1, 1]]), "width is 0"),
        (lambda c: damage(c, times=[["linear", "float32", "forward", 1, "2", 1, 1]]), "rows is '2'"),
        (lambda c: damage(c, times=[["linear", "float32", "forward", 1, 1, -1, 1]]), "cpu is -1"),
        (lambda c: damage(c, times=[["linear", "float32", "forward", 1, 1, 1, float("nan")]]), "pytorch is nan"),
    ],
)
def test_a_damaged_table_is_ignored_with_one_warning(folder, change, what):
    path = cpu.user_path()
    cpu.write(path, Table(Machine.here(), "2026-11-29", linear_times(1)))
    assert cpu.read(path) == cpu.user_table()[0]
    path.write_text(change(json.loads(path.read_text())))
    cpu.forget()
    with pytest.raises(TuningError, match=what) as error:
        cpu.read(path)
    assert str(path) in str(error.value) and "remove it, or measure again" in str(error.value)
    with pytest.warns(UserWarning, match="is damaged .* it is ignored") as warned:
        assert chosen(64) == "cpu" and chosen(64, dtype=torch.bfloat16) == "cpu"
        assert k.explain("swiglu", torch.zeros(2, 8)) == "cpu"
    assert len(warned) == 1


def test_the_users_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cpu.user_path() == tmp_path / "hrm_kernels" / "cpu.json"
    for ignored in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert cpu.user_path() == tmp_path / ".cache" / "hrm_kernels" / "cpu.json"


def test_the_shipped_tables_are_valid():
    paths = list(cpu.FOLDER.glob("*.json"))
    assert all(cpu.shipped_path(cpu.read(path).machine) == path for path in paths)


def test_sizes_of_calls():
    x = torch.zeros(2, 3, 8)
    assert cpu.size("swiglu", [x]) == (6, 8)
    assert cpu.size("rope_attention", [x]) == (6, 3)
    assert cpu.size("linear", [x, torch.zeros(2, 8)]) == (6, 4)
    assert cpu.size("swiglu", [torch.zeros(2, 0)]) == (0, 0)
    assert cpu.size("sparse_sign_sgd", [torch.zeros(9, 8), torch.zeros(4)]) == (4, 8)


def test_every_op_has_a_name_in_the_tables():
    assert {cpu.SAME_KERNELS.get(name, name) for name in backends._ops} == set(cpu.MEASURED)


@pytest.mark.parametrize(
    ("name", "is_fast"), [("amx", True), ("avx512_bf16", True), ("avx512", False), ("avx2", False)]
)
def test_bfloat16_is_fast_where_it_is_multiplied_in_hardware(monkeypatch, name, is_fast):
    class Module:
        def instruction_set(self):
            return "avx512" if is_fast else name

        def bfloat16_instruction_set(self):
            return name

    monkeypatch.setattr(native, "load", lambda library: native.Native(Module(), None))
    assert instruction_sets.bfloat16_is_fast() == is_fast
    assert instruction_sets.of_library("bfloat16") == name
    assert instruction_sets.of_library("float32") == ("avx512" if is_fast else name)
    monkeypatch.setattr(native, "load", lambda library: native.Native(None, "not built"))
    assert instruction_sets.of_library("float32") is None and not instruction_sets.bfloat16_is_fast()


@pytest.mark.parametrize(
    ("capability", "has_bfloat16", "has_amx", "expected"),
    [
        ("AVX512", True, True, ("avx512", "amx")),
        ("AVX512_BF16", True, False, ("avx512", "avx512_bf16")),
        ("AVX512", False, False, ("avx512", "avx512")),
        ("AVX2", False, False, ("avx2", "avx2")),
        ("DEFAULT", False, False, ("portable", "portable")),
    ],
)
def test_the_instruction_sets_of_pytorch(monkeypatch, capability, has_bfloat16, has_amx, expected):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_bfloat16, raising=False)
    for name in ("_is_amx_tile_supported", "_init_amx"):
        monkeypatch.setattr(torch.cpu, name, lambda: has_amx, raising=False)
    ask = instruction_sets.of_pytorch.__wrapped__
    assert (ask("float32"), ask("bfloat16")) == expected


@pytest.fixture
def small(monkeypatch):
    """One small call of each kind."""
    monkeypatch.setattr(cpu_measure, "SIZES", {"swiglu": [Sizes(B=2)], "sparse_sign_sgd": [Sizes(4, D=8, V=10)]})


def test_the_command_writes_this_machines_table(folder, small, capsys):
    assert cpu_command.main(False, ["swiglu", "sparse_sign_sgd"], seconds=0.01) in (0, 2)  # 2: a busy machine
    if "wrote" in capsys.readouterr().out:
        table, ignored = cpu.user_table()
        assert ignored is None and table.machine == Machine.here()
        assert {(one.op, one.direction, one.rows) for one in table.times} <= {
            ("swiglu", "forward", 34), ("swiglu", "gradients", 34), ("sparse_sign_sgd", "forward", 4)
        }  # fmt: skip
        assert not folder.exists()


def test_a_wrong_result_is_never_timed(small, monkeypatch):
    from hrm_kernels.ops.swiglu import _op

    wrong = replace(_op.backends["cpu"], run=lambda gate_up: gate_up[..., ::2] * 1.0)
    monkeypatch.setitem(_op.backends, "cpu", wrong)
    with pytest.raises(RuntimeError, match=r"swiglu, float32, 34 x 192: the error of cpu is .*, that of plain PyTorch"):
        cpu_command.main(False, ["swiglu"], seconds=0.01)


def test_turns_of_one_thread_are_its_cpu_time(monkeypatch):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        calls = {"cpu": lambda: time.sleep(0.002), "reference": lambda: sum(range(100_000))}
        medians = cpu_measure.take_turns(calls, 0.05)
    finally:
        torch.set_num_threads(threads)
    assert medians["cpu"] < medians["reference"]  # sleeping takes no CPU time
