"""Choose the backend that runs a call, and explain the choice.

Each op has a table ``{backend name: Backend}``. A call asks the backends of that table whether they can serve it, in
the order of preference for its tensors' device. Each answers with None, or with the reason why it cannot. On a CPU
plain PyTorch comes first where it was measured to be faster (:mod:`hrm_kernels.tuning.cpu`).
"""

import functools
import inspect
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar

import torch

from hrm_kernels import native
from hrm_kernels.autodiff import each, has_tangent, is_negated, kernels_cannot_serve, tensors, traced_as_constant
from hrm_kernels.checks import check_tensor
from hrm_kernels.spec import OpSpec
from hrm_kernels.tuning import cpu as cpu_tuning

PREFERENCE = {"cuda": ("cuda", "triton", "reference"), "cpu": ("cpu", "reference")}
"""Backends in order, by tensor device; on other devices only ``reference`` runs."""

T = TypeVar("T")
Function = TypeVar("Function", bound=Callable[..., Any])
NAMES = ("cuda", "triton", "cpu", "reference")


class BackendUnavailable(RuntimeError):
    """The requested backend cannot serve the call; the message names the op and the reason."""


@dataclass(frozen=True)
class Backend:
    """One way to compute an op.

    Attributes:
        run: takes the op's arguments, returns its result, differentiates. It must trace under
            ``torch.compile(fullgraph=True)``: plain PyTorch does, kernels go through registered ops.
        unsupported: takes the op's arguments, returns None or the reason why this backend cannot serve them.
        passed_over: takes the op's arguments, returns None or the reason why the automatic choice asks this backend
            after all others except ``reference``. This is not a failure: there is no warning, and ``use_backend``
            still selects the backend.
    """

    run: Callable[..., Any]
    unsupported: Callable[..., str | None] = lambda *arguments: None
    passed_over: Callable[..., str | None] | None = None


def _check_name(name: str, origin: str) -> str:
    if name not in NAMES:
        raise ValueError(f"{origin}: there is no backend {name!r}; expected one of {', '.join(NAMES)}")
    return name


_ops: dict[str, "Op"] = {}
_warned: set[str] = set()
_library = torch.library.Library("hrm_kernels", "DEF")

_default: str | None = None  # the choice that every thread starts with
if os.environ.get("HRM_KERNELS_BACKEND"):
    _default = _check_name(os.environ["HRM_KERNELS_BACKEND"], "HRM_KERNELS_BACKEND")


class _Choice(threading.local):
    def __init__(self) -> None:
        # an instance attribute: torch.compile guards on it. On the default in the class body it does not, and a
        # context variable it cannot trace.
        self.requested = _default
        self.by_size = True  # False inside independent_rows
        self.repeated = False  # True inside functions of keep_backend


_choice = _Choice()


