"""Replace the forward of modules that the ops can compute, in models of other projects."""

from dataclasses import dataclass, field

import torch
from torch import nn

import hrm_kernels.nn
from hrm_kernels.backends import NAMES, BackendUnavailable, available_backends
from hrm_kernels.integrations.forward import OPS
from hrm_kernels.integrations.near_misses import is_linear
from hrm_kernels.integrations.probe import Probe
from hrm_kernels.integrations.replacement import is_replaced, keep_reason, replace, replace_linear, restore
from hrm_kernels.integrations.structure import Unfit, recognise

_OP_MODULES = tuple(getattr(hrm_kernels.nn, name) for name in hrm_kernels.nn.__all__ if name[0].isupper())


@dataclass(frozen=True)
class PatchReport:
    """What :func:`hrm_kernels.patch` did to a model; ``print(report)`` shows it.

    Attributes:
        replaced: names of modules in the model, and the ops that compute them now. Modules inside them are not listed.
        kept: names of modules that resemble an op, and the reasons why they stay: what they look like, what does not
            fit, and what to change.
    """

    replaced: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{name or '(the model)'}: {ops}" for name, ops in self.replaced.items()]
        lines += [f"{name or '(the model)'}: unchanged: {reason}" for name, reason in self.kept.items()]
        return "\n".join(lines) or "no module of this model resembles an op"


def patch(model: nn.Module, backend: str | None = None) -> PatchReport:
    """Let the ops compute all modules of ``model`` that they can: one line for a model of another project.

    ``patch`` recognises whole reasoning modules, else whole post-norm blocks, else attention, SwiGLU and layers that
    cast their weight, by structure and by parameter names: those of the published HRM, TRM, EqR and URM code. It tries
    each candidate on a copy first: short and long inputs, small and large states, training and evaluation. It replaces
    the module only if output and gradients agree. The first call of each kind (shapes, dtypes, device, modes) is
    compared too: both forwards run on a copy. If they differ, a warning says so, and the module's original forward
    computes this call and all later ones. The comparison changes no random numbers, gradients or buffers. Values cannot
    be compared under ``torch.compile`` or in the capture of a CUDA graph: run the model once before.

    Parameters, state dict, ``.to(...)``, ``torch.compile`` and DistributedDataParallel work as before. A module with
    hooks, or with inner modules that have hooks, stays unchanged. If hooks, adapters or parametrizations are added
    inside a replaced module later, its original forward runs. It also runs for calls with arguments that the ops do not
    know (masks, caches), under autocast, and in transforms (``torch.func``, forward mode).

    Args:
        model: changed in place, only in the ``forward`` of instances. Weights must be in memory (not on ``meta``).
        backend: run the replaced modules on this backend, and try them on it; a call that it cannot serve raises. None
            selects a backend at each call, by the device of the tensors.

    Returns:
        The replaced modules, and the others with the reasons.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: no backend has that name.
        BackendUnavailable: this machine does not have the backend.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"patch: model: got {type(model).__name__}, expected a torch.nn.Module")
    if backend is not None:
        if backend not in NAMES:
            raise ValueError(f"patch: got backend {backend!r}, expected one of {', '.join(NAMES)}")
        reason = available_backends()[backend]
        if reason is not None:
            raise BackendUnavailable(f"patch: backend {backend!r} is not available: {reason}")
    device = next((parameter.device for parameter in model.parameters()), torch.get_default_device())
    patching = _Patching(Probe(backend, device))
    patching.visit(model, "")
    return patching.report


def unpatch(model: nn.Module) -> int:
    """Restore the original ``forward`` of all modules in ``model`` that :func:`patch` replaced. Returns the count."""
    return sum(restore(module) for module in model.modules())


@dataclass
class _Patching:
    """The patch of one model; a module that occurs twice in it is visited once."""

    probe: Probe
    report: PatchReport = field(default_factory=PatchReport)
    seen: set[nn.Module] = field(default_factory=set)

    def visit(self, module: nn.Module, name: str, outer_reason: str = "") -> None:
        """Replace ``module``, or else its children.

        Args:
            outer_reason: why the outer module was kept; linear layers that it names are not reported again.
        """
        if module in self.seen:
            return
        self.seen.add(module)
        kept = self.report.kept
        if isinstance(module, _OP_MODULES):
            if next(module.parameters(), None) is not None:
                kept[name] = "it already uses the ops"
            return
        if is_replaced(module):
            kept[name] = "it is already patched; call unpatch first to patch it again"
            return
        try:
            part = recognise(module)
            if part is not None:
                exact = part.kind == "bfloat16_linear"
                reason = keep_reason(module) or (None if exact else self.probe.difference(module, part))
                if reason is None:
                    if isinstance(module, nn.Linear) and exact:
                        replace_linear(module, part)
                    else:
                        replace(module, part, self.probe.backend, name)
                    self.report.replaced[name] = OPS[part.kind]
                    self.seen.update(module.modules())
                    return
                kept[name] = reason
        except Unfit as unfit:
            if not (is_linear(module) and name.rpartition(".")[2] in outer_reason):
                kept[name] = str(unfit)
        for child_name, child in module.named_children():
            self.visit(child, f"{name}.{child_name}" if name else child_name, kept.get(name, ""))
