"""Choosing a backend: preference, requests, reasons."""

import importlib
import importlib.metadata
import inspect
import subprocess
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import hrm_kernels as k
from hrm_kernels import backends
from hrm_kernels.backends import Backend, keep_backend, requested
from hrm_kernels.ops import swiglu as op_package

X = torch.randn(3, 8)


@pytest.fixture
def cpu_backend(monkeypatch):
    """A second backend of swiglu, for float32 only, whose results can be told apart."""
    table = {
        "reference": op_package._op.backends["reference"],
        "cpu": Backend(
            lambda gate_up: torch.full_like(gate_up[..., 1::2], 7.0),
            lambda gate_up: (
                None if gate_up.dtype is torch.float32 else f"it computes float32 only, not {gate_up.dtype}"
            ),
        ),
    }
    monkeypatch.setattr(op_package._op, "backends", table)
    monkeypatch.setattr(backends, "_warned", set())


def test_backends_lists_all_with_reasons():
    listed = k.available_backends()
    assert list(listed) == ["cuda", "triton", "cpu", "reference"]
    assert listed["reference"] is None
    assert all(reason is None or reason for reason in listed.values())


def test_the_package_and_its_lazy_names():
    assert k.__version__ == importlib.metadata.version("hrm")
    assert set(k.__all__) <= set(dir(k)) and k.backends is sys.modules["hrm_kernels.backends"]
    for name in k.__all__:
        assert getattr(k, name) is not None
    with pytest.raises(AttributeError, match="module 'hrm_kernels' has no attribute 'softmax'"):
        k.softmax  # noqa: B018


