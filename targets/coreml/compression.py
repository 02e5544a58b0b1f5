"""Apple's own compressed forms of a float model, for comparison: coremltools.optimize, weights only."""

from __future__ import annotations

from typing import Any

from pipeline.target import Variant
from targets.coreml.sdk import coremltools, quiet

PALETTE_BITS: dict[Variant, int] = {"palettized_6bit": 6, "palettized_4bit": 4}
SMALLEST_WEIGHT = 512
"""Elements; coremltools' own limit of 2048 leaves much of a small network uncompressed."""


def compress(model: Any, variant: Variant) -> Any:
    """A model with its weights compressed; as it is where the variant names no compression.

    ``int8_weights``: one symmetric scale per output channel. ``palettized_*``: one table of k-means centres per weight
    (https://apple.github.io/coremltools/docs-guides/source/optimizecoreml-api-overview.html).
    """
    coremltools()  # without its noise, and without TensorFlow
    with quiet():
        from coremltools.optimize import coreml as optimize

        if variant == "int8_weights":
            linear = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=SMALLEST_WEIGHT)
            return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(global_config=linear))
        if variant in PALETTE_BITS:
            palette = optimize.OpPalettizerConfig(
                mode="kmeans", nbits=PALETTE_BITS[variant], weight_threshold=SMALLEST_WEIGHT
            )
            return optimize.palettize_weights(model, optimize.OptimizationConfig(global_config=palette))
    return model
