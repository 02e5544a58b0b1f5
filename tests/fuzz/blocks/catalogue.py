"""The blocks that random networks are made of, by family. See `kind.kind` for how to write one."""

from tests.fuzz.blocks import (  # noqa: F401  # each registers its kinds
    activations,
    arithmetic,
    attention,
    convolutions,
    dense,
    gates,
    joins,
    layouts,
    norms,
    pools,
    recurrent,
    resizing,
)
from tests.fuzz.blocks.kind import KINDS, Compute, DoesNotFit, Kind, features, make, resulting_layout

__all__ = ["KINDS", "Compute", "DoesNotFit", "Kind", "features", "make", "resulting_layout"]
