"""The package as a whole: what an import loads, the layers, the public names, their examples."""

import doctest
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import finslerconv
from finslerconv import (
    balls,
    cli,
    dask,
    geodesics,
    images,
    implicit,
    metrics,
    nn,
    onnx,
    ops,
    physics,
    plotting,
    symbolic,
)

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "scipy", "sympy", "matplotlib", "skimage", "PIL", "typer", "rich", "dask")


def run(code):
    """Run ``code`` in a Python of its own and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_core_works_where_nothing_but_numpy_is_installed():
    printed = run(
        f"""
import sys
for name in {HEAVY!r}:
    sys.modules[name] = None  # an import of it raises ImportError
import numpy as np
from finslerconv.balls import Ellipse, affine, lattice, overlap, volume
from finslerconv.metrics import CallableMetric, Euclidean, Randers
metric = Randers(np.eye(2), np.array([0.0, 0.6]))
plain = CallableMetric(metric.norm)
p = np.array([1.0, 0.0])
print(metric.dual_norm(p), plain.dual_norm(p).round(12), plain.asymmetry_ratio().round(12))
print(affine(metric, lattice(3).points).shape, volume(metric).round(6), Ellipse.of(metric).axes)
print(overlap(metric, Euclidean()) < 1)
"""
    )
    # F*(1, 0) = 1 / sqrt(lambda); area pi / lambda^(3/2).
    assert printed.split("\n")[:3] == [
        "1.25 1.25 4.0",
        "(9, 2) 6.135923 [1.5625 1.25  ]",
        "True",
    ]


@pytest.mark.parametrize(
    "name", ["finslerconv", "finslerconv.metrics", "finslerconv.balls", "finslerconv.physics"]
)
def test_import_loads_nothing_heavy(name):
    loaded = run(f"import sys, {name}; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_subpackages_are_imported_on_first_use():
    assert run("import finslerconv; print(finslerconv.balls.lattice(3).name)").strip() == "lattice"
    assert set(finslerconv.__all__) <= set(dir(finslerconv))
    with pytest.raises(AttributeError, match="module 'finslerconv' has no attribute 'ball'"):
        _ = finslerconv.ball


def test_the_layers_hold():
    lint_imports = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run(
        [lint_imports, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr


PACKAGES = [
    metrics,
    balls,
    symbolic,
    geodesics,
    images,
    physics,
    ops,
    onnx,
    nn,
    implicit,
    dask,
    plotting,
    cli,
]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda p: p.__name__)
def test_public_names_exist_and_are_documented(package):
    assert inspect.getdoc(package)
    for name in package.__all__:
        thing = getattr(package, name)
        if inspect.isclass(thing):
            assert inspect.getdoc(thing), name
            for member, value in vars(thing).items():
                if not member.startswith("_") and (callable(value) or isinstance(value, property)):
                    assert inspect.getdoc(getattr(thing, member)), f"{name}.{member}"
        elif inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
    public = {
        name
        for name, value in vars(package).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(package.__all__)


# Those whose examples train, or compile many kernels.
SLOW = (
    "finslerconv._doctor",
    "finslerconv.geodesics._paths",
    "finslerconv.geodesics.flow._jacobi",
    "finslerconv.geodesics.flow._logarithm",
    "finslerconv.nn._aggregation",
    "finslerconv.nn._metric_conv",
)

# The Triton kernels can only be imported where Triton is installed; they have no examples.
MODULES = [
    pytest.param(
        importlib.import_module(module.name),
        id=module.name,
        marks=[pytest.mark.slow] if module.name in SLOW else [],
    )
    for module in pkgutil.walk_packages(finslerconv.__path__, "finslerconv.")
    if "_triton" not in module.name
]


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_the_docstrings(module):
    assert inspect.getdoc(module)
    try:
        assert doctest.testmod(module).failed == 0
    finally:
        if "matplotlib.pyplot" in sys.modules:
            sys.modules["matplotlib.pyplot"].close("all")


def public_objects():
    """Return the public classes and functions by their full names."""
    for package in (finslerconv, *PACKAGES, geodesics.tensors):
        for name in package.__all__:
            thing = getattr(package, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                yield pytest.param(thing, id=f"{package.__name__}.{name}")


@pytest.mark.parametrize("thing", list(public_objects()))
def test_every_public_object_has_an_example(thing):
    assert ">>> " in (thing.__doc__ or "")


def test_every_public_object_has_a_page():
    """The pages of the packages list their objects, and Sphinx makes a page of each."""
    for package in [*(p for p in PACKAGES if p is not cli), geodesics.tensors]:
        page = package.__name__.rsplit(".", 1)[1]
        text = (ROOT / "docs" / "reference" / f"{page}.md").read_text()
        listed = re.findall(r"^   (\w+)$|^\.\. py:data:: (\w+)$", text, re.MULTILINE)
        assert sorted(a or b for a, b in listed) == sorted(package.__all__), page


def test_the_readme_works_on_the_package_index():
    """There relative links lead nowhere; the build makes them absolute."""
    hooks = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"][
        "hooks"
    ]
    before = (ROOT / "README.md").read_text()
    after = before
    for change in hooks["fancy-pypi-readme"]["substitutions"]:
        after = re.sub(change["pattern"], change["replacement"], after)
    link = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
    targets = link.findall(after)
    assert all(target.startswith("https://") for target in targets)
    home = re.compile(r"https://[^/]+/finslerconv/finslerconv/(?:blob/)?main/")
    own = [home.sub("", target) for target in targets if home.match(target)]
    assert own == [target for target in link.findall(before) if "://" not in target]
    assert own
    assert all((ROOT / path).exists() for path in own)


def test_pre_commit_runs_the_versions_of_the_constraints():
    config = (ROOT / ".pre-commit-config.yaml").read_text()
    revisions = re.findall(r"repo: \S+/(\S+)\n    rev: v?(\S+)", config)
    pinned = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert {name.removesuffix("-pre-commit") for name, _ in revisions} == {
        "ruff",
        "codespell",
        "nbstripout",
    }
    for name, version in revisions:
        assert pinned[name.removesuffix("-pre-commit")] == version