def requested() -> str | None:
    """The backend that this thread has requested with :func:`use_backend` or the environment; None: by device."""
    return _choice.requested


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Run every op that this thread calls inside the ``with`` on backend ``name``; None chooses by device again.

    The choice belongs to the thread. Other threads, also those started inside the ``with``, begin with the choice of
    the environment variable ``HRM_KERNELS_BACKEND`` (None if it is not set). A backward runs on the backend of its
    forward, whichever thread runs it and whatever that thread has chosen. Only ``torch.utils.checkpoint`` calls ops
    again, on a GPU in a thread of autograd; pass it ``keep_backend(function)``.

    Under ``torch.compile`` the choice is a guard, checked against the thread that makes the call: a choice that this
    code was not yet compiled for compiles it again. The compiled backward belongs to its forward.

    Raises:
        ValueError: there is no backend of that name.
        BackendUnavailable: (from the op) the backend cannot serve a call.
    """
    before, _choice.requested = _choice.requested, None if name is None else _check_name(name, "use_backend")
    try:
        yield
    finally:
        _choice.requested = before


@contextmanager
def independent_rows() -> Iterator[None]:
    """Make the automatic choice of this thread independent of the size of a call.

    On a CPU it otherwise takes plain PyTorch for the sizes where that is faster. Then another number of rows in a batch
    may mean another backend, which rounds differently. Inside the ``with`` the ``cpu`` backend runs whatever it can
    serve, and the result of a row does not depend on the other rows.
    """
    before, _choice.by_size = _choice.by_size, False
    try:
        yield
    finally:
        _choice.by_size = before


def keep_backend(function: Callable[..., T]) -> Callable[..., T]:
    """``function`` with this thread's present choice of backend, whenever and in whichever thread it is called.

    For what autograd calls again: ``torch.utils.checkpoint.checkpoint(keep_backend(function), ...)``. The first call,
    which may have gradients disabled, chooses as the second one does.
    """
    if torch.compiler.is_compiling():  # traced with the choice
        return function
    present = _choice.requested, _choice.by_size, True

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> T:
        before = _choice.requested, _choice.by_size, _choice.repeated
        _choice.requested, _choice.by_size, _choice.repeated = present
        try:
            return function(*arguments, **options)
        finally:
            _choice.requested, _choice.by_size, _choice.repeated = before

    return call


class Op:
    """An op's table of backends, callable with the op's arguments; the first is a tensor or a list of tensors.

    Creating it registers ``torch.ops.hrm_kernels.<name>``, which calls the same backends as the public function. The
    registered op decomposes into its backend, so it differentiates, traces and exports like the backend.

    The reference does what no kernel does: transforms of ``torch.func``, forward-mode differentiation, second-order
    gradients (:mod:`hrm_kernels.autodiff`). Every backend runs with ``torch.autocast`` off.
    """

    def __init__(
        self,
        spec: OpSpec,
        backends: Mapping[str, Backend],
        unflatten: Callable[..., Any] | None = None,
    ):
        """``unflatten`` turns the arguments of the schema, or of the public function, into the op's (named tuples).

        Without a schema nothing is registered: for optimisers, whose step changes tensors in place and is not traced.
        """
        self.spec, self.name, self._in_place = spec, spec.name, spec.schema is None
        self.backends = dict(backends)
        self.unflatten = unflatten or (lambda *arguments: arguments)
        self.signature = inspect.signature(backends["reference"].run)
        _ops[self.name] = self
        if spec.schema is None:
            return
        _library.define(f"{self.name}{spec.schema}")
        # schemas have no nested lists: the registered op takes weights as one flat list
        registered = self if unflatten is None else lambda *arguments: self(*unflatten(*arguments))
        _library.impl(self.name, registered, "CompositeImplicitAutograd")

    def public(self, function: Function) -> Function:
        """Decorate the op's public function, whose arguments :func:`explain` takes."""
        self.signature = inspect.signature(function)
        return function

    def __call__(self, *arguments: Any) -> Any:
        if torch._C._is_any_autocast_enabled():
            arguments = self.under_autocast(*arguments)
            if torch.compiler.is_compiling():  # Dynamo cannot trace _DisableAutocast
                with torch.autocast(_first(arguments).device.type, enabled=False):
                    return self._run(arguments)
            with torch._C._DisableAutocast():
                return self._run(arguments)
        return self._run(arguments)

    def _run(self, arguments: tuple[Any, ...]) -> Any:
        name, skipped = self.select(*arguments)
        if skipped and not torch.compiler.is_compiling():
            _warn_once(f"{self.name} runs on backend {name!r}; {'; '.join(skipped)}")
        if name == "triton" and not torch.compiler.is_compiling():  # launches are on the current device
            with torch.cuda.device_of(_first(arguments)):
                return self.backends[name].run(*arguments)
        return self.backends[name].run(*arguments)

    def under_autocast(self, *arguments: Any) -> tuple[Any, ...]:
        """The op's first arguments, or all, in the dtypes that ``torch.autocast`` asks for; unchanged where it is off.

        float64 stays float64, as in PyTorch.
        """
        count = self.spec.cast
        if not (count and torch._C._is_any_autocast_enabled()):
            return arguments
        cast, rest = arguments[:count], arguments[count:]
        dtypes = {one.dtype: one.device.type for one in tensors(cast) if _is_cast(one)}
        if not dtypes:
            return arguments
        device = next(iter(dtypes.values()))
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return arguments
        widest = functools.reduce(torch.promote_types, dtypes)
        dtype = torch.get_autocast_dtype(device) if self.spec.autocast == "lower" else widest
        return *each(lambda one: one.to(dtype) if _is_cast(one) else one, cast), *rest

    def select(self, *arguments: Any) -> tuple[str, list[str]]:
        """The backend that runs a call with these arguments, and the reasons why preferred ones do not.

        Raises:
            BackendUnavailable: the requested backend cannot serve the call, or no backend can.
        """
        name = _choice.requested
        if name is not None:
            reason = self.reason(name, *arguments)
            if reason is not None:
                raise BackendUnavailable(f"{self.name}: backend {name!r} cannot serve this call: {reason}")
            return name, []
        reason = self._only_reference(arguments)
        if reason is not None:
            return "reference", [reason]
        skipped: list[str] = []
        for name in self._order(arguments):
            reason = self.backends[name].unsupported(*arguments)
            if reason is None:
                return name, skipped
            skipped.append(f"{name!r} cannot serve it: {reason}")
        raise BackendUnavailable(f"{self.name}: no backend can serve this call: {'; '.join(skipped)}")

    def _order(self, arguments: tuple[Any, ...]) -> list[str]:
        """The backends that the automatic choice asks, in order."""
        names = [name for name in _preference(arguments) if name in self.backends]
        if "cpu" in names and _choice.by_size and self._pytorch_is_faster(arguments):
            return ["reference", *(name for name in names if name != "reference")]
        later = [
            name
            for name in names
            if (passed_over := self.backends[name].passed_over) is not None and passed_over(*arguments) is not None
        ]
        if not later:
            return names
        kernels = [name for name in names if name not in later and name != "reference"]
        return [*kernels, *later, *(name for name in names if name == "reference")]

    def _pytorch_is_faster(self, arguments: tuple[Any, ...]) -> bool:
        """Whether the reference runs this call on a CPU faster than the ``cpu`` backend does."""
        directions = cpu_tuning.crossovers(self.name, _first(arguments).dtype)
        if directions is None:  # the usual case: at no size
            return False
        limits = directions[self._has_gradients(arguments)]
        return cpu_tuning.pytorch_is_faster(limits, self.name, arguments)

    def _has_gradients(self, arguments: tuple[Any, ...]) -> bool:
        """Whether a backward follows: the first tensors tell, because a model's weights want gradients together."""
        if _choice.repeated:
            return True
        return torch.is_grad_enabled() and any(map(_wants_gradient, arguments[:3]))

    def passed_over(self, name: str, arguments: tuple[Any, ...]) -> str | None:
        """Why the automatic choice prefers another backend to ``name``, which can serve the call."""
        if name == "cpu" and _choice.by_size and self._pytorch_is_faster(arguments):
            has_gradients = self._has_gradients(arguments)
            return cpu_tuning.reason(self.name, _first(arguments).dtype, arguments, has_gradients)
        passed_over = self.backends[name].passed_over
        return None if passed_over is None else passed_over(*arguments)

    def reason(self, name: str, *arguments: Any) -> str | None:
        """Why backend ``name`` cannot serve the call; None where it can."""
        if name not in self.backends:
            return f"{self.name} has no {name} kernels in this version"
        only_reference = None if name == "reference" else self._only_reference(arguments)
        return only_reference or self.backends[name].unsupported(*arguments)

    def _only_reference(self, arguments: tuple[Any, ...]) -> str | None:
        """Why no backend's kernels can serve the call; None where they may."""
        if self._in_place and is_negated(arguments):  # launchers resolve what they read, not what they write
            return "kernels write plain memory, and a tensor is lazily negated; pass tensor.resolve_neg()"
        return kernels_cannot_serve(arguments)


