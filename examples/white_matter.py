"""Distances and paths in white matter: the Riemannian metric of diffusion tensors, in space.

The diffusion-weighted volume is the small one in dipy's wheel (10 x 10 x 10 voxels of 2 mm, 64
directions), and dipy fits the tensors. ``physics.diffusion_metric`` turns them into a metric in
which ways along the fibres are short; with ``power=2`` more so. Fast marching in space gives the
distance of every voxel from a seed, and the shortest paths to it.

The grid has the spacing of the voxels, so lengths on the way are in millimetres. The file's affine
then carries paths to the scanner's coordinates, and the map of distances is written as NIfTI with
the same affine, so that any viewer lays it over the volume. Tensors have to be in the axes of the
voxels, as gradient tables of FSL are.

    python examples/white_matter.py           # some seconds; --quick is the same

It needs dipy (the extra "examples"), and writes a picture, and beside it ``.nii.gz`` and ``.csv``.
"""

import argparse
from pathlib import Path

import matplotlib
import nibabel
import numpy as np
import torch
from dipy.core.gradients import gradient_table
from dipy.data import get_fnames
from dipy.io.gradients import read_bvals_bvecs
from dipy.reconst.dti import TensorModel
from matplotlib.figure import Figure
from nibabel.affines import apply_affine
from scipy.ndimage import label

from finslerconv.geodesics import GridMetric, distance, path_length
from finslerconv.physics import diffusion_metric


def main() -> None:
    """Read the command line, fit, march, draw, and write."""
    parser = argparse.ArgumentParser(description="Distances and paths in white matter.")
    parser.add_argument("--quick", action="store_true", help="the same: the volume is small")
    parser.add_argument("--output", type=Path, default=Path("white_matter.png"))
    options = parser.parse_args()
    matplotlib.use("Agg")
    torch.set_num_threads(1)

    volume_file, values_file, vectors_file = get_fnames(name="small_64D")
    volume = nibabel.load(volume_file)
    values, vectors = read_bvals_bvecs(values_file, vectors_file)
    table = gradient_table(values, bvecs=vectors)
    fit = TensorModel(table).fit(volume.get_fdata())
    zooms = tuple(float(z) for z in volume.header.get_zooms()[:3])
    # In mm^2 / s: fits of noise have smaller eigenvalues, and fluid has a larger mean.
    regions, _ = label((fit.evals.min(-1) > 1e-4) & (fit.md < 1.1e-3))
    tissue = regions == np.bincount(regions[regions > 0]).argmax()
    anisotropy = np.where(tissue, fit.fa, 0.0)

    metric = diffusion_metric(fit.quadratic_form, power=2, mask=tissue)
    field = GridMetric.from_metric(metric, spacing=zooms)
    seed = np.array(np.unravel_index(anisotropy.argmax(), anisotropy.shape))
    far = np.linalg.norm((np.indices(anisotropy.shape).T - seed) * zooms, axis=-1).T > 8
    order = np.argsort(np.where(far & tissue, -anisotropy, 1.0), axis=None)[:6]
    ends = np.stack(np.unravel_index(order, anisotropy.shape), -1)
    lengths = distance(field, seed * zooms, mask=tissue, full=True)
    paths = lengths.path(ends * zooms)

    print("| to voxel | by the metric | straight line | mm | mean FA on the way | straight |")
    print("|----------|---------------|---------------|----|--------------------|----------|")
    for end, path in zip(ends, paths, strict=True):
        straight = np.linspace(seed * zooms, end * zooms, 50)
        ours, other = (float(path_length(field, way)) for way in (path, straight))
        fa, straight_fa = (
            anisotropy[tuple(np.rint(way / zooms).astype(int).T)].mean() for way in (path, straight)
        )
        mm = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
        print(
            f"| {tuple(map(int, end))} | {ours:.0f} | {other:.0f} | {mm:.1f} | {fa:.2f} | "
            f"{straight_fa:.2f} |"
        )

    world = [apply_affine(volume.affine, path / zooms) for path in paths]
    stem = options.output.with_suffix("")
    nibabel.save(nibabel.Nifti1Image(lengths.distance, volume.affine), f"{stem}.nii.gz")
    rows = np.concatenate([np.column_stack((np.full(len(w), i), w)) for i, w in enumerate(world)])
    np.savetxt(f"{stem}.csv", rows, "%.4f", ",", header="path,x,y,z", comments="")
    draw(anisotropy, lengths.distance, seed, paths, zooms, world).savefig(options.output, dpi=100)
    print(f"Wrote {options.output}, {stem}.nii.gz, {stem}.csv")


def draw(
    anisotropy: np.ndarray,
    lengths: np.ndarray,
    seed: np.ndarray,
    paths: list[np.ndarray],
    zooms: tuple[float, ...],
    world: list[np.ndarray],
) -> Figure:
    """Return three slices through the seed with lines of equal distance, and the paths in space."""
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    axes = figure.subplots(1, 4, subplot_kw={}, width_ratios=(1, 1, 1, 1.25))
    for axis, ax in enumerate(axes[:3]):
        rows, columns = (a for a in range(3) if a != axis)
        extent = (
            -zooms[columns] / 2, zooms[columns] * (anisotropy.shape[columns] - 0.5),
            zooms[rows] * (anisotropy.shape[rows] - 0.5), -zooms[rows] / 2,
        )  # fmt: skip
        cut = [np.take(x, seed[axis], axis) for x in (anisotropy, lengths)]
        shown = ax.imshow(cut[0], cmap="gray", extent=extent, vmin=0, vmax=0.9)
        x, y = (zooms[a] * np.arange(anisotropy.shape[a]) for a in (columns, rows))
        finite = np.where(np.isfinite(cut[1]), cut[1], np.nan)
        ax.contour(x, y, finite, 10, cmap="autumn", linewidths=1.2)
        for path in paths:
            ax.plot(path[:, columns], path[:, rows], color="#56B4E9", linewidth=1.5)
        ax.plot(seed[columns] * zooms[columns], seed[rows] * zooms[rows], "o", color="#56B4E9")
        ax.set(title=f"slice {seed[axis]} of axis {axis}", xlabel=f"axis {columns} (mm)",
               ylabel=f"axis {rows} (mm)")  # fmt: skip
    figure.colorbar(shown, ax=axes[2], label="fractional anisotropy", shrink=0.75)
    place = axes[3].get_subplotspec()
    axes[3].remove()
    space = figure.add_subplot(place, projection="3d")
    for path in world:
        space.plot(*path.T, color="#0072B2", linewidth=1.6)
    space.plot(*world[0][:1].T, "o", color="#D55E00")
    space.set(
        title="the paths in the scanner's coordinates", xlabel="x (mm)", ylabel="y", zlabel="z"
    )
    space.tick_params(labelsize=8)
    return figure


if __name__ == "__main__":
    main()
