"""Arrays of any kind: their namespace, the checks of arguments, a square root safe at zero.

The geometry core is written once against the Python array API standard; NumPy, PyTorch, CuPy and
JAX arrays come in and the same kind goes out.
"""

import contextlib
import math
import operator
import reprlib
import sys
from collections.abc import Iterator
from numbers import Real
from typing import Any

import array_api_compat

#: Any array that speaks the array API standard (directly, or through ``array_api_compat``).
Array = Any


def namespace(*arrays: Array) -> Any:
    """Return the namespace that all ``arrays`` share; a TypeError if their kinds differ."""
    if _is_compiling():
        import array_api_compat.torch as torch_namespace

        return torch_namespace
    for array in arrays:
        _check_array("", array)
    try:
        return array_api_compat.array_namespace(*arrays)
    except TypeError as error:
        kinds = ", ".join(sorted({_kind(a) for a in arrays}))
        raise TypeError(f"all arrays must be of one kind, got {kinds}") from error


def _is_compiling() -> bool:
    """Return whether torch.compile is tracing: then all arrays are its tensors.

    It cannot look through the caches of array_api_compat without a warning for each.
    """
    torch = sys.modules.get("torch")
    return torch is not None and torch.compiler.is_compiling()


def _check_array(label: str, x: object) -> None:
    if not (_is_compiling() or array_api_compat.is_array_api_obj(x)):
        raise TypeError(
            f"{label}expected an array (NumPy, PyTorch, CuPy, JAX, ...), got {type(x).__name__}; "
            "convert it first, for example with numpy.asarray(..., dtype=float)"
        )


def check_floating(**arrays: Array) -> Any:
    """Return the shared namespace of the named ``arrays``; a TypeError if one is no real float."""
    for name, array in arrays.items():
        _check_array(f"{name}: ", array)
    xp = namespace(*arrays.values())
    for name, array in arrays.items():
        if not _is_real_floating(xp, array.dtype):
            raise TypeError(
                f"{name}: expected a real floating-point dtype, got {array.dtype}; convert it "
                "explicitly, so that no precision is lost in silence"
            )
    return xp


def _is_real_floating(xp: Any, dtype: Any) -> bool:
    if getattr(dtype, "is_floating_point", False):  # torch, its bfloat16 and float16 included
        return True
    return xp.isdtype(dtype, "real floating") or str(dtype) in ("float16", "bfloat16")


def check_vectors(name: str, v: Array, dim: int, like: Array | None = None) -> Any:
    """Return the namespace of vectors ``v``, of shape ``(..., dim)`` and the kind of ``like``."""
    xp = check_floating(**{name: v})
    if v.ndim == 0 or v.shape[-1] != dim:
        raise ValueError(
            f"{name}: expected vectors of {dim} components on the last axis, shape (..., {dim}), "
            f"got shape {tuple(v.shape)}"
        )
    if like is not None and xp is not namespace(like):
        raise TypeError(
            f"{name}: expected the kind of array that the metric holds, {_kind(like)}, got "
            f"{_kind(v)}"
        )
    return xp


def _kind(array: Array) -> str:
    return f"{type(array).__module__}.{type(array).__name__}"


def check_matrices(name: str, matrix: Array) -> Any:
    """Return the namespace of the square matrices ``matrix`` of shape ``(..., d, d)``."""
    xp = check_floating(**{name: matrix})
    shape = tuple(matrix.shape)
    if len(shape) < 2 or shape[-1] != shape[-2] or shape[-1] == 0:
        raise ValueError(
            f"{name}: expected square matrices on the last two axes, shape (..., d, d), got "
            f"shape {shape}"
        )
    return xp


def is_number(value: Any) -> bool:
    """Return whether ``value`` is one real number: Python's, NumPy's, or an array without axes.

    Booleans do not count, nor do tensors that require a gradient, which would be lost.
    """
    if isinstance(value, Real):
        return not isinstance(value, bool)
    # Lists are none either; torch.compile cannot look through the caches of array_api_compat.
    if isinstance(value, list | tuple):
        return False
    if not array_api_compat.is_array_api_obj(value) or getattr(value, "requires_grad", False):
        return False
    xp = array_api_compat.array_namespace(value)
    return value.ndim == 0 and xp.isdtype(value.dtype, ("integral", "real floating"))