def _is_cast(tensor: torch.Tensor) -> bool:
    """Whether torch.autocast changes the dtype of ``tensor``."""
    return tensor.is_floating_point() and tensor.dtype is not torch.float64


def _first(arguments: Sequence[Any]) -> torch.Tensor:
    """The first tensor of the op's first argument, which may be a list of tensors, or of such lists."""
    value = arguments[0]
    while not isinstance(value, torch.Tensor):
        value = value[0]
    return value


def _wants_gradient(argument: Any) -> bool:
    """Whether an argument, or the first tensor in its lists, wants a gradient."""
    while isinstance(argument, list | tuple) and argument:
        argument = argument[0]
    return isinstance(argument, torch.Tensor) and argument.requires_grad


def _preference(arguments: tuple[Any, ...]) -> tuple[str, ...]:
    return PREFERENCE.get(_first(arguments).device.type, ("reference",))


def launcher(
    schema: str, fake: Callable[..., Any], grouped: tuple[int, type] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a function that launches kernels: register it as an op, and call that op under torch.compile.

    A direct call skips the dispatcher, which takes longer than a small kernel. While torch.compile traces, and under a
    dispatch mode (make_fx, FakeTensorMode), the function is the opaque op ``torch.ops.hrm_kernels.<name>``. It has no
    gradient: an autograd.Function calls it. Lazily negated arguments are resolved first.

    Args:
        schema: ``name(arguments) -> results`` as in ``torch.library.define``. Results are new tensors.
        fake: takes the same arguments as the function, returns empty tensors like the results.
        grouped: ``(place, NamedTuple)``: the function's argument there is such a tuple; the schema has its fields.
    """
    name = schema.partition("(")[0]

    def group(flat: tuple[Any, ...]) -> tuple[Any, ...]:
        if grouped is None:
            return flat
        place, kind = grouped
        after = place + len(kind._fields)  # type: ignore[attr-defined]
        return *flat[:place], kind(*flat[place:after]), *flat[after:]

    def ungroup(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        if grouped is None:
            return arguments
        place, _ = grouped
        return *arguments[:place], *arguments[place], *arguments[place + 1 :]

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def launch(*arguments: Any) -> Any:
            if is_negated(arguments):
                arguments = each(torch.Tensor.resolve_neg, arguments)
            return function(*arguments)

        def launch_registered(*arguments: Any) -> Any:
            if has_tangent(arguments):  # in code that was compiled without tangents
                raise NotImplementedError(f"{name}: kernels have no forward-mode gradients; don't compile the call")
            return launch(*group(arguments))

        _library.define(schema)
        _library.impl(name, launch_registered, "CompositeExplicitAutograd")
        torch.library.register_fake(f"hrm_kernels::{name}", lambda *flat: fake(*group(flat)), lib=_library)
        registered = getattr(torch.ops.hrm_kernels, name).default

        @functools.wraps(function)
        def call(*arguments: Any) -> Any:
            return registered(*ungroup(arguments)) if is_traced() else launch(*arguments)

        return call

    return register


def is_traced() -> bool:
    """Whether kernels are launched as registered ops: torch.compile traces, or a dispatch mode is active."""
    return torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0


def rows(tensor: torch.Tensor) -> torch.Tensor:
    """``[..., columns]`` as a contiguous matrix without a gradient, as libraries take it; columns are not 0."""
    plain = tensor.detach().contiguous()
    return plain if plain.ndim == 2 else plain.view(-1, plain.shape[-1])


_TRITON_INSTALLED = find_spec("triton") is not None
INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether Triton kernels run in Triton's interpreter, on CPU tensors (slow: for tests)."""

TRITON_DEVICE = "cpu" if INTERPRETING else "cuda"
"""The type of the tensors that Triton kernels are for."""


def triton_cannot_run(tensor: torch.Tensor) -> str | None:
    """Why Triton kernels cannot work on ``tensor``; None where they can."""
    if not _TRITON_INSTALLED:
        return "Triton is not installed; pip install triton (Linux)"
    if tensor.dtype is torch.float64:
        return "Triton kernels are for float32, bfloat16 and float16, not float64"
    if INTERPRETING and tensor.dtype is torch.bfloat16:
        return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16, or unset TRITON_INTERPRET"
    if tensor.device.type == TRITON_DEVICE:
        return None
    if INTERPRETING:
        return "TRITON_INTERPRET=1 is set, which is for CPU tensors; unset it"
    return f"Triton kernels are for GPU tensors, not {tensor.device.type}"


@traced_as_constant
def _cpu_library() -> str | None:
    return native.load("cpu").reason


def cpu_cannot_run(tensor: torch.Tensor) -> str | None:
    """Why the kernels of the CPU library cannot work on ``tensor``; None where they can."""
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        return f"CPU kernels are for float32 and bfloat16, not {str(tensor.dtype).removeprefix('torch.')}"
    if tensor.device.type != "cpu":
        return f"CPU kernels are for CPU tensors, not {tensor.device.type}"
    return _cpu_library()


CUDA_DEVICE = "cuda"
"""The type of the tensors that CUDA kernels are for. Tests that run them on a CPU (csrc/simt) set it to ``"cpu"``."""


def cuda_cannot_run(tensor: torch.Tensor) -> str | None:
    """Why the kernels of the CUDA library cannot work on ``tensor``; None where they can."""
    if tensor.device.type != CUDA_DEVICE:
        return f"the cuda kernels are for {CUDA_DEVICE} tensors, not {tensor.device.type}"
    if torch.version.hip:
        return "the cuda kernels are for NVIDIA GPUs"
    if tensor.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"the cuda kernels are for float32, bfloat16 and float16, not {str(tensor.dtype).removeprefix('torch.')}"
    return _cuda_device(tensor.device.index or 0)


@traced_as_constant
def _cuda_device(index: int) -> str | None:
    return _ask_cuda_library(index)


@functools.cache
def _ask_cuda_library(index: int) -> str | None:
    module, reason = native.load("cuda")
    if reason is not None:
        return reason
    reason = module.device_reason(index)
    return f"the cuda library cannot run on GPU {index}: {reason}" if reason else None


def _warn_once(message: str) -> None:
    if message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=5)


