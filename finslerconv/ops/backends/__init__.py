"""The backends of the operators: their contract, the choice among them, and one module for each."""

from finslerconv.ops.backends._aggregation import (
    Aggregation,
    AggregationBackend,
    AggregationGradients,
)
from finslerconv.ops.backends._choice import (
    backend_for,
    current_backend,
    has_backend,
    is_compiled,
    reference,
    register_backend,
    use_backend,
    why_reference,
)
from finslerconv.ops.backends._contract import (
    ConvBackend,
    Convolution,
    Gradients,
    Needs,
    Positions,
    channels_last,
    in_balls,
    memory_format,
    promoted,
)
from finslerconv.ops.backends._head_numbers import coefficients as head_coefficients
from finslerconv.ops.backends._head_numbers import in_words_of as head_formulas_in

__all__ = [
    "use_backend",
    "current_backend",
    "has_backend",
    "is_compiled",
    "why_reference",
    "register_backend",
    "backend_for",
    "reference",
    "ConvBackend",
    "Convolution",
    "Positions",
    "Needs",
    "Gradients",
    "AggregationBackend",
    "Aggregation",
    "AggregationGradients",
    "channels_last",
    "in_balls",
    "memory_format",
    "promoted",
    "head_coefficients",
    "head_formulas_in",
]
