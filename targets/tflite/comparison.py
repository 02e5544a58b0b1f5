"""Other precisions of a float model, to compare with: ai-edge-quantizer's, which comes with litert-torch."""

from __future__ import annotations

from typing import Any

from pipeline.core import TargetError
from pipeline.target import Variant
from targets.tflite.sdk import quiet


def encode(content: bytes, variant: Variant) -> bytes:
    """A float model with float16 weights, or with int8 weights and activations that are quantized at run time.

    Raises:
        TargetError: ai-edge-quantizer refuses the model.
    """
    with quiet():
        from ai_edge_quantizer import quantizer, recipe

        recipes: dict[str, Any] = {"fp16": _FLOAT16, "int8_dynamic": recipe.dynamic_wi8_afp32()}
        try:
            peer = quantizer.Quantizer(bytearray(content), recipes[variant])
            return bytes(peer.quantize().quantized_model)
        except Exception as error:  # it raises a different class for every check
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise TargetError(f"ai-edge-quantizer cannot make a {variant} model of it: {reason}") from error


_FLOAT16 = [
    {
        "regex": ".*",
        "operation": "*",
        "algorithm_key": "float_casting",
        "op_config": {
            "weight_tensor_config": {"num_bits": 16, "symmetric": True, "granularity": "TENSORWISE", "dtype": "FLOAT"},
            "compute_precision": "FLOAT",
            "explicit_dequantize": True,
            "skip_checks": False,
        },
    }
]
"""https://github.com/google-ai-edge/ai-edge-quantizer, tests of its float_casting algorithm."""
