import pytest
from conformance import INSTRUCTION_SETS

from hrm_kernels import native, packing


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


@pytest.fixture(params=INSTRUCTION_SETS)
def instruction_set(request):
    """Run the CPU kernels of one instruction set, or skip where the machine lacks it; None: any."""
    if request.param is None:
        yield
        return
    library = native.load("cpu").module
    try:
        library.use_instruction_set(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    packing._entries.clear()  # another set, another order of the weights
    yield request.param
    library.use_instruction_set("")
    packing._entries.clear()