def available_backends() -> dict[str, str | None]:
    """Every backend by name: None where ops run on it here, or the reason why they cannot."""
    return {name: _availability(name) for name in NAMES}


def _availability(name: str) -> str | None:
    if not any(name in op.backends for op in _ops.values()):
        return f"no op has {name} kernels in this version"
    if name == "triton":
        if not _TRITON_INSTALLED:
            return "Triton is not installed; pip install triton (Linux)"
        if not INTERPRETING and not torch.cuda.is_available():
            return "there is no GPU that torch can use"
    if name == "cpu":
        return _cpu_library()
    if name == "cuda":
        reason = native.load("cuda").reason
        if reason is not None:
            return reason
        if not torch.cuda.is_available() or torch.version.hip:
            return "there is no NVIDIA GPU that torch can use"
    return None


def explain(op: str, *arguments: Any) -> str:
    """Print which backend a call of ``op`` with these arguments would run on, and why not on the others.

    Args:
        op: the name of a public function, such as ``"rope_attention"``.
        arguments: those of that function, in order; arguments with a default may be left out.

    Returns:
        The backend's name.

    Raises:
        ValueError: there is no such op.
        TypeError: an argument without a default is missing, there are too many, or the first is not a tensor.
    """
    if op not in _ops:
        raise ValueError(f"explain: there is no op {op!r}; expected one of {', '.join(_ops)}")
    table = _ops[op]
    try:
        bound = table.signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(f"explain: {error}; {op} takes ({', '.join(table.signature.parameters)})") from None
    bound.apply_defaults()
    first = bound.args[0]
    while isinstance(first, list | tuple) and first:
        first = first[0]
    check_tensor("explain", f"{op}'s {next(iter(bound.arguments))}", first)
    arguments = table.under_autocast(*table.unflatten(*bound.args))
    chosen, _ = table.select(*arguments)
    device = _first(arguments).device.type
    print(f"{op} on {device} tensors of {_first(arguments).dtype}: {chosen}")
    for name in NAMES:
        if name == chosen:
            why = (
                "requested by use_backend or HRM_KERNELS_BACKEND"
                if requested()
                else "the first that can serve the call"
            )
        else:
            why = table.reason(name, *arguments) or _why_not(table, name, chosen, arguments)
        print(f"  {name:<10} {why}")
    return chosen


def _why_not(op: Op, name: str, chosen: str, arguments: tuple[Any, ...]) -> str:
    """Why ``chosen`` runs the call, although backend ``name`` can serve it."""
    if name not in _preference(arguments):
        return f"not for {_first(arguments).device.type} tensors unless requested"
    passed_over = None if requested() else op.passed_over(name, arguments)
    return f"can serve it too, after {chosen}" + (f": {passed_over}" if passed_over else "")
