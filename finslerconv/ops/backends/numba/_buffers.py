"""Buffers of the compiled CPU kernels, and what is fetched into the caches before it is read."""

from typing import no_type_check

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from finslerconv._compiled import jit
from finslerconv.ops.backends.numba import _vectors as vec

_CACHE_LINE = 64


@jit
@no_type_check
def rounded(n, step):
    return (n + step - 1) // step * step


@jit
@no_type_check
def aligned(count, kind):
    """Return an empty array that begins with a line of the cache, so that vectors cross none."""
    array = np.empty(count + 16, kind)
    skip = (64 - array.ctypes.data % 64) // array.itemsize
    return array[skip : skip + count]


@intrinsic
@no_type_check
def _prefetch_line(typing, array, at):
    """Prefetch the line of the cache with the number at ``at``, which need not exist."""
    signature = types.void(array, at)

    @no_type_check
    def codegen(context, builder, signature, arguments):
        array, at = arguments
        int32 = ir.IntType(32)
        element = context.get_value_type(signature.args[0].dtype)
        array = vec.data(context, builder, signature.args[0], array)
        byte = ir.IntType(8).as_pointer()
        pointer = builder.bitcast(vec.at(builder, array, at, element), byte)
        function = cgutils.get_or_insert_function(
            builder.module,
            ir.FunctionType(ir.VoidType(), [byte, int32, int32, int32]),
            "llvm.prefetch.p0i8",
        )
        # To read data, into the nearest cache.
        builder.call(function, [pointer, *(ir.Constant(int32, how) for how in (0, 3, 1))])
        return context.get_dummy_value()

    return signature, codegen


@jit
@no_type_check
def prefetch(array, at, count):
    """Prefetch ``count`` numbers, which need not exist."""
    line = _CACHE_LINE // array.itemsize
    for i in range(0, count + line - 1, line):
        _prefetch_line(array, at + i)