def test_a_source_tree_without_an_installation_has_an_unknown_version(monkeypatch):
    def nothing_installed(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", nothing_installed)
    assert k.__version__ == "0+unknown"


def test_preference_by_device(cpu_backend):
    assert k.swiglu(X).eq(7).all()
    with k.use_backend("reference"):
        assert not k.swiglu(X).eq(7).any()
    assert k.swiglu(X).eq(7).all()
    assert k.available_backends()["cpu"] is None


def test_automatic_choice_falls_back_and_says_so_once(cpu_backend):
    with pytest.warns(
        UserWarning, match="swiglu runs on backend 'reference'; 'cpu' cannot serve it: it computes float32 only"
    ):
        k.swiglu(X.half())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        k.swiglu(X.half())


def test_a_request_that_cannot_be_served_raises(cpu_backend):
    with (
        k.use_backend("cpu"),
        pytest.raises(k.BackendUnavailable, match="swiglu.*'cpu'.*float32 only, not torch.float16"),
    ):
        k.swiglu(X.half())
    with k.use_backend("cuda"), pytest.raises(k.BackendUnavailable, match="add_rms_norm.*no cuda kernels"):
        k.add_rms_norm(X, X)


def test_nested_requests_and_none(cpu_backend):
    with k.use_backend("reference"):
        with k.use_backend(None):
            assert k.swiglu(X).eq(7).all()
        assert not k.swiglu(X).eq(7).any()


def test_the_choice_ends_with_an_exception(cpu_backend):
    with pytest.raises(KeyError), k.use_backend("reference"):
        raise KeyError
    assert k.swiglu(X).eq(7).all()
    with pytest.raises(ValueError, match="no backend"), k.use_backend("reference"), k.use_backend("cudnn"):
        pass
    assert requested() is None


def test_threads_choose_for_themselves(cpu_backend):
    """Two threads with different choices at the same time; a third, started inside a choice, begins without one."""
    barrier = threading.Barrier(2, timeout=60)

    def run(name):
        found = []
        with k.use_backend(name):
            for _ in range(20):
                barrier.wait()
                found.append(bool(k.swiglu(X).eq(7).all()))
        return found, requested()

    with ThreadPoolExecutor(3) as pool, k.use_backend("reference"):
        cpu, reference = pool.submit(run, "cpu"), pool.submit(run, "reference")
        assert cpu.result() == ([True] * 20, None) and reference.result() == ([False] * 20, None)
        assert pool.submit(requested).result() is None and requested() == "reference"


@pytest.mark.parametrize("op", ["swiglu", "rope_attention", "add_rms_norm", "token_mixing"])
@pytest.mark.skipif(k.available_backends()["cpu"] is not None, reason="there is no CPU library")
def test_a_backward_runs_on_the_backend_of_its_forward(op, monkeypatch):
    """In a thread of its own, as on a GPU, and against the choice of that thread."""
    shapes = {"token_mixing": [(2, 3, 12), (8, 3), (3, 4)], "add_rms_norm": [(2, 3, 12)] * 2}.get(op, [(2, 3, 12)])
    inputs = [torch.randn(shape).requires_grad_() for shape in shapes]
    launched = []
    for module in ("swiglu", "rope_attention", "add_rms_norm", "token_mixing"):
        kernels = importlib.import_module(f"hrm_kernels.ops.{module}.cpu_kernels")
        for direction in ("forward", "backward"):
            launch = getattr(kernels, direction)
            monkeypatch.setattr(
                kernels, direction, lambda *a, launch=launch, name=direction: launched.append(name) or launch(*a)
            )

    def backward(loss, choice):
        with k.use_backend(choice):
            return torch.autograd.grad(loss, inputs)

    def forward(choice):
        with k.use_backend(choice):
            return getattr(k, op)(*inputs, *((None, None, 2) if op == "rope_attention" else ())).square().sum()

    with ThreadPoolExecutor(1) as thread:
        thread.submit(backward, forward("cpu"), "reference").result()
        assert launched == ["forward", "backward"]
        thread.submit(backward, forward("reference"), "cpu").result()
        assert launched == ["forward", "backward"]


def test_keep_backend_is_for_what_autograd_calls_again(cpu_backend):
    def double(x):
        chosen.append(requested())
        return k.swiglu(x) * 2

    chosen, x = [], X.clone().requires_grad_()
    with k.use_backend("reference"):
        out = checkpoint(keep_backend(double), x, use_reentrant=False)
        many = k.fixed_point(lambda z: double(torch.cat([z, z], -1)), X, steps=4, gradient="full", recompute=True)
    with ThreadPoolExecutor(1) as thread, k.use_backend("cpu"):
        thread.submit(out.sum().backward).result()
        assert chosen == ["reference"] * 6 and not many.requires_grad
        with k.use_backend("reference"):
            y = X.clone().requires_grad_()
            many = k.fixed_point(lambda z: double(torch.cat([z, z], -1)), y, steps=4, gradient="full", recompute=True)
        thread.submit(many.sum().backward).result()
    assert set(chosen) == {"reference"} and len(chosen) > 10


def test_unknown_names():
    with (
        pytest.raises(ValueError, match="no backend 'cudnn'; expected one of cuda, triton, cpu, reference"),
        k.use_backend("cudnn"),
    ):
        pass
    with pytest.raises(ValueError, match="no op 'softmax'"):
        k.explain("softmax", X)


def test_explain(cpu_backend, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert k.explain("swiglu", X.half()) == "reference"
    printed = capsys.readouterr().out
    assert "float16" in printed and "it computes float32 only" in printed and "no cuda kernels" in printed


def test_explain_takes_what_the_function_takes(capsys):
    with k.use_backend("reference"):
        assert k.explain("add_rms_norm", X, X) == "reference"  # eps has a default
    with pytest.raises(TypeError, match=r"^explain: .*'cos'; rope_attention takes \(qkv, cos, sin, num_heads\)$"):
        k.explain("rope_attention", torch.zeros(1, 2, 24))
    with pytest.raises(TypeError, match=r"^explain: .*'gate_up'; swiglu takes \(gate_up\)$"):
        k.explain("swiglu")
    with pytest.raises(TypeError, match=r"^explain: too many .*; swiglu takes \(gate_up\)$"):
        k.explain("swiglu", X, X)
    with pytest.raises(TypeError, match=r"^explain: swiglu's gate_up is int, expected a torch.Tensor$"):
        k.explain("swiglu", 5)


def test_explain_knows_the_signatures_of_the_functions():
    ops = backends._ops
    public = [name for name in ops if name in k.__all__]
    assert len(public) == 12
    for name in public:
        assert ops[name].signature == inspect.signature(vars(k)[name]), name


@pytest.fixture
def gpu_backends(monkeypatch):
    """CPU tensors prefer cuda, then triton, whose results are 1 and 2; what each cannot serve, and what is unproven."""
    reasons = {"cuda": None, "triton": None, "unproven": "not measured to be faster"}
    table = {"reference": op_package._op.backends["reference"]}
    for value, name in ((1.0, "cuda"), (2.0, "triton")):
        table[name] = Backend(
            lambda gate_up, value=value: torch.full_like(gate_up[..., 1::2], value),
            lambda gate_up, name=name: reasons[name],
            passed_over=lambda gate_up, name=name: reasons["unproven"] if name == "cuda" else None,
        )
    monkeypatch.setattr(op_package._op, "backends", table)
    monkeypatch.setattr(backends, "PREFERENCE", {"cpu": ("cuda", "triton", "reference")})
    monkeypatch.setattr(backends, "_warned", set())
    return reasons


def test_a_backend_that_is_passed_over_is_asked_last_but_for_reference(gpu_backends, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is no failure
        assert k.swiglu(X).eq(2).all() and k.explain("swiglu", X) == "triton"
        assert "cuda       can serve it too, after triton: not measured to be faster\n" in capsys.readouterr().out
        gpu_backends["cuda"] = "not built"
        assert k.swiglu(X).eq(2).all() and k.explain("swiglu", X) == "triton"
        assert "cuda       not built\n" in capsys.readouterr().out
    gpu_backends |= {"cuda": None, "triton": "not installed"}
    with pytest.warns(UserWarning, match="swiglu runs on backend 'cuda'; 'triton' cannot serve it: not installed$"):
        assert k.swiglu(X).eq(1).all()
    gpu_backends["cuda"] = "not built"
    with pytest.warns(UserWarning, match="'reference'; 'triton' cannot .* not installed; 'cuda' cannot .* not built$"):
        assert not k.swiglu(X).eq(1).any()


def test_a_backend_that_is_passed_over_is_taken_where_it_is_asked_for_or_proven(gpu_backends, capsys):
    with k.use_backend("cuda"):
        assert k.swiglu(X).eq(1).all()
        assert k.explain("swiglu", X) == "cuda"
    with k.use_backend("triton"):
        k.explain("swiglu", X)
    assert "cuda       can serve it too, after triton\n" in capsys.readouterr().out
    gpu_backends["unproven"] = None
    assert k.swiglu(X).eq(1).all()


def test_compiled_code_passes_over_too(gpu_backends):
    torch._dynamo.reset()
    compiled = torch.compile(lambda gate_up: k.swiglu(gate_up), backend="eager", fullgraph=True)
    assert compiled(X).eq(2).all()


def test_compiled_code_follows_the_choice(cpu_backend):
    torch._dynamo.reset()
    compiled = torch.compile(lambda gate_up: k.swiglu(gate_up), backend="eager", fullgraph=True)
    assert compiled(X).eq(7).all()
    with k.use_backend("reference"):
        assert not compiled(X).eq(7).any()


def test_compiled_code_follows_the_choice_of_the_thread_that_calls_it(cpu_backend):
    """Each choice compiles once, for all threads; a choice inside the compiled function is traced."""
    torch._dynamo.reset()
    counter = CompileCounter()

    def function(gate_up):
        with k.use_backend("reference"):
            inside = k.swiglu(gate_up)
        return inside, k.swiglu(gate_up)

    compiled = torch.compile(function, backend=counter, fullgraph=True)

    def run(choice):
        with k.use_backend(choice):
            return [bool(out.eq(7).all()) for out in compiled(X)]

    assert run(None) == [False, True] and counter.frame_count == 1
    with ThreadPoolExecutor(1) as thread, k.use_backend("reference"):
        assert thread.submit(run, None).result() == [False, True] and counter.frame_count == 1
        assert thread.submit(run, "reference").result() == [False, False] and counter.frame_count == 2
        assert run("reference") == [False, False] and run(None) == [False, True] and counter.frame_count == 2
        assert requested() == "reference"


@pytest.mark.parametrize(
    ("value", "says"),
    [("reference", "True\nreference\nreference\n"), ("cudnn", "HRM_KERNELS_BACKEND: there is no backend")],
)
def test_environment_variable(value, says, monkeypatch):
    monkeypatch.setenv("HRM_KERNELS_BACKEND", value)
    code = (
        "import torch, threading, hrm_kernels as k; print(k.swiglu(torch.ones(2)).item() > 0);"
        "from hrm_kernels.backends import requested; print(requested());"
        "thread = threading.Thread(target=lambda: print(requested())); thread.start(); thread.join()"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert says in run.stdout + run.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="the kernels run on the GPU")
def test_the_interpreter_refuses_bfloat16(capsys):
    """Its products and sums of bfloat16 are wrong by orders of magnitude."""
    x = torch.ones(2, 3, 64, dtype=torch.bfloat16)
    with (
        k.use_backend("triton"),
        pytest.raises(k.BackendUnavailable, match="Triton's interpreter computes bfloat16 wrongly; use float32 or"),
    ):
        k.swiglu(x)
    k.explain("swiglu", x)
    assert "interpreter computes bfloat16 wrongly" in capsys.readouterr().out
