"""The unit balls of four photographs: long along edges and hairs, round on even ground."""

import argparse

import numpy as np
import torch
from matplotlib.figure import Figure
from skimage import color, data

from finslerconv import images, plotting

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--output", default="photographs.png", help="the picture to write")
parser.add_argument("--quick", action="store_true", help="draw two of the photographs")
arguments = parser.parse_args()

# Each with the upper left corner and the side of the part that is shown.
photographs = {
    "astronaut": (color.rgb2gray(data.astronaut()), (30, 150), 140),
    "coins": (data.coins() / 255, (20, 40), 170),
    "chelsea": (color.rgb2gray(data.chelsea()), (60, 90), 170),
    "gravel": (data.gravel() / 255, (0, 0), 140),
}
names = list(photographs)[: 2 if arguments.quick else 4]

figure = Figure(figsize=(3.2 * len(names), 3.5), layout="constrained")
for ax, name in zip(figure.subplots(1, len(names)), names, strict=True):
    whole, (row, column), side = photographs[name]
    part = np.ascontiguousarray(whole[row : row + side, column : column + side])
    picture = torch.tensor(part, dtype=torch.float64)[None, None]
    metric = images.gradient_metric(picture, anisotropy=20.0, sigma=1.5)
    plotting.ball_field(metric, image=picture, spacing=side // 13, ax=ax)
    ax.set_title(name)
figure.savefig(arguments.output, dpi=120)
print("Wrote", arguments.output)
