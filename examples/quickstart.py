"""First steps: a metric, its unit ball, the metrics of a photograph, a filter, a picture."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure

from finslerconv import images, plotting
from finslerconv.balls import Ellipse, polar
from finslerconv.metrics import Randers
from finslerconv.ops import metric_conv2d

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", default="quickstart.png", help="the picture to write")
parser.add_argument("--quick", action="store_true", help="take a small part of the photograph")
arguments = parser.parse_args()

# A metric at one point: its lengths depend on the direction, and on its sign.
metric = Randers(np.array([[0.09, 0.05], [0.05, 0.16]]), np.array([0.1, 0.2]))
print("F(right), F(left):", metric.norm(np.array([[0.0, 1.0], [0.0, -1.0]])))
print("its dual norm:", metric.dual_norm(np.array([0.0, 1.0])))
print("its unit ball:", Ellipse.of(metric))

# A metric at every pixel of a noisy photograph, and the mean over 11 x 11 samples of its balls.
size = 96 if arguments.quick else 192
photograph = images.photograph()[60:, 130:][:size, :size] / 255
photograph = torch.tensor(photograph, dtype=torch.float32)[None, None]
noisy = photograph + 0.1 * torch.randn(photograph.shape, generator=torch.manual_seed(0))
field = images.gradient_metric(noisy, anisotropy=30.0, sigma=2.0, tau=0.3, omega="across")
points = torch.tensor(polar(11, 11).points, dtype=torch.float32)
weight = torch.full((1, 1, 11, 11), 1 / 121)
filtered = metric_conv2d(
    noisy, field.M, field.omega, points, weight, padding="same", padding_mode="replicate"
)

figure = Figure(figsize=(12, 4), layout="constrained")
axes = figure.subplots(1, 3)
plotting.reference_points(polar(5, 11), metric, ax=axes[0]).set_title("a unit ball, sampled")
plotting.ball_field(field, image=noisy, spacing=14, ax=axes[1]).set_title(
    "the photograph's unit balls"
)
plotting.show(filtered, ax=axes[2]).set_title("the mean over them")
figure.savefig(arguments.output, dpi=120)
print("Wrote", arguments.output)