def is_integer(value: Any) -> bool:
    """Return whether ``value`` is one integer: anything with ``__index__`` except a boolean."""
    try:
        return is_number(value) and operator.index(value) is not None
    except TypeError:  # a number with a fraction
        return False


def shown(value: Any) -> str:
    """Return a wrong argument as an error shows it: short, an array by its shape."""
    if array_api_compat.is_array_api_obj(value) and value.ndim > 0:
        return f"an array of shape {tuple(value.shape)}"
    return reprlib.repr(value) if isinstance(value, list | tuple) else repr(value)


def as_integer(name: str, value: Any, least: int = 1) -> int:
    """Return an argument that is one integer of at least ``least``, of any kind, as an ``int``."""
    if not is_integer(value) or operator.index(value) < least:
        wanted = "a positive integer" if least == 1 else f"an integer of at least {least}"
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")
    return operator.index(value)


def as_number(name: str, value: Any, above: float = -math.inf) -> float:
    """Return an argument that is one finite number above ``above``, of any kind, as a ``float``."""
    number = float(value) if is_number(value) else math.nan
    if not (math.isfinite(number) and number > above):
        wanted = "positive" if above == 0 else "finite"
        raise ValueError(f"{name}: expected a {wanted} number, got {shown(value)}")
    return number


def first_index(mask: Array) -> tuple[int, ...]:
    """Return the index of the first true element (row-major) of ``mask``, which has one."""
    xp = namespace(mask)
    flat = xp.reshape(xp.astype(mask, xp.int8), (-1,))
    position = int(xp.argmax(flat))
    index = []
    for length in reversed(tuple(mask.shape)):
        index.append(position % length)
        position //= length
    return tuple(reversed(index))


def safe_sqrt(x: Array) -> Array:
    """Return ``sqrt(max(x, 0))`` with derivative 0, not infinity, where ``x <= 0``; NaN stays."""
    xp = namespace(x)
    flat = x <= 0
    return xp.where(flat, xp.zeros_like(x), xp.sqrt(xp.where(flat, xp.ones_like(x), x)))


def scaled(v: Array) -> tuple[Array, Array, Array]:
    """Return vectors divided by their sizes, the sizes ``(..., 1)``, and which count as zero.

    For functions that are homogeneous in a vector: the squares of the quotient's components neither
    underflow nor overflow. The size is the largest component; it carries no gradient, since by
    homogeneity the result does not depend on it. Vectors so small that their quotients would lose
    digits count as zero: they come back as 0, of size 1.
    """
    xp = namespace(v)
    info = xp.finfo(v.dtype)
    size = xp.max(xp.abs(detached(v)), axis=-1, keepdims=True)
    still = size < info.smallest_normal / info.eps
    size = xp.where(still, xp.ones_like(size), size)
    return xp.where(still, xp.zeros_like(v), v) / size, size, still


def check_nonzero(name: str, v: Array) -> None:
    """Raise a ValueError that names the first zero vector of ``v``, if there is one."""
    xp = namespace(v)
    zero = xp.all(v == 0, axis=-1)
    if bool(xp.any(zero)):
        where = first_index(zero)
        raise ValueError(
            f"{name}: expected non-zero vectors, got zero" + (f" at index {where}" if where else "")
        )


def constant_like(values: Array, like: Array) -> Array:
    """Return the NumPy array ``values`` as the kind, device and dtype of ``like``."""
    xp = namespace(like)
    return xp.asarray(values, dtype=like.dtype, device=array_api_compat.device(like))


def identity_like(d: int, like: Array) -> Array:
    """Return the ``d x d`` identity matrix as the kind, device and dtype of ``like``."""
    # NumPy's arrays know their device since NumPy 2 only.
    device = getattr(like, "device", None)
    return namespace(like).eye(d, dtype=like.dtype, device=device)


def has_values(x: Array) -> bool:
    """Return whether ``x`` has values: tensors on PyTorch's meta device have only shapes."""
    return not getattr(x, "is_meta", False)


def detached(x: Array) -> Array:
    """Return ``x`` without its gradient history, for arrays that have one."""
    return x.detach() if hasattr(x, "detach") else x


@contextlib.contextmanager
def no_gradient() -> Iterator[None]:
    """Keep PyTorch, if it is loaded, from recording what happens inside."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
    else:
        with torch.no_grad():
            yield
