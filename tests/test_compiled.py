"""Machine code is kept for the sources it was made of; a cache that fails costs no result."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

_ENTRY = """
from functools import partial
from finslerconv._compiled import compile_and_keep
from kernels import helper
from kernels.helper import FACTOR

@partial(compile_and_keep, nogil=True)
def scaled(x):
    return FACTOR * helper.twice(x)
"""

_HELPER = """
import numba
FACTOR = {factor}

@numba.njit
def twice(x):
    return {twice} * x
"""

_RUN = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from kernels.entry import scaled
    value = scaled(1.0) + scaled(1)
hits = sum(scaled.stats.cache_hits.values())
print(json.dumps([value, hits, [str(w.message) for w in caught]]))
"""


@pytest.fixture
def package(tmp_path):
    """Return a package of one kernel, which takes a constant and a function from another file."""
    folder = tmp_path / "kernels"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "entry.py").write_text(_ENTRY)
    _write_helper(folder)
    return folder


def _write_helper(package, factor=3, twice=2):
    (package / "helper.py").write_text(_HELPER.format(factor=factor, twice=twice))


def _run(package, **environment):
    """Return the kernel's value for 1.0 and 1, added up, the signatures read, and warnings."""
    root = Path(__file__).parents[1]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{package.parent}:{root}",
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    environment.setdefault("NUMBA_CACHE_DIR", "")
    done = subprocess.run(
        [sys.executable, "-c", _RUN], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    value, hits, warned = json.loads(done.stdout)
    return value, hits, [message[:34] for message in warned]


def _entries(package):
    return sorted((package / "__pycache__").glob("*.nbc"))


@pytest.mark.slow
def test_machine_code_is_read_until_a_source_or_the_code_itself_changes(package):
    assert _run(package) == (12.0, 0, [])
    assert len(_entries(package)) == 2  # one for each signature
    assert _run(package) == (12.0, 2, [])
    _write_helper(package, factor=5)
    assert _run(package) == (20.0, 0, [])
    assert len(_entries(package)) == 2  # what the old sources gave is gone
    _write_helper(package, factor=5, twice=4)
    assert _run(package) == (40.0, 0, [])
    assert len(_entries(package)) == 2
    assert _run(package) == (40.0, 2, [])
    for path, size in zip(_entries(package), (0, 1000), strict=True):
        path.write_bytes(path.read_bytes()[:size])
    assert _run(package) == (40.0, 0, [])
    assert _run(package) == (40.0, 2, [])


@pytest.mark.slow
def test_one_warning_where_nothing_can_be_kept(package, tmp_path):
    # A file where a folder would be made, beside the kernel and at home.
    (package / "__pycache__").touch()
    nowhere = tmp_path / "home"
    nowhere.touch()
    places = {"HOME": str(nowhere), "XDG_CACHE_HOME": str(nowhere)}
    assert _run(package, **places) == (12.0, 0, ["compiled kernels cannot be kept on"])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_one_warning_on_a_full_disk(package, tmp_path):
    """The folder may be made, but what is written into it comes back as an error."""
    (tmp_path / "sitecustomize.py").write_text(
        "from pathlib import Path\n"
        "plain = Path.write_bytes\n"
        "def full(self, data):\n"
        "    target = Path('/dev/full') if self.suffix == '.tmp' else self\n"
        "    return plain(target, data)\n"
        "Path.write_bytes = full\n"
    )
    assert _run(package) == (12.0, 0, ["compiled kernels cannot be kept on"])
    assert _entries(package) == []


@pytest.mark.slow
def test_processes_that_start_at_once_agree(package):
    command = [sys.executable, "-c", _RUN]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{package.parent}:{Path(__file__).parents[1]}",
        "NUMBA_CACHE_DIR": "",
    }
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    outputs = [json.loads(process.communicate()[0]) for process in processes]
    assert [value for value, *_ in outputs] == [12.0] * 3
    assert _run(package) == (12.0, 2, [])


@pytest.mark.slow
def test_compiled_functions_have_names_of_their_own():
    """Machine code from disk is linked by names: equal names would mix functions up."""
    import finslerconv.geodesics
    import finslerconv.ops.backends.numba  # noqa: F401

    functions = {
        id(made.py_func): f"{made.py_func.__module__}.{made.py_func.__qualname__}"
        for made in gc.get_objects()
        if issubclass(type(made), Dispatcher) and made.py_func.__module__.startswith("finslerconv.")
    }
    # Types alone decide which function numba.extending.overload returns, and they are in its name.
    names = sorted(name for name in functions.values() if not name.endswith("<lambda>"))
    assert any("<locals>" in name for name in names)
    assert names == sorted(set(names))
