import pytest
import torch


@pytest.fixture
def poisoned(monkeypatch):
    """New tensors hold NaN (integers -7), so that what a kernel leaves unwritten shows."""

    def poison(make):
        def made(*arguments, **options):
            out = make(*arguments, **options)
            return out.fill_(float("nan") if out.is_floating_point() else -7)

        return made

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(autouse=True, scope="session")
def numpy_scalars():
    """NumPy 2.4 makes no number of an array of one element; the interpreter of Triton 3.6 does, for bounds of loops."""
    try:
        from triton.runtime import interpreter
    except ImportError:
        yield
        return
    with pytest.MonkeyPatch.context() as patch:
        original = interpreter._patch_lang_tensor

        def patched(tensor, scope):
            original(tensor, scope)
            scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

        patch.setattr(interpreter, "_patch_lang_tensor", patched)
        yield
