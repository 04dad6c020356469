"""Shortest paths between a source of a distance map and a position."""

from typing import Any

from finslerconv._arrays import Array
from finslerconv.geodesics.distances import DistanceMap


def minimal_path(distances: DistanceMap, to: Any, *, step: float = 0.25) -> Array | list[Array]:
    r"""Return the shortest path between the source of a distance map and a position.

    Parameters
    ----------
    distances : DistanceMap
        ``distance(field, sources, full=True)``.
    to : array or sequence, shape (d,) or (k, d), or (\*problems, d)
        Where the paths end (begin, for a map made with ``reverse``): physical positions; for a
        map of several problems one for each.
    step : float
        The longest side of the path, in nodes; at most 1.

    Returns
    -------
    array, shape (n, d), or list of arrays
        Points of the path in the order of travel: from the source to ``to``, or from ``to`` to
        the source for a map made with ``reverse``; as many as it takes, at least two. A list for
        several positions or problems, row-major. In the kind and dtype of the map, without
        gradients.

    Raises
    ------
    TypeError
        If ``distances`` is no :class:`DistanceMap`.
    ValueError
        If a position is outside the grid, not finite, or was not reached by a front; or if no path
        leads from it to a source.

    Notes
    -----
    The path is searched from ``to`` back to a source by steps of any angle between nodes, with the
    distances as the estimate of what is left (A* in the form of Nash and others, "Theta*: any-angle
    path planning on grids", 2007), and then shortened: its corners move across it, all together, by
    widths from two nodes down to a thousandth. What counts is the length in the field itself,
    interpolated linearly. So the path is as short as its way round the walls allows, to about the
    square of the spacing where the field is smooth, and straight where the field is constant. It
    is as long as the map says, but for the map's own error; of a coarse map ("graph" in an
    anisotropic field, say) it is shorter.

    It does not lead through a wall, by the rule of :func:`distance`: along walls and past their
    corners it may touch them, so that it can be shorter than a way from node to node.

    Examples
    --------
    >>> import numpy as np
    >>> from finslerconv.geodesics import GridMetric, distance, minimal_path
    >>> field = GridMetric(np.broadcast_to(np.eye(2), (9, 9, 2, 2)))
    >>> path = minimal_path(distance(field, (4, 0), full=True), (4, 8))
    >>> path[0], path[-1], bool(np.allclose(path[:, 0], 4))
    (array([4., 0.]), array([4., 8.]), True)
    """
    if not isinstance(distances, DistanceMap):
        raise TypeError(
            f"distances: expected a DistanceMap, got {type(distances).__name__}; "
            "distance(field, sources, full=True) returns one"
        )
    return distances.path(to, step=step)
