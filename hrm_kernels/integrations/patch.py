"""Replace the forward of modules that our ops can compute, in models of other projects."""

from dataclasses import dataclass, field

from torch import nn

import hrm_kernels.nn
from hrm_kernels.backends import NAMES, BackendUnavailable, available_backends
from hrm_kernels.integrations.forward import OPS
from hrm_kernels.integrations.near_misses import is_linear
from hrm_kernels.integrations.probe import difference
from hrm_kernels.integrations.replacement import is_replaced, left_alone, replace, restore
from hrm_kernels.integrations.structure import Unfit, recognise

_OURS = tuple(getattr(hrm_kernels.nn, name) for name in hrm_kernels.nn.__all__ if name[0].isupper())


@dataclass(frozen=True)
class PatchReport:
    """What :func:`hrm_kernels.patch` did to a model; ``print(report)`` shows it.

    Attributes:
        replaced: names of modules in the model, and the ops that compute them now. What lies inside is not listed.
        kept: names of modules that look as if the ops could compute them, and the reasons why they do not: what they
            look like, what does not fit, and what would.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {ops}" for name, ops in self.replaced.items()]
        lines += [f"{name or '(the model)'}: left as it is: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines) or "nothing in this model looks like what the ops compute"


def patch(model: nn.Module, backend: str | None = None) -> PatchReport:
    """Let our ops compute the modules of ``model`` that they can: one line for a model of another project.

    Whole reasoning modules, else whole post-norm blocks, else attention, SwiGLU and layers that cast their weight are
    recognised by structure and by the names of their parameters, those of the published HRM and TRM code. Each one is
    tried on a copy first: short and long, small and large states, training and evaluation. It is replaced only where
    output and gradients agree with its own. What no probe can see is found in the first call of each kind (shapes,
    dtypes, device, modes): both forwards run on a copy, and where they differ a warning says so, the module's own is
    back for good and computes the call. The comparison draws no random numbers and changes neither gradients nor
    buffers. There is none under ``torch.compile`` or in the capture of a CUDA graph: run the model once before.

    Parameters, state dict, ``.to(...)``, ``torch.compile`` and DistributedDataParallel go on as before. A module with
    hooks, or with such modules inside, is left alone. While there are hooks inside a replaced one, or adapters or
    parametrizations that came later, its own forward runs. So it does for calls with arguments beyond those that the
    ops know (masks, caches), under autocast, and in transforms (``torch.func``, forward mode).

    Args:
        model: changed in place, only in the ``forward`` of instances. Weights must be in memory (not on ``meta``).
        backend: run the replaced modules on this backend, which the trial uses too; a call it cannot serve raises. None
            chooses at each call, by the device of the tensors.

    Returns:
        What was replaced, and what was not and why.

    Raises:
        TypeError: ``model`` is no ``nn.Module``.
        ValueError: there is no backend of that name.
        BackendUnavailable: the backend is not there on this machine.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model is {type(model).__name__}, expected a torch.nn.Module")
    if backend is not None:
        if backend not in NAMES:
            raise ValueError(f"patch: there is no backend {backend!r}; expected one of {', '.join(NAMES)}")
        reason = available_backends()[backend]
        if reason is not None:
            raise BackendUnavailable(f"patch: backend {backend!r} cannot be used: {reason}")
    report = PatchReport()
    _visit(model, "", backend, report, set())
    return report


def unpatch(model: nn.Module) -> int:
    """Give the modules of ``model`` that :func:`patch` has changed their own ``forward`` back; how many they were."""
    return sum(restore(module) for module in model.modules())


def _visit(
    module: nn.Module, name: str, backend: str | None, report: PatchReport, seen: set[nn.Module], around: str = ""
) -> None:
    """Replace ``module``, or what lies inside it; a module that occurs twice is dealt with once.

    ``around``: why the module around it was kept; linear layers that this names are not reported again.
    """
    if module in seen:
        return
    seen.add(module)
    if isinstance(module, _OURS):
        if next(module.parameters(), None) is not None:
            report.kept[name] = "it runs on these ops already"
        return
    if is_replaced(module):
        report.kept[name] = "it was patched before; unpatch first to choose anew"
        return
    try:
        part = recognise(module)
        if part is not None:
            reason = left_alone(module) or difference(module, part, backend)
            if reason is None:
                replace(module, part, backend, name)
                report.replaced[name] = OPS[part.kind]
                seen.update(module.modules())
                return
            report.kept[name] = reason
    except Unfit as unfit:
        if not (is_linear(module) and name.rpartition(".")[2] in around):
            report.kept[name] = str(unfit)
    for child_name, child in module.named_children():
        inner = f"{name}.{child_name}" if name else child_name
        _visit(child, inner, backend, report, seen, report.kept.get(name, ""))
