"""The ops, a package each: specification, public function, reference, kernels."""

from importlib import import_module
from pkgutil import iter_modules

from hrm_kernels import backends
from hrm_kernels.spec import OpSpec


def specs() -> dict[str, OpSpec]:
    """The specification of every op by name: schema, sample arguments, oracle, cost."""
    for package in iter_modules(__path__):
        import_module(f"{__name__}.{package.name}")
    return {name: op.spec for name, op in sorted(backends._ops.items())}
