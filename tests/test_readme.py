"""The README's Python is run as it stands, its blocks one after another as a reader would."""

from pathlib import Path

import code_blocks
import pytest
import torch

README = Path(__file__).parent.parent / "README.md"


@pytest.fixture(scope="module")
def reader():
    """Everything that the reader's session holds after the last block."""
    torch.manual_seed(0)
    return code_blocks.run(README)


def test_the_converted_layer_is_the_convolution():
    torch.manual_seed(0)
    names = {}
    exec(compile(code_blocks.python_blocks(README)[0], str(README), "exec"), names)
    torch.testing.assert_close(names["y"], names["conv"](names["x"]), rtol=0, atol=1e-5)
    assert names["metric"].batch_shape == (1, 64, 64)


def test_positions_are_in_the_ball_of_the_readme(reader):
    ellipse, positions = reader["ellipse"], reader["positions"]
    assert positions.shape == (25, 2)
    # The outermost points are on the boundary; rounding may put them a hair outside.
    assert ellipse.contains(positions * (1 - 1e-12)).all()


def test_the_metric_of_ones_own_convolves(reader):
    layer, x = reader["layer"], reader["x"]
    assert layer(x).shape == (1, 16, 64, 64)
    norms = layer.metric(x).norm(layer.positions(x).movedim(-2, 0))
    radii = torch.tensor(layer.reference.points, dtype=torch.float32).norm(dim=-1)
    torch.testing.assert_close(norms, radii[:, None, None, None].expand_as(norms))
