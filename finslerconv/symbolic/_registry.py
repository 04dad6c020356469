"""All identities of the package, by name, in the order of the theory."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

from finslerconv.symbolic import (
    _about_balls,
    _about_curvature,
    _about_duality,
    _about_maps,
    _about_metrics,
    _about_norms,
    _about_tensors,
    _weighted,
)
from finslerconv.symbolic._identity import Identity


@cache
def identities() -> Mapping[str, Identity]:
    r"""Return every identity by name, in the sections of the site's list.

    They are about norms, unit balls, duality, maps into balls, tensors, metrics beside Randers',
    curvature, and weighted convolution.

    Examples
    --------
    >>> identities()["zermelo_determinant"].statement
    '\\det(h) = \\lambda^{d + 1} \\det(M)'
    """
    modules = (
        _about_norms,
        _about_balls,
        _about_duality,
        _about_maps,
        _about_tensors,
        _about_metrics,
        _about_curvature,
        _weighted,
    )
    return MappingProxyType({i.name: i for module in modules for i in module.IDENTITIES})
