"""Record what a function would launch on a GPU: on tensors of the "meta" device, which have sizes but no memory."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode

from hrm_kernels.tuning.ahead_of_time import Case

_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.int64: "*i64", torch.int32: "*i32",
    torch.float8_e4m3fn: "*fp8e4nv", torch.int8: "*i8",
}  # fmt: skip
_PRODUCTS = {"matmul", "__matmul__", "mm", "_scaled_mm"}
_ADDING_PRODUCTS = {"addmm", "addmm_"}


@dataclass(frozen=True)
class Launch:
    """A launch of a Triton kernel, or a product of the library.

    Attributes:
        name: "linear_kernel", or "library product".
        programs: number of blocks; 0 where the library chooses it.
        arguments: by name, tensors and numbers.
        kernel: Triton's function; None for the library.
        num_warps, num_stages: of a Triton launch.
    """

    name: str
    programs: int
    arguments: dict[str, Any]
    kernel: Any = None
    num_warps: int = 4
    num_stages: int = 3

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """The arguments in memory, by name; those of tensor descriptors are what they describe."""
        bases = {name: getattr(value, "base", value) for name, value in self.arguments.items()}
        return {name: value for name, value in bases.items() if isinstance(value, torch.Tensor)}

    @property
    def case(self) -> Case:
        """What Triton compiles for it, with the alignments of these arguments."""
        from triton.tools.tensor_descriptor import TensorDescriptor

        signature, constants, unaligned = {}, {}, []
        for parameter in self.kernel.params:
            name, value = parameter.name, self.arguments[parameter.name]
            if parameter.is_constexpr or value is None:
                constants[name] = value
            elif isinstance(value, TensorDescriptor):
                kind = _TYPES[value.base.dtype].lstrip("*")
                signature[name] = f"tensordesc<{kind}[{','.join(map(str, value.block_shape))}]>"
            elif isinstance(value, torch.Tensor):
                signature[name] = _TYPES[value.dtype]
                if value.storage_offset() * value.element_size() % 16:
                    unaligned.append(name)
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif value == 1 and not parameter.do_not_specialize:
                constants[name] = 1
            else:
                signature[name] = "i32"
                if value % 16:
                    unaligned.append(name)
        return Case(self.kernel, signature, constants, self.num_warps, self.num_stages, unaligned=tuple(unaligned))


@dataclass
class _Recorder(TorchFunctionMode):
    launches: list[Launch] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in _PRODUCTS | _ADDING_PRODUCTS:
            added, x, w = args[:3] if name in _ADDING_PRODUCTS else (None, *args[:2])
            self.launches.append(Launch("library product", 0, {"x": x, "w": w, "out": out, "added": added}))
        return out

    def triton(self, kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names = [parameter.name for parameter in kernel.params]
        given = dict(zip(names, args)) | {name: kwargs[name] for name in names if name in kwargs}
        defaults = {p.name: p.default for p in kernel.params if p.has_default}
        blocks = 1
        for axis in grid:
            blocks *= axis
        options = {name: kwargs[name] for name in ("num_warps", "num_stages") if name in kwargs}
        self.launches.append(Launch(kernel.__name__, blocks, defaults | given, kernel, **options))


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """The list of launches of the code inside, which runs nothing. Not for code that torch.compile traces."""
    from triton.runtime.jit import JITFunction

    recorder = _Recorder()

    def run(kernel: Any, *args: Any, **kwargs: Any) -> None:
        recorder.triton(kernel, *args, **kwargs)

    with mock.patch.object(JITFunction, "run", run), recorder:
        yield recorder.launches
