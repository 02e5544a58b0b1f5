"""What Core ML can hold and run as integers, with a public source for every claim."""

from __future__ import annotations

from pipeline.target import Capabilities, Capability

QUANTIZATION_GUIDE = "https://apple.github.io/coremltools/docs-guides/source/opt-quantization-overview.html"
QUANTIZE_OP = "https://apple.github.io/coremltools/source/coremltools.converters.mil.mil.ops.defs.html"


def _int8(op: str, *, source: str = QUANTIZATION_GUIDE) -> Capability:
    return Capability(op=op, dtypes=("int8",), granularity="per-channel", source=source)


CAPABILITIES = Capabilities(
    activation_dtypes=("int8", "uint8"),
    weight_dtypes=("int8", "uint8"),
    dynamic_batch=True,
    operators=(
        _int8("conv"),
        _int8("conv_transpose"),
        _int8("linear"),
        _int8("matmul"),
        Capability(op="quantize", dtypes=("int8", "uint8"), granularity="per-channel", source=QUANTIZE_OP),
        Capability(op="dequantize", dtypes=("int8", "uint8"), granularity="per-channel", source=QUANTIZE_OP),
    ),
)
