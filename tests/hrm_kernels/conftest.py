import pytest


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
