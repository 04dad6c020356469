"""What works without the packages of the extras, and what says how to install them."""

import subprocess
import sys

import numpy as np
import pytest

from finslerconv.images import photograph

EXTRA = ("matplotlib", "PIL", "rich", "skimage", "typer", "imageio", "sklearn", "dask")


def run(code, *missing):
    """Run ``code`` where some packages are missing."""
    hidden = f"import sys\nfor name in {missing!r}:\n    sys.modules[name] = None\n"
    command = [sys.executable, "-c", hidden + code]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_base_install_has_all_but_pictures_and_the_command():
    done = run(
        """
import torch
import finslerconv
from finslerconv import balls, geodesics, images, implicit, metrics, nn, ops, symbolic
model, report = nn.convert(torch.nn.Conv2d(1, 2, 3), "metric")
print(report)
nn.search_density(lambda p: p[0], 3, max_evaluations=2, progress=True)
print(implicit.implicit_metric(model, torch.rand(1, 1, 8, 8)))
print(images.gradient_metric(torch.tensor(images.photograph()[None, None] / 255)))
""",
        *EXTRA,
    )
    assert done.returncode == 0, done.stderr
    assert "1 converted, 0 left alone" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "missing", "message"),
    [
        (
            "import finslerconv.plotting",
            "matplotlib",
            'finslerconv.plotting needs matplotlib, which is not installed: pip install "finslerconv[plot]"',  # noqa: E501
        ),
        (
            "from finslerconv.nn import plot_density_search\nplot_density_search(None)",
            "matplotlib",
            'plot_density_search needs matplotlib, which is not installed: pip install "finslerconv[plot]"',  # noqa: E501
        ),
        (
            "import finslerconv.dask",
            "dask",
            'finslerconv.dask needs dask, which is not installed: pip install "finslerconv[dask]"',
        ),
        (
            "import finslerconv.cli",
            "typer",
            'the command finslerconv needs typer, which is not installed: pip install "finslerconv[cli]"',  # noqa: E501
        ),
    ],
)
def test_a_missing_package_names_its_extra(code, missing, message):
    done = run(code, missing)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1].endswith(f"MissingExtraError: {message}")


@pytest.mark.parametrize(
    "missing",
    [
        "typer",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("rich", "skimage", "matplotlib", "PIL")
        ),
    ],
)
def test_the_command_without_a_package_is_one_line(missing):
    done = run(
        "sys.argv = ['finslerconv', 'denoise']\nfrom finslerconv.__main__ import main\nmain()",
        missing,
    )
    assert done.returncode != 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("finslerconv: error: ")
    assert f'needs {missing}, which is not installed: pip install "finslerconv[cli]"' in line


def test_the_photograph_is_the_one_of_the_numbers():
    data = pytest.importorskip("skimage.data")
    np.testing.assert_array_equal(photograph(), data.camera())
    pil = pytest.importorskip("PIL.Image")
    from importlib.resources import files

    with (files("finslerconv.images") / "photograph.png").open("rb") as file:
        np.testing.assert_array_equal(photograph(), np.asarray(pil.open(file)))
