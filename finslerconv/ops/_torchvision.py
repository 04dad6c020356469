"""torchvision's ``deform_conv2d`` computed by this library, for models that call it."""

import inspect
from importlib import import_module
from types import CodeType, FunctionType, TracebackType
from typing import Any, no_type_check

from torch import Tensor

from finslerconv._tracing import recorded
from finslerconv.ops._functions import deform_conv2d
from finslerconv.ops._process_choice import ProcessChoice
from finslerconv.ops.backends import has_backend

# torchvision's function, and the code that it had when it was first replaced.
_function: Any = None
_code: CodeType | None = None


class replace_torchvision(ProcessChoice):  # noqa: N801 - used as a function and as a context manager
    """Compute ``torchvision.ops.deform_conv2d`` by :func:`deform_conv2d`, for every caller.

    Models that call it, and torchvision's ``DeformConv2d``, are as fast as with this library's own
    layers, and their parameters stay where they are. It holds from now on or within a ``with``
    block, for the whole process and all threads; blocks may be nested, and end in any order.

    The function itself stays the same object and gets another body. So it is replaced under every
    name that Python code has for it: also where it was imported before
    (``from torchvision.ops import deform_conv2d``), in closures, partial functions and subclasses.
    Not reached are programs that no longer call the Python function: of ``torch.jit.script`` and
    ``torch.export`` if made before, and code that calls ``torch.ops.torchvision.deform_conv2d``.
    ``torch.jit.script`` cannot read the new body: script before. Backward passes keep to the
    operator of their forward pass. On devices that have no backend of this library torchvision's
    operator goes on.

    Raises
    ------
    ImportError
        If torchvision is not installed, or cannot be imported.

    Examples
    --------
    >>> from finslerconv import ops
    >>> with ops.replace_torchvision():  # doctest: +SKIP
    ...     model(images)
    >>> replacement = ops.replace_torchvision()  # from now on  # doctest: +SKIP
    >>> replacement.restore()  # doctest: +SKIP
    """

    def __init__(self) -> None:
        global _function, _code
        try:
            module = import_module("torchvision.ops.deform_conv")
        except (ImportError, RuntimeError) as error:
            raise ImportError(
                f"replace_torchvision: torchvision cannot be imported ({error}); install it for "
                "this version of PyTorch: pip install torchvision"
            ) from error
        if _function is not module.deform_conv2d:
            _function, _code = module.deform_conv2d, module.deform_conv2d.__code__
        self._choose()

    def restore(self) -> None:
        """End this replacement; torchvision's own function is back when all have ended."""
        if self in self._in_force:
            super().__exit__(None, None, None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.restore()

    def _changed(self) -> None:
        # Calls that run keep the body with which they began.
        _function.__code__ = inspect.unwrap(_body).__code__ if self._in_force else _code


@no_type_check
def _body(
    input, offset, weight, bias=None, stride=(1, 1), padding=(0, 0), dilation=(1, 1), mask=None
):
    # It runs among torchvision's names, not those of this module.
    from finslerconv.ops._torchvision import convolve

    return convolve(input, offset, weight, bias, stride, padding, dilation, mask)


@recorded
def convolve(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    mask: Tensor | None,
) -> Tensor:
    """Return the convolution by this library where it has a backend, else by torchvision."""
    if has_backend(input.device.type):
        return deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)
    assert _code is not None
    theirs = FunctionType(_code, _function.__globals__)
    return theirs(input, offset, weight, bias, stride, padding, dilation, mask)
