"""Compiled functions whose machine code is kept on disk from one process to the next."""

from collections.abc import Callable
from typing import Any

import numba


def compile_and_keep(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a kernel that Python calls, and keep its machine code where one may write.

    Parameters
    ----------
    function : callable
    **options
        Those of ``numba.njit``.
    """
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to keep it: compile in every process
        return numba.njit(**options)(function)
