"""Choosing a backend: preference, requests, reasons."""

import inspect
import subprocess
import sys
import warnings

import pytest
import torch

import hrm_kernels as k
from hrm_kernels.backends import Backend
from hrm_kernels.ops import swiglu as room

X = torch.randn(3, 8)


@pytest.fixture
def cpu_backend(monkeypatch):
    """A second backend of swiglu, for float32 only, whose results can be told apart."""
    table = {
        "reference": room._op.backends["reference"],
        "cpu": Backend(
            lambda gate_up: torch.full_like(gate_up[..., 1::2], 7.0),
            lambda gate_up: (
                None if gate_up.dtype is torch.float32 else f"it computes float32 only, not {gate_up.dtype}"
            ),
        ),
    }
    monkeypatch.setattr(room._op, "backends", table)
    monkeypatch.setattr(sys.modules["hrm_kernels.backends"], "_said", set())  # the function hides the module


def test_backends_lists_all_with_reasons():
    listed = k.backends()
    assert list(listed) == ["cuda", "triton", "cpu", "reference"]
    assert listed["reference"] is None
    assert all(reason is None or reason for reason in listed.values())


def test_preference_by_device(cpu_backend):
    assert k.swiglu(X).eq(7).all()
    with k.use_backend("reference"):
        assert not k.swiglu(X).eq(7).any()
    assert k.swiglu(X).eq(7).all()
    assert k.backends()["cpu"] is None


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


def test_references_take_what_the_functions_take():
    ops = sys.modules["hrm_kernels.backends"]._ops
    public = [name for name in ops if name in k.__all__]
    assert len(public) == 9
    for name in public:
        given, wanted = (
            inspect.signature(one).parameters for one in (ops[name].backends["reference"].run, vars(k)[name])
        )
        assert [(p.name, p.default) for p in given.values()] == [(p.name, p.default) for p in wanted.values()], name


@pytest.fixture
def gpu_backends(monkeypatch):
    """CPU tensors prefer cuda, then triton, whose results are 1 and 2; what each cannot serve, and what is unproven."""
    reasons = {"cuda": None, "triton": None, "unproven": "not measured to be faster"}
    table = {"reference": room._op.backends["reference"]}
    for value, name in ((1.0, "cuda"), (2.0, "triton")):
        table[name] = Backend(
            lambda gate_up, value=value: torch.full_like(gate_up[..., 1::2], value),
            lambda gate_up, name=name: reasons[name],
            passed_over=lambda gate_up, name=name: reasons["unproven"] if name == "cuda" else None,
        )
    module = sys.modules["hrm_kernels.backends"]
    monkeypatch.setattr(room._op, "backends", table)
    monkeypatch.setattr(module, "PREFERENCE", {"cpu": ("cuda", "triton", "reference")})
    monkeypatch.setattr(module, "_said", set())
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


@pytest.mark.parametrize(
    ("value", "says"), [("reference", "True"), ("cudnn", "HRM_KERNELS_BACKEND: there is no backend")]
)
def test_environment_variable(value, says, monkeypatch):
    monkeypatch.setenv("HRM_KERNELS_BACKEND", value)
    code = "import torch, hrm_kernels as k; print(k.swiglu(torch.ones(2)).item() > 0)"
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
