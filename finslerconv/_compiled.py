"""Compiled functions whose machine code is kept on disk from one process to the next.

Numba's own cache checks only the file of the function itself: after an edit of a file that it
imports, the old machine code still runs. Its errors reach the caller, and two processes that fill
it at once can swap entries. Here every entry is a file of its own, named after all its sources. An
entry that cannot be read or written costs a compilation, nothing more.
"""

import ast
import contextlib
import hashlib
import importlib.util
import inspect
import pickle
import sys
import uuid
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, no_type_check

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.core.caching import FunctionCache
from numba.core.serialize import dumps

from finslerconv._progress import waiting

_warned = False


def compile_and_keep(function: Callable[..., Any], **options: Any) -> Any:
    """Compile a kernel that Python calls with ``numba.njit``, and keep its machine code on disk.

    The folder is ``NUMBA_CACHE_DIR`` if set, else beside the function's file or in the user's
    cache. If none can be written, a warning says so once a process.
    """
    compiled = _compile(function, **options)
    if numba.config.DISABLE_JIT:
        return compiled
    try:
        compiled._cache = _Kept(compiled.py_func)
    except (RuntimeError, OSError) as error:  # there is no place to keep it
        _warn_not_kept(error)
    compiled._compiler.compile = _told(compiled._compiler.compile, function.__name__)
    return compiled


def _told(method: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Return the method that compiles, but that it says so where it takes long."""

    def told(*arguments: Any) -> Any:
        with waiting(f"compiling {name}", "compiling for this processor, once on this machine"):
            return method(*arguments)

    return told


#: Options of kernels without fused multiply-adds.
UNFUSED: dict[str, Any] = {"nogil": True, "error_model": "numpy"}

#: Options of the other kernels.
OPTIONS: dict[str, Any] = {**UNFUSED, "fastmath": {"contract"}}


def _compile(function: Callable[..., Any], **options: Any) -> Any:
    # A run-time check of annotations wraps every function; Numba needs the function itself.
    function = inspect.unwrap(function)
    if "<locals>" in function.__qualname__:
        # Functions that a factory makes have one name, and machine code from disk is linked by
        # names: a kernel could get another one of them.
        made = f"{function.__module__}.{function.__qualname__}"
        _made[made] += 1
        function.__qualname__ += str(_made[made])
    return numba.njit(**options)(function)


_made: Counter[str] = Counter()


#: Decorates the parts of a kernel: no lock, no error for a division by zero, fused multiply-adds.
jit: Any = partial(_compile, **OPTIONS)

#: The same for what is to become a part of each caller's loop, however long it is.
inlined: Any = partial(jit, forceinline=True)

#: Decorates a kernel that Python calls, with the options of its parts.
entry: Any = partial(compile_and_keep, **OPTIONS)

#: The same without fused multiply-adds, for kernels whose results must not depend on the order of
#: the axes.
jit_unfused: Any = partial(_compile, **UNFUSED)
inlined_unfused: Any = partial(jit_unfused, forceinline=True)
entry_unfused: Any = partial(compile_and_keep, **UNFUSED)


@inlined
@no_type_check
def put(row, values):
    """Write values to an array of one axis, one by one.

    An assignment of arrays brings Numba's checks of shapes along, which take seconds to compile.
    """
    for i in range(len(row)):
        row[i] = values[i]


class _Kept(FunctionCache):  # type: ignore[misc]
    """Numba's cache of one function, with files of its own and no errors of its own."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        module = sys.modules[function.__module__]
        self._cache_file = _Entries(
            Path(self.cache_path), f"{module.__name__}.{function.__name__}", _sources(module)
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        # A file that was cut short or damaged can raise anything while it is unpickled.
        with contextlib.suppress(Exception):
            return super().load_overload(sig, target_context)
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except OSError as error:  # the disk is full, the folder is gone or read-only
            _warn_not_kept(error)


class _Entries:
    """Machine code by its key, a file each: takes the place of Numba's index of a function."""

    def __init__(self, folder: Path, name: str, sources: str) -> None:
        self._folder = folder
        self._name = f"{name}.{sys.implementation.cache_tag}"
        versions = (numba.__version__, llvmlite.__version__, np.__version__)
        self._stamp = _digest(repr((sources, versions)))

    def load(self, key: Any) -> Any:
        try:
            data = self._path(key).read_bytes()
        except OSError:
            return None
        kept, code = pickle.loads(data)
        return code if kept == key else None

    def save(self, key: Any, code: Any) -> None:
        # Written aside and renamed, so that no other process sees a part of it.
        aside = self._folder / f"{self._name}.{uuid.uuid4().hex}.tmp"
        try:
            aside.write_bytes(dumps((key, code)))
            aside.replace(self._path(key))
        finally:
            aside.unlink(missing_ok=True)
        for path in self._folder.glob(f"{self._name}.*.nbc"):
            if self._stamp not in path.name:  # of other sources or versions
                with contextlib.suppress(OSError):
                    path.unlink()

    def flush(self) -> None:
        for path in self._folder.glob(f"{self._name}.*.nbc"):
            path.unlink()

    def _path(self, key: Any) -> Path:
        # The key names signature, processor and byte code.
        return self._folder / f"{self._name}.{self._stamp}.{_digest(repr(key) + _host())}.nbc"


def _warn_not_kept(error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            "compiled kernels cannot be kept on disk, so every process compiles them anew (some "
            "seconds each); set NUMBA_CACHE_DIR to a folder that may be written and has room "
            f"({error})",
            stacklevel=3,
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@cache
def _host() -> str:
    """Return what kernels may ask of the processor, beyond what Numba compiles for."""
    return repr((llvm.get_host_cpu_name(), sorted(llvm.get_host_cpu_features().items())))


def _sources(module: Any) -> str:
    """Return a digest of a module's source and of all that it imports from its own package."""
    package = module.__name__.partition(".")[0]
    todo, seen = [Path(module.__file__)], set()
    total = hashlib.sha256(Path(__file__).read_bytes())
    while todo:
        path = todo.pop()
        if path not in seen:
            seen.add(path)
            digest, imports = _read(path, package)
            total.update(digest)
            todo += imports
    return total.hexdigest()


@cache
def _read(path: Path, package: str) -> tuple[bytes, list[Path]]:
    """Return the digest of a source, and the files that it imports from ``package``."""
    source = path.read_bytes()
    return hashlib.sha256(source).digest(), sorted(set(_imports(source, package)))


def _imports(source: bytes, package: str) -> Iterator[Path]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [(node.module or "", alias.name) for alias in node.names]
        else:
            continue
        for name, attribute in names:
            if name.partition(".")[0] == package:
                yield from _files(name, attribute)


@cache
def _files(name: str, attribute: str) -> list[Path]:
    """Return the file of the module ``name.attribute``, or else of ``name``."""
    spec = importlib.util.find_spec(name)
    if attribute and spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.{attribute}") or spec
    return [] if spec is None or spec.origin is None else [Path(spec.origin)]
