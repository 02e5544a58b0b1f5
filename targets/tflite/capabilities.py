"""What TFLite can compute as 8-bit integers, as data, each line with the page that says so."""

from __future__ import annotations

from pipeline.target import Capabilities, Capability

SPECIFICATION = "https://ai.google.dev/edge/litert/models/quantization_spec"
DIALECT = "https://www.tensorflow.org/mlir/tfl_ops"

PER_CHANNEL = {SPECIFICATION: ("CONV_2D", "DEPTHWISE_CONV_2D"), DIALECT: ("FULLY_CONNECTED", "TRANSPOSE_CONV")}
PER_TENSOR = {
    SPECIFICATION: (
        *("ADD", "AVERAGE_POOL_2D", "CONCATENATION", "L2_NORMALIZATION", "LOGISTIC", "LOG_SOFTMAX", "MAXIMUM"),
        *("MAX_POOL_2D", "MEAN", "MINIMUM", "MUL", "PAD", "QUANTIZE", "RESHAPE", "RESIZE_BILINEAR", "SLICE"),
        *("SOFTMAX", "SPACE_TO_DEPTH", "SQUEEZE", "SUB", "SUM", "TANH", "TRANSPOSE"),
    ),
    DIALECT: (
        *("BATCH_MATMUL", "ELU", "GELU", "HARD_SWISH", "LEAKY_RELU", "PRELU", "RESIZE_NEAREST_NEIGHBOR", "RSQRT"),
        *("SPLIT", "SQUARED_DIFFERENCE", "STRIDED_SLICE"),
    ),
}

CAPABILITIES = Capabilities(
    activation_dtypes=("int8",),
    weight_dtypes=("int8",),
    dynamic_batch=False,
    operators=tuple(
        Capability(op=op, dtypes=("int8",), granularity=granularity, source=source)
        for granularity, sources in (("per-channel", PER_CHANNEL), ("per-tensor", PER_TENSOR))
        for source, operators in sources.items()
        for op in operators
    ),
)
