"""Triton's interpreter: the process that it needs, and how it becomes quick enough for tests."""

import contextlib
import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def assert_tests_pass(path):
    """Run a file of tests in a process in which Triton interprets its kernels.

    The interpreter must be chosen before Triton is first imported. Annotations go unchecked there:
    the Python around the kernels is checked where they are compiled.
    """
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", path, "-q", "-x", "-p", "no:cacheprovider"),
            *("--override-ini", "addopts=--strict-markers"),
        ],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@contextlib.contextmanager
def quick():
    """Spare the interpreter what takes most of its time."""
    from triton.runtime import interpreter

    patch_language, patched = interpreter._patch_lang, set()

    def patch_once(function):
        # It replaces the language's functions at every call of one kernel by another.
        if function.__module__ not in patched:
            patched.add(function.__module__)
            patch_language(function)
        return SimpleNamespace(restore=lambda: None)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_patch_lang", patch_once)
        with overflows_checked(False):
            yield


@contextlib.contextmanager
def overflows_checked(wanted):
    """Choose whether integers are added and multiplied a second time with 64 bits."""
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    before = builder.options
    builder.options = dataclasses.replace(before, sanitize_overflow=wanted)
    yield
    builder.options = before
