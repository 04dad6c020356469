"""Reference point sets: where a kernel's weights sit in the Euclidean unit ball.

A reference set gives each tap of a kernel a point ``g`` of the unit ball, and the volume of the
cell that the point stands for (in the plane, its area).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from finslerconv._arrays import is_integer, shown


@dataclass(frozen=True, eq=False, repr=False)
class ReferenceSet:
    """Points of the Euclidean unit ball in a kernel's order, with quadrature weights.

    Parameters
    ----------
    name : str
        What the set is called.
    kernel_shape : tuple of int
        The shape of the kernels that it serves; row-major, it is the order of the points.
    points : ndarray, shape (n, d)
        The points ``g``, in array-axis order, n the product of ``kernel_shape``.
    weights : ndarray, shape (n,)
        The volume of each point's cell: ``sum(weights * f(points))`` approximates the integral of
        ``f`` over the region that the set covers: the unit ball; for a lattice the cube
        [-1, 1]^d, or the strip of it that a rectangular kernel covers.

    Raises
    ------
    ValueError
        If the numbers of points, of weights and of places in the kernel differ, or a point is
        not finite.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import ReferenceSet
    >>> cross = np.array([[-1.0, 0.0], [0.0, -1.0], [0.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    >>> reference = ReferenceSet("cross", (5,), cross, np.full(5, np.pi / 5))
    >>> reference, len(reference), reference.dim
    (ReferenceSet('cross', kernel_shape=(5,)), 5, 2)
    """

    name: str
    kernel_shape: tuple[int, ...]
    points: Float[np.ndarray, "n d"]
    weights: Float[np.ndarray, " n"]

    def __post_init__(self) -> None:
        n = math.prod(self.kernel_shape)
        if self.points.ndim != 2 or self.points.shape[0] != n:
            raise ValueError(
                f"points: expected {n} points for a kernel of shape {self.kernel_shape}, got an "
                f"array of shape {self.points.shape}"
            )
        if self.weights.shape != (n,):
            raise ValueError(f"weights: expected shape ({n},), got {self.weights.shape}")
        if not np.isfinite(self.points).all():
            row = int(np.argmax(~np.isfinite(self.points).all(axis=-1)))
            raise ValueError(
                f"points: expected finite points, got {self.points[row]} at index {row}"
            )

    def __repr__(self) -> str:
        return f"ReferenceSet({self.name!r}, kernel_shape={self.kernel_shape})"

    def __len__(self) -> int:
        return len(self.points)

    @property
    def dim(self) -> int:
        """The dimension ``d`` of the points."""
        return self.points.shape[-1]


def lattice(kernel_size: int | Sequence[int]) -> ReferenceSet:
    """Return the kernel's own grid, divided by its radius ``r = max(kernel_size) // 2``.

    In the unit ball of the metric ``I / r^2`` these are the taps of the standard convolution.
    The corners stick out of the Euclidean ball; even sizes have no tap at the centre.

    Parameters
    ----------
    kernel_size : int or sequence of int
        Numbers of taps along each axis (one number: both axes of an image). All axes are
        divided by the same ``r`` (by 1 for a kernel of one tap).

    Returns
    -------
    ReferenceSet
        In row-major order. A weight is the part of the tap's cell, of side ``1 / r``, that is
        inside the cube [-1, 1]^d.

    Examples
    --------
    >>> from finslerconv.balls import lattice
    >>> lattice(3).points[:4].tolist()
    [[-1.0, -1.0], [-1.0, 0.0], [-1.0, 1.0], [0.0, -1.0]]
    >>> float(lattice(3).weights.sum())
    4.0
    """
    sizes = _kernel_shape(kernel_size)
    r = radius(sizes)
    axes = [(np.arange(k) - (k - 1) / 2) / r for k in sizes]
    cells = [np.minimum(x + 0.5 / r, 1) - np.maximum(x - 0.5 / r, -1) for x in axes]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(sizes))
    weights = np.prod(np.meshgrid(*cells, indexing="ij"), axis=0).reshape(-1)
    return ReferenceSet("lattice", sizes, points, weights)


def concentric(kernel_size: int | Sequence[int]) -> ReferenceSet:
    """Return the square rings of a lattice pressed onto circles, or its cubes onto spheres.

    Ring ``j`` of an odd square kernel has ``8 j`` equally spaced points at radius ``j / r``, in
    the places of the grid: the "onion peeling" of "Metric Convolutions" (ICCV 2025), but with every
    kernel weight in its own place. The map is Shirley and Chiu's square-to-disc map, which
    keeps ratios of areas. In three dimensions the surface of cube ``j`` goes onto the sphere of
    radius ``j / r`` by Roşca and Plonka's map, and ratios of volumes stay. In one dimension the set
    is the lattice. Rectangular and even kernels are served too.

    Parameters
    ----------
    kernel_size : int or sequence of int
        Numbers of taps along each of one to three axes (one number: both axes of an image).

    Returns
    -------
    ReferenceSet
        In row-major order of the grid: rows stay above and below, columns left and right. A weight
        is the volume of the tap's cell inside the ball.

    References
    ----------
    Shirley, Chiu, "A low distortion map between disk and square" (1997); Roşca, Plonka, "Uniform
    spherical grids via equal area projection from the cube to the sphere" (2011).

    Examples
    --------
    >>> from finslerconv.balls import concentric
    >>> concentric(3).points.round(3)[:4].tolist()
    [[-0.707, -0.707], [-1.0, 0.0], [-0.707, 0.707], [0.0, -1.0]]
    """
    grid = lattice(_kernel_shape(kernel_size, "concentric", dims=(1, 2, 3)))
    ring = np.abs(grid.points).max(axis=-1, keepdims=True)
    # The place on the surface of the cube [-1, 1]^d; any, for a tap at the centre.
    place = np.where(ring > 0, grid.points / np.where(ring > 0, ring, 1.0), 1.0)
    directions, share = _ROUND[grid.dim]
    points = ring * directions(place)
    return ReferenceSet("concentric", grid.kernel_shape, points, share * grid.weights)


def _on_circle(place: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
    """Return the unit vectors at the places on the edge of a square: arcs as long as segments."""
    a, b = place.T
    # An eighth of the edge spans an angle of pi / 4.
    quarter = math.pi / 4
    angle = np.where(
        np.abs(b) >= np.abs(a),
        np.where(b >= 0, quarter * a, math.pi - quarter * a),
        np.where(a >= 0, 2 * quarter - quarter * b, -2 * quarter + quarter * b),
    )
    return np.stack((np.sin(angle), np.cos(angle)), axis=-1)


def _on_sphere(place: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3"]:
    """Return the unit vectors at the places on the surface of a cube, by an equal-area map."""
    face = np.abs(place).argmax(axis=-1)
    axes = np.stack((face, (face + 1) % 3, (face + 2) % 3), axis=-1)
    height, u, v = np.take_along_axis(place, axes, axis=-1).T
    # Within the face: along its larger coordinate, and beside it by an angle of at most pi / 12.
    swapped = np.abs(v) > np.abs(u)
    along, beside = np.where(swapped, (v, u), (u, v))
    angle = math.pi / 12 * beside / np.where(along == 0, 1.0, along)
    length = 2**0.25 * along / np.sqrt(math.sqrt(2) - np.cos(angle))
    along = length * (math.sqrt(2) * np.cos(angle) - 1)
    beside = length * math.sqrt(2) * np.sin(angle)
    u, v = np.where(swapped, (beside, along), (along, beside))
    # From the plane of Lambert's equal-area projection back to the sphere.
    square = u * u + v * v
    shrink = np.sqrt(1 - square / 4)
    directions = np.empty_like(place)
    found = np.stack((height * (1 - square / 2), shrink * u, shrink * v), axis=-1)
    np.put_along_axis(directions, axes, found, axis=-1)
    return directions


# What carries the surface of the cube [-1, 1]^d onto the sphere, and the ball's share of the cube.
_ROUND: dict[int, tuple[Callable[[Any], Any], float]] = {
    1: (lambda place: place, 1.0),
    2: (_on_circle, math.pi / 4),
    3: (_on_sphere, math.pi / 6),
}


def polar(n_radii: int, n_angles: int, *, centre: bool = False) -> ReferenceSet:
    """Return a polar grid: ``n_angles`` directions at each of the radii ``i / n_radii``.

    Parameters
    ----------
    n_radii, n_angles : int
        Numbers of radii (from ``1 / n_radii`` to 1) and of angles (from the direction of the
        columns, turning towards the rows).
    centre : bool
        Whether the origin is a point too, the first.

    Returns
    -------
    ReferenceSet
        Radius by radius from the inside. For a kernel of shape ``(n_radii, n_angles)``, or,
        with the centre, of ``(1 + n_radii * n_angles,)``. A weight is the point's share of
        its annulus, whose bounds are halfway between the radii.

    Examples
    --------
    >>> from finslerconv.balls import polar
    >>> polar(2, 4).points.round(3)[:4].tolist()
    [[0.0, 0.5], [0.5, 0.0], [0.0, -0.5], [-0.5, -0.0]]
    >>> polar(2, 4, centre=True).kernel_shape
    (9,)
    """
    n_radii, n_angles = _counts("polar", n_radii=n_radii, n_angles=n_angles)
    radii = np.arange(1, n_radii + 1) / n_radii
    angles = 2 * math.pi * np.arange(n_angles) / n_angles
    directions = np.stack((np.sin(angles), np.cos(angles)), axis=-1)
    points = (radii[:, None, None] * directions).reshape(-1, 2)
    inner = np.concatenate(([0.5 / n_radii if centre else 0.0], (radii[:-1] + radii[1:]) / 2))
    outer = np.append(inner[1:], 1.0)
    weights = np.repeat(math.pi * (outer**2 - inner**2) / n_angles, n_angles)
    if not centre:
        return ReferenceSet("polar", (n_radii, n_angles), points, weights)
    points = np.concatenate((np.zeros((1, 2)), points))
    weights = np.concatenate(([math.pi * inner[0] ** 2], weights))
    return ReferenceSet("polar", (len(points),), points, weights)


def sunflower(n: int) -> ReferenceSet:
    """Return ``n`` points on the golden-angle spiral, each for the same area.

    Parameters
    ----------
    n : int
        Number of points.

    Returns
    -------
    ReferenceSet
        From the inside out, for kernels of shape ``(n,)``; point ``i`` is at radius
        ``sqrt((i + 1/2) / n)`` and at ``i`` golden angles, ``i pi (3 - sqrt(5))``, from the
        direction of the columns, turning towards the rows. All weights are ``pi / n``.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.balls import sunflower
    >>> np.linalg.norm(sunflower(4).points, axis=-1).round(3).tolist()
    [0.354, 0.612, 0.791, 0.935]
    """
    (n,) = _counts("sunflower", n=n)
    i = np.arange(n)
    angles = i * math.pi * (3 - math.sqrt(5))
    radii = np.sqrt((i + 0.5) / n)
    points = radii[:, None] * np.stack((np.sin(angles), np.cos(angles)), axis=-1)
    return ReferenceSet("sunflower", (n,), points, np.full(n, math.pi / n))


def fibonacci_ball(n: int) -> ReferenceSet:
    """Return ``n`` points of the ball in space, one in each of ``n`` shells of equal volume.

    The counterpart of :func:`sunflower`: directions of the Fibonacci sphere, each with a shell of
    its own. Direction ``j`` is at height ``1 - (2 j + 1) / n`` along the first axis, and at ``j``
    golden angles around it; the shells go to the directions in the order of the fractional parts
    of ``j sqrt(3)``.

    Parameters
    ----------
    n : int
        Number of points.

    Returns
    -------
    ReferenceSet
        From the inside out, for kernels of shape ``(n,)``; point ``i`` is at radius
        ``((i + 1/2) / n)^(1/3)``. All weights are ``4 pi / (3 n)``.

    Examples
    --------
    >>> from finslerconv.balls import fibonacci_ball
    >>> ball = fibonacci_ball(27)
    >>> ball.points.shape, round(float(ball.weights.sum()), 4)  # 4 pi / 3
    ((27, 3), 4.1888)
    """
    (n,) = _counts("fibonacci_ball", n=n)
    i = np.arange(n)
    radii = np.cbrt((i + 0.5) / n)
    j = np.argsort(i * math.sqrt(3) % 1)
    heights = 1 - (2 * j + 1) / n
    angles = j * math.pi * (3 - math.sqrt(5))
    beside = np.sqrt(1 - heights**2)
    directions = np.stack((heights, beside * np.sin(angles), beside * np.cos(angles)), axis=-1)
    weights = np.full(n, 4 * math.pi / (3 * n))
    return ReferenceSet("fibonacci_ball", (n,), radii[:, None] * directions, weights)


def reference_set(name: str, kernel_size: int | Sequence[int]) -> ReferenceSet:
    """Return the reference set called ``name`` for a kernel of one to three axes.

    Parameters
    ----------
    name : {"lattice", "concentric", "polar", "sunflower", "fibonacci_ball"}
        ``polar`` and ``sunflower`` are sets of the plane, ``fibonacci_ball`` is one of space.
        ``polar`` takes the kernel's rows as radii and its columns as angles.
    kernel_size : int or sequence of int
        Numbers of taps along each axis (one number: both axes of an image).

    Raises
    ------
    ValueError
        If there is no set of that name, or none in that dimension.

    Examples
    --------
    >>> from finslerconv.balls import reference_set
    >>> reference_set("sunflower", (3, 5))
    ReferenceSet('sunflower', kernel_shape=(3, 5))
    """
    if name not in _SETS:
        *names, last = map(repr, _SETS)
        raise ValueError(f"reference: expected {', '.join(names)} or {last}, got {name!r}")
    dims, make = _SETS[name]
    sizes = _kernel_shape(kernel_size, name, dims)
    made = make(sizes)
    return ReferenceSet(name, sizes, made.points, made.weights)


#: The sets by name: the numbers of axes that each serves, and what makes it for a kernel size.
_SETS: dict[str, tuple[Sequence[int], Callable[[tuple[int, ...]], ReferenceSet]]] = {
    "lattice": ((1, 2, 3), lattice),
    "concentric": ((1, 2, 3), concentric),
    "polar": ((2,), lambda sizes: polar(*sizes)),
    "sunflower": ((2,), lambda sizes: sunflower(math.prod(sizes))),
    "fibonacci_ball": ((3,), lambda sizes: fibonacci_ball(math.prod(sizes))),
}


def radius(kernel_size: int | Sequence[int]) -> int:
    """Return the radius ``max(kernel_size) // 2`` of a kernel in taps, at least 1.

    Examples
    --------
    >>> from finslerconv.balls import radius
    >>> radius(3), radius((3, 7)), radius(1)
    (1, 3, 1)
    """
    return max(1, max(_kernel_shape(kernel_size)) // 2)


def _kernel_shape(
    kernel_size: int | Sequence[int], name: str = "", dims: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return checked sizes of a kernel; of the set ``name``, for the numbers of axes ``dims``."""
    sizes = tuple(kernel_size) if isinstance(kernel_size, Sequence) else (kernel_size,) * 2
    if not sizes or not all(is_integer(k) and k >= 1 for k in sizes):
        raise ValueError(f"kernel_size: expected positive integers, got {shown(kernel_size)}")
    if dims and len(sizes) not in dims:
        words = {2: "two-dimensional", 3: "three-dimensional"}
        kind = words[dims[0]] if len(dims) == 1 else "for one to three dimensions"
        raise ValueError(f"kernel_size: {name} is {kind}, got {kernel_size!r}")
    return tuple(int(k) for k in sizes)


def _counts(name: str, **counts: Any) -> list[int]:
    for argument, count in counts.items():
        if not is_integer(count) or count < 1:
            raise ValueError(f"{argument}: {name} needs a positive integer, got {shown(count)}")
    return [int(count) for count in counts.values()]
